"""Fates: finds out whether a process is dead whose session has ended without anybody's having said so."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from raylite._kernel.link import Link
from raylite._protocol import raylet
from raylite._wire import hot
from raylite.exceptions import RayError

PATIENCE = 10.0  # seconds that the raylet and the GCS have to answer; then it is dialled again


class Fates:
    """Asks this node's raylet, about each process once at a time.

    Args:
        raylet_link: The link to it.
        spawn: Starts a task that ends with the service that asks.
    """

    def __init__(
        self,
        raylet_link: Link,
        spawn: Callable[[Coroutine[Any, Any, bool], str], "asyncio.Task[bool]"],
    ) -> None:
        self._raylet = raylet_link
        self._spawn = spawn
        self._asking: dict[str, asyncio.Task[bool]] = {}

    async def is_dead(self, address: str) -> bool:
        """Return whether a process is known to be dead; False also if nobody can tell now.

        To a process that has lost its raylet, and with it the cluster, all others are dead: nobody will ever tell.
        """
        asking = self._asking.get(address)
        if asking is None:
            asking = self._asking[address] = self._spawn(self._ask(address), "ask for a fate")
        await asyncio.wait([asking])
        return not asking.cancelled() and asking.result()

    async def _ask(self, address: str) -> bool:
        try:
            async with asyncio.timeout(PATIENCE):
                fate = await raylet.Fates(self._raylet).ask(hot.AskFate(address))
        except (RayError, TimeoutError):
            return self._raylet.is_ended
        finally:
            del self._asking[address]
        return fate.is_dead
