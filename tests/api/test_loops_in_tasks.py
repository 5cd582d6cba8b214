"""Plain tasks that run an event loop of their own: what they await runs, though there is one CPU."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import raylite as ray
from raylite import aio
from raylite.testing import LocalCluster

PATIENCE = 30.0


@pytest.fixture(scope="module", autouse=True)
def one_cpu() -> Iterator[LocalCluster]:
    with LocalCluster(num_cpus=1, workers="threads") as cluster:
        yield cluster


@ray.remote
def double(x: int) -> int:
    return 2 * x


@ray.remote
def count(items: int) -> Iterator[int]:
    yield from range(items)


async def by_await() -> Any:
    return await double.remote(2)


async def by_gather() -> Any:
    return sum(await asyncio.gather(*[double.remote(1) for _ in range(2)]))


async def by_get() -> Any:
    return (await aio.get([double.remote(2)]))[0]


async def by_wait() -> Any:
    ((ready,), _) = await aio.wait([double.remote(2)])
    return await ready


async def by_group() -> Any:
    async with aio.TaskGroup() as group:
        ref = group.start(double, 2)
    return await ref


async def by_as_completed() -> Any:
    return sum([await ref async for ref in aio.as_completed([double.remote(2)])])


async def by_generator() -> Any:
    return 1 + sum([await ref async for ref in count.remote(3)])


async def by_map() -> Any:
    return sum([await ref async for ref in double.map([1, 1])])


async def with_a_blocking_get_meanwhile() -> Any:
    later = asyncio.ensure_future(by_await())
    await asyncio.sleep(0)
    ready = ray.put(0)
    ray.wait([double.remote(1)])
    return ray.get(ready) + await later


WAYS = [
    by_await, by_gather, by_get, by_wait, by_group, by_as_completed, by_generator, by_map,
    with_a_blocking_get_meanwhile,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_what_a_plain_task_awaits_has_its_cpu(way: Callable[[], Any]) -> None:
    @ray.remote
    def run() -> Any:
        return asyncio.run(way())

    assert ray.get(run.remote(), timeout=PATIENCE) == 4


def test_a_loop_that_a_task_leaves_waiting_lends_nothing_to_the_next() -> None:
    """Its worker takes tasks again, and lends its CPU once more for the next that awaits."""

    @ray.remote
    def leave() -> None:
        loop = asyncio.new_event_loop()
        never = asyncio.Event()
        waiting = loop.create_task(_await(double.remote(1), never))
        loop.call_soon(loop.stop)
        loop.run_forever()
        waiting.cancel()
        loop.run_until_complete(asyncio.wait([waiting]))
        loop.close()

    @ray.remote
    def run() -> Any:
        return asyncio.run(by_await())

    ray.get([leave.remote() for _ in range(3)], timeout=PATIENCE)
    assert ray.get([run.remote() for _ in range(3)], timeout=PATIENCE) == [4, 4, 4]
    assert ray.get([double.remote(n) for n in range(20)], timeout=PATIENCE)[-1] == 38


async def _await(ref: Any, never: asyncio.Event) -> None:
    await ref
    await never.wait()
