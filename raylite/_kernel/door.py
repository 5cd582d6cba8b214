"""The door: what an accepted connection's bytes go through until its peer has proven itself."""

import asyncio
from collections.abc import Callable
from typing import cast

from raylite._kernel.connection import PREFACE, Connection
from raylite._kernel.guard import Guard
from raylite._kernel.wire import CLOSING, FIRST_PACKET


class Door(asyncio.Protocol):
    """Stands before a `Connection`: bounds what is read and how long it takes, and counts who fails.

    The connection is made, and is the first to write, when the peer has begun with HTTP/2: what
    knocks in vain stays cheap. Once the peer has `passed`, the connection is the transport's
    protocol, and costs what it would have cost without a door. However the connection ends, the
    guard is told once; of a peer that leaves before it has said anything, that it has left.
    """

    def __init__(
        self,
        guard: Guard,
        place: str,
        channel: bytes,
        make: Callable[[], Connection],
        doors: "dict[Door, None]",
    ) -> None:
        self.channel = channel
        self._doors = doors
        doors[self] = None
        self._guard, self._place, self._make = guard, place, make
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._connection: Connection | None = None
        self._early = b""
        self._heard = 0
        self._is_left = self._has_failed = False
        deadline = guard.admission.deadline
        self._timer = self._loop.call_later(deadline, self.end, f"no proof within {deadline:g} s")

    @property
    def delay(self) -> float:
        """How long this stranger has to wait before it is asked."""
        return self._guard.delay(self._place, self._loop.time())

    def passed(self) -> None:
        """The peer has proven itself."""
        if self._transport is not None and self._connection is not None and not self._is_left:
            self._transport.set_protocol(self._connection)
        self.leave()

    def failed(self, reason: str) -> None:
        """The peer is turned away, and the connection ends soon; only the first reason counts."""
        if not self._has_failed and not self._is_left:
            self._has_failed = True
            self._guard.failed(self._place, reason, self._loop.time())
            self._timer.cancel()
            self._timer = self._loop.call_later(CLOSING, self.end, reason)

    def end(self, reason: str) -> None:
        """Turn the peer away at once."""
        self.failed(reason)
        self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()

    def leave(self) -> None:
        """Give the place at the door to another."""
        if not self._is_left:
            self._is_left = True
            self._doors.pop(self, None)
            self._timer.cancel()
            self._guard.leave(self._place)

    def forsaken(self) -> None:
        """Who accepted it has given up: see `Connection.forsaken`."""
        self.leave()
        if self._connection is not None:
            self._connection.forsaken()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has another base
        if self._has_failed:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._heard += len(data)
        if self._heard > FIRST_PACKET:
            self.end(f"no proof in the first {FIRST_PACKET} bytes")
        elif self._connection is not None:
            self._connection.data_received(data)
        else:
            self._early += data
            if self._early[: len(PREFACE)] != PREFACE[: len(self._early)]:
                self.end("no HTTP/2")
            elif len(self._early) >= len(PREFACE):
                self._begin()

    @property
    def _has_spoken(self) -> bool:
        """Whether the peer has said anything, be it TLS. Who has not has tried nothing but the port."""
        transport = self._transport
        return self._heard > 0 or (
            transport is not None and transport.get_extra_info("sslcontext") is not None
        )

    def pause_writing(self) -> None:
        if self._connection is not None:
            self._connection.pause_writing()

    def resume_writing(self) -> None:
        if self._connection is not None:
            self._connection.resume_writing()

    def connection_lost(self, error: BaseException | None) -> None:
        if self._has_spoken:
            self.failed("ended without a proof")
        self.leave()
        if self._connection is not None:
            self._connection.connection_lost(error)

    def _begin(self) -> None:
        assert self._transport is not None
        self._connection = connection = self._make()
        connection.door = self
        connection.connection_made(self._transport)
        early, self._early = self._early, b""
        connection.data_received(early)
