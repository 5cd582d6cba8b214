"""What type checkers must take, and what they must find: read by mypy and pyright, never run."""

import concurrent.futures
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from typing import Any, NoReturn, assert_type

import raylite as ray
from raylite import ObjectRef, ObjectRefGenerator, aio
from raylite._map import Map
from raylite._remote import RemoteFunction
from raylite.exceptions import RayError
from raylite.util import Executor
from raylite.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@ray.remote
def weigh(item: int, unit: str = "g", *, scale: float = 1.0) -> int:
    return item


@ray.remote(num_cpus=2, max_calls=3, resources={"disk": 1})
def name(item: int) -> str:
    return str(item)


@ray.remote
def total(*items: int, **named: str) -> float:
    return sum(items)


@ray.remote
def nothing() -> None: ...


@ray.remote
def refuse(item: int) -> NoReturn:
    raise ValueError(item)


@ray.remote
def whatever(item: Any) -> Any:
    return item


@ray.remote
def rows(items: list[int], size: int | None = None) -> list[list[int]]:
    return [items]


@ray.remote(num_returns=2)
def halves(items: list[int]) -> tuple[list[int], list[int]]:
    return items, items


@ray.remote(num_returns=0)
def silent(item: int) -> None: ...


@ray.remote
def count(limit: int) -> Iterator[int]:
    yield from range(limit)


@ray.remote(num_cpus=0)
def lines(path: str) -> Generator[str, None, int]:
    yield path
    return 1


@ray.remote(num_returns=3)
def three() -> Iterator[int]:
    yield from range(3)


@ray.remote
async def fetch(url: str, *, timeout: float = 1.0) -> bytes:
    return url.encode()


one, text, numbers = ray.put(1), ray.put("kg"), ray.put([1])
assert_type(one, ObjectRef[int])

# Calls, by place and by name.
assert_type(weigh.remote(1), ObjectRef[int])
assert_type(weigh.remote(1, "kg", scale=2), ObjectRef[int])
assert_type(weigh.remote(item=1, unit="kg"), ObjectRef[int])
assert_type(name.remote(1), ObjectRef[str])
assert_type(total.remote(), ObjectRef[float])
assert_type(total.remote(1, 2, 3, unit="kg"), ObjectRef[float])
assert_type(nothing.remote(), ObjectRef[None])
assert_type(rows.remote([1, 2]), ObjectRef[list[list[int]]])
assert_type(rows.remote([1, 2], None), ObjectRef[list[list[int]]])
assert_type(ray.remote(len).remote([1]), ObjectRef[int])
refuse.remote(1)
whatever.remote(object())

# References where the function takes their values.
assert_type(weigh.remote(one), ObjectRef[int])
assert_type(weigh.remote(one, "kg"), ObjectRef[int])
assert_type(weigh.remote(1, text), ObjectRef[int])
assert_type(weigh.remote(weigh.remote(1), name.remote(one), scale=2.0), ObjectRef[int])
assert_type(total.remote(1, one, 3, one), ObjectRef[float])
assert_type(rows.remote(numbers, one), ObjectRef[list[list[int]]])

# Results.
assert_type(ray.get(weigh.remote(1)), int)
assert_type(ray.get([weigh.remote(1) for _ in range(3)], timeout=1), list[int])
assert_type(ray.get(one, return_exceptions=True), int | RayError)
assert_type(ray.get([one], return_exceptions=True), list[int | RayError])
assert_type(ray.wait([one, one]), tuple[list[ObjectRef[int]], list[ObjectRef[int]]])
assert_type(one.exception(), RayError | None)
assert_type(one.size, int | None)
assert_type(one.future().result(), int)
wider: ObjectRef[object] = one


async def read() -> None:
    assert_type(await weigh.remote(1), int)


# Several results, and none.
assert_type(halves.remote([1]), list[ObjectRef[Any]])
assert_type(silent.remote(1), None)
left, right = halves.remote([1])

# Generators, and functions that await.
assert_type(count.remote(3), ObjectRefGenerator[int])
assert_type(count.remote(one), ObjectRefGenerator[int])
assert_type(lines.remote("x"), ObjectRefGenerator[str])
assert_type(count.options(num_cpus=1).remote(3), ObjectRefGenerator[int])
assert_type(ray.get(count.remote(3)), ObjectRefGenerator[int])
assert_type(three.remote(), list[ObjectRef[Any]])
assert_type(fetch.remote("x", timeout=2), ObjectRef[bytes])
assert_type(ray.get(fetch.remote(text)), bytes)
assert_type(ray.wait([count.remote(3)])[0], list[ObjectRefGenerator[int]])
for ref in count.remote(3):
    assert_type(ref, ObjectRef[int])


async def read_on() -> None:
    async for ref in count.remote(3):
        assert_type(await ref, int)
    assert_type(await aio.get([one]), list[int])
    assert_type(await aio.get(one, return_exceptions=True), int | RayError)
    assert_type(await aio.gather(*[one, one]), list[int])
    assert_type(await aio.gather(one, text), tuple[int, str])
    assert_type(await aio.gather(one, text, one, text, one), tuple[int, str, int, str, int])
    outcomes = await aio.gather(one, text, return_exceptions=True)
    assert_type(outcomes, tuple[int | RayError, str | RayError])
    async for done in aio.as_completed([one]):
        assert_type(done, ObjectRef[int])
    assert_type(
        await aio.wait([one, one], timeout=1), tuple[list[ObjectRef[int]], list[ObjectRef[int]]]
    )
    assert_type(await aio.put("x"), ObjectRef[str])


# Tasks of a group.
async def start() -> None:
    async with aio.TaskGroup() as group:
        assert_type(group.start(weigh, 1), ObjectRef[int])
        assert_type(group.start(weigh, 1, "kg", scale=2), ObjectRef[int])
        assert_type(group.start(weigh, item=1, unit="kg"), ObjectRef[int])
        assert_type(group.start(weigh, one), ObjectRef[int])
        assert_type(group.start(weigh, 1, text, scale=2.0), ObjectRef[int])
        assert_type(group.start(weigh.options(num_cpus=2), one, "kg"), ObjectRef[int])
        assert_type(group.start(total, 1, one, 3), ObjectRef[float])
        assert_type(group.start(nothing), ObjectRef[None])
        assert_type(group.start(rows, numbers, one), ObjectRef[list[list[int]]])
        assert_type(group.start(halves, [1]), list[ObjectRef[Any]])
        assert_type(group.start(count, one), ObjectRefGenerator[int])
        assert_type(group.start(fetch, text, timeout=2), ObjectRef[bytes])
        group.start(refuse, 1)
        group.start(whatever, object())


# A map, in order.
for weight in weigh.map([1, 2, 3]):
    assert_type(weight, ObjectRef[int])
assert_type(weigh.map(range(3), "abc"), Map[int])
assert_type(weigh.map([one, one]), Map[int])
assert_type(weigh.map([1, one], [text, "kg"], chunksize=2), Map[int])
assert_type(weigh.options(num_cpus=2).map([1]), Map[int])
assert_type(total.map([1], [2], [one]), Map[float])
assert_type(total.map([1], [2], [3], [4], [5], [6]), Map[float])
assert_type(name.map(weigh.map([1])), Map[str])
assert_type(rows.map([[1], [2]]), Map[list[list[int]]])
assert_type(fetch.map(["x"]), Map[bytes])
assert_type(nothing.options(name="none"), RemoteFunction[Callable[[], None], ObjectRef[None]])
whatever.map([1, "x"])


# An executor.
def double(number: int, times: int = 1) -> int:
    return number * 2


async def respond(request: str) -> bytes:
    return request.encode()


with Executor(num_cpus=2) as executor:
    assert_type(executor.submit(double, 1), Future[int])
    assert_type(executor.submit(double, 1, times=2), Future[int])
    assert_type(executor.submit(double, one, one), Future[int])
    assert_type(executor.submit(respond, "x"), Future[bytes])
    assert_type(executor.submit(respond, text), Future[bytes])
    assert_type(executor.submit(weigh, 1, "kg"), Future[int])
    assert_type(executor.submit(weigh, one, "kg", scale=2.0), Future[int])
    assert_type(executor.submit(fetch, "x"), Future[bytes])
    assert_type(list(executor.map(double, [1, 2])), list[int])
standard: concurrent.futures.Executor = executor
Executor(4, timeout=2, max_retries=0, max_calls=1, runtime_env={"env_vars": {"A": "b"}})

# Options keep the types.
assert_type(weigh.options(num_cpus=2, name="heavy").remote(1, "kg"), ObjectRef[int])
assert_type(weigh.options(scheduling_strategy="SPREAD").remote(one), ObjectRef[int])
node = NodeAffinitySchedulingStrategy("0" * 56, soft=False)
assert_type(weigh.options(scheduling_strategy=node).remote(1), ObjectRef[int])
assert_type(weigh.options(num_returns=2).remote(1), list[ObjectRef[Any]])
assert_type(weigh.options(num_returns=0).remote(1), None)
assert_type(name.options(retry_exceptions=[ValueError], max_retries=-1).remote(1), ObjectRef[str])
kinds: RemoteFunction[Callable[[int], str], ObjectRef[str]] = name
assert_type(name.options(timeout=2.5, deadline=None).remote(1), ObjectRef[str])
