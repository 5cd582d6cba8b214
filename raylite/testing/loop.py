"""`SimLoop`: an asyncio loop whose clock jumps to the next timer as soon as every task waits.

Thousands of virtual seconds pass in one real one, and the same seed gives the same run: the loop
keeps a hash of every callback it was given and when (`SimLoop.trace`). A program that waits for what
never comes ends with `Hang`, which names every task and where it waits.
"""

import asyncio
import contextvars
import hashlib
import heapq
import math
import selectors
import threading
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, TypeVarTuple

from anyio._backends._asyncio import CancelScope  # what `anyio.CancelScope` makes on asyncio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_FOREVER = 86_000.0  # seconds until a timer that never fires: `sleep_forever` is one at infinity
LOGGED = 1_000  # lines of the trace that are hashed together
STEPS = 2_000_000  # callbacks in one run above which a program is taken to loop without end


@dataclass(slots=True)
class Clock:
    """A machine's clock: where it began, and how fast it goes. `PROCESS` says whose is read.

    Args:
        offset: What it shows when the simulation begins, in seconds.
        rate: Its seconds to one of the simulation's.
    """

    offset: float = 0.0
    rate: float = 1.0

    def shown(self, moment: float) -> float:
        """Return what it shows at a moment of the simulation."""
        return self.offset + moment * self.rate

    def moment(self, shown: float) -> float:
        """Return the first moment at which it shows that much."""
        moment = (shown - self.offset) / self.rate
        while self.shown(moment) < shown:  # or a timer would be early by a rounding, and set again
            moment = math.nextafter(moment, math.inf)
        return moment

    def stood(self, seconds: float) -> None:
        """It has stood still for so many of the simulation's seconds until now."""
        self.offset -= seconds * self.rate


class Process:
    """One of those that a simulation consists of: by whose clock its callbacks run, and whether they do.

    Whatever is begun in a context where `PROCESS` is this one, belongs to it.

    Args:
        clock: Its machine's, if that is not the simulation's.
    """

    __slots__ = ("clock", "parked", "waiting")

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock: Clock | None = clock
        self.waiting: list[asyncio.Handle] = []  # since before it stood still
        self.parked: list[asyncio.Handle] | None = None  # what came since; None while it runs


PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class Hang(Exception):
    """Nothing can happen any more, or not within the time given; the message says who waits."""


class SimTask(asyncio.Task[Any]):
    """A task hashed by the order of its making, so that sets of tasks iterate alike every run."""

    def __init__(
        self,
        work: Coroutine[Any, Any, Any],
        loop: asyncio.AbstractEventLoop,
        number: int,
        options: dict[str, Any],
    ) -> None:
        self._number = number
        super().__init__(work, loop=loop, **options)

    def __hash__(self) -> int:
        return self._number


class SimLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time. Threads cannot wake it, and it refuses to start any.

    Args:
        traced: Keep the hash, which costs a twentieth of a run; else `trace` is empty.
    """

    _ready: deque[asyncio.Handle]  # asyncio's own

    def __init__(self, *, traced: bool = True) -> None:
        self._now = 0.0
        self._traced = traced
        self._log: list[str] = []  # the end of the trace, not hashed yet
        self._digest = hashlib.blake2b(digest_size=16)
        self._steps = 0
        self._limit = float("inf")
        self._tasks_made = 0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_cancelled = 0
        self._frozen: dict[Process, None] = {}
        self._thread = threading.get_ident()
        super().__init__(selectors.SelectSelector())
        self.set_task_factory(self._make_task)  # type: ignore[arg-type] # no generators here

    def time(self) -> float:
        """Return the virtual time in seconds, as the clock of this context shows it."""
        process = PROCESS.get()
        if process is None or process.clock is None:
            return self._now
        return process.clock.shown(self._now)

    @property
    def moment(self) -> float:
        """The virtual time that no clock falsifies."""
        return self._now

    @property
    def trace(self) -> str:
        """A hash over every callback given to the loop so far, with its time."""
        if not self._traced:
            return ""
        self._hash_log()
        return self._digest.hexdigest()

    def run(self, main: Coroutine[Any, Any, T], *, within: float = 3600.0) -> T:
        """Run `main` to its end, cancel what it leaves behind, and close the loop.

        Args:
            main: What to run.
            within: Virtual seconds it may take; periodic timers would otherwise hide a hang.

        Raises:
            Hang: `main` waits for something that never happens.
        """
        self._limit = self._now + within
        asyncio.set_event_loop(self)
        try:
            with _ordered_cancel_scopes():
                task = self.create_task(main, name="main")
                try:
                    return self.run_until_complete(task)
                finally:
                    self._finish()
        finally:
            asyncio.set_event_loop(None)
            self.close()

    def call_soon(
        self,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """Queue a callback, and put it into the trace."""
        self._steps += 1
        if self._traced:
            self._log.append(_name(callback))
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Set a timer, and put it into the trace."""
        process = PROCESS.get()
        if process is not None and process.clock is not None:
            when = process.clock.moment(when)
        self._steps += 1
        if self._traced:
            self._log.append(f"{when!r} {_name(callback)}")
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, self._steps, timer))
        return timer

    def call_soon_threadsafe(
        self,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """Refuse other threads; asyncio itself uses this on the loop's own."""
        if threading.get_ident() != self._thread:
            raise RuntimeError("a thread tried to wake a simulated loop")
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Refuse to start a thread: it could not wake this loop, and its time is not ours."""
        name = _name(func)
        raise RuntimeError(f"simulated code tried to run {name} in a thread; use Seams.to_thread")

    def freeze(self, process: Process) -> None:
        """Let a process stand still: none of its callbacks runs until it is thawed."""
        if process.parked is None:
            self._frozen[process] = None
            process.waiting, process.parked = self._take_ready(process), []
            self.note(f"freeze {len(process.waiting)}")

    def thaw(self, process: Process, *, timers_first: bool = False) -> None:
        """Let a process go on: with what it was about to do, then with all that has come meanwhile.

        Args:
            process: One that stands still, or does not, and then nothing happens.
            timers_first: Its loop looks at the clock before it looks for packets, as libuv does.
        """
        if process.parked is not None:
            del self._frozen[process]
            parked = [*process.parked, *self._take_ready(process)]
            parked.sort(key=lambda each: isinstance(each, asyncio.TimerHandle) != timers_first)
            self._ready += [*process.waiting, *parked]
            process.waiting, process.parked = [], None
            self.note(f"thaw {len(parked)}")

    def postpone(self, processes: Collection[Process], seconds: float) -> None:
        """Set the timers of processes that stand still anew: the clock by which they were set stood as well."""
        late: list[asyncio.TimerHandle] = []
        for process in processes:
            parked = process.parked or []
            late += [each for each in parked if isinstance(each, asyncio.TimerHandle)]
            parked[:] = [each for each in parked if not isinstance(each, asyncio.TimerHandle)]
        timers = [
            (when + seconds * (_process_of(timer) in processes), number, timer)
            for when, number, timer in self._timers
        ]
        for timer in late:
            self._steps += 1
            timers.append((timer.when() + seconds, self._steps, timer))
        self._timers[:] = timers
        heapq.heapify(self._timers)
        self.note(f"postpone {len(late)}")

    def note(self, text: str) -> None:
        """Put something that happened outside callbacks into the trace."""
        if self._traced:
            self._log.append(text)

    def waiting(self) -> str:
        """Describe every unfinished task and the line where it waits."""
        lines = []
        for task in sorted(asyncio.all_tasks(self), key=hash):
            frames = task.get_stack()
            where = f"{frames[-1].f_code.co_filename}:{frames[-1].f_lineno}" if frames else "?"
            lines.append(f"  {task.get_name()} waits at {where}")
        return "\n".join(lines)

    def _jump(self) -> None:
        """Move the clock to the next timer, for nothing is ready."""
        if not self._timers or self._timers[0][0] - self._now >= _FOREVER:
            raise Hang(f"every task waits and no timer is set\n{self.waiting()}")
        self._now = max(self._now, self._timers[0][0])
        if self._traced:
            self._log.append(repr(self._now))
        if self._now > self._limit:
            self._now = self._limit
            raise Hang(f"not done after {self._limit:g} virtual seconds\n{self.waiting()}")

    def look_for_end(self) -> None:
        """Give up on a program that does ever more without coming to an end."""
        if len(self._log) > LOGGED:
            self._hash_log()
        if self._steps > STEPS:
            raise Hang(f"no end after {STEPS} callbacks\n{self.waiting()}")

    def _run_once(self) -> None:
        """Do what asyncio's loop does in a turn, for less: nothing arrives from outside."""
        timers, ready = self._timers, self._ready
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        self.look_for_end()
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            self._jump()
        now = self._now
        while timers and timers[0][0] <= now:
            ready.append(heapq.heappop(timers)[2])
        frozen = self._frozen
        for _ in range(len(ready)):
            if not ready:
                break  # a process that was frozen just now took the rest with it
            handle = ready.popleft()
            if not handle._cancelled and not (frozen and self._park(handle)):
                handle._run()
        handle = None  # type: ignore[assignment] # or what it holds would live on

    def _timer_handle_cancelled(self, timer: asyncio.TimerHandle) -> None:
        """Forget timers that were cancelled, if they are more than the others."""
        self._timers_cancelled += 1
        if self._timers_cancelled > max(100, len(self._timers) // 2):
            self._timers_cancelled = 0
            self._timers[:] = [each for each in self._timers if not each[2]._cancelled]
            heapq.heapify(self._timers)

    def _park(self, handle: asyncio.Handle) -> bool:
        """Keep a callback of a process that stands still."""
        process = _process_of(handle)
        if process is None or process.parked is None:
            return False
        process.parked.append(handle)
        return True

    def _take_ready(self, process: Process) -> list[asyncio.Handle]:
        """Take out of the queue what a process would do next."""
        taken = [handle for handle in self._ready if _process_of(handle) is process]
        if taken:
            rest = [handle for handle in self._ready if _process_of(handle) is not process]
            self._ready.clear()
            self._ready += rest
        return taken

    def _hash_log(self) -> None:
        self._digest.update("\n".join(self._log).encode() + b"\n")
        self._log.clear()

    def _finish(self) -> None:
        """Cancel what the main task left behind; what cannot be cancelled is let go."""
        self._limit, self._steps = float("inf"), 0
        for process in list(self._frozen):
            self.thaw(process)
        try:
            for _ in range(3):
                tasks = sorted(asyncio.all_tasks(self), key=hash)
                if not tasks:
                    break
                for task in tasks:
                    task.cancel()
                self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self.run_until_complete(self.shutdown_asyncgens())
        except Hang:
            pass  # the one that ended `main`, if any, says more

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: object
    ) -> SimTask:
        self._tasks_made += 1
        return SimTask(work, loop, self._tasks_made, options)


class _OrderedSet(dict[T, None], Generic[T]):
    """As much of a set as anyio uses, in the order of adding."""

    def add(self, item: T) -> None:
        self[item] = None

    def remove(self, item: T) -> None:
        del self[item]

    def discard(self, item: T) -> None:
        self.pop(item, None)


@contextmanager
def _ordered_cancel_scopes() -> Iterator[None]:
    """Let anyio cancel in the order of entering: it keeps scopes in sets, hashed by address."""
    make = CancelScope.__init__

    def make_ordered(self: CancelScope, deadline: float = math.inf, shield: bool = False) -> None:
        make(self, deadline, shield)
        for name in ("_child_scopes", "_tasks"):
            setattr(self, name, _OrderedSet[object]())

    CancelScope.__init__ = make_ordered  # type: ignore[method-assign]
    try:
        yield
    finally:
        CancelScope.__init__ = make  # type: ignore[method-assign]


def _process_of(handle: asyncio.Handle) -> Process | None:
    context: contextvars.Context = handle._context  # type: ignore[attr-defined]
    return context.get(PROCESS)


def _name(callback: Callable[..., Any]) -> str:
    owner = getattr(callback, "__self__", None)
    if type(owner) is SimTask:
        return f"task {hash(owner)}"
    return str(getattr(callback, "__qualname__", type(callback).__name__))
