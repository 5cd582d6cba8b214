"""Exceptions: every error that raylite raises on purpose.

::

    RayError
    ├── RayTaskError                        a task raised; also an instance of what it raised
    ├── TaskCancelledError
    ├── TaskTimeoutError (TimeoutError)     not of Ray
    ├── RayActorError
    │   ├── ActorDiedError                  for good
    │   └── ActorUnavailableError           for now
    ├── WorkerCrashedError, NodeDiedError, OutOfMemoryError
    ├── LocalRayletDiedError (GcsUnavailableError, SessionEndedError)
    ├── RaySystemError
    │   ├── StreamingGeneratorReplayInconsistentError
    │   ├── RayChannelError, RayCgraphCapacityExceeded, RayDirectTransportError
    │   └── RayChannelTimeoutError (TimeoutError)  a RayChannelError
    ├── CrossLanguageError, UserCodeException, UnserializableException
    ├── GetTimeoutError (TimeoutError)
    ├── PlasmaObjectNotAvailable, ObjectStoreFullError, OutOfDiskError
    ├── ObjectLostError
    │   ├── ObjectFetchTimedOutError, ObjectFreedError, OwnerDiedError
    │   ├── ObjectReconstructionFailedError
    │   └── ReferenceCountingAssertionError (AssertionError)
    ├── ObjectRefStreamEndOfStreamError, OufOfBandObjectRefSerializationException
    ├── AsyncioActorExit, PendingCallsLimitExceeded, RuntimeEnvSetupError
    ├── TaskPlacementGroupRemoved, ActorPlacementGroupRemoved
    ├── TaskUnschedulableError, ActorUnschedulableError
    ├── ActorAlreadyExistsError (ValueError), ActorHandleNotFoundError (ValueError)
    ├── RpcError
    ├── LinkError                           between two of raylite's processes
    │   ├── ProtocolError                   the peer does not speak our protocol
    │   ├── PeerLostError                   the peer is dead or out of reach
    │   ├── CongestedError                  the peer has stopped reading
    │   ├── AuthenticationError             the peer is of another cluster, or this process is
    │   │   └── CertificateError            its TLS certificate says so
    │   └── LinkClosedError                 you closed the link
    ├── RemoteHandlerError                  a bug in the peer
    ├── UnavailableError                    what was asked for is not there, or not now
    └── DeadlineExceededError (TimeoutError)

and one warning, `NumReturnsWarning`.

Names, bases, constructors and texts are those of Ray 2.60, with the package's name changed, because
programs match on them. That makes this the longest of the modules: the tree is one idea, and most
of its length is one short class after another.

A task's error crosses processes as a `RayTaskError`, made where it was raised by
`capture_task_error` and turned by `to_raise`, where it is read, into an instance of both
`RayTaskError` and the class that the task raised. A service's error crosses as a name and a
message (`to_wire`, `from_wire`): no peer is trusted with a pickle.
"""

import asyncio
import builtins
import functools
import logging
import os
import pickle
import sysconfig
import traceback
from collections.abc import Iterator
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any, ClassVar

import cloudpickle
from msgspec import Struct

logger: logging.Logger = logging.getLogger(__name__)


class RayError(Exception):
    """The root of all errors that raylite raises on purpose.

    One that reading an object raised says which: ``object_ref`` is the reference, ``task_id`` the
    id of the task that should have made the object. Of other errors both are None. A pickle of the
    error has the id and not the reference, or it would hold the object wherever it lies.
    """

    object_ref: Any = None
    task_id: Any = None

    def to_bytes(self) -> bytes:
        """The error as bytes, for `from_bytes`."""
        return bytes(cloudpickle.dumps(self))

    @staticmethod
    def from_bytes(data: bytes) -> "RayError":
        """The error that `to_bytes` wrote. It is a pickle: read only what you trust."""
        error = pickle.loads(data)
        if not isinstance(error, RayError):
            raise TypeError(f"the bytes hold a {type(error).__name__}, not a RayError")
        return error

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the constructor again with `args`, which lack keyword arguments.
        state = {name: each for name, each in self.__dict__.items() if name != "object_ref"}
        return _restore, (type(self), self.args, state)


def _restore(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> Any:
    error = cls.__new__(cls, *args)
    error.args = args  # OSError's __new__ leaves them to __init__
    error.__dict__.update(state)
    return error


# --- What happened to a task ---


class RayTaskError(RayError):
    """A task raised an exception, or could not run because one of its arguments had failed.

    What `get` raises is an instance of this class and of the exception's own class at once, with
    the exception's attributes, so that ``except ValueError`` works. ``cause`` is the exception.
    ``str()`` is the traceback through all the tasks that the error came through, without
    raylite's own frames.
    """

    def __init__(
        self,
        function_name: str,
        traceback_str: str,
        cause: BaseException,
        proctitle: str | None = None,
        pid: int | None = None,
        ip: str | None = None,
        actor_repr: str | None = None,
        actor_id: str | None = None,
    ) -> None:
        proctitle = proctitle or f"raylite::{function_name}"
        super().__init__(function_name, traceback_str, cause, proctitle, pid, ip)
        self.function_name = function_name
        self.traceback_str = traceback_str
        self.cause = cause
        self.proctitle = proctitle
        self.pid = pid
        self.ip = ip
        self.actor_repr = actor_repr
        self.actor_id = actor_id

    def as_instanceof_cause(self) -> "RayTaskError":
        """This error as an instance of its cause's class too, or itself where that cannot be."""
        if isinstance(self, type(self.cause)) or isinstance(self.cause, RayTaskError):
            return self
        if isinstance(self.cause, asyncio.CancelledError):
            return self  # Ray: asyncio would take whoever awaits the task for cancelled, and say nothing
        try:
            return self.make_dual_exception_instance()
        except Exception as error:  # a class may refuse in any way it likes
            logger.warning(
                "User exception type %s in RayTaskError can't be subclassed! "
                "This exception is raised as RayTaskError only. "
                "You can use `ray_task_error.cause` to access the user exception. "
                "Failure in subclassing: %s",
                type(self.cause),
                error,
            )
            return self

    def make_dual_exception_type(self) -> type["RayTaskError"]:
        """The class that is both this one and the cause's; a TypeError if the cause's is final."""
        cause_class: Any = type(self.cause)
        dual_class: type[RayTaskError] = _dual_type(cause_class)
        return dual_class

    def make_dual_exception_instance(self) -> "RayTaskError":
        """This error as an instance of `make_dual_exception_type`."""
        return _dual_instance(self.make_dual_exception_type(), self)

    def __str__(self) -> str:
        return str(self.traceback_str)

    def __reduce__(self) -> tuple[Any, ...]:
        # The cause is a pickle within the pickle: one that cannot be written or read must not
        # take the story of the error with it.
        try:
            cause = cloudpickle.dumps(self.cause)
        except Exception as error:
            cls = type(self.cause)
            cause = cloudpickle.dumps(
                RayError(
                    f"Exception {cls.__module__}.{cls.__qualname__} isn't serializable: {error}.\n"
                    f"Original exception details:\n{self.traceback_str}"
                )
            )
        where = (self.proctitle, self.pid, self.ip, self.actor_repr, self.actor_id)
        story = (self.function_name, self.traceback_str, cause, where)
        return _restore_task_error, (*story, self.task_id)


def _restore_task_error(
    function_name: str,
    traceback_str: str,
    pickled_cause: bytes,
    where: tuple[Any, ...],
    task_id: object = None,
) -> RayError:
    try:
        cause = pickle.loads(pickled_cause)
        if not isinstance(cause, BaseException):
            raise TypeError(f"the exception came back as a {type(cause).__name__}")
    except Exception:
        story = f"{RayTaskError.__module__}.{RayTaskError.__name__}: {traceback_str}\n"
        return UnserializableException(story, traceback.format_exc())
    error = RayTaskError(function_name, traceback_str, cause, *where)
    if task_id is not None:
        error.task_id = task_id
    return error


_OF_READING = ("object_ref", "task_id")
_BUILTINS = {value for value in vars(builtins).values() if isinstance(value, type)}


@functools.lru_cache(maxsize=256)
def _dual_type(cause_class: Any) -> Any:
    """The class of errors that are both a `RayTaskError` and a `cause_class`."""
    name = f"RayTaskError({cause_class.__name__})"
    namespace: dict[str, Any] = {
        "__module__": __name__,
        "__qualname__": name,
        "__doc__": cause_class.__doc__,
        "__getattr__": _dual_getattr,
        "__repr__": _dual_repr,
        "__str__": _dual_str,
        "__reduce_ex__": _dual_reduce,
        "as_instanceof_cause": _dual_itself,
    }
    # What the C code of builtin exceptions keeps outside `__dict__`: errno, code, encoding, ...
    for base in cause_class.__mro__:
        if base in _BUILTINS and base not in (BaseException, Exception, object):
            for field, kind in vars(base).items():
                if isinstance(kind, (GetSetDescriptorType, MemberDescriptorType)):
                    namespace.setdefault(field, _cause_property(field))
    for field in _OF_READING:
        if hasattr(cause_class, field) and not issubclass(cause_class, RayError):
            namespace[field] = _cause_property(field)
    return type(cause_class)(name, (RayTaskError, cause_class), namespace)


def _dual_instance(cls: type[RayTaskError], error: RayTaskError) -> RayTaskError:
    cause = error.cause
    makers = (base for base in cls.__mro__ if "__new__" in vars(base) and base in _BUILTINS)
    builtin = next(base for base in makers if base is not MemoryError)  # its own makes no heirs
    args = (cause.message, cause.exceptions) if isinstance(cause, BaseExceptionGroup) else ()
    dual = builtin.__new__(cls, *args)  # the user's own __new__ and __init__ want who knows what
    assert isinstance(dual, RayTaskError)
    BaseException.__setattr__(dual, "args", (cause,))  # the cause's class may refuse to set any
    dual.__dict__["task_id"] = error.task_id
    of_its_own = _OF_READING if isinstance(cause, RayError) else ()
    for name, value in cause.__dict__.items():
        if name not in of_its_own:
            dual.__dict__[name] = value
    dual.__dict__.update(cause=cause, _task_error=error)
    return dual


def _dual_getattr(self: RayTaskError, name: str) -> Any:
    if name in ("_task_error", "cause"):  # not there yet: this is an instance half made
        raise AttributeError(name)
    error: RayTaskError = self.__dict__["_task_error"]
    try:
        return getattr(error.cause, name)
    except AttributeError:
        if name in error.__dict__:
            return error.__dict__[name]
        raise


def _dual_repr(self: RayTaskError) -> str:
    return f"{type(self).__name__}({self.__dict__['_task_error'].cause!r})"


def _dual_str(self: RayTaskError) -> str:
    return str(self.__dict__["_task_error"])


def _dual_reduce(self: RayTaskError, protocol: int) -> tuple[Any, ...]:
    return to_raise, (self.__dict__["_task_error"],)


def _dual_itself(self: RayTaskError) -> RayTaskError:
    return self


def _cause_property(name: str) -> property:
    return property(lambda self: getattr(self.__dict__["_task_error"].cause, name))


def to_raise(error: RayError, object_ref: object = None, task_id: object = None) -> RayError:
    """What to raise for a stored error: a new instance, as raising one changes it.

    A `RayTaskError` becomes an instance of its cause's class as well. The instance knows of which
    object it was read; attributes of these names that a user's class has are left as they are.
    """
    if error.task_id is None and task_id is not None:
        error.task_id = task_id
    fresh = error.as_instanceof_cause() if isinstance(error, RayTaskError) else error
    if fresh is error:
        fresh = _restore(type(error), error.args, error.__dict__)
    if object_ref is not None:
        fresh.__dict__.setdefault("object_ref", object_ref)
    return fresh


# --- Where task errors come from ---


def capture_task_error(
    error: BaseException,
    *,
    function_name: str,
    pid: int,
    ip: str,
    proctitle: str,
    actor_repr: str | None = None,
    actor_id: str | None = None,
) -> RayTaskError:
    """The `RayTaskError` for an exception that a task's code raised.

    If the task got it from `get`, the cause is the first task's exception, and the text tells both
    stories. A task whose argument failed never ran: see `dependency_error`.

    The cause still holds its traceback, and that the frames of whoever called the task: a local
    variable with the result makes a reference cycle unless it is deleted before its frame ends.
    """
    header = _header(proctitle, pid, ip, actor_repr, actor_id)
    text = "".join(_format(error, header)).rstrip("\n")
    cause = _cause(error)
    return RayTaskError(function_name, text, cause, proctitle, pid, ip, actor_repr, actor_id)


def dependency_error(
    error: RayError,
    *,
    function_name: str,
    proctitle: str,
    pid: int | None = None,
    ip: str | None = None,
    actor_repr: str | None = None,
    actor_id: str | None = None,
) -> RayTaskError:
    """The `RayTaskError` of a task that could not run because an argument failed with `error`.

    Without a `pid`, no worker was asked to run it.
    """
    header = _header(proctitle, pid, ip, actor_repr, actor_id)
    kind = RayTaskError if isinstance(error, RayTaskError) else type(error)
    text = dependency_story(header, f"{kind.__module__}.{kind.__qualname__}: {error}")
    cause = _cause(error)
    return RayTaskError(function_name, text, cause, proctitle, pid, ip, actor_repr, actor_id)


def dependency_story(header: str, told: str) -> str:
    """The text of such an error; of a long chain of tasks that failed so, its two ends."""
    if len(told) > _STORY_LIMIT:
        told = f"{told[: _STORY_LIMIT // 2]}\n  ...\n{told[-_STORY_LIMIT // 2 :]}"
    return (
        f"{header}\n"
        "  At least one of the input arguments for this task could not be computed:\n"
        f"{told}"
    )


_STORY_LIMIT = 16_000  # characters; each task of a chain tells of all before it


def _cause(error: BaseException) -> BaseException:
    while isinstance(error, RayTaskError):
        error = error.__dict__["cause"]
    return error


def _header(
    proctitle: str,
    pid: int | None,
    ip: str | None,
    actor_repr: str | None = None,
    actor_id: str | None = None,
) -> str:
    if pid is None:
        return f"{proctitle}() (not run)"
    actor = f", actor_id={actor_id}, repr={actor_repr}" if actor_id is not None else ""
    return f"{proctitle}() (pid={pid}, ip={ip}{actor})"


def _format(error: BaseException, header: str) -> Iterator[str]:
    """The traceback, with `header` where Python says "Traceback (most recent call last):"."""
    story = traceback.TracebackException.from_exception(error, compact=True)
    _drop_framework_frames(story)
    texts = list(story.format())
    if not story.stack and not story.exceptions:  # raised by raylite: Python writes no header
        texts.insert(len(texts) - len(list(story.format_exception_only())), f"{header}\n")
    for text in texts:
        if text == "Traceback (most recent call last):\n":
            yield f"{header}\n"
        elif text.startswith("  + Exception Group Traceback"):
            yield f"{header}\n{text}"
        else:
            yield text


_PACKAGE = os.path.dirname(__file__) + os.sep
_STDLIB = sysconfig.get_path("stdlib") + os.sep
_PICKLER = os.path.dirname(cloudpickle.__file__) + os.sep
_PLUMBING = (
    _PICKLER,
    *(_STDLIB + name for name in ("asyncio", "concurrent", "contextlib", "threading")),
)


def is_own_frame(file: str) -> bool:
    """Say whether code of this file is raylite's, or the pickler's."""
    return file.startswith((_PACKAGE, _PICKLER))


def tell(error: BaseException) -> str:
    """The traceback of an error, without raylite's frames."""
    return "".join(_format(error, "Traceback (most recent call last):"))


def _drop_framework_frames(story: traceback.TracebackException) -> None:
    """Remove raylite's frames, and those of the standard library that raylite called."""
    waiting, seen = [story], set[int]()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        kept, in_framework = [], False
        for frame in part.stack:
            in_framework = frame.filename.startswith(_PACKAGE) or (
                in_framework and frame.filename.startswith(_PLUMBING)
            )
            if not in_framework:
                kept.append(frame)
        part.stack[:] = kept
        others = (part.__cause__, part.__context__, *(part.exceptions or ()))
        waiting += [other for other in others if other is not None]


class TaskCancelledError(RayError):
    """The task was cancelled, or needed the result of one that was."""

    def __init__(self, task_id: object = None, error_message: str | None = None) -> None:
        self.task_id = task_id
        self.error_message = error_message

    def __str__(self) -> str:
        message = self.error_message or ""
        if self.task_id is None:
            return message
        return f"Task: {self.task_id} was cancelled. {message}"


class NumReturnsWarning(UserWarning):
    """A task with ``num_returns=0`` returned something, which is lost."""


class TaskTimeoutError(RayError, TimeoutError):
    """The task had not ended when its time was over: its option ``timeout`` or ``deadline``.

    Or that of the task which started it. The text says what it was doing, or waiting for. It has been
    interrupted, if it ran, and is not tried again. Ray has no such thing.
    """


class WorkerCrashedError(RayError):
    """The task's worker process ended while it ran the task, and no retries are left."""

    def __str__(self) -> str:
        text = "The worker died unexpectedly while executing this task."
        return f"{text} {self.args[0]}" if any(self.args) else text


class LocalRayletDiedError(RayError):
    """This process's own node has lost its raylet, so its tasks cannot go on."""

    def __init__(self, cause: str = "") -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        told = "The task's local raylet died. Check raylet.log for more information."
        return f"{told} {self.cause}".rstrip()


class GcsUnavailableError(LocalRayletDiedError):
    """The local cluster has lost its GCS, and with that its tables, which were in memory only.

    A head that was started by ``raylite start`` keeps them, and starts its GCS again instead.
    """

    def __str__(self) -> str:
        told = (
            "The cluster's GCS has ended, and its tables with it: start another cluster by init()."
        )
        return f"{told} {self.cause}".rstrip()


class SessionEndedError(LocalRayletDiedError):
    """This program has ended its session, by `shutdown` or with its end, before a value was there."""

    def __str__(self) -> str:
        return (
            "This program ended its session, by shutdown() or with its own end, before the value was "
            "there: get what you need before that."
        )


class NodeDiedError(RayError):
    """The node that ran the task died, or is out of reach for good, and no retries are left."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class OutOfMemoryError(RayError):
    """The task was ended because its node was running out of memory, and no retries are left.

    With ``max_retries=0`` it is not retried; else ``task_oom_retries`` of the cluster counts.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class TaskUnschedulableError(RayError):
    """No node can ever run the task under its scheduling strategy, or none could for too long.

    The text says what is missing, how much was asked for and which node has most of it. Settings of
    the cluster say how long such a task waits for a node that could (``infeasible_grace_s``).
    """

    def __init__(self, error_message: str) -> None:
        super().__init__(error_message)
        self.error_message = error_message

    def __str__(self) -> str:
        return f"The task is not schedulable: {self.error_message}"


class TaskPlacementGroupRemoved(RayError):
    """The placement group that the task was to run in has been removed."""

    def __str__(self) -> str:
        return "The placement group corresponding to this task has been removed."


class RuntimeEnvSetupError(RayError):
    """The runtime environment of a task or an actor could not be made."""

    def __init__(self, error_message: str | None = None) -> None:
        super().__init__(*(() if error_message is None else (error_message,)))
        self.error_message = error_message

    def __str__(self) -> str:
        message = "Failed to set up runtime environment."
        return f"{message}\n{self.error_message}" if self.error_message else message


class UserCodeException(RayError):
    """Code that the user handed to raylite, other than a task, raised."""


class UnserializableException(RayError):
    """A task raised an exception whose pickle cannot be read here; the text holds its traceback.

    Usual reasons: the class's constructor takes more than the message and there is no
    ``__reduce__`` to say so, or the class cannot be imported in this process.
    """

    def __init__(self, original_stack_trace: str, reason: str = "") -> None:
        super().__init__(original_stack_trace)
        self._original_stack_trace = original_stack_trace
        self._reason = reason

    def __str__(self) -> str:
        text = (
            "Failed to deserialize exception. An exception class whose constructor takes other "
            "arguments than `args` needs a `__reduce__` method.\n"
            f"Original exception:\n{self._original_stack_trace}"
        )
        if not self._reason:
            return text
        return (
            f"{text}\nSystem error: Failed to unpickle serialized exception\n"
            f"traceback: {self._reason}"
        )


# --- What happened to an actor ---


class RayActorError(RayError):
    """A call of an actor failed for the actor's sake. It may or may not have been executed."""

    BASE_ERROR_MSG: ClassVar[str] = "The actor experienced an error before finishing this task."

    def __init__(
        self,
        actor_id: str | None = None,
        error_msg: str = BASE_ERROR_MSG,
        actor_init_failed: bool = False,
        preempted: bool = False,
    ) -> None:
        self.actor_id = actor_id
        self.error_msg = error_msg
        self._actor_init_failed = actor_init_failed
        self._preempted = preempted

    @property
    def preempted(self) -> bool:
        """Whether the actor's node was taken away by whoever lent it."""
        return self._preempted

    @property
    def actor_init_failed(self) -> bool:
        """Whether the actor's constructor raised."""
        return self._actor_init_failed

    def __str__(self) -> str:
        return self.error_msg


class ActorDeath(Struct, frozen=True):
    """How an actor died: what the cluster remembers of it and an `ActorDiedError` tells."""

    actor_id: str
    error_message: str
    class_name: str = ""
    pid: int = 0
    name: str = ""
    namespace: str = ""
    ip: str = ""
    never_started: bool = False
    preempted: bool = False

    def __str__(self) -> str:
        lines = [f"\tclass_name: {self.class_name}", f"\tactor_id: {self.actor_id}"]
        fields = {name: getattr(self, name) for name in ("pid", "name", "namespace", "ip")}
        lines += [f"\t{name}: {value}" for name, value in fields.items() if value]
        lines.append(self.error_message)
        if self.never_started:
            lines.append("The actor never ran - it was cancelled before it started running.")
        return "\n".join(lines)


class ActorDiedError(RayActorError):
    """The actor is dead and will not be restarted.

    If it was its constructor that raised, ``actor_init_failed`` is true and the text holds the
    traceback.
    """

    BASE_ERROR_MSG: ClassVar[str] = "The actor died unexpectedly before finishing this task."

    def __init__(self, cause: RayTaskError | ActorDeath | None = None) -> None:
        if cause is None:
            super().__init__(None, self.BASE_ERROR_MSG)
        elif isinstance(cause, ActorDeath):
            text = f"{self.BASE_ERROR_MSG}\n{cause}"
            super().__init__(cause.actor_id, text, preempted=cause.preempted)
        else:
            text = f"The actor died because of an error raised in its creation task, {cause}"
            super().__init__(cause.actor_id, text, actor_init_failed=True)

    @staticmethod
    def from_task_error(task_error: RayTaskError) -> "ActorDiedError":
        """The error of calls to an actor whose constructor raised."""
        return ActorDiedError(task_error)


class ActorUnavailableError(RayActorError):
    """The actor cannot be reached or is restarting; a later call may work."""

    def __init__(self, error_message: str, actor_id: bytes | None) -> None:
        hex_id = None if actor_id is None else actor_id.hex()
        text = (
            f"The actor {hex_id} is unavailable: {error_message}. "
            "The task may or may not have been executed on the actor."
        )
        super().__init__(hex_id, text)


class ActorUnschedulableError(RayError):
    """No node can ever hold the actor under its scheduling strategy."""

    def __init__(self, error_message: str) -> None:
        super().__init__(error_message)
        self.error_message = error_message

    def __str__(self) -> str:
        return f"The actor is not schedulable: {self.error_message}"


class ActorPlacementGroupRemoved(RayError):
    """The placement group that the actor was to live in has been removed."""

    def __str__(self) -> str:
        return "The placement group corresponding to this Actor has been removed."


class ActorAlreadyExistsError(ValueError, RayError):
    """The name that a new actor asked for belongs to another."""

    def __init__(self, error_message: str) -> None:
        super().__init__(error_message)
        self.error_message = error_message


class ActorHandleNotFoundError(ValueError, RayError):
    """The handle's actor is unknown here: it is dead, or of another cluster."""

    def __init__(self, error_message: str) -> None:
        super().__init__(error_message)
        self.error_message = error_message


class AsyncioActorExit(RayError):
    """Raised inside an async actor to end it; user code should let it pass."""


class PendingCallsLimitExceeded(RayError):
    """The actor's ``max_pending_calls`` are already waiting, so this call was not sent."""


# --- What happened to an object ---

_logs = "session_latest/logs"


def note_logs(directory: str) -> None:
    """Have errors tell where the logs of this process's session are."""
    global _logs
    _logs = directory


class GetTimeoutError(RayError, TimeoutError):
    """Time ran out before all the objects were there. Nothing was cancelled."""


class PlasmaObjectNotAvailable(RayError):
    """The object is not in this node's object store."""


class ObjectStoreFullError(RayError):
    """The object store has no room, and nothing in it can be moved out."""


class OutOfDiskError(RayError):
    """Neither the object store nor the disk that it spills to has room."""

    def __str__(self) -> str:
        return super().__str__() + (
            "\nThe object cannot be created because the local object store is full and the local "
            "disk's utilization is over capacity (95% by default). Tip: Use `df` on this node to "
            "check disk usage."
        )


class ObjectLostError(RayError):
    """Every copy of the object is gone, and it was not rebuilt. Its subclasses say why."""

    _REASON: ClassVar[str] = (
        "All copies of {ref} have been lost due to node failure. Check cluster logs "
        "(`{logs}`) for more information about the failure."
    )

    def __init__(self, object_ref_hex: str, owner_address: bytes | None, call_site: str) -> None:
        self.object_ref_hex = object_ref_hex
        self.owner_address = owner_address
        self.call_site = call_site

    def _base_str(self) -> str:
        text = f"Failed to retrieve object {self.object_ref_hex}. "
        if self.call_site:
            return f"{text}The ObjectRef was created at: {self.call_site}"
        return (
            f"{text}To see information about where this ObjectRef was created in Python, set the "
            "environment variable RAYLITE_record_ref_creation_sites=1 during `raylite start` and "
            "`raylite.init()`."
        )

    def __str__(self) -> str:
        return f"{self._base_str()}\n\n{self._REASON.format(ref=self.object_ref_hex, logs=_logs)}"


class ObjectFetchTimedOutError(ObjectLostError):
    """No node was found to hold the object."""

    _REASON = (
        "Fetch for object {ref} timed out because no locations were found for the object. "
        "This may indicate a system-level bug."
    )


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """The object was deleted although a reference to it is still held."""

    _REASON = (
        "The object has already been deleted by the reference counting protocol. "
        "This should not happen."
    )


class ObjectFreedError(ObjectLostError):
    """The object was freed by hand."""

    _REASON = (
        "The object was manually freed using the internal `free` call. "
        "Please ensure that `free` is only called once the object is no longer needed."
    )


class OwnerDiedError(ObjectLostError):
    """The process that made the first reference, and could have told of the object, is gone."""

    _REASON = (
        "The object's owner has exited. This is the Python worker that first created the ObjectRef "
        "via `.remote()` or `raylite.put()`. Check cluster logs "
        "(`{logs}`) for more information about the Python worker failure."
    )


class ObjectReconstructionFailedError(ObjectLostError):
    """The object was lost and cannot be rebuilt; ``reason`` is a key of `REASON_MESSAGES`."""

    REASON_MESSAGES: ClassVar[dict[str, str]] = {
        "OBJECT_UNRECONSTRUCTABLE_MAX_ATTEMPTS_EXCEEDED": (
            "because the maximum number of task retries has been exceeded. Consider increasing "
            "the number of retries using `@raylite.remote(max_retries=N)`."
        ),
        "OBJECT_UNRECONSTRUCTABLE_LINEAGE_EVICTED": (
            "because its lineage has been evicted to reduce memory pressure. To prevent this "
            "error, set the environment variable RAYLITE_max_lineage_bytes=<bytes> (default 1GB) "
            "during `raylite start`."
        ),
        "OBJECT_UNRECONSTRUCTABLE_PUT": (
            "because it was created by raylite.put(), which has no task lineage. To prevent this "
            "error, return the value from a task instead."
        ),
        "OBJECT_UNRECONSTRUCTABLE_RETRIES_DISABLED": (
            "because the task was created with max_retries=0. Consider enabling retries using "
            "`@raylite.remote(max_retries=N)`."
        ),
        "OBJECT_UNRECONSTRUCTABLE_BORROWED": (
            "because it crossed an ownership boundary. Only the owner of an object can trigger "
            "reconstruction, but this worker borrowed the object from another worker."
        ),
        "OBJECT_UNRECONSTRUCTABLE_REF_NOT_FOUND": (
            "because its reference was not found in the reference counter."
        ),
        "OBJECT_UNRECONSTRUCTABLE_TASK_CANCELLED": (
            "because the task that would produce it was cancelled."
        ),
        "OBJECT_UNRECONSTRUCTABLE_LINEAGE_DISABLED": (
            "because lineage reconstruction is disabled system-wide "
            "(object_reconstruction_enabled=False)."
        ),
    }

    def __init__(
        self,
        object_ref_hex: str,
        reason: str | None = None,
        reason_message: str | None = None,
        owner_address: bytes | None = None,
        call_site: str = "",
    ) -> None:
        super().__init__(object_ref_hex, owner_address, call_site)
        self.reason = reason
        self.reason_message = reason_message

    def __str__(self) -> str:
        detail = self.reason_message or "The object cannot be reconstructed " + (
            self.REASON_MESSAGES.get(self.reason or "", "for an unknown reason.")
        )
        return f"{self._base_str()}\n\n[{self.reason or 'UNKNOWN'}] {detail}"


class ObjectRefStreamEndOfStreamError(RayError):
    """The stream of a generator task has no further items."""


class OufOfBandObjectRefSerializationException(RayError):
    """A reference was pickled outside raylite, where it cannot be counted.

    The misspelt name is Ray's.
    """


# --- What happened to the system ---


class RaySystemError(RayError):
    """Something in raylite itself failed."""

    def __init__(self, client_exc: BaseException | str, traceback_str: str | None = None) -> None:
        super().__init__(*((client_exc,) if traceback_str is None else (client_exc, traceback_str)))
        self.client_exc = client_exc
        self.traceback_str = traceback_str

    def __str__(self) -> str:
        text = f"System error: {self.client_exc}"
        return f"{text}\ntraceback: {self.traceback_str}" if self.traceback_str else text


class StreamingGeneratorReplayInconsistentError(RaySystemError):
    """A generator task, run again, did not yield as many items as the first time."""


class RayChannelError(RaySystemError):
    """Ray raises it from channels of compiled graphs, which raylite has not."""


class RayChannelTimeoutError(RayChannelError, TimeoutError):
    """Ray raises it when a channel's time is up; raylite has no channels."""


class RayCgraphCapacityExceeded(RaySystemError):
    """Ray raises it when a compiled graph's buffer is full; raylite has no such graphs."""


class RayDirectTransportError(RaySystemError):
    """Ray raises it from transfers between GPUs, which raylite has not."""


class CrossLanguageError(RayError):
    """Ray raises it for errors of Java and C++; raylite runs Python alone."""

    _LANGUAGES: ClassVar = ("PYTHON", "JAVA", "CPP")

    def __init__(self, ray_exception: Any) -> None:
        super().__init__(
            f"An exception raised from {self._LANGUAGES[ray_exception.language]}:\n"
            f"{ray_exception.formatted_exception_string}"
        )


class RpcError(RayError):
    """A request to one of raylite's services failed; ``rpc_code`` is a gRPC status, if known."""

    def __init__(self, message: str, rpc_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.rpc_code = rpc_code


class LinkError(RayError):
    """Two processes cannot, or can no longer, talk to one another."""


class ProtocolError(LinkError):
    """The peer sent what is not raylite's protocol: another version, nonsense, or too much."""


class PeerLostError(LinkError):
    """The peer is gone.

    With ``confirmed`` its process is known to be dead. Otherwise it has been out of reach for
    longer than the session timeout, and what it was asked to do may yet be done. ``reason`` is the
    message without the peer.
    """

    def __init__(self, message: str = "", *, confirmed: bool = False, reason: str = "") -> None:
        super().__init__(message)
        self.confirmed = confirmed
        self.reason: str = reason or message


class CongestedError(LinkError):
    """The peer has stopped reading, and more than it is allowed would have to be kept for it."""


class AuthenticationError(LinkError):
    """Two processes did not prove to one another that they belong to one cluster.

    Raised by what is sent on a link whose two ends have different tokens, or TLS certificates of
    different clusters: dialling again would not help, so the link ends at the first such answer.
    Also raised where a token or a certificate is read that cannot be used, or was not kept secret.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class CertificateError(AuthenticationError):
    """A TLS certificate is not of the cluster that is meant, or cannot be used or made."""


class LinkClosedError(LinkError):
    """You closed the link."""


class RemoteHandlerError(RayError):
    """The service that was asked failed with an error of its own, a bug. It has ended."""


class UnavailableError(RayError):
    """What was asked for is not there, or cannot be had at this time."""


class DeadlineExceededError(RayError, TimeoutError):
    """The time that the caller allowed for a request ran out."""


RAY_EXCEPTION_TYPES: list[type[RayError]] = [
    value
    for value in list(globals().values())
    if isinstance(value, type) and issubclass(value, RayError)
]

# --- Errors between services ---


def reason_of(error: BaseException | None) -> str:
    """Return what a text says of a lost peer that it names itself."""
    return error.reason if isinstance(error, PeerLostError) else str(error)


GCS_ENDED = "the node's gcs process"
"""How the reason begins for which the raylet of a local cluster ends when its GCS has."""


def raylet_died(error: BaseException | None) -> LocalRayletDiedError:
    """Return what is raised when the link to the own raylet has ended with an error."""
    reason = reason_of(error)
    if isinstance(error, LinkClosedError):
        return SessionEndedError(reason)
    return (GcsUnavailableError if GCS_ENDED in reason else LocalRayletDiedError)(reason)


_NEED_MORE_THAN_A_MESSAGE = (
    RayTaskError,
    TaskCancelledError,
    UnserializableException,
    RayActorError,
    ObjectLostError,
    CrossLanguageError,
)
_TRAVEL = {
    cls.__name__: cls
    for cls in RAY_EXCEPTION_TYPES
    if not issubclass(cls, _NEED_MORE_THAN_A_MESSAGE)
}


def to_wire(error: RayError) -> tuple[str, str]:
    """An error as its class's name and a message, for `from_wire`.

    A class that needs more than a message, and one from outside this module, travels as its
    nearest base that does not.
    """
    cls = next(base for base in type(error).__mro__ if _TRAVEL.get(base.__name__) is base)
    if cls is type(error):
        return cls.__name__, str(error.args[0]) if error.args else ""
    return cls.__name__, str(error)


def from_wire(name: str, message: str) -> RayError:
    """The error that `to_wire` described; an unknown name gives a plain `RayError`."""
    return _TRAVEL.get(name, RayError)(message)
