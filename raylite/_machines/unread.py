"""Unread: which of a process's errors nobody has read, so that none of them passes unseen.

What a task raised is an error of each of its returns, and whoever has read one has read them all. An
error of which the last reference has gone unread is reported, once, after a while: a program that
fails for it says so itself, and is not to be told twice. Errors are rare, so they are kept beside
the objects: one that has a value costs nothing here.
"""

from collections import deque

from msgspec import Struct

from raylite._types.keys import TaskKey

DELAY = 5.0  # seconds from the last reference to the report; Ray's
KEPT = 10_000  # that wait to be reported; a program that loses more is told so often enough


class Report(Struct, frozen=True):
    """Errors, as their pickles, that nobody can read any more."""

    errors: tuple[bytes, ...]


class Unread:
    """The unread errors of one process, by task."""

    def __init__(self) -> None:
        self._held: dict[TaskKey, int] = {}  # and of how many references
        self._waiting: dict[TaskKey, tuple[float, bytes]] = {}
        self._due: deque[tuple[float, TaskKey]] = deque()  # also of those that wait no more

    @property
    def next_due(self) -> float | None:
        """When to ask for a report."""
        return self._due[0][0] if self._due else None

    def failed(self, task: TaskKey) -> None:
        """An object that somebody holds has an error."""
        self._held[task] = self._held.get(task, 0) + 1
        self._waiting.pop(task, None)

    def read(self, task: TaskKey) -> None:
        """Somebody has the error."""
        self._held.pop(task, None)
        self._waiting.pop(task, None)

    def dropped(self, task: TaskKey, error: bytes, now: float) -> None:
        """Nobody holds an object any more that had an error."""
        if task not in self._held:
            return
        self._held[task] -= 1
        if not self._held[task]:
            del self._held[task]
            self.abandoned(task, error, now)

    def abandoned(self, task: TaskKey, error: bytes, now: float) -> None:
        """An error came for an object that nobody held any more."""
        if task in self._held or task in self._waiting or len(self._due) >= KEPT:
            return
        self._waiting[task] = (now + DELAY, error)
        self._due.append((now + DELAY, task))

    def report(self, now: float) -> Report | None:
        """Return what is to be reported by now."""
        errors: list[bytes] = []
        while self._due and self._due[0][0] <= now:
            at, task = self._due.popleft()
            if task in self._waiting and self._waiting[task][0] == at:
                errors.append(self._waiting.pop(task)[1])
        if not errors:
            return None
        return Report(tuple(errors))

    def check(self) -> None:
        """Assert what holds between calls."""
        assert all(count > 0 for count in self._held.values())
        assert not self._held.keys() & self._waiting.keys()
        assert {(at, task) for task, (at, _) in self._waiting.items()} <= set(self._due)
        assert [at for at, _ in self._due] == sorted(at for at, _ in self._due)
        assert len(self._due) <= KEPT
