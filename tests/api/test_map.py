"""`f.map`: a call for each element, in order, in chunks, never too many at once."""

import asyncio
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import raylite as ray
from raylite._map import Map
from raylite._runtime import context
from raylite.exceptions import RayTaskError, TaskCancelledError
from raylite.testing import LocalCluster
from tests.api.drivers import eventually

pytestmark = pytest.mark.usefixtures("threads")


@pytest.fixture(scope="module")
def threads() -> Iterator[LocalCluster]:
    with LocalCluster(num_cpus=2, workers="threads") as cluster:
        yield cluster


@ray.remote
def square(n: int) -> int:
    return n * n


@ray.remote
def add(a: Any, b: Any = 10) -> Any:
    return a + b


@ray.remote
def divide(a: int, b: int) -> float:
    return a / b


GATE = threading.Event()


def pass_gate(n: int) -> int:
    assert GATE.wait(20)
    return n


BUSY = threading.Event()


def spin_at_gate(n: int) -> int:
    if n:
        BUSY.set()
        while not GATE.wait(0.002):
            pass
    return n


gated = ray.remote(pass_gate)
spinning = ray.remote(spin_at_gate)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    GATE.clear()
    yield GATE
    GATE.set()


SIZES: list[Any] = [1, 3, "auto"]


@pytest.mark.parametrize("chunksize", SIZES)
def test_the_references_are_one_for_each_element_in_order(chunksize: Any) -> None:
    refs = list(square.map(range(10), chunksize=chunksize))
    assert ray.get(refs) == [n * n for n in range(10)]
    assert len(set(refs)) == 10


@pytest.mark.parametrize("chunksize", SIZES)
def test_several_iterables_give_an_argument_each_until_the_shortest_ends(chunksize: Any) -> None:
    refs = add.map([1, 2, 3], itertools.count(100), chunksize=chunksize)
    assert ray.get(list(refs)) == [101, 103, 105]
    assert ray.get(list(add.map([1, 2], chunksize=chunksize))) == [11, 12]
    assert list(add.map([], chunksize=chunksize)) == []


@pytest.mark.parametrize("chunksize", SIZES)
def test_an_error_is_that_of_one_element(chunksize: Any) -> None:
    one, error, two = divide.map([1, 1, 4], [1, 0, 2], chunksize=chunksize)
    assert ray.get([one, two]) == [1, 2]
    with pytest.raises(ZeroDivisionError) as caught:
        ray.get(error)
    assert isinstance(caught.value, RayTaskError)
    assert caught.value.function_name == "divide"
    assert "chunk.py" not in str(caught.value)


@pytest.mark.parametrize("chunksize", SIZES)
def test_a_map_can_be_iterated_in_a_coroutine(chunksize: Any) -> None:
    async def main() -> list[int]:
        return [await ref async for ref in square.map(range(50), chunksize=chunksize)]

    assert asyncio.run(main()) == [n * n for n in range(50)]


@pytest.mark.parametrize("chunksize", SIZES)
def test_no_more_is_read_and_begun_than_twice_what_can_run(
    gate: threading.Event, chunksize: Any
) -> None:
    read = []
    size = 1 if chunksize == "auto" else chunksize  # as long as nothing has ended

    def elements() -> Iterator[int]:
        for n in itertools.count():
            read.append(n)
            yield n

    refs: Map[int] = gated.map(elements(), chunksize=chunksize)
    assert read == []
    seen = [next(refs) for _ in range(4 * size)]
    assert len(read) == 4 * size  # two CPUs: four tasks

    async def cannot_go_on() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(refs), 0.01)

    asyncio.run(cannot_go_on())
    gate.set()
    seen += itertools.islice(refs, 100)
    assert ray.get(seen) == list(range(len(seen)))
    assert len(seen) == 4 * size + 100


def test_calls_of_a_coroutine_function_overlap_as_far_as_they_may() -> None:
    here: list[int] = []
    all_here: list[asyncio.Event] = []

    async def meet(n: int) -> int:
        if not here:
            all_here.append(asyncio.Event())
        here.append(n)
        if len(here) == 50:
            all_here[0].set()
        await asyncio.wait_for(all_here[0].wait(), 10)
        return n

    globals()["meet"] = meet
    meet.__qualname__ = "meet"
    refs = ray.remote(num_cpus=2)(meet).map(range(50))  # so that one worker has all of them
    assert ray.get(list(refs)) == list(range(50))


def test_the_window_of_coroutine_functions_is_what_they_were_allowed() -> None:
    read = []

    def elements() -> Iterator[int]:
        for n in itertools.count():
            read.append(n)
            yield n

    async def stay(n: int) -> int:
        return n

    few = ray.remote(max_concurrency=5)(stay)
    next(few.map(elements()))
    assert len(read) == 20  # two CPUs: twice ten
    read.clear()
    next(few.options(scheduling_strategy="SPREAD").map(elements()))
    assert len(read) == 4  # they do not overlap


def test_a_slow_reader_has_no_more_results_before_it_than_that() -> None:
    read = []

    def elements() -> Iterator[int]:
        for n in itertools.count():
            read.append(n)
            yield n

    refs = square.map(elements(), chunksize=1)
    for taken in range(1, 20):
        next(refs)
        assert len(read) <= taken + 4  # two CPUs: four tasks
        ray.wait(list(refs._under_way), num_returns=len(refs._under_way))


def test_a_long_map_holds_only_what_is_ahead_of_its_reader() -> None:
    place = context.current()
    assert place is not None
    table = place.core.owner.refs.table
    total, most, largest = 0, 0, 1
    refs = square.map(range(10_000))
    for count, ref in enumerate(refs):
        total += ray.get(ref)
        if count % 100 == 0:
            most = max(most, len(table))
            largest = max(largest, refs._pace.size)
    assert total == sum(n * n for n in range(10_000))
    assert refs._pace.size > 1
    # Those under way, those ahead, and those let go of that the loop has not seen yet.
    assert most < 4 * refs._pace.limit * largest


def test_the_elements_before_an_error_of_the_iterable_come_first() -> None:
    def elements() -> Iterator[int]:
        yield from range(5)
        raise OSError("no more lines")

    for chunksize in SIZES:
        seen: list[Any] = []
        with pytest.raises(OSError, match="no more lines"):
            seen.extend(square.map(elements(), chunksize=chunksize))
        refs: Any = square.map(elements(), chunksize=chunksize)
        seen = [next(refs) for _ in range(5)]
        assert ray.get(seen) == [0, 1, 4, 9, 16]
        with pytest.raises(OSError, match="no more lines"):
            next(refs)
        assert list(refs) == []  # it has ended


@pytest.mark.parametrize("chunksize", SIZES)
def test_an_element_that_cannot_be_pickled_fails_alone(chunksize: Any) -> None:
    elements = [1, 2, threading.Lock(), 4, threading.Lock(), *range(20)]
    refs = list(add.map(elements, chunksize=chunksize))
    assert len(refs) == len(elements)
    for wrong in (4, 2):
        with pytest.raises(TypeError, match="Could not serialize the argument") as caught:
            ray.get(refs.pop(wrong))
        assert isinstance(caught.value, RayTaskError)
    assert ray.get(refs) == [11, 12, 14, *range(10, 30)]


def test_only_elements_that_cannot_be_pickled_read_no_further_ahead_than_others() -> None:
    read = []

    def elements() -> Iterator[Any]:
        for n in itertools.count():
            read.append(n)
            yield threading.Lock()

    refs: Map[Any] = add.map(elements())
    with pytest.raises(TypeError):
        ray.get(next(refs))
    assert len(read) <= 4  # two CPUs: four tasks


@pytest.mark.parametrize("chunksize", SIZES)
def test_a_function_that_cannot_be_sent_is_an_error_of_the_map(chunksize: Any) -> None:
    lock = threading.Lock()
    refs: Map[Any] = ray.remote(lambda n: (n, lock)).map(itertools.count(), chunksize=chunksize)
    with pytest.raises(TypeError, match="Could not serialize the function"):
        next(refs)
    assert list(refs) == []  # it has ended


def test_references_among_the_elements_become_values_and_their_errors_stay_their_own() -> None:
    for chunksize in SIZES:
        failed = divide.remote(1, 0)
        elements = [1, ray.put(2), 3, failed, 4]
        refs = list(add.map(elements, chunksize=chunksize))
        assert ray.get([refs[n] for n in (0, 1, 2, 4)]) == [11, 12, 13, 14]
        with pytest.raises(RayTaskError):
            ray.get(refs[3])


def test_large_elements_and_results_arrive() -> None:
    elements = [bytes([n]) * 300_000 for n in range(6)]
    assert ray.get(list(add.map(elements, elements, chunksize=4))) == [e + e for e in elements]


def test_a_map_that_was_closed_cancels_what_was_begun_ahead(gate: threading.Event) -> None:
    read: list[int] = []
    ended: list[Any] = []

    def elements() -> Iterator[int]:
        for n in range(100):
            read.append(n)
            yield n

    refs: Map[int] = gated.map(elements(), chunksize=2)
    seen = [next(refs) for _ in range(3)]
    for ref in [each for task in refs._ahead for each in task]:
        ref.future().add_done_callback(ended.append)
    refs.close()
    assert list(refs) == []
    assert len(read) == 8  # two CPUs: four tasks
    assert eventually(lambda: len(ended) == 4)  # while those that may run stand at the gate
    assert all(isinstance(each.exception(), TaskCancelledError) for each in ended)
    gate.set()
    assert ray.get(seen) == [0, 1, 2]


def test_a_map_that_is_let_go_of_cancels_what_was_begun_ahead(gate: threading.Event) -> None:
    refs: Map[int] = gated.map(itertools.count())
    first = next(refs)
    left = [task[0] for task in refs._ahead]
    del refs
    with pytest.raises(TaskCancelledError):
        ray.get(left[1])
    gate.set()
    assert ray.get(first) == 0
    for ref in gated.map(itertools.count()):
        assert ray.get(ref) == 0
        break


def test_to_cancel_a_call_is_to_cancel_what_has_not_ended_of_its_task(
    gate: threading.Event,
) -> None:
    first, second, third = spinning.map(range(3), chunksize=3)
    assert BUSY.wait(20)
    ray.cancel(third)
    for ref in (second, third):
        with pytest.raises(TaskCancelledError):
            ray.get(ref)
    assert ray.get(first) == 0


def test_options_hold_for_a_map_and_its_function_is_sent_once() -> None:
    place = context.current()
    assert place is not None
    before = len(place.core.submitter.peers.definitions)
    for _ in range(3):
        named = add.options(num_cpus=0.5, name="sum")
        refs = list(named.map(range(4), chunksize=2))
        assert ray.get(refs) == [10, 11, 12, 13]
    assert len(place.core.submitter.peers.definitions) - before <= 1


def test_what_is_about_single_calls_makes_each_a_task() -> None:
    attempts = []

    def flaky(n: int) -> int:
        attempts.append(n)
        if attempts.count(n) < 3:
            raise ValueError
        return n

    globals()["flaky"] = flaky
    flaky.__qualname__ = "flaky"
    retried = ray.remote(retry_exceptions=True, max_retries=3)(flaky)
    refs = list(retried.map(range(3)))
    assert [ray.get(ref) for ref in refs] == [0, 1, 2]
    with pytest.raises(ValueError, match="chunksize=2 with retry_exceptions"):
        retried.map([1], chunksize=2)
    once: Map[int] = square.options(max_retries=0).map(range(3))  # a chunk cannot be tried again
    assert ray.get(list(once)) == [0, 1, 4]
    assert once._calls == {}


def test_what_makes_no_sense_is_refused_where_it_is_written() -> None:
    with pytest.raises(TypeError, match="at least one iterable"):
        square.map()  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="too many positional arguments"):
        square.map([1], [2])  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"is not iterable|must support iteration"):
        square.map(1)  # type: ignore[call-overload]
    for wrong in (0, -1, 1.5, "many"):
        with pytest.raises(ValueError, match="chunksize must be"):
            square.map([1], chunksize=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a function with one result"):
        square.options(num_returns=2).map([1])  # type: ignore[misc]
