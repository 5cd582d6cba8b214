"""The public functions: long docstrings, short bodies."""

import inspect
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, Self, TypeVar, overload

from raylite._options import decorator_error, validate_init_options, validate_task_options
from raylite._remote import RemoteFunction, show
from raylite._runtime import auto, context, interrupts, local
from raylite._runtime.context import Place
from raylite._runtime.local import SessionOptions
from raylite._services.worker.core import Core
from raylite._services.worker.objects import ObjectRef, unknown_owner
from raylite._types.ids import NodeID
from raylite._version import __version__
from raylite._wire import pickling
from raylite._wire.messages import gcs as msg
from raylite.exceptions import RaySystemError

T = TypeVar("T")

logger = logging.getLogger("raylite")

# Ray: keywords that `init` takes and that have no effect on a local cluster of this kind.
_ACCEPTED = {
    "include_dashboard", "dashboard_host", "dashboard_port", "job_config", "configure_logging",
    "logging_format", "logging_config", "_metrics_export_port", "_node_ip_address", "_node_name",
    "_plasma_directory", "_driver_object_store_memory", "_enable_object_reconstruction",
    "_tracing_startup_hook", "_skip_env_hook", "object_spilling_directory",
    "enable_resource_isolation",
}  # fmt: skip


_ONLY_REFS = {ObjectRef}


class RayContext(Mapping[str, Any]):
    """What `init` returns: where the cluster is. As a context manager it ends with `shutdown`."""

    def __init__(self, place: Place) -> None:
        self.ray_version = __version__
        self.python_version = ".".join(map(str, sys.version_info[:3]))
        self.ray_commit = ""
        self.dashboard_url = ""
        self.address_info = {
            "node_ip_address": "127.0.0.1",
            "raylet_ip_address": "127.0.0.1",
            "object_store_address": None,
            "raylet_socket_name": f"{place.session_dir}/sockets/raylet.sock",
            "webui_url": "",
            "session_dir": place.session_dir,
            "gcs_address": place.gcs_address,
            "address": place.gcs_address,
            "node_id": NodeID(place.node_id).hex(),
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
    """Start a cluster on this machine, ending with this process or with `shutdown`.

    Blocks until the cluster can run tasks, about a third of a second. Calling any other function
    of raylite first does this with the defaults.

    Args:
        address: None or ``"local"``. Connecting to a running cluster is not supported yet.
        num_cpus: CPUs that tasks may occupy together; None takes what this process may use.
        num_gpus: GPUs, likewise; None offers none.
        resources: Further resources by name, in any unit you like.
        labels: Labels of the node.
        object_store_memory: Bytes for large objects; None takes 30 % of the machine's memory,
            used only as objects fill it.
        ignore_reinit_error: Return the running session's context instead of raising.
        logging_level: The level of the ``raylite`` logger.
        log_to_driver: Show what tasks print, with a prefix that says which.
        namespace: The job's namespace.
        runtime_env: Only ``{"env_vars": {...}}``: set for this process's workers.
        _memory: Bytes of the resource ``memory``.
        _temp_dir: Where the session's directory is made.
        _system_config: Settings of the components. ``object_store_full_grace``: seconds that an
            object waits for room in shared memory, 60 by default.
        **accepted: Ray's other keywords, which a local cluster has no use for.

    Raises:
        RuntimeError: There is a session already, or a keyword is unknown.
        RaySystemError: The cluster did not start; the message has the log.

    Example:
        >>> with init(num_cpus=2):  # doctest: +SKIP
        ...     ...
    """
    if unknown := [name for name in accepted if name not in _ACCEPTED]:
        raise RuntimeError(f"Unknown keyword argument(s): {', '.join(unknown)}")
    if address not in (None, "local"):
        raise ConnectionError(
            f"cannot connect to {address!r}: this version starts its own local cluster only; "
            'leave address out, or pass "local"'
        )
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
    here = context.current()
    if here is not None:
        if ignore_reinit_error:
            logger.info("Calling raylite.init() again after it has already been called.")
            return RayContext(here)
        raise RuntimeError(
            "Maybe you called raylite.init twice by accident? This error can be suppressed by passing "
            "in 'ignore_reinit_error=True' or by calling 'raylite.shutdown()' prior to 'raylite.init()'."
        )
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
    with interrupts.held() as interrupt:
        node = local.start_node(options)
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
    """Return the session's module, which needs most of raylite: it loads while a node starts."""
    return import_module("raylite._runtime.session")


def shutdown(*, wait_for_processes: bool = False) -> None:
    """End this process's session and the cluster it started, leaving nothing behind.

    Does nothing without a session. References and objects of the session are of no use afterwards;
    remote functions work again after another `init`.

    Args:
        wait_for_processes: Accepted for Ray's sake: the processes are always waited for.
    """
    if context.current() is not None:
        _sessions().stop()


def is_initialized() -> bool:
    """Return whether this process is attached to a cluster."""
    return context.current() is not None


@overload
def remote(function: Callable[..., Any], /) -> Any: ...
@overload
def remote(**options: Any) -> Callable[[Callable[..., Any]], Any]: ...
def remote(*args: Any, **options: Any) -> Any:
    """Turn a function into a remote one, whose calls run in the cluster's workers.

    Use it as ``@remote`` or as ``@remote(num_cpus=2, max_retries=0)``; see Ray's documentation for
    the options, which have the same names, defaults and checks here.

    Raises:
        TypeError: What is decorated is neither a function nor a class.
        ValueError: An option is unknown or impossible.

    Example:
        >>> @remote
        ... def square(n):
        ...     return n * n
        >>> get([square.remote(n) for n in (2, 3)])  # doctest: +SKIP
        [4, 9]
    """
    if len(args) == 1 and not options and callable(args[0]):
        return _make_remote(args[0], {})
    if args or not options:
        raise AssertionError(decorator_error())

    def decorate(function: Callable[..., Any]) -> Any:
        return _make_remote(function, options)

    return decorate


def _make_remote(target: Any, options: Mapping[str, Any]) -> Any:
    if inspect.isclass(target):
        raise NotImplementedError(
            f"cannot make an actor of class {target.__name__}: actors are not supported yet"
        )
    if not inspect.isfunction(target) and not inspect.isbuiltin(target):
        raise TypeError(
            "The @raylite.remote decorator must be applied to either a function or a class."
        )
    validate_task_options(
        options, in_options=False, is_generator=inspect.isgeneratorfunction(target)
    )
    return RemoteFunction(target, options)


@overload
def get(refs: ObjectRef[T], *, timeout: float | None = None) -> T: ...
@overload
def get(refs: Sequence[ObjectRef[T]], *, timeout: float | None = None) -> list[T]: ...
def get(refs: Any, *, timeout: float | None = None) -> Any:
    """Return the value of one object, or the list of values of several.

    Waits for objects still being made. Of several, the first error found is raised at once, though
    others be unfinished. The result is in the order of `refs`; arrays in it look at shared memory
    and are read-only.

    Blocks the calling thread; inside a task, its CPU is lent to others meanwhile. In a coroutine
    write ``await ref`` instead.

    Args:
        refs: One reference, or a list of them.
        timeout: Seconds to wait for all of them together; None (or a negative number, as in Ray)
            waits as long as it takes, 0 does not wait.

    Raises:
        RayTaskError: The task behind an object raised. The error is also an instance of what the
            task raised, so ``except ValueError`` works; ``cause`` is that exception.
        GetTimeoutError: Time ran out. Nothing is cancelled: calling again resumes the wait.
        WorkerCrashedError: The task's worker died, as often as ``max_retries`` allows.
        ObjectLostError: The object's owner is gone.

    Example:
        >>> get(put(1))  # doctest: +SKIP
        1
    """
    core = (context.current() or auto.place()).core
    if timeout is not None and timeout < 0:
        timeout = None
    if type(refs) is ObjectRef:
        entry = refs._entry
        value = entry.value
        if value is not None and not value.form and entry.keeper is core:
            return pickling.loads(value.data)
        return _home([refs]).get([refs], timeout)[0]
    if not isinstance(refs, (list, tuple)):
        raise ValueError(
            f"Invalid type of object refs, {type(refs)}, is given. "
            "'object_refs' must either be an ObjectRef or a list of ObjectRefs. "
        )
    if not set(map(type, refs)) <= _ONLY_REFS:
        wrong = next(type(ref) for ref in refs if type(ref) is not ObjectRef)
        raise ValueError(
            f"Invalid type of object refs, {wrong}, is given. "
            "'object_refs' must either be an ObjectRef or a list of ObjectRefs. "
        )
    return _home(refs).get(refs, timeout) if refs else []


def put(value: T) -> ObjectRef[T]:
    """Store a value once, for any number of tasks and processes to read.

    The value is pickled now; changing it later changes nothing. Small values stay in this process
    and cost no message; large ones are copied into shared memory, where tasks read them without
    copying.

    Args:
        value: Anything that can be pickled, but not a reference.

    Raises:
        TypeError: The value is an ObjectRef, or cannot be pickled.
        ObjectStoreFullError: Shared memory stayed full for a minute.

    Example:
        >>> ref = put({"a": 1})  # doctest: +SKIP
    """
    place = context.current() or auto.place()
    if isinstance(value, ObjectRef):
        raise TypeError(
            "Calling 'put' on an raylite.ObjectRef is not allowed. If you really want to do this, you "
            "can wrap the raylite.ObjectRef in a list and call 'put' on it."
        )
    try:
        return place.core.put(value)
    except TypeError as error:
        raise TypeError(
            f"Could not serialize the put value {show(value)}:\n"
            f"{pickling.describe_unpicklable(value)}"
        ) from error


def wait(
    refs: list[ObjectRef[Any]],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
    """Split references into those whose objects are there and the rest.

    Blocks until `num_returns` are there or time is up. At most `num_returns` are returned as ready,
    even if more are. Both lists keep the order of `refs`. An object whose task failed is there.

    Args:
        refs: Different references.
        num_returns: How many to wait for.
        timeout: Seconds to wait; None waits as long as it takes, 0 only looks.
        fetch_local: Accepted for Ray's sake: on one node every object is local.

    Raises:
        TypeError: `refs` is not a list of references.
        ValueError: A reference is there twice, or `num_returns` cannot be had.

    Example:
        >>> ready, rest = wait([f.remote(), g.remote()])  # doctest: +SKIP
    """
    core = (context.current() or auto.place()).core
    if type(refs) is not list and (wrong := _not_a_list(refs)):
        raise TypeError(
            f"wait() expected a list of raylite.ObjectRef or ObjectRefGenerator, got {wrong}"
        )
    if timeout is not None and timeout < 0:
        raise ValueError(f"The 'timeout' argument must be nonnegative. Received {timeout}")
    if not set(map(type, refs)) <= _ONLY_REFS:  # at C speed: a loop of waits passes it often
        other = next(type(ref) for ref in refs if type(ref) is not ObjectRef)
        raise TypeError(
            "wait() expected a list of raylite.ObjectRef or ObjectRefGenerator, "
            f"got list containing {other}"
        )
    if not refs:
        return [], []
    if len(set(refs)) != len(refs):
        raise ValueError("Wait requires a list of unique object refs.")
    if num_returns <= 0:
        raise ValueError(f"Invalid number of objects to return {num_returns}.")
    if num_returns > len(refs):
        raise ValueError(
            "num_returns cannot be greater than the number of objects provided to raylite.wait."
        )
    if refs[0]._entry.keeper is not core:
        core = _home(refs)
    return core.wait(refs, num_returns, timeout)


def _not_a_list(refs: object) -> str:
    if isinstance(refs, ObjectRef):
        return "a single raylite.ObjectRef or ObjectRefGenerator"
    return "" if isinstance(refs, list) else f"{type(refs)}"


def nodes() -> list[dict[str, Any]]:
    """Return one dictionary for each node of the cluster, in Ray's form.

    Example:
        >>> nodes()[0]["Resources"]["CPU"]  # doctest: +SKIP
        4.0
    """
    return [_node_row(row) for row in _sessions().list_nodes(_place())]


def cluster_resources() -> dict[str, float]:
    """Return what the cluster's nodes have together, by resource."""
    return dict(_sessions().resources(_place()).total)


def available_resources() -> dict[str, float]:
    """Return what of it is not lent to tasks now; a resource with nothing left is absent."""
    return dict(_sessions().resources(_place()).available)


def _place() -> context.Place:
    here = context.current()
    if here is None:
        raise RaySystemError(auto.NOT_STARTED)
    return here


def _home(refs: Sequence[ObjectRef[Any]]) -> Core:
    """Return the core that keeps these: the current one, or that of another living cluster."""
    core = refs[0]._entry.keeper
    for ref in refs:
        if ref._entry.keeper is not core:
            raise unknown_owner(ref._entry)
    if not isinstance(core, Core) or core.is_closed:
        raise unknown_owner(refs[0]._entry)
    return core


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


def _node_row(row: msg.Node) -> dict[str, Any]:
    return {
        "NodeID": row.node_id.hex(),
        "Alive": row.alive,
        "alive": row.alive,
        "NodeManagerAddress": "127.0.0.1",
        "NodeManagerHostname": row.hostname,
        "NodeManagerPort": 0,
        "ObjectManagerPort": 0,
        "ObjectStoreSocketName": None,
        "RayletSocketName": row.address,
        "MetricsExportPort": 0,
        "NodeName": "127.0.0.1",
        "RuntimeEnvAgentPort": 0,
        "DeathReason": 0 if row.alive else 2,
        "DeathReasonMessage": "",
        "Resources": dict(row.resources) if row.alive else {},
        "Labels": dict(row.labels),
    }


auto.set_init(init)
