"""The arena's extents: examples first, then a model that runs everything in any order."""

from collections.abc import Hashable

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raylite._machines.memory import PAGE, Allocated, Effect, Extent, Memory, Refused

OWNER, OTHER = b"owner", b"other"


def create(
    memory: Memory,
    name: str,
    pages: int,
    *,
    owner: bytes = OWNER,
    now: float = 0.0,
    readers: frozenset[bytes] = frozenset(),
) -> list[Effect]:
    return memory.create(name.encode(), pages * PAGE, owner, now, f"ask-{name}", readers)


def allocated(effects: list[Effect]) -> Allocated:
    (effect,) = effects
    assert isinstance(effect, Allocated), effect
    return effect


def refused(effects: list[Effect]) -> Refused:
    (effect,) = effects
    assert isinstance(effect, Refused), effect
    return effect


def requests(effects: list[Effect]) -> list[Hashable]:
    return [effect.request for effect in effects if isinstance(effect, Allocated)]


def test_an_object_keeps_its_own_size_and_takes_whole_pages() -> None:
    memory = Memory(10 * PAGE)
    extent = allocated(memory.create(b"a", PAGE + 1, OWNER, 0, "r")).extent
    assert (extent.offset, extent.size, extent.span) == (0, PAGE + 1, 2 * PAGE)
    assert memory.find(b"a") == extent
    assert memory.statistics().used == 2 * PAGE


def test_an_empty_object_has_a_place_of_its_own() -> None:
    memory = Memory(2 * PAGE)
    first = allocated(create(memory, "a", 0)).extent
    second = allocated(create(memory, "b", 0)).extent
    assert first.offset != second.offset


def test_pages_are_fresh_until_they_are_reported_reserved() -> None:
    memory = Memory(10 * PAGE)
    first = allocated(create(memory, "a", 4))
    assert first.fresh == (Extent(0, 4 * PAGE),)
    memory.free(b"a")
    assert allocated(create(memory, "a", 4)).fresh == first.fresh, "the reservation may have failed"
    memory.warmed(first.fresh)
    memory.free(b"a")
    assert allocated(create(memory, "a", 6)).fresh == (Extent(4 * PAGE, 2 * PAGE),)


def test_warm_runs_are_used_before_cold_ones() -> None:
    memory = Memory(100 * PAGE)
    for name in "abc":
        memory.warmed(allocated(create(memory, name, 10)).fresh)
    memory.free(b"b")
    again = allocated(create(memory, "d", 3))
    assert (again.extent.offset, again.fresh) == (10 * PAGE, ())


def test_the_tightest_run_is_used() -> None:
    memory = Memory(100 * PAGE)
    for name, pages in [("a", 9), ("b", 1), ("c", 4), ("d", 1)]:
        memory.warmed(allocated(create(memory, name, pages)).fresh)
    memory.free(b"a")
    memory.free(b"c")
    assert allocated(create(memory, "e", 4)).extent.offset == 10 * PAGE


def test_free_neighbours_are_joined() -> None:
    memory = Memory(3 * PAGE)
    for name in "abc":
        create(memory, name, 1)
    for object_id in (b"a", b"c", b"b"):
        memory.free(object_id)
    assert memory.statistics().largest_free == 3 * PAGE


def test_an_object_that_can_never_fit_is_refused_at_once() -> None:
    memory = Memory(4 * PAGE)
    assert "can never fit" in refused(create(memory, "a", 5)).message
    assert memory.next_expiry() is None


def test_a_large_object_is_not_overtaken_by_small_ones() -> None:
    memory = Memory(4 * PAGE)
    create(memory, "a", 3)
    assert create(memory, "large", 2) == []
    assert create(memory, "small", 1) == []
    assert requests(memory.free(b"a")) == ["ask-large", "ask-small"]


def test_a_waiting_request_asked_again_keeps_its_place_and_gets_one_answer() -> None:
    memory = Memory(PAGE)
    create(memory, "a", 1)
    assert create(memory, "b", 1) == []
    assert create(memory, "b", 1) == []
    assert requests(memory.free(b"a")) == ["ask-b"]


def test_a_cancelled_request_lets_the_next_one_through() -> None:
    memory = Memory(4 * PAGE)
    create(memory, "a", 3)
    create(memory, "b", 2)
    create(memory, "c", 1)
    assert requests(memory.cancel("ask-b")) == ["ask-c"]
    assert memory.cancel("ask-b") == []


def test_waiting_for_the_whole_grace_is_refused_with_the_top_holders() -> None:
    memory = Memory(4 * PAGE, grace=60)
    create(memory, "a", 3, owner=OTHER)
    create(memory, "b", 1)
    create(memory, "c", 2, now=10)
    assert memory.next_expiry() == 70
    assert memory.expire(69.9) == []
    message = refused(memory.expire(70)).message
    assert f"top holders: {OTHER.hex()} 12.3 KB in 1, {OWNER.hex()} 4.1 KB in 1" in message
    assert memory.next_expiry() is None


def test_an_expired_request_lets_the_next_one_through() -> None:
    memory = Memory(4 * PAGE, grace=60)
    create(memory, "a", 3)
    create(memory, "b", 2)
    create(memory, "c", 1, now=30)
    assert requests(memory.expire(60)) == ["ask-c"]


def test_freeing_twice_frees_once() -> None:
    memory = Memory(PAGE)
    create(memory, "a", 1)
    memory.free(b"a")
    create(memory, "b", 1)
    assert memory.free(b"a") == []
    assert memory.find(b"b") is not None


def test_an_object_made_again_replaces_its_earlier_extent() -> None:
    memory = Memory(4 * PAGE)
    create(memory, "a", 3)
    assert allocated(create(memory, "a", 4)).extent == Extent(0, 4 * PAGE)
    assert memory.statistics().objects == 1


def test_the_earlier_extent_of_an_object_made_again_is_kept_for_its_readers() -> None:
    memory = Memory(4 * PAGE)
    create(memory, "a", 2)
    assert allocated(create(memory, "a", 2, readers=frozenset({b"r"}))).extent.offset == 2 * PAGE
    assert create(memory, "b", 1) == []
    assert requests(memory.released(b"r", b"a")) == ["ask-b"]


def test_a_later_attempt_supersedes_one_that_waits() -> None:
    memory = Memory(PAGE)
    create(memory, "a", 1)
    memory.create(b"x", PAGE, OWNER, 0, "first")
    assert "superseded" in refused(memory.create(b"x", PAGE, OWNER, 0, "second")).message
    assert requests(memory.free(b"a")) == ["second"]


def test_freed_bytes_are_not_reused_under_a_live_view() -> None:
    memory = Memory(PAGE)
    create(memory, "a", 1)
    memory.free(b"a", readers=frozenset({b"r1", b"r2"}))
    assert create(memory, "b", 1) == []
    assert memory.released(b"r1", b"a") == []
    assert memory.released(b"r1", b"a") == [], "one reader cannot answer for another"
    assert requests(memory.reader_died(b"r2")) == ["ask-b"]


def test_one_acknowledgement_answers_one_giving_up() -> None:
    memory = Memory(2 * PAGE)
    readers = frozenset({b"r"})
    create(memory, "a", 1)
    create(memory, "a", 1, readers=readers)
    memory.free(b"a", readers=readers)
    memory.released(b"r", b"a")
    assert memory.statistics().quarantined == PAGE
    memory.released(b"r", b"a")
    assert memory.statistics().free == 2 * PAGE


def test_an_owners_death_quarantines_its_objects_until_the_last_reader_is_done() -> None:
    memory = Memory(3 * PAGE)
    create(memory, "a", 1)
    create(memory, "b", 1, owner=OTHER)
    create(memory, "c", 1)
    assert memory.owner_died(OWNER, frozenset({b"r1", b"r2"})) == []
    assert (memory.find(b"a"), memory.statistics().quarantined) == (None, 2 * PAGE)
    memory.released(b"r2", OWNER)
    assert create(memory, "d", 1, owner=OTHER) == []
    assert requests(memory.released(b"r1", OWNER)) == ["ask-d"]
    assert memory.find(b"b") is not None


def test_an_owners_death_refuses_what_it_waits_for() -> None:
    memory = Memory(PAGE)
    create(memory, "a", 1, owner=OTHER)
    create(memory, "b", 1)
    assert "died" in refused(memory.owner_died(OWNER)).message


def test_an_owner_whose_death_is_told_again_gives_up_what_came_in_between() -> None:
    memory = Memory(PAGE)
    memory.owner_died(OWNER)
    create(memory, "late", 1)
    memory.owner_died(OWNER)
    assert memory.statistics().free == PAGE


def test_acknowledgements_nobody_waits_for_are_ignored() -> None:
    memory = Memory(PAGE)
    create(memory, "a", 1)
    assert memory.released(b"r", OWNER) == []
    assert memory.reader_died(b"r") == []
    assert memory.find(b"a") is not None


def test_warming_ahead_suggests_free_cold_ranges_within_the_budget() -> None:
    memory = Memory(10 * PAGE)
    create(memory, "a", 2)
    assert memory.warm_ahead(3 * PAGE) == (Extent(2 * PAGE, 3 * PAGE),)
    memory.warmed(memory.warm_ahead(3 * PAGE))
    assert memory.statistics().warm == 3 * PAGE
    assert memory.warm_ahead(100 * PAGE) == (Extent(5 * PAGE, 5 * PAGE),)
    assert memory.warm_ahead(PAGE - 1) == ()
    assert allocated(create(memory, "b", 3)).fresh == ()


def test_a_range_reported_reserved_twice_is_counted_once() -> None:
    memory = Memory(4 * PAGE)
    memory.warmed([Extent(PAGE, PAGE)])
    memory.warmed([Extent(PAGE, PAGE), Extent(0, 3 * PAGE)])
    memory.check()
    assert memory.statistics().warm == 3 * PAGE


def test_a_node_without_an_object_store_refuses_every_object() -> None:
    memory = Memory(100)
    memory.check()
    refused(create(memory, "a", 1))
    assert memory.warm_ahead(PAGE) == ()


IDS = st.sampled_from([b"a", b"b", b"c", b"d", b"e"])
OWNERS = st.sampled_from([b"o1", b"o2", b"o3"])
READERS = st.frozensets(st.sampled_from([b"r1", b"r2", b"r3"]), max_size=2)
CAPACITY = 16


class MemoryModel(RuleBasedStateMachine):
    """Creates, frees, deaths and acknowledgements in any order, repeated ones included."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory(CAPACITY * PAGE, grace=10)
        self.now, self.last = 0.0, 0
        self.waiting: dict[int, tuple[bytes, int, bytes]] = {}  # request: object, size, owner
        self.alive: dict[bytes, tuple[bytes, Extent]] = {}  # object: owner, extent
        self.viewed: list[tuple[bytes, set[bytes], list[Extent]]] = []  # key, readers, extents
        self.reserved: set[int] = set()  # page numbers

    @rule(object_id=IDS, size=st.integers(0, (CAPACITY + 1) * PAGE), owner=OWNERS, readers=READERS)
    def create(self, object_id: bytes, size: int, owner: bytes, readers: frozenset[bytes]) -> None:
        self.last += 1
        if size <= CAPACITY * PAGE:
            self.give_up(object_id, [object_id], readers)
        self.waiting[self.last] = (object_id, size, owner)
        self.perform(self.memory.create(object_id, size, owner, self.now, self.last, readers))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.memory.create(*self.waiting[request], self.now, request) == []

    @rule(object_id=IDS, readers=READERS)
    def free(self, object_id: bytes, readers: frozenset[bytes]) -> None:
        self.give_up(object_id, [object_id], readers)
        self.perform(self.memory.free(object_id, readers))

    @rule(owner=OWNERS, readers=READERS)
    def owner_dies(self, owner: bytes, readers: frozenset[bytes]) -> None:
        self.give_up(owner, [i for i, (of, _) in self.alive.items() if of == owner], readers)
        self.perform(self.memory.owner_died(owner, readers))
        assert all(of != owner for _, _, of in self.waiting.values())

    @rule(reader=st.sampled_from([b"r1", b"r2", b"r3"]), key=IDS | OWNERS)
    def release(self, reader: bytes, key: bytes) -> None:
        for viewed, readers, _ in self.viewed:
            if viewed == key and reader in readers:
                readers.remove(reader)
                break
        self.forget_unread()
        self.perform(self.memory.released(reader, key))

    @rule(reader=st.sampled_from([b"r1", b"r2", b"r3"]))
    def reader_dies(self, reader: bytes) -> None:
        for _, readers, _ in self.viewed:
            readers.discard(reader)
        self.forget_unread()
        self.perform(self.memory.reader_died(reader))

    @rule(request=st.integers(0, 20))
    def cancel(self, request: int) -> None:
        self.waiting.pop(request, None)
        self.perform(self.memory.cancel(request))

    @rule(delay=st.sampled_from([0.5, 4.0, 11.0]))
    def time_passes(self, delay: float) -> None:
        self.now += delay
        self.perform(self.memory.expire(self.now))
        assert (self.memory.next_expiry() or self.now + 1) > self.now

    @rule(budget=st.integers(0, CAPACITY * PAGE))
    def warm_ahead(self, budget: int) -> None:
        ranges = self.memory.warm_ahead(budget)
        assert sum(extent.size for extent in ranges) <= budget
        self.reserve(ranges)

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            assert isinstance(effect.request, int)
            object_id, size, owner = self.waiting.pop(effect.request)  # KeyError: answered twice
            if isinstance(effect, Refused):
                continue
            assert (effect.object_id, effect.extent.size) == (object_id, size)
            assert not any(request < effect.request for request in self.waiting), "overtaken"
            self.alive[object_id] = (owner, effect.extent)
            if self.last % 2:  # every other reservation fails
                self.reserve(effect.fresh)
            fresh = {page for extent in effect.fresh for page in pages(extent)}
            assert set(pages(effect.extent)) <= fresh | self.reserved

    def reserve(self, ranges: tuple[Extent, ...]) -> None:
        for extent in ranges:
            assert not self.reserved & set(pages(extent)), "reserved already"
            self.reserved |= set(pages(extent))
        self.memory.warmed(ranges)

    def give_up(self, key: bytes, ids: list[bytes], readers: frozenset[bytes]) -> None:
        extents = [self.alive.pop(object_id)[1] for object_id in ids if object_id in self.alive]
        if extents and readers:
            self.viewed.append((key, set(readers), extents))

    def forget_unread(self) -> None:
        self.viewed = [viewed for viewed in self.viewed if viewed[1]]

    @invariant()
    def nothing_is_lent_twice(self) -> None:
        self.memory.check()
        lent = [extent for _, extent in self.alive.values()]
        lent += [extent for _, _, extents in self.viewed for extent in extents]
        taken = [page for extent in lent for page in pages(extent)]
        assert len(taken) == len(set(taken))
        statistics = self.memory.statistics()
        assert statistics.used + statistics.quarantined == len(taken) * PAGE
        assert statistics.warm == len(self.reserved) * PAGE
        assert statistics.waiting == len(self.waiting)
        for object_id in (b"a", b"b", b"c", b"d", b"e"):
            assert self.memory.find(object_id) == self.alive.get(object_id, (b"", None))[1]

    def teardown(self) -> None:
        for owner in (b"o1", b"o2", b"o3"):
            self.owner_dies(owner, frozenset())
        for reader in (b"r1", b"r2", b"r3"):
            self.reader_dies(reader)
        assert self.memory.statistics().free == CAPACITY * PAGE


def pages(extent: Extent) -> range:
    return range(extent.offset // PAGE, extent.end // PAGE)


TestMemoryModel = MemoryModel.TestCase
