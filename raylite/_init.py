"""A cluster's beginning and end as users see it: `init` and `shutdown`.

This module loads next to nothing (not even `typing`), so that the first `init` of a program can begin
the interpreter of a new node before it loads what itself needs: each takes about as long.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

from raylite._runtime import interrupts, nurseries
from raylite._runtime.interpreter import Interpreter, import_path
from raylite._runtime.loading import load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType
    from typing import Any

    from raylite._connect import RayContext

_HEAVY = "raylite._connect"
_PRESENCE = "raylite._runtime.presence"
_INFO = 20  # `logging.INFO`


def init(
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
    object_store_memory: int | None = None,
    ignore_reinit_error: bool = False,
    logging_level: int | str = _INFO,
    log_to_driver: bool = True,
    namespace: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    _memory: float | None = None,
    _temp_dir: str | os.PathLike[str] | None = None,
    _system_config: Mapping[str, Any] | None = None,
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
        num_gpus: GPUs, likewise; None takes those of NVIDIA's that ``CUDA_VISIBLE_DEVICES`` lets see.
        resources: Further resources by name, in any unit you like.
        labels: Labels of the node, besides `ray.io/node-id`. Those that begin with `ray.io/` are refused.
        object_store_memory: Bytes for large objects; None takes 30 % of the machine's memory,
            used only as objects fill it. At least 75 MiB.
        ignore_reinit_error: Return the running session's context instead of raising.
        logging_level: The level of the ``raylite`` logger.
        log_to_driver: Show what tasks print, with a prefix that says which.
        namespace: The job's namespace; None means what ``RAYLITE_NAMESPACE`` or ``RAY_NAMESPACE``
            name, else one of its own.
        runtime_env: Only ``{"env_vars": {...}}``: set for this process's workers, before those of tasks.
        _memory: Bytes of the resource ``memory``; None takes what is available beside the objects.
        _temp_dir: Where sessions are made, and looked for; else ``RAYLITE_TMPDIR``, ``RAY_TMPDIR``
            or the system's directory for temporary files.
        _system_config: Settings of the components. ``object_store_full_grace``: seconds that an
            object waits for room in shared memory, 60 by default. ``task_oom_retries``: how often a
            task runs again that was ended for want of memory, -1 (no limit) by default.
            ``infeasible_grace_s``: seconds after which a task fails that no node could run
            meanwhile, 300 by default; -1 lets it wait for ever, as in Ray. Of Ray's settings a few
            have an effect, of the others a warning says that they have none: see the cluster's page.
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
    with (
        interrupts.held() as interrupt
    ):  # a Ctrl-C in an import leaves files open, and half a module
        interpreter = _begin_early(address, _temp_dir)
        try:
            heavy = _heavy()
            interrupt.raise_if_interrupted()
            return heavy.connect(  # type: ignore[no-any-return]
                address,
                interpreter,
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                resources=resources,
                labels=labels,
                object_store_memory=object_store_memory,
                ignore_reinit_error=ignore_reinit_error,
                logging_level=logging_level,
                log_to_driver=log_to_driver,
                namespace=namespace,
                runtime_env=runtime_env,
                _memory=_memory,
                _temp_dir=_temp_dir,
                _system_config=_system_config,
                accepted=accepted,
            )
        finally:
            if interpreter is not None and interpreter.end is not None:
                interpreter.close()  # there is a cluster, or the arguments are not right


def shutdown(*, wait_for_processes: bool = False) -> None:
    """End this process's session and the cluster it started, leaving nothing behind.

    Does nothing without a session. References and objects of the session are of no use afterwards;
    remote functions work again after another `init`.

    Args:
        wait_for_processes: Accepted for Ray's sake: the processes are always waited for.
    """
    if _HEAVY in sys.modules:
        _heavy().disconnect()


def is_initialized() -> bool:
    """Return whether this process is attached to a cluster."""
    # Not what is heavy: a `LocalCluster` has no need of that.
    return _PRESENCE in sys.modules and import_module(_PRESENCE).current() is not None


def _heavy() -> ModuleType:
    return load(_HEAVY)


def _begin_early(
    address: str | None, temp_dir: str | os.PathLike[str] | None
) -> Interpreter | None:
    """Begin an interpreter, if this is going to take long and a new cluster is probably wanted.

    A wrong guess costs somebody a core for a moment, and nothing else.
    """
    if _HEAVY in sys.modules or address not in (None, "local") or nurseries.current() is not None:
        return None
    known = os.environ.get
    if address is None:
        if known("RAYLITE_ADDRESS") or known("RAY_ADDRESS"):
            return None
        place = (
            temp_dir or known("RAYLITE_TMPDIR") or known("RAY_TMPDIR") or known("TMPDIR") or "/tmp"
        )
        for sessions in ("raylite", f"raylite-{os.geteuid()}"):
            if os.path.exists(f"{place}/{sessions}/session_latest/node.json"):
                return None
    return Interpreter(import_path())
