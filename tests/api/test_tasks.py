"""Tasks as a program sees them: what goes in, what comes out, and what goes wrong."""

import asyncio
import logging
import math
import operator
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raylite as ray
from raylite.exceptions import (
    GetTimeoutError,
    RayError,
    RayTaskError,
    TaskCancelledError,
    UnserializableException,
    WorkerCrashedError,
)
from tests.api.drivers import drive_well
from tests.programs import ROOT

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("cluster")]


@ray.remote
def echo(value: Any) -> Any:
    return value


@ray.remote
def add(a: Any, b: Any) -> Any:
    return a + b


@ray.remote
def describe(a: int, b: Any = 2, *rest: Any, c: Any = 3, **named: Any) -> list[Any]:
    return [a, b, rest, c, named]


@ray.remote
def divide(a: float, b: float) -> float:
    return a / b


@ray.remote
def late() -> int:
    return DEFINED_LATER


DEFINED_LATER = 7


@ray.remote
def count_up(items: int, fail_at: int = -1) -> Any:
    for n in range(items):
        if n == fail_at:
            raise ValueError(f"at {n}")
        yield n


def outcomes(refs: list[Any]) -> tuple[list[Any], list[str]]:
    """The values of the references that have one, and the texts of the others' errors."""
    good, bad = [], []
    for ref in refs:
        try:
            good.append(ray.get(ref))
        except RayTaskError as error:
            bad.append(str(error))
    return good, bad


def note(path: Path) -> int:
    """Leave a mark in a file; return how many there are."""
    with path.open("a") as marks:
        marks.write("x")
    return path.stat().st_size


# --- Arguments ---


def test_a_task_returns_what_its_function_returns() -> None:
    assert ray.get(add.remote(1, 2)) == 3


def test_arguments_arrive_by_place_and_by_name_and_by_default() -> None:
    refs = [
        describe.remote(1),
        describe.remote(1, 5, 6, 7, c=8, d=9),
        describe.remote(a=1, c=4),
        describe.remote(*[1, 2], x=1),
    ]
    assert ray.get(refs) == [
        [1, 2, (), 3, {}],
        [1, 5, (6, 7), 8, {"d": 9}],
        [1, 2, (), 4, {}],
        [1, 2, (), 3, {"x": 1}],
    ]


def test_a_runtime_environment_that_cannot_be_had_is_refused_where_it_is_written() -> None:
    with pytest.raises(ValueError, match=r"'pip'\] is not supported yet: 'env_vars' is the field"):
        echo.options(runtime_env={"pip": ["x"]})
    assert ray.get(echo.options(runtime_env={}).remote(1)) == 1
    assert ray.get(echo.options(runtime_env=None).remote(1)) == 1


def test_keywords_arrive_in_the_order_they_were_given_in() -> None:
    large = np.zeros(100_000)

    def columns(**named: Any) -> list[str]:
        return [name for name, value in named.items() if value is not None]

    names = ray.remote(columns)
    assert ray.get(names.remote(a=ray.put(1), b=2, c=ray.put(3))) == ["a", "b", "c"]
    assert ray.get(names.remote(a=echo.remote(1), b=large, c=3)) == ["a", "b", "c"]
    assert ray.get(names.remote(b=large, a=2, d=large, c=echo.remote(4))) == ["b", "a", "d", "c"]


def test_keywords_named_like_raylites_own_pass_through() -> None:
    names = {"self": 1, "args": 2, "kwargs": 3, "task_id": 4, "place": 5, "name": 6, "core": 7}
    assert ray.get(describe.remote(0, **names)) == [0, 2, (), 3, names]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((1,), {}), ((1, 2, 3), {}), ((1, 2), {"c": 3}), ((1,), {"a": 1})],
)
def test_arguments_that_do_not_fit_are_refused_at_the_call(args: Any, kwargs: Any) -> None:
    with pytest.raises(TypeError, match="argument"):
        add.remote(*args, **kwargs)


def test_a_reference_as_an_argument_arrives_as_its_value() -> None:
    assert ray.get(add.remote(ray.put(1), b=echo.remote(2))) == 3


def test_a_reference_inside_an_argument_arrives_as_a_reference() -> None:
    @ray.remote
    def open_box(box: dict[str, Any]) -> Any:
        assert isinstance(box["ref"], ray.ObjectRef)
        return ray.get(box["ref"])

    assert ray.get(open_box.remote({"ref": echo.remote("inside")})) == "inside"


def test_the_same_reference_twice_is_the_same_object_twice() -> None:
    @ray.remote
    def same(a: Any, b: Any, refs: list[Any], *, c: Any) -> Any:
        return a == b == c and refs[0] is refs[1] and ray.get(refs[0]) == a

    ref = echo.remote([1, 2])
    assert ray.get(same.remote(ref, ref, [ref, ref], c=ref))


def test_a_task_starts_when_the_last_of_its_arguments_is_there(tmp_path: Path) -> None:
    @ray.remote
    def when(path: Path) -> bool:
        while not path.exists():
            time.sleep(0.005)
        return True

    total = add.remote(when.remote(tmp_path / "go"), echo.remote(1))
    with pytest.raises(GetTimeoutError):
        ray.get(total, timeout=0.05)
    (tmp_path / "go").touch()
    assert ray.get(total) == 2


@pytest.mark.parametrize("size", [100, 50_000, 150_000, 3_000_000])
def test_arguments_and_results_of_any_size_come_back_equal(size: int) -> None:
    values: list[Any] = [random.randbytes(size), np.arange(size // 8), "x" * size]
    for value, result in zip(values, ray.get([echo.remote(each) for each in values]), strict=True):
        np.testing.assert_array_equal(result, value)


def test_a_large_argument_and_a_small_one_and_a_reference_keep_their_places() -> None:
    large = bytes(300_000)
    result = ray.get(describe.remote(1, large, ray.put(2), 4, c=large, d=ray.put(5)))
    assert result == [1, large, (2, 4), large, {"d": 5}]


def test_many_middle_sized_arguments_together_beyond_the_inline_limit_arrive() -> None:
    parts = [bytes([n]) * 30_000 for n in range(10)]
    assert ray.get(describe.remote(1, 2, *parts)) == [1, 2, tuple(parts), 3, {}]


def test_changing_an_argument_after_the_call_changes_nothing() -> None:
    value = [1, 2]
    array = np.zeros(100_000)
    refs = [echo.remote(value), echo.remote(array)]
    value.append(3)
    array[:] = 1
    small, large = ray.get(refs)
    assert small == [1, 2]
    assert not large.any()


# --- Results ---


def test_several_returns_are_several_references() -> None:
    @ray.remote(num_returns=3)
    def three() -> Any:
        return 1, "two", bytes(200_000)

    refs = three.remote()
    assert len(refs) == 3
    assert ray.get(refs) == [1, "two", bytes(200_000)]
    assert ray.get(add.remote(refs[0], refs[0])) == 2


def test_no_returns_are_no_references(tmp_path: Path) -> None:
    @ray.remote(num_returns=0)
    def effect(path: Path) -> None:
        path.touch()

    assert effect.remote(tmp_path / "a") is None
    while not (tmp_path / "a").exists():
        time.sleep(0.005)


def test_one_return_may_be_a_tuple() -> None:
    assert ray.get(echo.options(num_returns=1).remote((1, 2))) == (1, 2)


@pytest.mark.parametrize("returned", [(), (1,), (1, 2, 3)])
def test_the_wrong_number_of_returns_is_a_value_error_at_every_reference(returned: Any) -> None:
    for ref in echo.options(num_returns=2).remote(returned):
        with pytest.raises(ValueError, match="num_returns") as caught:
            ray.get(ref)
        assert isinstance(caught.value, RayTaskError)


@pytest.mark.parametrize("returned", [1, None, object()])
def test_several_returns_want_something_with_a_length(returned: Any) -> None:
    for ref in echo.options(num_returns=2).remote(returned):
        with pytest.raises(TypeError) as caught:
            ray.get(ref)
        header, text = str(caught.value).splitlines()
        assert re.fullmatch(r"raylite::echo\(\) \(pid=\d+, ip=127\.0\.0\.1\)", header)
        assert text == f"TypeError: object of type '{type(returned).__name__}' has no len()"


@pytest.mark.parametrize(
    ("items", "text"),
    [
        (2, "ValueError: Task returned 2 objects, but num_returns=3."),
        (0, "ValueError: Task returned 0 objects, but num_returns=3."),
    ],
)
def test_a_generator_that_ends_early_leaves_what_it_yielded(items: int, text: str) -> None:
    good, bad = outcomes(count_up.options(num_returns=3).remote(items))
    assert good == list(range(items))
    assert [error.splitlines()[-1] for error in bad] == [text] * (3 - items)


def test_a_generator_that_fails_leaves_what_it_yielded() -> None:
    good, bad = outcomes(count_up.options(num_returns=3).remote(5, fail_at=1))
    assert good == [0]
    assert [error.splitlines()[-1] for error in bad] == ["ValueError: at 1"] * 2


def test_a_generator_runs_to_its_end_when_it_has_yielded_all_its_returns(tmp_path: Path) -> None:
    @ray.remote(num_returns=2)
    def last_words() -> Any:
        yield 1
        yield 2
        (tmp_path / "end").touch()
        raise ValueError("too late to matter")

    assert ray.get(last_words.remote()) == [1, 2]
    assert (tmp_path / "end").exists()


def test_what_a_generator_yields_beyond_its_returns_is_left() -> None:
    assert ray.get(count_up.options(num_returns=3).remote(10**12)) == [0, 1, 2]
    assert ray.get(count_up.options(num_returns=1).remote(5)) == 0


def test_a_generator_that_is_retried_begins_anew(tmp_path: Path) -> None:
    @ray.remote(num_returns=2, max_retries=1, retry_exceptions=True)
    def second_time() -> Any:
        yield [ray.put(1)], bytes(300_000)
        if note(tmp_path / "attempts") == 1:
            raise ValueError("once")
        yield "good"

    (inner, large), good = ray.get(second_time.remote())
    assert (ray.get(inner), large, good) == ([1], bytes(300_000), "good")


def test_when_a_task_fails_all_its_references_raise() -> None:
    for ref in divide.options(num_returns=3).remote(1, 0):
        with pytest.raises(ZeroDivisionError):
            ray.get(ref)


def test_builtin_functions_and_lambdas_are_tasks_too() -> None:
    assert ray.get(ray.remote(lambda n: n * 2).remote(4)) == 8
    assert ray.get(ray.remote(math.sqrt).remote(9.0)) == 3.0
    assert ray.get(ray.remote(operator.add).remote(1, 2)) == 3


def test_a_thousand_tasks_keep_their_results_apart() -> None:
    assert ray.get([add.remote(n, n) for n in range(1000)]) == [2 * n for n in range(1000)]


# --- Definitions ---


def test_a_function_keeps_its_name_its_text_and_its_signature() -> None:
    @ray.remote
    def documented(a: int) -> int:
        """What it says."""
        return a

    assert documented.__name__ == "documented"
    assert documented.__doc__ == "What it says."
    assert documented._function(3) == 3


def test_a_remote_function_cannot_be_called_directly() -> None:
    name = f"{__name__}.echo"
    message = (
        "Remote functions cannot be called directly. "
        f"Instead of running '{name}()', try '{name}.remote()'."
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        echo(1)  # type: ignore[operator]


def test_a_class_is_refused_with_a_clear_word() -> None:
    class Actor: ...

    with pytest.raises(NotImplementedError, match="class Actor: actors are not supported yet"):
        ray.remote(Actor)
    with pytest.raises(NotImplementedError, match="actors are not supported yet"):
        ray.remote(num_cpus=1)(Actor)


@pytest.mark.parametrize("thing", [1, "f", None, object()])
def test_only_functions_and_classes_can_be_decorated(thing: Any) -> None:
    with pytest.raises((TypeError, AssertionError), match=r"@raylite\.remote"):
        ray.remote(thing)


def test_empty_parentheses_are_refused() -> None:
    with pytest.raises(AssertionError, match=r"@raylite\.remote"):
        ray.remote()


def test_a_global_defined_after_the_decorator_is_seen() -> None:
    assert ray.get(late.remote()) == 7


def test_a_function_defined_again_from_the_same_source_is_another_function() -> None:
    def make(n: int) -> Any:
        @ray.remote
        def f() -> int:
            return n

        return f

    assert ray.get([make(n).remote() for n in range(5)]) == [0, 1, 2, 3, 4]


def test_a_function_may_capture_references() -> None:
    def make() -> Any:
        large, small = ray.put(np.ones(50_000)), ray.put(2)

        @ray.remote
        def total() -> float:
            return float(ray.get(large).sum()) * ray.get(small)

        return total

    total = make()
    assert [ray.get(total.remote()) for _ in range(2)] == [100_000] * 2


def test_a_function_of_an_imported_module_runs_in_a_worker() -> None:
    assert ray.get(ray.remote(note).remote(Path(os.devnull))) == 0
    assert ray.get(ray.remote(drive_well.__globals__["eventually"]).remote(bool, 0)) is False


def test_functions_and_classes_of_main_run_in_a_worker() -> None:
    out = drive_well("""
    SCALE = 10
    class Point:
        def __init__(self, x): self.x = x
        def __eq__(self, other): return self.x == other.x
    def scaled(x): return Point(x * SCALE)
    @ray.remote
    def make(x): return scaled(x)
    ray.init(num_cpus=1)
    assert ray.get(make.remote(2)) == Point(20)
    assert ray.get(make.remote(ray.put(3))).x == 30
    print("good")
    """)
    assert out == "good\n"


def test_a_closure_of_a_hundred_megabytes_is_too_large() -> None:
    ballast = bytearray(101 * 1024 * 1024)

    @ray.remote
    def heavy() -> int:
        return len(ballast)

    with pytest.raises(ValueError, match=r"The remote function .*heavy is too large"):
        heavy.remote()


def test_a_closure_of_more_than_ten_megabytes_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ballast = bytearray(11 * 1024 * 1024)

    @ray.remote
    def heavy() -> int:
        return len(ballast)

    with caplog.at_level(logging.WARNING, "raylite"):
        assert ray.get(heavy.remote()) == len(ballast)
    assert "heavy is very large (11 MiB)" in caplog.text


def test_a_function_that_captures_what_cannot_be_pickled_is_refused_at_the_call() -> None:
    lock = threading.Lock()

    @ray.remote
    def locked() -> bool:
        return lock.locked()

    with pytest.raises(TypeError, match=r"(?s)Could not serialize the function .*locked.*lock"):
        locked.remote()


# --- Options ---


def test_options_hold_for_what_they_return_and_not_for_the_function() -> None:
    two = echo.options(num_returns=2)
    assert ray.get(two.remote((1, 2))) == [1, 2]
    assert ray.get(echo.remote((1, 2))) == (1, 2)
    assert ray.get(two.options(num_returns=3).remote((1, 2, 3))) == [1, 2, 3]


def test_the_older_spelling_of_options_works() -> None:
    assert ray.get(add._remote(args=[1, 2])) == 3
    assert ray.get(add._remote([1], {"b": 2}, num_cpus=2)) == 3
    assert ray.get(echo._remote(args=[(1, 2)], num_returns=2)) == [1, 2]
    assert echo._remote(args=[()], num_returns=0) is None


def test_a_task_may_take_no_cpu_or_a_part_of_one() -> None:
    refs = [echo.options(num_cpus=cpus).remote(cpus) for cpus in (0, 0.25, 0.5, 1, 4)]
    assert ray.get(refs) == [0, 0.25, 0.5, 1, 4]


def test_a_task_that_takes_all_cpus_runs_alone(tmp_path: Path) -> None:
    @ray.remote(num_cpus=4)
    def alone(path: Path) -> bool:
        path.touch(exist_ok=False)
        time.sleep(0.02)
        path.unlink()
        return True

    assert all(ray.get([alone.remote(tmp_path / "alone") for _ in range(5)]))


# --- Tasks in tasks ---


def test_tasks_start_tasks() -> None:
    @ray.remote
    def outer(n: int) -> int:
        return sum(ray.get([add.remote(i, 1) for i in range(n)]))

    assert ray.get([outer.remote(10) for _ in range(8)]) == [55] * 8


def test_a_task_waits_and_puts_like_a_driver() -> None:
    @ray.remote
    def busy() -> Any:
        refs = [echo.remote(n) for n in range(3)]
        ready, rest = ray.wait(refs, num_returns=3)
        return ray.get(ray.put([ray.get(ready), len(rest)]))

    assert ray.get(busy.remote()) == [[0, 1, 2], 0]


def test_a_function_calls_itself_deeper_than_there_are_cpus() -> None:
    @ray.remote
    def depth(n: int) -> int:
        return 0 if n == 0 else 1 + ray.get(depth.remote(n - 1))

    assert ray.get(depth.remote(8)) == 8


def test_recursion_ends_on_a_single_cpu() -> None:
    out = drive_well("""
    ray.init(num_cpus=1)
    @ray.remote
    def fib(n):
        return n if n < 2 else sum(ray.get([fib.remote(n - 1), fib.remote(n - 2)]))
    @ray.remote
    def a(n): return ray.get(b.remote(n)) + 1
    @ray.remote
    def b(n): return ray.get(c.remote(n)) + 1
    @ray.remote
    def c(n): return n
    print(ray.get(fib.remote(6)), ray.get([a.remote(n) for n in range(5)]))
    """)
    assert out == "8 [2, 3, 4, 5, 6]\n"


def test_a_task_sees_the_program_of_its_driver() -> None:
    @ray.remote
    def place() -> tuple[str, list[str]]:
        return os.getcwd(), sys.path

    directory, path = ray.get(place.remote())
    assert directory == os.getcwd()
    assert set(sys.path) <= set(path)


# --- Where the code runs ---


def test_ids_nest_from_job_to_task_to_object() -> None:
    @ray.remote
    def where() -> dict[str, Any]:
        here = ray.get_runtime_context()
        return {
            "job": here.get_job_id(),
            "node": here.get_node_id(),
            "worker": here.get_worker_id(),
            "task": here.get_task_id(),
            "put": ray.put(1).hex(),
        }

    ref = where.remote()
    told, here = ray.get(ref), ray.get_runtime_context()
    assert told["job"] == here.get_job_id() == ref.job_id().hex()
    assert told["node"] == here.get_node_id() == ray.nodes()[0]["NodeID"]
    assert told["task"] == ref.task_id().hex() == ref.hex()[:48]
    assert told["task"].endswith(told["job"])
    assert told["worker"] != here.get_worker_id()
    assert [len(told[kind]) for kind in ("job", "node", "worker", "task", "put")] == [
        8,
        56,
        56,
        48,
        56,
    ]


def test_the_driver_runs_no_task() -> None:
    here = ray.get_runtime_context()
    assert here.get_task_id() is None
    assert here.get_task_name() is None
    assert here.get_task_function_name() is None
    assert here.get_actor_id() is None


@ray.remote
def names() -> tuple[str | None, str | None]:
    here = ray.get_runtime_context()
    return here.get_task_name(), here.get_task_function_name()


def test_a_task_knows_its_name_and_its_functions() -> None:
    assert ray.get(names.remote()) == ("names", f"{__name__}.names")
    assert ray.get(names.options(name="special").remote()) == ("special", f"{__name__}.names")


def test_a_function_made_in_another_goes_by_its_own_name() -> None:
    @ray.remote
    def inner(*, fails: bool) -> tuple[Any, ...]:
        here = ray.get_runtime_context()
        if fails:
            raise ValueError
        title = Path("/proc/self/cmdline").read_bytes().strip(b"\0")
        return title, here.get_task_name(), here.get_task_function_name()

    known = ray.get(inner.remote(fails=False))
    assert known == (b"raylite::inner", "inner", f"{__name__}.inner")
    with pytest.raises(ValueError, match=r"^raylite::inner\(\) \(pid="):
        ray.get(inner.remote(fails=True))


# --- Errors ---


class NotFoundError(Exception):
    """An error with a history."""

    def __init__(self, key: str, code: int) -> None:
        super().__init__(key, code)
        self.key = key
        self.code = code

    def advice(self) -> str:
        return f"look for {self.key}"


@ray.remote
def not_found() -> None:
    raise NotFoundError("key", 404)


def test_a_tasks_error_is_its_own_class_and_a_ray_task_error_at_once() -> None:
    with pytest.raises(NotFoundError) as caught:
        ray.get(not_found.remote())
    assert isinstance(caught.value, RayTaskError)
    error: Any = caught.value
    assert (error.key, error.code, error.advice()) == ("key", 404, "look for key")
    assert repr(error).startswith("RayTaskError(NotFoundError)")
    assert type(error.cause) is NotFoundError


class StrictError(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} cannot be set")


def test_a_class_of_errors_that_lets_no_attribute_be_set_does_no_harm() -> None:
    @ray.remote(max_retries=0)
    def plain() -> None:
        raise StrictError

    @ray.remote(max_retries=0)
    async def soon() -> None:
        raise StrictError

    @ray.remote(max_retries=0)
    def items() -> Iterator[int]:
        yield 1
        raise StrictError

    refs = [plain.remote(), soon.remote(), [*items.remote()][-1]]
    for error in ray.get(refs, return_exceptions=True, timeout=20):
        assert isinstance(error, StrictError), error


def test_an_errors_text_is_a_traceback_without_frames_of_raylite() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        ray.get(divide.remote(1, 0))
    text = str(caught.value)
    first, *_, last = text.splitlines()
    assert first.startswith("raylite::divide() (pid=")
    assert "ip=" in first
    assert last == "ZeroDivisionError: division by zero"
    assert f'"{__file__}"' in text
    assert "runner.py" not in text
    assert "execute.py" not in text


def test_an_error_through_two_tasks_tells_both_stories() -> None:
    @ray.remote
    def outer() -> Any:
        return ray.get(divide.remote(1, 0))

    with pytest.raises(ZeroDivisionError) as caught:
        ray.get(outer.remote())
    text = str(caught.value)
    assert isinstance(caught.value, RayTaskError)
    assert text.startswith("raylite::")
    assert "outer() (pid=" in text.splitlines()[0]
    assert "raylite.exceptions.RayTaskError(ZeroDivisionError): raylite::divide() (pid=" in text
    assert "_services" not in text
    assert "_api.py" not in text


def test_a_task_whose_argument_failed_does_not_run_and_says_so(tmp_path: Path) -> None:
    @ray.remote
    def never(value: Any) -> None:
        note(tmp_path / "ran")

    with pytest.raises(ZeroDivisionError) as caught:
        ray.get(never.remote(never.remote(divide.remote(1, 0))))
    lines = [
        re.sub(r"\(pid=\d+, ip=\S+\)", "(...)", line) for line in str(caught.value).splitlines()
    ]
    assert isinstance(caught.value, RayTaskError)
    assert lines[:6:2] + lines[-1:] == [
        "raylite::never() (not run)",
        "raylite.exceptions.RayTaskError: raylite::never() (not run)",
        "raylite.exceptions.RayTaskError: raylite::divide() (...)",
        "ZeroDivisionError: division by zero",
    ]
    reason = "  At least one of the input arguments for this task could not be computed:"
    assert lines[1:4:2] == [reason] * 2
    assert not (tmp_path / "ran").exists()


def test_an_exception_group_stays_one() -> None:
    @ray.remote
    def many() -> None:
        raise ExceptionGroup("several", [ValueError("a"), KeyError("b")])

    handled = []
    try:
        ray.get(many.remote())
    except* ValueError as group:
        handled.append(group.exceptions[0].args)
    except* KeyError as group:
        handled.append(group.exceptions[0].args)
    with pytest.raises(ExceptionGroup) as caught:
        ray.get(many.remote())
    assert handled == [("a",), ("b",)]
    assert isinstance(caught.value, RayTaskError)
    assert [type(each) for each in caught.value.exceptions] == [ValueError, KeyError]


def test_except_star_catches_ray_task_errors() -> None:
    handled = []
    try:
        ray.get(divide.remote(1, 0))
    except* RayTaskError as group:
        handled = list(group.exceptions)
    assert len(handled) == 1


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


def test_an_exception_that_cannot_be_pickled_is_told_as_text() -> None:
    @ray.remote
    def fail() -> None:
        raise Unpicklable

    with pytest.raises(RayTaskError, match="holds a lock") as caught:
        ray.get(fail.remote())
    assert type(caught.value.cause) is RayError
    assert "isn't serializable" in str(caught.value.cause)


def no_constructor() -> None:
    raise ValueError("will not come back")


class OneWay(Exception):
    def __reduce__(self) -> Any:
        return no_constructor, ()


def test_an_exception_that_cannot_be_unpickled_is_told_as_text() -> None:
    @ray.remote
    def fail() -> None:
        raise OneWay

    with pytest.raises(UnserializableException, match="Failed to unpickle serialized exception"):
        ray.get(fail.remote())


class Final(Exception):
    def __init_subclass__(cls, **kwargs: Any) -> None:
        raise TypeError("no heirs")


def test_an_exception_that_cannot_be_subclassed_is_the_cause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @ray.remote
    def fail() -> None:
        raise Final("last of its kind")

    with caplog.at_level(logging.WARNING), pytest.raises(RayTaskError) as caught:
        ray.get(fail.remote())
    assert type(caught.value.cause) is Final
    assert "can't be subclassed" in caplog.text


def test_an_exception_returned_is_a_value() -> None:
    value = ray.get(echo.remote(ValueError("not raised")))
    assert type(value) is ValueError


def test_reading_an_error_again_raises_a_fresh_one() -> None:
    ref = divide.remote(1, 0)
    caught = []
    for _ in range(2):
        with pytest.raises(ZeroDivisionError) as each:
            ray.get(ref)
        caught.append(each.value)
    assert caught[0] is not caught[1]
    assert str(caught[0]) == str(caught[1])


def test_get_raises_at_once_when_one_of_several_has_failed(tmp_path: Path) -> None:
    @ray.remote
    def sleeper() -> None:
        while not (tmp_path / "stop").exists():
            time.sleep(0.01)

    slow = sleeper.remote()
    with pytest.raises(ZeroDivisionError):
        ray.get([slow, divide.remote(1, 0), slow], timeout=20)
    (tmp_path / "stop").touch()
    assert ray.get(slow) is None


def test_a_base_exception_is_an_error_like_another_and_the_worker_lives_on() -> None:
    class Odd(BaseException): ...

    @ray.remote(max_retries=0)
    def odd() -> None:
        raise Odd("strange")

    with pytest.raises(RayTaskError, match="strange") as caught:
        ray.get(odd.remote())
    assert type(caught.value.cause).__name__ == "Odd"
    assert ray.get(echo.remote(1)) == 1


def test_a_cancelled_error_of_the_tasks_own_is_an_error_like_any_other() -> None:
    @ray.remote
    def cancelled() -> None:
        raise asyncio.CancelledError("mine")

    # Ray: it is a CancelledError as well, and cancels whoever awaits it.
    with pytest.raises(RayTaskError) as caught:
        ray.get(cancelled.remote())
    assert type(caught.value) is RayTaskError
    assert type(caught.value.cause) is asyncio.CancelledError
    assert str(caught.value).endswith("\nasyncio.exceptions.CancelledError: mine")


def test_a_keyboard_interrupt_in_a_task_reads_as_cancelled() -> None:
    @ray.remote(max_retries=0)
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(TaskCancelledError) as caught:
        ray.get(interrupt.remote())
    assert isinstance(caught.value, RayTaskError)


def test_a_result_that_cannot_be_pickled_is_an_error_of_the_task() -> None:
    @ray.remote
    def lock() -> Any:
        return threading.Lock()

    with pytest.raises(TypeError, match="lock") as caught:
        ray.get(lock.remote())
    assert isinstance(caught.value, RayTaskError)


def test_an_argument_that_cannot_be_pickled_is_refused_at_the_call() -> None:
    with pytest.raises(TypeError) as caught:
        echo.remote([1, {"key": threading.Lock()}])
    text = str(caught.value)
    assert text.startswith("Could not serialize the argument ")
    assert f"for a task or actor {__name__}.echo" in text
    assert "cannot pickle '_thread.lock' object" in text


# --- Crashes and retries ---


def test_a_crashed_task_runs_again_as_often_as_max_retries_says(tmp_path: Path) -> None:
    @ray.remote(max_retries=2)
    def crash() -> None:
        note(tmp_path / "attempts")
        os._exit(1)

    with pytest.raises(WorkerCrashedError, match="exit code 1"):
        ray.get(crash.remote())
    assert (tmp_path / "attempts").stat().st_size == 3


def test_an_element_of_a_map_that_ends_its_worker_fails_alone(tmp_path: Path) -> None:
    @ray.remote(max_retries=2)
    def crash_at_three(n: int) -> int:
        if n == 3:
            note(tmp_path / "attempts")
            os._exit(1)
        if n == 4:
            raise KeyError(n)
        return n

    refs = list(crash_at_three.map(range(8), chunksize=8))
    with pytest.raises(WorkerCrashedError):
        ray.get(refs[3])
    with pytest.raises(KeyError) as caught:
        ray.get(refs[4])
    assert isinstance(caught.value, RayTaskError)
    assert caught.value.function_name == "crash_at_three"
    outcomes = ray.get(refs, return_exceptions=True)
    assert [outcomes[n] for n in (0, 1, 2, 5, 6, 7)] == [0, 1, 2, 5, 6, 7]
    assert (tmp_path / "attempts").stat().st_size == 3  # no more than any other task


def test_a_crashed_task_is_not_retried_without_retries(tmp_path: Path) -> None:
    @ray.remote(max_retries=0)
    def crash() -> None:
        note(tmp_path / "attempts")
        os.kill(os.getpid(), 9)

    with pytest.raises(WorkerCrashedError, match=r"(?i)sigkill|signal 9"):
        ray.get(crash.remote())
    assert (tmp_path / "attempts").stat().st_size == 1


def test_the_environment_sets_the_default_of_max_retries_for_nested_tasks_too(
    tmp_path: Path,
) -> None:
    script = f"""
    def crash(path):
        with open(path, "a") as file: file.write("x")
        os._exit(1)
    once, again = ray.remote(crash), ray.remote(max_retries=1)(crash)
    def attempts(function, name):
        path = os.path.join({str(tmp_path)!r}, name)
        try: ray.get(function.remote(path))
        except ray.exceptions.WorkerCrashedError: return os.path.getsize(path)
    ray.init(num_cpus=2)
    print(attempts(once, "one"), attempts(again, "two"))
    print(ray.get(ray.remote(attempts).remote(once, "three")))
    """
    assert drive_well(script, {"RAY_TASK_MAX_RETRIES": "0"}) == "1 2\n1\n"


def test_a_module_beside_a_program_is_found_by_its_tasks_unless_it_runs_as_a_module(
    tmp_path: Path,
) -> None:
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "program.py").write_text(
        "import raylite as ray\n"
        "@ray.remote\n"
        "def find():\n"
        "    import beside\n"
        "ray.init(num_cpus=1)\n"
        "print(ray.get(find.remote()))\n"
    )
    package = f"{tmp_path.name}.program"
    for words, folder in (
        ([str(tmp_path / "program.py")], "/"),
        (["-m", package], tmp_path.parent),
    ):
        done = subprocess.run(
            [sys.executable, *words], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        told = done.stdout or done.stderr.splitlines()[-1]
        assert told.startswith("None" if folder == "/" else "ModuleNotFoundError: No module named")


def test_a_task_that_crashes_once_succeeds_by_itself(tmp_path: Path) -> None:
    @ray.remote
    def crash_once() -> str:
        if note(tmp_path / "attempts") == 1:
            os._exit(1)
        return "survived"

    assert ray.get(crash_once.remote()) == "survived"


def test_system_exit_ends_the_worker(tmp_path: Path) -> None:
    @ray.remote(max_retries=1)
    def leave(code: int) -> None:
        note(tmp_path / f"attempts{code}")
        sys.exit(code)

    for code in (0, 3):
        with pytest.raises(WorkerCrashedError):
            ray.get(leave.remote(code))
        assert (tmp_path / f"attempts{code}").stat().st_size == 2


def test_a_dependency_that_crashed_fails_the_task_behind_it() -> None:
    @ray.remote(max_retries=0)
    def crash() -> None:
        os._exit(1)

    with pytest.raises(WorkerCrashedError) as caught:
        ray.get(echo.remote(crash.remote()))
    assert isinstance(caught.value, RayTaskError)
    assert "input arguments for this task could not be computed" in str(caught.value)


def test_a_system_error_inside_a_task_keeps_its_kind() -> None:
    @ray.remote(max_retries=0)
    def crash() -> None:
        os._exit(1)

    @ray.remote
    def outer() -> None:
        ray.get(crash.remote())

    with pytest.raises(RayTaskError) as caught:
        ray.get(outer.remote())
    assert isinstance(caught.value, WorkerCrashedError)
    assert isinstance(caught.value.cause, WorkerCrashedError)
    assert isinstance(caught.value.as_instanceof_cause(), WorkerCrashedError)


def test_an_exception_is_not_retried_unless_asked_for(tmp_path: Path) -> None:
    @ray.remote(max_retries=3)
    def fail() -> None:
        note(tmp_path / "attempts")
        raise ValueError

    with pytest.raises(ValueError):
        ray.get(fail.remote())
    assert (tmp_path / "attempts").stat().st_size == 1


@pytest.mark.parametrize(
    ("retry", "attempts"),
    [(True, 3), ([ValueError], 3), ([KeyError, LookupError], 1), (False, 1), ([], 1)],
)
def test_exceptions_are_retried_if_they_are_among_those_named(
    tmp_path: Path, retry: Any, attempts: int
) -> None:
    @ray.remote(max_retries=2, retry_exceptions=retry)
    def fail() -> None:
        raise ValueError(note(tmp_path / "attempts"))

    with pytest.raises(ValueError) as caught:
        ray.get(fail.remote())
    assert (tmp_path / "attempts").stat().st_size == attempts
    assert caught.value.args[0].args == (attempts,)


def test_no_retries_are_no_retries_of_exceptions_either(tmp_path: Path) -> None:
    @ray.remote(max_retries=0, retry_exceptions=True)
    def fail() -> None:
        note(tmp_path / "attempts")
        raise ValueError

    with pytest.raises(ValueError):
        ray.get(fail.remote())
    assert (tmp_path / "attempts").stat().st_size == 1


def test_a_failing_task_that_succeeds_at_last_has_a_value(tmp_path: Path) -> None:
    @ray.remote(max_retries=-1, retry_exceptions=True)
    def fifth() -> int:
        count = note(tmp_path / "attempts")
        if count < 3:
            raise ValueError
        return count

    assert ray.get(fifth.remote()) == 3


def test_what_a_task_raises_uses_up_none_of_what_is_for_crashes(tmp_path: Path) -> None:
    @ray.remote(max_retries=1, retry_exceptions=True)
    def fail() -> None:
        if note(tmp_path / "attempts") == 2:
            os._exit(1)
        raise ValueError

    with pytest.raises(ValueError):
        ray.get(fail.remote())
    assert (tmp_path / "attempts").stat().st_size == 3


def test_a_retried_task_reads_its_arguments_again(tmp_path: Path) -> None:
    @ray.remote
    def crash_once(large: Any, box: list[Any]) -> int:
        if note(tmp_path / "attempts") == 1:
            os._exit(1)
        return int(large.sum() + ray.get(box[0]))

    ref = crash_once.remote(ray.put(np.ones(100_000)), [ray.put(5)])
    assert ray.get(ref) == 100_005


# --- Time limits ---


def test_a_get_that_timed_out_can_be_taken_up_again(tmp_path: Path) -> None:
    @ray.remote
    def when() -> str:
        while not (tmp_path / "go").exists():
            time.sleep(0.005)
        return "late"

    ref = when.remote()
    for timeout in (0, 0.01, 0.05):
        with pytest.raises(GetTimeoutError, match="Get timed out"):
            ray.get(ref, timeout=timeout)
    with pytest.raises(TimeoutError):
        ray.get([ref], timeout=0)
    (tmp_path / "go").touch()
    assert ray.get(ref) == "late"


def test_get_on_a_loop_is_possible_and_await_is_better() -> None:
    async def both() -> tuple[int, int]:
        return ray.get(echo.remote(1)), await echo.remote(2)

    assert asyncio.run(both()) == (1, 2)
