"""`explain` as a program sees it: of a real node, whatever keeps a task from running."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import raylite as ray
from raylite.testing import LocalCluster
from raylite.util import explain

events: dict[str, threading.Event] = {}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with LocalCluster(num_cpus=1, workers="threads"):
        yield


def event(name: str) -> threading.Event:
    return events.setdefault(name, threading.Event())


def _hold(name: str, *inputs: Any) -> str:
    event(f"{name} runs").set()
    event(f"{name} may end").wait()
    return name


def _explained_there(refs: list[Any]) -> str:
    return explain(refs[0]).text


hold = ray.remote(_hold)
explained_there = ray.remote(num_cpus=0)(_explained_there)


def test_a_task_is_explained_from_its_submission_to_its_end() -> None:
    first = hold.remote("first")
    assert event("first runs").wait(20)
    second = hold.remote("second", 1)
    third = hold.remote("third", second)
    runs = explain(first)
    assert (runs.state, runs.name) == ("RUNNING", "_hold")
    waits = explain(second)
    assert waits.state == "PENDING_NODE_ASSIGNMENT"
    assert "waits for a worker with 1 CPU" in waits.text
    assert "0 of 1 CPU are free and 0 requests are before it" in waits.text
    assert explain(third).state == "PENDING_ARGS_AVAIL"
    assert waits.text.partition(";")[0] in explain(third).text
    assert explain(third).waits_for == (second.binary(),)
    assert ray.get(explained_there.remote([second])).startswith(waits.text.partition(";")[0])
    for name in ("first", "second", "third"):
        event(f"{name} may end").set()
    assert ray.get(third) == "third"
    assert explain(third).state == "FINISHED"
    assert explain(ray.put(1)).text.startswith("it is here: ")


def test_what_no_node_can_run_is_explained_by_what_is_missing() -> None:
    ref = hold.options(num_gpus=3).remote("gpu")
    found = explain(ref)
    assert "waits for a worker with 1 CPU and 3 GPUs" in found.text
    assert "no node has 3 GPUs (largest: 0); lower num_gpus or add a node" in found.text
    ray.cancel(ref)


def _items(name: str) -> Iterator[int]:
    yield 1
    event(f"{name} runs").set()
    event(f"{name} may end").wait()


def test_a_generator_stands_for_its_task() -> None:
    items = ray.remote(_items).remote("items")
    assert event("items runs").wait(20)
    assert explain(items).state == "RUNNING"
    event("items may end").set()
    ray.get(items.completed())
    assert explain(items).state == "FINISHED"


def test_only_a_reference_is_explained() -> None:
    with pytest.raises(TypeError, match=r"explain\(\) takes an ObjectRef, not int"):
        explain(3)  # type: ignore[arg-type]


class OfTheProgram(Exception): ...


def _fails(error: Exception) -> None:
    raise error


def test_what_has_failed_is_explained_by_its_error() -> None:
    fails = ray.remote(_fails)
    for error, said in (
        (ValueError("no luck"), "ValueError: no luck"),
        (OfTheProgram("nor here"), "OfTheProgram: nor here"),
    ):
        ref = fails.remote(error)
        ray.wait([ref])
        found = explain(ref)
        assert found.state == "FAILED"
        assert said in found.text
        assert "in _fails" in found.text
