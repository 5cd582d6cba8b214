"""Exceptions: what a program that catches, prints or pickles one can rely on."""

import asyncio
import copy
import logging
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest

from raylite import exceptions
from raylite._types.ids import ActorID, JobID, TaskID
from raylite.exceptions import (
    RAY_EXCEPTION_TYPES,
    ActorAlreadyExistsError,
    ActorDeath,
    ActorDiedError,
    ActorUnavailableError,
    CongestedError,
    DeadlineExceededError,
    GetTimeoutError,
    LinkClosedError,
    LinkError,
    NodeDiedError,
    ObjectFreedError,
    ObjectLostError,
    ObjectReconstructionFailedError,
    PeerLostError,
    PendingCallsLimitExceeded,
    ProtocolError,
    RayActorError,
    RayError,
    RaySystemError,
    RayTaskError,
    ReferenceCountingAssertionError,
    RemoteHandlerError,
    RuntimeEnvSetupError,
    TaskCancelledError,
    TaskUnschedulableError,
    UnavailableError,
    UnserializableException,
    WorkerCrashedError,
    capture_task_error,
    dependency_error,
    from_wire,
    to_raise,
    to_wire,
)

HEX = "ab" * 28


class CustomError(Exception):
    """An exception with a constructor, attributes, a class attribute and a method of its own."""

    level = "class"

    def __init__(self, code: int, *, hint: str = "none") -> None:
        super().__init__("custom", code)
        self.code = code
        self.hint = hint
        self.level = "instance"

    def describe(self) -> str:
        return f"{self.code}: {self.hint}"

    def __reduce__(self) -> Any:
        return _custom_error, (self.code, self.hint)


def _custom_error(code: int, hint: str) -> CustomError:
    return CustomError(code, hint=hint)


class SlottedError(Exception):
    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size


class FinalError(Exception):
    def __init_subclass__(cls) -> None:
        raise TypeError("final!")


class UnreadableError(Exception):
    """It is pickled with `args`, which is not what its constructor takes."""

    def __init__(self, *, needed: int) -> None:
        super().__init__("unreadable")


class ChangelingError(Exception):
    def __reduce__(self) -> Any:
        return int, ("3",)


class StrictError(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} cannot be set")


@dataclass(frozen=True)
class FrozenError(Exception):
    code: int


class NotAnException(BaseException):
    pass


def run(function: Callable[[], object], *, name: str | None = None, pid: int = 7) -> RayTaskError:
    """Do what a worker does: run a task and make a `RayTaskError` of what it raises."""
    name = name or function.__name__
    try:
        function()
    except BaseException as error:
        return capture_task_error(
            error, function_name=f"mod.{name}", pid=pid, ip="10.0.0.1", proctitle=f"raylite::{name}"
        )
    raise AssertionError("the task did not fail")


def travel(error: RayError) -> Any:
    return pickle.loads(cloudpickle.dumps(error))


def fail(error: BaseException) -> BaseException:
    """What a driver's `get` raises for a task that raises `error`."""

    def task() -> None:
        raise error

    return to_raise(travel(run(task)))


def bar() -> None:
    raise ZeroDivisionError("division by zero")


def foo() -> None:
    raise to_raise(run(bar))


# --- An instance of both classes ---


def test_a_task_error_is_also_what_the_task_raised() -> None:
    error = fail(CustomError(7, hint="try again"))
    assert isinstance(error, RayTaskError)
    assert isinstance(error, CustomError)
    assert (error.code, error.hint, error.describe()) == (7, "try again", "7: try again")
    assert isinstance(error.cause, CustomError)
    assert error.args == (error.cause,)


@pytest.mark.parametrize("cause", [StrictError("a"), StrictError()])
def test_a_class_that_lets_no_attribute_be_set_is_one_as_well(cause: BaseException) -> None:
    error = fail(cause)
    assert isinstance(error, StrictError)
    assert isinstance(error, RayTaskError)
    assert error.args == (error.cause,)
    with pytest.raises(StrictError):
        raise error


def test_a_frozen_error_in_the_same_process_is_one_as_well() -> None:
    def task() -> None:
        raise FrozenError(3)

    error: Any = to_raise(run(task))
    assert isinstance(error, FrozenError)
    assert error.code == 3


def test_an_instances_attribute_wins_over_its_classs() -> None:
    assert fail(CustomError(7)).level == "instance"  # type: ignore[attr-defined]


def test_repr_and_the_class_name_tell_both_classes() -> None:
    error = fail(ValueError("x"))
    assert repr(error) == "RayTaskError(ValueError)(ValueError('x'))"
    assert type(error).__module__ == "raylite.exceptions"
    assert type(error).__qualname__ == "RayTaskError(ValueError)"


def test_the_dual_class_is_made_once() -> None:
    assert type(fail(ValueError("x"))) is type(fail(ValueError("y")))


def test_the_tasks_whereabouts_are_attributes_of_the_error() -> None:
    error: Any = fail(ValueError("x"))
    assert (error.pid, error.ip, error.function_name) == (7, "10.0.0.1", "mod.task")
    assert error.proctitle == "raylite::task"
    with pytest.raises(AttributeError):
        error.nothing_of_this_name  # noqa: B018


def test_an_attribute_of_the_users_wins_over_the_tasks_whereabouts() -> None:
    cause: Any = ValueError("x")
    cause.pid = "mine"
    assert fail(cause).pid == "mine"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("cause", "field"),
    [
        (FileNotFoundError(2, "gone", "here"), "errno"),
        (FileNotFoundError(2, "gone", "here"), "filename"),
        (SystemExit(3), "code"),
        (StopIteration(5), "value"),
        (UnicodeDecodeError("utf8", b"a", 0, 1, "why"), "reason"),
        (ImportError("m", name="n"), "name"),
        (SlottedError(3), "size"),
    ],
)
def test_fields_outside_the_instances_dict_are_there(cause: BaseException, field: str) -> None:
    task_error = RayTaskError("f", "text", cause)
    error = to_raise(task_error)
    assert isinstance(error, type(cause))
    assert getattr(error, field) == getattr(cause, field)


@pytest.mark.parametrize("cause", [Exception("x"), BaseException("x"), RayError("x")])
def test_a_cause_that_adds_no_class_gives_a_plain_task_error(cause: BaseException) -> None:
    assert type(fail(cause)) is RayTaskError


def test_exceptions_that_are_not_an_exception_are_task_errors_too() -> None:
    error = fail(NotAnException("base"))
    assert isinstance(error, RayTaskError)
    assert isinstance(error, NotAnException)


def test_a_system_error_keeps_its_kind() -> None:
    actor_id = ActorID.of(JobID.from_int(1)).hex()
    error = fail(ActorDiedError(ActorDeath(actor_id, "it died", preempted=True)))
    assert isinstance(error, RayTaskError)
    assert isinstance(error, ActorDiedError)
    assert error.preempted
    assert error.actor_id == actor_id
    assert type(error.cause) is ActorDiedError
    assert error.as_instanceof_cause() is error


def test_a_class_that_may_not_be_subclassed_is_the_cause_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="raylite.exceptions"):
        error: Any = fail(FinalError("x"))
    assert type(error) is RayTaskError
    assert isinstance(error.cause, FinalError)
    assert "can't be subclassed" in caplog.text
    assert "final!" in caplog.text
    with pytest.raises(TypeError, match="final!"):
        error.make_dual_exception_type()


def test_each_reader_raises_an_instance_of_its_own() -> None:
    for stored in (RayTaskError("f", "text", ValueError("x")), NodeDiedError("gone")):
        first, second = to_raise(stored), to_raise(stored)
        assert first is not second is not stored
        assert type(first) is type(second)
        assert str(first) == str(stored)


# --- Exception groups ---


def test_a_group_survives() -> None:
    error = fail(ExceptionGroup("both", [ValueError("1"), TypeError("2")]))
    assert isinstance(error, RayTaskError)
    assert isinstance(error, ExceptionGroup)
    assert error.message == "both"
    assert [type(part) for part in error.exceptions] == [ValueError, TypeError]


def test_except_star_picks_the_parts_of_a_group() -> None:
    parts: list[BaseException] = []
    try:
        try:
            raise fail(ExceptionGroup("both", [ValueError("1"), TypeError("2")]))
        except* ValueError as group:
            parts += group.exceptions
    except* TypeError as group:
        parts += group.exceptions
    assert [repr(part) for part in parts] == ["ValueError('1')", "TypeError('2')"]


def test_except_star_finds_the_task_error_as_a_whole() -> None:
    error = fail(ExceptionGroup("both", [ValueError("1")]))
    caught: list[BaseException] = []
    try:
        raise error
    except* RayTaskError as group:
        caught.append(group)
    assert caught == [error]


def test_a_group_with_more_than_exceptions_is_the_cause_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="raylite.exceptions"):
        error: Any = fail(BaseExceptionGroup("g", [ValueError("1"), KeyboardInterrupt()]))
    assert type(error) is RayTaskError
    assert isinstance(error.cause, BaseExceptionGroup)
    assert "can't be subclassed" in caplog.text


# --- The text ---


def test_the_text_is_the_tasks_own_traceback() -> None:
    line = bar.__code__.co_firstlineno
    frames = [
        "raylite::bar() (pid=7, ip=10.0.0.1)",
        f'  File "{__file__}", line {line + 1}, in bar',
    ]
    lines = str(to_raise(run(bar))).splitlines()
    assert lines[0] == frames[0]
    assert lines[-3:-1] == [frames[1], '    raise ZeroDivisionError("division by zero")']
    assert lines[-1] == "ZeroDivisionError: division by zero"


def test_an_actors_text_names_the_actor() -> None:
    try:
        bar()
    except ZeroDivisionError as error:
        task_error = capture_task_error(
            error,
            function_name="f",
            pid=7,
            ip="10.0.0.1",
            proctitle="raylite::A.f",
            actor_repr="MyA",
            actor_id="0a",
        )
    header = "raylite::A.f() (pid=7, ip=10.0.0.1, actor_id=0a, repr=MyA)"
    assert str(task_error).splitlines()[0] == header


def test_an_error_that_came_through_two_tasks_tells_both_stories() -> None:
    error = to_raise(travel(run(foo, pid=8)))
    assert isinstance(error, RayTaskError)
    assert isinstance(error.cause, ZeroDivisionError)
    assert not isinstance(error.cause, RayTaskError)
    text = str(error)
    assert text.startswith("raylite::foo() (pid=8, ip=10.0.0.1)\n")
    inner = "raylite.exceptions.RayTaskError(ZeroDivisionError): raylite::bar() (pid=7, ip="
    assert text.count(inner) == 1
    assert text.endswith("\nZeroDivisionError: division by zero")
    assert "Traceback (most recent call last)" not in text


def test_an_error_without_a_frame_of_the_tasks_own_has_the_header_too() -> None:
    error = capture_task_error(
        ValueError("v"), function_name="f", pid=7, ip="10.0.0.1", proctitle="raylite::f"
    )
    assert str(error) == "raylite::f() (pid=7, ip=10.0.0.1)\nValueError: v"


def test_each_exception_of_a_chain_has_the_header() -> None:
    def task() -> None:
        try:
            bar()
        except ZeroDivisionError as error:
            raise ValueError("outer") from error

    text = str(run(task))
    assert text.count("raylite::task() (pid=7, ip=10.0.0.1)\n") == 2
    assert "The above exception was the direct cause of the following exception:" in text


def test_a_traceback_in_the_users_message_is_left_alone() -> None:
    message = "said:\nTraceback (most recent call last):\n  nothing"
    assert message in str(fail(ValueError(message)))


def test_notes_are_in_the_text() -> None:
    error = ValueError("x")
    error.add_note("a note")
    assert str(fail(error)).endswith("ValueError: x\na note")


def test_a_groups_text_begins_with_the_header_too() -> None:
    text = str(fail(ExceptionGroup("both", [ValueError("1")])))
    assert text.startswith("raylite::task() (pid=7, ip=10.0.0.1)\n  + Exception Group Traceback")


def test_frames_of_the_framework_are_not_shown() -> None:
    def broken(count: int) -> bytes:
        raise ValueError("inside")

    def task() -> None:
        JobID.from_random(broken)  # a frame of raylite's between two of the user's

    text = str(run(task))
    assert "in task" in text
    assert "in broken" in text
    assert exceptions.__file__.rsplit("/", 1)[0] + "/_types" not in text


def test_library_frames_below_the_framework_are_not_shown() -> None:
    failed: Future[bytes] = Future()
    failed.set_exception(ValueError("inside"))

    def through_raylite() -> None:
        JobID.from_random(failed.result)

    def directly() -> None:
        failed.result()

    assert "concurrent/futures" not in str(run(through_raylite))
    assert "concurrent/futures" in str(run(directly))


def test_a_chain_that_bites_its_tail_is_told_once() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__context__, second.__context__ = second, first
    assert str(fail(first)).endswith("ValueError: first")


# --- Failed arguments ---


def dependent(error: RayError, name: str) -> RayTaskError:
    return dependency_error(
        error, function_name=name, pid=9, ip="10.0.0.2", proctitle=f"raylite::{name}"
    )


def test_a_failed_argument_is_told_once_per_level_and_the_root_last() -> None:
    error = dependent(travel(dependent(travel(run(bar)), "b")), "a")
    lines = str(error).splitlines()
    sentence = "  At least one of the input arguments for this task could not be computed:"
    assert lines[:5] == [
        "raylite::a() (pid=9, ip=10.0.0.2)",
        sentence,
        "raylite.exceptions.RayTaskError: raylite::b() (pid=9, ip=10.0.0.2)",
        sentence,
        "raylite.exceptions.RayTaskError: raylite::bar() (pid=7, ip=10.0.0.1)",
    ]
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert isinstance(to_raise(error), ZeroDivisionError)


def test_an_argument_lost_to_the_system_keeps_its_kind() -> None:
    error = dependent(WorkerCrashedError(), "a")
    assert "raylite.exceptions.WorkerCrashedError: The worker died unexpectedly" in str(error)
    assert isinstance(to_raise(error), WorkerCrashedError)


# --- Pickles ---


def test_a_cause_that_cannot_be_pickled_is_told_in_words() -> None:
    cause: Any = ValueError("locked")
    cause.lock = threading.Lock()
    error: Any = fail(cause)
    assert type(error) is RayTaskError
    assert type(error.cause) is RayError
    assert str(error.cause).startswith(
        "Exception builtins.ValueError isn't serializable: cannot pickle '_thread.lock' object."
    )
    assert "ValueError: locked" in str(error.cause)
    assert "ValueError: locked" in str(error)


@pytest.mark.parametrize("cause", [UnreadableError(needed=3), ChangelingError("unreadable")])
def test_a_cause_that_cannot_be_unpickled_keeps_its_story(cause: BaseException) -> None:
    error = fail(cause)
    assert isinstance(error, UnserializableException)
    text = str(error)
    assert "Original exception:\nraylite.exceptions.RayTaskError: raylite::task() (pid=7" in text
    assert f"{type(cause).__name__}: unreadable" in text
    assert "System error: Failed to unpickle serialized exception\ntraceback: Traceback" in text
    assert str(travel(error)) == text


def test_a_local_class_goes_by_value() -> None:
    class LocalError(Exception):
        pass

    assert isinstance(fail(LocalError("x")), LocalError)


@pytest.mark.parametrize("duplicate", [travel, copy.copy, copy.deepcopy])
def test_a_raised_error_can_be_pickled_and_copied(duplicate: Callable[[Any], Any]) -> None:
    error: Any = fail(CustomError(7, hint="h"))
    again = duplicate(error)
    assert type(again) is type(error)
    assert (str(again), again.hint, again.pid) == (str(error), "h", 7)


SAMPLES: list[RayError] = [
    RayError("a", "b"),
    RayTaskError("f", "text", ValueError("x"), "p", 1, "ip", "repr", "id"),
    TaskCancelledError(task_id=TaskID.nil(), error_message="m"),
    RayActorError(error_msg="m", preempted=True),
    ActorDiedError(),
    ActorDiedError(RayTaskError("f", "text", ValueError("x"), actor_id="ab")),
    ActorDiedError(ActorDeath("ab", "it died")),
    ActorUnavailableError("m", actor_id=b"\x01" * 16),
    ObjectLostError(HEX, owner_address=None, call_site="here"),
    ObjectReconstructionFailedError(HEX, reason_message="m"),
    TaskUnschedulableError(error_message="m"),
    GetTimeoutError("m"),
    PeerLostError("m", confirmed=True),
    RaySystemError(ValueError("x"), traceback_str="tb"),
    UnserializableException("story"),
    RuntimeEnvSetupError(error_message="m"),
    ActorAlreadyExistsError("m"),
]


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps, RayError.to_bytes])
@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_every_error_is_pickled_whole(error: RayError, dumps: Callable[[RayError], bytes]) -> None:
    again = RayError.from_bytes(dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert repr(vars(again)) == repr(vars(error))
    assert repr(again.args) == repr(error.args)


def test_a_subclass_of_a_timeout_keeps_its_args() -> None:
    assert travel(SlowError("a", 3)).args == ("a", 3)
    assert travel(SlowError("a", 3)).seconds == 3


class SlowError(GetTimeoutError):
    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message, seconds)
        self.seconds = seconds


def test_bytes_of_something_else_are_not_an_error() -> None:
    with pytest.raises(TypeError, match="hold a int"):
        RayError.from_bytes(pickle.dumps(3))


# --- Texts and attributes ---


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TaskCancelledError(), ""),
        (TaskCancelledError(error_message="because"), "because"),
        (TaskCancelledError(TaskID.nil()), f"Task: TaskID({'ff' * 24}) was cancelled. "),
        (RayActorError(), "The actor experienced an error before finishing this task."),
        (ActorDiedError(), "The actor died unexpectedly before finishing this task."),
        (
            ActorDiedError.from_task_error(RayTaskError("f", "TEXT", ValueError())),
            "The actor died because of an error raised in its creation task, TEXT",
        ),
        (
            ActorDiedError(ActorDeath("ab", "it died", "A", 3, "n", "ns", "1.2.3.4")),
            "The actor died unexpectedly before finishing this task.\n\tclass_name: A\n"
            "\tactor_id: ab\n\tpid: 3\n\tname: n\n\tnamespace: ns\n\tip: 1.2.3.4\nit died",
        ),
        (
            ActorDiedError(ActorDeath("ab", "it died", "A", never_started=True)),
            "The actor died unexpectedly before finishing this task.\n\tclass_name: A\n"
            "\tactor_id: ab\nit died\n"
            "The actor never ran - it was cancelled before it started running.",
        ),
        (
            ActorUnavailableError("The actor is restarting", None),
            "The actor None is unavailable: The actor is restarting. "
            "The task may or may not have been executed on the actor.",
        ),
        (RaySystemError("m"), "System error: m"),
        (RaySystemError(ValueError("m"), "TB"), "System error: m\ntraceback: TB"),
        (RuntimeEnvSetupError(), "Failed to set up runtime environment."),
        (RuntimeEnvSetupError("m"), "Failed to set up runtime environment.\nm"),
        (TaskUnschedulableError("m"), "The task is not schedulable: m"),
        (exceptions.ActorUnschedulableError("m"), "The actor is not schedulable: m"),
        (exceptions.RpcError("m", 14), "m"),
        (exceptions.OutOfMemoryError("m"), "m"),
        (exceptions.ActorHandleNotFoundError("m"), "m"),
        (UnavailableError("m"), "m"),
        (exceptions.AuthenticationError("m"), "m"),
        (exceptions.CertificateError("m"), "m"),
    ],
)
def test_texts(error: RayError, text: str) -> None:
    assert str(error) == text


@pytest.mark.parametrize(
    ("error", "start"),
    [
        (WorkerCrashedError(), "The worker died unexpectedly while executing this task."),
        (exceptions.LocalRayletDiedError(), "The task's local raylet died."),
        (exceptions.SessionEndedError("why"), "This program ended its session, by shutdown()"),
        (exceptions.GcsUnavailableError("why"), "The cluster's GCS has ended, and its tables with"),
        (exceptions.TaskPlacementGroupRemoved(), "The placement group corresponding to this task"),
        (exceptions.ActorPlacementGroupRemoved(), "The placement group corresponding to this Act"),
        (exceptions.OutOfDiskError("m"), "m\nThe object cannot be created because the local"),
        (ObjectLostError(HEX, None, ""), f"Failed to retrieve object {HEX}. To see information"),
        (ObjectLostError(HEX, None, "here"), f"Failed to retrieve object {HEX}. The ObjectRef was"),
    ],
)
def test_long_texts(error: RayError, start: str) -> None:
    assert str(error).startswith(start)


def test_a_lost_object_is_named_with_the_reason() -> None:
    lines = str(ObjectLostError(HEX, None, "here")).splitlines()
    assert lines[0].endswith("was created at: here")
    assert lines[2].startswith(f"All copies of {HEX} have been lost due to node failure.")


@pytest.mark.parametrize(
    ("reason", "message", "text"),
    [
        (None, None, "[UNKNOWN] The object cannot be reconstructed for an unknown reason."),
        (None, "mine", "[UNKNOWN] mine"),
        (
            "OBJECT_UNRECONSTRUCTABLE_TASK_CANCELLED",
            None,
            "[OBJECT_UNRECONSTRUCTABLE_TASK_CANCELLED] The object cannot be reconstructed "
            "because the task that would produce it was cancelled.",
        ),
    ],
)
def test_a_failed_rebuild_gives_its_reason(
    reason: str | None, message: str | None, text: str
) -> None:
    error = ObjectReconstructionFailedError(HEX, reason, message)
    assert str(error).splitlines()[-1] == text


def test_a_constructors_failure_is_told_by_the_death() -> None:
    cause = RayTaskError("__init__", "text", ValueError("x"), actor_id="ab")
    error = ActorDiedError(cause)
    assert (error.actor_id, error.actor_init_failed, error.preempted) == ("ab", True, False)
    assert error.args == (cause,)


@pytest.mark.parametrize(
    ("cls", "bases"),
    [
        (GetTimeoutError, (RayError, TimeoutError)),
        (DeadlineExceededError, (RayError, TimeoutError)),
        (exceptions.RayChannelError, (RaySystemError,)),
        (exceptions.RayChannelTimeoutError, (exceptions.RayChannelError, TimeoutError)),
        (exceptions.RayCgraphCapacityExceeded, (RaySystemError,)),
        (exceptions.RayDirectTransportError, (RaySystemError,)),
        (exceptions.CrossLanguageError, (RayError,)),
        (ActorDiedError, (RayActorError,)),
        (ActorUnavailableError, (RayActorError,)),
        (ObjectFreedError, (ObjectLostError,)),
        (ReferenceCountingAssertionError, (ObjectLostError, AssertionError)),
        (ActorAlreadyExistsError, (ValueError, RayError)),
        (ProtocolError, (LinkError,)),
        (PeerLostError, (LinkError,)),
        (CongestedError, (LinkError,)),
        (LinkClosedError, (LinkError,)),
        (RemoteHandlerError, (RayError,)),
    ],
)
def test_bases(cls: type[RayError], bases: tuple[type[BaseException], ...]) -> None:
    assert cls.__bases__ == bases


def test_an_error_of_another_language_tells_its_story() -> None:
    foreign = SimpleNamespace(language=1, formatted_exception_string="java.lang.Error: m")
    error = pickle.loads(pickle.dumps(exceptions.CrossLanguageError(foreign)))
    assert type(error) is exceptions.CrossLanguageError
    assert str(error) == "An exception raised from JAVA:\njava.lang.Error: m"


def test_every_class_is_listed_and_documented() -> None:
    classes = {
        value
        for value in vars(exceptions).values()
        if isinstance(value, type) and issubclass(value, RayError)
    }
    assert set(RAY_EXCEPTION_TYPES) == classes
    assert len(classes) == len(RAY_EXCEPTION_TYPES)
    for cls in classes:
        assert cls.__doc__
        assert cls.__name__ in (exceptions.__doc__ or "")


# --- Between services ---


@pytest.mark.parametrize(
    "error",
    [
        LinkError("m"),
        ProtocolError("m"),
        PeerLostError("m"),
        CongestedError("m"),
        LinkClosedError("m"),
        RemoteHandlerError("m"),
        UnavailableError("m"),
        DeadlineExceededError("m"),
        NodeDiedError("m"),
        TaskUnschedulableError("m"),
        RaySystemError("m"),
        RayError("m"),
        RayError(),
        WorkerCrashedError(),
        PendingCallsLimitExceeded("m"),
        RuntimeEnvSetupError("m"),
        RuntimeEnvSetupError(),
        ActorAlreadyExistsError("m"),
        exceptions.ObjectStoreFullError("m"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_one_message_travels_as_itself(error: RayError) -> None:
    again = from_wire(*to_wire(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


def test_every_class_that_travels_is_made_of_a_message() -> None:
    for cls in RAY_EXCEPTION_TYPES:
        again = from_wire(cls.__name__, "m")
        assert type(again) in (cls, RayError)
        assert to_wire(again) == (type(again).__name__, "m")


@pytest.mark.parametrize("error", [ActorDiedError(), RayTaskError("f", "text", ValueError("x"))])
def test_an_error_of_more_than_a_message_travels_as_its_base(error: RayError) -> None:
    assert to_wire(error) == ("RayError", str(error))


def test_a_users_subclass_travels_as_ours() -> None:
    class UnavailableError(exceptions.UnavailableError):
        """It even has the same name."""

    class Worse(UnavailableError):
        pass

    assert to_wire(Worse("m")) == ("UnavailableError", "m")
    assert type(from_wire(*to_wire(Worse("m")))) is exceptions.UnavailableError


@pytest.mark.parametrize("name", ["NoSuchError", "ActorDeath", "SystemExit", "logger", ""])
def test_an_unknown_name_is_a_plain_error(name: str) -> None:
    error = from_wire(name, "m")
    assert type(error) is RayError
    assert str(error) == "m"


def test_a_lost_peer_is_not_known_to_be_dead_unless_said() -> None:
    assert not PeerLostError("m").confirmed
    assert PeerLostError("m", confirmed=True).confirmed
    assert not from_wire(*to_wire(PeerLostError("m", confirmed=True))).confirmed  # type: ignore[attr-defined]


def test_a_task_error_can_be_set_on_an_asyncio_future() -> None:
    async def wait() -> None:
        future = asyncio.get_running_loop().create_future()
        future.set_exception(fail(ValueError("x")))
        with pytest.raises(ValueError):
            await future

    asyncio.run(wait())


def test_who_awaits_a_task_that_raised_cancelled_error_was_not_cancelled_himself() -> None:
    async def wait() -> None:
        future = asyncio.get_running_loop().create_future()
        future.set_exception(fail(asyncio.CancelledError("inside")))
        await future

    async def program() -> None:
        waiting = asyncio.create_task(wait())
        await asyncio.wait([waiting])
        assert not waiting.cancelled()
        error = waiting.exception()
        assert isinstance(error, RayTaskError)
        assert type(error.cause) is asyncio.CancelledError

    asyncio.run(program())
