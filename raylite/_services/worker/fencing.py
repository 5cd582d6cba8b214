"""Fencing: carries out what `Fences` decides for one owner."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from raylite._kernel.link import Link
from raylite._machines.fences import Ask, Effect, Fences, Part, Withdraw
from raylite._protocol import raylet
from raylite._types.keys import LeaseID
from raylite._types.strategies import NodeKey
from raylite._wire import hot
from raylite.exceptions import RayError

AGAIN = 1.0  # seconds until somebody who could not help is asked again


class Fencing:
    """The raylets that an owner cannot reach, and what becomes of their leases.

    Args:
        local: The link to this node's raylet, which passes the word on.
        id: The owner's.
        spawn: Starts a task that ends with the owner.
        part: Called when leases of a lessor are no more, with what was heard of them.
    """

    def __init__(
        self,
        local: Link,
        id: bytes,
        spawn: Callable[[Coroutine[Any, Any, Any], str], "asyncio.Task[Any]"],
        part: Callable[[Link, Sequence[LeaseID], hot.Fenced], None],
    ) -> None:
        self._local = local
        self._id = id
        self._spawn = spawn
        self._part = part
        self.fences: Fences = Fences()
        self._asking: dict[Link, asyncio.Task[Any]] = {}

    def lost(self, lessor: Link, node: NodeKey, leases: Sequence[LeaseID]) -> None:
        """A lessor cannot be reached."""
        asks = self.fences.lost(lessor, node, leases)
        self._perform(asks)
        if asks and not lessor.is_ended:
            self._spawn(self._await_reach(lessor), "wait for a lessor")

    def ended(self, lessor: Link) -> None:
        """A lessor is known to be gone, with all that it lent."""
        self._perform(self.fences.settled(lessor))

    def shuns(self, link: Link, node: NodeKey, visited: Sequence[bytes]) -> bool:
        """Whether to wish for a lease elsewhere than at this raylet."""
        if link.is_attached:
            self.fences.reached(node)
        return self.fences.shuns(node, [NodeKey(each) for each in visited])

    def _perform(self, effects: list[Effect], heard: hot.Fenced | None = None) -> None:
        for effect in effects:
            match effect:
                case Ask(lessor, node, leases):
                    assert isinstance(lessor, Link)
                    fence = hot.Fence(node, self._id, leases)
                    self._asking[lessor] = self._spawn(self._ask(lessor, fence), "ask for a fence")
                case Withdraw(lessor):
                    assert isinstance(lessor, Link)
                    if (asking := self._asking.pop(lessor, None)) is not None:
                        asking.cancel()
                case Part(lessor, leases):
                    assert isinstance(lessor, Link)
                    assert heard is not None
                    self._asking.pop(lessor, None)
                    self._part(lessor, leases, heard)

    async def _ask(self, lessor: Link, fence: hot.Fence) -> None:
        try:
            fenced = await raylet.Fences(self._local).ask(fence)
        except RayError:  # the GCS is away, or the node not known to it yet
            if not self._local.is_ended:
                await asyncio.sleep(AGAIN)
                self._perform(self.fences.unanswered(lessor))
        else:
            self._perform(self.fences.fenced(lessor), fenced)

    async def _await_reach(self, lessor: Link) -> None:
        try:
            await lessor.wait_attached()
        except RayError:  # its session has ended, which says nothing of what it lent
            return
        self._perform(self.fences.settled(lessor))
