"""The body of every simulated task: it carries its script out and tells the ledger."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from raylite._services.worker.objects import ObjectRef
from raylite.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    OwnerDiedError,
    TaskCancelledError,
    TaskTimeoutError,
    TaskUnschedulableError,
    WorkerCrashedError,
)
from raylite.testing.node import TaskContext
from tests.sim.ledger import Attempt, Ledger, current
from tests.sim.scripts import Answer, Block, Planned, Script


def perform(task: TaskContext, script: Script, *inputs: Any) -> Awaitable[Answer]:
    """The body of every task."""
    return _perform(task, script, *inputs)


async def overlap(task: TaskContext, script: Script, *inputs: Any) -> Answer:
    """The body of tasks that overlap."""
    return await _perform(task, script, *inputs)


def body_of(script: Script) -> Callable[..., Awaitable[Answer]]:
    return overlap if script.overlaps else perform


async def _perform(task: TaskContext, script: Script, *inputs: Any) -> Answer:
    ledger = current()
    attempt = ledger.begin(task, script)
    try:
        return await _carry_out(task, script, inputs, ledger, attempt)
    except asyncio.CancelledError:
        if ledger.place.death_of(task.worker) is None:
            ledger.interrupt(attempt)
        raise


async def _carry_out(
    task: TaskContext, script: Script, inputs: tuple[Any, ...], ledger: Ledger, attempt: Attempt
) -> Answer:
    answers: list[Answer] = []
    for each in inputs:
        if isinstance(each, list) and script.keeps:
            ledger.kept.setdefault(task.worker, []).extend(each)
        answers += await task.get(each) if isinstance(each, list) else [each]
    if script.recalls:
        await _recall(task, ledger)
    if script.seconds:
        await task.sleep(script.seconds)
    if rest := ledger.detained(task.worker):
        await task.sleep(rest)
    if task.attempt < script.crashes:
        await task.crash()
    if script.awaits:
        await ledger.flag(script.awaits).wait()
    if script.sets:
        ledger.flag(script.sets).set()
    known, refs = await _raise_children(task, script)
    if script.puts:
        stored = Answer(script.label, script.label, (), Block.of(script.label))
        refs = (*refs, await task.put(stored))
        del stored
    for answer in answers:
        if answer.block is not None:
            answer.block.check()
    ledger.end(attempt, script)
    if script.raises:
        raise Planned(script.label)
    digest = zlib.crc32(repr((script.label, [answer.digest for answer in answers], known)).encode())
    return Answer(script.label, digest, refs, Block.of(digest) if script.large else None)


async def _recall(task: TaskContext, ledger: "Ledger") -> None:
    """A reference held beyond the task that it was given to still has its value."""
    for ref in ledger.kept.pop(task.worker, []):
        try:
            (answer,) = await task.get([ref])
        except (
            Planned,
            WorkerCrashedError,
            NodeDiedError,
            OutOfMemoryError,
            OwnerDiedError,
            TaskCancelledError,
            TaskTimeoutError,
            TaskUnschedulableError,
        ):
            continue  # whether it should have had a value is for its driver to judge
        except ObjectLostError as error:
            ledger.wrong(f"a kept reference was lost: {error!r}")
        else:
            if answer.block is not None:
                answer.block.check()


async def _raise_children(
    task: TaskContext, script: Script
) -> tuple[list[int], tuple["ObjectRef[Any]", ...]]:
    known: list[int] = []
    refs: list[ObjectRef[Any]] = []
    for child in script.children:
        given = refs[-1:] if script.manner == "chain" else []
        refs.append(task.submit(body_of(child), child, *given, **child.options()))
    if script.manner == "get":
        known = [answer.digest for answer in await task.get(refs)]
    elif script.manner == "chain":
        known = [answer.digest for answer in await task.get(refs[-1:])]
    return known, tuple(refs) if script.manner == "return" else ()
