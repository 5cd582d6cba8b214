"""A random workload on a simulated node, the faults it meets, and what must be true of it all.

`simulate(seed)` runs one seed and returns the hash of its trace; it raises `Wrong` when something
is not as it must be. To see one seed with its plan and its ledger, from the repository's root:

    python -m tests.sim 1234
"""

import asyncio
import gc
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from raylite._wire.hot import LossReason
from raylite.testing.loop import SimLoop
from raylite.testing.node import KILLED, SimNode, SimWorker
from raylite.testing.sim import World
from tests.sim.ledger import Ledger, keeping
from tests.sim.programs import Program
from tests.sim.scripts import Wrong

WITHIN = 300.0  # virtual seconds for all drivers together


@dataclass(slots=True)
class Plan:
    """What is drawn from a seed before anything happens."""

    seed: int
    cpus: int = 2
    delay: float = 0.001
    start_failures: float = 0.0
    early_deaths: float = 0.0
    faults: list[str] = field(default_factory=list)
    until: float = 1.5  # seconds for which faults go on

    @classmethod
    def of(cls, seed: int) -> "Plan":
        draw = random.Random(f"plan {seed}")
        plan = cls(seed, cpus=draw.choice((1, 2, 2, 3)))
        for name in ("kill worker", "kill driver", "reset", "cut", "cut silently", "bodies"):
            if draw.random() < 0.5:
                plan.faults.append(name)
        if draw.random() < 0.3:
            plan.start_failures = draw.choice((0.05, 0.3))
        if draw.random() < 0.3:
            plan.early_deaths = 0.2
        plan.delay = draw.choice((0.0001, 0.001, 0.001, 0.01))
        return plan


class Faults:
    """Draws what goes wrong, and when."""

    def __init__(self, plan: Plan, node: SimNode, ledger: Ledger) -> None:
        self._node, self._plan, self._ledger = node, plan, ledger
        self._draw = random.Random(f"faults {plan.seed}")
        self._pairs: dict[tuple[str, str], None] = {}  # cut once already
        self.log: list[str] = []

    async def run(self) -> None:
        """Break things for a while, then heal what can be healed."""
        draw, plan, loop = self._draw, self._plan, asyncio.get_running_loop()
        kinds = [name for name in plan.faults if name != "bodies"]
        while kinds:
            await asyncio.sleep(draw.expovariate(1 / 0.25))
            if loop.time() > plan.until:
                return
            self._strike(draw.choice(kinds))

    def happened(self, worker: str) -> None:
        """A task has begun or is about to end: the moment when faults are most interesting."""
        kinds = [name for name in self._plan.faults if name in ("kill worker", "reset", "cut")]
        loop = asyncio.get_running_loop()
        if kinds and loop.time() < self._plan.until and self._draw.random() < 0.06:
            delay = self._draw.choice((0.0, 1.0, 3.0)) * self._draw.random() * self._plan.delay
            loop.call_later(delay, self._strike, self._draw.choice(kinds), worker)

    def put(self, worker: str) -> None:
        """A worker is about to own what others will read: it may die between two readings."""
        if "kill worker" in self._plan.faults and self._draw.random() < 0.5:
            delay = self._draw.choice((0.01, 0.1)) * self._draw.random()
            loop = asyncio.get_running_loop()
            loop.call_later(delay, self._strike, "kill worker", worker)

    def _strike(self, kind: str, target: str = "") -> None:
        draw, node = self._draw, self._node
        what = ""
        match kind:
            case "kill worker":
                workers = node.workers.all()
                if workers:
                    chosen = [each for each in workers if each.name == target]
                    worker = draw.choice(chosen or workers)
                    what = worker.name
                    if len(self.log) % 3 == 2:
                        self._end_for_memory(worker)
                    worker.kill(KILLED)
            case "kill driver":
                drivers = list(node.drivers.values())
                if len(drivers) > 1 and draw.random() < 0.3:
                    driver = draw.choice(drivers)
                    what = driver.name
                    driver.kill(draw.choice((0.0, 0.005)))
            case "reset":
                pair = self._pair(target)
                what = str(pair)
                node.world.reset(*pair)
            case "cut" | "cut silently":
                pair = self._pair(target)
                if pair not in self._pairs:
                    self._pairs[pair] = None
                    seconds = draw.choice((0.05, 0.5, 1.5))
                    what = f"{pair} for {seconds}"
                    node.world.cut(*pair, silently=kind == "cut silently")
                    asyncio.get_running_loop().call_later(seconds, node.world.heal, *pair)
        if what:
            self.log.append(f"{asyncio.get_running_loop().time():.4f} {kind} {what}")

    def _end_for_memory(self, worker: SimWorker) -> None:
        """Have the raylet end a worker, as a monitor of the memory would."""
        if worker.process is None or worker.is_ended or self._node.is_dead:
            return
        id = worker.process.core.id
        with self._node.world.at(self._node.name):
            if any(member.id == id for member in self._node.raylet.pool.workers()):
                self._ledger.ended_for_memory.add(worker.name)
                self._node.raylet.pool.end(id, "no memory is left", LossReason.OUT_OF_MEMORY)

    def _pair(self, target: str) -> tuple[str, str]:
        names = ["gcs", "raylet", *(process.name for process in self._node.processes())]
        one, other = sorted(self._draw.sample(names, 2))
        if target in names and target not in (one, other):
            one, other = sorted((one, target))
        return one, other


# ---- a run ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Outcome:
    """What came of a seed."""

    trace: str
    seconds: float
    attempts: int
    faults: list[str]
    ledger: Ledger


def simulate(seed: int, program: type[Program] = Program) -> Outcome:
    """Run a seed. Raises `Wrong`, or whatever else went wrong, with the seed in a note."""
    loop = SimLoop()
    unhandled: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda loop, context: unhandled.append(context))
    try:
        outcome = loop.run(_simulate(Plan.of(seed), program), within=WITHIN)
        if unhandled:
            raise Wrong(f"not handled: {unhandled[0]}") from unhandled[0].get("exception")
    except BaseException as error:
        error.add_note(f"seed {seed}: python -m tests.sim {seed}")
        raise
    outcome.trace = loop.trace
    return outcome


async def _simulate(plan: Plan, program: type[Program]) -> Outcome:
    loop = asyncio.get_running_loop()
    world = World(plan.seed, delay=plan.delay)
    node = SimNode(world, cpus=plan.cpus, start_failures=plan.start_failures)
    node.workers.early_deaths = plan.early_deaths
    ledger = Ledger(node)
    faults = Faults(plan, node, ledger)
    ledger.on_event, ledger.on_put = faults.happened, faults.put
    with keeping(ledger):
        await node.start()
        programs = [
            program(plan, number, await node.driver(f"driver-{number}"), ledger)
            for number in range(3)
        ]
        background = [
            loop.create_task(faults.run(), name="faults"),
            loop.create_task(_check_often(node), name="checks"),
        ]
        await all_or_failure(node.failed, [run_program(each) for each in programs])
        finished = loop.time()
        if not plan.faults and not plan.start_failures and not plan.early_deaths:
            most = sum(each.seconds for each in programs) + 4.0
            if finished > most:
                raise Wrong(f"took {finished} seconds for at most {most} of work, without a fault")
        for task in background:
            task.cancel()
        await all_or_failure(node.failed, [_settle(node, ledger)])
        await node.stop()
        return Outcome("", finished, len(ledger.attempts), faults.log, ledger)


async def run_program(program: Program) -> None:
    """Run a program until it ends, or its driver does."""
    with program.driver.node.world.at(program.driver.name):
        work = asyncio.get_running_loop().create_task(program.run(), name=program.driver.name)
    program.driver.on_kill = work.cancel
    await asyncio.wait([work])
    if not work.cancelled():
        work.result()
    elif not program.driver.is_dead:
        raise Wrong("a program was cancelled, and its driver lives")


async def all_or_failure(failed: asyncio.Future[None], works: list[Any]) -> None:
    """Run these; what never should happen ends them."""
    tasks = [asyncio.get_running_loop().create_task(work) for work in works]
    pending: list[asyncio.Future[Any]] = list(tasks)
    while pending:
        await asyncio.wait([*pending, failed], return_when=asyncio.FIRST_COMPLETED)
        for task in [failed, *tasks]:
            if task.done():
                task.result()
        pending = [task for task in pending if not task.done()]


async def _check_often(node: SimNode) -> None:
    while True:
        await asyncio.sleep(0.25)
        try:
            node.check()
        except AssertionError as error:
            node.fail(error)


async def _settle(node: SimNode, ledger: Ledger) -> None:
    """Nothing may be left: first of the drivers' work, then of the drivers."""
    gc.collect()
    await _until_nothing(node, ledger)
    for driver in list(node.drivers.values()):
        await driver.leave()
    await _until_nothing(node, ledger)
    node.check()


async def _until_nothing(node: SimNode, ledger: Ledger) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 40.0
    while True:
        ledger.kept.clear()
        for process in node.processes():
            process.core.handover.drain()  # the ends of small values wait until their process does something
        if not (found := list(left(node))):
            return
        if loop.time() > deadline:
            raise Wrong("still there: " + "; ".join(found))
        await asyncio.sleep(0.5)


def left(node: SimNode) -> Iterator[str]:
    """What is left of the work that the node did."""
    leases, pool = node.raylet.leases.leases, node.raylet.pool.pool
    if leases.available() != leases.total:
        yield f"lent: {leases.total - leases.available()}"
    counts = leases.statistics()
    if counts.lent or counts.waiting or counts.infeasible:
        yield f"leases: {counts}"
    workers = pool.statistics()
    if workers.lent or workers.waiting or workers.blocked or workers.retiring:
        yield f"workers: {workers}"
    memory = node.raylet.objects.memory.statistics()
    if memory.used or memory.quarantined or memory.waiting:
        yield f"memory: {memory}"
    for process in node.processes():
        core = process.core
        if core.owner.refs.table:
            yield f"{process.name} holds {len(core.owner.refs.table)} references"
        if core.submitter.unfinished:
            yield f"{process.name} has {core.submitter.unfinished} tasks"
        if core.owner.is_needed:
            yield f"{process.name} has objects that others need"
    members = {member.address for member in node.raylet.pool.members()}
    known = {process.core.network.address for process in node.processes()}
    if members != known:
        yield f"the raylet knows {sorted(members)}, and there are {sorted(known)}"
    for process in node.processes():
        for link in core_links(process):
            if link.answering:
                yield f"{process.name} still answers {link.peer}"


def core_links(process: Any) -> Any:
    return process.core.network.links


@contextmanager
def quiet_collector() -> Iterator[None]:
    """Keep the cyclic collector from running at times that no seed decides."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
