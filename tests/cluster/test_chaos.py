"""Ten thousand tasks while workers are killed at random: every result right, and nothing leaked."""

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def killing(seed: int) -> Iterator[list[int]]:
    """Kill workers at random, several a second, until the end of the block; list them."""
    stopping, killed, choice = threading.Event(), list[int](), random.Random(seed)

    def kill() -> None:
        while not stopping.wait(choice.uniform(0.05, 0.4)):
            if pids := workers():
                killed.append(choice.choice(sorted(pids)))
                with Watch(killed[-1]) as watch:
                    watch.signal(signal.SIGKILL)

    thread = threading.Thread(target=kill, name="killer")
    thread.start()
    try:
        yield killed
    finally:
        stopping.set()
        thread.join()


def work_through() -> None:
    """Run a fifth of the tasks, and look at each result."""
    shared = ray.put(np.arange(ROWS, dtype=np.int64))
    sums = [parent.remote(CHILDREN * n, [shared]) for n in range(PARENTS)]
    totals = [total.remote(make.remote(n)) for n in range(ARRAYS)]
    each = range(CHILDREN)
    assert ray.get(sums) == [sum(2 * (CHILDREN * n + k) for k in each) for n in range(PARENTS)]
    assert ray.get(totals) == [n * ROWS for n in range(ARRAYS)]


@pytest.mark.parametrize("seed", [1])
def test_results_survive_the_deaths_of_workers_and_nothing_is_leaked(seed: int) -> None:
    assert TASKS == 10_000
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with ray.init(num_cpus=4, object_store_memory=STORE, log_to_driver=False):
        with killing(seed) as killed:
            for _ in range(ROUNDS):
                work_through()
        assert len(killed) >= ROUNDS

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
