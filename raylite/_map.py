"""`f.map(...)`: a call for each element of an iterable, and never too many at once."""

import asyncio
import inspect
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, Self, TypeVar

from raylite._kernel.threads import expect_loop
from raylite._machines.pace import Pace
from raylite._options import TaskOptions
from raylite._runtime import auto, session
from raylite._runtime.context import Caller, Place
from raylite._services.worker import awaiting
from raylite._services.worker.chunk import Chunk, Failed
from raylite._services.worker.core import Core
from raylite._services.worker.objects import Entry, ObjectRef
from raylite._types.signature import Signature, yields
from raylite._wire import pickling
from raylite._wire.hot import Form, Value
from raylite.exceptions import RayError, capture_task_error

T = TypeVar("T")

_ALONE = ("retry_exceptions", "max_calls", "timeout", "deadline")
"""Options that are about a single call, so that each has to be a task."""

_LENT = frozenset({"num_cpus", "max_retries", "name", "runtime_env"})
"""Options of a chunk that can be split: while it waits, it keeps nothing that its calls need."""

_SAMPLE = 16  # results of a chunk whose sizes stand for those of all


class Calls(Protocol):
    """A remote function, as far as a map uses it."""

    _function: Callable[..., Any]
    _options: dict[str, Any]
    _signature: Signature
    _name: str
    _submission: Any  # None as long as the function itself could not be sent

    def _submit(self, caller: Caller, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...


class MakeCalls(Protocol):
    """The class of remote functions."""

    def __call__(
        self,
        function: Callable[..., Any],
        options: Mapping[str, Any],
        signature: Signature,
        exported: dict[Any, Any],
    ) -> Calls: ...


class Chunked:
    """A function that takes the arguments of several calls: one remote function for each number.

    Args:
        function: The function.
        width: How many arguments a call has.
    """

    def __init__(self, function: Callable[..., Any], width: int) -> None:
        self._function = function
        self._width = width
        #: By the options of the calls that are made singly; None: of those that never are.
        self._chunks: dict[str | None, tuple[Chunk, dict[Any, Any]]] = {}

    def calls(self, of: Calls, elements: int, make: MakeCalls) -> Calls:
        """Return what calls it for so many elements, with the options of a function."""
        options = {**of._options, "num_returns": elements + 1}
        is_split = _LENT.issuperset(of._options)
        kept = {name: each for name, each in of._options.items() if name != "name"}
        key = repr(sorted(kept.items())) if is_split else None
        if key not in self._chunks:
            singly = Singly(self._function, kept, make) if is_split else None
            self._chunks[key] = Chunk(self._function, self._width, singly), {}
        chunk, exported = self._chunks[key]
        return make(chunk, options, of._signature, exported)


class Singly:
    """Makes the calls of a chunk as tasks of their own, if its worker died the last time.

    So that only the one which kills its worker has to fail. The chunk's task waits for them, and
    lends them its CPUs.
    """

    def __init__(
        self, function: Callable[..., Any], options: Mapping[str, Any], make: MakeCalls
    ) -> None:
        self._function = function
        self._options = options
        self._make = make

    def __call__(self, calls: Sequence[tuple[Any, ...]]) -> Iterator[Any] | None:
        """Return the results of the calls; None if this is the first attempt."""
        place = auto.place()
        task = place.task
        if task is None or not task.attempt:
            return None
        retries = TaskOptions.of(self._options).max_retries
        left = retries if retries < 0 else max(retries - task.attempt, 0)
        options = {**self._options, "max_retries": left, "name": task.name}
        call = self._make(self._function, options, Signature.of(self._function), {})
        return _outcomes(place, call, calls)


def _outcomes(place: Place, call: Calls, calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Make the calls one after another, as a chunk does.

    At once, several would go to a worker, and those that had just ended be lost with it, too.
    """
    for arguments in calls:
        try:
            [result] = place.core.get([call._submit(place, arguments, {})], None)
        except RayError as error:
            result = Failed(error, is_told=True)
        except Exception as error:  # an argument that could be pickled once, and not again
            result = Failed(error)
        yield result


_Sent = tuple[int, list[Entry]]
"""How many elements a task has, and some of the objects that it makes."""


class Map(Generic[T]):
    """The references of a map, in the order of its elements. Made by ``f.map(...)``.

    Iterate with ``for`` or, in a coroutine, with ``async for``. Elements are read, and calls begin,
    a little ahead: there are at most twice as many tasks under way as can run at once, and as
    many with references that nobody has asked for. So iterating waits when it is ahead of the cluster,
    and a map of any length takes little memory, if whoever iterates lets go of the references.

    `close`, or letting go of the map, cancels what was begun ahead.
    """

    def __init__(
        self,
        function: Calls,
        make: MakeCalls,
        chunks: dict[int, Chunked],
        iterables: tuple[Iterable[Any], ...],
        chunksize: int | str,
    ) -> None:
        if not iterables:
            raise TypeError("map() must have at least one iterable")
        self._size = _size(function, chunksize)
        width = len(iterables)
        function._signature.bind((None,) * width, {})
        if width not in chunks:
            chunks[width] = Chunked(function._function, width)
        self._chunked = chunks[width]
        self._call = function
        self._make = make
        self._calls: dict[int, Calls] = {}  # by how many elements they take
        self._elements = zip(*iterables, strict=False)
        self._held: deque[tuple[Any, ...]] = deque()  # read, and not sent yet
        self._singly = 0  # so many of the next elements go alone
        self._is_exhausted = False
        self._error: Exception | None = None
        self._current: deque[ObjectRef[T]] = deque()
        self._ahead: deque[list[ObjectRef[T]]] = deque()
        #: By the reference that says that they have ended.
        self._under_way: dict[ObjectRef[Any], _Sent] = {}
        self._pace = Pace(1, 1)
        self._place: Place | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ObjectRef[T]:
        if self._place is None:
            place = auto.place()
            self._begin(place, session.resources(place).total)
        while not self._current:
            core = self._advance()
            if core is None:
                raise StopIteration
            if not self._current:
                core.wait(list(self._under_way), 1, None, fetch_local=False)
        return self._current.popleft()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ObjectRef[T]:
        expect_loop("next, refs, None")
        if self._place is None:
            place = auto.place()
            view = await asyncio.to_thread(session.resources, place)
            if self._place is None:  # nobody else was faster
                self._begin(place, view.total)
        while not self._current:
            core = self._advance()
            if core is None:
                raise StopAsyncIteration
            if not self._current:
                refs = list(self._under_way)
                await awaiting.wait(core, refs, 1, None, fetch_local=False)
        return self._current.popleft()

    def close(self) -> None:
        """End the map: read no more elements, and cancel what nobody was given a reference to.

        Letting go of the map does the same. Calls whose references were given go on.
        """
        self._is_exhausted = True
        self._held.clear()
        self._current.clear()
        core = None if self._place is None else self._place.core
        while self._ahead:
            entry = self._ahead.popleft()[0]._entry
            if core is not None and not core.is_closed and entry.value is None:
                core.cancel(entry, force=False, recursive=True)
        self._under_way.clear()

    def __del__(self) -> None:
        if hasattr(self, "_place"):  # its arguments were good
            self.close()

    # ---- inside --------------------------------------------------------------------------

    def _begin(self, place: Place, total: Mapping[str, float]) -> None:
        self._place = place
        options = TaskOptions.of(self._call._options)
        slots = options.slots(total)
        is_scattered = options.scheduling_strategy == "SPREAD"  # then each has a worker of its own
        if inspect.iscoroutinefunction(self._call._function) and not is_scattered:
            slots *= options.max_concurrency
        self._pace = Pace(slots, self._size)

    def _advance(self) -> Core | None:
        """Begin what there is room for, and take up the references that come next, if there are.

        Returns the core that the map runs on, or None if it is over.
        """
        place = self._place
        assert place is not None
        self._see_ended()
        while self._pace.has_room and len(self._ahead) < self._pace.limit:
            if not self._send(place):
                break
        if self._ahead:
            self._current.extend(self._ahead.popleft())
        elif self._is_exhausted and not self._held:
            error, self._error = self._error, None
            if error is not None:
                raise error
            return None
        return place.core

    def _see_ended(self) -> None:
        for ended in [ref for ref in self._under_way if ref._entry.value is not None]:
            elements, sample = self._under_way.pop(ended)
            value = ended._entry.value
            assert value is not None
            seconds = None
            if sample and not value.form:
                seconds = pickling.load_value(value.data)
            sizes = [len(v.data) + v.size for entry in sample if (v := entry.value) is not None]
            self._pace.ended(elements, seconds, sum(sizes) / max(len(sizes), 1))

    def _send(self, place: Place) -> bool:
        """Begin a task with the next elements; False if there are none."""
        elements = self._take()
        if not elements:
            return False
        is_plain = len(elements) == 1 and bool(
            self._size == 1 or self._singly or _has_ref(elements[0])
        )
        self._singly = max(self._singly - 1, 0)
        sent: _Sent = 1, []
        calls: Calls | None = self._call
        try:
            if is_plain:
                ref = self._call._submit(place, elements[0], {})
                refs = [ref]
            else:
                calls = self._calls.get(len(elements))
                if calls is None:
                    calls = self._chunked.calls(self._call, len(elements), self._make)
                    self._calls[len(elements)] = calls
                flat = tuple(argument for element in elements for argument in element)
                *refs, ref = calls._submit(place, flat, {})
                sent = len(refs), [each._entry for each in refs[:: -(-len(refs) // _SAMPLE)]]
        except Exception as error:
            if calls is None or calls._submission is None or place.core.is_closed:
                self._is_exhausted, self._error = True, error  # it would be that of all elements
                return False
            if len(elements) == 1:
                self._ahead.append([self._failed(place.core, error)])
                return True
            self._held.extendleft(reversed(elements))  # to find the one, and begin those before it
            self._singly = len(elements)
            return True
        self._pace.sent(0.0 if is_plain else pickling.dumps(elements[0]).size)
        self._under_way[ref] = sent
        self._ahead.append(refs)
        return True

    def _failed(self, core: Core, error: Exception) -> ObjectRef[T]:
        """Return a reference for an element that could not be sent: reading it raises this error."""
        told = capture_task_error(
            error,
            function_name=self._call._function.__name__,
            pid=os.getpid(),
            ip="",
            proctitle=f"map() of {self._call._name}",
        )
        pickled = pickling.dumps(told)
        return core.keep(core.new_object_id(), Value(Form.ERROR, pickled.to_bytes()), pickled)

    def _take(self) -> list[tuple[Any, ...]]:
        """Read the elements of the next task. One that has references goes alone, for it waits."""
        size = 1 if self._singly else self._pace.size
        taken: list[tuple[Any, ...]] = []
        while len(taken) < size:
            element = self._held.popleft() if self._held else self._read()
            if element is None:
                break
            if _has_ref(element):
                if not taken:
                    return [element]
                self._held.appendleft(element)
                break
            taken.append(element)
        return taken

    def _read(self) -> tuple[Any, ...] | None:
        if self._is_exhausted:
            return None
        try:
            return next(self._elements)
        except StopIteration:
            self._is_exhausted = True
        except Exception as error:
            self._is_exhausted, self._error = True, error
        return None


def _has_ref(element: tuple[Any, ...]) -> bool:
    return ObjectRef in map(type, element)


def _size(function: Calls, chunksize: int | str) -> int | None:
    """Return how many elements a task is to have, or None if that is to be found out."""
    options = function._options
    if options.get("num_returns") not in (None, 1) or yields(function._function):
        raise ValueError(
            f"map() needs a function with one result, and {function._name} has more: call "
            f"{function._name}.remote() for each element"
        )
    alone = [name for name in _ALONE if options.get(name)]
    is_once = options.get("max_retries") == 0  # a chunk could not be tried again
    if inspect.iscoroutinefunction(function._function):
        alone.append("async def")
    if chunksize == "auto":
        return 1 if alone or is_once else None
    if not isinstance(chunksize, int) or chunksize < 1:
        raise ValueError(f'chunksize must be "auto" or a positive integer, not {chunksize!r}')
    if alone and chunksize > 1:
        raise ValueError(
            f"chunksize={chunksize} with {', '.join(alone)}: that is about single calls, so each "
            "has to be a task of its own; leave chunksize out"
        )
    return chunksize
