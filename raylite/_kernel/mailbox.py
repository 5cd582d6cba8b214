"""A mailbox: messages for one service, first come first served, control before bulk.

It is drained by the loop in slices, so that one flooded service does not starve the others, and
it says when it is too full: the links that fill it then stop reading.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

M = TypeVar("M")

HIGH_WATER = 8 * 1024 * 1024  # bytes waiting above which links stop reading
OVERHEAD = 64  # bytes that a message is taken to cost beyond its body
SLICE = 256  # messages handled before other callbacks of the loop run


class Mailbox(Generic[M]):
    """Two lanes of messages and the function that handles one.

    A mailbox that was never opened only collects; one that was closed takes nothing more.
    """

    def __init__(self, handle: Callable[[M], None]) -> None:
        self._handle = handle
        self._control: deque[tuple[M, int]] = deque()
        self._bulk: deque[tuple[M, int]] = deque()
        self._size = 0
        self._scheduled = False
        self._is_draining = False
        self._is_open = False
        self._waiting: list[Callable[[], None]] = []
        self.is_closed = False

    def __len__(self) -> int:
        return len(self._control) + len(self._bulk)

    @property
    def is_open(self) -> bool:
        """Whether messages are handled now: opened, and not closed again."""
        return self._is_open and not self.is_closed

    @property
    def full(self) -> bool:
        """Whether whoever fills this mailbox should stop until `on_room` says otherwise."""
        return self._size > HIGH_WATER

    def on_room(self, callback: Callable[[], None]) -> None:
        """Call back, once, when the mailbox has drained to half its high-water mark."""
        self._waiting.append(callback)

    def put(self, message: M, size: int, bulk: bool, *, drains: bool = False) -> None:
        """Add a message, to be handled soon; `drains` promises a call of `drain` in this turn."""
        if self.is_closed:
            return
        size += OVERHEAD
        (self._bulk if bulk else self._control).append((message, size))
        self._size += size
        if not drains:
            self._schedule()

    def drain(self) -> None:
        """Handle what waits now, without a turn of the loop; for callers at the loop's top."""
        if self._is_open and not self._is_draining:
            self._drain()

    def open(self) -> None:
        """Begin to handle messages; until then they wait."""
        self._is_open = True
        self._schedule()

    def close(self) -> list[M]:
        """Take no more, and return what was not handled, in order."""
        self.is_closed = True
        dropped = [message for message, _ in (*self._control, *self._bulk)]
        self._control.clear()
        self._bulk.clear()
        self._size = 0
        self._wake()
        return dropped

    def _schedule(self) -> None:
        if self._is_open and not self._scheduled and (self._control or self._bulk):
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._on_time)

    def _on_time(self) -> None:
        self._scheduled = False
        self._drain()

    def _drain(self) -> None:
        self._is_draining = True
        try:
            for _ in range(SLICE):
                if self._control:
                    message, size = self._control.popleft()
                elif self._bulk:
                    message, size = self._bulk.popleft()
                else:
                    break
                self._size -= size
                self._handle(message)
        finally:
            self._is_draining = False
            if self._waiting and self._size <= HIGH_WATER // 2:
                self._wake()
            if self._control or self._bulk:
                self._schedule()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()
