"""An alarm: one call-back at a time of its owner's choosing."""

import asyncio
from collections.abc import Callable


class Alarm:
    """Calls back once at the earliest time it was set to; then it is unset."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None
        self._at = 0.0

    def set(self, at: float | None) -> None:
        """Ring at this time on the loop's clock, or earlier if set so already; None asks nothing."""
        if at is None:
            return
        if self._handle is not None:
            if self._at <= at:
                return
            self._handle.cancel()
        self._at = at
        self._handle = asyncio.get_running_loop().call_at(at, self._ring)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _ring(self) -> None:
        self._handle = None
        self._callback()
