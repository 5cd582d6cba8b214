"""The public functions: long docstrings, short bodies."""

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from threading import TIMEOUT_MAX
from typing import Any, Literal, Never, ParamSpec, TypeVar, Unpack, overload

from raylite._decorators import Decorator, DecoratorTo
from raylite._init import init
from raylite._options import decorated, decorator_error, validate_task_options
from raylite._remote import RemoteFunction
from raylite._runtime import auto, context, session
from raylite._services.worker.core import Core
from raylite._services.worker.generator import ObjectRefGenerator
from raylite._services.worker.objects import ObjectRef, W, Waitable, unknown_owner
from raylite._services.worker.outcomes import outcomes
from raylite._types.address import NodeAddress, TcpAddress, UnixAddress, parse_address
from raylite._types.keywords import DecoratorKeywords, Several
from raylite._types.signature import is_async, yields
from raylite._types.text import show
from raylite._wire import pickling
from raylite._wire.messages import gcs as msg
from raylite.exceptions import RayError, RaySystemError

P = ParamSpec("P")
T = TypeVar("T")

_ONLY_REFS = {ObjectRef}
_WAITABLE = {ObjectRef, ObjectRefGenerator}


@overload
def remote(  # type: ignore[overload-overlap]
    function: Callable[P, Never], /
) -> RemoteFunction[Callable[P, Any], ObjectRef[Any]]: ...
@overload
def remote(  # type: ignore[overload-overlap]
    function: Callable[P, Iterator[T] | AsyncIterator[T]], /
) -> RemoteFunction[Callable[P, Any], ObjectRefGenerator[T]]: ...
@overload
def remote(
    function: Callable[P, Coroutine[Any, Any, T]], /
) -> RemoteFunction[Callable[P, Any], ObjectRef[T]]: ...
@overload
def remote(function: Callable[P, T], /) -> RemoteFunction[Callable[P, T], ObjectRef[T]]: ...
@overload
def remote(**options: Unpack[DecoratorKeywords]) -> Decorator: ...
@overload
def remote(
    *, num_returns: Literal["streaming"] | None, **options: Unpack[DecoratorKeywords]
) -> Decorator: ...
@overload
def remote(
    *, num_returns: Literal[0], **options: Unpack[DecoratorKeywords]
) -> DecoratorTo[None]: ...
@overload
def remote(
    *, num_returns: Several, **options: Unpack[DecoratorKeywords]
) -> DecoratorTo[list[ObjectRef[Any]]]: ...
@overload
def remote(
    *, num_returns: Literal[1, "dynamic"], **options: Unpack[DecoratorKeywords]
) -> DecoratorTo[ObjectRef[Any]]: ...
@overload
def remote(
    *, num_returns: int | str | None, **options: Unpack[DecoratorKeywords]
) -> DecoratorTo[Any]: ...
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
        options,
        in_options=False,
        is_generator=yields(target),
        is_async=is_async(target),
    )
    return RemoteFunction(target, decorated(options))


@overload
def get(
    object_refs: ObjectRef[T],
    *,
    timeout: float | None = None,
    return_exceptions: Literal[False] = False,
) -> T: ...
@overload
def get(
    object_refs: list[ObjectRef[T]],
    *,
    timeout: float | None = None,
    return_exceptions: Literal[False] = False,
) -> list[T]: ...
@overload
def get(
    object_refs: ObjectRef[T], *, timeout: float | None = None, return_exceptions: bool
) -> T | RayError: ...
@overload
def get(
    object_refs: list[ObjectRef[T]], *, timeout: float | None = None, return_exceptions: bool
) -> list[T | RayError]: ...
@overload
def get(
    object_refs: ObjectRefGenerator[T],
    *,
    timeout: float | None = None,
    return_exceptions: bool = False,
) -> ObjectRefGenerator[T]: ...
def get(object_refs: Any, *, timeout: float | None = None, return_exceptions: bool = False) -> Any:
    """Return the value of one object, or the list of values of several.

    Waits for objects still being made. Of several, the first error found is raised at once, though
    others be unfinished. The result is in the order of `object_refs`; arrays in it look at shared
    memory and are read-only.

    Blocks the calling thread; inside a task, its CPU is lent to others meanwhile. In a coroutine
    write ``await ref`` instead.

    Args:
        object_refs: One reference, or a list of them.
        timeout: Seconds to wait for all of them together; None (or a negative number, as in Ray)
            waits as long as it takes, 0 does not wait.
        return_exceptions: Wait for all, and return an error in the place of the value that there
            is not, as `asyncio.gather` does. Each has its reference in ``object_ref``.

    Raises:
        ValueError: `object_refs` is neither a reference nor a list; a tuple is neither.
        TypeError: Something in the list is not a reference.
        RayTaskError: The task behind an object raised. The error is also an instance of what the
            task raised, so ``except ValueError`` works; ``cause`` is that exception.
        GetTimeoutError: Time ran out. Nothing is cancelled: calling again resumes the wait.
        WorkerCrashedError: The task's worker died, as often as ``max_retries`` allows.
        ObjectLostError: The object's owner is gone, or the last node that had a copy of it.
        ObjectStoreFullError: A large object of another node finds no room on this one.

    Example:
        >>> get(put(1))  # doctest: +SKIP
        1
    """
    core = (context.current() or auto.place()).core
    if timeout is not None:
        timeout = limit(timeout)
    if type(object_refs) is ObjectRef:
        entry = object_refs._entry
        value = entry.value
        if value is not None and not value.form and entry.keeper is core and not return_exceptions:
            return pickling.load_value(value.data)
        read = outcomes if return_exceptions else Core.get
        return read(home([object_refs]), [object_refs], timeout)[0]
    if type(object_refs) is ObjectRefGenerator:
        return object_refs
    check_refs(object_refs)
    if not object_refs:
        return []
    read = outcomes if return_exceptions else Core.get
    return read(home(object_refs), object_refs, timeout)


def limit(timeout: float) -> float | None:
    """Return a timeout as what to wait with: None is no limit, and so is what no clock will see."""
    try:
        if 0 <= timeout <= TIMEOUT_MAX:
            return timeout
    except TypeError:
        raise TypeError(
            f"timeout must be a number of seconds or None, not {type(timeout).__name__}"
        ) from None
    if timeout != timeout:
        raise ValueError("cannot convert float NaN to integer")  # Ray's words
    return None


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


def cancel(
    ray_waitable: ObjectRef[Any] | ObjectRefGenerator[Any],
    *,
    force: bool = False,
    recursive: bool = True,
) -> None:
    """Let the task that makes an object end early. Returns at once, without waiting for it.

    A task that has not started never will. One that runs is interrupted: KeyboardInterrupt is raised
    in it, wherever it is, also where it blocks in `get`; it can clean up. Reading its result raises
    TaskCancelledError, and so does reading what needed that. A cancelled task is never tried again.

    Nothing happens to a task that has ended: its result stays. That is so, too, of a task that
    catches KeyboardInterrupt and returns a value. Code that does not run Python, such as a long
    computation in C, is interrupted when it returns to Python. Cancelling again interrupts again.
    What a generator has yielded and nobody has read is gone: the next item raises
    TaskCancelledError, and is the last.

    Args:
        ray_waitable: A reference to a result of the task, anybody's, or its generator. For an
            object made by `put`, nothing happens.
        force: End the worker process, if the task runs. Tasks that were to run there after it run
            elsewhere; none of their retries is used.
        recursive: Cancel the tasks that it has started as well, and theirs; what they have finished
            stays.

    Raises:
        TypeError: `ray_waitable` is not a reference; several are cancelled one by one.

    Example:
        >>> cancel(f.remote())  # doctest: +SKIP
    """
    context.current() or auto.place()
    if isinstance(ray_waitable, ObjectRefGenerator):
        home([ray_waitable._end])
        ray_waitable._cancel(force=bool(force), recursive=bool(recursive))
        return
    if not isinstance(ray_waitable, ObjectRef):
        raise TypeError(
            "raylite.cancel() only supported for object refs. For actors, try raylite.kill(). "
            f"Got: {type(ray_waitable)}."
        )
    home([ray_waitable]).cancel(ray_waitable._entry, force=bool(force), recursive=bool(recursive))


def wait(
    ray_waitables: list[W],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[W], list[W]]:
    """Split references into those whose objects are there and the rest.

    Blocks until `num_returns` are there or time is up. At most `num_returns` are returned as ready,
    even if more are. Both lists keep the order of `ray_waitables`. An object whose task failed is
    there.

    Args:
        ray_waitables: Different references.
        num_returns: How many to wait for.
        timeout: Seconds to wait; None waits as long as it takes, 0 only looks.
        fetch_local: An object of another node is there when it has been brought to this one. If
            not so, it is there as soon as it exists, and is not brought.

    Raises:
        TypeError: `ray_waitables` is not a list of references.
        ValueError: A reference is there twice, or `num_returns` cannot be had, or all are of
            a session that has ended. Some of such a session are never ready, nor waited for.

    Example:
        >>> ready, rest = wait([f.remote(), g.remote()])  # doctest: +SKIP
    """
    core = (context.current() or auto.place()).core
    check_wait(ray_waitables, num_returns, timeout)
    if timeout is not None:
        timeout = limit(timeout)
    if not ray_waitables:
        return [], []
    if ray_waitables[0]._entry.keeper is not core or Core.has_ended:
        known = of_living_clusters(ray_waitables)
        core = home(known)
        if len(known) < len(ray_waitables):  # as long as there is one to wait for
            count = min(num_returns, len(known))
            return told_apart(
                ray_waitables, core.wait(known, count, timeout, fetch_local=fetch_local)[0]
            )
    return core.wait(ray_waitables, num_returns, timeout, fetch_local=fetch_local)


def check_refs(refs: object) -> None:
    """Raise what `get` raises for what is not a list of references."""
    if not isinstance(refs, list):
        raise ValueError(
            f"Invalid type of object refs, {type(refs)}, is given. "
            "'object_refs' must either be an ObjectRef or a list of ObjectRefs. "
        )
    if not set(map(type, refs)) <= _ONLY_REFS:
        wrong = next(ref for ref in refs if type(ref) is not ObjectRef)
        raise TypeError(
            f"Attempting to call `get` on the value {show(wrong)}, which is not an "
            "raylite.ObjectRef."
        )


def check_wait(refs: Sequence[Waitable], num_returns: int, timeout: float | None) -> None:
    """Raise what `wait` raises for arguments that it cannot take."""
    if type(refs) is not list and (wrong := _not_a_list(refs)):
        raise TypeError(
            "wait() expected a list of raylite.ObjectRef or raylite.ObjectRefGenerator, "
            f"got {wrong}"
        )
    if timeout is not None and limit(timeout) is None and timeout < 0:
        raise ValueError(f"The 'timeout' argument must be nonnegative. Received {timeout}")
    if not set(map(type, refs)) <= _WAITABLE:  # at C speed: a loop of waits passes it often
        other = next(type(ref) for ref in refs if type(ref) not in _WAITABLE)
        raise TypeError(
            "wait() expected a list of raylite.ObjectRef or raylite.ObjectRefGenerator, "
            f"got list containing {other}"
        )
    if not refs:
        return
    if len(set(refs)) != len(refs):
        raise ValueError("Wait requires a list of unique ray_waitables.")
    if num_returns <= 0:
        raise ValueError(f"Invalid number of objects to return {num_returns}.")
    if num_returns > len(refs):
        raise ValueError(
            "num_returns cannot be greater than the number of ray_waitables provided to raylite.wait."
        )


def _not_a_list(refs: object) -> str:
    if isinstance(refs, ObjectRef | ObjectRefGenerator):
        return f"a single raylite.ObjectRef or raylite.ObjectRefGenerator {refs!r}"
    return "" if isinstance(refs, list) else f"{type(refs)}"


def nodes() -> list[dict[str, Any]]:
    """Return one dictionary for each node of the cluster, in Ray's form, also for those that died.

    What raylite has not, such as a port for metrics, is 0. ``State``, which Ray has not, is ``ALIVE``, ``DEAD``, or ``SUSPECT``
    of a node that has not been heard for five seconds: such a one is alive, and gets new work only if no other could do it.

    Example:
        >>> nodes()[0]["Resources"]["CPU"]  # doctest: +SKIP
        4.0
    """
    return [_node_row(row) for row in session.list_nodes(_place())]


def cluster_resources() -> dict[str, float]:
    """Return what the cluster's nodes have together, by resource."""
    return dict(session.resources(_place()).total)


def available_resources() -> dict[str, float]:
    """Return what of it is not lent to tasks now; a resource with nothing left is absent."""
    return dict(session.resources(_place()).available)


def _place() -> context.Place:
    here = context.current()
    if here is None:
        raise RaySystemError(auto.NOT_STARTED)
    return here


def of_living_clusters(refs: list[W]) -> list[W]:
    """Return those that did not outlive their session; raise a ValueError if all have."""
    known = [
        ref for ref in refs if isinstance(core := ref._entry.keeper, Core) and not core.is_closed
    ]
    if not known:
        raise unknown_owner(refs[0]._entry)
    return known


def told_apart(refs: list[W], ready: list[W]) -> tuple[list[W], list[W]]:
    """Return these as `wait` does, of which some are ready."""
    chosen = set(ready)
    return ready, [ref for ref in refs if ref not in chosen]


def home(refs: Sequence[Waitable]) -> Core:
    """Return the core that keeps these: the current one, or that of another living cluster."""
    core = refs[0]._entry.keeper
    for ref in refs:
        if ref._entry.keeper is not core:
            raise unknown_owner(ref._entry)
    if not isinstance(core, Core) or core.is_closed:
        raise unknown_owner(refs[0]._entry)
    return core


def _node_row(row: msg.Node) -> dict[str, Any]:
    port, path = _sockets(row.address)
    return {
        "NodeID": row.node_id.hex(),
        "Alive": row.alive,
        "alive": row.alive,
        "NodeManagerAddress": row.ip,
        "NodeManagerHostname": row.hostname,
        "NodeManagerPort": port,
        "ObjectManagerPort": port,  # Ray: one of its own. Here the raylet moves objects as well.
        # Ray: the store's. Here the fork server hands out the store's memory.
        "ObjectStoreSocketName": path and str(Path(path).with_name("node.sock")),
        "RayletSocketName": path,
        "MetricsExportPort": 0,
        "NodeName": row.ip,
        "RuntimeEnvAgentPort": 0,
        "MetricsAgentPort": 0,
        "DashboardAgentListenPort": 0,
        "DeathReason": 0 if row.alive else 1 if row.left else 2,  # Ray's NodeDeathInfo.Reason
        "DeathReasonMessage": row.death_reason,
        # Ray: has none. A suspect is alive, has not been heard for long, and gets no new work.
        "State": "DEAD" if not row.alive else "SUSPECT" if row.suspect else "ALIVE",
        "Resources": dict(row.resources) if row.alive else {},
        "Labels": dict(row.labels),
    }


def _sockets(address: str) -> tuple[int, str]:
    """Return a raylet's TCP port and the path of its unix socket: 0 and "" where it has none."""
    match parse_address(address) if address.startswith(("tcp:", "unix:")) else None:
        case NodeAddress(TcpAddress(port=port), _, UnixAddress(path)):
            return port, path
        case TcpAddress(port=port):
            return port, ""
        case UnixAddress(path):
            return 0, path
        case _:
            return 0, ""  # inside the process of a test


auto.set_init(init)
