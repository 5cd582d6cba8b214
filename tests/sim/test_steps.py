"""A process dies at every step of a node's and a job's way into the cluster and out of it.

A step is a packet that has landed at the victim or left it, or a commit of the GCS's tables: between
two of them nothing happens that others could see. A run without a death counts them; then there is
one run for each, in which the victim dies right there.
"""

import asyncio
from collections.abc import Awaitable, Sequence

import pytest

from raylite._kernel.link import LinkConfig
from raylite._services.gcs.storage import Write
from raylite.testing.loop import SimLoop
from raylite.testing.node import GCS, KILLED, TaskContext
from raylite.testing.sim import World
from raylite.testing.simcluster import SimCluster
from raylite.testing.simgcs import SimDisk
from tests.sim.invariants import Losses, Tables, unsettled
from tests.sim.workload import all_or_failure, left, quiet_collector

LINKS = LinkConfig(ping_after=1.0, silence=2.0, session_timeout=12.0, connect_timeout=1.0)
BACK = 0.2  # seconds until there is another in the victim's place
REST = 60.0
PARTS = 4  # tests that share the steps

pytestmark = pytest.mark.sim


def add(task: TaskContext, one: int, other: int) -> Awaitable[int]:
    return _add(task, one, other)


async def _add(task: TaskContext, one: int, other: int) -> int:
    await task.sleep(0.002)
    return one + other


class Steps:
    """Counts a victim's steps in a phase, and kills it at one of them."""

    def __init__(self, cluster: SimCluster, victim: str, kill_at: int | None) -> None:
        self.count = 0
        self.is_on = False
        self._cluster, self._victim, self._kill_at = cluster, victim, kill_at
        self.again: asyncio.Task[None] | None = None
        cluster.world.on_packet = self._packet
        cluster.gcs.disk.on_write.append(self._written)

    def _packet(self, one: str, other: str, size: int) -> None:
        if any(host.startswith(self._victim) for host in (one, other)):
            self._step()

    def _written(self, records: Sequence[Write]) -> None:
        if self._victim == GCS:
            self._step()

    def _step(self) -> None:
        if not self.is_on:
            return
        if self.count == self._kill_at:
            self.is_on = False
            with self._cluster.world.at(""):
                self.again = asyncio.get_running_loop().create_task(self._strike(), name="again")
        self.count += 1

    async def _strike(self) -> None:
        """Kill the victim; this runs before what the packet brought is read."""
        cluster = self._cluster
        if self._victim == GCS:
            cluster.gcs.kill()
            await asyncio.sleep(BACK)
            await cluster.gcs.start()
        elif self._victim.endswith("raylet"):
            cluster.kill(cluster.nodes["n1"])
            await asyncio.sleep(BACK)
            await cluster.add("n1", cpus=1)
        else:
            for worker in cluster.nodes["n1"].workers.all():
                worker.kill(KILLED)


async def _run(phase: str, victim: str, kill_at: int | None) -> int:
    world = World(7, delay=0.0005)
    cluster = SimCluster(world, disk=SimDisk(world.random("disk"), 0.001), links=LINKS)
    losses = Losses()
    tables = Tables(cluster, losses)
    steps = Steps(cluster, victim, kill_at)
    await all_or_failure(cluster.failed, [_live(phase, cluster, tables, losses, steps)])
    await cluster.stop()
    return steps.count


async def _live(
    phase: str, cluster: SimCluster, tables: Tables, losses: Losses, steps: Steps
) -> None:
    await cluster.gcs.start()
    head = await cluster.add("n0", is_head=True, cpus=0)
    await cluster.joined()
    steps.is_on = phase == "registration"
    await cluster.add("n1", cpus=1)
    driver = await head.driver("driver")
    sums = [driver.submit(add, n, n, max_retries=3) for n in range(3)]
    assert await driver.get(sums) == [0, 2, 4]
    sums.clear()
    if phase == "registration":
        await _rest(cluster, tables, losses)
    steps.is_on = phase == "job end"
    await driver.leave()
    await _rest(cluster, tables, losses)
    steps.is_on = False
    if steps.again is not None:
        await steps.again
        await _rest(cluster, tables, losses)


async def _rest(cluster: SimCluster, tables: Tables, losses: Losses) -> None:
    """Wait until the tables are true and nothing is left of the work."""
    for _ in range(int(REST / 0.5)):
        for process in cluster.processes():
            process.core.handover.drain()
        found = list(unsettled(cluster, tables, losses))
        for node in cluster.nodes.values():
            found += [f"{node.name}: {what}" for what in left(node)]
        if not found:
            return
        await asyncio.sleep(0.5)
    raise AssertionError("still there: " + "; ".join(found))


def run(phase: str, victim: str, kill_at: int | None) -> int:
    return SimLoop().run(_run(phase, victim, kill_at), within=300.0)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("victim", [GCS, "n1/raylet", "n1/worker"])
@pytest.mark.parametrize("phase", ["registration", "job end"])
def test_a_death_at_any_step_costs_nothing_but_time(phase: str, victim: str, part: int) -> None:
    with quiet_collector():
        steps = run(phase, victim, None)
        assert steps > 5  # there is something to die at
        for step in range(part, steps, PARTS):
            try:
                run(phase, victim, step)
            except BaseException as error:
                error.add_note(f"{victim} died at step {step} of {steps} of the {phase}")
                raise
