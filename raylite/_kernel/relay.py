"""The relay: streams that come in by this process's port and are another's, of the same node.

Who dials a process of another node by TCP says which one it means, by the name of its unix socket.
If that is not the process at the port, this one proves itself to both and joins their streams. It
hands on bytes, not packets: sessions, acknowledgements and pings are between the two ends.

Either stream takes what its peer may send (`WINDOW`) before the other has room for it, and no more.
However one of them ends, the other ends too.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress

from grpclib.const import Status
from grpclib.exceptions import StreamTerminatedError
from grpclib.server import Stream as ServerStream
from h2.exceptions import ProtocolError as H2Error

from raylite._kernel.detour import Detours
from raylite._kernel.grpcwire import GrpcWire
from raylite._kernel.interface import allows
from raylite._kernel.wire import Deaf, Wire, WireEvents
from raylite._types.address import shown
from raylite.exceptions import LinkError, RayError

TO = "raylite-to"  # in a request: the name of the socket that it is for
FOR = "raylite-for"  # and of a relay: that its unix socket leads out of the machine
SCOPE = "raylite-scope"  # and of a relay: what the asker may do, by the token that it has proven
ONWARD = "raylite-onward"  # in a request: the address that it is to be carried to, see `detour`
NUDGE = 1.0  # seconds after which a frame that takes longer is announced to the other end

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,16})?")


def is_name(text: str) -> bool:
    """Whether this is the name of a socket, and of nothing outside the directory of sockets."""
    return _NAME.fullmatch(text) is not None


async def reached(
    dial: Callable[[str, WireEvents], Awaitable[Wire]], folder: str, name: str, seconds: float
) -> GrpcWire:
    """Return a wire to the process that listens at a socket of a directory.

    Raises:
        ConnectionError: There is none; the message says why.
    """
    if not (folder and is_name(name)):
        raise ConnectionError(f"{name} is not reached here")
    try:
        async with asyncio.timeout(seconds):
            wire = await dial(f"unix:{folder}/{name}", Deaf())
    except Exception as error:  # as `Network` does: a connection may be reset at any moment
        raise ConnectionError(f"{name} does not answer on its node: {error}") from error
    assert isinstance(wire, GrpcWire)
    return wire


async def carried(
    detours: Detours,
    address: str,
    asker: GrpcWire,
    dial: Callable[[str, str], Awaitable[Wire]],
    seconds: float,
) -> GrpcWire:
    """Return a wire to an address, for a member that cannot reach it.

    Args:
        detours: This process's.
        address: What is asked for.
        asker: Who asks: a process of this node, for which others are asked; or one that has asked those.
        dial: Opens a wire to an address; or to the second one, by way of the first.
        seconds: How long each attempt may take.

    Raises:
        ConnectionError: There is none; the message says why.
    """
    if not (allows(asker.scope, "node") and detours.carries(address)):
        raise ConnectionError(f"{shown(address)} is not reached from here")
    ways = [(way, address) for way in detours.ways(address)] if asker.is_local else [(address, "")]
    for way, onward in ways:
        try:
            async with asyncio.timeout(seconds):
                wire = await dial(way, onward)
        except (OSError, RayError):
            continue
        if isinstance(wire, GrpcWire):
            return wire
        wire.abort("it cannot be handed on")
    raise ConnectionError(f"{shown(address)} is not reached from here either")


async def relay(
    wire: GrpcWire,
    stream: "ServerStream[bytes, bytes]",
    reach: Callable[[], Awaitable[GrpcWire]],
) -> None:
    """Join a member's wire with that to whom it is meant for, until either ends; or tell why not."""
    try:
        onward = await reach()
    except ConnectionError as error:
        told = str(error)
        with suppress(StreamTerminatedError, H2Error, RuntimeError):  # the asker may be gone
            await stream.send_trailing_metadata(status=Status.UNAVAILABLE, status_message=told)
        wire.close("nobody to relay to")
        return
    try:
        splice(wire, onward)
        await asyncio.wait((wire.gone, onward.gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        wire.close("closing")
        onward.close("closing")


def splice(one: GrpcWire, other: GrpcWire) -> None:
    """Let each of two wires bring what is sent on the other; neither has been sent a packet."""
    for wire, onward in ((one, other), (other, one)):
        if wire.gone.done():
            onward.abort("the other half is gone")
            return
        wire.events = _Half(wire, onward)
    one.pass_to(other)
    other.pass_to(one)


class _Half:
    """Hears one of the wires."""

    def __init__(self, wire: GrpcWire, onward: GrpcWire) -> None:
        self._wire, self._onward = wire, onward
        self._loop = asyncio.get_running_loop()
        self._nudged = self._loop.time()

    def packet(self, data: bytes | memoryview) -> None: ...

    def arriving(self) -> None:
        """A frame has begun: the other end, which sees nothing of it yet, is not to wait in vain."""
        now = self._loop.time()
        if now >= self._nudged + NUDGE:
            self._nudged = now
            self._onward.nudge()

    def malformed(self, error: LinkError) -> None:
        self._wire.abort(str(error))

    def broken(self, reason: str) -> None:
        self._onward.close(reason)

    def writable(self) -> None:
        self._onward.credit()
