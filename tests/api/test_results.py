"""Results that are none: what cannot be pickled or unpickled, and what nobody asked for."""

import gc
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any, NoReturn

import pytest

import raylite as ray
from raylite.exceptions import NumReturnsWarning, RaySystemError, RayTaskError
from raylite.testing import LocalCluster

pytestmark = pytest.mark.usefixtures("threads")

MODULE = __name__


@pytest.fixture(scope="module")
def threads() -> Iterator[LocalCluster]:
    with LocalCluster(num_cpus=1, workers="threads") as cluster:
        yield cluster


class Server:
    def __init__(self) -> None:
        self.lock = threading.Lock()


class Sealed:
    def __getstate__(self) -> NoReturn:
        raise PermissionError("sealed")


class Hollow:
    """Can be pickled, and not unpickled."""

    def __reduce__(self) -> Any:
        return collapse, (1,)


def collapse(number: int) -> NoReturn:
    raise ValueError(f"collapsed {number}")


@ray.remote
def made(kind: str) -> Any:
    if kind == "server":
        return {"main": Server(), "spare": 1}
    return {"sealed": Sealed, "hollow": Hollow}[kind]()


@ray.remote
async def made_soon(kind: str) -> Any:
    return {"main": Server(), "spare": 1}


@ray.remote
def yielded() -> Iterator[Any]:
    yield 1
    yield Server()


@ray.remote
async def yielded_soon() -> AsyncIterator[Any]:
    yield 1
    yield Server()


@ray.remote(num_returns=2)
def pair() -> Any:
    return 1, Server()


@ray.remote
def taken(value: Any) -> int:
    return 1


@ray.remote
async def taken_soon(value: Any) -> int:
    return 1


def error_of(ref: Any) -> RayTaskError:
    with pytest.raises(RayTaskError) as caught:
        ray.get(ref)
    return caught.value


# --- What cannot be pickled ---


@pytest.mark.parametrize("function", [made, made_soon])
def test_a_return_value_that_cannot_be_pickled_is_named_with_what_is_to_blame(
    function: Any,
) -> None:
    error = error_of(function.remote("server"))
    assert isinstance(error, TypeError)
    lines = str(error).splitlines()
    assert lines[0].startswith(f"raylite::{function.__name__}() (pid=")
    assert lines[1].startswith("TypeError: Could not serialize the return value {'main': <")
    assert f"of the task {MODULE}.{function.__name__}. Check https://" in lines[1]
    assert lines[2:] == [
        "return value: dict: cannot pickle '_thread.lock' object",
        "  return value['main']: Server: cannot pickle '_thread.lock' object",
        "    return value['main'].lock: lock: cannot pickle '_thread.lock' object",
    ]


def test_of_several_results_the_one_that_cannot_be_pickled_is_named() -> None:
    first, second = pair.remote()
    assert ray.get(first) == 1
    assert "the return value number 2 <" in str(error_of(second))
    for stream in (yielded.remote(), yielded_soon.remote()):
        good, bad = stream
        assert ray.get(good) == 1
        text = str(error_of(bad))
        assert "the yielded value number 2 <" in text
        assert "yielded value number 2.lock: lock: cannot" in text


def test_an_error_of_the_value_itself_stays_what_it_is_and_says_where_it_is_from() -> None:
    error = error_of(made.remote("sealed"))
    assert isinstance(error, PermissionError)
    text = str(error)
    assert "in __getstate__" in text
    assert "PermissionError: sealed\nCould not serialize the return value <" in text
    assert "cloudpickle" not in text
    assert "raylite/_" not in text


def test_a_container_that_cannot_even_be_looked_at_is_an_error_of_its_task_alone() -> None:
    class Trap(dict[str, Any]):
        def __reduce__(self) -> NoReturn:
            raise TypeError("not this one")

        def items(self) -> NoReturn:
            raise OSError("nor here")

    @ray.remote
    def trap() -> Any:
        return Trap()

    text = str(error_of(trap.remote()))
    assert "TypeError: not this one" in text
    assert "what is in it cannot be seen: OSError('nor here')" in text
    assert ray.get(taken.remote(1)) == 1


def test_in_a_chunk_of_a_map_only_the_call_fails_whose_result_it_is() -> None:
    @ray.remote
    def some(n: int) -> Any:
        return Server() if n == 2 else n

    refs = list(some.map(range(6), chunksize=6))
    text = str(error_of(refs.pop(2)))
    assert "Could not serialize the return value <" in text
    assert ray.get(refs) == [0, 1, 3, 4, 5]


def test_such_an_error_may_be_tried_again_and_leaves_no_cycles() -> None:
    error_of(ray.remote(retry_exceptions=[TypeError], max_retries=2)(locked).remote())
    assert len(attempts) == 3
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            error_of(made.remote("server"))
        assert ray.get(taken.remote(1)) == 1
        left = sum(type(each) is Server for each in gc.get_objects())
    finally:
        gc.enable()
    assert left == 0


attempts: list[int] = []


def locked() -> Any:  # in its module, so that it is pickled by name and finds the list
    attempts.append(1)
    return threading.Lock()


# --- What cannot be unpickled ---


def test_an_error_of_unpickling_shows_no_frames_of_raylite() -> None:
    with pytest.raises(RaySystemError) as caught:
        ray.get(made.remote("hollow"))
    lines = str(caught.value).splitlines()
    assert lines[:2] == [
        "System error: collapsed 1",
        "traceback: Traceback (most recent call last):",
    ]
    assert lines[2].endswith("in collapse")
    assert lines[-1] == "ValueError: collapsed 1"
    assert "pickling.py" not in str(caught.value)
    for given in (Hollow(), made.remote("hollow")):
        text = str(error_of(taken.remote(given)))
        assert "At least one of the input arguments" in text
        assert "in collapse" in text
        assert "pickling.py" not in text


# --- What nobody asked for ---


def test_a_value_that_goes_nowhere_is_warned_of_once() -> None:
    @ray.remote(num_returns=0)
    def lost(value: Any) -> Any:
        return value

    @ray.remote(num_returns=0)
    def lost_items() -> Any:
        yield 1

    @ray.remote(num_returns=0)
    async def lost_soon() -> int:
        return 1

    @ray.remote(num_returns=0)
    async def lost_stream() -> Any:
        yield print("it ran")

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for value in (None, "a", "b", None):
            lost.remote(value)
        lost_items.remote()
        lost_soon.remote()
        lost_stream.remote()
        # With one CPU, each is behind those of its kind.
        assert ray.get([taken.remote(1), taken_soon.remote(1)]) == [1, 1]
    assert [each.category for each in told] == [NumReturnsWarning] * 4
    texts = sorted(str(each.message).partition(f"{MODULE}.")[2] for each in told)
    assert texts == [
        "lost has num_returns=0 and returned a value of type str, which is ignored. Leave "
        "num_returns out, or return nothing.",
        "lost_items has num_returns=0 and is a generator: it does not run at all. Leave "
        "num_returns out, or return nothing.",
        "lost_soon has num_returns=0 and returned a value of type int, which is ignored. Leave "
        "num_returns out, or return nothing.",
        "lost_stream has num_returns=0 and is a generator: it does not run at all. Leave "
        "num_returns out, or return nothing.",
    ]
    assert {each.filename for each in told} == {__file__}
