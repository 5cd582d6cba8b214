"""Unhandled errors: those that nobody has read are logged. `Unread` decides which, and when."""

import logging
import os

from raylite._kernel.alarm import Alarm
from raylite._kernel.seams import now
from raylite._machines.unread import Unread
from raylite._types.keys import TaskKey
from raylite._wire.hot import Form, Value
from raylite._wire.stories import story

logger = logging.getLogger("raylite")

SHOWN = 10  # errors of one moment; the others are counted
_TASK = 24  # bytes of an object's id: its task's
_SWITCHES = ("RAYLITE_IGNORE_UNHANDLED_ERRORS", "RAY_IGNORE_UNHANDLED_ERRORS")
# What was asked for, or is told otherwise.
_EXPECTED = (
    "TaskCancelledError",
    "LocalRayletDiedError",
    "GcsUnavailableError",
    "SessionEndedError",
)


class UnhandledErrors:
    """Watches a process's errors. All of it is the loop's."""

    def __init__(self) -> None:
        self.unread: Unread = Unread()
        self._alarm = Alarm(self._report)

    def failed(self, id: bytes) -> None:
        """An object of this process has an error."""
        self.unread.failed(TaskKey(id[:_TASK]))

    def read(self, id: bytes) -> None:
        """Somebody has read an object's error."""
        self.unread.read(TaskKey(id[:_TASK]))

    def dropped(self, id: bytes, value: Value) -> None:
        """An object with an error is gone."""
        self.unread.dropped(TaskKey(id[:_TASK]), value.data, now())
        self._alarm.set(self.unread.next_due)

    def abandoned(self, id: bytes, value: Value) -> None:
        """A value came for an object that was gone already."""
        if value.form == Form.ERROR:
            self.unread.abandoned(TaskKey(id[:_TASK]), value.data, now())
            self._alarm.set(self.unread.next_due)

    def close(self) -> None:
        """Report nothing more: the program is ending, and has said how."""
        self._alarm.cancel()

    def _report(self) -> None:
        report = self.unread.report(now())
        self._alarm.set(self.unread.next_due)
        if report is None or any(os.environ.get(switch) == "1" for switch in _SWITCHES):
            return
        stories = [story(error) for error in report.errors]
        texts = [text for name, text in stories if name not in _EXPECTED]
        for text in texts[:SHOWN]:
            _log(text)
        if len(texts) > SHOWN:
            _log(f"and {len(texts) - SHOWN} more like these in the same moment")


def _log(text: str) -> None:
    logger.error("Unhandled error (suppress with 'RAY_IGNORE_UNHANDLED_ERRORS=1'): %s", text)
