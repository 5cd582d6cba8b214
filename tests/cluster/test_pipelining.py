"""What is sent ahead to a worker is never held up there: by a sleeper, a waiter, or a crash.

The tests train a function first, so that its run time is known and many of its tasks are sent to one
worker at a time. What must come before what is said by pipes and files, not by clocks.
"""

import os
import pickle
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import raylite as ray
from raylite import ObjectRef
from raylite._remote import RemoteFunction
from raylite.exceptions import GetTimeoutError, WorkerCrashedError
from raylite.testing import LocalCluster
from tests.cluster.watching import SOON

pytestmark = [pytest.mark.process, pytest.mark.fault]


@pytest.fixture(scope="module")
def two() -> Iterator[None]:
    """A cluster with two CPUs."""
    with ray.init(num_cpus=2, log_to_driver=False):
        yield


@pytest.fixture
def one() -> Iterator[None]:
    """A cluster with one CPU, so that there is one pipeline."""
    with LocalCluster(num_cpus=1):
        yield


@ray.remote
def step(number: Any, told: str = "") -> Any:
    """Return the number; first, when told where, note in a file that this ran."""
    if told:
        note(told, number)
    return number


@ray.remote
def maybe_wait(number: int, fifo: str = "") -> int:
    """A short task that may turn out to be a long one: it reads a pipe to its end."""
    if fifo:
        Path(fifo).read_bytes()
    return number


def note(path: str, what: object) -> None:
    """Append a line to a file, in one piece."""
    with open(path, "ab", buffering=0) as file:
        file.write(f"{what}\n".encode())


def train(function: RemoteFunction[Callable[..., Any], Any]) -> None:
    """Let the run time of a function become known as short."""
    for _ in range(3):
        ray.get([function.remote(n) for n in range(100)], timeout=SOON)


def fifo_at(path: Path) -> str:
    os.mkfifo(path)
    return str(path)


# -- Behind a sleeper


@pytest.mark.parametrize("place", [0, 7, 150])
def test_a_sleeper_holds_up_nothing_that_was_sent_with_it(
    two: None, tmp_path: Path, place: int
) -> None:
    train(maybe_wait)
    fifo = fifo_at(tmp_path / "fifo")
    refs = [maybe_wait.remote(n, fifo if n == place else "") for n in range(300)]
    others = [ref for n, ref in enumerate(refs) if n != place]
    assert ray.get(others, timeout=SOON) == [n for n in range(300) if n != place]
    assert ray.wait([refs[place]], timeout=0) == ([], [refs[place]])
    Path(fifo).write_bytes(b"")
    assert ray.get(refs[place], timeout=SOON) == place


def test_all_go_on_when_every_worker_sleeps_and_one_wakes(two: None, tmp_path: Path) -> None:
    train(maybe_wait)
    fifos = [fifo_at(tmp_path / f"{n}") for n in range(2)]
    refs = [maybe_wait.remote(n, fifos[n // 50] if n in (0, 50) else "") for n in range(100)]
    others = [ref for n, ref in enumerate(refs) if n not in (0, 50)]
    Path(fifos[1]).write_bytes(b"")
    assert len(ray.get(others, timeout=SOON)) == 98
    assert ray.wait([refs[0]], timeout=0) == ([], [refs[0]])
    Path(fifos[0]).write_bytes(b"")
    assert ray.get(refs[0], timeout=SOON) == 0


# -- Behind one that waits for a later one


@ray.remote
def maybe_get(number: int, fifo: str = "") -> int:
    """A short task that may be sent a reference through a pipe, and then waits for its value."""
    if not fifo:
        return number
    ref: ObjectRef[int] = pickle.loads(Path(fifo).read_bytes())
    return 1000 + ray.get(ref)


def test_a_task_can_wait_for_one_that_was_sent_behind_it(one: None, tmp_path: Path) -> None:
    train(maybe_get)
    fifo = fifo_at(tmp_path / "fifo")
    refs = [maybe_get.remote(n, fifo if n == 0 else "") for n in range(100)]
    Path(fifo).write_bytes(pickle.dumps(refs[99]))
    assert ray.get(refs, timeout=SOON) == [1099, *range(1, 100)]


def test_a_chain_of_tasks_each_waiting_for_the_next_ends(one: None, tmp_path: Path) -> None:
    train(maybe_get)
    fifos = [fifo_at(tmp_path / f"{n}") for n in range(8)]
    refs = [maybe_get.remote(n, fifos[n] if n < 8 else "") for n in range(9)]
    for fifo, later in zip(fifos, refs[1:], strict=True):
        Path(fifo).write_bytes(pickle.dumps(later))
    assert ray.get(refs[0], timeout=SOON) == 8 * 1000 + 8


# -- Around a crash


@ray.remote(max_retries=0)
def maybe_crash(number: int, told: str = "", crashes: bool = False) -> int:
    if told:
        note(told, number)
    if crashes:
        os._exit(1)
    return number


def test_tasks_behind_a_crash_run_once_and_pay_nothing_for_it(one: None, tmp_path: Path) -> None:
    train(maybe_crash)
    told = str(tmp_path / "ran")
    refs = [maybe_crash.remote(n, told, n == 20) for n in range(100)]
    with pytest.raises(WorkerCrashedError, match="exit code 1"):
        ray.get(refs[20], timeout=SOON)
    # With no retries, these would fail if the crash were held against them.
    assert ray.get(refs[21:], timeout=SOON) == list(range(21, 100))
    assert set(Counter(Path(told).read_text().split()).values()) == {1}


def test_a_crash_costs_tasks_with_retries_nothing_but_time(one: None, tmp_path: Path) -> None:
    forgiving = maybe_crash.options(max_retries=3)
    train(forgiving)
    told = str(tmp_path / "ran")
    refs = [forgiving.remote(n, told, n == 20) for n in range(100)]
    with pytest.raises(WorkerCrashedError):
        ray.get(refs[20], timeout=SOON)
    rest = refs[:20] + refs[21:]
    assert ray.get(rest, timeout=SOON) == [n for n in range(100) if n != 20]
    ran = Counter(map(int, Path(told).read_text().split()))
    assert ran[20] == 4  # once, and each retry
    # A result that had not left the worker yet is lost with it, so some have run again.
    assert all(1 <= ran[n] <= 4 for n in range(100))


def test_every_other_task_crashing_leaves_the_others_whole(two: None, tmp_path: Path) -> None:
    train(maybe_crash)
    told = str(tmp_path / "ran")
    refs = [maybe_crash.options(max_retries=-1).remote(n, told) for n in range(60)]
    crashing = [maybe_crash.remote(n, "", True) for n in range(12)]
    assert ray.get(refs, timeout=SOON) == list(range(60))
    for ref in crashing:
        with pytest.raises(WorkerCrashedError):
            ray.get(ref, timeout=SOON)


# -- Beside one that holds the GIL


@ray.remote(max_retries=0)
def hold_the_gil(told: str) -> None:
    """Match for ages, in C, without letting go of the interpreter."""
    note(told, os.getpid())
    re.match(r"(a|a)*b", "a" * 64)


def test_a_task_that_holds_the_gil_stalls_nobody_else(tmp_path: Path) -> None:
    told = tmp_path / "holds"
    with LocalCluster(num_cpus=2):
        train(step)
        holding = hold_the_gil.remote(str(told))
        while not told.exists():
            ray.get(step.remote(0), timeout=SOON)
        assert ray.get([step.remote(n) for n in range(500)], timeout=SOON) == list(range(500))
        big = ray.put(bytes(1 << 20))
        assert ray.get(step.remote(big), timeout=SOON) == bytes(1 << 20)
        with pytest.raises(GetTimeoutError):
            ray.get(holding, timeout=0)
        began = time.monotonic()
    # It cannot be asked to stop, and is killed. A second is what components get to say goodbye.
    assert time.monotonic() - began < 3 * 1.0


# -- Deeper than there are CPUs


@ray.remote
def deep(depth: int) -> int:
    return depth and 1 + ray.get(deep.remote(depth - 1))


@ray.remote
def fib(n: int) -> int:
    if n < 2:
        return n
    return sum(ray.get([fib.remote(n - 1), fib.remote(n - 2)]))


def test_recursion_deeper_than_there_are_cpus_ends(one: None) -> None:
    assert ray.get(deep.remote(12), timeout=60) == 12


def test_a_tree_of_tasks_on_one_cpu_ends(one: None) -> None:
    assert ray.get(fib.remote(7), timeout=60) == 13


# -- Owners beside owners


@ray.remote(num_cpus=0)
def own(count: int, told: str, fifo: str) -> int:
    """Submit many tasks at once, and note when a tenth of them has ended."""
    refs = [step.remote(n) for n in range(count)]
    ray.get(refs[: count // 10])
    note(told, "first")
    with open(fifo, "rb") as file:
        file.read()
    return sum(ray.get(refs))


def test_two_owners_share_the_cpus(two: None, tmp_path: Path) -> None:
    told = str(tmp_path / "told")
    fifos = [fifo_at(tmp_path / f"{n}") for n in range(2)]
    refs = [own.remote(2000, told, fifo) for fifo in fifos]
    mine = [step.remote(n) for n in range(2000)]
    assert len(ray.get(mine, timeout=SOON)) == 2000
    for fifo in fifos:  # opens when its owner has got its share
        Path(fifo).write_bytes(b"")
    assert ray.get(refs, timeout=SOON) == [sum(range(2000))] * 2


@ray.remote
def nap(number: int) -> None:
    time.sleep(0.002)


@ray.remote(num_cpus=0)
def own_one(number: int) -> int:
    result: int = ray.get(step.remote(number))
    return result


def test_an_owner_with_much_to_do_does_not_starve_one_with_little(two: None) -> None:
    train(nap)
    much = [nap.remote(n) for n in range(2000)]
    assert ray.get(own_one.remote(5), timeout=SOON) == 5
    assert ray.wait(much, num_returns=len(much), timeout=0)[1], "it came last"
    ray.get(much, timeout=SOON)
