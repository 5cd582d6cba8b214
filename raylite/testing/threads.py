"""Workers as threads: a node that is up in milliseconds, whose tasks a debugger can step into."""

import asyncio
import ctypes
import secrets
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from raylite._kernel.arena import Arena
from raylite._kernel.memory import MemoryNetwork, Switch
from raylite._runtime import context
from raylite._runtime.attach import Attachment, attach_worker
from raylite._runtime.context import Place
from raylite._services.raylet.pool import OutputListener, SourceListener
from raylite._services.worker.core import Core
from raylite._services.worker.coroutines import AsyncRunner
from raylite._services.worker.execute import Job, QueueExecutor
from raylite._wire import hot
from raylite._wire.hot import Value
from raylite.exceptions import RuntimeEnvSetupError


class ThreadWorkers:
    """A `WorkerSource` whose workers are threads of this process, sharing one loop.

    A thread cannot be killed: `kill` has the worker leave the node at once, and whatever its thread
    still runs comes to nothing.
    """

    listener: SourceListener
    output: OutputListener

    def __init__(
        self,
        switch: Switch,
        raylet_address: str,
        arena: Arena,
        cpus: float,
        namespace: str,
        labels: Mapping[str, str],
        address_of: Callable[[str], str],
    ) -> None:
        self._switch = switch
        self._raylet = raylet_address
        self._arena = arena
        self._cpus = cpus
        self._namespace, self._labels = namespace, labels
        self._address_of = address_of
        self._loop = asyncio.get_running_loop()
        self._workers: dict[int, _ThreadWorker] = {}
        self._starting: dict[asyncio.Task[None], None] = {}
        self._last_tasks: dict[int, bytes] = {}
        self.threads: dict[threading.Thread, None] = {}

    def start(self, token: int) -> None:
        starting = self._loop.create_task(self._start(token), name=f"start worker {token}")
        self._starting[starting] = None
        starting.add_done_callback(lambda task: self._starting.pop(task))

    def kill(self, token: int) -> None:
        if (worker := self._workers.get(token)) is not None:
            worker.executor.leave()
            self._ended(token, "it was killed")

    def _die(self, token: int) -> None:
        """End with a task that was cancelled by force: what its thread still runs comes to nothing."""
        if (worker := self._workers.get(token)) is not None:
            worker.executor.leave()
            self._ended(token, "it was ended with a cancelled task")

    def last_task(self, token: int) -> bytes:
        return self._last_tasks.pop(token, b"")

    def flush_output(self) -> None:
        """Threads print on the program's own output."""

    def resume_output(self) -> None: ...

    def runs(self, unheard: float) -> None:
        """Threads stand still with their raylet: they have one loop."""

    @property
    def networks(self) -> list[MemoryNetwork]:
        """Those of the workers that live."""
        return [worker.network for worker in self._workers.values()]

    async def close(self) -> None:
        for starting in list(self._starting):
            starting.cancel()
        workers, self._workers = list(self._workers.values()), {}
        for worker in workers:
            worker.executor.leave()
            await worker.attachment.detach()
        while self._starting:
            await asyncio.wait(list(self._starting))

    async def _start(self, token: int) -> None:
        network = MemoryNetwork(self._switch)
        await network.listen(self._address_of(f"worker-{token}"))
        executor = QueueExecutor(self._loop)
        id = secrets.token_bytes(28)
        attachment = await attach_worker(
            network, self._raylet, self._arena, id, token, executor, self._cpus
        )
        worker = self._workers[token] = _ThreadWorker(attachment, executor, network)
        place = Place(attachment.core, attachment.node_id)
        place.namespace, place.labels = self._namespace, self._labels
        place.gcs_address = attachment.gcs_address
        runner = ThreadRunner(
            executor, attachment.core, worker.note, _quiet, worker.leave, "127.0.0.1",
            on_config=_refuse_environment, core=attachment.core,
        )  # fmt: skip
        place.runner = runner
        executor.strike = runner.strike
        executor.die = partial(self._die, token)

        def run() -> None:
            context.enter_thread(place)
            try:
                runner.run()
            except SystemExit as error:
                cause = f"exit code {error.code}"
            else:
                cause = "exit code 0"
            try:
                self._loop.call_soon_threadsafe(self._ended, token, cause)
            except RuntimeError:
                pass  # the cluster is gone

        thread = threading.Thread(target=run, name=f"raylite-worker-{token}", daemon=True)
        self.threads[thread] = None
        thread.start()

    def _ended(self, token: int, cause: str) -> None:
        worker = self._workers.pop(token, None)
        if worker is not None:
            self._last_tasks[token] = worker.last_task
            closing = self._loop.create_task(worker.attachment.detach(), name="end worker")
            self._starting[closing] = None
            closing.add_done_callback(lambda task: self._starting.pop(task))
            self.listener.ended(token, cause)


class ThreadRunner(AsyncRunner):
    """A runner whose thread takes no signals: tasks are interrupted by an exception set from outside.

    It is raised when the thread runs Python code next: a blocked `get` or `wait` is woken for it, a
    sleep or a long call of C code is not. The exception is taken back if the task ends before it comes.
    """

    def __init__(self, *args: Any, core: Core, **options: Any) -> None:
        super().__init__(*args, **options)
        self._core = core
        self._is_in_task = False
        self._is_striking = False
        self._lock = threading.Lock()

    def strike(self) -> None:
        """Interrupt the task that is being run, if it was cancelled; called by the loop."""
        self._is_striking = True  # from here on the task's end waits for the lock
        with self._lock:
            current = self.current
            if not self._is_in_task or current is None or not self._is_cancelled(current):
                return
            self._struck = current
            _raise_in(self._core.task_thread, KeyboardInterrupt)
        if self._core.task_waiter is not None:
            self._core.task_waiter.give_up()

    def _call(self, job: Job) -> tuple[Value, ...]:
        self._is_in_task = True
        try:
            return super()._call(job)
        finally:
            self._is_in_task = False
            if self._is_striking:
                self._take_back()

    def _take_back(self) -> None:
        with self._lock:
            _raise_in(self._core.task_thread, None)
        self._is_striking = False


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Have a thread raise this when it runs Python code next; None takes back what has not been."""
    what = ctypes.py_object() if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), what)


class _ThreadWorker:
    def __init__(
        self, attachment: Attachment, executor: QueueExecutor, network: MemoryNetwork
    ) -> None:
        self.attachment = attachment
        self.network = network
        self.executor = executor
        self.last_task = b""

    def note(self, task: bytes) -> None:
        self.last_task = task

    def leave(self, code: int) -> None:
        core = self.attachment.core
        core.run(_flush, self.executor, core.flush)


async def _flush(executor: QueueExecutor, flush: Callable[[], Any]) -> None:
    executor.flush()
    await flush()


def _quiet(name: str) -> None: ...


def _refuse_environment(config: hot.JobConfig) -> None:
    if config.env_vars:
        raise RuntimeEnvSetupError(
            f"A thread has no environment of its own in which to set {', '.join(config.env_vars)}: "
            'a test of this needs LocalCluster(workers="processes")'
        )
