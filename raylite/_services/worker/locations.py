"""The Location service: on which nodes the large objects of this process lie."""

from collections.abc import Callable, Iterable
from typing import assert_never

from raylite._kernel.link import Link
from raylite._kernel.service import Service, handles
from raylite._machines.directory import (
    Directory,
    Drop,
    Effect,
    Lost,
    Pin,
    Tell,
    TellLost,
    Verify,
)
from raylite._protocol import raylet, worker
from raylite._services.worker.objects import Entry
from raylite._types.keys import ObjectKey
from raylite._types.strategies import NodeKey
from raylite._wire import hot
from raylite._wire.hot import OrderKind, Value


class LocationService(Service, serves=(worker.Locations,)):
    """Carries out what `Directory` decides. Objects go by their names in arenas here.

    What it has other nodes do, goes through this node's raylet, which knows where they are.
    """

    def __init__(self, address: str, raylet_link: Link) -> None:
        self._address = address
        self._raylet = raylet_link
        self._copies = raylet.Copies(raylet_link)
        self._directory = Directory()
        self._subscribers: dict[NodeKey, Link] = {}
        #: This process's node, once the process is attached to it.
        self.node = b""
        #: Told of an object of which every copy is gone.
        self.on_lost: Callable[[ObjectKey], object] = bool

    def stored(self, key: ObjectKey, value: Value) -> None:
        """An object of this process has a value that lies in an arena."""
        self._perform(self._directory.expect(key))
        node = NodeKey(value.node)
        self._perform(self._directory.added(key, node, value.size, 0, primary=True))

    def freed(self, key: ObjectKey) -> None:
        """Nobody refers to an object any more."""
        self._perform(self._directory.freed(key))

    def drop(self, key: ObjectKey, node: bytes) -> None:
        """Have a value freed that nobody was ever told of."""
        self._order(OrderKind.DROP, key, NodeKey(node or self.node))

    def held(self, entries: Iterable[Entry]) -> dict[NodeKey, int]:
        """Return how many bytes of these objects each node has, as far as is known here.

        Of a borrowed object that is the node where it was made, and this one while it is read here.
        """
        own: list[ObjectKey] = []
        borrowed: dict[NodeKey, int] = {}
        for entry in dict.fromkeys(entries):
            value = entry.value
            if value is None or not value.node:
                continue
            if not entry.owner:
                own.append(ObjectKey(value.key or entry.id))
                continue
            for node in {value.node, self.node} if entry.views else {value.node}:
                borrowed[NodeKey(node)] = borrowed.get(NodeKey(node), 0) + value.size
        held = self._directory.held(own)
        for node, size in borrowed.items():
            held[node] = held.get(node, 0) + size
        return held

    def node_died(self, node: NodeKey) -> None:
        self._subscribers.pop(node, None)
        self._perform(self._directory.node_died(node))

    # ---- what raylets say ------------------------------------------------------------------

    @handles(worker.Locations.locate)
    def locate(self, wishes: list[hot.Locate]) -> None:
        for wish in wishes:
            key, node = ObjectKey(wish.key), NodeKey(wish.node)
            self._subscribers[node] = self.caller
            for refuser in wish.without:
                self._perform(self._directory.doubted(key, NodeKey(refuser)))
            self._perform(self._directory.subscribe(key, node))

    @handles(worker.Locations.forget)
    def forget(self, wishes: list[hot.Locate]) -> None:
        for wish in wishes:
            self._perform(self._directory.unsubscribe(ObjectKey(wish.key), NodeKey(wish.node)))

    @handles(worker.Locations.news)
    def news(self, news: list[hot.CopyNews]) -> None:
        for each in news:
            key, node = ObjectKey(each.key), NodeKey(each.node)
            if each.is_there:
                self._perform(self._directory.added(key, node, each.size, each.number))
            else:
                self._perform(self._directory.removed(key, node, each.number))

    # ---- inside ----------------------------------------------------------------------------

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Tell(subscribers, key, size, nodes):
                    for transfers in self._transfers(subscribers):
                        transfers.located(hot.Located(key, size, nodes))
                case TellLost(subscribers, key):
                    for transfers in self._transfers(subscribers):
                        transfers.lost(key)
                case Lost(key):
                    self.on_lost(key)
                    self._perform(self._directory.freed(key))
                case Drop(key, node):
                    self._order(OrderKind.DROP, key, node)
                case Pin(key, node):
                    self._order(OrderKind.PIN, key, node)
                case Verify(key, node):
                    self._order(OrderKind.VERIFY, key, node)
                case _:
                    assert_never(effect)

    def _transfers(self, nodes: tuple[NodeKey, ...]) -> list[raylet.Transfers]:
        links = [self._subscribers[node] for node in nodes if node in self._subscribers]
        return [raylet.Transfers(link) for link in links if not link.is_ended]

    def _order(self, kind: OrderKind, key: ObjectKey, node: NodeKey) -> None:
        if not self._raylet.is_ended:
            self._copies.order(hot.Order(kind, key, node, self._address))
