"""Nodes: members join, are heard of, and die once, each incarnation for itself."""

import math

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from raylite._machines.nodes import Effect, NodeDied, NodeFenced, NodeJoined, Nodes, Standing

A, B = b"a", b"b"


def died(effects: list[Effect]) -> list[bytes]:
    return [effect.node_id for effect in effects if isinstance(effect, NodeDied)]


def test_a_node_joins_once() -> None:
    nodes = Nodes()
    assert nodes.joined(A, 1, 0.0) == [NodeJoined(A)]
    assert nodes.joined(A, 1, 1.0) == []
    assert nodes.alive() == [A]


def test_members_are_listed_in_the_order_they_joined() -> None:
    nodes = Nodes()
    nodes.joined(B, 1, 0.0)
    nodes.joined(A, 1, 0.0)
    nodes.heard(B, 1, 1.0)
    assert nodes.alive() == [B, A]


def test_a_node_silent_for_the_whole_grace_dies_and_says_why() -> None:
    nodes = Nodes(grace=2.5)
    nodes.joined(A, 1, 0.0)
    assert nodes.expire(2.4) == []
    assert nodes.expire(2.5) == [NodeDied(A, "it was silent for 2.5 s")]
    assert nodes.expire(2.5) == []
    assert nodes.alive() == []


def test_signs_of_life_put_death_off() -> None:
    nodes = Nodes(grace=10, stall=math.inf)
    nodes.joined(A, 1, 0.0)
    assert nodes.heard(A, 1, 9.0) is Standing.MEMBER
    assert nodes.expire(18.0) == []
    nodes.joined(A, 1, 18.0)
    assert nodes.expire(27.0) == []
    assert died(nodes.expire(28.0)) == [A]


def test_the_dead_and_the_unknown_are_no_members() -> None:
    nodes = Nodes(grace=1)
    nodes.joined(A, 1, 0.0)
    nodes.expire(1.0)
    assert nodes.heard(A, 1, 1.0) is Standing.UNKNOWN
    assert nodes.heard(B, 1, 1.0) is Standing.UNKNOWN


def test_a_new_incarnation_replaces_the_old_one() -> None:
    nodes = Nodes()
    nodes.joined(A, 1, 0.0)
    replaced = NodeDied(A, "it was replaced by a new incarnation")
    assert nodes.joined(A, 2, 0.0) == [replaced, NodeJoined(A)]
    assert nodes.heard(A, 1, 1.0) is Standing.REPLACED
    assert nodes.heard(A, 2, 1.0) is Standing.MEMBER
    assert not nodes.is_member(A, 1)
    assert nodes.is_member(A, 2)


def test_a_node_whose_end_is_known_leaves_at_once() -> None:
    nodes = Nodes()
    nodes.joined(A, 1, 0.0)
    assert nodes.left(A, 1, "it was stopped") == [NodeDied(A, "it was stopped")]
    assert nodes.left(A, 1, "it was stopped") == []


def test_the_late_news_of_an_old_incarnations_end_spares_the_new_one() -> None:
    nodes = Nodes()
    nodes.joined(A, 1, 0.0)
    nodes.joined(A, 2, 0.0)
    assert nodes.left(A, 1, "its raylet ended the session") == []
    assert nodes.alive() == [A]


def test_a_dead_incarnation_is_fenced_and_a_new_one_may_join() -> None:
    nodes = Nodes(grace=1)
    nodes.joined(A, 1, 0.0)
    nodes.expire(1.0)
    assert nodes.joined(A, 1, 2.0) == [NodeFenced(A, "it was silent for 1 s")]
    assert nodes.joined(A, 2, 2.0) == [NodeJoined(A)]
    assert nodes.joined(A, 1, 2.0) == [NodeFenced(A, "it was silent for 1 s")]
    assert nodes.alive() == [A]


def test_a_replaced_incarnation_does_not_replace_its_successor() -> None:
    nodes = Nodes()
    nodes.joined(A, 1, 0.0)
    nodes.joined(A, 2, 0.0)
    assert nodes.joined(A, 1, 0.0) == [NodeFenced(A, "it was replaced by a new incarnation")]
    assert nodes.is_member(A, 2)


def test_the_dead_are_fenced_over_a_restart() -> None:
    nodes = Nodes()
    nodes.restored_dead(A, 1, "it was stopped")
    assert nodes.joined(A, 1, 0.0) == [NodeFenced(A, "it was stopped")]


def test_who_may_return_does() -> None:
    nodes = Nodes(grace=1)
    nodes.joined(A, 1, 0.0)
    nodes.expire(1.0)
    assert nodes.joined(A, 1, 2.0, returns=True) == [NodeJoined(A)]
    nodes.left(A, 1, "it was stopped")
    assert nodes.joined(A, 1, 2.0) == [NodeFenced(A, "it was stopped")]


def test_a_stale_incarnation_keeps_nobody_alive() -> None:
    nodes = Nodes(grace=10)
    nodes.joined(A, 1, 0.0)
    nodes.joined(A, 2, 0.0)
    nodes.heard(A, 1, 9.0)
    assert died(nodes.expire(10.0)) == [A]


def test_a_restored_member_has_fifteen_seconds_to_be_heard() -> None:
    nodes = Nodes(grace=10, stall=math.inf)
    nodes.restored(A, 1, 100.0)
    nodes.restored(B, 1, 100.0)
    assert nodes.alive() == [A, B]
    assert nodes.heard(A, 1, 109.0) is Standing.MEMBER
    assert nodes.expire(114.0) == []
    assert died(nodes.expire(115.0)) == [B]
    assert nodes.joined(A, 1, 115.0) == []
    assert died(nodes.expire(125.0)) == [A]


def test_a_node_that_says_that_it_stood_still_may_do_so_for_thirty_seconds() -> None:
    nodes = Nodes(grace=10, stall=math.inf)
    nodes.joined(A, 1, 0.0)
    nodes.joined(B, 1, 0.0)
    nodes.heard(A, 1, 8.0, lag=7.0)
    nodes.heard(B, 1, 8.0, lag=0.9)
    assert died(nodes.expire(37.0)) == [B]
    nodes.heard(A, 1, 37.0)  # it is as quick as any other
    [death] = nodes.expire(47.0)
    assert death == NodeDied(A, "it was silent for 10 s")


def test_very_many_nodes_are_heard_less_often_and_have_as_much_longer() -> None:
    nodes = Nodes(grace=10, stall=math.inf)
    for number in range(2000):
        nodes.joined(b"%d" % number, 1, 0.0)
        assert nodes.beat == max(1.0, (number + 1) / 1000)
    for number in range(1, 2000):
        nodes.heard(b"%d" % number, 1, 5.0)
    assert nodes.expire(19.0) == []
    assert died(nodes.expire(20.0)) == [b"0"]


def test_what_the_watcher_slept_through_is_nobodys_silence() -> None:
    nodes = Nodes(grace=10, stall=5)
    nodes.joined(A, 1, 0.0)
    nodes.joined(B, 1, 0.0)
    assert nodes.expire(4.0) == []
    nodes.heard(B, 1, 6.0)
    assert nodes.expire(34.0) == []  # it stood still for 30 s
    assert died(nodes.expire(38.0)) == []
    assert died(nodes.expire(40.0)) == [A]  # silent for 4 s before, and 6 s after
    assert died(nodes.expire(44.0)) == [B]


class NodesModel(RuleBasedStateMachine):
    """Joins, signs of life and ends of two incarnations of two nodes, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes = Nodes(grace=10, stall=math.inf)
        self.members: dict[bytes, tuple[int, float]] = {}  # and when they are given up
        self.told: list[bytes] = []
        self.dead: set[tuple[bytes, int]] = set()
        self.now = 0.0

    @rule(node=st.sampled_from([A, B]), incarnation=st.integers(1, 4), returns=st.booleans())
    def join(self, node: bytes, incarnation: int, returns: bool) -> None:
        effects = self.nodes.joined(node, incarnation, self.now, returns=returns)
        known = self.members.get(node, (0, 0))[0]
        assert bool(effects) == (known != incarnation)
        is_fenced = (node, incarnation) in self.dead and not returns
        assert is_fenced == any(isinstance(effect, NodeFenced) for effect in effects)
        if not is_fenced:
            if known not in (0, incarnation):
                self.dead.add((node, known))
            self.dead.discard((node, incarnation))
            self.perform(effects)
            self.members[node] = (incarnation, self.now + 10)

    @rule(
        node=st.sampled_from([A, B]),
        incarnation=st.integers(1, 2),
        lag=st.sampled_from([0.0, 0.9, 1.0, 7.0]),
    )
    def hear(self, node: bytes, incarnation: int, lag: float) -> None:
        is_member = self.members.get(node, (0, 0))[0] == incarnation
        standing = self.nodes.heard(node, incarnation, self.now, lag)
        assert (standing is Standing.MEMBER) == is_member
        assert (standing is Standing.UNKNOWN) == (node not in self.members)
        if is_member:
            self.members[node] = (incarnation, self.now + (10 if lag < 1 else 30))

    @rule(node=st.sampled_from([A, B]), incarnation=st.integers(1, 2))
    def leave(self, node: bytes, incarnation: int) -> None:
        is_member = self.members.get(node, (0, 0))[0] == incarnation
        effects = self.nodes.left(node, incarnation, "it was stopped")
        assert died(effects) == [node] * is_member
        if is_member:
            self.dead.add((node, self.members.pop(node)[0]))
        self.perform(effects)

    @rule(seconds=st.integers(1, 6))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        silent = [node for node, (_, at) in self.members.items() if self.now >= at]
        effects = self.nodes.expire(self.now)
        assert sorted(died(effects)) == sorted(silent)
        for node in silent:
            self.dead.add((node, self.members.pop(node)[0]))
        self.perform(effects)

    @rule()
    def restart(self) -> None:
        self.nodes = Nodes(grace=10, stall=math.inf)
        for node in self.told:
            incarnation, _ = self.members[node]
            self.nodes.restored(node, incarnation, self.now)
            self.members[node] = (incarnation, self.now + 15)
        for node, incarnation in self.dead:
            self.nodes.restored_dead(node, incarnation, "it had died")

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case NodeJoined(node):
                    assert node not in self.told, "joined twice"
                    self.told.append(node)
                case NodeDied(node):
                    self.told.remove(node)  # ValueError: died twice

    @invariant()
    def who_was_told_is_alive(self) -> None:
        assert self.nodes.alive() == self.told
        assert sorted(self.told) == sorted(self.members)
        for node, (incarnation, _) in self.members.items():
            assert self.nodes.is_member(node, incarnation)


TestNodesModel = NodesModel.TestCase
