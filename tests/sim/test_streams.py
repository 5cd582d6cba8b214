"""Streams in virtual time, over many seeds: producers die, readers are slow, leave early or cancel."""

import asyncio
import gc
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from raylite._services.worker.streams import Streams
from raylite.exceptions import RayError, TaskCancelledError, WorkerCrashedError
from raylite.testing.loop import SimLoop
from raylite.testing.node import KILLED, SimDriver, SimNode, TaskContext
from raylite.testing.sim import World
from tests.sim.workload import all_or_failure, left, quiet_collector

pytestmark = pytest.mark.sim

SEEDS = 60
CHUNK = 15
LARGE = 120_000  # bytes, which lie in the store


@dataclass(frozen=True)
class Script:
    """What a generator does, and what becomes of it."""

    label: str
    items: int
    limit: int
    retries: int
    crashes: int  # attempts that crash
    crash_at: int
    fail_at: int
    leave_at: int
    cancel_at: int
    slowness: float

    @classmethod
    def of(cls, label: str, draw: random.Random) -> "Script":
        items = draw.choice((0, 1, 5, 12))
        place = [-1, -1, -1, draw.randint(0, items)]
        return cls(
            label,
            items,
            limit=draw.choice((-1, -1, 1, 3)),
            retries=draw.choice((0, 3, 3)),
            crashes=draw.choice((0, 0, 1, 2)),
            crash_at=draw.randint(0, items),
            fail_at=draw.choice(place),
            leave_at=draw.choice(place),
            cancel_at=draw.choice(place),
            slowness=draw.choice((0.0, 0.001, 0.02)),
        )


def produce(task: TaskContext, script: Script) -> AsyncIterator[Any]:
    return _produce(task, script)


async def _produce(task: TaskContext, script: Script) -> AsyncIterator[Any]:
    draw = random.Random(f"{script.label} {task.attempt}")
    for n in range(script.items + 1):
        if draw.random() < 0.4:
            await task.sleep(draw.choice((0.0, 0.0005, 0.01)))
        if n == script.crash_at and task.attempt < script.crashes:
            await task.crash()
        if n == script.fail_at:
            raise ValueError(n)
        if n < script.items:
            yield await _item(task, n)


async def _item(task: TaskContext, n: int) -> Any:
    match n % 4:
        case 1:
            return [await task.put(n)]
        case 2:
            return bytes([n]) * LARGE
        case _:
            return n


class Reader:
    """One stream from its submission to its end, as its reader sees it."""

    def __init__(self, driver: SimDriver, script: Script, draw: random.Random) -> None:
        self.driver, self.script, self.draw = driver, script, draw
        self.count = 0
        self.errors: list[RayError] = []
        self.has_left = False

    async def run(self) -> None:
        script = self.script
        options: dict[str, Any] = {"num_returns": "streaming", "max_retries": script.retries}
        if script.limit > 0:
            options["_generator_backpressure_num_objects"] = script.limit
        gen = self.driver.submit(produce, script, **options)
        end = gen.completed() if self.draw.random() < 0.3 else None
        async for ref in gen:
            assert not self.errors, "an item after the error"
            await self._read(ref)
            if self.count == script.leave_at:
                self.has_left = True
                return
            if self.count == script.cancel_at and not self.errors:
                await self._cancel(gen)
                return
            if script.slowness and self.draw.random() < 0.5:
                await asyncio.sleep(script.slowness)
        assert gen.is_finished()
        if end is not None:
            await self._expect_end(end)
        self._judge()

    async def _read(self, ref: Any) -> None:
        try:
            (value,) = await self.driver.get([ref])
        except RayError as error:
            self.errors.append(error)
            return
        expected: Any = self.count
        if self.count % 4 == 1:
            try:
                (value,) = await self.driver.get(value)
            except RayError:
                value = self.count  # it died with its owner, the worker that yielded it
        elif self.count % 4 == 2:
            expected = bytes([self.count]) * LARGE
        assert value == expected, "another item than the next"
        self.count += 1

    async def _cancel(self, gen: Any) -> None:
        was_over = gen._arrivals.stream.is_ended
        gen._cancel(force=self.draw.random() < 0.3, recursive=True)
        self.driver.core.handover.drain()
        if was_over:
            return
        with pytest.raises(TaskCancelledError):
            await self.driver.get([await anext(gen)])
        assert gen.is_finished()

    async def _expect_end(self, end: Any) -> None:
        try:
            assert await self.driver.get([end]) == [None]
        except WorkerCrashedError:
            assert [type(error) for error in self.errors] == [WorkerCrashedError]

    def _judge(self) -> None:
        script = self.script
        crashed = [error for error in self.errors if isinstance(error, WorkerCrashedError)]
        if not self.errors:
            assert self.count == script.items, "it ended early, and no error says why"
            assert script.fail_at < 0
        elif not crashed:
            assert self.count == script.fail_at, "it failed at another item"


async def _kill(node: SimNode, draw: random.Random) -> None:
    while True:
        await asyncio.sleep(draw.expovariate(1 / 0.1))
        if workers := node.workers.all():
            draw.choice(workers).kill(KILLED)


async def _simulate(seed: int) -> int:
    draw = random.Random(f"streams {seed}")
    world = World(seed, delay=draw.choice((0.0001, 0.001, 0.01)))
    node = SimNode(world, cpus=draw.choice((1, 2, 3)))
    await node.start()
    driver = await node.driver("driver")
    scripts = [Script.of(f"{seed}/{n}", draw) for n in range(6)]
    readers = [Reader(driver, script, random.Random(script.label)) for script in scripts]
    background = []
    if draw.random() < 0.5:
        background.append(asyncio.get_running_loop().create_task(_kill(node, draw)))
    await all_or_failure(node.failed, [reader.run() for reader in readers])
    for task in background:
        task.cancel()
    count = sum(reader.count for reader in readers)
    readers.clear()  # their errors know of references
    gc.collect()
    await all_or_failure(node.failed, [_rest(node)])
    await driver.leave()
    await node.stop()
    return count


async def _rest(node: SimNode) -> None:
    for _ in range(80):
        for process in node.processes():
            process.core.handover.drain()
        found = list(left(node))
        for process in node.processes():
            streams: Streams = process.core.submitter.streams
            execute = process.attachment.execute
            found += [f"{process.name} reads {id.hex()}" for id in streams.table]
            if execute is not None:
                found += [f"{process.name} yields {id.hex()}" for id in execute.producers.table]
        if not found:
            return
        await asyncio.sleep(0.5)
    raise AssertionError("still there: " + "; ".join(found))


def simulate(seed: int) -> int:
    loop = SimLoop()
    unhandled: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda loop, context: unhandled.append(context))
    try:
        count = loop.run(_simulate(seed), within=300.0)
        assert not unhandled, unhandled[0]
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
    return count


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_stream_ends_in_order_and_leaves_nothing(first: int) -> None:
    with quiet_collector():
        assert sum(simulate(seed) for seed in range(first, first + CHUNK)) > 50
