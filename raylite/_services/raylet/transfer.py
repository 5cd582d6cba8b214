"""The Transfer service: bringing objects of other nodes to this one, for its processes."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, assert_never

from msgspec import Struct, field

from raylite._kernel.alarm import Alarm
from raylite._kernel.arena import Arena
from raylite._kernel.link import Link
from raylite._kernel.network import Network
from raylite._kernel.seams import now
from raylite._kernel.service import Service, handles
from raylite._machines.admission import Priority
from raylite._machines.copies import Copy
from raylite._machines.pulls import (
    Abort,
    Allocate,
    AskLocations,
    Effect,
    Failed,
    Failure,
    Fulfilled,
    Pulls,
    RequestChunk,
    Seal,
    Unsubscribe,
    Write,
)
from raylite._protocol import raylet, worker
from raylite._services.raylet.cluster import ClusterService
from raylite._services.raylet.copies import CopyService, Store
from raylite._services.raylet.pool import Member
from raylite._types.keys import ObjectKey
from raylite._types.strategies import NodeKey
from raylite._wire import hot
from raylite._wire.hot import PullFailure
from raylite.exceptions import (
    ObjectLostError,
    ObjectStoreFullError,
    RayError,
    UnavailableError,
)

_AGAIN = 1.0  # seconds until a node whose session has ended is dialled again
_FAILURES = {
    Failure.LOST: PullFailure.LOST,
    Failure.OWNER_DIED: PullFailure.OWNER_DIED,
    Failure.NO_ROOM: PullFailure.NO_ROOM,
}


class Reader(Struct, frozen=True):
    """One pull of one process, by its own number."""

    process: bytes
    number: int


class _Wish(Struct):
    """What a process asked for, until it has let go of all of it."""

    done: asyncio.Future[hot.Pulled | None]  # a result is a failure
    missing: dict[ObjectKey, None] = field(default_factory=dict)
    pinned: dict[ObjectKey, Copy] = field(default_factory=dict)


class _Attempt(Struct):
    """The copy that an attempt at an object is to become, and what is under way for it."""

    copy: Copy
    has_room: bool = False
    tasks: "dict[asyncio.Task[None], None]" = field(default_factory=dict)


class TransferService(Service, serves=(raylet.Transfers,)):
    """Carries out what `Pulls` decides.

    A copy is pinned for everybody who waits for it in the moment in which it is complete: what a
    wish has got, it keeps until all of it is there and read.
    """

    def __init__(
        self,
        network: Network,
        arena: Arena,
        store: Store,
        cluster: ClusterService,
        copies: CopyService,
        member_at: Callable[[Link], Member],
    ) -> None:
        self._network = network
        self._arena = arena
        self._store = store
        self._cluster = cluster
        self._copies = copies
        self._member_at = member_at
        self._pulls = Pulls(cluster.local, 0, network.seams.random("pulls").random)
        self._wishes: dict[Reader, _Wish] = {}
        self._waiting: dict[ObjectKey, dict[Reader, None]] = {}
        self._attempts: dict[int, _Attempt] = {}
        self._alarm = Alarm(self._expire)
        self._out_of_reach: dict[NodeKey, None] = {}
        self._random = network.seams.random("relays")
        network.on_unreachable.append(self._unreachable)
        cluster.on_node_died.append(self._node_died)
        copies.on_owner_died.append(self._owner_died)

    @property
    def pulls(self) -> Pulls:
        """The machine, for those who report on it."""
        return self._pulls

    @property
    def unfinished(self) -> int:
        """How many pulls somebody waits for, or still reads."""
        return len(self._wishes)

    # ---- what this node's processes ask ---------------------------------------------------

    @handles(raylet.Transfers.pull)
    async def pull(self, request: hot.Pull) -> hot.Pulled:
        id = Reader(self._member_at(self.caller).id, request.number)
        if id in self._wishes:
            raise UnavailableError(f"there is a pull of the number {request.number} already")
        wish = self._wishes[id] = _Wish(asyncio.get_running_loop().create_future())
        try:
            self._begin(id, wish, request)
            failed = await wish.done
        except BaseException:
            self._end(id)
            raise
        if failed is not None:
            self._end(id)
            return failed
        copies = [wish.pinned[ObjectKey(each.key)] for each in request.objects]
        if not copies:
            self._end(id)
        return hot.Pulled(tuple(copy.offset for copy in copies))

    @handles(raylet.Transfers.unpin)
    def unpin(self, unpins: list[hot.Unpin]) -> None:
        process = self._member_at(self.caller).id
        for unpin in unpins:
            id = Reader(process, unpin.number)
            wish = self._wishes.get(id)
            if wish is None:
                continue
            if not unpin.key:
                self._end(id)
            elif (copy := wish.pinned.pop(ObjectKey(unpin.key), None)) is not None:
                self._copies.unpin(copy, id)
                if not wish.pinned:
                    del self._wishes[id]
                self.review()

    def process_gone(self, id: bytes) -> None:
        """A process of this node ended: it wants nothing and reads nothing."""
        for wish in [each for each in self._wishes if each.process == id]:
            self._end(wish)

    # ---- what owners say ------------------------------------------------------------------

    @handles(raylet.Transfers.located)
    def located(self, news: list[hot.Located]) -> None:
        for each in news:
            nodes = [NodeKey(node) for node in each.nodes]
            self._perform(self._pulls.located(ObjectKey(each.key), each.size, nodes, now()))

    @handles(raylet.Transfers.lost)
    def lost(self, keys: list[bytes]) -> None:
        for key in keys:
            self._perform(self._pulls.lost(ObjectKey(key), now()))

    def review(self) -> None:
        """The store may have more room than before, or less."""
        if self._waiting:
            coming = sum(each.copy.size for each in self._attempts.values() if each.has_room)
            room = self._store.memory.free_bytes + self._copies.copies.evictable
            self._perform(self._pulls.set_budget(room + coming, now()))

    # ---- inside ---------------------------------------------------------------------------

    def _begin(self, id: Reader, wish: _Wish, request: hot.Pull) -> None:
        """Pin what is here, and have the rest brought."""
        owners: dict[ObjectKey, bytes] = {}
        for each in request.objects:
            key = ObjectKey(each.key)
            if (copy := self._copies.copies.pin(key, id)) is not None:
                wish.pinned[key] = copy
            elif self._copies.owner(each.owner) is None:
                wish.done.set_result(hot.Pulled((), PullFailure.OWNER_DIED, key))
                return
            else:
                owners[key] = each.owner.encode()
        if not owners:
            wish.done.set_result(None)
            return
        for key in owners:
            wish.missing[key] = None
            self._waiting.setdefault(key, {})[id] = None
        self.review()
        self._perform(self._pulls.request(id, owners, Priority(request.priority), now()))
        for each in request.objects:
            nodes = [NodeKey(node) for node in each.nodes]
            if known := [node for node in nodes if self._cluster.address_of(node) is not None]:
                self._perform(self._pulls.located(ObjectKey(each.key), each.size, known, now()))

    def _end(self, id: Reader) -> None:
        wish = self._wishes.pop(id, None)
        if wish is None:
            return
        self._wait_no_more(id, wish)
        self._perform(self._pulls.cancel(id, now()))
        for copy in wish.pinned.values():
            self._copies.unpin(copy, id)
        self.review()

    def _wait_no_more(self, id: Reader, wish: _Wish) -> None:
        for key in wish.missing:
            waiting = self._waiting[key]
            del waiting[id]
            if not waiting:
                del self._waiting[key]
        wish.missing.clear()

    def _perform(self, effects: list[Effect], data: bytes | memoryview = b"") -> None:
        for effect in effects:
            match effect:
                case AskLocations(key, owner, without):
                    if (link := self._copies.owner(owner.decode())) is not None:
                        locate = hot.Locate(key, self._cluster.local, without)
                        worker.Locations(link).locate(locate)
                case Unsubscribe(key, owner):
                    if (link := self._copies.owner(owner.decode())) is not None:
                        worker.Locations(link).forget(hot.Locate(key, self._cluster.local))
                case Allocate(pull, key, size, owner):
                    room = key + pull.to_bytes(8, "little")
                    attempt = _Attempt(Copy(key, room, 0, size, owner.decode()))
                    self._attempts[pull] = attempt
                    self._start(attempt, self._allocate(pull, attempt), "find room")
                case RequestChunk(pull, source, key, offset, size, is_relayed):
                    chunk = hot.ReadChunk(key, offset, size)
                    read = self._read(pull, source, chunk, is_relayed=is_relayed)
                    self._start(self._attempts[pull], read, "read a chunk")
                case Write(pull, offset, size):
                    assert size == len(data)
                    self._arena.write(self._attempts[pull].copy.offset + offset, [data])
                case Seal(pull, key):
                    self._seal(self._attempts.pop(pull).copy)
                case Abort(pull):
                    self._abort(pull)
                case Fulfilled(request):
                    self._settle(request, None)
                case Failed(request, key, failure, message):
                    why = _FAILURES[failure]
                    self._settle(request, hot.Pulled((), why, key, message))
                case _:
                    assert_never(effect)
        self._alarm.set(self._pulls.next_expiry())

    def _start(self, attempt: _Attempt, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self.spawn(work, name)
        attempt.tasks[task] = None
        task.add_done_callback(lambda task: attempt.tasks.pop(task))

    async def _allocate(self, pull: int, attempt: _Attempt) -> None:
        copy = attempt.copy
        try:
            copy.offset = await self._store.reserve(copy.room, copy.size, self._cluster.local)
        except ObjectStoreFullError as error:
            self._perform(self._pulls.allocation_refused(pull, str(error.args[0]), now()))
        else:
            attempt.has_room = True
            self._perform(self._pulls.allocated(pull, now()))

    async def _read(
        self, pull: int, source: NodeKey, chunk: hot.ReadChunk, *, is_relayed: bool
    ) -> None:
        address = self._cluster.address_of(source)
        if address is None:
            self._perform(self._pulls.refused(pull, source, now()))
            return
        try:
            if is_relayed:
                data = await self._read_through_others(source, chunk)
            else:
                data = await raylet.Copies(self._network.connect(address)).read(chunk)
        except RayError:  # it has the object no more, or is gone itself: another may do
            if is_relayed or source not in self._out_of_reach:  # else it was asked for again
                self._perform(self._pulls.refused(pull, source, now()))
        else:
            arrived = self._pulls.arrived(pull, source, chunk.offset, len(data), now())
            self._perform(arrived, data)

    async def _read_through_others(self, source: NodeKey, chunk: hot.ReadChunk) -> memoryview:
        """Read from a node that cannot be reached, by way of one that reaches it."""
        ways = [node for node in self._cluster.nodes() if node not in self._out_of_reach]
        self._random.shuffle(ways)
        for node in ways:
            if (address := self._cluster.address_of(node)) is None:
                continue  # this one
            try:
                relays = raylet.Relays(self._network.connect(address))
                return await relays.read(hot.RelayChunk(source, chunk))
            except ObjectLostError:
                raise
            except RayError:  # it does not reach it either
                continue
        raise UnavailableError(f"no node that can be reached reaches {source.hex()}")

    def _unreachable(self, link: Link) -> None:
        if (node := self._cluster.node_at(link.peer)) is not None:
            self.out_of_reach(node)

    def out_of_reach(self, node: NodeKey) -> None:
        """A node cannot be reached: this raylet has lost it, or a process here has."""
        if node not in self._out_of_reach and not self.scope.is_closed:
            self._out_of_reach[node] = None
            self._perform(self._pulls.unreachable(node, now()))
            self.spawn(self._await_reach(node), "wait for a node")

    async def _await_reach(self, node: NodeKey) -> None:
        while (address := self._cluster.address_of(node)) is not None:
            try:
                await self._network.connect(address).wait_attached()
                break
            except RayError:  # this session has ended; perhaps not the node
                await asyncio.sleep(_AGAIN)
        del self._out_of_reach[node]
        self._pulls.reachable(node)

    def _seal(self, copy: Copy) -> None:
        """A copy is complete: pin it for all who wait, before anything else happens to it."""
        self._copies.add(copy)
        for id in self._waiting.pop(copy.key, {}):
            wish = self._wishes[id]
            del wish.missing[copy.key]
            self._copies.copies.pin(copy.key, id)
            wish.pinned[copy.key] = copy

    def _abort(self, pull: int) -> None:
        attempt = self._attempts.pop(pull, None)
        if attempt is None:
            return
        for task in list(attempt.tasks):
            task.cancel()
        if attempt.has_room:
            self._store.discard(attempt.copy.room)

    def _settle(self, id: Hashable, failed: hot.Pulled | None) -> None:
        assert isinstance(id, Reader)
        wish = self._wishes.get(id)
        if wish is not None and not wish.done.done():
            wish.done.set_result(failed)

    def _node_died(self, node: NodeKey) -> None:
        self._perform(self._pulls.node_died(node, now()))

    def _owner_died(self, address: str) -> None:
        self._perform(self._pulls.owner_died(address.encode(), now()))

    def _expire(self) -> None:
        self._perform(self._pulls.expire(now()))

    async def stopped(self) -> None:
        self._alarm.cancel()
