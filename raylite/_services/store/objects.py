"""The Object service: where in the arena each object lies, and until when."""

import asyncio
from collections.abc import Callable, Hashable
from typing import Protocol

from raylite._kernel.alarm import Alarm
from raylite._kernel.arena import Arena
from raylite._kernel.link import Link
from raylite._kernel.network import Network
from raylite._kernel.seams import now
from raylite._kernel.service import Service, every, handles
from raylite._machines.memory import Allocated, Effect, Extent, Memory, Refused
from raylite._protocol import raylet
from raylite._wire import hot
from raylite.exceptions import ObjectStoreFullError, UnavailableError

WARM_STEP = 32 * 1024 * 1024  # bytes reserved ahead at a time, while the store is idle
WARM_AHEAD = 256 * 1024 * 1024


class Reader(Protocol):
    """A process that may view objects."""

    id: bytes
    link: Link


class ObjectService(Service, serves=(raylet.Objects,)):
    """Carries out what `Memory` decides."""

    def __init__(
        self,
        network: Network,
        memory: Memory,
        arena: Arena,
        reader_at: Callable[[Link], Reader],
        readers: Callable[[], list[bytes]],
        owners: Callable[[], list[bytes]],
    ) -> None:
        self._network = network
        self._memory = memory
        self._arena = arena
        self._reader_at = reader_at
        self._readers = readers
        self._owners = owners
        #: Called while somebody waits for room: evicts a copy, or returns False.
        self.evict: Callable[[], bool] = bool
        #: Called when there may be more room than before.
        self.on_freed: Callable[[], object] = bool
        self._waiting: dict[Hashable, asyncio.Future[Allocated]] = {}
        self._requests = 0
        self._used_since = 0
        self._alarm = Alarm(self._expire)

    @property
    def memory(self) -> Memory:
        """The machine, for those who report on it."""
        return self._memory

    @handles(raylet.Objects.allocate)
    async def allocate(self, request: hot.Allocate) -> hot.Allocation:
        if request.owner not in self._owners():
            raise UnavailableError("the object's owner is gone, so nobody could use or free it")
        return hot.Allocation(await self.reserve(request.id, request.size, request.owner))

    async def reserve(self, id: bytes, size: int, owner: bytes) -> int:
        """Find room and return where; cancelled, it leaves none behind."""
        self._requests += 1
        number = self._requests
        future: asyncio.Future[Allocated] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self._perform(self._memory.create(id, size, owner, now(), number))
        while self._memory.is_short and self.evict():
            pass
        try:
            allocated = await future
            for fresh in allocated.fresh:
                await self._network.seams.to_thread(self._arena.reserve, fresh.offset, fresh.size)
            self._memory.warmed(allocated.fresh)
        except asyncio.CancelledError:
            self._perform(self._memory.cancel(number))
            if future.done() and not future.cancelled() and not future.exception():
                self.discard(id)
            raise
        except ObjectStoreFullError:
            self.discard(id)
            raise
        finally:
            self._waiting.pop(number, None)
        return allocated.extent.offset

    def discard(self, id: bytes) -> None:
        """Free what nobody reads or writes; whoever waits for room may get it."""
        self._perform(self._memory.free(id))

    @handles(raylet.Objects.free)
    def free(self, freed: list[hot.Freed]) -> None:
        for each in freed:
            self.discard(each.id)
        self.on_freed()

    @handles(raylet.Objects.viewless)
    def viewless(self, owner: bytes) -> None:
        self._perform(self._memory.released(self._reader_at(self.caller).id, owner))

    def process_gone(self, id: bytes) -> None:
        """A process ended: it views nothing, and what it owned goes once nobody else views it."""
        self._perform(self._memory.reader_died(id))
        readers = frozenset(reader for reader in self._readers() if reader != id)
        self._perform(self._memory.owner_died(id, readers))
        self.on_freed()

    @every(seconds=0.5)
    async def warm(self) -> None:
        """Reserve a little ahead while nobody allocates: the first write is then a fast one."""
        used, self._used_since = self._used_since, self._requests
        if used != self._requests or not used:
            return  # busy, or never used at all
        statistics = self._memory.statistics()
        if statistics.warm >= min(WARM_AHEAD, statistics.capacity // 2):
            return
        ranges: tuple[Extent, ...] = self._memory.warm_ahead(WARM_STEP)
        try:
            for extent in ranges:
                await self._network.seams.to_thread(self._arena.reserve, extent.offset, extent.size)
        except ObjectStoreFullError:
            return  # the machine is short of memory; whoever needs it will be told
        self._memory.warmed(ranges)

    async def stopped(self) -> None:
        self._alarm.cancel()

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Allocated(request, _, _, _):
                    future = self._waiting.get(request)
                    if future is not None and not future.done():
                        future.set_result(effect)
                case Refused(request, message):
                    future = self._waiting.get(request)
                    if future is not None and not future.done():
                        future.set_exception(ObjectStoreFullError(message))
        self._alarm.set(self._memory.next_expiry())

    def _expire(self) -> None:
        self._perform(self._memory.expire(now()))
