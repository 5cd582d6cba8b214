"""Demand: every waiting request and task is counted once, and told in the same order each time."""

from collections import Counter

from hypothesis import given, strategies as st

from raylite._machines.demand import MOST, of_node, together
from raylite._types.resources import Resources
from raylite._types.strategies import NodeKey, NodeView, Shapes

CPU, GPU, BIG = Resources.of(CPU=1), Resources.of(GPU=1), Resources.of(CPU=64)
demands = st.integers(0, 30).map(lambda n: Resources.of(CPU=n))
counts = st.dictionaries(demands, st.integers(0, 5))


def view(pending: Shapes = (), infeasible: Shapes = ()) -> NodeView:
    empty = Resources()
    return NodeView(
        NodeKey(b"n"), 1, "a", empty, empty, pending=pending, infeasible=infeasible
    )  # fmt: skip


def test_requests_and_tasks_without_a_request_are_counted_together() -> None:
    assert of_node({CPU: 2, GPU: 1}, [], [{CPU: 7}, {CPU: 1}]) == (((CPU, 10), (GPU, 1)), ())


def test_tasks_behind_what_no_node_can_run_cannot_run_either() -> None:
    assert of_node({}, [BIG, BIG], [{BIG: 5}]) == ((), ((BIG, 7),))


def test_a_shape_may_be_feasible_with_some_labels_and_not_with_others() -> None:
    assert of_node({CPU: 1}, [CPU], [{CPU: 5}]) == (((CPU, 6),), ((CPU, 1),))


def test_nothing_waits() -> None:
    assert of_node({CPU: 0}, [], [{}]) == together([view()]) == ((), ())


def test_nodes_are_summed() -> None:
    nodes = [view(((CPU, 2),)), view(((CPU, 3), (GPU, 4)), ((BIG, 1),))]
    assert together(nodes) == (((CPU, 5), (GPU, 4)), ((BIG, 1),))


@given(counts, st.lists(demands), st.lists(counts))
def test_all_that_waits_is_counted_and_the_order_is_by_number(
    waiting: dict[Resources, int], parked: list[Resources], backlogs: list[dict[Resources, int]]
) -> None:
    pending, infeasible = of_node(waiting, parked, backlogs)
    for shapes in (pending, infeasible):
        assert len(shapes) <= MOST
        numbers = [count for _, count in shapes]
        assert numbers == sorted(numbers, reverse=True)
        assert all(numbers)
    if len(pending) < MOST and len(infeasible) < MOST:
        told = Counter(dict(pending)) + Counter(dict(infeasible))
        expected = sum(map(Counter, backlogs), Counter(waiting) + Counter(parked))
        assert told == +expected
    backwards = dict(reversed(waiting.items()))
    assert of_node(backwards, parked[::-1], backlogs[::-1]) == (pending, infeasible)
