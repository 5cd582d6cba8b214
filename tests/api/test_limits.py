"""Timeouts and deadlines as a program sees them, and what its tasks inherit of them."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import raylite as ray
from raylite.exceptions import RayTaskError, TaskTimeoutError
from raylite.testing import LocalCluster
from raylite.util import Executor

LONG = 30.0  # seconds, in which nothing here should have to end

ended: dict[str, threading.Event] = {}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with LocalCluster(num_cpus=2, workers="threads"):
        yield


def _left() -> float | None:
    return ray.get_runtime_context().get_time_left()


def _spin(name: str) -> None:
    """Run on, in steps of Python, until interrupted."""
    try:
        while True:
            threading.Event().wait(0.001)
    finally:
        ended.setdefault(name, threading.Event()).set()


def _spin_below(name: str) -> None:
    try:
        ray.get(spin.remote(f"{name}'s child"))
    finally:
        ended.setdefault(name, threading.Event()).set()


def _left_below() -> tuple[float | None, float | None]:
    return _left(), ray.get(left.remote())


def _patient() -> str:
    try:
        ray.get(spin.options(timeout=0.05).remote("impatient"))
    except TaskTimeoutError as error:
        return type(error).__name__
    return "no error"


def _yield_and_spin(name: str) -> Iterator[int]:
    yield 1
    _spin(name)


async def _wait(name: str) -> None:
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        ended.setdefault(name, threading.Event()).set()


async def _left_async() -> float | None:
    return _left()


def _left_in_executor() -> list[float | None]:
    with Executor() as executor:
        return list(executor.map(_left_of, range(2)))


async def _left_in_executor_soon() -> list[float | None]:
    with Executor() as executor:
        soon = asyncio.get_running_loop().run_in_executor(executor, _left)
        return [await soon, await asyncio.wrap_future(executor.submit(_left))]


def _left_of(number: int) -> float | None:
    return _left()


async def _wait_in_executor(name: str) -> None:
    await asyncio.wrap_future(Executor(max_workers=1).submit(_spin, name))


left = ray.remote(_left)
yield_and_spin = ray.remote(_yield_and_spin)
wait, left_async = ray.remote(_wait), ray.remote(_left_async)
spin = ray.remote(_spin)
spin_below = ray.remote(_spin_below)
left_below = ray.remote(_left_below)
patient = ray.remote(_patient)


def was_interrupted(name: str) -> bool:
    return ended.setdefault(name, threading.Event()).wait(LONG)


def test_a_task_that_takes_too_long_is_interrupted() -> None:
    began = time.monotonic()
    with pytest.raises(TaskTimeoutError, match=r"_spin .* it was running") as caught:
        ray.get(spin.options(timeout=0.1).remote("timeout"))
    assert 0.1 <= time.monotonic() - began < LONG
    assert isinstance(caught.value, TimeoutError)
    assert not isinstance(caught.value, RayTaskError)  # it is not the task that raised it
    assert was_interrupted("timeout")


def test_a_deadline_is_a_time_of_the_clock() -> None:
    ref = spin.options(deadline=time.time() + 0.1, timeout=LONG).remote("deadline")
    with pytest.raises(TaskTimeoutError):
        ray.get(ref)
    assert was_interrupted("deadline")
    with pytest.raises(TaskTimeoutError, match="was waiting for a worker"):
        ray.get(spin.options(deadline=time.time() - 1).remote("never"))
    assert "never" not in ended


def test_what_a_task_has_started_ends_with_it() -> None:
    with pytest.raises(TaskTimeoutError):
        ray.get(spin_below.options(timeout=0.2).remote("parent"))
    assert was_interrupted("parent")
    assert was_interrupted("parent's child")


def test_a_task_has_no_more_time_than_the_one_that_started_it() -> None:
    above, below = ray.get(left_below.options(timeout=LONG).remote())
    assert above is not None
    assert below is not None
    assert LONG - 5 < below < above + 1 < LONG + 1  # the way there does not count
    assert ray.get(left_below.remote()) == (None, None)


@pytest.mark.parametrize("function", [_left_in_executor, _left_in_executor_soon])
def test_what_a_task_starts_by_an_executor_has_no_more_time(function: Callable[[], Any]) -> None:
    below = ray.get(ray.remote(function).options(timeout=LONG).remote())
    assert all(LONG - 5 < each <= LONG for each in below)
    assert ray.get(ray.remote(function).remote()) == [None, None]


def test_what_an_async_task_has_started_by_an_executor_ends_with_it() -> None:
    with pytest.raises(TaskTimeoutError):
        ray.get(ray.remote(_wait_in_executor).options(timeout=0.5).remote("by an executor"))
    assert was_interrupted("by an executor")


def test_a_task_survives_the_timeout_of_one_that_it_has_started() -> None:
    assert ray.get(patient.options(timeout=LONG).remote()) == "TaskTimeoutError"
    assert was_interrupted("impatient")


def test_an_async_task_that_takes_too_long_is_cancelled_alone() -> None:
    with pytest.raises(TaskTimeoutError, match="it was running"):
        ray.get(wait.options(timeout=0.1).remote("awaiting"))
    assert was_interrupted("awaiting")
    seconds = ray.get(left_async.options(timeout=LONG).remote())
    assert seconds is not None
    assert LONG - 5 < seconds <= LONG


def test_a_stream_that_takes_too_long_ends_with_the_error_behind_what_has_come() -> None:
    items = yield_and_spin.options(timeout=1.0).remote("stream")
    assert ray.get(next(items)) == 1
    with pytest.raises(TaskTimeoutError):
        ray.get(next(items))
    assert list(items) == []
    assert was_interrupted("stream")


def test_what_needs_the_result_of_a_task_that_timed_out_fails_in_the_same_way() -> None:
    @ray.remote
    def use(value: object) -> object:
        return value

    with pytest.raises(TaskTimeoutError) as caught:
        ray.get(use.remote(spin.options(timeout=0.05).remote("needed")))
    assert isinstance(caught.value, RayTaskError)
    assert was_interrupted("needed")


def test_the_decorator_takes_a_timeout_and_a_task_in_time_notices_nothing() -> None:
    seconds = ray.get(ray.remote(timeout=LONG)(_left).remote())
    assert seconds is not None
    assert LONG - 5 < seconds <= LONG


@pytest.mark.parametrize("seconds", [-1, math.inf, math.nan])
def test_a_timeout_is_a_number_of_seconds(seconds: float) -> None:
    with pytest.raises(ValueError, match="'timeout' only accepts None or seconds, 0 or more"):
        left.options(timeout=seconds)
    with pytest.raises(
        ValueError, match=r"'deadline' only accepts None or a time as time.time\(\)"
    ):
        left.options(deadline=seconds)
    with pytest.raises(TypeError, match="The type of keyword 'timeout' must be"):
        left.options(timeout="1")  # type: ignore[call-overload]
