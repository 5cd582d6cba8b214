"""Which extent of a node's arena holds which object.

The arena is one long run of bytes that every process of the node maps. This machine lends
extents of it to objects and takes them back; it never sees the bytes. What its carrier owes it:

- Reserve every range of `Allocated.fresh` (or of `warm_ahead`) in the operating system before
  anybody writes to it, and report success with `warmed`. A range stays cold until then, so a
  reservation that failed, or one still under way, is simply asked for again.
- Name the processes that may still be looking at, or writing to, bytes that are given up: the
  `readers` of `create`, `free` and `owner_died`. Those bytes are quarantined until each of them
  has acknowledged (`released`) or died: mapped bytes never change under a live view.
- Call `expire` when `next_expiry` has come.

Sizes and offsets are bytes. Finding an extent is O(log n) in the number of free runs.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Iterator

from msgspec import Struct

PAGE = 4096
"""Extents start on multiples of this, and nothing else shares their last page."""

NOBODY: frozenset[bytes] = frozenset()


class Extent(Struct, frozen=True):
    """A run of bytes in the arena; `size` is the object's own size, not rounded."""

    offset: int
    size: int

    @property
    def span(self) -> int:
        """The bytes it takes up: whole pages, and at least one."""
        return _span(self.size)

    @property
    def end(self) -> int:
        """The offset of the first byte after its last page."""
        return self.offset + _span(self.size)


class Allocated(Struct, frozen=True):
    """The object has its bytes; reserve `fresh` before anybody writes to them."""

    request: Hashable
    object_id: bytes
    extent: Extent
    fresh: tuple[Extent, ...]


class Refused(Struct, frozen=True):
    """The object gets no bytes, and the message says why."""

    request: Hashable
    message: str


Effect = Allocated | Refused


class MemoryStatistics(Struct, frozen=True):
    """Bytes and counts at one moment; ``used + quarantined + free == capacity``."""

    capacity: int
    used: int
    quarantined: int
    free: int
    largest_free: int
    warm: int
    objects: int
    waiting: int


class _Held(Struct, frozen=True):
    extent: Extent
    owner: bytes


class _Waiting(Struct, frozen=True):
    object_id: bytes
    size: int
    owner: bytes
    since: float


class _Ward(Struct):
    """Extents given up together, and who may still be looking at them."""

    extents: list[Extent]
    readers: set[bytes]


class Memory:
    """The extents of one node's arena, first come, first served.

    A create that does not fit waits, and holds back the ones behind it: a large object must
    not starve because small ones keep arriving. Between calls ``free + used + quarantined ==
    capacity`` and the first waiter does not fit (see `check`).
    """

    def __init__(self, capacity: int, *, grace: float = 60.0) -> None:
        self._capacity = capacity - capacity % PAGE
        self._grace = grace
        self._space = _Space(self._capacity)
        self._objects: dict[bytes, _Held] = {}
        self._owned: dict[bytes, set[bytes]] = {}
        self._waiting: OrderedDict[Hashable, _Waiting] = OrderedDict()
        self._awaited: dict[bytes, Hashable] = {}
        self._wards: dict[bytes, list[_Ward]] = {}
        self._used = self._quarantined = 0

    def create(
        self,
        object_id: bytes,
        size: int,
        owner: bytes,
        now: float,
        request: Hashable,
        readers: frozenset[bytes] = NOBODY,
    ) -> list[Effect]:
        """Find room for an object, at once or when there is some.

        An object that exists already (its task runs again) gives up its earlier extent first:
        `readers` are the processes that may still look at it or write to it. An earlier create
        of the same object that still waits is refused. A request that waits already is ignored.
        """
        if request in self._waiting:
            return []
        if not 0 <= size <= self._capacity:
            return [Refused(request, self._too_large(size))]
        effects: list[Effect] = []
        if (superseded := self._awaited.get(object_id)) is not None:
            self._withdraw(superseded)
            effects.append(Refused(superseded, "superseded by a later attempt at the same object"))
        self._give_up(object_id, [object_id], readers)
        self._waiting[request] = _Waiting(object_id, size, owner, now)
        self._awaited[object_id] = request
        return effects + self._advance()

    def free(self, object_id: bytes, readers: frozenset[bytes] = NOBODY) -> list[Effect]:
        """Give up an object's bytes; an unknown object is ignored (retries).

        With `readers`, the bytes are quarantined until each of them has called
        ``released(reader, object_id)``. A create of this object that still waits goes on waiting.
        """
        self._give_up(object_id, [object_id], readers)
        return self._advance()

    def cancel(self, request: Hashable) -> list[Effect]:
        """Withdraw a create that waits; one already answered, or unknown, is ignored."""
        self._withdraw(request)
        return self._advance()

    def owner_died(self, owner: bytes, readers: frozenset[bytes] = NOBODY) -> list[Effect]:
        """Give up everything this owner had, and refuse what it waits for.

        The bytes stay quarantined until each of `readers` has called ``released(reader,
        owner)``. May be repeated: that catches a create that came in after the death.
        """
        effects: list[Effect] = []
        for request in [r for r, waiting in self._waiting.items() if waiting.owner == owner]:
            self._withdraw(request)
            effects.append(Refused(request, f"the object's owner {owner.hex()} died"))
        self._give_up(owner, list(self._owned.get(owner, ())), readers)
        return effects + self._advance()

    def released(self, reader: bytes, key: bytes) -> list[Effect]:
        """A reader has let go of what was given up under this key, an object or an owner.

        One acknowledgement answers one giving up, the earliest that still waits for this reader.
        """
        for ward in self._wards.get(key, ()):
            if reader in ward.readers:
                ward.readers.discard(reader)
                break
        return self._end_quarantine(key)

    def reader_died(self, reader: bytes) -> list[Effect]:
        """A process ended, and its views with it: the same as all its acknowledgements."""
        effects: list[Effect] = []
        for key in list(self._wards):
            for ward in self._wards[key]:
                ward.readers.discard(reader)
            effects += self._end_quarantine(key)
        return effects

    def expire(self, now: float) -> list[Effect]:
        """Refuse the creates that have waited for the whole grace."""
        effects: list[Effect] = []
        while self._waiting:
            request, waiting = next(iter(self._waiting.items()))
            if waiting.since + self._grace > now:
                break
            self._withdraw(request)
            effects.append(Refused(request, self._full(waiting.size)))
        return effects + self._advance()

    def next_expiry(self) -> float | None:
        """The moment from which `expire` has something to do, unless room appears before."""
        for waiting in self._waiting.values():
            return waiting.since + self._grace
        return None

    def warm_ahead(self, budget: int) -> tuple[Extent, ...]:
        """Free ranges worth reserving while nothing else is to do, lowest first; see `warmed`."""
        ranges: list[Extent] = []
        for start, end in self._space.cold():
            for cold in self._space.free_parts(start, end):
                if budget < PAGE:
                    return tuple(ranges)
                size = min(cold.size, budget - budget % PAGE)
                ranges.append(Extent(cold.offset, size))
                budget -= size
        return tuple(ranges)

    def warmed(self, ranges: Iterable[Extent]) -> None:
        """These ranges are reserved in the operating system now."""
        for extent in ranges:
            self._space.warm(extent.offset, extent.end)

    def find(self, object_id: bytes) -> Extent | None:
        """Where an object is."""
        held = self._objects.get(object_id)
        return held.extent if held else None

    @property
    def is_short(self) -> bool:
        """Whether somebody waits for room."""
        return bool(self._waiting)

    @property
    def free_bytes(self) -> int:
        """What nobody has, in however many pieces."""
        return self._capacity - self._used - self._quarantined

    def statistics(self) -> MemoryStatistics:
        """Bytes and counts, for the meters and for whoever decides what to spill."""
        return MemoryStatistics(
            capacity=self._capacity,
            used=self._used,
            quarantined=self._quarantined,
            free=self._capacity - self._used - self._quarantined,
            largest_free=self._space.largest(),
            warm=self._capacity - sum(end - start for start, end in self._space.cold()),
            objects=len(self._objects),
            waiting=len(self._waiting),
        )

    def check(self) -> None:
        """Assert what must hold between calls; the tests run it after every step."""
        held = [object_.extent for object_ in self._objects.values()]
        warded = [e for wards in self._wards.values() for ward in wards for e in ward.extents]
        assert self._used == sum(extent.span for extent in held)
        assert self._quarantined == sum(extent.span for extent in warded)
        taken = [(extent.offset, extent.end) for extent in held + warded]
        runs = sorted(taken + list(self._space.free()))
        ends = [0] + [end for _, end in runs]
        assert [start for start, _ in runs] + [self._capacity] == ends, "a gap or an overlap"
        self._space.check()
        by_owner = [(held.owner, object_id) for object_id, held in self._objects.items()]
        assert sorted(by_owner) == sorted((o, i) for o, ids in self._owned.items() for i in ids)
        assert all(self._owned.values()), "an owner of nothing is remembered"
        assert all(ward.readers for wards in self._wards.values() for ward in wards)
        assert self._awaited == {w.object_id: request for request, w in self._waiting.items()}
        for first in list(self._waiting.values())[:1]:
            assert _span(first.size) > self._space.largest(), "the first waiter would fit"

    def _advance(self) -> list[Effect]:
        effects: list[Effect] = []
        while self._waiting:
            request, waiting = next(iter(self._waiting.items()))
            offset = self._space.take(_span(waiting.size))
            if offset is None:
                break
            self._withdraw(request)
            extent = Extent(offset, waiting.size)
            self._objects[waiting.object_id] = _Held(extent, waiting.owner)
            self._owned.setdefault(waiting.owner, set()).add(waiting.object_id)
            self._used += extent.span
            fresh = tuple(self._space.cold_parts(offset, extent.end))
            effects.append(Allocated(request, waiting.object_id, extent, fresh))
        return effects

    def _withdraw(self, request: Hashable) -> None:
        if (waiting := self._waiting.pop(request, None)) is not None:
            del self._awaited[waiting.object_id]

    def _give_up(self, key: bytes, ids: list[bytes], readers: frozenset[bytes]) -> None:
        extents = [held.extent for i in ids if (held := self._forget(i)) is not None]
        span = sum(extent.span for extent in extents)
        self._used -= span
        if extents and readers:
            self._wards.setdefault(key, []).append(_Ward(extents, set(readers)))
            self._quarantined += span
        else:
            self._reclaim(extents)

    def _forget(self, object_id: bytes) -> _Held | None:
        held = self._objects.pop(object_id, None)
        if held is not None:
            self._owned[held.owner].discard(object_id)
            if not self._owned[held.owner]:
                del self._owned[held.owner]
        return held

    def _end_quarantine(self, key: bytes) -> list[Effect]:
        wards = self._wards.pop(key, [])
        if kept := [ward for ward in wards if ward.readers]:
            self._wards[key] = kept
        for ward in wards:
            if not ward.readers:
                self._quarantined -= sum(extent.span for extent in ward.extents)
                self._reclaim(ward.extents)
        return self._advance()

    def _reclaim(self, extents: list[Extent]) -> None:
        for extent in extents:
            self._space.give(extent.offset, extent.end)

    def _too_large(self, size: int) -> str:
        return (
            f"an object of {_human(size)} can never fit into this node's object store of "
            f"{_human(self._capacity)}; store it in parts or start the node with more memory"
        )

    def _full(self, size: int) -> str:
        free = self._capacity - self._used - self._quarantined
        return (
            f"the object store is full: {_human(size)} wanted, {_human(free)} of "
            f"{_human(self._capacity)} free (largest run {_human(self._space.largest())}, "
            f"{_human(self._quarantined)} waiting for readers) after {self._grace:g} s; "
            f"top holders: {self._holders()}; "
            "drop references to large objects or start the node with more memory\n"
            "The local object store is full of objects that are still in scope and cannot be evicted."
        )

    def _holders(self, count: int = 5) -> str:
        sizes: Counter[bytes] = Counter()
        for held in self._objects.values():
            sizes[held.owner] += held.extent.span
        return (
            ", ".join(
                f"{owner.hex()} {_human(size)} in {len(self._owned[owner])}"
                for owner, size in sizes.most_common(count)
            )
            or "nobody"
        )


class _Space:
    """The free runs: best fit, neighbours joined, reserved (warm) runs preferred."""

    def __init__(self, capacity: int) -> None:
        self._end_of: dict[int, int] = {}
        self._start_of: dict[int, int] = {}
        self._cold: list[tuple[int, int]] = [(0, capacity)] if capacity else []
        self._warm_runs: list[tuple[int, int]] = []  # (span, start), sorted
        self._mixed_runs: list[tuple[int, int]] = []  # those with a cold page in them
        if capacity:
            self._insert(0, capacity)

    def take(self, span: int) -> int | None:
        """Take the low end of the tightest run that is warm, or else of the tightest."""
        for shelf in (self._warm_runs, self._mixed_runs):
            place = bisect_left(shelf, (span, 0))
            if place < len(shelf):
                found, start = shelf[place]
                self._remove(start, start + found)
                if found > span:
                    self._insert(start + span, start + found)
                return start
        return None

    def give(self, start: int, end: int) -> None:
        """Put a run back, joined with its free neighbours."""
        if (before := self._start_of.get(start)) is not None:
            self._remove(before, start)
            start = before
        if (after := self._end_of.get(end)) is not None:
            self._remove(end, after)
            end = after
        self._insert(start, end)

    def warm(self, start: int, end: int) -> None:
        """Note a range as reserved; the free runs in it may change their shelf."""
        touched = [(e.offset, e.end) for e in self.cold_parts(start, end)]
        if not touched:
            return
        runs = [run for run in self.free() if run[0] < end and start < run[1]]
        for run in runs:
            self._remove(*run)
        first, last = self._overlap(start, end)
        edges = (self._cold[first][0], start), (end, self._cold[last - 1][1])
        self._cold[first:last] = [edge for edge in edges if edge[0] < edge[1]]
        for run in runs:
            self._insert(*run)

    def cold(self) -> list[tuple[int, int]]:
        """The ranges never reserved, in order."""
        return list(self._cold)

    def cold_parts(self, start: int, end: int) -> Iterator[Extent]:
        """The cold ranges inside a range."""
        first, last = self._overlap(start, end)
        for low, high in self._cold[first:last]:
            low, high = max(low, start), min(high, end)
            yield Extent(low, high - low)

    def free(self) -> Iterable[tuple[int, int]]:
        """The free runs, in no order."""
        return self._end_of.items()

    def free_parts(self, start: int, end: int) -> list[Extent]:
        """The free ranges inside a range, in order."""
        inside = [(max(low, start), min(high, end)) for low, high in self._end_of.items()]
        return [Extent(low, high - low) for low, high in sorted(inside) if low < high]

    def largest(self) -> int:
        """The span of the largest free run."""
        return max(
            (shelf[-1][0] for shelf in (self._warm_runs, self._mixed_runs) if shelf), default=0
        )

    def check(self) -> None:
        """Assert that the indexes tell the same story."""
        assert {end: start for start, end in self._end_of.items()} == self._start_of
        assert not self._end_of.keys() & self._start_of.keys(), "neighbours were not joined"
        runs = sorted((end - start, start) for start, end in self._end_of.items())
        assert runs == sorted(self._warm_runs + self._mixed_runs)
        assert self._warm_runs == sorted(self._warm_runs)
        assert self._mixed_runs == sorted(self._mixed_runs)
        for shelf, cold in ((self._warm_runs, False), (self._mixed_runs, True)):
            assert all(any(self.cold_parts(s, s + span)) is cold for span, s in shelf)
        bounds = [bound for interval in self._cold for bound in interval]
        assert bounds == sorted(set(bounds)), "cold ranges overlap or touch"

    def _overlap(self, start: int, end: int) -> tuple[int, int]:
        """The slice of the cold ranges that have a byte in this range."""
        first = bisect_right(self._cold, start, key=lambda interval: interval[1])
        return first, bisect_left(self._cold, end, lo=first, key=lambda interval: interval[0])

    def _shelf(self, start: int, end: int) -> list[tuple[int, int]]:
        first, last = self._overlap(start, end)
        return self._mixed_runs if first < last else self._warm_runs

    def _insert(self, start: int, end: int) -> None:
        self._end_of[start], self._start_of[end] = end, start
        insort(self._shelf(start, end), (end - start, start))

    def _remove(self, start: int, end: int) -> None:
        del self._end_of[start], self._start_of[end]
        shelf = self._shelf(start, end)
        del shelf[bisect_left(shelf, (end - start, start))]


def _span(size: int) -> int:
    return max(PAGE, -(-size // PAGE) * PAGE)


def _human(size: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
