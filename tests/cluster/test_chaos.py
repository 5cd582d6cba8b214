"""Ten thousand tasks while workers are killed at random: every result right, and nothing leaked."""

import os
import random
import signal
import threading

import numpy as np
import pytest

import raylite as ray
from raylite import ObjectRef
from raylite._runtime import context
from tests.cluster.watching import Watch, eventually, tree, workers

pytestmark = [pytest.mark.process, pytest.mark.fault, pytest.mark.timeout(180)]

STORE = 256 << 20
ROWS = 150_000  # of 8 bytes: each array has more than a megabyte
ROUNDS, PARENTS, CHILDREN, ARRAYS = 5, 200, 8, 100
TASKS = ROUNDS * (PARENTS * (1 + CHILDREN) + 2 * ARRAYS)
Array = np.ndarray[tuple[int], np.dtype[np.int64]]


@ray.remote(max_retries=-1)
def leaf(index: int, array: Array) -> int:
    return index + int(array[index])


@ray.remote(max_retries=-1)
def parent(first: int, shared: "list[ObjectRef[Array]]") -> int:
    """Pass a borrowed reference on to children, and add up what they return."""
    return sum(ray.get([leaf.remote(first + n, shared[0]) for n in range(CHILDREN)]))


@ray.remote(max_retries=-1)
def make(number: int) -> Array:
    return np.full(ROWS, number, np.int64)


@ray.remote(max_retries=-1)
def total(array: Array) -> int:
    return int(array.sum())


def kill_one(choice: random.Random) -> int:
    """Kill a worker, whatever it does: run, wait, idle, or start."""
    victim = choice.choice(sorted(workers()) or [0])
    if victim:
        with Watch(victim) as watch:
            watch.signal(signal.SIGKILL)
    return bool(victim)


def work_through(choice: random.Random) -> int:
    """Run a fifth of the tasks, killing as they end, and look at each result; count the killed."""
    shared = ray.put(np.arange(ROWS, dtype=np.int64))
    sums = [parent.remote(CHILDREN * n, [shared]) for n in range(PARENTS)]
    totals = [total.remote(make.remote(n)) for n in range(ARRAYS)]
    waiting: list[ObjectRef[int]] = [*sums, *totals]
    killed = 0
    while waiting:  # kills follow progress, not the clock, so that a slow machine makes some too
        count = choice.randint(1, 15)
        _, waiting = ray.wait(waiting, num_returns=min(count, len(waiting)))
        killed += kill_one(choice)
    each = range(CHILDREN)
    assert ray.get(sums) == [sum(2 * (CHILDREN * n + k) for k in each) for n in range(PARENTS)]
    assert ray.get(totals) == [n * ROWS for n in range(ARRAYS)]
    return killed


@pytest.mark.parametrize("seed", [1])
def test_results_survive_the_deaths_of_workers_and_nothing_is_leaked(seed: int) -> None:
    assert TASKS == 10_000
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with ray.init(num_cpus=4, object_store_memory=STORE, log_to_driver=False):
        choice = random.Random(seed)
        assert sum(work_through(choice) for _ in range(ROUNDS)) > 100

        # Everything lent has been given back, and nobody waits for anything any more.
        assert eventually(lambda: ray.available_resources() == ray.cluster_resources())
        place = context.current()
        assert place is not None
        core = place.core
        assert eventually(lambda: not core.owner.refs.table)
        assert core.submitter.unfinished == 0
        core.submitter.check()

        # An object as large as the store finds room: not one page of it is still in use.
        whole = ray.put(np.zeros(STORE - (1 << 12), np.uint8))
        del whole
        assert eventually(lambda: len(workers()) <= 4)
        left = tree()
    assert not set(left) & set(tree())
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors
