"""`SimNode`: a whole node in virtual time: raylet, store, workers and drivers, which can die.

A node without a name is alone with its GCS; for others see `raylite.testing.simcluster`. All of it is the shipping code, but for what the operating system does: workers are started and
killed by `SimWorkers`, and their tasks are coroutines. A task's function, marked `body`, returns an
awaitable and is given a `TaskContext`, through which it sleeps, submits, gets and crashes.

A killed process is cut off at once and its coroutines are cancelled: what they do while they
unwind nobody hears, so it is as if they had not.

This module is longer than most because a node, its processes and what runs in them are one idea.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from queue import Empty
from typing import Any, TypeVar

from raylite._kernel.alarm import Alarm
from raylite._kernel.arena import HeapArena
from raylite._kernel.host import Host
from raylite._kernel.link import LinkConfig
from raylite._kernel.seams import now
from raylite._machines.pulse import EndWorkers, NodeLost, Pulse
from raylite._remote import RemoteFunction
from raylite._runtime import context
from raylite._runtime.attach import Attachment, attach_driver, attach_worker
from raylite._runtime.components import Raylet, build_gcs, build_raylet
from raylite._runtime.context import Place
from raylite._services.raylet.pool import OutputListener, SourceListener
from raylite._services.worker.copies import GET, Bringing
from raylite._services.worker.core import Core
from raylite._services.worker.coroutines import AsyncRunner, Stage, Work
from raylite._services.worker.execute import Job, QueueExecutor
from raylite._services.worker.objects import Entry, ObjectRef, Views
from raylite._services.worker.producer import Gate
from raylite._services.worker.runner import (
    BadArgument,
    arena_key,
    is_retried,
    pack_error,
)
from raylite._services.worker.running import RunningTask
from raylite._services.worker.streams import NONE
from raylite._types import board
from raylite._types.marks import mark_of_node
from raylite._wire import hot, pickling
from raylite._wire.hot import Value
from raylite.exceptions import LinkError, RayError
from raylite.testing.sim import SimNetwork, World

T = TypeVar("T")

GCS = "gcs"
STORE = 4 * 1024 * 1024
KILLED = "killed by SIGKILL (9)"
STOOD_STILL = "its raylet had stood still"
LINKS = LinkConfig(ping_after=1.0, silence=2.0, session_timeout=8.0, connect_timeout=1.0)


class SimNode:
    """One node and its drivers.

    Args:
        world: Where its processes live. Their hosts are `raylet`, `worker-<n>`, and what drivers
            are named; those of a node with a name are `name/raylet` and so on.
        name: The node's, which is that of its machine, or ends in a full stop and which life it is.
        cpus: CPUs that tasks may occupy together.
        store: Bytes for large objects.
        start_failures: How likely it is that a worker fails to start.
        resources: What it has besides CPUs.
        links: The times of its processes' links.
        fail: Told of what never should happen, if somebody else collects that.
    """

    def __init__(
        self,
        world: World,
        name: str = "",
        *,
        cpus: int = 2,
        store: int = STORE,
        start_failures: float = 0.0,
        resources: Mapping[str, float] | None = None,
        links: LinkConfig = LINKS,
        fail: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.world = world
        self.name = name
        self.cpus = cpus
        self.arena: HeapArena = HeapArena(store + board.SIZE)
        self.workers: SimWorkers = SimWorkers(self, start_failures)
        self.drivers: dict[str, SimDriver] = {}
        self.raylet: Raylet
        self.id: bytes = world.random(f"node {name}").randbytes(28) if name else b""
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_dead: bool = False
        self._is_head = True
        self.on_end: Callable[[BaseException], None] = self.fail  # the raylet has ended by itself
        self._resources = resources or {}
        self._links = links
        self._told = fail
        self._running: asyncio.Task[None] | None = None
        self._network: SimNetwork | None = None
        self._gcs: tuple[Host, asyncio.Task[None]] | None = None
        self._ending: dict[asyncio.Future[Any], None] = {}

    async def start(self, *, is_head: bool = True) -> None:
        """Run the raylet, and a GCS if the node is alone."""
        self._is_head = is_head
        if not self.name:
            with self.world.at(GCS):
                gcs = self.network(GCS)
                await gcs.listen(GCS)
                host = build_gcs(gcs)
                self._gcs = host, self._watched(host, lambda: False)
        with self.world.at(self.host("raylet")):
            network = self._network = self.network(self.host("raylet"))
            await network.listen(self.address("raylet"))
            self.raylet = build_raylet(
                network,
                GCS,
                self.workers,
                self.arena,
                num_cpus=self.cpus,
                resources=self._resources,
                labels={},
                is_head=is_head,
                node_id=self.id,
                address=network.address,
            )
            self._running = self.raylet.host.start("raylet")
        self._running.add_done_callback(self._raylet_ended)

    async def driver(self, name: str) -> "SimDriver":
        """Attach a driver; it is a host of this name."""
        with self.world.at(self.host(name)):
            network = self.network(self.host(name))
            await network.listen(self.address(name))
            id = self.world.random(f"{network.name}/id").randbytes(28)
            attachment = await attach_driver(
                network,
                self.address("raylet"),
                GCS,
                self.arena,
                id,
                cpus=self.cpus,
                entrypoint=name,
                node_id=self.raylet.node_id,
                config=hot.JobConfig(),
                wake=asyncio.get_running_loop().call_soon,
            )
            driver = self.drivers[network.name] = SimDriver(self, network, attachment)
        return driver

    async def stop(self) -> None:
        """End everything that is left, as the end of a node does."""
        for driver in list(self.drivers.values()):
            self.drop(driver)
        hosts = [self._gcs] if self._gcs is not None else []
        if self._running is not None and not self.is_dead:
            hosts.append((self.raylet.host, self._running))
        for host, _ in hosts:
            host.stop()
        if hosts:
            await asyncio.wait([task for _, task in hosts])
        self.workers.close()
        await self.buried()
        self.arena.close()

    def kill(self, linger: float = 0.0) -> None:
        """End the raylet without a word, and with it its workers: the fork server sees to that."""
        if not self.is_dead and self._running is not None:
            self.is_dead = True
            self.world.kill(self.address("raylet"), linger=linger)
            self._running.cancel()
            self.see_off(self._running)
            self.workers.close()
            self._dismiss("its node ended")

    def lost(self) -> None:
        """The raylet stands still, and the cluster waits for it no more; a head it would take again."""
        if not self._is_head:
            self._dismiss("its raylet stands still")

    def _dismiss(self, reason: str) -> None:
        """Tell the drivers, which stand at the door, that there is no node any more."""
        for driver in self.drivers.values():
            with self.world.at(driver.name):
                link = driver.core.raylet_link
                asyncio.get_running_loop().call_later(0.01, link.confirm_dead, reason)

    async def buried(self) -> None:
        """Wait until the tasks of all that died have ended."""
        while self._ending:
            await asyncio.wait(list(self._ending))

    def network(self, host: str) -> SimNetwork:
        return SimNetwork(self.world, host, self._links)

    def host(self, process: str) -> str:
        return f"{self.name}/{process}" if self.name else process

    def address(self, process: str) -> str:
        host = self.host(process)
        return f"{host};{mark_of_node(self.id)}=" if self.id else host

    def processes(self) -> "list[SimProcess]":
        """The drivers and workers that are attached and live."""
        workers = [w.process for w in self.workers.all() if w.process is not None]
        return [*self.drivers.values(), *workers]

    def death_of(self, worker: str) -> str | None:
        """Return why a worker ended, by its host; None if it lives."""
        return self.workers.deaths.get(worker)

    @property
    def failed_starts(self) -> int:
        """How many workers did not start."""
        return self.workers.failed_starts

    def drop(self, process: "SimProcess", linger: float = 0.0) -> None:
        """Kill a process, as the system sees it: nobody is told."""
        if not process.is_dead:
            process.is_dead = True
            process.core.close()
            process.on_kill()
            self.drivers.pop(process.name, None)
            self.world.kill(process.core.network.address, linger=linger)
            process.attachment.running.cancel()
            self.see_off(process.attachment.running)
            if isinstance(process, SimDriver) and not self.is_dead:
                with self.world.at(self.host("raylet")):  # the system tells it
                    asyncio.get_running_loop().call_later(0.01, self._driver_ended, process.core.id)

    def _driver_ended(self, id: bytes) -> None:
        for member in self.raylet.pool.drivers():
            if member.id == id and not self.is_dead:
                self.raylet.pool.driver_ended(member)

    def see_off(self, task: "asyncio.Future[Any]") -> None:
        """Let a dead process's task end; what it does meanwhile is nobody's business."""
        self._ending[task] = None
        task.add_done_callback(self._seen_off)

    def check(self) -> None:
        """Assert what must hold at every moment."""
        self.raylet.leases.leases.check()
        self.raylet.objects.memory.check()
        self.raylet.pool.pool.check()
        self.raylet.copies.copies.check()
        self.raylet.transfers.pulls.check()
        for process in self.processes():
            process.core.submitter.check()

    def fail(self, error: BaseException) -> None:
        """Something happened that never should: the simulation ends with it."""
        if self._told is not None:
            self._told(error)
        elif not self.failed.done():
            self.failed.set_exception(error)

    def watch(self, task: "asyncio.Task[None]", is_dead: Callable[[], bool]) -> None:
        """Fail the simulation if a live process's services crash."""

        def ended(task: "asyncio.Task[None]") -> None:
            if not task.cancelled() and (error := task.exception()) is not None and not is_dead():
                self.fail(error)

        task.add_done_callback(ended)

    def _watched(self, host: Host, is_dead: Callable[[], bool]) -> "asyncio.Task[None]":
        task = host.start("host")
        self.watch(task, is_dead)
        return task

    def _raylet_ended(self, task: "asyncio.Task[None]") -> None:
        """A raylet that ends by itself takes its workers with it."""
        if not task.cancelled() and (error := task.exception()) is not None and not self.is_dead:
            self.kill()
            self.on_end(error)

    def _seen_off(self, task: "asyncio.Future[Any]") -> None:
        self._ending.pop(task, None)
        if not task.cancelled():
            task.exception()


class SimProcess:
    """A driver or a worker, attached to its node."""

    def __init__(self, node: SimNode, network: SimNetwork, attachment: Attachment) -> None:
        self.node = node
        self.name: str = network.name
        self.attachment = attachment
        self.core: Core = attachment.core
        self.place: Place = Place(self.core, attachment.node_id)
        self.is_dead = False
        self.on_kill: Callable[[], object] = _nothing
        self._functions: dict[tuple[Any, ...], RemoteFunction[Callable[..., Any], Any]] = {}
        node.watch(attachment.running, lambda: self.is_dead)

    def submit(self, body: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Submit a task; returns what ``.remote()`` returns."""
        key = body, *options.items()
        function = self._functions.get(key)
        if function is None:
            function = self._functions[key] = RemoteFunction(body, options)
        with context.at(self.place):
            return function._submit(self.place, args, {})

    async def put(self, value: Any) -> ObjectRef[Any]:
        """Store a value."""
        core, pickled = self.core, pickling.dumps(value)
        if pickled.size <= hot.INLINE_LIMIT:
            return core.put_pickled(pickled)
        id = core.new_object_id()
        room = await core.writing.allocate(id, core.id, pickled.size)
        return core.keep(id, core.writing.write(id, room, pickled), pickled)

    async def get(self, refs: Sequence[ObjectRef[Any]], *, is_task: bool = False) -> list[Any]:
        """Wait for values and return them, or raise the first error."""
        core = self.core
        entries = [ref._entry for ref in refs]
        missing = list(dict.fromkeys(entry for entry in entries if entry.value is None))
        if missing and not any(entry.is_error for entry in entries):
            waiter = _BlockedTask(len(missing))
            core.begin_wait(missing, waiter, is_task=is_task)
            if not is_task:
                core.awaits(waiter.future)
            try:
                await waiter.future
            finally:
                core.end_wait(missing, waiter, is_task=is_task)
        with context.at(self.place):
            core.raise_first(entries)
        away = [e for e in entries if e.value is not None and core.copies.is_away(e.value)]
        views = await self._bring(list(dict.fromkeys(away)), is_task=is_task)
        return [self.load(entry, views.get(entry)) for entry in entries]

    async def _bring(self, entries: list[Entry], *, is_task: bool) -> Views:
        """Have objects brought to this node, as `Core.get` does for a thread."""
        if not entries:
            return {}
        core = self.core
        bringing = core.copies.bring(entries, GET)
        if is_task and core.on_block is not None:
            core.on_block()
        try:
            return await _wrapped(bringing)
        finally:
            if is_task and core.on_unblock is not None:
                core.on_unblock()

    def load(self, entry: Entry, view: memoryview | None = None) -> Any:
        with context.at(self.place):
            return self.core.load(entry) if view is None else pickling.load_value(view)


class SimDriver(SimProcess):
    """A driver: programs for it are written as coroutines of the test."""

    def kill(self, linger: float = 0.0) -> None:
        """End it without a word."""
        self.node.drop(self, linger)

    async def leave(self) -> None:
        """End it as `shutdown` does."""
        self.is_dead = True
        self.core.close()
        try:
            async with asyncio.timeout(1.0):
                await self.attachment.finish()
        except (TimeoutError, RayError):
            pass  # its raylet tells the next GCS that it has gone
        await self.attachment.detach()
        self.node.drivers.pop(self.name, None)


class TaskContext:
    """What a task's body can do."""

    def __init__(
        self, worker: "SimWorker", process: SimProcess, task: RunningTask, overlaps: bool
    ) -> None:
        self._worker = worker
        self._process = process
        self._overlaps = overlaps
        self.id: bytes = task.id
        self.attempt: int = task.attempt
        self.worker: str = worker.name

    @property
    def node(self) -> SimNode:
        return self._process.node

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def submit(self, body: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
        return self._process.submit(body, *args, **options)

    async def put(self, value: Any) -> ObjectRef[Any]:
        return await self._process.put(value)

    async def get(self, refs: Sequence[ObjectRef[Any]]) -> list[Any]:
        return await self._process.get(refs, is_task=not self._overlaps)

    async def crash(self) -> None:
        """End this worker, in the middle of the task."""
        self._worker.kill("exit code 1")
        await asyncio.get_running_loop().create_future()


class SimWorkers:
    """A `WorkerSource`: workers start after a while, or fail to, and die when they are told to."""

    listener: SourceListener
    output: OutputListener

    def __init__(self, node: SimNode, start_failures: float) -> None:
        self._node = node
        self._start_failures = start_failures
        self.early_deaths: float = 0.0  # how likely it is that one dies while it starts
        self._random = node.world.random(node.host("workers"))
        self._workers: dict[int, SimWorker] = {}
        self._last_tasks: dict[int, bytes] = {}
        self._pulse = Pulse()
        self._alarm = Alarm(self._look_after_raylet)
        self.deaths: dict[str, str] = {}  # why those that ended did
        self.failed_starts: int = 0

    def all(self) -> "list[SimWorker]":
        """Those that were started and have not ended, in that order."""
        return [worker for worker in self._workers.values() if not worker.is_ended]

    def start(self, token: int) -> None:
        if self._node.is_dead:
            return
        delay = self._random.uniform(0.002, 0.05)
        if self._random.random() < self._start_failures:
            self.failed_starts += 1
            self._later(delay, self.listener.start_failed, token, "fork: out of memory")
            return
        worker = self._workers[token] = SimWorker(self._node, token, self._random, self)
        worker.start(delay)
        if self._random.random() < self.early_deaths:
            delay += self._random.uniform(0.0, 4.0) * self._node.world.delay
            self._later(delay, worker.kill, KILLED)

    def kill(self, token: int) -> None:
        if (worker := self._workers.get(token)) is not None:
            worker.kill(KILLED)

    def last_task(self, token: int) -> bytes:
        return self._last_tasks.pop(token, b"")

    def flush_output(self) -> None:
        """Nothing is printed."""

    def resume_output(self) -> None: ...

    def runs(self, unheard: float) -> None:
        if self._node.is_dead:
            return
        with self._node.world.at(
            self._node.host("node")
        ):  # that of the fork server, which has its clock
            self._pulse.felt(now(), unheard)
            self._alarm.set(self._pulse.next_wakeup())

    def _look_after_raylet(self) -> None:
        for effect in self._pulse.expire(now()):
            match effect:
                case EndWorkers():
                    for worker in self.all():
                        worker.kill(STOOD_STILL)
                case NodeLost():
                    self._node.lost()
        self._alarm.set(self._pulse.next_wakeup())

    def close(self) -> None:
        self._alarm.cancel()
        for worker in self.all():
            worker.kill(KILLED)

    def end(self, worker: "SimWorker", cause: str, delay: float) -> None:
        """A worker has ended, and the system will notice."""
        self.deaths[worker.name] = cause
        self._later(delay, self._ended, worker, cause)

    def _ended(self, worker: "SimWorker", cause: str) -> None:
        del self._workers[worker.token]
        self._last_tasks[worker.token] = worker.last_task
        if not self._node.is_dead:
            self.listener.ended(worker.token, cause, was_killed=cause == KILLED)

    def _later(self, delay: float, action: Callable[..., object], *args: object) -> None:
        with self._node.world.at(self._node.host("raylet")):
            asyncio.get_running_loop().call_later(delay, action, *args)


class SimWorker:
    """A worker process, from its start to the moment when its raylet knows of its end."""

    def __init__(
        self,
        node: SimNode,
        token: int,
        random: random.Random,
        source: SimWorkers,
    ) -> None:
        self.node = node
        self.token = token
        self.name: str = node.host(f"worker-{token}")
        self.process: SimProcess | None = None
        self.executor: SimExecutor = SimExecutor(asyncio.get_running_loop())
        self.last_task = b""
        self.is_ended: bool = False
        self._random = random
        self._source = source
        self._work: asyncio.Task[None] | None = None
        self._network: SimNetwork | None = None
        self.runner: SimRunner | None = None

    def start(self, delay: float) -> None:
        with self.node.world.at(self.name):
            work = self._run(delay)
            self._work = asyncio.get_running_loop().create_task(work, name=self.name)

    def kill(self, cause: str) -> None:
        """End it at once. The raylet learns of it a little later, and may hear its last words."""
        if self.is_ended:
            return
        self.is_ended = True
        linger = self._random.choice((0.0, 0.001, 0.005))
        if self.process is not None:
            self.node.drop(self.process, linger)
        elif self._network is not None:
            self.node.world.kill(self._network.address, linger=linger)
            with self.node.world.at(self.name):
                closing = asyncio.get_running_loop().create_task(self._network.close())
            self.node.see_off(closing)
        if self._work is not None:
            self._work.cancel()
            self.node.see_off(self._work)
        if self.runner is not None:
            self.runner.abandon()
        self.node.world.thaw(self.name)  # one that had not begun to listen
        later = self._random.choice((0.0, 0.002, 0.02, 0.1)) * self._random.random()
        self._source.end(self, cause, later)

    def interrupt(self) -> None:
        """Cancel what its thread would be doing."""
        if self._work is not None:
            self._work.cancel()

    async def _run(self, delay: float) -> None:
        try:
            await asyncio.sleep(delay)
            await self._attach_and_work()
        except LinkError:
            self.kill("exit code 1")  # its raylet cannot be reached
        except Exception as error:
            if not self.is_ended:
                self.node.fail(error)

    async def _attach_and_work(self) -> None:
        node = self.node
        network = self._network = node.network(self.name)
        await network.listen(node.address(f"worker-{self.token}"))
        attachment = await attach_worker(
            network,
            node.address("raylet"),
            node.arena,
            self._random.randbytes(28),
            self.token,
            self.executor,
            node.cpus,
            wake=asyncio.get_running_loop().call_soon,
        )
        process = self.process = SimProcess(node, network, attachment)
        core = attachment.core
        core.raylet_link.on_end(lambda link: self.kill("exit code 1"))
        runner = self.runner = SimRunner(self, process)
        process.place.runner = runner
        self.executor.strike = runner.strike
        self.executor.die = lambda: self.kill("exit code 1")
        while (job := await self.executor.arrival()) is not None:
            if job.definition.overlaps:
                runner.begin(job)
                continue
            await runner.all_ended()
            await runner.work_off(job)
            self.executor.ended(job)
            del job
            await asyncio.sleep(self._random.choice((0.0, 0.0, 0.0002)))
        self.executor.flush()
        await core.flush()
        self.kill("exit code 0")


class SimExecutor(QueueExecutor):
    """A worker's queue, for a coroutine in the place of a thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._arrived = asyncio.Event()

    def run(self, job: Job) -> None:
        super().run(job)
        self._arrived.set()

    def leave(self) -> None:
        super().leave()
        self._arrived.set()

    async def arrival(self) -> Job | None:
        """Wait for a job; None means: leave."""
        while self._queue.empty():
            self._arrived.clear()
            await self._arrived.wait()
        try:
            return self.next()
        except Empty:  # a worker that is spent runs nothing more
            return await self.arrival()

    def new_gate(self, job: Job) -> Gate:
        return SimGate()


class SimGate:
    """Where a coroutine waits that yields more than its reader takes."""

    def __init__(self) -> None:
        self._is_open = asyncio.Event()

    def open(self) -> None:
        self._is_open.set()

    async def wait(self) -> None:
        await self._is_open.wait()
        self._is_open.clear()


class SimRunner(AsyncRunner):
    """The production runner, for bodies that are awaited. Those that overlap run as in production."""

    def __init__(self, worker: SimWorker, process: SimProcess) -> None:
        self._stored = _Stored(process.core)
        super().__init__(worker.executor, self._stored, self._note, _nothing, _nothing, "127.0.0.1")
        self._worker = worker
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._clock = now
        self._none_runs = asyncio.Event()
        worker.executor.on_arrival = _nothing  # the worker's own coroutine takes what comes
        process.core.on_await = self._awaits

    def begin(self, job: Job) -> None:
        """Run a job beside others."""
        self._none_runs.clear()
        self._begin(job)

    async def all_ended(self) -> None:
        while self._running:
            await self._none_runs.wait()

    def abandon(self) -> None:
        """The worker has ended, and what it ran with it."""
        for work in self._running.values():
            self._process.node.see_off(work.future)
        self._abandon()

    def _note(self, task: bytes) -> None:
        self._worker.last_task = task

    async def _call_soon(self, work: Work, job: Job) -> Any:
        if job.brought is not None:
            await asyncio.wait([_wrapped(job.brought)])
        awaitable = self._awaitable(job, work.running)
        work.stage = Stage.IN_BODY
        return await awaitable

    def _ended(self, id: bytes, work: "asyncio.Task[None]") -> None:
        del self._running[id]
        if not self._running:
            self._none_runs.set()
        if not work.cancelled() and not self._is_leaving and (bug := work.exception()) is not None:
            self._process.node.fail(bug)

    async def work_off(self, job: Job) -> None:
        task = job.task
        name = task.name or job.definition.title
        self._worker.last_task = task.id
        self.current = RunningTask(
            task.id,
            job.definition.job,
            name,
            job.definition.name,
            task.depth,
            task.attempt,
            job.deadline,
        )
        started = now()
        retry = False
        interrupted = hot.Interrupted.NOT
        try:
            values = await self._await(job)
        except (KeyboardInterrupt, asyncio.CancelledError) as error:
            if self._struck is None or self._worker.is_ended:
                raise
            if (running := asyncio.current_task()) is not None:
                running.uncancel()
            interrupted = self._interrupted(error)
            values = (self._error(KeyboardInterrupt(), job, name),)
        except BadArgument as bad:
            values = (pack_error(bad.error),)
        except Exception as error:
            retry = is_retried(task.retry_on, error)
            values = (self._error(error, job, name),)
            if task.stream is not None and not retry:
                self._executor.producer_of(job).add(values[0])
                values = (NONE,)
        self.current = None
        if self._struck is not None:
            self._struck = None
            self._stored.interrupted()
        job.result = hot.Result(
            task.id, task.attempt, now() - started, values, (), retry, interrupted
        )

    def strike(self) -> None:
        """Interrupt the body that is being run, if it was cancelled."""
        current = self.current
        if current is not None and self._struck is None and self._is_cancelled(current):
            self._struck = current
            self._worker.interrupt()

    async def _await(self, job: Job) -> tuple[Value, ...]:
        self._look()
        task = job.task
        assert self.current is not None
        if job.brought is not None:
            await asyncio.wait([_wrapped(job.brought)])
        awaitable = self._awaitable(job, self.current)
        if task.stream is not None:
            await self._stream_to(awaitable, job)
            return (NONE,)
        result = await awaitable
        del awaitable
        results = [result] if task.returns == 1 else list(result)
        await self._stored.make_room(results, task, job.definition.owner)
        if task.returns == 1:
            return (self._pack(result, task, 0, job),)
        return self._pack_each(result, task, job)

    def _awaitable(self, job: Job, running: RunningTask) -> Any:
        with context.at(self._process.place):
            function = self._function(job.definition)
            args, kwargs = self._arguments(job)
            task = TaskContext(self._worker, self._process, running, job.definition.overlaps)
            return function(task, *args, **kwargs)

    async def _stream_to(self, items: AsyncIterator[Any], job: Job) -> None:
        """The runner's `_stream`, for bodies that are asynchronous generators."""
        task, producer = job.task, self._executor.producer_of(job)
        gate = producer.gate
        assert isinstance(gate, SimGate)
        async for item in items:
            if producer.is_wanted:
                index = producer.count + 1
                await self._stored.make_room([item], task, job.definition.owner, index)
                value = self._pack(item, task, index, job)
                handed, job.handed = job.handed, ()
                producer.add(value, handed)
            else:
                producer.count += 1
            while producer.must_wait:
                await gate.wait()
        producer.is_short = producer.count < producer.skip


class _Stored:
    """A worker's values, as the runner wants them. Room for results is got before it asks."""

    task_thread = 0
    on_await: Callable[[asyncio.Future[None]], None] | None = None

    def __init__(self, core: Core) -> None:
        self._core = core
        self.awaited = core.awaited
        self._room: dict[bytes, hot.Allocation] = {}
        self.hold = core.hold
        self.read = core.read
        self.find = core.find
        self.interrupted = core.interrupted

    async def make_room(
        self, results: list[Any], task: hot.Task, owner: bytes, first: int = 0
    ) -> None:
        for index, each in enumerate(results, first):
            size = pickling.dumps(each).size
            if size > hot.INLINE_LIMIT:
                id = arena_key(task, index)
                try:
                    self._room[id] = await self._core.writing.allocate(id, owner, size)
                except BaseException:  # as in `Core.store_result`: nobody will hear of it
                    self._core.writing.discard(id)
                    raise

    async def store_soon(self, id: bytes, owner: bytes, pickled: pickling.Pickled) -> Value:
        room = await self._core.writing.allocate(id, owner, pickled.size)
        return self._core.writing.write(id, room, pickled)

    def pause(self, gate: Gate) -> None:
        raise AssertionError("no thread runs here that could wait")

    def store_result(self, id: bytes, owner: bytes, pickled: pickling.Pickled) -> Value:
        return self._core.writing.write(id, self._room.pop(id), pickled)


class _BlockedTask:
    """A coroutine waits for values, or for one of them that is an error."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.is_woken = False
        self.on_woken: Callable[[], None] | None = None
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_waiting(self) -> bool:
        return not self.future.done()

    def ready(self, entry: Entry) -> None:
        self.count -= 1
        if (self.count == 0 or entry.is_error) and not self.future.done():
            self.is_woken = True
            if self.on_woken is not None:
                self.on_woken()
            self.future.set_result(None)


def _wrapped(bringing: Bringing) -> "asyncio.Future[Views]":
    """Return a future that whoever waits for it may be cancelled at, its error unread."""
    wrapped = asyncio.wrap_future(bringing)
    wrapped.add_done_callback(lambda future: future.cancelled() or future.exception())
    return wrapped


def _nothing(*args: object) -> None: ...
