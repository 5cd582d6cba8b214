"""The striker: interrupts the task that a worker's main thread runs, if that was cancelled."""

import asyncio
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from raylite._kernel.alarm import Alarm
from raylite._kernel.seams import now
from raylite._services.worker.interrupts import is_below

#: Not SIGINT: that may come from elsewhere, and then says nothing about whom it is for.
STRIKE = signal.SIGRTMIN + 5

AGAIN, LONGEST = 0.05, 1.0  # seconds


class Striker:
    """Has the main thread look whether what it does is to be interrupted, and interrupts it.

    The decision is made in the signal's handler, so by the thread that would be interrupted and at
    the frame where it would be: no task can end, and no other begin, between decision and deed.
    What it does then is what Ctrl-C does: the task's own handler of SIGINT is called, if it has set
    one, as `asyncio.run` does; else KeyboardInterrupt is raised. Make it on the main thread.

    Args:
        loop: The loop, in another thread, that calls `strike`.
        is_due: Says whether the code at a frame is to be interrupted.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, is_due: Callable[[FrameType | None], bool]
    ) -> None:
        self._loop = loop
        self._patience = AGAIN
        self._alarm = Alarm(self._look)
        self._is_due = is_due
        self._main = threading.get_ident()
        self._wanted = self._seen = 0
        self._report = sys.unraisablehook
        sys.unraisablehook = self._unraisable
        signal.signal(STRIKE, self._handle)

    def strike(self) -> None:
        """Have the main thread look; called by the loop."""
        self._wanted += 1
        self._patience = AGAIN
        self._send()

    def _send(self) -> None:
        signal.pthread_kill(self._main, STRIKE)
        self._alarm.set(now() + self._patience)

    def _look(self) -> None:
        """Send it again: a signal just before a system call is seen only when that returns."""
        if self._seen != self._wanted:
            self._patience = min(self._patience * 2, LONGEST)
            self._send()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._seen = self._wanted
        if not self._is_due(frame):
            return
        if is_below(frame, _UNRAISABLE):
            self._later()
            return
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):
            handler(signal.SIGINT, frame)
        elif handler is not signal.SIG_IGN:
            raise KeyboardInterrupt

    def _unraisable(self, unraisable: Any) -> None:
        """What is raised while an object dies ends nothing: strike again."""
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            self._later()
        else:
            self._report(unraisable)

    def _later(self) -> None:
        with suppress(RuntimeError):  # the loop was closed: the process is ending
            self._loop.call_soon_threadsafe(self.strike)


_UNRAISABLE = Striker._unraisable.__code__
