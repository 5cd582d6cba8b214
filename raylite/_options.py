"""Options: every keyword of ``@remote`` and ``.options()``, in one table.

A keyword is checked where it is written: `validate_task_options` and `validate_actor_options`
refuse unknown names, wrong types and impossible values at once, with Ray's texts. What Ray refuses
only when the task is submitted (a fraction of several GPUs, an unknown scheduling strategy) is
refused by `TaskOptions.of`, which should therefore be called at the first submission.

Longer than most modules, as a table with its texts is.
"""

import logging
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, Self

from msgspec import Struct

from raylite._types.accelerators import VISIBLE
from raylite._types.environment import variables_of
from raylite._types.resources import Resources
from raylite._types.strategies import OWN_LABELS
from raylite._types.system_config import refuse_settings
from raylite._types.text import refuse_text

Check = Callable[[Any], str | None]
"""Why a value is refused, or None if it is not."""

_NoneType = type(None)
_GRANULARITY = 0.0001
_MOST = 2**63 - 1  # that a message can say
_STORE_MINIMUM = 75 * 1024 * 1024  # Ray's


# --- Checks: each gives the reason to refuse a value of the right type ---


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer that is no float
        return False


def _refuse_quantity(name: str, quantity: float) -> str | None:
    if not _is_finite(quantity):
        return f"The quantity of resource {name} must be a finite number, not {_shown(quantity)}"
    if quantity < 0:
        return f"The quantity of resource {name} cannot be negative"
    if 0 < quantity < _GRANULARITY:
        return (
            f"The precision of the fractional quantity of resource {name} "
            f"cannot go beyond {_GRANULARITY}"
        )
    return None


def _shown(number: float) -> str:
    # Python gives no decimals of an integer with thousands of them.
    return (
        str(number) if abs(number) < 10**40 or not isinstance(number, int) else "so large a number"
    )


def _quantity(name: str) -> Check:
    return lambda value: None if value is None else _refuse_quantity(name, value)


def _text(name: str) -> Check:
    return lambda value: None if value is None else refuse_text(f"The keyword '{name}'", value)


def _offer(name: str) -> Check:
    return lambda value: None if value is None else _refuse_offer(name, value)


def _refuse_offer(name: str, quantity: float) -> str | None:
    """Why a node cannot offer this: the same, or an amount that is not exact, or too large."""
    if isinstance(quantity, bool):
        raise TypeError(f"The quantity of resource {name} must be a number, not {quantity}")
    if reason := _refuse_quantity(name, quantity):
        return reason
    try:
        Resources.from_mapping({name: quantity})
    except ValueError as error:
        return str(error)
    return None


def _offers(resources: Mapping[object, object] | None) -> str | None:
    if reason := _resources(resources):
        return reason
    for name, quantity in (resources or {}).items():
        if not str(name).isprintable() or not str(name).strip():
            return f"The name of a resource must be printable and not blank, not {name!r}"
        if reason := _refuse_offer(str(name), quantity):  # type: ignore[arg-type]
            return reason
    return None


def _store(memory: float | None) -> str | None:
    if memory is None:
        return None
    reason = _refuse_quantity("object_store_memory", memory)
    if reason is None and memory < _STORE_MINIMUM:
        return (
            f"Attempting to cap object store memory usage at {memory} bytes, "
            f"but the minimum allowed is {_STORE_MINIMUM} bytes."
        )
    return reason


def _seconds(name: str) -> Check:
    def check(value: float | None) -> str | None:
        if value is None or (_is_finite(value) and value >= 0):
            return None
        what = "seconds" if name == "timeout" else "a time as time.time() gives it"
        return f"The keyword '{name}' only accepts None or {what}, 0 or more, not {_shown(value)}"

    return check


def _count(name: str, *, infinite: bool) -> Check:
    def check(value: int | None) -> str | None:
        if value is not None and value > _MOST:
            return _too_many(name, value)
        if value is None or value >= 0 or (infinite and value == -1):
            return None
        if infinite:
            accepted = "None, 0, -1 or a positive integer, where -1 represents infinity."
        else:
            accepted = "None, 0 or a positive integer."
        return f"The keyword '{name}' only accepts {accepted}"

    return check


def _too_many(name: str, value: int) -> str:
    return f"The keyword '{name}' only accepts numbers below 2**63, not {_shown(value)}"


def _positive(name: str) -> Check:
    def check(value: int | None) -> str | None:
        if value is None or 0 < value < 2**31:
            return None
        return f"The keyword '{name}' only accepts None or a positive integer below 2**31."

    return check


def _resources(resources: Mapping[object, object] | None) -> str | None:
    if resources is None:
        return None
    if "CPU" in resources or "GPU" in resources:
        return (
            "Use the 'num_cpus' and 'num_gpus' keyword instead of 'CPU' and 'GPU' "
            "in 'resources' keyword"
        )
    for name, quantity in resources.items():
        if not isinstance(name, str) or not isinstance(quantity, int | float):
            raise TypeError(
                "The 'resources' keyword maps names to numbers, "
                f"but received {name!r}: {quantity!r}"
            )
        if reason := refuse_text("A key of the keyword 'resources'", name):
            return reason
        if reason := _refuse_quantity(name, quantity):
            return reason
    return None


_LABEL = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?")
_DNS_LABEL = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?")
_LABEL_IN = re.compile(r"!?in\((?P<values>[^()]*)\)")
_LABEL_RULE = (
    "must be 63 chars or less beginning and ending with an alphanumeric character ([a-z0-9A-Z]) "
    "with dashes (-), underscores (_),dots (.), and alphanumerics between."
)


def _node_labels(labels: Mapping[object, object] | None) -> str | None:
    for key, value in (labels or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"The labels of a node map strings to strings, not {key!r}: {value!r}")
        if key.startswith(OWN_LABELS):
            return (
                f"The label {key} cannot be set: labels that begin with {OWN_LABELS} are the "
                "cluster's own. Choose another prefix, or none."
            )
        if reason := _refuse_label_key(key):
            return reason
        if value and not _LABEL.fullmatch(value):
            return f"Invalid label value `{value}` of {key}. Value {_LABEL_RULE}"
    return None


def _label_selector(selector: Mapping[object, object] | None) -> str | None:
    for key, value in (selector or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(
                f"The 'label_selector' keyword maps strings to strings, not {key!r}: {value!r}"
            )
        if reason := _refuse_label_key(key) or _refuse_label_value(value):
            return reason
    return None


def _refuse_label_key(key: str) -> str | None:
    prefix, slash, name = key.rpartition("/")
    if slash:
        labels = prefix.split(".")
        if len(prefix) > 253 or not all(_DNS_LABEL.fullmatch(label) for label in labels):
            return (
                f"Invalid label key prefix `{prefix}`. Prefix must be a series of DNS labels "
                "separated by dots (.), not longer than 253 characters in total."
            )
    if not _LABEL.fullmatch(name):
        return f"Invalid label key name `{name}`. Name {_LABEL_RULE}"
    return None


def _refuse_label_value(value: str) -> str | None:
    if listed := _LABEL_IN.fullmatch(value):
        parts = [part.strip() for part in listed["values"].split(",")]
    else:
        parts = [value.removeprefix("!")]
    if value == "" or all(_LABEL.fullmatch(part) for part in parts):
        return None
    return (
        f"Invalid label selector value `{value}`. The label selector value should contain optional "
        "operators and a label value. Supported operators are: ! and {'in'}. "
        f"Value {_LABEL_RULE}"
    )


def _fallback_strategy(strategy: Sequence[object] | None) -> str | None:
    for each in strategy or ():
        if not isinstance(each, dict):
            return "Each element in fallback_strategy must be a dictionary."
        if not each:
            return "Empty dictionary found in `fallback_strategy`."
        for name in each:
            if name != "label_selector":
                return (
                    f"Unsupported option found: '{name}'. "
                    "Only ['label_selector'] is currently supported."
                )
        if reason := _label_selector(each.get("label_selector")):
            return reason
    return None


def _scheduling_strategy(value: object) -> None:
    if not isinstance(value, str | _NoneType) and not hasattr(value, "to_strategy"):
        raise TypeError(
            "The type of keyword 'scheduling_strategy' must be (<class 'NoneType'>, <class 'str'>, or "
            f"one of raylite.util.scheduling_strategies), but received type {type(value)}"
        )


def _placement_group(value: object) -> None:
    if value not in (None, "default"):
        raise NotImplementedError(
            f"placement_group={value!r}: placement groups are not supported yet; "
            "'placement_group' may be None"
        )


def _task_labels(labels: Mapping[object, object] | None) -> str | None:
    for which, texts in (("key", (labels or {}).keys()), ("value", (labels or {}).values())):
        for text in texts:
            if not isinstance(text, str):
                return f"Label {which} must be string, but got {type(text)}"
            if reason := refuse_text(f"A {which} of the keyword '_labels'", text):
                return reason
    return None


def _runtime_env(value: Mapping[object, object] | None) -> None:
    variables_of(value, of_job=False)


def _num_returns(value: int | str | None) -> str | None:
    if value is None or value in ("streaming", "dynamic"):
        return None
    if isinstance(value, int) and value >= 2**31:
        return f"The keyword 'num_returns' only accepts numbers below 2**31, not {_shown(value)}"
    if isinstance(value, int) and value >= 0:
        return None
    return (
        "Default None. When None is passed, The default value is 1 for a task and actor task, and "
        "'streaming' for generator tasks and generator actor tasks. The keyword 'num_returns' only "
        "accepts None, a non-negative integer, 'streaming' (for generators), or 'dynamic'. "
        "'dynamic' flag will be deprecated in the future, and it is recommended to use 'streaming' "
        "instead."
    )


def _retry_exceptions(value: bool | Sequence[object]) -> str | None:
    if isinstance(value, bool):
        return None
    if all(isinstance(each, type) and issubclass(each, Exception) for each in value):
        return None
    return "retry_exceptions must be either a boolean or a list of exceptions"


def _backpressure(value: int | None) -> str | None:
    if value is not None and value > _MOST:
        return _too_many("_generator_backpressure_num_objects", value)
    if value is None or value == -1 or value > 0:
        return None
    # Ray: lets numbers below -1 pass, as if they were -1.
    return (
        f"_generator_backpressure_num_objects={value} is not allowed. Use a value > 0. If the "
        "value is equal to 1, the behavior is identical to Python generator (generator 1 object "
        "whenever `next` is called). Use -1 to disable this feature. "
    )


def _actor_backpressure(value: int | None) -> str | None:
    if value is not None and value > _MOST:
        return _too_many("_actor_generator_backpressure_num_objects", value)
    if value is None or value == -1 or value > 0:
        return None
    return (
        "_actor_generator_backpressure_num_objects must be > 0 to cap the actor's total unconsumed "
        f"generator objects, or -1 to disable. Got {value}."
    )


def _objects_per_yield(value: int | None) -> str | None:
    if value is not None and value > _MOST:
        return _too_many("_num_objects_per_yield", value)
    if value is None or value > 0:
        return None
    return (
        "_num_objects_per_yield is a private streaming generator option that must be set to a "
        "positive integer."
    )


def _not_for_tasks(value: object) -> str | None:
    if value is None:
        return None
    return "Setting 'object_store_memory' is not implemented for tasks"


def _lifetime(value: str | None) -> str | None:
    if value in (None, "detached", "non_detached"):
        return None
    return "actor `lifetime` argument must be one of 'detached', 'non_detached' and 'None'."


def _actor_name(value: str | None) -> str | None:
    # Ray: takes a name of blanks.
    if value is None:
        return None
    return _text("name")(value) if value.strip() else "Actor name cannot be an empty string."


def _namespace(value: str | None) -> str | None:
    if value is None or value.strip():
        return None if value is None else refuse_text("The keyword 'namespace'", value)
    return f'"{value}" is not a valid namespace. Pass None to not specify a namespace.'


def _logging_level(value: int | str) -> str | None:
    if isinstance(value, int) or value in logging.getLevelNamesMapping():
        return None
    known = ", ".join(logging.getLevelNamesMapping())
    return f"There is no logging level {value!r}: give a number, or one of {known}"


# --- The table ---


class Option(Struct, frozen=True):
    """A keyword: what its value may be, and what it is when it is not given."""

    name: str
    types: type | tuple[type, ...]
    default: object = None
    check: Check | None = None
    only_decorator: bool = False

    def refuse(self, value: object, *, in_options: bool) -> None:
        """Raise what is wrong with a value; do nothing if nothing is."""
        if not isinstance(value, self.types):
            raise TypeError(
                f"The type of keyword '{self.name}' must be {self.types}, "
                f"but received type {type(value)}"
            )
        if self.check is not None and (reason := self.check(value)) is not None:
            raise ValueError(reason)
        if in_options and self.only_decorator:
            raise ValueError(f"Setting '{self.name}' is not supported in '.options()'.")


_KINDS = {
    int: "a number",
    float: "a number",
    PathLike: "a path",
    str: "a string",
    dict: "a dictionary",
    _NoneType: "None",
}

_INT = (int, _NoneType)
_BOOL = (bool, _NoneType)
_FLAG = (bool, int, _NoneType)  # what Ray takes for one: it never looks
_NUMBER = (float, int, _NoneType)
_STR = (str, _NoneType)
_DICT = (dict, _NoneType)
_LIST = (list, _NoneType)


def _common(num_cpus: int | None, name: Check, store: Check) -> list[Option]:
    """The keywords that tasks and actors share, and in what they differ."""
    return [
        Option("label_selector", _DICT, check=_label_selector),
        Option("fallback_strategy", _LIST, check=_fallback_strategy),
        Option("accelerator_type", _STR, check=_text("accelerator_type")),
        Option("memory", _NUMBER, check=_quantity("memory")),
        Option("name", _STR, check=name),
        Option("num_cpus", _NUMBER, num_cpus, _quantity("num_cpus")),
        Option("num_gpus", _NUMBER, check=_quantity("num_gpus")),
        Option("object_store_memory", _INT, check=store),
        Option("placement_group", object, "default", _placement_group),
        Option("placement_group_bundle_index", int, -1),
        Option("placement_group_capture_child_tasks", _BOOL),
        Option("resources", _DICT, check=_resources),
        Option("runtime_env", _DICT, check=_runtime_env),
        Option("scheduling_strategy", object, check=_scheduling_strategy),
        Option("enable_task_events", bool, default=True),
        Option("_labels", _DICT, check=_task_labels),
    ]


_TASK: dict[str, Option] = {
    option.name: option
    for option in [
        *_common(1, _text("name"), _not_for_tasks),
        Option("max_calls", _INT, 0, _count("max_calls", infinite=False), only_decorator=True),
        Option("max_concurrency", _INT, check=_positive("max_concurrency")),
        Option("max_retries", _INT, 3, _count("max_retries", infinite=True)),
        Option("num_returns", (int, str, _NoneType), check=_num_returns),
        Option("timeout", _NUMBER, check=_seconds("timeout")),
        Option("deadline", _NUMBER, check=_seconds("deadline")),
        Option("retry_exceptions", (bool, list, tuple), False, _retry_exceptions),
        Option("_generator_backpressure_num_objects", _INT, check=_backpressure),
        Option("_num_objects_per_yield", _INT, 1, _objects_per_yield),
    ]
}

_ACTOR: dict[str, Option] = {
    option.name: option
    for option in [
        *_common(None, _actor_name, _count("object_store_memory", infinite=False)),
        Option("concurrency_groups", (list, dict, _NoneType), only_decorator=True),
        Option("lifetime", _STR, check=_lifetime),
        Option("max_concurrency", _INT, check=_count("max_concurrency", infinite=False)),
        Option("max_restarts", _INT, 0, _count("max_restarts", infinite=True)),
        Option("max_task_retries", _INT, 0, _count("max_task_retries", infinite=True)),
        Option("max_pending_calls", _INT, -1, _count("max_pending_calls", infinite=True)),
        Option("namespace", _STR, check=_namespace),
        Option("get_if_exists", bool, default=False),
        Option("allow_out_of_order_execution", _BOOL),
        Option("_actor_generator_backpressure_num_objects", _INT, check=_actor_backpressure),
    ]
}

_INIT: dict[str, Option] = {
    option.name: option
    for option in [
        Option("address", _STR),
        Option("ignore_reinit_error", _FLAG),
        Option("log_to_driver", _FLAG),
        Option("logging_level", (int, str), check=_logging_level),
        Option("_temp_dir", (str, PathLike, _NoneType)),
        Option("num_cpus", _NUMBER, check=_offer("num_cpus")),
        Option("num_gpus", _NUMBER, check=_offer("num_gpus")),
        Option("resources", _DICT, check=_offers),
        Option("labels", _DICT, check=_node_labels),
        Option("object_store_memory", _NUMBER, check=_store),
        Option("namespace", _STR, check=_namespace),
        Option("runtime_env", _DICT),
        Option("_memory", _NUMBER, check=_offer("memory")),
        Option("_system_config", _DICT, check=refuse_settings),
    ]
}

TASK_OPTIONS: Mapping[str, Option] = _TASK
ACTOR_OPTIONS: Mapping[str, Option] = _ACTOR


def decorator_error() -> str:
    """Why ``@remote()`` and ``@remote(something)`` are refused."""
    names = list(_TASK | _ACTOR)
    return (
        "The @raylite.remote decorator must be applied either with no arguments and no "
        "parentheses, for example '@raylite.remote', or it must be applied using some of the "
        f"arguments in the list {names}, for example "
        "'@raylite.remote(num_returns=2, resources={\"CustomResource\": 1})'."
    )


def validate_task_options(
    options: Mapping[str, object],
    in_options: bool,
    *,
    is_generator: bool | None = None,
    is_async: bool = False,
) -> None:
    """Raise a ValueError or a TypeError for the first option that a task cannot have.

    Args:
        options: What the user gave.
        in_options: Whether in ``.options()``, which takes less than the decorator.
        is_generator: Whether the function yields, if known.
        is_async: Whether it is an ``async def``.
    """
    _validate(options, _TASK, "remote functions", in_options)
    num_returns = options.get("num_returns")
    if num_returns == "dynamic":
        warnings.warn(
            "num_returns='dynamic' is deprecated and will be removed in a future raylite release. "
            "Use num_returns='streaming' instead.",
            DeprecationWarning,
            stacklevel=4,
        )
    if is_generator is False and isinstance(num_returns, str):
        raise ValueError(
            f"num_returns='{num_returns}' can only be used with generator functions (functions "
            "that use 'yield'). The decorated function is not a generator function."
        )
    # Ray: has no such option for tasks.
    if options.get("max_concurrency") is not None and not is_async:
        raise ValueError(
            "The keyword 'max_concurrency' is for 'async def' functions, whose tasks overlap in a "
            "worker. The decorated function is not one: its tasks run one after another in each of "
            "several workers. Leave the keyword out, or write 'async def'."
        )


def validate_init_options(options: Mapping[str, object]) -> None:
    """Refuse amounts and settings that a node cannot have.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A value is impossible.
    """
    for name, value in options.items():
        option = _INIT[name]
        if not isinstance(value, option.types):
            kinds = option.types if isinstance(option.types, tuple) else (option.types,)
            named = "True or False" if kinds is _FLAG else ""
            wanted = named or " or ".join(dict.fromkeys(_KINDS[kind] for kind in kinds))
            raise TypeError(f"The keyword '{name}' must be {wanted}, not {value!r:.100}")
        option.refuse(value, in_options=False)


def validate_actor_options(options: Mapping[str, object], in_options: bool) -> None:
    """Raise a ValueError or a TypeError for the first option that an actor cannot have."""
    _validate(options, _ACTOR, "actors", in_options)
    if options.get("get_if_exists") and options.get("name") is None:
        raise ValueError("The actor name must be specified to use `get_if_exists`.")


def _validate(
    options: Mapping[str, object], table: dict[str, Option], whose: str, in_options: bool
) -> None:
    for name, value in options.items():
        option = table.get(name)
        if option is None:
            raise ValueError(
                f"Invalid option keyword {name} for {whose}. Valid ones are {list(table)}."
            )
        option.refuse(value, in_options=in_options)


def decorated(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's options as its decorator has them: a process that has used a GPU ends after it.

    For it may go on holding the GPU's memory.
    """
    if options.get("num_gpus") and options.get("max_calls") is None:
        return {**options, "max_calls": 1}
    return dict(options)


def refuse_other_yields(original: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise if ``.options(**new)`` changes what each ``yield`` of a function means."""
    name = "_num_objects_per_yield"
    if name in new and new[name] != (original.get(name) or 1):
        raise ValueError(
            f"{name} cannot be overridden per task call. Use @raylite.remote({name}=...) instead."
        )


def update_options(original: Mapping[str, object], new: Mapping[str, object]) -> dict[str, object]:
    """The options of ``.options(**new)`` on something that has `original`: the new ones win.

    A mapping among them (resources, a runtime environment) is replaced whole, not merged.
    """
    return {**original, **new}


# --- What a task is submitted with ---


class TaskOptions(Struct, frozen=True):
    """All options of one task, defaults filled in."""

    num_cpus: float = 1
    num_gpus: float = 0
    memory: int = 0
    resources: Mapping[str, float] | None = None
    accelerator_type: str | None = None
    num_returns: int | Literal["streaming", "dynamic"] | None = None
    max_retries: int = 3
    retry_exceptions: bool | tuple[type[Exception], ...] = False
    max_concurrency: int = 1000  # as Ray's asynchronous actors have
    name: str | None = None
    runtime_env: Mapping[str, Any] | None = None
    scheduling_strategy: Any = None
    label_selector: Mapping[str, str] | None = None
    fallback_strategy: tuple[Mapping[str, Mapping[str, str]], ...] = ()
    placement_group: Any = "default"
    placement_group_bundle_index: int = -1
    placement_group_capture_child_tasks: bool | None = None
    enable_task_events: bool = True
    labels: Mapping[str, str] | None = None
    backpressure: int = -1
    objects_per_yield: int = 1
    timeout: float | None = None
    deadline: float | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any], *, max_retries: int = 3) -> Self:
        """The options of a task, from keywords that `validate_task_options` let pass.

        Args:
            options: The decorator's keywords, updated with those of ``.options()``.
            max_retries: The default for tasks that do not say.

        Raises:
            ValueError: The keywords cannot be carried out.
        """
        given = {name: value for name, value in options.items() if value is not None}
        num_gpus = given.get("num_gpus", 0)
        resources = given.get("resources", {})
        for device, quantity in {**resources, "GPU": num_gpus}.items():
            if device in VISIBLE and quantity > 1 and quantity != int(quantity):
                raise ValueError(
                    f"{device} resource quantities >1 must be whole numbers. "
                    f"The specified quantity {quantity} is invalid."
                )
        if "memory" in resources or "object_store_memory" in resources:
            raise ValueError(
                "The resources dictionary must not contain the key 'memory' or "
                "'object_store_memory'"
            )
        if "bundle" in resources:
            raise ValueError(
                "The resource should not include `bundle` which is reserved for Ray. "
                f"resources: {resources}"
            )
        if given.get("placement_group_bundle_index", -1) != -1:
            raise ValueError("If placement group is not set, the value of bundle index must be -1.")
        strategy = given.get("scheduling_strategy")
        if isinstance(strategy, str) and strategy not in ("DEFAULT", "SPREAD"):
            raise ValueError(
                f"Invalid scheduling_strategy value {strategy}. Valid values are "
                '["DEFAULT" | "SPREAD" | PlacementGroupSchedulingStrategy '
                "| NodeAffinitySchedulingStrategy]"
            )
        retried = given.get("retry_exceptions", False)
        return cls(
            num_cpus=given.get("num_cpus", 1),
            num_gpus=num_gpus,
            memory=int(given.get("memory", 0)),
            resources=resources or None,
            accelerator_type=given.get("accelerator_type"),
            num_returns=given.get("num_returns"),
            max_retries=given.get("max_retries", max_retries),
            retry_exceptions=retried if isinstance(retried, bool) else tuple(retried),
            max_concurrency=given.get("max_concurrency", 1000),
            name=given.get("name"),
            runtime_env=given.get("runtime_env"),
            scheduling_strategy=strategy,
            label_selector=given.get("label_selector"),
            fallback_strategy=tuple(given.get("fallback_strategy", ())),
            # None is a value of its own: no group, whatever that of the parent.
            placement_group=options.get("placement_group", "default"),
            placement_group_bundle_index=given.get("placement_group_bundle_index", -1),
            placement_group_capture_child_tasks=given.get("placement_group_capture_child_tasks"),
            enable_task_events=given.get("enable_task_events", True),
            labels=given.get("_labels"),
            backpressure=given.get("_generator_backpressure_num_objects", -1),
            objects_per_yield=given.get("_num_objects_per_yield", 1),
            timeout=given.get("timeout"),
            deadline=given.get("deadline"),
        )

    def demand(self) -> dict[str, float]:
        """What the task needs of a node, without what it needs none of."""
        demand: dict[str, float] = {
            "CPU": self.num_cpus,
            "GPU": self.num_gpus,
            "memory": self.memory,
            **(self.resources or {}),
        }
        if self.accelerator_type is not None:
            demand[f"accelerator_type:{self.accelerator_type}"] = 0.001
        return {name: quantity for name, quantity in demand.items() if quantity}

    def slots(self, total: Mapping[str, float]) -> float:
        """How many such tasks can run at once on nodes that have so much together."""
        shares = [total.get(name, 0.0) / each for name, each in self.demand().items()]
        return min(shares, default=total.get("CPU", 1.0))
