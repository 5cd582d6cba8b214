"""The Node service: the GCS's view of the cluster's members."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace

import msgspec

from raylite._kernel.codec import Encoded
from raylite._kernel.link import Link
from raylite._kernel.network import Probe
from raylite._kernel.seams import now, wall
from raylite._kernel.service import Service, every, handles
from raylite._machines.nodes import (
    RESTORED,
    SWEEP,
    Effect,
    NodeDied,
    NodeFenced,
    NodeJoined,
    Nodes as Membership,
    NodeSuspected,
    NodeTrusted,
    Standing,
)
from raylite._machines.roster import Roster, part_of
from raylite._protocol import gcs, raylet
from raylite._services.gcs.epoch import Epoch
from raylite._services.gcs.news import TableNews
from raylite._services.gcs.storage import Storage, StorageError
from raylite._services.gcs.table import Change, Table
from raylite._types.marks import mark_of, mark_of_node
from raylite._wire import hot
from raylite._wire.messages import gcs as msg
from raylite.exceptions import LinkClosedError, NodeDiedError, PeerLostError, UnavailableError

logger = logging.getLogger(__name__)

LATE = 1.25  # beats without a heartbeat after which a raylet's listener is tried
TRYING = 0.25  # of the grace is how long that may take
TRIES, BETWEEN = 3, 0.1  # refusals in a row that are taken for its end, and the seconds between two


class NodeService(Service, serves=(gcs.Nodes,)):
    """Keeps the node table. `Nodes` decides who is alive; this class carries it out.

    A row that says alive of who is no member is a death still to be told. The sweep tells it
    again and again, until the storage has taken it: then watchers learn of it.
    """

    def __init__(
        self,
        membership: Membership,
        storage: Storage,
        epoch: Epoch,
        probe: Callable[[str, float], Awaitable[Probe]],
        *,
        volatile: bool = False,
    ) -> None:
        self.membership = membership
        self._is_volatile = volatile
        self._try = probe
        self._probing: dict[bytes, None] = {}
        self._began_at = 0.0
        # Whose records were found damaged: members, perhaps, until they have had time to register again.
        self._lost: dict[bytes, None] = {}
        self.loaded = asyncio.Event()
        self._epoch = epoch
        self._storage = storage
        self._table = Table(storage, "nodes", msg.Node.parse, lambda row: not row.alive)
        self._news = TableNews(
            self._table,
            lambda row: bytes(msg.NodeEvent([row])),
            self._first_event,
        )
        self._roster = Roster()  # whom watchers are told of
        self._table.on_change.append(self._enrol)
        self._available: dict[bytes, dict[str, float]] = {}  # by heartbeat, so not worth keeping
        self._reasons: dict[bytes, str] = {}
        self._ports: dict[str, bytes] = {}  # and the member that listens there
        self._goodbyes: dict[bytes, None] = {}  # of those that left in order
        self._links: dict[bytes, Link] = {}
        self._to_register: dict[bytes, None] = {}
        self._on_joined: list[Callable[[bytes, int], None]] = []
        self._on_left: list[Callable[[bytes], None]] = []

    def follow(self, joined: Callable[[bytes, int], None], left: Callable[[bytes], None]) -> None:
        """Be told of members as they are decided on, before that is durable; of those there are now."""
        for node_id, incarnation in self.membership.members():
            joined(node_id, incarnation)
        self._on_joined.append(joined)
        self._on_left.append(left)

    @property
    def rows(self) -> Mapping[bytes, msg.Node]:
        """What is durable of the nodes."""
        return self._table.rows

    def is_lost(self, node_id: bytes) -> bool:
        """Whether a node is no member, and may have been one whose record was damaged: it has time to say so."""
        return node_id in self._lost

    def ask_to_register(self, node_id: bytes) -> None:
        """Have a member register again, and so tell everything again: something of it was lost."""
        self._to_register[node_id] = None

    async def started(self) -> None:
        await self._epoch.begin()
        await self._table.load()
        self._lost = dict.fromkeys(await self._storage.lost(self._table.name))
        self._began_at = now()
        for node_id, row in self._table.rows.items():
            if row.alive:
                self._ports[row.address.partition(";")[0]] = node_id
                self.membership.restored(node_id, row.incarnation, now())
            else:
                self.membership.restored_dead(node_id, row.incarnation, row.death_reason)
        self.spawn(self._news.run(), "tell of nodes")
        self.loaded.set()

    @handles(gcs.Nodes.register)
    async def register(self, request: msg.RegisterNode) -> msg.Registered:
        node_id, incarnation = request.node_id, request.incarnation
        self._to_register.pop(node_id, None)
        # A head's processes would end with it, the GCS among them. Nothing but its own standing
        # still can have parted it from the GCS.
        self._note(self.membership.joined(node_id, incarnation, now(), returns=request.head))
        for joined in self._on_joined:
            joined(node_id, incarnation)
        self._follow(self.caller, node_id, incarnation)
        changes = [Change(node_id, _row(request))]
        known = self._table.latest(node_id)
        if known is not None and known.alive:
            if known.incarnation == incarnation:
                changes = [Change(node_id, replace(_row(request), started_at=known.started_at))]
            else:
                changes.insert(0, self._obituary(known))
        if (displaced := self._displaced(request)) is not None:
            reason = "another node has its address"
            self._note(self.membership.left(displaced.node_id, displaced.incarnation, reason))
            changes.insert(0, self._obituary(displaced))
        self._available.pop(node_id, None)
        await self._table.write(changes)
        return msg.Registered(epoch=self._epoch.message, volatile=self._is_volatile)

    @handles(gcs.Nodes.heartbeat)
    def heartbeat(self, beat: msg.Heartbeat) -> None:
        self._hear(beat)

    @handles(gcs.Nodes.sync)
    def sync(self, beat: msg.Heartbeat) -> msg.Synced:
        is_unknown = self._hear(beat) is Standing.UNKNOWN
        again = is_unknown or beat.node_id in self._to_register
        wanted = self.membership.beat
        return msg.Synced(epoch=self._epoch.message, register_again=again, beat=wanted)

    @handles(gcs.Nodes.fence)
    async def fence(self, fence: hot.Fence) -> hot.Fenced:
        """Have a node end leases whose holder it cannot reach; a dead node has none.

        One that nobody hears may stand still, and go on with them: it has its grace, as ever.
        """
        row, link = self._table.rows.get(fence.node), self._links.get(fence.node)
        if row is not None and not row.alive:
            return hot.Fenced(death=row.death_reason or "it died")
        if link is None or link.is_ended:
            raise UnavailableError(f"node {fence.node.hex()} cannot be told now: ask again")
        if not self.membership.is_steady(fence.node, now()):
            raise UnavailableError(
                f"node {fence.node.hex()} was silent a moment ago, and may be reached again or die "
                "soon: ask again"
            )
        epoch = self._epoch.message
        fence = msgspec.structs.replace(fence, cluster=epoch.cluster_id, epoch=epoch.number)
        return await raylet.Fences(link).revoke(fence)

    @handles(gcs.Nodes.fate)
    async def fate(self, ask: hot.AskFate) -> hot.Fate:
        """Say whether a process is dead: its node is, or its raylet knows of it no more."""
        epoch, mark = self._epoch.message, mark_of(ask.address)
        found = (row for id, row in self._table.all_latest() if mark_of_node(id) == mark)
        row = next(found, None)
        if row is None:
            # Dead for so long that it was forgotten; unless its row was lost, then it registers again.
            if now() - self._began_at < RESTORED * self.membership.grace:
                raise UnavailableError(f"node {mark} may not have been heard of yet: ask again")
            cause = "its node is not of this cluster any more"
            return hot.Fate(True, cause, epoch.cluster_id, epoch.number)
        durable = self._table.rows.get(row.node_id)
        if not row.alive and durable is row:
            cause = hot.NODE_DIED + (row.death_reason or "it died")
            return hot.Fate(True, cause, epoch.cluster_id, epoch.number)
        link = self._links.get(row.node_id)
        if link is None or link.is_ended:
            raise UnavailableError(f"node {row.node_id.hex()} cannot be asked now: ask again")
        ask = hot.AskFate(ask.address, epoch.cluster_id, epoch.number)
        fate = await raylet.Fates(link).tell(ask)
        return hot.Fate(fate.is_dead, fate.cause, epoch.cluster_id, epoch.number)

    @handles(gcs.Nodes.list)
    def list_nodes(self, request: msg.ListNodes) -> msg.NodeList:
        nodes = [self._current(row) for row in self._table.rows.values()]
        return msg.NodeList(nodes, self._epoch.message)

    @handles(gcs.Nodes.watch)
    async def watch(self, request: msg.WatchNodes) -> AsyncIterator[Encoded]:
        async with aclosing(self._news.messages()) as messages:
            async for message in messages:
                yield message

    @handles(gcs.Nodes.compare)
    def compare(self, known: msg.KnownNodes) -> msg.NodesCompared:
        parts, rows = self._roster.differing(known.digests), list[msg.Node]()
        unsure = set(map(part_of, self._lost))  # who is not in there may be a member
        if parts := bytes(part for part in parts if part not in unsure):
            rows = [row for row in self._table.rows.values() if part_of(row.node_id) in parts]
        nodes = [self._current(row) for row in rows]
        return msg.NodesCompared(parts, nodes, self._epoch.message)

    @every(seconds=SWEEP)
    async def sweep(self) -> None:
        self._note(self.membership.expire(now()))
        if self._lost and now() - self._began_at >= RESTORED * self.membership.grace:
            self._lost.clear()
            self._news.changed()  # whoever comes from now on is told of all members
        for node_id, incarnation in self.membership.silent(LATE * self.membership.beat, now()):
            row = self._table.latest(node_id)
            if row is not None and row.address and node_id not in self._probing:
                self._probing[node_id] = None
                self.spawn(self._probe(row.address, node_id, incarnation), "try a silent raylet")
        await self._tell_deaths()

    def _displaced(self, request: msg.RegisterNode) -> msg.Node | None:
        """Return who is a member by the port on which a node listens now: it has ended.

        Tried there, it would seem to stand still, for the other takes its connections.
        """
        place = request.address.partition(";")[0]
        if not place.startswith("tcp:"):
            return None
        before = self._ports.get(place, request.node_id)
        self._ports[place] = request.node_id
        row = self._table.latest(before) if before != request.node_id else None
        return row if row is not None and row.alive else None

    async def _probe(self, address: str, node_id: bytes, incarnation: int) -> None:
        """Find out whether a silent raylet has ended: the system then refuses connections to it.

        Where it takes them, the raylet is slow, or stands still. Where nothing answers at all, there is no
        telling: the raylet has its whole grace.
        """
        try:
            for _ in range(TRIES):
                found = await self._try(address, TRYING * self.membership.grace)
                if found is Probe.ANSWERED:
                    self.membership.answered(node_id, incarnation, now())
                if found is not Probe.REFUSED:
                    return
                await asyncio.sleep(BETWEEN)
            if (node_id, incarnation) in self.membership.silent(LATE * self.membership.beat, now()):
                reason = "its raylet has ended: connections to it are refused"
                self._note(self.membership.left(node_id, incarnation, reason))
                await self._tell_deaths()
        finally:
            del self._probing[node_id]

    async def _tell_deaths(self) -> None:
        members = set(self.membership.alive())
        dead = [
            self._obituary(row)
            for node_id, row in self._table.all_latest()
            if row.alive and node_id not in members
        ]
        if not dead:
            return
        try:
            await self._table.write(dead)
        except StorageError as error:
            logger.warning("%d dead nodes are not in the table yet: %s", len(dead), error)

    def _hear(self, beat: msg.Heartbeat) -> Standing:
        self._note(self.membership.heard(beat.node_id, beat.incarnation, now(), beat.lag))
        standing = self.membership.standing(beat.node_id, beat.incarnation)
        if standing is Standing.MEMBER:
            self._available[beat.node_id] = dict(beat.available)
        return standing

    def _follow(self, link: Link, node_id: bytes, incarnation: int) -> None:
        """Take the end of the session that a node registered on last for the node's."""

        def ended(link: Link) -> None:
            if self._links.get(node_id) is not link:
                return
            del self._links[node_id]
            if isinstance(link.error, LinkClosedError) or self.scope.is_closed:
                return  # it is the GCS that ends
            reason = "its raylet ended the session"
            is_over = isinstance(link.error, PeerLostError) and link.error.confirmed
            if is_over and self.membership.is_member(node_id, incarnation):
                self._goodbyes[node_id] = None  # else it is known to be dead, and so the link ended
            self._note(self.membership.left(node_id, incarnation, reason))
            self.spawn(self._tell_deaths(), "tell of a node's end")

        if self._links.get(node_id) is not link:
            self._links[node_id] = link
            link.on_end(ended)

    def _note(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case NodeJoined(node_id):
                    logger.info("node %s joined", node_id.hex())
                case NodeFenced(node_id, reason):
                    raise NodeDiedError(f"node {node_id.hex()} is dead to its cluster: {reason}")
                case NodeSuspected(node_id) | NodeTrusted(node_id):
                    is_suspect = isinstance(effect, NodeSuspected)
                    logger.info(
                        "node %s is %s", node_id.hex(), "silent" if is_suspect else "heard again"
                    )
                    row = self._table.latest(node_id)
                    if row is not None and row.alive:
                        doubt = msg.Doubt(node_id, row.incarnation, is_suspect)
                        self._news.say(bytes(msg.NodeEvent(doubts=[doubt])))
                    self._enrol(Change(node_id, self._table.rows.get(node_id)))
                case NodeDied(node_id, reason):
                    logger.info("node %s died: %s", node_id.hex(), reason)
                    self._reasons[node_id] = reason
                    self._to_register.pop(node_id, None)
                    for left in self._on_left:
                        left(node_id)

    def _enrol(self, change: Change[msg.Node]) -> None:
        row, suspect = change.row, self.membership.is_suspect(change.key)
        self._lost.pop(change.key, None)
        if row is not None and row.alive:
            self._roster.put(change.key, row.incarnation, suspect=suspect)
        else:
            self._roster.remove(change.key)

    def _obituary(self, row: msg.Node) -> Change[msg.Node]:
        self._available.pop(row.node_id, None)
        if self._ports.get(place := row.address.partition(";")[0]) == row.node_id:
            del self._ports[place]
        reason = self._reasons.get(row.node_id, "")
        dead = replace(
            row,
            alive=False,
            ended_at=wall(),
            death_reason=reason,
            left=self._goodbyes.pop(row.node_id, "") is None,
        )
        return Change(row.node_id, dead)

    def _current(self, row: msg.Node) -> msg.Node:
        if not row.alive:
            return row
        available = self._available.get(row.node_id, row.available)
        return replace(row, available=available, suspect=self.membership.is_suspect(row.node_id))

    def _first_event(self) -> bytes:
        suspects = self.membership.suspects()
        doubts = [msg.Doubt(node_id, incarnation, True) for node_id, incarnation in suspects]
        complete = not self._lost  # who is not named is no member
        return bytes(msg.NodeEvent(complete=complete, epoch=self._epoch.message, doubts=doubts))


def _row(request: msg.RegisterNode) -> msg.Node:
    return msg.Node(
        node_id=request.node_id,
        address=request.address,
        hostname=request.hostname,
        pid=request.pid,
        incarnation=request.incarnation,
        alive=True,
        head=request.head,
        resources=dict(request.resources),
        available=dict(request.resources),
        labels=dict(request.labels),
        started_at=wall(),
        ip=request.ip,
        version=request.version,
        python=request.python,
        settings=request.settings,
    )
