"""Processes that use workers of other nodes, and what becomes of both; in virtual time."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from raylite.exceptions import LocalRayletDiedError
from raylite.testing.node import LINKS, SimDriver, TaskContext
from raylite.testing.sim import World
from raylite.testing.simcluster import SimCluster
from tests.services.rig import simulated


def put(task: TaskContext, value: str) -> Awaitable[list[Any]]:
    return _put(task, value)


async def _put(task: TaskContext, value: str) -> list[Any]:
    await task.sleep(0.5)  # so that each needs a worker of its own
    return [await task.put(value)]


async def put_by_many(driver: SimDriver) -> list[Any]:
    """Return references to what four workers own, where one is as many as may stay idle."""
    tasks = [driver.submit(put, f"value {n}", num_cpus=0.25) for n in range(4)]
    return [ref for refs in await driver.get(tasks) for ref in refs]


@simulated
async def test_a_worker_stays_as_long_as_a_driver_of_another_node_needs_what_it_owns() -> None:
    cluster = SimCluster(World(1))
    await cluster.gcs.start()
    near, far = await cluster.add("n0", is_head=True, cpus=0), await cluster.add("n1", cpus=1)
    await cluster.joined()
    driver = await near.driver("driver")
    refs = await put_by_many(driver)
    await asyncio.sleep(20)
    assert await driver.get(refs) == [f"value {n}" for n in range(4)]
    assert len(far.workers.all()) == 4
    refs.clear()
    driver.core.handover.drain()
    await asyncio.sleep(5)
    assert len(far.workers.all()) < 4
    await cluster.stop()


def rest(task: TaskContext, seconds: float) -> Awaitable[None]:
    return task.sleep(seconds)


@simulated
async def test_what_a_process_without_a_node_was_lent_elsewhere_is_free_again() -> None:
    cluster = SimCluster(World(1))
    await cluster.gcs.start()
    far, near = await cluster.add("n0", is_head=True, cpus=2), await cluster.add("n1", cpus=0)
    await cluster.joined()
    driver = await near.driver("driver")
    await driver.get([driver.submit(rest, 0.1)])
    cluster.world.cut("n1", "gcs", silently=True)
    await asyncio.sleep(15)  # the node is dead to the others, and does not know
    long = driver.submit(rest, 1000.0)  # so it sends its driver to one that has forgotten both
    await asyncio.sleep(5)
    cluster.world.heal("n1", "gcs")
    with pytest.raises(LocalRayletDiedError):
        await driver.get([long])
    await asyncio.sleep(5)
    assert near.is_dead
    leases = far.raylet.leases.leases
    assert leases.available() == leases.total
    await cluster.stop()


@simulated
async def test_a_driver_that_was_given_up_hears_so_and_leaves_its_cluster() -> None:
    cluster = SimCluster(World(1), links=LINKS)
    await cluster.gcs.start()
    near, far = await cluster.add("n0", is_head=True, cpus=1), await cluster.add("n1", cpus=1)
    await cluster.joined()
    driver = await near.driver("driver")
    long = [driver.submit(rest, 1000.0) for _ in range(2)]  # one here, one there
    await asyncio.sleep(2)
    told: list[str] = []
    assert driver.attachment.driver is not None
    driver.attachment.driver.on_given_up = told.append
    cluster.world.cut(driver.name, "gcs", silently=True)
    await asyncio.sleep(LINKS.session_timeout + LINKS.silence + 2)
    assert not told
    cluster.world.heal(driver.name, "gcs")
    for ref in long:
        with pytest.raises(LocalRayletDiedError, match=r"given up this driver.*8 s.*init"):
            await driver.get([ref])
    with pytest.raises(LocalRayletDiedError, match="given up this driver"):
        await driver.get([driver.submit(rest, 0.0)])
    assert len(told) == 1
    await asyncio.sleep(5)
    for node in (near, far):
        leases = node.raylet.leases.leases
        assert leases.available() == leases.total
    assert not driver.core.network.links  # it asks nobody any more
    await cluster.stop()
