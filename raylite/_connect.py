"""What `init` and `shutdown` do, once they have begun.

This module loads what it takes to start a node, which has begun to load meanwhile. What the API and
the session need besides, most of raylite, loads while the node starts.
"""

import logging
import os
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Self

from raylite._options import validate_init_options
from raylite._runtime import beginnings, interrupts, joining, local, presence
from raylite._runtime.guest import GuestNode
from raylite._runtime.interpreter import Interpreter
from raylite._runtime.loading import load
from raylite._runtime.local import SessionOptions
from raylite._runtime.presence import Attached
from raylite._runtime.settings import setting
from raylite._types.environment import variables_of
from raylite._version import __version__

logger = logging.getLogger("raylite")

# Ray: keywords that `init` takes and that have no effect on a local cluster of this kind.
_ACCEPTED = {
    "include_dashboard", "dashboard_host", "dashboard_port", "job_config", "configure_logging",
    "logging_format", "logging_config", "_metrics_export_port", "_node_ip_address", "_node_name",
    "_plasma_directory", "_driver_object_store_memory", "_enable_object_reconstruction",
    "_tracing_startup_hook", "_skip_env_hook", "object_spilling_directory",
    "enable_resource_isolation",
}  # fmt: skip


class RayContext(Mapping[str, Any]):
    """What `init` returns: where the cluster is. As a context manager it ends with `shutdown`."""

    def __init__(self, place: Attached) -> None:
        self.ray_version: str = __version__
        self.python_version: str = ".".join(map(str, sys.version_info[:3]))
        self.ray_commit = ""
        self.dashboard_url = ""
        self.address_info: dict[str, Any] = {
            "node_ip_address": place.ip,
            "raylet_ip_address": place.ip,
            "object_store_address": None,
            "raylet_socket_name": f"{place.session_dir}/sockets/raylet.sock",
            "webui_url": "",
            "session_dir": place.session_dir,
            "metrics_export_port": None,
            "dashboard_agent_listen_port": None,
            "gcs_address": place.cluster,
            "address": place.cluster,
            "node_id": place.node_id.hex(),
        }

    def __getitem__(self, key: str) -> Any:
        return self.address_info[key]

    def __iter__(self) -> Any:
        return iter(self.address_info)

    def __len__(self) -> int:
        return len(self.address_info)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        disconnect()

    def disconnect(self) -> None:
        """Do what `shutdown` does."""
        disconnect()

    def __repr__(self) -> str:
        return f"RayContext({self.address_info['address']!r})"


def connect(
    address: str | None,
    interpreter: Interpreter | None,
    *,
    num_cpus: float | None,
    num_gpus: float | None,
    resources: Mapping[str, float] | None,
    labels: Mapping[str, str] | None,
    object_store_memory: int | None,
    ignore_reinit_error: bool,
    logging_level: int | str,
    log_to_driver: bool,
    namespace: str | None,
    runtime_env: Mapping[str, Any] | None,
    _memory: float | None,
    _temp_dir: str | os.PathLike[str] | None,
    _system_config: Mapping[str, Any] | None,
    accepted: Mapping[str, Any],
) -> RayContext:
    """Do what `init` promises; a new cluster starts in the interpreter, if one was begun."""
    namespace = _namespace() if namespace is None else namespace
    if unknown := [name for name in accepted if name not in _ACCEPTED]:
        raise RuntimeError(f"Unknown keyword argument(s): {', '.join(unknown)}")
    validate_init_options(
        {
            "address": address,
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "resources": resources,
            "labels": labels,
            "object_store_memory": object_store_memory,
            "ignore_reinit_error": ignore_reinit_error,
            "logging_level": logging_level,
            "log_to_driver": log_to_driver,
            "namespace": namespace,
            "runtime_env": runtime_env,
            "_memory": _memory,
            "_temp_dir": _temp_dir,
            "_system_config": _system_config,
        }
    )
    temp_dir = os.fspath(_temp_dir or "")
    logger.setLevel(logging_level)
    with beginnings.alone():
        here = presence.current()
        if here is None:
            only_new = {
                "num_cpus": num_cpus,
                "num_gpus": num_gpus,
                "resources": resources,
                "labels": labels,
                "object_store_memory": object_store_memory,
                "_memory": _memory,
                "_system_config": _system_config,
                "_node_name": accepted.get("_node_name"),
            }
            guest = joining.find(address, temp_dir, only_new)
            options = SessionOptions(
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                resources=resources,
                memory=_memory,
                labels=labels,
                object_store_memory=object_store_memory,
                namespace=namespace or os.urandom(16).hex(),
                log_to_driver=log_to_driver,
                temp_dir=temp_dir,
                env_vars=variables_of(runtime_env, of_job=True),
                system=dict(_system_config or {}),
            )
            return _begin(options, guest, interpreter)
    if ignore_reinit_error:
        logger.info("Calling raylite.init() again after it has already been called.")
        return RayContext(here)
    raise RuntimeError(
        "Maybe you called raylite.init twice by accident? This error can be suppressed by passing "
        "in 'ignore_reinit_error=True' or by calling 'raylite.shutdown()' prior to 'raylite.init()'."
    )


def _namespace() -> str | None:
    """Return the namespace that the environment names, if it does."""
    variable, namespace = setting("NAMESPACE")
    if not namespace:
        return None
    try:
        validate_init_options({"namespace": namespace})
    except ValueError as error:
        raise ValueError(f"{variable}: {error}") from error
    return namespace


def _begin(
    options: SessionOptions, guest: GuestNode | None, interpreter: Interpreter | None
) -> RayContext:
    with interrupts.held() as interrupt:
        node = guest or local.start_node(options, interpreter)
        interrupt.hurry(node.kill)
        try:
            started = RayContext(_sessions().start(options, node).place)
            interrupt.raise_if_interrupted()
        except BaseException:
            disconnect()
            node.stop()
            raise
        return started


def _sessions() -> ModuleType:
    """Return the session's module, loading with it what the program will use next."""
    load("raylite._api")
    return load("raylite._runtime.session")


def disconnect() -> None:
    """Do what `shutdown` promises."""
    if presence.current() is not None:
        _sessions().stop()
