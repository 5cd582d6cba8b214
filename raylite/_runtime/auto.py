"""The place of the calling thread, starting a cluster for a program that has not."""

import os
from collections.abc import Callable

from raylite._runtime import beginnings, context
from raylite._runtime.context import Place
from raylite.exceptions import RaySystemError

NOT_STARTED = "Ray has not been started yet. You can start Ray with 'raylite.init()'."

_init: list[Callable[[], object]] = []


def set_init(init: Callable[[], object]) -> None:
    """Say how a cluster is started; the API does, once."""
    _init[:] = [init]


def place() -> Place:
    """Return the calling thread's core worker; without one, start a cluster as `init()` does.

    Raises:
        RaySystemError: There is none, and ``RAY_ENABLE_AUTO_CONNECT=0`` forbids to start one.
    """
    here = context.current()
    if here is not None:
        return here
    if os.environ.get("RAY_ENABLE_AUTO_CONNECT", "1") == "0" or not _init:
        raise RaySystemError(NOT_STARTED)
    with beginnings.alone():
        here = context.current()
        if here is None:  # no other thread was faster
            _init[0]()
            here = context.current()
    if here is None:
        raise RaySystemError(NOT_STARTED)
    return here
