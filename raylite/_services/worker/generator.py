"""`ObjectRefGenerator`: what calling a generator function returns."""

import asyncio
import weakref
from typing import Any, Generic, NoReturn, Self, TypeVar

from raylite._services.worker.core import Core
from raylite._services.worker.objects import Entry, LoopFuture, ObjectRef
from raylite._services.worker.owned import OwnedTask
from raylite._services.worker.streams import END, Arrivals, GeneratorDrop
from raylite._types.keys import ObjectKey

T = TypeVar("T", covariant=True)

_HIDDEN = b"\xff" * 4  # the index of the end of a task that shows it to nobody


class ObjectRefGenerator(Generic[T]):
    """The items of a generator task, as references, each as soon as it was yielded.

    ``for ref in gen`` and ``async for ref in gen``, on any asyncio loop, give an `ObjectRef` for
    each item. An exception is the last item: reading its reference raises. A task that is retried
    goes on where it was; no item comes twice. `raylite.wait` takes generators among references:
    one is ready when its next item is, or when there is none.

    The task runs ahead of its reader: by ``_generator_backpressure_num_objects`` items if it has
    that option, else by 64 MB of small items; large ones take room in shared memory. When the
    generator is dropped, what was not read is freed, and the task runs to its end (as in Ray)
    without storing anything; `raylite.cancel` stops it. A generator can be neither pickled nor
    passed to a task.

    Example:
        >>> @ray.remote  # doctest: +SKIP
        ... def count(n):
        ...     yield from range(n)
        >>> [ray.get(ref) for ref in count.remote(3)]  # doctest: +SKIP
        [0, 1, 2]
    """

    __slots__ = ("__weakref__", "_arrivals", "_core", "_end")

    def __init__(self, core: Core, arrivals: Arrivals) -> None:
        if not isinstance(arrivals, Arrivals):
            raise TypeError("an ObjectRefGenerator is made by calling a generator task")
        self._core = core
        self._arrivals = arrivals
        self._end: ObjectRef[None] = ObjectRef(arrivals.end)
        arrivals.drop = drop = GeneratorDrop(self, core.dropped)
        drop.arrivals = arrivals
        arrivals.alert = weakref.ref(self, core.owner.alarm)

    @property
    def _entry(self) -> Entry:
        """What `wait` looks at: the next item, or the end of the stream, which is always there."""
        return self._arrivals.next

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ObjectRef[T]:
        while True:
            pending = self._arrivals.pending  # before looking what is there: see `Arrivals`
            if (ref := self._taken()) is not None:
                return ref
            if pending.value is END:
                raise StopIteration
            self._core.wait_for(pending, None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ObjectRef[T]:
        while True:
            pending = self._arrivals.pending
            if (ref := self._taken()) is not None:
                return ref
            if pending.value is END:
                raise StopAsyncIteration
            await self._arrival(pending)

    def completed(self) -> ObjectRef[None]:
        """Return a reference that is ready, with None, when the task has ended.

        Reading it raises what ended the task if that was not an exception of its own: a crash of
        its worker, a cancel, an argument that is an error. From now on the task is no more held
        back by what is unread, unless it has a limit of its own.
        """
        self._core.handover.do(self._arrivals.awaited)
        return self._end

    def _let_end(self) -> None:
        """Let the task get to its end though nobody may read any more."""
        self._core.handover.do(self._arrivals.unlimited)

    def next_ready(self) -> bool:
        """Return whether the next item is there; False also when there is none."""
        value = self._arrivals.next.value
        return value is not None and value is not END

    def is_finished(self) -> bool:
        """Return whether every item was taken and no other will come: `next` would stop."""
        return self._arrivals.is_finished

    def task_id(self) -> Any:
        """Return the id of the task."""
        return self._end.task_id()

    def _next_sync(self, timeout_s: float | None = None) -> ObjectRef[T]:
        """Return the next reference, or the nil one if it does not come in so many seconds.

        None, and as in Ray -1, wait as long as it takes.
        """
        if timeout_s is None or timeout_s < 0:
            return next(self)
        pending = self._arrivals.pending
        if (ref := self._taken()) is not None:
            return ref
        if pending.value is None:
            self._core.wait_for(pending, timeout_s)
        if (ref := self._taken()) is not None:
            return ref
        if pending.value is END:
            raise StopIteration
        return ObjectRef.nil()

    async def _next_async(self, timeout_s: float | None = None) -> ObjectRef[T]:
        """Do the same in a coroutine."""
        if timeout_s is not None and timeout_s < 0:
            timeout_s = None
        try:
            async with asyncio.timeout(timeout_s):
                return await anext(self)
        except TimeoutError:
            return ObjectRef.nil()

    def _cancel(self, *, force: bool, recursive: bool) -> None:
        """Cancel the task, and return when no item that had arrived can be read any more."""
        core = self._core
        core.cancel(self._end._entry, force=force, recursive=recursive)
        if asyncio._get_running_loop() is not core.loop:
            core.run(_pass)

    def send(self, value: object) -> NoReturn:
        """Not supported, as in Ray."""
        raise NotImplementedError("`gen.send` is not supported.")

    def throw(self, value: object) -> NoReturn:
        """Not supported, as in Ray."""
        raise NotImplementedError("`gen.throw` is not supported.")

    def close(self) -> NoReturn:
        """Not supported, as in Ray."""
        raise NotImplementedError("`gen.close` is not supported.")

    async def asend(self, value: object) -> NoReturn:
        """Not supported, as in Ray."""
        raise NotImplementedError("`gen.asend` is not supported.")

    async def athrow(self, value: object) -> NoReturn:
        """Not supported, as in Ray."""
        raise NotImplementedError("`gen.athrow` is not supported.")

    async def aclose(self) -> NoReturn:
        """Not supported, as in Ray."""
        raise NotImplementedError("`gen.aclose` is not supported.")

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "You cannot return or pass a generator to other task. "
            "Serializing a ObjectRefGenerator is not allowed."
        )

    def __repr__(self) -> str:
        return f"ObjectRefGenerator({self._arrivals.task.hex()})"

    def _taken(self) -> ObjectRef[T] | None:
        """Take the next item if it is there; any thread may."""
        arrivals = self._arrivals
        try:
            entry = arrivals.items.popleft()
        except IndexError:
            return None
        ref: ObjectRef[T] = ObjectRef(entry)
        if arrivals.wants_news and not arrivals.is_noted:
            arrivals.is_noted = True
            self._core.handover.do(arrivals.read)
        value = entry.value
        if value is None or value.node or value.contained:
            self._core.handover.do(self._core.owner.expect_drop, entry)
        return ref

    async def _arrival(self, pending: Entry) -> None:
        """Wait for the next item. Who is cancelled here has taken nothing."""
        waiter = LoopFuture()
        self._core.watch(pending, waiter)
        self._core.awaits(waiter.future)
        try:
            await waiter.future
        finally:
            if not waiter.future.done() or waiter.future.cancelled():
                self._core.unwatch(pending, waiter)


async def _pass() -> None: ...


def stream(core: Core, task: OwnedTask, limit: int, per_yield: int, is_dynamic: bool) -> Any:
    """Submit a generator task, and return what its items are read from."""
    (end,) = task.entries
    made: ObjectRefGenerator[Any] | ObjectRef[Any]
    if is_dynamic:
        whole, end = end, Entry(ObjectKey(task.id + _HIDDEN), core)
        task.entries = (end,)
        arrivals = Arrivals(task.id, end, 0, per_yield, whole)
        made = ObjectRef(whole)
    else:
        arrivals = Arrivals(task.id, end, limit, per_yield)
        made = ObjectRefGenerator(core, arrivals)
    core.handover.do(core.submitter.streams.open, arrivals)
    core.enqueue(task)
    return made
