"""Coroutines: `async def` tasks, of which many run at a time on a loop of the task thread."""

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import aclosing, suppress
from contextvars import Context, ContextVar
from enum import Enum
from functools import partial
from queue import Empty
from time import perf_counter
from types import GeneratorType
from typing import Any

from raylite._kernel.alarm import Alarm
from raylite._kernel.seams import now
from raylite._kernel.threads import new_loop
from raylite._services.worker.cancel import cancelled_error
from raylite._services.worker.execute import Job
from raylite._services.worker.producer import CoroutineGate, Gate
from raylite._services.worker.results import Packed, remark_unread, too_many, wrong_count
from raylite._services.worker.runner import (
    IDLE_AFTER,
    Runner,
    Unfinished,
    arena_key,
    exit_code,
    flush_output,
    overlapping,
)
from raylite._services.worker.running import RunningTask
from raylite._services.worker.streams import NONE
from raylite._wire import hot, pickling
from raylite._wire.hot import Form, Value

LAST_SECONDS = 1.0  # for what is cancelled as the worker ends

_Begun = set[asyncio.Task[Any]]
_begun: ContextVar[_Begun | None] = ContextVar("begun", default=None)
"""What the code of a task began on the loop, and what has not ended of it."""


class Stage(Enum):
    """How far a task has come."""

    NEW = "nothing of it has run"
    PREPARING = "its arguments are read"
    IN_BODY = "its function runs"
    ENDING = "its result is on its way"


_INTERRUPTED = (Stage.PREPARING, Stage.IN_BODY)
"""The stages in which a task is interrupted; one that is new looks whether it was cancelled."""


class Work:
    """A task that overlaps with others."""

    def __init__(
        self,
        run: "Callable[[Work, Job], Coroutine[Any, Any, None]]",
        job: Job,
        running: RunningTask,
        loop: asyncio.AbstractEventLoop | None,
        context: Context,
    ) -> None:
        self.running = running
        self.stage = Stage.NEW
        self.is_interrupted = False
        self.begun: _Begun = set()
        context.run(overlapping.set, running)
        context.run(_begun.set, self.begun)
        self.future = asyncio.Task(run(self, job), loop=loop, name=running.name, context=context)


class AsyncRunner(Runner):
    """A runner that runs `async def` tasks as well, many at a time.

    They share an event loop, which runs on the task thread while there are only such; each has a
    context of its own. A job of the other kind waits until all that run have ended. What a task
    begins on the loop and leaves behind is cancelled, and waited for, as `asyncio.run` does.

    While one of them waits for a value, the CPU is lent to others, for it may take that CPU to make
    the value. The rest goes on meanwhile.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: dict[bytes, Work] = {}
        self._bug: BaseException | None = None
        self._next: Job | None = None
        self._has_next = self._is_leaving = self._is_woken = False
        self._awaited = 0
        self._is_lent = False
        self._idle = Alarm(self._on_idle)
        self._clock = perf_counter

    def run(self) -> None:
        try:
            super().run()
        finally:
            self._close()

    def _overlap(self, job: Job) -> Job | None:
        loop = self._loop or self._make_loop()
        self._next, self._has_next = None, False
        self._begin(job)
        self._executor.on_arrival = self._arrived
        loop.call_soon(self._take)  # what came before it was known whom to tell
        self._values.on_await = self._awaits
        try:
            while self._running or not self._has_next:
                try:
                    loop.run_forever()
                except KeyboardInterrupt:  # it struck none of the tasks
                    loop.call_soon(self._take)
                if self._bug is not None:
                    raise self._bug
        except SystemExit as error:
            code = exit_code(error)
            self._on_exit(code)
            raise SystemExit(code) from None  # its text has been printed
        finally:
            self._executor.on_arrival = self._values.on_await = None
        return self._next

    def _make_loop(self) -> asyncio.AbstractEventLoop:
        self._loop = loop = new_loop()
        loop.set_task_factory(_make_task)
        return loop

    # ---- jobs come -----------------------------------------------------------------------

    def _arrived(self) -> None:
        """Called on the other loop."""
        assert self._loop is not None
        if not self._is_woken:
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        """Begin what has come, until something comes that does not overlap."""
        self._is_woken = False
        while not self._has_next and not self._executor.is_empty:
            try:
                job = self._executor.next(0)
            except Empty:
                continue
            if job is not None and job.definition.overlaps:
                self._begin(job)
                continue
            self._next, self._has_next = job, True
            if job is None:
                self._abandon()
        self._stop_if_done()

    def _begin(self, job: Job) -> None:
        task, definition = job.task, job.definition
        running = RunningTask(
            task.id, definition.job, task.name or definition.title, definition.name,
            task.depth, task.attempt, job.deadline,
        )  # fmt: skip
        context = contextvars.copy_context()
        work = Work(self._run_to_end, job, running, self._loop, context)
        self._running[running.id] = work
        work.future.add_done_callback(partial(self._ended, running.id))
        self._idle.cancel()

    # ---- jobs are cancelled --------------------------------------------------------------

    def runs(self, task: bytes, attempt: int) -> bool:
        known = self._running.get(task)
        return super().runs(task, attempt) or (
            known is not None and known.running.attempt == attempt
        )

    def interrupt_overlapping(self, task: bytes, attempt: int) -> None:
        if self._executor.on_arrival is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._interrupt, task, attempt)

    def _interrupt(self, task: bytes, attempt: int) -> None:
        known = self._running.get(task)
        if known is not None and known.running.attempt == attempt and known.stage in _INTERRUPTED:
            known.is_interrupted = True
            known.future.cancel()

    # ---- jobs run ------------------------------------------------------------------------

    async def _run_to_end(self, work: "Work", job: Job) -> None:
        running, begun = work.running, work.begun
        self._board(running.id)
        self._on_task(running.name)
        started = self._clock()
        retry = False
        interrupted = hot.Interrupted.NOT
        try:
            if self._asked and self._is_cancelled(running):
                work.is_interrupted = True
                raise asyncio.CancelledError
            work.stage = Stage.PREPARING
            config = job.definition.config
            if config is not self._config or self._executor.holding is not self.holding:
                self._adopt(config)
            result = await self._call_soon(work, job)
            if begun:
                await _end(begun)
            work.stage = Stage.ENDING
            values = await self._pack_all(result, job)
            del result
        except (SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            if work.is_interrupted:
                is_in_body = work.stage is Stage.IN_BODY
                kind = hot.Interrupted
                interrupted = kind.IN_BODY if is_in_body else kind.BEFORE_BODY
            if isinstance(error, asyncio.CancelledError):
                message = f"{running.name} was interrupted."
                error = cancelled_error(running.id, message).with_traceback(error.__traceback__)
                values = (self._error(error, job, running.name),)
            else:
                values, retry = self._failed(error, job, running.name)
            if begun:
                with suppress(asyncio.CancelledError):
                    await _end(begun)
        if self._is_leaving:
            return  # who waits for the result hears that the worker is gone
        flush_output()
        job.result = hot.Result(
            running.id, running.attempt, self._clock() - started, values, (), retry, interrupted
        )
        self._settle_cpu()
        self._executor.ended(job)

    async def _call_soon(self, work: "Work", job: Job) -> Any:
        if job.brought is not None:
            with suppress(Exception):  # it is raised again where it is read
                await asyncio.wrap_future(job.brought)
        function = self._function(job.definition)
        args, kwargs = self._arguments(job)
        work.stage = Stage.IN_BODY
        made = function(*args, **kwargs)
        del args, kwargs
        if not isinstance(made, AsyncGenerator):
            return await made
        if job.task.stream is None:
            # With no results it does not run, as other generators do not.
            return await self._pack_items(made, job) if job.task.returns else made
        producer = self._executor.producer_of(job)
        return await producer.run_soon(made, job, self._pack_soon, self._pause)

    async def _pause(self, gate: Gate) -> None:
        assert isinstance(gate, CoroutineGate)
        await gate.passed(self._awaits)

    async def _pack_all(self, result: Any, job: Job) -> tuple[Value, ...]:
        task = job.task
        if type(result) is Packed:
            return result
        if task.returns == 1 and type(result) is not GeneratorType:
            return (await self._pack_soon(result, task, 0, job),)
        if not isinstance(result, list | tuple) or len(result) != task.returns:
            return self._pack_each(result, task, job)
        values: list[Value] = []
        try:
            for index, each in enumerate(result):
                values.append(await self._pack_soon(each, task, index, job))
        except Exception as error:
            raise Unfinished(tuple(values), error) from error
        return tuple(values)

    async def _pack_items(self, items: AsyncGenerator[Any], job: Job) -> Packed:
        """Pack the first items of a generator, which are the task's results; as `_pack_each` does."""
        task, values = job.task, list[Value]()
        try:
            async with aclosing(items):
                async for each in items:
                    if len(values) == task.returns:
                        raise too_many(task.returns)
                    values.append(await self._pack_soon(each, task, len(values), job))
            if len(values) < task.returns:
                raise wrong_count(len(values), task.returns)
        except (SystemExit, GeneratorExit):
            raise
        except asyncio.CancelledError as error:
            interrupt = KeyboardInterrupt().with_traceback(error.__traceback__)
            raise Unfinished(tuple(values), interrupt) from error
        except BaseException as error:
            if len(values) < task.returns:
                raise Unfinished(tuple(values), error) from error
            remark_unread(task.returns)
        return Packed(values)

    async def _pack_soon(self, result: Any, task: hot.Task, index: int, job: Job) -> Value:
        """The same as `_pack`, but others go on while there is no room for a large value."""
        if result is None:
            return NONE
        try:
            pickled = pickling.dumps(result)
        except Exception as error:
            raise self._not_serializable(error, result, index, job) from None
        contained = self._hand_over(pickled, job) if pickled.contained else ()
        size = pickled.size
        if size <= hot.INLINE_LIMIT and (index < 100 or size <= hot.inline_limit(task.returns)):
            return Value(Form.INLINE, pickled.to_bytes(), 0, 0, contained)
        key = arena_key(task, index)
        stored = await self._values.store_soon(key, job.definition.owner, pickled)
        return Value(Form.ARENA, b"", stored.offset, stored.size, contained, key, stored.node)

    # ---- jobs end ------------------------------------------------------------------------

    def _ended(self, id: bytes, work: "asyncio.Task[None]") -> None:
        assert self._loop is not None
        del self._running[id]
        if not work.cancelled() and not self._is_leaving:
            self._bug = work.exception()
            if self._bug is not None:
                self._loop.stop()
        if not self._running and not self._has_next:
            self._idle.set(now() + IDLE_AFTER)
        self._stop_if_done()

    def _abandon(self) -> None:
        """End all that run, and tell no results: the worker ends."""
        self._is_leaving = True
        for each in self._running.values():
            each.future.cancel()

    def _stop_if_done(self) -> None:
        assert self._loop is not None
        if self._has_next and not self._running:
            self._loop.stop()

    def _close(self) -> None:
        """Give what still runs a moment to clean up, as `asyncio.run` does."""
        if (loop := self._loop) is None:
            return
        self._is_leaving = True
        for work in self._running.values():
            if work.future.done() and not work.future.cancelled():
                work.future.exception()  # what ended the worker: nobody is to be told of it again
        cleaning = asyncio.Task(_clean_up(asyncio.all_tasks(loop)), loop=loop)
        cleaning.add_done_callback(lambda cleaning: loop.stop())
        while not cleaning.done():  # uvloop stops once more after an exception that ended it
            with suppress(SystemExit, KeyboardInterrupt):
                loop.run_forever()
        loop.close()

    # ---- the CPU -------------------------------------------------------------------------

    def _awaits(self, future: "asyncio.Future[None]") -> None:
        assert self._loop is not None
        if future.get_loop() is self._loop:
            self._awaited += 1
            future.add_done_callback(self._got)
            if not self._is_lent:
                self._settle_cpu()

    def _got(self, future: "asyncio.Future[None]") -> None:
        assert self._loop is not None
        self._awaited -= 1
        if not self._awaited:
            self._loop.call_soon(self._settle_cpu)  # the task may well wait for the next at once

    def _settle_cpu(self) -> None:
        if self._is_lent != bool(self._awaited):
            self._is_lent = not self._is_lent
            if self._is_lent:
                self._executor.lend_cpu()
            else:
                self._executor.take_back_cpu()


def _make_task(
    loop: asyncio.AbstractEventLoop,
    work: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
    **options: Any,
) -> "asyncio.Task[Any]":
    """Make an asyncio task, and note whose it is."""
    made: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
    begun = _begun.get()
    if begun is not None:
        begun.add(made)
        made.add_done_callback(begun.discard)
    return made


async def _end(begun: _Begun) -> None:
    for each in begun:
        each.cancel()
    await asyncio.wait(begun)


async def _clean_up(tasks: set[asyncio.Task[Any]]) -> None:
    for each in tasks:
        each.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=LAST_SECONDS)
    await asyncio.get_running_loop().shutdown_asyncgens()
