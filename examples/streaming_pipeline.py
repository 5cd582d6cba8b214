"""A pipeline that streams: measurements are read, cleaned and summed up while they come.

With `_generator_backpressure_num_objects` the source waits for its reader, so that there are a few
batches at a time, however many will come. Each stage is a task, and a batch goes from one to the
next as a reference, without passing through this program.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Iterator

import numpy as np

import raylite as ray

Batch = np.ndarray[tuple[int], np.dtype[np.float64]]


@ray.remote(_generator_backpressure_num_objects=4)
def measure(batches: int, size: int) -> Iterator[Batch]:
    """Read a sensor, which fails at times, batch by batch."""
    for number in range(batches):
        times = np.arange(number * size, (number + 1) * size) / 1000
        yield np.where(times % 0.05 < 0.001, math.nan, 20 + np.sin(times))


@ray.remote
def clean(batch: Batch) -> Batch:
    """Leave out what was not measured."""
    return batch[~np.isnan(batch)]


@ray.remote
def summary(batch: Batch) -> tuple[int, float]:
    """Count and sum."""
    return len(batch), float(batch.sum())


async def ahead(batches: int, size: int, width: int) -> AsyncIterator[tuple[int, float]]:
    """Yield summaries in order, with `width` batches in the pipeline at a time."""
    under_way: asyncio.Queue[ray.ObjectRef[tuple[int, float]]] = asyncio.Queue()
    async for batch in measure.remote(batches, size):
        under_way.put_nowait(summary.remote(clean.remote(batch)))
        if under_way.qsize() == width:
            yield await under_way.get_nowait()
    while not under_way.empty():
        yield await under_way.get_nowait()


async def main() -> None:
    """Show the mean as it becomes more certain."""
    count, total = 0, 0.0
    async for n, part in ahead(batches=40, size=20_000, width=8):
        count, total = count + n, total + part
    print(f"{count} measurements, mean {total / count:.3f}")


if __name__ == "__main__":
    with ray.init(num_cpus=2):
        asyncio.run(main())
