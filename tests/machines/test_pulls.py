"""Pulls: every object comes whole, once, from whoever has it; nothing is kept of what is over."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from random import Random

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raylite._machines.admission import Priority
from raylite._machines.pulls import (
    Abort,
    Allocate,
    AskLocations,
    Effect,
    Failed,
    Failure,
    Fulfilled,
    Pulls,
    RequestChunk,
    Seal,
    Unsubscribe,
    Write,
)
from raylite._types.keys import ObjectKey
from raylite._types.strategies import NodeKey

HERE, A, B = NodeKey(b"here"), NodeKey(b"a"), NodeKey(b"b")
X, Y = ObjectKey(b"x"), ObjectKey(b"y")
OWNER = b"owner"
GET, WAIT, ARGUMENT = Priority


def pulls(budget: int = 100, window: int = 2) -> Pulls:
    return Pulls(HERE, budget, Random(1).random, chunk=10, window=window)


def fetching(size: int = 30, *nodes: NodeKey) -> Pulls:
    """Return one that has room for X and asks A, or one of `nodes`, for it."""
    made = pulls()
    made.request("one", {X: OWNER}, GET, 0.0)
    made.located(X, size, nodes or (A,), 0.0)
    made.allocated(1, 0.0)
    return made


def chunks(effects: list[Effect]) -> list[tuple[NodeKey, int]]:
    return [(e.source, e.offset) for e in effects if isinstance(e, RequestChunk)]


def test_an_object_is_located_allocated_fetched_and_sealed() -> None:
    machine = pulls()
    assert machine.request("one", {X: OWNER}, GET, 0.0) == [AskLocations(X, OWNER, ())]
    assert machine.located(X, 15, [A], 0.0) == [Allocate(1, X, 15, OWNER)]
    asked = [RequestChunk(1, A, X, 0, 10), RequestChunk(1, A, X, 10, 5)]
    assert machine.allocated(1, 0.0) == asked
    assert machine.arrived(1, A, 10, 5, 0.0) == [Write(1, 10, 5)]
    assert machine.arrived(1, A, 0, 10, 0.0) == [
        Write(1, 0, 10),
        Seal(1, X),
        Unsubscribe(X, OWNER),
        Fulfilled("one"),
    ]
    machine.check()


def test_an_empty_object_needs_no_source_to_send_anything() -> None:
    machine = pulls()
    machine.request("one", {X: OWNER}, GET, 0.0)
    machine.located(X, 0, [A], 0.0)
    assert machine.allocated(1, 0.0)[0] == Seal(1, X)


def test_a_request_for_nothing_is_fulfilled() -> None:
    assert pulls().request("one", {}, GET, 0.0) == [Fulfilled("one")]


def test_an_object_is_pulled_once_for_all_who_need_it() -> None:
    machine = pulls()
    machine.request("one", {X: OWNER}, GET, 0.0)
    assert machine.request("two", {X: OWNER}, ARGUMENT, 0.0) == []
    assert machine.request("one", {Y: OWNER}, GET, 0.0) == []
    machine.located(X, 10, [A], 0.0)
    machine.allocated(1, 0.0)
    effects = machine.arrived(1, A, 0, 10, 0.0)
    assert effects[-2:] == [Fulfilled("one"), Fulfilled("two")]


def test_a_window_of_chunks_is_asked_for_and_one_for_each_that_comes() -> None:
    machine = pulls()
    machine.request("one", {X: OWNER}, GET, 0.0)
    machine.located(X, 50, [A], 0.0)
    assert chunks(machine.allocated(1, 0.0)) == [(A, 0), (A, 10)]
    assert chunks(machine.arrived(1, A, 0, 10, 0.0)) == [(A, 20)]


def test_what_is_missing_comes_from_another_source_when_one_dies() -> None:
    machine = fetching(30, A)
    machine.arrived(1, A, 0, 10, 0.0)
    assert machine.located(X, 30, [A, B], 0.0) == []
    assert chunks(machine.node_died(A, 0.0)) == [(B, 10), (B, 20)]
    assert machine.arrived(1, A, 10, 10, 0.0) == []
    machine.check()


def test_what_is_missing_comes_from_another_source_when_one_is_out_of_reach() -> None:
    machine = fetching(30, A, B)
    source = machine._lines.sources()[X]
    other = {A: B, B: A}[source]
    machine.arrived(1, source, 0, 10, 0.0)
    assert chunks(machine.unreachable(source, 0.0)) == [(other, 10), (other, 20)]
    assert machine.arrived(1, source, 10, 10, 0.0) == []
    machine.check()


def test_what_only_a_node_out_of_reach_has_is_relayed_until_another_has_it_or_it_is_reached() -> (
    None
):
    machine = fetching(40, A)
    relayed = [RequestChunk(1, A, X, offset, 10, True) for offset in (0, 10)]
    assert machine.unreachable(A, 0.0) == relayed
    machine.reachable(A)
    assert machine.arrived(1, A, 0, 10, 0.0)[1:] == [RequestChunk(1, A, X, 20, 10)]
    assert chunks(machine.unreachable(A, 0.0)) == [(A, 10), (A, 20)]
    assert chunks(machine.located(X, 40, [A, B], 0.0)) == [(B, 10), (B, 20)]
    machine.check()


def test_a_dead_source_is_asked_for_nothing_more() -> None:
    machine = pulls()
    machine.request("one", {X: OWNER, Y: OWNER}, GET, 0.0)
    machine.located(X, 30, [A], 0.0)
    machine.located(Y, 30, [A], 0.0)
    machine.allocated(1, 0.0)
    machine.allocated(2, 0.0)
    assert machine.node_died(A, 0.0) == [AskLocations(X, OWNER, ()), AskLocations(Y, OWNER, ())]


def test_what_is_missing_comes_from_another_source_when_one_refuses() -> None:
    machine = fetching(30, A)
    machine.located(X, 30, [A, B], 0.0)
    assert chunks(machine.refused(1, A, 0.0)) == [(B, 0), (B, 10)]
    assert machine.refused(1, A, 0.0) == []
    assert machine.refused(1, B, 0.0) == [AskLocations(X, OWNER, (A, B))]


def test_the_window_of_a_source_that_refused_one_object_serves_the_others() -> None:
    machine = pulls()
    machine.request("one", {X: OWNER, Y: OWNER}, GET, 0.0)
    machine.located(X, 30, [A], 0.0)
    machine.located(Y, 30, [A], 0.0)
    machine.allocated(1, 0.0)
    assert chunks(machine.allocated(2, 0.0)) == []
    assert chunks(machine.refused(1, A, 0.0)) == [(A, 0), (A, 10)]


def test_a_chunk_of_the_wrong_size_is_as_good_as_a_refusal() -> None:
    assert fetching(30, A).arrived(1, A, 0, 9, 0.0) == [AskLocations(X, OWNER, (A,))]


def test_the_owner_is_asked_again_with_growing_delays_while_nobody_has_the_object() -> None:
    machine, now, delays = pulls(), 0.0, []
    machine.request("one", {X: OWNER}, GET, now)
    for _ in range(12):
        assert machine.located(X, 0, [], now) == []
        due = machine.next_expiry()
        assert due is not None
        assert machine.expire(due - 0.001) == []
        assert machine.expire(due) == [AskLocations(X, OWNER, ())]
        delays.append(due - now)
        now = due

    assert 0.05 <= delays[0] <= 0.1
    assert 5.0 <= delays[-1] <= 10.0


def test_a_source_that_refused_is_tried_again_only_after_the_delay() -> None:
    machine = fetching(30, A)
    machine.refused(1, A, 0.0)
    assert machine.located(X, 30, [A], 0.0) == []
    due = machine.next_expiry()
    assert due is not None
    assert machine.expire(due) == [AskLocations(X, OWNER, (A,))]
    assert chunks(machine.located(X, 30, [A], due)) == [(A, 0), (A, 10)]
    machine.refused(1, A, due)
    later = machine.next_expiry()
    assert later is not None
    assert later - due > 0.1


def test_progress_makes_the_delays_short_again() -> None:
    machine, now = fetching(30, A), 0.0
    for _ in range(5):
        machine.refused(1, A, now)
        now = machine.next_expiry() or now
        machine.expire(now)
        machine.located(X, 30, [A], now)

    machine.arrived(1, A, 0, 10, now)
    machine.refused(1, A, now)
    assert (machine.next_expiry() or now) - now <= 0.1


def test_a_pull_ends_when_the_last_who_needs_it_has_left() -> None:
    machine = fetching(30, A)
    machine.request("two", {X: OWNER}, GET, 0.0)
    assert machine.cancel("one", 0.0) == []
    assert machine.cancel("two", 0.0) == [Abort(1), Unsubscribe(X, OWNER)]
    assert machine.arrived(1, A, 0, 10, 0.0) == machine.cancel("two", 0.0) == []
    assert machine.next_expiry() is None
    machine.check()


def test_room_that_comes_too_late_is_given_back() -> None:
    machine = pulls()
    machine.request("one", {X: OWNER}, GET, 0.0)
    machine.located(X, 10, [A], 0.0)
    assert machine.cancel("one", 0.0)[0] == Abort(1)
    assert machine.allocated(1, 0.0) == [Abort(1)]
    assert machine.allocation_refused(1, "full", 0.0) == []


def test_late_and_repeated_answers_are_ignored() -> None:
    machine = fetching(30, A)
    assert machine.allocated(1, 0.0) == []
    assert machine.arrived(1, B, 0, 10, 0.0) == machine.refused(1, B, 0.0) == []
    machine.arrived(1, A, 0, 10, 0.0)
    assert machine.arrived(1, A, 0, 10, 0.0) == machine.arrived(9, A, 0, 10, 0.0) == []
    assert machine.located(Y, 10, [A], 0.0) == machine.located(X, -1, [A], 0.0) == []
    assert machine.lost(Y, 0.0) == machine.owner_died(b"?", 0.0) == machine.node_died(B, 0.0) == []
    machine.check()


def test_a_lost_object_fails_the_requests_that_need_it_as_a_whole() -> None:
    machine = pulls()
    machine.request("both", {X: OWNER, Y: b"other"}, ARGUMENT, 0.0)
    machine.request("one", {Y: b"other"}, GET, 0.0)
    message = "every copy of it is lost"
    assert machine.lost(X, 0.0) == [
        Failed("both", X, Failure.LOST, message),
        Unsubscribe(X, OWNER),
    ]
    [failed, _] = machine.owner_died(b"other", 0.0)
    assert failed == Failed("one", Y, Failure.OWNER_DIED, "its owner 6f74686572 died")
    machine.check()


def test_an_object_for_which_there_is_no_room_fails() -> None:
    machine = pulls()
    machine.request("one", {X: OWNER}, GET, 0.0)
    machine.located(X, 10, [A], 0.0)
    effects = machine.allocation_refused(1, "the store is full", 0.0)
    assert effects[0] == Failed("one", X, Failure.NO_ROOM, "the store is full")


def test_an_object_that_came_in_another_way_is_pulled_no_more() -> None:
    machine = fetching(30, A)
    assert machine.became_local(X, 0.0) == [Abort(1), Unsubscribe(X, OWNER), Fulfilled("one")]
    assert machine.became_local(X, 0.0) == []


def test_an_object_that_was_rebuilt_with_another_size_begins_anew() -> None:
    machine = fetching(30, A)
    machine.arrived(1, A, 0, 10, 0.0)
    assert machine.located(X, 20, [B], 0.0) == [Abort(1), Allocate(2, X, 20, OWNER)]
    assert machine.arrived(1, A, 10, 10, 0.0) == []
    assert chunks(machine.allocated(2, 0.0)) == [(B, 0), (B, 10)]


def test_a_get_suspends_arguments_which_begin_anew_later() -> None:
    machine = pulls(budget=40)
    machine.request("task", {X: OWNER}, ARGUMENT, 0.0)
    machine.located(X, 30, [A], 0.0)
    machine.allocated(1, 0.0)
    machine.request("get", {Y: OWNER}, GET, 0.0)
    assert machine.located(Y, 20, [B], 0.0) == [Abort(1), Allocate(2, Y, 20, OWNER)]
    machine.allocated(2, 0.0)
    machine.arrived(2, B, 0, 10, 0.0)
    assert machine.arrived(2, B, 10, 10, 0.0)[-1] == Allocate(3, X, 30, OWNER)


def test_the_budget_can_be_changed() -> None:
    machine = pulls(budget=30)
    machine.request("one", {X: OWNER}, ARGUMENT, 0.0)
    machine.request("two", {Y: OWNER}, ARGUMENT, 0.0)
    machine.located(X, 30, [A], 0.0)
    assert machine.located(Y, 30, [A], 0.0) == []
    assert machine.set_budget(60, 0.0) == [Allocate(2, Y, 30, OWNER)]
    assert machine.set_budget(50, 0.0) == [Abort(2)]


def test_this_node_is_no_source() -> None:
    machine = pulls()
    machine.request("one", {X: OWNER}, GET, 0.0)
    assert machine.located(X, 10, [HERE], 0.0) == []


@dataclass
class Attempt:
    """What the store has for one pull."""

    object_id: ObjectKey
    size: int
    allocated: bool = False
    written: set[int] = field(default_factory=set)


SIZES = {X: 25, Y: 45, ObjectKey(b"z"): 0, ObjectKey(b"w"): 35}
objects, numbers = st.sampled_from(sorted(SIZES)), st.integers(0, 99)


class PullsWorld(RuleBasedStateMachine):
    """A store, an owner and sources that answer late, twice or not at all, or die."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.last, self.started = 0.0, 0, 2
        self.pulls = Pulls(HERE, 60, Random(0).random, chunk=10, window=3)
        self.holders: dict[NodeKey, set[ObjectKey]] = {A: set(SIZES), B: {X, Y}}
        self.wanted: dict[Hashable, set[ObjectKey]] = {}
        self.asked: dict[ObjectKey, int] = {}
        self.store: dict[int, Attempt] = {}
        self.ended: list[int] = []
        self.flying: list[RequestChunk] = []
        self.unreachable: set[NodeKey] = set()

    @rule(wanted=st.sets(objects, min_size=1, max_size=3), priority=st.sampled_from(Priority))
    def is_requested(self, wanted: set[ObjectKey], priority: Priority) -> None:
        self.last += 1
        self.wanted[self.last] = set(wanted)
        owned = dict.fromkeys(sorted(wanted), OWNER)
        self.perform(self.pulls.request(self.last, owned, priority, self.now))

    @precondition(lambda self: self.wanted)
    @rule(which=numbers)
    def is_cancelled(self, which: int) -> None:
        request = list(self.wanted)[which % len(self.wanted)]
        del self.wanted[request]
        self.perform(self.pulls.cancel(request, self.now))
        assert self.pulls.cancel(request, self.now) == []

    @rule(object_id=objects, forgetful=st.sampled_from([False, False, True]))
    def the_owner_tells(self, object_id: ObjectKey, forgetful: bool) -> None:
        holders = [node for node, held in self.holders.items() if object_id in held]
        nodes = [] if forgetful else [HERE, *holders]
        self.perform(self.pulls.located(object_id, SIZES[object_id], nodes, self.now))

    @rule()
    def the_owner_answers_all(self) -> None:
        for object_id in sorted(self.asked):
            self.the_owner_tells(object_id, False)

    @rule(count=st.integers(0, 4))
    def all_goes_well_for_a_while(self, count: int) -> None:
        self.the_owner_answers_all()
        self.the_store_has_room_for_all()
        self.sources_answer(count)

    @precondition(lambda self: self.store)
    @rule(which=numbers, there_is_room=st.sampled_from([True, True, True, False]))
    def the_store_answers(self, which: int, there_is_room: bool) -> None:
        pull = list(self.store)[which % len(self.store)]
        if there_is_room:
            self.store[pull].allocated = True
            self.perform(self.pulls.allocated(pull, self.now))
        elif not self.store[pull].allocated:
            self.perform(self.pulls.allocation_refused(pull, "full", self.now))

    @precondition(lambda self: self.ended)
    @rule(which=numbers)
    def the_store_answers_too_late(self, which: int) -> None:
        pull = self.ended[which % len(self.ended)]
        assert self.pulls.allocated(pull, self.now) == [Abort(pull)]
        assert self.pulls.allocation_refused(pull, "full", self.now) == []

    @rule()
    def the_store_has_room_for_all(self) -> None:
        for pull in sorted(self.store):
            if pull in self.store and not self.store[pull].allocated:
                self.store[pull].allocated = True
                self.perform(self.pulls.allocated(pull, self.now))

    @precondition(lambda self: self.flying)
    @rule(which=numbers, again=st.sampled_from([False, False, True]), refuses=st.booleans())
    def a_source_answers(self, which: int, again: bool, refuses: bool) -> None:
        request = self.flying[which % len(self.flying)]
        if not again:
            self.flying.remove(request)

        self.answer(request, refuses=refuses)

    @rule(count=st.integers(1, 6))
    def sources_answer(self, count: int) -> None:
        for request in self.flying[:count]:
            self.flying.remove(request)
            self.answer(request)

    def answer(self, request: RequestChunk, *, refuses: bool = False) -> None:
        pull, source = request.pull, request.source
        if request.object_id in self.holders[source] and not refuses:
            answer = self.pulls.arrived(pull, source, request.offset, request.size, self.now)
        else:
            answer = self.pulls.refused(pull, source, self.now)

        self.perform(answer)

    @rule(which=numbers, object_id=objects)
    def a_copy_is_evicted(self, which: int, object_id: ObjectKey) -> None:
        self.holders[sorted(self.holders)[which % 2]].discard(object_id)

    @rule(which=numbers, held=st.sets(objects))
    def a_node_is_replaced(self, which: int, held: set[ObjectKey]) -> None:
        node = sorted(self.holders)[which % 2]
        self.started += 1
        self.holders[NodeKey(b"n%d" % self.started)] = held
        del self.holders[node]
        self.flying = [request for request in self.flying if request.source != node]
        self.unreachable.discard(node)
        self.perform(self.pulls.node_died(node, self.now))

    @rule(which=numbers)
    def a_node_is_out_of_reach(self, which: int) -> None:
        """What it sends is lost; what others hand on for it is not."""
        node = sorted(self.holders)[which % 2]
        self.flying = [r for r in self.flying if r.source != node or r.is_relayed]
        self.unreachable.add(node)
        self.perform(self.pulls.unreachable(node, self.now))
        assert self.pulls.unreachable(node, self.now) == []

    @rule(which=numbers)
    def a_node_is_reached_again(self, which: int) -> None:
        node = sorted(self.holders)[which % 2]
        self.unreachable.discard(node)
        self.pulls.reachable(node)

    @rule(object_id=objects, lost=st.booleans())
    def an_object_is_lost_or_made_here(self, object_id: ObjectKey, lost: bool) -> None:
        if lost:
            self.perform(self.pulls.lost(object_id, self.now))
        else:
            self.arrive(object_id)
            self.perform(self.pulls.became_local(object_id, self.now))

        assert not any(object_id in wanted for wanted in self.wanted.values())

    @rule(budget=st.sampled_from([10, 40, 60, 100]))
    def the_budget_changes(self, budget: int) -> None:
        self.perform(self.pulls.set_budget(budget, self.now))

    @rule(delay=st.sampled_from([0.1, 20.0]))
    def time_passes(self, delay: float) -> None:
        self.now += delay
        self.perform(self.pulls.expire(self.now))
        assert (self.pulls.next_expiry() or self.now + 1) > self.now

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case AskLocations(object_id, owner):
                    assert owner == OWNER
                    self.asked[object_id] = self.asked.get(object_id, 0) + 1
                case Unsubscribe(object_id):
                    del self.asked[object_id]  # KeyError: it was not asked about
                case Allocate(pull, object_id, size):
                    assert all(each.object_id != object_id for each in self.store.values())
                    assert size == SIZES[object_id]
                    self.store[pull] = Attempt(object_id, size)
                case RequestChunk(pull, source, object_id, offset):
                    assert effect.is_relayed == (source in self.unreachable)
                    attempt = self.store[pull]
                    assert attempt.allocated
                    assert attempt.object_id == object_id
                    assert source in self.holders, "asked of a dead node, or this one"
                    assert offset not in attempt.written
                    self.flying.append(effect)
                case Write(pull, offset, size):
                    attempt = self.store[pull]  # KeyError: written where it may not be any more
                    assert attempt.allocated
                    assert size == min(10, attempt.size - offset)
                    assert offset not in attempt.written, "written twice"
                    attempt.written.add(offset)
                case Seal(pull, object_id):
                    attempt = self.store.pop(pull)
                    assert attempt.object_id == object_id
                    assert attempt.written == set(range(0, attempt.size, 10)), "incomplete"
                    self.arrive(object_id)
                case Abort(pull):
                    del self.store[pull]  # KeyError: there is nothing to give back
                    self.ended.append(pull)
                case Fulfilled(request):
                    assert not self.wanted.pop(request)
                case Failed(request, object_id):
                    assert object_id in self.wanted.pop(request)

    def arrive(self, object_id: ObjectKey) -> None:
        for wanted in self.wanted.values():
            wanted.discard(object_id)

    @invariant()
    def what_is_wanted_is_pulled_and_nothing_else(self) -> None:
        self.pulls.check()
        wanted = {object_id for each in self.wanted.values() for object_id in each}
        assert self.asked.keys() == wanted
        assert all(self.wanted.values()), "nobody was told that all is here"
        assert {attempt.object_id for attempt in self.store.values()} <= wanted
        assert not wanted or self.store or self.pulls.next_expiry() is not None, "nothing moves"

    @invariant()
    def no_source_is_asked_for_too_much(self) -> None:
        current = [request for request in self.flying if request.pull in self.store]
        for source in self.holders:
            asked = {
                (request.pull, request.offset)
                for request in current
                if request.source == source
                and request.offset not in self.store[request.pull].written
            }
            assert len(asked) <= 3 * 3  # what it was asked before it refused may still be there

    def teardown(self) -> None:
        """When every object has a holder that answers, all that is wanted comes."""
        self.holders[NodeKey(b"good")] = set(SIZES)
        for _ in range(40):
            self.time_passes(20.0)
            self.the_owner_answers_all()
            self.the_store_has_room_for_all()
            while self.flying:
                self.answer(self.flying.pop(0))

        assert not self.wanted, "it never came"
        assert not self.store, "room was not given back"


TestPullsWorld = PullsWorld.TestCase
TestPullsWorld.settings = settings(max_examples=100)
