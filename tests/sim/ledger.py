"""The ledger: what truly happened in a simulation, told by the tasks' bodies and not by the cluster."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from raylite._services.worker.objects import ObjectRef
from raylite._types.cancellation import CancelOutcome
from raylite.exceptions import (
    ObjectLostError,
    OutOfMemoryError,
    RayTaskError,
    TaskCancelledError,
    TaskTimeoutError,
    TaskUnschedulableError,
    WorkerCrashedError,
)
from raylite.testing.loop import SimLoop
from raylite.testing.node import TaskContext
from tests.sim.scripts import Expected, Planned, Script, Wrong, scripts_in


class Place(Protocol):
    """Where it happens: a node, or a cluster."""

    def death_of(self, worker: str) -> str | None: ...
    def fail(self, error: BaseException) -> None: ...
    @property
    def failed_starts(self) -> int: ...


def moment() -> float:
    """The time by which the ledger is kept."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimLoop)
    return loop.moment


@dataclass(slots=True)
class Attempt:
    """One run of a task's body."""

    label: int
    task: bytes
    number: int
    retries: int
    worker: str
    began: float
    ended: float | None = None
    is_interrupted: bool = False


class Ledger:
    """What truly happened, told by the bodies and not by the cluster."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.attempts: list[Attempt] = []
        self.of_task: dict[bytes, list[Attempt]] = {}
        self.of_label: dict[int, list[Attempt]] = {}
        self.cancelled: set[int] = set()  # labels
        self.doomed: set[int] = set()  # labels of what has a timeout, and of what that starts
        self.prevented: set[bytes] = set()  # tasks of which nobody saw anything before they ended
        self._flags: dict[str, asyncio.Event] = {}
        self.kept: dict[str, list[ObjectRef[Any]]] = {}  # by worker
        self.ended_for_memory: set[str] = set()  # workers
        self.on_event: Callable[[str], None] = lambda worker: None
        self.on_put: Callable[[str], None] = lambda worker: None

    def begin(self, task: TaskContext, script: Script) -> Attempt:
        attempt = Attempt(
            script.label, task.id, task.attempt, script.retries, task.worker, moment()
        )
        earlier = self.of_task.setdefault(task.id, [])
        if any(each.number == task.attempt for each in earlier):
            self.wrong(f"attempt {task.attempt} of {script.label} began twice")
        if task.attempt > script.retries + (len(self.ended_for_memory) if script.retries else 0):
            self.wrong(f"attempt {task.attempt} of {script.label}, with {script.retries} retries")
        if script.timeout is not None:
            self.doomed |= {each.label for each in scripts_in(script)}
        if task.id in self.prevented:
            self.wrong(f"{script.label} begins, though it was cancelled before it started")
        for each in earlier:
            if each.is_interrupted:
                self.wrong(f"{script.label} was interrupted and is tried again: {each}")
            if not self.has_ended(each):
                self.wrong(f"{script.label} runs again, and worker {each.worker} lives: {each}")
        earlier.append(attempt)
        self.attempts.append(attempt)
        self.of_label.setdefault(script.label, []).append(attempt)
        self.on_event(task.worker)
        return attempt

    def end(self, attempt: Attempt, script: Script) -> None:
        attempt.ended = moment()
        self.on_event(attempt.worker)
        if script.puts:
            self.on_put(attempt.worker)

    def interrupt(self, attempt: Attempt) -> None:
        """A body was interrupted, and its worker goes on."""
        attempt.is_interrupted = True
        if attempt.label not in self.cancelled | self.doomed:
            self.wrong(f"{attempt.label} was interrupted, and nobody cancelled it: {attempt}")

    def cancel(self, script: Script, *, recursive: bool) -> None:
        """A driver is about to cancel this."""
        self.cancelled |= (
            {each.label for each in scripts_in(script)} if recursive else {script.label}
        )

    def came_of(self, task: bytes, outcome: CancelOutcome) -> None:
        """A driver heard what came of cancelling a task for the first time."""
        attempts = self.of_task.get(task, [])
        match outcome:
            case CancelOutcome.BEFORE_START:
                self.prevented.add(task)
                if any(not self.is_lost(each) for each in attempts):
                    self.wrong(f"it was said not to have started: {attempts}")
            case CancelOutcome.FINISHED_FIRST:
                if any(each.is_interrupted and each.label not in self.doomed for each in attempts):
                    self.wrong(f"it was said to have finished: {attempts}")

    def flag(self, name: str) -> asyncio.Event:
        return self._flags.setdefault(name, asyncio.Event())

    def is_lost(self, attempt: Attempt) -> bool:
        """Whether the worker of an attempt died a violent death."""
        return self.place.death_of(attempt.worker) not in (None, "exit code 0")

    def has_ended(self, attempt: Attempt) -> bool:
        """Whether an attempt is over, so that the next one may begin."""
        return self.is_lost(attempt)

    def detained(self, worker: str) -> float:
        """Return for how many seconds bodies on a worker are to take longer."""
        return 0.0

    def is_exhausted(self, script: Script) -> bool:
        """Whether all attempts that some task with this script may have were lost."""
        by_task: dict[bytes, int] = {}
        for attempt in self.of_label.get(script.label, ()):
            if self.is_lost(attempt) and attempt.worker not in self.ended_for_memory:
                by_task[attempt.task] = by_task.get(attempt.task, 0) + 1
        return any(lost > script.retries for lost in by_task.values())

    def is_out_of_memory(self, script: Script) -> bool:
        """Whether a task that may not be tried again was ended for want of memory."""
        attempts = self.of_label.get(script.label, ())
        return not script.retries and any(a.worker in self.ended_for_memory for a in attempts)

    def is_owner_dead(self, script: Script) -> bool:
        """Whether a worker died that may have owned what this script's answer refers to."""
        if not script.puts and script.manner != "return":
            return False
        return any(self.is_lost(attempt) for attempt in self.of_label.get(script.label, ()))

    def judge(self, expected: Expected, error: BaseException, node: str) -> None:
        """Accept an error that a driver of a node got only if what it claims did happen."""
        scripts = list(expected.closure())
        if isinstance(error, WorkerCrashedError):
            allowed = any(self.is_exhausted(each) for each in scripts)
        elif isinstance(error, OutOfMemoryError):
            allowed = any(self.is_out_of_memory(each) for each in scripts)
        elif isinstance(error, TaskTimeoutError | TaskCancelledError):  # what it started, too
            allowed = any(each.timeout is not None for each in scripts)
            if isinstance(error, TaskCancelledError):
                allowed = allowed or any(each.label in self.cancelled for each in scripts)
        elif isinstance(error, Planned):
            allowed = any(each.raises for each in scripts)
        elif isinstance(error, ObjectLostError):
            allowed = any(self.is_owner_dead(each) for each in scripts)
        elif isinstance(error, TaskUnschedulableError):
            allowed = self.place.failed_starts >= 3
        else:
            allowed = False
        if not allowed and not self.is_explained(expected, error, node):
            cause = error.__cause__ if isinstance(error, RayTaskError) else None
            self.wrong(f"{expected.script.label} failed, and should not: {error!r} {cause!r}")

    def is_explained(self, expected: Expected, error: BaseException, node: str) -> bool:
        """Whether something else than the deaths of workers led to an error."""
        return False

    def wrong(self, message: str) -> None:
        error = Wrong(message)
        self.place.fail(error)
        raise error


_current: list[Ledger] = []


def current() -> Ledger:
    """The ledger of the simulation that runs."""
    return _current[-1]


@contextmanager
def keeping(ledger: Ledger) -> Iterator[None]:
    """Let bodies tell this one."""
    _current.append(ledger)
    try:
        yield
    finally:
        _current.remove(ledger)
