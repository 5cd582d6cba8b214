"""Retries: whether a task that failed runs again, and when.

A task has three budgets, and what one is spent on does not shorten the others: what befell its worker
or node, what it raised and its options retry, and what a node that ran out of memory ended. An attempt
is counted once: whatever is told of one that another has followed, late or again, changes nothing.
"""

from enum import Enum

from msgspec import Struct

FIRST, LONGEST = 0.1, 10.0  # seconds
MEMORY_FIRST, MEMORY_LONGEST = 1.0, 60.0  # the node has to find memory meanwhile
_DOUBLINGS = 7  # as many lead from FIRST past LONGEST; counting on would overflow in the end


class Failure(Enum):
    """What ended an attempt."""

    WORKER_DIED = "its worker ended"
    NODE_DIED = "its node was lost, with the worker"
    OUT_OF_MEMORY = "its worker was ended, for its node was running out of memory"
    RAISED = "it raised what its options retry"


class RunAgain(Struct, frozen=True):
    """Begin another attempt, so many seconds from now."""

    attempt: int
    delay: float


class GiveUp(Struct, frozen=True):
    """The task has failed."""

    #: What its user is told: how often it has failed, and of what.
    story: str


class Retries:
    """What has befallen one task; made for its first failure, for most tasks never fail."""

    __slots__ = ("_attempt", "_counts")

    def __init__(self) -> None:
        self._attempt = 0
        self._counts: dict[Failure, int] = {}

    def failed(
        self, attempt: int, failure: Failure, allowed: int, jitter: float, *, oom_allowed: int = -1
    ) -> RunAgain | GiveUp | None:
        """An attempt has failed; None if it was not the last one to be begun.

        Ray: exceptions and deaths share one budget, so that nodes which are taken away use up what
        was meant for the task's own errors.

        Args:
            attempt: Its number; the first is 0.
            failure: What ended it.
            allowed: The task's `max_retries`; -1 is no limit, and 0 retries nothing at all.
            jitter: A random number from 0 to 1, so that tasks which failed together do not retry so.
            oom_allowed: As `allowed`, for attempts that were ended for want of memory.
        """
        if attempt != self._attempt:
            return None
        self._attempt += 1  # nothing that is said of this one counts any more
        times = self._counts[failure] = self._counts.get(failure, 0) + 1
        if failure in _DEATHS:
            times = sum(self._counts.get(each, 0) for each in _DEATHS)
        is_memory = failure is Failure.OUT_OF_MEMORY
        is_apart = is_memory and allowed != 0
        limit = oom_allowed if is_apart else allowed
        if 0 <= limit < times:
            return GiveUp(self._story("task_oom_retries" if is_apart else "max_retries", limit))
        if is_memory:
            delay = _backoff(times, MEMORY_FIRST, MEMORY_LONGEST, jitter)
        else:
            delay = retry_delay(self._attempt, jitter)
        return RunAgain(self._attempt, delay)

    def _story(self, option: str, limit: int) -> str:
        text = f"attempt {self._attempt}, the last that {option}={limit} allows"
        if self._attempt == 1:
            return text
        counts = (f"{count} {_WORDS[failure]}" for failure, count in self._counts.items())
        return f"{text}, of which {', '.join(counts)}"

    def check(self) -> None:
        """Assert what holds between calls."""
        assert self._attempt == sum(self._counts.values())


_DEATHS = (Failure.WORKER_DIED, Failure.NODE_DIED)
_WORDS = {
    Failure.WORKER_DIED: "ended with their worker",
    Failure.NODE_DIED: "ended with their node",
    Failure.OUT_OF_MEMORY: "were ended for want of memory",
    Failure.RAISED: "raised",
}


def retry_delay(attempt: int, jitter: float) -> float:
    """Return the seconds before an attempt: none before the first retry, then growing, jittered.

    Ray retries at once, always; a task that crashes its worker then makes a hot loop of forks.

    Args:
        attempt: The number of the attempt; the first is 0.
        jitter: A random number from 0 to 1, so that tasks which failed together do not retry so.
    """
    return 0.0 if attempt <= 1 else _backoff(attempt - 1, FIRST, LONGEST, jitter)


def _backoff(times: int, first: float, longest: float, jitter: float) -> float:
    return min(first * 2.0 ** min(times - 1, _DOUBLINGS), longest) * (0.5 + 0.5 * jitter)
