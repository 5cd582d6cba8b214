"""The View service: every node's resources, collected from the raylets and handed on to them."""

import asyncio
from collections.abc import AsyncIterator

from raylite._kernel.seams import now
from raylite._kernel.service import Service, handles
from raylite._machines import demand
from raylite._machines.views import AskFull, ResourceViews
from raylite._protocol import gcs, views as wire
from raylite._services.gcs.nodes import NodeService
from raylite._types.strategies import NodeKey
from raylite._wire import hot

GATHER = 0.05  # seconds between two messages of a feed: what changes meanwhile makes one


class ViewService(Service, serves=(gcs.Views,)):
    """Keeps the latest view of every member; nothing of it is worth storing."""

    def __init__(self, nodes: NodeService) -> None:
        self._nodes = nodes
        self._views = ResourceViews()
        self._incarnations: dict[bytes, int] = {}
        self._news = asyncio.Event()

    async def started(self) -> None:
        await self._nodes.loaded.wait()
        self._nodes.follow(self._joined, self._left)

    @property
    def views(self) -> ResourceViews:
        """The table, for those who report on it."""
        return self._views

    @handles(gcs.Views.report)
    def report(self, delta: hot.ViewDelta) -> hot.ViewWanted:
        if self._incarnations.get(delta.node) != delta.incarnation:
            return hot.ViewWanted(is_full=True)  # it has not registered yet, or not again
        effects = self._views.apply(wire.decode(delta), now())
        self._news.set()
        return hot.ViewWanted(any(isinstance(effect, AskFull) for effect in effects))

    @handles(gcs.Views.demand)
    def demand(self, request: hot.AskDemand) -> hot.Demand:
        pending, infeasible = demand.together(self._views.nodes().values())
        return hot.Demand(wire.encode_shapes(pending), wire.encode_shapes(infeasible))

    @handles(gcs.Views.watch)
    async def watch(self, request: hot.WatchViews) -> AsyncIterator[hot.ViewDeltas]:
        revision = 0
        while True:
            deltas, revision = self._views.since(revision), self._views.revision
            if deltas:
                yield hot.ViewDeltas(tuple(wire.encode(delta) for delta in deltas))
                await asyncio.sleep(GATHER)
            else:
                self._news.clear()
                await self._news.wait()

    def _joined(self, node_id: bytes, incarnation: int) -> None:
        self._incarnations[node_id] = incarnation
        self._views.joined(NodeKey(node_id), incarnation, now())

    def _left(self, node_id: bytes) -> None:
        if (incarnation := self._incarnations.pop(node_id, None)) is not None:
            self._views.died(NodeKey(node_id), incarnation)
