"""Bad input: each kind is one clear error, and the node lives on."""

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import raylite as ray
from raylite.exceptions import (
    ObjectStoreFullError,
    RaySystemError,
    RayTaskError,
    TaskUnschedulableError,
    WorkerCrashedError,
)

MEGABYTE = 1024 * 1024
STORE = 76 * MEGABYTE

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("small_cluster")]


@pytest.fixture(scope="module")
def small_cluster() -> Iterator[None]:
    with ray.init(
        num_cpus=2,
        object_store_memory=STORE,
        _system_config={"object_store_full_grace": 0.3, "infeasible_grace_s": 0},
        log_to_driver=False,
    ):
        yield


@pytest.fixture(autouse=True)
def the_node_lives_on() -> Iterator[None]:
    """After each outrage, the node has all its CPUs, its store and working workers."""
    yield
    gc.collect()
    assert ray.get([echo.remote(n) for n in range(20)], timeout=20) == list(range(20))
    assert ray.get(echo.remote(np.ones(3 * MEGABYTE)), timeout=20).sum() == 3 * MEGABYTE
    assert ray.get(echo.options(num_cpus=2).remote("all"), timeout=20) == "all"
    assert [node["Alive"] for node in ray.nodes()] == [True]


@ray.remote
def echo(value: Any) -> Any:
    return value


# --- Options ---


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_cpus": "two"}, TypeError),
        ({"num_cpus": -1}, ValueError),
        ({"num_cpus": 0.00001}, ValueError),
        ({"max_retries": 1.5}, TypeError),
        ({"max_retries": -2}, ValueError),
        ({"num_returns": -1}, ValueError),
        ({"num_returns": "many"}, ValueError),
        ({"resources": {"CPU": 1}}, ValueError),
        ({"resources": {"a": "b"}}, (TypeError, ValueError)),
        ({"resources": ["a"]}, TypeError),
        ({"retry_exceptions": [1]}, (TypeError, ValueError)),
        ({"name": 5}, TypeError),
        ({"no_such_option": 1}, ValueError),
    ],
    ids=str,
)
def test_an_impossible_option_is_refused_where_it_is_given(
    options: dict[str, Any], error: Any
) -> None:
    with pytest.raises(error, match=next(iter(options))):
        ray.remote(**options)(len)
    with pytest.raises(error, match=next(iter(options))):
        echo.options(**options)


def test_one_and_a_half_gpus_are_refused_at_the_call() -> None:
    with pytest.raises(ValueError, match=r"(?i)gpu"):
        echo.options(num_gpus=1.5).remote(1)


def test_max_calls_is_refused_in_options() -> None:
    with pytest.raises(ValueError, match="max_calls"):
        echo.options(max_calls=1)  # type: ignore[call-overload]


def test_a_functions_name_that_cannot_travel_is_refused_at_the_call() -> None:
    def f(n: int) -> None: ...

    f.__name__ = "\udcff"
    with pytest.raises(ValueError, match=r"^The name of the function is '\\udcff', which cannot"):
        ray.remote(f).remote(1)
    with pytest.raises(ValueError, match=r"^The name of the function is '\\udcff', which cannot"):
        next(ray.remote(f).map([1]))


def test_a_keyword_of_a_call_that_cannot_travel_is_refused_at_the_call() -> None:
    @ray.remote
    def keywords(**given: object) -> list[str]:
        return list(given)

    assert ray.get(keywords.remote(**{"\udcff": 1})) == ["\udcff"]  # it goes with the pickle
    with pytest.raises(ValueError, match=r"^The keyword of a call is '\\udcff', which cannot be"):
        keywords.remote(**{"\udcff": ray.put(1)})


@pytest.mark.parametrize("timeout", ["1", [1], 1j])
def test_a_timeout_that_is_no_number_is_refused_by_its_name(timeout: Any) -> None:
    with pytest.raises(TypeError, match=r"^timeout must be a number of seconds or None, not "):
        ray.get(ray.put(1), timeout=timeout)
    with pytest.raises(TypeError, match=r"^timeout must be a number of seconds or None, not "):
        ray.wait([ray.put(1)], timeout=timeout)


# --- Things that cannot be pickled ---


class Grenade:
    """Fails where it is told to."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __reduce__(self) -> Any:
        if self.where == "pickling":
            raise RuntimeError("cannot be pickled today")
        return explode, (self.where,)


def explode(where: str) -> None:
    raise RuntimeError(f"cannot be unpickled in {where}")


def nested() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


UNPICKLABLE = {
    "lock": threading.Lock,
    "generator": lambda: (n for n in range(3)),
    "frame": lambda: sys._getframe(),
    "deep": nested,
}


@pytest.mark.parametrize("kind", UNPICKLABLE)
def test_an_unpicklable_argument_is_a_type_error_at_the_call(kind: str) -> None:
    with pytest.raises(TypeError, match="Could not serialize the argument"):
        echo.remote(UNPICKLABLE[kind]())
    with pytest.raises(TypeError, match="Could not serialize the put value"):
        ray.put([UNPICKLABLE[kind]()])


@pytest.mark.parametrize("kind", sorted(UNPICKLABLE.keys() - {"generator"}))  # it is its first item
def test_an_unpicklable_result_is_a_type_error_of_the_task(kind: str) -> None:
    make = UNPICKLABLE[kind]

    @ray.remote
    def produce() -> Any:
        return make()

    with pytest.raises(TypeError) as caught:
        ray.get(produce.remote())
    assert isinstance(caught.value, RayTaskError)


def test_an_unpicklable_one_among_several_results_leaves_those_before_it() -> None:
    @ray.remote(num_returns=4)
    def produce() -> Any:
        return [ray.put(1)], bytes(300_000), threading.Lock(), 4

    outer, large, *rest = produce.remote()
    assert ray.get(ray.get(outer)) == [1]
    assert ray.get(large) == bytes(300_000)
    for ref in rest:
        with pytest.raises(TypeError, match="lock"):
            ray.get(ref)


def test_a_value_whose_pickling_fails_tells_how() -> None:
    with pytest.raises(RuntimeError, match="cannot be pickled today"):
        echo.remote(Grenade("pickling"))
    with pytest.raises(RuntimeError, match="cannot be pickled today"):
        ray.put(Grenade("pickling"))


@pytest.mark.parametrize("size", [0, 300_000])
@pytest.mark.parametrize("stored", [False, True])
def test_a_task_whose_argument_cannot_be_unpickled_does_not_run(size: int, stored: bool) -> None:
    armed = [Grenade("a task"), bytes(size)]
    with pytest.raises(RaySystemError) as caught:
        ray.get(echo.remote(ray.put(armed) if stored else armed))
    assert RayTaskError in type(caught.value).__mro__
    text = str(caught.value)
    assert "At least one of the input arguments for this task could not be computed:" in text
    assert "RaySystemError: System error: cannot be unpickled in a task\ntraceback: Trace" in text


@pytest.mark.parametrize("size", [0, 300_000])
def test_a_value_that_cannot_be_unpickled_is_a_system_error_of_who_reads_it(size: int) -> None:
    @ray.remote
    def produce() -> Any:
        return Grenade("the driver"), bytes(size)

    async def wait(ref: Any) -> None:
        await ref

    reads: list[Callable[[Any], object]] = [
        ray.get,
        lambda ref: ray.get([ref], timeout=10),
        lambda ref: ref.future().result(),
        lambda ref: asyncio.run(wait(ref)),
    ]
    for ref in produce.remote(), ray.put((Grenade("the driver"), bytes(size))):
        for read in reads:
            with pytest.raises(RaySystemError) as caught:
                read(ref)
            assert type(caught.value) is RaySystemError
            assert isinstance(caught.value.__cause__, RuntimeError)
            text = "System error: cannot be unpickled in the driver\ntraceback: Traceback (most"
            assert str(caught.value).startswith(text)


def test_a_function_that_cannot_be_unpickled_is_an_error_of_the_task() -> None:
    grenade = Grenade("a worker")

    @ray.remote
    def armed() -> Any:
        return grenade

    with pytest.raises(RayTaskError, match="cannot be unpickled in a worker"):
        ray.get(armed.remote())


def test_what_no_node_can_run_fails_after_the_grace_and_says_what_is_missing() -> None:
    ref = echo.options(num_gpus=4).remote(1)
    missing = (
        r"no node has 4 GPUs \(largest: 0\); lower num_gpus or add a node; none came within 1 s"
    )
    with pytest.raises(TaskUnschedulableError, match=missing):
        ray.get(ref, timeout=20)


# --- Functions that leave ---


@pytest.mark.parametrize("code", [0, 1, 255])
def test_a_task_that_exits_the_process_has_crashed(code: int) -> None:
    with pytest.raises(WorkerCrashedError, match=f"exit code {code}"):
        ray.get(ray.remote(max_retries=0)(os._exit).remote(code))


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGTERM", "SIGABRT"])
def test_a_task_that_is_killed_has_crashed(name: str) -> None:
    @ray.remote(max_retries=0)
    def die() -> None:
        os.kill(os.getpid(), getattr(signal, name))
        threading.Event().wait(10)

    with pytest.raises(WorkerCrashedError, match=name):
        ray.get(die.remote())


def test_a_forked_child_that_runs_on_does_no_harm() -> None:
    @ray.remote(max_retries=0)
    def fork() -> int:
        child = os.fork()
        if child == 0:
            os._exit(0)
        return os.waitpid(child, 0)[1]

    assert ray.get(fork.remote(), timeout=20) == 0


def test_a_forked_child_that_returns_from_the_task_does_not_answer_for_it() -> None:
    @ray.remote(max_retries=0)
    def fork() -> str:
        child = os.fork()
        if child:
            os.waitpid(child, 0)
        return "child" if child == 0 else "parent"

    assert ray.get(fork.remote(), timeout=20) == "parent"


# --- Functions that break their process ---


def test_a_task_that_closes_all_descriptors_has_crashed_or_returns() -> None:
    @ray.remote(max_retries=0)
    def close_all() -> str:
        os.closerange(0, 4096)
        return "closed"

    with pytest.raises(WorkerCrashedError):
        ray.get(close_all.remote(), timeout=20)


def test_a_task_that_takes_all_descriptors_leaves_the_node_alone() -> None:
    @ray.remote(max_retries=0)
    def hoard() -> str | None:
        taken = []
        try:
            while True:
                taken.append(socket.socket())
        except OSError as error:
            return error.strerror

    assert ray.get(hoard.remote(), timeout=30) == "Too many open files"


def test_a_task_that_changes_directory_and_signals_leaves_the_node_alone() -> None:
    @ray.remote
    def meddle() -> str:
        os.chdir("/")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stdout = sys.stderr = None
        return "meddled"

    assert ray.get(meddle.remote(), timeout=20) == "meddled"


def test_a_task_without_end_in_its_recursion_is_a_recursion_error() -> None:
    @ray.remote
    def endless(n: int) -> int:
        def down(n: int) -> int:
            return down(n + 1)

        return down(n)

    with pytest.raises(RecursionError) as caught:
        ray.get(endless.remote(0))
    assert isinstance(caught.value, RayTaskError)


def test_a_task_without_end_to_its_memory_is_a_memory_error() -> None:
    @ray.remote
    def greedy() -> Any:
        return bytearray(1 << 60)

    with pytest.raises(MemoryError):
        ray.get(greedy.remote())


class Strange(BaseException):
    """Not an Exception."""


@pytest.mark.parametrize("kind", [Strange, GeneratorExit, BaseException])
def test_a_base_exception_is_the_tasks_error_and_keeps_the_worker(kind: Any) -> None:
    @ray.remote
    def process() -> int:
        return os.getpid()

    @ray.remote(max_retries=0, num_cpus=2)
    def raises() -> None:
        raise kind("strange")

    with pytest.raises(RayTaskError, match="strange") as caught:
        ray.get(raises.remote())
    assert isinstance(caught.value.cause, BaseException)
    assert caught.value.cause.__class__.__name__ == kind.__name__


def test_an_exception_whose_text_cannot_be_made_is_an_error_still() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    @ray.remote
    def fail() -> None:
        raise Mute

    with pytest.raises(RayTaskError, match="Mute"):
        ray.get(fail.remote())


def test_an_exception_with_a_huge_message_is_an_error_still() -> None:
    @ray.remote
    def fail() -> None:
        raise ValueError("x" * 5_000_000)

    with pytest.raises(ValueError, match="xxx"):
        ray.get(fail.remote())


# --- Too much ---


def test_a_result_larger_than_the_store_is_a_clear_error() -> None:
    @ray.remote
    def huge() -> Any:
        return np.empty(2 << 30, dtype=np.uint8)  # never touched, so it costs nothing

    with pytest.raises(ObjectStoreFullError, match=r"GB|GiB") as caught:
        ray.get(huge.remote())
    assert isinstance(caught.value, RayTaskError)


def test_an_argument_larger_than_the_store_is_a_clear_error_at_the_call() -> None:
    with pytest.raises(ObjectStoreFullError):
        echo.remote(np.empty(2 << 30, dtype=np.uint8))


def test_results_that_fill_the_store_are_a_clear_error_and_others_are_kept() -> None:
    @ray.remote
    def large() -> Any:
        return np.ones(20 * MEGABYTE, dtype=np.uint8)

    refs = [large.remote() for _ in range(5)]
    ready, _ = ray.wait(refs, num_returns=5, timeout=30)
    assert len(ready) == 5
    outcomes = []
    for ref in refs:
        try:
            outcomes.append(int(ray.get(ref).sum()))
        except ObjectStoreFullError:
            outcomes.append(0)
    assert sorted(outcomes) == [0, 0, 20 * MEGABYTE, 20 * MEGABYTE, 20 * MEGABYTE]


def test_a_task_with_very_many_arguments_and_returns_works() -> None:
    @ray.remote(num_returns=2000)
    def spread(*args: int) -> Any:
        return args

    assert ray.get(spread.remote(*range(2000))) == list(range(2000))
