"""`Awaited`: values that the event loops of a plain task await. Meanwhile its CPU is lent."""

import asyncio
from collections.abc import Callable


class Awaited:
    """The futures of values that a plain task awaits, in a loop that it runs on the task thread.

    All of it is that thread's. `tell` is called with True when the CPU is to be lent, and with False
    when the task has what it awaited, or has ended.
    """

    def __init__(self, tell: Callable[[bool], None]) -> None:
        self._tell = tell
        self._futures: set[asyncio.Future[None]] = set()
        self.is_lent: bool = False

    def add(self, future: "asyncio.Future[None]") -> None:
        """The task is about to await this."""
        self._futures.add(future)
        future.add_done_callback(self._got)
        if not self.is_lent:
            self.is_lent = True
            self._tell(True)

    def end(self) -> None:
        """The task has ended, and may have left a loop that will never see its values."""
        self._futures.clear()
        self._settle()

    def _got(self, future: "asyncio.Future[None]") -> None:
        if future in self._futures:  # or it is of a task that has ended
            self._futures.remove(future)
            if not self._futures:
                future.get_loop().call_soon(self._settle)  # it may well await the next at once

    def _settle(self) -> None:
        if self.is_lent and not self._futures:
            self._tell(False)
            self.is_lent = False  # last: an interrupt between the two must not keep the CPU lent
