"""Submission: what may be decorated, how calls are checked, and what travels with them."""

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import raylite as ray
from raylite._services.worker import exports
from raylite._wire import hot
from raylite._wire.hot import Form, Value
from raylite.exceptions import RaySystemError
from raylite.testing import LocalCluster

MB = 1024 * 1024


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(num_cpus=2, resources={"oven": 1}, workers="threads") as cluster:
        yield cluster


def pair(a: int, b: int = 1) -> tuple[int, int]:
    """Return both."""
    return a, b


def sides(a: int, /, b: int, *, c: int = 3) -> tuple[int, ...]:
    return a, b, c


def all_of(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def items() -> Iterator[int]:
    yield 1


make: Any = ray.remote
f: Any = make(pair)


class Kitchen:
    def __call__(self) -> None: ...

    def bound(self, x: int) -> int:
        return x

    @classmethod
    def of_class(cls, x: int) -> int:
        return x

    @staticmethod
    def static(x: int) -> int:
        return x


# --- What may be decorated ---


@pytest.mark.parametrize(
    "thing",
    [functools.partial(pair, 1), Kitchen(), Kitchen().bound, Kitchen.of_class, staticmethod(pair)],
)
def test_only_functions_and_classes_can_be_remote(thing: Any) -> None:
    with pytest.raises(TypeError, match="must be applied to either a function or a class"):
        make(thing)


def test_functions_of_all_kinds_can_be() -> None:
    assert ray.get(make(Kitchen.static).remote(1)) == 1
    assert ray.get(make(Kitchen.bound).remote(Kitchen(), 2)) == 2
    assert ray.get(make(lambda x: x).remote(3)) == 3

    @functools.wraps(pair)
    def wrapper(*args: int) -> Any:
        return pair(*args)

    assert ray.get(make(wrapper).remote(4)) == (4, 1)


def test_a_remote_function_looks_like_its_function() -> None:
    assert (f.__name__, f.__doc__, f.__module__) == ("pair", "Return both.", __name__)
    assert f.__wrapped__ is pair

    def homeless() -> int:
        return 1

    homeless.__module__ = None  # type: ignore[assignment]
    assert ray.get(make(homeless).remote()) == 1


# --- Calls ---


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: f.remote(), "missing a required argument: 'a'"),
        (lambda: f.remote(1, 2, 3), "too many positional arguments"),
        (lambda: f.remote(1, c=2), "got an unexpected keyword argument 'c'"),
        (lambda: f.remote(1, a=2), "multiple values for argument 'a'"),
        (lambda: make(sides).remote(a=1, b=2), "'a' parameter is positional only"),
        (lambda: make(sides).remote(1, 2, 3), "too many positional arguments"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_in_the_callers_line(
    call: Callable[[], object], text: str
) -> None:
    with pytest.raises(TypeError, match=text):
        call()


def test_arguments_that_fit_arrive() -> None:
    assert ray.get(make(sides).remote(1, b=2)) == (1, 2, 3)
    assert ray.get(make(sides).remote(1, 2, c=4)) == (1, 2, 4)


def test_a_reference_may_be_given_several_times() -> None:
    ref = ray.put(1)
    args, kwargs = ray.get(make(all_of).remote(ref, [ref], ref, k=ref))
    assert args == (1, [ref], 1)
    assert kwargs == {"k": 1}


def test_the_older_spelling_takes_arguments_and_options() -> None:
    assert ray.get(f._remote([1], {"b": 2})) == (1, 2)
    assert ray.get(f._remote(args=(1,), kwargs={"b": 2}, num_cpus=0.5, name="n")) == (1, 2)
    assert f._remote(args=[1], num_returns=0) is None
    assert ray.get(f._remote([1], num_returns=2)) == [1, 1]
    assert ray.get(f._remote([1], max_calls=1)) == (1, 1)
    with pytest.raises(ValueError, match="Invalid option keyword foo"):
        f._remote([1], foo=1)


def test_a_function_may_have_its_calls_wrapped() -> None:
    def decorate(invocation: Callable[..., Any]) -> Callable[..., Any]:
        def invoke(args: Any, kwargs: Any) -> Any:
            return invocation([arg + 1 for arg in args], kwargs), args

        return invoke

    def wrapped(x: int) -> int:
        return x

    wrapped.__ray_invocation_decorator__ = decorate  # type: ignore[attr-defined]
    remote = make(wrapped)
    for each in (remote, remote.options(num_cpus=0.5)):
        ref, extra = each.remote(5)
        assert (ray.get(ref), extra) == (6, (5,))
        ref, _ = each._remote([7])
        assert ray.get(ref) == 8
        with pytest.raises(TypeError, match="too many positional"):
            each.remote(1, 2)


def test_a_function_that_calls_itself_keeps_its_defaults_in_workers() -> None:
    def again(depth: int, step: int = 1, *, base: str = "end") -> str:
        return base if depth == 0 else str(ray.get(remote.remote(depth - step))) + base

    def calls(depth: int, base: str = "c") -> str:
        return str(ray.get(remote.options(num_cpus=0.5).remote(depth, base="b"))) + base

    remote = make(again)
    assert ray.get(remote.remote(2)) == "endendend"
    assert ray.get(make(calls).remote(1)) == "endbc"


def test_a_function_that_calls_itself_keeps_its_wrapping_in_workers() -> None:
    def decorate(invocation: Callable[..., Any]) -> Callable[..., Any]:
        return lambda args, kwargs: [invocation(args, kwargs)]

    def again(depth: int, base: str = "w") -> str:
        return base if depth == 0 else str(ray.get(remote.remote(depth - 1)[0])) + base

    again.__ray_invocation_decorator__ = decorate  # type: ignore[attr-defined]
    remote = make(again)
    assert ray.get(remote.remote(1)[0]) == "ww"


def test_arguments_of_the_api_have_the_names_of_ray() -> None:
    ref = make(pair).remote(1)
    assert ray.wait(ray_waitables=[ref], num_returns=1) == ([ref], [])
    assert ray.get(object_refs=ref) == (1, 1)
    ray.cancel(ray_waitable=ref)
    assert ray.get(object_refs=[ref]) == [(1, 1)]


def test_the_runtime_context_has_the_older_names_of_its_ids() -> None:
    def here() -> Any:
        context = ray.get_runtime_context()
        known = context.get()
        assert known["task_id"].hex() == context.get_task_id()
        ids = (context.job_id, context.node_id, context.task_id, context.actor_id)
        assert ids == (known["job_id"], known["node_id"], known["task_id"], None)
        return known["job_id"], known["node_id"], known["namespace"]

    context = ray.get_runtime_context()
    with pytest.warns(DeprecationWarning, match="job_id is deprecated: use get_job_id instead"):
        job = context.job_id
    with pytest.warns(DeprecationWarning, match="task_id is deprecated"):
        assert context.task_id is None
    with pytest.warns(DeprecationWarning, match="use get_job_id, get_node_id"):
        assert "task_id" not in context.get()
    with pytest.warns(DeprecationWarning, match="use get_accelerator_ids"):
        assert context.get_resource_ids() == context.get_accelerator_ids()
    assert isinstance(job, ray.JobID)
    assert job.hex() == context.get_job_id()
    node = ray.NodeID.from_hex(context.get_node_id())
    with pytest.warns(DeprecationWarning, match="is deprecated"):
        assert ray.get(make(here).remote()) == (job, node, context.namespace)


# --- Options ---


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"num_returns": "streaming"}, ValueError, "can only be used with generator functions"),
        ({"num_returns": "dynamic"}, ValueError, "can only be used with generator functions"),
        ({"num_returns": -1}, ValueError, "Default None. When None is passed"),
        ({"num_returns": 1.0}, TypeError, "The type of keyword 'num_returns' must be"),
        ({"scheduling_strategy": 5}, TypeError, "The type of keyword 'scheduling_strategy' must"),
        ({"placement_group": object()}, NotImplementedError, "groups are not supported yet"),
        ({"_labels": {"a": 1}}, ValueError, "Label value must be string, but got <class 'int'>"),
        ({"_labels": {1: "a"}}, ValueError, "Label key must be string, but got <class 'int'>"),
        ({"name": 1}, TypeError, "The type of keyword 'name' must be"),
        ({"enable_task_events": None}, TypeError, "The type of keyword 'enable_task_events'"),
        ({"runtime_env": {"working_dir": "/tmp"}}, ValueError, "/tmp is not a valid URI."),
        ({"_num_objects_per_yield": 2}, ValueError, "cannot be overridden per task call. Use"),
        ({"max_calls": 1}, ValueError, "Setting 'max_calls' is not supported in"),
    ],
)
@pytest.mark.filterwarnings("ignore:num_returns='dynamic'")
def test_options_that_cannot_be_are_refused_where_they_are_written(
    options: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        f.options(**options)
    if not {"_num_objects_per_yield", "max_calls"} & options.keys():
        with pytest.raises(error, match=text):
            make(**options)(pair)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scheduling_strategy": "x"}, "Invalid scheduling_strategy value x."),
        ({"placement_group_bundle_index": 0}, "value of bundle index must be -1."),
        ({"resources": {"bundle": 1}}, "should not include `bundle` which is reserved"),
        ({"resources": {"memory": 1}}, "must not contain the key 'memory'"),
        ({"num_gpus": 1.5}, "GPU resource quantities >1 must be whole numbers"),
    ],
)
def test_options_that_cannot_be_carried_out_are_refused_at_the_call(
    options: Any, text: str
) -> None:
    task = f.options(**options)
    with pytest.raises(ValueError, match=text):
        task.remote(1)


def test_options_that_change_nothing_here_are_taken() -> None:
    for options in (
        {"placement_group": None},
        {"placement_group": "default"},
        {"placement_group_capture_child_tasks": True},
        {"_labels": {"a": "b"}},
        {"enable_task_events": False},
        {"_num_objects_per_yield": 1},
        {"resources": {"oven": 0.5}},
    ):
        assert ray.get(f.options(**options).remote(1)) == (1, 1)


# --- Functions ---


def test_a_function_is_pickled_once_for_all_its_environments_and_options() -> None:
    count = 0

    class Counted:
        def __reduce__(self) -> Any:
            nonlocal count
            count += 1
            return int, ()

    captured = Counted()
    function = make(lambda: captured)
    for name in ("a", "b"):
        assert ray.get(function.options(name=name).remote()) == 0
    function.options(runtime_env={"env_vars": {"A": "1"}}).remote()  # in vain, in a thread
    assert count == 1


def test_code_that_is_defined_over_and_over_is_remarked_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def define(n: int) -> Any:
        @ray.remote
        def again() -> int:
            return n

        return again

    with caplog.at_level(logging.WARNING, "raylite"):
        refs = [define(n).remote() for n in range(exports.REPEATS)]
        assert "has been exported" not in caplog.text
        refs += [define(n).remote() for n in range(3)]
    assert ray.get(refs[-2:]) == [1, 2]
    said = [text for text in caplog.messages if "has been exported" in text]
    assert len(said) == 1
    assert "again' has been exported 100 times" in said[0]


def test_counting_definitions_keeps_no_more_than_it_needs() -> None:
    counts = exports.Exports()
    for n in range(2000):
        code: dict[str, Any] = {}
        exec(f"def made(): return {n}", code)
        counts.note("remote function", "made", code["made"])
    counts.note("remote function", "len", len)  # it has no code
    assert len(counts._counts) == 1000


# --- What travels with a call ---


def sizes(*args: bytes) -> int:
    return sum(map(len, args))


def test_small_arguments_that_are_many_are_stored() -> None:
    assert hot.inline_limit(1) == hot.inline_limit(100) == hot.INLINE_LIMIT
    assert hot.inline_limit(1000) * 1000 <= hot.INLINE_TOTAL
    task = make(sizes)
    assert ray.get(task.remote(*[bytes(60_000)] * 300)) == 18_000_000


def _many(count: int, size: int) -> list[bytes]:
    return [bytes(size) for _ in range(count)]


async def _many_soon(count: int, size: int) -> list[bytes]:
    return _many(count, size)


@pytest.mark.parametrize("many", [_many, _many_soon])
def test_small_results_that_are_many_are_stored(many: Callable[..., Any]) -> None:
    def forms(count: int, size: int) -> set[int]:
        refs = make(many).options(num_returns=count).remote(count, size)
        assert [len(value) for value in ray.get(refs)] == [size] * count
        return {form(ref._entry.value) for ref in refs}

    def form(value: Value | None) -> int:
        assert value is not None
        return value.form

    assert forms(100, 60_000) == {Form.INLINE}
    assert forms(300, 60_000) == {Form.INLINE, Form.ARENA}


def test_references_to_too_much_are_refused_with_what_to_do() -> None:
    ref = ray.put(bytes(99_000))
    with pytest.raises(RaySystemError, match=r"Task sizes has 1500 .* Give it the references in a"):
        ray.get(make(sizes).remote(*[ref] * 1500))
    assert ray.get(make(sizes).remote(*[ref] * 100)) == 9_900_000


def test_a_remote_functions_repr_names_it() -> None:
    assert repr(ray.remote(len)) == "RemoteFunction(builtins.len)"


# --- What is not there ---


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("kill", "actors"),
        ("get_actor", "actors"),
        ("data", "Ray's libraries"),
        ("timeline", "this"),
    ],
)
def test_what_of_ray_is_missing_is_said_so(name: str, what: str) -> None:
    assert not hasattr(ray, name)
    with pytest.raises(
        AttributeError, match=rf"raylite has no '{name}': .* without {what}.* README"
    ):
        getattr(ray, name)
