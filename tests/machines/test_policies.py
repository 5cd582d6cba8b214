"""Policies: where a task had best run, by each of Ray's strategies, and the words when nowhere."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given, strategies as st

from raylite._machines.policies import (
    Policies,
    first_raylet,
    is_available,
    is_feasible,
    utilisation,
)
from raylite._machines.shortage import amounts, refusal, shortage, waiting
from raylite._types.resources import Resources
from raylite._types.strategies import (
    DefaultStrategy,
    In,
    Labels,
    NodeAffinity,
    NodeKey,
    NodeLabels,
    NodeView,
    Placement,
    SpreadStrategy,
    Strategy,
)

CPU = Placement(Resources.of(CPU=1))
SPREAD = Placement(Resources.of(CPU=1), SpreadStrategy())


def node(
    name: str,
    free: float = 4,
    total: float = 4,
    *,
    zone: str = "",
    draining: bool = False,
    backlog: int = 0,
    suspect: bool = False,
    **more: float,
) -> NodeView:
    return NodeView(
        NodeKey(name.encode()),
        1,
        f"{name}:7000",
        Resources.of(CPU=total, **more),
        Resources.of(CPU=free, **more),
        {"zone": zone} if zone else {},
        backlog,
        draining,
        suspect=suspect,
    )


def table(*views: NodeView) -> dict[NodeKey, NodeView]:
    return {view.node: view for view in views}


def key(name: str) -> NodeKey:
    return NodeKey(name.encode())


def chosen(
    placement: Placement, *views: NodeView, local: str = "a", draws: int = 50, only: bool = False
) -> set[str]:
    """Return the nodes that are chosen sooner or later."""
    policies = Policies(key(local), Random(1).random)
    choices = [policies.choose(placement, table(*views), available_only=only) for _ in range(draws)]
    return {choice.node.decode() for choice in choices if choice is not None}


def test_the_local_node_is_best_until_half_of_it_is_in_use() -> None:
    assert chosen(CPU, node("a", 2.5), node("b")) == {"a"}
    assert chosen(CPU, node("a", 2), node("b")) == {"b"}
    assert chosen(CPU, node("a", 2), node("b", 1)) == {"a"}


def test_the_short_cut_to_the_local_node_agrees_with_the_long_way() -> None:
    policies = Policies(key("a"), Random(1).random)
    assert policies.prefers_local(CPU, node("a", 2.5))
    assert not policies.prefers_local(CPU, node("a", 2))
    assert not policies.prefers_local(CPU, node("a", GPU=1))
    assert not policies.prefers_local(SPREAD, node("a"))
    assert not policies.prefers_local(CPU, node("a", draining=True))


def test_one_of_the_emptiest_fifth_is_drawn() -> None:
    others = [node(f"n{number}", 1 + number / 10, 10) for number in range(9)]
    assert chosen(CPU, node("a", 0, 10), *others) == {"n8", "n7"}
    assert chosen(CPU, node("a", 0, 10), *others[:3]) == {"n2"}


def test_the_draw_is_the_callers() -> None:
    views = [node(f"n{number}") for number in range(10)]
    policies = [Policies(key("a"), Random(7).random) for _ in range(2)]
    first, second = ([p.choose(CPU, table(*views)) for _ in range(20)] for p in policies)
    assert first == second
    assert len(Counter(view.node for view in first if view)) == 2


def test_an_available_node_comes_before_one_that_is_merely_large_enough() -> None:
    large = Placement(Resources.of(CPU=3))
    assert chosen(large, node("a", 2), node("b", 3, 9)) == {"b"}
    assert chosen(large, node("a", 2), node("b", 2)) == {"a"}
    assert chosen(large, node("a", 2), node("b", 2), only=True) == set()


def test_among_busy_nodes_the_shorter_queue_is_better() -> None:
    assert chosen(CPU, node("b", 0, backlog=3), node("c", 0, backlog=1)) == {"c"}


def test_gpu_nodes_are_left_to_those_who_need_gpus() -> None:
    gpu = Placement(Resources.of(CPU=1, GPU=1))
    assert chosen(CPU, node("a", GPU=1), node("b", 1)) == {"b"}
    assert chosen(CPU, node("a", GPU=1), node("b", 0)) == {"a"}
    assert chosen(gpu, node("a", GPU=1), node("b")) == {"a"}


def test_memory_can_be_the_scarcest_resource() -> None:
    view = NodeView(key("a"), 1, "a:1", Resources.of(memory=10, CPU=4), Resources.of(memory=2))
    assert utilisation(view) == 1.0
    assert utilisation(node("a", 3)) == 0.25
    assert utilisation(node("a", 0, 0)) == 0.0


def test_spread_goes_round_and_takes_the_available_first() -> None:
    policies = Policies(key("a"), Random(1).random)
    views = table(node("c"), node("a"), node("b", 0), node("d"))
    order = [policies.choose(SPREAD, views) for _ in range(4)]
    assert [view.node for view in order if view] == [b"a", b"c", b"d", b"a"]
    busy = table(node("a", 0), node("b", 0))
    order = [policies.choose(SPREAD, busy) for _ in range(3)]
    assert [view.node for view in order if view] == [b"b", b"a", b"b"]


def test_spread_goes_on_when_the_node_it_chose_last_has_left() -> None:
    policies = Policies(key("a"), Random(1).random)
    policies.choose(SPREAD, table(node("b"), node("c")))
    following = policies.choose(SPREAD, table(node("a"), node("c")))
    assert following is not None
    assert following.node == b"c"


def affinity(
    name: str, *, soft: bool = False, spill: bool = False, fail: bool = False
) -> Placement:
    return Placement(Resources.of(CPU=1), NodeAffinity(key(name), soft, spill, fail))


def test_affinity_names_the_node_even_when_it_is_busy() -> None:
    assert chosen(affinity("b"), node("a"), node("b", 0)) == {"b"}
    assert chosen(affinity("b", soft=True), node("a"), node("b", 0)) == {"b"}
    assert chosen(affinity("b", soft=True, spill=True), node("a"), node("b", 0)) == {"a"}
    assert chosen(affinity("b", fail=True), node("a"), node("b", 0)) == set()
    assert chosen(affinity("b", fail=True), node("a"), node("b")) == {"b"}


@pytest.mark.parametrize("b", [[], [node("b", 0, 0)], [node("b", draining=True)]])
def test_affinity_to_a_node_that_is_gone_too_small_or_draining(b: list[NodeView]) -> None:
    assert chosen(affinity("b"), node("a"), *b) == set()
    assert chosen(affinity("b", soft=True), node("a"), *b) == {"a"}


def test_a_suspect_is_chosen_only_if_no_other_will_do() -> None:
    b, c = node("b", suspect=True), node("c", 0)
    for placement in (CPU, SPREAD, by_labels(soft="zone=x"), affinity("b", soft=True)):
        assert chosen(placement, node("a", 0, 0), b, c) == {"c"}  # busy, and yet better
        assert chosen(placement, node("a", 0, 0), b, c, only=True) == set()
        assert chosen(placement, node("a", 0, 0), b) == {"b"}
    assert chosen(affinity("b"), node("a"), b, c) == {"b"}
    assert chosen(affinity("b", fail=True), node("a"), b, c) == {"b"}


def by_labels(hard: str = "", soft: str = "") -> Placement:
    terms = [Labels.of({"zone": In((zone,))}) if zone else Labels() for zone in (hard, soft)]
    return Placement(Resources.of(CPU=1), NodeLabels(*terms))


def test_node_labels_are_obeyed_when_hard_and_wished_for_when_soft() -> None:
    views = [node("a"), node("b", zone="x"), node("c", zone="y"), node("d", 0, zone="x")]
    assert chosen(by_labels("x"), *views) == {"b"}
    assert chosen(by_labels("z"), *views) == set()
    assert chosen(by_labels(soft="y"), *views) == {"c"}
    assert chosen(by_labels(soft="z"), *views) == {"a", "b", "c"}


def test_room_counts_for_more_than_soft_labels() -> None:
    views = [node("a", 0), node("b", zone="y"), node("c", 0, zone="x")]
    assert chosen(by_labels(soft="x"), *views) == {"b"}
    assert chosen(by_labels(soft="x"), node("a", 0), views[2]) == {"c"}
    assert chosen(by_labels(soft="x"), node("a", 0), views[2], only=True) == set()


def selected(selector: str, *fallbacks: str, strategy: Strategy | None = None) -> Placement:
    return Placement(
        Resources.of(CPU=1),
        strategy or DefaultStrategy(),
        Labels.parse({"zone": selector}),
        tuple(Labels.parse({"zone": each}) for each in fallbacks),
    )


def test_a_label_selector_holds_whatever_the_strategy() -> None:
    views = [node("a"), node("b", zone="x"), node("c", zone="y")]
    assert chosen(selected("in(x)"), *views) == {"b"}
    assert chosen(selected("!x", strategy=SpreadStrategy()), *views) == {"a", "c"}
    assert chosen(selected("x", strategy=NodeAffinity(key("a"))), *views) == set()
    assert chosen(selected("x", strategy=NodeAffinity(key("a"), soft=True)), *views) == {"b"}


def test_fallbacks_are_tried_in_order_when_no_node_is_feasible() -> None:
    views = [node("a"), node("b", 0, zone="x"), node("c", zone="y")]
    assert chosen(selected("z", "y", "x"), *views) == {"c"}
    assert chosen(selected("x", "y"), *views) == {"b"}
    assert chosen(selected("z", "y", strategy=NodeAffinity(key("c"))), *views) == {"c"}


def test_the_first_raylet_is_the_one_with_most_of_the_arguments() -> None:
    a, b, c = key("a"), key("b"), key("c")
    assert first_raylet(CPU, a, {b: 10, c: 20}) == c
    assert first_raylet(CPU, a, {a: 20, c: 20}) == a
    assert first_raylet(CPU, a, {c: 20, b: 20}) == b
    assert first_raylet(CPU, a, {}) == a
    assert first_raylet(SPREAD, a, {b: 10}) == a


@pytest.mark.parametrize(
    ("placement", "words"),
    [
        (
            Placement(Resources.of(GPU=4)),
            "no node has 4 GPUs (largest: 2 on b); lower num_gpus or add a node",
        ),
        (
            Placement(Resources.of(slot=1.5)),
            "no node has 1.5 slot (largest: 0); lower resources={'slot': ...} or add a node",
        ),
        (
            Placement(Resources.of(**{"CPU": 1, "accelerator_type:A100": 0.001})),
            "no node has an accelerator A100; change accelerator_type or add a node",
        ),
        (
            Placement(Resources.of(CPU=4, GPU=1)),
            "no node has 4 CPUs and 1 GPU at once (closest: a, too little GPU); "
            "lower the demand or add a node",
        ),
        (
            Placement(Resources.of(CPU=3), selector=Labels.parse({"zone": "x"})),
            "no node with the labels {zone: x} has 3 CPUs (largest: 2 on b); "
            "lower num_cpus or add a node",
        ),
        (
            by_labels("z"),
            "no node with the labels {zone: z} is in the cluster and takes new work; "
            "change the labels or add a node",
        ),
        (
            Placement(Resources.of(memory=10)),
            "no node has 10 bytes of memory (largest: 0); lower mem",
        ),
    ],
)
def test_the_report_names_the_largest_node_and_what_to_do(placement: Placement, words: str) -> None:
    views = [node("a"), node("b", total=2, free=2, zone="x", GPU=2), node("c", 9, 9, draining=True)]
    assert shortage(placement, views).startswith(words)


def test_an_empty_cluster_is_reported_as_such() -> None:
    assert shortage(CPU, []) == "no node is in the cluster and takes new work; add a node"


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (None, "node 62 is not in the cluster, it died or never joined; name a node that"),
        (node("b", draining=True), "node 62 on b is draining"),
        (
            node("b", 0.5, 0.5, zone="x"),
            "node 62 on b never has 1 CPU (it has 0.5); lower num_cpus",
        ),
        (node("b", 0, zone="x"), "node 62 on b has not 1 CPU free now and _fail_on_unavailable"),
        (node("b"), "node 62 on b has not the labels {zone: x}; change them"),
    ],
)
def test_a_refusal_says_which_node_and_what_is_wrong_with_it(
    view: NodeView | None, words: str
) -> None:
    placement = selected("x", strategy=NodeAffinity(key("b")))
    assert refusal(placement, key("b"), view).startswith(words)


views_drawn = st.lists(
    st.builds(
        node,
        st.sampled_from(["a", "b", "c", "d"]),
        st.sampled_from([0, 1, 2, 4]),
        st.just(4),
        zone=st.sampled_from(["", "x"]),
        draining=st.sampled_from([False, False, True]),
        suspect=st.booleans(),
        GPU=st.integers(0, 1),
    ),
    max_size=4,
    unique_by=lambda view: view.node,
)
placements = st.builds(
    Placement,
    st.sampled_from([Resources.of(CPU=1), Resources.of(CPU=2, GPU=1), Resources.of(CPU=9)]),
    st.sampled_from(
        [
            DefaultStrategy(),
            SpreadStrategy(),
            NodeAffinity(key("b")),
            NodeAffinity(key("b"), soft=True),
            NodeLabels(Labels.parse({"zone": "x"})),
        ]
    ),
    st.sampled_from([Labels(), Labels.parse({"zone": "!x"})]),
    st.sampled_from([(), (Labels(),)]),
)


@given(views=views_drawn, placement=placements, draw=st.floats(0, 1), only=st.booleans())
def test_whatever_is_chosen_is_feasible_and_something_feasible_is_chosen(
    views: list[NodeView], placement: Placement, draw: float, only: bool
) -> None:
    policies = Policies(key("a"), lambda: draw)
    choice = policies.choose(placement, table(*views), available_only=only)
    feasible = [view for view in views if is_feasible(placement, view)]
    named = isinstance(placement.strategy, NodeAffinity)
    assert choice is None or choice in feasible
    assert choice is not None or not feasible or only
    first = [v for v in feasible if placement.selector.match(v.labels)] or feasible
    trusted = [v for v in first if not v.suspect]
    assert choice is None or not trusted or not choice.suspect
    pool = trusted or first
    if choice is not None and not named and any(is_available(placement, v) for v in pool):
        assert is_available(placement, choice)

    for view in views:
        if view.node == b"a" and not view.suspect and policies.prefers_local(placement, view):
            assert choice == view


def test_what_a_request_waits_for_is_what_is_short_and_who_comes_before() -> None:
    total, demand = Resources.of(CPU=4, GPU=2), Resources.of(CPU=2, GPU=1)
    assert waiting(demand, Resources.of(CPU=0.5, GPU=2), total, 1) == (
        "0.5 of 4 CPU are free and 1 request is before it"
    )
    assert waiting(demand, total, total, 7) == (
        "4 of 4 CPU are free and 2 of 2 GPU are free and 7 requests are before it"
    )
    overdrawn = Resources.of(CPU=1) - Resources.of(CPU=2)
    assert waiting(Resources.of(CPU=1), overdrawn, total, 0).startswith("0 of 4 CPU are free")
    assert amounts(demand) == "2 CPUs and 1 GPU"
