"""Which core worker the calling thread belongs to."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, cast

from msgspec import Struct

from raylite._runtime import presence
from raylite._services.worker import objects
from raylite._services.worker.core import Core
from raylite._services.worker.objects import ObjectRef
from raylite._services.worker.runner import Runner, overlapping
from raylite._services.worker.running import RunningTask
from raylite._wire import hot
from raylite.exceptions import note_logs


class Caller(Protocol):
    """Who calls a remote function: a core worker, and the task that runs there."""

    @property
    def core(self) -> Core: ...

    @property
    def task(self) -> RunningTask | None: ...


class Origin(Struct, frozen=True):
    """The same, noted for a call that another thread makes later."""

    core: Core
    task: RunningTask | None


class Place:
    """A core worker as the API finds it: with the task it runs, in a worker."""

    def __init__(self, core: Core, node_id: bytes, runner: Runner | None = None) -> None:
        self.core = core
        self.node_id = node_id
        self.runner = runner
        self.namespace = ""
        self.session_dir = ""
        self.labels: Mapping[str, str] = {}
        self.gcs_address = ""
        self.cluster = ""
        self.ip = "127.0.0.1"
        #: An environment variable as it was before it told of a lease.
        self.variable: Callable[[str], str | None] = os.environ.get

    @property
    def task(self) -> RunningTask | None:
        """The task being run here, None in a driver."""
        runner = self.runner
        return None if runner is None else runner.current or overlapping.get()

    @property
    def holding(self) -> hot.Holding | None:
        """What the lease of the task holds; None in a driver."""
        return self.runner.holding if self.runner is not None else None


# Only places are entered, and only here; `presence` cannot say so without loading this module.
_thread = cast("_OfThread", presence.of_thread)
_process = cast("list[Place]", presence.of_process)


class _OfThread(Protocol):
    place: Place | None


def current() -> Place | None:
    """Return the place of this thread, else the one last entered by this process."""
    if _thread.place is not None:
        return _thread.place
    return _process[-1] if _process else None


def enter(place: Place) -> None:
    """Make this the process's place until `leave`."""
    _process.append(place)
    if place.session_dir:
        note_logs(f"{place.session_dir}/logs")


def leave(place: Place) -> None:
    if place in _process:
        _process.remove(place)


def enter_thread(place: Place) -> None:
    """Make this the place of the calling thread: a worker that is a thread."""
    _thread.place = place


@contextmanager
def at(place: Place) -> Iterator[None]:
    """Make this the calling thread's place inside a ``with`` block that does not await."""
    before, _thread.place = _thread.place, place
    try:
        yield
    finally:
        _thread.place = before


def _after_fork() -> None:
    """A forked child has no cluster: its parent's is not its own to use or to end."""
    for place in _process if _thread.place is None else [*_process, _thread.place]:
        place.core.forked()
    _process.clear()
    _thread.place = None


def _restore(id: bytes, owner: str) -> ObjectRef[Any]:
    place = current()
    if place is None:
        raise ValueError(
            "Ray object(s) whose owner is unknown: an ObjectRef was unpickled while raylite is "
            "not initialized; call raylite.init() first"
        )
    return place.core.restore(id, owner)


objects.set_restorer(_restore)
os.register_at_fork(after_in_child=_after_fork)
