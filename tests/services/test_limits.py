"""Timeouts and deadlines of tasks, in virtual time: whatever a task does when its time is over."""

import math

import anyio
from msgspec.structs import replace

from raylite._kernel.seams import now
from raylite._services.worker.cancel import FORCE_SECONDS, GRACE_SECONDS
from raylite._services.worker.objects import Entry
from raylite._services.worker.owned import OwnedTask
from raylite._services.worker.owner import error_of
from raylite._services.worker.running import RunningTask
from raylite._types.keys import ObjectKey
from raylite._wire import hot
from raylite._wire.hot import Form, Value
from raylite.exceptions import TaskTimeoutError
from tests.services.rig import simulated
from tests.services.test_submit import FAR, KEEPER, MB, PLAIN, Scene, begun, loss, result_of, scene


def submit(at: Scene, task: OwnedTask, seconds: float, until: float | None = None) -> Entry:
    """Submit a task that has so many seconds; return what stands for its result."""
    entry = task.entries[0]
    at.submit.limit(task.id, seconds, until)
    at.submit.submit([task])
    return entry


def reason(task: OwnedTask, entry: Entry) -> str:
    """Return what a task that timed out was doing, as its error says."""
    assert entry.value is not None
    error = error_of(entry.value)
    assert isinstance(error, TaskTimeoutError)
    assert isinstance(error, TimeoutError)
    assert f"Task f ({task.id.hex()})" in str(error)
    return str(error).rpartition(": it ")[2]


def over(at: Scene) -> bool:
    """Whether nothing is kept of tasks and their times."""
    return not (at.submit.unfinished or at.submit.limits.times or at.submit._cancelled)


@simulated
async def test_a_task_that_waits_for_an_argument_gives_up_in_time() -> None:
    async with scene() as at:
        never = Entry(ObjectKey(b"n" * 28), KEEPER, "", 1)
        at.owner.refs.add(never)
        task = at.task(never)
        entry = submit(at, task, 5.0)
        await anyio.sleep(4.9)
        assert result_of(task) is None
        await anyio.sleep(0.2)
        assert reason(task, entry) == "was waiting for its arguments."
        at.owner.complete(never, Value(Form.INLINE, b"late"))
        await at.settled()
        assert (at.here.requests, over(at)) == ([], True)


@simulated
async def test_a_task_that_waits_for_a_worker_wishes_for_none_any_more() -> None:
    async with scene() as at:
        task = at.task()
        entry = submit(at, task, 5.0)
        await anyio.sleep(5.1)
        assert reason(task, entry) == "was waiting for a worker."
        assert at.here.released == [at.here.requests[0].lease]
        assert over(at)


@simulated
async def test_a_task_that_runs_is_interrupted_and_who_waits_hears_at_once() -> None:
    """What it was given is let go only when it has ended, and what it returns after all is freed."""
    async with scene() as at:
        given = at.stored(b"h" * 28)
        task = at.task(given)
        entry = submit(at, task, 5.0)
        await at.settled()
        sent = await begun(at, task)
        await anyio.sleep(5.1)
        assert reason(task, entry) == "was running, or about to."
        [cancel] = at.workers[0].cancels
        assert cancel == hot.Cancel(task.id, 0, force=False, recursive=True)
        assert (given.submitted, at.submit.unfinished) == (1, 1)
        at.workers[0].finish(sent)
        await at.settled()
        assert reason(task, entry) == "was running, or about to."
        assert (given.submitted, over(at)) == (0, True)


@simulated
async def test_a_large_value_that_comes_too_late_is_freed() -> None:
    async with scene() as at:
        task = at.task()
        entry = submit(at, task, 5.0)
        await at.settled()
        await begun(at, task)
        await anyio.sleep(5.1)
        dropped: list[bytes] = []
        at.locations.drop = lambda key, node: dropped.append(key)  # type: ignore[method-assign]
        value = Value(Form.ARENA, b"", 0, MB, (), b"", FAR)
        at.workers[0].answer(hot.Result(task.id, 0, 5.1, (value,)))
        await at.settled()
        assert dropped == [entry.id]
        assert reason(task, entry)
        assert over(at)


@simulated
async def test_a_task_that_ends_in_time_is_left_alone() -> None:
    async with scene() as at:
        task = at.task()
        submit(at, task, 5.0)
        await at.settled()
        at.workers[0].finish(await begun(at, task))
        await at.settled()
        assert over(at)
        await anyio.sleep(6)
        assert result_of(task) == Value(Form.INLINE, b"done")
        assert at.workers[0].cancels == []


@simulated
async def test_a_task_whose_time_is_over_before_it_is_submitted_never_begins() -> None:
    async with scene() as at:
        first = at.task()
        at.submit.submit([first])
        await at.settled()
        at.workers[0].finish(await begun(at, first))
        await at.settled()  # now a worker idles
        for task, seconds, until in [
            (at.task(), 0.0, None), (at.task(), -7.0, None), (at.task(), math.inf, 0.0),
        ]:  # fmt: skip
            entry = submit(at, task, seconds, until)
            await at.settled()
            assert reason(task, entry) == "was waiting for a worker."
        assert len(at.workers[0].tasks) == 1
        assert over(at)


@simulated
async def test_what_is_left_of_its_time_goes_with_a_task_and_with_no_other() -> None:
    async with scene() as at:
        task, plain = at.task(), at.task()
        submit(at, task, 10.0)
        at.submit.submit([plain])
        await anyio.sleep(4)
        for n, request in enumerate(at.here.requests):
            at.here.grant(request.lease, at.workers[n])
        await at.settled()
        sent = {each.id: each.left for n in (0, 1) for each in at.workers[n].tasks}
        assert sent[plain.id] is None
        left = sent[task.id]
        assert left is not None
        assert 5.9 < left <= 6.0


@simulated
async def test_the_time_of_whoever_started_it_is_not_exceeded() -> None:
    async with scene() as at:
        task = at.task()
        entry = submit(at, task, 100.0, until=anyio.current_time() + 5)
        await anyio.sleep(5.1)
        assert reason(task, entry)


@simulated
async def test_a_task_whose_time_is_over_is_not_tried_again() -> None:
    async with scene() as at:
        task = at.task(retries=-1)
        entry = submit(at, task, 5.0)
        await at.settled()
        await begun(at, task)
        await anyio.sleep(5.1)
        loss(at, 0, task, hot.LossReason.DIED)
        await anyio.sleep(20)
        assert reason(task, entry) == "was running, or about to."
        assert (len(at.here.requests), over(at)) == (1, True)


@simulated
async def test_a_task_that_waits_to_be_tried_again_gives_up_in_time() -> None:
    async with scene() as at:
        task = at.task(retries=-1)
        entry = submit(at, task, 0.5)
        await at.settled()
        await begun(at, task)
        loss(at, 0, task, hot.LossReason.OUT_OF_MEMORY)
        await anyio.sleep(0.6)
        assert reason(task, entry) == "was waiting to be tried again."
        await anyio.sleep(20)
        assert (len(at.here.requests), over(at)) == (1, True)


@simulated
async def test_a_task_that_was_cancelled_before_its_time_was_over_is_one_that_timed_out() -> None:
    """Its worker does not listen, and who waits for it should not wait longer than was said."""
    async with scene() as at:
        task = at.task()
        entry = submit(at, task, 5.0)
        await at.settled()
        sent = await begun(at, task)
        at.submit.cancel(task.id, force=False, recursive=True)
        await anyio.sleep(5.1)
        assert reason(task, entry)
        at.workers[0].finish(sent)
        await at.settled()
        assert over(at)


# ---- what does not end -------------------------------------------------------------------


@simulated
async def test_a_task_that_goes_on_after_its_time_is_ended_with_its_worker() -> None:
    async with scene() as at:
        task = at.task(retries=3)
        entry = submit(at, task, 5.0)
        await at.settled()
        await begun(at, task)
        await anyio.sleep(5.0 + GRACE_SECONDS - 0.1)
        assert [each.force for each in at.workers[0].cancels] == [False]
        await anyio.sleep(0.2)
        assert [each.force for each in at.workers[0].cancels] == [False, True]
        assert at.here.unreached == []
        await anyio.sleep(FORCE_SECONDS)
        assert at.here.unreached == [at.here.requests[0].lease]
        loss(at, 0, task, hot.LossReason.DIED)
        await at.settled()
        assert reason(task, entry) == "was running, or about to."
        assert (len(at.here.requests), over(at)) == (1, True)


@simulated
async def test_a_task_that_ends_in_its_grace_leaves_its_worker_alive() -> None:
    async with scene() as at:
        task = at.task()
        submit(at, task, 5.0)
        await at.settled()
        sent = await begun(at, task)
        await anyio.sleep(5.0 + GRACE_SECONDS - 0.1)
        at.workers[0].finish(sent)
        await anyio.sleep(60)
        assert [each.force for each in at.workers[0].cancels] == [False]
        assert (at.here.unreached, over(at)) == ([], True)


@simulated
async def test_a_worker_of_tasks_that_overlap_is_not_ended_for_one_of_them() -> None:
    async with scene() as at:
        task = at.task(key=replace(PLAIN, slots=4))
        entry = submit(at, task, 5.0)
        await at.settled()
        sent = await begun(at, task)
        await anyio.sleep(60)
        assert reason(task, entry) == "was running, or about to."
        assert [each.force for each in at.workers[0].cancels] == [False]
        at.workers[0].finish(sent)


# ---- who hears of it ---------------------------------------------------------------------


def reported(at: Scene) -> int:
    """How many errors that nobody has read are told in the next minute."""
    report = at.owner.errors.unread.report(now() + 60)
    return 0 if report is None else len(report.errors)


def forget(at: Scene, entry: Entry) -> None:
    """The program drops its reference."""
    at.owner.perform(at.owner.refs.dropped_local(entry))


@simulated
async def test_what_comes_late_of_a_task_that_timed_out_is_not_told_again() -> None:
    async with scene() as at:
        task = at.task()
        entry = submit(at, task, 5.0)
        await at.settled()
        sent = await begun(at, task)
        await anyio.sleep(5.1)
        at.owner.errors.read(entry.id)
        forget(at, entry)
        at.workers[0].finish(sent)
        await at.settled()
        assert (reported(at), over(at)) == (0, True)


@simulated
async def test_a_timeout_that_nobody_has_read_is_told_once() -> None:
    async with scene() as at:
        kept, dropped = at.task(), at.task()
        for task in (kept, dropped):
            submit(at, task, 5.0)
        forget(at, dropped.entries[0])
        await anyio.sleep(5.1)
        forget(at, kept.entries[0])
        assert reported(at) == 2


async def told_of_children(*, parent_runs: bool) -> int:
    """Let two tasks run out of time, one needing the other, and the task that has started them."""
    async with scene() as at:
        at.submit.tasks.is_running = lambda task: parent_runs
        parent = RunningTask(b"p" * 24, b"job!", "p", "p", 0, 0, now() + 5.0)
        task = at.task()
        needing = at.task(task.entries[0])
        for each in (task, needing):
            each.parent = parent
            submit(at, each, 60.0, parent.deadline)
        await anyio.sleep(4.9)
        for each in (task, needing):
            forget(at, each.entries[0])
        await anyio.sleep(0.2)
        assert over(at)
        return reported(at)


@simulated
async def test_a_task_whose_parent_runs_out_of_time_with_it_is_not_told_of() -> None:
    assert await told_of_children(parent_runs=True) == 0


@simulated
async def test_a_task_whose_parent_had_ended_in_time_is_told_of() -> None:
    assert await told_of_children(parent_runs=False) == 1  # the one that needed the other
