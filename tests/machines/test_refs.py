"""References: an object lives while something holds it, wherever that is, and no longer."""

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raylite._machines import refs as limits
from raylite._machines.refs import Effect, Free, GiveUp, Reference, Refs
from raylite._types.keys import ObjectKey


def key(number: int) -> ObjectKey:
    return ObjectKey(b"%d" % number)


def keep(refs: Refs, number: int, owner: str = "", local: int = 1) -> Reference:
    reference = Reference(key(number), owner, local)
    refs.add(reference)
    return reference


def test_an_owned_object_is_freed_with_its_last_hold() -> None:
    refs = Refs()
    a = keep(refs, 1)
    a.submitted = a.views = 1
    assert refs.dropped_local(a) == []
    assert refs.dropped_submitted(a) == []
    assert refs.dropped_view(a) == [Free(a)]
    assert refs.table == {}


def test_a_borrowed_object_is_given_up_to_its_owner() -> None:
    refs = Refs()
    a = keep(refs, 1, owner="elsewhere")
    assert refs.owned_by("elsewhere") == [a]
    assert refs.dropped_local(a) == [GiveUp(a)]
    assert refs.owned_by("elsewhere") == []


@pytest.mark.parametrize(
    ("hold", "is_held_here"),
    [("local", True), ("views", True), ("contained", True), ("submitted", False)],
)
def test_tasks_under_way_are_not_this_process_itself(hold: str, is_held_here: bool) -> None:
    reference = Reference(key(1))
    setattr(reference, hold, 1)
    assert (reference.is_held, reference.is_held_here) == (True, is_held_here)


# ---- borrowers -----------------------------------------------------------------------------


def test_a_borrower_keeps_an_object_alive() -> None:
    refs = Refs()
    a = keep(refs, 1)
    refs.borrowed(a.id, "b")
    assert refs.dropped_local(a) == []
    assert refs.gave_up(a.id, "b") == [Free(a)]


def test_an_object_lives_until_its_last_borrower_gives_it_up() -> None:
    refs = Refs()
    a = keep(refs, 1)
    refs.borrowed(a.id, "b")
    refs.borrowed(a.id, "c")
    refs.dropped_local(a)
    assert refs.gave_up(a.id, "b") == []
    assert refs.gave_up(a.id, "c") == [Free(a)]


def test_giving_up_may_overtake_the_news_of_borrowing() -> None:
    refs = Refs()
    a = keep(refs, 1)
    assert refs.gave_up(a.id, "b") == []
    refs.borrowed(a.id, "b")
    assert refs.dropped_local(a) == [Free(a)]


def test_each_late_borrowing_is_cancelled_by_one_that_gave_up_early() -> None:
    refs = Refs()
    a = keep(refs, 1)
    for _ in range(2):
        refs.gave_up(a.id, "b")
    for _ in range(2):
        refs.borrowed(a.id, "b")
    assert refs.dropped_local(a) == [Free(a)]


def test_borrowing_again_may_overtake_giving_up() -> None:
    refs = Refs()
    a = keep(refs, 1)
    refs.borrowed(a.id, "b")
    refs.borrowed(a.id, "b")
    refs.dropped_local(a)
    assert refs.gave_up(a.id, "b") == []
    assert refs.gave_up(a.id, "b") == [Free(a)]


def test_what_was_given_up_early_concerns_one_borrower() -> None:
    refs = Refs()
    a = keep(refs, 1)
    refs.gave_up(a.id, "b")
    refs.borrowed(a.id, "c")
    refs.gave_up(a.id, "c")
    refs.gave_up(a.id, "c")
    refs.borrowed(a.id, "c")
    assert refs.dropped_local(a) == [Free(a)]


def test_debts_end_with_the_object_and_with_the_borrower() -> None:
    refs = Refs()
    a, b = keep(refs, 1), keep(refs, 2)
    refs.gave_up(a.id, "b")
    refs.gave_up(b.id, "b")
    refs.gave_up(b.id, "c")
    refs.dropped_local(a)
    refs.borrower_died("b")
    refs.check()
    keep(refs, 1)
    refs.borrowed(a.id, "b")
    refs.borrowed(b.id, "c")
    assert (refs.table[a.id].borrowers, b.borrowers) == ({"b": 1}, None)


def test_debts_are_bounded_and_forgetting_one_frees_nothing_too_early() -> None:
    refs = Refs()
    references = [keep(refs, number) for number in range(limits.DEBTS_KEPT + 1)]
    for reference in references:
        refs.gave_up(reference.id, "b")
    refs.check()
    refs.borrowed(references[0].id, "b")
    assert refs.dropped_local(references[0]) == []


def test_a_borrower_that_died_holds_nothing() -> None:
    refs = Refs()
    a, b, c = keep(refs, 1), keep(refs, 2), keep(refs, 3)
    for reference in (a, a, b):
        refs.borrowed(reference.id, "b")
    refs.borrowed(b.id, "c")
    for reference in (a, b, c):
        refs.dropped_local(reference)
    assert refs.borrower_died("b") == [Free(a)]
    assert refs.borrower_died("b") == []
    assert refs.table == {b.id: b}


def test_a_borrower_that_died_lets_what_is_still_held_live() -> None:
    refs = Refs()
    a = keep(refs, 1)
    refs.borrowed(a.id, "b")
    assert refs.borrower_died("b") == []
    assert refs.table == {a.id: a}


def test_borrowers_of_unknown_objects_are_ignored() -> None:
    refs = Refs()
    assert refs.borrowed(key(1), "b") == []
    assert refs.gave_up(key(1), "b") == []
    a = keep(refs, 1)
    assert a.borrowers is None
    refs.check()


# ---- containment ---------------------------------------------------------------------------


def test_a_value_keeps_what_it_contains_alive() -> None:
    refs = Refs()
    outer, inner = keep(refs, 1), keep(refs, 2, owner="elsewhere")
    refs.contains(outer, (inner, inner))
    refs.check()
    assert refs.dropped_local(inner) == []
    assert refs.dropped_local(outer) == [Free(outer), GiveUp(inner)]


def test_what_is_held_otherwise_outlives_the_value_that_contains_it() -> None:
    refs = Refs()
    outer, inner = keep(refs, 1), keep(refs, 2)
    refs.contains(outer, (inner,))
    assert refs.dropped_local(outer) == [Free(outer)]
    assert refs.table == {inner.id: inner}


def test_the_value_of_an_object_that_has_ended_holds_nothing() -> None:
    refs = Refs()
    outer = keep(refs, 1, owner="elsewhere")
    refs.dropped_local(outer)
    inner, held = keep(refs, 2, "elsewhere", local=0), keep(refs, 3)
    assert refs.contains(outer, (inner, held)) == [GiveUp(inner)]
    assert refs.table == {held.id: held}
    refs.check()


def test_a_long_chain_is_freed_without_recursion() -> None:
    refs = Refs()
    chain = [keep(refs, number) for number in range(100_000)]
    for outer, inner in pairwise(chain):
        refs.contains(outer, (inner,))
    for reference in chain[1:]:
        refs.dropped_local(reference)
    assert refs.dropped_local(chain[0]) == [Free(reference) for reference in chain]
    assert refs.table == {}


def test_a_circle_keeps_itself_alive_and_ends_the_search() -> None:
    refs = Refs()
    a, b = keep(refs, 1), keep(refs, 2)
    refs.contains(a, (b,))
    refs.contains(b, (a, b))
    assert refs.dropped_local(a) == []
    assert refs.dropped_local(b) == []
    assert set(refs.table) == {a.id, b.id}


def test_a_late_drop_of_a_reference_that_has_ended_spares_the_objects_new_one() -> None:
    refs = Refs()
    old = keep(refs, 1, owner="elsewhere")
    refs.dropped_local(old)
    new = keep(refs, 1, owner="elsewhere")
    old.local += 1
    assert refs.dropped_local(old) == []
    assert refs.table == {new.id: new}


def test_an_object_can_be_added_again_after_its_end() -> None:
    refs = Refs()
    outer, inner = keep(refs, 1), keep(refs, 2)
    refs.contains(outer, (inner,))
    refs.dropped_local(outer)
    outer.local = 1
    refs.add(outer)
    assert refs.dropped_local(outer) == [Free(outer)]
    assert refs.dropped_local(inner) == [Free(inner)]


# ---- what a borrower has said in vain ------------------------------------------------------


def test_what_a_borrower_gave_up_unheard_goes_when_it_is_reviewed() -> None:
    refs = Refs()
    a, b, c = keep(refs, 1), keep(refs, 2), keep(refs, 3)
    for each in (a, b):
        refs.borrowed(each.id, "b")
        refs.dropped_local(each)
    refs.borrowed(c.id, "c")
    number, lent = refs.review("b")
    assert lent == [a.id, b.id]
    assert refs.unheld("b", number, [a.id, c.id, key(9)]) == [Free(a)]
    assert refs.unheld("b", number, [b.id]) == []  # it says so twice
    assert refs.gave_up(b.id, "b") == [Free(b)]
    refs.check()


def test_what_it_begins_to_borrow_meanwhile_is_not_in_question() -> None:
    refs = Refs()
    a = keep(refs, 1)
    refs.borrowed(a.id, "b")
    number, lent = refs.review("b")
    refs.borrowed(a.id, "b")  # again, after it was asked
    assert refs.unheld("b", number, lent) == []
    assert refs.dropped_local(a) == []
    assert refs.gave_up(a.id, "b") == []
    number, lent = refs.review("b")  # and its first end was lost
    assert refs.unheld("b", number, lent) == [Free(a)]


def test_the_answer_to_another_review_is_none() -> None:
    refs = Refs()
    a = keep(refs, 1)
    refs.borrowed(a.id, "b")
    refs.dropped_local(a)
    (first, lent), (second, _) = refs.review("b"), refs.review("b")
    assert refs.unheld("b", first, lent) == []
    assert refs.unheld("c", second, lent) == []
    assert refs.borrower_died("b") == [Free(a)]
    assert refs.unheld("b", second, lent) == []


# ---- the model -----------------------------------------------------------------------------

BORROWERS = ("b", "c")


@dataclass
class Answer:
    """What a borrower says in a review, and what it had given up `before`, which is heard first."""

    borrower: str
    number: int
    unheld: list[ObjectKey]
    before: list[tuple[ObjectKey, str]]


class World(RuleBasedStateMachine):
    """Holds of every kind, come and gone in any order, with messages that overtake each other.

    `truth` has what holds each object, as multisets of words. The processes that borrow do so
    in fact before the news of it is delivered, while a task that was given the object holds it, as
    the task's owner lets go of arguments only when the borrowing is known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.refs = Refs()
        self.references: dict[ObjectKey, Reference] = {}
        self.truth: dict[ObjectKey, Counter[str]] = {}
        self.contents: dict[ObjectKey, list[ObjectKey]] = {}
        self.news: list[tuple[ObjectKey, str]] = []  # borrowings whose news is on its way
        self.farewells: list[tuple[ObjectKey, str]] = []  # and endings
        self.lost: list[tuple[ObjectKey, str]] = []  # endings of which nobody will hear
        self.reviews: dict[str, tuple[int, list[ObjectKey]]] = {}
        self.answers: list[Answer] = []
        self.expected: set[ObjectKey] = set()
        self.last = 0

    def pick(self, choice: int) -> Reference:
        references = list(self.references.values())
        return references[choice % len(references)]

    @precondition(lambda self: len(self.references) < 5)
    @rule(is_owned=st.sampled_from([True, True, False]))
    def make(self, is_owned: bool) -> None:
        self.last += 1
        reference = keep(self.refs, self.last, "" if is_owned else "elsewhere")
        self.references[reference.id] = reference
        self.truth[reference.id] = Counter(["local"])
        self.contents[reference.id] = []

    @precondition(lambda self: self.references)
    @rule(choice=st.integers(0, 99), hold=st.sampled_from(["local", "submitted", "views"]))
    def hold(self, choice: int, hold: str) -> None:
        reference = self.pick(choice)
        setattr(reference, hold, getattr(reference, hold) + 1)
        self.truth[reference.id][hold] += 1

    @precondition(lambda self: self.references)
    @rule(choice=st.integers(0, 99), hold=st.sampled_from(["local", "submitted", "views"]))
    def drop(self, choice: int, hold: str) -> None:
        reference = self.pick(choice)
        if not self.truth[reference.id][hold]:
            return
        self.let_go(reference.id, hold)
        drops = {
            "local": self.refs.dropped_local,
            "submitted": self.refs.dropped_submitted,
            "views": self.refs.dropped_view,
        }
        self.perform(drops[hold](reference))

    @precondition(lambda self: self.references)
    @rule(outer=st.integers(0, 99), choices=st.lists(st.integers(0, 99), max_size=3))
    def contain(self, outer: int, choices: list[int]) -> None:
        """Values hold older objects only; circles have a test of their own."""
        holder = self.pick(outer)
        inner = [self.pick(choice) for choice in choices]
        inner = [reference for reference in inner if int(reference.id) < int(holder.id)]
        self.perform(self.refs.contains(holder, tuple(inner)))
        for reference in inner:
            self.truth[reference.id]["contained"] += 1
            self.contents[holder.id].append(reference.id)

    @precondition(lambda self: self.references)
    @rule(choice=st.integers(0, 99), borrower=st.sampled_from(BORROWERS))
    def borrow(self, choice: int, borrower: str) -> None:
        """A task's worker keeps an argument; until that is known here, its task holds it."""
        reference = self.pick(choice)
        if not reference.owner:
            reference.submitted += 1
            self.truth[reference.id].update([borrower, "task"])
            self.news.append((reference.id, borrower))

    @precondition(lambda self: self.news)
    @rule(choice=st.integers(0, 99))
    def hear_of_borrowing(self, choice: int) -> None:
        id, borrower = self.news.pop(choice % len(self.news))
        reference = self.references[id]
        self.perform(self.refs.borrowed(id, borrower))
        self.let_go(id, "task")
        self.perform(self.refs.dropped_submitted(reference))

    @rule(choice=st.integers(0, 99))
    def give_up(self, choice: int) -> None:
        borrowings = [(id, b) for id, holds in self.truth.items() for b in BORROWERS]
        lasting = [(id, b) for id, b in borrowings if self.lasting(id, b)]
        if lasting:
            self.farewells.append(lasting[choice % len(lasting)])

    @precondition(lambda self: self.farewells)
    @rule(choice=st.integers(0, 99))
    def hear_of_giving_up(self, choice: int) -> None:
        id, borrower = self.farewells.pop(choice % len(self.farewells))
        self.let_go(id, borrower)
        self.perform(self.refs.gave_up(id, borrower))

    @precondition(lambda self: self.farewells)
    @rule(choice=st.integers(0, 99))
    def lose(self, choice: int) -> None:
        """A session ends before an ending was heard."""
        self.lost.append(self.farewells.pop(choice % len(self.farewells)))

    @rule(borrower=st.sampled_from(BORROWERS))
    def review(self, borrower: str) -> None:
        self.reviews[borrower] = self.refs.review(borrower)

    @precondition(lambda self: self.reviews)
    @rule(borrower=st.sampled_from(BORROWERS))
    def answer(self, borrower: str) -> None:
        """A borrower says what it does not hold now. It may be asked twice, and answer both."""
        if borrower in self.reviews:
            number, lent = self.reviews[borrower]
            unheld = [id for id in lent if id not in self.truth or not self.lasting(id, borrower)]
            before = [each for each in self.farewells if each[1] == borrower]
            self.answers.append(Answer(borrower, number, unheld, before))

    @precondition(lambda self: self.answers)
    @rule()
    def hear_an_answer(self) -> None:
        """After all that was given up before it; each is heard in the order in which it was said."""
        answer = self.answers.pop(0)
        for farewell in answer.before:
            if farewell in self.farewells:
                self.hear_of_giving_up(self.farewells.index(farewell))
        for id in answer.unheld if answer.number == self.open_review(answer.borrower) else ():
            if id in self.refs._reviews[answer.borrower].open and id in self.truth:
                known = (self.references[id].borrowers or {}).get(answer.borrower, 0)
                for _ in range(known):
                    self.lost.remove((id, answer.borrower))  # ValueError: it holds that
                    self.let_go(id, answer.borrower)
        self.perform(self.refs.unheld(answer.borrower, answer.number, answer.unheld))

    def open_review(self, borrower: str) -> int:
        review = self.refs._reviews.get(borrower)
        return 0 if review is None else review.number

    @rule(borrower=st.sampled_from(BORROWERS))
    def borrower_dies(self, borrower: str) -> None:
        """What it told before is heard before; a process of the same name starts anew."""
        while late := [i for i, (_, who) in enumerate(self.news) if who == borrower]:
            self.hear_of_borrowing(late[0])
        self.farewells = [each for each in self.farewells if each[1] != borrower]
        self.lost = [each for each in self.lost if each[1] != borrower]
        self.answers = [each for each in self.answers if each.borrower != borrower]
        self.reviews.pop(borrower, None)
        for id in [id for id, holds in self.truth.items() if holds[borrower]]:
            for _ in range(self.truth[id][borrower]):
                self.let_go(id, borrower)
        self.perform(self.refs.borrower_died(borrower))

    @rule(number=st.integers(1000, 1003), borrower=st.sampled_from(BORROWERS))
    def hear_of_the_unknown(self, number: int, borrower: str) -> None:
        assert self.refs.borrowed(key(number), borrower) == []
        assert self.refs.gave_up(key(number), borrower) == []

    def lasting(self, id: ObjectKey, borrower: str) -> int:
        """Return how many borrowings the borrower has not ended."""
        ended = self.farewells.count((id, borrower)) + self.lost.count((id, borrower))
        return self.truth[id][borrower] - ended

    def let_go(self, id: ObjectKey, hold: str) -> None:
        """Take one hold away, and work out what ends with it."""
        self.truth[id][hold] -= 1
        if self.truth[id].total() == 0:
            self.expected.add(id)
            del self.truth[id]
            for inner in self.contents.pop(id):
                self.let_go(inner, "contained")

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            reference = effect.reference
            assert isinstance(effect, GiveUp if reference.owner else Free)
            self.expected.remove(reference.id)  # KeyError: ended too early, or twice
            del self.references[reference.id]

    @invariant()
    def what_is_held_lives_and_nothing_else(self) -> None:
        self.refs.check()
        assert not self.expected, "an object outlived its holds"
        assert self.refs.table == self.references
        assert self.references.keys() == self.truth.keys()

    @invariant()
    def borrowings_are_known_as_far_as_the_news_has_come(self) -> None:
        for id, reference in self.references.items():
            heard = {b: self.truth[id][b] - self.news.count((id, b)) for b in BORROWERS}
            known = {borrower: count for borrower, count in heard.items() if count > 0}
            assert (reference.borrowers or {}) == known

    def teardown(self) -> None:
        while self.news:
            self.hear_of_borrowing(0)
        for borrower in BORROWERS:
            self.borrower_dies(borrower)
        for reference in sorted(self.references.values(), key=lambda each: int(each.id)):
            for hold in ("local", "submitted", "views"):
                while self.truth.get(reference.id, Counter())[hold]:
                    self.drop(list(self.references).index(reference.id), hold)
        assert not self.refs.table, "an object was kept for nobody"


TestWorld = World.TestCase
