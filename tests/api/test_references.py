"""What a reference and an error say of an object without fetching it."""

import asyncio
import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cloudpickle
import pytest

import raylite as ray
from raylite import aio
from raylite.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    RayTaskError,
    WorkerCrashedError,
    to_raise,
)
from raylite.testing import LocalCluster

go, fails = threading.Event(), threading.Event()


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    with LocalCluster(num_cpus=3, workers="threads"):
        yield


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Whatever a test began that waits for `go` ends with it."""
    for event in (go, fails):
        event.clear()
    yield
    for event in (go, fails):
        event.set()


class TaggedError(Exception):
    """A user's class that has names of its own where raylite puts some."""

    task_id = "of the user"

    def __init__(self, object_ref: str) -> None:
        super().__init__(object_ref)
        self.object_ref = object_ref


@ray.remote
def echo(value: Any) -> Any:
    return value


@ray.remote
def fail(text: str = "failed") -> None:
    raise ValueError(text)


def when_it_goes(value: Any = None) -> Any:
    assert go.wait(20)
    return value


def fail_when_told() -> None:
    assert fails.wait(20)
    raise ValueError("told")


held, when_told = ray.remote(when_it_goes), ray.remote(fail_when_told)
get_all: Any = ray.get


def read(ref: Any) -> Exception:
    with pytest.raises(Exception) as raised:  # whichever it is
        ray.get(ref)
    return raised.value


# --- done, exception, size ---


def test_a_reference_is_done_when_its_value_is_there() -> None:
    ref = held.remote(1)
    assert not ref.done()
    assert ref.size is None
    with pytest.raises(asyncio.InvalidStateError, match=rf"{ref.hex()} is not there yet: await"):
        ref.exception()
    go.set()
    assert ray.get(ref) == 1
    assert ref.done()
    assert ref.exception() is None


def test_a_failed_task_is_done_and_has_its_exception() -> None:
    ref = fail.remote()
    ray.wait([ref])
    assert ref.done()
    error: Any = ref.exception()
    assert isinstance(error, ValueError)
    assert isinstance(error, RayTaskError)
    assert error.object_ref is ref
    assert ref.exception() is not error  # whoever raises one changes it
    assert ref.size is not None


@pytest.mark.parametrize("length", [0, 10_000, 1_000_000])
def test_the_size_is_that_of_the_pickled_value(length: int) -> None:
    value = bytes(length)
    refs = [ray.put(value), echo.remote(value)]
    ray.wait(refs, num_returns=2)
    for ref in refs:
        assert ref.size is not None
        assert length < ref.size < length + 1000


def test_a_borrower_learns_that_an_object_is_done() -> None:
    @ray.remote
    def look(box: list[Any]) -> tuple[bool, bool, int | None]:
        ref = box[0]
        before = ref.done()
        when_it_goes()
        ray.wait([ref])
        assert ref.exception() is None
        return before, ref.done(), ref.size

    ref = held.remote(1)
    looked = look.remote([ref])
    ray.wait([looked], timeout=0.05)
    go.set()
    assert ray.get(looked) == (False, True, ref.size)


def test_a_borrower_asks_the_owner_when_it_is_asked_itself() -> None:
    @ray.remote
    def look(box: list[Any]) -> tuple[bool, bool]:
        entry = box[0]._entry
        before = entry.is_pulled
        box[0].done()
        entry.keeper.run(asyncio.sleep, 0)  # the loop has heard of it
        return before, entry.is_pulled

    assert ray.get(look.remote([held.remote()])) == (False, True)


# --- return_exceptions ---


def test_errors_are_returned_in_the_place_of_values() -> None:
    good, bad, other = refs = [echo.remote(1), fail.remote("a"), fail.remote("b")]
    one, two, three, again = get_all([*refs, bad], return_exceptions=True)
    assert one == 1
    assert [str(each).rpartition("ValueError: ")[2] for each in (two, three, again)] == [*"aba"]
    assert all(isinstance(each, ValueError) and each.__traceback__ is None for each in (two, three))
    assert [two.object_ref, three.object_ref, again.object_ref] == [bad, other, bad]
    assert ray.get(good, return_exceptions=True) == 1
    assert isinstance(ray.get(bad, return_exceptions=True), ValueError)
    assert ray.get([], return_exceptions=True) == []


def test_errors_are_returned_when_all_the_others_are_there() -> None:
    slow, bad = held.remote(1), fail.remote()
    ray.wait([bad])
    with pytest.raises(ValueError, match="failed"):
        ray.get([bad, slow])  # at once, though the other may never end
    with pytest.raises(GetTimeoutError):
        ray.get([bad, slow], timeout=0, return_exceptions=True)
    with pytest.raises(GetTimeoutError, match=r"Get timed out: some object\(s\) not ready\."):
        ray.get([bad, slow], timeout=0.01, return_exceptions=True)
    go.set()
    _, value = ray.get([bad, slow], return_exceptions=True)
    assert value == 1


def test_a_value_that_is_an_exception_is_a_value() -> None:
    error = ray.get(echo.remote(KeyError("x")), return_exceptions=True)
    assert (type(error), error.args) == (KeyError, ("x",))


def test_a_copy_that_cannot_be_had_is_an_outcome_like_others() -> None:
    with LocalCluster(nodes=[1, {"num_cpus": 1, "resources": {"b": 1}}], workers="threads") as both:
        there = echo.options(resources={"b": 1})
        lost, kept, here = there.remote(bytes(200_000)), echo.remote(1), echo.remote(bytes(200_000))
        ray.wait([lost, kept, here], num_returns=3, fetch_local=False)
        both.kill_node(both.nodes[1])
        error, one, large = get_all([lost, kept, here], return_exceptions=True)
        assert isinstance(error, ObjectLostError)
        assert (error.object_ref, error.task_id) == (lost, lost.task_id())
        assert (one, len(large)) == (1, 200_000)


# --- get and wait ---


def test_get_raises_the_first_error_that_comes_though_others_are_unfinished() -> None:
    slow, bad = held.remote(1), when_told.remote()
    with ThreadPoolExecutor(1) as waiting:
        got = waiting.submit(ray.get, [slow, bad, slow])
        fails.set()
        with pytest.raises(ValueError, match="told"):
            got.result(20)
    assert not slow.done()
    go.set()
    assert ray.get(slow) == 1


def test_wait_takes_references_of_a_session_that_has_ended_among_others() -> None:
    with LocalCluster(num_cpus=1, workers="threads"):
        old = [ray.put(0), held.remote(0)]
        go.set()
        ray.get(old)
        go.clear()
    first, second = ray.put(1), held.remote(2)
    one, two = old
    for refs in ([one, first, two], [first, one, two]):
        rest = [ref for ref in refs if ref is not first]
        assert ray.wait(refs) == ([first], rest)
        assert ray.wait(refs, num_returns=3) == ([first], rest)  # there is no more to wait for
        assert asyncio.run(aio.wait(refs, num_returns=2)) == ([first], rest)
    assert ray.wait([two, second], timeout=0) == ([], [two, second])
    for call in (ray.get, ray.wait):
        with pytest.raises(ValueError, match=r"^Ray object\(s\) whose owner is unknown"):
            call(old)
    with pytest.raises(ValueError, match=r"^Ray object\(s\) whose owner is unknown"):
        asyncio.run(aio.wait(old))


# --- timeouts ---


def test_a_timeout_that_is_no_number_is_refused_and_one_beyond_all_clocks_is_none() -> None:
    ref = held.remote(1)
    for call in (ray.get, ray.wait):
        with pytest.raises(ValueError, match="cannot convert float NaN to integer"):
            call([ref], timeout=float("nan"))
    for read_one in (aio.get, aio.wait):
        with pytest.raises(ValueError, match="cannot convert float NaN to integer"):
            asyncio.run(read_one([ref], timeout=float("nan")))
    waiting = ThreadPoolExecutor(3)
    futures = [
        waiting.submit(ray.get, ref, timeout=float("inf")),
        waiting.submit(ray.get, ref, timeout=1e30),
        waiting.submit(ray.wait, [ref], timeout=float("inf")),
    ]
    go.set()
    assert [each.result(20) for each in futures] == [1, 1, ([ref], [])]
    waiting.shutdown()
    assert asyncio.run(aio.get(ref, timeout=float("inf"))) == 1


# --- errors know of which object they are ---


def test_an_error_knows_its_object_and_its_task() -> None:
    ref = fail.remote()
    errors: list[Any] = [
        read(ref),
        read([ref]),
        ref.future().exception(timeout=20),
        asyncio.run(_await(ref)),
    ]
    for error in errors:
        assert error.object_ref is ref
        assert error.task_id == ref.task_id()


async def _await(ref: Any) -> Any:
    try:
        await ref
    except ValueError as error:
        return error


def test_the_error_of_a_task_whose_argument_failed_is_that_tasks_own() -> None:
    ref = fail.remote()
    dependent = echo.remote(ref)
    error: Any = read(dependent)
    assert (error.object_ref, error.task_id) == (dependent, dependent.task_id())


def test_the_error_of_a_task_that_read_an_error_is_that_tasks_own() -> None:
    @ray.remote
    def outer() -> Any:
        return ray.get(fail.remote())

    @ray.remote
    def system() -> Any:
        raise WorkerCrashedError("as of another task")

    for ref in (outer.remote(), system.remote()):
        error: Any = read(ref)
        assert (error.object_ref, error.task_id) == (ref, ref.task_id())


def test_what_a_users_class_calls_by_these_names_is_left_alone() -> None:
    @ray.remote
    def tagged() -> None:
        raise TaggedError("mine")

    error: Any = read(tagged.remote())
    assert isinstance(error, TaggedError)
    assert (error.object_ref, error.task_id) == ("mine", "of the user")


def test_errors_of_no_object_say_so() -> None:
    error = GetTimeoutError("late")
    assert (error.object_ref, error.task_id) == (None, None)


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
def test_a_pickled_error_has_the_tasks_id_and_holds_no_object(dumps: Any) -> None:
    ref = fail.remote()
    task = ref.task_id()
    error: Any = read(ref)
    twin = pickle.loads(dumps(error))
    assert (twin.object_ref, twin.task_id) == (None, task)
    assert issubclass(type(twin), ValueError)
    entry = weakref.ref(ref)
    del ref, error
    gc.collect()
    assert entry() is None


def test_an_error_that_a_task_returns_has_the_first_tasks_id() -> None:
    @ray.remote
    def collect() -> Any:
        return ray.get([fail.remote()], return_exceptions=True)

    [error] = get_all(collect.remote())
    assert issubclass(type(error), ValueError)
    assert error.task_id is not None
    assert error.object_ref is None


def test_an_error_holds_its_reference_and_nothing_holds_the_error() -> None:
    gc.collect()
    gc.disable()  # a cycle would need it
    try:
        ref = fail.remote()
        ray.wait([ref])
        error = ref.exception()
        watched = weakref.ref(ref)
        del ref
        assert watched() is not None
        del error
        assert watched() is None
    finally:
        gc.enable()


def test_a_system_error_keeps_its_text_and_its_class() -> None:
    ref = ray.put(1)
    error = to_raise(WorkerCrashedError("no retries"), ref, ref.task_id())
    assert type(error) is WorkerCrashedError
    assert str(error).endswith("executing this task. no retries")
    twin = copy.copy(error)
    assert (error.object_ref, twin.object_ref, twin.task_id) == (ref, None, ref.task_id())
