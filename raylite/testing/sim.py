"""`SimNetwork`: links with seeded delays, which can be cut, healed and killed.

A `World` holds every host of a simulation. Connections behave as TCP does: packets arrive in order
until the wire breaks, and then an unknown rest is lost in each direction. Links, sessions and
services are the shipping ones.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from raylite._kernel.link import LinkConfig
from raylite._kernel.memory import MemoryWire
from raylite._kernel.network import Network
from raylite._kernel.seams import Seams
from raylite._kernel.wire import Deaf, Wire, WireEvents

T = TypeVar("T")


class World:
    """The hosts of one simulation, and what stands between them.

    Args:
        seed: Decides every delay, and every stream of randomness that a host takes.
        delay: The mean time in seconds that a packet takes.
    """

    def __init__(self, seed: int, *, delay: float = 0.001) -> None:
        self._seed = seed
        self.delay = delay
        self.networks: dict[str, SimNetwork] = {}
        self._cuts: dict[frozenset[str], bool] = {}  # whether nobody is told
        self._wires: dict[SimWire, None] = {}  # every end that is not broken
        self._wires_made = 0
        self._lives: dict[str, int] = {}

    def random(self, name: str) -> random.Random:
        """The stream of randomness with this name; the same for the same seed."""
        return random.Random(f"{self._seed}/{name}")

    def seams(self, host: str) -> Seams:
        """Return what a host takes from this world; another life of it takes other randomness."""
        life = self._lives[host] = self._lives.get(host, 0) + 1
        pauses = self.random(f"{host} {life}/threads")

        async def to_thread(function: Callable[..., T], *args: object) -> T:
            await asyncio.sleep(pauses.expovariate(2000))
            return function(*args)

        return Seams(random=lambda name: self.random(f"{host} {life}/{name}"), to_thread=to_thread)

    def cut(self, one: str, other: str, *, silently: bool = False) -> None:
        """Break the wires between two hosts and refuse new ones.

        Args:
            one: A host's name.
            other: The other's.
            silently: Nobody is told: packets vanish, as behind a firewall.
        """
        pair = frozenset((one, other))
        self._cuts[pair] = silently
        for wire in self._between(pair):
            if silently:
                wire.is_blocked = True
            else:
                wire.abort("cut")

    def heal(self, one: str, other: str) -> None:
        """Let new wires be made. Wires that were cut silently stay dead, as after a reboot."""
        self._cuts.pop(frozenset((one, other)), None)

    def reset(self, one: str, other: str) -> None:
        """Break the wires between two hosts; they may dial again at once."""
        for wire in self._between(frozenset((one, other))):
            wire.abort("reset")

    def kill(self, address: str, *, linger: float = 0.0) -> None:
        """The process at this address dies: its wires break and nobody listens any more.

        What runs on its network runs on, unheard: whoever started it should cancel it.

        Args:
            address: Where it listens.
            linger: Seconds in which its peers still receive what it had sent, as they do from
                the buffers of a socket.
        """
        network = self.networks.pop(address, None)
        if network is not None:
            network.is_dead = True
            for wire in list(self._wires):
                if wire.host == network.name:
                    wire.mute(linger)

    def is_cut(self, one: str, other: str) -> bool:
        """Whether nothing passes between two hosts."""
        return frozenset((one, other)) in self._cuts

    def is_silent(self, one: str, other: str) -> bool:
        """Whether nothing passes, and nobody is told."""
        return self._cuts.get(frozenset((one, other)), False)

    def join(self, one: str, other: str) -> "SimWire":
        """Make a wire between two hosts; returns the end of the first."""
        self._wires_made += 1
        pair = frozenset((one, other))
        ends = [
            SimWire(self, host, pair, self.random(f"wire {self._wires_made} from {host}"))
            for host in (one, other)
        ]
        for end, peer in zip(ends, reversed(ends), strict=True):
            end.peer = peer
            self._wires[end] = None
        return ends[0]

    def parted(self, wire: "SimWire") -> None:
        """An end of a wire is broken."""
        self._wires.pop(wire, None)

    def _between(self, pair: frozenset[str]) -> "list[SimWire]":
        return [wire for wire in self._wires if wire.hosts == pair]


class SimNetwork(Network):
    """A host's network in a `World`. The name of the host is what cuts and kills go by."""

    def __init__(self, world: World, host: str, config: LinkConfig | None = None) -> None:
        super().__init__(world.seams(host), config)
        self.world = world
        self.name = host
        self.is_dead = False

    async def listen(self, address: str) -> str:
        """Take an address of the world."""
        if address in self.world.networks:
            raise OSError(f"{address} is taken")
        self.world.networks[address] = self
        self.address = address
        return address

    async def dial(self, address: str, events: WireEvents) -> Wire:
        """Reach an address, unless a cut or a death stands between."""
        await asyncio.sleep(self.world.delay)
        peer = self.world.networks.get(address)
        there = address if peer is None else peer.name
        if self.is_dead or self.world.is_silent(self.name, there):
            await asyncio.get_running_loop().create_future()  # until the deadline on dialling
        if peer is None or self.world.is_cut(self.name, there):
            raise ConnectionRefusedError(f"nobody answers at {address}")
        wire = self.world.join(self.name, peer.name)
        wire.events = events
        peer.accepted(wire.peer)
        return wire

    async def close(self) -> None:
        """Say goodbye on every link and give the address up."""
        if self.world.networks.get(self.address) is self:
            del self.world.networks[self.address]
        await super().close()


class SimWire(MemoryWire):
    """One end of a pair: what is sent arrives later, in order, or never."""

    peer: "SimWire"

    def __init__(
        self, world: World, host: str, hosts: frozenset[str], random: random.Random
    ) -> None:
        super().__init__()
        self.host = host
        self.hosts = hosts
        self.is_blocked = False
        self._world = world
        self._random = random
        self._last = 0.0
        self._flying: deque[bytes | None] = deque()

    def carry(self, item: bytes | None) -> None:
        """Let a packet, or the end, land at the other side after a while."""
        if self.is_blocked:
            return
        at = self._loop.time()
        if self._world.delay:
            at += self._random.expovariate(1 / self._world.delay)
        self._last = max(self._last, at)
        self._flying.append(item)
        self._loop.call_at(self._last, self._land)

    def abort(self, reason: str) -> None:
        """Break both ends, or only this one if nothing passes between them."""
        if self.is_blocked:
            self.break_end(reason)  # and the other end does not hear of it
        else:
            super().abort(reason)

    def mute(self, linger: float) -> None:
        """The process at this end is gone: it sends and hears no more, and the wire breaks soon."""
        self.events = Deaf()
        self._is_closing = True
        if linger:
            self._loop.call_later(linger, self.abort, "the peer died")
        else:
            self.abort("the peer died")

    def _land(self) -> None:
        item = self._flying.popleft()
        if not self.peer.is_broken and not self.is_blocked:
            self.peer.arrive(item)

    def _break(self, reason: str) -> None:
        super()._break(reason)
        self._world.parted(self)
