"""The Node service: the GCS's view of the cluster's members."""

from collections.abc import AsyncIterator
from dataclasses import replace

from raylite._kernel.seams import now
from raylite._kernel.service import Service, every, handles
from raylite._kernel.topic import Topic
from raylite._machines.nodes import Effect, NodeDied, NodeJoined, Nodes as Membership
from raylite._protocol import gcs
from raylite._wire.messages import gcs as msg


class NodeService(Service, serves=(gcs.Nodes,)):
    """Keeps the node table. `Nodes` decides who is alive; this class carries it out."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._rows: dict[bytes, msg.Node] = {}
        self._events: Topic[msg.NodeEvent] = Topic()

    @handles(gcs.Nodes.register)
    def register(self, request: msg.RegisterNode) -> msg.Registered:
        self._rows[request.node_id] = msg.Node(
            node_id=request.node_id,
            address=request.address,
            hostname=request.hostname,
            pid=request.pid,
            alive=True,
            head=request.head,
            resources=dict(request.resources),
            available=dict(request.resources),
            labels=dict(request.labels),
        )
        self._perform(self._membership.joined(request.node_id, request.incarnation, now()))
        node_id, incarnation = request.node_id, request.incarnation
        self.caller.on_end(lambda link: self._left(node_id, incarnation))
        return msg.Registered()

    @handles(gcs.Nodes.heartbeat)
    def heartbeat(self, beat: msg.Heartbeat) -> None:
        if self._membership.heard(beat.node_id, beat.incarnation, now()):
            row = self._rows[beat.node_id]
            self._rows[beat.node_id] = replace(row, available=dict(beat.available))

    @handles(gcs.Nodes.list)
    def list_nodes(self, request: msg.ListNodes) -> msg.NodeList:
        return msg.NodeList([*self._rows.values()])

    @handles(gcs.Nodes.watch)
    async def watch(self, request: msg.WatchNodes) -> AsyncIterator[msg.NodeEvent]:
        present = [msg.NodeEvent(self._rows[id]) for id in self._membership.alive()]
        with self._events.subscribe(present) as events:
            async for event in events:
                yield event

    @every(seconds=1.0)
    def sweep(self) -> None:
        self._perform(self._membership.expire(now()))

    def _left(self, node_id: bytes, incarnation: int) -> None:
        reason = "its raylet ended the session"
        self._perform(self._membership.left(node_id, incarnation, reason))

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case NodeJoined(node_id):
                    row = self._rows[node_id] = replace(self._rows[node_id], alive=True)
                    self._events.publish(msg.NodeEvent(row))
                case NodeDied(node_id, _):
                    row = self._rows[node_id] = replace(self._rows[node_id], alive=False)
                    self._events.publish(msg.NodeEvent(row))
