"""Many nodes at once: a storm of registrations, and a hundred raylets that all know one another."""

import asyncio
from collections.abc import Awaitable

import msgspec
import pytest

from raylite._kernel.link import LinkConfig
from raylite._protocol import gcs
from raylite._services.raylet.cluster import between_reports
from raylite._wire import hot
from raylite._wire.messages import gcs as msg
from raylite.testing.loop import SimLoop
from raylite.testing.node import GCS, TaskContext
from raylite.testing.sim import SimNetwork, World
from raylite.testing.simcluster import SimCluster
from raylite.testing.simgcs import SimDisk
from tests.sim import scale
from tests.sim.invariants import WAITING
from tests.sim.workload import quiet_collector

STORM = 1_000
WITHIN = 10.0  # virtual seconds, with a disk that takes five milliseconds for a commit

pytestmark = pytest.mark.sim


def where(task: TaskContext) -> Awaitable[str]:
    return _where(task)


async def _where(task: TaskContext) -> str:
    await task.sleep(0.05)
    return task.node.name


async def _storm(kill: bool) -> None:
    world = World(3)
    cluster = SimCluster(world, disk=SimDisk(world.random("disk"), 0.005))
    await cluster.gcs.start()
    deepest = 0

    async def register(number: int) -> None:
        nonlocal deepest
        network = SimNetwork(world, f"m{number}/raylet", LinkConfig())
        row = msg.RegisterNode(
            node_id=number.to_bytes(28, "little"), incarnation=1, resources={"CPU": 1.0}
        )
        while True:
            try:
                await gcs.Nodes(network.connect(GCS)).register(row)
                break
            except Exception:  # the GCS was killed under it
                await asyncio.sleep(0.1)
        if cluster.gcs.is_running:
            for service in cluster.gcs.host._services:
                deepest = max(deepest, service.statistics().waiting)

    loop = asyncio.get_running_loop()
    storm = [loop.create_task(register(number)) for number in range(STORM)]
    if kill:
        await asyncio.sleep(0.02)
        cluster.gcs.kill()
        await asyncio.sleep(0.2)
        await cluster.gcs.start()
    await asyncio.wait(storm)
    assert loop.time() < WITHIN
    assert len(cluster.gcs.disk.tables["nodes"]) == STORM
    assert deepest < WAITING
    cluster.is_stopping = True


@pytest.mark.parametrize("kill", [False, True])
def test_a_thousand_nodes_register_at_once(kill: bool) -> None:
    with quiet_collector():
        SimLoop().run(_storm(kill))


async def _hundred() -> None:
    cluster = SimCluster(World(4))
    await cluster.gcs.start()
    for number in range(100):
        await cluster.add(f"n{number}", is_head=number == 0, cpus=1)
    await cluster.joined()
    driver = await cluster.nodes["n0"].driver("driver")
    refs = [driver.submit(where, scheduling_strategy="SPREAD") for _ in range(300)]
    places = await driver.get(refs)
    assert len(places) == 300
    assert len(set(places)) > 50
    for number in range(10, 20):
        cluster.kill(cluster.nodes[f"n{number}"])
    await asyncio.sleep(5)
    for node in cluster.nodes.values():
        assert len(node.raylet.cluster.nodes()) == 90
    await cluster.stop()


@pytest.mark.timeout(300)  # eight seconds of a core, which may be shared
def test_a_hundred_raylets_know_one_another_and_spread_work() -> None:
    with quiet_collector():
        SimLoop().run(_hundred(), within=600.0)


@pytest.mark.timeout(300)  # ten seconds of a core, which may be shared
def test_what_a_node_costs_the_gcs_grows_no_faster_than_what_there_is_to_say() -> None:
    few, many = scale.measure(20), scale.measure(80)
    for figures in (few, many):
        assert figures.storm_messages < 20
        assert figures.rest_messages < 2 * figures.nodes
        assert figures.busy_messages < 25 * figures.nodes
        assert figures.lease_worst < 0.1
    assert many.storm_bytes < 5 * few.storm_bytes  # four times as many rows
    assert many.memory < few.memory
    assert many.row().count("|") == len(scale.HEADINGS) + 1


def test_hollow_nodes_count_what_they_do_not_decode() -> None:
    rows = [msg.Node(node_id=bytes(28), address="x" * length) for length in (1, 100, 300)]
    assert scale.rows_in(bytes(msg.NodeEvent(rows, complete=True))) == 3
    for count in (0, 15, 16, 70_000):
        delta = hot.ViewDelta(b"n", 1, 0, 1, None, None)
        body = msgspec.msgpack.encode(hot.ViewDeltas((delta,) * count))
        assert scale.deltas_in(body) == count


def test_however_many_nodes_report_a_gcs_takes_in_a_thousand_reports_a_second() -> None:
    assert [between_reports(nodes) for nodes in (1, 100, 300, 3_000)] == [0.1, 0.1, 0.3, 3.0]
