"""A random workload on a simulated cluster of many nodes, and what goes wrong there.

To see one seed: ``python -m tests.sim --nodes 1234``.
"""

import asyncio
import gc
import itertools
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from raylite._protocol import gcs
from raylite._wire.messages import gcs as msg
from raylite.exceptions import RayError, RaySystemError
from raylite.testing.hosts import machine_of
from raylite.testing.loop import Clock, SimLoop
from raylite.testing.node import GCS, KILLED, SimDriver, SimNode
from raylite.testing.sim import World
from raylite.testing.simcluster import SimCluster
from raylite.testing.simgcs import SimDisk
from tests.sim.invariants import (
    FORGOTTEN,
    HEAD,
    ClusterLedger,
    Cut,
    Freeze,
    Losses,
    Tables,
    check,
    unsettled,
)
from tests.sim.ledger import keeping, moment
from tests.sim.programs import Program
from tests.sim.scripts import Script, Wrong
from tests.sim.workload import Outcome, all_or_failure, left, run_program

WITHIN = 1000.0  # virtual seconds for all
REST = 200.0  # virtual seconds until nothing may be left

KINDS = (
    "kill worker", "kill driver", "kill raylet", "power off", "kill gcs", "reset", "cut",
    "partition", "one way", "slow", "join", "bodies", "starts", "disk", "skew",
)  # fmt: skip


@dataclass(slots=True)
class Plan:
    """What is drawn from a seed before anything happens."""

    seed: int
    nodes: list[int] = field(default_factory=list)  # their CPUs
    delay: float = 0.001
    faults: list[str] = field(default_factory=list)
    until: float = 2.0  # seconds for which faults begin
    cpus: int = 1  # that are there whatever happens

    @classmethod
    def of(cls, seed: int) -> "Plan":
        draw = random.Random(f"cluster {seed}")
        plan = cls(seed, [draw.choice((1, 1, 2, 3)) for _ in range(draw.choice((2, 3, 3, 4)))])
        plan.faults = [kind for kind in KINDS if draw.random() < 0.35]
        plan.delay = draw.choice((0.0001, 0.001, 0.001, 0.01))
        plan.until = draw.choice((1.0, 2.0, 4.0))
        more = random.Random(f"more {seed}")
        plan.faults += [kind for kind in ("freeze", "torn", "pause") if more.random() < 0.3]
        return plan


class ClusterProgram(Program):
    """A program whose tasks want to be somewhere, and which keeps a number in the GCS."""

    _ledger: ClusterLedger
    _stored = _tried = 0

    def _actions(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        return *super()._actions(), self._store

    def _script(self, depth: int) -> Script:
        return replace(
            super()._script(depth),
            spread=self._chance(0.4),
            cpus=self._draw.choice((1.0, 1.0, 1.0, 0.5)),
        )

    async def _store(self) -> None:
        """Write a number, or read it: what was acknowledged is never lost, whatever dies."""
        kv = gcs.Kv(self.driver.core.network.connect(GCS))
        key = self.driver.name.encode()
        self._tried += 1
        try:
            if self._chance(0.5):
                value = str(self._tried).encode()
                await kv.put(msg.KvPut(key=key, value=value, overwrite=True))
                self._stored = self._tried
            else:
                found = (await kv.get(msg.KvGet(key=key))).value
                number = int(found or b"0")
                is_damaged = found is None and self._ledger.is_damaged("kv", key)
                if not self._stored <= number <= self._tried and not is_damaged:
                    self._ledger.wrong(
                        f"V10: {self._stored} was acknowledged, and {number} is there"
                    )
        except RayError:
            pass  # whether it happened is not known

    async def run(self) -> None:
        await super().run()
        self._tried += 1


class Faults:
    """Draws what goes wrong, and when. The head and the GCS's disk are spared: they are the core."""

    def __init__(self, plan: Plan, cluster: SimCluster, losses: Losses, log: list[str]) -> None:
        self._cluster, self._plan, self._losses = cluster, plan, losses
        self._draw = random.Random(f"cluster faults {plan.seed}")
        self._cut: dict[tuple[str, str], None] = {}  # that are, or were for long
        self._frozen: dict[str, None] = {}  # that are, or were
        self._paused: dict[str, None] = {}  # machines that are, or were
        self._tasks: list[asyncio.Task[None]] = []
        self.log = log
        self._kinds = [
            kind for kind in plan.faults if kind not in ("bodies", "starts", "disk", "skew", "torn")
        ]

    async def run(self) -> None:
        """Break things for a while, then heal what can be healed."""
        if "torn" in self._plan.faults:
            self._cluster.gcs.disk.on_commit = self._committing
        while self._kinds:
            await asyncio.sleep(self._draw.expovariate(1 / 0.3))
            if moment() > self._plan.until:
                break
            self._strike(self._draw.choice(self._kinds))
        for task in self._tasks:
            await task
        self._cluster.gcs.disk.failures = 0.0

    def happened(self, worker: str) -> None:
        """A task has begun or is about to end: the moment when faults are most interesting."""
        kinds = [kind for kind in self._kinds if kind not in ("join", "partition", "slow")]
        if kinds and moment() < self._plan.until and self._draw.random() < 0.05:
            delay = self._draw.choice((0.0, 1.0, 3.0)) * self._draw.random() * self._plan.delay
            loop = asyncio.get_running_loop()
            loop.call_later(delay, self._strike, self._draw.choice(kinds), worker)

    def _committing(self) -> None:
        """The GCS writes to its disk: it may die before that is durable."""
        disk = self._cluster.gcs.disk
        if moment() < self._plan.until and self._draw.random() < 0.1:
            with self._cluster.world.at(""):
                delay = self._draw.random() * disk.delay
                asyncio.get_running_loop().call_later(delay, self._strike, "torn", GCS)

    def _strike(self, kind: str, target: str = "") -> None:
        with self._cluster.world.at(""):
            if what := self._break(kind, target):
                self.log.append(f"{moment():.4f} {kind} {what}")

    def _break(self, kind: str, target: str) -> str:
        draw, cluster = self._draw, self._cluster
        match kind:
            case "kill worker":
                workers = [w for node in self._running() for w in node.workers.all()]
                chosen = [each for each in workers if each.name == target] or workers
                if chosen:
                    worker = draw.choice(chosen)
                    worker.kill(KILLED)
                    return worker.name
            case "kill driver":
                drivers = cluster.drivers()
                if len(drivers) > 1 and draw.random() < 0.3:
                    driver = draw.choice(drivers)
                    if cluster.world.is_paused(driver.name):
                        return ""
                    driver.kill(draw.choice((0.0, 0.005)))
                    return driver.name
            case "kill raylet" | "power off":
                nodes = [node for node in self._running() if node.name != HEAD]
                aimed = [node for node in nodes if target.startswith(f"{node.name}/")] or nodes
                if aimed and draw.random() < 0.4:
                    node = draw.choice(aimed)
                    self._lose(node, kind)
                    return node.name
            case "kill gcs" | "torn":
                if cluster.gcs.is_running and not cluster.world.is_paused(GCS):
                    seconds = draw.choice((0.01, 0.3, 3.0))
                    damaged = dict(cluster.gcs.disk.damaged)
                    cluster.gcs.kill(draw.choice((0.0, 0.005)))
                    self._later(seconds, cluster.gcs.start)
                    new = cluster.gcs.disk.damaged.items() - damaged.items()
                    return f"for {seconds}" + "".join(f", {t} {k.hex()}" for (t, k), _ in new)
            case "reset":
                pair = self._pair(target)
                cluster.world.reset(*pair)
                return str(pair)
            case "cut":
                pair = self._pair(target)
                if pair not in self._cut:
                    self._cut[pair] = None
                    seconds = draw.choice((0.05, 0.5, 1.5))
                    # Refused connections are a raylet's end to the GCS, and should be only that.
                    silently = draw.random() < 0.5 or GCS in pair
                    cluster.world.cut(*pair, silently=silently)
                    asyncio.get_running_loop().call_later(seconds, cluster.world.heal, *pair)
                    return f"{pair} for {seconds}{' silently' * silently}"
            case "partition" | "one way":
                return self._partition(one_way=kind == "one way")
            case "slow":
                one, other = draw.sample(self._machines(), 2)
                delay = draw.choice((0.05, 0.3))
                for pair in ((one, other), (other, one)):
                    cluster.world.delays[pair] = delay
                    asyncio.get_running_loop().call_later(
                        draw.choice((1.0, 5.0)), cluster.world.delays.pop, pair, None
                    )
                return f"{one} {other} {delay}"
            case "freeze":
                return self._freeze(target)
            case "pause":
                return self._pause()
            case "join":
                if len(cluster.nodes) < 6:
                    machine = f"n{len(cluster.nodes) + len(cluster.gone)}"
                    self._later(0.0, lambda: cluster.add(machine, cpus=2))
                    return machine
        return ""

    def _lose(self, node: SimNode, kind: str) -> None:
        self._losses.lose(node.name)
        if kind == "power off":
            self._cluster.power_off(node)
        else:
            self._cluster.kill(node, self._draw.choice((0.0, 0.005)))
        if self._draw.random() < 0.5:
            machine = machine_of(node.name)

            async def again() -> None:
                self._cluster.world.power_on(machine)
                await self._cluster.add(machine, cpus=node.cpus)

            self._later(self._draw.choice((0.1, 1.0, 12.0)), again)

    def _freeze(self, target: str) -> str:
        """Let a process stand still, each at most once: several times in a row would be as one long time."""
        draw, cluster = self._draw, self._cluster
        raylets = [node.host("raylet") for node in cluster.nodes.values()]
        workers = [worker.name for node in cluster.nodes.values() for worker in node.workers.all()]
        drivers = [driver.name for driver in cluster.drivers()]
        # One that stands still as a part would go on with the whole.
        kind = draw.choice([[GCS], raylets, raylets, workers, workers, drivers])
        paused = cluster.world.is_paused
        chosen = [name for name in kind if name not in self._frozen and not paused(name)]
        if not chosen:
            return ""
        aimed = [name for name in chosen if name in (target, f"{target.partition('/')[0]}/raylet")]
        name = draw.choice(aimed or chosen)
        lengths = [0.05, 0.5, 2.0, 5.0, 8.0, 12.0, 25.0]
        if name in raylets and not name.startswith(HEAD):
            lengths += [40.0] * 5  # it is fenced: a head's would be let in again
        seconds = draw.choice(lengths)
        self._frozen[name] = None
        cluster.world.freeze(name)
        if name in raylets:
            self._losses.freezes.append(Freeze(name.partition("/")[0], moment(), seconds))

        async def thaw() -> None:
            cluster.world.thaw(name)

        self._later(seconds, thaw)
        return f"{name} for {seconds}"

    def _pause(self) -> str:
        """Let a machine stand still as a whole, each at most once; the GCS is on the head's."""
        draw, cluster, world = self._draw, self._cluster, self._cluster.world
        still = {machine_of(host).replace(GCS, HEAD) for host in world.frozen}
        there = {machine_of(node.name) for node in cluster.nodes.values()}
        machines = [each for each in self._machines() if each in there - still]
        machines = [each for each in machines if each not in self._paused]
        if not machines:
            return ""
        machine = draw.choice(machines)
        if machine == HEAD and not cluster.gcs.is_running:
            return ""
        parts = (HEAD, GCS) if machine == HEAD else (machine,)
        seconds = draw.choice((1.0, 3.0, 5.0, 7.5, 12.0, 25.0, 40.0))
        is_clock_stopped = draw.random() < 0.5
        self._paused[machine] = None
        world.pause(*parts)
        if machine != HEAD:  # to the GCS it is as if it was cut off
            self._losses.cuts.append(Cut(machine, HEAD, moment(), seconds))

        async def resume() -> None:
            world.resume(*parts, is_clock_stopped=is_clock_stopped)

        self._later(seconds, resume)
        return f"{machine} for {seconds}{' and its clock' * is_clock_stopped}"

    def _running(self) -> list[SimNode]:
        """The nodes whose machines do not stand still."""
        nodes = self._cluster.nodes.values()
        return [node for node in nodes if not self._cluster.world.is_paused(node.name)]

    def _partition(self, *, one_way: bool) -> str:
        draw, machines = self._draw, self._machines()
        island = draw.sample(machines, draw.randint(1, len(machines) - 1))
        others = [machine for machine in machines if machine not in island]
        pairs = list(itertools.product(island, others))
        if draw.random() < 0.3:
            pairs = [draw.choice(pairs)]
        if any((a, b) in self._cut or (b, a) in self._cut for a, b in pairs):
            return ""
        seconds = draw.choice((0.5, 0.5, 3.0, 3.0, 5.0, 5.0, 5.0, 14.0, 14.0, 25.0, 70.0))
        is_reset = draw.random() < 0.3  # what there is breaks at once, and what is new vanishes
        for one, other in pairs:
            self._cut[one, other] = None
            for a, b in self._with_gcs(one, other):
                if is_reset:
                    self._cluster.world.reset(a, b)
                self._cluster.world.cut(a, b, silently=True, one_way=one_way)
            self._losses.cuts.append(Cut(one, other, moment(), seconds))
        self._later(seconds, lambda: self._heal(pairs, seconds))
        if seconds > FORGOTTEN:
            self._later(FORGOTTEN, lambda: self._estrange(pairs))
        return f"{pairs} for {seconds}{' after a reset' * is_reset}"

    async def _heal(self, pairs: list[tuple[str, str]], seconds: float) -> None:
        for one, other in pairs:
            del self._cut[one, other]
            for a, b in self._with_gcs(one, other):
                self._cluster.world.heal(a, b)
        if seconds > FORGOTTEN:
            await self._estrange(pairs)

    async def _estrange(self, pairs: list[tuple[str, str]]) -> None:
        """Sessions between these may end, now and until they hear each other again."""
        machines = {machine for pair in pairs for machine in pair}
        for node in [*self._cluster.nodes.values(), *self._cluster.gone.values()]:
            if machine_of(node.name) in machines:
                self._losses.estrange(node.name)

    def _with_gcs(self, one: str, other: str) -> Iterator[tuple[str, str]]:
        """The GCS is on the head's machine."""
        yield one, other
        if HEAD in (one, other):
            yield one.replace(HEAD, GCS), other.replace(HEAD, GCS)

    def _later(self, seconds: float, action: Callable[[], Awaitable[object]]) -> None:
        async def work() -> None:
            await asyncio.sleep(seconds)
            try:
                await action()
            except Exception as error:
                self._cluster.fail(error)

        with self._cluster.world.at(""):
            task = asyncio.get_running_loop().create_task(work(), name="fault")
        self._tasks.append(task)

    def _machines(self) -> list[str]:
        return [f"n{number}" for number in range(len(self._plan.nodes))]

    def _pair(self, target: str) -> tuple[str, str]:
        raylets = [node.host("raylet") for node in self._cluster.nodes.values()]
        names = [GCS, *raylets, *(process.name for process in self._cluster.processes())]
        one, other = sorted(self._draw.sample(names, 2))
        if target in names and target not in (one, other):
            one, other = sorted((one, target))
        return one, other


def simulate(seed: int, *, traced: bool = True) -> Outcome:
    """Run a seed. Raises `Wrong`, or whatever else went wrong, with the seed in a note."""
    loop = SimLoop(traced=traced)
    log: list[str] = []
    unhandled: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda loop, context: unhandled.append(context))
    try:
        outcome = loop.run(_simulate(Plan.of(seed), log), within=WITHIN)
        if unhandled:
            raise Wrong(f"not handled: {unhandled[0]}") from unhandled[0].get("exception")
    except BaseException as error:
        error.add_note("\n".join(log))
        error.add_note(f"seed {seed}: python -m tests.sim --nodes {seed}")
        raise
    outcome.trace = loop.trace
    return outcome


def _world(plan: Plan) -> World:
    world = World(plan.seed, delay=plan.delay)
    if "skew" in plan.faults:
        draw = random.Random(f"clocks {plan.seed}")
        for machine in (f"n{number}" for number in range(len(plan.nodes))):
            rate = 1.0 + draw.uniform(-0.0005, 0.0005)
            world.clocks[machine] = Clock(draw.choice((0.0, 3600.0, 1e6)), rate)
        world.clocks[GCS] = world.clocks[HEAD]
    elif "pause" in plan.faults:
        world.clocks |= {f"n{number}": Clock() for number in range(len(plan.nodes))}
        world.clocks[GCS] = world.clocks[HEAD]
    return world


async def _simulate(plan: Plan, log: list[str]) -> Outcome:
    loop = asyncio.get_running_loop()
    world = _world(plan)
    disk = SimDisk(world.random("disk"), 0.02 if "disk" in plan.faults else 0.001)
    disk.damage = 0.5 if "torn" in plan.faults else 0.0
    cluster = SimCluster(world, disk=disk)
    losses = Losses()
    tables = Tables(cluster, losses)
    ledger = ClusterLedger(cluster, losses)
    faults = Faults(plan, cluster, losses, log)
    cluster.on_node_ended = lambda node, error: _node_ended(cluster, losses, node, error)
    with keeping(ledger):
        await cluster.gcs.start()
        failures = 0.3 if "starts" in plan.faults else 0.0
        for number, cpus in enumerate(plan.nodes):
            await cluster.add(f"n{number}", is_head=number == 0, cpus=cpus, start_failures=failures)
        await all_or_failure(cluster.failed, [cluster.joined()])
        ledger.on_event = faults.happened
        nodes = list(cluster.nodes.values())
        programs = [
            ClusterProgram(plan, number, await node.driver(f"driver-{number}"), ledger)
            for number, node in enumerate((nodes[0], nodes[1], nodes[-1]))
        ]
        disk.failures = 0.1 if "disk" in plan.faults else 0.0
        checks = loop.create_task(_check_often(cluster), name="checks")
        works = [*(run_program(each) for each in programs), faults.run()]
        await all_or_failure(cluster.failed, works)
        finished = moment()
        await all_or_failure(cluster.failed, [_settle(cluster, tables, ledger)])
        checks.cancel()
        await cluster.stop()
    return Outcome("", finished, len(ledger.attempts), faults.log, ledger)


def _node_ended(cluster: SimCluster, losses: Losses, node: SimNode, error: BaseException) -> None:
    """A raylet may end because it has lost its cluster, if it was cut off from it."""
    losses.lose(node.name)
    if not isinstance(error, RaySystemError):
        cluster.fail(error)
    elif not losses.was_silent(node.name):
        cluster.fail(Wrong(f"V11: {node.name} gave its cluster up without need: {error}"))


async def _check_often(cluster: SimCluster) -> None:
    while True:
        await asyncio.sleep(0.5 if moment() < 10.0 else 5.0)
        try:
            check(cluster)
        except AssertionError as error:
            cluster.fail(error)


async def _settle(cluster: SimCluster, tables: Tables, ledger: ClusterLedger) -> None:
    """Nothing may be left: first of the drivers' work, then of the drivers."""
    gc.collect()
    await _until_nothing(cluster, tables, ledger)
    for driver in cluster.drivers():
        await _leave(driver)
    await _until_nothing(cluster, tables, ledger)
    check(cluster)
    cluster.gcs.disk.check()


async def _leave(driver: SimDriver) -> None:
    with driver.node.world.at(driver.name):
        await asyncio.get_running_loop().create_task(driver.leave())


async def _until_nothing(cluster: SimCluster, tables: Tables, ledger: ClusterLedger) -> None:
    deadline = moment() + REST
    while True:
        ledger.kept.clear()
        for process in cluster.processes():
            with cluster.world.at(process.name):
                process.core.handover.drain()
        found = [*unsettled(cluster, tables, ledger.losses)]
        for node in cluster.nodes.values():
            found += [f"V9: {node.name}: {what}" for what in left(node)]
        if not found:
            return
        if moment() > deadline:
            raise Wrong("still there: " + "; ".join(found))
        await asyncio.sleep(1.0)
