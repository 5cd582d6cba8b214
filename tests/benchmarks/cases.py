"""The benchmark's cases, in plain Ray API: the same lines run on Ray and on raylite.

`python cases.py --module raylite --case tasks_sync` runs one case in this process and prints its
figure as one line of JSON. Some cases measure the start and the end of a cluster themselves, so
each case has a process to itself.
"""

import argparse
import asyncio
import gc
import importlib
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

CPUS = 4
SECONDS = 2.0  # how long a rate is measured
FIB = 10  # 177 tasks, up to 88 of them blocked at once

Case = Callable[[Any], float]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    """Register a case under its function's name; it gets the imported module."""
    CASES[function.__name__] = function
    return function


def start(ray: Any) -> None:
    """Start the embedded cluster, quietly on both sides."""
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
    ray.init(num_cpus=CPUS, **quiet)


def rate(step: Callable[[], Any], count: int, warm_up: Callable[[], Any] | None = None) -> float:
    """Return operations per second over a few seconds; a step does `count` of them."""
    began = time.perf_counter()
    while time.perf_counter() - began < SECONDS / 2:
        (warm_up or step)()
    steps, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < SECONDS:
        step()
        steps += 1
    return steps * count / spent


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes under one, read from /proc: no library to import and pay for."""
    parents: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as stat:
                parents[int(name)] = int(stat.read().rpartition(b")")[2].split()[1])
        except OSError:
            continue  # it ended meanwhile
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def proportional_memory(pid: int) -> int:
    """Return the bytes that a process tree uses, shared pages divided among their users."""
    total = 0
    for one in [pid, *descendants(pid)]:
        try:
            with open(f"/proc/{one}/smaps_rollup") as rollup:
                total += sum(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
        except OSError:
            continue  # it ended meanwhile
    return total * 1024


def small_task(ray: Any) -> Any:
    @ray.remote
    def small_value() -> bytes:
        return b"ok"

    return small_value


@case
def import_seconds(ray: Any) -> float:
    return IMPORT_SECONDS


@case
def first_result(ray: Any) -> float:
    """Seconds from `init()` to the first task's result."""
    began = time.perf_counter()
    start(ray)
    assert ray.get(small_task(ray).remote()) == b"ok"
    return time.perf_counter() - began


@case
def shutdown_seconds(ray: Any) -> float:
    start(ray)
    small_value = small_task(ray)
    ray.get([small_value.remote() for _ in range(CPUS)])
    began = time.perf_counter()
    ray.shutdown()
    return time.perf_counter() - began


@case
def idle_memory(ray: Any) -> float:
    """Megabytes of the driver and its cluster, settled after one task."""
    start(ray)
    ray.get(small_task(ray).remote())
    time.sleep(4)
    gc.collect()
    return proportional_memory(os.getpid()) / 1e6


@case
def tasks_sync(ray: Any) -> float:
    start(ray)
    small_value = small_task(ray)
    return rate(lambda: ray.get(small_value.remote()), 1)


@case
def tasks_1000(ray: Any) -> float:
    start(ray)
    small_value = small_task(ray)
    return rate(lambda: ray.get([small_value.remote() for _ in range(1000)]), 1000)


@case
def tasks_10000(ray: Any) -> float:
    start(ray)
    small_value = small_task(ray)

    def batch(size: int) -> list[bytes]:
        return ray.get([small_value.remote() for _ in range(size)])

    return rate(lambda: batch(10_000), 10_000, warm_up=lambda: batch(1000))


@case
def aio_1000(ray: Any) -> float:
    """1,000 tasks at a time, submitted and awaited by a coroutine of one loop."""
    start(ray)
    small_value = small_task(ray)
    gather: Any = asyncio.gather  # what Ray has for it
    if ray.__name__ == "raylite":
        gather = importlib.import_module("raylite.aio").gather

    async def batch() -> Any:
        return await gather(*[small_value.remote() for _ in range(1000)])

    with asyncio.Runner() as runner:
        return rate(lambda: runner.run(batch()), 1000)


@case
def map_10000(ray: Any) -> float:
    """A small function for each of 10,000 elements; Ray has no `map`, so a task for each."""
    start(ray)

    @ray.remote
    def successor(n: int) -> int:
        return n + 1

    def step(count: int) -> None:
        if hasattr(successor, "map"):
            total = sum(ray.get(ref) for ref in successor.map(range(count)))
        else:
            total = sum(ray.get([successor.remote(n) for n in range(count)]))
        assert total == count * (count + 1) // 2

    return rate(lambda: step(10_000), 10_000, warm_up=lambda: step(1000))


@case
def stream_10000(ray: Any) -> float:
    """The items of a generator task, read one by one."""
    start(ray)

    @ray.remote
    def count(items: int) -> Iterator[int]:
        for n in range(items):  # noqa: UP028 - Ray takes no `yield from` of what is no generator
            yield n

    def step(items: int) -> None:
        assert sum(ray.get(ref) for ref in count.remote(items)) == items * (items - 1) // 2

    return rate(lambda: step(10_000), 10_000, warm_up=lambda: step(1000))


@case
def wait_1000(ray: Any) -> float:
    """Waiting for one after another of 1,000 tasks, as in "single client wait 1k refs"."""
    start(ray)
    small_value = small_task(ray)

    def step() -> None:
        not_ready = [small_value.remote() for _ in range(1000)]
        fetch_local = True
        for _ in range(1000):
            _ready, not_ready = ray.wait(not_ready, fetch_local=fetch_local)
            fetch_local = False

    return rate(step, 1000)


@case
def fan_out(ray: Any) -> float:
    """Tasks per second of a recursion in which every task blocks on its two children."""
    start(ray)

    @ray.remote
    def fib(n: int) -> int:
        if n < 2:
            return 1
        left, right = fib.remote(n - 1), fib.remote(n - 2)
        return sum(ray.get([left, right])) + 1  # counts the calls

    best, runs, began = 0.0, 0, time.perf_counter()
    while runs < 3 or time.perf_counter() - began < SECONDS:
        run_began = time.perf_counter()
        tasks = ray.get(fib.remote(FIB))
        best = max(best, tasks / (time.perf_counter() - run_began))  # the first starts the workers
        runs += 1
    return best


@case
def put_small(ray: Any) -> float:
    start(ray)

    def step() -> None:
        for _ in range(100):
            ray.put(0)

    return rate(step, 100)


@case
def get_small(ray: Any) -> float:
    start(ray)
    ref = ray.put(0)

    def step() -> None:
        for _ in range(100):
            ray.get(ref)

    return rate(step, 100)


@case
def put_400mb(ray: Any) -> float:
    """Gigabytes per second of arrays put and dropped one after another, the first two not counted.

    A fixed number: how many of them meet memory that was never touched is part of the figure.
    """
    np = importlib.import_module("numpy")
    start(ray)
    array, count = np.zeros(50 * 1024 * 1024), 10
    for _ in range(2):
        ray.put(array)
    began = time.perf_counter()
    for _ in range(count):
        ray.put(array)
    return float(count * array.nbytes / 1e9 / (time.perf_counter() - began))


@case
def shared_argument(ray: Any) -> float:
    """Tasks per second when 50 tasks at a time read the same 10 MB object."""
    np = importlib.import_module("numpy")
    start(ray)

    @ray.remote
    def ends(array: Any) -> float:
        return float(array[0] + array[-1] + len(array))

    array = np.arange(10 * 1024 * 1024 // 8, dtype=np.float64)
    ref = ray.put(array)
    expected = float(array[0] + array[-1] + len(array))

    def step() -> None:
        assert ray.get([ends.remote(ref) for _ in range(50)]) == [expected] * 50

    return rate(step, 50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--module", required=True, choices=["ray", "raylite"])
    parser.add_argument("--case", required=True, choices=CASES)
    options = parser.parse_args()

    global IMPORT_SECONDS
    began = time.perf_counter()
    ray = importlib.import_module(options.module)
    IMPORT_SECONDS = time.perf_counter() - began

    figure = CASES[options.case](ray)
    shutdown = getattr(ray, "shutdown", None)
    if shutdown is not None:
        shutdown()
    print(json.dumps({"case": options.case, "figure": figure}), flush=True)


IMPORT_SECONDS = 0.0

if __name__ == "__main__":
    main()
