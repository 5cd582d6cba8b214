"""The tasks of a process that have not ended, and how they end."""

from collections.abc import Callable, Coroutine
from typing import Any

from msgspec.structs import replace

from raylite._kernel.link import Link
from raylite._kernel.seams import now
from raylite._protocol import raylet, worker
from raylite._services.worker.cancel import Cancellation
from raylite._services.worker.objects import Entry
from raylite._services.worker.owned import OwnedTask
from raylite._services.worker.owner import OwnerService, error_value
from raylite._services.worker.running import RunningTask
from raylite._services.worker.schedule import Schedule
from raylite._services.worker.streams import NONE, Streams
from raylite._types.keys import TaskKey
from raylite._wire import hot
from raylite._wire.hot import Value
from raylite.exceptions import RayError


class Unfinished:
    """Gives a task's objects their values when its result comes, or what stands for one.

    Its arguments are let go then, and whoever cancelled it is told.

    Args:
        owner: Owns the objects.
        streams: Knows the items of generators.
        limits: When tasks are to end; one that has ended is not in it.
        delays: When tasks are to be tried again; the same.
        spawn: Runs a coroutine beside everything else.
    """

    def __init__(
        self,
        owner: OwnerService,
        streams: Streams,
        limits: Schedule,
        delays: Schedule,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:
        self._owner = owner
        self._streams = streams
        self._limits = limits
        self._limited = limits.times
        self._delays = delays
        self._spawn = spawn
        self.table: dict[TaskKey, OwnedTask] = {}
        self.cancelled: dict[TaskKey, Cancellation] = {}
        #: Their results came with references, whose new holders are being made known.
        self.finishing: dict[TaskKey, None] = {}
        #: Says whether this worker runs a task.
        self.is_running: Callable[[RunningTask], bool] = _never

    def finish(self, task: OwnedTask, result: hot.Result, link: Link) -> None:
        """Give the objects their values, and let the arguments go."""
        values = result.values
        contained = (
            values[0].contained if len(values) == 1 else any(each.contained for each in values)
        )
        if contained or result.kept:
            self.finishing[task.id] = None
            self._spawn(self._finish_with_references(task, result, link), f"finish {task.name}")
            return
        self._complete(task, values)
        if task.inputs or task.contained:
            self._drop_arguments(task)

    def end(self, task: OwnedTask, error: Value) -> None:
        """Let a task be over that no worker runs, or that none has ended: it has failed."""
        if self.table.pop(task.id, None) is None:
            return
        self._limits.drop(task.id)
        self._delays.drop(task.id)
        if not self.table:
            self._owner.on_released()
        cancellation = self.cancelled.get(task.id)
        is_known = cancellation is not None and cancellation.is_known
        for entry in task.entries:
            if entry.is_held:
                self._owner.complete(entry, error)
            elif not is_known:
                self._owner.unwanted(entry, error)
        if self.ends_with_parent(task):
            self._owner.errors.read(task.id)
        if task.missing:  # an argument may know it for long
            task.entries, task.arguments = (), b""
        self._drop_arguments(task)
        self._settle(task)

    def fail(self, task: OwnedTask, error: RayError) -> None:
        """The same, for an error of raylite's own; nothing happens if it has ended."""
        if task.id in self.table:
            self.end(task, error_value(error))

    def interrupted(self, task: OwnedTask, result: hot.Result, link: Link) -> hot.Result:
        """Return what a cancelled task ends with."""
        cancellation = self.cancelled[task.id]
        error = cancellation.came(task, result.interrupted)
        if error is None:
            return result
        self.discard(result, link)
        for entry, value in zip(task.entries, result.values, strict=False):
            self._owner.free_value(entry.id, value)
        return replace(result, values=(NONE if cancellation.is_known else error_value(error),))

    def discard(self, result: hot.Result, link: Link) -> None:
        """Nobody takes a result: whoever sent it need not hold the references in it."""
        if any(value.contained for value in result.values) and not link.is_ended:
            worker.Owner(link).received(result.task)

    def free_returns(self, task: OwnedTask, home: Link) -> None:
        """A worker may have stored results that it could not report any more: its raylet has them."""
        attempt = task.attempt.to_bytes(4, "little") if task.attempt else b""
        for entry in task.entries:
            raylet.Objects(home).free(hot.Freed(entry.id + attempt))
        for id in self._streams.unheard(task.id):
            raylet.Objects(home).free(hot.Freed(id + attempt))

    def ends_with_parent(self, task: OwnedTask) -> bool:
        """Say whether the time of the task that started it, and runs still, is over: that one tells."""
        parent = task.parent
        if parent is None or parent.deadline is None or now() < parent.deadline:
            return False
        return self.is_running(parent)

    def _complete(self, task: OwnedTask, values: tuple[Value, ...]) -> None:
        if self.table.pop(task.id, None) is None:
            return
        if self._limited:
            self._limits.drop(task.id)
        if not self.table:
            self._owner.on_released()
        complete, entries = self._owner.complete, task.entries
        if len(values) == 1 and len(entries) == 1:
            entry = entries[0]
            if entry.is_held:
                complete(entry, values[0])
            else:
                self._owner.unwanted(entry, values[0])
            if self.cancelled:
                self._settle(task)
            return
        for entry, value in zip(entries, _each(values, len(entries)), strict=True):
            if entry.is_held:
                complete(entry, value)
            else:
                self._owner.unwanted(entry, value)
        self._settle(task)

    async def _finish_with_references(
        self, task: OwnedTask, result: hot.Result, link: Link
    ) -> None:
        """The same, when references travelled: their new holders are made known first."""
        values = _each(result.values, len(task.entries))
        for entry, value in zip(task.entries, values, strict=True):
            if entry.is_held and value.contained:
                await self._owner.hold_contained(entry, value.contained)
        if any(value.contained for value in result.values) and not link.is_ended:
            worker.Owner(link).received(result.task)
        kept = set(result.kept)
        own: list[bytes] = []
        abroad: dict[str, list[Entry]] = {}
        given = dict.fromkeys((*task.contained, *(entry for _, entry in task.inputs)))
        for entry in given:
            if entry.id in kept and entry.owner:
                abroad.setdefault(entry.owner, []).append(entry)
            elif entry.id in kept:
                own.append(entry.id)
        if own:
            self._owner.borrow(hot.Borrow(link.peer, tuple(own)))
        for owner, entries in abroad.items():
            await self._owner.lend(owner, link.peer, [entry.id for entry in entries])
        del self.finishing[task.id]
        self._complete(task, result.values)
        self._drop_arguments(task)

    def _settle(self, task: OwnedTask) -> None:
        """A task that may have been cancelled has ended."""
        cancellation = self.cancelled.pop(task.id, None)
        if cancellation is not None:
            cancellation.settle()

    def _drop_arguments(self, task: OwnedTask) -> None:
        refs = self._owner.refs
        for _, entry in task.inputs:
            if entry.is_error:
                self._owner.errors.read(entry.id)  # what the task ended with tells of it
        for entry in (*task.contained, *(entry for _, entry in task.inputs)):
            self._owner.perform(refs.dropped_submitted(entry))
        task.inputs = task.contained = ()
        self._owner.on_viewless()


def _never(task: RunningTask) -> bool:
    return False


def _each(values: tuple[Value, ...], count: int) -> tuple[Value, ...]:
    """One error stands for all returns."""
    return values if len(values) == count else values[:1] * count
