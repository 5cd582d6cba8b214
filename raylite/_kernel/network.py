"""Networks: how one process reaches others and is reached.

`Network` keeps the links and sessions of one process and knows how a session is opened and
resumed. Its three forms differ only in how a wire is made: `GrpcNetwork` (production),
`MemoryNetwork` (several hosts in one process) and `SimNetwork` (seeded delays, cuts and deaths).

A session is opened by whoever dials, with a hello that names it, and resumed by the same side with
another. Two processes that dial one another at the same time have two links, each in order.
"""

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from enum import Enum
from functools import partial

from raylite._kernel.detour import Detours, NoDetours
from raylite._kernel.dialling import Opening
from raylite._kernel.interface import SCOPES, allows
from raylite._kernel.link import Departures, Destination, Link, LinkConfig
from raylite._kernel.opening import (
    ID_SIZE,
    Hello,
    Welcome,
    aside,
    decoded,
    only_frame,
    read_hello,
    refuse,
)
from raylite._kernel.packet import VERSION, Kind
from raylite._kernel.scope import Scope
from raylite._kernel.seams import Seams
from raylite._kernel.service import Service
from raylite._kernel.wire import Deaf, Wire, WireEvents
from raylite._types.address import shown
from raylite._types.marks import mark_of
from raylite.exceptions import LinkClosedError, LinkError, ProtocolError, RayError


class Probe(Enum):
    """What is found at an address."""

    REFUSED = "nobody listens there"
    ANSWERED = "connections are taken: by a process, or by the system for one that stands still"
    UNKNOWN = "nobody can be reached there, or only who refuses this process; or it is no address"


class Network(ABC):
    """One process's links. Make it on a running loop; `close` it there."""

    def __init__(self, seams: Seams | None = None, config: LinkConfig | None = None) -> None:
        self.seams: Seams = seams or Seams()
        self.config: LinkConfig = config or LinkConfig()
        self._random = self.seams.random("network")
        self.incarnation: bytes = self._random.randbytes(ID_SIZE)
        self.address = ""
        self.node = ""  # the mark of this process's node, in addresses that name one
        self.departures: Departures = Departures()
        self.detours: Detours = NoDetours()
        #: Told of each link that has had no wire for `LinkConfig.unreachable`: once an outage.
        self.on_unreachable: list[Callable[[Link], None]] = []
        self._destinations: dict[int, Destination] = {}
        self._links: dict[str, Link] = {}
        self._sessions: dict[bytes, Link] = {}  # those that a peer began
        self._scope = Scope("network")
        self._greetings: dict[_Greeting, None] = {}
        self._carried: dict[Link, str] = {}  # on a detour, and the mark of the node it leads to
        self._is_closed = False

    def host(self, *services: Service) -> None:
        """Let these services answer what arrives on any link of this process."""
        for service in services:
            for route in service.routes():
                self._destinations[route.number] = Destination(service.mailbox, route)

    def connect(self, address: str) -> Link:
        """Return the link to an address: the one there is, or one that is being dialled now.

        Never fails: what is sent on the link fails, in time, if nobody can be reached, and at once
        if this network is closed.
        """
        link = self._links.get(address)
        if link is None or link.is_ended:
            session_id = self._random.randbytes(ID_SIZE)
            link = Link(
                address, session_id, self._destinations, self.config, self.departures, self._forget
            )
            if self._is_closed:
                link.finish(
                    LinkClosedError(f"the network that should reach {shown(address)} is closed")
                )
                return link
            link.on_unreachable = self._unreachable
            self._links[address] = link
            dialling = self._scope.start(self._keep_wired(link, address), f"dial {address}")
            link.on_end(partial(_cancel, dialling))
        return link

    @property
    def links(self) -> list[Link]:
        """The links that have not ended, dialled and accepted."""
        return list(dict.fromkeys([*self._links.values(), *self._sessions.values()]))

    def confirm_dead(self, address: str, reason: str) -> None:
        """The process behind an address is known to be gone."""
        for link in self.links:
            if link.peer == address:
                link.confirm_dead(reason)

    async def probe(self, address: str, seconds: float) -> Probe:
        """Try to reach an address, and say what is there; it takes twice so many seconds at most."""
        try:
            async with asyncio.timeout(seconds):
                wire = await self.dial(address, Deaf())
        except (ConnectionRefusedError, FileNotFoundError):
            return Probe.REFUSED
        except TimeoutError:
            return await self._knock_within(address, seconds)
        except (OSError, LinkError, ValueError):
            return Probe.UNKNOWN
        wire.abort("it was only tried")
        return Probe.ANSWERED

    async def _knock_within(self, address: str, seconds: float) -> Probe:
        try:
            async with asyncio.timeout(seconds):
                await self.knock(address)
        except (OSError, ValueError):
            return Probe.UNKNOWN
        return Probe.ANSWERED

    async def knock(self, address: str) -> None:
        """Have the system take a connection to an address, whatever the process does; else an OSError.

        It is closed without a word: a process that lives lets nobody in for it, nor counts it as a failure.
        """
        raise ConnectionError(f"whether anybody takes connections to {address} cannot be told")

    def confirm_node_dead(self, mark: str, reason: str) -> None:
        """Every process whose address bears this mark is known to be gone."""
        for link in self.links:
            if f";{mark}=" in link.peer:
                link.confirm_dead(reason)

    @abstractmethod
    async def listen(self, address: str) -> str:
        """Accept wires at an address, and return it; the first becomes this process's own."""

    @abstractmethod
    async def dial(self, address: str, events: WireEvents) -> Wire:
        """Open a wire; an OSError means: not now, and a `LinkError`: never."""

    async def dial_through(self, way: str, address: str, events: WireEvents) -> Wire:
        """Open a wire by way of a process that may reach an address; an OSError means: it does not."""
        raise ConnectionError(f"{shown(way)} cannot be asked to carry anything")

    async def close(self) -> None:
        """Say goodbye on every link and stop accepting."""
        self._is_closed = True
        for link in self.links:
            link.close()
        for greeting in list(self._greetings):
            greeting.give_up("closing")
        await self._scope.close()

    def accepted(self, wire: Wire) -> None:
        """A peer has opened a wire: wait for its hello."""
        if self._is_closed:
            wire.events = Deaf()
            wire.abort("closing")
            return
        greeting = _Greeting(self, wire, self._greetings)
        self._greetings[greeting] = None
        wire.events = greeting

    def greeted(self, wire: Wire, hello: Hello) -> None:
        """Answer a hello: begin a session, go on with one, or refuse."""
        link = self._sessions.get(hello.session)
        if hello.version != VERSION:
            refuse(wire, f"speaks version {hello.version}, this process {VERSION}")
        elif hello.resumes not in (b"", self.incarnation):
            refuse(wire, "this process does not know the session", is_gone=True)
        elif link is None and hello.resumes:  # it was over here a moment before it was there
            refuse(wire, "this process has ended the session", is_over=True)
        elif link is not None and hello.incarnation != link.peer_incarnation:
            refuse(wire, "the session belongs to another process", is_gone=True)
        elif link is not None and hello.attempt <= link.attempt:
            wire.events = Deaf()
            wire.abort("a later attempt came first")
        elif link is not None and wire.scope != link.scope:
            refuse(wire, "the session was begun with a token of another scope", is_gone=True)
        else:
            link = link or self._begin(hello, wire.scope)
            link.attempt = hello.attempt
            wire.send(aside(Kind.WELCOME, Welcome(self.incarnation, link.session.received)))
            link.attach(wire, hello.received)

    def _begin(self, hello: Hello, scope: str) -> Link:
        """Begin a session that a peer has named."""
        destinations = self._destinations
        address = hello.address if allows(scope, "node") else ""  # nobody dials a mere reader
        if scope != SCOPES[-1]:
            destinations = {
                number: destination
                for number, destination in destinations.items()
                if allows(scope, destination.route.scope)
            }
        if address:
            for other in self.links:  # an address belongs to one process at a time
                if other.peer == address and other.peer_incarnation not in (
                    b"",
                    hello.incarnation,
                ):
                    other.confirm_dead("another process now has its address")
        peer = address or f"peer {hello.incarnation.hex()[:8]}"
        link = Link(peer, hello.session, destinations, self.config, self.departures, self._forget)
        link.on_unreachable = self._unreachable
        link.scope = scope
        link.peer_incarnation = hello.incarnation
        self._sessions[hello.session] = link
        if address:
            self._links.setdefault(address, link)
        return link

    async def _keep_wired(self, link: Link, address: str) -> None:
        """Dial until there is a wire, and again whenever it breaks, for as long as the link lives.

        And while the wire is a detour: until it is no more.
        """
        config, attempts = self.config, itertools.count(1)
        delay, is_direct = config.redial_first, True
        while True:
            try:
                is_direct = await self._reach(link, address, attempts)
                delay = config.redial_first
            except TimeoutError:
                link.last_failure = f"no answer within {config.connect_timeout:g} s"
            except OSError as error:
                link.last_failure = error.strerror or str(error)
            except LinkError as error:
                link.finish(error)
            except Exception as error:
                link.finish(LinkError(f"{address} cannot be dialled: {error!r}"))
            if link.is_attached:
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if is_direct else config.direct_again):
                        await link.wait_detached()
                if link.is_attached:
                    continue
            if link.is_ended:
                return
            await asyncio.sleep(delay * self._random.uniform(0.5, 1.5))
            delay = min(delay * 2, config.redial_last)

    async def _reach(self, link: Link, address: str, attempts: Iterator[int]) -> bool:
        """Dial once, and then by detours if that has been in vain for long; return whether it was direct.

        The link is attached then, or has ended. Where a node is known to need them, they come first.
        """
        mark = mark_of(address)
        if mark in self._carried.values() and not link.is_attached:
            if await self._detour(link, address, attempts):
                return False
        try:
            async with asyncio.timeout(self.config.connect_timeout):
                await self._open_wire(link, partial(self.dial, address), next(attempts))
        except OSError:
            if link.is_attached or link.without_wire < self.config.detour:
                raise
            if not await self._detour(link, address, attempts):
                raise
            self._carried[link] = mark
            return False
        self._carried.pop(link, None)
        return True

    async def _detour(self, link: Link, address: str, attempts: Iterator[int]) -> bool:
        """Dial by way of others; say whether one of them could."""
        for way in self.detours.ways(address):
            through = partial(self.dial_through, way, address)
            with suppress(OSError, RayError):
                async with asyncio.timeout(self.config.connect_timeout):
                    await self._open_wire(link, through, next(attempts))
                return True
        return False

    async def _open_wire(
        self, link: Link, dial: Callable[[WireEvents], Awaitable[Wire]], attempt: int
    ) -> None:
        """Dial once; returns when the link is attached or has ended."""
        opening = Opening(link)
        wire = await dial(opening)
        try:
            opening.begin(wire)
            received, resumes = link.session.received, link.peer_incarnation
            hello = Hello(
                VERSION, link.session_id, self.incarnation, self.address, received, resumes, attempt
            )
            wire.send(aside(Kind.HELLO, hello))
            failure = await opening.done
        except BaseException:
            wire.abort("not opened in time")
            raise
        if failure:
            raise ConnectionError(failure)

    def _unreachable(self, link: Link) -> None:
        for listener in self.on_unreachable:
            listener(link)

    def _forget(self, link: Link) -> None:
        self._carried.pop(link, None)
        if self._sessions.get(link.session_id) is link:
            del self._sessions[link.session_id]
        if self._links.get(link.peer) is link:
            del self._links[link.peer]


class _Greeting:
    """An accepted wire until its hello has come."""

    def __init__(self, network: Network, wire: Wire, greetings: "dict[_Greeting, None]") -> None:
        self._network, self._wire, self._greetings = network, wire, greetings
        timeout = network.config.connect_timeout
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(timeout, self.give_up, f"no hello within {timeout:g} s")

    def packet(self, data: bytes | memoryview) -> None:
        try:
            frame = only_frame(data)
            if frame.kind is not Kind.HELLO:
                raise ProtocolError(f"a {frame.kind.name} frame instead of a hello")
            hello = decoded(read_hello, frame.body)
            if not hello.makes_sense():
                raise ProtocolError("a hello that makes no sense")
        except ProtocolError as error:
            self.malformed(error)
        else:
            self._end()
            self._network.greeted(self._wire, hello)

    def arriving(self) -> None: ...

    def malformed(self, error: LinkError) -> None:
        self._end()
        refuse(self._wire, f"cannot read this: {error}")

    def give_up(self, reason: str) -> None:
        self._end()
        self._wire.events = Deaf()
        self._wire.abort(reason)

    def broken(self, reason: str) -> None:
        self._end()

    def writable(self) -> None: ...

    def _end(self) -> None:
        self._timer.cancel()
        self._greetings.pop(self, None)


def _cancel(dialling: "asyncio.Task[None]", link: Link) -> None:
    dialling.cancel()
