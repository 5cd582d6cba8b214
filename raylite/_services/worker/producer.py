"""The producer's side of a stream: between the thread that runs a generator and the loop."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from contextlib import aclosing, suppress
from itertools import chain
from typing import Any, Protocol

from raylite._kernel.link import Link
from raylite._machines.streams import ENDLESS
from raylite._protocol import worker
from raylite._services.worker.objects import Entry
from raylite._services.worker.owner import OwnerService
from raylite._services.worker.streams import handed_key
from raylite._wire import hot
from raylite._wire.hot import Value
from raylite.exceptions import LinkError

AHEAD = 4 * 1024 * 1024  # bytes that may wait for the loop to send them
ITEM = 200  # what an item costs besides its data
QUEUED = 4 * 1024 * 1024  # bytes that may wait for the owner's link; others use it too
PACKET = 512 * 1024  # bytes of items in one message


class Gate(Protocol):
    """Where a producer waits; opening it lets it through once, also if it is not there yet."""

    def open(self) -> None: ...


class Handing(Protocol):
    """What packing a value notes: the references that the value contains."""

    handed: tuple[Entry, ...]


class ThreadGate:
    """A gate for a thread."""

    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()

    def open(self) -> None:
        if self.lock.locked():
            self.lock.release()


class CoroutineGate:
    """A gate for a coroutine of another loop than that which opens it."""

    __slots__ = ("_is_open", "_waiting")

    def __init__(self) -> None:
        self._is_open = False
        self._waiting: asyncio.Future[None] | None = None

    def open(self) -> None:
        self._is_open = True
        if (waiting := self._waiting) is not None:
            with suppress(RuntimeError):  # that loop was closed
                waiting.get_loop().call_soon_threadsafe(_let_through, waiting)

    async def passed(self, awaits: "Callable[[asyncio.Future[None]], None]") -> None:
        """Wait until it is open; `awaits` is told of what is awaited."""
        self._waiting = waiting = asyncio.get_running_loop().create_future()
        if not self._is_open:
            awaits(waiting)
            await waiting
        self._is_open, self._waiting = False, None


def _let_through(waiting: "asyncio.Future[None]") -> None:
    if not waiting.done():
        waiting.set_result(None)


class Producer:
    """The items of one attempt at a generator task.

    The thread (or, in a simulation, the coroutine) that runs the generator adds items, and waits at
    the gate while `must_wait`. The loop takes them, sends them, and opens the gate.
    """

    __slots__ = (
        "_handed", "_made", "_made_bytes", "_note", "_taken_bytes", "count", "gate", "is_abandoned",
        "is_noted", "is_orphan", "is_short", "is_waiting_for_room", "link", "next", "on_sent", "skip", "task",
        "until",
    )  # fmt: skip

    def __init__(
        self, task: hot.Task, link: Link, gate: Gate, note: "Callable[[Producer], None]"
    ) -> None:
        assert task.stream is not None
        self.task: hot.Task = task
        self.link: Link = link
        self.gate: Gate = gate
        self.skip: int = task.stream.skip
        self.until: int = task.stream.until
        self.is_abandoned: bool = task.stream.is_abandoned
        self.is_orphan: bool = False  # its owner has died: there is nobody to run on for
        self.count: int = 0  # items yielded, those that are passed over among them
        self.next: int = self.skip  # the number of the next item to be sent
        self.is_noted: bool = False  # the loop is about to take what there is
        self.is_short: bool = False  # it ended among the items that it had to pass over
        self.is_waiting_for_room: bool = False  # the owner reads too slowly
        self.on_sent: Callable[[], None] | None = None  # what waits until all are sent
        self._note = note
        self._made: deque[tuple[Value, tuple[Entry, ...]]] = deque()
        self._made_bytes = self._taken_bytes = 0  # each is written by one side only

    # ---- the side of the generator -------------------------------------------------------

    @property
    def is_wanted(self) -> bool:
        """Whether the item to come is to be sent: it is not there yet, and somebody reads."""
        return self.count >= self.skip and not self.is_abandoned

    @property
    def must_wait(self) -> bool:
        if self.is_orphan:
            return False  # also when the loop, which would open the gate, has ended
        return self.count >= self.until or self._made_bytes - self._taken_bytes > AHEAD

    def add(self, value: Value, handed: tuple[Entry, ...] = ()) -> None:
        """Add an item, and the references that it contains."""
        self._made_bytes += len(value.data) + ITEM
        self._made.append((value, handed))
        self.count += 1
        if not self.is_noted:
            self.is_noted = True
            self._note(self)

    def run(
        self,
        items: Iterable[Any],
        job: Handing,
        pack: Callable[[Any, hot.Task, int, Any], Value],
        pause: Callable[[Gate], None],
    ) -> None:
        """Add each item as it comes, and pause where the reader is too far behind."""
        assert self.task.stream is not None
        if (per_yield := self.task.stream.per_yield) != 1:
            items = chain.from_iterable(_several(each, per_yield) for each in items)
        for item in items:
            if self.is_wanted:
                value = pack(item, self.task, self.count + 1, job)
                handed, job.handed = job.handed, ()
                self.add(value, handed)
            elif self.is_orphan:
                return
            else:
                self.count += 1
            del item  # which may be large, while its generator makes the next one
            while self.must_wait:
                pause(self.gate)
        self.is_short = self.count < self.skip

    async def run_soon(
        self,
        items: AsyncGenerator[Any],
        job: Handing,
        pack: Callable[[Any, hot.Task, int, Any], Awaitable[Value]],
        pause: Callable[[Gate], Awaitable[None]],
    ) -> None:
        """The same for an asynchronous generator."""
        assert self.task.stream is not None
        per_yield = self.task.stream.per_yield
        async with aclosing(items):
            async for made in items:
                for item in (made,) if per_yield == 1 else _several(made, per_yield):
                    if self.is_wanted:
                        value = await pack(item, self.task, self.count + 1, job)
                        handed, job.handed = job.handed, ()
                        self.add(value, handed)
                    elif self.is_orphan:
                        return
                    else:
                        self.count += 1
                    while self.must_wait:
                        await pause(self.gate)
        self.is_short = self.count < self.skip

    # ---- the side of the loop ------------------------------------------------------------

    def allow(self, until: int, *, is_abandoned: bool) -> None:
        """The owner says how far it may go."""
        self.until = until
        self.is_abandoned = is_abandoned
        self.gate.open()

    def orphan(self) -> None:
        """The owner has died: let the generator be closed at its next yield."""
        self.is_orphan = True
        self.allow(ENDLESS, is_abandoned=True)

    def take(self) -> tuple[int, list[Value], list[tuple[int, tuple[Entry, ...]]]]:
        """Return items for one message: the number of the first, and what is handed with which."""
        first, size = self.next, 0
        values: list[Value] = []
        handed: list[tuple[int, tuple[Entry, ...]]] = []
        made = self._made
        while made and size < PACKET:
            value, entries = made.popleft()
            size += len(value.data) + ITEM
            if entries:
                handed.append((first + len(values), entries))
            values.append(value)
        self.next += len(values)
        self._taken_bytes += size
        self.gate.open()
        return first, values, handed

    @property
    def is_empty(self) -> bool:
        """Whether all that was added has been taken."""
        return not self._made


def _several(items: Any, count: int) -> Any:
    """Return the items of one yield, which have to be so many."""
    if not isinstance(items, tuple | list) or len(items) != count:
        raise ValueError(
            f"Streaming generator tasks with _num_objects_per_yield={count} must yield a tuple or "
            f"list of length {count}."
        )
    return items


class Producers:
    """The producers of one worker, by their tasks; all of it on the loop.

    Args:
        owner: This process's objects.
        submitters: Those who send tasks here.
        spawn: Runs a coroutine in the name of the service that this is part of.
    """

    def __init__(
        self,
        owner: OwnerService,
        submitters: dict[Link, worker.Submit],
        spawn: Callable[[Coroutine[object, object, None], str], object],
    ) -> None:
        self.table: dict[bytes, Producer] = {}
        self._owner = owner
        self._submitters = submitters
        self._spawn = spawn

    def allow(self, terms: hot.StreamTerms) -> None:
        """An owner says how far an attempt may go."""
        producer = self.table.get(terms.task)
        if producer is None or producer.is_orphan:  # what an owner said late, before it died
            return
        if producer.task.attempt == terms.attempt:
            producer.allow(terms.until, is_abandoned=terms.is_abandoned)

    def owner_ended(self, link: Link) -> None:
        """An owner's link has ended."""
        for producer in self.table.values():
            if producer.link is link:
                producer.orphan()

    def send(self, producer: Producer) -> None:
        """Send what a producer has made; later, while its owner reads too slowly."""
        producer.is_noted = False
        link, task = producer.link, producer.task
        while not (producer.is_waiting_for_room or producer.is_empty):
            if link.queued > QUEUED and not link.is_ended:
                producer.is_waiting_for_room = True
                self._spawn(self._send_when_there_is_room(producer), "send the items of a stream")
                return
            first, values, handed = producer.take()
            for number, entries in handed:
                key = handed_key(task.id, task.attempt, number)
                self._owner.hand_over(key, entries)
                if link.is_ended:
                    self._owner.received([key])
                else:
                    link.on_end(self._receiver_ended(key))
            if not link.is_ended:
                self._submitters[link].items(
                    hot.StreamItems(task.id, task.attempt, first, tuple(values))
                )

    def finish(self, task: hot.Task, then: Callable[[], None]) -> bool:
        """Send the last items of a task that has ended; if they have to wait, `then` comes later."""
        producer = self.table[task.id]
        self.send(producer)
        if producer.is_waiting_for_room:
            producer.on_sent = then
            return False
        if producer.is_short and not producer.link.is_ended:
            self._submitters[producer.link].items(
                hot.StreamItems(task.id, task.attempt, producer.count, ())
            )
        return True

    async def _send_when_there_is_room(self, producer: Producer) -> None:
        try:
            await producer.link.wait_room(QUEUED)
        except LinkError:
            pass  # then they are let go of
        producer.is_waiting_for_room = False
        self.send(producer)
        if producer.on_sent is not None and not producer.is_waiting_for_room:
            producer.on_sent()

    def _receiver_ended(self, key: bytes) -> Callable[[Link], None]:
        return lambda link: self._owner.received([key])
