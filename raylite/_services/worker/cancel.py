"""Cancelling: the tasks of this process that are to end early, until it is known how they ended."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol

from raylite._kernel.network import Network
from raylite._machines.submitter import Pending
from raylite._protocol import worker
from raylite._services.worker.objects import Entry
from raylite._types.cancellation import CancelOutcome
from raylite._types.ids import TaskID
from raylite._types.keys import TaskKey, WorkerKey
from raylite._wire import hot
from raylite.exceptions import RayError, TaskCancelledError

GRACE_SECONDS = 5.0  # that a task has from its interrupt to its end, when its time is over
FORCE_SECONDS = 1.5  # within which a worker is to end for a task; then its raylet ends it
ID = 24  # bytes of a task's id: what the ids of its objects begin with

Told = Callable[[CancelOutcome], object]


class Cancellation:
    """One task that is to end early.

    Args:
        force: Its worker ends with it.
        recursive: The tasks that it started are cancelled, too.
        error: What reading its results is to raise instead of `TaskCancelledError`, and instead of
            a value that comes in spite of the interrupt.
    """

    def __init__(self, force: bool, recursive: bool, error: RayError | None) -> None:
        self.force = force
        self.recursive = recursive
        self.error = error
        self.outcome = CancelOutcome.FINISHED_FIRST
        self.is_known = (
            False  # who is to hear of the error has it already: there is no news in the end
        )
        self._told: list[Told] = []

    def hear(self, told: Told) -> None:
        """Have somebody called with the outcome."""
        self._told.append(told)

    def settle(self) -> None:
        """The task has ended: say how."""
        for told in self._told:
            told(self.outcome)

    def withdrawn(self, task: Pending, name: str) -> RayError:
        """No worker runs it any more. Return what reading its results raises."""
        before = task.attempt == 0
        self.outcome = CancelOutcome.BEFORE_START if before else CancelOutcome.WHILE_RUNNING
        state = "had not started" if before else "was waiting to be tried again"
        return self.error or cancelled_error(task.id, f"{name} {state}.")

    def lost(self, task: Pending, name: str) -> RayError:
        """Its worker has ended. Return what reading its results raises."""
        self.outcome = CancelOutcome.WHILE_RUNNING
        why = "its worker was ended, as force=True asks" if self.force else "its worker died"
        return self.error or cancelled_error(task.id, f"{name} was running: {why}.")

    def came(self, task: Pending, interrupted: int) -> RayError | None:
        """Its result came. Return what its results are to raise, if that is not what came."""
        if not interrupted:
            return self.error
        before = interrupted == hot.Interrupted.BEFORE_BODY and task.attempt == 0
        self.outcome = CancelOutcome.BEFORE_START if before else CancelOutcome.WHILE_RUNNING
        return self.error


def cancelled_error(task: bytes, message: str) -> TaskCancelledError:
    return TaskCancelledError(TaskID(task), message)


class Submit(Protocol):
    """What is asked of who owns tasks: see `SubmitService`."""

    def cancel(
        self, id: TaskKey, *, force: bool, recursive: bool, told: Told | None = None
    ) -> None: ...


class Canceller:
    """Cancels the task behind an object: one of this process, or of the object's owner."""

    def __init__(
        self,
        network: Network,
        submit: Submit,
        spawn: Callable[[Coroutine[Any, Any, Any], str], object],
    ) -> None:
        self._network = network
        self._submit = submit
        self._spawn = spawn

    def cancel(
        self, entry: Entry, force: bool, recursive: bool, told: "Future[CancelOutcome]"
    ) -> None:
        """Cancel, and tell the outcome when it is known."""
        if entry.owner:
            request = hot.CancelTask(entry.id, force, recursive)
            self._spawn(self._ask(entry.owner, request, told), "cancel a borrowed object's task")
        else:
            self._submit.cancel(
                TaskKey(entry.id[:ID]), force=force, recursive=recursive, told=partial(_tell, told)
            )

    def bound(self, task: Pending, worker: WorkerKey) -> None:
        """Give a task that was interrupted, for its time is over, a while; then its worker ends."""
        if not task.key.slots:  # or the others that it runs would end, too
            self._spawn(self._bound(task, worker), "end a worker whose task does not end")

    async def _bound(self, task: Pending, worker: WorkerKey) -> None:
        await asyncio.sleep(GRACE_SECONDS)
        if task.worker == worker:
            self._submit.cancel(task.id, force=True, recursive=True)

    async def serve(self, request: hot.CancelTask) -> hot.Cancelled:
        """Cancel one of this process's tasks, as a borrower asks."""
        told: Future[CancelOutcome] = Future()
        self._submit.cancel(
            TaskKey(request.id[:ID]),
            force=request.force,
            recursive=request.recursive,
            told=partial(_tell, told),
        )
        return hot.Cancelled(await asyncio.wrap_future(told))

    async def _ask(
        self, owner: str, request: hot.CancelTask, told: "Future[CancelOutcome]"
    ) -> None:
        try:
            outcome = (await worker.Owner(self._network.connect(owner)).cancel(request)).outcome
        except RayError:  # it has ended, and what it owned with it
            outcome = CancelOutcome.FINISHED_FIRST
        _tell(told, outcome)


def _tell(told: "Future[CancelOutcome]", outcome: CancelOutcome) -> None:
    if told.set_running_or_notify_cancel():
        told.set_result(outcome)
