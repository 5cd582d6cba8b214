"""Copies: what is read stays, what is not goes in order, and nothing goes twice."""

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from raylite._machines.copies import Copies, Copy, Discard
from raylite._types.keys import ObjectKey

X, Y = ObjectKey(b"x"), ObjectKey(b"y")


def copy(key: ObjectKey, room: bytes = b"", owner: str = "owner", size: int = 10) -> Copy:
    return Copy(key, room or key, 0, size, owner)


def test_the_copy_read_longest_ago_is_evicted_first() -> None:
    machine = Copies()
    x, y = copy(X), copy(Y)
    machine.add(x)
    machine.add(y)
    assert machine.find(X) is x
    assert machine.evict() == [Discard(y, is_news=True)]
    assert machine.evict() == [Discard(x, is_news=True)]
    assert machine.evict() == []


def test_a_copy_that_is_read_is_not_evicted() -> None:
    machine = Copies()
    x = copy(X)
    machine.add(x)
    assert machine.pin(X, "reader") is x
    assert machine.evictable == 0
    assert machine.evict() == []
    assert machine.unpin(x, "reader") == []
    assert machine.evictable == 10


def test_the_primary_is_not_evicted() -> None:
    machine = Copies()
    machine.add(copy(X))
    assert machine.make_primary(X)
    assert machine.evict() == []
    assert not machine.make_primary(Y)


def test_a_copy_that_is_dropped_goes_with_its_last_reader_and_gets_no_new_one() -> None:
    machine = Copies()
    x = copy(X)
    machine.add(x)
    machine.pin(X, "one")
    machine.pin(X, "two")
    assert machine.drop(X) == []
    assert machine.pin(X, "three") is None
    assert machine.unpin(x, "one") == []
    assert machine.unpin(x, "two") == [Discard(x, is_news=False)]
    assert machine.unpin(x, "two") == []


def test_a_copy_takes_the_place_of_one_that_is_still_read() -> None:
    machine = Copies()
    old, new = copy(X, b"1"), copy(X, b"2")
    machine.add(old)
    machine.pin(X, "reader")
    assert machine.add(new) == []
    assert machine.find(X) is new
    assert machine.unpin(old, "reader") == [Discard(old, is_news=False)]
    assert machine.find(X) is new


def test_an_owner_takes_its_copies_along() -> None:
    machine = Copies()
    x = copy(X, owner="one")
    machine.add(x)
    machine.add(copy(Y, owner="two"))
    assert machine.owner_died("one") == [Discard(x, is_news=False)]
    assert machine.owner_died("one") == []


class Model(RuleBasedStateMachine):
    """Every copy that was added is either here, or was discarded once, when nobody read it."""

    keys = st.sampled_from([X, Y])
    readers = st.integers(0, 2)

    def __init__(self) -> None:
        super().__init__()
        self.machine = Copies()
        self.held: dict[bytes, Copy] = {}
        self.pins: dict[bytes, set[int]] = {}
        self.rooms = 0

    def perform(self, effects: list[Discard]) -> None:
        for discard in effects:
            assert not self.pins.pop(discard.copy.room)
            del self.held[discard.copy.room]

    @rule(key=keys, owner=st.sampled_from(["one", "two"]))
    def add(self, key: ObjectKey, owner: str) -> None:
        self.rooms += 1
        made = copy(key, str(self.rooms).encode(), owner)
        self.held[made.room], self.pins[made.room] = made, set()
        self.perform(self.machine.add(made))

    @rule(key=keys, reader=readers)
    def pin(self, key: ObjectKey, reader: int) -> None:
        if (pinned := self.machine.pin(key, reader)) is not None:
            self.pins[pinned.room].add(reader)

    @rule(which=st.integers(0, 5), reader=readers)
    def unpin(self, which: int, reader: int) -> None:
        for held in list(self.held.values())[which : which + 1]:
            self.pins[held.room].discard(reader)
            self.perform(self.machine.unpin(held, reader))

    @rule(key=keys)
    def drop(self, key: ObjectKey) -> None:
        self.perform(self.machine.drop(key))
        assert self.machine.find(key) is None

    @rule(key=keys)
    def make_primary(self, key: ObjectKey) -> None:
        self.machine.make_primary(key)

    @rule()
    def evict(self) -> None:
        effects = self.machine.evict()
        assert not any(discard.copy.is_primary for discard in effects)
        self.perform(effects)

    @rule(owner=st.sampled_from(["one", "two"]))
    def owner_died(self, owner: str) -> None:
        self.perform(self.machine.owner_died(owner))

    @invariant()
    def nothing_is_forgotten(self) -> None:
        self.machine.check()
        for held in self.held.values():
            here = self.machine.find(held.key)
            assert here is held or self.pins[held.room], "kept for nobody"


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
