"""A healthy cluster on machines that have too much to do, for five minutes at a time: nobody may be dead.

Everything is late and stands still again and again, each time for less than its bound. Ninety-six seeds are eight
hours: ``python -m tests.sim --standstills --once 0-95``.
"""

import asyncio
import random
from collections.abc import Awaitable
from dataclasses import dataclass

from raylite.testing.loop import SimLoop
from raylite.testing.node import GCS, SimDriver, TaskContext
from raylite.testing.sim import World
from raylite.testing.simcluster import SimCluster
from tests.sim.invariants import Losses, Tables
from tests.sim.ledger import Ledger, moment
from tests.sim.scripts import Wrong
from tests.sim.workload import Outcome, all_or_failure

SECONDS = 300.0
NODES = 3
LONGEST = 20.0  # seconds for which anything stands still: a raylet has thirty, and its beats are late as well
LATEST = 0.5  # seconds that packets between two machines take in the mean, at worst: one in 3,000 takes four
BETWEEN = 5.0  # seconds in which a process runs before it stands still again


@dataclass(slots=True)
class Plan:
    """What is drawn from a seed: nothing, before it runs."""

    seed: int

    @classmethod
    def of(cls, seed: int) -> "Plan":
        return cls(seed)


def add(task: TaskContext, one: int, other: int) -> Awaitable[int]:
    return _add(task, one, other)


async def _add(task: TaskContext, one: int, other: int) -> int:
    await task.sleep(0.05)
    return one + other


def simulate(seed: int, *, traced: bool = True) -> Outcome:
    """Run a seed. Raises `Wrong` when a node, a job or a worker was taken for dead, or a result is not right."""
    loop = SimLoop(traced=traced)
    outcome = loop.run(_simulate(seed), within=10 * SECONDS)
    outcome.trace = loop.trace
    return outcome


async def _simulate(seed: int) -> Outcome:
    world, log = World(seed), list[str]()
    cluster = SimCluster(world)
    tables = Tables(cluster, Losses())  # which fails the cluster if a node is taken for dead
    cluster.on_node_ended = lambda node, error: cluster.fail(error)
    await cluster.gcs.start()
    nodes = [await cluster.add(f"n{n}", is_head=not n, cpus=1) for n in range(NODES)]
    await cluster.joined()
    drivers = [await node.driver("driver") for node in nodes[:2]]
    strain = asyncio.get_running_loop().create_task(
        _strain(cluster, random.Random(f"strain {seed}"), log)
    )
    done = await all_or_sums(cluster, drivers)
    strain.cancel()
    if tables.deaths or len(cluster.nodes) != NODES:
        raise Wrong(f"V11: {tables.deaths} were taken for dead")
    deaths = [
        death for node in nodes for death in node.workers.deaths.values() if death != "exit code 0"
    ]
    if deaths:
        raise Wrong(f"V11: workers ended: {deaths}")
    for host in world.frozen:
        world.thaw(host)
    await cluster.stop()
    return Outcome("", moment(), done, log, Ledger(cluster))


async def all_or_sums(cluster: SimCluster, drivers: list[SimDriver]) -> int:
    """Have the drivers use the cluster as long as it lasts; return how many tasks they ran."""
    counts: list[int] = []

    async def use(driver: SimDriver) -> None:
        number = 0
        while moment() < SECONDS:
            refs = [driver.submit(add, number, n, scheduling_strategy="SPREAD") for n in range(3)]
            if (sums := await driver.get(refs)) != [number, number + 1, number + 2]:
                raise Wrong(f"V3: {sums} for {number}")
            number += 3
            await asyncio.sleep(3.0)
        counts.append(number)

    def work(driver: SimDriver) -> "asyncio.Task[None]":
        with cluster.world.at(driver.name):
            return asyncio.get_running_loop().create_task(use(driver))

    await all_or_failure(cluster.failed, [asyncio.wait([work(driver)]) for driver in drivers])
    if len(counts) != len(drivers):
        raise Wrong("a driver's program failed")
    return sum(counts)


async def _strain(cluster: SimCluster, draw: random.Random, log: list[str]) -> None:
    """Let processes stand still and packets be late, most for moments and some for very long."""
    world, loop = cluster.world, asyncio.get_running_loop()
    ready_at: dict[str, float] = {}
    machines = [GCS, *cluster.nodes]
    while True:
        await asyncio.sleep(draw.expovariate(1.0))
        one, other = draw.sample(machines, 2)
        world.delays[one, other] = world.delays[other, one] = min(
            0.001 * draw.paretovariate(0.5), LATEST
        )
        hosts = [GCS, *(node.host("raylet") for node in cluster.nodes.values())]
        hosts += [process.name for process in cluster.processes()]
        host = draw.choice(hosts)
        if moment() < ready_at.get(host, 0.0):
            continue
        seconds = min(0.1 * draw.paretovariate(0.5), LONGEST)
        ready_at[host] = moment() + seconds + BETWEEN
        log.append(f"{moment():.2f} {host} for {seconds:.2f}")
        world.freeze(host)
        loop.call_later(seconds, world.thaw, host)
