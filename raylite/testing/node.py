"""`SimNode`: a whole node in virtual time: GCS, raylet, store, workers and drivers, which can die.

All of it is the shipping code, but for what the operating system does: workers are started and
killed by `SimWorkers`, and their tasks are coroutines. A task's function, marked `body`, returns an
awaitable and is given a `TaskContext`, through which it sleeps, submits, gets and crashes.

A killed process is cut off at once and its coroutines are cancelled: what they do while they
unwind nobody hears, so it is as if they had not.

This module is longer than most because a node, its processes and what runs in them are one idea.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from raylite._kernel.arena import HeapArena
from raylite._kernel.host import Host
from raylite._kernel.link import LinkConfig
from raylite._kernel.seams import now
from raylite._protocol.gcs import Jobs
from raylite._remote import RemoteFunction
from raylite._runtime import context
from raylite._runtime.attach import Attachment, attach_driver, attach_worker
from raylite._runtime.components import Raylet, build_gcs, build_raylet
from raylite._runtime.context import Place
from raylite._services.raylet.pool import OutputListener, SourceListener
from raylite._services.worker.core import Core
from raylite._services.worker.execute import Job, QueueExecutor
from raylite._services.worker.objects import Entry, ObjectRef
from raylite._services.worker.runner import (
    BadArgument,
    Runner,
    RunningTask,
    arena_key,
    is_retried,
    pack_error,
)
from raylite._types import board
from raylite._wire import hot, pickling
from raylite._wire.hot import Value
from raylite._wire.messages import gcs as gcs_msg
from raylite.testing.sim import SimNetwork, World

T = TypeVar("T")

STORE = 4 * 1024 * 1024
KILLED = "killed by SIGKILL (9)"
LINKS = LinkConfig(ping_after=1.0, silence=2.0, session_timeout=8.0, connect_timeout=1.0)


class SimNode:
    """One node and its drivers.

    Args:
        world: Where its processes live. Their hosts are `gcs`, `raylet`, `worker-<n>`, and what
            drivers are named.
        cpus: CPUs that tasks may occupy together.
        store: Bytes for large objects.
        start_failures: How likely it is that a worker fails to start.
    """

    def __init__(
        self, world: World, *, cpus: int = 2, store: int = STORE, start_failures: float = 0.0
    ) -> None:
        self.world = world
        self.cpus = cpus
        self.arena = HeapArena(store + board.SIZE)
        self.workers = SimWorkers(self, start_failures)
        self.drivers: dict[str, SimDriver] = {}
        self.raylet: Raylet
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hosts: list[tuple[Host, asyncio.Task[None]]] = []
        self._ending: dict[asyncio.Future[Any], None] = {}

    async def start(self) -> None:
        gcs, raylet = self.network("gcs"), self.network("raylet")
        await gcs.listen("gcs")
        await raylet.listen("raylet")
        self._run(build_gcs(gcs))
        self.raylet = build_raylet(
            raylet,
            "gcs",
            self.workers,
            self.arena,
            num_cpus=self.cpus,
            resources={},
            labels={},
            is_head=True,
        )
        self._run(self.raylet.host)

    async def driver(self, name: str) -> "SimDriver":
        """Attach a driver; it is a host of this name."""
        network = self.network(name)
        await network.listen(name)
        id = self.world.random(f"{name}/id").randbytes(28)
        attachment = await attach_driver(
            network,
            "raylet",
            "gcs",
            self.arena,
            id,
            cpus=self.cpus,
            entrypoint=name,
            node_id=self.raylet.node_id,
            config=hot.JobConfig(),
            wake=asyncio.get_running_loop().call_soon,
        )
        driver = self.drivers[name] = SimDriver(self, network, attachment)
        return driver

    async def stop(self) -> None:
        """End everything that is left, as the end of a node does."""
        for driver in list(self.drivers.values()):
            self.drop(driver)
        for host, _ in self._hosts:
            host.stop()
        await asyncio.wait([task for _, task in self._hosts])
        self.workers.close()
        while self._ending:
            await asyncio.wait(list(self._ending))
        self.arena.close()

    def network(self, name: str) -> SimNetwork:
        return SimNetwork(self.world, name, LINKS)

    def processes(self) -> "list[SimProcess]":
        """The drivers and workers that are attached and live."""
        workers = [w.process for w in self.workers.all() if w.process is not None]
        return [*self.drivers.values(), *workers]

    def drop(self, process: "SimProcess", linger: float = 0.0) -> None:
        """Kill a process, as the system sees it: nobody is told."""
        if not process.is_dead:
            process.is_dead = True
            process.core.close()
            process.on_kill()
            self.drivers.pop(process.name, None)
            self.world.kill(process.name, linger=linger)
            process.attachment.running.cancel()
            self.see_off(process.attachment.running)

    def see_off(self, task: "asyncio.Future[Any]") -> None:
        """Let a dead process's task end; what it does meanwhile is nobody's business."""
        self._ending[task] = None
        task.add_done_callback(self._seen_off)

    def check(self) -> None:
        """Assert what must hold at every moment."""
        self.raylet.leases.leases.check()
        self.raylet.objects.memory.check()
        self.raylet.pool.pool.check()
        for process in self.processes():
            process.core.submitter.check()

    def fail(self, error: BaseException) -> None:
        """Something happened that never should: the simulation ends with it."""
        if not self.failed.done():
            self.failed.set_exception(error)

    def watch(self, task: "asyncio.Task[None]", is_dead: Callable[[], bool]) -> None:
        """Fail the simulation if a live process's services crash."""

        def ended(task: "asyncio.Task[None]") -> None:
            if not task.cancelled() and (error := task.exception()) is not None and not is_dead():
                self.fail(error)

        task.add_done_callback(ended)

    def _run(self, host: Host) -> None:
        task = host.start("host")
        self.watch(task, bool)
        self._hosts.append((host, task))

    def _seen_off(self, task: "asyncio.Future[Any]") -> None:
        self._ending.pop(task, None)
        if not task.cancelled():
            task.exception()


class SimProcess:
    """A driver or a worker, attached to its node."""

    def __init__(self, node: SimNode, network: SimNetwork, attachment: Attachment) -> None:
        self.node = node
        self.name = network.name
        self.attachment = attachment
        self.core: Core = attachment.core
        self.place = Place(self.core, attachment.node_id)
        self.is_dead = False
        self.on_kill: Callable[[], object] = _nothing
        self._functions: dict[tuple[Any, ...], RemoteFunction[..., Any]] = {}
        node.watch(attachment.running, lambda: self.is_dead)

    def submit(self, body: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
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
        allocation = await core.allocate(id, core.id, pickled.size)
        return core.keep(id, core.write(core.id, allocation, pickled), pickled)

    async def get(self, refs: Sequence[ObjectRef[Any]], *, is_task: bool = False) -> list[Any]:
        """Wait for values and return them, or raise the first error."""
        core = self.core
        entries = [ref._entry for ref in refs]
        missing = list(dict.fromkeys(entry for entry in entries if entry.value is None))
        if missing and not any(entry.is_error for entry in entries):
            waiter = _BlockedTask(len(missing))
            core.begin_wait(missing, waiter, is_task=is_task)
            try:
                await waiter.future
            finally:
                core.end_wait(missing, waiter, is_task=is_task)
        for entry in entries:
            if entry.is_error:
                self.load(entry)
        return [self.load(entry) for entry in entries]

    def load(self, entry: Entry) -> Any:
        with context.at(self.place):
            return self.core.load(entry)


class SimDriver(SimProcess):
    """A driver: programs for it are written as coroutines of the test."""

    def kill(self, linger: float = 0.0) -> None:
        """End it without a word."""
        self.node.drop(self, linger)

    async def leave(self) -> None:
        """End it as `shutdown` does."""
        self.is_dead = True
        self.core.close()
        await Jobs(self.core.network.connect("gcs")).finish(
            gcs_msg.FinishJob(job_id=self.attachment.job)
        )
        await self.attachment.detach()
        del self.node.drivers[self.name]


class TaskContext:
    """What a task's body can do."""

    def __init__(self, worker: "SimWorker", process: SimProcess, task: RunningTask) -> None:
        self._worker = worker
        self._process = process
        self.id = task.id
        self.attempt = task.attempt
        self.worker = worker.token

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
        return await self._process.get(refs, is_task=True)

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
        self.early_deaths = 0.0  # how likely it is that one dies while it starts
        self._random = node.world.random("workers")
        self._workers: dict[int, SimWorker] = {}
        self._last_tasks: dict[int, bytes] = {}
        self.deaths: dict[int, str] = {}  # why those that ended did
        self.failed_starts = 0

    def all(self) -> "list[SimWorker]":
        """Those that were started and have not ended, in that order."""
        return [worker for worker in self._workers.values() if not worker.is_ended]

    def start(self, token: int) -> None:
        delay = self._random.uniform(0.002, 0.05)
        if self._random.random() < self._start_failures:
            self.failed_starts += 1
            asyncio.get_running_loop().call_later(
                delay, self.listener.start_failed, token, "fork: out of memory"
            )
            return
        worker = self._workers[token] = SimWorker(self._node, token, self._random, self)
        worker.start(delay)
        if self._random.random() < self.early_deaths:
            delay += self._random.uniform(0.0, 4.0) * self._node.world.delay
            asyncio.get_running_loop().call_later(delay, worker.kill, KILLED)

    def kill(self, token: int) -> None:
        if (worker := self._workers.get(token)) is not None:
            worker.kill(KILLED)

    def last_task(self, token: int) -> bytes:
        return self._last_tasks.pop(token, b"")

    def flush_output(self) -> None:
        """Nothing is printed."""

    def resume_output(self) -> None: ...

    def close(self) -> None:
        for worker in self.all():
            worker.kill(KILLED)

    def ended(self, worker: "SimWorker", cause: str) -> None:
        """The system has noticed a worker's end."""
        del self._workers[worker.token]
        self._last_tasks[worker.token] = worker.last_task
        self.listener.ended(worker.token, cause, was_killed=cause == KILLED)


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
        self.name = f"worker-{token}"
        self.process: SimProcess | None = None
        self.executor = SimExecutor(asyncio.get_running_loop())
        self.last_task = b""
        self.is_ended = False
        self._random = random
        self._source = source
        self._work: asyncio.Task[None] | None = None
        self._network: SimNetwork | None = None

    def start(self, delay: float) -> None:
        self._work = asyncio.get_running_loop().create_task(self._run(delay), name=self.name)

    def kill(self, cause: str) -> None:
        """End it at once. The raylet learns of it a little later, and may hear its last words."""
        if self.is_ended:
            return
        self.is_ended = True
        self._source.deaths[self.token] = cause
        linger = self._random.choice((0.0, 0.001, 0.005))
        if self.process is not None:
            self.node.drop(self.process, linger)
        elif self._network is not None:
            self.node.world.kill(self.name, linger=linger)
            closing = asyncio.get_running_loop().create_task(self._network.close())
            self.node.see_off(closing)
        if self._work is not None:
            self._work.cancel()
            self.node.see_off(self._work)
        later = self._random.choice((0.0, 0.002, 0.02, 0.1)) * self._random.random()
        asyncio.get_running_loop().call_later(later, self._source.ended, self, cause)

    async def _run(self, delay: float) -> None:
        try:
            await asyncio.sleep(delay)
            await self._attach_and_work()
        except Exception as error:
            if not self.is_ended:
                self.node.fail(error)

    async def _attach_and_work(self) -> None:
        node = self.node
        network = self._network = node.network(self.name)
        await network.listen(self.name)
        attachment = await attach_worker(
            network,
            "raylet",
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
        runner = SimRunner(self, process)
        process.place.runner = runner
        while (job := await self.executor.arrival()) is not None:
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
        return self.next()


class SimRunner(Runner):
    """The production runner, for bodies that are awaited."""

    def __init__(self, worker: SimWorker, process: SimProcess) -> None:
        self._stored = _Stored(process.core)
        super().__init__(worker.executor, self._stored, _nothing, _nothing, _nothing, "127.0.0.1")
        self._worker = worker
        self._process = process

    async def work_off(self, job: Job) -> None:
        task = job.task
        name = task.name or job.definition.title
        self._worker.last_task = task.id
        self.current = RunningTask(
            task.id, job.definition.job, name, job.definition.name, task.depth, task.attempt
        )
        started = now()
        retry = False
        try:
            values = await self._await(job)
        except BadArgument as bad:
            values = (pack_error(bad.error),)
        except Exception as error:
            retry = is_retried(task.retry_on, error)
            values = (self._error(error, job, name),)
        self.current = None
        job.result = hot.Result(task.id, task.attempt, now() - started, values, (), retry)

    async def _await(self, job: Job) -> tuple[Value, ...]:
        task = job.task
        assert self.current is not None
        with context.at(self._process.place):
            function = self._function(job.definition)
            args, kwargs = pickling.loads(task.arguments)
            if task.inputs:
                args, kwargs = self._place(task, args, kwargs, job)
            awaitable = function(
                TaskContext(self._worker, self._process, self.current), *args, **kwargs
            )
        del args, kwargs
        result = await awaitable
        del awaitable
        await self._stored.make_room(result, task, job.definition.owner)
        if task.returns == 1:
            return (self._pack(result, task, 0, job),)
        return self._pack_each(result, task, job)


class _Stored:
    """A worker's values, as the runner wants them. Room for results is got before it asks."""

    task_thread = 0

    def __init__(self, core: Core) -> None:
        self._core = core
        self._room: dict[bytes, hot.Allocation] = {}
        self.hold = core.hold
        self.read = core.read
        self.find = core.find

    async def make_room(self, result: Any, task: hot.Task, owner: bytes) -> None:
        for index, each in enumerate([result] if task.returns == 1 else list(result)):
            size = pickling.dumps(each).size
            if size > hot.INLINE_LIMIT:
                id = arena_key(task, index)
                self._room[id] = await self._core.allocate(id, owner, size)

    def store_result(self, id: bytes, owner: bytes, pickled: pickling.Pickled) -> Value:
        return self._core.write(owner, self._room.pop(id), pickled)


class _BlockedTask:
    """A coroutine waits for values, or for one of them that is an error."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_waiting(self) -> bool:
        return not self.future.done()

    def ready(self, entry: Entry) -> None:
        self.count -= 1
        if (self.count == 0 or entry.is_error) and not self.future.done():
            self.future.set_result(None)


def _nothing(*args: object) -> None: ...
