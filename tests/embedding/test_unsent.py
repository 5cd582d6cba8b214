"""What cannot be sent, now or ever: one task fails of it, or waits, and the session goes on."""

from collections.abc import Iterator
from typing import Any

import pytest

import raylite as ray
from raylite._kernel.link import LinkConfig
from raylite.exceptions import RaySystemError
from raylite.testing import LocalCluster

PATIENCE = 60.0  # seconds; nothing here takes two
HALF = "\ud800"  # of a surrogate pair: what users give is checked, so tests have to smuggle it in


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    with LocalCluster(num_cpus=2, workers="threads"):
        yield


def _double(number: int) -> int:
    return 2 * number


def _refer() -> Any:
    ref = ray.put(1)
    ref._entry.owner = HALF
    return ref


double: Any = ray.remote(_double)


def test_a_task_that_cannot_be_sent_fails_alone_and_says_why() -> None:
    odd: Any = ray.remote(_double)
    before = [odd.remote(n) for n in range(10)]
    odd._submission.name = HALF
    bad = [odd.remote(n) for n in range(10)]
    odd._submission.name = ""
    after = [odd.remote(n) for n in range(10)]
    for ref in bad:
        with pytest.raises(RaySystemError, match=r"cannot be sent to a worker: .*surrogates"):
            ray.get(ref, timeout=PATIENCE)
    assert ray.get(before + after, timeout=PATIENCE) == [2 * n for n in range(10)] * 2


def test_a_result_that_cannot_be_sent_fails_its_task_and_its_worker_lives() -> None:
    with pytest.raises(RaySystemError, match=r"the results of task _refer .* cannot be sent"):
        ray.get(ray.remote(_refer).remote(), timeout=PATIENCE)
    assert ray.get(double.remote(4), timeout=PATIENCE) == 8


def test_a_function_larger_than_what_a_link_keeps_at_a_time_runs() -> None:
    text = bytes(LinkConfig().outbox_limit + 1)

    def measure() -> int:
        return len(text)

    refs = [ray.remote(measure).remote() for _ in range(2)]
    assert ray.get([*refs, double.remote(1)], timeout=PATIENCE) == [len(text)] * 2 + [2]
