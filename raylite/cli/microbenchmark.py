"""`raylite microbenchmark`: operations per second, under the names of Ray's own benchmark."""

import asyncio
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import click
from msgspec import Struct

import raylite as ray
from raylite import aio

WARM_UP = 0.5  # seconds
STRETCHES = 4


class Measure(Struct, frozen=True):
    """One line of the benchmark: a step, and how many operations one call of it is worth."""

    name: str
    step: Callable[[], object]
    worth: float = 1


@ray.remote
def small_value() -> bytes:
    """Return almost nothing: what is measured is the way here and back."""
    return b"ok"


@ray.remote
def small_value_batch(count: int) -> int:
    """Submit tasks from a task, and wait for them."""
    ray.get([small_value.remote() for _ in range(count)])
    return 0


@ray.remote
def put_small_batch(count: int) -> None:
    """Put small values from a task."""
    for _ in range(count):
        ray.put(0)


@ray.remote
def put_large_batch(count: int, size: int) -> None:
    """Put large values from a task, one after another."""
    value = bytearray(size)
    for _ in range(count):
        ray.put(value)


@ray.remote
def object_of_refs(count: int) -> list[ray.ObjectRef[int]]:
    """Return an object that contains many references."""
    return [ray.put(1) for _ in range(count)]


@ray.remote
def successor(n: int) -> int:
    """Do as little with an element as can be done."""
    return n + 1


async def await_all(count: int) -> list[bytes]:
    """Submit tasks from a coroutine, and await them."""
    return await aio.get([small_value.remote() for _ in range(count)])


def map_over(count: int) -> None:
    """Call a function for each of many elements, and take the results one by one."""
    for ref in successor.map(range(count)):
        ray.get(ref)


@ray.remote
def numbers(count: int) -> Iterator[int]:
    """Yield small values."""
    yield from range(count)


def read_stream(count: int) -> None:
    """Take the items of a generator task one by one."""
    for ref in numbers.remote(count):
        ray.get(ref)


def wait_for_each(count: int) -> None:
    """Take one finished task after another out of many."""
    not_ready = [small_value.remote() for _ in range(count)]
    while not_ready:
        _, not_ready = ray.wait(not_ready)


def measures() -> Iterator[Measure]:
    """Make the cases one by one, each when the one before it is through."""
    value = ray.put(0)
    yield Measure("single client get calls (Plasma Store)", lambda: ray.get(value))
    yield Measure("single client put calls (Plasma Store)", lambda: ray.put(0))
    yield Measure(
        "multi client put calls (Plasma Store)",
        lambda: ray.get([put_small_batch.remote(100) for _ in range(10)]),
        1000,
    )
    # Ray: 800 MB of numpy zeros; a bytearray is as zero-copy and needs no numpy.
    yield Measure("single client put gigabytes", partial(ray.put, bytearray(800_000_000)), 0.8)
    yield Measure(
        "single client tasks and get batch",
        lambda: ray.get([small_value.remote() for _ in range(1000)]),
    )
    yield Measure(
        "multi client put gigabytes",
        lambda: ray.get([put_large_batch.remote(10, 80_000_000) for _ in range(10)]),
        8,
    )
    yield Measure(
        "single client get object containing 10k refs",
        partial(ray.get, object_of_refs.remote(10_000)),
    )
    yield Measure("single client wait 1k refs", lambda: wait_for_each(1000))
    yield Measure("single client tasks sync", lambda: ray.get(small_value.remote()))
    yield Measure(
        "single client tasks async",
        lambda: ray.get([small_value.remote() for _ in range(1000)]),
        1000,
    )
    with asyncio.Runner() as runner:
        # Ray: no such case.
        yield Measure(
            "single client tasks from one event loop", lambda: runner.run(await_all(1000)), 1000
        )
    yield Measure("single client map 10k elements", lambda: map_over(10_000), 10_000)
    yield Measure("single client streaming generator items", lambda: read_stream(10_000), 10_000)
    # Ray: its four clients are actors; here they are tasks, which submit in the same way.
    yield Measure(
        "multi client tasks async",
        lambda: ray.get([small_value_batch.remote(2500) for _ in range(4)]),
        10_000,
    )


def run(measure: Measure, seconds: float) -> tuple[float, float]:
    """Return the mean and the standard deviation of a few stretches, in operations per second."""
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < WARM_UP:
        measure.step()
        count += 1
    steps_at_once = math.ceil(count / 10)
    rates = []
    for _ in range(STRETCHES):
        began, count = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < seconds or not count:
            for _ in range(steps_at_once):
                measure.step()
            count += steps_at_once
        rates.append(measure.worth * count / spent)
    return statistics.mean(rates), statistics.pstdev(rates)


@click.command()
@click.option("--only", default="", metavar="TEXT", help="Run the cases with TEXT in their names.")
@click.option("--seconds", default=1.0, show_default=True, help="Length of each of 4 stretches.")
@click.option("--num-cpus", type=int, help="CPUs of the cluster; by default, the machine's.")
def microbenchmark(only: str, seconds: float, num_cpus: int | None) -> None:
    """Measure tasks and objects on an embedded cluster.

    Prints one line a case, in the form of Ray's own: `name per second mean +- deviation`.
    """
    ray.init(num_cpus=num_cpus)
    try:
        for measure in measures():
            if only in measure.name:
                mean, deviation = run(measure, seconds)
                click.echo(f"{measure.name} per second {mean:.2f} +- {deviation:.2f}")
    finally:
        ray.shutdown()
