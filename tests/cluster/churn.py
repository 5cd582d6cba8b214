"""The driver of `test_chaos_network`: tasks whose results are known, on nodes that come and go.

It talks by lines. Each time some results have come it says ``more`` and waits for an answer, so that
whoever kills, kills as the work goes on. At last it says what it found.
"""

import random
import sys

import numpy as np

import raylite as ray
from raylite import ObjectRef
from raylite._runtime import context
from raylite.exceptions import ObjectLostError, RayTaskError
from raylite.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.cluster.watching import eventually

ROWS = 150_000  # of 8 bytes: each array has more than a megabyte
ROUNDS, PARENTS, CHILDREN, ARRAYS = 5, 200, 8, 100
TASKS = ROUNDS * (PARENTS * (1 + CHILDREN) + 2 * ARRAYS)
PAGE = 1 << 14  # of a store, that is never part of an object
Array = np.ndarray[tuple[int], np.dtype[np.int64]]


@ray.remote(max_retries=-1, scheduling_strategy="SPREAD")
def leaf(index: int, array: Array) -> int:
    return index + int(array[index])


@ray.remote(max_retries=-1, scheduling_strategy="SPREAD")
def parent(first: int, shared: "list[ObjectRef[Array]]") -> int:
    """Pass a borrowed reference on to children, and add up what they return."""
    return sum(ray.get([leaf.remote(first + n, shared[0]) for n in range(CHILDREN)]))


@ray.remote(max_retries=-1, scheduling_strategy="SPREAD")
def make(number: int) -> Array:
    return np.full(ROWS, number, np.int64)


@ray.remote(max_retries=-1)
def total(array: Array) -> int:
    return int(array.sum())


@ray.remote
def fill(size: int) -> bytes:
    return bytes(size)


@ray.remote
def size(data: bytes) -> int:
    return len(data)


def say(words: str) -> None:
    print(words, flush=True)


def is_lost(ref: "ObjectRef[int]") -> bool:
    """Whether a sum failed because its array went with a node: it has no lineage to be remade by."""
    try:
        ray.get(ref)
    except ObjectLostError:
        return True
    except RayTaskError as error:
        if isinstance(error.cause, ObjectLostError):
            return True
        raise
    return False


def work_through(choice: random.Random) -> None:
    """Run a fifth of the tasks and look at each result; what was lost is made again."""
    shared = ray.put(np.arange(ROWS, dtype=np.int64))
    sums = [parent.remote(CHILDREN * n, [shared]) for n in range(PARENTS)]
    totals = {total.remote(make.remote(n)): n for n in range(ARRAYS)}
    waiting: list[ObjectRef[int]] = [*sums, *totals]
    while waiting:
        count = choice.randint(10, 40)
        done, waiting = ray.wait(waiting, num_returns=min(count, len(waiting)))
        for ref in done:
            if ref in totals and is_lost(ref):
                again = total.remote(make.remote(number := totals.pop(ref)))
                totals[again] = number
                waiting.append(again)
        pause("more")
    each = range(CHILDREN)
    assert ray.get(sums) == [sum(2 * (CHILDREN * n + k) for k in each) for n in range(PARENTS)]
    for ref, number in totals.items():
        assert ray.get(ref) == number * ROWS


def pause(words: str) -> None:
    say(words)
    assert sys.stdin.readline() == "go on\n"


def fill_every_store(store: int) -> None:
    """Have every node make and read an object as large as its store: no page of it is in use."""
    whole = store - PAGE
    for row in ray.nodes():
        if row["Alive"]:
            where = NodeAffinitySchedulingStrategy(row["NodeID"], soft=False)
            filled = fill.options(scheduling_strategy=where).remote(whole)
            assert ray.get(size.options(scheduling_strategy=where).remote(filled)) == whole


def main(seed: int, nodes: int, store: int) -> None:
    assert TASKS == 10_000
    choice = random.Random(seed)
    with ray.init(log_to_driver=False):
        for _ in range(ROUNDS):
            work_through(choice)
        pause("worked")
        # Everything lent has been given back, and nobody waits for anything any more.
        assert eventually(lambda: sum(row["Alive"] for row in ray.nodes()) == nodes)
        assert eventually(lambda: ray.available_resources() == ray.cluster_resources())
        place = context.current()
        assert place is not None
        core = place.core
        assert eventually(lambda: not core.owner.refs.table)
        assert core.submitter.unfinished == 0
        core.submitter.check()
        fill_every_store(store)
    say("nothing is leaked")
