"""The Location service alone, in virtual time: the raylets that ask and are ordered are played."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from raylite._kernel.host import Host
from raylite._kernel.memory import MemoryNetwork, Switch
from raylite._kernel.service import Service, handles
from raylite._protocol import raylet, worker
from raylite._services.worker.locations import LocationService
from raylite._types.keys import ObjectKey
from raylite._types.strategies import NodeKey
from raylite._wire import hot
from raylite._wire.hot import Form, OrderKind, Value
from raylite.testing.sim import World
from tests.services.rig import simulated

HERE, FAR, THIRD = (name * 28 for name in (b"h", b"f", b"t"))
KEY = ObjectKey(b"o" * 28)


class PlayedRaylet(Service, serves=(raylet.Copies, raylet.Transfers)):
    """Notes what an owner tells and orders."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.owner = worker.Locations(network.connect("owner"))
        self.orders: list[tuple[OrderKind, bytes]] = []
        self.told: list[tuple[bytes, ...]] = []
        self.lost_keys: list[bytes] = []

    @handles(raylet.Copies.order)
    def order(self, orders: list[hot.Order]) -> None:
        assert {each.owner for each in orders} == {"owner"}
        self.orders += [(OrderKind(each.kind), each.node) for each in orders]

    @handles(raylet.Copies.read)
    def read(self, request: hot.ReadChunk) -> memoryview:
        raise AssertionError("owners read nothing")

    @handles(raylet.Transfers.located)
    def located(self, news: list[hot.Located]) -> None:
        self.told += [each.nodes for each in news]

    @handles(raylet.Transfers.lost)
    def lost(self, keys: list[bytes]) -> None:
        self.lost_keys += keys

    @handles(raylet.Transfers.pull)
    def pull(self, request: hot.Pull) -> hot.Pulled:
        raise AssertionError("owners pull nothing here")

    @handles(raylet.Transfers.unpin)
    def unpin(self, unpins: list[hot.Unpin]) -> None: ...

    def wants(self, *without: bytes) -> None:
        self.owner.locate(hot.Locate(KEY, FAR, without))

    def news(self, node: bytes, number: int, *, is_there: bool = True) -> None:
        self.owner.news(hot.CopyNews(KEY, node, 7, number, is_there))


class Scene:
    """An owner, its node's raylet, and that of another node which asks."""

    def __init__(self) -> None:
        self.switch, self.world = Switch(), World(1)
        self.networks: dict[str, MemoryNetwork] = {}
        self.hosts: list[Any] = []
        self.lost: list[ObjectKey] = []

    async def begin(self) -> None:
        owner = await self._network("owner")
        self.here, self.far = [await self._raylet(name) for name in ("here", "far")]
        self.service = LocationService("owner", owner.connect("here"))
        self.service.node = HERE
        self.service.on_lost = self.lost.append
        self._host(owner, self.service)

    async def _network(self, name: str) -> MemoryNetwork:
        self.networks[name] = network = MemoryNetwork(self.switch, self.world.seams(name))
        await network.listen(name)
        return network

    async def _raylet(self, name: str) -> PlayedRaylet:
        network = await self._network(name)
        played = PlayedRaylet(network)
        self._host(network, played)
        return played

    def _host(self, network: MemoryNetwork, service: Service) -> None:
        host = Host(network, service)
        self.hosts.append((host, host.start("host")))

    def store(self, node: bytes = FAR) -> None:
        self.service.stored(KEY, Value(Form.ARENA, b"", 0, 7, (), b"", node))

    async def settled(self) -> None:
        await anyio.sleep(0.005)


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    await made.begin()
    try:
        yield made
        await made.settled()
        made.service._directory.check()
    finally:
        for host, running in made.hosts:
            host.stop()
            await running


@simulated
async def test_who_asks_is_told_where_an_object_is_and_hears_of_changes_until_it_forgets() -> None:
    async with scene() as at:
        at.store()
        at.far.wants()
        at.far.news(THIRD, 1)
        await at.settled()
        assert at.far.told == [(FAR,), (FAR, THIRD)]
        at.far.owner.forget(hot.Locate(KEY, FAR))
        at.far.news(THIRD, 2, is_there=False)
        await at.settled()
        assert len(at.far.told) == 2
        assert at.service._directory.locations(KEY) == (FAR,)


@simulated
async def test_news_that_come_late_or_twice_change_nothing() -> None:
    async with scene() as at:
        at.store()
        at.far.news(THIRD, 2, is_there=False)
        at.far.news(THIRD, 1)  # it was sent before
        at.far.news(FAR, 1)
        at.far.news(FAR, 1)
        await at.settled()
        assert at.service._directory.locations(KEY) == (FAR,)
        assert at.here.orders == []


@simulated
async def test_what_nobody_refers_to_is_dropped_wherever_it_is() -> None:
    async with scene() as at:
        at.store()
        at.far.news(THIRD, 1)
        at.far.wants()
        await at.settled()
        at.service.freed(KEY)
        await at.settled()
        assert at.here.orders == [(OrderKind.DROP, FAR), (OrderKind.DROP, THIRD)]
        assert at.far.lost_keys == [KEY]  # who still waits for it waits in vain
        at.far.news(HERE, 1)  # a copy that was under way
        at.far.wants()
        await at.settled()
        assert at.here.orders[2:] == [(OrderKind.DROP, HERE)]
        assert at.far.lost_keys == [KEY, KEY]


@simulated
async def test_a_value_that_nobody_was_told_of_is_dropped_where_it_lies() -> None:
    async with scene() as at:
        at.service.drop(KEY, FAR)
        at.service.drop(KEY, b"")
        await at.settled()
        assert at.here.orders == [(OrderKind.DROP, FAR), (OrderKind.DROP, HERE)]


@simulated
async def test_a_copy_that_a_reader_missed_is_looked_for() -> None:
    async with scene() as at:
        at.store()
        at.far.wants(FAR, THIRD)  # third has none, as far as is known: nothing to ask
        await at.settled()
        assert at.here.orders == [(OrderKind.VERIFY, FAR)]


@simulated
async def test_when_the_node_of_the_primary_dies_another_copy_is_kept_in_its_place() -> None:
    async with scene() as at:
        at.store()
        at.far.news(THIRD, 1)
        await at.settled()
        at.service.node_died(NodeKey(FAR))
        at.far.news(FAR, 9)  # sent before it died
        at.service.node_died(NodeKey(FAR))
        await at.settled()
        assert at.here.orders == [(OrderKind.PIN, THIRD)]
        assert at.lost == []


@simulated
async def test_with_the_last_copy_an_object_is_lost_and_its_readers_hear_so() -> None:
    async with scene() as at:
        at.store(THIRD)
        at.far.wants()
        await at.settled()
        at.service.node_died(NodeKey(THIRD))
        await at.settled()
        assert at.lost == [KEY]
        assert at.far.lost_keys == [KEY]
        at.far.wants()
        await at.settled()
        assert at.far.lost_keys == [KEY, KEY]


@simulated
async def test_a_raylet_that_has_gone_is_told_nothing_and_an_owner_without_one_orders_nothing() -> (
    None
):
    async with scene() as at:
        at.store()
        at.far.wants()
        await at.settled()
        at.networks["owner"].confirm_dead("far", "power cut")
        at.service.stored(KEY, Value(Form.ARENA, b"", 0, 7, (), b"", THIRD))
        at.networks["owner"].confirm_dead("here", "it crashed")
        at.service.freed(KEY)
        await at.settled()
        assert (at.far.told, at.far.lost_keys, at.here.orders) == ([(FAR,)], [], [])
