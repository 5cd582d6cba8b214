"""Tasks go to their arguments: where most of the bytes are, the task runs, and nothing moves."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import raylite as ray
from raylite.testing import LocalCluster
from raylite.testing.inprocess import InProcessCluster
from raylite.util.scheduling_strategies import NodeAffinitySchedulingStrategy

MB = 1024 * 1024
CPUS = 20  # of a node: past half of them, what has room elsewhere goes there, as Ray's does


@ray.remote
def make(megabytes: int) -> Any:
    return np.ones(megabytes * MB // 8)


@ray.remote
def where(*arguments: Any) -> str:
    return ray.get_runtime_context().get_node_id()


@ray.remote
def where_for(refs: "list[ray.ObjectRef[Any]]") -> Any:
    """Ask from a worker that borrows them."""
    return ray.get(where.remote(*refs))


EVENTS: list[threading.Event] = []  # of the test: workers are threads


def wait_for_the_end() -> None:
    begun, end = EVENTS
    begun.set()
    end.wait(20)


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=[CPUS, CPUS, CPUS], workers="threads") as cluster:
        yield cluster


def ids(cluster: LocalCluster) -> list[str]:
    return [node.node_id for node in cluster.nodes]


def on(cluster: LocalCluster, node: int, function: Any, *args: object) -> Any:
    strategy = NodeAffinitySchedulingStrategy(ids(cluster)[node], soft=False)
    return function.options(scheduling_strategy=strategy).remote(*args)


def made_on(cluster: LocalCluster, node: int, megabytes: int) -> Any:
    ref = on(cluster, node, make, megabytes)
    ray.wait([ref], fetch_local=False)
    return ref


def transferred(cluster: LocalCluster) -> int:
    """How many chunks nodes have read of each other."""
    assert isinstance(cluster._running, InProcessCluster)
    nodes = cluster._running._nodes.values()
    counts = [node.raylet.copies.statistics().handled for node in nodes]
    return sum(each.get("Copies.read", 0) for each in counts)


def test_a_task_runs_where_its_large_argument_is_and_nothing_is_transferred(
    cluster: LocalCluster,
) -> None:
    ref = made_on(cluster, 2, 50)
    assert ray.get([where.remote(ref) for _ in range(8)]) == [ids(cluster)[2]] * 8
    assert transferred(cluster) == 0


def test_tasks_whose_arguments_are_apart_run_apart(cluster: LocalCluster) -> None:
    refs = [made_on(cluster, node, 2) for node in (0, 1, 2, 1, 0, 2)]
    ran = ray.get([where.remote(ref) for ref in refs])
    assert ran == [ids(cluster)[node] for node in (0, 1, 2, 1, 0, 2)]
    assert transferred(cluster) == 0


def test_of_several_arguments_the_most_bytes_count(cluster: LocalCluster) -> None:
    one, other, own = made_on(cluster, 1, 3), made_on(cluster, 2, 2), ray.put(np.ones(MB // 8))
    assert ray.get(where.remote(one, other, own)) == ids(cluster)[1]
    more = made_on(cluster, 2, 4)
    # The first task's node has 3 MB of these by now, and this one 6.
    assert ray.get(where.remote(own, other, more, other)) == ids(cluster)[2]


def test_a_copy_here_counts_as_much_as_the_original(cluster: LocalCluster) -> None:
    ref = made_on(cluster, 1, 5)
    array = ray.get(ref)
    assert ray.get(where.remote(ref)) == ids(cluster)[0]
    assert array[0] == 1


def test_a_borrowers_tasks_go_there_too(cluster: LocalCluster) -> None:
    ref = made_on(cluster, 1, 5)
    assert ray.get(on(cluster, 2, where_for, [ref])) == ids(cluster)[1]
    assert transferred(cluster) == 0


def test_a_strategy_counts_for_more(cluster: LocalCluster) -> None:
    ref = made_on(cluster, 1, 2)
    assert ray.get(on(cluster, 2, where, ref)) == ids(cluster)[2]
    spread = where.options(scheduling_strategy="SPREAD")
    assert set(ray.get([spread.remote(ref) for _ in range(9)])) == set(ids(cluster))


def test_a_task_whose_node_has_no_room_runs_elsewhere(cluster: LocalCluster) -> None:
    ref, begun, end = made_on(cluster, 1, 2), threading.Event(), threading.Event()

    EVENTS[:] = begun, end
    busy = on(cluster, 1, ray.remote(num_cpus=CPUS)(wait_for_the_end))
    try:
        assert begun.wait(20)
        assert ray.get(where.remote(ref)) != ids(cluster)[1]
    finally:
        end.set()
    ray.get(busy)


def test_a_node_that_died_draws_nothing(cluster: LocalCluster) -> None:
    ref = made_on(cluster, 1, 5)
    array = ray.get(ref)  # a copy here outlives the node
    cluster.kill_node(cluster.nodes[1])
    assert ray.get(where.remote(ref), timeout=20) == ids(cluster)[0]
    assert array[0] == 1
