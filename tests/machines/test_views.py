"""Views: deltas build on what is there, what is missed is asked for, and the dead are forgotten."""

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from raylite._machines.views import (
    ASK_AGAIN,
    AskFull,
    Changed,
    Effect,
    Gone,
    Load,
    ResourceViews,
    ViewDelta,
    ViewPublisher,
)
from raylite._types.resources import Resources
from raylite._types.strategies import NodeKey, NodeView

A, B = NodeKey(b"a"), NodeKey(b"b")


def view(node: NodeKey = A, incarnation: int = 1, cpus: float = 4, backlog: int = 0) -> NodeView:
    total = Resources.of(CPU=4)
    free = Resources.of(CPU=cpus)
    return NodeView(node, incarnation, "10.0.0.1:7000", total, free, {"zone": "x"}, backlog)


def collected(*nodes: NodeKey) -> ResourceViews:
    views = ResourceViews()
    for node in nodes:
        views.joined(node, 1, 0.0)

    return views


def test_the_first_changes_are_the_whole_view() -> None:
    views, publisher = collected(A), ViewPublisher(view())
    delta = publisher.changes()
    assert delta is not None
    assert views.apply(delta, 0.0) == [Changed(view())]
    assert dict(views.nodes()) == {A: view()}


def test_later_changes_hold_only_what_changed() -> None:
    publisher = ViewPublisher(view())
    publisher.changes()
    assert publisher.update(view(cpus=1))
    load = Load(Resources.of(CPU=1), 0)
    assert publisher.changes() == ViewDelta(A, 1, 1, 2, None, load)
    assert publisher.changes() is None


def test_an_update_that_changes_nothing_is_no_news() -> None:
    publisher = ViewPublisher(view())
    publisher.changes()
    assert not publisher.update(view())
    assert publisher.changes() is None


def test_a_delta_that_skips_versions_loses_nothing() -> None:
    views, publisher = collected(A), ViewPublisher(view())
    views.apply(publisher.since(0), 0.0)
    publisher.update(replace(view(), draining=True))
    publisher.update(replace(view(cpus=2), draining=True))
    views.apply(publisher.since(1), 0.0)
    assert views.nodes()[A] == replace(view(cpus=2), draining=True)


def test_stale_and_repeated_deltas_are_dropped() -> None:
    views, publisher = collected(A), ViewPublisher(view())
    first = publisher.since(0)
    publisher.update(view(cpus=1))
    assert views.apply(publisher.since(0), 0.0) == [Changed(view(cpus=1))]
    assert views.apply(first, 0.0) == []
    assert views.apply(publisher.since(0), 0.0) == []
    assert views.nodes()[A] == view(cpus=1)


def test_a_gap_is_asked_about_once_and_again_when_no_answer_comes() -> None:
    views, publisher = collected(A), ViewPublisher(view())
    views.apply(publisher.since(0), 0.0)
    publisher.update(replace(view(), draining=True))
    publisher.update(replace(view(cpus=2), draining=True))
    gap = publisher.since(2)
    assert views.apply(gap, 5.0) == [AskFull(A, 1)]
    assert views.apply(gap, 5.1) == views.overdue(5.1) == []
    assert views.overdue(5.0 + ASK_AGAIN) == [AskFull(A, 1)]
    assert views.nodes()[A] == view()
    views.apply(publisher.since(0), 6.5)
    assert views.nodes()[A].draining
    assert views.overdue(9.0) == []


def test_being_behind_is_remembered_when_an_older_delta_comes_after_the_gap() -> None:
    views, publisher = collected(A), ViewPublisher(view())
    views.apply(publisher.since(0), 0.0)
    publisher.update(replace(view(), draining=True))
    late = publisher.since(1)
    publisher.update(replace(view(cpus=2), draining=True))
    views.apply(publisher.since(2), 5.0)
    assert views.apply(late, 5.0) == [Changed(replace(view(), draining=True))]
    assert views.overdue(6.0) == [AskFull(A, 1)]


def test_a_delta_fits_if_nothing_else_changed_since() -> None:
    views, publisher = collected(A), ViewPublisher(view())
    views.apply(publisher.since(0), 0.0)
    publisher.update(view(cpus=3))
    publisher.update(view(cpus=2))
    assert views.apply(publisher.since(2), 5.0) == [Changed(view(cpus=2))]


def test_a_delta_without_parts_tells_who_is_behind() -> None:
    views, publisher = collected(A), ViewPublisher(view())
    views.apply(publisher.since(0), 0.0)
    assert views.apply(publisher.since(1), 1.0) == []
    publisher.update(view(cpus=1))
    assert views.apply(publisher.since(2), 1.0) == [AskFull(A, 1)]


def test_a_member_that_says_nothing_is_asked() -> None:
    views = collected(A)
    assert views.overdue(0.5) == []
    assert views.overdue(1.0) == [AskFull(A, 1)]
    assert views.overdue(1.5) == []


def test_news_of_the_dead_the_replaced_and_the_unknown_is_dropped() -> None:
    views, old = collected(A), ViewPublisher(view())
    views.apply(old.since(0), 0.0)
    assert views.apply(ViewPublisher(view(B)).since(0), 0.0) == []
    assert views.joined(A, 2, 1.0) == [Gone(A)]
    assert views.apply(old.since(0), 1.0) == views.died(A, 1) == []
    assert views.apply(ViewPublisher(view(incarnation=2)).since(0), 1.0) != []
    assert views.died(A, 2) == [Gone(A)]
    assert views.died(A, 2) == views.overdue(9.0) == []
    assert not views.nodes()


def test_joining_again_keeps_what_is_known() -> None:
    views = collected(A)
    views.apply(ViewPublisher(view()).since(0), 0.0)
    assert views.joined(A, 1, 1.0) == []
    assert A in views.nodes()


def test_what_was_collected_is_handed_on_in_deltas() -> None:
    gcs, raylet = collected(A, B), collected(A, B)
    first, second = ViewPublisher(view()), ViewPublisher(view(B))
    gcs.apply(first.since(0), 0.0)
    gcs.apply(second.since(0), 0.0)
    for delta in gcs.since(0):
        raylet.apply(delta, 0.0)

    seen = gcs.revision
    first.update(view(cpus=1))
    gcs.apply(first.since(1), 0.0)
    [delta] = gcs.since(seen)
    assert (delta.node, delta.profile, delta.base) == (A, None, 1)
    assert raylet.apply(delta, 0.0) == [Changed(view(cpus=1))]
    assert dict(raylet.nodes()) == dict(gcs.nodes())
    assert gcs.since(gcs.revision) == []


def test_who_missed_what_was_handed_on_notices_at_the_next_delta() -> None:
    gcs, raylet, publisher = collected(A), collected(A), ViewPublisher(view())
    gcs.apply(publisher.since(0), 0.0)
    raylet.apply(gcs.since(0)[0], 0.0)
    publisher.update(view(cpus=1))
    gcs.apply(publisher.since(1), 0.0)
    seen = gcs.revision
    publisher.update(replace(view(cpus=1), draining=True))
    gcs.apply(publisher.since(2), 0.0)
    [delta] = gcs.since(seen)
    assert raylet.apply(delta, 0.0) == [AskFull(A, 1)]


def test_a_whole_view_is_given_when_asked() -> None:
    gcs = collected(A, B)
    gcs.apply(ViewPublisher(view()).since(0), 0.0)
    assert gcs.full(A) == ViewPublisher(view()).since(0)
    assert gcs.full(B) is gcs.full(NodeKey(b"nobody")) is None


def test_a_new_session_begins_with_what_the_other_side_has() -> None:
    publisher = ViewPublisher(view())
    publisher.update(view(cpus=2))
    publisher.changes()
    publisher.resume(1)
    delta = publisher.changes()
    assert delta is not None
    assert (delta.base, delta.version) == (1, 2)
    publisher.resume(99)
    assert publisher.changes() is None
    publisher.resume()
    assert publisher.changes() == publisher.since(0)


def test_a_malformed_delta_changes_nothing() -> None:
    views = collected(A)
    assert views.apply(ViewDelta(A, 1, 0, 3, None, None), 0.0) == [AskFull(A, 1)]
    assert views.apply(ViewDelta(A, 1, 9, -1, None, None), 0.0) == []
    assert not views.nodes()
    views.check()


nodes, numbers = st.sampled_from([A, B]), st.integers(0, 99)


class ViewsModel(RuleBasedStateMachine):
    """Two raylets publish to the GCS, which hands on to a third; any delta may be lost or repeated.

    The third hears of members in order, but later than of views or earlier.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.gcs, self.raylet = ResourceViews(), ResourceViews()
        self.runs = 0
        self.publishers: dict[NodeKey, ViewPublisher] = {}
        self.present: dict[NodeKey, NodeView] = {}
        self.published: dict[tuple[NodeKey, int, int], NodeView] = {}
        self.seen: dict[tuple[int, NodeKey, int], int] = {}
        self.handed_on = 0
        self.to_gcs: list[ViewDelta] = []
        self.to_raylet: list[ViewDelta] = []
        self.membership: list[tuple[NodeKey, int, bool]] = []
        for node in (A, B):
            self.starts(node)

    @rule(node=nodes)
    def starts(self, node: NodeKey) -> None:
        self.runs += 1
        self.present[node] = view(node, self.runs)
        self.publishers[node] = ViewPublisher(self.present[node])
        self.published[node, self.runs, 1] = self.present[node]
        self.gcs.joined(node, self.runs, self.now)
        self.membership.append((node, self.runs, True))

    @precondition(lambda self: len(self.present) == 2)
    @rule(node=nodes)
    def dies(self, node: NodeKey) -> None:
        incarnation = self.present.pop(node).incarnation
        del self.publishers[node]
        self.gcs.died(node, incarnation)
        self.membership.append((node, incarnation, False))

    @rule(which=numbers, cpus=st.integers(0, 4), profile=st.booleans())
    def changes(self, which: int, cpus: int, profile: bool) -> None:
        node = sorted(self.present)[which % len(self.present)]
        old, publisher = self.present[node], self.publishers[node]
        other = {"draining": not old.draining} if profile else {"available": Resources.of(CPU=cpus)}
        new = replace(old, **other)
        assert publisher.update(new) == (new != old)
        self.present[node] = new
        self.published[node, new.incarnation, publisher.version] = new

    @rule(which=numbers, ago=st.integers(0, 4))
    def publishes(self, which: int, ago: int) -> None:
        publisher = self.publishers[sorted(self.present)[which % len(self.present)]]
        if (delta := publisher.changes()) is not None:
            self.to_gcs.append(delta)

        self.to_gcs.append(publisher.since(max(0, publisher.version - ago)))

    @rule()
    def the_gcs_hears_all_and_hands_it_on(self) -> None:
        for node, publisher in self.publishers.items():
            known = self.gcs.full(node)
            delta = publisher.since(known.version if known else 0)
            self.at_gcs(self.gcs.apply(delta, self.now))

        self.hands_on()

    @rule()
    def hands_on(self) -> None:
        self.to_raylet += self.gcs.since(self.handed_on)
        self.handed_on = self.gcs.revision

    @precondition(lambda self: self.to_gcs)
    @rule(which=numbers, keep=st.booleans())
    def arrives_at_the_gcs(self, which: int, keep: bool) -> None:
        delta = self.to_gcs[which % len(self.to_gcs)]
        if not keep:
            self.to_gcs.remove(delta)

        self.at_gcs(self.gcs.apply(delta, self.now))

    @precondition(lambda self: self.to_raylet)
    @rule(which=numbers, keep=st.booleans())
    def arrives_at_the_raylet(self, which: int, keep: bool) -> None:
        delta = self.to_raylet[which % len(self.to_raylet)]
        if not keep:
            self.to_raylet.remove(delta)

        self.at_raylet(self.raylet.apply(delta, self.now))

    @rule(to_gcs=st.booleans())
    def is_lost(self, to_gcs: bool) -> None:
        del (self.to_gcs if to_gcs else self.to_raylet)[:1]

    @rule()
    def the_raylet_hears_of_members(self) -> None:
        for node, incarnation, alive in self.membership:
            if alive:
                self.raylet.joined(node, incarnation, self.now)
            else:
                self.raylet.died(node, incarnation)

        self.membership.clear()

    @rule(delay=st.sampled_from([0.3, 1.0, 5.0]))
    def time_passes(self, delay: float) -> None:
        self.now += delay
        self.at_gcs(self.gcs.overdue(self.now))
        self.at_raylet(self.raylet.overdue(self.now))
        assert self.gcs.overdue(self.now) == self.raylet.overdue(self.now) == []

    def at_gcs(self, effects: list[Effect]) -> None:
        for effect in effects:
            assert not isinstance(effect, Gone)
            if isinstance(effect, AskFull):
                assert effect.incarnation == self.present[effect.node].incarnation
                self.to_gcs.append(self.publishers[effect.node].since(0))

    def at_raylet(self, effects: list[Effect]) -> None:
        for effect in effects:
            assert not isinstance(effect, Gone)
            if isinstance(effect, AskFull) and (full := self.gcs.full(effect.node)) is not None:
                self.to_raylet.append(full)

    @invariant()
    def every_view_is_one_that_was_published(self) -> None:
        for which, table in enumerate((self.gcs, self.raylet)):
            table.check()
            for node, known in table.nodes().items():
                full = table.full(node)
                assert full is not None
                assert known == self.published[node, known.incarnation, full.version]
                key = which, node, known.incarnation
                assert full.version >= self.seen.get(key, 0), "went back in time"
                self.seen[key] = full.version

        for publisher in self.publishers.values():
            publisher.check()

    @invariant()
    def the_dead_are_forgotten(self) -> None:
        runs = {node: known.incarnation for node, known in self.gcs.nodes().items()}
        alive = {node: known.incarnation for node, known in self.present.items()}
        assert runs.items() <= alive.items()

    def teardown(self) -> None:
        self.the_raylet_hears_of_members()
        self.to_gcs += [p.since(p.version) for p in self.publishers.values()]
        while self.to_gcs:
            self.at_gcs(self.gcs.apply(self.to_gcs.pop(0), self.now))

        self.time_passes(2 * ASK_AGAIN)
        while self.to_gcs:
            self.at_gcs(self.gcs.apply(self.to_gcs.pop(0), self.now))

        assert dict(self.gcs.nodes()) == self.present, "nobody noticed what was missed"
        for delta in self.gcs.since(0):
            self.raylet.apply(delta, self.now)

        assert dict(self.raylet.nodes()) == self.present


TestViewsModel = ViewsModel.TestCase
TestViewsModel.settings = settings(max_examples=70)
