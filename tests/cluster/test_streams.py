"""Streams between real processes: producers that are killed, and more than the store can hold."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raylite as ray
from raylite.exceptions import TaskCancelledError, WorkerCrashedError

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("cluster")]

MB = 1024 * 1024
STORE = 80 * MB


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray.init(num_cpus=2, object_store_memory=STORE):
        yield


@ray.remote
def dying(deaths: Path, times: int, size: int) -> Iterator[Any]:
    """Yield ten arrays, and die in the middle so many times."""
    for n in range(10):
        yield np.full(size, n)
        if n == 5 and deaths.stat().st_size < times:
            deaths.write_bytes(deaths.read_bytes() + b"+")
            os.kill(os.getpid(), signal.SIGKILL)


@ray.remote
def heavy(items: int) -> Iterator[Any]:
    for n in range(items):
        yield np.full(MB, n)  # of eight bytes each


@ray.remote
def endless() -> Iterator[int]:
    while True:
        yield 1


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_producer_that_is_killed_goes_on_where_it_was(tmp_path: Path, size: int) -> None:
    (deaths := tmp_path / "deaths").touch()
    taken = [int(ray.get(ref)[0]) for ref in dying.remote(deaths, 2, size)]
    assert taken == list(range(10))
    assert deaths.read_bytes() == b"++"


def test_a_producer_that_dies_for_good_is_the_last_item(tmp_path: Path) -> None:
    (deaths := tmp_path / "deaths").touch()
    gen = dying.options(max_retries=0).remote(deaths, 1, 1)
    taken, errors = [], []
    for ref in gen:
        try:
            taken.append(int(ray.get(ref)[0]))
        except WorkerCrashedError as error:
            errors.append(error)
    assert taken == list(range(len(taken)))  # what had left the process when it died
    assert len(errors) == 1
    with pytest.raises(WorkerCrashedError):
        ray.get(gen.completed())


def test_a_limit_lets_more_through_than_the_store_can_hold() -> None:
    bounded = heavy.options(_generator_backpressure_num_objects=2)
    total = sum(int(ray.get(ref)[-1]) for ref in bounded.remote(40))
    assert total == sum(range(40))


def test_dropped_streams_give_the_store_back_what_was_not_read() -> None:
    for _ in range(4):  # together more than it can hold
        gen = heavy.remote(4)
        ray.get([gen.completed(), next(gen)])
        del gen
    assert ray.get(next(heavy.remote(1)))[0] == 0


@pytest.mark.parametrize("limit", [-1, 1])
def test_an_endless_producer_is_cancelled_wherever_it_is(limit: int) -> None:
    gen = endless.options(_generator_backpressure_num_objects=limit).remote()
    assert ray.get(next(gen)) == 1
    ray.cancel(gen)
    with pytest.raises(TaskCancelledError):
        ray.get(next(gen))
    with pytest.raises(TaskCancelledError):
        ray.get(gen.completed(), timeout=20)
