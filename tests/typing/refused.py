"""What type checkers must refuse: each line that says so, and no other. Read, never run."""

from collections.abc import Iterator

import raylite as ray


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
