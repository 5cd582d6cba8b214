"""A topic: one publisher, many subscribers, each seeing the present and then every change.

A subscriber that falls too far behind is told so with `GapError` and must list again; a change
is never lost silently.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from raylite.exceptions import UnavailableError

T = TypeVar("T")

DEPTH = 10_000  # changes a subscriber may be behind


class GapError(UnavailableError):
    """A subscriber fell behind by more than the topic keeps: list again, then watch."""


class Topic(Generic[T]):
    """Changes, published to whoever subscribes."""

    def __init__(self, depth: int = DEPTH) -> None:
        self._depth = depth
        self._subscribers: dict[_Subscriber[T], None] = {}

    def publish(self, change: T) -> None:
        """Hand a change to every subscriber; never blocks."""
        for subscriber in self._subscribers:
            subscriber.add(change)

    @contextmanager
    def subscribe(self, present: Iterable[T] = ()) -> Iterator[AsyncIterator[T]]:
        """Iterate over the items given as present, then over every later change."""
        subscriber = _Subscriber(deque(present), self._depth)
        self._subscribers[subscriber] = None
        try:
            yield subscriber
        finally:
            del self._subscribers[subscriber]

    def __len__(self) -> int:
        return len(self._subscribers)


class _Subscriber(AsyncIterator[T]):
    """What one subscriber has not read yet. The present does not count as being behind."""

    def __init__(self, present: deque[T], depth: int) -> None:
        self._items = present
        self._depth = depth + len(present)
        self._has_gap = False
        self._waiter: asyncio.Future[None] | None = None

    def add(self, change: T) -> None:
        if len(self._items) >= self._depth:
            self._has_gap = True
            self._items.clear()
        elif not self._has_gap:
            self._items.append(change)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def __anext__(self) -> T:
        while not self._items:
            if self._has_gap:
                raise GapError("this subscriber was too slow and missed changes; list again")
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._items.popleft()
