"""Cancelling tasks in processes: what a signal reaches, and what the end of a process leaves alone."""

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import raylite as ray
from raylite import aio
from raylite._api import home
from raylite._types.cancellation import CancelOutcome
from raylite.exceptions import TaskCancelledError

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("cluster")]

SOON = 20.0


def meet(fifo: Path, end: int) -> None:
    os.close(os.open(fifo, end))


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    fifo = tmp_path / "begun"
    os.mkfifo(fifo)
    return fifo


def cancel(ref: Any, *, force: bool = False) -> CancelOutcome:
    return home([ref]).cancel(ref._entry, force=force, recursive=True).result(SOON)


@ray.remote
def sleep(begun: Path) -> None:
    meet(begun, os.O_WRONLY)
    time.sleep(1000)


@ray.remote(num_cpus=0)
def get(begun: Path, refs: list[Any]) -> Any:
    meet(begun, os.O_WRONLY)
    return ray.get(refs[0])


@ray.remote
def compute(begun: Path) -> None:
    meet(begun, os.O_WRONLY)
    while True:
        pass


@ray.remote
def stay(begun: Path, interrupted: Path) -> None:
    while True:
        try:
            meet(begun, os.O_WRONLY)  # in here: the interrupt may come before this returns
            time.sleep(1000)
        except KeyboardInterrupt:
            meet(interrupted, os.O_WRONLY)


@ray.remote
def persist(begun: Path) -> None:
    while True:
        with suppress(KeyboardInterrupt):
            meet(begun, os.O_WRONLY)
            time.sleep(1000)


@ray.remote
def run_loop(begun: Path, cleaned: Path) -> None:
    async def main() -> None:
        try:
            meet(begun, os.O_WRONLY)
            await asyncio.sleep(1000)
        finally:
            cleaned.write_text("cancelled")

    asyncio.run(main())


class Finalized:
    """Dies again and again: most of the time is spent where an exception reaches nobody."""

    def __del__(self) -> None:
        for _ in range(1000):
            pass


@ray.remote
def finalize(begun: Path) -> None:
    meet(begun, os.O_WRONLY)
    while True:
        Finalized()


class Slow:
    def __init__(self, begun: Path) -> None:
        self.begun = begun

    def __reduce__(self) -> Any:
        return _unpickle_slowly, (self.begun,)


def _unpickle_slowly(begun: Path) -> None:
    begun.with_name("pid").write_text(str(os.getpid()))
    meet(begun, os.O_WRONLY)
    time.sleep(1000)


@ray.remote
def pid(*_: Any) -> int:
    return os.getpid()


def pids() -> set[int]:
    return set(ray.get([pid.remote() for _ in range(8)], timeout=SOON))


@pytest.mark.parametrize("body", [sleep, compute, finalize], ids=["sleep", "compute", "finalize"])
def test_it_is_interrupted_whatever_it_does(body: Any, begun: Path) -> None:
    ref = body.remote(begun)
    meet(begun, os.O_RDONLY)
    assert cancel(ref) is CancelOutcome.WHILE_RUNNING
    with pytest.raises(TaskCancelledError, match="was interrupted"):
        ray.get(ref, timeout=SOON)


def test_it_is_interrupted_where_it_blocks_in_get(begun: Path, tmp_path: Path) -> None:
    never = sleep.options(num_cpus=1000).remote(tmp_path)
    ref = get.remote(begun, [never])
    meet(begun, os.O_RDONLY)
    assert cancel(ref) is CancelOutcome.WHILE_RUNNING
    assert cancel(never) is CancelOutcome.BEFORE_START


def test_a_loop_of_its_own_is_cancelled_as_by_ctrl_c(begun: Path, tmp_path: Path) -> None:
    cleaned = tmp_path / "cleaned"
    ref = run_loop.remote(begun, cleaned)
    meet(begun, os.O_RDONLY)
    assert cancel(ref) is CancelOutcome.WHILE_RUNNING
    assert cleaned.read_text() == "cancelled"


def test_it_is_interrupted_while_arguments_are_unpickled_and_the_worker_lives(begun: Path) -> None:
    ref = pid.remote(Slow(begun))
    meet(begun, os.O_RDONLY)
    assert cancel(ref) is CancelOutcome.BEFORE_START
    with pytest.raises(TaskCancelledError):
        ray.get(ref, timeout=SOON)
    os.kill(int(begun.with_name("pid").read_text()), 0)


def test_by_force_the_process_of_one_that_stays_ends_and_nobody_elses(begun: Path) -> None:
    ref = persist.remote(begun)
    meet(begun, os.O_RDONLY)
    others = pids()
    behind: list[Any] = [pid.options(max_retries=0).remote() for _ in range(100)]
    assert cancel(ref, force=True) is CancelOutcome.WHILE_RUNNING
    with pytest.raises(TaskCancelledError, match="force=True"):
        ray.get(ref, timeout=SOON)
    assert others & set(ray.get(behind, timeout=SOON))


def test_a_group_that_is_cancelled_again_ends_the_process_of_a_task_that_stays(
    begun: Path, tmp_path: Path
) -> None:
    interrupted = tmp_path / "interrupted"
    os.mkfifo(interrupted)

    async def block() -> None:
        async with aio.TaskGroup() as group:
            group.start(stay, begun, interrupted)

    async def main() -> bool:
        blocked = asyncio.ensure_future(block())
        await asyncio.to_thread(meet, begun, os.O_RDONLY)
        blocked.cancel()
        await asyncio.to_thread(meet, interrupted, os.O_RDONLY)
        blocked.cancel()
        await asyncio.wait([blocked], timeout=SOON)
        return blocked.cancelled()

    assert asyncio.run(main())
