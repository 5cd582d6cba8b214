"""A random workload on a simulated node, the faults it meets, and what must be true of it all.

`simulate(seed)` runs one seed and returns the hash of its trace; it raises `Wrong` when something
is not as it must be. To see one seed with its plan and its ledger, from the repository's root:

    python -m tests.sim 1234
"""

import asyncio
import gc
import random
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pickle import PickleBuffer
from typing import Any

from raylite._services.worker.objects import ObjectRef
from raylite.exceptions import (
    ObjectLostError,
    OwnerDiedError,
    RayTaskError,
    TaskUnschedulableError,
    WorkerCrashedError,
)
from raylite.testing.loop import SimLoop
from raylite.testing.node import KILLED, SimDriver, SimNode, TaskContext
from raylite.testing.sim import World

LARGE = 120 * 1024  # bytes: more than travels inside a message
WITHIN = 300.0  # virtual seconds for all drivers together


class Wrong(AssertionError):
    """An invariant does not hold."""


class Planned(Exception):
    """What a task raises because its script says so."""


# ---- values --------------------------------------------------------------------------------------


class Block:
    """Many bytes that follow from a number, read without a copy."""

    def __init__(self, number: int, data: memoryview | bytes) -> None:
        self.number, self.data = number, memoryview(data)

    @classmethod
    def of(cls, number: int) -> "Block":
        return cls(number, number.to_bytes(8, "little") * (LARGE // 8))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return Block, (self.number, PickleBuffer(self.data))

    def check(self) -> None:
        if bytes(self.data) != self.number.to_bytes(8, "little") * (LARGE // 8):
            raise Wrong(f"the bytes of block {self.number} changed under a live view")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a task returns."""

    label: int
    digest: int
    refs: tuple["ObjectRef[Any]", ...] = ()
    block: Block | None = None


# ---- scripts -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Script:
    """What one task does; `label` is its name in the ledger."""

    label: int
    seconds: float = 0.0
    large: bool = False
    puts: bool = False  # it returns a reference to what it put
    children: tuple["Script", ...] = ()
    manner: str = "get"  # what becomes of children: get, chain, return, drop
    crashes: int = 0  # the attempts that end their worker
    raises: bool = False
    retries: int = 3
    keeps: bool = False  # its worker goes on holding the references that it was given
    recalls: bool = False  # it reads what its worker still holds, and lets it go
    sets: str = ""
    awaits: str = ""

    def options(self) -> dict[str, Any]:
        return {"max_retries": self.retries}


@dataclass(frozen=True, slots=True)
class Expected:
    """What a reference stands for: the task's script and what it was given."""

    script: Script
    inputs: tuple["Expected", ...] = ()
    parent: "Expected | None" = None  # whose worker owns it, if no driver does

    @property
    def digest(self) -> int:
        return digest_of(self.script, [each.digest for each in self.inputs])

    def closure(self) -> "Iterator[Script]":
        """All the scripts on which the value depends."""
        yield from _scripts(self.script)
        for each in self.inputs:
            yield from each.closure()
        if self.parent is not None:
            yield self.parent.script


def _scripts(script: Script) -> Iterator[Script]:
    yield script
    for child in script.children:
        yield from _scripts(child)


def digest_of(script: Script, inputs: list[int]) -> int:
    """The digest of a task's answer, as it must be."""
    known: list[int] = []
    for child in script.children:
        if script.manner == "get":
            known.append(digest_of(child, []))
        elif script.manner == "chain":
            known = [digest_of(child, known)]
    return zlib.crc32(repr((script.label, inputs, known)).encode())


def perform(task: TaskContext, script: Script, *inputs: Any) -> Awaitable[Answer]:
    """The body of every task."""
    return _perform(task, script, *inputs)


async def _perform(task: TaskContext, script: Script, *inputs: Any) -> Answer:
    ledger = current()
    attempt = ledger.begin(task, script)
    answers: list[Answer] = []
    for each in inputs:
        if isinstance(each, list) and script.keeps:
            ledger.kept.setdefault(task.worker, []).extend(each)
        answers += await task.get(each) if isinstance(each, list) else [each]
    if script.recalls:
        await _recall(task, ledger)
    if script.seconds:
        await task.sleep(script.seconds)
    if task.attempt < script.crashes:
        await task.crash()
    if script.awaits:
        await ledger.flag(script.awaits).wait()
    if script.sets:
        ledger.flag(script.sets).set()
    known, refs = await _raise_children(task, script)
    if script.puts:
        stored = Answer(script.label, script.label, (), Block.of(script.label))
        refs = (*refs, await task.put(stored))
        del stored
    for answer in answers:
        if answer.block is not None:
            answer.block.check()
    ledger.end(attempt, script)
    if script.raises:
        raise Planned(script.label)
    digest = zlib.crc32(repr((script.label, [answer.digest for answer in answers], known)).encode())
    return Answer(script.label, digest, refs, Block.of(digest) if script.large else None)


async def _recall(task: TaskContext, ledger: "Ledger") -> None:
    """A reference held beyond the task that it was given to still has its value."""
    for ref in ledger.kept.pop(task.worker, []):
        try:
            (answer,) = await task.get([ref])
        except (Planned, WorkerCrashedError, OwnerDiedError, TaskUnschedulableError):
            continue  # whether it should have had a value is for its driver to judge
        except ObjectLostError as error:
            ledger.wrong(f"a kept reference was lost: {error!r}")
        else:
            if answer.block is not None:
                answer.block.check()


async def _raise_children(
    task: TaskContext, script: Script
) -> tuple[list[int], tuple["ObjectRef[Any]", ...]]:
    known: list[int] = []
    refs: list[ObjectRef[Any]] = []
    for child in script.children:
        given = refs[-1:] if script.manner == "chain" else []
        refs.append(task.submit(perform, child, *given, **child.options()))
    if script.manner == "get":
        known = [answer.digest for answer in await task.get(refs)]
    elif script.manner == "chain":
        known = [answer.digest for answer in await task.get(refs[-1:])]
    return known, tuple(refs) if script.manner == "return" else ()


# ---- the ledger ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Attempt:
    """One run of a task's body."""

    label: int
    task: bytes
    number: int
    retries: int
    worker: int
    began: float
    ended: float | None = None


class Ledger:
    """What truly happened, told by the bodies and not by the cluster."""

    def __init__(self, node: SimNode) -> None:
        self.node = node
        self.attempts: list[Attempt] = []
        self.of_task: dict[bytes, list[Attempt]] = {}
        self.of_label: dict[int, list[Attempt]] = {}
        self._flags: dict[str, asyncio.Event] = {}
        self.kept: dict[int, list[ObjectRef[Any]]] = {}  # by worker
        self.on_event: Callable[[int], None] = lambda worker: None
        self.on_put: Callable[[int], None] = lambda worker: None

    def begin(self, task: TaskContext, script: Script) -> Attempt:
        at = asyncio.get_running_loop().time()
        attempt = Attempt(script.label, task.id, task.attempt, script.retries, task.worker, at)
        earlier = self.of_task.setdefault(task.id, [])
        if any(each.number == task.attempt for each in earlier):
            self.wrong(f"attempt {task.attempt} of {script.label} began twice")
        if task.attempt > script.retries:
            self.wrong(f"attempt {task.attempt} of {script.label}, with {script.retries} retries")
        for each in earlier:
            if not self.is_lost(each):
                self.wrong(f"{script.label} runs again, and worker {each.worker} lives: {each}")
        earlier.append(attempt)
        self.attempts.append(attempt)
        self.of_label.setdefault(script.label, []).append(attempt)
        self.on_event(task.worker)
        return attempt

    def end(self, attempt: Attempt, script: Script) -> None:
        attempt.ended = asyncio.get_running_loop().time()
        self.on_event(attempt.worker)
        if script.puts:
            self.on_put(attempt.worker)

    def flag(self, name: str) -> asyncio.Event:
        return self._flags.setdefault(name, asyncio.Event())

    def is_lost(self, attempt: Attempt) -> bool:
        """Whether the worker of an attempt died a violent death."""
        return self.node.workers.deaths.get(attempt.worker, "exit code 0") != "exit code 0"

    def is_exhausted(self, script: Script) -> bool:
        """Whether all attempts that some task with this script may have were lost."""
        by_task: dict[bytes, int] = {}
        for attempt in self.of_label.get(script.label, ()):
            if self.is_lost(attempt):
                by_task[attempt.task] = by_task.get(attempt.task, 0) + 1
        return any(lost > script.retries for lost in by_task.values())

    def is_owner_dead(self, script: Script) -> bool:
        """Whether a worker died that may have owned what this script's answer refers to."""
        if not script.puts and script.manner != "return":
            return False
        return any(self.is_lost(attempt) for attempt in self.of_label.get(script.label, ()))

    def judge(self, expected: Expected, error: BaseException) -> None:
        """Accept an error only if what it claims did happen."""
        scripts = list(expected.closure())
        if isinstance(error, WorkerCrashedError):
            allowed = any(self.is_exhausted(each) for each in scripts)
        elif isinstance(error, Planned):
            allowed = any(each.raises for each in scripts)
        elif isinstance(error, ObjectLostError):
            allowed = any(self.is_owner_dead(each) for each in scripts)
        elif isinstance(error, TaskUnschedulableError):
            allowed = self.node.workers.failed_starts >= 3
        else:
            allowed = False
        if not allowed:
            cause = error.__cause__ if isinstance(error, RayTaskError) else None
            self.wrong(f"{expected.script.label} failed, and should not: {error!r} {cause!r}")

    def wrong(self, message: str) -> None:
        error = Wrong(message)
        self.node.fail(error)
        raise error


_current: list[Ledger] = []


def current() -> Ledger:
    return _current[-1]


# ---- drivers -------------------------------------------------------------------------------------


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


class Program:
    """One driver's program: what it submits and what it makes of the results."""

    def __init__(self, plan: Plan, number: int, driver: SimDriver, ledger: Ledger) -> None:
        self.driver = driver
        self._ledger = ledger
        self._draw = random.Random(f"program {number} of {plan.seed}")
        self._plan = plan
        self._labels = number * 1000
        self._held: list[tuple[ObjectRef[Any], Expected]] = []
        self._read: list[tuple[ObjectRef[Any], Expected]] = []  # to be read again
        self.seconds = 0.0
        self.is_done = False
        self._is_flag_used = number > 0 or plan.cpus < 2

    async def run(self) -> None:
        draw = self._draw
        for _ in range(draw.randint(2, 5)):
            action = draw.choice(
                (self._submit, self._submit, self._submit, self._fan, self._put, self._get,
                 self._drop, self._rest, self._outlive, self._wait_for_later)
            )  # fmt: skip
            await action()
        while self._held:
            await self._check(*self._held.pop(draw.randrange(len(self._held))))
            if self._read:
                await self._check_put(*self._read.pop(0), again=False)
        self._read.clear()
        self.is_done = True

    async def _submit(self) -> None:
        self._call(self._script(2), self._inputs(2))

    async def _fan(self) -> None:
        """Many short tasks, all given the same, and one that is given all of theirs."""
        shared = self._inputs(1)
        seconds = self._draw.choice((0.0, 0.001, 0.02))
        fan = [
            self._call(Script(self._label(), seconds, large=self._chance(0.1)), shared)
            for _ in range(self._draw.randint(2, 6))
        ]
        if self._chance(0.5):
            self._call(Script(self._label(), retries=5), fan)

    async def _put(self) -> None:
        script = Script(self._label(), large=self._chance(0.5))
        expected = Expected(script)
        block = Block.of(expected.digest) if script.large else None
        answer = Answer(script.label, expected.digest, (), block)
        self._held.append((await self.driver.put(answer), expected))

    async def _get(self) -> None:
        if self._held:
            await self._check(*self._draw.choice(self._held))

    async def _drop(self) -> None:
        if self._held:
            self._held.pop(self._draw.randrange(len(self._held)))

    async def _rest(self) -> None:
        await asyncio.sleep(self._draw.choice((0.001, 0.05, 0.05, 0.3, 1.2)))

    async def _outlive(self) -> None:
        """Read what a worker owns, have its room taken by others, and read it again."""
        for _ in range(2):
            self._call(Script(self._label(), puts=True), [])
            await self._check(*self._held.pop())
        await asyncio.sleep(0.1)
        self._call(Script(self._label(), large=True), [])
        await self._check(*self._held[-1])
        while self._read:
            await self._check_put(*self._read.pop(), again=False)

    async def _wait_for_later(self) -> None:
        """A task that holds its worker until a later one has run; only one at a time."""
        if self._is_flag_used:
            return
        self._is_flag_used = True
        for _ in range(2):
            self._call(Script(self._label(), 0.0001), [])
        await self._check(*self._held[-1])
        self._call(Script(self._label(), awaits="flag", retries=50), [])
        for _ in range(3):
            self._call(Script(self._label(), 0.0001, sets="flag", retries=50), [])

    def _call(
        self, script: Script, inputs: list[tuple[ObjectRef[Any], Expected]]
    ) -> tuple[ObjectRef[Any], Expected]:
        given: list[Any] = [ref for ref, _ in inputs]
        if given and self._chance(0.3):
            given = [given]  # inside a list they arrive as references
        expected = Expected(script, tuple(each for _, each in inputs))
        ref = self.driver.submit(perform, script, *given, **script.options())
        self._held.append((ref, expected))
        return self._held[-1]

    async def _check(self, ref: ObjectRef[Any], expected: Expected) -> None:
        try:
            (answer,) = await self.driver.get([ref])
        except Exception as error:
            self._ledger.judge(expected, error)
            error.__traceback__ = None
            return
        if (answer.label, answer.digest) != (expected.script.label, expected.digest):
            self._ledger.wrong(f"{expected.script.label} gave {answer}, not {expected.digest}")
        if answer.block is not None:
            answer.block.check()
        children = expected.script.children if expected.script.manner == "return" else ()
        for inner, child in zip(answer.refs, children, strict=False):
            await self._check(inner, Expected(child, (), expected))
        if expected.script.puts:
            await self._check_put(answer.refs[-1], expected)

    async def _check_put(
        self, ref: ObjectRef[Any], expected: Expected, *, again: bool = True
    ) -> None:
        try:
            (stored,) = await self.driver.get([ref])
        except Exception as error:
            self._ledger.judge(expected, error)
            error.__traceback__ = None
            return
        if stored.digest != expected.script.label:
            self._ledger.wrong(f"what {expected.script.label} put has become {stored}")
        stored.block.check()
        if again and len(self._read) < 10:
            self._read.append((ref, expected))

    # ---- drawing -------------------------------------------------------------------------

    def _script(self, depth: int) -> Script:
        draw = self._draw
        is_faulty = "bodies" in self._plan.faults
        count = draw.choice((0, 1, 2, 3)) if depth and self._chance(0.4) else 0
        children = tuple(self._script(depth - 1) for _ in range(count))
        seconds = draw.choice((0.0, 0.0, 0.001, 0.01, 0.1, 0.4))
        self.seconds += seconds
        return Script(
            self._label(),
            seconds,
            large=self._chance(0.2),
            puts=self._chance(0.2),
            children=children,
            manner=draw.choice(("get", "get", "chain", "return", "drop")),
            crashes=draw.choice((1, 2)) if is_faulty and self._chance(0.1) else 0,
            raises=is_faulty and self._chance(0.08),
            retries=draw.choice((0, 1, 3, 3)),
            keeps=self._chance(0.2),
            recalls=self._chance(0.2),
        )

    def _inputs(self, most: int) -> list[tuple[ObjectRef[Any], Expected]]:
        count = min(len(self._held), self._draw.randint(0, most))
        return self._draw.sample(self._held, count)

    def _label(self) -> int:
        self._labels += 1
        return self._labels

    def _chance(self, likely: float) -> bool:
        return self._draw.random() < likely


# ---- faults --------------------------------------------------------------------------------------


class Faults:
    """Draws what goes wrong, and when."""

    def __init__(self, plan: Plan, node: SimNode) -> None:
        self._node, self._plan = node, plan
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

    def happened(self, worker: int) -> None:
        """A task has begun or is about to end: the moment when faults are most interesting."""
        kinds = [name for name in self._plan.faults if name in ("kill worker", "reset", "cut")]
        loop = asyncio.get_running_loop()
        if kinds and loop.time() < self._plan.until and self._draw.random() < 0.06:
            delay = self._draw.choice((0.0, 1.0, 3.0)) * self._draw.random() * self._plan.delay
            loop.call_later(delay, self._strike, self._draw.choice(kinds), f"worker-{worker}")

    def put(self, worker: int) -> None:
        """A worker is about to own what others will read: it may die between two readings."""
        if "kill worker" in self._plan.faults and self._draw.random() < 0.5:
            delay = self._draw.choice((0.01, 0.1)) * self._draw.random()
            loop = asyncio.get_running_loop()
            loop.call_later(delay, self._strike, "kill worker", f"worker-{worker}")

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


def simulate(seed: int) -> Outcome:
    """Run a seed. Raises `Wrong`, or whatever else went wrong, with the seed in a note."""
    loop = SimLoop()
    unhandled: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda loop, context: unhandled.append(context))
    try:
        outcome = loop.run(_simulate(Plan.of(seed)), within=WITHIN)
        if unhandled:
            raise Wrong(f"not handled: {unhandled[0]}") from unhandled[0].get("exception")
    except BaseException as error:
        error.add_note(f"seed {seed}: python -m tests.sim {seed}")
        raise
    outcome.trace = loop.trace
    return outcome


async def _simulate(plan: Plan) -> Outcome:
    loop = asyncio.get_running_loop()
    world = World(plan.seed, delay=plan.delay)
    node = SimNode(world, cpus=plan.cpus, start_failures=plan.start_failures)
    node.workers.early_deaths = plan.early_deaths
    ledger = Ledger(node)
    faults = Faults(plan, node)
    ledger.on_event, ledger.on_put = faults.happened, faults.put
    _current.append(ledger)
    try:
        await node.start()
        programs = [
            Program(plan, number, await node.driver(f"driver-{number}"), ledger)
            for number in range(3)
        ]
        background = [
            loop.create_task(faults.run(), name="faults"),
            loop.create_task(_check_often(node), name="checks"),
        ]
        await _all_or_failure(node, [_run_program(each, node) for each in programs])
        finished = loop.time()
        if not plan.faults and not plan.start_failures and not plan.early_deaths:
            most = sum(each.seconds for each in programs) + 4.0
            if finished > most:
                raise Wrong(f"took {finished} seconds for at most {most} of work, without a fault")
        for task in background:
            task.cancel()
        await _all_or_failure(node, [_settle(node, ledger)])
        await node.stop()
        return Outcome("", finished, len(ledger.attempts), faults.log, ledger)
    finally:
        _current.remove(ledger)


async def _run_program(program: Program, node: SimNode) -> None:
    """Run a program until it ends, or its driver does."""
    work = asyncio.get_running_loop().create_task(program.run(), name=program.driver.name)
    program.driver.on_kill = work.cancel
    await asyncio.wait([work])
    if not work.cancelled():
        work.result()
    elif not program.driver.is_dead:
        raise Wrong("a program was cancelled, and its driver lives")


async def _all_or_failure(node: SimNode, works: list[Any]) -> None:
    """Run these; what never should happen ends them."""
    tasks = [asyncio.get_running_loop().create_task(work) for work in works]
    pending: list[asyncio.Future[Any]] = list(tasks)
    while pending:
        await asyncio.wait([*pending, node.failed], return_when=asyncio.FIRST_COMPLETED)
        for task in [node.failed, *tasks]:
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
            process.core.drain()  # the ends of small values wait until their process does something
        if not (found := list(_left(node))):
            return
        if loop.time() > deadline:
            raise Wrong("still there: " + "; ".join(found))
        await asyncio.sleep(0.5)


def _left(node: SimNode) -> Iterator[str]:
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
    known = {process.name for process in node.processes()}
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
