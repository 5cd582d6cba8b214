"""What waits in a cluster, as its GCS hears of it, in virtual time."""

import anyio

from raylite._protocol import gcs, raylet
from raylite._types.resources import UNIT
from raylite._wire import hot
from tests.services.nodes import GCS, Driver, cluster
from tests.services.rig import simulated

CPU, ALL, BIG = {"CPU": UNIT}, {"CPU": 2 * UNIT}, {"CPU": 64 * UNIT}


def ask(driver: Driver, demand: dict[str, int]) -> bytes:
    """Ask for a lease; return its id."""
    lease = driver.core.new_task_id()
    leases = raylet.Leases(driver.core.raylet_link)
    leases.request(hot.LeaseRequest(lease, demand, b"job.", 0, driver.core.id))
    return lease


async def told(driver: Driver) -> hot.Demand:
    await anyio.sleep(0.5)
    views = gcs.Views(driver.network.connect(GCS))
    return await views.demand(hot.AskDemand())


@simulated
async def test_what_waits_on_all_nodes_is_told_together_and_forgotten_when_it_is_over() -> None:
    async with cluster() as nodes:
        a, b = await nodes.add("a"), await nodes.add("b")
        one, other = await a.driver("one"), await b.driver("other")
        assert await told(one) == hot.Demand((), ())
        for driver in (one, other):
            ask(driver, ALL)
        assert await told(one) == hot.Demand((), ())
        for _ in range(2):
            ask(one, ALL)
        waiting = [ask(other, CPU) for _ in range(3)]
        stuck = ask(other, BIG)
        assert await told(one) == hot.Demand(((CPU, 3), (ALL, 2)), ((BIG, 1),))
        for lease in (*waiting, stuck):
            raylet.Leases(other.core.raylet_link).release(lease)
        assert await told(one) == hot.Demand(((ALL, 2),), ())
        nodes.world.kill(one.network.address)
        a.raylet.pool.driver_ended(a.raylet.pool.drivers()[0])  # as its pidfd says
        assert await told(other) == hot.Demand((), ())


@simulated
async def test_tasks_that_no_lease_is_asked_for_are_counted_until_their_owner_ends() -> None:
    async with cluster() as nodes:
        a = await nodes.add("a")
        one, other = await a.driver("one"), await a.driver("other")
        leases = raylet.Leases(one.core.raylet_link)
        leases.backlog(hot.Backlog(((CPU, 100), (BIG, 7))))
        ask(one, BIG)
        assert await told(other) == hot.Demand(((CPU, 100),), ((BIG, 8),))
        leases.backlog(hot.Backlog(((CPU, 9),)))
        assert await told(other) == hot.Demand(((CPU, 9),), ((BIG, 1),))
        a.raylet.pool.driver_ended(a.raylet.pool.drivers()[0])
        assert await told(other) == hot.Demand((), ())


@simulated
async def test_a_change_is_told_once_and_nothing_when_nothing_changes() -> None:
    async with cluster() as nodes:
        a = await nodes.add("a")
        one = await a.driver("one")
        heard: list[hot.Load] = []

        async def watch() -> None:
            views = gcs.Views(one.network.connect(GCS))
            async for news in views.watch(hot.WatchViews()):
                heard.extend(delta.load for delta in news.deltas if delta.load is not None)

        ask(one, BIG)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            await anyio.sleep(10)
            assert [load.infeasible for load in heard] == [((BIG, 1),)]
            for _ in range(100):
                ask(one, BIG)
            await anyio.sleep(10)
            assert [load.infeasible for load in heard[1:]] == [((BIG, 101),)]
            tasks.cancel_scope.cancel()
