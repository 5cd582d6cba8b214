"""Transfers between nodes: whole, once for all readers, from whoever lives; nothing stays that is over."""

import asyncio

import anyio
import pytest

from raylite._protocol import raylet
from raylite._wire import hot
from raylite.exceptions import (
    LocalRayletDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OwnerDiedError,
    RayError,
)
from raylite.testing.loop import SimLoop
from tests.services.nodes import MB, Node, Nodes, cluster
from tests.services.rig import simulated

DATA = bytes(range(256)) * (5 * MB // 256)
LONG = DATA * 4


async def reading(node: Node) -> None:
    """Wait until a transfer from a node has begun."""
    before = node.chunks_read
    while node.chunks_read == before:
        await anyio.sleep(0.0005)


async def two(nodes: Nodes, store: int = 32 * MB) -> tuple[Node, Node]:
    return await nodes.add("a", store), await nodes.add("b")


@simulated
async def test_a_node_brings_an_object_once_for_all_who_read_it() -> None:
    async with cluster() as nodes:
        a, b = await two(nodes)
        owner, one, other = await b.driver("owner"), await a.driver("one"), await a.driver("other")
        ref = await owner.put(DATA)
        refs = [one.ref(ref), one.ref(ref), other.ref(ref)]
        async with asyncio.TaskGroup() as group:
            reads = [group.create_task(_read(each)) for each in refs]
        assert [each.result() for each in reads] == [DATA] * 3
        assert await _read(other.ref(ref)) == DATA
        assert b.chunks_read == 6  # of 1 MiB; the pickle is a little larger than the data


@simulated
async def test_what_nobody_refers_to_is_freed_on_every_node() -> None:
    async with cluster() as nodes:
        a, b = await two(nodes)
        owner, reader = await a.driver("owner"), await b.driver("reader")
        ref = await owner.put(DATA, at=b)
        assert await ref == await reader.ref(ref) == DATA
        assert a.used
        assert b.used
        del ref
        await anyio.sleep(2.0)
        assert (a.used, b.used) == (0, 0)


@simulated
async def test_a_withdrawn_wish_gives_its_room_back() -> None:
    async with cluster() as nodes:
        a, b = await two(nodes)
        owner = await a.driver("owner")
        ref = await owner.put(LONG, at=b)
        wish = asyncio.create_task(_read(ref))
        await reading(b)
        assert a.used
        wish.cancel()
        await anyio.sleep(0.1)
        assert a.used == 0
        assert b.chunks_read < 20
        assert len(await ref) == len(LONG)


@simulated
async def test_a_raylet_that_ends_while_it_reads_tells_owners_nothing() -> None:
    async with cluster() as nodes:
        a, b = await two(nodes)
        owner, reader = await a.driver("owner"), await b.driver("reader")
        ref = await owner.put(LONG)
        wish = asyncio.create_task(_read(reader.ref(ref)))
        await reading(a)
        await b.network.close()
        assert b.raylet.copies.owner(owner.network.address) is None
        assert b.raylet.copies.owner("who was not asked before") is None
        wish.cancel()


@simulated
async def test_a_transfer_goes_on_from_another_source_when_one_dies() -> None:
    async with cluster() as nodes:
        a, b = await two(nodes)
        c = await nodes.add("c")
        owner, third = await a.driver("owner"), await c.driver("third")
        ref = await owner.put(LONG, at=b)
        assert await third.ref(ref) == LONG
        wish = asyncio.create_task(_read(ref))
        await reading(b)
        await b.die()
        assert await wish == LONG
        assert c.chunks_read


@simulated
async def test_an_object_is_lost_with_its_only_source() -> None:
    async with cluster() as nodes:
        a, b = await two(nodes)
        owner, reader = await a.driver("owner"), await a.driver("reader")
        ref = await owner.put(DATA, at=b)
        wishes = [asyncio.create_task(_read(each)) for each in (ref, reader.ref(ref))]
        await reading(b)
        await b.die()
        for wish in wishes:
            with pytest.raises(ObjectLostError):
                await wish
        with pytest.raises(ObjectLostError):
            await ref
        assert a.used == 0


@simulated
async def test_a_transfer_survives_a_cut_that_heals() -> None:
    async with cluster() as nodes:
        a, b = await two(nodes)
        ref = await (await a.driver("owner")).put(DATA, at=b)
        wish = asyncio.create_task(_read(ref))
        await reading(b)
        nodes.world.cut("a", "b")
        await anyio.sleep(3.0)
        nodes.world.heal("a", "b")
        assert await wish == DATA


@simulated
async def test_what_a_node_out_of_reach_has_comes_from_another_that_has_it() -> None:
    async with cluster() as nodes:
        a, b = await two(nodes)
        c = await nodes.add("c")
        owner, third = await a.driver("owner"), await c.driver("third")
        ref = await owner.put(LONG, at=b)
        copy = await third.ref(ref)
        assert copy == LONG
        wish = asyncio.create_task(_read(ref))
        await reading(b)
        nodes.world.cut("a", "b", silently=True)
        async with asyncio.timeout(8.0):
            assert await wish == LONG
        assert c.chunks_read
        del copy


@simulated
async def test_what_only_a_node_out_of_reach_has_is_handed_on_by_one_that_reaches_it() -> None:
    async with cluster() as nodes:
        a, b = await two(nodes)
        await nodes.add("c")
        owner, reader = await a.driver("owner"), await a.driver("reader")
        ref, other = await owner.put(LONG, at=b), await owner.put(DATA, at=b)
        wish = asyncio.create_task(_read(ref))
        await reading(b)
        nodes.world.cut("a", "b", silently=True)
        async with asyncio.timeout(8.0):
            assert await wish == LONG
        async with asyncio.timeout(1.0):  # it is known by now
            assert await reader.ref(other) == DATA
        nodes.world.heal("a", "b")
        await anyio.sleep(8.0)
        assert not a.raylet.transfers._out_of_reach


@simulated
async def test_where_nobody_reaches_a_node_its_objects_are_waited_for() -> None:
    async with cluster() as nodes:
        a, b = await two(nodes)
        await nodes.add("c")
        owner = await a.driver("owner")
        ref = await owner.put(DATA, at=b)
        nodes.world.cut("c", "b", silently=True)
        nodes.world.cut("a", "b", silently=True)
        wish = asyncio.create_task(_read(ref))
        await anyio.sleep(5.0)
        assert not wish.done()
        nodes.world.heal("a", "b")
        async with asyncio.timeout(15.0):
            assert await wish == DATA
        nodes.world.heal("c", "b")


@simulated
async def test_a_dead_owner_ends_the_transfer_and_frees_its_copies() -> None:
    async with cluster() as nodes:
        a, b = await two(nodes)
        owner, reader = await b.driver("owner"), await a.driver("reader")
        mine = await owner.put(DATA), await owner.put(LONG)
        read, wanted = (reader.ref(each) for each in mine)
        assert await read == DATA
        wish = asyncio.create_task(_read(wanted))
        await reading(b)
        await b.die()
        with pytest.raises(OwnerDiedError):
            await wish
        assert a.used == 0


@simulated
async def test_the_death_of_a_reader_ends_what_it_wanted_and_read() -> None:
    async with cluster() as nodes:
        a, b = await two(nodes)
        reader = await a.driver("reader")
        read, wanted = await reader.put(DATA, at=b), await reader.put(LONG, at=b)
        bringing = reader.core.bring(read._entry)
        assert bringing is not None
        views = await asyncio.wrap_future(bringing)
        wish = asyncio.create_task(_read(wanted))
        await reading(b)
        a.drivers.remove(reader)
        await reader.die()
        await anyio.sleep(10.0)  # until its raylet takes the lost link for its end
        assert a.used == 0
        del views
        wish.cancel()


@simulated
async def test_copies_that_nobody_reads_make_room() -> None:
    async with cluster() as nodes:
        a, b = await two(nodes, store=12 * MB)
        owner = await a.driver("owner")
        refs = [await owner.put(DATA, at=b) for _ in range(4)]
        for ref in refs:
            assert await ref == DATA
        assert await (await owner.put(DATA)) == DATA  # and for what is made here
        assert a.used < 12 * MB


@simulated
async def test_a_pull_waits_for_room_until_views_die() -> None:
    async with cluster() as nodes:
        a, b = await two(nodes, store=8 * MB)
        owner = await a.driver("owner")
        first, second = await owner.put(DATA, at=b), await owner.put(DATA, at=b)
        bringing = owner.core.bring(first._entry)
        assert bringing is not None
        views = await asyncio.wrap_future(bringing)
        wish = asyncio.create_task(_read(second))
        await anyio.sleep(5.0)
        assert not wish.done()
        del bringing, views
        assert await wish == DATA


@simulated
async def test_a_pull_for_which_no_room_is_made_fails() -> None:
    async with cluster() as nodes:
        a, b = await two(nodes, store=8 * MB)
        owner = await a.driver("owner")
        kept, ref = await owner.put(DATA), await owner.put(DATA, at=b)
        with pytest.raises(ObjectStoreFullError, match="the object store is full"):
            await ref
        del kept
        await anyio.sleep(2.0)
        assert await ref == DATA


@simulated
async def test_a_raylet_gives_out_only_what_it_has_and_only_all_of_it() -> None:
    async with cluster() as nodes:
        _, b = await two(nodes)
        owner = await b.driver("owner")
        ref = await owner.put(DATA)
        copies = raylet.Copies(owner.core.raylet_link)
        key = ref.binary()
        assert len(await copies.read(hot.ReadChunk(key, 0, 100))) == 100
        for wrong in ((b"x", 0, 1), (key, -1, 1), (key, 6 * MB, 1), (key, 0, 2 * MB)):
            with pytest.raises(RayError, match="Failed to retrieve"):
                await copies.read(hot.ReadChunk(*wrong))


@pytest.mark.parametrize("first", range(0, 24, 6))
def test_whatever_happens_reads_end_and_nothing_stays(first: int) -> None:
    for seed in range(first, first + 6):
        SimLoop().run(_anything(seed))


async def _anything(seed: int) -> None:
    """Read from everywhere, while nodes and processes die, wires are cut and readers give up."""
    async with cluster(seed) as nodes:
        random = nodes.world.random("test")
        a, b, c = [await nodes.add(name) for name in "abc"]
        drivers = [await node.driver(f"{node.name}{n}") for node in (a, b, c) for n in (1, 2)]
        safe = drivers[:2]
        mine = [
            (owner, await owner.put(DATA, at=random.choice((a, b, c))))
            for owner in random.choices(drivers, k=5)
        ]
        reads: list[asyncio.Task[object]] = []
        for step in range(12):
            _, ref = random.choice(mine)
            reads.append(asyncio.create_task(_read(random.choice(safe).ref(ref))))
            await anyio.sleep(random.expovariate(100))
            if random.random() < 0.2:
                random.choice(reads).cancel()
            if random.random() < 0.1:
                nodes.world.reset("a", random.choice("bc"))
            if step == 6 and random.random() < 0.5:
                await random.choice((b, c)).die()
        await asyncio.wait(reads)
        await safe[0].core.copies.settle()
        for read in reads:
            if not read.cancelled() and not isinstance(read.exception(), ObjectLostError):
                assert read.result() == DATA
        del mine, ref, reads, read
        await anyio.sleep(12.0)
        for node in (a, b, c):
            if node.running is not None:
                assert node.used == 0, f"seed {seed}, node {node.name}"
                assert node.raylet.transfers.unfinished == 0


async def _read(ref: object) -> object:
    return await ref  # type: ignore[misc]


@simulated
async def test_a_put_on_a_node_that_is_dead_says_so() -> None:
    async with cluster() as nodes:
        driver = await (await nodes.add("a")).driver("driver")
        nodes.world.kill(driver.node.network.address)
        for _ in range(2):  # when the link is lost, and afterwards
            with pytest.raises(LocalRayletDiedError):
                await driver.core.writing.allocate(driver.core.new_object_id(), driver.core.id, MB)
