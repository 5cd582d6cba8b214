"""Interrupting a worker's tasks: always the cancelled one, never its neighbours, for real threads."""

import asyncio
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from raylite._kernel.threads import LoopThread
from raylite._runtime.striker import STRIKE, Striker
from raylite._services.worker.awaited import Awaited
from raylite._services.worker.execute import Job, QueueExecutor
from raylite._services.worker.runner import Runner
from raylite._wire import hot, pickling
from raylite._wire.hot import Form
from raylite.testing.threads import ThreadRunner

LINK: Any = SimpleNamespace(is_ended=False)
TOGETHER = 4  # jobs in the queue at a time: what is interrupted wrongly is a neighbour


def _spin(number: int, steps: int) -> int:
    for _ in range(steps):
        pass
    return number


def _spin_stubbornly(number: int, steps: int) -> int:
    try:
        return _spin(number, steps)
    except KeyboardInterrupt:
        return number


DEFINITIONS = [
    hot.Definition(
        index, pickling.dumps_function(body, []), f"m.{body.__name__}", b"job!", b"o" * 28, "f"
    )
    for index, body in enumerate((_spin, _spin_stubbornly))
]


class Values:
    """A process without objects."""

    task_thread = 0
    task_waiter = None
    mended = 0
    awaited = Awaited(lambda is_awaiting: None)

    def hold(self, entries: object) -> None: ...

    def find(self, id: bytes) -> None: ...

    def interrupted(self) -> None:
        self.mended += 1


class Owner:
    """Runs jobs on a thread and cancels them at any moment, as an owner and a loop would.

    It plays the Execute service.
    """

    def __init__(self, seed: int, loop: asyncio.AbstractEventLoop) -> None:
        self._draw = random.Random(seed)
        self.executor = QueueExecutor(loop)
        network = SimpleNamespace(departures=SimpleNamespace(hold=lambda: None, flush=lambda: None))
        core: Any = SimpleNamespace(handover=SimpleNamespace(drain=lambda: None), network=network)
        service: Any = self
        self.executor.serve(service, core)
        self.cancelled: set[bytes] = set()
        self.results: dict[bytes, hot.Result] = {}
        self.told: set[bytes] = set()
        self._count = 0
        self._left: set[bytes] = set()
        self._all_ended = asyncio.Event()
        self._begun: dict[bytes, asyncio.Event] = {}
        self._loop = loop

    async def race(self, rounds: int) -> None:
        """Run and cancel so many groups of jobs."""
        try:
            for _ in range(rounds):
                await self._round()
        finally:
            self.executor.leave()

    async def _round(self) -> None:
        draw = self._draw
        jobs = [self._job() for _ in range(TOGETHER)]
        self._left = {job.task.id for job in jobs}
        self._all_ended.clear()
        for job in jobs:
            self.executor.run(job)
        for job in jobs:
            if draw.random() < 0.7:
                await self._begun[job.task.id].wait()
                _spin(0, draw.choice((0, 0, 10, 100, 1000)))
            self._cancel(job.task)
        await self._all_ended.wait()
        self._begun.clear()

    def _job(self) -> Job:
        self._count += 1
        steps = self._draw.choice((0, 1000, 3000, 10000, 20000))
        definition = self._draw.choice(DEFINITIONS)
        arguments = pickling.dumps(((self._count, steps), {})).to_bytes()
        id = self._count.to_bytes(24, "little")
        self._begun[id] = asyncio.Event()
        return Job(hot.Task(id, 0, definition.number, arguments), definition, LINK)

    def _cancel(self, task: hot.Task) -> None:
        if self._draw.random() < 0.2:
            return
        self.cancelled.add(task.id)
        cancel = hot.Cancel(task.id, 0, False, True)
        taken = self.executor.take_back({(task.id, 0)})
        if not taken:
            self.executor.interrupt(cancel)
        for job in taken:
            self._end(job.task.id)

    def note(self, task: bytes) -> None:
        """The runner's board: a task is about to begin."""
        self._loop.call_soon_threadsafe(self._note, task)

    def _note(self, task: bytes) -> None:
        if task in self._begun:
            self._begun[task].set()

    # ---- what the executor calls

    def done(self, jobs: list[Job]) -> None:
        for job in jobs:
            assert job.result is not None
            assert job.task.id not in self.results, "it ended twice"
            self.results[job.task.id] = job.result
            self._end(job.task.id)

    def interrupted(self, cancel: hot.Cancel) -> None:
        self.told.add(cancel.task)

    def _end(self, task: bytes) -> None:
        self._begun[task].set()
        self._left.remove(task)
        if not self._left:
            self._all_ended.set()

    # ---- the verdict

    def judge(self) -> None:
        """Compare what came with what was cancelled."""
        struck = 0
        for id, result in self.results.items():
            (value,) = result.values
            if result.interrupted:
                struck += 1
                assert id in self.cancelled, "it was interrupted, and nobody cancelled it"
                assert id in self.told
            if value.form == Form.ERROR:
                assert result.interrupted, pickling.loads(value.data)
            else:
                assert pickling.load_value(value.data) == int.from_bytes(id, "little")
        withdrawn = len(self.cancelled - self.results.keys())
        assert len(self.results) + withdrawn == self._count
        assert struck, "all cancels came too late or too early"
        assert len(self.executor.interrupts.asked) <= 3 * TOGETHER


@pytest.fixture
def loop_thread() -> Iterator[LoopThread]:
    thread = LoopThread("owner")
    yield thread
    thread.stop()


@pytest.fixture(autouse=True)
def quick_switches() -> Iterator[None]:
    """Let threads take turns every few microseconds, so that they meet anywhere."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def restored_signals() -> Iterator[None]:
    handler, hook = signal.getsignal(STRIKE), sys.unraisablehook
    yield
    signal.signal(STRIKE, handler or signal.SIG_DFL)
    sys.unraisablehook = hook


def _ignore(_: object) -> None: ...


def race(thread: LoopThread, rounds: int, make: Callable[[Owner, Values], Runner]) -> None:
    """Let an owner race with a runner on this thread, or on one of its own."""
    values = Values()

    async def begin() -> Owner:
        return Owner(rounds, asyncio.get_running_loop())

    owner = thread.run(begin())
    runner = make(owner, values)
    racing = asyncio.run_coroutine_threadsafe(owner.race(rounds), thread.loop)
    if isinstance(runner, ThreadRunner):
        worker = threading.Thread(target=runner.run)
        worker.start()
        worker.join()
    else:
        runner.run()
    racing.result(10.0)
    owner.judge()


ROUNDS = [500, pytest.param(25_000, marks=[pytest.mark.fault, pytest.mark.timeout(600)])]


@pytest.mark.usefixtures("restored_signals")
@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_signal_interrupts_the_cancelled_task_alone(loop_thread: LoopThread, rounds: int) -> None:
    def make(owner: Owner, values: Any) -> Runner:
        runner = Runner(owner.executor, values, owner.note, _ignore, _ignore, "127.0.0.1")
        owner.executor.strike = Striker(loop_thread.loop, runner.strikes).strike
        return runner

    race(loop_thread, rounds, make)


@pytest.mark.parametrize("rounds", ROUNDS)
def test_an_exception_set_from_outside_interrupts_the_cancelled_task_alone(
    loop_thread: LoopThread, rounds: int
) -> None:
    def make(owner: Owner, values: Any) -> Runner:
        runner = ThreadRunner(
            owner.executor, values, owner.note, _ignore, _ignore, "127.0.0.1", core=values
        )
        owner.executor.strike = runner.strike
        return runner

    race(loop_thread, rounds, make)
