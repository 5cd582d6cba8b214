"""Logs: what workers have printed and their job's driver has not been shown yet, bounded.

A driver is sent one batch at a time and answers when it has shown it, so its own speed is the
speed of all this. When a job's room is full, its workers' output is not read any further, and whoever
prints waits as at a slow terminal; but not for a driver that shows nothing for `PATIENCE`: it is
stopped, or far away, and must not stop the work. What is printed then is dropped, and counted.
(It is in the log files all the same.)
"""

from collections import deque
from collections.abc import Iterable
from typing import Final

from msgspec import Struct, field

ROOM: Final = 1024 * 1024  # bytes of a job that wait here, and as many in what was read at once
BATCH: Final = 64 * 1024
PATIENCE: Final = 2.0  # seconds
RETRY: Final = 1.0  # seconds until a driver that could not be told is told again
ENDED_KEPT: Final = 1_000  # jobs remembered as ended, for what their workers still say

JobKey = bytes


class Dropped(Struct, frozen=True):
    """So many lines would be here, had there been room for them."""

    lines: int


class Send(Struct, frozen=True):
    """Show these, in order, to the job's driver; then say `shown` or `failed`."""

    job: JobKey
    items: tuple[object, ...]


class Resume(Struct, frozen=True):
    """Read on what this job's workers print."""

    job: JobKey


Effect = Send | Resume


class _Item(Struct, frozen=True):
    printed: object
    size: int
    lines: int


class _Job(Struct):
    #: When something was shown last, or began to wait.
    moved_at: float
    items: deque[_Item] = field(default_factory=deque)
    size: int = 0
    #: The batch that is on its way.
    sent: tuple[_Item, ...] = ()
    is_known: bool = False
    is_wanted: bool = True
    is_held: bool = False
    retry_at: float = 0.0
    # Lines ever; those settled have been shown or dropped.
    printed: int = 0
    settled: int = 0


class Logs:
    """The lines of every job that wait for its driver."""

    def __init__(self) -> None:
        self._jobs: dict[JobKey, _Job] = {}
        self._ended: dict[JobKey, None] = {}

    def known(self, job: JobKey, now: float) -> list[Effect]:
        """The job's driver can be told from now on."""
        if job in self._ended:
            return []
        state = self._state(job, now)
        state.is_known = True
        return self._send(job, state, now)

    def ended(self, job: JobKey) -> list[Effect]:
        """The job's driver is gone; what its workers still say is nobody's."""
        self._ended[job] = None
        if len(self._ended) > ENDED_KEPT:
            del self._ended[next(iter(self._ended))]
        state = self._jobs.pop(job, None)
        return [Resume(job)] if state is not None and state.is_held else []

    def printed(
        self, job: JobKey, printed: object, size: int, lines: int, now: float
    ) -> list[Effect]:
        """Workers of a job printed so many lines."""
        if job in self._ended:
            return []
        state = self._state(job, now)
        if not state.is_wanted:
            return []
        state.printed += lines
        most = ROOM if self._is_stuck(state, now) else 2 * ROOM
        if state.size + size > most:
            state.settled += lines
            _note_dropped(state, lines)
            return []
        if not state.items and not state.sent:
            state.moved_at = now
        state.items.append(_Item(printed, size, lines))
        state.size += size
        return self._send(job, state, now)

    def is_full(self, job: JobKey, now: float) -> bool:
        """Whether to wait with reading what this job's workers print, until `Resume`."""
        state = self._jobs.get(job)
        if state is None or state.size < ROOM or self._is_stuck(state, now):
            return False
        state.is_held = True
        return True

    def shown(self, job: JobKey, *, wants_more: bool, now: float) -> list[Effect]:
        """The driver has shown the batch; whether it wants another, ever."""
        state = self._jobs.get(job)
        if state is None or not state.sent:
            return []
        state.settled += _lines(state.sent)
        state.sent, state.moved_at = (), now
        if not wants_more:
            state.is_wanted = False
            state.settled += _lines(state.items)
            state.items.clear()
            state.size = 0
        effects = self._send(job, state, now)
        return [*effects, *self._release(job, state, now)]

    def failed(self, job: JobKey, now: float) -> None:
        """The batch did not arrive, as far as is known; its lines count as dropped."""
        state = self._jobs.get(job)
        if state is not None and state.sent:
            lost = _lines(state.sent)
            state.settled += lost
            for item in state.sent:
                lost += item.printed.lines if isinstance(item.printed, Dropped) else 0
            state.items.appendleft(_Item(Dropped(lost), 0, 0))
            state.sent, state.retry_at = (), now + RETRY

    def expire(self, now: float) -> list[Effect]:
        """Try again what failed, and wait no longer for who shows nothing."""
        effects: list[Effect] = []
        for job, state in self._jobs.items():
            effects += self._send(job, state, now)
            effects += self._release(job, state, now)
        return effects

    def next_wakeup(self) -> float | None:
        """When to call `expire`."""
        times = [state.moved_at + PATIENCE for state in self._jobs.values() if state.is_held]
        times += [
            state.retry_at
            for state in self._jobs.values()
            if state.is_known and state.items and not state.sent
        ]
        return min(times, default=None)

    def mark(self, job: JobKey) -> int:
        """Return a number for all that has been printed so far; see `is_settled`."""
        state = self._jobs.get(job)
        return state.printed if state is not None else 0

    def is_settled(self, job: JobKey, mark: int) -> bool:
        """Whether all that was printed before a mark has been shown or dropped."""
        state = self._jobs.get(job)
        return state is None or not state.is_wanted or state.settled >= mark

    def check(self) -> None:
        """Assert what holds between calls."""
        assert not self._jobs.keys() & self._ended.keys()
        assert len(self._ended) <= ENDED_KEPT
        for state in self._jobs.values():
            assert state.size == sum(item.size for item in state.items) <= 2 * ROOM
            assert state.printed == state.settled + _lines(state.items) + _lines(state.sent)
            assert state.is_wanted or not state.items
            assert not state.is_held or state.size >= ROOM, "workers are held back for nothing"

    def _state(self, job: JobKey, now: float) -> _Job:
        if (state := self._jobs.get(job)) is None:
            state = self._jobs[job] = _Job(now)
        return state

    def _is_stuck(self, state: _Job, now: float) -> bool:
        return state.size >= ROOM and now >= state.moved_at + PATIENCE

    def _send(self, job: JobKey, state: _Job, now: float) -> list[Effect]:
        if not (state.is_known and state.items) or state.sent or now < state.retry_at:
            return []
        batch = [state.items.popleft()]
        size = batch[0].size
        while state.items and size + state.items[0].size <= BATCH:
            batch.append(state.items.popleft())
            size += batch[-1].size
        state.size -= size
        state.sent = tuple(batch)
        send = Send(job, tuple(item.printed for item in batch))
        return [send, *self._release(job, state, now)]

    def _release(self, job: JobKey, state: _Job, now: float) -> list[Effect]:
        if not state.is_held or (state.size >= ROOM and not self._is_stuck(state, now)):
            return []
        state.is_held = False
        return [Resume(job)]


def _lines(items: Iterable[_Item]) -> int:
    return sum(item.lines for item in items)


def _note_dropped(state: _Job, lines: int) -> None:
    if state.items and isinstance(last := state.items[-1].printed, Dropped):
        lines += last.lines
        state.items.pop()
    state.items.append(_Item(Dropped(lines), 0, 0))
