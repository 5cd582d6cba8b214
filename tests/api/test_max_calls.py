"""`max_calls`: a worker ends after so many runs of a function, and nothing is lost or run twice."""

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import raylite as ray
from raylite.exceptions import RayTaskError
from raylite.testing import LocalCluster
from tests.api.drivers import eventually


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with LocalCluster(nodes=[{"num_cpus": 2, "num_gpus": 1}], workers="threads"):
        yield


def worker() -> str:
    return ray.get_runtime_context().get_worker_id()


def plain(n: int) -> tuple[int, str]:
    return n, worker()


once = ray.remote(max_calls=1)(plain)
thrice = ray.remote(max_calls=3)(plain)
often = ray.remote(plain)


def test_a_worker_runs_a_function_as_often_as_it_may() -> None:
    results = ray.get([thrice.remote(n) for n in range(50)])
    assert [n for n, _ in results] == list(range(50))
    assert max(Counter(name for _, name in results).values()) <= 3


def test_a_worker_that_may_run_it_once_runs_nothing_after_it() -> None:
    refs = [(once if n % 3 == 0 else often).remote(n) for n in range(30)]
    results = ray.get(refs)
    assert [n for n, _ in results] == list(range(30))
    ended = [name for n, name in results if n % 3 == 0]
    assert len(set(ended)) == len(ended)


def test_without_it_a_worker_stays() -> None:
    assert len({name for _, name in ray.get([often.remote(n) for n in range(50)])}) <= 3


RUN: Counter[int] = Counter()


def count(n: int) -> int:
    RUN[n] += 1
    return n


def test_each_task_runs_once_whatever_was_sent_behind_it() -> None:
    several = ray.remote(max_calls=20)(count)
    wanted = range(500)
    assert ray.get([several.remote(n) for n in wanted]) == list(wanted)
    assert {RUN[n] for n in wanted} == {1}


FAILED_IN: list[str] = []


def fail() -> None:
    FAILED_IN.append(worker())
    raise ValueError("no")


def test_a_run_that_fails_is_one_too() -> None:
    failing = ray.remote(max_calls=1, max_retries=2, retry_exceptions=True)(fail)
    with pytest.raises(RayTaskError, match="no"):
        ray.get(failing.remote())
    assert len(set(FAILED_IN)) == len(FAILED_IN) == 3


def test_options_do_not_change_it() -> None:
    task = once.options(num_cpus=2, name="other")
    names = [ray.get(task.remote(n))[1] for n in range(3)]
    assert len(set(names)) == 3


def test_by_default_it_is_one_for_functions_that_are_declared_to_use_gpus() -> None:
    def names(function: Any) -> set[str]:
        return {ray.get(function.remote(n))[1] for n in range(3)}

    assert len(names(ray.remote(num_gpus=0.5)(plain))) == 3
    assert len(names(ray.remote(num_gpus=0.5, max_calls=0)(plain))) == 1
    assert len(names(often.options(num_gpus=0.5))) == 1  # as in Ray: the decorator says


def test_tasks_that_overlap_end_before_their_worker_does() -> None:
    async def overlap(n: int) -> tuple[int, str]:
        await asyncio.sleep(0.001 * (n % 3))
        return n, worker()

    many = ray.remote(max_calls=4)(overlap)
    assert [n for n, _ in ray.get([many.remote(n) for n in range(40)])] == list(range(40))
    several = ray.remote(max_calls=4, max_concurrency=2)(overlap)
    results = ray.get([several.remote(n) for n in range(40)])
    assert [n for n, _ in results] == list(range(40))
    # What had begun when the fourth ended goes on to its end.
    assert max(Counter(name for _, name in results).values()) <= 5


def test_a_generator_counts_once() -> None:
    def generate(n: int) -> Iterator[tuple[int, str]]:
        for item in range(n):
            yield item, worker()

    streaming: Any = ray.remote(max_calls=1)(generate)
    names: list[str] = []
    for _ in range(3):
        items = [ray.get(ref) for ref in streaming.remote(5)]
        assert [item for item, _ in items] == list(range(5))
        names += {name for _, name in items}
    assert len(set(names)) == len(names) == 3


BEGUN, GO_ON = threading.Event(), threading.Event()


def child() -> None:
    BEGUN.set()
    GO_ON.wait()


def parent() -> str:
    ray.remote(child).remote()
    return "left"


def test_a_child_that_is_started_and_not_waited_for_still_runs() -> None:
    assert ray.get(ray.remote(max_calls=1)(parent).remote()) == "left"
    assert BEGUN.wait(10)
    GO_ON.set()


@pytest.mark.process
def test_a_process_lives_until_nobody_needs_what_it_owns() -> None:
    @ray.remote(max_calls=1)
    def owner() -> tuple[int, Any]:
        return os.getpid(), ray.put("kept")

    @ray.remote
    def alive(pid: int) -> bool:
        return os.path.exists(f"/proc/{pid}")

    with LocalCluster(num_cpus=1, workers="processes"):
        pid, ref = ray.get(owner.remote())
        assert ray.get(alive.remote(pid))  # its CPU has come back, though it is there
        assert ray.get(ref) == "kept"
        other = ray.get(owner.remote())[0]
        assert other != pid
        assert eventually(lambda: not os.path.exists(f"/proc/{other}"))
        assert os.path.exists(f"/proc/{pid}")
        del ref
        assert eventually(lambda: not os.path.exists(f"/proc/{pid}"))
