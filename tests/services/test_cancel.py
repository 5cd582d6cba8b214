"""Cancelling at the owner, in virtual time: whatever else happens to the task meanwhile."""

from typing import Any

import anyio
import anyio.lowlevel

from raylite._protocol import worker
from raylite._services.worker.cancel import FORCE_SECONDS
from raylite._services.worker.owned import OwnedTask
from raylite._services.worker.owner import error_of
from raylite._types.cancellation import CancelOutcome
from raylite._wire import hot
from raylite._wire.hot import Form, Value
from raylite.exceptions import TaskCancelledError
from tests.services.rig import simulated
from tests.services.test_submit import Scene, result_of, scene


async def sent(at: Scene, *tasks: OwnedTask) -> Any:
    """Submit tasks of a function that is known to be quick, and return the worker that has them all."""
    played = at.workers[0]
    first = at.task()
    at.submit.submit([first])
    await at.settled()
    at.here.grant(at.here.requests[0].lease, played)
    await at.settled()
    played.finish(played.tasks.pop())
    await at.settled()
    at.submitter._run_time[1] = 1e-6
    at.submit.submit(list(tasks))
    await at.settled()
    assert [task.id for task in played.tasks] == [task.id for task in tasks]
    return played


def cancel(at: Scene, task: OwnedTask, *, force: bool = False) -> list[CancelOutcome]:
    told: list[CancelOutcome] = []
    at.submit.cancel(task.id, force=force, recursive=True, told=told.append)
    return told


def give_back(played: Any, task: OwnedTask) -> None:
    worker.Submit(played.owner).given_back(hot.GivenBack(task.id, task.attempt))


def lose(at: Scene, played: Any, last: OwnedTask) -> None:
    lease = at.here.requests[0].lease
    at.here.holder.lost(hot.WorkerLost(lease, played.id, "w0", "it was killed", last.id))


def interrupted(task: OwnedTask, *, retry: bool = False) -> hot.Result:
    error = Value(Form.ERROR, b"its own")
    return hot.Result(task.id, task.attempt, 0.1, (error,), (), retry, hot.Interrupted.IN_BODY)


def raises(at: Scene, task: OwnedTask) -> str:
    entry = at.owner.find(task.id + bytes(4))
    assert entry is not None
    assert entry.value is not None
    error = error_of(entry.value)
    assert isinstance(error, TaskCancelledError)
    return str(error)


@simulated
async def test_the_worker_is_told_once_for_each_time_that_somebody_cancels() -> None:
    async with scene() as at:
        task = at.task()
        played = await sent(at, task)
        told = cancel(at, task) + cancel(at, task, force=True)
        await at.settled()
        asked = [(each.task, each.attempt, each.force) for each in played.cancels]
        assert asked == [(task.id, 0, False), (task.id, 0, True)]
        assert told == []
        played.answer(interrupted(task))
        await at.settled()
        assert result_of(task) == Value(Form.ERROR, b"its own")


@simulated
async def test_a_result_that_was_on_its_way_stays() -> None:
    async with scene() as at:
        task = at.task()
        played = await sent(at, task)
        played.finish(played.tasks[0])
        told = cancel(at, task)
        await at.settled()
        assert told == [CancelOutcome.FINISHED_FIRST]
        assert result_of(task) == Value(Form.INLINE, b"done")
        assert cancel(at, task) == [CancelOutcome.FINISHED_FIRST]


@simulated
async def test_a_task_that_was_on_its_way_back_does_not_go_elsewhere() -> None:
    async with scene() as at:
        one, other = at.task(), at.task()
        played = await sent(at, one, other)
        give_back(played, other)
        told = cancel(at, other)
        await at.settled()
        assert told == [CancelOutcome.BEFORE_START]
        assert "f had not started" in raises(at, other)
        played.finish(played.tasks[0])
        await at.settled()
        assert len(played.tasks) == 2, "it was sent again"


@simulated
async def test_a_task_that_fails_after_it_was_cancelled_is_not_tried_again() -> None:
    async with scene() as at:
        task = at.task(retries=5)
        played = await sent(at, task)
        told = cancel(at, task)
        played.answer(interrupted(task, retry=True))
        await at.settled()
        assert told == [CancelOutcome.WHILE_RUNNING]
        assert len(played.tasks) == 1
        assert result_of(task) == Value(Form.ERROR, b"its own")


@simulated
async def test_a_cancelled_task_whose_worker_dies_is_not_tried_again() -> None:
    async with scene() as at:
        begun, behind, queued = at.task(retries=5), at.task(retries=5), at.task()
        played = await sent(at, begun, behind, queued)
        told = [*cancel(at, begun), *cancel(at, behind)]
        lose(at, played, begun)
        await at.settled()
        assert "its worker died" in raises(at, begun)
        assert "f had not started" in raises(at, behind)
        at.here.grant(at.here.requests[1].lease, at.workers[1])
        await at.settled()
        assert [task.id for task in at.workers[1].tasks] == [queued.id]
        assert told == []
        at.workers[1].finish(at.workers[1].tasks[0])


@simulated
async def test_tasks_behind_one_whose_worker_is_ended_lose_no_retry() -> None:
    async with scene() as at:
        forced, behind = at.task(), at.task()
        played = await sent(at, forced, behind)
        told = cancel(at, forced, force=True)
        lose(at, played, forced)
        await at.settled()
        assert told == [CancelOutcome.WHILE_RUNNING]
        assert "force=True" in raises(at, forced)
        assert result_of(behind) is None
        at.here.grant(at.here.requests[1].lease, at.workers[1])
        await at.settled()
        assert [(task.id, task.attempt) for task in at.workers[1].tasks] == [(behind.id, 0)]
        at.workers[1].finish(at.workers[1].tasks[0])


@simulated
async def test_a_worker_that_does_not_end_for_it_is_ended_by_its_raylet() -> None:
    async with scene() as at:
        task = at.task()
        played = await sent(at, task)
        cancel(at, task, force=True)
        await anyio.sleep(FORCE_SECONDS - 0.1)
        assert at.here.unreached == []
        await anyio.sleep(0.2)
        assert at.here.unreached == [at.here.requests[0].lease]
        lose(at, played, task)


@simulated
async def test_a_worker_that_has_ended_the_task_in_time_is_let_live() -> None:
    async with scene() as at:
        task = at.task()
        played = await sent(at, task)
        cancel(at, task, force=True)
        played.finish(played.tasks[0])
        await anyio.sleep(FORCE_SECONDS + 1)
        assert at.here.unreached == []


@simulated
async def test_a_task_between_two_attempts_ends_at_once() -> None:
    async with scene() as at:
        task = at.task(retries=5)
        played = await sent(at, task)
        for attempt in range(2):  # the second retry is delayed
            played.answer(hot.Result(task.id, attempt, 0.1, (Value(Form.ERROR, b"e"),), (), True))
            await at.settled()
        told = cancel(at, task)
        assert told == [CancelOutcome.WHILE_RUNNING]
        assert "was waiting to be tried again" in raises(at, task)
        await anyio.sleep(30)
        assert len(played.tasks) == 2


@simulated
async def test_a_result_whose_references_are_being_counted_stays() -> None:
    async with scene() as at:
        task = at.task()
        played = await sent(at, task)
        value = Value(Form.INLINE, b"done")
        played.answer(hot.Result(task.id, 0, 0.1, (value,), (b"kept".ljust(28),)))
        while not at.submit.tasks.finishing:
            await anyio.lowlevel.checkpoint()
        told = cancel(at, task)
        assert told == []
        await at.settled()
        assert told == [CancelOutcome.FINISHED_FIRST]
        assert result_of(task) == value


@simulated
async def test_who_waits_for_the_outcome_hears_once_when_the_process_ends() -> None:
    async with scene() as at:
        task = at.task()
        await sent(at, task)
        told = cancel(at, task)
        assert told == []
    assert told == [CancelOutcome.FINISHED_FIRST]
    at.submit.tasks.fail(task, TaskCancelledError())
    assert told == [CancelOutcome.FINISHED_FIRST]


@simulated
async def test_without_a_raylet_a_cancelled_task_ends_as_all_do() -> None:
    async with scene() as at:
        task = at.task()
        await sent(at, task)
        told = cancel(at, task)
        at.submit._raylet.confirm_dead("its node ended")
        await at.settled()
        assert told == [CancelOutcome.FINISHED_FIRST]
