"""Monte Carlo: the price of an Asian option, better with each batch that completes, and a progress bar."""

import asyncio
import math
import random
import sys

import raylite as ray
from raylite import aio

BATCHES, PATHS, STEPS = 64, 250, 50
SPOT, STRIKE, RATE, VOLATILITY, YEARS = 100.0, 100.0, 0.03, 0.25, 1.0


@ray.remote
def simulate(seed: int) -> tuple[float, float]:
    """Return the sum of the discounted payoffs of some random paths, and that of their squares."""
    source = random.Random(seed)
    drift = (RATE - VOLATILITY**2 / 2) * YEARS / STEPS
    spread = VOLATILITY * math.sqrt(YEARS / STEPS)
    total = squares = 0.0
    for _ in range(PATHS):
        price, prices = SPOT, 0.0
        for _ in range(STEPS):
            price *= math.exp(drift + spread * source.gauss(0, 1))
            prices += price
        payoff = max(prices / STEPS - STRIKE, 0.0) * math.exp(-RATE * YEARS)
        total += payoff
        squares += payoff**2
    return total, squares


def show(done: int, total: float, squares: float) -> None:
    """Draw the bar and the estimate so far, over the line before on a terminal."""
    count = done * PATHS
    mean = total / count
    error = math.sqrt((squares / count - mean**2) / count)
    bar = "#" * (40 * done // BATCHES)
    end = "\r" if sys.stdout.isatty() and done < BATCHES else "\n"
    print(f"[{bar:40}] {done:3}/{BATCHES}  {mean:.3f} +- {error:.3f}", end=end, flush=True)


async def main() -> None:
    async with aio.init(num_cpus=2):
        total = squares = 0.0
        done = 0
        async for ref in aio.as_completed(simulate.remote(seed) for seed in range(BATCHES)):
            one, other = await ref
            total, squares, done = total + one, squares + other, done + 1
            if done % 8 == 0 or sys.stdout.isatty():
                show(done, total, squares)


if __name__ == "__main__":
    asyncio.run(main())
