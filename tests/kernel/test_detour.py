"""Detours: a peer that cannot be dialled is reached by way of another, over real sockets.

What two nodes do with them is in `tests/sim/test_pairs.py`.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from raylite._kernel.connection import WINDOW
from raylite._kernel.detour import ByRaylet
from raylite._kernel.grpc import GrpcNetwork
from raylite._kernel.grpcwire import GrpcWire
from raylite._kernel.host import Host
from raylite._kernel.interface import SCOPES
from raylite._kernel.keyring import Keyring
from raylite._kernel.link import Link
from raylite._kernel.rate import Rate
from raylite._kernel.token import Token, new_token
from raylite._kernel.wire import Deaf, Wire, WireEvents
from raylite.exceptions import AuthenticationError, PeerLostError
from tests.kernel.membership import cluster_token
from tests.kernel.rig import MIB, QUICK, Rig, Toy, ToyService, run_on, until
from tests.kernel.test_scopes import Desk, DeskService, let

QUICKLY = replace(QUICK, detour=0.0, direct_again=0.05, carry_timeout=1.0)
LOOPS = pytest.mark.parametrize("kind", ["grpc-tcp", "grpc-tls"])


class Static:
    """Ways that a test has given, to what it says."""

    bandwidth: float = math.inf

    def __init__(self, *ways: str, carries: Sequence[str] = ()) -> None:
        self._ways, self._carries = ways, carries

    def ways(self, address: str) -> Sequence[str]:
        return self._ways

    def carries(self, address: str) -> bool:
        return address in self._carries


class Cut(GrpcNetwork):
    """Reaches everybody but some."""

    blocked: Sequence[str] = ()

    async def dial(
        self, address: str, events: WireEvents, *, relays: str = "", onward: str = ""
    ) -> Wire:
        if address in self.blocked:
            raise ConnectionRefusedError("nothing passes")
        return await super().dial(address, events, relays=relays, onward=onward)


def made(rig: Rig, *tokens: Token, config: Any = QUICKLY) -> Cut:
    tls = rig.network("any")._tls  # type: ignore[attr-defined]
    return Cut(config=config, token=Keyring(*(tokens or (cluster_token(),))), tls=tls)


def carried(link: Link, third: GrpcNetwork) -> bool:
    """Whether the link's wire is one of those that a third process hands on."""
    assert isinstance(link._wire, GrpcWire)
    port = link._wire._transport.get_extra_info("peername")[1]
    return third.address.endswith(f":{port}")


@asynccontextmanager
async def parted(rig: Rig, config: Any = QUICKLY) -> AsyncIterator[tuple[Cut, GrpcNetwork, str]]:
    """A process that reaches a third, and not the address that is given; the third does."""
    there = rig.address("there")
    here, third = made(rig, config=config), made(rig)
    await third.listen(rig.address("third"))
    here.blocked = [there]
    here.detours, third.detours = Static(third.address), Static(carries=[there])
    try:
        yield here, third, there
    finally:
        await here.close()
        await third.close()


@LOOPS
def test_a_third_carries_what_does_not_pass(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.serving(ToyService()) as served, parted(rig) as (here, third, there):
            link = here.connect(there)
            assert await Toy(link).echo(bytes(MIB)) == bytes(MIB)
            assert carried(link, third)
            assert third.links == []  # it sees two connections, and no session
            [other] = served.links
            wires = [link._wire, other._wire]
            assert [wire is not None and wire.is_local for wire in wires] == [False, False]

    run_on(kind, scenario)


@LOOPS
def test_the_session_goes_on_when_the_direct_way_is_there_again(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        service = ToyService()
        async with rig.serving(service) as served, parted(rig) as (here, third, there):
            link = here.connect(there)
            await link.wait_attached()
            began = link.session_id
            for number in range(400):
                Toy(link).note(number)
                if number == 200:
                    here.blocked = []
                await anyio.sleep(0.001)
            await until(lambda: link.is_attached and not carried(link, third))
            here.blocked = [there]  # and the reverse
            link.abort_wire("cut")
            for number in range(400, 500):
                Toy(link).note(number)
                await anyio.sleep(0.001)
            await until(lambda: link.is_attached and carried(link, third))
            await link.wait_received()
            await until(lambda: len(service.notes) == 500)
            assert service.notes == list(range(500))  # once each, in order
            assert [each.session_id for each in served.links] == [began]

    run_on(kind, scenario)


class Passage:
    """Hands on what comes in at a port to another, until it stands still: then it has all it is sent, and says nothing."""

    def __init__(self, address: str) -> None:
        _, self._host, self._port = address.split(":")
        self._moves = asyncio.Event()
        self._moves.set()
        self._tasks: dict[asyncio.Task[None], None] = {}

    async def open(self) -> str:
        self._server = await asyncio.start_server(self._came, self._host, 0)
        return f"tcp:{self._host}:{self._server.sockets[0].getsockname()[1]}"

    def stand_still(self) -> None:
        self._moves.clear()

    def go_on(self) -> None:
        self._moves.set()

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _came(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        further, onward = await asyncio.open_connection(self._host, int(self._port))
        for source, target in ((reader, onward), (further, writer)):
            task = asyncio.create_task(self._pass(source, target))
            self._tasks[task] = None

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self._moves.wait()
                target.write(data)
                await target.drain()
        finally:
            target.close()


def test_a_session_leaves_a_carrier_that_stands_still_for_another() -> None:
    async def scenario(rig: Rig) -> None:
        service = ToyService()
        config = replace(QUICKLY, ping_after=0.25, silence=1.0, connect_timeout=1.0)
        async with rig.serving(service) as served, parted(rig, config) as (here, third, there):
            passage, fourth = Passage(third.address), made(rig)
            await fourth.listen(rig.address("fourth"))
            fourth.detours = Static(carries=[there])
            first = await passage.open()
            here.detours = Static(first)
            link = here.connect(there)
            await link.wait_attached()
            began = link.session_id
            here.detours = Static(first, fourth.address)
            for number in range(500):
                Toy(link).note(number)
                if number == 250:
                    passage.stand_still()
                await anyio.sleep(0.001)
            await until(lambda: link.is_attached and carried(link, fourth))
            passage.go_on()  # what it had kept comes now
            for number in range(500, 600):
                Toy(link).note(number)
                await anyio.sleep(0.001)
            await link.wait_received()
            await until(lambda: len(service.notes) >= 600)
            assert service.notes == list(range(600))  # once each, in order
            assert [each.session_id for each in served.links] == [began]
            await passage.close()
            await fourth.close()

    run_on("grpc-tls", scenario)  # which cares for no addresses, as a router does not


@LOOPS
def test_a_new_link_to_a_node_that_is_reached_by_a_detour_is_at_once(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        config = replace(QUICKLY, detour=0.3, direct_again=60.0)
        async with rig.serving(ToyService()), parted(rig, config) as (here, _, there):
            link = here.connect(there)
            await link.wait_attached()
            here._links.clear()  # as another process of that node would be dialled
            dialled: list[str] = []
            dial = here._open_wire

            async def counted(link: Link, opener: Any, attempt: int) -> None:
                dialled.append(opener.func.__name__)
                await dial(link, opener, attempt)

            here._open_wire = counted  # type: ignore[method-assign, assignment]
            other = here.connect(there)
            await other.wait_attached()
            assert dialled == ["dial_through"]
            other.close()
            link.close()

    run_on(kind, scenario)


@LOOPS
def test_a_process_has_its_raylet_ask_others(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        node, own, there = new_token("node"), f"unix:{rig.folder}/own", rig.address("there")
        serving = rig.network("there")
        serving._keyring = Keyring(cluster_token(), node)  # type: ignore[attr-defined]
        await serving.listen(there)
        host = Host(serving, DeskService(), grace=0.1)
        running = host.start("host")
        third, raylet = made(rig), made(rig, cluster_token(), node)
        await third.listen(rig.address("third"))
        await raylet.listen(own)
        raylet.blocked = [there]
        raylet.detours = Static("tcp:127.0.0.1:1", third.address, carries=[there])
        third.detours = Static(carries=[there])
        for token, allowed in ((cluster_token(), True), (node, False)):
            worker = made(rig, token)
            worker.blocked = [there]
            worker.detours = Static(own)
            desk = Desk(worker.connect(there))
            assert await let(desk, "sit")
            assert await let(desk, "rule") is allowed  # its own scope counts, not the carriers'
            await worker.close()
        host.stop()
        await running
        for each in (third, raylet):
            await each.close()

    run_on(kind, scenario)


@LOOPS
def test_who_answers_and_does_not_reach_it_is_passed_over(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        own = f"unix:{rig.folder}/own"
        async with rig.serving(ToyService()), parted(rig) as (here, third, there):
            other, raylet = made(rig), made(rig)
            await other.listen(rig.address("other"))
            await raylet.listen(own)
            other.blocked = [there]
            ways = "tcp:127.0.0.1:1", other.address, third.address
            raylet.detours = Static(*ways, carries=[there])
            here.detours = Static(own)
            for refuses in (False, True):
                other.detours = Static(carries=[] if refuses else [there])
                link = here.connect(there)
                assert await Toy(link).echo(b"asked") == b"asked"
                link.close()
            await other.close()
            await raylet.close()

    run_on(kind, scenario)


class Hesitant(Rate):
    """Has a permit every second time that it is asked."""

    asked = 0

    def spend(self, now: float, amount: float = 1) -> bool:
        self.asked += 1
        return self.asked % 2 == 0

    def wait(self, now: float) -> float:
        return 0.001


@LOOPS
def test_who_carries_may_bound_what_passes(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.serving(ToyService()), parted(rig) as (here, third, there):
            rate = Hesitant(1.0, 1, 0.0)
            third.detours = bounded = Static(carries=[there])
            bounded.bandwidth, third._carry_rate = 1.0, rate
            toy = Toy(here.connect(there))
            for echo in [asyncio.ensure_future(toy.echo(bytes(MIB))) for _ in range(24)]:
                assert await echo == bytes(MIB)
            assert rate.asked > 4

    run_on(kind, scenario)


@LOOPS
def test_what_it_may_not_pass_on_is_not_sent_to_it(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        service = ToyService()
        async with rig.serving(service), parted(rig) as (here, third, there):
            third.detours = bounded = Static(carries=[there])
            bounded.bandwidth = 1e-3  # a permit that is there at once, and then none for an hour
            third._carry_rate = Rate(1e-3, 1, asyncio.get_running_loop().time())
            toy = Toy(here.connect(there))
            echoes = [asyncio.ensure_future(toy.echo(bytes(MIB))) for _ in range(64)]

            def wires() -> list[GrpcWire]:
                found = [each.wire for each in third._connections.values()]
                return [wire for wire in found if isinstance(wire, GrpcWire)]

            await until(lambda: any(wire._pausing for wire in wires()))
            assert not all(echo.done() for echo in echoes)
            assert max(wire._uncredited for wire in wires()) <= WINDOW
            for echo in echoes:
                echo.cancel()
            await here.close()
            await until(lambda: not third._connections)  # and no timer is left of it

    run_on(kind, scenario)


@LOOPS
def test_a_port_of_two_carries_for_who_names_none_of_them(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.serving(ToyService()), parted(rig) as (here, third, there):
            third.relays, third.front = rig.folder, "gcs.sock"  # at which nobody listens
            assert await Toy(here.connect(there)).echo(b"asked") == b"asked"

    run_on(kind, scenario)


@LOOPS
def test_what_is_not_carried_is_refused(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        config = replace(QUICKLY, session_timeout=0.5)
        service = ToyService()
        async with rig.serving(service), parted(rig, config) as (here, third, there):
            third.detours = Static(carries=["tcp:127.0.0.1:1"])
            with pytest.raises(PeerLostError, match="nothing passes"):
                await Toy(here.connect(there)).echo(b"")
            third.detours, reader = Static(carries=[there]), new_token(SCOPES[0])
            third._keyring = Keyring(cluster_token(), reader)
            lesser = made(rig, reader, config=config)
            lesser.detours, lesser.blocked = here.detours, here.blocked
            with pytest.raises(PeerLostError, match="nothing passes"):
                await Toy(lesser.connect(there)).echo(b"")
            stranger = made(rig, new_token(), config=config)
            with pytest.raises(AuthenticationError):
                await stranger.dial_through(third.address, there, Deaf())
            await lesser.close()
            await stranger.close()
            assert service.handled == []

    run_on(kind, scenario)


def test_a_process_asks_its_raylet_for_other_nodes_only() -> None:
    own = "tcp:10.0.0.1:7;aa=unix:/tmp/w.sock"
    detours = ByRaylet("unix:/tmp/raylet.sock", own)
    assert detours.ways("tcp:10.0.0.2:7;bb=unix:/tmp/w.sock") == ("unix:/tmp/raylet.sock",)
    assert detours.ways(own) == detours.ways("tcp:10.0.0.2:7") == ()  # the GCS has no mark
    assert not detours.carries("tcp:10.0.0.2:7;bb=unix:/tmp/w.sock")
