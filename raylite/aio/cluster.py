"""A cluster's beginning and end, awaited."""

import asyncio
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from raylite import _init
from raylite._connect import RayContext
from raylite._kernel.shielded import in_thread


class Initializing:
    """What `init` returns: to be awaited, or entered by ``async with``."""

    def __init__(self, start: Callable[[], RayContext]) -> None:
        self._start = start

    def __await__(self) -> Generator[Any, None, RayContext]:
        return self._begin().__await__()

    async def __aenter__(self) -> RayContext:
        return await self._begin()

    async def __aexit__(self, *_: object) -> None:
        await shutdown()

    async def _begin(self) -> RayContext:
        was_there = _init.is_initialized()
        try:
            return await in_thread(self._start)
        except asyncio.CancelledError as cancelled:
            if cancelled.__cause__ is None and not was_there:  # it has started
                await shutdown()
            raise


def init(address: str | None = None, **options: Any) -> Initializing:
    """Connect to a cluster or start one, as `raylite.init` does, while the loop goes on.

    Nothing happens before the result is awaited or entered. ``async with`` leaves the cluster at
    the end of the block, also when it is cancelled meanwhile; whoever cancels the start gets that
    when nothing of it is left. After ``await init()``, `shutdown` does it, or the end of the
    program.

    Args:
        address: See `raylite.init`.
        **options: Its keywords.

    Raises:
        RayError: What `raylite.init` raises.

    Example:
        >>> async with init(num_cpus=2):  # doctest: +SKIP
        ...     print(await f.remote())
    """
    return Initializing(partial(_init.init, address, **options))


async def shutdown() -> None:
    """End this process's session as `raylite.shutdown` does, while the loop goes on.

    Cancelling it changes nothing but what is raised when all is done. Twice is as good as once.
    """
    await in_thread(_init.shutdown)
