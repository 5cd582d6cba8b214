"""Objects and references as a program sees them: put, get, wait, await, and when bytes are freed."""

import asyncio
import concurrent.futures
import copy
import gc
import pickle
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import uvloop

import raylite as ray
from raylite.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    ObjectStoreFullError,
    RayTaskError,
)

MEGABYTE = 1024 * 1024
STORE = 76 * MEGABYTE

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("small_cluster")]


@pytest.fixture(scope="module")
def small_cluster() -> Iterator[None]:
    """A cluster whose store is soon full, and soon says so."""
    with ray.init(
        num_cpus=4,
        object_store_memory=STORE,
        _system_config={"object_store_full_grace": 0.3},
    ):
        yield


@pytest.fixture(autouse=True)
def empty_store() -> Iterator[None]:
    """Whatever a test did, the store is empty when its references are gone: it holds one that big."""
    yield
    gc.collect()
    deadline = time.monotonic() + 5
    while True:
        try:
            ray.put(bytes(STORE - MEGABYTE))
            return
        except ObjectStoreFullError:
            if time.monotonic() > deadline:
                raise


@ray.remote
def echo(value: Any) -> Any:
    return value


@ray.remote
def when(path: Path, value: Any = None) -> Any:
    while not path.exists():
        time.sleep(0.002)
    return value


@ray.remote
def fail() -> None:
    raise ValueError("failed")


@ray.remote
def array(n: int, size: int = 100_000) -> Any:
    return np.full(size, n)


@ray.remote
def put_in_worker(value: Any) -> list[Any]:
    return [ray.put(value)]


# --- put and get ---


class Thing:
    def __init__(self, x: Any) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Thing) and self.x == other.x

    __hash__ = None  # type: ignore[assignment]


VALUES = [
    None, True, 0, -1, 2**70, 1.5, 1j, "", "text", b"", b"bytes", bytearray(b"array"),
    (), (1, (2,)), [], [1, [2]], {}, {"a": {"b": 1}}, {1, 2}, frozenset([1]),
    range(3), slice(1, 2), Thing([1]), [Thing(1), Thing(2)], ValueError,
    "x" * 200_000, b"y" * 200_000, bytearray(200_000), [b"z" * 150_000] * 2, list(range(100_000)),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}")
def test_what_is_put_comes_back_equal_here_and_in_tasks(value: Any) -> None:
    ref = ray.put(value)
    here, there = ray.get([ref, echo.remote(ref)])
    assert here == there == value
    assert type(here) is type(there) is type(value)


def test_a_put_value_is_a_copy() -> None:
    value = [1, [2]]
    ref = ray.put(value)
    value.append(3)
    got = ray.get(ref)
    assert got == [1, [2]]
    got.append(4)
    assert ray.get(ref) == [1, [2]]


def test_functions_and_local_classes_can_be_put() -> None:
    class Local:
        def three(self) -> int:
            return 3

    ref: Any = ray.put((lambda n: n + 1, Local()))
    function, local = ray.get(ref)
    assert (function(1), local.three()) == (2, 3)


@pytest.mark.parametrize("count", [100_000, 1_000_000])
@pytest.mark.parametrize("make", [ray.put, echo.remote], ids=["put", "returned"])
def test_a_large_array_is_read_only_aligned_and_not_copied(count: int, make: Any) -> None:
    ref = make(np.arange(count))
    first, second = ray.get(ref), ray.get(ref)
    np.testing.assert_array_equal(first, np.arange(count))
    assert first.ctypes.data == second.ctypes.data
    assert first.ctypes.data % 64 == 0
    assert not first.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1


def test_small_arrays_are_read_only_too() -> None:
    small = ray.get(ray.put(np.arange(10)))
    assert small.sum() == 45
    assert not small.flags.writeable


def test_arrays_of_every_kind_come_back() -> None:
    base = np.arange(120_000).reshape(300, 400)
    arrays = [
        base.T, base[::2, ::3], np.asfortranarray(base), base.astype(">f4"), base > 5, base[:0],
        np.array(["a", "bc"]), np.array([{"a": 1}, None]), np.zeros((), dtype=[("a", "i4")]),
        np.arange("2020", "2021", dtype="datetime64[D]"),
    ]  # fmt: skip
    here, there = ray.get(ray.put(arrays)), ray.get(echo.remote(arrays))
    for original, one, other in zip(arrays, here, there, strict=True):
        np.testing.assert_array_equal(one, original)
        np.testing.assert_array_equal(other, original)
        assert one.dtype == other.dtype == original.dtype


def test_several_arrays_in_one_object_share_it() -> None:
    ref = ray.put({"a": np.ones(200_000), "b": [np.zeros(200_000)], "c": "small"})
    value: Any = ray.get(ref)
    del ref
    assert value["a"].sum() == 200_000
    assert value["b"][0].sum() == 0


def test_put_refuses_a_reference() -> None:
    with pytest.raises(TypeError, match=r"Calling 'put' on an raylite\.ObjectRef is not allowed"):
        ray.put(ray.put(1))


def test_put_refuses_what_cannot_be_pickled() -> None:
    with pytest.raises(TypeError, match=r"(?s)Could not serialize the put value .*lock"):
        ray.put({"lock": threading.Lock()})


@pytest.mark.parametrize("wrong", [1, "ref", None, {}, {1}, 1.5, (), (1,)])
def test_get_refuses_what_is_not_a_reference(wrong: Any) -> None:
    with pytest.raises(ValueError, match="Invalid type of object refs"):
        ray.get(wrong)


def test_get_refuses_a_tuple_of_references() -> None:
    with pytest.raises(ValueError, match="Invalid type of object refs, <class 'tuple'>, is given"):
        ray.get((ray.put(1), ray.put(2)))  # type: ignore[call-overload]


@pytest.mark.parametrize("wrong", [2, None, "ref", [ray.ObjectRef]])
def test_get_refuses_a_list_with_one_thing_that_is_not_a_reference(wrong: Any) -> None:
    message = f"Attempting to call `get` on the value {wrong!r}, which is not an raylite.ObjectRef."
    with pytest.raises(TypeError, match=re.escape(message)):
        ray.get([ray.put(1), wrong])


def test_get_keeps_order_and_repetitions() -> None:
    a, b = ray.put("a"), echo.remote("b")
    assert ray.get([b, a, b, a, a]) == ["b", "a", "b", "a", "a"]
    assert ray.get([]) == []


@pytest.mark.parametrize("timeout", [0, 0.05, 0.0])
def test_get_gives_up_when_time_is_up(tmp_path: Path, timeout: float) -> None:
    ref = when.remote(tmp_path / "go")
    with pytest.raises(GetTimeoutError) as caught:
        ray.get([ray.put(1), ref], timeout=timeout)
    assert isinstance(caught.value, TimeoutError)
    assert str(caught.value) == "Get timed out: some object(s) not ready."
    (tmp_path / "go").touch()
    assert ray.get(ref, timeout=None) is None
    assert ray.get(ref, timeout=0) is None


def test_a_negative_timeout_of_get_waits_as_long_as_it_takes() -> None:
    assert ray.get(array.remote(1), timeout=-1)[0] == 1


# --- wait ---


def test_wait_splits_what_is_there_from_what_is_not(tmp_path: Path) -> None:
    slow, quick, bad = when.remote(tmp_path / "go"), echo.remote(1), fail.remote()
    assert ray.wait([slow, quick, bad], num_returns=2) == ([quick, bad], [slow])
    assert ray.wait([slow, quick, bad], num_returns=3, timeout=0.05) == ([quick, bad], [slow])
    assert ray.wait([slow], timeout=0) == ([], [slow])
    (tmp_path / "go").touch()
    assert ray.wait([slow]) == ([slow], [])


def test_wait_returns_no_more_than_it_was_asked_for() -> None:
    refs = [ray.put(n) for n in range(5)]
    assert ray.wait(refs) == (refs[:1], refs[1:])
    assert ray.wait(refs, num_returns=3) == (refs[:3], refs[3:])
    assert ray.wait(refs, num_returns=5, fetch_local=False) == (refs, [])


def test_wait_keeps_the_order_of_its_list(tmp_path: Path) -> None:
    first, second, third = when.remote(tmp_path / "go"), echo.remote(1), echo.remote(2)
    ray.get([second, third])
    assert ray.wait([third, first, second], num_returns=2) == ([third, second], [first])
    (tmp_path / "go").touch()
    ray.get(first)


def test_wait_for_nothing_returns_at_once() -> None:
    assert ray.wait([]) == ([], [])


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (0, "Invalid number of objects to return 0."),
        (-1, "Invalid number of objects to return -1."),
        (
            3,
            "num_returns cannot be greater than the number of ray_waitables provided to "
            "raylite.wait.",
        ),
    ],
)
def test_wait_for_an_impossible_number_is_refused(count: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ray.wait([ray.put(1), ray.put(2)], num_returns=count)


def test_wait_refuses_the_same_reference_twice() -> None:
    ref = ray.put(1)
    with pytest.raises(ValueError, match=r"^Wait requires a list of unique ray_waitables\.$"):
        ray.wait([ref, ray.put(2), ref])


@pytest.mark.parametrize("wrong", [1, (), {}, "refs", None, [1], [None]])
def test_wait_wants_a_list_of_references(wrong: Any) -> None:
    expected = (
        r"^wait\(\) expected a list of raylite\.ObjectRef or raylite\.ObjectRefGenerator, got"
    )
    with pytest.raises(TypeError, match=expected):
        ray.wait(wrong)


def test_wait_wants_a_list_and_not_one_reference() -> None:
    ref: Any = ray.put(1)
    single = f"got a single raylite.ObjectRef or raylite.ObjectRefGenerator {ref!r}"
    with pytest.raises(TypeError, match=re.escape(single)):
        ray.wait(ref)


def test_wait_refuses_a_negative_timeout() -> None:
    with pytest.raises(ValueError, match="nonnegative"):
        ray.wait([ray.put(1)], timeout=-1)


def test_a_loop_of_waits_sees_every_object_once() -> None:
    rest = [echo.remote(n) for n in range(100)]
    seen = []
    while rest:
        ready, rest = ray.wait(rest)
        seen += ray.get(ready)
    assert sorted(seen) == list(range(100))


# --- References ---


def test_a_reference_is_its_object_wherever_it_comes_from() -> None:
    ref = ray.put([1])
    other = ray.put([1])
    [back] = ray.get(echo.remote([ref]))
    clone = pickle.loads(pickle.dumps(ref))
    twins = [back, clone, copy.copy(ref), copy.deepcopy(ref), copy.deepcopy([ref])[0]]
    assert all(twin == ref for twin in twins)
    assert {ref: "found"}[back] == "found"
    assert len({ref, *twins, other}) == 2
    assert ref != other
    strangers: list[Any] = [ref.hex(), ref.binary(), None]
    assert ref not in strangers
    with pytest.raises(TypeError, match="'<' not supported"):
        sorted([ref, other])  # type: ignore[type-var]


def test_a_reference_is_found_by_its_id() -> None:
    ref = echo.remote("found")
    assert ray.ObjectRef.from_binary(ref.binary()) is ref
    assert ray.ObjectRef.from_hex(ref.hex()) is ref
    assert ref.owner_address()
    assert ref.call_site() == ""
    for stranger in (ray.ObjectRef.nil(), ray.ObjectRef.from_random()):
        assert stranger.is_nil() == (stranger == ray.ObjectRef.nil())
        with pytest.raises(ObjectLostError):
            ray.get(stranger)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (b"x", ValueError, "ID string needs to have length 28, got 1"),
        ("x", TypeError, "Unsupported type: <class 'str'>, expected bytes"),
    ],
)
def test_what_is_no_id_makes_no_reference(wrong: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        ray.ObjectRef.from_binary(wrong)
    with pytest.raises(TypeError, match=r"use raylite\.ObjectRef\.from_binary"):
        ray.ObjectRef(wrong)


def test_as_future_is_a_future_of_the_loop() -> None:
    async def read() -> Any:
        future = echo.remote(1).as_future()
        assert isinstance(future, asyncio.Future)
        return await future

    assert asyncio.run(read()) == 1


def test_a_reference_shows_its_id() -> None:
    ref = ray.put(1)
    assert repr(ref) == f"ObjectRef({ref.hex()})"
    assert bytes.fromhex(ref.hex()) == ref.binary()
    assert len(ref.binary()) == 28
    assert not ref.is_nil()
    assert ref.hex().startswith(ref.task_id().hex())
    assert ref.job_id().hex() == ray.get_runtime_context().get_job_id()


def test_an_object_holds_the_references_in_it() -> None:
    inner = ray.put(np.ones(200_000))
    outer: Any = ray.put({"inner": [inner, ray.put("small")]})
    del inner
    box = ray.get(outer)
    del outer
    large, small = ray.get(box["inner"])
    assert (large.sum(), small) == (200_000, "small")


def test_references_returned_by_a_task_stay_good() -> None:
    @ray.remote
    def make() -> Any:
        return {"put": ray.put(np.ones(200_000)), "task": array.remote(3), "small": ray.put("x")}

    box = ray.get(make.remote())
    assert ray.get(box["put"]).sum() == 200_000
    assert ray.get(box["task"])[0] == 3
    assert ray.get(box["small"]) == "x"


def test_references_in_references_in_references_stay_good() -> None:
    @ray.remote
    def wrap(box: Any, depth: int) -> Any:
        return [ray.put(box)] if depth == 0 else [wrap.remote(box, depth - 1)]

    ref = wrap.remote(np.ones(200_000), 3)
    for _ in range(4):
        [ref] = ray.get(ref)
    [ref] = [ref] if isinstance(ref, ray.ObjectRef) else ref
    assert ray.get(ref).sum() == 200_000


def test_a_reference_passed_through_two_tasks_outlives_the_drivers(tmp_path: Path) -> None:
    @ray.remote
    def last(box: list[Any], go: Path) -> float:
        while not go.exists():
            time.sleep(0.002)
        return float(ray.get(box[0]).sum())

    @ray.remote
    def first(box: list[Any], go: Path) -> list[Any]:
        return [last.remote(box, go)]

    ref = ray.put(np.ones(200_000))
    result = first.remote([ref], tmp_path / "go")
    del ref
    [pending] = ray.get(result)
    del result
    gc.collect()
    fill_and_free()
    (tmp_path / "go").touch()
    assert ray.get(pending) == 200_000


def test_a_task_may_keep_a_reference_beyond_its_end() -> None:
    @ray.remote(num_cpus=4)
    def keep(box: Any) -> Any:
        kept = vars(ray).setdefault("kept_for_a_test", [])
        if box is not None:
            kept[:] = box
            return None
        ref = kept.pop()
        return float(ray.get(ref).sum())

    ref = ray.put(np.ones(200_000))
    ray.get(keep.remote([ref]))
    del ref
    gc.collect()
    fill_and_free()
    assert ray.get(keep.remote(None)) == 200_000


def test_a_reference_pickled_by_hand_pins_its_object() -> None:
    data = cloudpickle.dumps(ray.put("pinned"))
    gc.collect()
    assert ray.get(pickle.loads(data)) == "pinned"


# --- await ---


def test_a_reference_can_be_awaited_again_and_again() -> None:
    async def twice() -> Any:
        ref = echo.remote(5)
        return await ref, await ref, await ray.put(6)

    assert asyncio.run(twice()) == (5, 5, 6)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_many_references_are_awaited_together(run: Any) -> None:
    async def gather() -> list[Any]:
        return await asyncio.gather(*[echo.remote(n) for n in range(300)])

    assert run(gather()) == list(range(300))


def test_awaiting_raises_what_the_task_raised() -> None:
    async def awaits() -> None:
        await fail.remote()

    with pytest.raises(ValueError, match="failed") as caught:
        asyncio.run(awaits())
    assert isinstance(caught.value, RayTaskError)


def test_a_large_array_can_be_awaited() -> None:
    async def awaits() -> Any:
        return await array.remote(2)

    assert asyncio.run(awaits()).sum() == 200_000


def test_one_reference_is_awaited_on_several_loops_at_once(tmp_path: Path) -> None:
    ref = when.remote(tmp_path / "go", "all of you")
    everybody = threading.Barrier(5)

    async def awaits() -> Any:
        everybody.wait()
        return await ref

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = [pool.submit(run, awaits()) for run in [asyncio.run, uvloop.run] * 2]
        everybody.wait()
        (tmp_path / "go").touch()
        assert [each.result() for each in results] == ["all of you"] * 4


def test_a_timeout_around_an_await_leaves_the_task_alone(tmp_path: Path) -> None:
    async def impatient() -> Any:
        ref = when.remote(tmp_path / "go", "in the end")
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ref, 0.02)
        (tmp_path / "go").touch()
        return await asyncio.wait_for(ref, 20)

    assert asyncio.run(impatient()) == "in the end"


def test_references_are_awaited_as_they_complete(tmp_path: Path) -> None:
    async def race() -> Any:
        slow, quick = when.remote(tmp_path / "go", "slow"), echo.remote("quick")
        results = []
        for each in asyncio.as_completed([asyncio.ensure_future(_of(r)) for r in (slow, quick)]):
            results.append(await each)
            (tmp_path / "go").touch()
        return results

    assert asyncio.run(race()) == ["quick", "slow"]


async def _of(ref: Any) -> Any:
    return await ref


def test_a_loop_may_end_while_a_reference_is_awaited_on_it(tmp_path: Path) -> None:
    ref = when.remote(tmp_path / "go", "nobody there")

    async def begins() -> None:
        task = asyncio.ensure_future(_of(ref))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(begins())
    (tmp_path / "go").touch()
    assert ray.get(ref) == "nobody there"


def test_tasks_may_await_too() -> None:
    @ray.remote
    def total() -> int:
        async def gather() -> int:
            return sum(await asyncio.gather(*[echo.remote(n) for n in range(10)]))

        return asyncio.run(gather())

    assert ray.get(total.remote()) == 45


# --- Futures ---


def test_a_reference_gives_a_future() -> None:
    future = array.remote(2).future()
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(timeout=20).sum() == 200_000
    assert future.done()
    assert future.exception() is None
    assert ray.put(3).future().result() == 3


def test_the_future_of_a_failed_task_has_its_exception() -> None:
    future = fail.remote().future()
    assert isinstance(future.exception(timeout=20), ValueError)
    with pytest.raises(ValueError, match="failed"):
        future.result()


def test_futures_are_waited_for_like_others() -> None:
    futures = [echo.remote(n).future() for n in range(20)]
    done, pending = concurrent.futures.wait(futures, timeout=20)
    assert not pending
    assert sorted(each.result() for each in done) == list(range(20))
    assert sum(f.result() for f in concurrent.futures.as_completed(futures)) == 190


def test_a_future_of_an_unfinished_task_times_out_and_can_be_cancelled(tmp_path: Path) -> None:
    ref = when.remote(tmp_path / "go", 1)
    future, other = ref.future(), ref.future()
    with pytest.raises(TimeoutError):
        future.result(timeout=0.02)
    assert other.cancel()
    (tmp_path / "go").touch()
    assert future.result(timeout=20) == ray.get(ref) == 1
    with pytest.raises(concurrent.futures.CancelledError):
        other.result()


def test_a_callback_may_submit_tasks() -> None:
    results: list[Any] = []
    done = threading.Event()

    def chain(value: Any) -> None:
        results.append(value)
        if value == 3:
            done.set()
        else:
            echo.remote(value + 1)._on_completed(chain)

    echo.remote(1)._on_completed(chain)
    assert done.wait(20)
    assert results == [1, 2, 3]


def test_many_threads_use_the_api_at_once() -> None:
    def work(n: int) -> Any:
        refs = [echo.remote(n), ray.put(n), array.remote(n, 20_000)]
        ray.wait(refs, num_returns=3)
        small, put, large = ray.get(refs)
        return small == put == large[0] == n

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(80)))


# --- When bytes are freed ---


def fill_and_free() -> None:
    """Write all over what is free of the store."""
    refs = []
    for _ in range(4):
        refs += [ray.put(np.full(5 * MEGABYTE, 7, dtype=np.uint8))]
    del refs


def test_objects_are_freed_when_their_last_reference_goes() -> None:
    for n in range(40):
        ref = ray.put(np.full(20 * MEGABYTE, n, dtype=np.uint8))
        assert ray.get(ref)[-1] == n
        del ref


def test_results_are_freed_when_their_last_reference_goes() -> None:
    for n in range(12):
        assert ray.get(array.remote(n, 2 * MEGABYTE))[-1] == n


def test_results_nobody_asked_for_are_freed() -> None:
    for n in range(12):
        array.remote(n, 2 * MEGABYTE)
    assert ray.get(echo.remote(1)) == 1


def test_large_arguments_are_freed_after_their_task() -> None:
    for n in range(12):
        assert (
            ray.get(ray.remote(len).remote(np.full(16 * MEGABYTE, n, dtype=np.uint8)))
            == 16 * MEGABYTE
        )


def test_objects_put_by_tasks_are_freed_with_their_references() -> None:
    for n in range(12):
        [ref] = ray.get(put_in_worker.remote(np.full(14 * MEGABYTE, n, dtype=np.uint8)))
        assert ray.get(ref)[-1] == n
        del ref


def test_a_view_outlives_the_references() -> None:
    view = ray.get(ray.put(np.arange(MEGABYTE)))[10:]
    returned = ray.get(array.remote(3, MEGABYTE))
    gc.collect()
    for _ in range(4):
        fill_and_free()
    np.testing.assert_array_equal(view, np.arange(MEGABYTE)[10:])
    assert (returned == 3).all()


def test_a_view_in_a_task_outlives_the_task() -> None:
    @ray.remote(num_cpus=4)
    def keep(value: Any) -> Any:
        kept = vars(ray).setdefault("kept_for_a_test", [])
        if value is not None:
            kept[:] = [value]
            return None
        kept_value = kept.pop()
        return int(kept_value.sum())

    ref = ray.put(np.ones(MEGABYTE, dtype=np.int64))
    ray.get(keep.remote(ref))
    del ref
    gc.collect()
    for _ in range(4):
        fill_and_free()
    assert ray.get(keep.remote(None)) == MEGABYTE


# --- A full store ---


def test_a_full_store_waits_for_room_and_then_says_so() -> None:
    refs = [ray.put(bytes(24 * MEGABYTE)) for _ in range(2)]
    with pytest.raises(ObjectStoreFullError, match=r"0\.3 s") as caught:
        ray.put(bytes(48 * MEGABYTE))
    assert (
        str(caught.value).splitlines()[-1].startswith("The local object store is full of objects")
    )
    assert [len(each) for each in ray.get(refs)] == [24 * MEGABYTE] * 2


def test_a_put_goes_on_when_there_is_room_again() -> None:
    refs = [ray.put(bytes(48 * MEGABYTE))]
    timer = threading.Timer(0.05, refs.clear)
    timer.start()
    assert len(ray.get(ray.put(bytes(48 * MEGABYTE)))) == 48 * MEGABYTE
    timer.join()


def test_an_object_larger_than_the_store_is_refused_at_once() -> None:
    with pytest.raises(ObjectStoreFullError, match="can never fit") as caught:
        ray.put(bytes(STORE + MEGABYTE))
    assert "full" not in str(caught.value)
    with pytest.raises(ObjectStoreFullError, match="can never fit"):
        echo.remote(bytes(STORE + MEGABYTE))


def test_a_result_larger_than_the_store_is_the_tasks_error() -> None:
    @ray.remote
    def huge() -> bytes:
        return bytes(STORE + MEGABYTE)

    with pytest.raises(ObjectStoreFullError) as caught:
        ray.get(huge.remote())
    assert isinstance(caught.value, RayTaskError)
    assert ray.get(echo.remote(1)) == 1
