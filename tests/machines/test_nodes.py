"""Nodes: members join, are heard of, and die once, each incarnation for itself."""

import math
import random
from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from raylite._machines.nodes import (
    SWEEP,
    Effect,
    NodeDied,
    NodeFenced,
    NodeJoined,
    Nodes,
    NodeSuspected,
    NodeTrusted,
    Standing,
)

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
    nodes = Nodes(grace=2.5, stall=math.inf)
    nodes.joined(A, 1, 0.0)
    assert died(nodes.expire(2.4)) == []
    assert nodes.expire(2.5) == [NodeDied(A, "it was silent for 2.5 s")]
    assert nodes.expire(2.5) == []
    assert nodes.alive() == []


def test_signs_of_life_put_death_off() -> None:
    nodes = Nodes(grace=10, stall=math.inf)
    nodes.joined(A, 1, 0.0)
    assert nodes.heard(A, 1, 9.0) == []
    assert died(nodes.expire(18.0)) == []
    assert nodes.joined(A, 1, 18.0) == [NodeTrusted(A)]
    assert died(nodes.expire(27.0)) == []
    assert died(nodes.expire(28.0)) == [A]


def test_the_dead_and_the_unknown_are_no_members() -> None:
    nodes = Nodes(grace=1)
    nodes.joined(A, 1, 0.0)
    nodes.expire(1.0)
    for node in (A, B):
        assert nodes.heard(node, 1, 1.0) == []
        assert nodes.standing(node, 1) is Standing.UNKNOWN


def test_a_new_incarnation_replaces_the_old_one() -> None:
    nodes = Nodes()
    nodes.joined(A, 1, 0.0)
    replaced = NodeDied(A, "it was replaced by a new incarnation")
    assert nodes.joined(A, 2, 0.0) == [replaced, NodeJoined(A)]
    assert nodes.standing(A, 1) is Standing.REPLACED
    assert nodes.standing(A, 2) is Standing.MEMBER
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
    nodes = Nodes(grace=10, stall=math.inf)
    nodes.joined(A, 1, 0.0)
    nodes.joined(A, 2, 0.0)
    nodes.heard(A, 1, 9.0)
    assert died(nodes.expire(10.0)) == [A]


def test_a_restored_member_has_fifteen_seconds_to_be_heard() -> None:
    nodes = Nodes(grace=10, stall=math.inf)
    nodes.restored(A, 1, 100.0)
    nodes.restored(B, 1, 100.0)
    assert nodes.alive() == [A, B]
    assert nodes.heard(A, 1, 109.0) == []
    assert died(nodes.expire(114.0)) == []
    assert died(nodes.expire(115.0)) == [B]
    assert nodes.joined(A, 1, 115.0) == [NodeTrusted(A)]
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
    assert died(nodes.expire(19.0)) == []
    assert died(nodes.expire(20.0)) == [b"0"]


def test_what_the_watcher_slept_through_is_nobodys_silence() -> None:
    nodes = Nodes(grace=10, stall=3)
    nodes.joined(A, 1, 0.0)
    nodes.joined(B, 1, 0.0)
    assert nodes.expire(2.5) == []
    nodes.heard(B, 1, 4.5)
    assert nodes.expire(7.0) == []  # it stood still for 4 s
    assert died(nodes.expire(9.5)) == []
    assert died(nodes.expire(12.0)) == []
    assert died(nodes.expire(14.0)) == [A]  # silent for 3 s before, and 7 s after
    assert died(nodes.expire(16.5)) == [B]


def test_a_watcher_that_slept_for_half_the_grace_begins_anew_with_all() -> None:
    """Whoever says something then has to dial again first: what it had said is lost with its connection."""
    nodes = Nodes(grace=10)
    nodes.joined(A, 1, 0.0)
    nodes.joined(B, 1, 0.0)
    for half in range(1, 19):
        nodes.heard(B, 1, half / 2)
        nodes.expire(half / 2)  # at last at 9.0: A has one second
    assert nodes.expire(29.0) == []
    assert not nodes.is_steady(A, 29.0)
    nodes.heard(B, 1, 29.5)
    for half in range(59, 78):
        assert died(nodes.expire(half / 2)) == []
    assert died(nodes.expire(39.0)) == [A]


def test_a_watcher_and_a_node_that_stand_still_in_turn_do_not_lose_each_other() -> None:
    """The node for twice twenty seconds, and the watcher between these, with a moment to spare each time."""
    nodes = Nodes()
    nodes.joined(A, 1, 0.0)
    for half in range(1, 40):
        now = half / 2
        if now not in (4.0, 8.0, 12.0, 16.0):
            assert died(nodes.expire(now)) == []
        else:
            nodes.answered(A, 1, now)
    assert died(nodes.expire(39.0)) == []  # it stood still for twenty seconds, while A did not
    for half in range(79, 118):  # and now A does again
        now = half / 2
        if not half % 6:
            nodes.answered(A, 1, now)
        assert died(nodes.expire(now)) == []


def test_a_watcher_that_is_always_late_finds_the_dead_late_but_finds_them() -> None:
    nodes = Nodes(grace=10)
    nodes.joined(A, 1, 0.0)
    nodes.joined(B, 1, 0.0)
    for moment in range(2, 200, 2):
        nodes.heard(B, 1, moment - 0.5)
        if dead := died(nodes.expire(float(moment))):
            break
    assert dead == [A]
    assert 30 < moment < 50  # a quarter of the time counts


def test_a_node_is_suspected_after_half_the_grace_and_trusted_when_it_is_heard() -> None:
    nodes = Nodes(grace=10, stall=math.inf)
    nodes.joined(A, 1, 0.0)
    assert nodes.expire(4.9) == []
    assert nodes.expire(5.0) == [NodeSuspected(A)]
    assert nodes.expire(5.5) == []  # it is said once
    assert nodes.suspects() == [(A, 1)]
    assert nodes.is_suspect(A)
    assert nodes.heard(A, 2, 6.0) == []  # another incarnation says nothing of this one
    assert nodes.heard(A, 1, 6.0) == [NodeTrusted(A)]
    assert nodes.heard(A, 1, 6.5) == []
    assert not nodes.suspects()
    assert nodes.expire(11.5) == [NodeSuspected(A)]
    assert nodes.expire(16.5) == [NodeDied(A, "it was silent for 10 s")]
    assert not nodes.is_suspect(A)


def test_who_comes_to_be_suspected_and_dead_in_one_moment_is_dead() -> None:
    nodes = Nodes(grace=10, stall=math.inf)
    nodes.joined(A, 1, 0.0)
    assert nodes.expire(12.0) == [NodeDied(A, "it was silent for 10 s")]


def test_a_node_to_which_connections_are_taken_has_thirty_seconds_the_first_time_too() -> None:
    nodes = Nodes(grace=10, stall=math.inf)
    nodes.joined(A, 1, 0.0)
    for moment in range(4, 28, 3):
        nodes.answered(A, 1, moment)
        assert died(nodes.expire(moment + 2)) == []
    nodes.answered(A, 1, 29.9)
    assert nodes.expire(30.0) == [NodeDied(A, "it stood still for 30 s")]


def test_a_watcher_that_stands_still_takes_no_patience_from_a_node_that_does() -> None:
    nodes = Nodes(grace=10)
    nodes.joined(A, 1, 0.0)
    for half_seconds in range(1, 31):
        assert died(nodes.expire(half_seconds / 2)) == []
        if half_seconds % 5 == 0:
            nodes.answered(A, 1, half_seconds / 2)
    assert died(nodes.expire(26.5)) == [], "it could not try it for eleven seconds"
    nodes.answered(A, 1, 27.0)
    now = 27.0
    while not (dead := died(nodes.expire(now))):
        now += 0.5
        nodes.answered(A, 1, now - 0.1)
    assert dead == [A]
    assert now == 56.5  # thirty seconds from when the watcher could see it again


@pytest.mark.parametrize("is_new", [False, True])
def test_what_the_watcher_slept_through_before_it_first_looked_is_nobodys_silence(
    is_new: bool,
) -> None:
    nodes = Nodes(grace=10, stall=1.5)
    if is_new:
        nodes.joined(A, 1, 0.1)
    else:
        nodes.restored(A, 1, 0.1)
    assert nodes.expire(20.0) == []
    assert nodes.heard(A, 1, 20.0) == []


def test_a_node_that_stood_still_and_then_vanished_has_ten_seconds_from_then() -> None:
    nodes = Nodes(grace=10, stall=math.inf)
    nodes.joined(A, 1, 0.0)
    nodes.answered(A, 1, 4.0)
    assert died(nodes.expire(13.9)) == []
    assert nodes.expire(14.0) == [NodeDied(A, "it was silent for 10 s")]


def test_eight_hours_of_late_beats_and_of_standstills_of_ten_seconds_kill_nobody() -> None:
    """Twice as much work as processors: everybody is late, and now and then a loop stands still."""
    draw, nodes, now, tried_at = random.Random(1), Nodes(), 0.0, 0.0
    beats, lags, standstills = dict[bytes, float](), dict[bytes, float](), Counter[str]()
    for node in (A, B, b"c"):
        nodes.joined(node, 1, now)
        beats[node], lags[node] = 0.0, 0.0
    while now < 8 * 3600:
        now += SWEEP + draw.uniform(0.0, SWEEP)
        if draw.random() < 0.001:  # the watcher does, and looks before it reads what has come
            now += 10.0
            standstills["watcher"] += 1
        assert died(nodes.expire(now)) == []
        if now - tried_at > 2.5:  # so often is a raylet tried that is late
            tried_at = now
            for node, incarnation in nodes.silent(1.25, now):
                nodes.answered(node, incarnation, now)
        for node, due in beats.items():
            if due <= now:
                nodes.heard(node, 1, now, lags[node])
                lags[node] = draw.uniform(0.0, 1.0)
                if draw.random() < 0.003:
                    lags[node] = 10.0
                    standstills["node"] += 1
                beats[node] = now + nodes.beat + lags[node]
    assert standstills["watcher"] > 20
    assert standstills["node"] > 100


def test_what_is_seen_of_another_incarnation_puts_nothing_off() -> None:
    nodes = Nodes(grace=10, stall=math.inf)
    nodes.joined(A, 2, 0.0)
    nodes.answered(A, 1, 9.0)
    nodes.answered(B, 1, 9.0)
    assert died(nodes.expire(10.0)) == [A]


def test_a_node_is_steady_when_it_was_heard_for_fifteen_seconds_without_a_gap() -> None:
    nodes = Nodes(grace=100, stall=math.inf)
    nodes.joined(A, 1, 0.0)
    nodes.restored(B, 1, 0.0)
    for second in range(1, 41):
        if not 20 <= second < 25:  # a standstill too short for a doubt
            nodes.heard(A, 1, float(second))
        nodes.heard(B, 1, float(second))
        assert nodes.is_steady(B, second) == (second >= 15)
        assert nodes.is_steady(A, second) == (15 <= second < 23 or second >= 40)
    assert not nodes.is_steady(b"unknown", 40.0)


class NodesModel(RuleBasedStateMachine):
    """Joins, signs of life and ends of two incarnations of two nodes, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes = Nodes(grace=10, stall=math.inf)
        self.members: dict[bytes, tuple[int, float]] = {}  # and their patience, in graces
        self.heard: dict[bytes, float] = {}  # when each member was
        self.steady: dict[bytes, float] = {}  # and since when without a gap
        self.answered: dict[bytes, float] = {}
        self.suspects: set[bytes] = set()
        self.told: list[bytes] = []
        self.dead: set[tuple[bytes, int]] = set()
        self.now = 0.0

    @rule(node=st.sampled_from([A, B]), incarnation=st.integers(1, 4), returns=st.booleans())
    def join(self, node: bytes, incarnation: int, returns: bool) -> None:
        effects = self.nodes.joined(node, incarnation, self.now, returns=returns)
        known = self.members.get(node, (0, 0))[0]
        if known == incarnation:
            assert effects == [NodeTrusted(node)] * (node in self.suspects)
            self.hears(node, self.members[node][1])
            return
        is_fenced = (node, incarnation) in self.dead and not returns
        assert is_fenced == any(isinstance(effect, NodeFenced) for effect in effects)
        if not is_fenced:
            if known:
                self.dead.add((node, known))
            self.dead.discard((node, incarnation))
            self.perform(effects)
            self.members[node] = (incarnation, 1)
            self.hears(node, 1)
            self.steady[node] = self.now
            self.answered.pop(node, None)

    @rule(
        node=st.sampled_from([A, B]),
        incarnation=st.integers(1, 2),
        lag=st.sampled_from([0.0, 0.9, 1.0, 7.0]),
    )
    def hear(self, node: bytes, incarnation: int, lag: float) -> None:
        is_member = self.members.get(node, (0, 0))[0] == incarnation
        effects = self.nodes.heard(node, incarnation, self.now, lag)
        assert effects == [NodeTrusted(node)] * (is_member and node in self.suspects)
        standing = self.nodes.standing(node, incarnation)
        assert (standing is Standing.MEMBER) == is_member
        assert (standing is Standing.UNKNOWN) == (node not in self.members)
        if is_member:
            self.hears(node, 1 if lag < 1 else 3)

    @rule(node=st.sampled_from([A, B]), incarnation=st.integers(1, 2))
    def answer(self, node: bytes, incarnation: int) -> None:
        self.nodes.answered(node, incarnation, self.now)
        if self.members.get(node, (0, 0))[0] == incarnation:
            self.answered[node] = self.now

    @rule(node=st.sampled_from([A, B]), incarnation=st.integers(1, 2))
    def leave(self, node: bytes, incarnation: int) -> None:
        is_member = self.members.get(node, (0, 0))[0] == incarnation
        effects = self.nodes.left(node, incarnation, "it was stopped")
        assert died(effects) == [node] * is_member
        if is_member:
            self.bury(node)
        self.perform(effects)

    @rule(seconds=st.integers(1, 6))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        silent = [node for node in self.members if self.is_given_up(node)]
        doubtful = {
            node for node in self.members if self.now - self.heard[node] >= 5 and node not in silent
        }
        effects = self.nodes.expire(self.now)
        assert sorted(died(effects)) == sorted(silent)
        suspected = {effect.node_id for effect in effects if isinstance(effect, NodeSuspected)}
        assert suspected == doubtful - self.suspects
        self.suspects |= suspected
        for node in silent:
            self.bury(node)
        self.perform(effects)

    @rule()
    def restart(self) -> None:
        self.nodes = Nodes(grace=10, stall=math.inf)
        self.suspects.clear()
        self.answered.clear()
        for node in self.told:
            incarnation, _ = self.members[node]
            self.nodes.restored(node, incarnation, self.now)
            self.members[node] = (incarnation, 1.5)
            self.heard[node] = self.steady[node] = self.now
        for node, incarnation in self.dead:
            self.nodes.restored_dead(node, incarnation, "it had died")

    def hears(self, node: bytes, patience: float) -> None:
        self.members[node] = (self.members[node][0], patience)
        if self.now - self.heard.get(node, -math.inf) > 3.5:
            self.steady[node] = self.now
        self.heard[node] = self.now
        self.suspects.discard(node)

    def is_given_up(self, node: bytes) -> bool:
        silence = self.now - self.heard[node]
        answered = self.answered.get(node, -math.inf)
        if silence >= 30 and answered > self.heard[node]:
            return True
        return silence >= 10 * self.members[node][1] and self.now - answered >= 10

    def bury(self, node: bytes) -> None:
        self.dead.add((node, self.members.pop(node)[0]))
        self.suspects.discard(node)
        self.answered.pop(node, None)

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case NodeJoined(node):
                    assert node not in self.told, "joined twice"
                    self.told.append(node)
                case NodeDied(node):
                    self.told.remove(node)  # ValueError: died twice
                    self.suspects.discard(node)

    @invariant()
    def who_was_told_is_alive(self) -> None:
        self.nodes.check()
        assert self.nodes.alive() == self.told
        assert sorted(self.told) == sorted(self.members)
        assert {node for node, _ in self.nodes.suspects()} == self.suspects
        for node, (incarnation, _) in self.members.items():
            assert self.nodes.is_member(node, incarnation)
            steady = self.now - self.heard[node] <= 3.5 and self.now - self.steady[node] >= 15
            assert self.nodes.is_steady(node, self.now) == steady


TestNodesModel = NodesModel.TestCase
