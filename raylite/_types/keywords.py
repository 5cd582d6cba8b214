"""Keywords: the options of tasks as type checkers know them. `_options.py` has what is checked at run time."""

from typing import Any, Literal, Protocol, TypeAlias, TypedDict

from raylite._types.strategies import Strategy

Several: TypeAlias = Literal[2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
"""Numbers of returns that a type checker can tell to be a list of references."""


class HasStrategy(Protocol):
    """The classes of `raylite.util.scheduling_strategies`."""

    def to_strategy(self) -> Strategy:
        """Return it as the scheduler knows it."""
        ...


class TaskKeywords(TypedDict, total=False):
    """What ``.options()`` takes, but for ``num_returns``, which changes what a call returns."""

    num_cpus: float | None
    num_gpus: float | None
    memory: float | None
    resources: dict[str, float] | dict[str, int] | None
    accelerator_type: str | None
    label_selector: dict[str, str] | None
    fallback_strategy: list[dict[str, dict[str, str]]] | None
    scheduling_strategy: HasStrategy | Literal["DEFAULT", "SPREAD"] | None
    placement_group: Any
    placement_group_bundle_index: int
    placement_group_capture_child_tasks: bool | None
    name: str | None
    runtime_env: dict[str, Any] | None
    max_concurrency: int | None
    max_retries: int | None
    retry_exceptions: bool | list[type[Exception]] | tuple[type[Exception], ...]
    timeout: float | None
    deadline: float | None
    enable_task_events: bool
    _labels: dict[str, str] | None
    _generator_backpressure_num_objects: int | None
    _num_objects_per_yield: int | None


class DecoratorKeywords(TaskKeywords, total=False):
    """What ``@remote(...)`` takes, but for ``num_returns``."""

    max_calls: int | None
