"""What `init` asked for, and the node started or found for it.

Apart from the session, which needs much more code: that is loaded while the node starts.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct, field

from raylite._runtime import launch, overrides, settings
from raylite._runtime.interpreter import Interpreter
from raylite._runtime.launch import NodeProcess
from raylite._runtime.machine import (
    default_cpus,
    default_gpus,
    default_memory,
    default_object_store,
    total_memory,
)
from raylite._runtime.node import NodeConfig
from raylite._types import board
from raylite._types.accelerators import VISIBLE, listed
from raylite._types.system_config import effective, from_environment, without_effect

logger = logging.getLogger("raylite")
_told: dict[str, None] = {}  # settings of which this process has warned


class SessionOptions(Struct, frozen=True):
    """What `init` was asked for. None leaves it to the machine."""

    num_cpus: float | None = None
    num_gpus: float | None = None
    resources: Mapping[str, float] | None = None
    memory: float | None = None
    labels: Mapping[str, str] | None = None
    object_store_memory: int | None = None
    namespace: str = ""
    log_to_driver: bool = True
    temp_dir: str = ""
    env_vars: Mapping[str, str] = field(default_factory=dict)
    system: Mapping[str, Any] = field(default_factory=dict)


def start_node(options: SessionOptions, interpreter: Interpreter | None = None) -> NodeProcess:
    """Start a node, in an interpreter that was begun for it; not ready yet when this returns."""
    return launch.start(node_config(options), interpreter=interpreter)


_ELSEWHERE = {
    "memory": "say it with --memory, or _memory of init",
    "object_store_memory": "say it with --object-store-memory, or object_store_memory of init",
    "node:__internal_head__": "that is the head's own, so choose another name",
}


def node_config(options: SessionOptions) -> NodeConfig:
    """Return what makes a node offer what was asked for, the machine's own where nothing was.

    Raises:
        ValueError: That is no resource of a name of its own, or more than there is.
    """
    for name, remedy in _ELSEWHERE.items():
        if name in (options.resources or {}):
            raise ValueError(f"the resource {name!r} cannot be among the resources: {remedy}")
    asked = overrides.resources()
    cpus = asked.pop("CPU", options.num_cpus)
    given = asked.pop("GPU", options.num_gpus)
    gpus, model = default_gpus() if given is None else (given, "")
    memory = asked.pop("memory", options.memory)
    store = int(asked.pop("object_store_memory", options.object_store_memory or 0))
    store = store or default_object_store()
    if store > (total := total_memory()):
        raise ValueError(
            f"object_store_memory is {store} bytes, and this machine has {total}: ask for less"
        )
    resources = {**(options.resources or {}), **asked}
    visible = listed(os.environ.get(VISIBLE["GPU"]))
    if visible is not None and gpus > len(visible):
        raise ValueError(
            f"Attempting to start raylet with {gpus} GPU, but {VISIBLE['GPU']} contains {visible}."
        )
    if gpus:
        resources["GPU"] = gpus
    if model:
        resources.setdefault(f"accelerator_type:{model}", 1)
    _warn_of_settings(options.system)
    resources["memory"] = default_memory(store) if memory is None else memory
    resources["object_store_memory"] = float(store)
    return NodeConfig(
        num_cpus=default_cpus() if cpus is None else cpus,
        object_store_memory=store + board.SIZE,
        resources=resources,
        labels={**overrides.labels(model), **(options.labels or {})},
        system={**effective(options.system), **from_environment()},
        temp_dir=options.temp_dir,
        node_id=os.urandom(28).hex(),
        rotation=settings.rotation(),
    )


def _warn_of_settings(names: Iterable[str]) -> None:
    """Say once of each of Ray's settings that it has no effect: a program may count on it."""
    if new := [name for name in without_effect(names) if name not in _told]:
        _told.update(dict.fromkeys(new))
        logger.warning("These of Ray's settings have no effect in raylite: %s", ", ".join(new))
