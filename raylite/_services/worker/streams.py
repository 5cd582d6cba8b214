"""Streams being read: what has arrived of generator tasks.

The loop thread makes an entry of every item that arrives. The reader's threads take them from a
deque, without a word to the loop; only where a producer may be held back does it want to hear of
it. The item that has not arrived has an entry already, for whoever wants it to wait for.
"""

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from raylite._kernel.link import Link
from raylite._machines.streams import Deliver, Discard, Effect, End, Stream, Tell
from raylite._protocol import worker
from raylite._services.worker.dynamic import DynamicObjectRefGenerator
from raylite._services.worker.objects import Drop, Entry, ObjectRef
from raylite._services.worker.owner import OwnerService
from raylite._types.keys import ObjectKey, TaskKey
from raylite._wire import hot, pickling
from raylite._wire.hot import Form, Value
from raylite.exceptions import (
    RayError,
    StreamingGeneratorReplayInconsistentError,
)

FIRST = 2  # the index of the first item among its task's objects; before it is the task's end
ENTRY_BYTES = 500  # what an item that waits to be read costs besides its value
UNHEARD = 64  # items that a worker can have stored, at most, before its owner heard of the first


class GeneratorDrop(Drop):
    """Sees an `ObjectRefGenerator` die, and is then itself what its process is told."""

    __slots__ = ("arrivals",)
    arrivals: "Arrivals"

    def dropped(self) -> None:
        """Nobody reads this stream any more; called on the loop."""
        self.arrivals.dropped()


class Arrivals:
    """What has arrived of one stream: the loop adds items, and the reader's threads take them.

    An item is added to `items` before another takes its place as `pending`. So a thread that notes
    what is pending, then finds nothing to take, waits for the right one.

    Args:
        task: The task that yields them.
        end: The object that is ready when the task has ended.
        limit: How many unread items there may be; 0 for no limit.
        per_yield: How many items a yield has.
        whole: The object that all items together are the value of, with ``num_returns="dynamic"``:
            then nobody takes them one by one.
    """

    __slots__ = (
        "alert", "drop", "end", "is_noted", "items", "pending", "per_yield", "stream", "streams",
        "task", "wants_news", "whole",
    )  # fmt: skip

    def __init__(
        self,
        task: TaskKey,
        end: Entry,
        limit: int = 0,
        per_yield: int = 1,
        whole: Entry | None = None,
    ) -> None:
        self.task: TaskKey = task
        self.end: Entry = end
        self.per_yield: int = per_yield
        self.whole: Entry | None = whole
        self.stream: Stream = Stream(limit)
        self.items: deque[Entry] = deque()  # those that arrived and were not taken
        self.pending: Entry = Entry(item_id(task, 0), end.keeper, "", 1)  # the one after those
        self.wants_news: bool = self.stream.wants_news
        self.is_noted: bool = False  # the loop is about to look what was taken
        self.streams: Streams | None = None
        self.drop: GeneratorDrop | None = None
        self.alert: weakref.ref[Any] | None = None  # wakes the loop when the generator dies
        end.waiters = [self]

    @property
    def next(self) -> Entry:
        """The next item, which may be on its way, or the end of the stream."""
        try:
            return self.items[0]
        except IndexError:
            return self.pending

    @property
    def is_finished(self) -> bool:
        """Whether all items were taken, and there will be no other."""
        return self.next.value is END

    # ---- on the loop ---------------------------------------------------------------------

    def ready(self, end: Entry) -> None:
        """The task has ended."""
        if self.streams is not None:
            self.streams.ended(self)

    def dropped(self) -> None:
        """Nobody reads this any more."""
        if self.streams is not None:
            self.streams.dropped(self)

    def read(self) -> None:
        """Something was taken, and the producer may wait for that."""
        if self.streams is not None:
            self.is_noted = False
            self.streams.perform(self, self.stream.read(len(self.items)))

    def awaited(self) -> None:
        """Somebody asked for the end of the task."""
        if self.streams is not None:
            self.streams.perform(self, self.stream.awaited())

    def unlimited(self) -> None:
        """Somebody waits for the end of the task, and may never read."""
        if self.streams is not None:
            self.streams.perform(self, self.stream.unlimited())


class Streams:
    """The streams of one process. `Stream` decides; this class carries it out, on the loop.

    Args:
        owner: This process's objects.
        tell: Tells a task's worker how far it may go, and whether anybody reads what it yields.
    """

    def __init__(self, owner: OwnerService, tell: Callable[[TaskKey, int, bool], None]) -> None:
        self._owner = owner
        self._tell = tell
        self.table: dict[TaskKey, Arrivals] = {}

    def open(self, arrivals: Arrivals) -> None:
        """Begin to keep a stream, before its task is submitted."""
        arrivals.streams = self
        self.table[arrivals.task] = arrivals
        arrivals.end.local += 1  # however early the reader leaves, the end is to be heard of
        self._owner.refs.add(arrivals.pending)
        if arrivals.whole is not None:
            self._owner.refs.add(arrivals.whole)
            arrivals.stream.awaited()

    def terms(self, task: TaskKey) -> hot.Streaming | None:
        """Return what the next attempt at a task is told, if it is a generator."""
        arrivals = self.table.get(task)
        if arrivals is None:
            return None
        terms = arrivals.stream.begin()
        return hot.Streaming(terms.skip, terms.until, terms.is_abandoned, arrivals.per_yield)

    def arrived(self, packet: hot.StreamItems, link: Link) -> None:
        """Items came, of the attempt that is under way."""
        arrivals = self.table[TaskKey(packet.task)]
        sizes = [len(value.data) + ENTRY_BYTES for value in packet.values]
        for effect in arrivals.stream.arrived(packet.first, sizes, len(arrivals.items)):
            match effect:
                case Deliver(skip):
                    self._discard(packet, range(skip), link)
                    self._deliver(arrivals, packet, skip, link)
                case Discard():
                    self.discard(packet, link)
                case _:
                    self.perform(arrivals, [effect])
        if arrivals.wants_news:
            # What was taken before the reader's threads could see that nobody has told.
            self.perform(arrivals, arrivals.stream.read(len(arrivals.items)))

    def discard(self, packet: hot.StreamItems, link: Link) -> None:
        """Let go of items that nobody will read."""
        self._discard(packet, range(len(packet.values)), link)

    def settle(self, task: TaskKey, result: hot.Result) -> hot.Result:
        """An exception that would be retried, if it might, is an item like any other."""
        arrivals = self.table.get(task)
        if arrivals is not None and result.values[0].form == Form.ERROR:
            self._append(arrivals, result.values[0])
            result = hot.Result(result.task, result.attempt, result.seconds, (NONE,), result.kept)
        return result

    def ended(self, arrivals: Arrivals) -> None:
        """A task has ended: `arrivals.end` says how."""
        effects = arrivals.stream.ended(failed=arrivals.end.is_error)
        self.perform(arrivals, effects)
        if not effects:
            self._owner.errors.read(arrivals.end.id)  # it was cancelled, and its error was an item
        self._owner.perform(self._owner.refs.dropped_local(arrivals.end))
        if arrivals.whole is not None:
            self.dropped(arrivals)
        if arrivals.stream.is_abandoned:
            self.table.pop(arrivals.task, None)

    def cancelled(self, task: TaskKey, error: RayError) -> None:
        """The reader wants no more: the next it gets is this error, whatever had arrived."""
        arrivals = self.table.get(task)
        if arrivals is not None and (effects := arrivals.stream.cancelled()):
            self._drop_unread(arrivals)
            self.perform(arrivals, effects, Value(Form.ERROR, pickling.dumps(error).to_bytes()))

    def dropped(self, arrivals: Arrivals) -> None:
        """The generator has died: its items go, and its task runs on to its end unread."""
        arrivals.drop = arrivals.alert = None  # it refers to the arrivals: a cycle
        effects = arrivals.stream.abandoned()
        self._drop_unread(arrivals)
        self._owner.perform(self._owner.refs.dropped_local(arrivals.pending))
        self.perform(arrivals, effects)
        if arrivals.end.value is not None:
            self.table.pop(arrivals.task, None)

    def unheard(self, task: TaskKey) -> list[ObjectKey]:
        """Return the ids of items that a worker may have stored without telling."""
        arrivals = self.table.get(task)
        if arrivals is None:
            return []
        received = arrivals.stream.received
        return [item_id(task, received + n) for n in range(UNHEARD)]

    def expect_no_drop(self) -> None:
        """Be deaf to what dies from now on. Any thread may say so."""
        for arrivals in list(self.table.values()):
            arrivals.alert = None

    def perform(
        self, arrivals: Arrivals, effects: list[Effect], error: Value | None = None
    ) -> None:
        """Carry out what a stream has decided."""
        for effect in effects:
            match effect:
                case Tell(until, is_abandoned):
                    self._tell(arrivals.task, until, is_abandoned)
                case End():
                    self._end(arrivals, effect, error or arrivals.end.value)
        arrivals.wants_news = arrivals.stream.wants_news

    def check(self) -> None:
        """Assert what holds between calls."""
        for arrivals in self.table.values():
            arrivals.stream.check()

    # ---- inside --------------------------------------------------------------------------

    def _deliver(self, arrivals: Arrivals, packet: hot.StreamItems, skip: int, link: Link) -> None:
        """Give the items entries. Readers wake last: they only fight this thread for the GIL."""
        owner, add, keeper = self._owner, self._owner.refs.add, arrivals.end.keeper
        task, values = packet.task, packet.values
        first = arrivals.pending
        entries = [first]
        for position in range(skip + 1, len(values)):
            value = values[position]
            index = packet.first + position + FIRST
            id = ObjectKey(task + index.to_bytes(4, "little"))
            is_plain = not (value.contained or value.form)
            entry = Entry(id, keeper, "", 1, value if is_plain else None)
            add(entry)
            entries.append(entry)
            if not is_plain:
                self._give(entry, value, packet, position, link)
        arrivals.items.extend(entries)
        arrivals.pending = self._pending(arrivals, packet.first + len(values))
        if values[skip].contained:
            self._give(first, values[skip], packet, skip, link)
        else:
            owner.complete(first, values[skip])

    def _give(
        self, entry: Entry, value: Value, packet: hot.StreamItems, position: int, link: Link
    ) -> None:
        if value.contained:
            key = handed_key(packet.task, packet.attempt, packet.first + position)
            self._owner.spawn(self._give_with_references(entry, value, key, link), "stream item")
        else:
            self._owner.complete(entry, value)

    async def _give_with_references(
        self, entry: Entry, value: Value, key: bytes, link: Link
    ) -> None:
        """The same, when references travelled: their new holder is made known first."""
        if entry.is_held:
            await self._owner.hold_contained(entry, value.contained)
        if not link.is_ended:
            worker.Owner(link).received(key)
        if entry.is_held:
            self._owner.complete(entry, value)
        else:
            self._owner.free_value(entry.id, value)

    def _append(self, arrivals: Arrivals, value: Value) -> None:
        """Add a last item that no worker sent."""
        if arrivals.stream.is_abandoned or arrivals.pending.value is not None:
            return
        last, number = arrivals.pending, _number(arrivals.pending.id)
        arrivals.items.append(last)
        arrivals.pending = self._pending(arrivals, number + 1)
        self._owner.complete(last, value)

    def _pending(self, arrivals: Arrivals, number: int) -> Entry:
        entry = Entry(item_id(arrivals.task, number), arrivals.end.keeper, "", 1)
        self._owner.refs.add(entry)
        return entry

    def _end(self, arrivals: Arrivals, end: End, error: Value | None) -> None:
        if arrivals.stream.is_abandoned:
            return
        if end is End.SHORT:
            short = StreamingGeneratorReplayInconsistentError(
                f"the generator task {arrivals.task.hex()} ran again, and yielded less than the "
                f"{arrivals.stream.received} items that it had yielded before: what it yields has "
                "to depend on its arguments only, for attempts to continue one another"
            )
            error = Value(Form.ERROR, pickling.dumps(short).to_bytes())
        if arrivals.whole is not None:
            self._complete(arrivals.whole, list(arrivals.items), None if end is End.DONE else error)
            return
        if end is not End.DONE:
            assert error is not None
            self._append(arrivals, error)
        self._owner.complete(arrivals.pending, END)

    def _complete(self, whole: Entry, items: list[Entry], value: Value | None) -> None:
        """Give all items together as a value, or what ended the task, if anybody wants it."""
        if not whole.is_held:
            return
        if value is None:
            for entry in items:
                entry.local += 1  # of the reference that is only made to be pickled
            data = pickling.dumps(DynamicObjectRefGenerator(ObjectRef(entry) for entry in items))
            address = whole.keeper.address
            contained = tuple(hot.Contained(each.id, address) for each in items)
            self._owner.perform(self._owner.refs.contains(whole, tuple(items)))
            value = Value(Form.INLINE, data.to_bytes(), 0, 0, contained)
        self._owner.complete(whole, value)

    def _discard(self, packet: hot.StreamItems, positions: range, link: Link) -> None:
        for position in positions:
            value, number = packet.values[position], packet.first + position
            if value.contained and not link.is_ended:
                worker.Owner(link).received(handed_key(packet.task, packet.attempt, number))
            self._owner.free_value(item_id(packet.task, number), value)

    def _drop_unread(self, arrivals: Arrivals) -> None:
        items, owner = arrivals.items, self._owner
        while items:
            owner.perform(owner.refs.dropped_local(items.popleft()))


def item_id(task: bytes, number: int) -> ObjectKey:
    """Return the id of the object that is a task's item of this number."""
    return ObjectKey(task + (number + FIRST).to_bytes(4, "little"))


def handed_key(task: bytes, attempt: int, number: int) -> bytes:
    """Return the name under which a worker holds what an item contains until it has arrived."""
    return item_id(task, number) + attempt.to_bytes(4, "little")


def _number(id: bytes) -> int:
    return int.from_bytes(id[-4:], "little") - FIRST


END = Value(
    Form.INLINE, pickling.dumps(None).to_bytes()
)  # the item after the last; nobody reads it
NONE = Value(Form.INLINE, pickling.dumps(None).to_bytes())
