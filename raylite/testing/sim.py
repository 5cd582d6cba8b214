"""`SimNetwork`: links with seeded delays, which can be cut, healed and killed.

A `World` holds every host of a simulation. Connections behave as TCP does: packets arrive in order
until the wire breaks, and then an unknown rest is lost in each direction. Links, sessions and
services are the shipping ones.

A host is a process, and belongs to a machine: `n1/raylet` and `n1.2/worker-3` to `n1` (what follows
a full stop tells its lives apart), `gcs` to `gcs`. A machine has a clock of its own, and wherever a
host's name can be given, a machine's stands for all its hosts.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import TypeVar

from raylite._kernel.link import LinkConfig
from raylite._kernel.memory import MemoryWire
from raylite._kernel.network import Network
from raylite._kernel.seams import Seams
from raylite._kernel.wire import Deaf, Wire, WireEvents
from raylite.testing.hosts import Hosts, machine_of

T = TypeVar("T")

RESENT = 0.2  # seconds until an unanswered SYN is sent again, then twice as many, and so on
RESENT_LATE = 3.0  # seconds until what a machine has missed that stood still is sent again, at most
BETWEEN = ""  # the place between all machines, where the world's own clock is read


class World(Hosts):
    """The hosts of one simulation, and what stands between them.

    Args:
        seed: Decides every delay, and every stream of randomness that a host takes.
        delay: The mean time in seconds that a packet takes.
    """

    def __init__(self, seed: int, *, delay: float = 0.001) -> None:
        super().__init__(seed)
        self.delay = delay
        self.delays: dict[tuple[str, str], float] = {}  # between machines, where it is another
        self.networks: dict[str, SimNetwork] = {}
        self.on_packet: Callable[[str, str, int], None] = (
            _ignore  # landed: from, at, how many bytes
        )
        self._cuts: dict[tuple[str, str], bool] = {}  # from, to: whether nobody is told
        self._wires: dict[SimWire, None] = {}  # every end that is not broken
        self._wires_made = 0
        self._lives: dict[str, int] = {}
        self._off: dict[str, None] = {}  # machines that answer nobody

    def seams(self, host: str) -> Seams:
        """Return what a host takes from this world; another life of it takes other randomness."""
        life = self._lives[host] = self._lives.get(host, 0) + 1
        pauses = self.random(f"{host} {life}/threads")

        async def to_thread(function: Callable[..., T], *args: object) -> T:
            await asyncio.sleep(pauses.expovariate(2000))
            return function(*args)

        return Seams(random=lambda name: self.random(f"{host} {life}/{name}"), to_thread=to_thread)

    def cut(self, one: str, other: str, *, silently: bool = False, one_way: bool = False) -> None:
        """Break the wires between two hosts and refuse new ones.

        Args:
            one: A host's name, or a machine's.
            other: The other's.
            silently: Nobody is told: packets vanish, as behind a firewall.
            one_way: Only what the first sends vanishes; silently, for a reset goes both ways.
        """
        ways = [(one, other)] if one_way else [(one, other), (other, one)]
        self._cuts.update(dict.fromkeys(ways, silently or one_way))
        for wire in list(self._wires):
            legs = list(pairwise(wire.path))
            if any(_is_at(x, a) and _is_at(y, b) for a, b in ways for x, y in legs):
                if silently or one_way:
                    wire.is_blocked = True
                else:
                    wire.abort("cut")

    def heal(self, one: str, other: str) -> None:
        """Let new wires be made. Wires that were cut silently stay dead, as after a reboot."""
        self._cuts.pop((one, other), None)
        self._cuts.pop((other, one), None)

    def reset(self, one: str, other: str) -> None:
        """Break the wires between two hosts; they may dial again at once."""
        for wire in list(self._wires):
            if _is_at(wire.host, one) and _is_at(wire.peer.host, other):
                wire.abort("reset")

    def power_off(self, machine: str) -> None:
        """A machine is gone: nobody answers there, nobody says that nobody does."""
        for network in [n for n in self.networks.values() if machine_of(n.name) == machine]:
            network.is_dead = True
            self.networks.pop(network.address, None)
        for wire in list(self._wires):
            if machine_of(wire.host) == machine:
                wire.is_blocked = True
                wire.mute(0.0)
            elif any(machine_of(host) == machine for host in wire.path):
                wire.is_blocked = True
        self._paused.pop(machine, None)
        for host in [host for host in self._frozen if machine_of(host) == machine]:
            self.thaw(host)
        self._off[machine] = None

    def power_on(self, machine: str) -> None:
        """A machine that was off answers again: nothing of what ran there runs."""
        self._off.pop(machine, None)

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
                elif network.name in wire.path[1:-1]:
                    wire.abort("the one that carried it died")
            self.thaw(network.name)  # what it does now, nobody hears

    def is_cut(self, one: str, other: str) -> bool:
        """Whether a wire between two hosts cannot be made."""
        return any(_concerns(cut, one, other) for cut in self._cuts)

    def is_silent(self, one: str, other: str) -> bool:
        """Whether it cannot be made, and nobody is told."""
        if machine_of(one) in self._off or machine_of(other) in self._off:
            return True
        if self.is_paused(one) or self.is_paused(other):
            return True
        return any(silent and _concerns(cut, one, other) for cut, silent in self._cuts.items())

    def mean_delay(self, one: str, other: str) -> float:
        """Return how long a packet takes between two hosts, in the mean."""
        return self.delays.get((machine_of(one), machine_of(other)), self.delay)

    def join(self, one: str, other: str, through: Sequence[str] = ()) -> "SimWire":
        """Make a wire between two hosts, which others may carry; returns the end of the first."""
        self._wires_made += 1
        path = (one, *through, other)
        ends = [
            SimWire(self, way, self.random(f"wire {self._wires_made} from {way[0]}"))
            for way in (path, path[::-1])
        ]
        for end, peer in zip(ends, reversed(ends), strict=True):
            end.peer = peer
            self._wires[end] = None
        return ends[0]

    def parted(self, wire: "SimWire") -> None:
        """An end of a wire is broken."""
        self._wires.pop(wire, None)


def _is_at(host: str, name: str) -> bool:
    return host == name or machine_of(host) == name


def _concerns(cut: tuple[str, str], one: str, other: str) -> bool:
    """Whether a cut, be it of one way, keeps these from making a wire."""
    a, b = cut
    return (_is_at(one, a) and _is_at(other, b)) or (_is_at(one, b) and _is_at(other, a))


def _ignore(one: str, other: str, size: int) -> None: ...


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
        """Reach an address, unless a cut or a death stands between.

        At one that stands still, its machine takes the connection, and nobody says who is there.
        """
        await asyncio.sleep(self.world.mean_delay(self.name, address))
        peer = self.world.networks.get(address)
        there = address if peer is None else peer.name
        pause = RESENT
        while self.is_dead or self.world.is_silent(self.name, there) or self.world.is_frozen(there):
            if self.world.is_frozen(there) and not self.world.is_paused(there):
                await self.world.wait_thawed(there)
            else:
                await asyncio.sleep(pause)  # until the deadline on dialling, if need be
                pause *= 2
            peer = self.world.networks.get(address)
            there = address if peer is None else peer.name
        if peer is None or self.world.is_cut(self.name, there):
            raise ConnectionRefusedError(f"nobody answers at {address}")
        wire = self.world.join(self.name, peer.name)
        wire.events = events
        with self.world.at(peer.name):
            peer.accepted(wire.peer)
        return wire

    async def dial_through(self, way: str, address: str, events: WireEvents) -> Wire:
        """Reach an address as `GrpcNetwork` does: those who carry are asked by the same rules."""
        carriers = await self._carriers(way, address, self)
        names = [carrier.name for carrier in carriers]
        peer = self.world.networks.get(address)
        if peer is not None:
            await self.world.wait_thawed(peer.name)
            peer = self.world.networks.get(address)
        if peer is None or any(
            self.world.is_cut(*leg) for leg in pairwise([self.name, *names, peer.name])
        ):
            raise ConnectionRefusedError(f"nobody answers at {address}")
        wire = self.world.join(self.name, peer.name, names)
        wire.events = events
        with self.world.at(peer.name):
            peer.accepted(wire.peer)
        return wire

    async def _carriers(self, way: str, address: str, asker: "SimNetwork") -> "list[SimNetwork]":
        """Return those who carry a wire that is asked for at `way`, up to the last, who reaches the address."""
        carrier = await self._hop(asker, way)
        if not carrier.detours.carries(address):
            raise ConnectionError(f"{carrier.name} carries nothing to {address}")
        if machine_of(carrier.name) != machine_of(asker.name):
            await self._hop(carrier, address)
            return [carrier]
        for further in carrier.detours.ways(address):
            with suppress(OSError):
                return [carrier, *await self._carriers(further, address, carrier)]
        raise ConnectionError(f"nobody carries to {address}")

    async def _hop(self, one: "SimNetwork", address: str) -> "SimNetwork":
        """Return who is reached at an address, from one process."""
        await asyncio.sleep(self.world.mean_delay(one.name, address))
        peer = self.world.networks.get(address)
        there = address if peer is None else peer.name
        if one.is_dead or self.world.is_silent(one.name, there) or self.world.is_frozen(there):
            await asyncio.sleep(self.config.carry_timeout)
            raise TimeoutError
        if peer is None or self.world.is_cut(one.name, there):
            raise ConnectionRefusedError(f"nobody answers at {address}")
        return peer

    async def knock(self, address: str) -> None:
        """Have the machine take a connection."""
        await asyncio.sleep(self.world.mean_delay(self.name, address))
        world, peer = self.world, None if self.is_dead else self.world.networks.get(address)
        if peer is None or world.is_paused(peer.name) or world.is_cut(self.name, peer.name):
            raise ConnectionError(f"no machine answers at {address}")

    async def close(self) -> None:
        """Say goodbye on every link and give the address up."""
        if self.world.networks.get(self.address) is self:
            del self.world.networks[self.address]
        await super().close()


class SimWire(MemoryWire):
    """One end of a pair: what is sent arrives later, in order, or never."""

    peer: "SimWire"

    def __init__(self, world: World, path: Sequence[str], random: random.Random) -> None:
        super().__init__()
        self.host: str = path[0]
        self.path: Sequence[str] = path
        self._legs = [(machine_of(one), machine_of(other)) for one, other in pairwise(path)]
        self.is_blocked = False
        self._world = world
        self._random = random
        self._last = 0.0
        self._flying: deque[bytes | None] = deque()

    def carry(self, item: bytes | None) -> None:
        """Let a packet, or the end, land at the other side after a while."""
        if self.is_blocked:
            return
        self._flying.append(item)
        with self._world.at(BETWEEN):
            at = self._loop.time()
            delays, usual = self._world.delays, self._world.delay
            if delay := sum([delays.get(leg, usual) for leg in self._legs]):
                at += self._random.expovariate(1 / delay)
            self._last = max(self._last, at)
            self._loop.call_at(self._last, self._land)

    def abort(self, reason: str) -> None:
        """Break both ends, or only this one if nothing passes between them."""
        if self.is_blocked:
            self.break_end(reason)  # and the other end does not hear of it
        else:
            super().abort(reason)

    def break_end(self, reason: str) -> None:
        """Break this end only. A process that stands still may read first what it was sent before."""
        with self._world.at(self.host):
            if self._world.is_frozen(self.host) and not self.is_broken:
                if self._arriving and None not in self._arriving and self._random.random() < 0.5:
                    self.arrive(None)
                    return
            super().break_end(reason)

    def drained(self) -> None:
        """The other side has read enough that more may be sent."""
        with self._world.at(self.host):
            if self._world.is_frozen(self.host):
                self._loop.call_soon(super().drained)
            else:
                super().drained()

    def mute(self, linger: float) -> None:
        """The process at this end is gone: it sends and hears no more, and the wire breaks soon."""
        self.events: WireEvents = Deaf()
        self._is_closing = True
        if linger:
            self._loop.call_later(linger, self.abort, "the peer died")
        else:
            self.abort("the peer died")

    def _land(self) -> None:
        for carrier in self.path[1:-1]:
            if self._world.is_frozen(carrier):
                self._world.when_it_goes_on(carrier, self._land)
                return
        if self._world.is_paused(self.peer.host):
            self._world.when_it_goes_on(self.peer.host, self._land_late)
            return
        item = self._flying.popleft()
        if not self.peer.is_broken and not self.is_blocked:
            with self._world.at(self.peer.host):
                self.peer.arrive(item)
            self._world.on_packet(self.host, self.peer.host, len(item or b""))

    def _land_late(self) -> None:
        """The machine goes on: what it has missed is sent again after a while."""
        with self._world.at(BETWEEN):
            delay = self._random.choice((0.0, RESENT_LATE)) * self._random.random()
            self._loop.call_later(delay, self._land)

    def _break(self, reason: str) -> None:
        super()._break(reason)
        self._world.parted(self)
