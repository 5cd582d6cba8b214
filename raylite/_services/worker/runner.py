"""The runner: a worker's task thread. It turns a job into a result, whatever the task's code does."""

import logging
import os
import sys
import threading
from asyncio import Future
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from queue import Empty
from time import perf_counter
from types import FrameType, GeneratorType
from typing import Any, Protocol

from raylite._services.worker.awaited import Awaited
from raylite._services.worker.cancel import cancelled_error
from raylite._services.worker.chunk import OUTCOMES, Chunk, Failed
from raylite._services.worker.execute import Job, QueueExecutor
from raylite._services.worker.interrupts import came_through, is_below
from raylite._services.worker.objects import Entry, ObjectRef
from raylite._services.worker.producer import Gate
from raylite._services.worker.results import (
    not_serializable,
    remark_ignored,
    remark_unread,
    too_many,
    wrong_count,
)
from raylite._services.worker.running import RunningTask
from raylite._services.worker.streams import NONE
from raylite._wire import hot, pickling
from raylite._wire.hot import Form, Value
from raylite.exceptions import (
    RayError,
    RuntimeEnvSetupError,
    capture_task_error,
    dependency_error,
)

logger = logging.getLogger("raylite")

ANY = b"*"
IDLE_AFTER = 0.2  # seconds without a job
FUNCTIONS_KEPT = 1000


def do_nothing(*_: object) -> None:
    """The default for those who need not know."""


class Values(Protocol):
    """What the runner needs of its process: see `Core`."""

    task_thread: int
    on_await: Callable[[Future[None]], None] | None

    @property
    def awaited(self) -> Awaited: ...

    def hold(self, entries: tuple[Entry, ...]) -> None: ...
    def read(self, value: Value, entry: Entry | None) -> Any: ...
    def store_result(self, id: bytes, owner: bytes, pickled: pickling.Pickled) -> Value: ...
    async def store_soon(self, id: bytes, owner: bytes, pickled: pickling.Pickled) -> Value: ...
    def find(self, id: bytes) -> Entry | None: ...
    def interrupted(self) -> None: ...
    def pause(self, gate: Gate) -> None: ...


#: The same, where several tasks run at a time on one thread: see `AsyncRunner`.
overlapping: ContextVar[RunningTask | None] = ContextVar("overlapping", default=None)


class Runner:
    """Runs jobs one after another until told to leave.

    Args:
        executor: Where jobs come from and go to.
        values: How values are read and stored.
        board: Where the id of each task is written before it starts, so that the raylet can
            tell, when this process is gone, what it was doing.
        on_task: Called with each task's name before it runs.
        on_exit: Called with the code when a task's code ends the process (`SystemExit`).
        ip: This node's address, for tracebacks.
        on_idle: Called when there has been nothing to run for a moment.
        on_config: Called with the job's configuration before the first task that runs under it;
            a `RuntimeEnvSetupError` is that task's.
        on_holding: Called with what the lease of the next task holds, when that is another.
    """

    def __init__(
        self,
        executor: QueueExecutor,
        values: Values,
        board: Callable[[bytes], None],
        on_task: Callable[[str], None],
        on_exit: Callable[[int], None],
        ip: str,
        on_idle: Callable[[], None] = do_nothing,
        on_config: Callable[[hot.JobConfig], None] = do_nothing,
        on_holding: Callable[[hot.Holding], None] = do_nothing,
    ) -> None:
        self._executor = executor
        self._values = values
        self._task_awaits = values.awaited
        self._board = board
        self._on_task = on_task
        self._on_exit = on_exit
        self._ip = ip
        self._on_idle = on_idle
        self._on_config = on_config
        self._on_holding = on_holding
        self._config: hot.JobConfig | None = None
        self.holding: hot.Holding | None = None
        # By their pickles: every owner sends its own, and one that is unpickled twice is two
        # functions, each of which would be pickled, sent and unpickled anew for the tasks it starts.
        self._functions: dict[bytes, Any] = {}
        self.current: RunningTask | None = None
        self._interrupts = executor.interrupts
        self._asked = executor.interrupts.asked
        self._struck: RunningTask | None = None
        executor.runner = self

    def strikes(self, frame: FrameType | None) -> bool:
        """Say, on this thread, whether code at this frame is to be interrupted.

        It is if it is of a task that was cancelled: whatever is raised below `_call` is the end of
        that task alone. Between tasks, and while a result is on its way, nothing is interrupted.
        """
        current = self.current
        if current is None or not self._is_cancelled(current):
            return False
        if not is_below(frame, _CALL):
            return False
        self._struck = current
        return True

    def runs(self, task: bytes, attempt: int) -> bool:
        """Say, on any thread, whether this attempt is being run."""
        current = self.current
        return current is not None and current.id == task and current.attempt == attempt

    def interrupt_overlapping(self, task: bytes, attempt: int) -> None:
        """Interrupt this attempt, if it is one of those that overlap; called by the loop."""

    def _is_cancelled(self, task: RunningTask) -> bool:
        return self._interrupts.has(task.id, task.attempt)

    def _look(self) -> None:
        """Do not begin what was cancelled on its way here; a strike may have come too early."""
        current = self.current
        if current is not None and self._is_cancelled(current):
            self._struck = current
            raise KeyboardInterrupt

    def _interrupted(self, error: BaseException) -> hot.Interrupted:
        """Say whether the task has ended with this error because it was interrupted."""
        if self._struck is None or self._struck is not self.current:
            return hot.Interrupted.NOT
        is_before = came_through(error, _CALL, _BEFORE_BODY)
        return hot.Interrupted.BEFORE_BODY if is_before else hot.Interrupted.IN_BODY

    def run(self) -> None:
        """Run until told to leave. Ctrl-C and signals concern the task, not this loop."""
        self._values.task_thread = threading.get_ident()
        executor = self._executor
        patience: float | None = None
        while True:
            try:
                job = executor.next(patience)
            except KeyboardInterrupt:
                continue
            except Empty:
                self._on_idle()
                patience = None
                continue
            patience = IDLE_AFTER
            if job is not None and job.definition.overlaps:
                job = self._overlap(job)
            if job is None:
                return
            self._run(job)
            executor.ended(job)
            del job

    def _overlap(self, job: Job) -> Job | None:
        """Run this job, and what overlaps with it, and return the next that does not."""
        raise NotImplementedError

    def _run(self, job: Job) -> None:
        task = job.task
        name = task.name or job.definition.title
        self._board(task.id)
        self._on_task(name)
        self.current = RunningTask(
            task.id,
            job.definition.job,
            name,
            job.definition.name,
            task.depth,
            task.attempt,
            job.deadline,
        )
        started = perf_counter()
        retry = False
        interrupted = hot.Interrupted.NOT
        try:
            config = job.definition.config
            if config is not self._config or self._executor.holding is not self.holding:
                self._adopt(config)
            values = self._call(job)
        except SystemExit as error:
            code = exit_code(error)
            self._on_exit(code)
            raise SystemExit(code) from None  # its text has been printed
        except BaseException as error:  # a task may raise anything; none of it is the worker's
            interrupted = self._interrupted(error)
            values, retry = self._failed(error, job, name)
        self.current = None
        if self._task_awaits.is_lent:
            self._task_awaits.end()
        if self._struck is not None:
            self._struck = None
            self._values.interrupted()
        flush_output()
        job.result = hot.Result(
            task.id, task.attempt, perf_counter() - started, values, (), retry, interrupted
        )

    def _failed(self, error: BaseException, job: Job, name: str) -> tuple[tuple[Value, ...], bool]:
        """Return the results of a task that did not end well, and whether it is to run again."""
        task = job.task
        match error:
            case BadArgument():
                return (pack_error(error.error),), False
            case Unfinished():
                values = (*error.values, self._error(error.error, job, name))
                values += values[-1:] * (task.returns - len(values))
                return values, is_retried(task.retry_on, error.error)
            case _:
                value, retry = self._error(error, job, name), is_retried(task.retry_on, error)
                if task.stream is None or retry or isinstance(error, KeyboardInterrupt):
                    return (value,), retry
                self._executor.producer_of(job).add(value)  # it is the last item
                return (NONE,), False

    def _adopt(self, config: hot.JobConfig) -> None:
        """Be what the next task's job wants, and know what its lease holds."""
        if config is not self._config:
            if config != self._config:  # every owner sends its own, and a job's are all the same
                try:
                    self._on_config(config)
                except RuntimeEnvSetupError as error:
                    raise BadArgument(error) from error
            self._config = config
        if self._executor.holding is not self.holding:
            self.holding = self._executor.holding
            self._on_holding(self.holding)

    def _call(self, job: Job) -> tuple[Value, ...]:
        if self._asked:
            self._look()
        task = job.task
        function = self._function(job.definition)
        args, kwargs = self._arguments(job)
        result = function(*args, **kwargs)
        del args, kwargs
        if task.stream is not None:
            self._executor.producer_of(job).run(result, job, self._pack, self._values.pause)
            return (NONE,)
        if task.returns == 1 and type(result) is not GeneratorType:
            return (self._pack(result, task, 0, job),)
        return self._pack_each(result, task, job)

    def _function(self, definition: hot.Definition) -> Any:
        function = self._functions.get(definition.function)
        if function is None:
            if len(self._functions) > FUNCTIONS_KEPT:
                self._functions.clear()
            try:
                function = pickling.loads_function(definition.function)
            except Exception as error:
                raise RuntimeError(
                    f"The remote function {definition.name} failed to import on the worker. This "
                    "may be because needed library dependencies are not installed in the worker "
                    f"environment:\n\n{type(error).__name__}: {error}"
                ) from error
            self._functions[definition.function] = function
        return function

    def _arguments(self, job: Job) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Unpickle the arguments, the values of references where the caller had the references."""
        task = job.task
        try:
            args, kwargs = pickling.load_value(task.arguments)
        except RayError as error:
            raise self._bad_argument(error, job) from error
        if not task.inputs:
            return args, kwargs
        placed = list(args)
        brought, job.brought = job.brought, None
        for each in task.inputs:
            entry = self._values.find(each.id) if each.value.form == Form.ARENA else None
            known = each.value if entry is None else entry.value  # an error, if its owner died
            assert known is not None
            try:
                views = brought.result() if brought is not None else {}
                if entry in views:
                    value = pickling.load_value(views[entry])
                else:
                    value = self._values.read(known, entry)
            except RayError as error:
                raise self._bad_argument(error, job) from error
            if isinstance(each.place, int):
                placed[each.place] = value
            else:
                kwargs[each.place] = value
        return tuple(placed), kwargs

    def _bad_argument(self, error: RayError, job: Job) -> "BadArgument":
        title = job.definition.title
        return BadArgument(
            dependency_error(
                error,
                function_name=title,
                pid=os.getpid(),
                ip=self._ip,
                proctitle=f"raylite::{job.task.name or title}",
            )
        )

    def _pack_each(self, result: Any, task: hot.Task, job: Job) -> tuple[Value, ...]:
        if task.returns == 0:
            if result is not None:
                function = self._functions.get(job.definition.function)
                code = getattr(function, "__code__", None)
                remark_ignored(result, job.definition.name, code)
            return ()
        name = task.name or job.definition.title
        is_chunk = isinstance(result, GeneratorType) and result.gi_code is OUTCOMES
        if not isinstance(result, GeneratorType) and len(result) != task.returns:
            raise wrong_count(len(result), task.returns)
        results = iter(result)
        values: list[Value] = []
        try:
            for each in results:
                if type(each) is Failed and each.is_told:
                    values.append(pack_error(each.error))
                elif type(each) is Failed:
                    values.append(self._error(each.error, job, name))
                elif is_chunk:
                    values.append(self._pack_outcome(each, task, len(values), job))
                else:
                    values.append(self._pack(each, task, len(values), job))
                if len(values) == task.returns:
                    _exhaust(results, task.returns)
                    return tuple(values)
            raise wrong_count(len(values), task.returns)
        except SystemExit:
            raise
        except BaseException as error:  # what came before it is good, as in Ray
            raise Unfinished(tuple(values), error) from error

    def _pack_outcome(self, result: Any, task: hot.Task, index: int, job: Job) -> Value:
        """Pack the result of one call of a chunk: those behind it are other calls'."""
        try:
            return self._pack(result, task, index, job)
        except Exception as error:
            return self._error(error, job, task.name or job.definition.title)

    def _pack(self, result: Any, task: hot.Task, index: int, job: Job) -> Value:
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
        stored = self._values.store_result(key, job.definition.owner, pickled)
        return Value(Form.ARENA, b"", stored.offset, stored.size, contained, key, stored.node)

    def _not_serializable(self, error: Exception, result: Any, index: int, job: Job) -> Exception:
        task, function = job.task, self._functions.get(job.definition.function)
        what = "return value"
        if task.stream is not None:
            what = f"yielded value number {index}"
        elif task.returns > 1 and not isinstance(function, Chunk):
            what = f"return value number {index + 1}"
        return not_serializable(error, result, what, job.definition.name)

    def _hand_over(self, pickled: pickling.Pickled, job: Job) -> tuple[hot.Contained, ...]:
        """Hold the references in a result until its owner holds them."""
        entries = tuple(ref._entry for ref in pickled.contained if isinstance(ref, ObjectRef))
        job.handed += entries
        self._values.hold(entries)
        return tuple(
            hot.Contained(entry.id, entry.owner or entry.keeper.address) for entry in entries
        )

    def _error(self, error: BaseException, job: Job, name: str) -> Value:
        if isinstance(error, KeyboardInterrupt):
            error = cancelled_error(job.task.id, f"{name} was interrupted.").with_traceback(
                error.__traceback__
            )
        captured = capture_task_error(
            error,
            function_name=job.definition.title,
            pid=os.getpid(),
            ip=self._ip,
            proctitle=f"raylite::{name}",
        )
        try:
            return pack_error(captured)
        finally:
            # Not by its attribute, which the class of a user's error may refuse to set.
            BaseException.with_traceback(error, None)
            del error, captured


_CALL = Runner._call.__code__
_BEFORE_BODY = (
    Runner._look.__code__, Runner._function.__code__, Runner._arguments.__code__,
)  # fmt: skip


def arena_key(task: hot.Task, index: int) -> bytes:
    """Return what an attempt's result is called in the arena.

    Each attempt has another name for it: the order to free what a lost attempt wrote may come late.
    """
    key = task.id + (index + 1).to_bytes(4, "little")
    return key + task.attempt.to_bytes(4, "little") if task.attempt else key


def pack_error(error: Exception) -> Value:
    return Value(Form.ERROR, pickling.dumps(error).to_bytes())


class BadArgument(Exception):
    """The task does not run: an argument is an error, or its environment cannot be had."""

    def __init__(self, error: RayError) -> None:
        self.error = error


class Unfinished(Exception):
    """A task of several results failed after some of them."""

    def __init__(self, values: tuple[Value, ...], error: BaseException) -> None:
        self.values = values
        self.error = error


def _exhaust(results: Iterator[Any], returns: int) -> None:
    """Let a generator that has yielded all its results come to its end, whatever it does there."""
    try:
        for _ in results:
            raise too_many(returns)
    except SystemExit:
        raise
    except BaseException:
        remark_unread(returns)


def is_retried(retry_on: bytes, error: BaseException) -> bool:
    if not retry_on or not isinstance(error, Exception):
        return False
    if retry_on == ANY:
        return True
    return isinstance(error, tuple(pickling.loads(retry_on)))


def flush_output() -> None:
    """What a task printed is seen when it has ended, its last unfinished line too."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # closed, or replaced by the task
            continue


def exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code
    print(error.code, file=sys.stderr)
    return 1
