"""`SimLoop`: an asyncio loop whose clock jumps to the next timer as soon as every task waits.

Thousands of virtual seconds pass in one real one, and the same seed gives the same run: the loop
keeps a hash of every callback it was given and when (`SimLoop.trace`). A program that waits for what
never comes ends with `Hang`, which names every task and where it waits.
"""

import asyncio
import contextvars
import hashlib
import math
import selectors
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, TypeVarTuple

from anyio._backends._asyncio import CancelScope  # what `anyio.CancelScope` makes on asyncio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_FOREVER = 86_000.0  # asyncio caps one wait at a day, and `sleep_forever` is a timer at infinity
LOGGED = 1_000  # lines of the trace that are hashed together
STEPS = 2_000_000  # callbacks in one run above which a program is taken to loop without end


@dataclass(frozen=True, slots=True)
class Clock:
    """A machine's clock: where it began, and how fast it goes. `CLOCK` says whose is read.

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


CLOCK: contextvars.ContextVar[Clock | None] = contextvars.ContextVar("clock", default=None)


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

    def __init__(self, *, traced: bool = True) -> None:
        self._now = 0.0
        self._traced = traced
        self._log: list[str] = []  # the end of the trace, not hashed yet
        self._digest = hashlib.blake2b(digest_size=16)
        self._steps = 0
        self._limit = float("inf")
        self._tasks_made = 0
        self._thread = threading.get_ident()
        super().__init__(_JumpingSelector(self))
        self.set_task_factory(self._make_task)  # type: ignore[arg-type] # no generators here

    def time(self) -> float:
        """Return the virtual time in seconds, as the clock of this context shows it."""
        clock = CLOCK.get()
        return self._now if clock is None else clock.shown(self._now)

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
        if (clock := CLOCK.get()) is not None:
            when = clock.moment(when)
        self._steps += 1
        if self._traced:
            self._log.append(f"{when!r} {_name(callback)}")
        return super().call_at(when, callback, *args, context=context)

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

    def jump(self, seconds: float) -> None:
        """Move the clock; the selector calls this when nothing is ready."""
        self._now += seconds
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

    def _hash_log(self) -> None:
        self._digest.update("\n".join(self._log).encode() + b"\n")
        self._log.clear()

    def _finish(self) -> None:
        """Cancel what the main task left behind; what cannot be cancelled is let go."""
        self._limit, self._steps = float("inf"), 0
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


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: SimLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        self._loop.look_for_end()
        if timeout is None or timeout >= _FOREVER:
            raise Hang(f"every task waits and no timer is set\n{self._loop.waiting()}")
        if timeout > 0:
            self._loop.jump(timeout)
        return []


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


def _name(callback: Callable[..., Any]) -> str:
    owner = getattr(callback, "__self__", None)
    if type(owner) is SimTask:
        return f"task {hash(owner)}"
    return str(getattr(callback, "__qualname__", type(callback).__name__))
