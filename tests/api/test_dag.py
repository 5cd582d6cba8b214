"""`f.bind` and `raylite.dag`: calls that are bound now and made when their graph is executed."""

import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

import raylite as ray
from raylite import ObjectRef
from raylite.dag import DAGNode, InputNode, MultiOutputNode
from raylite.testing import LocalCluster

pytestmark = pytest.mark.usefixtures("threads")


@pytest.fixture(scope="module")
def threads() -> Iterator[LocalCluster]:
    with LocalCluster(num_cpus=2, workers="threads") as cluster:
        yield cluster


@ray.remote
def add(a: Any, b: Any = 1) -> Any:
    return a + b


@ray.remote
def kinds(*values: Any, **named: Any) -> Any:
    return [type(each).__name__ for each in (*values, *named.values())]


CALLS: list[int] = []
LOCK = threading.Lock()


def count(n: int) -> int:
    with LOCK:
        CALLS.append(n)
    return n


def test_a_node_is_a_call_that_is_made_when_it_is_executed() -> None:
    CALLS.clear()
    node = ray.remote(count).bind(3)
    assert node.get_args() == (3,)
    assert repr(node) == f"FunctionNode({__name__}.count)"
    assert CALLS == []
    ref = node.execute()
    assert isinstance(ref, ObjectRef)
    assert ray.get([ref, node.execute()]) == [3, 3]
    assert CALLS == [3, 3]


def test_nodes_are_arguments_and_each_is_called_once() -> None:
    CALLS.clear()
    shared = ray.remote(count).bind(2)
    graph = add.bind(add.bind(shared, shared), b=add.bind(shared))
    assert ray.get(graph.execute()) == 7
    assert CALLS == [2]
    nested = kinds.bind(shared, [shared], (1, {"key": shared}), name=shared)
    assert ray.get(nested.execute()) == ["int", "list", "tuple", "int"]
    inside = ray.remote(lambda values: ray.get(values[0]["key"])).bind(({"key": shared},))
    assert ray.get(inside.execute()) == 2


def test_an_input_stands_for_what_is_given() -> None:
    class Pair(NamedTuple):
        left: int
        right: int

    with InputNode() as given:
        whole = add.bind(given, given)
        items = add.bind(given[0], given[1])
        parts = add.bind(given.left, given.right)
        mixed = add.bind(given[0], given.b)
        key = add.bind(given["k"])
    assert ray.get([whole.execute(n) for n in (1, 2)]) == [2, 4]
    assert ray.get([items.execute(3, 4), items.execute([3, 5])]) == [7, 8]
    assert ray.get([parts.execute(Pair(1, 2)), parts.execute(left=1, right=3)]) == [3, 4]
    assert ray.get([mixed.execute(1, b=5), key.execute({"k": 1}), key.execute(k=2)]) == [6, 2, 3]
    assert ray.get(whole.execute(ray.put(4))) == 8


def test_several_outputs_are_a_list() -> None:
    with InputNode() as given:
        first = add.bind(given, 1)
        graph = MultiOutputNode([first, add.bind(first, 1), given])
    one, two, three = graph.execute(5)
    assert (ray.get([one, two]), three) == ([6, 7], 5)


def test_options_and_kinds_of_results_are_those_of_the_function() -> None:
    pair = ray.remote(num_returns=2)(lambda: (1, 2)).bind()
    assert ray.get(pair.execute()) == [1, 2]
    named = ray.remote(lambda: ray.get_runtime_context().get_task_name())
    assert ray.get(named.options(name="other").bind().execute()) == "other"


def test_an_error_is_that_of_all_behind_it() -> None:
    graph = add.bind(add.bind(1, "a"), 2)
    with pytest.raises(TypeError, match="unsupported operand"):
        ray.get(graph.execute())


def test_a_graph_may_be_deep() -> None:
    node: DAGNode = add.bind(0)
    for _ in range(1500):
        node = add.bind(node)
    ref = node.execute()
    assert ray.get(ref, timeout=60) == 1501


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(TypeError, match="too many positional arguments"):
        add.bind(1, 2, 3)
    with pytest.raises(ValueError, match="has no InputNode"):
        add.bind(1).execute(2)
    with InputNode() as given:
        graph = add.bind(given)
    with pytest.raises(ValueError, match="has an InputNode: give"):
        graph.execute()
    with pytest.raises(ValueError, match="several were given"):
        graph.execute(1, 2)
    with pytest.raises(ValueError, match="of nodes, and 1 is none"):
        MultiOutputNode([1])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="of no known length"):
        add.bind(*given)
