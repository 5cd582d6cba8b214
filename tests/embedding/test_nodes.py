"""Clusters of several nodes in a test: where tasks run, and what nodes' ends do."""

import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import raylite as ray
from raylite.exceptions import NodeDiedError, RaySystemError, TaskUnschedulableError
from raylite.testing import LocalCluster
from raylite.testing.cluster import Workers
from raylite.testing.nodes import LocalNode, NodeSpec
from raylite.util.scheduling_strategies import (
    DoesNotExist,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
)
from tests.cluster.watching import SOON, Driver, Watch, title, tree


@ray.remote
def pid() -> int:
    return os.getpid()


held = b""


@ray.remote
def fill_memory(size: int) -> int:
    """Hold memory that the kernel has to free when this process ends; return its pid."""
    global held
    held = b"x" * size
    return os.getpid()


@ray.remote
def where() -> str:
    return ray.get_runtime_context().get_node_id()


# A FIFO is opened when both its ends are: where two meet, be they threads or processes.
READ, WRITE = os.O_RDONLY, os.O_WRONLY


def meet(fifo: Path, end: int) -> None:
    os.close(os.open(fifo, end))


@ray.remote
def meet_there(fifo: Path, end: int) -> str:
    meet(fifo, end)
    return ray.get_runtime_context().get_node_id()


@ray.remote
def work(begun: Path, go_on: Path) -> str:
    meet(begun, WRITE)
    meet(go_on, READ)
    return ray.get_runtime_context().get_node_id()


@pytest.fixture
def fifos(tmp_path: Path) -> tuple[Path, Path]:
    one, other = tmp_path / "one", tmp_path / "other"
    os.mkfifo(one)
    os.mkfifo(other)
    return one, other


@pytest.fixture(params=["threads", pytest.param("processes", marks=pytest.mark.process)])
def workers(request: pytest.FixtureRequest) -> Workers:
    kind: Workers = request.param
    return kind


@pytest.fixture
def cluster(workers: Workers) -> Iterator[LocalCluster]:
    second = {"num_cpus": 1, "resources": {"disk": 2}, "labels": {"zone": "b"}}
    nodes: list[float | dict[str, object]] = [1, second]
    with LocalCluster(nodes=nodes, workers=workers) as cluster:
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
    fallback = [{"label_selector": {"zone": "z"}}, {"label_selector": {"zone": "in(a, b)"}}]
    task = where.options(label_selector={"zone": "y"}, fallback_strategy=fallback)
    assert ray.get(task.remote()) == second
    here = NodeLabelSchedulingStrategy({"zone": DoesNotExist()})
    there = NodeLabelSchedulingStrategy({"zone": In("a", "b")})
    assert ray.get(where.options(scheduling_strategy=here).remote()) == first
    assert ray.get(where.options(scheduling_strategy=there).remote()) == second


def test_tasks_run_on_another_node_when_this_one_is_full(
    cluster: LocalCluster, fifos: tuple[Path, Path]
) -> None:
    refs = [meet_there.remote(fifos[0], end) for end in (READ, WRITE)]  # each waits for the other
    assert sorted(ray.get(refs)) == sorted(ids(cluster))


@pytest.mark.parametrize("node_id", ["", "ab", "0" * 55, "0" * 57, "g" * 56, "node-1"])
def test_what_is_no_nodes_id_is_refused_where_it_is_written(node_id: str) -> None:
    with pytest.raises(ValueError, match=r"is no id of a node: give 56 hexadecimal digits"):
        NodeAffinitySchedulingStrategy(node_id, soft=False)


@pytest.mark.parametrize("node_id", [None, 5, b"a" * 28])
def test_a_nodes_id_is_text(node_id: Any) -> None:
    with pytest.raises(TypeError, match=r"^node_id must be a string, 56 hexadecimal digits"):
        NodeAffinitySchedulingStrategy(node_id, soft=False)
    with pytest.raises(TypeError, match=r"^soft must be True or False, not 'no'"):
        NodeAffinitySchedulingStrategy("0" * 56, soft="no")  # type: ignore[arg-type]


@ray.remote
def node_labels() -> dict[str, str]:
    return ray.get_runtime_context().get_node_labels()


def test_a_task_is_told_the_labels_of_its_node(cluster: LocalCluster) -> None:
    first, second = ids(cluster)
    assert ray.get_runtime_context().get_node_labels() == {"ray.io/node-id": first}
    told = ray.get(node_labels.options(label_selector={"zone": "b"}).remote())
    assert told == {"zone": "b", "ray.io/node-id": second}


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


def test_a_node_is_chosen_by_the_label_of_its_id(cluster: LocalCluster) -> None:
    node = cluster.add_node(num_cpus=1)
    for each in (*cluster.nodes, node):
        task = where.options(label_selector={"ray.io/node-id": each.node_id})
        assert ray.get(task.remote()) == each.node_id
    with pytest.raises(ValueError, match=r"ray\.io/node-id cannot be set"):
        cluster.add_node(labels={"ray.io/node-id": "x"})


def test_tasks_of_a_killed_node_run_again_elsewhere(
    cluster: LocalCluster, fifos: tuple[Path, Path]
) -> None:
    begun, go_on = fifos
    node: LocalNode = cluster.add_node(num_cpus=1, labels={"zone": "c"})
    ref = work.options(label_selector={"zone": "c"}).remote(begun, go_on)
    meet(begun, READ)
    cluster.kill_node(node)
    other = cluster.add_node(num_cpus=1, labels={"zone": "c"})
    meet(begun, READ)
    with go_on.open("wb"):  # which lets both go on, also the thread that was killed
        assert ray.get(ref) == other.node_id


def test_the_error_of_a_task_names_the_node_that_died_and_why(
    cluster: LocalCluster, fifos: tuple[Path, Path]
) -> None:
    begun, go_on = fifos
    node: LocalNode = cluster.add_node(num_cpus=1, labels={"zone": "c"})
    once = work.options(label_selector={"zone": "c"}, max_retries=0)
    ref = once.remote(begun, go_on)
    meet(begun, READ)
    cluster.kill_node(node)
    with pytest.raises(NodeDiedError) as caught:
        ray.get(ref, timeout=SOON)
    told = re.escape(f"its node {node.node_id} (127.0.0.1) died: it")
    assert re.search(told + r" [^:;/]*$|its raylet has ended", str(caught.value))
    os.close(os.open(go_on, os.O_RDWR))  # the thread that was killed goes on


# As processes, a raylet that sees its fork server killed may say goodbye before it is killed itself.
@pytest.mark.parametrize("workers", ["threads"])
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


def test_nothing_passes_between_a_node_and_the_others_until_the_partition_heals(
    cluster: LocalCluster,
) -> None:
    first, second = cluster.nodes
    there = where.options(scheduling_strategy=NodeAffinitySchedulingStrategy(second.node_id, False))
    assert ray.get(there.remote()) == second.node_id
    cluster.partition(second)
    cut_off = there.remote()
    assert ray.get(where.remote()) == first.node_id
    assert ray.wait([cut_off], timeout=0.3) == ([], [cut_off])
    third = cluster.add_node(num_cpus=1, labels={"zone": "c"})  # on this side
    assert ray.get(where.options(label_selector={"zone": "c"}).remote()) == third.node_id
    cluster.heal()
    assert ray.get(cut_off, timeout=30) == second.node_id


def test_the_first_node_cannot_be_taken_away(cluster: LocalCluster) -> None:
    with pytest.raises(ValueError, match="the first node"):
        cluster.remove_node(cluster.nodes[0])


def test_a_node_with_a_wrong_field_is_refused() -> None:
    with pytest.raises(TypeError, match="a node has no cpus"):
        LocalCluster(nodes=[{"cpus": 1}], workers="threads")


@pytest.mark.parametrize(
    ("size", "error"),
    [(0, ValueError), (-1, ValueError), ("1", TypeError), (True, TypeError), (1.5, TypeError)],
)
def test_a_store_of_an_impossible_size_is_refused(size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="object_store_memory must be"):
        LocalCluster(object_store_memory=size)


def test_a_field_that_is_none_is_not_given() -> None:
    given: Any = {"num_cpus": None, "labels": None, "object_store_memory": None}
    assert NodeSpec.of(given) == NodeSpec()


def test_what_is_no_node_is_refused_by_what_takes_one(cluster: LocalCluster) -> None:
    number: Any = 1
    for use in (cluster.remove_node, cluster.kill_node, cluster.partition):
        with pytest.raises(TypeError, match=r"a node is one of .* not 1"):
            use(number)


# -- Nodes that are processes


@pytest.mark.process
def test_a_node_that_leaves_or_is_killed_leaves_no_process() -> None:
    with LocalCluster(nodes=[1, 1, 1], workers="processes") as cluster:
        for node, end in zip(
            cluster.nodes[1:], (cluster.remove_node, cluster.kill_node), strict=True
        ):
            strategy = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
            worker = ray.get(pid.options(scheduling_strategy=strategy).remote())
            fork_server = psutil.Process(worker).ppid()
            with Watch(fork_server, *tree(fork_server)) as watch:
                end(node)
                assert watch.left_after(0) == []


@pytest.mark.process
def test_killing_a_node_waits_for_workers_that_take_long_to_end() -> None:
    with LocalCluster(nodes=[1, 1], workers="processes") as cluster:
        node = cluster.nodes[1]
        strategy = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        worker = ray.get(fill_memory.options(scheduling_strategy=strategy).remote(600 << 20))
        with Watch(worker) as watch:
            cluster.kill_node(node)
            assert watch.left_after(0) == []


@pytest.mark.process
def test_a_node_that_cannot_start_says_why_and_the_cluster_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("raylite._runtime.local.total_memory", lambda: 1 << 63)  # that is not so
    with LocalCluster(nodes=[1], workers="processes") as cluster:
        with pytest.raises(RaySystemError, match=r"No space|Errno"):
            cluster.add_node(object_store_memory=1 << 62)
        assert len(cluster.nodes) == 1
        node = cluster.add_node(num_cpus=1, resources={"disk": 1})
        assert ray.get(where.options(resources={"disk": 1}).remote()) == node.node_id


@pytest.mark.process
def test_a_node_whose_processes_a_test_has_killed_is_in_nobodys_way() -> None:
    with LocalCluster(nodes=[1, 1], workers="processes") as cluster:
        strategy = NodeAffinitySchedulingStrategy(cluster.nodes[1].node_id, soft=False)
        worker = ray.get(pid.options(scheduling_strategy=strategy).remote())
        with Watch(psutil.Process(worker).ppid()) as watch:
            watch.signal(signal.SIGKILL)
            assert watch.left_after(SOON) == []
        node = cluster.add_node(num_cpus=1, resources={"disk": 1})
        assert ray.get(where.options(resources={"disk": 1}).remote()) == node.node_id


PROGRAM = """
from raylite.testing import LocalCluster
cluster = LocalCluster(nodes=[1, 1]).start()
cluster.add_node(num_cpus=1)
say("up")
hear()
"""


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_node_outlives_the_test_process(number: int) -> None:
    with Driver(PROGRAM) as driver:
        assert driver.hear() == "up"
        assert len([pid for pid in driver.watch_tree() if title(pid) == "raylite: raylet"]) == 3
        driver.watch.signal(number, driver.pid)
        assert driver.watch.left_after(3 * 2.0) == []


@pytest.mark.parametrize("nodes", [5, "55", {"num_cpus": 1}])
def test_nodes_that_are_not_listed_are_refused(nodes: Any) -> None:
    with pytest.raises(TypeError, match=r"^nodes must be a list .*, not "):
        LocalCluster(nodes=nodes)


def test_what_one_node_has_and_a_list_of_nodes_are_not_given_together() -> None:
    with pytest.raises(
        ValueError, match=r"^nodes and num_cpus, resources exclude one another: say"
    ):
        LocalCluster(num_cpus=1, resources={"oven": 1}, nodes=[1, 1])
    with pytest.raises(ValueError, match=r"^nodes and object_store_memory exclude one another"):
        LocalCluster(object_store_memory=1 << 28, nodes=[1])
