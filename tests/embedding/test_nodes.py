"""Clusters of several nodes inside the test's process: where tasks run, and what nodes' ends do."""

import threading
from collections import Counter
from collections.abc import Iterator

import pytest

import raylite as ray
from raylite.exceptions import TaskUnschedulableError
from raylite.testing import LocalCluster
from raylite.testing.inprocess import LocalNode
from raylite.util.scheduling_strategies import (
    DoesNotExist,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
)


@ray.remote
def where() -> str:
    return ray.get_runtime_context().get_node_id()


# Workers are threads of this process, and plain functions are pickled by name: they share these.
MEETING = threading.Barrier(2)
BEGUN, GO_ON = threading.Event(), threading.Event()


def meet() -> str:
    MEETING.wait(20)
    return ray.get_runtime_context().get_node_id()


def work() -> str:
    BEGUN.set()
    GO_ON.wait(20)
    return ray.get_runtime_context().get_node_id()


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    second = {"num_cpus": 1, "resources": {"disk": 2}, "labels": {"zone": "b"}}
    nodes: list[float | dict[str, object]] = [1, second]
    with LocalCluster(nodes=nodes, workers="threads") as cluster:
        yield cluster


def ids(cluster: LocalCluster) -> list[str]:
    return [node.node_id for node in cluster.nodes]


def test_the_cluster_has_what_its_nodes_have_together(cluster: LocalCluster) -> None:
    assert ray.cluster_resources()["CPU"] == 2
    assert ray.cluster_resources()["disk"] == 2
    assert {row["NodeID"] for row in ray.nodes()} == set(ids(cluster))


def test_a_task_runs_where_its_resources_are(cluster: LocalCluster) -> None:
    _, second = ids(cluster)
    assert ray.get(where.options(resources={"disk": 1}).remote()) == second


def test_a_task_runs_where_its_labels_are(cluster: LocalCluster) -> None:
    first, second = ids(cluster)
    assert ray.get(where.options(label_selector={"zone": "b"}).remote()) == second
    here = NodeLabelSchedulingStrategy({"zone": DoesNotExist()})
    there = NodeLabelSchedulingStrategy({"zone": In("a", "b")})
    assert ray.get(where.options(scheduling_strategy=here).remote()) == first
    assert ray.get(where.options(scheduling_strategy=there).remote()) == second


def test_tasks_run_on_another_node_when_this_one_is_full(cluster: LocalCluster) -> None:
    refs = [ray.remote(meet).remote() for _ in range(2)]  # each waits for the other
    assert sorted(ray.get(refs)) == sorted(ids(cluster))


def test_spread_tasks_take_turns_on_the_nodes(cluster: LocalCluster) -> None:
    spread = where.options(scheduling_strategy="SPREAD", num_cpus=0.1)
    counts = Counter(ray.get([spread.remote() for _ in range(6)]))
    assert counts == dict.fromkeys(ids(cluster), 3)


def test_an_affine_task_runs_on_its_node_and_on_no_other(cluster: LocalCluster) -> None:
    for node in ids(cluster):
        hard = NodeAffinitySchedulingStrategy(node, soft=False)
        assert ray.get(where.options(scheduling_strategy=hard).remote()) == node


def test_an_affine_task_of_a_node_that_is_gone_fails_unless_it_is_soft(
    cluster: LocalCluster,
) -> None:
    _, second = cluster.nodes
    cluster.remove_node(second)
    hard = NodeAffinitySchedulingStrategy(second.node_id, soft=False)
    with pytest.raises(TaskUnschedulableError, match="not in the cluster"):
        ray.get(where.options(scheduling_strategy=hard).remote())
    soft = NodeAffinitySchedulingStrategy(second.node_id, soft=True)
    assert ray.get(where.options(scheduling_strategy=soft).remote()) == ids(cluster)[0]


def test_what_no_node_can_run_runs_when_one_joins_that_can(cluster: LocalCluster) -> None:
    waiting = where.options(resources={"tape": 1}).remote()
    assert ray.wait([waiting], timeout=0.2) == ([], [waiting])
    node = cluster.add_node(num_cpus=1, resources={"tape": 1})
    assert ray.get(waiting) == node.node_id


def test_tasks_of_a_killed_node_run_again_elsewhere(cluster: LocalCluster) -> None:
    node: LocalNode = cluster.add_node(num_cpus=1, labels={"zone": "c"})
    BEGUN.clear()
    GO_ON.clear()
    ref = ray.remote(label_selector={"zone": "c"})(work).remote()
    assert BEGUN.wait(20)
    cluster.kill_node(node)
    GO_ON.set()
    other = cluster.add_node(num_cpus=1, labels={"zone": "c"})
    assert ray.get(ref) == other.node_id


def test_a_node_that_was_removed_ended_in_order_and_one_that_was_killed_did_not(
    cluster: LocalCluster,
) -> None:
    removed, killed = cluster.nodes[1], cluster.add_node(num_cpus=1)
    cluster.remove_node(removed)
    cluster.kill_node(killed)
    while (rows := {row["NodeID"]: row for row in ray.nodes()})[killed.node_id]["Alive"]:
        threading.Event().wait(0.02)
    assert [rows[each.node_id]["DeathReason"] for each in (removed, killed)] == [1, 2]
    assert all(rows[each.node_id]["DeathReasonMessage"] for each in (removed, killed))


def test_the_first_node_cannot_be_taken_away(cluster: LocalCluster) -> None:
    with pytest.raises(ValueError, match="the first node"):
        cluster.remove_node(cluster.nodes[0])


def test_a_node_with_a_wrong_field_is_refused() -> None:
    with pytest.raises(TypeError, match="a node has no cpus"):
        LocalCluster(nodes=[{"cpus": 1}], workers="threads")


def test_several_nodes_need_threads() -> None:
    with pytest.raises(ValueError, match="cluster_utils"):
        LocalCluster(nodes=[1, 1])
