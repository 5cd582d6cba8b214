"""Seams: the few things a process takes from the world, which a simulation replaces.

Time is the running loop's. Randomness comes in named streams, so that one more draw in one
component does not shift another's. Blocking calls leave the loop through `Seams.to_thread`.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, TypeVar

from msgspec import Struct, field

T = TypeVar("T")


def now() -> float:
    """Seconds on the running loop's clock, which only goes forward."""
    return asyncio.get_running_loop().time()


def monotonic() -> float:
    """Seconds on the machine's clock, for threads without a loop; never in simulated code."""
    return time.monotonic()


def boottime() -> float:
    """Seconds on the clock that all processes of a machine have in common, and that counts while it sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall() -> float:
    """Seconds since the epoch, for people; never for deciding anything."""
    return time.time()


def system_random(name: str) -> Random:
    """A stream of randomness seeded by the system; the name only matters in a simulation."""
    return Random(secrets.randbits(64))


async def run_in_thread(function: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, function, *args)


class Seams(Struct, frozen=True):
    """What a host takes from the world. The default is the real one.

    Args:
        random: Returns the stream of randomness with a name.
        to_thread: Runs a blocking function off the loop.
    """

    random: Callable[[str], Random] = field(default=system_random)
    to_thread: Callable[..., Awaitable[Any]] = field(default=run_in_thread)
