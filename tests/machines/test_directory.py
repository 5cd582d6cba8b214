"""Directory: news of copies in any order, the last copy gone, and nobody left uninformed."""

from dataclasses import dataclass, field

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from raylite._machines.directory import (
    DEAD_KEPT,
    Directory,
    Drop,
    Effect,
    Lost,
    Pin,
    Tell,
    TellLost,
    Verify,
)
from raylite._types.keys import ObjectKey
from raylite._types.strategies import NodeKey

A, B, C = NodeKey(b"a"), NodeKey(b"b"), NodeKey(b"c")
X, Y = ObjectKey(b"x"), ObjectKey(b"y")


def directory(*copies: NodeKey, size: int = 10) -> Directory:
    """Return one that knows of X and these copies of it, the first being the primary."""
    made = Directory()
    made.expect(X)
    for node in copies:
        made.added(X, node, size, 1, primary=node == copies[0])

    return made


def test_subscribers_hear_of_the_present_and_of_every_change() -> None:
    copies = directory(A)
    assert copies.subscribe(X, C) == [Tell((C,), X, 10, (A,))]
    assert copies.added(X, B, 10, 1) == [Tell((C,), X, 10, (A, B))]
    assert copies.removed(X, B, 2) == [Tell((C,), X, 10, (A,))]
    copies.unsubscribe(X, C)
    assert copies.added(X, B, 10, 3) == []
    assert copies.locations(X) == (A, B)


def test_an_object_that_is_expected_has_no_copy_yet() -> None:
    copies = directory()
    assert copies.subscribe(X, C) == [Tell((C,), X, 0, ())]
    assert copies.added(X, A, 10, 1, primary=True) == [Tell((C,), X, 10, (A,))]


def test_when_the_primary_goes_another_copy_is_pinned() -> None:
    copies = directory(A, B, C)
    assert copies.node_died(A) == [Pin(X, B)]
    assert copies.removed(X, C, 2) == []
    assert copies.locations(X) == (B,)


def test_when_the_last_copy_goes_the_object_is_lost() -> None:
    copies = directory(A)
    copies.subscribe(X, C)
    assert copies.node_died(A) == [Lost(X), Tell((C,), X, 10, ())]
    assert copies.node_died(A) == []


def test_a_copy_that_turns_up_after_the_loss_is_pinned() -> None:
    copies = directory(A)
    copies.node_died(A)
    assert copies.added(X, B, 10, 1) == [Pin(X, B)]
    assert copies.give_up(X) == []
    assert copies.locations(X) == (B,)


def test_a_result_on_a_node_that_has_died_meanwhile_is_lost() -> None:
    copies = directory()
    copies.node_died(A)
    assert copies.added(X, A, 10, 1, primary=True) == [Lost(X)]
    assert copies.added(X, A, 10, 1, primary=True) == []
    copies.expect(X)
    assert copies.added(X, A, 10, 2, primary=True) == [Lost(X)]


def test_late_and_repeated_news_changes_nothing() -> None:
    copies = directory(A, B)
    copies.subscribe(X, C)
    copies.removed(X, B, 5)
    assert copies.added(X, B, 10, 4) == copies.removed(X, B, 5) == copies.removed(X, A, 1) == []
    assert copies.added(X, A, 10, 1) == copies.added(X, A, 10, 2) == []
    assert copies.removed(Y, A, 9) == copies.unsubscribe(Y, A) == copies.freed(Y) == []
    assert copies.locations(X) == (A,)
    assert copies.locations(Y) == ()


def test_news_that_a_copy_is_gone_may_come_before_that_it_was_there() -> None:
    copies = directory(A)
    copies.removed(X, B, 2)
    assert copies.added(X, B, 10, 1) == []
    assert copies.locations(X) == (A,)


def test_an_object_that_is_freed_is_dropped_everywhere_late_copies_included() -> None:
    copies = directory(A, B)
    copies.subscribe(X, C)
    assert copies.freed(X) == [TellLost((C,), X), Drop(X, A), Drop(X, B)]
    assert copies.added(X, C, 10, 1) == [Drop(X, C)]
    assert copies.subscribe(X, C) == [TellLost((C,), X)]
    copies.check()


def test_an_object_that_was_given_up_is_lost_to_all_who_ask() -> None:
    copies = directory(A)
    copies.subscribe(X, C)
    copies.node_died(A)
    assert copies.give_up(X) == [TellLost((C,), X)]
    assert copies.give_up(X) == copies.give_up(Y) == []
    assert copies.subscribe(X, B) == [TellLost((B,), X)]
    assert copies.added(X, B, 10, 1) == [Drop(X, B)]


def test_copies_of_different_values_are_not_mixed() -> None:
    copies = directory(A)
    assert copies.added(X, B, 11, 1) == [Drop(X, B)]
    copies.node_died(A)
    assert copies.added(X, C, 11, 1) == [Pin(X, C)]


def test_a_copy_in_doubt_is_verified() -> None:
    copies = directory(A)
    assert copies.doubted(X, A) == [Verify(X, A)]
    assert copies.doubted(X, B) == copies.doubted(Y, A) == []


def test_a_dead_node_is_told_nothing_and_has_nothing() -> None:
    copies = directory(A)
    copies.subscribe(X, C)
    copies.node_died(C)
    assert copies.added(X, B, 10, 1) == []
    assert copies.added(X, C, 10, 1) == copies.subscribe(X, C) == copies.removed(X, C, 9) == []
    copies.check()


def test_only_so_many_dead_nodes_are_remembered() -> None:
    copies = directory()
    for number in range(DEAD_KEPT + 1):
        copies.node_died(NodeKey(b"%d" % number))

    copies.check()


def test_what_a_node_holds_of_some_objects_is_added_up() -> None:
    copies = directory(A, B)
    copies.expect(Y)
    copies.added(Y, B, 5, 1)
    assert copies.held([X, Y, ObjectKey(b"?")]) == {A: 10, B: 15}


@dataclass
class Store:
    """What one node really has, and what it has told that has not arrived."""

    copies: dict[ObjectKey, bool] = field(default_factory=dict)  # and whether it is pinned
    told: int = 0
    subscribed: dict[ObjectKey, tuple[NodeKey, ...] | None] = field(default_factory=dict)


@dataclass(frozen=True)
class News:
    object_id: ObjectKey
    node: NodeKey
    number: int
    present: bool
    primary: bool


nodes, objects = st.integers(0, 2), st.integers(0, 2)


class DirectoryModel(RuleBasedStateMachine):
    """Nodes make, pull, evict and tell; news arrives in any order, some of it twice."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Directory()
        self.stores = {node: Store() for node in (A, B, C)}
        self.news: list[News] = []
        self.objects: list[ObjectKey] = []
        self.owned: set[ObjectKey] = set()
        self.present: set[ObjectKey] = set()
        self.lost: set[ObjectKey] = set()
        self.given_up: set[ObjectKey] = set()
        self.started = 3
        self.is_new()
        self.is_new()
        self.is_new()

    def node(self, number: int) -> NodeKey:
        return sorted(self.stores)[number]

    def object(self, number: int) -> ObjectKey:
        """Return one of the objects owned, or one or two that were."""
        return self.objects[-1 - number]

    def is_new(self) -> None:
        object_id = ObjectKey(b"%d" % len(self.objects))
        self.objects.append(object_id)
        self.owned.add(object_id)
        self.perform(self.directory.expect(object_id))

    @rule(node=nodes, number=objects, told=st.booleans())
    def is_made(self, node: int, number: int, told: bool) -> None:
        self.gains(self.node(node), self.object(number), True, told)

    @rule(node=nodes, number=objects, told=st.booleans())
    def is_pulled(self, node: int, number: int, told: bool) -> None:
        object_id = self.object(number)
        made = not any(object_id in store.copies for store in self.stores.values())
        self.gains(self.node(node), object_id, made, told)

    def gains(self, node: NodeKey, object_id: ObjectKey, made: bool, told: bool) -> None:
        if object_id not in self.stores[node].copies:
            self.stores[node].copies[object_id] = made
            self.tell(object_id, node, told=told, primary=made)

    @rule(node=nodes, number=objects, told=st.booleans())
    def is_evicted(self, node: int, number: int, told: bool) -> None:
        key, object_id = self.node(node), self.object(number)
        if self.stores[key].copies.get(object_id) is False:
            del self.stores[key].copies[object_id]
            self.tell(object_id, key, told=told)

    @rule(which=st.integers(0, 99), again=st.booleans())
    def news_arrives(self, which: int, again: bool) -> None:
        if self.news:
            news = self.news[which % len(self.news)]
            if not again:
                self.news.remove(news)

            self.deliver(news)

    @rule(node=nodes, number=objects, wants=st.sampled_from([True, True, False]))
    def subscribes(self, node: int, number: int, wants: bool) -> None:
        key, object_id = self.node(node), self.object(number)
        if wants:
            self.stores[key].subscribed[object_id] = None
            self.perform(self.directory.subscribe(object_id, key))
        else:
            self.stores[key].subscribed.pop(object_id, None)
            self.perform(self.directory.unsubscribe(object_id, key))

    @rule(node=nodes)
    def a_node_is_replaced(self, node: int) -> None:
        key = self.node(node)
        del self.stores[key]
        self.started += 1
        self.stores[NodeKey(b"n%d" % self.started)] = Store()
        self.perform(self.directory.node_died(key))

    @rule(
        node=nodes, number=objects, what=st.sampled_from(["freed", "doubt", "rebuild", "give up"])
    )
    def something_rare(self, node: int, number: int, what: str) -> None:
        object_id = self.object(number)
        match what:
            case "freed" if object_id in self.owned:
                self.owned.discard(object_id)
                self.perform(self.directory.freed(object_id))
                self.is_new()
            case "doubt":
                self.perform(self.directory.doubted(object_id, self.node(node)))
            case "rebuild" if object_id in self.owned:
                self.given_up.discard(object_id)
                self.perform(self.directory.expect(object_id))
            case _:
                if not self.directory.locations(object_id):
                    self.given_up.add(object_id)

                self.perform(self.directory.give_up(object_id))

    def tell(
        self, object_id: ObjectKey, node: NodeKey, *, told: bool = False, primary: bool = False
    ) -> None:
        store = self.stores[node]
        store.told += 1
        news = News(object_id, node, store.told, object_id in store.copies, primary)
        self.news.append(news)
        if told:
            self.deliver(news)

    def deliver(self, news: News) -> None:
        if news.present:
            self.perform(
                self.directory.added(
                    news.object_id, news.node, 10, news.number, primary=news.primary
                )
            )
        else:
            self.perform(self.directory.removed(news.object_id, news.node, news.number))

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Tell(subscribers, object_id, _, nodes):
                    assert nodes == self.directory.locations(object_id)
                    for node in subscribers:
                        assert object_id in self.stores[node].subscribed  # KeyError: it is dead
                        self.stores[node].subscribed[object_id] = nodes
                case TellLost(subscribers, object_id):
                    for node in subscribers:
                        del self.stores[node].subscribed[object_id]  # KeyError: told twice
                case Pin(object_id, node):
                    assert node in self.directory.locations(object_id)
                    if object_id in self.stores[node].copies:
                        self.stores[node].copies[object_id] = True
                case Drop(object_id, node):
                    if self.stores[node].copies.pop(object_id, None) is not None:
                        self.tell(object_id, node)
                case Lost(object_id):
                    assert object_id in self.owned
                    assert self.directory.locations(object_id) == ()
                    self.lost.add(object_id)
                case Verify(object_id, node):
                    self.tell(object_id, node)

    @invariant()
    def the_books_agree(self) -> None:
        self.directory.check()
        for store in self.stores.values():
            for object_id, told in store.subscribed.items():
                assert told == self.directory.locations(object_id), "a subscriber was not told"

    @invariant()
    def what_was_given_up_stays_so(self) -> None:
        assert not any(self.directory.locations(object_id) for object_id in self.given_up)

    @invariant()
    def a_loss_is_told(self) -> None:
        present = {object_id for object_id in self.owned if self.directory.locations(object_id)}
        assert (self.present & self.owned) - present <= self.lost
        self.present = present
        self.lost.clear()

    def teardown(self) -> None:
        while self.news:
            self.deliver(self.news.pop())
            self.a_loss_is_told()

        for object_id in self.objects:
            true = {node for node, store in self.stores.items() if object_id in store.copies}
            known = self.directory.locations(object_id)
            assert set(known) == true, "a copy is unknown, or one that is known is gone"
            pinned = [node for node in known if self.stores[node].copies[object_id]]
            assert pinned or not known, "no copy is safe from eviction"


TestDirectoryModel = DirectoryModel.TestCase
TestDirectoryModel.settings = settings(max_examples=150)
