"""Explanations: each place where a task can be is told apart, and silence is an answer."""

import asyncio
from typing import Any

import anyio
import pytest

from raylite._kernel.host import Host
from raylite._kernel.seams import now
from raylite._protocol import worker
from raylite._services.worker.explain import PATIENCE, ExplainService
from raylite._services.worker.objects import Entry
from raylite._services.worker.owned import OwnedTask
from raylite._types.keys import ObjectKey, TaskKey
from raylite._wire import hot
from raylite._wire.hot import Explanation, Form, TaskState, Value
from raylite.exceptions import PeerLostError, RayTaskError
from tests.services.rig import simulated
from tests.services.test_membership import running
from tests.services.test_submit import FAR, HERE, KEEPER, MB, Scene, begun, loss, scene


def service(at: Scene) -> ExplainService:
    return ExplainService(at.networks["owner"], at.owner, at.submit, at.submitter, at.locations)


async def explained(at: Scene, task: OwnedTask) -> Explanation:
    found = await service(at).of(task.entries[0])
    assert (found.name, found.task) == ("f", task.id.hex())
    assert str(found) == found.text
    return found


@simulated
async def test_a_task_waits_for_its_arguments_and_they_for_their_tasks() -> None:
    async with scene() as at:
        first = at.task()
        second = at.task(first.entries[0])
        made = OwnedTask(
            TaskKey(b"m" * 24), first.key, 1, 0, b"", (), "g", b"", (("x", second.entries[0]),)
        )
        made.entries = (Entry(ObjectKey(b"m" * 24 + bytes(4)), KEEPER, "", 1),)
        at.submit.submit([first, second, made])
        await at.settled()
        found = await service(at).of(made.entries[0])
        assert found.state is TaskState.PENDING_ARGS_AVAIL
        assert found.waits_for == (second.entries[0].id,)
        assert found.text.startswith(f"g ({made.id.hex()}) waits for argument 'x', object ")
        assert f"[f ({second.id.hex()}) waits for argument 0, object" in found.text
        assert "waits for a worker with 1 CPU; here was asked 1.5 s ago" in found.text


@simulated
async def test_many_missing_arguments_are_not_all_told() -> None:
    async with scene() as at:
        never = [Entry(ObjectKey(bytes([n]) * 28), KEEPER, "", 1) for n in range(1, 10)]
        for entry in never:
            at.owner.refs.add(entry)
        task = at.task(*never)
        at.submit.submit([task])
        found = await explained(at, task)
        assert len(found.waits_for) == 9
        assert found.text.count("no task of this process makes it") == 3
        assert found.text.endswith("and 6 more")


@simulated
async def test_a_task_waits_behind_others_for_what_its_raylet_says() -> None:
    async with scene() as at:
        tasks = [at.task() for _ in range(3)]
        at.submit.submit(tasks)
        await at.settled()
        found = await explained(at, tasks[2])
        assert (found.state, found.ahead, found.seconds) == ("PENDING_NODE_ASSIGNMENT", 2, 1.5)
        assert found.text.endswith(
            "waits for a worker with 1 CPU, behind 2 tasks of the same needs; here "
            "was asked 1.5 s ago: it is number 0"
        )


@simulated
async def test_a_raylet_that_does_not_answer_is_the_explanation() -> None:
    async with scene() as at:
        task = at.task()
        at.submit.submit([task])
        await at.settled()
        at.here.is_silent = True
        assert (await explained(at, task)).text.endswith("here was asked, and does not answer")
        assert PATIENCE < 10


@simulated
async def test_a_task_runs_or_is_behind_what_runs_or_is_cancelled() -> None:
    async with scene() as at:
        first, second = at.task(), at.task()
        at.submitter._run_time[1] = 0.001  # so that both are sent at once
        at.submit.submit([first, second])
        await at.settled()
        await begun_both(at)
        found = await explained(at, first)
        assert (found.state, found.pid, found.node) == ("RUNNING", 7, FAR)
        assert found.text.endswith(f"in worker {at.workers[0].id.hex()} (pid 7, node {FAR.hex()})")
        found = await explained(at, second)
        assert (found.state, found.ahead) == ("SUBMITTED_TO_WORKER", 1)
        assert "which was sent 1 tasks before it" in found.text
        at.submit.cancel(first.id, force=False, recursive=True)
        assert "is cancelled, and has not ended yet" in (await explained(at, first)).text
        for task in list(at.workers[0].tasks):
            at.workers[0].finish(task)


async def begun_both(at: Scene) -> None:
    gone = at.workers[0]
    at.here.holder.granted(hot.LeaseGrant(at.here.requests[0].lease, gone.id, "w0", (), 7, FAR))
    await at.settled()
    assert len(gone.tasks) == 2


@simulated
async def test_a_task_is_tried_again_soon() -> None:
    async with scene() as at:
        task = at.task(retries=5)
        at.submit.submit([task])
        await at.settled()
        await begun(at, task)
        loss(at, 0, task, hot.LossReason.OUT_OF_MEMORY)
        await at.settled()
        found = await explained(at, task)
        assert (found.state, found.attempt) == (TaskState.PENDING_RETRY, 1)
        assert 0.4 < found.seconds < 1
        assert f"({task.id.hex()}), attempt 2, is tried again in 0." in found.text
        at.submit.cancel(task.id, force=False, recursive=True)


@simulated
async def test_what_is_there_is_said_to_be_and_where() -> None:
    async with scene() as at:
        at.owner.refs.add(small := Entry(ObjectKey(b"s" * 28), KEEPER, "", 1))
        at.owner.complete(small, Value(Form.INLINE, b"12345"))
        explain = service(at).of
        assert (await explain(small)).text == "it is here: 5 bytes"
        far, here = await explain(at.stored(FAR)), await explain(at.stored(HERE))
        assert far.text == f"it is in the memory of node {FAR.hex()}: {MB} bytes"
        assert (far.state, far.node) == (TaskState.FINISHED, FAR)
        assert here.text == f"it is in the memory of this node: {MB} bytes"
        failed = at.task()
        at.owner.fail(failed.entries[0], RayTaskError("f", "text", ValueError("x")))
        assert (await explain(failed.entries[0])).state is TaskState.FAILED


@simulated
async def test_the_owner_of_a_borrowed_object_is_asked() -> None:
    async with scene() as at:
        waiting = at.task()
        at.submit.submit([waiting])
        await at.settled()
        network: Any = await at.network("borrower")
        borrower = ExplainService(network, at.owner, at.submit, at.submitter, at.locations)
        async with running(Host(network, borrower)):
            borrowed = Entry(waiting.entries[0].id, KEEPER, "owner", 1)
            found = await borrower.of(borrowed)
            assert found == await service(at).of(waiting.entries[0])
            unknown = await borrower.of(Entry(ObjectKey(b"u" * 28), KEEPER, "owner", 1))
            assert unknown.text == "its owner does not know it any more"
            silent = await borrower.of(Entry(ObjectKey(b"u" * 28), KEEPER, "nowhere", 1))
            assert silent == Explanation(TaskState.UNKNOWN, "its owner, nowhere, does not answer")
            lost: list[Explanation] = []

            async def ask() -> None:
                lost.append(await borrower.of(Entry(ObjectKey(b"u" * 28), KEEPER, "nowhere", 1)))

            async with anyio.create_task_group() as group:
                group.start_soon(ask)
                await at.settled()
                network.connect("nowhere").confirm_dead("it crashed")
            assert lost[0].text.startswith("its owner, nowhere, cannot be asked: ")


@simulated
async def test_whoever_asks_twice_or_leaves_before_the_answer_disturbs_nobody() -> None:
    async with scene() as at:
        waiting = at.task()
        at.submit.submit([waiting])
        await at.settled()
        id = waiting.entries[0].id
        network = await at.network("curious")
        owner = worker.Explain(network.connect("owner"))
        answers = await asyncio.gather(*(owner.explain(hot.Fetch(id)) for _ in range(3)))
        assert len({answer.text for answer in answers}) == 1
        at.here.is_silent = True
        asking = asyncio.ensure_future(owner.explain(hot.Fetch(id)))
        await at.settled()
        network.connect("owner").confirm_dead("it was killed")
        with pytest.raises(PeerLostError):
            await asking
        at.here.is_silent = False
        assert (await explained(at, waiting)).state is TaskState.PENDING_NODE_ASSIGNMENT


@simulated
async def test_an_owner_that_dies_before_it_answers_is_the_explanation_at_once() -> None:
    async with scene() as at:
        waiting = at.task()
        at.submit.submit([waiting])
        await at.settled()
        at.here.is_silent = True  # so the owner has no answer yet
        network: Any = await at.network("borrower")
        borrower = ExplainService(network, at.owner, at.submit, at.submitter, at.locations)
        async with running(Host(network, borrower)):
            began = now()
            borrowed = Entry(waiting.entries[0].id, KEEPER, "owner", 1)
            asking = asyncio.ensure_future(borrower.of(borrowed))
            await at.settled()
            network.connect("owner").confirm_dead("it was killed")
            found = await asking
            assert found.state is TaskState.UNKNOWN
            assert found.text == "its owner, owner, cannot be asked: owner is gone: it was killed"
            assert now() - began < 1


@simulated
async def test_a_raylet_that_dies_before_it_answers_is_told_of_at_once() -> None:
    async with scene() as at:
        task = at.task()
        at.submit.submit([task])
        await at.settled()
        at.here.spill(at.here.requests[0].lease, "far")
        await at.settled()
        at.far.is_silent = True
        asking = asyncio.ensure_future(explained(at, task))
        await at.settled()
        began = now()
        at.networks["owner"].connect("far").confirm_dead("it was killed")
        assert "cannot be asked: far is gone: it was killed" in (await asking).text
        assert now() - began < 1
        assert "here was asked" in (await explained(at, task)).text


@simulated
async def test_silence_of_all_bounds_what_an_explanation_takes() -> None:
    """Arguments of arguments are asked for in turn: all together they have one patience."""
    async with scene() as at:
        borrowed = [Entry(ObjectKey(bytes([n]) * 28), KEEPER, f"gone{n}", 1) for n in range(1, 4)]
        for entry in borrowed:
            at.owner.refs.add(entry)
        inner = [at.task(entry) for entry in borrowed]
        outer = at.task(*(task.entries[0] for task in inner))
        at.submit.submit([*inner, outer])
        began = now()
        found = await explained(at, outer)
        assert found.text.count("does not answer") == 3
        assert now() - began < PATIENCE + 2.0
