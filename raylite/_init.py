"""A cluster's beginning and end as users see it: `init` and `shutdown`.

This module loads little, so that `init` can start a node's processes first. What the API and the
session need besides, most of raylite, loads while the node does the same.
"""

import logging
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, Self

from raylite._options import validate_init_options
from raylite._runtime import beginnings, interrupts, joining, local, presence
from raylite._runtime.guest import GuestNode
from raylite._runtime.local import SessionOptions
from raylite._runtime.presence import Attached
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
        self.ray_version = __version__
        self.python_version = ".".join(map(str, sys.version_info[:3]))
        self.ray_commit = ""
        self.dashboard_url = ""
        self.address_info = {
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
        shutdown()

    def disconnect(self) -> None:
        """Do what `shutdown` does."""
        shutdown()

    def __repr__(self) -> str:
        return f"RayContext({self.address_info['address']!r})"


def init(
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
    object_store_memory: int | None = None,
    ignore_reinit_error: bool = False,
    logging_level: int | str = logging.INFO,
    log_to_driver: bool = True,
    namespace: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    _memory: float | None = None,
    _temp_dir: str | None = None,
    _system_config: Mapping[str, bool | int | float | str] | None = None,
    **accepted: Any,
) -> RayContext:
    """Connect to a cluster, or start one that ends with this process or with `shutdown`.

    Blocks until tasks can run, about a third of a second for a new cluster. Calling any other
    function of raylite first does this with the defaults. A cluster that was running before goes on
    when this process leaves it.

    Args:
        address: None means what ``RAYLITE_ADDRESS`` or ``RAY_ADDRESS`` name, else the cluster that
            ``raylite start`` began or joined last on this machine, else a new one. ``"auto"``
            means the same but a new one. ``"local"`` is always a new one. ``"HOST:PORT"`` is the
            cluster whose head listens there, and a session directory that of the node it belongs
            to; either has to have a node on this machine.
        num_cpus: CPUs that tasks may occupy together; None takes what this process may use. This,
            the next four and ``_system_config`` are a new cluster's only.
        num_gpus: GPUs, likewise; None offers none.
        resources: Further resources by name, in any unit you like.
        labels: Labels of the node.
        object_store_memory: Bytes for large objects; None takes 30 % of the machine's memory,
            used only as objects fill it. At least 75 MiB.
        ignore_reinit_error: Return the running session's context instead of raising.
        logging_level: The level of the ``raylite`` logger.
        log_to_driver: Show what tasks print, with a prefix that says which.
        namespace: The job's namespace; None gives it one of its own.
        runtime_env: Only ``{"env_vars": {...}}``: set for this process's workers.
        _memory: Bytes of the resource ``memory``.
        _temp_dir: Where sessions are made, and looked for; else ``RAYLITE_TMPDIR``, ``RAY_TMPDIR``
            or the system's directory for temporary files.
        _system_config: Settings of the components. ``object_store_full_grace``: seconds that an
            object waits for room in shared memory, 60 by default.
        **accepted: Ray's other keywords, which a local cluster has no use for.

    Raises:
        ConnectionError: The cluster that is named, or any with ``"auto"``, has no node here.
        ValueError: A keyword of new clusters is given, and there is a cluster to connect to.
        RuntimeError: There is a session already, a keyword is unknown, or the cluster runs another
            version of raylite or of Python.
        RaySystemError: The cluster did not start; the message has the log.

    Example:
        >>> with init(num_cpus=2):  # doctest: +SKIP
        ...     ...
    """
    if unknown := [name for name in accepted if name not in _ACCEPTED]:
        raise RuntimeError(f"Unknown keyword argument(s): {', '.join(unknown)}")
    validate_init_options(
        {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "resources": resources,
            "labels": labels,
            "object_store_memory": object_store_memory,
            "namespace": namespace,
            "runtime_env": runtime_env,
            "_memory": _memory,
            "_system_config": _system_config,
        }
    )
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
            guest = joining.find(address, _temp_dir or "", only_new)
            options = SessionOptions(
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                resources=resources,
                memory=_memory,
                labels=labels,
                object_store_memory=object_store_memory,
                namespace=namespace or os.urandom(16).hex(),
                log_to_driver=log_to_driver,
                temp_dir=_temp_dir or "",
                env_vars=_env_vars(runtime_env),
                system=dict(_system_config or {}),
            )
            return _begin(options, guest)
    if ignore_reinit_error:
        logger.info("Calling raylite.init() again after it has already been called.")
        return RayContext(here)
    raise RuntimeError(
        "Maybe you called raylite.init twice by accident? This error can be suppressed by passing "
        "in 'ignore_reinit_error=True' or by calling 'raylite.shutdown()' prior to 'raylite.init()'."
    )


def _begin(options: SessionOptions, guest: GuestNode | None) -> RayContext:
    with interrupts.held() as interrupt:
        node = guest or local.start_node(options)
        interrupt.hurry(node.kill)
        try:
            started = RayContext(_sessions().start(options, node).place)
            interrupt.raise_if_interrupted()
        except BaseException:
            shutdown()
            node.stop()
            raise
        return started


def _sessions() -> ModuleType:
    """Return the session's module, loading with it what the program will use next."""
    import_module("raylite._api")
    return import_module("raylite._runtime.session")


def shutdown(*, wait_for_processes: bool = False) -> None:
    """End this process's session and the cluster it started, leaving nothing behind.

    Does nothing without a session. References and objects of the session are of no use afterwards;
    remote functions work again after another `init`.

    Args:
        wait_for_processes: Accepted for Ray's sake: the processes are always waited for.
    """
    if presence.current() is not None:
        _sessions().stop()


def is_initialized() -> bool:
    """Return whether this process is attached to a cluster."""
    return presence.current() is not None


def _env_vars(runtime_env: Mapping[str, Any] | None) -> dict[str, str]:
    if not runtime_env:
        return {}
    if unknown := set(runtime_env) - {"env_vars"}:
        raise ValueError(
            f"runtime_env fields {sorted(unknown)} are not supported yet; only env_vars is"
        )
    variables = runtime_env["env_vars"]
    if not isinstance(variables, Mapping):
        raise TypeError(f"runtime_env['env_vars'] must be a dictionary, not {type(variables)}")
    for name, value in variables.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"runtime_env['env_vars'] must map str to str, got {name!r}: {value!r}")
    return dict(variables)
