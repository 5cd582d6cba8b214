"""A schedule: a call for each task at its time, by one alarm for the earliest."""

from collections.abc import Callable

from raylite._kernel.alarm import Alarm
from raylite._kernel.seams import now
from raylite._machines.timetable import Timetable
from raylite._types.keys import TaskKey


class Schedule:
    """Calls back once for each task that was set, at its time on the loop's clock."""

    def __init__(self, callback: Callable[[TaskKey], None]) -> None:
        self._callback = callback
        self._table = Timetable[TaskKey]()
        self.times: dict[TaskKey, float] = self._table.times  # by task, to look at only
        self._alarm = Alarm(self._ring)

    def set(self, task: TaskKey, at: float) -> None:
        self._table.set(task, at)
        self._alarm.set(at)

    def drop(self, task: TaskKey) -> None:
        self._table.drop(task)

    def left(self, task: TaskKey) -> float | None:
        """Return the seconds until a task's time, 0 when that has come; None if it has none."""
        at = self.times.get(task)
        return None if at is None else max(at - now(), 0.0)

    def stop(self) -> None:
        """Call nobody any more."""
        self._alarm.cancel()

    def _ring(self) -> None:
        for task in self._table.due(now()):
            self._callback(task)
        self._alarm.set(self._table.next())
