"""Cancelling tasks: every state a task can be in, and nobody else disturbed."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import raylite as ray
from raylite._api import home
from raylite._types.cancellation import CancelOutcome
from raylite.exceptions import RayTaskError, TaskCancelledError
from raylite.testing import LocalCluster

SOON = 20.0

begun: dict[str, threading.Event] = {}
go_on: dict[str, threading.Event] = {}
runs: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with LocalCluster(num_cpus=2, workers="threads"):
        yield


@pytest.fixture(autouse=True)
def fresh() -> None:
    for each in (begun, go_on, runs):
        each.clear()


def event(events: dict[str, threading.Event], name: str) -> threading.Event:
    return events.setdefault(name, threading.Event())


def cancel(ref: Any, *, force: bool = False, recursive: bool = True) -> CancelOutcome:
    """Cancel, and wait until it is known what came of it."""
    return home([ref]).cancel(ref._entry, force=force, recursive=recursive).result(SOON)


def _spin(name: str, *inputs: Any) -> str:
    """Run until told to go on, in steps of Python: what a thread can be interrupted in."""
    runs.append(name)
    event(begun, name).set()
    while not event(go_on, name).wait(0.001):
        pass
    return name


def _wait_deafly(name: str) -> None:
    """Wait in C code, where a thread cannot be interrupted."""
    event(begun, name).set()
    event(go_on, name).wait()


def _spin_stubbornly(name: str) -> str:
    try:
        _spin(name)
    except KeyboardInterrupt:
        return "stayed"
    return "not cancelled"


def _spin_and_fail(name: str) -> str:
    try:
        _spin(name)
    except KeyboardInterrupt:
        raise ValueError("while cleaning up") from None
    return "not cancelled"


def _get(refs: list[Any], name: str) -> Any:
    event(begun, name).set()
    return ray.get(refs[0])


def _wait(refs: list[Any], name: str) -> Any:
    event(begun, name).set()
    return ray.wait(refs)


def _start(names: list[str], parent: str) -> Any:
    refs = [spin.remote(name) for name in names]
    for name in names:
        assert event(begun, name).wait(SOON)
    event(begun, parent).set()
    return ray.get(refs)


def _echo(value: Any) -> Any:
    runs.append("echo")
    return value


def _cancel(refs: list[Any]) -> CancelOutcome:
    return cancel(refs[0])


class _Slow:
    """Takes its time to be unpickled."""

    def __reduce__(self) -> Any:
        return _unpickle_slowly, ("unpickling",)


def _unpickle_slowly(name: str) -> str:
    return _spin(name)


spin: Any = ray.remote(_spin)
wait_deafly: Any = ray.remote(_wait_deafly)
stubborn: Any = ray.remote(_spin_stubbornly)
failing: Any = ray.remote(_spin_and_fail)
getter, waiter, starter = (ray.remote(num_cpus=0)(f) for f in (_get, _wait, _start))
echo: Any = ray.remote(_echo)
canceller: Any = ray.remote(num_cpus=0)(_cancel)


def started(function: Any, name: str, *args: Any) -> Any:
    ref = function.remote(*args, name)
    assert event(begun, name).wait(SOON)
    return ref


def assert_cancelled(ref: Any) -> None:
    with pytest.raises(TaskCancelledError):
        ray.get(ref, timeout=SOON)


def test_a_running_task_is_interrupted() -> None:
    ref = started(spin, "a")
    assert cancel(ref) is CancelOutcome.WHILE_RUNNING
    with pytest.raises(RayTaskError, match=rf"{ref.task_id().hex()}.*_spin was interrupted"):
        ray.get(ref, timeout=SOON)


def test_what_needs_it_fails_with_it() -> None:
    ref = started(spin, "a")
    down = echo.remote(ref)
    ray.cancel(ref)
    assert_cancelled(down)
    assert runs == ["a"]


def test_a_task_that_waits_for_its_arguments_fails_alone() -> None:
    up = started(spin, "up")
    one, other = spin.remote("one", up), spin.remote("other", up)
    assert cancel(one) is CancelOutcome.BEFORE_START
    assert_cancelled(one)
    event(go_on, "up").set()
    event(go_on, "other").set()
    assert ray.get([up, other], timeout=SOON) == ["up", "other"]
    assert runs == ["up", "other"]


def test_a_task_without_a_worker_never_starts() -> None:
    busy = [started(spin, name) for name in "ab"]
    ref = spin.remote("never")
    assert cancel(ref) is CancelOutcome.BEFORE_START
    with pytest.raises(TaskCancelledError, match="_spin had not started"):
        ray.get(ref, timeout=SOON)
    for name in "ab":
        event(go_on, name).set()
    assert ray.get(busy, timeout=SOON) == ["a", "b"]
    assert "never" not in runs


def test_a_task_that_has_finished_keeps_its_value() -> None:
    ref = echo.remote(3)
    assert ray.get(ref) == 3
    for force in (False, True):
        assert cancel(ref, force=force) is CancelOutcome.FINISHED_FIRST
    assert ray.get(ref) == 3


def test_cancelling_what_was_put_does_nothing() -> None:
    ref = ray.put(1)
    ray.cancel(ref)
    assert ray.get(ref) == 1


def test_a_task_may_refuse_and_keep_its_value() -> None:
    ref = started(stubborn, "a")
    assert cancel(ref) is CancelOutcome.FINISHED_FIRST
    assert ray.get(ref) == "stayed"


def test_what_a_task_raises_while_it_is_interrupted_is_its_error_and_not_retried() -> None:
    ref = started(failing.options(max_retries=3, retry_exceptions=True), "a")
    assert cancel(ref) is CancelOutcome.WHILE_RUNNING
    with pytest.raises(ValueError, match="while cleaning up"):
        ray.get(ref, timeout=SOON)
    assert runs == ["a"]


@pytest.mark.parametrize("blocking", [getter, waiter], ids=["get", "wait"])
def test_a_task_that_blocks_is_woken(blocking: Any) -> None:
    up = started(spin, "up")
    ref = started(blocking, "down", [up])
    assert cancel(ref) is CancelOutcome.WHILE_RUNNING
    assert_cancelled(ref)
    event(go_on, "up").set()
    assert ray.get(up, timeout=SOON) == "up"


def test_a_task_is_interrupted_while_its_arguments_are_unpickled_and_its_body_never_runs() -> None:
    ref = echo.remote(_Slow())
    assert event(begun, "unpickling").wait(SOON)
    assert cancel(ref) is CancelOutcome.BEFORE_START
    assert_cancelled(ref)
    assert runs == ["unpickling"]
    assert ray.get(echo.remote(1), timeout=SOON) == 1


def test_its_children_are_cancelled_with_it() -> None:
    ref = started(starter, "parent", ["child", "other"])
    assert cancel(ref) is CancelOutcome.WHILE_RUNNING
    assert_cancelled(ref)
    # Both CPUs are free again although nobody let the children go on.
    assert ray.get([echo.remote(n) for n in range(4)], timeout=SOON) == [0, 1, 2, 3]


def test_its_children_are_left_alone_if_that_is_asked() -> None:
    ref = started(starter, "parent", ["child"])
    assert cancel(ref, recursive=False) is CancelOutcome.WHILE_RUNNING
    assert_cancelled(ref)
    ended = event(go_on, "child")
    ended.set()
    assert ray.get([echo.remote(n) for n in range(4)], timeout=SOON) == [0, 1, 2, 3]


def test_a_borrower_cancels_and_hears_what_came_of_it() -> None:
    ref = started(spin, "a")
    assert ray.get(canceller.remote([ref]), timeout=SOON) == CancelOutcome.WHILE_RUNNING
    assert_cancelled(ref)
    assert ray.get(canceller.remote([ref]), timeout=SOON) == CancelOutcome.FINISHED_FIRST


def test_cancelling_again_is_harmless() -> None:
    ref = started(spin, "a")
    told = [home([ref]).cancel(ref._entry, force=False, recursive=True) for _ in range(5)]
    assert {each.result(SOON) for each in told} == {CancelOutcome.WHILE_RUNNING}
    assert cancel(ref) is CancelOutcome.FINISHED_FIRST
    assert ray.get(echo.remote(1), timeout=SOON) == 1


def test_several_returns_fail_together() -> None:
    refs = started(spin.options(num_returns=2), "a")
    assert cancel(refs[1]) is CancelOutcome.WHILE_RUNNING
    for ref in refs:
        assert_cancelled(ref)


@pytest.mark.asyncio
async def test_the_outcome_can_be_awaited_on_any_loop() -> None:
    ref = started(spin, "a")
    future = home([ref]).cancel(ref._entry, force=False, recursive=True)
    assert await asyncio.wrap_future(future) is CancelOutcome.WHILE_RUNNING


def test_by_force_a_worker_that_is_a_thread_leaves() -> None:
    ref = started(wait_deafly, "a")
    assert cancel(ref, force=True) is CancelOutcome.WHILE_RUNNING
    with pytest.raises(TaskCancelledError, match="force=True"):
        ray.get(ref, timeout=SOON)
    event(go_on, "a").set()  # its thread goes when it can
    assert ray.get([echo.remote(n) for n in range(4)], timeout=SOON) == [0, 1, 2, 3]


@pytest.mark.parametrize("wrong", [None, 1, "x", b"x", [], (), {}])
def test_only_references_can_be_cancelled(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"only supported for object refs.*Got: <class '\w+'>\.$"):
        ray.cancel(wrong)


def test_a_list_of_references_is_none() -> None:
    with pytest.raises(TypeError, match="Got: <class 'list'>"):
        ray.cancel([ray.put(1)])  # type: ignore[arg-type]


def test_options_are_named() -> None:
    with pytest.raises(TypeError, match="positional"):
        ray.cancel(ray.put(1), True)  # type: ignore[call-arg]
