"""Large objects in a cluster of several nodes: whoever reads one has it brought to its own node."""

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import raylite as ray
from raylite.exceptions import GetTimeoutError, ObjectLostError, OwnerDiedError, RayTaskError
from raylite.testing import LocalCluster
from raylite.util.scheduling_strategies import NodeAffinitySchedulingStrategy

MB = 1024 * 1024
Array = np.ndarray[tuple[int], np.dtype[np.float64]]


@ray.remote
def make(megabytes: int) -> Array:
    return np.arange(megabytes * MB // 8, dtype=np.float64)


@ray.remote
def total(array: Array) -> float:
    return float(array.sum())


@ray.remote
def total_of(refs: "list[ray.ObjectRef[Array]]") -> float:
    return sum(float(array.sum()) for array in ray.get(refs))


@ray.remote
def own(megabytes: int) -> "list[ray.ObjectRef[Array]]":
    return [ray.put(np.ones(megabytes * MB // 8))]


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=[2, 2, 2], workers="threads") as cluster:
        yield cluster


def on(cluster: LocalCluster, node: int, function: Any, *args: object) -> Any:
    """Call a remote function on a node, given by its place in the cluster."""
    strategy = NodeAffinitySchedulingStrategy(cluster.nodes[node].node_id, soft=False)
    return function.options(scheduling_strategy=strategy, max_retries=0).remote(*args)


def expected(megabytes: int) -> float:
    return float(np.arange(megabytes * MB // 8, dtype=np.float64).sum())


def test_the_driver_reads_what_was_made_elsewhere(cluster: LocalCluster) -> None:
    ref = on(cluster, 1, make, 5)
    array = ray.get(ref)
    assert array.sum() == expected(5)
    assert not array.flags.writeable
    assert ray.get([ref, ref])[1].sum() == expected(5)


def test_a_coroutine_and_a_future_read_it_too(cluster: LocalCluster) -> None:
    ref = on(cluster, 1, make, 3)

    async def read() -> float:
        return float((await ref).sum())

    assert asyncio.run(read()) == expected(3)
    assert ref.future().result(20).sum() == expected(3)


def test_a_task_reads_arguments_from_where_they_are(cluster: LocalCluster) -> None:
    made = on(cluster, 1, make, 2)
    put = ray.put(np.ones(MB))
    assert ray.get(on(cluster, 2, total, made)) == expected(2)
    assert ray.get(on(cluster, 1, total, made)) == expected(2)
    assert ray.get(on(cluster, 2, total, put)) == MB
    assert ray.get(on(cluster, 2, total, np.ones(MB))) == MB  # too large to travel with the task
    assert ray.get(on(cluster, 0, total_of, [made, put, made])) == 2 * expected(2) + MB


def test_many_readers_of_a_node_read_the_same_copy(cluster: LocalCluster) -> None:
    ref = on(cluster, 1, make, 4)
    totals = ray.get([on(cluster, 2, total, ref) for _ in range(20)])
    assert totals == [expected(4)] * 20


def test_a_borrower_reads_what_a_task_elsewhere_owns(cluster: LocalCluster) -> None:
    (inner,) = ray.get(on(cluster, 1, own, 2))
    assert ray.get(inner).sum() == 2 * MB // 8
    assert ray.get(on(cluster, 2, total, inner)) == 2 * MB // 8


def test_wait_waits_until_an_object_is_here(cluster: LocalCluster) -> None:
    refs = [on(cluster, node, make, 2) for node in (0, 1, 2)]
    assert ray.wait(refs, num_returns=3, timeout=20) == (refs, [])
    assert ray.wait(refs, num_returns=3, timeout=0) == (refs, [])  # what is here, is seen at once


def test_wait_without_fetching_is_content_with_a_value_elsewhere(cluster: LocalCluster) -> None:
    refs = [on(cluster, node, make, 2) for node in (1, 2)]
    assert ray.wait(refs, num_returns=2, timeout=20, fetch_local=False) == (refs, [])


def test_a_loop_of_waits_without_a_timeout_comes_to_an_end(cluster: LocalCluster) -> None:
    left = [on(cluster, node, make, 8) for node in (1, 2)]
    while left:
        _, left = ray.wait(left, timeout=0)


def test_what_nobody_refers_to_is_freed_on_every_node(cluster: LocalCluster) -> None:
    for _ in range(8):  # 64 MB would be full after the second if anything stayed
        ref = on(cluster, 1, make, 20)
        assert ray.get(on(cluster, 2, total, ref)) == ray.get(ref).sum()
        del ref


def test_copies_make_room_for_others_when_nobody_reads_them() -> None:
    with LocalCluster(nodes=[{"object_store_memory": 20 * MB}, 2], workers="threads") as cluster:
        refs = [on(cluster, 1, make, 8) for _ in range(6)]
        kept = ray.get(refs[0])
        assert [ray.get(ref).sum() for ref in refs] == [expected(8)] * 6
        assert ray.get(ray.put(np.ones(MB))).sum() == MB  # so is room for what is made here
        assert kept.sum() == expected(8)


def test_another_copy_serves_when_the_first_has_gone(cluster: LocalCluster) -> None:
    ref = on(cluster, 1, make, 3)
    assert ray.get(on(cluster, 2, total, ref)) == expected(3)
    cluster.kill_node(cluster.nodes[1])
    assert ray.get(ref).sum() == expected(3)
    assert ray.get(on(cluster, 0, total, ref)) == expected(3)


def test_an_object_is_lost_with_the_last_node_that_has_it(cluster: LocalCluster) -> None:
    ref, kept = on(cluster, 1, make, 3), on(cluster, 1, make, 2)
    ray.wait([ref], fetch_local=False)
    array = ray.get(kept)
    cluster.kill_node(cluster.nodes[1])
    with pytest.raises(ObjectLostError, match=r"All copies of .* have been lost due to node"):
        ray.get(ref, timeout=20)
    with pytest.raises(RayTaskError, match="ObjectLostError"):
        ray.get(on(cluster, 1, total, ref), timeout=20)
    assert array.sum() == expected(2)


def test_an_object_is_lost_with_its_owner(cluster: LocalCluster) -> None:
    (inner,) = ray.get(on(cluster, 1, own, 2))
    cluster.kill_node(cluster.nodes[1])
    with pytest.raises(OwnerDiedError):
        ray.get(inner, timeout=20)


def test_a_get_ends_when_its_time_is_up_and_may_be_repeated(cluster: LocalCluster) -> None:
    ref = on(cluster, 1, make, 3)
    ray.wait([ref], fetch_local=False)
    cluster.partition(cluster.nodes[1])
    with pytest.raises(GetTimeoutError):
        ray.get([ref], timeout=0.2)
    with pytest.raises(GetTimeoutError):
        ray.get([ref], timeout=0)
    assert ray.wait([ref], timeout=0.1) == ([], [ref])
    cluster.heal()
    assert ray.get([ref], timeout=30)[0].sum() == expected(3)


def test_a_cancelled_await_leaves_the_object_alone(cluster: LocalCluster) -> None:
    ref = on(cluster, 1, make, 3)
    ray.wait([ref], fetch_local=False)

    async def read() -> float:
        cluster.partition(cluster.nodes[1])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ref, 0.2)
        cluster.heal()
        return float((await ref).sum())

    assert asyncio.run(read()) == expected(3)


def test_producers_that_wait_for_room_let_those_run_who_will_make_some() -> None:
    with LocalCluster(num_cpus=1, object_store_memory=100 * MB, workers="threads"):
        made = [make.remote(20) for _ in range(8)]
        totals = [total.remote(each) for each in made]  # behind all of these in the queue
        del made
        assert ray.get(totals, timeout=50) == [expected(20)] * 8
