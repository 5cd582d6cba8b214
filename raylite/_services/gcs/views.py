"""The View service: every node's resources, collected from the raylets and handed on to them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import msgspec

from raylite._kernel.bulletin import Bulletin
from raylite._kernel.codec import Encoded, encode_msgpack
from raylite._kernel.seams import now
from raylite._kernel.service import Service, handles
from raylite._machines import demand
from raylite._machines.views import AskFull, ResourceViews
from raylite._protocol import gcs, views as wire
from raylite._services.gcs.nodes import NodeService
from raylite._types.strategies import NodeKey, NodeView
from raylite._wire import hot

LONGEST = 5.0  # seconds that a change may wait, however much has to be said


class ViewService(Service, serves=(gcs.Views,)):
    """Keeps the latest view of every member; nothing of it is worth storing."""

    def __init__(self, nodes: NodeService) -> None:
        self._nodes = nodes
        self._views = ResourceViews()
        self._incarnations: dict[bytes, int] = {}
        self._bulletin = Bulletin(self._all, self._changes, LONGEST)
        self._told = 0  # the revision up to which it has told
        self._encoded: dict[NodeKey, tuple[NodeView, msgspec.Raw]] = {}

    async def started(self) -> None:
        await self._nodes.loaded.wait()
        self._nodes.follow(self._member_joined, self._member_left)
        self.spawn(self._bulletin.run(), "tell of views")

    @property
    def views(self) -> ResourceViews:
        """The table, for those who report on it."""
        return self._views

    @handles(gcs.Views.report)
    def report(self, delta: hot.ViewDelta) -> hot.ViewWanted:
        if self._incarnations.get(delta.node) != delta.incarnation:
            return hot.ViewWanted(is_full=True)  # it has not registered yet, or not again
        effects = self._views.apply(wire.decode(delta), now())
        self._bulletin.changed()
        return hot.ViewWanted(any(isinstance(effect, AskFull) for effect in effects))

    @handles(gcs.Views.demand)
    def demand(self, request: hot.AskDemand) -> hot.Demand:
        pending, infeasible = demand.together(self._views.nodes().values())
        return hot.Demand(wire.encode_shapes(pending), wire.encode_shapes(infeasible))

    @handles(gcs.Views.watch)
    async def watch(self, request: hot.WatchViews) -> AsyncIterator[Encoded]:
        async with aclosing(self._bulletin.messages()) as messages:
            async for message in messages:
                yield message

    def _changes(self) -> bytes:
        deltas, self._told = self._views.since(self._told), self._views.revision
        return _joined([_raw(wire.encode(delta)) for delta in deltas]) if deltas else b""

    def _all(self) -> bytes:
        return _joined([self._full(node) for node in self._views.nodes()])

    def _full(self, node: NodeKey) -> msgspec.Raw:
        view = self._views.nodes()[node]
        known = self._encoded.get(node)
        if known is None or known[0] is not view:
            delta = self._views.full(node)
            assert delta is not None, "a node with a view has a whole one"
            known = self._encoded[node] = view, _raw(wire.encode(delta))
        return known[1]

    def _member_joined(self, node_id: bytes, incarnation: int) -> None:
        self._incarnations[node_id] = incarnation
        self._views.joined(NodeKey(node_id), incarnation, now())

    def _member_left(self, node_id: bytes) -> None:
        if (incarnation := self._incarnations.pop(node_id, None)) is not None:
            self._views.died(NodeKey(node_id), incarnation)
            self._encoded.pop(NodeKey(node_id), None)
            self._bulletin.changed()  # what a newcomer is told is another


def _raw(delta: hot.ViewDelta) -> msgspec.Raw:
    return msgspec.Raw(encode_msgpack(delta))


def _joined(deltas: Sequence[msgspec.Raw]) -> bytes:
    """Return the bytes of a `hot.ViewDeltas`, of deltas that are encoded already."""
    return encode_msgpack((deltas,))
