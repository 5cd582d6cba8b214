"""Picker: requests are served here, sent on or parked; none wanders for ever, none is forgotten."""

from dataclasses import dataclass, field
from random import Random

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from raylite._machines.picker import (
    MAX_HOPS,
    PROMISE_LASTS,
    UNKNOWN_GRACE,
    Ask,
    Effect,
    Infeasible,
    Keep,
    Picker,
    Refuse,
    Spill,
)
from raylite._types.keys import HolderKey, LeaseID
from raylite._types.resources import Resources
from raylite._types.strategies import (
    Labels,
    NodeAffinity,
    NodeKey,
    NodeLabels,
    NodeView,
    Placement,
    SpreadStrategy,
)

A, B, C = NodeKey(b"a"), NodeKey(b"b"), NodeKey(b"c")
DRIVER, OTHER = HolderKey(b"driver"), HolderKey(b"other")
CPU = Placement(Resources.of(CPU=1))
GPU = Placement(Resources.of(GPU=4))


def node(key: NodeKey, free: float, total: float = 4, **more: float) -> NodeView:
    name = key.decode()
    whole, left = Resources.of(CPU=total, **more), Resources.of(CPU=free, **more)
    return NodeView(key, 1, f"{name}:1", whole, left, {"name": name})


def table(*views: NodeView) -> dict[NodeKey, NodeView]:
    return {view.node: view for view in views}


def ask(number: int, placement: Placement = CPU, *visited: NodeKey) -> Ask:
    return Ask(LeaseID(b"%d" % number), DRIVER, placement, visited)


def picker(local: NodeKey = A) -> Picker:
    return Picker(local, Random(1).random)


def sent_to(effects: list[Effect]) -> list[NodeKey]:
    return [effect.node for effect in effects if isinstance(effect, Spill)]


def test_a_request_is_kept_where_there_is_room() -> None:
    assert picker().request(ask(1), table(node(A, 4), node(B, 4)), 0.0) == [Keep(ask(1))]


def test_a_request_is_sent_to_a_node_with_room_and_told_the_way() -> None:
    [spill] = picker().request(ask(1), table(node(A, 0), node(B, 4)), 0.0)
    assert spill == Spill(ask(1).lease, DRIVER, B, "b:1", (A,))


def test_a_request_waits_here_when_nobody_has_room() -> None:
    assert picker().request(ask(1), table(node(A, 0), node(B, 0)), 0.0) == [Keep(ask(1))]


def test_a_request_that_was_sent_here_stays_though_others_are_emptier() -> None:
    views = table(node(A, 1), node(B, 4))
    assert picker().request(ask(1, CPU, C), views, 0.0) == [Keep(ask(1, CPU, C))]


def test_a_request_does_not_return_to_a_node_that_sent_it_on() -> None:
    views = table(node(A, 0), node(B, 4), node(C, 2))
    assert sent_to(picker().request(ask(1, CPU, B), views, 0.0)) == [C]
    assert picker().request(ask(1, CPU, B, C), views, 0.0) == [Keep(ask(1, CPU, B, C))]


def test_a_request_returns_if_no_other_node_could_ever_run_it() -> None:
    views = table(node(A, 0, 0), node(B, 0))
    assert sent_to(picker().request(ask(1, CPU, B), views, 0.0)) == [B]


def test_a_request_that_moved_often_enough_stays() -> None:
    far = ask(1, CPU, *[B] * MAX_HOPS)
    assert picker().request(far, table(node(A, 0), node(C, 4)), 0.0) == [Keep(far)]


def test_a_request_that_moved_often_enough_and_cannot_stay_begins_anew_later() -> None:
    machine, views = picker(), table(node(A, 0, 0), node(C, 4))
    assert machine.request(ask(1, CPU, *[B] * MAX_HOPS), views, 0.0) == []
    assert machine.parked() == ()
    [spill] = machine.changed(views, 1.0)
    assert isinstance(spill, Spill)
    assert spill.visited == (A,)


def test_what_was_sent_to_a_node_counts_until_its_next_view() -> None:
    machine, views = picker(), table(node(A, 0), node(B, 2))
    effects = [machine.request(ask(number), views, 0.0) for number in range(3)]
    assert [sent_to(each) for each in effects] == [[B], [B], []]
    views[B] = node(B, 1)
    assert sent_to(machine.changed(views, 0.1)) == [B]


def test_a_view_that_does_not_change_is_believed_again_after_a_while() -> None:
    machine, views = picker(), table(node(A, 0), node(B, 1))
    machine.request(ask(1), views, 0.0)
    machine.request(ask(2), views, 1.0)
    assert machine.changed(views, PROMISE_LASTS - 0.1) == []
    assert sent_to(machine.changed(views, PROMISE_LASTS)) == [B]


def test_what_waits_moves_when_another_node_has_room_the_oldest_first() -> None:
    machine = picker()
    for number in range(3):
        machine.request(ask(number), table(node(A, 0)), 0.0)

    effects = machine.changed(table(node(A, 0), node(B, 2)), 1.0)
    assert [(e.lease, e.node) for e in effects if isinstance(e, Spill)] == [(b"0", B), (b"1", B)]
    assert machine.changed(table(node(A, 1), node(B, 2)), 2.0) == []


def test_what_was_granted_does_not_move() -> None:
    machine = picker()
    machine.request(ask(1), table(node(A, 4)), 0.0)
    machine.granted(ask(1).lease)
    assert machine.changed(table(node(A, 0), node(B, 4)), 1.0) == []
    assert machine.request(ask(1), table(node(A, 0), node(B, 4)), 1.0) == [Keep(ask(1))]


def test_an_infeasible_request_is_reported_once_and_kept_until_a_node_joins() -> None:
    machine, views = picker(), table(node(A, 4), node(B, 4, GPU=2))
    message = "no node has 4 GPUs (largest: 2 on b); lower num_gpus or add a node"
    report = Infeasible(ask(1).lease, DRIVER, message)
    assert machine.request(ask(1, GPU), views, 0.0) == [report]
    assert machine.request(ask(1, GPU), views, 0.0) == [report]
    assert machine.changed(views, 1.0) == []
    assert machine.parked() == (ask(1, GPU),)
    views[C] = node(C, 4, GPU=4)
    assert sent_to(machine.changed(views, 2.0)) == [C]
    assert machine.parked() == ()


def test_a_report_is_repeated_when_it_has_changed() -> None:
    machine = picker()
    machine.request(ask(1, GPU), table(node(A, 4)), 0.0)
    [report] = machine.changed(table(node(A, 4), node(B, 4, GPU=3)), 1.0)
    assert isinstance(report, Infeasible)
    assert "largest: 3 on b" in report.message


def test_what_waits_here_is_parked_when_the_node_can_no_longer_run_it() -> None:
    machine = picker()
    machine.request(ask(1), table(node(A, 0)), 0.0)
    [report] = machine.changed(table(replace(node(A, 0), draining=True)), 1.0)
    assert isinstance(report, Infeasible)
    machine.check()
    assert machine.changed(table(node(A, 0)), 2.0) == [Keep(ask(1))]


def affinity(target: NodeKey, *, soft: bool = False) -> Placement:
    return Placement(Resources.of(CPU=1), NodeAffinity(target, soft))


def test_affinity_sends_to_its_node_even_when_that_is_busy() -> None:
    machine, views = picker(), table(node(A, 4), node(B, 0))
    assert sent_to(machine.request(ask(1, affinity(B)), views, 0.0)) == [B]
    asked = ask(1, affinity(B), A)
    assert picker(B).request(asked, views, 0.0) == [Keep(asked)]


def test_affinity_to_an_unknown_node_waits_a_moment_and_is_refused() -> None:
    machine, views = picker(), table(node(A, 4))
    assert machine.request(ask(1, affinity(B)), views, 5.0) == []
    assert machine.changed(views, 5.0 + UNKNOWN_GRACE / 2) == []
    [refused] = machine.changed(views, 5.0 + UNKNOWN_GRACE)
    assert isinstance(refused, Refuse)
    assert "node 62 is not in the cluster" in refused.message
    assert machine.changed(views, 9.0) == []


def test_affinity_to_a_node_that_has_just_joined_is_obeyed() -> None:
    machine = picker()
    machine.request(ask(1, affinity(B)), table(node(A, 4)), 0.0)
    assert sent_to(machine.changed(table(node(A, 4), node(B, 4)), 0.2)) == [B]


def test_affinity_to_a_node_that_is_too_small_is_refused_at_once() -> None:
    [refused] = picker().request(ask(1, affinity(B)), table(node(A, 4), node(B, 0, 0)), 0.0)
    assert isinstance(refused, Refuse)
    assert refused.message.startswith("node 62 on b never has 1 CPU")


def test_soft_affinity_falls_back_when_its_node_is_gone() -> None:
    asked = ask(1, affinity(B, soft=True))
    assert picker().request(asked, table(node(A, 4)), 0.0) == [Keep(asked)]


def test_what_waits_by_soft_affinity_stays_though_others_have_room() -> None:
    machine = picker()
    machine.request(ask(1, affinity(A, soft=True)), table(node(A, 0)), 0.0)
    assert machine.changed(table(node(A, 0), node(B, 4)), 1.0) == []


def test_spread_requests_go_round_and_stay_where_they_were_sent() -> None:
    spread = Placement(Resources.of(CPU=1), SpreadStrategy())
    machine, views = picker(), table(node(A, 4), node(B, 4), node(C, 4))
    effects = [machine.request(ask(number, spread), views, 0.0) for number in range(3)]
    assert [sent_to(each) for each in effects] == [[], [B], [C]]
    sent = ask(1, spread, A)
    assert [picker(B).request(sent, views, 0.0) for _ in range(3)] == [[Keep(sent)]] * 3


def test_what_a_dead_holder_asked_for_is_forgotten() -> None:
    machine = picker()
    machine.request(ask(1), table(node(A, 0)), 0.0)
    machine.request(ask(2, GPU), table(node(A, 0)), 0.0)
    machine.holder_died(OTHER)
    assert len(machine.parked()) == 1
    machine.holder_died(DRIVER)
    machine.holder_died(DRIVER)
    assert machine.parked() == ()
    assert machine.changed(table(node(A, 0), node(B, 4, GPU=4)), 1.0) == []
    machine.check()


def test_late_and_unknown_news_changes_nothing() -> None:
    machine = picker()
    machine.granted(LeaseID(b"?"))
    machine.ended(LeaseID(b"?"))
    machine.request(ask(1), table(node(A, 0)), 0.0)
    machine.ended(ask(1).lease)
    machine.granted(ask(1).lease)
    assert machine.changed(table(node(A, 0), node(B, 4)), 1.0) == []
    machine.check()


def test_a_raylet_without_any_view_parks_what_it_is_asked() -> None:
    machine = picker()
    [report] = machine.request(ask(1), {}, 0.0)
    assert isinstance(report, Infeasible)
    assert machine.changed(table(node(A, 4)), 1.0) == [Keep(ask(1))]


@dataclass
class Raylet:
    """A node, the truth about it, and what it believes of the others."""

    picker: Picker
    view: NodeView
    believed: dict[NodeKey, NodeView] = field(default_factory=dict)
    queue: dict[LeaseID, Ask] = field(default_factory=dict)
    lent: dict[LeaseID, Ask] = field(default_factory=dict)

    def views(self) -> dict[NodeKey, NodeView]:
        held = sum((a.placement.demand for a in self.lent.values()), Resources())
        now = replace(self.view, available=self.view.total - held)
        return {**self.believed, self.view.node: now}


NODES = {A: node(A, 1, 1), B: node(B, 2, 2, GPU=1), C: node(C, 1, 1)}
one = Resources.of(CPU=1)
placements = st.sampled_from(
    [
        *[CPU] * 3,
        Placement(Resources.of(CPU=2)),
        Placement(Resources.of(GPU=1)),
        Placement(Resources.of(CPU=9)),
        Placement(one, SpreadStrategy()),
        Placement(one, NodeAffinity(B)),
        Placement(one, NodeAffinity(C, soft=True)),
        Placement(one, NodeAffinity(A, soft=True, spill_on_unavailable=True)),
        Placement(one, NodeLabels(Labels.parse({"name": "!a"}), Labels.parse({"name": "c"}))),
        Placement(
            one, selector=Labels.parse({"name": "c"}), fallbacks=(Labels.parse({"name": "b"}),)
        ),
    ]
)
nodes = st.sampled_from([A, B, C])


def may_run(placement: Placement, view: NodeView) -> bool:
    """Judge, in other words than the policies', whether a node could run a task when idle."""
    labels = [placement.selector, *placement.fallbacks]
    match placement.strategy:
        case NodeAffinity(node=named, soft=False) if named != view.node:
            return False
        case NodeLabels(hard=hard):
            labels = [hard]

    fits = all(view.total.units(name) >= placement.demand.units(name) for name in placement.demand)
    return fits and not view.draining and any(each.match(view.labels) for each in labels)


def test_what_no_node_could_serve_for_long_is_refused_with_what_is_missing() -> None:
    machine, views = Picker(A, Random(1).random, 60.0), table(node(A, 4), node(B, 4, GPU=2))
    message = "no node has 4 GPUs (largest: 2 on b); lower num_gpus or add a node"
    assert machine.request(ask(1, GPU), views, 0.0) == [Infeasible(ask(1).lease, DRIVER, message)]
    machine.request(ask(2, GPU), views, 1.0)
    assert machine.changed(views, 59.9) == []
    [refusal] = machine.changed(views, 60.0)
    assert refusal == Refuse(ask(1).lease, DRIVER, f"{message}; none came within 60 s")
    assert [each.lease for each in machine.parked()] == [ask(2).lease]
    machine.check()


def test_the_grace_begins_anew_when_a_node_could_serve_it_meanwhile() -> None:
    machine, views = Picker(A, Random(1).random, 60.0), table(node(A, 4), node(B, 4))
    able = table(node(A, 4), node(B, 4), node(C, 0, GPU=4))
    machine.request(ask(1, Placement(Resources.of(GPU=4), NodeAffinity(A, soft=True))), views, 0.0)
    assert sent_to(machine.changed(able, 30.0)) == [C]
    machine = Picker(C, Random(1).random, 60.0)
    machine.request(ask(1, GPU), views, 0.0)
    assert machine.changed(able, 30.0) == [Keep(ask(1, GPU))]
    machine.changed(views, 50.0)
    assert machine.changed(views, 109.9) == []
    assert isinstance(machine.changed(views, 110.0)[0], Refuse)


def test_why_and_since_when_a_request_waits_is_known() -> None:
    machine, views = picker(), table(node(A, 4))
    machine.request(ask(1, GPU), views, 3.0)
    machine.request(ask(2), views, 4.0)
    reason = machine.reason(ask(1).lease)
    assert reason is not None
    assert reason.startswith("no node has 4 GPUs")
    assert (machine.since(ask(1).lease), machine.since(ask(2).lease)) == (3.0, 4.0)
    assert machine.reason(ask(2).lease) is None
    assert machine.since(ask(3).lease) is None


def test_no_grace_leaves_the_time_in_which_nodes_become_known() -> None:
    machine, views = Picker(A, Random(1).random, 0.0), table(node(A, 4))
    assert isinstance(machine.request(ask(1, GPU), views, 0.0)[0], Infeasible)
    assert machine.changed(views, UNKNOWN_GRACE - 0.1) == []
    assert isinstance(machine.changed(views, UNKNOWN_GRACE)[0], Refuse)


def test_without_an_end_to_the_grace_a_request_is_kept() -> None:
    machine, views = Picker(A, Random(1).random, float("inf")), table(node(A, 4))
    machine.request(ask(1, GPU), views, 0.0)
    assert machine.changed(views, 1e9) == []


def hard_affinity(placement: Placement) -> bool:
    return isinstance(placement.strategy, NodeAffinity) and not placement.strategy.soft


GRACE = 10.0


class PickerWorld(RuleBasedStateMachine):
    """Three raylets that believe old views of each other, and owners that go where they are sent."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.last = 0.0, 0
        self.random = Random(0)
        self.raylets = {key: self.raylet(view) for key, view in NODES.items()}
        self.asked: dict[LeaseID, Placement] = {}
        self.at: dict[LeaseID, NodeKey] = {}
        self.told: dict[LeaseID, str] = {}
        self.told_at: dict[LeaseID, float] = {}
        for key in NODES:
            for about in NODES:
                self.hears(key, about)

    def raylet(self, view: NodeView) -> Raylet:
        return Raylet(Picker(view.node, self.random.random, GRACE), view)

    @rule(placement=placements, key=nodes)
    def asks(self, placement: Placement, key: NodeKey) -> None:
        self.last += 1
        wish = Ask(LeaseID(b"%d" % self.last), DRIVER, placement)
        self.asked[wish.lease] = placement
        self.ask(key, wish)

    @precondition(lambda self: self.at)
    @rule(which=st.integers(0, 99))
    def asks_again(self, which: int) -> None:
        lease = list(self.at)[which % len(self.at)]
        raylet = self.raylets[self.at[lease]]
        wish = Ask(lease, DRIVER, self.asked[lease])
        repeated = raylet.picker.request(wish, raylet.views(), self.now)
        assert len(repeated) == (lease in self.told or lease in raylet.queue | raylet.lent)
        assert all(isinstance(effect, Keep | Infeasible) for effect in repeated)

    @precondition(lambda self: self.at)
    @rule(which=st.integers(0, 99))
    def ends(self, which: int) -> None:
        self.end(list(self.at)[which % len(self.at)])

    @rule(key=nodes, about=nodes)
    def hears(self, key: NodeKey, about: NodeKey) -> None:
        self.raylets[key].believed[about] = self.raylets[about].views()[about]

    @rule(key=nodes, about=nodes)
    def forgets(self, key: NodeKey, about: NodeKey) -> None:
        self.raylets[key].believed.pop(about, None)

    @rule(key=nodes, cpus=st.integers(0, 3), drains=st.sampled_from([False, False, True]))
    def is_resized(self, key: NodeKey, cpus: int, drains: bool) -> None:
        raylet = self.raylets[key]
        total = raylet.view.total.without("CPU") + Resources.of(CPU=cpus)
        raylet.view = replace(raylet.view, total=total, draining=drains)

    @rule(key=nodes, delay=st.sampled_from([0.0, 0.6, 4.0]))
    def thinks_again(self, key: NodeKey, delay: float) -> None:
        self.now += delay
        raylet = self.raylets[key]
        effects = raylet.picker.changed(raylet.views(), self.now)
        for effect in effects:
            lease = effect.ask.lease if isinstance(effect, Keep) else effect.lease
            assert self.at[lease] == key
            assert lease not in raylet.lent, "moved what was granted"
            if not isinstance(effect, Keep):
                raylet.queue.pop(lease, None)

        if delay > PROMISE_LASTS and not effects:
            self.nothing_waits_in_vain(raylet)

        for effect in effects:
            self.perform(key, effect, None)

    def nothing_waits_in_vain(self, raylet: Raylet) -> None:
        views = raylet.views()
        here = views.pop(raylet.view.node)
        for wish in raylet.queue.values():
            free = [v for v in views.values() if wish.placement.demand.fits(v.available)]
            stays = wish.placement.demand.fits(here.available) or len(wish.visited) == MAX_HOPS
            assert stays or wish.placement != CPU or not any(may_run(CPU, view) for view in free)

    def ask(self, key: NodeKey, wish: Ask) -> None:
        raylet = self.raylets[key]
        self.at[wish.lease] = key
        effects = raylet.picker.request(wish, raylet.views(), self.now)
        assert len(effects) <= 1
        for effect in effects:
            self.perform(key, effect, wish.visited)

    def perform(self, key: NodeKey, effect: Effect, came_from: tuple[NodeKey, ...] | None) -> None:
        raylet = self.raylets[key]
        match effect:
            case Keep(wish):
                assert self.at[wish.lease] == key
                assert wish.lease not in raylet.queue
                assert may_run(wish.placement, raylet.view), "kept where it can never run"
                raylet.queue[wish.lease] = wish
                self.told.pop(wish.lease, None)
                self.grant(raylet)
            case Spill(lease, _, to, _, visited):
                placement = self.asked[lease]
                assert to != key
                assert may_run(placement, raylet.views()[to])
                assert visited == (*came_from, key) if came_from is not None else visited
                assert len(visited) <= MAX_HOPS, "wanders for ever"
                returns = came_from is not None and to in came_from
                assert not (returns and may_run(placement, raylet.view)), "ping-pong"
                self.told.pop(lease, None)
                self.ask(to, Ask(lease, DRIVER, placement, visited))
            case Refuse(lease, _, message):
                if hard_affinity(self.asked[lease]):
                    assert message.startswith("node 62 ")
                else:
                    views = raylet.views().values()
                    assert not any(may_run(self.asked[lease], view) for view in views)
                    assert message.endswith(f"; none came within {GRACE:g} s")
                    assert self.now - self.told_at[lease] >= GRACE, "nobody could add a node"
                self.told.pop(lease, None)
                del self.at[lease]
            case Infeasible(lease, _, message):
                views = raylet.views().values()
                assert not any(may_run(self.asked[lease], view) for view in views)
                assert message.startswith("no node ")
                assert not hard_affinity(self.asked[lease]), "not refused"
                assert message != self.told.get(lease), "told again"
                if lease not in self.told:
                    self.told_at[lease] = self.now
                assert self.now - self.told_at[lease] < GRACE, "waits for too long"
                self.told[lease] = message

    def end(self, lease: LeaseID) -> None:
        raylet = self.raylets[self.at.pop(lease)]
        raylet.queue.pop(lease, None)
        raylet.lent.pop(lease, None)
        self.told.pop(lease, None)
        raylet.picker.ended(lease)
        self.grant(raylet)

    def grant(self, raylet: Raylet) -> None:
        for lease, wish in list(raylet.queue.items()):
            if wish.placement.demand.fits(raylet.views()[raylet.view.node].available):
                raylet.lent[lease] = raylet.queue.pop(lease)
                raylet.picker.granted(lease)

    @invariant()
    def nothing_is_lost(self) -> None:
        for key, raylet in self.raylets.items():
            raylet.picker.check()
            reported = {wish.lease for wish in raylet.picker.parked()}
            assert reported == {lease for lease in self.told if self.at[lease] == key}

    def teardown(self) -> None:
        """With true views and as much time as it takes, all that can run somewhere does."""
        for raylet in self.raylets.values():
            raylet.view = replace(raylet.view, draining=False)

        truth = [raylet.view for raylet in self.raylets.values()]
        rounds = 0
        while any(may_run(self.asked[lease], view) for lease in self.at for view in truth):
            rounds += 1
            assert rounds <= self.last + 3, "stuck"
            for key in self.raylets:
                for about in self.raylets:
                    self.hears(key, about)

                self.thinks_again(key, 4.0)
                self.grant(self.raylets[key])
                for lease in list(self.raylets[key].lent):
                    self.end(lease)

        for key, raylet in self.raylets.items():
            for lease in list(raylet.lent):  # granted before there was nothing left to grant
                self.end(lease)

            for about in self.raylets:
                self.hears(key, about)

            self.thinks_again(key, 4.0)

        assert self.told.keys() == self.at.keys(), "nobody was told"


TestPickerWorld = PickerWorld.TestCase
