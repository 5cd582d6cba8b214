"""The relay: streams that come in by this process's port and are another's, of the same node.

Who dials a process of another node by TCP says which one it means, by the name of its unix socket.
If that is not the process at the port, this one proves itself to both and joins their streams. It
hands on bytes, not packets: sessions, acknowledgements and pings are between the two ends.

Either stream takes what its peer may send (`WINDOW`) before the other has room for it, and no more.
However one of them ends, the other ends too.
"""

import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from grpclib.const import Status
from grpclib.exceptions import StreamTerminatedError
from grpclib.server import Stream as ServerStream
from h2.exceptions import ProtocolError as H2Error

from raylite._kernel.detour import Detours
from raylite._kernel.grpcwire import GrpcWire
from raylite._kernel.interface import allows
from raylite._kernel.rate import Rate
from raylite._kernel.wire import Deaf, Wire, WireEvents
from raylite._types.address import shown
from raylite.exceptions import LinkError, RayError

TO = "raylite-to"  # in a request: the name of the socket that it is for
FOR = "raylite-for"  # and of a relay: that its unix socket leads out of the machine
SCOPE = "raylite-scope"  # and of a relay: what the asker may do, by the token that it has proven
ONWARD = "raylite-onward"  # in a request: the address that it is to be carried to, see `detour`
STAGGER = (
    0.5  # seconds after which the next one is asked to carry, though the last may still answer
)
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
    dial: Callable[[str, str, WireEvents], Awaitable[Wire]],
    seconds: float,
) -> GrpcWire:
    """Return a wire to an address, for a member that cannot reach it.

    Args:
        detours: This process's.
        address: What is asked for.
        asker: Who asks: a process of this node, for which others are asked; or one that has asked those.
        dial: Opens a wire to an address; or to the second one, by way of the first. The last hears it.
        seconds: How long each attempt may take.

    Raises:
        ConnectionError: There is none; the message says why.
    """
    if not (allows(asker.scope, "node") and detours.carries(address)):
        raise ConnectionError(f"{shown(address)} is not reached from here")

    async def attempt(way: str) -> GrpcWire | None:
        answer = None if way == address else _Answer()
        try:
            async with asyncio.timeout(seconds):
                wire = await dial(way, "" if way == address else address, answer or Deaf())
                assert isinstance(wire, GrpcWire)
                if answer is not None:
                    try:
                        await answer.came
                    except BaseException:
                        wire.abort("it was not answered")
                        raise
        except (OSError, RayError):
            return None
        return wire

    ways = detours.ways(address) if asker.is_local else [address]
    if (wire := await _first([partial(attempt, way) for way in ways])) is None:
        raise ConnectionError(f"{shown(address)} is not reached from here either")
    return wire


async def _first(
    attempts: Sequence[Callable[[], Coroutine[Any, Any, GrpcWire | None]]],
) -> GrpcWire | None:
    """Return the first wire that is made; the next is tried when one has failed, or takes long."""
    waiting = deque(attempts)
    running: set[asyncio.Task[GrpcWire | None]] = set()
    found: list[GrpcWire] = []
    try:
        while not found and (waiting or running):
            if waiting:
                running.add(asyncio.create_task(waiting.popleft()(), name="ask for a detour"))
            pause = STAGGER if waiting else None
            done, running = await asyncio.wait(
                running, timeout=pause, return_when=asyncio.FIRST_COMPLETED
            )
            found += [wire for each in done if (wire := each.result()) is not None]
    finally:
        for each in running:
            each.add_done_callback(_not_needed)
            each.cancel()
        for wire in found[1:]:
            wire.abort("another was first")
    return found[0] if found else None


def _not_needed(attempt: "asyncio.Task[GrpcWire | None]") -> None:
    if not attempt.cancelled() and (wire := attempt.result()) is not None:
        wire.abort("another was first")


class _Answer:
    """Hears whether who is asked to carry a wire has reached the one whom it is for: see `relay`."""

    def __init__(self) -> None:
        self.came: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def arriving(self) -> None:
        if not self.came.done():
            self.came.set_result(None)

    def packet(self, data: bytes | memoryview) -> None:
        self.broken("it said something before it was asked")

    def malformed(self, error: LinkError) -> None:
        self.broken(str(error))

    def broken(self, reason: str) -> None:
        if not self.came.done():
            self.came.set_exception(ConnectionError(reason))
            self.came.exception()  # whoever waits hears of it; else nobody need

    def writable(self) -> None: ...


async def relay(
    wire: GrpcWire,
    stream: "ServerStream[bytes, bytes]",
    reach: Callable[[], Awaitable[GrpcWire]],
    rate: Rate | None = None,
) -> None:
    """Join a member's wire with that to whom it is meant for, until either ends; or tell why not.

    The member hears an empty frame when that is reached.
    """
    try:
        onward = await reach()
    except ConnectionError as error:
        told = str(error)
        with suppress(StreamTerminatedError, H2Error, RuntimeError):  # the asker may be gone
            await stream.send_trailing_metadata(status=Status.UNAVAILABLE, status_message=told)
        wire.close("nobody to relay to")
        return
    try:
        splice(wire, onward, rate)
        wire.nudge()
        await asyncio.wait((wire.gone, onward.gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        wire.close("closing")
        onward.close("closing")


def splice(one: GrpcWire, other: GrpcWire, rate: Rate | None = None) -> None:
    """Let each of two wires bring what is sent on the other; neither has been sent a packet.

    Args:
        one: A wire.
        other: And another.
        rate: How many bytes may pass, both ways together.
    """
    for wire, onward in ((one, other), (other, one)):
        if wire.gone.done():
            onward.abort("the other half is gone")
            return
        wire.events = _Half(wire, onward)
    one.pass_to(other, rate)
    other.pass_to(one, rate)


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
