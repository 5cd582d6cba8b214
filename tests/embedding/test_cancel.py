"""Cancelling tasks that run on another node, and when that node is lost."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import raylite as ray
from raylite._api import home
from raylite._types.cancellation import CancelOutcome
from raylite.exceptions import TaskCancelledError
from raylite.testing import LocalCluster

SOON = 20.0

begun = threading.Event()
is_over = threading.Event()  # the thread of a node that is killed runs on
ran: list[int] = []


def _spin(number: int) -> None:
    ran.append(number)
    begun.set()
    while not is_over.wait(0.001):
        pass


def _spin_elsewhere(number: int) -> Any:
    return ray.get(far.remote(number))


far: Any = ray.remote(resources={"far": 1}, num_cpus=0)(_spin)
parent: Any = ray.remote(num_cpus=0)(_spin_elsewhere)


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    for each in (begun, is_over, ran):
        each.clear()
    with LocalCluster(
        nodes=[1, {"num_cpus": 1, "resources": {"far": 1}}], workers="threads"
    ) as made:
        yield made
        is_over.set()


def cancel(ref: Any, *, force: bool = False) -> CancelOutcome:
    return home([ref]).cancel(ref._entry, force=force, recursive=True).result(SOON)


@pytest.mark.parametrize("force", [False, True])
def test_a_task_of_another_node_and_one_that_its_parent_started_there(
    cluster: LocalCluster, force: bool
) -> None:
    for number, function in enumerate((far, parent)):
        begun.clear()
        ref = function.remote(number)
        assert begun.wait(SOON)
        assert cancel(ref, force=force) is CancelOutcome.WHILE_RUNNING
        with pytest.raises(TaskCancelledError):
            ray.get(ref, timeout=SOON)
    assert ran == [0, 1]


def test_a_task_whose_node_is_lost_meanwhile_does_not_run_on_another(cluster: LocalCluster) -> None:
    ref = far.remote(0)
    assert begun.wait(SOON)
    cluster.partition(cluster.nodes[1])
    told = home([ref]).cancel(ref._entry, force=False, recursive=True)
    cluster.add_node(num_cpus=1, resources={"far": 1})
    cluster.kill_node(cluster.nodes[1])
    assert told.result(SOON) is CancelOutcome.WHILE_RUNNING
    with pytest.raises(TaskCancelledError, match="its worker died"):
        ray.get(ref, timeout=SOON)
    assert ran == [0]
