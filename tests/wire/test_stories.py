"""Stories: an error's text is read from its pickle, and nothing of a user's code runs for it."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from raylite._types.ids import TaskID
from raylite._wire import pickling
from raylite._wire.stories import story
from raylite.exceptions import (
    ObjectLostError,
    RaySystemError,
    TaskCancelledError,
    WorkerCrashedError,
    capture_task_error,
)


class GhostError(Exception):
    """A user's class, of which no instance is ever to be unpickled."""

    def __reduce__(self) -> Any:
        return _seen, ()


def _seen() -> Any:
    raise AssertionError("a user's code ran")


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def pickled(error: BaseException) -> bytes:
    return pickling.dumps(error).to_bytes()


def test_a_tasks_error_is_told_without_what_it_raised() -> None:
    task_error = capture_task_error(
        GhostError("boo"), function_name="f", pid=1, ip="10.0.0.1", proctitle="raylite::f"
    )
    name, text = story(pickled(task_error))
    assert name == "RayTaskError"
    assert text == str(task_error)
    assert text.startswith("raylite::f() (pid=1, ip=10.0.0.1)")
    assert "GhostError: boo" in text


def test_a_task_that_needed_a_cancelled_one_is_told_by_that() -> None:
    failed = capture_task_error(
        TaskCancelledError(), function_name="f", pid=1, ip="10.0.0.1", proctitle="raylite::f"
    )
    assert story(pickled(failed)) == ("TaskCancelledError", str(failed))


@pytest.mark.parametrize(
    "error",
    [
        WorkerCrashedError("its worker: exit code 1"),
        ObjectLostError("ff", None, ""),
        TaskCancelledError(TaskID.from_random()),
    ],
)
def test_raylites_own_errors_are_told_by_class_and_text(error: Exception) -> None:
    assert story(pickled(error)) == (type(error).__name__, f"{type(error).__name__}: {error}")


def test_what_is_not_raylites_is_not_read(tmp_path: Path) -> None:
    for data in (
        pickle.dumps(Bomb(tmp_path / "bomb")),
        pickled(RaySystemError(GhostError("inside"))),
        pickle.dumps(WorkerCrashedError(Bomb(tmp_path / "bomb"))),
        b"",
        b"\x80\x05garbage",
    ):
        _, text = story(data)
        assert text == "an error of a class of the program's own, which was not read"
    assert not (tmp_path / "bomb").exists()
