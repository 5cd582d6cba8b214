"""What type checkers must refuse: each line that says so, and no other. Read, never run."""

from collections.abc import Iterator
from concurrent.futures import Future

import raylite as ray
from raylite import aio
from raylite.util import Executor


@ray.remote
def weigh(item: int, unit: str = "g", *, scale: float = 1.0) -> int:
    return item


@ray.remote
def name(item: int) -> str:
    return str(item)


@ray.remote
def total(*items: int) -> float:
    return sum(items)


@ray.remote
def count(limit: int) -> Iterator[int]:
    yield from range(limit)


@ray.remote
async def fetch(url: str) -> bytes:
    return url.encode()


@ray.remote
def named(item: int, *, unit: str) -> int:
    return item


one, text = ray.put(1), ray.put("kg")

weigh.remote("1")  # refused
weigh.remote()  # refused
weigh.remote(1, 2)  # refused
weigh.remote(1, "kg", 2.0)  # refused
weigh.remote(1, scale="2")  # refused
weigh.remote(1, weight=2)  # refused
weigh.remote(text)  # refused
weigh.remote(1, one)  # refused
weigh.remote(one, 2)  # refused
weigh.remote(one, "kg", one)  # refused
weigh.remote([one])  # refused
name.remote(name.remote(1))  # refused
total.remote("1")  # refused
total.remote(1, text)  # refused
count.remote("3")  # refused
count.remote(count.remote(1))  # refused
fetch.remote(1)  # refused
weigh(1)  # refused
weigh.options(num_cpu=2)  # refused
weigh.options(num_cpus="2")  # refused
weigh.options(max_calls=2)  # refused
weigh.options(scheduling_strategy="SPRED")  # refused
ray.remote(num_gpuz=1)  # refused
ray.remote(max_retries="3")  # refused
ray.get((one, one))  # refused
ray.get(1)  # refused
ray.get([1])  # refused
ray.wait(one)  # refused
number: str = ray.get(one)  # refused
words: list[str] = ray.get([one])  # refused


async def start() -> None:
    async with aio.TaskGroup() as group:
        group.start(weigh, "1")  # refused
        group.start(weigh)  # refused
        group.start(weigh, 1, 2)  # refused
        group.start(weigh, 1, weight=2)  # refused
        group.start(weigh, text)  # refused
        group.start(weigh, one, one)  # refused
        group.start(weigh, [one])  # refused
        group.start(count, "3")  # refused
        group.start(fetch, one)  # refused
        group.start(len, [1])  # refused
        started: ray.ObjectRef[str] = group.start(weigh, 1)  # refused
    print(started)


weigh.map("abc")  # refused
weigh.map([1], [2])  # refused
weigh.map([text])  # refused
weigh.map([1], [one])  # refused
weigh.map([1], ["kg"], [2.0])  # refused
weigh.map()  # refused
weigh.map(1)  # refused
weigh.map([1], chunksize="all")  # refused
weigh.options(num_returns=2).map([1])  # refused
count.map([1])  # refused
named.map([1])  # refused


def double(number: int) -> int:
    return number * 2


with Executor() as executor:
    executor.submit(double, "1")  # refused
    executor.submit(double)  # refused
    executor.submit(double, text)  # refused
    executor.submit(double, 1, times=2)  # refused
    executor.submit(weigh, "1")  # refused
    executor.submit(weigh, 1, one)  # refused
    executor.submit(count, 1)  # refused
    future: Future[str] = executor.submit(double, 1)  # refused
Executor(num_cpu=1)  # refused
Executor(timeout="1")  # refused
Executor("2")  # refused
