"""What was lost on its way between raylets and the GCS is made up for within half a minute."""

import asyncio
from collections.abc import Awaitable

import anyio
import pytest

from raylite._kernel.link import LinkConfig
from raylite._kernel.service import Service
from raylite._machines.roster import part_of
from raylite._protocol import gcs
from raylite._runtime.membership import COMPARE, MemberService
from raylite._types.strategies import NodeKey
from raylite._wire.messages import gcs as msg
from raylite.exceptions import WorkerCrashedError
from raylite.testing.node import GCS, SimNode, TaskContext
from raylite.testing.sim import SimNetwork, World
from raylite.testing.simcluster import SimCluster
from tests.services.rig import simulated

SOON = COMPARE + 2  # seconds: a beat is due until all is compared, and another until it is


def rest(task: TaskContext, seconds: float) -> Awaitable[None]:
    return task.sleep(seconds)


def nest(task: TaskContext, seconds: float) -> Awaitable[None]:
    return _nest(task, seconds)


async def _nest(task: TaskContext, seconds: float) -> None:
    await task.get([task.submit(rest, seconds, num_cpus=2)])  # which only the other node has


def deafen(service: Service, feed: str) -> None:
    """Have a raylet hear no more of what it watches."""
    [task] = [task for task in service.scope._tasks if task.get_name() == feed]
    task.cancel()


async def workers_of(link: gcs.Workers) -> dict[bytes, bool]:
    return {row.worker_id: row.alive for row in (await link.list(msg.ListWorkers())).workers}


def incarnation_of(node: SimNode) -> int:
    return int.from_bytes(node.raylet.pool._network.incarnation[:8], "little")


@simulated
async def test_lost_news_of_a_workers_start_and_of_its_end_are_made_up_for() -> None:
    cluster = SimCluster(World(1))
    await cluster.gcs.start()
    node = await cluster.add("n0", is_head=True, cpus=1)
    await cluster.joined()
    driver = await node.driver("driver")
    await driver.get([driver.submit(rest, 0.1)])
    await anyio.sleep(2)
    link = gcs.Workers(SimNetwork(cluster.world, "client", LinkConfig()).connect(GCS))
    before = await workers_of(link)
    assert all(before.values())
    assert before
    wrong = [msg.Worker(worker_id=id) for id in before]
    wrong.append(msg.Worker(worker_id=b"it has ended", alive=True))
    link.report(msg.ReportWorkers(node.raylet.node_id, incarnation_of(node), wrong))
    await anyio.sleep(0.1)
    said = await workers_of(link)
    assert said == {**dict.fromkeys(before, False), b"it has ended": True}
    await anyio.sleep(SOON)
    assert await workers_of(link) == {**before, b"it has ended": False}
    await cluster.stop()


@simulated
async def test_a_job_whose_end_a_raylet_has_not_heard_of_is_over_there_too() -> None:
    cluster = SimCluster(World(1))
    await cluster.gcs.start()
    near = await cluster.add("n0", is_head=True, cpus=0)
    far = await cluster.add("n1", cpus=2)
    await cluster.joined()
    driver = await near.driver("driver")
    await driver.get([driver.submit(rest, 0.1)])
    cluster_service = far.raylet.cluster
    [job] = cluster_service.drivers
    assert far.raylet.pool.jobs() == [job]
    deafen(cluster_service, "watch drivers")
    client = SimNetwork(cluster.world, "client", LinkConfig())
    await gcs.Jobs(client.connect(GCS)).finish(msg.FinishJob(job))
    await anyio.sleep(5)
    assert [*cluster_service.drivers] == far.raylet.pool.jobs() == [job]
    await anyio.sleep(SOON)
    assert not cluster_service.drivers
    assert not far.raylet.pool.jobs()  # its workers have ended
    await cluster.stop()


@simulated
async def test_a_lease_whose_holders_end_a_raylet_has_not_heard_of_is_free_again() -> None:
    cluster = SimCluster(World(1))
    await cluster.gcs.start()
    near = await cluster.add("n0", is_head=True, cpus=1)
    far = await cluster.add("n1", cpus=2)
    await cluster.joined()
    driver = await near.driver("driver")
    outer = driver.submit(nest, 1000.0, max_retries=0)
    await anyio.sleep(3)
    leases = far.raylet.leases.leases
    assert leases.available() != leases.total
    deafen(far.raylet.cluster, "watch workers")
    [holder] = near.raylet.leases._lease_of
    [worker] = [
        each for each in near.workers.all() if each.process and each.process.core.id == holder
    ]
    worker.kill("killed")
    await anyio.sleep(SOON)
    assert leases.available() == leases.total
    with pytest.raises(WorkerCrashedError):
        await driver.get([outer])
    await cluster.stop()


@simulated
async def test_nodes_of_whose_start_and_end_a_raylet_has_not_heard_are_known_to_it_too() -> None:
    cluster = SimCluster(World(1))
    await cluster.gcs.start()
    deaf = await cluster.add("n0", is_head=True, cpus=1)
    dies, stays = [await cluster.add(name, cpus=1) for name in ("n1", "n2")]
    await cluster.joined()
    knows = deaf.raylet.cluster
    await asyncio.sleep(2 * COMPARE)  # nothing differs: nobody is taken for dead
    assert {*knows.nodes()} == {node.raylet.cluster.local for node in (deaf, dies, stays)}
    deafen(knows, "watch nodes")
    cluster.kill(dies)
    comes = await cluster.add("n3", cpus=1)
    await comes.raylet.joined.wait()
    await asyncio.sleep(2)
    assert {*knows.nodes()} == {node.raylet.cluster.local for node in (deaf, dies, stays)}
    gone: list[bytes] = []
    knows.on_node_died.append(gone.append)
    await asyncio.sleep(SOON)
    assert {*knows.nodes()} == {node.raylet.cluster.local for node in (deaf, comes, stays)}
    assert gone == [dies.raylet.cluster.local]
    assert "connections to it are refused" in knows._dead[dies.raylet.cluster.local].cause
    await cluster.stop()


@simulated
async def test_a_doubt_whose_end_a_raylet_has_not_heard_of_is_over_there_too() -> None:
    cluster = SimCluster(World(1))
    await cluster.gcs.start()
    near = await cluster.add("n0", is_head=True, cpus=1)
    far = await cluster.add("n1", cpus=1)
    await cluster.joined()
    knows, node = near.raylet.cluster, far.raylet.cluster.local
    cluster.world.cut("gcs", "n1", silently=True)
    await asyncio.sleep(8)
    assert knows.trusted_address_of(node) is None
    deafen(knows, "watch nodes")
    cluster.world.heal("gcs", "n1")
    await asyncio.sleep(SOON)
    assert knows.trusted_address_of(node) == far.raylet.cluster._view().address
    await cluster.stop()


@simulated
async def test_what_a_raylet_hears_while_it_compares_counts_for_more_than_the_answer() -> None:
    cluster = SimCluster(World(1))
    await cluster.gcs.start()
    node = await cluster.add("n0", is_head=True, cpus=1)
    await cluster.joined()
    knows = node.raylet.cluster
    deafen(knows, "watch nodes")
    unheard = await cluster.add("n1", cpus=1)
    await unheard.raylet.joined.wait()
    part = part_of(unheard.raylet.node_id)
    new = next(id for n in range(10_000) if part_of(id := b"%d" % n) == part)
    comparing = asyncio.ensure_future(knows._compare_nodes(knows._network.connect(GCS)))
    await asyncio.sleep(0)
    knows._joined(msg.Node(new, "new", alive=True, incarnation=7))
    await comparing
    assert knows.address_of(NodeKey(new)) == "new"
    knows._ended(msg.Node(new, "new", incarnation=7))
    await knows._compare_nodes(knows._network.connect(GCS))
    assert knows.raylets() == [unheard.raylet.cluster._view().address]
    await cluster.stop()


@simulated
async def test_nodes_that_joined_at_once_do_not_go_on_to_tell_everything_at_once() -> None:
    cluster = SimCluster(World(1))
    await cluster.gcs.start()
    nodes = [await cluster.add(f"n{n}", is_head=n == 0, cpus=1) for n in range(8)]
    await cluster.joined()
    await asyncio.sleep(2)
    due: list[float] = []
    for node in nodes:
        [member] = [s for s in node.raylet.host._services if isinstance(s, MemberService)]
        due.append(member._compare_at)
    assert max(due) - min(due) > COMPARE / 2
    assert max(due) <= asyncio.get_running_loop().time() + COMPARE
    await cluster.stop()
