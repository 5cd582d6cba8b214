"""Options: which keywords tasks and actors take, and what is said about the others."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from raylite._options import (
    ACTOR_OPTIONS,
    TASK_OPTIONS,
    TaskOptions,
    decorated,
    decorator_error,
    update_options,
    validate_actor_options,
    validate_init_options,
    validate_task_options,
)
from raylite._types.accelerators import VISIBLE
from raylite._types.keywords import DecoratorKeywords, TaskKeywords
from raylite.testing import LocalCluster

COMMON = {
    "label_selector": None,
    "fallback_strategy": None,
    "accelerator_type": None,
    "memory": None,
    "name": None,
    "num_gpus": None,
    "object_store_memory": None,
    "placement_group": "default",
    "placement_group_bundle_index": -1,
    "placement_group_capture_child_tasks": None,
    "resources": None,
    "runtime_env": None,
    "scheduling_strategy": None,
    "enable_task_events": True,
    "_labels": None,
}
INFINITE = "only accepts None, 0, -1 or a positive integer, where -1 represents infinity."
FINITE = "only accepts None, 0 or a positive integer."
HALF = "\udcff"  # of a name of a file that is not UTF-8, as os.listdir gives it


def task(in_options: bool = False, **options: Any) -> None:
    validate_task_options(options, in_options)


def actor(in_options: bool = False, **options: Any) -> None:
    validate_actor_options(options, in_options)


both = pytest.mark.parametrize("validate", [task, actor])


def test_tasks_and_actors_have_their_keywords_and_defaults() -> None:
    assert {name: option.default for name, option in TASK_OPTIONS.items()} == COMMON | {
        "num_cpus": 1,
        "max_calls": 0,
        "max_concurrency": None,
        "max_retries": 3,
        "num_returns": None,
        "retry_exceptions": False,
        "timeout": None,
        "deadline": None,
        "_generator_backpressure_num_objects": None,
        "_num_objects_per_yield": 1,
    }
    assert {name: option.default for name, option in ACTOR_OPTIONS.items()} == COMMON | {
        "num_cpus": None,
        "concurrency_groups": None,
        "lifetime": None,
        "max_concurrency": None,
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_pending_calls": -1,
        "namespace": None,
        "get_if_exists": False,
        "allow_out_of_order_execution": None,
        "_actor_generator_backpressure_num_objects": None,
    }


@pytest.mark.parametrize("in_options", [False, True])
def test_the_default_of_each_keyword_is_valid(in_options: bool) -> None:
    for table, validate in ((TASK_OPTIONS, task), (ACTOR_OPTIONS, actor)):
        for name, option in table.items():
            if not (in_options and option.only_decorator):
                validate(in_options, **{name: option.default})


def test_an_unknown_keyword_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError) as told:
        task(foo=1)
    assert str(told.value) == (
        f"Invalid option keyword foo for remote functions. Valid ones are {list(TASK_OPTIONS)}."
    )
    with pytest.raises(
        ValueError, match=r"^Invalid option keyword max_calls for actors. Valid one"
    ):
        actor(max_calls=1)


def test_a_wrong_type_is_refused_with_the_right_ones() -> None:
    with pytest.raises(TypeError) as told:
        task(max_retries=1.5)
    assert str(told.value) == (
        "The type of keyword 'max_retries' must be (<class 'int'>, <class 'NoneType'>), "
        "but received type <class 'float'>"
    )
    with pytest.raises(TypeError) as told:
        task(placement_group_bundle_index="a")
    assert str(told.value) == (
        "The type of keyword 'placement_group_bundle_index' must be <class 'int'>, "
        "but received type <class 'str'>"
    )


@both
@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("num_cpus", -1, "The quantity of resource num_cpus cannot be negative"),
        ("num_gpus", -0.5, "The quantity of resource num_gpus cannot be negative"),
        ("memory", -1, "The quantity of resource memory cannot be negative"),
        (
            "num_gpus",
            0.00001,
            "The precision of the fractional quantity of resource num_gpus cannot go beyond 0.0001",
        ),
        ("num_cpus", float("nan"), "The quantity of resource num_cpus must be a finite number"),
        ("num_cpus", float("inf"), "The quantity of resource num_cpus must be a finite number"),
        (
            "num_cpus",
            10**400,
            "The quantity of resource num_cpus must be a finite number, not so l",
        ),
        (
            "memory",
            10**400,
            "The quantity of resource memory must be a finite number, not so large",
        ),
        (
            "resources",
            {"x": 10**400},
            "The quantity of resource x must be a finite number, not so ",
        ),
        ("resources", {"x": -1}, "The quantity of resource x cannot be negative"),
        (
            "resources",
            {"GPU": 1},
            "Use the 'num_cpus' and 'num_gpus' keyword instead of 'CPU' and 'GPU' in 'resources'",
        ),
        ("label_selector", {"a b": "x"}, "Invalid label key name `a b`. Name must be 63 chars"),
        ("label_selector", {"a/b/c": "x"}, "Invalid label key prefix `a/b`. Prefix must be a ser"),
        ("label_selector", {"a": "b c"}, "Invalid label selector value `b c`. The label selector"),
        ("label_selector", {"a": "in()"}, "Invalid label selector value `in()`."),
        ("label_selector", {"a": "in(!x)"}, "Invalid label selector value `in(!x)`."),
        ("label_selector", {"a": "!"}, "Invalid label selector value `!`."),
        ("fallback_strategy", [1], "Each element in fallback_strategy must be a dictionary."),
        ("fallback_strategy", [{}], "Empty dictionary found in `fallback_strategy`."),
        (
            "fallback_strategy",
            [{"x": 1}],
            "Unsupported option found: 'x'. Only ['label_selector'] is currently supported.",
        ),
        ("fallback_strategy", [{"label_selector": {"a b": "x"}}], "Invalid label key name `a b`."),
        ("name", HALF, rf"The keyword 'name' is {HALF!r}, which cannot be encoded as UTF-8: "),
        ("name", "a" * 300 + HALF, rf"The keyword 'name' is '{'a' * 200}'..., which cannot be enc"),
        ("accelerator_type", HALF, rf"The keyword 'accelerator_type' is {HALF!r}, which cannot "),
        ("resources", {HALF: 1}, rf"A key of the keyword 'resources' is {HALF!r}, which cannot be"),
        ("_labels", {"a": HALF}, rf"A value of the keyword '_labels' is {HALF!r}, which cannot be"),
        ("_labels", {HALF: "a"}, rf"A key of the keyword '_labels' is {HALF!r}, which cannot be e"),
        (
            "runtime_env",
            {"env_vars": {HALF: "a"}},
            rf"runtime_env['env_vars'] has a variable {HALF!r}, whose name is {HALF!r}, which",
        ),
        (
            "runtime_env",
            {"env_vars": {"A": HALF}},
            rf"runtime_env['env_vars'] has a variable 'A', whose value is {HALF!r}, which cannot",
        ),
    ],
)
def test_impossible_values_of_both(
    validate: Callable[..., None], option: str, value: Any, text: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        validate(**{option: value})


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("max_retries", -2, f"The keyword 'max_retries' {INFINITE}"),
        (
            "timeout",
            math.nan,
            "The keyword 'timeout' only accepts None or seconds, 0 or more, not nan",
        ),
        (
            "timeout",
            10**400,
            "The keyword 'timeout' only accepts None or seconds, 0 or more, not so",
        ),
        ("deadline", 10**400, "The keyword 'deadline' only accepts None or a time as time.time()"),
        (
            "max_retries",
            10**400,
            "The keyword 'max_retries' only accepts numbers below 2**63, not",
        ),
        (
            "num_returns",
            10**400,
            "The keyword 'num_returns' only accepts numbers below 2**31, not",
        ),
        ("max_calls", -1, f"The keyword 'max_calls' {FINITE}"),
        ("object_store_memory", 0, "Setting 'object_store_memory' is not implemented for tasks"),
        ("num_returns", -1, "Default None. When None is passed, The default value is 1 for a ta"),
        (
            "num_returns",
            2**31,
            "The keyword 'num_returns' only accepts numbers below 2**31, not 21",
        ),
        ("num_returns", "many", "Default None. When None is passed, The default value is 1 for"),
        (
            "retry_exceptions",
            [1],
            "retry_exceptions must be either a boolean or a list of exceptions",
        ),
        (
            "retry_exceptions",
            [ValueError, KeyboardInterrupt],
            "retry_exceptions must be either a boolean or a list of exceptions",
        ),
        ("_generator_backpressure_num_objects", 0, "_generator_backpressure_num_objects=0 is not"),
        ("_generator_backpressure_num_objects", -2, "_generator_backpressure_num_objects=-2 is"),
        ("_num_objects_per_yield", 0, "_num_objects_per_yield is a private streaming generator"),
    ],
)
def test_impossible_values_of_tasks(option: str, value: Any, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        task(**{option: value})


@pytest.mark.parametrize(
    "option",
    ["max_retries", "max_calls", "_generator_backpressure_num_objects", "_num_objects_per_yield"],
)
def test_a_number_that_no_message_can_say_is_refused(option: str) -> None:
    validate_task_options({option: 2**63 - 1}, in_options=False)
    with pytest.raises(ValueError, match=rf"^The keyword '{option}' only accepts numbers below 2"):
        validate_task_options({option: 2**63}, in_options=False)
    with pytest.raises(ValueError, match="only accepts numbers below"):
        validate_task_options(
            {option: 10**5000}, in_options=False
        )  # Python gives no decimals of it


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("max_restarts", -2, f"The keyword 'max_restarts' {INFINITE}"),
        ("max_task_retries", -2, f"The keyword 'max_task_retries' {INFINITE}"),
        ("max_pending_calls", -2, f"The keyword 'max_pending_calls' {INFINITE}"),
        ("max_concurrency", -1, f"The keyword 'max_concurrency' {FINITE}"),
        ("object_store_memory", -1, f"The keyword 'object_store_memory' {FINITE}"),
        (
            "lifetime",
            "x",
            "actor `lifetime` argument must be one of 'detached', 'non_detached' and 'None'.",
        ),
        ("name", "", "Actor name cannot be an empty string."),
        ("name", " ", "Actor name cannot be an empty string."),
        ("namespace", HALF, rf"The keyword 'namespace' is {HALF!r}, which cannot be encoded as UT"),
        ("namespace", "", '"" is not a valid namespace. Pass None to not specify a namespace.'),
        ("get_if_exists", True, "The actor name must be specified to use `get_if_exists`."),
        (
            "_actor_generator_backpressure_num_objects",
            0,
            "_actor_generator_backpressure_num_objects must be > 0 to cap the actor's total",
        ),
    ],
)
def test_impossible_values_of_actors(option: str, value: Any, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        actor(**{option: value})


@both
@pytest.mark.parametrize(
    "options",
    [
        {"resources": {3: 1}},
        {"resources": {"x": "many"}},
        {"label_selector": {1: "a"}},
        {"label_selector": {"a": 1}},
    ],
)
def test_mappings_of_the_wrong_things(
    validate: Callable[..., None], options: dict[str, Any]
) -> None:
    with pytest.raises(TypeError, match="keyword maps"):
        validate(**options)


@both
@pytest.mark.parametrize(
    "options",
    [
        {"num_cpus": 0.5, "num_gpus": 1.5, "memory": 2.5, "resources": {"x": 0.0001, "y": 2}},
        {"name": "n", "runtime_env": {}, "scheduling_strategy": "SPREAD"},
        {"label_selector": {"a": "b", "ray.io/c": "!d", "e": "in(f, g)", "h": "!in(i)", "j": ""}},
        {"fallback_strategy": [{"label_selector": {"a": "b"}}, {"label_selector": {}}]},
    ],
)
def test_possible_values(validate: Callable[..., None], options: dict[str, Any]) -> None:
    validate(**options)


@pytest.mark.parametrize("value", [None, 0, 3, "streaming"])
def test_numbers_of_returns(value: object) -> None:
    task(num_returns=value)


def test_exceptions_to_retry() -> None:
    task(retry_exceptions=[ValueError, OSError])
    task(retry_exceptions=(ValueError,))
    task(retry_exceptions=True)
    with pytest.raises(TypeError):
        task(retry_exceptions=ValueError)


def test_some_keywords_are_for_the_decorator_only() -> None:
    task(max_calls=1)
    with pytest.raises(ValueError, match=r"^Setting 'max_calls' is not supported in '.options\(\)"):
        task(True, max_calls=1)
    actor(concurrency_groups={"io": 2})
    with pytest.raises(ValueError, match=r"^Setting 'concurrency_groups' is not supported in"):
        actor(True, concurrency_groups={"io": 2})


def test_get_if_exists_takes_a_name() -> None:
    actor(get_if_exists=True, name="x", namespace="n", lifetime="detached")


def test_dynamic_returns_are_deprecated() -> None:
    with pytest.warns(DeprecationWarning, match="Use num_returns='streaming' instead"):
        validate_task_options({"num_returns": "dynamic"}, False, is_generator=True)


def test_a_stream_needs_a_generator() -> None:
    validate_task_options({"num_returns": "streaming"}, False, is_generator=True)
    with pytest.raises(ValueError, match=r"^num_returns='streaming' can only be used with generat"):
        validate_task_options({"num_returns": "streaming"}, False, is_generator=False)


def test_the_decorators_refusal_names_every_keyword() -> None:
    text = decorator_error()
    assert text.startswith("The @raylite.remote decorator must be applied either with no arguments")
    assert all(repr(name) in text for name in (*TASK_OPTIONS, *ACTOR_OPTIONS))


def test_new_options_win_whole() -> None:
    old = {"num_cpus": 1, "resources": {"a": 1}}
    assert update_options(old, {"resources": {"b": 1}, "num_gpus": None}) == {
        "num_cpus": 1,
        "resources": {"b": 1},
        "num_gpus": None,
    }
    assert old == {"num_cpus": 1, "resources": {"a": 1}}


# --- What a task is submitted with ---


def test_no_options_are_the_defaults() -> None:
    assert TaskOptions.of({}) == TaskOptions()
    assert TaskOptions.of(dict.fromkeys(TASK_OPTIONS.keys() - {"placement_group"})) == TaskOptions()


def test_options_are_taken_over() -> None:
    options = TaskOptions.of(
        {
            "num_cpus": 2,
            "num_returns": 3,
            "max_retries": -1,
            "retry_exceptions": [ValueError],
            "max_calls": 5,
            "name": "n",
            "runtime_env": {"env_vars": {}},
            "scheduling_strategy": "SPREAD",
            "fallback_strategy": [{"label_selector": {"a": "b"}}],
            "placement_group": None,
            "enable_task_events": False,
            "_labels": {"k": "v"},
            "_generator_backpressure_num_objects": 4,
        }
    )
    assert options == TaskOptions(
        num_cpus=2,
        num_returns=3,
        max_retries=-1,
        retry_exceptions=(ValueError,),
        name="n",
        runtime_env={"env_vars": {}},
        scheduling_strategy="SPREAD",
        fallback_strategy=({"label_selector": {"a": "b"}},),
        placement_group=None,
        enable_task_events=False,
        labels={"k": "v"},
        backpressure=4,
    )


def test_the_callers_default_of_retries_gives_way_to_the_tasks() -> None:
    assert TaskOptions.of({}, max_retries=7).max_retries == 7
    assert TaskOptions.of({"max_retries": None}, max_retries=7).max_retries == 7
    assert TaskOptions.of({"max_retries": 0}, max_retries=7).max_retries == 0


def test_a_process_that_used_a_gpu_ends_with_its_task() -> None:
    assert decorated({"num_gpus": 0.5}) == {"num_gpus": 0.5, "max_calls": 1}
    for options in ({"num_gpus": 0.5, "max_calls": 0}, {"num_gpus": 0}, {"num_gpus": None}, {}):
        assert decorated(options) == options


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_gpus": 1.5}, "GPU resource quantities >1 must be whole numbers. The specified"),
        ({"scheduling_strategy": "foo"}, "Invalid scheduling_strategy value foo. Valid values are"),
        ({"resources": {"memory": 1}}, "The resources dictionary must not contain the key 'memory"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_at_submission(
    options: dict[str, Any], text: str
) -> None:
    task(**options)
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        TaskOptions.of(options)


def test_a_task_demands_one_cpu_by_default() -> None:
    assert TaskOptions.of({}).demand() == {"CPU": 1}


def test_a_demand_is_what_is_asked_for_without_the_zeros() -> None:
    options = TaskOptions.of(
        {
            "num_cpus": 0,
            "num_gpus": 2,
            "memory": 10.9,
            "resources": {"x": 0.5, "y": 0},
            "accelerator_type": "V100",
        }
    )
    assert options.demand() == {"GPU": 2, "memory": 10, "x": 0.5, "accelerator_type:V100": 0.001}


@given(st.floats(0.0001, 1e6), st.dictionaries(st.text(min_size=1), st.floats(0.0001, 1e6)))
def test_what_is_valid_can_be_demanded(num_cpus: float, resources: dict[str, float]) -> None:
    reserved = {"CPU", "GPU", "memory", "object_store_memory", "bundle", *VISIBLE}
    custom = {name: amount for name, amount in resources.items() if name not in reserved}
    task(num_cpus=num_cpus, resources=custom)
    demand = TaskOptions.of({"num_cpus": num_cpus, "resources": custom}).demand()
    assert demand == {"CPU": num_cpus, **custom}


def test_type_checkers_know_the_options_that_there_are() -> None:
    in_options = {name for name, option in TASK_OPTIONS.items() if not option.only_decorator}
    always_refused = {"object_store_memory"}
    known = set(TaskKeywords.__annotations__) | {"num_returns"}
    assert known == in_options - always_refused
    assert set(DecoratorKeywords.__annotations__) | known == set(TASK_OPTIONS) - always_refused


def test_the_page_of_tasks_has_a_row_for_each_option() -> None:
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    table = page.split("## Options")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)`", table, re.MULTILINE)
    assert sorted(rows) == sorted(TASK_OPTIONS)


OFFERS: list[tuple[dict[str, object], type[Exception], str]] = [
    ({"num_cpus": True}, TypeError, "num_cpus must be a number, not True"),
    ({"num_cpus": 1.00001}, ValueError, "num_cpus cannot go beyond 0.0001"),
    ({"num_gpus": 1e300}, ValueError, "num_gpus is too large"),
    ({"num_cpus": 10**5000}, ValueError, "num_cpus must be a finite number, not so large"),
    ({"num_cpus": float("inf")}, ValueError, "num_cpus must be a finite number"),
    ({"_memory": 1e300}, ValueError, "memory is too large"),
    ({"resources": {"a": 1.234567}}, ValueError, "resource a cannot go beyond 0.0001"),
    ({"resources": {"a": True}}, TypeError, "resource a must be a number, not True"),
    ({"resources": {"": 1}}, ValueError, "must be printable and not blank, not ''"),
    ({"resources": {"a\nb": 1}}, ValueError, r"must be printable and not blank, not 'a\\nb'"),
    (
        {"_system_config": {"grace": 1}},
        ValueError,
        "no setting 'grace' .* There are infeasible_grace_s",
    ),
    ({"_system_config": {"task_oom_retries": 1.5}}, TypeError, "must be an integer, not 1.5"),
    ({"_system_config": {"infeasible_grace_s": True}}, TypeError, "must be a number, not True"),
    ({"_system_config": {"infeasible_grace_s": "x"}}, TypeError, "must be a number, not 'x'"),
    ({"_system_config": {"infeasible_grace_s": math.nan}}, ValueError, "a finite number, not nan"),
    ({"labels": {"ray.io/node-id": "x"}}, ValueError, "ray.io/node-id cannot be set"),
    ({"labels": {"a b": "x"}}, ValueError, "Invalid label key name `a b`"),
    ({"labels": {"a": "!x"}}, ValueError, "Invalid label value `!x` of a"),
    ({"labels": {"a": 1}}, TypeError, "map strings to strings, not 'a': 1"),
]


@pytest.mark.parametrize(("offer", "kind", "reason"), OFFERS)
def test_what_no_node_can_offer_is_refused(
    offer: dict[str, object], kind: type[Exception], reason: str
) -> None:
    with pytest.raises(kind, match=reason):
        validate_init_options(offer)


def test_what_a_node_can_offer_is_taken() -> None:
    labels = {"zone": "", "example.com/rack": "a_1.b-2"}
    amounts = {"a": 0.1 + 0.2, "b": 2**40, "c": 0.0001, "d": 0, "ü x": 1}
    offered = {"num_cpus": 0.5, "_memory": 1.5e9, "resources": amounts, "labels": labels}
    validate_init_options(offered)


@pytest.mark.parametrize("node", [-1, True, 1.00001, {"resources": {"a": 1.234567}}], ids=str)
def test_a_local_cluster_refuses_it_before_it_starts(node: float) -> None:
    with pytest.raises((ValueError, TypeError), match=r"The (quantity|precision)"):
        LocalCluster(nodes=[node])
