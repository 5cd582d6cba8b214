"""`TaskGroup`: remote tasks that do not outlive a block of the program."""

import asyncio
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, overload

from anyio import CancelScope

from raylite._remote import Given, RemoteFunction
from raylite._services.worker.awaiting import Arrivals
from raylite._services.worker.core import Core
from raylite._services.worker.generator import ObjectRefGenerator
from raylite._services.worker.objects import Entry, ObjectRef
from raylite.exceptions import RayError, TaskCancelledError

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
G = TypeVar("G")
H = TypeVar("H")
J = TypeVar("J")


class TaskGroup:
    """Remote tasks that end with a block: `asyncio.TaskGroup` across processes.

    ``async with`` waits at its end for all tasks that were started in the group. The first that
    fails has all others cancelled, with the tasks that they have started, and the block too; so
    does an error of the block itself, and whoever cancels it. In each case it is left when every
    task has ended. Then the errors are raised together, as an `ExceptionGroup`; those of
    tasks that were cancelled, by whomever, are not among them.

    A task that cannot be interrupted, as in a long computation in C, is waited for. Whoever cancels
    the block again (a second Ctrl-C) has the processes ended in which such tasks run, as
    `cancel(force=True)` does; a third time, and the block is left without them.

    Groups can be nested, and a group's `start` be called by any coroutine of the same loop.

    Raises:
        ExceptionGroup: By ``async with``: a task failed, or the block, or several of them.
        asyncio.CancelledError: By ``async with``: the block was cancelled, and no task failed.

    Example:
        >>> async with TaskGroup() as group:  # doctest: +SKIP
        ...     refs = [group.start(f, n) for n in range(8)]
        >>> await gather(*refs)  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._parent: asyncio.Task[Any] | None = None
        self._arrivals: Arrivals | None = None
        self._running: dict[Entry, ObjectRef[Any]] = {}
        self._failed: dict[ObjectRef[Any], BaseException] = {}
        self._generators: weakref.WeakSet[ObjectRefGenerator[Any]] = weakref.WeakSet()
        self._idle: asyncio.Future[None] | None = None
        self._is_exiting = False
        self._is_aborting = False
        self._has_cancelled_parent = False

    # As `RemoteFunction.remote` has them: references may stand for values that come by position.
    @overload
    def start(
        self,
        function: RemoteFunction[Callable[P, Any], R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R: ...
    @overload
    def start(
        self,
        function: RemoteFunction[Callable[Concatenate[A, Q], Any], R],
        a: Given[A],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> R: ...
    @overload
    def start(
        self,
        function: RemoteFunction[Callable[Concatenate[A, B, Q], Any], R],
        a: Given[A],
        b: Given[B],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> R: ...
    @overload
    def start(
        self,
        function: RemoteFunction[Callable[Concatenate[A, B, C, Q], Any], R],
        a: Given[A],
        b: Given[B],
        c: Given[C],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> R: ...
    @overload
    def start(
        self,
        function: RemoteFunction[Callable[Concatenate[A, B, C, D, Q], Any], R],
        a: Given[A],
        b: Given[B],
        c: Given[C],
        d: Given[D],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> R: ...
    @overload
    def start(
        self,
        function: RemoteFunction[Callable[Concatenate[A, B, C, D, E, Q], Any], R],
        a: Given[A],
        b: Given[B],
        c: Given[C],
        d: Given[D],
        e: Given[E],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> R: ...
    @overload
    def start(
        self,
        function: RemoteFunction[Callable[Concatenate[A, B, C, D, E, G, Q], Any], R],
        a: Given[A],
        b: Given[B],
        c: Given[C],
        d: Given[D],
        e: Given[E],
        g: Given[G],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> R: ...
    @overload
    def start(
        self,
        function: RemoteFunction[Callable[Concatenate[A, B, C, D, E, G, H, Q], Any], R],
        a: Given[A],
        b: Given[B],
        c: Given[C],
        d: Given[D],
        e: Given[E],
        g: Given[G],
        h: Given[H],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> R: ...
    @overload
    def start(
        self,
        function: RemoteFunction[Callable[Concatenate[A, B, C, D, E, G, H, J, Q], Any], R],
        a: Given[A],
        b: Given[B],
        c: Given[C],
        d: Given[D],
        e: Given[E],
        g: Given[G],
        h: Given[H],
        j: Given[J],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> R: ...
    def start(self, function: RemoteFunction[Any, Any], /, *args: Any, **kwargs: Any) -> Any:
        """Submit a call as ``function.remote(*args, **kwargs)`` does, as a task of this group.

        Args:
            function: A remote function.
            *args: Its arguments.
            **kwargs: The same by name.

        Returns:
            The reference to its result; a list of them for several, a generator for a stream. An
            exception of a generator task is its last item, and no failure of the group.

        Raises:
            RuntimeError: The group was not entered, has been left, or is cancelling its tasks.
            TypeError: The arguments do not fit the function, or cannot be pickled, or it is not remote.
        """
        arrivals = self._arrivals
        if arrivals is None:
            raise RuntimeError(f"{self!r} has not been entered: use it with `async with`")
        if self._is_exiting and not self._running:
            raise RuntimeError(f"{self!r} has been left: it starts no more tasks")
        if self._is_aborting:
            raise RuntimeError(f"{self!r} is cancelling its tasks: it starts no more of them")
        if not isinstance(function, RemoteFunction):
            raise TypeError(
                f"start() takes a remote function, not {function!r}: make it one by @raylite.remote"
            )
        started = function.remote(*args, **kwargs)
        ref: object = started
        if isinstance(started, list):
            ref = started[-1]  # an error, if any of them is
        elif isinstance(started, ObjectRefGenerator):
            ref = started._end
            self._generators.add(started)
            if self._is_exiting:
                started._let_end()
        if not isinstance(ref, ObjectRef):
            raise TypeError(
                f"{function!r} returns {started!r}, and not a reference by which the group could "
                "know when the task has ended: it runs, but not in the group"
            )
        self._running[ref._entry] = ref
        ref._entry.keeper.watch(ref._entry, arrivals)
        return started

    async def __aenter__(self) -> Self:
        if self._arrivals is not None:
            raise RuntimeError(f"{self!r} has been entered already")
        arrivals = Arrivals()
        self._parent = asyncio.current_task()
        if self._parent is None:
            raise RuntimeError(f"{self!r} has to be entered by a task of the loop")
        self._arrivals = arrivals
        arrivals.future.add_done_callback(self._arrived)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        arrivals, parent = self._arrivals, self._parent
        assert arrivals is not None
        assert parent is not None
        self._is_exiting = True
        cancelled = error if isinstance(error, asyncio.CancelledError) else None
        if self._has_cancelled_parent and parent.uncancel() == 0:
            cancelled = None  # nobody did but this group
            try:
                await asyncio.sleep(0)  # Python 3.12 keeps a cancellation that has not come yet
            except asyncio.CancelledError as late:
                cancelled = late if parent.cancelling() else None
        if error is not None and not self._is_aborting:
            self._abort()
        for each in self._generators:
            each._let_end()  # nobody may read it any more, so it is not to wait for that
        is_forced = False
        while self._running:
            self._idle = arrivals.loop.create_future()
            next(iter(self._running)).keeper.awaits(self._idle)
            try:
                # An anyio scope that was cancelled says so in every turn of the loop.
                with CancelScope(shield=True) if self._is_aborting else nullcontext():
                    await self._idle
            except asyncio.CancelledError as again:
                if is_forced:
                    cancelled = again
                    break
                if not self._is_aborting:
                    self._abort()
                elif cancelled is not None:
                    is_forced = True
                    self._abort(force=True)
                cancelled = again
        arrivals.silence()
        try:
            self._raise(error, cancelled, parent)
        finally:
            del error, cancelled, parent  # a traceback would hold them, and they it
            self._failed.clear()

    def _raise(
        self,
        error: BaseException | None,
        cancelled: asyncio.CancelledError | None,
        parent: "asyncio.Task[Any]",
    ) -> None:
        """Raise what there is to raise at the end of the block."""
        if isinstance(error, SystemExit | KeyboardInterrupt):
            raise error
        errors = list(self._failed.values())
        if error is not None and not isinstance(error, asyncio.CancelledError):
            met = error.object_ref if isinstance(error, RayError) else None
            failed = {ref.task_id() for ref in self._failed}
            if met is None or met.task_id() not in failed:  # or the block awaited what failed
                errors.append(error)
        if not errors:
            if cancelled is not None:
                raise cancelled
            return
        if parent.cancelling():
            # Somebody else cancelled it: its next await is to raise, as after asyncio's group.
            parent.uncancel()
            parent.cancel()
        raise BaseExceptionGroup("unhandled errors in a TaskGroup", errors) from None

    def __repr__(self) -> str:
        state = "cancelling" if self._is_aborting else "left" if self._is_exiting else "entered"
        if self._arrivals is None:
            state = "new"
        return f"<TaskGroup {state}, {len(self._running)} tasks running>"

    def _arrived(self, woken: object) -> None:
        """Tasks have ended: a callback of the loop."""
        arrivals, parent = self._arrivals, self._parent
        assert arrivals is not None
        assert parent is not None
        arrivals.rearm()
        arrivals.future.add_done_callback(self._arrived)
        while arrivals.arrived:
            entry = arrivals.arrived.popleft()
            ref = self._running.pop(entry)
            if not entry.is_error:
                continue
            try:
                entry.keeper.load(entry)
            except TaskCancelledError:
                pass
            except BaseException as error:
                self._failed[ref] = error.with_traceback(None)
        if self._failed and not self._is_aborting:
            self._abort()
            if not self._is_exiting:
                self._has_cancelled_parent = True
                parent.cancel()
        if not self._running and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _abort(self, *, force: bool = False) -> None:
        self._is_aborting = True
        for entry in self._running:
            core = entry.keeper
            assert isinstance(core, Core)
            core.cancel(entry, force=force, recursive=True)
