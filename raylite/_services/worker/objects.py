"""Objects as one process sees them: the `ObjectRef` that programs hold, and the `Entry` behind it.

There is one `ObjectRef` for an object in a process, whatever road it came by, so that comparing and
hashing references is comparing and hashing Python objects. Threads of the program read an entry's
value without a lock: it is set once, by the loop thread.
"""

import asyncio
import concurrent.futures
import threading
import weakref
from collections.abc import Callable, Generator
from typing import Any, Generic, Protocol, TypeVar

from raylite._kernel.threads import acquire
from raylite._machines.refs import Reference
from raylite._types.ids import JobID, ObjectID, TaskID
from raylite._types.keys import ObjectKey
from raylite._wire import pickling
from raylite._wire.hot import Form, Value
from raylite._wire.pickling import note_contained
from raylite.exceptions import RayError

T = TypeVar("T", covariant=True)
V = TypeVar("V")


class Keeper(Protocol):
    """What an entry needs of its process: see `Core`."""

    address: str

    @property
    def is_closed(self) -> bool: ...

    @property
    def dropped(self) -> "Callable[[Drop], object]": ...
    def watch(self, entry: "Entry", waiter: "Waiter") -> None: ...
    def awaits(self, future: "asyncio.Future[None]") -> None: ...
    def load(self, entry: "Entry") -> Any: ...
    def bring(self, entry: "Entry") -> "concurrent.futures.Future[Views] | None": ...
    def need(self, entry: "Entry") -> None: ...
    def pin_for_ever(self, entry: "Entry") -> None: ...
    def mind_the_loop(self) -> None: ...


class Waiter(Protocol):
    """Who waits for a value; called once, on the loop thread."""

    def ready(self, entry: "Entry") -> None: ...


class Blocked(Waiter, Protocol):
    """Who waits for `count` values more, and does nothing else meanwhile."""

    count: int
    #: Set, on the loop, by the value that ended the wait.
    is_woken: bool
    #: Called on the loop just before that: a task that had lent its CPU has it back.
    on_woken: Callable[[], None] | None

    @property
    def is_waiting(self) -> bool: ...


class Drop(weakref.ref[Any]):
    """Sees an `ObjectRef` die, and is then itself what its process is told: `entry` has one less.

    What it calls is C code, `deque.append`. Python code would be a place for a Ctrl-C to strike,
    and an exception that is raised while an object dies reaches nobody.
    """

    __slots__ = ("entry",)
    entry: "Entry"


class Entry(Reference):
    """An object this process owns or borrows. `value` is None until it is known."""

    __slots__ = ("alert", "is_pulled", "is_registered", "keeper", "ref", "value", "waiters")

    def __init__(
        self,
        id: ObjectKey,
        keeper: Keeper,
        owner: str = "",
        local: int = 0,
        value: Value | None = None,
    ) -> None:
        self.id = id
        self.owner = owner
        self.local = local
        self.submitted = self.views = self.contained = 0
        self.borrowers: dict[str, int] | None = None
        self.holds: tuple[Reference, ...] = ()
        self.keeper: Keeper = keeper
        self.value: Value | None = value
        self.waiters: list[Waiter] | None = None
        self.ref: Drop | None = None
        self.alert: weakref.ref[Any] | None = None  # wakes the loop when the reference dies
        self.is_registered: bool = False  # borrowed, and the owner knows
        self.is_pulled: bool = False  # borrowed, and its value has been asked for

    @property
    def known_ref(self) -> "ObjectRef[Any] | None":
        """The reference to it that this process has, if it has one."""
        return None if self.ref is None else self.ref()

    @property
    def matters_elsewhere(self) -> bool:
        """Whether more than this process's small memory waits for its end."""
        value = self.value
        if value is not None and (value.form == Form.ARENA or value.contained):
            return True
        return bool(self.owner)

    @property
    def is_in_arena(self) -> bool:
        return self.value is not None and self.value.form == Form.ARENA

    @property
    def is_error(self) -> bool:
        return self.value is not None and self.value.form == Form.ERROR


Views = dict[Entry, memoryview]
"""The bytes of objects as they lie in the arena; a view that is alive keeps its object there."""


class ObjectRef(Generic[T]):
    """A reference to an object that exists, or that a task will make.

    ``await ref`` gives the value on any asyncio loop; cancelling the await leaves the task alone.
    References compare by the object they stand for, and pickle into tasks, values and actors. The
    object lives as long as a reference to it does, anywhere in the cluster.
    """

    __slots__ = ("__weakref__", "_entry")

    def __init__(self, entry: Entry) -> None:
        try:
            entry.ref = drop = Drop(self, entry.keeper.dropped)
        except AttributeError:
            # Ray: takes the bytes of an id. Here there is one reference for an object in a process.
            raise TypeError(
                f"an ObjectRef cannot be made of {type(entry)}: use "
                "raylite.ObjectRef.from_binary(id) for the reference with an id"
            ) from None
        self._entry = entry
        drop.entry = entry

    @classmethod
    def from_binary(cls, binary: bytes) -> "ObjectRef[Any]":
        """Return this process's reference to the object with this id.

        Reading it raises `ObjectLostError` if this process knows no such object: an id does not
        say who owns it, as a pickled reference does. Wants raylite to be initialized.
        """
        return restore(ObjectID(binary).binary(), "")

    @classmethod
    def from_hex(cls, hex_id: str) -> "ObjectRef[Any]":
        """Return what `from_binary` does, for an id in hexadecimal."""
        return cls.from_binary(ObjectID.from_hex(hex_id).binary())

    @classmethod
    def nil(cls) -> "ObjectRef[Any]":
        """Return the reference that stands for nothing."""
        return cls.from_binary(ObjectID.nil().binary())

    @classmethod
    def from_random(cls) -> "ObjectRef[Any]":
        """Return a reference to an object that does not exist."""
        return cls.from_binary(ObjectID.from_random().binary())

    def done(self) -> bool:
        """Return whether there is a value, or an error; nothing is waited for or fetched.

        Of an object that another process owns, this one asks the owner at the first call, and says
        False until it has the answer.

        Example:
            >>> put(1).done()  # doctest: +SKIP
            True
        """
        entry = self._entry
        if entry.value is None and entry.owner and not entry.is_pulled:
            entry.keeper.need(entry)
        return entry.value is not None

    def exception(self) -> RayError | None:
        """Return the error that reading the object would raise, or None if it has a value.

        The value is neither waited for nor fetched, so what only its fetching or unpickling would
        show, such as the loss of the last copy, is not told. A cancelled task's is a
        `TaskCancelledError`.

        Raises:
            asyncio.InvalidStateError: It is not `done`.

        Example:
            >>> failed = [ref for ref in refs if ref.done() and ref.exception()]  # doctest: +SKIP
        """
        if not self.done():
            raise asyncio.InvalidStateError(
                f"the object {self.hex()} is not there yet: await it, or see done() first"
            )
        entry = self._entry
        if not entry.is_error:
            return None
        try:
            entry.keeper.load(entry)
        except RayError as error:
            return error
        raise AssertionError("an error that does not raise")

    @property
    def size(self) -> int | None:
        """The bytes of the pickled value, or None as long as it is not `done`; nothing is fetched.

        Of an object whose task failed it is the size of the error.
        """
        # Ray: a method, the length of an id. That is `ObjectID.size()`.
        value = self._entry.value if self.done() else None
        return None if value is None else value.size or len(value.data)

    def binary(self) -> bytes:
        """Return the id's 28 bytes."""
        return self._entry.id

    def hex(self) -> str:
        """Return the id in hexadecimal."""
        return self._entry.id.hex()

    def is_nil(self) -> bool:
        """Return whether this is the reference that stands for nothing."""
        return ObjectID(self._entry.id).is_nil()

    def task_id(self) -> TaskID:
        """Return the id of the task that makes the object."""
        return ObjectID(self._entry.id).task_id()

    def job_id(self) -> JobID:
        """Return the id of the job the object belongs to."""
        return self.task_id().job_id()

    def owner_address(self) -> bytes:
        """Return the address of the process that owns the object."""
        # Ray: a message with ids, host and port. Here addresses are text.
        return (self._entry.owner or self._entry.keeper.address).encode()

    def call_site(self) -> str:
        """Return "": where references are made is not recorded."""
        return ""

    def as_future(self) -> "asyncio.Future[T]":
        """Return a future of the running loop; ``await ref`` does without."""
        return asyncio.wrap_future(self.future())

    def future(self) -> "concurrent.futures.Future[T]":
        """Return a future of the value, for code without an event loop.

        Cancelling it leaves the task alone. The value is unpickled by whoever asks for it. A done
        callback may run on raylite's own event loop: what waits, such as `get`, is refused there.
        """
        if self._entry.keeper.is_closed:
            raise unknown_owner(self._entry)
        future: RefFuture[T] = RefFuture(self)
        self._entry.keeper.watch(self._entry, future)
        return future

    def __await__(self) -> Generator[Any, None, T]:
        entry = self._entry
        if entry.keeper.is_closed:
            raise unknown_owner(entry)
        if entry.value is None:
            waiter = LoopFuture()
            entry.keeper.watch(entry, waiter)
            entry.keeper.awaits(waiter.future)
            yield from waiter.future
        if entry.is_in_arena and (bringing := entry.keeper.bring(entry)) is not None:
            views = yield from asyncio.wrap_future(bringing)
            return pickling.load_value(views[entry])  # type: ignore[no-any-return]
        return entry.keeper.load(entry)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"ObjectRef({self.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        entry = self._entry
        if not note_contained(self):
            entry.keeper.pin_for_ever(entry)
        return restore, (entry.id, entry.owner or entry.keeper.address)

    def __copy__(self) -> "ObjectRef[T]":
        return self

    def __deepcopy__(self, memo: object) -> "ObjectRef[T]":
        return self

    def _on_completed(self, callback: Callable[[T], None]) -> None:
        """Call back with the value, or with the exception that reading it raises."""

        def done(future: "concurrent.futures.Future[T]") -> None:
            error = future.exception()
            callback(future.result() if error is None else error)  # type: ignore[arg-type]

        self.future().add_done_callback(done)


_NO_LOOP = (
    "references can be awaited in an asyncio event loop (asyncio's own or uvloop's), and none runs "
    "here. In trio code use raylite.get in a thread: await trio.to_thread.run_sync(raylite.get, ref)"
)


class Waitable(Protocol):
    """What `wait` takes: a reference, or a generator, whose entry is that of its next item."""

    @property
    def _entry(self) -> Entry: ...


W = TypeVar("W", bound=Waitable)


class LoopFuture:
    """Wakes an asyncio future of the loop that awaits a reference."""

    __slots__ = ("future", "loop")

    def __init__(self) -> None:
        try:
            self.loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(_NO_LOOP) from None
        self.future: asyncio.Future[None] = self.loop.create_future()

    def ready(self, entry: Entry) -> None:
        if self.loop is asyncio.get_running_loop():
            _set_all([self.future])
            return
        wakes = _wakes.setdefault(threading.get_ident(), {})
        if self.loop not in wakes:
            wakes[self.loop] = []
            asyncio.get_running_loop().call_soon(_wake_loop, self.loop, wakes)
        wakes[self.loop].append(self.future)


def _wake_loop(loop: asyncio.AbstractEventLoop, wakes: "_Wakes") -> None:
    """Wake everybody of one loop whose value came in this tick: one wake-up, not one each."""
    futures = wakes.pop(loop)
    try:
        loop.call_soon_threadsafe(_set_all, futures)
    except RuntimeError:
        pass  # that loop was closed; nobody awaits there any more


def _set_all(futures: "list[asyncio.Future[None]]") -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


_Wakes = dict[asyncio.AbstractEventLoop, "list[asyncio.Future[None]]"]
_wakes: dict[int, _Wakes] = {}


class RefFuture(concurrent.futures.Future[V]):
    """A `concurrent.futures.Future` that unpickles in the thread that asks for the result."""

    def __init__(self, ref: ObjectRef[V]) -> None:
        super().__init__()
        self._ref = ref
        self._brought: concurrent.futures.Future[Views] | None = None

    def ready(self, entry: Entry) -> None:
        self._brought = bringing = entry.keeper.bring(entry)
        if bringing is None:
            self._complete()
        else:
            bringing.add_done_callback(self._complete)
            self.add_done_callback(lambda future: bringing.cancel())

    def _complete(self, brought: object = None) -> None:
        if self.set_running_or_notify_cancel():
            self.set_result(None)  # type: ignore[arg-type]

    def result(self, timeout: float | None = None) -> V:
        self._wait(timeout)
        entry = self._ref._entry
        if self._brought is not None:
            return pickling.load_value(self._brought.result()[entry])  # type: ignore[no-any-return]
        return entry.keeper.load(entry)  # type: ignore[no-any-return]

    def _wait(self, timeout: float | None) -> None:
        if not self.done():
            self._ref._entry.keeper.mind_the_loop()
            settled = threading.Lock()
            settled.acquire()
            self.add_done_callback(lambda future: settled.release())
            acquire(settled, timeout)
        super().result(0)  # raises if it was cancelled, or is not done

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._wait(timeout)
        try:
            self.result()
        except Exception as error:
            return error
        return None


class BlockedThread:
    """A thread waits until so many of its entries have values, or one of them is an error."""

    __slots__ = ("count", "is_woken", "lock", "on_woken", "raises")
    is_fetching = False

    def __init__(self, count: int, *, raises: bool) -> None:
        self.count: int = count
        self.raises: bool = raises
        self.is_woken: bool = False
        self.on_woken: Callable[[], None] | None = None
        self.lock: threading.Lock = threading.Lock()
        self.lock.acquire()

    def ready(self, entry: Entry) -> None:
        self.count -= 1
        if (self.count == 0 or (self.raises and entry.is_error)) and not self.is_woken:
            self.is_woken = True
            if self.on_woken is not None:
                self.on_woken()
            if self.lock.locked():
                self.lock.release()

    def give_up(self) -> None:
        """Wake the thread, which is to raise."""
        if self.lock.locked():
            self.lock.release()

    @property
    def is_waiting(self) -> bool:
        return self.lock.locked()


class Fetching:
    """What makes a waiter wait until objects are here: has those that are `away` fetched."""

    is_fetching: bool = False

    def __init__(
        self, away: Callable[[Entry], bool], fetch: Callable[[Entry, "Fetching"], None]
    ) -> None:
        self._away = away
        self._fetch = fetch
        #: Those that were away, and came.
        self.here: dict[Entry, None] = {}

    def ready(self, entry: Entry) -> None:
        """An object has its value: it is here, or is to be brought here."""
        if entry.is_in_arena and self._away(entry):
            self.is_fetching = True
            self._fetch(entry, self)
        else:
            self.arrived(entry)

    def fetched(self, entry: Entry) -> None:
        """An object has come, or reading it will say why not."""
        self.here[entry] = None
        self.arrived(entry)

    def arrived(self, entry: Entry) -> None:
        """There is one object more here; for the waiter to say what that means."""
        raise NotImplementedError


class FetchingThread(Fetching, BlockedThread):
    """A thread waits until so many objects are here."""

    def __init__(
        self,
        count: int,
        away: Callable[[Entry], bool],
        fetch: Callable[[Entry, Fetching], None],
    ) -> None:
        Fetching.__init__(self, away, fetch)
        BlockedThread.__init__(self, count, raises=False)

    def arrived(self, entry: Entry) -> None:
        BlockedThread.ready(self, entry)


def unknown_owner(entry: Entry) -> ValueError:
    """What is raised for a reference that another session (or cluster) left over."""
    whose = "a session that has ended" if entry.keeper.is_closed else "another cluster"
    return ValueError(
        f"Ray object(s) whose owner is unknown: the reference {entry.id.hex()} belongs to {whose}"
    )


def restore(id: bytes, owner: str) -> ObjectRef[Any]:
    """Return this process's reference to an object; what a pickled reference becomes."""
    return _restorer(id, owner)


def set_restorer(restorer: Callable[[bytes, str], ObjectRef[Any]]) -> None:
    """Say who turns ids into references; the runtime does, once."""
    global _restorer
    _restorer = restorer


def _no_process(id: bytes, owner: str) -> ObjectRef[Any]:
    raise ValueError(
        "an ObjectRef can only be unpickled in a process that is connected to its cluster"
    )


_restorer: Callable[[bytes, str], ObjectRef[Any]] = _no_process
