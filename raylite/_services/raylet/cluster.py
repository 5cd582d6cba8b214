"""The Cluster service: the other nodes, as this raylet knows them, and this one as they shall."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from raylite._kernel.link import Link
from raylite._kernel.network import Network
from raylite._kernel.seams import now
from raylite._kernel.service import Service
from raylite._machines.epochs import Epochs
from raylite._machines.roster import PARTS, Roster, part_of
from raylite._machines.views import ResourceViews, ViewPublisher
from raylite._protocol import gcs, raylet, views as wire
from raylite._services.raylet.epochs import believe
from raylite._services.raylet.pool import PoolService
from raylite._types.marks import mark_of, mark_of_node
from raylite._types.strategies import NodeKey, NodeView, Shapes
from raylite._wire import hot
from raylite._wire.messages import gcs as msg
from raylite.exceptions import AuthenticationError, RayError

logger = logging.getLogger(__name__)

REPORT = 0.1  # seconds between two reports of what changed here, at least
REPORTS = 1_000  # that a GCS is to take in a second, at most
SOON = 0.01  # seconds until a report that came too early is made again
AGAIN = 0.5  # seconds after which a feed that broke is asked for again
REFUSED = 8.0  # and after which a cluster is asked again that has refused this node
_DEAD_KEPT = 10_000  # nodes remembered as dead


def between_reports(nodes: int) -> float:
    """Return for how many seconds one of so many nodes waits until it reports again."""
    return max(REPORT, nodes / REPORTS)


class ClusterService(Service):
    """Collects the views of all nodes, reports this node's, and tells its processes of deaths.

    A GCS that cannot be reached changes nothing: the views get older, and are as good as that.

    Args:
        network: The raylet's.
        gcs_address: Where the GCS is.
        view: Says what this node is like now.
        pool: This node's processes.
        epochs: Which GCS is believed.
    """

    def __init__(
        self,
        network: Network,
        gcs_address: str,
        view: Callable[[], NodeView],
        pool: PoolService,
        epochs: Epochs,
    ) -> None:
        self._network = network
        self._gcs = gcs_address
        self._view = view
        self._pool = pool
        self._epochs = epochs
        self._views = ResourceViews()
        self._raylets: dict[NodeKey, tuple[int, str]] = {}  # incarnation and address
        self.head: str = ""  # where the head's raylet is, if it is another's
        self._suspects: dict[
            NodeKey, tuple[NodeView, NodeView] | None
        ] = {}  # as told, and as shown
        self._roster = Roster()
        self._roster.put(view().node, view().incarnation)
        self._early: dict[NodeKey, list[hot.ViewDelta]] = {}  # of nodes not yet known to be members
        self._publisher = ViewPublisher(view())
        self.local: NodeKey = view().node
        self._mark = mark_of_node(self.local)
        self._told_of: dict[
            bytes, None
        ] = {}  # processes of other nodes, against telling them twice
        self._changed = asyncio.Event()
        self._report_due = asyncio.Event()
        self.on_change: list[Callable[[], None]] = []
        self.on_node_died: list[Callable[[NodeKey], None]] = []
        self.on_node_joined: list[Callable[[NodeKey], None]] = []
        self._dead: dict[NodeKey, hot.NodeDeath] = {}
        self.demand: Callable[[], tuple[Shapes, Shapes]] = lambda: ((), ())
        self.drivers: dict[bytes, str] = {}  # the addresses of those that run, by job
        self.on_driver: list[Callable[[bytes], None]] = []
        self.on_driver_ended: list[Callable[[bytes], None]] = []

    async def started(self) -> None:
        self.spawn(self._repeat(self._watch_nodes), "watch nodes")
        self.spawn(self._repeat(self._watch_views), "watch views")
        self.spawn(self._repeat(self._watch_workers), "watch workers")
        self.spawn(self._repeat(self._watch_jobs), "watch drivers")
        self.spawn(self._repeat(self._report), "report the view")

    def nodes(self) -> Mapping[NodeKey, NodeView]:
        """The views of all nodes; this one's is exact."""
        if not self._raylets:
            return {self.local: self._view()}
        views = {**self._views.nodes(), self.local: self._view()}
        for node, known in self._suspects.items():
            if (view := views.get(node)) is not None:
                if (
                    known is None or known[0] is not view
                ):  # the same object as long as it is the same
                    known = self._suspects[node] = view, replace(view, suspect=True)
                views[node] = known[1]
        return views

    def trusted_address_of(self, node: NodeKey) -> str | None:
        """Return where another node's raylet is, if there is nothing to say that it may be dead."""
        return None if node in self._suspects else self.address_of(node)

    def address_of(self, node: NodeKey) -> str | None:
        """Return where another node's raylet is; None if the node is dead, or not known yet."""
        known = self._raylets.get(node)
        return known[1] if known is not None else None

    def raylets(self) -> list[str]:
        """Return where the raylets of the other nodes are."""
        return [address for _, address in self._raylets.values()]

    def suspects(self) -> set[str]:
        """Return where those of them are that may be dead, or stand still."""
        return {self._raylets[node][1] for node in self._suspects}

    def node_at(self, address: str) -> NodeKey | None:
        """Return the other node whose raylet has this address."""
        known = self._raylets.items()
        return next((node for node, (_, there) in known if there == address), None)

    def remind(self, link: Link, node: NodeKey) -> bool:
        """Tell a process of this node, once more, that a node is dead; False if that is not known."""
        death = self._dead.get(node)
        if death is not None and not link.is_ended:
            raylet.Process(link).node_died(death)
        return death is not None

    def death_of(self, mark: str) -> hot.NodeDeath | None:
        """Return how the node with this mark died, if that is known."""
        return next((death for death in self._dead.values() if death.mark == mark), None)

    @property
    def is_alone(self) -> bool:
        """Whether no other node is known."""
        return not self._raylets

    async def wait_known(self, nodes: Iterable[NodeKey]) -> None:
        """Wait until the views of these have come."""
        wanted = set(nodes)
        while not wanted <= self.nodes().keys():
            self._changed.clear()
            await self._changed.wait()

    # ---- inside --------------------------------------------------------------------------

    async def _repeat(self, work: Callable[[], Any]) -> None:
        """Do something that lasts as long as the GCS does, again and again."""
        while True:
            try:
                await work()
            except AuthenticationError as error:
                logger.info("the cluster refuses this node: %s", error)
                await asyncio.sleep(REFUSED)
            except RayError as error:
                logger.info("the GCS cannot be asked: %s", error)
            await asyncio.sleep(AGAIN)

    async def _watch_nodes(self) -> None:
        nodes = gcs.Nodes(self._network.connect(self._gcs))
        events: AsyncIterator[msg.NodeEvent] = nodes.watch(msg.WatchNodes())
        epoch = None
        async for event in events:
            believe(self._epochs, epoch := event.epoch or epoch)
            if event.complete:
                self._take_all(event.nodes, range(PARTS))
                for node in list(self._suspects):
                    self._doubted(node, self._raylets[node][0], False)
            else:
                for row in event.nodes:
                    if row.alive:
                        self._joined(row)
                    else:
                        self._ended(row)
            for doubt in event.doubts:
                self._doubted(NodeKey(doubt.node_id), doubt.incarnation, doubt.suspect)

    def _doubted(self, node: NodeKey, incarnation: int, suspect: bool) -> None:
        """A node is suspected, or no more. Who waits here is told when views change, or within a second."""
        known = self._raylets.get(node)
        if known is None or known[0] != incarnation:
            return
        self._roster.put(node, incarnation, suspect=suspect)
        if suspect:
            self._suspects.setdefault(node, None)
        else:
            self._suspects.pop(node, None)

    def _take_all(self, listed: Sequence[msg.Node], parts: Collection[int]) -> None:
        """Know of these parts exactly these nodes: the living, and as dead those that are remembered."""
        alive = {(row.node_id, row.incarnation): row for row in listed if row.alive}
        reasons = {row.node_id: row.death_reason for row in listed if not row.alive}
        for node in map(NodeKey, self._roster.absent(parts, alive)):
            if node != self.local:
                self._died(node, reasons.get(node) or "it left while the GCS could not be asked")
        for node_id, reason in reasons.items():
            self._note_dead(NodeKey(node_id), reason)
        for row in alive.values():
            self._joined(row)

    async def _compare_nodes(self, link: Link) -> None:
        """Ask whether the GCS knows the same nodes, and take over what it says of those that differ."""
        asked = self._roster.revision
        told = await gcs.Nodes(link).compare(msg.KnownNodes(self._roster.digests()))
        believe(self._epochs, told.epoch)
        parts = self._roster.settled(told.parts, asked)
        listed = [row for row in told.nodes if part_of(row.node_id) in parts]
        self._take_all(listed, parts)
        for row in listed:
            self._doubted(NodeKey(row.node_id), row.incarnation, row.alive and row.suspect)

    async def _watch_views(self) -> None:
        self._early.clear()
        views = gcs.Views(self._network.connect(self._gcs))
        feed: AsyncIterator[hot.ViewDeltas] = views.watch(hot.WatchViews())
        async for news in feed:
            for delta in news.deltas:
                if NodeKey(delta.node) not in self._raylets:
                    self._early.setdefault(NodeKey(delta.node), []).append(delta)
            if self._apply(news.deltas):
                self._tell_change()

    async def _watch_workers(self) -> None:
        workers = gcs.Workers(self._network.connect(self._gcs))
        events: AsyncIterator[msg.WorkerEvent] = workers.watch(msg.WatchWorkers())
        epoch = None
        async for event in events:
            believe(self._epochs, epoch := event.epoch or epoch)
            for row in event.workers:
                self._process_died(row.worker_id, row.address, row.exit_cause)

    async def _watch_jobs(self) -> None:
        jobs = gcs.Jobs(self._network.connect(self._gcs))
        events: AsyncIterator[msg.JobEvent] = jobs.watch(msg.WatchJobs())
        epoch = None
        async for event in events:
            believe(self._epochs, epoch := event.epoch or epoch)
            for row in event.jobs:
                self._take_job(row)

    def _take_job(self, row: msg.Job) -> None:
        if row.finished:
            self.drivers.pop(row.job_id, None)
            self._process_died(row.driver_id, row.driver_address, "the driver has exited")
            self._pool.job_ended(row.job_id)
        else:
            self.drivers[row.job_id] = row.driver_address
        for listener in self.on_driver_ended if row.finished else self.on_driver:
            listener(row.job_id)

    def _process_died(self, id: bytes, address: str, cause: str) -> None:
        """A process has ended: if it was another node's, nobody here need wait for it any more."""
        if mark_of(address) not in ("", self._mark) and id not in self._told_of:
            self._told_of[id] = None
            if len(self._told_of) > _DEAD_KEPT:
                del self._told_of[next(iter(self._told_of))]
            self._network.confirm_dead(address, cause)
            self._pool.tell(hot.Death(id, address, cause))
            self._pool.died_elsewhere(id, cause)

    def _apply(self, deltas: Iterable[hot.ViewDelta]) -> bool:
        """Take in views; True if that changed any."""
        changes = [self._views.apply(wire.decode(delta), now()) for delta in deltas]
        return any(changes)

    async def compare(self, link: Link, is_new: bool) -> None:
        """Ask the GCS about all that is here of others, and tell it which view of this node is the latest.

        Whoever was told everything finds nothing new. `is_new`: this node has registered, so
        nothing is known of it, and it is being told of all nodes.
        """
        if not is_new:
            await self._compare_nodes(link)
        publisher = self._publisher
        publisher.resume(0 if is_new else publisher.version - 1)
        self._report_due.set()
        if jobs := [*{**self.drivers, **dict.fromkeys(self._pool.jobs())}]:
            ended = await gcs.Jobs(link).ended(msg.AskEnded(jobs))
            believe(self._epochs, ended.epoch)
            for job in ended.jobs:
                self._take_job(job)
        if guests := [guest.id for guest in self._pool.guests()]:
            dead = await gcs.Workers(link).ended(msg.AskEnded(guests))
            believe(self._epochs, dead.epoch)
            for worker in dead.workers:
                self._network.confirm_dead(worker.address, worker.exit_cause)
                self._process_died(worker.worker_id, worker.address, worker.exit_cause)

    async def _report(self) -> None:
        publisher = self._publisher
        publisher.resume(0)
        views = gcs.Views(self._network.connect(self._gcs))
        while True:
            self._report_due.clear()
            publisher.update(self._reported())
            if (delta := publisher.changes()) is not None:
                wanted = await views.report(wire.encode(delta))
                if wanted.is_full:
                    publisher.resume(0)
                    await asyncio.sleep(SOON)
                    continue
                await asyncio.sleep(between_reports(len(self._raylets)))
            await self._report_due.wait()

    def view_may_have_changed(self) -> None:
        """Look what there is to report of this node, as soon as it is time."""
        self._report_due.set()

    def _reported(self) -> NodeView:
        """Return this node's view with what waits here, which is counted for reports only."""
        pending, infeasible = self.demand()
        return replace(self._view(), pending=pending, infeasible=infeasible)

    def _joined(self, row: msg.Node) -> None:
        node = NodeKey(row.node_id)
        if node == self.local:
            return
        known = self._raylets.get(node)
        if known is not None and known[0] != row.incarnation:
            self._died(node, "it was replaced by a new incarnation")
        self._raylets[node] = row.incarnation, row.address
        self._roster.put(node, row.incarnation, suspect=node in self._suspects)
        if row.head:
            self.head = row.address
        self._views.joined(node, row.incarnation, now())
        if known is None or known[0] != row.incarnation:
            for listener in self.on_node_joined:
                listener(node)
        if self._apply(self._early.pop(node, ())):
            self._tell_change()

    def _ended(self, row: msg.Node) -> None:
        node = NodeKey(row.node_id)
        known = self._raylets.get(node)
        if known is not None and known[0] == row.incarnation:
            self._died(node, row.death_reason or "it died")

    def _died(self, node: NodeKey, reason: str) -> None:
        """A node is gone, and every process of it."""
        incarnation, address = self._raylets.pop(node)
        self._roster.remove(node)
        self._suspects.pop(node, None)
        self._views.died(node, incarnation)
        death = self._note_dead(node, reason)
        self._network.confirm_dead(address, death.cause)
        self._network.confirm_node_dead(death.mark, death.cause)
        self._pool.node_died(death.mark, death.cause)
        for member in self._pool.members():
            if not member.link.is_ended:
                member.process.node_died(death)
        for listener in self.on_node_died:
            listener(node)
        self._tell_change()

    def _note_dead(self, node: NodeKey, reason: str) -> hot.NodeDeath:
        death = hot.NodeDeath(node, mark_of_node(node), f"{hot.NODE_DIED}{reason}")
        self._dead[node] = death
        if len(self._dead) > _DEAD_KEPT:
            del self._dead[next(iter(self._dead))]
        return death

    def _tell_change(self) -> None:
        self._changed.set()
        for listener in self.on_change:
            listener()
