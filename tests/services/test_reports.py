"""What raylets report to the GCS of their resources: what has changed, when it has, and not too often."""

import asyncio
from collections.abc import Awaitable
from itertools import pairwise

from raylite._kernel.seams import now
from raylite._services.gcs.views import ViewService
from raylite._services.raylet.cluster import REPORT
from raylite._types.resources import Resources
from raylite._types.strategies import NodeKey, Shapes
from raylite.testing.node import SimNode, TaskContext
from raylite.testing.sim import World
from raylite.testing.simcluster import SimCluster
from tests.services.rig import simulated


def rest(task: TaskContext, seconds: float) -> Awaitable[None]:
    return task.sleep(seconds)


class Looks:
    """When a raylet looked what there is to report."""

    def __init__(self, node: SimNode) -> None:
        self.at: list[float] = []
        self._demand = node.raylet.cluster.demand
        node.raylet.cluster.demand = self

    def __call__(self) -> tuple[Shapes, Shapes]:
        self.at.append(now())
        return self._demand()


async def start(cluster: SimCluster) -> list[SimNode]:
    await cluster.gcs.start()
    nodes = [await cluster.add(f"n{number}", is_head=not number, cpus=1) for number in range(2)]
    await cluster.joined()
    return nodes


def reports(cluster: SimCluster) -> int:
    [service] = [each for each in cluster.gcs.host._services if isinstance(each, ViewService)]
    return service.statistics().handled.get("Views.report", 0)


def free(node: SimNode, there: SimNode) -> Resources:
    return node.raylet.cluster.nodes()[NodeKey(there.id)].available


@simulated
async def test_a_raylet_at_rest_looks_at_nothing_but_when_all_is_compared() -> None:
    cluster = SimCluster(World(1))
    nodes = await start(cluster)
    await asyncio.sleep(5.0)
    looks, told = [Looks(node) for node in nodes], reports(cluster)
    await asyncio.sleep(120.0)
    assert [len(each.at) for each in looks] in ([4, 4], [4, 3], [3, 4], [3, 3])
    assert reports(cluster) - told == sum(len(each.at) for each in looks)
    await cluster.stop()


@simulated
async def test_a_change_is_reported_at_once_and_the_next_a_tenth_of_a_second_later() -> None:
    cluster = SimCluster(World(1))
    here, there = await start(cluster)
    driver = await there.driver("driver")
    await driver.get([driver.submit(rest, 0.0)])  # there is a worker
    await asyncio.sleep(5.0)
    looks, at = Looks(there), now()
    tasks = [driver.submit(rest, 0.5, num_cpus=0.5) for _ in range(2)]
    await asyncio.sleep(0.03)
    assert free(here, there).to_floats().get("CPU", 0.0) <= 0.5
    await driver.get(tasks)
    await asyncio.sleep(5.0)
    assert free(here, there).to_floats()["CPU"] == 1.0
    assert 2 <= len(looks.at) <= 12
    assert looks.at[0] - at < 0.03
    assert all(later - earlier >= REPORT for earlier, later in pairwise(looks.at))
    await cluster.stop()


@simulated
async def test_a_gcs_that_was_started_again_is_told_by_raylets_to_which_nothing_happens() -> None:
    cluster = SimCluster(World(1))
    here, there = await start(cluster)
    await asyncio.sleep(5.0)
    cluster.gcs.kill()
    await asyncio.sleep(1.0)
    await cluster.gcs.start()
    newcomer = await cluster.add("n2", cpus=1)
    await newcomer.raylet.cluster.wait_known([NodeKey(node.id) for node in (here, there)])
    assert free(newcomer, there).to_floats()["CPU"] == 1.0
    await cluster.stop()
