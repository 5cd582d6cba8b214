"""The Copy service: what this node has of objects, for the raylets that read it and for its owners."""

import asyncio
import itertools
from collections.abc import Callable, Hashable
from typing import Protocol, assert_never

from raylite._kernel.arena import Arena
from raylite._kernel.link import Link
from raylite._kernel.network import Network
from raylite._kernel.service import Service, handles
from raylite._machines.chunks import CHUNK
from raylite._machines.copies import Copies, Copy, Discard
from raylite._machines.memory import Extent, Memory
from raylite._protocol import raylet, worker
from raylite._services.raylet.cluster import ClusterService
from raylite._types.keys import ObjectKey
from raylite._types.strategies import NodeKey
from raylite._wire import hot
from raylite._wire.hot import OrderKind
from raylite.exceptions import ObjectLostError, PeerLostError, UnavailableError

_GONE_KEPT = 10_000  # addresses of ended processes; one forgotten is dialled in vain for a while

_RELAY = 5.0  # seconds that another node has to answer whom it cannot reach itself


class Store(Protocol):
    """Where objects lie: see `ObjectService`."""

    @property
    def memory(self) -> Memory: ...
    async def reserve(self, id: bytes, size: int, owner: bytes) -> int: ...
    def discard(self, id: bytes) -> None: ...


class CopyService(Service, serves=(raylet.Copies, raylet.Relays)):
    """Carries out what `Copies` decides of copies, and what owners decide of all that lies here.

    Args:
        network: The raylet's.
        arena: Where the bytes are.
        store: Who says where in it.
        cluster: Who else there is.
    """

    def __init__(
        self, network: Network, arena: Arena, store: Store, cluster: ClusterService
    ) -> None:
        self._network = network
        self._arena = arena
        self._store = store
        self._cluster = cluster
        self.copies: Copies = Copies()
        # Of what it says of its copies, so that owners can put it in order.
        self._numbers = itertools.count(1)
        # For nodes that have not been heard of yet; an owner may know of one before this raylet.
        self._parked: dict[NodeKey, list[hot.Order]] = {}
        # On their way; those that a session has not brought are sent on the next one.
        self._unheard: dict[Link, list[hot.Order]] = {}
        self._owners: dict[str, Link] = {}
        self._gone: dict[str, None] = {}  # owners that have ended
        self.on_owner_died: list[Callable[[str], None]] = [self._free_copies]
        cluster.on_node_joined.append(self._send_parked)
        cluster.on_node_died.append(self._forget_parked)

    @handles(raylet.Copies.read)
    def read(self, request: hot.ReadChunk) -> memoryview:
        """Return some bytes, which are copied out at once: no later change is sent, or needs a pin.

        An object made here is whole when anybody asks for it: its owner names it after its worker
        has written it, and no two attempts at it have the same key. Copies are listed when whole.
        """
        extent = self._find(ObjectKey(request.key))
        end = request.offset + request.size
        if extent is None or not 0 <= request.offset <= end <= extent.size or request.size > CHUNK:
            raise ObjectLostError(request.key[:28].hex(), None, "")
        return self._arena.slot(extent.offset + request.offset, request.size)

    @handles(raylet.Relays.read)
    async def relay(self, request: hot.RelayChunk) -> memoryview:
        """Return some bytes that another node has; nothing of them stays here."""
        address = self._cluster.address_of(NodeKey(request.node))
        if address is None:
            raise UnavailableError(f"node {request.node.hex()} is not known here, or dead")
        try:
            async with asyncio.timeout(_RELAY):
                return await raylet.Copies(self._network.connect(address)).read(request.chunk)
        except TimeoutError:
            raise UnavailableError(f"{address} cannot be reached from here either") from None

    @handles(raylet.Copies.order)
    def order(self, orders: list[hot.Order]) -> None:
        for order in orders:
            node = NodeKey(order.node)
            if node == self._cluster.local:
                self._obey(order)
            elif (address := self._cluster.address_of(node)) is not None:
                self._send(address, order)
            elif not self._cluster.remind(self.caller, node):
                self._parked.setdefault(node, []).append(order)

    def add(self, copy: Copy) -> None:
        """A copy is complete: its owner is to know."""
        self._perform(self.copies.add(copy))
        self._tell(copy.owner, copy.key, copy.size, is_there=True)

    def unpin(self, copy: Copy, reader: Hashable) -> None:
        """A reader has let go; whoever waits for room may have it."""
        self._perform(self.copies.unpin(copy, reader))
        while self._store.memory.is_short and self.evict():
            pass

    def evict(self) -> bool:
        """Give up one copy that nobody reads; False if there is none."""
        effects = self.copies.evict()
        self._perform(effects)
        return bool(effects)

    def owner(self, address: str) -> Link | None:
        """Return the link to an owner, whose end will be noticed; None if it has ended."""
        if address in self._gone:
            return None
        link = self._owners.get(address)
        if link is None:
            link = self._owners[address] = self._network.connect(address)
            link.on_end(lambda link: self._owner_left(address, link))
        return None if link.is_ended else link

    def _owner_left(self, address: str, link: Link) -> None:
        """A session with an owner has ended. If nobody says that it is dead, the next one is asked."""
        if isinstance(link.error, PeerLostError) and not link.error.confirmed:
            if self._owners.get(address) is link:
                del self._owners[address]
        else:
            self.process_gone(address)

    def process_gone(self, address: str) -> None:
        """A process has ended; if it owned something that is here, that goes."""
        self._gone[address] = None
        if len(self._gone) > _GONE_KEPT:
            del self._gone[next(iter(self._gone))]
        if self._owners.pop(address, None) is not None and not self.scope.is_closed:
            for listener in self.on_owner_died:
                listener(address)

    # ---- inside --------------------------------------------------------------------------

    def _free_copies(self, owner: str) -> None:
        self._perform(self.copies.owner_died(owner))

    def _find(self, key: ObjectKey) -> Extent | None:
        copy = self.copies.find(key)
        if copy is not None:
            return Extent(copy.offset, copy.size)
        return self._store.memory.find(key)

    def _obey(self, order: hot.Order) -> None:
        key, kind = ObjectKey(order.key), OrderKind(order.kind)
        match kind:
            case OrderKind.DROP:
                self._store.discard(key)
                self._perform(self.copies.drop(key))
            case OrderKind.PIN:
                if not self.copies.make_primary(key):
                    self._verify(order.owner, key)
            case OrderKind.VERIFY:
                self._verify(order.owner, key)
            case _:
                assert_never(kind)

    def _verify(self, owner: str, key: ObjectKey) -> None:
        extent = self._find(key)
        self._tell(owner, key, extent.size if extent else 0, is_there=extent is not None)

    def _perform(self, effects: list[Discard]) -> None:
        for discard in effects:
            copy = discard.copy
            self._store.discard(copy.room)
            if discard.is_news:
                self._tell(copy.owner, copy.key, copy.size, is_there=False)

    def _tell(self, owner: str, key: ObjectKey, size: int, *, is_there: bool) -> None:
        link = self.owner(owner)
        if link is not None:
            news = hot.CopyNews(key, self._cluster.local, size, next(self._numbers), is_there)
            worker.Locations(link).news(news)

    def _send(self, address: str, order: hot.Order) -> None:
        link = self._network.connect(address)
        if self.scope.is_closed:
            return  # this raylet ends
        if (unheard := self._unheard.get(link)) is None:
            unheard = self._unheard[link] = []
            self.spawn(self._send_again(link, address), "see orders arrive")
        unheard.append(order)
        raylet.Copies(link).order(order)

    async def _send_again(self, link: Link, address: str) -> None:
        """Wait until the orders sent on a link have been received; or send them on the next one.

        To obey one twice changes nothing: what is dropped never comes again by the same key.
        """
        unheard = self._unheard[link]
        while unheard and not link.is_ended:
            sent = len(unheard)
            await link.wait_received()
            if not link.is_ended:
                del unheard[:sent]
        del self._unheard[link]
        if isinstance(link.error, PeerLostError) and not link.error.confirmed:
            for order in unheard:
                if self._cluster.node_at(address) == NodeKey(order.node):  # or it has died
                    self._send(address, order)

    def _send_parked(self, node: NodeKey) -> None:
        if orders := self._parked.pop(node, None):
            address = self._cluster.address_of(node)
            assert address is not None
            for order in orders:
                self._send(address, order)

    def _forget_parked(self, node: NodeKey) -> None:
        self._parked.pop(node, None)
