"""`async def` tasks in worker processes: what overlaps there, and what becomes of it in a crash."""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import raylite as ray
from raylite.exceptions import TaskCancelledError
from raylite.testing import LocalCluster

PATIENCE = 60.0

pytestmark = pytest.mark.process


@pytest.fixture(scope="module", autouse=True)
def one_cpu() -> Iterator[None]:
    with LocalCluster(num_cpus=1):
        yield


barriers: dict[int, asyncio.Barrier] = {}


async def _meet(count: int) -> int:
    await barriers.setdefault(count, asyncio.Barrier(count)).wait()
    return os.getpid()


meet = ray.remote(_meet)


def test_a_thousand_tasks_overlap_in_one_process() -> None:
    pids = ray.get([meet.remote(1000) for _ in range(1000)], timeout=PATIENCE)
    assert len(set(pids)) == 1


async def _crash_once(number: int, begun: str) -> int:
    file = os.open(begun, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{number}\n".encode())
    os.close(file)
    count = Path(begun).read_text().count("\n")
    if count < 50:
        await asyncio.Event().wait()
    if count == 50:
        os._exit(1)
    return number


def test_a_crash_costs_each_of_the_tasks_that_overlap_one_retry_and_those_behind_them_none(
    tmp_path: Path,
) -> None:
    begun = tmp_path / "begun"
    crash_once = ray.remote(_crash_once).options(max_concurrency=50, max_retries=1)
    refs = [crash_once.remote(number, str(begun)) for number in range(80)]
    assert ray.get(refs, timeout=PATIENCE) == list(range(80))
    counts = Counter(map(int, begun.read_text().split()))
    assert counts == dict.fromkeys(range(50), 2) | dict.fromkeys(range(50, 80), 1)


async def _wait_or_tell(directory: str, name: str) -> str:
    path = Path(directory)
    (path / f"{name} {len(list(path.glob(f'{name} *')))}").touch()
    fifo = path / f"fifo {name}"
    if fifo.exists():
        await asyncio.to_thread(fifo.read_bytes)
    elif name == "forced":
        await asyncio.Event().wait()
    return name


async def _stay(directory: str) -> None:
    fifo = Path(directory) / "fifo forced"
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.to_thread(fifo.read_bytes)


def test_force_ends_the_worker_of_a_task_that_stays_and_the_others_there_run_again(
    tmp_path: Path,
) -> None:
    wait_or_tell = ray.remote(_wait_or_tell).options(max_retries=1)
    os.mkfifo(tmp_path / "fifo forced")
    os.mkfifo(tmp_path / "fifo other")
    forced = ray.remote(_stay).remote(str(tmp_path))
    other = wait_or_tell.remote(str(tmp_path), "other")
    with open(tmp_path / "fifo other", "wb"), open(tmp_path / "fifo forced", "wb"):
        (tmp_path / "fifo other").unlink()  # it does not wait the next time
        ray.cancel(forced, force=True)
        with pytest.raises(TaskCancelledError):
            ray.get(forced, timeout=PATIENCE)
        assert ray.get(other, timeout=PATIENCE) == "other"
    assert (tmp_path / "other 1").exists()


def test_cancelling_interrupts_one_of_those_that_overlap_in_a_process(tmp_path: Path) -> None:
    wait_or_tell = ray.remote(_wait_or_tell)
    os.mkfifo(tmp_path / "fifo other")
    forced, other = (wait_or_tell.remote(str(tmp_path), name) for name in ("forced", "other"))
    with open(tmp_path / "fifo other", "wb"):
        ray.cancel(forced)
        with pytest.raises(TaskCancelledError):
            ray.get(forced, timeout=PATIENCE)
    assert ray.get(other, timeout=PATIENCE) == "other"


def test_a_worker_that_is_spent_ends_when_its_tasks_have() -> None:
    limited = ray.remote(max_calls=5, max_concurrency=5)(_meet)
    pids = ray.get([limited.remote(5) for _ in range(15)], timeout=PATIENCE)
    assert sorted(Counter(pids).values()) == [5, 5, 5]


async def _fib(n: int) -> int:
    return n if n < 2 else sum(await asyncio.gather(fib.remote(n - 1), fib.remote(n - 2)))


fib = ray.remote(_fib)


def test_a_recursion_of_processes_ends_on_one_cpu() -> None:
    assert ray.get(fib.remote(3), timeout=PATIENCE) == 2


async def _in_thread() -> str | None:
    return await asyncio.to_thread(lambda: ray.get_runtime_context().get_task_name())


def test_a_thread_that_a_task_begins_knows_the_task() -> None:
    names = ["one", "two"]
    in_thread = ray.remote(_in_thread)
    assert ray.get([in_thread.options(name=name).remote() for name in names]) == names
