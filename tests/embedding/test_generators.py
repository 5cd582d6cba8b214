"""Generators: what a program sees of tasks that yield."""

import asyncio
import gc
import pickle
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import anyio
import numpy as np
import pytest
import uvloop

import raylite as ray
from raylite._runtime import context
from raylite._services.worker.streams import Streams
from raylite.exceptions import (
    RayTaskError,
    StreamingGeneratorReplayInconsistentError,
    TaskCancelledError,
)
from raylite.testing import LocalCluster
from tests.cluster.watching import eventually

pytestmark = pytest.mark.usefixtures("threads")

DYNAMIC = pytest.mark.filterwarnings("ignore:num_returns='dynamic':DeprecationWarning")

gates: dict[str, threading.Event] = {}
seen: dict[str, list[int]] = {}


@pytest.fixture(scope="module")
def threads() -> Iterator[None]:
    with LocalCluster(num_cpus=4, workers="threads"):
        yield


@pytest.fixture
def gate(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of an event that tasks wait for, and of a list of what they yielded."""
    name = request.node.name
    gates[name], seen[name] = threading.Event(), []
    yield name
    gates[name].set()


@ray.remote
def count(items: int, fail_at: int = -1) -> Iterator[int]:
    for n in range(items):
        if n == fail_at:
            raise ValueError(f"at {n}")
        yield n


def _slow(gate: str, before: int, items: int) -> Iterator[int]:
    for n in range(items):
        if n == before:
            gates[gate].wait()
        seen[gate].append(n)
        yield n


slow: Any = ray.remote(_slow)


_failures: list[int] = []


def _flaky(items: int, times: int) -> Iterator[int]:
    for n in range(items):
        if n == 5 and len(_failures) < times:
            _failures.append(n)
            raise OSError("again")
        yield n


def _shrinking() -> Iterator[int]:
    yield 0
    if _failures:
        return
    yield 1
    yield 2
    _failures.append(1)
    raise OSError("again")


def streams() -> Streams:
    place = context.current()
    assert place is not None
    return place.core.submitter.streams


def kept() -> int:
    """How many objects and streams this process keeps, once the loop has done what it was asked."""
    gc.collect()
    place = context.current()
    assert place is not None

    async def look() -> int:
        place.core.handover.drain()
        return len(place.core.owner.refs.table) + len(streams().table)

    return place.core.run(look)


def values(gen: Any) -> list[Any]:
    return [ray.get(ref) for ref in gen]


def test_items_are_read_in_order_each_as_a_reference() -> None:
    gen = count.remote(1000)
    assert isinstance(gen, ray.ObjectRefGenerator)
    assert values(gen) == list(range(1000))
    with pytest.raises(StopIteration):
        next(gen)


def test_items_are_there_before_the_task_has_ended(gate: str) -> None:
    gen = slow.remote(gate, before=2, items=3)
    assert [ray.get(next(gen)), ray.get(next(gen))] == [0, 1]
    assert not gen.next_ready()
    assert not gen.is_finished()
    assert not streams().table[gen._arrivals.task].end.value
    gates[gate].set()
    assert ray.get(next(gen)) == 2
    assert ray.get(gen.completed()) is None


def test_a_generator_is_finished_when_all_is_taken_and_the_task_has_ended() -> None:
    gen = count.remote(1)
    ray.get(gen.completed())
    assert gen.next_ready()
    assert not gen.is_finished()
    next(gen)
    assert not gen.next_ready()
    assert gen.is_finished()


def test_an_empty_generator_only_ends() -> None:
    gen = count.remote(0)
    assert values(gen) == []
    assert ray.get(gen.completed()) is None


def test_an_exception_is_the_last_item() -> None:
    gen = count.remote(5, fail_at=2)
    assert [ray.get(next(gen)), ray.get(next(gen))] == [0, 1]
    failed = next(gen)
    with pytest.raises(ValueError, match="at 2") as caught:
        ray.get(failed)
    assert isinstance(caught.value, RayTaskError)
    assert gen.is_finished()
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(gen)
    assert ray.get(gen.completed()) is None


def test_an_exception_that_is_yielded_is_a_value() -> None:
    @ray.remote
    def errors() -> Iterator[Exception]:
        yield ValueError("a value")

    (error,) = values(errors.remote())
    assert isinstance(error, ValueError)


def test_an_argument_that_is_an_error_is_the_only_item_and_the_end() -> None:
    failed = next(count.remote(1, fail_at=0))
    gen = count.remote(failed)
    with pytest.raises(ValueError, match="at 0"):
        ray.get(next(gen))
    assert values(gen) == []
    with pytest.raises(ValueError, match="at 0"):
        ray.get(gen.completed())


def test_an_item_that_cannot_be_pickled_is_an_error() -> None:
    @ray.remote
    def locks() -> Iterator[Any]:
        yield 1
        yield threading.Lock()
        yield 2

    gen = locks.remote()
    assert ray.get(next(gen)) == 1
    with pytest.raises(TypeError, match="pickle"):
        ray.get(next(gen))
    assert values(gen) == []


def test_large_items_and_items_that_contain_references() -> None:
    @ray.remote
    def mixed(items: int) -> Iterator[Any]:
        for n in range(items):
            yield np.full(50_000, n)
            yield [ray.put(n)]
            yield n

    taken = values(mixed.remote(5))
    assert [int(array[0]) for array in taken[::3]] == [0, 1, 2, 3, 4]
    assert [ray.get(inner) for (inner,) in taken[1::3]] == [0, 1, 2, 3, 4]
    assert taken[2::3] == [0, 1, 2, 3, 4]


def test_items_may_be_arguments_of_other_tasks() -> None:
    @ray.remote
    def add(a: int, b: int) -> int:
        return a + b

    refs = list(count.remote(4))
    assert ray.get([add.remote(a, b) for a, b in pairwise(refs)]) == [1, 3, 5]


def test_a_task_may_read_a_generator_of_its_own() -> None:
    @ray.remote
    def total(items: int) -> int:
        return sum(ray.get(ref) for ref in count.remote(items))

    assert ray.get([total.remote(4) for _ in range(8)]) == [6] * 8


def test_get_gives_a_generator_back_and_nothing_else_takes_one() -> None:
    gen = count.remote(1)
    assert ray.get(gen) is gen
    with pytest.raises(TypeError, match="which is not an raylite"):
        ray.get([gen])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Serializing a ObjectRefGenerator is not allowed"):
        pickle.dumps(gen)
    with pytest.raises(TypeError, match="Serializing a ObjectRefGenerator is not allowed"):
        count.remote(gen)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="Serializing a ObjectRefGenerator is not allowed"):
        ray.put(gen)
    for method in (gen.send, gen.throw):
        with pytest.raises(NotImplementedError, match="is not supported"):
            method(1)
    with pytest.raises(NotImplementedError, match=r"gen\.close` is not supported"):
        gen.close()


def test_wait_takes_generators_among_references(gate: str) -> None:
    gen = slow.remote(gate, before=1, items=2)
    ref = ray.put(1)
    both = [gen, ref]
    assert ray.wait(both, num_returns=2, timeout=10) == ([gen, ref], [])
    next(gen)
    assert ray.wait(both, num_returns=2, timeout=0) == ([ref], [gen])
    gates[gate].set()
    assert ray.wait([gen]) == ([gen], [])
    next(gen)
    for _ in range(2):  # and when it has ended, it stays so
        assert ray.wait([gen]) == ([gen], [])
    with pytest.raises(TypeError, match=r"expected a list of .* got a single"):
        ray.wait(gen)


def test_next_with_a_timeout_gives_the_nil_reference(gate: str) -> None:
    gen = slow.remote(gate, before=0, items=2)
    assert gen._next_sync(0).is_nil()
    assert gen._next_sync(0.01).is_nil()
    assert asyncio.run(gen._next_async(0.01)).is_nil()
    gates[gate].set()
    assert ray.get(gen._next_sync(-1)) == 0
    assert ray.get(asyncio.run(gen._next_async(-1))) == 1
    ray.get(gen.completed())
    with pytest.raises(StopIteration):
        gen._next_sync(0)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_async_for_on_any_loop(loop: Any) -> None:
    async def read() -> list[int]:
        return [await ref async for ref in count.remote(100)]

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(read()) == list(range(100))


def test_several_loops_and_threads_share_the_items() -> None:
    gen = count.remote(2000)
    taken: list[int] = []

    async def read() -> None:
        async for ref in gen:
            taken.append(await ref)  # noqa: PERF401 - each as soon as it is there

    threads = [threading.Thread(target=asyncio.run, args=(read(),)) for _ in range(2)]
    threads.append(threading.Thread(target=lambda: taken.extend(values(gen))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(2000))


def test_cancelling_who_waits_for_an_item_loses_none(gate: str) -> None:
    gen = slow.remote(gate, before=0, items=3)

    async def read() -> list[int]:
        for _ in range(5):
            with anyio.move_on_after(0.001):
                await anext(gen)
        assert eventually(lambda: not gen._arrivals.pending.waiters)
        gates[gate].set()
        return [await ref async for ref in gen]

    assert asyncio.run(read()) == [0, 1, 2]


@pytest.mark.parametrize("limit", [1, 3])
def test_backpressure_keeps_the_producer_so_many_items_ahead(gate: str, limit: int) -> None:
    bounded = slow.options(_generator_backpressure_num_objects=limit)
    gen = bounded.remote(gate, before=-1, items=10)
    for read in range(5):
        ahead = read + limit
        assert eventually(lambda: len(seen[gate]) == ahead)  # noqa: B023 - called at once
        assert ray.get(next(gen)) == read
    assert len(seen[gate]) <= 5 + limit
    assert values(gen) == [5, 6, 7, 8, 9]


def test_a_producer_that_is_held_back_lends_its_cpu() -> None:
    bounded = count.options(_generator_backpressure_num_objects=1, num_cpus=4)
    gen = bounded.remote(3)
    total = 0
    for ref in gen:
        total += ray.get(count.options(num_returns=1, num_cpus=4).remote(1)) + ray.get(ref)
    assert total == 3


@ray.remote
def heavy(items: int) -> Iterator[bytes]:
    for n in range(items):
        yield bytes([n % 256]) * 90_000


def test_a_reader_that_keeps_up_may_read_for_ever() -> None:
    assert sum(len(ray.get(ref)) for ref in heavy.remote(1000)) > 64 * 1024 * 1024


def test_a_stream_that_nobody_reads_is_bounded_until_its_end_is_waited_for() -> None:
    gen = heavy.remote(1200)
    stream = gen._arrivals.stream
    assert eventually(lambda: stream._is_held)
    assert not stream.is_ended
    assert ray.get(gen.completed(), timeout=30) is None
    assert len(list(gen)) == 1200


def test_a_dropped_generator_frees_what_is_unread_and_its_task_runs_to_its_end(gate: str) -> None:
    before = kept()
    bounded = slow.options(_generator_backpressure_num_objects=2)
    gen = bounded.remote(gate, before=-1, items=10)
    assert ray.get(next(gen)) == 0
    del gen
    assert eventually(lambda: len(seen[gate]) == 10)
    assert eventually(lambda: kept() == before)


def test_a_generator_dropped_at_once_still_runs(gate: str) -> None:
    slow.remote(gate, before=-1, items=10)
    assert eventually(lambda: len(seen[gate]) == 10)


def test_items_are_freed_while_the_stream_goes_on(gate: str) -> None:
    gen = slow.remote(gate, before=900, items=1000)
    for _ in range(900):
        next(gen)
    before = kept()
    assert before < 50
    gates[gate].set()
    list(gen)
    del gen
    assert eventually(lambda: kept() < before)


def test_nothing_is_kept_of_streams_that_were_read() -> None:
    before = kept()
    for fail_at in (-1, 3, 0):
        gen = count.remote(10, fail_at=fail_at)
        for ref in gen:
            try:
                ray.get(ref)
            except ValueError:
                pass
        del gen, ref
    assert eventually(lambda: kept() == before)


def cancel_midway(gate: str) -> None:
    gen = slow.remote(gate, before=5, items=10)
    assert ray.get(next(gen)) == 0
    assert eventually(lambda: len(gen._arrivals.items) == 4)
    ray.cancel(gen)
    ref = next(gen)
    with pytest.raises(TaskCancelledError):
        ray.get(ref)
    assert gen.is_finished()
    gates[gate].set()
    with pytest.raises(TaskCancelledError):
        ray.get(gen.completed())
    assert seen[gate] == [0, 1, 2, 3, 4]


def test_after_a_cancel_the_next_item_is_its_error_whatever_had_arrived(gate: str) -> None:
    before = kept()
    cancel_midway(gate)
    assert eventually(lambda: kept() == before)


def test_a_generator_that_was_cancelled_before_it_started(gate: str) -> None:
    every = [slow.options(num_cpus=4).remote(gate, before=0, items=1)]
    gen = count.options(num_cpus=4).remote(3)
    ray.cancel(gen)
    for _ in range(2):
        ray.cancel(gen)
    with pytest.raises(TaskCancelledError):
        ray.get(next(gen))
    assert values(gen) == []
    gates[gate].set()
    assert values(every[0]) == [0]
    ray.cancel(every[0])
    assert ray.get(every[0].completed()) is None


def test_a_producer_that_is_held_back_can_be_cancelled(gate: str) -> None:
    endless = slow.options(_generator_backpressure_num_objects=1)
    gen = endless.remote(gate, before=-1, items=1 << 60)
    next(gen)
    ray.cancel(gen)
    with pytest.raises(TaskCancelledError):
        ray.get(gen.completed(), timeout=20)


@DYNAMIC
def test_dynamic_returns_can_be_cancelled(gate: str) -> None:
    ref = slow.options(num_returns="dynamic").remote(gate, before=2, items=3)
    assert eventually(lambda: len(seen[gate]) == 2)
    ray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        ray.get(ref)


def test_the_end_of_a_stream_is_no_error_that_nobody_has_read() -> None:
    gen = count.remote(1)
    values(gen)
    del gen
    kept()
    place = context.current()
    assert place is not None
    assert place.core.owner.errors.unread.next_due is None


def test_a_cluster_ends_under_a_producer_that_would_not() -> None:
    with LocalCluster(num_cpus=1, workers="threads"):
        bounded = count.options(_generator_backpressure_num_objects=1, num_cpus=0)
        next(bounded.remote(1 << 60))  # this one nobody reads
        gen = bounded.remote(1 << 60)
        next(gen)


def test_streams_leave_no_cycles() -> None:
    values(count.remote(3))
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for fail_at in (-1, 2):
            for ref in count.remote(5, fail_at=fail_at):
                try:
                    ray.get(ref)
                except ValueError:
                    pass
            del ref
        gc.collect()
        found = {type(each).__name__ for each in gc.garbage}
        assert not found & {"Arrivals", "Job", "Producer", "generator", "frame", "traceback"}
        assert not any(isinstance(each, Exception) for each in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


def test_several_items_in_each_yield() -> None:
    @ray.remote(_num_objects_per_yield=2)
    def pairs(items: int) -> Iterator[Any]:
        for n in range(items):
            yield (n, -n)
        yield 1

    gen = pairs.remote(3)
    assert [ray.get(next(gen)) for _ in range(6)] == [0, 0, 1, -1, 2, -2]
    with pytest.raises(ValueError, match="_num_objects_per_yield=2 must yield a tuple or list of"):
        ray.get(next(gen))
    assert values(gen) == []


@DYNAMIC
def test_dynamic_returns_are_one_value_that_can_be_passed_on() -> None:
    @ray.remote
    def total(refs: Any) -> int:
        return sum(ray.get(list(refs)))

    before = kept()
    ref = count.options(num_returns="dynamic").remote(5)
    assert ray.get(total.remote(ref)) == 10
    refs = ray.get(ref)
    assert isinstance(refs, ray.DynamicObjectRefGenerator)
    assert len(refs) == 5
    assert values(refs) == [0, 1, 2, 3, 4]
    assert len(refs) == 0
    del ref, refs
    assert eventually(lambda: kept() == before)


@DYNAMIC
def test_the_last_of_dynamic_returns_is_the_exception() -> None:
    refs = list(ray.get(count.options(num_returns="dynamic").remote(5, fail_at=2)))
    assert ray.get(refs[:2]) == [0, 1]
    with pytest.raises(ValueError, match="at 2"):
        ray.get(refs[2])


def test_an_exception_that_is_retried_delivers_nothing_twice() -> None:
    flaky = ray.remote(retry_exceptions=[OSError], max_retries=3)(_flaky)
    _failures.clear()
    assert values(flaky.remote(10, 2)) == list(range(10))
    _failures.clear()
    gen = flaky.options(max_retries=1).remote(10, 5)
    assert [ray.get(next(gen)) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(OSError, match="again"):
        ray.get(next(gen))
    assert values(gen) == []
    assert ray.get(gen.completed()) is None


def test_a_retry_that_yields_less_is_told_apart() -> None:
    _failures.clear()
    gen = ray.remote(retry_exceptions=True)(_shrinking).remote()
    assert [ray.get(next(gen)) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(StreamingGeneratorReplayInconsistentError, match="yielded less than the 3"):
        ray.get(next(gen))
    assert values(gen) == []
