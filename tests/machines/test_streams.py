"""Streams: every item is delivered once, in order, whatever becomes of the attempts at the task."""

from collections import deque

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raylite._machines.streams import (
    ENDLESS,
    Deliver,
    Discard,
    Effect,
    End,
    Stream,
    Tell,
    Terms,
)

HOLD, GO = Tell(0, is_abandoned=False), Tell(ENDLESS, is_abandoned=False)
FORGET = Tell(ENDLESS, is_abandoned=True)


def begun(limit: int = 0, room: int = 100) -> Stream:
    made = Stream(limit, room)
    made.begin()
    return made


def test_items_are_delivered_as_they_come_and_the_end_after_them() -> None:
    stream = Stream()
    assert stream.begin() == Terms(0, ENDLESS, is_abandoned=False)
    assert stream.arrived(0, [1, 1], left=0) == [Deliver(0)]
    assert stream.arrived(2, [1], left=2) == [Deliver(0)]
    assert stream.ended(failed=False) == [End.DONE]
    assert stream.ended(failed=True) == []


def test_a_producer_with_a_limit_is_that_far_ahead_of_its_reader() -> None:
    stream = Stream(limit=2)
    assert stream.begin().until == 2
    assert stream.arrived(0, [1, 1], left=0) == [Deliver(0)]
    assert stream.read(left=1) == [Tell(3, is_abandoned=False)]
    assert stream.read(left=1) == []
    assert stream.read(left=0) == [Tell(4, is_abandoned=False)]


def test_another_attempt_is_told_what_there_is_and_how_much_was_read() -> None:
    stream = begun(limit=2)
    stream.arrived(0, [1, 1], left=0)
    stream.read(left=1)
    assert stream.begin() == Terms(2, 3, is_abandoned=False)


def test_what_arrived_before_is_not_delivered_again() -> None:
    stream = begun()
    stream.arrived(0, [1, 1], left=0)
    assert stream.arrived(0, [1, 1, 1], left=0) == [Deliver(2)]
    assert stream.received == 3


def test_an_attempt_that_yields_less_than_there_is_was_another_stream() -> None:
    stream = begun()
    stream.arrived(0, [1, 1], left=0)
    stream.begin()
    assert stream.arrived(1, [], left=1) == [Discard()]
    assert stream.ended(failed=False) == [End.SHORT]


def test_an_attempt_after_a_short_one_may_be_long_enough() -> None:
    stream = begun()
    stream.arrived(0, [1, 1], left=0)
    stream.begin()
    stream.arrived(1, [], left=1)
    assert stream.begin().skip == 2
    assert stream.ended(failed=False) == [End.DONE]


def test_items_that_skip_some_are_not_taken() -> None:
    stream = begun()
    assert stream.arrived(1, [1], left=1) == [Discard()]
    assert stream.received == 0
    assert stream.ended(failed=False) == [End.SHORT]


def test_too_many_unread_bytes_hold_a_producer_back_until_half_are_read() -> None:
    stream = begun(room=100)
    assert stream.arrived(0, [60, 60], left=0) == [Deliver(0), HOLD]
    assert stream.wants_news
    assert stream.read(left=1) == []
    assert stream.read(left=0) == [GO]
    assert not stream.wants_news


def test_who_waits_for_the_end_lets_the_producer_get_there() -> None:
    stream = begun(room=100)
    stream.arrived(0, [60, 60], left=0)
    assert stream.awaited() == [GO]
    assert stream.arrived(2, [60], left=2) == [Deliver(0)]


def test_a_limit_stays_though_somebody_waits_for_the_end() -> None:
    stream = begun(limit=1)
    stream.arrived(0, [1], left=0)
    assert stream.awaited() == []


def test_who_waits_for_the_end_and_may_never_read_lifts_the_limit() -> None:
    stream = begun(limit=1, room=100)
    stream.arrived(0, [60], left=0)
    assert stream.unlimited() == [GO]
    assert not stream.wants_news
    assert stream.arrived(1, [60, 60], left=1) == [Deliver(0)]
    assert stream.begin() == Terms(3, ENDLESS, is_abandoned=False)


def test_an_abandoned_producer_goes_on_and_nothing_more_is_delivered() -> None:
    stream = begun(limit=1)
    stream.arrived(0, [1], left=0)
    assert stream.abandoned() == [FORGET]
    assert stream.abandoned() == []
    assert stream.arrived(1, [1], left=1) == [Discard()]
    assert stream.begin() == Terms(1, ENDLESS, is_abandoned=True)


def test_after_the_end_there_is_nobody_to_tell() -> None:
    stream = begun(limit=1)
    stream.arrived(0, [1], left=0)
    stream.ended(failed=False)
    assert stream.read(left=0) == []
    assert stream.abandoned() == []


def test_a_cancelled_stream_ends_with_its_error_whatever_had_arrived() -> None:
    stream = begun(limit=2)
    stream.arrived(0, [1, 1], left=0)
    assert stream.cancelled() == [End.FAILED, FORGET]
    assert stream.arrived(2, [1], left=2) == [Discard()]
    assert stream.ended(failed=True) == []
    assert stream.cancelled() == []


@pytest.mark.parametrize("failed", [False, True])
def test_a_stream_without_items_just_ends(failed: bool) -> None:
    assert begun().ended(failed=failed) == [End.FAILED if failed else End.DONE]


class World(RuleBasedStateMachine):
    """A generator of ten items, whose attempts die and start over, and a reader that takes its time.

    What attempts send, and what they are told, is on its way for a while. When one dies, some of
    what it sent may still arrive. An attempt may fall short, and then ends before its time.
    """

    ITEMS = 10

    def __init__(self) -> None:
        super().__init__()
        self.stream = Stream()
        self.limit = 0
        self.is_running = False
        self.attempt = 0
        self.length = self.ITEMS
        self.yielded = self.until = self.skip = 0
        self.is_abandoned_there = False
        self.sent: deque[tuple[int, int, list[int]]] = deque()
        self.told: deque[Tell] = deque()
        self.delivered = self.taken = 0
        self.ends: list[End] = []
        self.is_unread = self.is_awaited = self.is_cancelled = self.was_cancelled = False
        self.has_ended = False

    def perform(self, effects: list[Effect], first: int = 0, count: int = 0) -> None:
        for effect in effects:
            match effect:
                case Deliver(skip):
                    assert first + skip == self.delivered, "an item is missing, or comes twice"
                    assert not self.ends
                    assert not self.is_unread
                    self.delivered += count - skip
                case Tell():
                    self.told.append(effect)
                case End():
                    self.ends.append(effect)
                case Discard():
                    pass

    @precondition(lambda self: self.attempt == 0)
    @rule(limit=st.sampled_from([0, 0, 1, 3]))
    def configure(self, limit: int) -> None:
        self.limit = limit
        self.stream = Stream(limit, room=4)
        self.attempt = 1
        self.start(self.ITEMS)

    def start(self, length: int) -> None:
        terms = self.stream.begin()
        self.told.clear()
        self.length = length
        self.is_running = True
        self.yielded, self.skip, self.until = 0, terms.skip, terms.until
        self.is_abandoned_there = terms.is_abandoned

    @property
    def is_waiting(self) -> bool:
        return self.yielded >= self.until

    @precondition(lambda self: self.is_running and not self.is_waiting)
    @rule(count=st.integers(1, 4))
    def produce(self, count: int) -> None:
        first = self.yielded
        sizes: list[int] = []
        for _ in range(count):
            if self.is_waiting or self.yielded == self.length:
                break
            if self.yielded >= self.skip and not self.is_abandoned_there:
                first = self.yielded if not sizes else first
                sizes.append(1)
            self.yielded += 1
        if sizes:
            self.sent.append((self.attempt, first, sizes))

    @precondition(lambda self: self.is_running and self.yielded == self.length)
    @rule()
    def finish(self) -> None:
        self.is_running = False
        if self.yielded < self.skip:
            self.sent.append((self.attempt, self.yielded, []))
        while self.sent:
            self.arrive()
        self.perform(self.stream.ended(failed=False))
        self.has_ended = True

    @precondition(lambda self: self.sent)
    @rule()
    def arrive(self) -> None:
        attempt, first, sizes = self.sent.popleft()
        if attempt == self.attempt:
            left = self.delivered - self.taken
            self.perform(self.stream.arrived(first, sizes, left), first, len(sizes))
            if not self.is_cancelled:
                assert self.stream.received >= self.delivered

    @precondition(lambda self: self.told)
    @rule()
    def hear(self) -> None:
        tell = self.told.popleft()
        self.until, self.is_abandoned_there = tell.until, tell.is_abandoned

    @precondition(lambda self: self.is_running)
    @rule(arriving=st.integers(0, 3), length=st.sampled_from([ITEMS, ITEMS, ITEMS, 12, 3]))
    def die(self, arriving: int, length: int) -> None:
        for _ in range(min(arriving, len(self.sent))):
            self.arrive()
        self.attempt += 1
        self.start(length)

    @precondition(lambda self: self.is_running)
    @rule()
    def fail(self) -> None:
        self.is_running = False
        self.attempt += 1
        self.perform(self.stream.ended(failed=True))
        self.has_ended = True

    @precondition(lambda self: self.delivered > self.taken and not self.is_unread)
    @rule(count=st.integers(1, 5))
    def read(self, count: int) -> None:
        self.taken = min(self.taken + count, self.delivered)
        if self.stream.wants_news:
            self.perform(self.stream.read(self.delivered - self.taken))

    @precondition(lambda self: self.attempt and not self.is_unread)
    @rule()
    def abandon(self) -> None:
        self.is_unread = True
        self.taken = self.delivered
        self.perform(self.stream.abandoned())

    @precondition(lambda self: self.attempt)
    @rule()
    def await_end(self) -> None:
        self.is_awaited = True
        self.perform(self.stream.awaited())

    @precondition(lambda self: self.attempt)
    @rule()
    def await_end_and_read_no_more(self) -> None:
        self.is_awaited, self.limit = True, 0
        self.perform(self.stream.unlimited())

    @precondition(lambda self: self.attempt and not self.is_cancelled)
    @rule()
    def cancel(self) -> None:
        self.was_cancelled = not self.has_ended
        self.is_cancelled = True
        effects = self.stream.cancelled()
        assert bool(effects) == self.was_cancelled
        if effects:
            self.taken = self.delivered
        self.perform(effects)

    @invariant()
    def consistent(self) -> None:
        self.stream.check()

    @invariant()
    def one_end(self) -> None:
        assert len(self.ends) == (self.has_ended or self.was_cancelled)
        if self.ends == [End.DONE] and not self.is_unread:
            assert self.delivered >= min(self.length, self.skip)

    @invariant()
    def a_limit_is_kept(self) -> None:
        if self.limit and self.is_running and not (self.is_unread or self.ends):
            assert self.yielded <= max(self.taken + self.limit, self.skip)

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        """A producer waits only while somebody could read what is there."""
        if self.is_running and self.is_waiting and not self.told and not self.sent:
            unread = self.delivered - self.taken
            assert not self.is_unread
            assert not self.was_cancelled
            assert unread >= (self.limit or 3)
            assert self.limit or not self.is_awaited


World.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestStreams = World.TestCase
