"""Retries, counted: how often a body starts, whatever befalls it, and after what delays; in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from raylite._wire.hot import LossReason
from raylite.exceptions import RayError, WorkerCrashedError
from raylite.testing.loop import SimLoop
from raylite.testing.node import SimDriver, SimNode, TaskContext
from raylite.testing.sim import World
from tests.sim.workload import quiet_collector

pytestmark = pytest.mark.sim

starts: list[tuple[bytes, int, float]] = []  # of the body: whose, which attempt, and when


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    starts.clear()
    with quiet_collector():
        yield


def stumble(task: TaskContext, plan: str) -> Awaitable[str]:
    return _stumble(task, plan)


async def _stumble(task: TaskContext, plan: str) -> str:
    """Do what the plan says for this attempt: Crash, Raise, run out of Memory, or end well."""
    starts.append((task.id, task.attempt, asyncio.get_running_loop().time()))
    match plan[task.attempt]:
        case "C":
            await task.crash()
        case "M":
            node, worker = task.node, task._worker
            with node.world.at(node.name):
                node.raylet.pool.end(task._process.core.id, "no memory", LossReason.OUT_OF_MEMORY)
            worker.kill("it was killed")
            await asyncio.get_running_loop().create_future()
        case "R":
            raise ValueError(plan)
        case "X":  # every connection breaks, under the running task
            for one in node_names(task.node):
                for other in node_names(task.node):
                    if one < other:
                        task.node.world.reset(one, other)
            await task.sleep(1.0)
    return plan


def node_names(node: SimNode) -> list[str]:
    return ["gcs", "raylet", *(process.name for process in node.processes())]


def run(program: Callable[[SimDriver], Awaitable[Any]]) -> Any:
    async def alone() -> Any:
        node = SimNode(World(1), cpus=2)
        await node.start()
        try:
            return await program(await node.driver("driver"))
        finally:
            await node.stop()

    return SimLoop().run(alone(), within=1000.0)


def attempt(plan: str, retries: int) -> Any:
    """Run a task by its plan; return what came of it, a value or an error."""

    async def program(driver: SimDriver) -> Any:
        ref = driver.submit(stumble, plan, max_retries=retries, retry_exceptions=True)
        try:
            return (await driver.get([ref]))[0]
        except RayError as error:
            return error.with_traceback(None)

    return run(program)


@pytest.mark.parametrize(
    ("plan", "retries", "bodies", "kind"),
    [
        (".", 3, 1, str),
        ("CCRRMM.", 2, 7, str),
        ("MRCMRCM.", 2, 8, str),
        ("CRCRC", 2, 5, WorkerCrashedError),
        ("RCRCR", 2, 5, ValueError),
        ("MMMMMC.", 1, 7, str),
        ("C", 0, 1, WorkerCrashedError),
        ("R", 0, 1, ValueError),
        ("M", 0, 1, RayError),
        ("CCCCCCCC.", -1, 9, str),
    ],
)
def test_three_budgets_are_spent_each_by_itself_and_to_the_last(
    plan: str, retries: int, bodies: int, kind: type
) -> None:
    came = attempt(plan, retries)
    assert isinstance(came, kind)
    assert [number for _, number, _ in starts] == list(range(bodies))


def test_connections_that_break_under_a_task_cost_it_no_attempt() -> None:
    assert attempt("X", 0) == "X"
    assert len(starts) == 1


def test_retries_wait_longer_each_time_and_no_two_tasks_in_step() -> None:
    async def program(driver: SimDriver) -> None:
        refs = [driver.submit(stumble, "CCCC.", num_cpus=0.25, max_retries=4) for _ in range(2)]
        await driver.get(refs)

    run(program)
    moments: dict[bytes, list[float]] = {}
    for task, _, moment in starts:
        moments.setdefault(task, []).append(moment)
    one, other = ([b - a for a, b in pairwise(each)] for each in moments.values())
    for waits in (one, other):
        for wait, delay in zip(waits, (0.0, 0.1, 0.2, 0.4), strict=True):
            assert delay / 2 <= wait < delay + 0.3  # a worker has to be missed, and another forked
    assert all(abs(a - b) > 1e-6 for a, b in zip(one[1:], other[1:], strict=True))
