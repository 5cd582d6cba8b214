"""`Executor`: the cluster as a `concurrent.futures.Executor`."""

import asyncio
import atexit
import concurrent.futures
import functools
import inspect
import logging
import math
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from itertools import chain, islice
from queue import SimpleQueue
from typing import Any, Concatenate, ParamSpec, TypeVar, Unpack, overload

from raylite._options import TaskOptions, validate_task_options
from raylite._remote import Given, RemoteFunction
from raylite._runtime import auto, session
from raylite._runtime.context import Origin, Place
from raylite._services.worker.copies import Bringing
from raylite._services.worker.objects import Entry, ObjectRef
from raylite._types.keywords import DecoratorKeywords
from raylite._types.signature import yields
from raylite._wire import pickling
from raylite.exceptions import RayError, RaySystemError, RayTaskError

logger: logging.Logger = logging.getLogger("raylite")

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


class Executor(concurrent.futures.Executor):
    """Runs functions in the cluster's workers, for code that knows only the standard library.

    ``await loop.run_in_executor(executor, f, x)``, `concurrent.futures.wait` and all else that
    takes an executor work as with `concurrent.futures.ProcessPoolExecutor`: functions, arguments
    and results are pickled, a future raises what the function raised (whose ``__cause__`` is the
    `RayTaskError` with the worker's traceback), and can be cancelled as long as its call has not
    been sent to the cluster. Lambdas and local functions will do, too; a function of a
    module is sent once in a session, with the globals that it has then. Callbacks of futures run
    on the executor's own thread.

    A crash of a worker breaks nothing: the call is tried again, as the options say. References
    among the arguments become values. At the end of the program all calls are waited for. In a
    task, calls are tasks that it has started: they have no more time than it, and are cancelled
    with it.

    Args:
        max_workers: How many calls may be with the cluster at once; None, twice as many as it can
            run when the first is made.
        **options: Options of tasks, such as ``num_cpus``.

    Raises:
        ValueError: `max_workers` is not positive, or an option is unknown or impossible.
        TypeError: `max_workers` is no whole number.

    Example:
        >>> with Executor() as executor:  # doctest: +SKIP
        ...     print(list(executor.map(str.upper, ["a", "b"])))
        ['A', 'B']
    """

    def __init__(
        self, max_workers: int | None = None, **options: Unpack[DecoratorKeywords]
    ) -> None:
        if max_workers is not None and not isinstance(max_workers, int):
            raise TypeError(f"max_workers must be a whole number or None, not {max_workers!r}")
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        validate_task_options(options, in_options=False)
        if options.get("num_returns") not in (None, 1):
            raise ValueError("a call of an executor has one result: num_returns has to be 1")
        self._max_workers = max_workers
        self._options: dict[str, Any] = {**options}
        self._sender: _Sender | None = None
        self._lock = threading.Lock()
        self._is_shut_down = False

    # References may stand for values that come by position: type checkers know it of three.
    @overload
    def submit(
        self,
        fn: Callable[P, Coroutine[Any, Any, T]] | RemoteFunction[Callable[P, Any], ObjectRef[T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> "Future[T]": ...
    @overload
    def submit(
        self,
        fn: Callable[P, T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> "Future[T]": ...
    @overload
    def submit(
        self,
        fn: Callable[Concatenate[A, Q], Coroutine[Any, Any, T]]
        | RemoteFunction[Callable[Concatenate[A, Q], Any], ObjectRef[T]],
        a: Given[A],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> "Future[T]": ...
    @overload
    def submit(
        self,
        fn: Callable[Concatenate[A, Q], T],
        a: Given[A],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> "Future[T]": ...
    @overload
    def submit(
        self,
        fn: Callable[Concatenate[A, B, Q], Coroutine[Any, Any, T]]
        | RemoteFunction[Callable[Concatenate[A, B, Q], Any], ObjectRef[T]],
        a: Given[A],
        b: Given[B],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> "Future[T]": ...
    @overload
    def submit(
        self,
        fn: Callable[Concatenate[A, B, Q], T],
        a: Given[A],
        b: Given[B],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> "Future[T]": ...
    @overload
    def submit(
        self,
        fn: Callable[Concatenate[A, B, C, Q], Coroutine[Any, Any, T]]
        | RemoteFunction[Callable[Concatenate[A, B, C, Q], Any], ObjectRef[T]],
        a: Given[A],
        b: Given[B],
        c: Given[C],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> "Future[T]": ...
    @overload
    def submit(
        self,
        fn: Callable[Concatenate[A, B, C, Q], T],
        a: Given[A],
        b: Given[B],
        c: Given[C],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> "Future[T]": ...
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Call a function in a worker; return the future of its result at once.

        What cannot be pickled is an error of the future.

        Raises:
            RuntimeError: The executor was shut down.
        """
        with self._lock:
            if self._is_shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            call = _Call(auto.place(), fn, args, kwargs)
            if self._sender is None or self._sender.pid != os.getpid():  # forked since
                self._sender = _Sender(self._max_workers, self._options)
                weakref.finalize(self, self._sender.end).atexit = False
            self._sender.add(call)
        return call.future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[T]:
        """Call a function for each element, and return an iterator of the results, in order.

        All elements are read at once, as `concurrent.futures.Executor.map` does; ``f.map()`` of a
        remote function reads them as they are needed.

        Args:
            fn: The function.
            *iterables: Where its arguments come from, until the shortest ends.
            timeout: Seconds from now, after which waiting for a result raises `TimeoutError`.
            chunksize: How many calls travel as one; an error is then that of all of them.

        Raises:
            ValueError: `chunksize` is less than 1.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout)
        calls = zip(*iterables, strict=False)
        chunks = iter(lambda: list(islice(calls, chunksize)), [])
        return chain.from_iterable(
            super().map(functools.partial(_call_each, fn), chunks, timeout=timeout)
        )

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. Calling it again does no harm.

        Args:
            wait: Return when all calls have ended; otherwise at once, and they go on.
            cancel_futures: Cancel the calls that have not been sent to the cluster.
        """
        with self._lock:
            self._is_shut_down = True
            sender = self._sender
        if sender is not None:
            sender.end(cancel=cancel_futures)
            if wait:
                sender.join()


class _Call:
    """A call, and the future of its result."""

    __slots__ = ("args", "fn", "future", "kwargs", "origin", "place")

    def __init__(
        self, place: Place, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.place = place
        self.origin = Origin(place.core, place.task)  # the sender's thread runs no task
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self.future: Future[Any] = Future()


class _Sent:
    """A call that is with the cluster. `entry` has its result."""

    __slots__ = ("brought", "ended", "entry", "future", "ref")

    def __init__(
        self, future: "Future[Any]", ref: ObjectRef[Any], ended: Callable[["_Sent"], object]
    ) -> None:
        self.future = future
        self.ref = ref
        self.ended = ended
        self.brought: Bringing | None = None

    def ready(self, entry: Entry) -> None:
        """It has ended; a large result of another node is brought here first. On raylite's loop."""
        self.brought = entry.keeper.bring(entry)
        if self.brought is None:
            self.ended(self)
        else:
            self.brought.add_done_callback(lambda brought: self.ended(self))

    def settle(self) -> None:
        """Give the future its result, or its error."""
        entry = self.ref._entry
        try:
            if self.brought is None:
                result = entry.keeper.load(entry)
            elif self.brought.cancelled():
                raise RaySystemError("the session that this belongs to has ended")
            else:
                result = pickling.load_value(self.brought.result()[entry])
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, Exception):
                # Not by its attribute, which the class of a user's error may refuse to set.
                BaseException.__setattr__(cause, "__cause__", error)
                self.future.set_exception(cause)
            else:
                self.future.set_exception(error)
        except BaseException as error:  # unpickling is users' code
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class _Sender:
    """An executor's thread: sends calls to the cluster, and gives futures their results.

    It is there because pickling, unpickling and callbacks are users' code, which must run neither
    on raylite's loop nor on the program's. It ends when its executor was shut down, or is gone,
    and the last call has ended.
    """

    def __init__(self, limit: int | None, options: dict[str, Any]) -> None:
        self.pid = os.getpid()
        self._limit = limit
        self._options = options
        self._pending: deque[_Call] = deque()
        self._sent: dict[_Sent, None] = {}
        self._functions: dict[Callable[..., Any], RemoteFunction[Any, Any]] = {}
        self._callers: dict[str, RemoteFunction[Any, Any]] = {}  # `_call`, by the name it goes by
        #: What has ended, and None: look at what is pending.
        self._events: SimpleQueue[_Sent | None] = SimpleQueue()
        self._is_woken = False
        self._is_ending = False
        self._thread = threading.Thread(target=self._run, name="raylite-executor", daemon=True)
        self._thread.start()
        _senders[self] = None

    def add(self, call: _Call) -> None:
        """Send a call when there is room for it."""
        self._pending.append(call)
        if not self._is_woken:
            self._is_woken = True
            self._events.put(None)

    def end(self, *, cancel: bool = False) -> None:
        """End when there is nothing left to do; nothing is added any more."""
        while cancel and self._pending:
            try:
                call = self._pending.pop()
            except IndexError:
                break  # the thread was faster
            call.future.cancel()
            call.future.set_running_or_notify_cancel()
        self._is_ending = True
        self._events.put(None)

    def join(self) -> None:
        """Wait for the end, unless this is a callback of a future."""
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._is_ending or self._pending or self._sent:
                ended = self._events.get()
                self._is_woken = False
                if ended is not None:
                    del self._sent[ended]
                    self._let(ended.settle)
                    del ended
                while self._pending and (self._limit is None or len(self._sent) < self._limit):
                    try:
                        send = functools.partial(self._send, self._pending.popleft())
                    except IndexError:
                        break  # it was cancelled
                    self._let(send)
                    del send
        finally:
            del _senders[self]

    def _let(self, step: Callable[[], None]) -> None:
        """Do something that ends with callbacks of a future, of which one may want to exit."""
        try:
            step()
        except BaseException:
            logger.exception("a callback of a future tried to end the executor's thread")

    def _send(self, call: _Call) -> None:
        if not call.future.set_running_or_notify_cancel():
            return
        try:
            if self._limit is None:
                self._limit = _limit(call.place, self._options)
            function, lead = self._remote_of(call.fn)
            ref = function._submit(call.origin, (*lead, *call.args), call.kwargs)
            if call.place.core.is_closed:
                raise RaySystemError("the session that this belongs to has ended")
            if not isinstance(ref, ObjectRef):
                raise TypeError(f"{call.fn!r} does not have one result")
        except BaseException as error:  # pickling is users' code
            call.future.set_exception(error)
            return
        sent = _Sent(call.future, ref, self._events.put)
        self._sent[sent] = None
        call.place.core.watch(ref._entry, sent)

    def _remote_of(self, fn: Any) -> tuple[RemoteFunction[Any, Any], tuple[Any, ...]]:
        """Return what calls the function, and its arguments before the call's own.

        It is the function itself, sent once, if it will be there the next time.
        """
        if isinstance(fn, RemoteFunction):
            return fn, ()
        if yields(fn):
            raise TypeError(f"{fn!r} does not have one result: a generator cannot be pickled")
        if not inspect.isfunction(fn) or not _is_of_module(fn):
            name = self._options.get("name") or _name(fn)
            if name not in self._callers:
                self._callers[name] = _remote(_call, {**self._options, "name": name})
            return self._callers[name], (fn,)
        if fn not in self._functions:
            self._functions[fn] = _remote(fn, self._options)
        return self._functions[fn], ()


_senders: dict[_Sender, None] = {}

#: What was sent to clusters, by function and by ``max_calls``: all executors share it.
_exported: weakref.WeakKeyDictionary[Callable[..., Any], dict[Any, dict[Any, Any]]]
_exported = weakref.WeakKeyDictionary()


def _remote(fn: Callable[..., Any], options: dict[str, Any]) -> RemoteFunction[Any, Any]:
    exported = _exported.setdefault(fn, {}).setdefault(options.get("max_calls"), {})
    return RemoteFunction(fn, options, exported=exported)


def _end_all() -> None:
    """Wait for all calls before the program ends, and before its session does."""
    for sender in list(_senders):
        sender.end()
        sender.join()


atexit.register(_end_all)


def _limit(place: Place, options: dict[str, Any]) -> int:
    """Return how many calls may be with the cluster at once: twice as many as it can run."""
    try:
        total = session.resources(place).total
    except RayError:
        return 2  # it is ending; the calls say so themselves
    return 2 * max(math.ceil(TaskOptions.of(options).slots(total)), 1)


def _is_of_module(fn: Callable[..., Any]) -> bool:
    """Whether a function is what its module has under its name, so that there is only one."""
    found: Any = sys.modules.get(fn.__module__)
    for name in fn.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is fn


def _name(fn: Any) -> str:
    """Return what a call of something is called where tasks are named: as its own task would be."""
    while isinstance(fn, functools.partial):
        fn = fn.args[0] if fn.func is _call_each else fn.func
    return str(getattr(fn, "__name__", None) or type(fn).__name__)


def _call(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    result = fn(*args, **kwargs)
    if inspect.isgenerator(result):  # as a task it would have its first item for a result
        raise TypeError(f"{fn!r} does not have one result: a generator cannot be pickled")
    return asyncio.run(result) if inspect.iscoroutine(result) else result


def _call_each(fn: Callable[..., Any], calls: list[tuple[Any, ...]]) -> list[Any]:
    return [fn(*args) for args in calls]
