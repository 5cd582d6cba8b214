"""Owners that cannot be reached, and owners that are dead: their readers wait for the former only."""

import asyncio
from typing import Any

import anyio
import pytest

from raylite._protocol import gcs, worker
from raylite._services.gcs.storage import MemoryStorage
from raylite._services.worker.fates import Fates
from raylite._types.marks import mark_of_node
from raylite._wire import hot
from raylite.exceptions import OwnerDiedError, UnavailableError
from tests.services.nodes import GCS, LINKS, MB, Driver, Nodes, cluster
from tests.services.rig import life, simulated

OVER = 3 * LINKS.session_timeout  # seconds after which a session has ended more than once


async def pair(nodes: Nodes) -> tuple[Driver, Driver]:
    """An owner on one node and a reader on another, whose nodes can both reach the GCS alone."""
    a, b = await nodes.add("a"), await nodes.add("b")
    return await a.driver("owner"), await b.driver("reader")


async def _read(ref: Any) -> Any:
    return await ref


def cut(nodes: Nodes) -> None:
    nodes.world.cut("a", "b", silently=True)
    nodes.world.cut("owner", "b", silently=True)
    nodes.world.cut("a", "reader", silently=True)
    nodes.world.cut("owner", "reader", silently=True)


def heal(nodes: Nodes) -> None:
    for one in ("a", "owner"):
        for other in ("b", "reader"):
            nodes.world.heal(one, other)


@simulated
async def test_a_reader_has_the_value_when_its_owner_is_reached_again() -> None:
    async with cluster() as nodes:
        owner, reader = await pair(nodes)
        ref = await owner.put(b"small")
        await anyio.sleep(1.0)
        cut(nodes)
        mine = reader.ref(ref)
        wish = asyncio.create_task(_read(mine))
        told = asyncio.create_task(reader.core.owner.register([mine._entry]))
        await anyio.sleep(OVER)
        assert [wish.done(), told.done()] == [False, False]
        heal(nodes)
        assert await wish == b"small"
        await told
        assert owner.core.owner.refs.table[ref._entry.id].borrowers == {reader.network.address: 1}
        del mine, wish


@simulated
async def test_it_hears_of_an_owner_that_dies_meanwhile() -> None:
    async with cluster() as nodes:
        owner, reader = await pair(nodes)
        ref = await owner.put(b"small")
        await anyio.sleep(1.0)
        cut(nodes)
        wish = asyncio.create_task(_read(reader.ref(ref)))
        await anyio.sleep(OVER)
        await owner.die()
        owner.node.drivers.remove(owner)
        with pytest.raises(OwnerDiedError):
            await wish


@pytest.mark.parametrize("with_its_node", [False, True])
def test_it_hears_of_an_owner_whose_death_was_told_before_it_began(with_its_node: bool) -> None:
    @simulated
    async def run() -> None:
        async with cluster() as nodes:
            owner, early = await pair(nodes)
            ref = await owner.put(b"small")
            await anyio.sleep(1.0)
            if with_its_node:
                await owner.node.die()
            else:
                await owner.die()
                owner.node.drivers.remove(owner)
            await anyio.sleep(OVER)
            late = await early.node.driver("late")
            with pytest.raises(OwnerDiedError):
                await late.ref(ref)

    run()


@simulated
async def test_it_goes_on_asking_while_nobody_can_tell() -> None:
    async with cluster() as nodes:
        owner, reader = await pair(nodes)
        ref = await owner.put(b"small")
        await anyio.sleep(1.0)
        cut(nodes)
        asked: list[str] = []

        async def tell(address: str) -> bool:
            asked.append(address)
            return False

        reader.core.owner._fates.is_dead = tell  # type: ignore[method-assign]
        wishes = [asyncio.create_task(_read(reader.ref(ref))) for _ in range(3)]
        await anyio.sleep(OVER)
        heal(nodes)
        assert await asyncio.gather(*wishes) == [b"small"] * 3
        assert 2 <= len(asked) <= 3  # once each time that a session had ended
        assert set(asked) == {owner.network.address}


@simulated
async def test_a_driver_that_has_lost_its_raylet_waits_for_no_owner() -> None:
    async with cluster() as nodes:
        owner, reader = await pair(nodes)
        ref = await owner.put(b"small")
        cut(nodes)
        wish = asyncio.create_task(_read(reader.ref(ref)))
        await anyio.sleep(1.0)
        nodes.world.kill(reader.node.network.address)
        with pytest.raises(OwnerDiedError):
            await wish


# ---- what raylets and the GCS say --------------------------------------------------------


async def fate(nodes: Nodes, address: str) -> hot.Fate:
    """Ask as a raylet does."""
    link = nodes.all[-1].network.connect(GCS)
    return await gcs.Nodes(link).fate(hot.AskFate(address))


@simulated
async def test_the_raylet_of_a_node_knows_which_of_its_processes_live() -> None:
    async with cluster() as nodes:
        owner, reader = await pair(nodes)
        await anyio.sleep(20.0)
        a, b = owner.node, reader.node
        for address in (owner.network.address, reader.network.address, a.network.address):
            told = await fate(nodes, address)
            assert not told.is_dead
            assert told.epoch == 1
        assert (await fate(nodes, a.address_of("nobody"))).is_dead
        assert (await fate(nodes, b.address_of("owner"))).is_dead
        assert (await fate(nodes, f"owner;{mark_of_node(b'u' * 28)}=")).is_dead


@simulated
async def test_a_gcs_that_has_just_begun_calls_no_node_dead_that_it_does_not_know() -> None:
    async with life(MemoryStorage()) as gcs_life:
        nodes, unknown = gcs_life.client().nodes, hot.AskFate(f"w;{mark_of_node(b'u' * 28)}=")
        with pytest.raises(UnavailableError, match="may not have been heard of yet"):
            await nodes.fate(unknown)
        await anyio.sleep(20.0)
        assert (await nodes.fate(unknown)).is_dead


@simulated
async def test_what_a_gcs_says_that_was_replaced_is_not_believed() -> None:
    async with cluster() as nodes:
        owner, reader = await pair(nodes)
        await owner.node.die()
        unknown = owner.network.address
        await anyio.sleep(20.0)
        cluster_service = reader.node.raylet.cluster
        cluster_service._dead.clear()
        fates = Fates(reader.core.raylet_link, reader.core.owner.spawn)
        assert await fates.is_dead(unknown)
        epochs = cluster_service._epochs
        assert epochs.obeys(epochs._cluster or b"", 2)
        assert not await fates.is_dead(unknown)


# ---- what was said in vain ---------------------------------------------------------------


async def borrowed(nodes: Nodes) -> tuple[Driver, Driver, Any, Any]:
    """A pair, and an object of the one that only the other holds."""
    owner, reader = await pair(nodes)
    ref = await owner.put(b"small")
    mine = reader.ref(ref)
    await reader.core.owner.register([mine._entry])
    assert await mine == b"small"
    return owner, reader, ref, mine


def count_of(driver: Driver) -> int:
    """How many objects a process knows."""
    driver.core.handover.drain()
    return len(driver.core.owner.refs.table)


@simulated
async def test_what_was_given_up_during_a_cut_goes_when_it_is_over() -> None:
    async with cluster() as nodes:
        owner, reader, ref, mine = await borrowed(nodes)
        kept = await owner.put(b"kept")
        also = reader.ref(kept)
        await reader.core.owner.register([also._entry])
        del ref, kept
        await anyio.sleep(1.0)
        cut(nodes)
        await anyio.sleep(1.0)
        del mine
        assert (count_of(reader), count_of(owner)) == (1, 2)
        await anyio.sleep(OVER)
        heal(nodes)
        await anyio.sleep(3.0)
        assert count_of(owner) == 1
        assert await also == b"kept"
        del also
        count_of(reader)
        await anyio.sleep(3.0)
        assert count_of(owner) == 0


@simulated
async def test_what_another_tells_late_of_a_borrower_is_reviewed_once_more() -> None:
    async with cluster() as nodes:
        owner, reader, ref, mine = await borrowed(nodes)
        await anyio.sleep(1.0)
        cut(nodes)
        await anyio.sleep(1.0)
        del mine
        count_of(reader)
        await anyio.sleep(OVER)
        heal(nodes)
        await anyio.sleep(3.0)
        owner.core.owner.borrow(hot.Borrow(reader.network.address, (ref._entry.id,)))
        del ref
        assert count_of(owner) == 1
        await anyio.sleep(LINKS.session_timeout + 1.0)
        assert count_of(owner) == 0


@simulated
async def test_a_borrowing_that_is_told_again_counts_once() -> None:
    async with cluster() as nodes:
        owner, reader, ref, mine = await borrowed(nodes)
        borrow = hot.Borrow(reader.network.address, (ref._entry.id,), 77)
        del ref
        for _ in range(2):
            link = reader.network.connect(owner.network.address)
            await worker.Owner(link).borrow(borrow)
        worker.Owner(link).give_up(borrow)
        del mine
        count_of(reader)
        await anyio.sleep(1.0)
        assert count_of(owner) == 0


@simulated
async def test_a_review_that_a_cut_interrupts_begins_anew() -> None:
    async with cluster() as nodes:
        owner, reader, ref, mine = await borrowed(nodes)
        del ref
        await anyio.sleep(1.0)
        held = [mine]
        del mine
        for _ in range(3):
            cut(nodes)
            held.clear()
            count_of(reader)
            await anyio.sleep(OVER)
            heal(nodes)
            link = reader.network.connect(owner.network.address)
            await link.wait_attached()
        await anyio.sleep(3.0)
        assert count_of(owner) == 0


@simulated
async def test_the_death_of_an_owner_ends_what_is_owed_to_it() -> None:
    async with cluster() as nodes:
        owner, reader, ref, mine = await borrowed(nodes)
        await anyio.sleep(1.0)
        cut(nodes)
        del mine
        count_of(reader)
        await anyio.sleep(OVER)
        del ref
        await owner.die()
        owner.node.drivers.remove(owner)
        heal(nodes)
        await anyio.sleep(OVER)
        assert owner.network.address not in reader.network._links
        assert not reader.core.owner._holdings._told


@simulated
async def test_a_node_that_could_not_be_told_frees_an_object_when_it_can() -> None:
    async with cluster() as nodes:
        a, b = await nodes.add("a"), await nodes.add("b")
        owner = await a.driver("owner")
        refs = [await owner.put(bytes(MB), at=b) for _ in range(2)]
        await anyio.sleep(1.0)
        cut(nodes)
        del refs[0]
        count_of(owner)
        await anyio.sleep(OVER)
        assert b.used > 2 * MB
        heal(nodes)
        await anyio.sleep(3.0)
        assert MB < b.used < 2 * MB
        assert await refs[0] == bytes(MB)
        refs.clear()
        count_of(owner)
        await anyio.sleep(1.0)
        assert b.used == 0
        assert a.raylet.copies._unheard == {}
