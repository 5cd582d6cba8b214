"""The core: what the program's threads see of the core worker.

User threads never touch a machine. They pickle, make ids and entries, append to a deque and wake
the loop once a batch; values are unpickled on the thread that asked for them. Everything else
happens on the loop thread, in the services.
"""

import asyncio
import itertools
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, ClassVar, ParamSpec, TypeVar

from raylite._kernel.alarm import Alarm
from raylite._kernel.arena import Arena
from raylite._kernel.link import Link
from raylite._kernel.network import Network
from raylite._kernel.seams import now
from raylite._kernel.threads import acquire, await_on, refuse_to_wait_for, run_on, settled
from raylite._services.worker import blocking
from raylite._services.worker.awaited import Awaited
from raylite._services.worker.copies import GET, Bringing, Copies
from raylite._services.worker.exports import Exports
from raylite._services.worker.handover import Handover
from raylite._services.worker.locations import LocationService
from raylite._services.worker.objects import (
    Blocked,
    BlockedThread,
    Drop,
    Entry,
    Fetching,
    FetchingThread,
    ObjectRef,
    Views,
    W,
    Waiter,
)
from raylite._services.worker.owned import OwnedTask
from raylite._services.worker.owner import OwnerService, error_of
from raylite._services.worker.producer import Gate, ThreadGate
from raylite._services.worker.ready import has_ready, never, split
from raylite._services.worker.submit import SubmitService
from raylite._services.worker.writing import Writing
from raylite._types.cancellation import CancelOutcome
from raylite._types.keys import ObjectKey, TaskKey
from raylite._wire import hot, pickling
from raylite._wire.hot import Contained, Form, Value
from raylite.exceptions import (
    GetTimeoutError,
    RayError,
    RaySystemError,
)

P = ParamSpec("P")
T = TypeVar("T")

_PUTS_BEFORE_WAKING = 256
_PATIENCE = 0.01  # seconds that a generator is held back before it lends its CPU


class Core:
    """One process's objects and tasks, for any thread of it.

    Args:
        id: This process's id: a worker's or a driver's.
        job: The job it belongs to, 4 bytes.
        loop: The loop that the services run on, in a thread of its own.
        network: This process's network; its address is what others know this process by.
        arena: The node's shared memory.
        owner: The Owner service.
        submit: The Submit service.
        locations: The Location service.
        raylet_link: The link to this node's raylet.
        wake: Has the loop call something soon, from any thread; a simulation has only one.
    """

    #: Whether one of this process has been closed, of which there may be references yet.
    has_ended: ClassVar[bool] = False

    def __init__(
        self,
        id: bytes,
        job: bytes,
        loop: asyncio.AbstractEventLoop,
        network: Network,
        arena: Arena,
        owner: OwnerService,
        submit: SubmitService,
        locations: LocationService,
        raylet_link: Link,
        wake: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        self.id = id
        self.job: bytes = job
        self.loop = loop
        self.network = network
        self.address: str = network.address
        self.owner = owner
        self.submitter = submit
        self.handover: Handover = Handover(loop, network, owner, submit, wake)
        self.raylet_link = raylet_link
        self._arena = arena
        self._locations = locations
        self.copies: Copies = Copies(owner, raylet_link, arena, self.handover.do_if_open)
        self.node: bytes = b""
        #: Of large values, into the arena.
        self.writing: Writing = Writing(owner, raylet_link, arena, self.handover.do)
        #: Called with the `Drop` of a reference that died. The loop is woken for it by an alert only.
        self.dropped: Callable[[Drop], object] = self.handover.append
        owner.hear_drops = self.handover.drain
        owner.alarm = (
            partial(loop.call_soon_threadsafe, self.handover.alerted)  # C code, see `Drop`
            if wake is None
            else lambda _: wake(self.handover.drain)
        )
        random = network.seams.random("ids")
        self._task_numbers = itertools.count(random.getrandbits(64))
        self._put_numbers = itertools.count(1)
        self._put_prefix = self._task_suffix = random.randbytes(8)
        self.config: hot.JobConfig = hot.JobConfig()
        self.exports: Exports = Exports()
        self.join(job, self.config)
        self._definition_numbers = itertools.count(1)
        self._pinned: list[Entry] = []
        #: Called, on the blocking thread, before and after it waits: a worker lends its CPU.
        self.on_block: Callable[[], None] | None = None
        self.on_unblock: Callable[[], None] | None = None
        self.task_thread = 0
        #: Called when the loops of a plain task begin to await values, and when they have them.
        self.on_awaiting: Callable[[bool], None] | None = None
        self.awaited: Awaited = Awaited(self._awaiting)
        #: Called with each future of a value that is awaited, where tasks overlap.
        self.on_await: Callable[[asyncio.Future[None]], None] | None = None
        self._has_warned = False
        #: Says why an object is not there yet; see `ExplainService`. For the loop.
        self.explain: Callable[[Entry], Coroutine[Any, Any, hot.Explanation]] = _no_explanation
        self.task_waiter: BlockedThread | None = None  # what the task waited for last

    def join(self, job: bytes, config: hot.JobConfig) -> None:
        """Belong to a job: a worker learns of it with its first task, and keeps to it."""
        self.job = job
        self.config = config
        self._task_suffix = b"\xff" * 12 + job
        self._put_prefix = self._put_prefix[:8] + self._task_suffix

    @property
    def is_closed(self) -> bool:
        """Whether the loop has ended, or is about to: nothing can be asked of it."""
        return self.handover.is_closed

    def settle(self, node: bytes) -> None:
        """Belong to a node: a process learns its id when it has attached."""
        self.node = self.copies.node = self.writing.node = self._locations.node = node

    # ---- tasks ---------------------------------------------------------------------------

    def define(
        self,
        function: bytes,
        name: str,
        title: str,
        config: hot.JobConfig,
        overlaps: bool,
        max_calls: int = 0,
    ) -> int:
        """Register a pickled function for tasks of a configuration; the number stands for both."""
        number = next(self._definition_numbers)
        self.submitter.peers.definitions[number] = hot.Definition(
            number, function, name, self.job, self.id, title, config, overlaps, max_calls
        )
        return number

    def new_task_id(self) -> bytes:
        number = next(self._task_numbers) & 0xFFFFFFFFFFFFFFFF
        return number.to_bytes(8, "little") + self._task_suffix

    def limit(self, task: bytes, seconds: float, until: float | None) -> None:
        """Let a task that is enqueued next end within so many seconds, and by a time of the loop's."""
        self.handover.append((self.submitter.limit, TaskKey(task), seconds, until))

    def enqueue(self, task: OwnedTask) -> None:
        """Send a task on its way; the loop takes it from here."""
        handover = self.handover
        handover.append(task)
        if not handover.is_woken:
            handover.wake()

    def cancel(self, entry: Entry, *, force: bool, recursive: bool) -> "Future[CancelOutcome]":
        """Cancel the task that makes an object; the future has the outcome when it has ended."""
        outcome: Future[CancelOutcome] = Future()
        self.handover.do(self.submitter.canceller.cancel, entry, force, recursive, outcome)
        return outcome

    # ---- objects -------------------------------------------------------------------------

    def put(self, value: Any) -> ObjectRef[Any]:
        """Store a value; this process owns it."""
        return self.put_pickled(pickling.dumps(value))

    def put_pickled(self, pickled: pickling.Pickled) -> ObjectRef[Any]:
        if pickled.size <= hot.INLINE_LIMIT:
            value = Value(Form.INLINE, pickled.to_bytes())
            return self.keep(self.new_object_id(), value, pickled)
        return self.store_pickled(pickled)

    def store_pickled(self, pickled: pickling.Pickled) -> ObjectRef[Any]:
        """Put a value into the arena, be it small."""
        id = self.new_object_id()
        return self.keep(id, self.store_result(id, self.id, pickled), pickled)

    def new_object_id(self) -> ObjectKey:
        """Return an id for an object that no task makes."""
        return ObjectKey(self._put_prefix + next(self._put_numbers).to_bytes(4, "little"))

    def keep(self, id: ObjectKey, value: Value, pickled: pickling.Pickled) -> ObjectRef[Any]:
        """Own a value that is stored."""
        entry = Entry(id, self, "", 1, value)
        inner = tuple(ref._entry for ref in pickled.contained if isinstance(ref, ObjectRef))
        if inner:
            contained = tuple(Contained(each.id, each.owner or self.address) for each in inner)
            entry.value = Value(
                value.form, value.data, value.offset, value.size, contained, b"", value.node
            )
        ref: ObjectRef[Any] = ObjectRef(entry)
        handover = self.handover
        handover.append((self._added, entry, inner))
        if len(handover) > _PUTS_BEFORE_WAKING and not handover.is_woken:
            handover.wake()
        return ref

    def store_result(self, id: bytes, owner: bytes, pickled: pickling.Pickled) -> Value:
        """Write a large value into the arena; waits for room, and a worker's task lends its CPU then."""
        is_task = self.on_block is not None and threading.get_ident() == self.task_thread
        find = self._find_room if is_task else self.writing.allocate
        try:
            room = self.run(find, id, owner, pickled.size)
            return self.writing.write(id, room, pickled)
        except BaseException:  # interrupted: nobody will hear of the object
            self.writing.discard(id)
            raise

    async def _find_room(self, id: bytes, owner: bytes, size: int) -> hot.Allocation:
        """Get room for the task's thread. Who would make some may be waiting for this CPU."""
        assert self.on_block is not None
        assert self.on_unblock is not None
        lending = Alarm(self.on_block)
        lending.set(now() + _PATIENCE)
        try:
            return await self.writing.allocate(id, owner, size)
        finally:
            lending.cancel()
            self.on_unblock()

    async def store_soon(self, id: bytes, owner: bytes, pickled: pickling.Pickled) -> Value:
        """The same, on another loop than this process's own; meanwhile, that does other things."""
        try:
            room = await self.ask(self.writing.allocate, id, owner, pickled.size)
            return self.writing.write(id, room, pickled)
        except BaseException:
            self.writing.discard(id)
            raise

    def interrupted(self) -> None:
        """The task was interrupted, perhaps where it told the loop something: mend that.

        Called on its thread, before it begins another task.
        """
        if self.on_unblock is not None:
            self.handover.append((self.on_unblock,))
        self.handover.wake()

    def find(self, id: bytes) -> Entry | None:
        return self.owner.find(id)

    def restore(self, id: bytes, owner: str) -> ObjectRef[Any]:
        """Return this process's reference to an object: the one there is, or a new one.

        Where nothing but a reference that has just died may hold the object, the loop first does what
        was asked for: the object ends with that. What is unpickled is held, by the value or the task
        that it came with; who only knows an id (`owner` is empty then) holds nothing.
        """
        entry = self.owner.find(id)
        if entry is not None:
            if (known := entry.known_ref) is not None:
                return known
            if owner and (entry.submitted or entry.contained):
                ref: ObjectRef[Any] = ObjectRef(entry)
                self.handover.do(self._added_local, entry)
                return ref
        if asyncio._get_running_loop() is self.loop:
            return self._restored(Contained(id, owner))
        return self.run(self._restore, Contained(id, owner))

    def hold(self, entries: tuple[Entry, ...]) -> None:
        """Hold these for a result that contains them, before the task's own references die."""
        self.handover.append((self._held, entries))

    def load(self, entry: Entry) -> Any:
        """Unpickle a value that is there, or raise its error."""
        value = entry.value
        assert value is not None
        if value.form == Form.INLINE:
            return pickling.load_value(value.data)
        return self.read(value, entry)

    def read(self, value: Value, entry: Entry | None) -> Any:
        """Unpickle a value; large ones are views of the arena, which keep the object alive."""
        if value.form == Form.INLINE:
            return pickling.load_value(value.data)
        if value.form == Form.ERROR:
            if entry is not None:
                self._saw([entry])
            raise error_of(value, entry)
        assert entry is not None
        if value.node != self.node and self.copies.is_away(value):
            return pickling.load_value(self._brought([entry])[entry])
        self.handover.append((self._added_view, entry))
        if entry.value is not value:  # its owner died in this moment: the bytes may be reused
            self.handover.append((self._dropped_view, entry))
            assert entry.value is not None
            raise error_of(entry.value, entry)
        view = self._arena.view(value.offset, value.size, _view_dropper(self, entry))
        return pickling.load_value(view)

    def get(self, refs: Sequence[ObjectRef[Any]], timeout: float | None) -> list[Any]:
        """Return the values of these, in order; raise the first error there is at once."""
        if len(refs) == 1 and timeout is None:
            entry = refs[0]._entry
            if entry.value is None:
                self._await_values([entry], BlockedThread(1, raises=True), None)
            return [self.load(entry)]
        started = monotonic()
        entries = [ref._entry for ref in refs]
        missing = [entry for entry in entries if entry.value is None]
        if missing:
            if not any(entry.is_error for entry in entries):
                waiter = BlockedThread(len(set(missing)), raises=True)
                self._await_values(missing, waiter, timeout)
            self.raise_first(entries)
            if any(entry.value is None for entry in missing):
                raise timed_out()
        load = self.load
        away = [e for e in entries if (v := e.value) is not None and v.node and self.is_away(e)]
        if not away:
            try:
                return [load(entry) for entry in entries]
            except RayError:
                self._saw(entries)
                raise
        left = None if timeout is None else timeout - (monotonic() - started)
        views = self._brought(list(dict.fromkeys(away)), left)
        return [
            pickling.load_value(views[entry]) if entry in views else load(entry)
            for entry in entries
        ]

    def raise_first(self, entries: list[Entry]) -> None:
        """Raise the first error there is. Who asked for all of them has been told of the others."""
        for entry in entries:
            if entry.is_error:
                self._saw(entries)
                self.load(entry)

    def _saw(self, entries: list[Entry]) -> None:
        """Errors of these were read: before the loop hears of a reference's end, it hears of that."""
        for entry in entries:
            if entry.is_error and not entry.owner:
                self.handover.append((self.owner.errors.read, entry.id))

    def await_all(self, entries: list[Entry], timeout: float | None) -> None:
        """Block this thread until all of these have values or errors."""
        missing = [entry for entry in entries if entry.value is None]
        if missing:
            waiter = BlockedThread(len(set(missing)), raises=False)
            self._await_values(missing, waiter, timeout)
            if any(entry.value is None for entry in missing):
                raise timed_out()

    def wait(
        self,
        refs: list[W],
        count: int,
        timeout: float | None,
        *,
        fetch_local: bool = True,
    ) -> tuple[list[W], list[W]]:
        """Split references into at most `count` whose values are there, and the rest.

        With `fetch_local`, they are there when they are on this node.
        """
        away = self.is_away if fetch_local else never
        here: dict[Entry, None] = {}
        if not has_ready(refs, count, away):
            missing = [e for ref in refs if (e := ref._entry).value is None or away(e)]
            waiter = FetchingThread(count - len(refs) + len(missing), away, self.copies.fetch)
            self._await_values(missing, waiter, timeout)
            self.end_fetching(missing, waiter)
            here = waiter.here
        return split(refs, count, here, away)

    def wait_for(self, entry: Entry, timeout: float | None) -> None:
        """Block this thread until an object has a value, or time is up."""
        self._await_values([entry], BlockedThread(1, raises=False), timeout)

    def pause(self, gate: Gate) -> None:
        """Block the task's thread at a gate. If that takes a moment, its CPU is lent meanwhile."""
        assert isinstance(gate, ThreadGate)
        if acquire(gate.lock, _PATIENCE):
            return
        self.handover.do(self.on_block)
        try:
            acquire(gate.lock)
        finally:
            self.handover.do(self.on_unblock)

    def bring(self, entry: Entry) -> Bringing | None:
        """Have an object brought to this node if it lies on another."""
        return self.copies.bring([entry], GET) if self.is_away(entry) else None

    def is_away(self, entry: Entry) -> bool:
        return entry.value is not None and self.copies.is_away(entry.value)

    def _brought(self, entries: list[Entry], left: float | None = None) -> Views:
        [bringing] = self.bring_each([entries], left)
        return bringing.result()

    def bring_each(self, groups: list[list[Entry]], left: float | None) -> list[Bringing]:
        """Block this thread until each group is on this node, or will not come: all are settled.

        A worker's task lends its CPU meanwhile. So many seconds of the caller's timeout are left.
        """
        self.mind_the_loop()
        is_task = self.on_block is not None and threading.get_ident() == self.task_thread
        bringings = [self.copies.bring(group, GET) for group in groups]
        if is_task:
            self.handover.do(self.on_block)
        try:
            if left is not None and left <= 0:
                self.run(self.copies.settle)
            deadline = None if left is None else monotonic() + max(left, 0.0)
            for bringing in bringings:
                if not settled(bringing, None if deadline is None else deadline - monotonic()):
                    raise timed_out()
                if bringing.cancelled():
                    raise RaySystemError("the session that this belongs to has ended")
        finally:
            for bringing in bringings:
                bringing.cancel()
            if is_task:
                self.handover.do(self.on_unblock)
        return bringings

    # ---- what entries ask of their process -----------------------------------------------

    def awaits(self, future: "asyncio.Future[None]") -> None:
        """Somebody is about to await this future of a value."""
        if self.on_await is not None:
            self.on_await(future)
        elif self.on_awaiting is not None and threading.get_ident() == self.task_thread:
            self.awaited.add(future)

    def _awaiting(self, is_awaiting: bool) -> None:
        if self.on_awaiting is not None:
            self.handover.do(self.on_awaiting, is_awaiting)

    def watch(self, entry: Entry, waiter: Waiter) -> None:
        self.handover.do(self._watched, entry, waiter)

    def watch_all(self, entries: list[Entry], waiter: Waiter) -> None:
        """Have a waiter told of each of these values."""
        self.handover.do(self._watched_all, entries, waiter)

    def need(self, entry: Entry) -> None:
        """Ask the owner of a borrowed object for its value, or where that is."""
        self.handover.do(self.owner.need, entry)

    def unwatch(self, entry: Entry, waiter: Waiter) -> None:
        self.handover.do(self._unwatched, [entry], waiter)

    def pin_for_ever(self, entry: Entry) -> None:
        """A reference left the runtime's sight (pickled by hand): never free its object."""
        self.handover.do(self._pinned_for_ever, entry)

    # ---- the loop's side -----------------------------------------------------------------

    def run(
        self, work: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a coroutine function on the loop, from another thread, and return what it returns."""
        self.refuse_to_wait()
        self._expect_loop()
        return run_on(self.loop, work, *args, **kwargs)

    async def ask(
        self, work: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a coroutine function on the loop, from a coroutine of another, and await the result."""
        self._expect_loop()
        return await await_on(self.loop, work, *args, **kwargs)

    def _expect_loop(self) -> None:
        if self.is_closed:
            raise RaySystemError(
                "the session that this belongs to has ended, or is another process's"
            )
        self.handover.wake()

    def mind_the_loop(self) -> None:
        """Say what is wrong with blocking this thread, if it runs an event loop.

        Raises:
            RuntimeError: It runs raylite's own, or that of tasks that overlap.
        """
        if asyncio._get_running_loop() is None:
            return
        self.refuse_to_wait()
        if self.on_await is not None and threading.get_ident() == self.task_thread:
            raise blocking.refuse()
        if not self._has_warned:
            self._has_warned = True
            blocking.warn()

    def refuse_to_wait(self) -> None:
        """Raise on the loop's own thread: a user's callback there would stop everything."""
        refuse_to_wait_for(self.loop)

    def close(self) -> None:
        """Ask nothing more of the loop, which is about to end."""
        self.handover.is_closed = True
        Core.has_ended = True
        self.owner.expect_no_drop()
        self.submitter.streams.expect_no_drop()

    def forked(self) -> None:
        """Forget the loop, which runs in the process that this one was just forked from."""
        self.close()
        self.handover.forked()

    async def flush(self) -> None:
        """Do all that was asked for, and wait (a second a peer at most) until it has arrived."""
        self.handover.drain()
        for link in self.network.links:
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await link.wait_received()

    def _added(self, entry: Entry, inner: tuple[Entry, ...]) -> None:
        self.owner.refs.add(entry)
        if entry.matters_elsewhere:
            self.owner.stored(entry)
        if inner:
            self.owner.refs.contains(entry, inner)
            self.owner.spawn(self.owner.register(inner))

    def _held(self, entries: tuple[Entry, ...]) -> None:
        for entry in entries:
            entry.submitted += 1

    def _added_local(self, entry: Entry) -> None:
        entry.local += 1
        self.owner.expect_drop(entry)

    def _added_view(self, entry: Entry) -> None:
        entry.views += 1

    def _dropped_view(self, entry: Entry) -> None:
        self.owner.perform(self.owner.refs.dropped_view(entry))
        if not entry.views:
            self.owner.on_viewless()

    def _watched(self, entry: Entry, waiter: Waiter) -> None:
        if entry.value is not None:
            waiter.ready(entry)
            return
        if entry.waiters is None:
            entry.waiters = []
        entry.waiters.append(waiter)
        self.owner.need(entry)

    def _watched_all(self, entries: list[Entry], waiter: Waiter) -> None:
        for entry in entries:
            self._watched(entry, waiter)

    def _unwatched(self, entries: list[Entry], waiter: Waiter) -> None:
        for entry in entries:
            if entry.waiters is not None and waiter in entry.waiters:
                entry.waiters.remove(waiter)

    def _pinned_for_ever(self, entry: Entry) -> None:
        entry.local += 1
        self._pinned.append(entry)

    async def _restore(self, contained: Contained) -> ObjectRef[Any]:
        return self._restored(contained)

    def _restored(self, contained: Contained) -> ObjectRef[Any]:
        entry = self.owner.entry_for(self, contained)
        if (known := entry.known_ref) is not None:
            return known
        entry.local += 1
        ref: ObjectRef[Any] = ObjectRef(entry)
        self.owner.expect_drop(entry)
        return ref

    # ---- waiting -------------------------------------------------------------------------

    def _await_values(
        self, entries: list[Entry], waiter: BlockedThread, timeout: float | None
    ) -> None:
        """Block this thread until the waiter has what it waits for, or time is up."""
        if waiter.count <= 0:
            return  # values came between the caller's look and this one
        if timeout is not None and timeout <= 0:
            self.run(self._look, entries, waiter)
            return
        self.mind_the_loop()
        unique = list(dict.fromkeys(entries))
        is_task = self.on_block is not None and threading.get_ident() == self.task_thread
        if is_task:
            self.task_waiter = waiter
        self.begin_wait(unique, waiter, is_task=is_task)
        try:
            acquire(waiter.lock, timeout)
        finally:
            self.end_wait(unique, waiter, is_task=is_task)

    def begin_wait(self, entries: list[Entry], waiter: Blocked, *, is_task: bool) -> None:
        """Have a waiter told of these values; a worker's task lends its CPU while it waits."""
        self.handover.do(self._watch_all, entries, waiter, self.on_block if is_task else None)

    def end_wait(self, entries: list[Entry], waiter: Blocked, *, is_task: bool) -> None:
        """The wait is over, one way or another."""
        if waiter.count > 0 or len(entries) > 1:  # some entry may know the waiter still
            self.handover.do(self._unwatched, entries, waiter)
        if is_task and not waiter.is_woken and self.on_unblock is not None:
            self.handover.do(self.on_unblock)

    def end_fetching(self, entries: list[Entry], waiter: Fetching) -> None:
        """This one no longer waits for what it has had fetched, which goes on."""
        if waiter.is_fetching:
            self.handover.do(self.copies.forget, entries, waiter)

    async def _look(self, entries: list[Entry], waiter: BlockedThread) -> None:
        """Let a waiter see what has arrived already."""
        for entry in entries:
            if entry.value is not None:
                waiter.ready(entry)
        if waiter.is_fetching:
            await self.copies.settle()

    def _watch_all(
        self, entries: list[Entry], waiter: Blocked, on_block: Callable[[], None] | None
    ) -> None:
        self._watched_all(entries, waiter)
        if on_block is not None and waiter.is_waiting:
            on_block()
            waiter.on_woken = self.on_unblock


async def _no_explanation(entry: Entry) -> hot.Explanation:
    return hot.Explanation(hot.TaskState.UNKNOWN, "nobody knows")


def timed_out() -> GetTimeoutError:
    """What `get` raises when time has run out."""
    return GetTimeoutError("Get timed out: some object(s) not ready.")


def _view_dropper(core: Core, entry: Entry) -> Callable[[], None]:
    def dropped() -> None:
        core.handover.do_if_open(core._dropped_view, entry)

    return dropped
