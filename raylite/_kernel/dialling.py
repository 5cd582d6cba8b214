"""Dialling: a wire that was opened to a peer, until its hello is answered."""

import asyncio

from raylite._kernel.link import Link
from raylite._kernel.opening import (
    Refused,
    Welcome,
    decoded,
    only_frame,
    read_refused,
    read_welcome,
)
from raylite._kernel.packet import Kind
from raylite._kernel.wire import Deaf, Wire
from raylite._types.address import shown
from raylite.exceptions import LinkError, PeerLostError, ProtocolError, RayError


class Opening:
    """A dialled wire until its hello is answered. `done` says why it failed, if it did."""

    def __init__(self, link: Link) -> None:
        self.done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._link = link
        self._wire: Wire | None = None

    def begin(self, wire: Wire) -> None:
        self._wire = wire
        if self._link.is_ended:
            self._give_up("the link has ended")

    def packet(self, data: bytes | memoryview) -> None:
        try:
            frame = only_frame(data)
            if self._wire is None:
                raise ProtocolError(f"a {frame.kind.name} frame before the hello")
            if frame.kind is Kind.WELCOME:
                self._welcomed(self._wire, decoded(read_welcome, frame.body))
            elif frame.kind is Kind.REFUSED:
                self._refused(decoded(read_refused, frame.body))
            else:
                raise ProtocolError(f"a {frame.kind.name} frame before the session opened")
        except ProtocolError as error:
            self.malformed(error)

    def arriving(self) -> None: ...

    def malformed(self, error: LinkError) -> None:
        self._link.finish(error)
        self._give_up(str(error))

    def broken(self, reason: str) -> None:
        self._end(reason)

    def writable(self) -> None: ...

    def _welcomed(self, wire: Wire, welcome: Welcome) -> None:
        link = self._link
        if not welcome.makes_sense():
            raise ProtocolError("a welcome that makes no sense")
        if link.is_ended:
            self._give_up("the link has ended")
        elif link.peer_incarnation not in (b"", welcome.incarnation):
            link.confirm_dead("another process answers in its place")
            self._give_up("another process")
        else:
            link.peer_incarnation = welcome.incarnation
            self._end("")
            link.attach(wire, welcome.received)

    def _refused(self, refused: Refused) -> None:
        error: RayError = ProtocolError(f"{shown(self._link.peer)} {refused.reason}")
        if refused.is_gone or refused.is_over:
            told = f"{shown(self._link.peer)}: {refused.reason}"
            error = PeerLostError(told, confirmed=refused.is_gone, reason=refused.reason)
        self._link.finish(error)
        self._give_up(refused.reason)

    def _give_up(self, reason: str) -> None:
        if self._wire is not None:
            self._wire.events = Deaf()
            self._wire.abort(reason)
        self._end(reason)

    def _end(self, failure: str) -> None:
        if not self.done.done():
            self.done.set_result(failure)
