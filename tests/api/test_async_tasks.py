"""`async def` tasks: many overlap in one worker, each with a context of its own."""

import asyncio
import logging
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import raylite as ray
from raylite import aio
from raylite._api import home
from raylite._types.cancellation import CancelOutcome
from raylite.exceptions import (
    RayTaskError,
    TaskCancelledError,
    TaskTimeoutError,
    WorkerCrashedError,
)
from raylite.testing import LocalCluster

PATIENCE = 30.0


@pytest.fixture(scope="module")
def one_cpu() -> Iterator[LocalCluster]:
    with LocalCluster(num_cpus=1, workers="threads") as cluster:
        yield cluster


pytestmark = pytest.mark.usefixtures("one_cpu")


class Meeting:
    """Where tasks wait until `count` of them are there; made on their loop by the first."""

    def __init__(self) -> None:
        self.barriers: dict[str, asyncio.Barrier] = {}
        self.inside = self.most = 0

    async def of(self, name: str, count: int) -> None:
        barrier = self.barriers.setdefault(name, asyncio.Barrier(count))
        self.inside += 1
        self.most = max(self.most, self.inside)
        await barrier.wait()
        self.inside -= 1


meeting = Meeting()


class Gate:
    """Lets the tasks that wait at it go on when the test says so."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.reached = threading.Event()

    async def passed(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.reached.set()
        await self.event.wait()

    def open(self) -> None:
        assert self.reached.wait(PATIENCE)
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.event.set)


gates: dict[str, Gate] = {}


@pytest.fixture
def gate(request: pytest.FixtureRequest) -> Iterator[Gate]:
    gates["gate"] = Gate()
    yield gates["gate"]
    del gates["gate"]


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=PATIENCE)


async def _meet(name: str, count: int) -> str:
    await meeting.of(name, count)
    return ray.get_runtime_context().get_worker_id()


async def _wait_at_gate(value: Any = None) -> Any:
    await gates["gate"].passed()
    return value


async def _echo(value: Any) -> Any:
    return value


def _plain(value: Any) -> Any:
    return value


def _count_up(count: int) -> Iterator[int]:
    yield from range(count)


meet = ray.remote(_meet)
wait_at_gate = ray.remote(_wait_at_gate)
echo = ray.remote(_echo)
plain = ray.remote(_plain)
count_up = ray.remote(_count_up)


# ---- overlapping ---------------------------------------------------------------------------


def test_many_overlap_in_one_worker_with_one_cpu() -> None:
    assert len(set(get([meet.remote("many", 50) for _ in range(50)]))) == 1


def test_as_many_as_max_concurrency_overlap_and_no_more() -> None:
    meeting.most = 0
    get([meet.options(max_concurrency=3).remote("three", 3) for _ in range(9)])
    assert meeting.most == 3


def test_different_functions_with_the_same_needs_overlap(gate: Gate) -> None:
    waiting = wait_at_gate.remote(1)
    assert get(echo.remote(2)) == 2
    gate.open()
    assert get(waiting) == 1


def test_a_task_that_is_not_async_waits_until_the_others_have_ended_and_they_for_it(
    gate: Gate,
) -> None:
    waiting = [wait_at_gate.remote(n) for n in range(3)]
    assert gate.reached.wait(PATIENCE)
    between = plain.remote(7)
    gate.open()
    assert get(waiting) == [0, 1, 2]
    assert get(between) == 7
    assert get([echo.remote(n) for n in range(3)]) == [0, 1, 2]


def test_they_come_to_their_end_in_any_order(gate: Gate) -> None:
    late = wait_at_gate.remote("late")
    early = [echo.remote(n) for n in range(10)]
    assert get(early) == list(range(10))
    assert ray.wait([late], timeout=0) == ([], [late])
    gate.open()
    assert get(late) == "late"


# ---- awaiting values -----------------------------------------------------------------------


async def _fib(n: int) -> int:
    if n < 2:
        return n
    return sum(await asyncio.gather(fib.remote(n - 1), fib.remote(n - 2)))


async def _add_in(way: str) -> int:
    refs = [plain.remote(n) for n in range(4)]
    match way:
        case "await":
            return sum([await ref for ref in refs])
        case "get":
            return sum(await aio.get(refs))
        case "wait":
            ready, _ = await aio.wait(refs, num_returns=4)
            return sum(await aio.get(ready))
        case "as_completed":
            return sum([await ref async for ref in aio.as_completed(refs)])
        case "map":
            return sum([await ref async for ref in plain.map(range(4), chunksize=1)])
        case "generator":
            return sum([await ref async for ref in count_up.remote(4)])
        case _:
            async with aio.TaskGroup() as group:
                started = [group.start(plain, n) for n in range(4)]
            return sum(await aio.get(started))


fib = ray.remote(_fib)
add_in = ray.remote(_add_in)


def test_a_recursion_ends_on_one_cpu() -> None:
    assert get(fib.remote(6)) == 8


@pytest.mark.parametrize(
    "way", ["await", "get", "wait", "as_completed", "map", "generator", "group"]
)
def test_a_task_lends_its_cpu_while_it_awaits_values(way: str) -> None:
    assert get([add_in.remote(way) for _ in range(3)]) == [6, 6, 6]


async def _impatient(ref: list[ray.ObjectRef[Any]]) -> str:
    try:
        async with asyncio.timeout(0.01):
            await ref[0]
    except TimeoutError:
        return "gave up"
    return "waited"


def test_a_cpu_is_taken_back_when_an_await_is_given_up(gate: Gate, one_cpu: LocalCluster) -> None:
    blocker = wait_at_gate.options(num_cpus=0).remote()
    assert gate.reached.wait(PATIENCE)
    assert get(ray.remote(_impatient).remote([blocker])) == "gave up"
    gate.open()
    get(blocker)
    assert get(plain.remote(1)) == 1


# ---- context -------------------------------------------------------------------------------


async def _describe(name: str) -> list[Any]:
    async def inner() -> list[Any]:
        await meeting.of(f"{name}-context", 1)
        here = ray.get_runtime_context()
        return [here.get_task_id(), here.get_task_name(), here.get_task_function_name()]

    before = await inner()
    await meeting.of("context", 2)
    current = asyncio.current_task()
    assert current is not None
    return [before, await asyncio.create_task(inner()), current.get_name()]


async def _names() -> AsyncIterator[str]:
    for _ in range(3):
        current = asyncio.current_task()
        assert current is not None
        yield current.get_name()
        await asyncio.sleep(0)


def test_a_generator_is_one_asyncio_task_with_the_tasks_name_from_item_to_item() -> None:
    refs = [ray.remote(_names).options(name=name).remote() for name in ("one", "two")]
    assert [[get(item) for item in ref] for ref in refs] == [["one"] * 3, ["two"] * 3]


def test_each_has_its_own_runtime_context_also_in_asyncio_tasks_that_it_begins() -> None:
    describe = ray.remote(_describe)
    refs = {name: describe.options(name=name).remote(name) for name in ("one", "two")}
    for name, ref in refs.items():
        before, after, current = get(ref)
        assert before == after == [ref.task_id().hex(), name, f"{__name__}._describe"]
        assert current == name


@pytest.mark.parametrize(
    ("returns", "result", "expected"),
    [(2, (1, 2), [1, 2]), (2, [bytes(200_000), None], [bytes(200_000), None]), (0, (), None)],
)
def test_a_task_has_several_results(returns: int, result: Any, expected: Any) -> None:
    refs = echo.options(num_returns=returns).remote(result)
    assert (get(refs) if refs else refs) == expected


def test_the_wrong_number_of_results_is_said() -> None:
    for ref in echo.options(num_returns=3).remote((1, 2)):
        with pytest.raises(ValueError, match="Task returned 2 objects, but num_returns=3"):
            get(ref)


async def _put(value: Any) -> Any:
    return {"ref": ray.put(value), "child": plain.remote(value)}


def test_references_and_large_values_go_in_and_come_out() -> None:
    large = bytes(300_000)
    assert get(echo.remote(ray.put(large))) == large
    assert get(echo.remote(plain.remote(large))) == large
    inner = get(ray.remote(_put).remote(large))
    assert get([inner["ref"], inner["child"]]) == [large, large]


# ---- errors --------------------------------------------------------------------------------


async def _raise(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


raising = ray.remote(_raise)


def test_an_exception_reaches_the_caller_with_its_traceback() -> None:
    with pytest.raises(ValueError, match="no good") as caught:
        get(raising.remote(ValueError("no good")))
    assert isinstance(caught.value, RayTaskError)
    assert "in _raise\n    raise error" in str(caught.value)
    assert "_services" not in str(caught.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError()])
def test_a_task_that_ends_as_if_cancelled_is_cancelled(error: BaseException) -> None:
    with pytest.raises(TaskCancelledError):
        get(raising.remote(error))
    assert get(echo.remote(1)) == 1


def test_a_task_that_is_none_of_exceptions_reaches_the_caller() -> None:
    with pytest.raises(RayTaskError, match="Odd"):
        get(raising.remote(Odd("Odd")))


class Odd(BaseException):
    pass


def test_an_argument_that_failed_is_the_error_of_the_task() -> None:
    with pytest.raises(ValueError, match="no good"):
        get(echo.remote(raising.remote(ValueError("no good"))))


attempts: list[int] = []


async def _fail_twice() -> int:
    attempts.append(1)
    if len(attempts) < 3:
        raise OSError("not yet")
    return len(attempts)


def test_exceptions_are_retried() -> None:
    attempts.clear()
    assert get(ray.remote(_fail_twice).options(retry_exceptions=[OSError]).remote()) == 3


async def _exit() -> None:
    sys.exit(3)


def test_sys_exit_ends_the_worker_and_others_run_again(gate: Gate) -> None:
    other = wait_at_gate.remote("again")
    assert gate.reached.wait(PATIENCE)
    gates["gate"] = second = Gate()
    with pytest.raises(WorkerCrashedError, match="exit code 3"):
        get(ray.remote(_exit).options(max_retries=0).remote())
    second.open()
    assert get(other) == "again"


# ---- cancelling ----------------------------------------------------------------------------

seen: list[str] = []


def cancel(ref: Any) -> CancelOutcome:
    """Cancel, and wait until it is known what came of it."""
    return home([ref]).cancel(ref._entry, force=False, recursive=True).result(PATIENCE)


async def _cancellable(name: str, manner: str = "") -> str:
    try:
        await gates["gate"].passed()
    except asyncio.CancelledError:
        seen.append(name)
        if manner == "swallow":
            return "stayed"
        if manner == "clean up slowly":
            await meeting.of(name, 2)
            await asyncio.sleep(0)
            seen.append(f"{name} has cleaned up")
        raise
    return name


cancellable = ray.remote(_cancellable)


def test_cancelling_interrupts_exactly_that_task(gate: Gate) -> None:
    seen.clear()
    refs = {name: cancellable.remote(name) for name in "abc"}
    get(echo.remote(0))  # which was sent after them
    assert cancel(refs["b"]) is CancelOutcome.WHILE_RUNNING
    with pytest.raises(TaskCancelledError):
        get(refs["b"])
    gate.open()
    assert get([refs["a"], refs["c"]]) == ["a", "c"]
    assert seen == ["b"]


def test_a_task_that_swallows_its_cancellation_ends_as_others_do(gate: Gate) -> None:
    ref = cancellable.remote("a", "swallow")
    assert gate.reached.wait(PATIENCE)
    assert cancel(ref) is CancelOutcome.FINISHED_FIRST
    assert get(ref) == "stayed"


def test_the_cleaning_up_of_a_task_is_not_disturbed_when_another_is_cancelled(gate: Gate) -> None:
    seen.clear()
    slow, quick = cancellable.remote("slow", "clean up slowly"), cancellable.remote("quick")
    get(echo.remote(0))
    ray.cancel(slow)
    assert cancel(quick) is CancelOutcome.WHILE_RUNNING
    assert get(meet.remote("slow", 2))  # until then it cleans up
    with pytest.raises(TaskCancelledError):
        get(slow)
    assert sorted(seen) == ["quick", "slow", "slow has cleaned up"]


def test_a_task_that_waits_for_a_slot_is_cancelled_before_it_starts(gate: Gate) -> None:
    running, queued = [wait_at_gate.options(max_concurrency=1).remote(n) for n in range(2)]
    assert gate.reached.wait(PATIENCE)
    assert cancel(queued) is CancelOutcome.BEFORE_START
    gate.open()
    assert get(running) == 0


def test_a_timeout_ends_one_of_those_that_overlap(gate: Gate) -> None:
    late = wait_at_gate.options(timeout=0.05).remote("late")
    other = wait_at_gate.remote("other")
    with pytest.raises(TaskTimeoutError):
        get(late)
    gate.open()
    assert get(other) == "other"


async def _parent() -> None:
    await wait_at_gate.remote()


def test_the_tasks_that_a_task_has_started_are_cancelled_with_it(gate: Gate) -> None:
    parent = ray.remote(_parent).remote()
    assert gate.reached.wait(PATIENCE)
    assert cancel(parent) is CancelOutcome.WHILE_RUNNING
    assert get(plain.remote(1)) == 1  # for which the child had to go


def test_hundreds_that_overlap_are_cancelled_and_the_others_are_not(gate: Gate) -> None:
    seen.clear()
    refs = [cancellable.remote(str(n)) for n in range(300)]
    get(echo.remote(0))
    for ref in refs[::2]:
        ray.cancel(ref)
    for ref in refs[::2]:
        with pytest.raises(TaskCancelledError):
            get(ref)
    gate.open()
    assert get(refs[1::2]) == [str(n) for n in range(1, 300, 2)]
    assert sorted(map(int, seen)) == list(range(0, 300, 2))


# ---- what a task leaves behind -------------------------------------------------------------

left: list[str] = []
kept: list[asyncio.Task[None]] = []


async def _leave_behind(error: Exception | None) -> None:
    async def clean_up() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            left.append("cleaned up")

    kept.append(asyncio.create_task(clean_up()))
    await asyncio.sleep(0)
    if error is not None:
        raise error


@pytest.mark.parametrize("error", [None, ValueError("no good")])
def test_asyncio_tasks_that_a_task_leaves_behind_are_cancelled_before_it_ends(
    error: Exception | None,
) -> None:
    left.clear()
    ref = ray.remote(_leave_behind).remote(error)
    if error is None:
        get(ref)
    else:
        with pytest.raises(ValueError, match="no good"):
            get(ref)
    assert left == ["cleaned up"]


def test_a_worker_ends_with_tasks_that_would_wait_for_ever(gate: Gate) -> None:
    with LocalCluster(num_cpus=1, workers="threads"):
        wait_at_gate.remote()
        assert gate.reached.wait(PATIENCE)


# ---- blocking ------------------------------------------------------------------------------


async def _block(how: str) -> Any:
    ref = plain.remote(1)
    match how:
        case "get":
            return ray.get(ref)
        case "wait":
            return ray.wait([ref])
        case "future":
            return ref.future().result()
        case "look":
            return len(ray.wait([ref], timeout=0)[0])
        case "iterate":
            return list(ray.remote(_count_up).remote(1))
        case _:
            return await asyncio.to_thread(str, ray.get(ray.put(7)))


block = ray.remote(_block)


@pytest.mark.parametrize("how", ["get", "wait", "future"])
def test_blocking_in_an_async_task_is_refused_and_says_what_to_await(how: str) -> None:
    with pytest.raises(RuntimeError, match="write `await ref`"):
        get(block.remote(how))


def test_iterating_a_stream_in_an_async_task_is_refused_and_says_how_to() -> None:
    with pytest.raises(RuntimeError, match="`async for` over a generator or a map"):
        get(block.remote("iterate"))


def test_what_does_not_wait_is_allowed_in_an_async_task() -> None:
    assert get(block.remote("look")) == 0
    assert get(block.remote("put")) == "7"


def test_blocking_a_loop_of_the_drivers_is_warned_of_once(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        ref = wait_at_gate.remote(5)
        assert gate.reached.wait(PATIENCE)
        threading.Timer(0.01, gate.open).start()
        assert get(ref) == 5
        assert get([plain.remote(6), plain.remote(7)]) == [6, 7]

    with LocalCluster(num_cpus=1, workers="threads"), caplog.at_level(logging.WARNING, "raylite"):
        asyncio.run(main())
        ref = plain.remote(1)
        assert ray.get(ref) == 1
    [record] = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert f"{__file__}:" in record.getMessage()
    assert "`await ref`" in record.getMessage()


# ---- options -------------------------------------------------------------------------------


def test_max_concurrency_of_a_function_that_is_not_async_is_refused() -> None:
    with pytest.raises(ValueError, match="'max_concurrency' is for 'async def' functions"):
        ray.remote(max_concurrency=2)(_plain)
    with pytest.raises(ValueError, match="'max_concurrency' is for 'async def' functions"):
        plain.options(max_concurrency=2)


@pytest.mark.parametrize("value", [0, -1, 2**31])
def test_max_concurrency_is_positive(value: int) -> None:
    with pytest.raises(ValueError, match="'max_concurrency' only accepts None or a positive"):
        ray.remote(max_concurrency=value)(_echo)
    with pytest.raises(ValueError, match="'max_concurrency' only accepts None or a positive"):
        echo.options(max_concurrency=value)
    with pytest.raises(TypeError, match="max_concurrency"):
        echo.options(max_concurrency="5")  # type: ignore[call-overload]


# ---- asynchronous generators ---------------------------------------------------------------

yielded: list[int] = []


async def _stream(count: int, error: Exception | None = None) -> AsyncIterator[Any]:
    try:
        for n in range(count):
            await asyncio.sleep(0)
            yielded.append(n)
            yield n if n % 2 == 0 else bytes(200_000)
        if error is not None:
            raise error
    finally:
        yielded.append(-1)


stream = ray.remote(_stream)


def test_items_of_an_asynchronous_generator_are_streamed() -> None:
    items = [get(ref) for ref in stream.remote(5)]
    assert items == [0, bytes(200_000), 2, bytes(200_000), 4]


def test_streams_overlap(gate: Gate) -> None:
    waiting = wait_at_gate.remote()
    generators = [stream.remote(3) for _ in range(10)]
    assert [get(list(each))[2] for each in generators] == [2] * 10
    gate.open()
    get(waiting)


def test_an_error_is_the_last_item_of_a_stream() -> None:
    first, last = list(stream.remote(1, ValueError("no good")))
    assert get(first) == 0
    with pytest.raises(ValueError, match="no good"):
        get(last)


def test_a_stream_stays_only_so_far_ahead_of_its_reader_and_lends_its_cpu_meanwhile() -> None:
    yielded.clear()
    generator = stream.options(_generator_backpressure_num_objects=2).remote(6)
    assert get(next(generator)) == 0
    assert get(plain.options(num_cpus=1).remote(1)) == 1  # in another worker
    assert len(yielded) <= 3
    assert len(list(generator)) == 5


def test_an_asynchronous_generator_that_is_cancelled_cleans_up(gate: Gate) -> None:
    yielded.clear()
    generator = ray.remote(_stream_and_wait).remote()
    assert get(next(generator)) == 0
    assert gate.reached.wait(PATIENCE)
    ray.cancel(generator)
    with pytest.raises(TaskCancelledError):
        get(next(generator))
    get(echo.remote(1))
    assert yielded == [-1]


async def _stream_and_wait() -> AsyncIterator[int]:
    try:
        yield 0
        await gates["gate"].passed()
    finally:
        yielded.append(-1)


def test_the_first_items_of_an_asynchronous_generator_are_several_results() -> None:
    assert get(stream.options(num_returns=3).remote(3)) == [0, bytes(200_000), 2]
    assert get(stream.options(num_returns=1).remote(1)) == 0


def test_an_asynchronous_generator_with_too_many_items_ends_early_and_its_results_are_good() -> (
    None
):
    yielded.clear()
    assert get(stream.options(num_returns=2).remote(9)) == [0, bytes(200_000)]
    assert get(stream.options(num_returns=1).remote(9)) == 0
    assert yielded == [0, 1, 2, -1, 0, 1, -1]  # one more shows that there are too many


def test_what_comes_before_the_error_of_an_asynchronous_generator_is_good() -> None:
    first, *rest = stream.options(num_returns=3).remote(1, OSError("no more"))
    assert get(first) == 0
    for ref in rest:
        with pytest.raises(OSError, match="no more"):
            get(ref)
    first, second = stream.options(num_returns=2).remote(1)
    assert get(first) == 0
    with pytest.raises(ValueError, match="Task returned 1 objects, but num_returns=2"):
        get(second)


def test_several_results_of_an_asynchronous_generator_that_is_cancelled(gate: Gate) -> None:
    yielded.clear()
    first, second = ray.remote(_stream_and_wait).options(num_returns=2).remote()
    assert gate.reached.wait(PATIENCE)
    ray.cancel(second)
    with pytest.raises(TaskCancelledError):
        get(second)
    assert get(first) == 0  # as of other generators
    assert yielded == [-1]
