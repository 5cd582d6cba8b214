"""Nodes that fall silent, as the other nodes take them; in virtual time."""

import asyncio
from collections.abc import Awaitable

from raylite.testing.hosts import machine_of
from raylite.testing.node import TaskContext
from raylite.testing.sim import World
from raylite.testing.simcluster import SimCluster
from tests.services.rig import simulated


def where(task: TaskContext, seconds: float) -> Awaitable[str]:
    return _where(task, seconds)


async def _where(task: TaskContext, seconds: float) -> str:
    await task.sleep(seconds)
    return task.node.name


@simulated
async def test_a_node_that_is_silent_gets_no_new_work_until_it_is_heard_again() -> None:
    cluster = SimCluster(World(1))
    await cluster.gcs.start()
    head = await cluster.add("n0", is_head=True, cpus=0)
    for machine in ("n1", "n2"):
        await cluster.add(machine, cpus=2)
    await cluster.joined()
    driver = await head.driver("driver")

    async def places(count: int, **options: str) -> set[str]:
        refs = [driver.submit(where, 0.3, **options) for _ in range(count)]
        return set(await driver.get(refs))

    assert await places(4) == {"n1", "n2"}
    await asyncio.sleep(3)  # so that no lease is kept
    cluster.world.cut("n2", "gcs", silently=True)
    await asyncio.sleep(6.5)
    assert await places(4) == await places(4, scheduling_strategy="SPREAD") == {"n1"}
    cluster.world.heal("n2", "gcs")
    await asyncio.sleep(5)
    assert await places(4) == {"n1", "n2"}
    assert len(cluster.nodes) == 3
    await cluster.stop()


@simulated
async def test_a_suspect_that_dies_is_no_suspect_to_anybody_any_more() -> None:
    cluster = SimCluster(World(1))
    await cluster.gcs.start()
    for machine in ("n0", "n1", "n2"):
        await cluster.add(machine, is_head=machine == "n0", cpus=1)
    await cluster.joined()
    other = cluster.nodes["n1"].raylet.cluster
    lost = cluster.nodes["n2"].raylet.cluster.local
    cluster.power_off(cluster.nodes["n2"])
    await asyncio.sleep(7)
    assert other.address_of(lost)
    assert other.trusted_address_of(lost) is None
    assert [view.node for view in other.nodes().values() if view.suspect] == [lost]
    assert other.nodes()[lost] is other.nodes()[lost]  # promises are told by that
    await asyncio.sleep(6)
    assert lost not in other.nodes()
    assert not other._suspects
    await cluster.stop()


@simulated
async def test_a_suspect_is_asked_last_to_carry_what_another_cannot_send() -> None:
    cluster = SimCluster(World(1))
    await cluster.gcs.start()
    for machine in ("n0", "n1", "n2", "n3"):
        await cluster.add(machine, is_head=machine == "n0", cpus=1)
    await cluster.joined()
    networks = {network.name: network for network in cluster.world.networks.values()}
    here, there = networks["n1/raylet"], networks["n2/raylet"].address
    assert [machine_of(way) for way in here.detours.ways(there)] == ["n0", "n3", "gcs"]
    cluster.world.cut("n0", "gcs", silently=True)
    await asyncio.sleep(7)
    assert [machine_of(way) for way in here.detours.ways(there)] == ["n3", "n0", "gcs"]
    await cluster.stop()
