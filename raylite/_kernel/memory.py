"""`MemoryNetwork`: several hosts in one process and one loop, packets handed over as they are."""

import asyncio
from collections import deque
from collections.abc import Iterable

from raylite._kernel.interface import SCOPES
from raylite._kernel.link import LinkConfig
from raylite._kernel.network import Network
from raylite._kernel.seams import Seams
from raylite._kernel.wire import CLOSING, FIRST_PACKET, Wire, WireEvents
from raylite.exceptions import ProtocolError

HIGH_WATER = 1024 * 1024  # bytes in flight above which a wire is not writable


class Switch:
    """Which network listens at which address, and who can reach whom."""

    def __init__(self) -> None:
        self.listening: dict[str, MemoryNetwork] = {}
        self._island: set[MemoryNetwork] = set()

    def cut(self, island: Iterable["MemoryNetwork"]) -> None:
        """Let nothing pass between these and all others; neither side is told. Replaces an earlier cut."""
        self.heal()
        self._island = set(island)

    def heal(self) -> None:
        """Let everything pass again; connections that lost something on the way break."""
        self._island = set()
        for network in set(self.listening.values()):
            for wire in list(network.wires):
                if wire.has_lost:
                    wire.abort("something was lost on the way")

    def unplug(self, network: "MemoryNetwork") -> None:
        """End a network as a killed process's is: nobody says goodbye, nobody answers."""
        self.listening.pop(network.address, None)
        for wire in list(network.wires):
            wire.abort("the connection was reset")
        network.is_unplugged = True

    def passes(self, one: "MemoryNetwork", other: "MemoryNetwork") -> bool:
        """Say whether anything passes between two networks."""
        return (one in self._island) == (other in self._island)


class MemoryNetwork(Network):
    """A host's network on a `Switch` that it shares with its peers."""

    def __init__(
        self, switch: Switch, seams: Seams | None = None, config: LinkConfig | None = None
    ) -> None:
        super().__init__(seams, config)
        self._switch = switch
        self.wires: dict[SwitchedWire, None] = {}
        self.is_unplugged = False

    async def listen(self, address: str) -> str:
        if address in self._switch.listening:
            raise OSError(f"{address} is taken")
        self._switch.listening[address] = self
        self.address = address
        return address

    async def dial(self, address: str, events: WireEvents) -> Wire:
        peer = self._switch.listening.get(address)
        if peer is None or self.is_unplugged:
            raise ConnectionRefusedError(f"nobody listens at {address}")
        if not self._switch.passes(self, peer):
            await asyncio.get_running_loop().create_future()  # nobody answers; the dialler gives up
        here, there = SwitchedWire(self._switch, self, peer), SwitchedWire(self._switch, peer, self)
        here.peer, there.peer = there, here
        here.events = events
        peer.accepted(there)
        return here

    async def close(self) -> None:
        if self._switch.listening.get(self.address) is self:
            del self._switch.listening[self.address]
        await super().close()


class MemoryWire:
    """One end of a pair of queues. None in a queue is the end of what the peer sent."""

    events: WireEvents
    peer: "MemoryWire"

    def __init__(self) -> None:
        self.limit = FIRST_PACKET
        self.scope = SCOPES[-1]
        self.is_local = False  # it stands for any network, and may be cut
        self._arriving: deque[bytes | None] = deque()
        self._arriving_bytes = 0
        self._paused = self._scheduled = self._is_closing = self._is_broken = False
        self._loop = asyncio.get_running_loop()
        self._closing_timer: asyncio.TimerHandle | None = None

    @property
    def is_broken(self) -> bool:
        return self._is_broken

    @property
    def is_writable(self) -> bool:
        return self.peer._arriving_bytes < HIGH_WATER

    def send(self, packet: bytes) -> None:
        if not self._is_broken and not self._is_closing:
            self.carry(packet)

    def carry(self, item: bytes | None) -> None:
        """Bring a packet, or the end, to the other side."""
        self.peer.arrive(item)

    def arrive(self, item: bytes | None) -> None:
        """Take a packet, or the end, off the wire."""
        self._arriving.append(item)
        self._arriving_bytes += len(item or b"")
        self._schedule()

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._schedule()

    def close(self, reason: str) -> None:
        if not self._is_broken and not self._is_closing:
            self._is_closing = True
            self._closing_timer = self._loop.call_later(CLOSING, self.abort, reason)
            self.carry(None)

    def abort(self, reason: str) -> None:
        """Break both ends; what had arrived and was not read is lost, as on a reset."""
        self.break_end(reason)
        self.peer.break_end(reason)

    def break_end(self, reason: str) -> None:
        """Break this end only."""
        if not self._is_broken:
            self._is_broken = True
            self._loop.call_soon(self._break, reason)

    def _break(self, reason: str) -> None:
        self._arriving.clear()
        self._arriving_bytes = 0
        if self._closing_timer is not None:
            self._closing_timer.cancel()
        self.events.broken(reason)

    def _schedule(self) -> None:
        if self._arriving and not self._scheduled and not self._paused:
            self._scheduled = True
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        self._scheduled = False
        was_full = self._arriving_bytes >= HIGH_WATER
        while self._arriving and not self._paused and not self._is_broken:
            packet = self._arriving.popleft()
            if packet is None:
                self.abort("the peer closed the connection")
                return
            self._arriving_bytes -= len(packet)
            if len(packet) > self.limit:
                told = f"a packet of {len(packet)} bytes, where at most {self.limit} are accepted"
                self.events.malformed(ProtocolError(told))
                self._arriving.clear()
                return
            self.events.packet(packet)
        if was_full and self._arriving_bytes < HIGH_WATER:
            self.peer.drained()

    def drained(self) -> None:
        """The other side has read enough that more may be sent."""
        self.events.writable()


class SwitchedWire(MemoryWire):
    """One end of a pair that a `Switch` may cut."""

    def __init__(self, switch: Switch, own: MemoryNetwork, other: MemoryNetwork) -> None:
        super().__init__()
        self.has_lost = False
        self._switch, self._own, self._other = switch, own, other
        own.wires[self] = None

    def carry(self, item: bytes | None) -> None:
        if self._switch.passes(self._own, self._other) and not self.has_lost:
            super().carry(item)
        else:
            self.has_lost = True

    def abort(self, reason: str) -> None:
        """Break both ends, or only this one if the other cannot hear of it."""
        if self._switch.passes(self._own, self._other):
            super().abort(reason)
        else:
            self.break_end(reason)

    def _break(self, reason: str) -> None:
        self._own.wires.pop(self, None)
        super()._break(reason)
