"""`@remote` on functions: what a call becomes before it leaves the calling thread."""

import functools
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import (
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    TypeAlias,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from raylite._machines.submitter import LaneKey
from raylite._map import Chunked, Map
from raylite._options import TaskOptions, refuse_other_yields, update_options, validate_task_options
from raylite._runtime import auto
from raylite._runtime.context import Caller
from raylite._services.worker.core import Core
from raylite._services.worker.exports import check_size
from raylite._services.worker.generator import stream
from raylite._services.worker.objects import Entry, ObjectRef, unknown_owner
from raylite._services.worker.owned import OwnedTask
from raylite._services.worker.runner import ANY
from raylite._services.worker.running import RunningTask
from raylite._types.environment import variables_of
from raylite._types.keys import ObjectKey, TaskKey
from raylite._types.keywords import HasStrategy, Several, TaskKeywords
from raylite._types.resources import Resources
from raylite._types.signature import Signature, is_async, yields
from raylite._types.strategies import (
    DefaultStrategy,
    Labels,
    Placement,
    SpreadStrategy,
    Strategy,
)
from raylite._types.text import refuse_text, show
from raylite._wire import environments, hot, pickling, placement
from raylite.dag import FunctionNode

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
F = TypeVar("F", covariant=True)  # a remote function's function
R = TypeVar("R", covariant=True)  # what its calls return
# Its arguments.
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
G = TypeVar("G")
H = TypeVar("H")
J = TypeVar("J")

Given: TypeAlias = T | ObjectRef[T]
"""An argument of a call: a task gets the value of a reference."""

_NO_ARGUMENTS = pickling.dumps(((), {})).to_bytes()
_FIRST = (1).to_bytes(4, "little")  # the index of a task's first return
_STREAM = -1  # in the place of a number of returns
_DECORATOR = "__ray_invocation_decorator__"


_DEPTHS_KEPT = 64

_Exported = dict[Core, dict[bytes, int]]
"""The definitions of a function: by core, and by the environment that it runs in."""


class _Submission:
    """What all calls of a function with the same options share, once a core knows it."""

    __slots__ = (
        "core", "deadline", "depth", "function", "is_dynamic", "is_limited", "key", "limit", "name",
        "per_yield", "retries", "retry_on", "returns", "timeout",
    )  # fmt: skip

    def __init__(
        self,
        core: Core,
        depth: int,
        function: int,
        environment: bytes,
        options: TaskOptions,
        overlaps: bool,
        returns: int | str,
    ) -> None:
        self.core = core
        self.depth = depth
        self.function = function
        self.name = options.name or ""
        demand = Resources.from_mapping(options.demand(), exact=False)
        wanted = placement_of(options, demand)
        is_scattered = isinstance(wanted.strategy, SpreadStrategy)
        slots = options.max_concurrency if overlaps and not is_scattered else 0
        # A process that has used a GPU, or may have, runs nothing that has no share of one.
        workers = core.job + environment + (b"GPU" if "GPU" in demand else b"")
        self.key = LaneKey(
            demand, workers, depth, placement.encode(wanted), is_scattered, b"", slots
        )
        self.returns = _STREAM if isinstance(returns, str) else returns
        self.is_dynamic = returns == "dynamic"
        self.limit = max(options.backpressure, 0)
        self.per_yield = options.objects_per_yield
        self.retries = options.max_retries
        self.retry_on = b"" if not self.retries else _retry_on(options.retry_exceptions)
        self.timeout = math.inf if options.timeout is None else options.timeout
        self.deadline = options.deadline
        self.is_limited = options.timeout is not None or options.deadline is not None

    def bound(self, id: bytes, parent: RunningTask | None) -> None:
        """Let a call end in its time, and in that of the task which makes it."""
        left = self.timeout
        if self.deadline is not None:
            left = min(left, self.deadline - time.time())
        self.core.limit(id, left, None if parent is None else parent.deadline)


class RemoteFunction(Generic[F, R]):
    """A function whose calls are tasks: ``f.remote(...)`` returns an `ObjectRef` at once.

    Made by `remote`. The function is pickled at its first call in a session, so globals defined
    after it are seen; a call pickles its arguments and returns without waiting for anything.

    To type checkers it is a ``RemoteFunction[Callable[[int], str], ObjectRef[str]]``: of what it
    calls, and what a call returns.
    """

    __name__: str

    def __init__(
        self,
        function: Callable[..., Any],
        options: Mapping[str, Any],
        signature: Signature | None = None,
        exported: "_Exported | None" = None,
    ) -> None:
        # Ray: refuses them; `asyncio.run(f())` in a plain function is what it has instead.
        self._overlaps = is_async(function)
        self._function = function
        self._options = dict(options)
        self._signature = signature or Signature.of(function)
        self._exported: _Exported = {} if exported is None else exported
        self._name = f"{function.__module__ or 'global'}.{function.__name__}"
        self._submission: _Submission | None = None
        self._submissions: dict[int, _Submission] = {}  # by depth, which changes in workers only
        self._chunked: dict[int, Chunked] = {}  # for `map`, by the number of arguments
        wrapper: Any = self
        functools.update_wrapper(wrapper, function)
        decorate = getattr(function, _DECORATOR, None)
        if decorate is not None:
            wrapper.remote = _decorated(decorate, self)

    def __repr__(self) -> str:
        return f"RemoteFunction({self._name})"

    def __reduce__(self) -> tuple[Any, ...]:
        decorate = getattr(self._function, _DECORATOR, None)
        return _restored, (self._function, self._options, decorate)

    @overload
    def options(self, **options: Unpack[TaskKeywords]) -> "RemoteFunction[F, R]": ...
    @overload
    def options(
        self, *, num_returns: Literal["streaming"] | None, **options: Unpack[TaskKeywords]
    ) -> "RemoteFunction[F, R]": ...
    @overload
    def options(
        self, *, num_returns: Literal[0], **options: Unpack[TaskKeywords]
    ) -> "RemoteFunction[F, None]": ...
    @overload
    def options(
        self, *, num_returns: Several, **options: Unpack[TaskKeywords]
    ) -> "RemoteFunction[F, list[ObjectRef[Any]]]": ...
    @overload
    def options(
        self, *, num_returns: Literal[1, "dynamic"], **options: Unpack[TaskKeywords]
    ) -> "RemoteFunction[F, ObjectRef[Any]]": ...
    @overload
    def options(
        self, *, num_returns: int | str | None, **options: Unpack[TaskKeywords]
    ) -> "RemoteFunction[F, Any]": ...
    def options(self, **options: Any) -> "RemoteFunction[F, Any]":
        """Return this function with other options, for the calls made through what is returned.

        Takes what `remote` takes, except ``max_calls``.

        Example:
            >>> f.options(num_cpus=2, name="big").remote(1)  # doctest: +SKIP
        """
        is_generator = yields(self._function)
        validate_task_options(
            options, in_options=True, is_generator=is_generator, is_async=self._overlaps
        )
        refuse_other_yields(self._options, options)
        merged = update_options(self._options, options)
        other: RemoteFunction[F, Any]
        other = RemoteFunction(self._function, merged, self._signature, self._exported)
        other._chunked = self._chunked
        return other

    # First the arguments as the function has them; then with references for the first one, two, ...
    # that are given by position. Type checkers cannot be told the same of keywords.
    @overload
    def remote(
        self: "RemoteFunction[Callable[P, Any], R]", /, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    @overload
    def remote(
        self: "RemoteFunction[Callable[Concatenate[A, Q], Any], R]",
        a: Given[A],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> R: ...
    @overload
    def remote(
        self: "RemoteFunction[Callable[Concatenate[A, B, Q], Any], R]",
        a: Given[A],
        b: Given[B],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> R: ...
    @overload
    def remote(
        self: "RemoteFunction[Callable[Concatenate[A, B, C, Q], Any], R]",
        a: Given[A],
        b: Given[B],
        c: Given[C],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> R: ...
    @overload
    def remote(
        self: "RemoteFunction[Callable[Concatenate[A, B, C, D, Q], Any], R]",
        a: Given[A],
        b: Given[B],
        c: Given[C],
        d: Given[D],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> R: ...
    @overload
    def remote(
        self: "RemoteFunction[Callable[Concatenate[A, B, C, D, E, Q], Any], R]",
        a: Given[A],
        b: Given[B],
        c: Given[C],
        d: Given[D],
        e: Given[E],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> R: ...
    @overload
    def remote(
        self: "RemoteFunction[Callable[Concatenate[A, B, C, D, E, G, Q], Any], R]",
        a: Given[A],
        b: Given[B],
        c: Given[C],
        d: Given[D],
        e: Given[E],
        g: Given[G],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> R: ...
    @overload
    def remote(
        self: "RemoteFunction[Callable[Concatenate[A, B, C, D, E, G, H, Q], Any], R]",
        a: Given[A],
        b: Given[B],
        c: Given[C],
        d: Given[D],
        e: Given[E],
        g: Given[G],
        h: Given[H],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> R: ...
    @overload
    def remote(
        self: "RemoteFunction[Callable[Concatenate[A, B, C, D, E, G, H, J, Q], Any], R]",
        a: Given[A],
        b: Given[B],
        c: Given[C],
        d: Given[D],
        e: Given[E],
        g: Given[G],
        h: Given[H],
        j: Given[J],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> R: ...
    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        """Submit a call and return a reference to its result: a list of them for several returns.

        References among the arguments are replaced by their values before the function runs;
        references inside other arguments arrive as references.

        Raises:
            TypeError: The arguments do not fit the function's signature, or cannot be pickled.
        """
        place = auto.place()
        self._signature.bind(args, kwargs)
        return self._submit(place, args, kwargs)

    # Each parameter that has no iterable has to have a default.
    @overload
    def map(
        self: "RemoteFunction[Callable[[A], Any], ObjectRef[T]]",
        a: Iterable[Given[A]],
        /,
        *,
        chunksize: int | Literal["auto"] = "auto",
    ) -> Map[T]: ...
    @overload
    def map(
        self: "RemoteFunction[Callable[[A, B], Any], ObjectRef[T]]",
        a: Iterable[Given[A]],
        b: Iterable[Given[B]],
        /,
        *,
        chunksize: int | Literal["auto"] = "auto",
    ) -> Map[T]: ...
    @overload
    def map(
        self: "RemoteFunction[Callable[[A, B, C], Any], ObjectRef[T]]",
        a: Iterable[Given[A]],
        b: Iterable[Given[B]],
        c: Iterable[Given[C]],
        /,
        *,
        chunksize: int | Literal["auto"] = "auto",
    ) -> Map[T]: ...
    @overload
    def map(
        self: "RemoteFunction[Callable[[A, B, C, D], Any], ObjectRef[T]]",
        a: Iterable[Given[A]],
        b: Iterable[Given[B]],
        c: Iterable[Given[C]],
        d: Iterable[Given[D]],
        /,
        *,
        chunksize: int | Literal["auto"] = "auto",
    ) -> Map[T]: ...
    @overload
    def map(
        self: "RemoteFunction[Callable[..., Any], ObjectRef[T]]",
        a: Iterable[Any],
        b: Iterable[Any],
        c: Iterable[Any],
        d: Iterable[Any],
        e: Iterable[Any],
        /,
        *iterables: Iterable[Any],
        chunksize: int | Literal["auto"] = "auto",
    ) -> Map[T]: ...
    def map(
        self, /, *iterables: Iterable[Any], chunksize: int | Literal["auto"] = "auto"
    ) -> Map[Any]:
        """Call it for each element of an iterable, and return an iterator of the references.

        The references come in the order of the elements, one for each; ``async for`` iterates over
        them too. Of several iterables, each gives an argument, until the shortest ends. They may be
        endless: elements are read, and calls begin, a little ahead of the iteration, by twice
        the tasks that the cluster can run at once (at most 1024). Iterating waits where it would be further ahead.

        Quick calls travel together as one task, of some 20 ms. Each still has a reference, and an
        error, of its own. If their worker dies, each is tried again by itself (together, if they
        want other resources than CPUs, or a strategy), and only the one behind it fails. Calls with
        references among their arguments are tasks of their own, and so are all of an ``async def``,
        or with ``retry_exceptions``, ``max_retries=0``, ``max_calls``, ``timeout`` or ``deadline``.
        To cancel one is to cancel its task: all of that which have not ended.

        Args:
            *iterables: Where arguments come from. An error there is raised after the references of
                the elements before it. An element that cannot be pickled is an error of its
                reference.
            chunksize: How many calls make a task; ``"auto"`` finds it out from what they take.

        Raises:
            TypeError: The function does not take so many arguments.
            ValueError: The function has several results, or `chunksize` makes no sense.

        Example:
            >>> for ref in f.map(open("numbers.txt")):  # doctest: +SKIP
            ...     print(get(ref))
        """
        return Map(self, RemoteFunction, self._chunked, iterables, chunksize)

    def bind(self, /, *args: Any, **kwargs: Any) -> FunctionNode:
        """Return this call as a node of a graph, to be made when that is executed.

        Raises:
            TypeError: The arguments do not fit the function's signature.

        Example:
            >>> f.bind(g.bind(1)).execute()  # doctest: +SKIP
        """
        self._signature.bind(args, kwargs)
        function: RemoteFunction[Any, Any] = self
        return FunctionNode(function.remote, self._name, args, kwargs)

    def _remote(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Ray's older spelling of ``.options(...).remote(...)``; ``max_calls`` has no effect here."""
        options.pop("max_calls", None)
        function: RemoteFunction[Any, Any] = self.options(**options) if options else self
        return function.remote(*(args or ()), **(kwargs or {}))

    def _submit(self, caller: Caller, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        core = caller.core
        task = caller.task
        depth = 0 if task is None else task.depth + 1
        known = self._submission
        if known is None or known.core is not core or known.depth != depth:
            known = self._submission = self._at_depth(core, depth)
        id = core.new_task_id()
        if known.returns == 1:
            entries: tuple[Entry, ...] = (Entry(ObjectKey(id + _FIRST), core, "", 1),)
        else:
            entries = tuple(
                Entry(ObjectKey(id + (i + 1).to_bytes(4, "little")), core, "", 1)
                for i in range(abs(known.returns))
            )
        if not args and not kwargs:
            owned = OwnedTask(
                TaskKey(id), known.key, known.function, known.retries, _NO_ARGUMENTS,
                entries, known.name, known.retry_on, (), (), task,
            )  # fmt: skip
        else:
            # The last keeps references alive until the task holds its arguments, at the end.
            arguments, inputs, contained, _kept = self._pickle(core, args, kwargs)
            owned = OwnedTask(
                TaskKey(id), known.key, known.function, known.retries, arguments,
                entries, known.name, known.retry_on, inputs, contained, task,
            )  # fmt: skip
        if known.is_limited or (task is not None and task.deadline is not None):
            known.bound(id, task)
        if known.returns == 1:
            ref: ObjectRef[Any] = ObjectRef(entries[0])
            core.enqueue(owned)
            return ref
        if known.returns == _STREAM:
            return stream(core, owned, known.limit, known.per_yield, known.is_dynamic)
        refs: list[ObjectRef[Any]] = [ObjectRef(entry) for entry in entries]
        core.enqueue(owned)
        return refs or None

    def _at_depth(self, core: Core, depth: int) -> _Submission:
        known = self._submissions.get(depth)
        if known is None or known.core is not core:
            if len(self._submissions) >= _DEPTHS_KEPT:
                self._submissions.clear()
            # Ray: options that cannot be carried out are refused at the first call, not before.
            known = self._submissions[depth] = self._prepare(core, depth)
        return known

    def _prepare(self, core: Core, depth: int) -> _Submission:
        default = int(
            os.environ.get("RAYLITE_TASK_MAX_RETRIES", os.environ.get("RAY_TASK_MAX_RETRIES", "3"))
        )
        options = TaskOptions.of(self._options, max_retries=default)
        variables = variables_of(options.runtime_env, of_job=False)
        config = environments.inherit(core.config, variables)
        environment = config.environment
        numbers = self._exported.get(core)
        if numbers is None:
            for ended in [each for each in self._exported if each.is_closed]:
                del self._exported[ended]
            numbers = self._exported[core] = {environment: self._export(core, config)}
        elif environment not in numbers:
            known = core.submitter.peers.definitions[next(iter(numbers.values()))]
            numbers[environment] = core.define(
                known.function, known.name, known.title, config, self._overlaps, known.max_calls
            )
        number = numbers[environment]
        returns = options.num_returns
        if returns is None:
            returns = "streaming" if yields(self._function) else 1
        return _Submission(core, depth, number, environment, options, self._overlaps, returns)

    def _export(self, core: Core, config: hot.JobConfig) -> int:
        name = self._function.__name__
        for each in (name, self._name):
            if reason := refuse_text("The name of the function", each):
                raise ValueError(reason)
        captured: list[object] = []
        try:
            data = pickling.dumps_function(self._function, captured)
        except TypeError as error:
            report = pickling.describe_unpicklable(self._function, self._function.__name__)
            raise TypeError(
                f"Could not serialize the function {self._name}. Check "
                f"https://docs.ray.io/en/master/ray-core/objects/serialization.html#troubleshooting "
                f"for more information.\n{report}"
            ) from error
        check_size("remote function", self._name, len(data))
        core.exports.note("remote function", self._name, self._function)
        for ref in captured:
            if isinstance(ref, ObjectRef):
                core.pin_for_ever(ref._entry)
        max_calls = self._options.get("max_calls") or 0
        return core.define(data, self._name, name, config, self._overlaps, max_calls)

    def _pickle(
        self, core: Core, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[bytes, tuple[tuple[int | str, Entry], ...], tuple[Entry, ...], object]:
        """Pickle the arguments, with references (and what is large) taken out.

        The last of what is returned keeps references alive that only the arguments' pickle holds.
        """
        stored: list[ObjectRef[Any]] = []
        inputs: list[tuple[int | str, Entry]] = []
        for place, arg in enumerate(args):
            if type(arg) is ObjectRef:
                inputs.append((place, arg._entry))
        for name, arg in kwargs.items():
            if type(arg) is ObjectRef:
                inputs.append((name, arg._entry))
        if inputs:
            args, kwargs = _without(inputs, args, kwargs)
        try:
            pickled = pickling.dumps((args, kwargs))
            if pickled.size > hot.INLINE_LIMIT:
                large = _put_large(core, args, kwargs, stored)
                if large:
                    inputs += large
                    args, kwargs = _without(large, args, kwargs)
                    pickled = pickling.dumps((args, kwargs))
        except TypeError as error:
            raise TypeError(self._unpicklable(args, kwargs)) from error
        for keyword, _ in inputs:
            if isinstance(keyword, str) and (
                reason := refuse_text("The keyword of a call", keyword)
            ):
                raise ValueError(reason)
        contained = tuple(ref._entry for ref in pickled.contained if isinstance(ref, ObjectRef))
        for entry in (*contained, *(entry for _, entry in inputs)):
            if entry.keeper is not core:
                raise unknown_owner(entry)
        return pickled.to_bytes(), tuple(inputs), contained, (pickled, stored)

    def _unpicklable(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        for each in (*args, *kwargs.values()):
            try:
                pickling.dumps(each)
            except TypeError:
                return (
                    f"Could not serialize the argument {show(each)} for a task or actor {self._name}. "
                    "Check https://docs.ray.io/en/master/ray-core/objects/serialization.html"
                    "#troubleshooting for more information.\n"
                    + pickling.describe_unpicklable(each, "argument")
                )
        return f"Could not serialize the arguments for a task or actor {self._name}."


def _restored(
    function: Callable[..., Any], options: Mapping[str, Any], decorate: Callable[..., Any] | None
) -> RemoteFunction[Any, Any]:
    """Return a remote function that was pickled: maybe within its function, which is not whole yet."""
    restored: RemoteFunction[Any, Any]
    restored = RemoteFunction(function, options, Signature.later(function))
    if decorate is not None:
        wrapper: Any = restored
        wrapper.remote = _decorated(decorate, restored)
    return restored


def _decorated(decorate: Callable[..., Any], function: RemoteFunction[Any, Any]) -> Any:
    """Return a `remote` that a function's ``__ray_invocation_decorator__`` has wrapped."""

    def invocation(args: Any, kwargs: Any) -> Any:
        return RemoteFunction.remote(function, *args, **kwargs)

    invoke = decorate(invocation)

    def remote(*args: Any, **kwargs: Any) -> Any:
        return invoke(args, kwargs)

    return remote


def _refuse_call(function: RemoteFunction[Any, Any], *args: object, **kwargs: object) -> None:
    name = function._name
    raise TypeError(
        "Remote functions cannot be called directly. Instead of running "
        f"'{name}()', try '{name}.remote()'."
    )


# Not in the class, where type checkers would take it for something that can be called.
setattr(RemoteFunction, "__call__", _refuse_call)  # noqa: B010


def _without(
    inputs: list[tuple[int | str, Entry]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    left, named = list(args), dict(kwargs)
    for place, _ in inputs:
        if isinstance(place, int):
            left[place] = None
        else:
            named[place] = None  # so that keywords stay in their order
    return tuple(left), named


def _put_large(
    core: Core, args: tuple[Any, ...], kwargs: dict[str, Any], refs: list[ObjectRef[Any]]
) -> list[tuple[int | str, Entry]]:
    """Store the arguments that are too large to travel with the task; `refs` takes references."""
    stored: list[tuple[int | str, Entry]] = []
    places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    most = hot.inline_limit(len(places))
    for place, value in places:
        if value is None or isinstance(value, (int, float, ObjectRef)):
            continue
        pickled = pickling.dumps(value)
        if pickled.size > most:
            ref = core.store_pickled(pickled)
            stored.append((place, ref._entry))
            refs.append(ref)
    return stored


def placement_of(options: TaskOptions, demand: Resources) -> Placement:
    """Return what a task needs of its node, as the options say."""
    named = options.scheduling_strategy
    strategy: Strategy = DefaultStrategy()
    if named == "SPREAD":
        strategy = SpreadStrategy()
    elif named not in (None, "DEFAULT"):
        if not hasattr(named, "to_strategy"):
            raise ValueError(
                f"Invalid scheduling_strategy value {show(named)}. Valid values are "
                '["DEFAULT" | "SPREAD" | NodeAffinitySchedulingStrategy '
                "| NodeLabelSchedulingStrategy]"
            )
        strategy = cast(HasStrategy, named).to_strategy()
    selectors = [
        Labels.parse(each.get("label_selector") or {}) for each in options.fallback_strategy
    ]
    return Placement(demand, strategy, Labels.parse(options.label_selector or {}), tuple(selectors))


def _retry_on(retry_exceptions: bool | tuple[type[Exception], ...]) -> bytes:
    if retry_exceptions is True:
        return ANY
    if not retry_exceptions:
        return b""
    return pickling.dumps(tuple(retry_exceptions)).to_bytes()
