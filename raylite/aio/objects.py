"""Reading and storing objects in coroutines: the twins of `raylite.get`, `put` and `wait`, and more."""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any, Generic, Literal, Self, TypeVar, overload

from raylite import _api
from raylite._kernel.shielded import in_thread
from raylite._kernel.threads import expect_loop
from raylite._runtime import auto, context
from raylite._runtime.context import Place
from raylite._services.worker import awaiting
from raylite._services.worker.core import Core, timed_out
from raylite._services.worker.generator import ObjectRefGenerator
from raylite._services.worker.objects import Entry, ObjectRef, W
from raylite._types.cancellation import CancelOutcome
from raylite.exceptions import RayError

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")

_QUICK = frozenset([type(None), bool, int, float])
_SHORT = 1000  # characters or bytes that are pickled faster than a thread wakes


@overload
async def get(
    refs: ObjectRef[T], *, timeout: float | None = None, return_exceptions: Literal[False] = False
) -> T: ...
@overload
async def get(
    refs: list[ObjectRef[T]],
    *,
    timeout: float | None = None,
    return_exceptions: Literal[False] = False,
) -> list[T]: ...
@overload
async def get(
    refs: ObjectRef[T], *, timeout: float | None = None, return_exceptions: bool
) -> T | RayError: ...
@overload
async def get(
    refs: list[ObjectRef[T]], *, timeout: float | None = None, return_exceptions: bool
) -> list[T | RayError]: ...
async def get(refs: Any, *, timeout: float | None = None, return_exceptions: bool = False) -> Any:
    """Return the value of one object, or the list of values of several; `raylite.get`, awaited.

    Of several, the first error found is raised at once, though others be unfinished. The loop is
    woken once, however many there are. Cancelling the await leaves the tasks alone.

    Args:
        refs: One reference, or a list of them.
        timeout: Seconds to wait for all of them together; None (or a negative number) waits as
            long as it takes, 0 only looks.
        return_exceptions: Wait for all, and return errors in the places of values.

    Raises:
        GetTimeoutError: Time ran out, also with `return_exceptions`. Nothing is cancelled.
        RayError: What `raylite.get` raises.

    Example:
        >>> await get([f.remote(1), f.remote(2)])  # doctest: +SKIP
    """
    raises = not return_exceptions
    if timeout is not None:
        timeout = _api.limit(timeout)
    if isinstance(refs, ObjectRef):
        return (await awaiting.get(_api.home([refs]), [refs], timeout, raises=raises))[0]
    _api.check_refs(refs)
    if not refs:
        return []
    return await awaiting.get(_api.home(refs), refs, timeout, raises=raises)


# As `asyncio.gather` has them: a few are a tuple to type checkers, so that each has its own type.
@overload
async def gather(  # type: ignore[overload-overlap]
    a: ObjectRef[A],
    b: ObjectRef[B],
    /,
    *,
    return_exceptions: Literal[False] = False,
) -> tuple[A, B]: ...
@overload
async def gather(
    a: ObjectRef[A],
    b: ObjectRef[B],
    /,
    *,
    return_exceptions: bool,
) -> tuple[A | RayError, B | RayError]: ...
@overload
async def gather(  # type: ignore[overload-overlap]
    a: ObjectRef[A],
    b: ObjectRef[B],
    c: ObjectRef[C],
    /,
    *,
    return_exceptions: Literal[False] = False,
) -> tuple[A, B, C]: ...
@overload
async def gather(
    a: ObjectRef[A],
    b: ObjectRef[B],
    c: ObjectRef[C],
    /,
    *,
    return_exceptions: bool,
) -> tuple[A | RayError, B | RayError, C | RayError]: ...
@overload
async def gather(  # type: ignore[overload-overlap]
    a: ObjectRef[A],
    b: ObjectRef[B],
    c: ObjectRef[C],
    d: ObjectRef[D],
    /,
    *,
    return_exceptions: Literal[False] = False,
) -> tuple[A, B, C, D]: ...
@overload
async def gather(
    a: ObjectRef[A],
    b: ObjectRef[B],
    c: ObjectRef[C],
    d: ObjectRef[D],
    /,
    *,
    return_exceptions: bool,
) -> tuple[A | RayError, B | RayError, C | RayError, D | RayError]: ...
@overload
async def gather(  # type: ignore[overload-overlap]
    a: ObjectRef[A],
    b: ObjectRef[B],
    c: ObjectRef[C],
    d: ObjectRef[D],
    e: ObjectRef[E],
    /,
    *,
    return_exceptions: Literal[False] = False,
) -> tuple[A, B, C, D, E]: ...
@overload
async def gather(
    a: ObjectRef[A],
    b: ObjectRef[B],
    c: ObjectRef[C],
    d: ObjectRef[D],
    e: ObjectRef[E],
    /,
    *,
    return_exceptions: bool,
) -> tuple[A | RayError, B | RayError, C | RayError, D | RayError, E | RayError]: ...
@overload
async def gather(*refs: ObjectRef[T], return_exceptions: Literal[False] = False) -> list[T]: ...
@overload
async def gather(*refs: ObjectRef[T], return_exceptions: bool) -> list[T | RayError]: ...
async def gather(*refs: ObjectRef[Any], return_exceptions: bool = False) -> Any:
    """Return the values of these objects, in order: `asyncio.gather` for references.

    The same as `get` of a list. ``asyncio.gather(*refs)`` works too, with a task for each.

    Args:
        *refs: References.
        return_exceptions: Wait for all, and return errors in the places of values.

    Raises:
        RayError: The first error found, though others be unfinished.

    Example:
        >>> one, two = await gather(f.remote(1), f.remote(2))  # doctest: +SKIP
    """
    return await get(list(refs), return_exceptions=return_exceptions)


async def wait(
    refs: list[W],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[W], list[W]]:
    """Split references into those whose objects are there and the rest; `raylite.wait`, awaited.

    To take many one by one as they come, `as_completed` is what costs the same for each.

    Args:
        refs: Different references.
        num_returns: How many to wait for; no more are returned as ready.
        timeout: Seconds to wait; None waits as long as it takes, 0 only looks.
        fetch_local: See `raylite.wait`.

    Raises:
        TypeError: `refs` is not a list of references.
        ValueError: A reference is there twice, or `num_returns` cannot be had.

    Example:
        >>> ready, rest = await wait([f.remote(), g.remote()], timeout=1)  # doctest: +SKIP
    """
    _api.check_wait(refs, num_returns, timeout)
    if timeout is not None:
        timeout = _api.limit(timeout)
    if not refs:
        return [], []
    known = _api.of_living_clusters(refs)
    core, count = _api.home(known), min(num_returns, len(known))
    ready, rest = await awaiting.wait(core, known, count, timeout, fetch_local=fetch_local)
    return (ready, rest) if len(known) == len(refs) else _api.told_apart(refs, ready)


def as_completed(refs: Iterable[ObjectRef[T]], *, timeout: float | None = None) -> "AsCompleted[T]":
    """Return an asynchronous iterator of these references, each as soon as its object is there.

    What it yields is what it was given, so a dictionary can say which is which; ``await ref`` gives
    the value, or raises its error, at once (an object of another node has to be brought). However
    many there are, each costs the same. One that is there twice comes once. Several coroutines may
    share the iterator: each reference goes to one of them. Leaving the loop early leaves the tasks
    alone.

    Args:
        refs: References, from a list or anything else; read to its end at once, here.
        timeout: Seconds, from now, until the last is to be there.

    Raises:
        TypeError: Something in it is no reference, or `timeout` no number.
        ValueError: `timeout` is not a number (NaN).
        GetTimeoutError: By ``async for``: time ran out. Iterating again goes on where it was.

    Example:
        >>> async for ref in as_completed([f.remote(n) for n in range(8)]):  # doctest: +SKIP
        ...     print(await ref)
    """
    return AsCompleted(refs, timeout)


class AsCompleted(AsyncIterator[ObjectRef[T]], Generic[T]):
    """What `as_completed` returns. ``len()`` says how many are still to come."""

    def __init__(self, refs: Iterable[ObjectRef[T]], timeout: float | None) -> None:
        if isinstance(refs, AsyncIterable):
            raise TypeError(
                f"as_completed() reads all its references at once, and {refs!r} yields them one by "
                "one: iterate over it by itself, with `async for`"
            )
        listed = list(refs)
        _api.check_refs(listed)
        if timeout is not None:
            _api.limit(timeout)
        self._coming: dict[Entry, ObjectRef[T]] = {ref._entry: ref for ref in listed}
        self._arrivals = awaiting.Arrivals()
        self._deadline = None if timeout is None else self._arrivals.loop.time() + timeout
        self._here: deque[Entry] = self._arrivals.arrived
        if listed:
            self._core: Core = _api.home(listed)
            self._core.watch_all(list(self._coming), self._arrivals)

    def __len__(self) -> int:
        return len(self._coming)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ObjectRef[T]:
        while not self._here:
            if not self._coming:
                raise StopAsyncIteration
            if self._arrivals.future.done():  # or somebody else waits for the next, too
                self._arrivals.rearm()
            if not self._here:
                await self._next_arrival()
        return self._coming.pop(self._here.popleft())

    async def _next_arrival(self) -> None:
        limit = asyncio.timeout_at(self._deadline)
        try:
            async with limit:
                arrival = asyncio.shield(self._arrivals.future)  # others may wait for it
                self._core.awaits(arrival)
                await arrival
        except TimeoutError:
            if not self._here:
                raise timed_out() from None

    def __del__(self) -> None:
        if hasattr(self, "_core") and self._coming:
            self._arrivals.silence()


async def put(value: T) -> ObjectRef[T]:
    """Store a value once, for any number of tasks; `raylite.put`, while the loop goes on.

    Pickling and copying happen in a thread, unless the value is very small: leave the value as it
    is until this returns. Cancelling it lets go of what is stored.

    Args:
        value: Anything that can be pickled, but not a reference.

    Raises:
        TypeError: The value is an ObjectRef, or cannot be pickled.
        ObjectStoreFullError: Shared memory stayed full for a minute.

    Example:
        >>> table = await put(numpy.zeros(10_000_000))  # doctest: +SKIP
    """
    expect_loop("raylite.put, value")
    place = await _place()
    if type(value) in _QUICK or (isinstance(value, str | bytes) and len(value) < _SHORT):
        return _put(place, value)
    return await asyncio.to_thread(_put, place, value)


def _put(place: Place, value: T) -> ObjectRef[T]:
    with context.at(place):
        return _api.put(value)


async def cancel(
    ref: ObjectRef[Any] | ObjectRefGenerator[Any], *, force: bool = False, recursive: bool = True
) -> CancelOutcome:
    """Let the task that makes an object end early, and return what came of it when it has ended.

    `raylite.cancel`, acknowledged. Cancelling the await withdraws nothing.

    Args:
        ref: A reference to a result of the task, or the generator of its items.
        force: End the worker process, if the task runs.
        recursive: Cancel the tasks that it has started as well, and theirs.

    Returns:
        ``BEFORE_START``: it has not run and will not. ``WHILE_RUNNING``: it was interrupted.
        ``FINISHED_FIRST``: it had ended, perhaps cancelled by another, or ended in spite of the
        interrupt; its result, or its error, stays.

    Raises:
        TypeError: `ref` is neither.
        RuntimeError: No asyncio loop runs here: this may be trio. Nothing is cancelled.

    Example:
        >>> await cancel(f.remote())  # doctest: +SKIP
        <CancelOutcome.BEFORE_START: 0>
    """
    expect_loop("raylite.cancel, ref")
    if isinstance(ref, ObjectRefGenerator):
        ref = ref._end
    if not isinstance(ref, ObjectRef):
        raise TypeError(f"cancel() needs an ObjectRef or an ObjectRefGenerator, not {type(ref)}")
    outcome = _api.home([ref]).cancel(ref._entry, force=bool(force), recursive=bool(recursive))
    return await asyncio.wrap_future(outcome)


async def _place() -> Place:
    """Return the place of this thread; without one, start a cluster as `init` does."""
    here = context.current()
    return await in_thread(auto.place) if here is None else here
