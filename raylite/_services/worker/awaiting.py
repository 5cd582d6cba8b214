"""Waiting for objects in a coroutine, on any event loop: the twins of `Core.get` and `Core.wait`.

However many objects somebody waits for, the loop is woken once, and nothing is a task of its own.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from raylite._services.worker.copies import GET
from raylite._services.worker.core import Core, timed_out
from raylite._services.worker.objects import Entry, Fetching, LoopFuture, ObjectRef, W
from raylite._services.worker.ready import has_ready, never, split
from raylite._wire import pickling
from raylite.exceptions import RaySystemError


class Countdown(LoopFuture):
    """Wakes a coroutine when so many values have come, or with the first error."""

    __slots__ = ("count", "is_woken", "on_woken", "raises")
    is_fetching = False

    def __init__(self, count: int, *, raises: bool) -> None:
        super().__init__()
        self.count = count
        self.raises = raises
        self.is_woken = False
        self.on_woken: Callable[[], None] | None = None

    def ready(self, entry: Entry) -> None:
        self.count -= 1
        if (self.count == 0 or (self.raises and entry.is_error)) and not self.is_woken:
            self.is_woken = True
            super().ready(entry)

    @property
    def is_waiting(self) -> bool:
        """Whether there is something left to wait for."""
        return self.count > 0


class FetchingCountdown(Fetching, Countdown):
    """Wakes a coroutine when so many objects are here."""

    def __init__(
        self, count: int, away: Callable[[Entry], bool], fetch: Callable[[Entry, Fetching], None]
    ) -> None:
        Fetching.__init__(self, away, fetch)
        Countdown.__init__(self, count, raises=False)

    def arrived(self, entry: Entry) -> None:
        Countdown.ready(self, entry)


class Arrivals(LoopFuture):
    """Collects entries whose values have come, for a coroutine or a callback of the loop that made it.

    However many come before the loop has looked, it is woken once: `future` is done then. Who
    begins to look calls `rearm` first, so that whatever comes later wakes the loop again.
    """

    __slots__ = ("_is_woken", "arrived")

    def __init__(self) -> None:
        super().__init__()
        self.arrived: deque[Entry] = deque()
        self._is_woken = False

    def ready(self, entry: Entry) -> None:
        self.arrived.append(entry)
        if not self._is_woken:
            self._is_woken = True
            super().ready(entry)

    def rearm(self) -> None:
        """Be woken again, by another future."""
        self.future = self.loop.create_future()
        self._is_woken = False

    def silence(self) -> None:
        """Be woken no more."""
        self._is_woken = True


async def get(
    core: Core, refs: Sequence[ObjectRef[Any]], seconds: float | None, *, raises: bool
) -> list[Any]:
    """Return the values of these, in order; raise the first error there is, or return errors too."""
    entries = [ref._entry for ref in refs]
    missing = list(dict.fromkeys(entry for entry in entries if entry.value is None))
    countdown = Countdown(len(missing), raises=raises)
    only_looks = seconds is not None and seconds <= 0
    limit = asyncio.timeout(None if only_looks else seconds)
    brought: dict[Entry, memoryview | BaseException] = {}
    try:
        async with limit:
            if missing and not (raises and any(entry.is_error for entry in entries)):
                await _arrive(core, missing, countdown, only_looks=only_looks)
            if raises:
                core.raise_first(entries)
            if any(entry.value is None for entry in missing):
                raise timed_out()
            if away := [entry for entry in dict.fromkeys(entries) if core.is_away(entry)]:
                brought = await _bring(core, away, raises=raises, only_looks=only_looks)
    except TimeoutError:
        if limit.expired():
            raise timed_out() from None
        raise
    return [_load(core, entry, brought.get(entry), raises=raises) for entry in entries]


async def wait(
    core: Core,
    refs: list[W],
    count: int,
    seconds: float | None,
    *,
    fetch_local: bool,
) -> tuple[list[W], list[W]]:
    """Split references into at most `count` whose objects are there, and the rest."""
    away = core.is_away if fetch_local else never
    if has_ready(refs, count, away):
        return split(refs, count, (), away)
    missing = [e for ref in refs if (e := ref._entry).value is None or away(e)]
    waiter = FetchingCountdown(count - len(refs) + len(missing), away, core.copies.fetch)
    only_looks = seconds is not None and seconds <= 0
    try:
        async with asyncio.timeout(None if only_looks else seconds):
            await _arrive(core, missing, waiter, only_looks=only_looks)
    except TimeoutError:
        pass
    finally:
        core.end_fetching(missing, waiter)
    return split(refs, count, waiter.here, away)


async def _arrive(core: Core, entries: list[Entry], waiter: Countdown, *, only_looks: bool) -> None:
    """Wait until the waiter has what it waits for, or only let it see what has arrived."""
    core.begin_wait(entries, waiter, is_task=False)
    try:
        if only_looks:
            await core.ask(_settle, core, waiter)
        else:
            core.awaits(waiter.future)
            await waiter.future
    finally:
        core.end_wait(entries, waiter, is_task=False)


async def _settle(core: Core, waiter: Countdown) -> None:
    if waiter.is_fetching:
        await core.copies.settle()


async def _bring(
    core: Core, away: list[Entry], *, raises: bool, only_looks: bool
) -> dict[Entry, memoryview | BaseException]:
    """Have objects brought to this node, and return views of them; those that cannot be: why not."""
    groups = [away] if raises else [[entry] for entry in away]
    bringing = [core.copies.bring(group, GET) for group in groups]
    brought: dict[Entry, memoryview | BaseException] = {}
    try:
        waited = [asyncio.wrap_future(each) for each in bringing]
        if only_looks:
            await core.ask(core.copies.settle)
        await asyncio.wait(waited, timeout=0 if only_looks else None)
        for group, each in zip(groups, waited, strict=True):
            if not each.done():
                raise timed_out()
            if each.cancelled():
                raise RaySystemError("the session that this belongs to has ended")
            if (error := each.exception()) is None:
                brought.update(each.result())
            elif raises:
                raise error
            else:
                brought[group[0]] = error
        return brought
    finally:
        for future in bringing:
            future.cancel()


def _load(
    core: Core, entry: Entry, brought: memoryview | BaseException | None, *, raises: bool
) -> Any:
    try:
        if isinstance(brought, BaseException):
            raise brought
        return core.load(entry) if brought is None else pickling.load_value(brought)
    except Exception as error:
        if raises:
            raise
        return error.with_traceback(None)
