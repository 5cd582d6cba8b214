"""Stories: what a pickled error says, read without running a user's code.

Unpickling an exception imports its class and may call what it likes. A process that only wants to
tell of an error, on its event loop, makes of the pickle nothing but raylite's own errors and what
is in them; the exception behind a task's error stays the bytes that it is there.
"""

import io
import pickle
from typing import Any

from raylite._wire import pickling
from raylite.exceptions import (
    RayError,
    RayTaskError,
    _header,
    _restore_task_error,
    dependency_error,
    dependency_story,
)

_UNKNOWN = "an error of a class of the program's own, which was not read"
_ERRORS, _IDS = RayError.__module__, "raylite._types.ids"


class _Reader(pickle.Unpickler):
    """Knows raylite's errors and ids only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == (_ERRORS, "_restore_task_error"):
            return _told
        if module in (_ERRORS, _IDS) and "." not in name:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not raylite's")


class _Told(Exception):
    """A task's error, without what it raised."""

    def __init__(self, text: str, cause: bytes) -> None:
        super().__init__(text)
        self.cause = cause


def _told(function_name: str, traceback_str: str, cause: bytes, *rest: object) -> _Told:
    return _Told(traceback_str, cause)


def story(data: bytes | memoryview) -> tuple[str, str]:
    """Return a pickled error's class, by name, and its text.

    The class of a task's error is that of what it raised, if that was one of raylite's, else
    `RayTaskError`.
    """
    try:
        error = _Reader(io.BytesIO(data)).load()
    except Exception as problem:
        return type(problem).__name__, _UNKNOWN
    if not isinstance(error, _Told):
        name = type(error).__name__
        return name, f"{name}: {error}"
    try:
        name = type(_Reader(io.BytesIO(error.cause)).load()).__name__
    except Exception:  # a class of the program's, or one of Python's
        name = "RayTaskError"
    return name, str(error)


class _Passed:
    """Becomes a `RayTaskError` where it is unpickled; its cause stays a pickle until then."""

    def __init__(self, *story: object) -> None:
        self._story = story

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_task_error, self._story


def dependent(data: bytes | memoryview, function_name: str, proctitle: str) -> bytes | None:
    """Return the pickled error of a task that is not run, because an argument failed with this one.

    None if that cannot be said without a class of the program's.
    """
    try:
        error = _Reader(io.BytesIO(data)).load()
    except Exception:
        return None
    if isinstance(error, RayError):
        told = dependency_error(error, function_name=function_name, proctitle=proctitle)
        return pickling.dumps(told).to_bytes()
    if not isinstance(error, _Told):
        return None
    kind = f"{RayTaskError.__module__}.{RayTaskError.__qualname__}"
    text = dependency_story(_header(proctitle, None, None), f"{kind}: {error}")
    where = (proctitle, None, None, None, None)
    return pickling.dumps(_Passed(function_name, text, error.cause, where)).to_bytes()
