"""`raylite.util.Executor`: the contract of `concurrent.futures`, and what the cluster adds."""

import asyncio
import concurrent.futures
import functools
import gc
import itertools
import operator
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

import raylite as ray
from raylite._runtime import context
from raylite.exceptions import RayTaskError
from raylite.testing import LocalCluster
from raylite.util import Executor
from tests.api.drivers import drive_well, eventually

pytestmark = pytest.mark.usefixtures("threads")

SOON = 20


@pytest.fixture(scope="module")
def threads() -> Iterator[LocalCluster]:
    with LocalCluster(num_cpus=2, workers="threads") as cluster:
        yield cluster


@pytest.fixture
def executor() -> Iterator[Executor]:
    with Executor(max_workers=2) as executor:
        yield executor


GATE = threading.Event()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    GATE.clear()
    yield GATE
    GATE.set()


def pass_gate(value: Any = None) -> Any:
    assert GATE.wait(SOON)
    return value


def divide(a: int, b: int) -> float:
    return a / b


# --- The contract ---


def test_a_future_has_what_the_function_returns(executor: Executor) -> None:
    assert executor.submit(divide, 6, 3).result(SOON) == 2
    assert executor.submit(divide, b=2, a=8).result(SOON) == 4
    assert executor.submit(lambda self, fn: self + fn, self=1, fn=2).result(SOON) == 3


def test_a_future_raises_what_the_function_raised_from_where_it_was(executor: Executor) -> None:
    future = executor.submit(divide, 1, 0)
    with pytest.raises(ZeroDivisionError, match="division by zero") as caught:
        future.result(SOON)
    assert type(caught.value) is ZeroDivisionError
    assert isinstance(caught.value.__cause__, RayTaskError)
    assert "return a / b" in str(caught.value.__cause__)
    assert future.exception() is caught.value


@pytest.mark.parametrize(
    "fn",
    [
        lambda n: n + 1,
        functools.partial(operator.add, 1),
        (1).__add__,
        operator.itemgetter(2),
        int,
    ],
    ids=["lambda", "partial", "method", "callable", "class"],
)
def test_anything_that_can_be_called_can_be_submitted(
    executor: Executor, fn: Callable[..., Any]
) -> None:
    argument = [0, 0, 3] if isinstance(fn, operator.itemgetter) else 2
    assert executor.submit(fn, argument).result(SOON) == (2 if fn is int else 3)


def _told_name(*_: Any) -> Any:
    return ray.get_runtime_context().get_task_name()


class Told:
    def __call__(self, *args: Any) -> Any:
        return _told_name()

    def method(self) -> Any:
        return _told_name()


def test_a_call_goes_by_the_name_of_what_is_called(executor: Executor) -> None:
    def local() -> Any:
        return _told_name()

    names: dict[str, Callable[[], Any]] = {
        "_told_name": _told_name,
        "<lambda>": lambda: _told_name(),
        "local": functools.partial(functools.partial(local)),
        "method": Told().method,
        "Told": Told(),
    }
    called = {name: executor.submit(fn).result(SOON) for name, fn in names.items()}
    assert called == {name: name for name in names}
    assert list(executor.map(Told(), [1, 2], chunksize=2)) == ["Told", "Told"]
    with Executor(name="given") as named:
        assert named.submit(Told()).result(SOON) == "given"
        assert named.submit(_told_name).result(SOON) == "given"


def test_a_remote_function_keeps_its_own_options(executor: Executor) -> None:
    named = ray.remote(num_cpus=0)(divide)
    assert executor.submit(named, 4, 2).result(SOON) == 2


def test_the_state_of_a_closure_is_that_of_the_moment(executor: Executor) -> None:
    base = 1

    def add(n: int) -> int:
        return base + n

    assert executor.submit(add, 1).result(SOON) == 2
    base = 10
    assert executor.submit(add, 1).result(SOON) == 11


class StrictError(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} cannot be set")


def raise_strict() -> None:
    raise StrictError("strict")


class Exits:
    """Unpickling it wants the process to end."""

    def __reduce__(self) -> Any:
        return _exit, ()


def _exit() -> None:
    raise SystemExit(3)


class ExitsEarly:
    def __reduce__(self) -> Any:
        raise SystemExit(3)


def test_an_error_that_lets_no_attribute_be_set_is_that_of_its_future_only(
    executor: Executor,
) -> None:
    with pytest.raises(StrictError) as caught:
        executor.submit(raise_strict).result(SOON)
    assert isinstance(caught.value.__cause__, RayTaskError)
    assert executor.submit(divide, 4, 2).result(SOON) == 2


@pytest.mark.parametrize(("fn", "args"), [(Exits, ()), (divide, (ExitsEarly(), 1))])
def test_pickling_that_exits_is_the_error_of_its_future_only(
    executor: Executor, fn: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    with pytest.raises(SystemExit):
        executor.submit(fn, *args).result(SOON)
    assert executor.submit(divide, 4, 2).result(SOON) == 2


def test_a_callback_that_exits_ends_nothing_else(
    executor: Executor, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    future = executor.submit(pass_gate, 1)
    future.add_done_callback(lambda future: _exit())
    gate.set()
    assert future.result(SOON) == 1
    assert executor.submit(divide, 4, 2).result(SOON) == 2
    assert "a callback of a future tried to end the executor's thread" in caplog.text


def count() -> Iterator[int]:
    yield 1
    yield 2


@pytest.mark.parametrize("fn", [count, lambda: count(), functools.partial(count)])
def test_a_generator_is_no_result(executor: Executor, fn: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match="does not have one result: a generator cannot be pickled"):
        executor.submit(fn).result(SOON)


def test_map_gives_results_in_order(executor: Executor) -> None:
    assert list(executor.map(divide, [2, 9], [1, 3], timeout=SOON)) == [2, 3]
    assert list(executor.map(pow, range(10), itertools.repeat(2))) == [n**2 for n in range(10)]
    assert list(executor.map(str, range(10), chunksize=3)) == [str(n) for n in range(10)]
    assert list(executor.map(str, [], chunksize=3)) == []
    with pytest.raises(ValueError, match="chunksize must be >= 1"):
        executor.map(str, [1], chunksize=0)


def test_an_error_in_a_map_comes_where_it_belongs(executor: Executor) -> None:
    results = executor.map(divide, [1, 1, 4], [1, 0, 2])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_map_that_waits_too_long_raises(executor: Executor, gate: threading.Event) -> None:
    results = executor.map(pass_gate, [1], timeout=0.01)
    with pytest.raises(TimeoutError):
        next(results)


def test_results_can_be_waited_for_with_the_standard_functions(
    executor: Executor, gate: threading.Event
) -> None:
    slow, quick = executor.submit(pass_gate, 1), executor.submit(divide, 1, 1)
    wait = concurrent.futures.wait
    assert wait([slow, quick], SOON, concurrent.futures.FIRST_COMPLETED) == ({quick}, {slow})
    gate.set()
    assert set(concurrent.futures.as_completed([slow, quick], SOON)) == {slow, quick}


def test_calls_that_were_not_sent_can_be_cancelled_and_others_cannot(
    executor: Executor, gate: threading.Event
) -> None:
    running = [executor.submit(pass_gate, n) for n in range(2)]  # `max_workers` of them
    pending = executor.submit(pass_gate, 2)
    assert eventually(lambda: all(future.running() for future in running))
    assert not running[0].cancel()
    assert pending.cancel()
    with pytest.raises(CancelledError):
        pending.result(SOON)
    assert not pending.running()
    gate.set()
    assert [future.result(SOON) for future in running] == [0, 1]
    assert not running[0].cancel()


def test_callbacks_run_where_they_may_wait(executor: Executor) -> None:
    called: Future[Any] = Future()

    def done(future: Future[Any]) -> None:
        called.set_result((future.result(), ray.get(ray.put(1)), threading.current_thread()))

    executor.submit(divide, 4, 2).add_done_callback(done)
    two, one, thread = called.result(SOON)
    assert (two, one) == (2, 1)
    assert thread.name == "raylite-executor"


def test_what_cannot_be_pickled_is_an_error_of_its_future_only(executor: Executor) -> None:
    with pytest.raises(TypeError, match="pickle"):
        executor.submit(id, threading.Lock()).result(SOON)
    with pytest.raises(TypeError):
        executor.submit(threading.Lock).result(SOON)
    assert executor.submit(divide, 1, 1).result(SOON) == 1


def test_after_shutdown_nothing_is_taken_and_what_was_taken_is_finished() -> None:
    executor = Executor(max_workers=1)
    futures = [executor.submit(divide, n, 1) for n in range(20)]
    executor.shutdown()
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures] == list(range(20))
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(divide, 1, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(divide, [1], [1])
    executor.shutdown()
    Executor().shutdown()  # that had nothing to do


def test_shutdown_does_not_wait_if_it_is_told_so(gate: threading.Event) -> None:
    executor = Executor(max_workers=1)
    futures = [executor.submit(pass_gate, n) for n in range(3)]
    executor.shutdown(wait=False)
    assert not futures[0].done()
    gate.set()
    assert [future.result(SOON) for future in futures] == [0, 1, 2]


def test_shutdown_cancels_what_was_not_sent_if_it_is_told_so(gate: threading.Event) -> None:
    executor = Executor(max_workers=1)
    futures = [executor.submit(pass_gate, n) for n in range(3)]
    assert eventually(futures[0].running)
    executor.shutdown(wait=False, cancel_futures=True)
    assert [future.cancelled() for future in futures] == [False, True, True]
    done, _ = concurrent.futures.wait(futures[1:], timeout=SOON)
    assert len(done) == 2
    gate.set()
    executor.shutdown()
    assert futures[0].result() == 0


def test_a_callback_may_shut_its_executor_down() -> None:
    executor = Executor()
    future = executor.submit(divide, 1, 1)
    future.add_done_callback(lambda _: executor.shutdown())
    assert future.result(SOON) == 1
    executor.shutdown()


def test_an_executor_that_is_let_go_of_ends_its_thread_when_all_is_done() -> None:
    executor = Executor()
    future = executor.submit(divide, 1, 1)
    gone = weakref.ref(executor)
    del executor
    gc.collect()
    assert gone() is None
    assert future.result(SOON) == 1  # and no thread is left: see tests/conftest.py


@pytest.mark.parametrize("wrong", [0, -1])
def test_impossible_arguments_are_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        Executor(max_workers=wrong)
    with pytest.raises(ValueError, match="num_returns"):
        Executor(num_returns=2)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="num_cpu"):
        Executor(num_cpu=1)  # type: ignore[call-arg]


# --- What the cluster adds ---


def test_a_loop_can_run_functions_in_it(executor: Executor) -> None:
    async def main() -> Any:
        loop = asyncio.get_running_loop()
        results = await asyncio.gather(
            *(loop.run_in_executor(executor, divide, n, 1) for n in range(50))
        )
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(executor, divide, 1, 0)
        return results

    assert asyncio.run(main()) == list(range(50))


def test_references_become_values(executor: Executor) -> None:
    assert executor.submit(divide, ray.put(6), 2).result(SOON) == 3


async def respond(request: str) -> str:
    await asyncio.sleep(0)
    return request.upper()


def test_functions_that_await_give_what_they_return_wherever_they_are_defined(
    executor: Executor,
) -> None:
    async def local(request: str) -> str:
        return await respond(request)

    for each in (respond, local, functools.partial(respond), ray.remote(respond)):
        assert executor.submit(each, "a").result(SOON) == "A"


def test_a_function_of_a_module_is_sent_once_and_others_leave_nothing_behind() -> None:
    place = context.current()
    assert place is not None
    with Executor() as executor:
        before = len(place.core.submitter.peers.definitions)
        for n in range(20):
            assert executor.submit(divide, n, 1).result(SOON) == n
            assert executor.submit(lambda each: each, n).result(SOON) == n
        assert len(place.core.submitter.peers.definitions) - before <= 2


def test_no_more_calls_are_with_the_cluster_than_it_can_soon_run(gate: threading.Event) -> None:
    with Executor() as executor:
        futures = [executor.submit(pass_gate, n) for n in range(10)]
        cancelled = [future.cancel() for future in reversed(futures)][:6]
        assert cancelled == [True] * 6  # two CPUs: four of them
        gate.set()


@pytest.mark.process
def test_at_the_end_of_a_program_calls_are_waited_for_and_a_session_that_ends_fails_them() -> None:
    said = drive_well(
        """
        import time
        from raylite.util import Executor

        def slow(n):
            time.sleep(0.2)
            return n

        ray.init(num_cpus=1)
        ending = Executor(max_workers=1)
        futures = [ending.submit(time.sleep, 600), ending.submit(slow, 1)]
        while not futures[0].running():
            time.sleep(0.01)
        ray.shutdown()
        for future in futures:
            print(type(future.exception(20)).__name__)
        ending.shutdown()
        ray.init(num_cpus=1)
        Executor().submit(slow, 7).add_done_callback(lambda future: print(future.result()))
        """
    )
    assert said.split()[-1] == "7"
    assert len(said.split()) == 3


def test_a_function_is_sent_once_for_all_executors() -> None:
    place = context.current()
    assert place is not None

    def call() -> None:
        with Executor(max_workers=1, name="one") as one, Executor(num_cpus=0.5) as other:
            for each in (one, other):
                assert each.submit(divide, 4, 2).result(SOON) == 2
                assert each.submit(lambda: 3).result(SOON) == 3

    call()
    before = len(place.core.submitter.peers.definitions)
    call()
    assert len(place.core.submitter.peers.definitions) == before


def test_a_number_of_workers_that_is_none_is_refused() -> None:
    for wrong in (1.5, "2"):
        with pytest.raises(TypeError, match="max_workers must be a whole number"):
            Executor(wrong)  # type: ignore[arg-type]
