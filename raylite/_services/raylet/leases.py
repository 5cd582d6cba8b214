"""The Lease service: who may run tasks on this node, and on which worker."""

import logging
from collections.abc import Callable, Iterable

from raylite._kernel.alarm import Alarm
from raylite._kernel.network import Network
from raylite._kernel.seams import now
from raylite._kernel.service import Service, every, handles
from raylite._machines import demand, picker as picking
from raylite._machines.leases import (
    Effect,
    Grant,
    Infeasible,
    Leases,
    Request,
    Revoke,
    Unwanted,
    Wanted,
)
from raylite._machines.picker import Ask, Keep, Picker, Refuse, Spill
from raylite._machines.shortage import waiting
from raylite._protocol import raylet, views
from raylite._services.raylet.cluster import ClusterService
from raylite._services.raylet.pool import Member, PoolService
from raylite._types.keys import HolderKey, LeaseID, WorkerKey
from raylite._types.resources import Resources
from raylite._types.strategies import NodeKey, Shapes
from raylite._wire import hot, placement
from raylite._wire.messages import raylet as msg

logger = logging.getLogger(__name__)

_CALM = 0.25  # seconds without waiting after which holders are told so: contention flickers
_KNOWN_WORKERS = 16  # of a holder, that it is lent again first: it has links to them


class LeaseService(Service, serves=(raylet.Leases,)):
    """Carries out what `Picker` and `Leases` decide, with workers from the pool.

    `Picker` says on which node a request is served, `Leases` when, if that is this one.
    """

    def __init__(
        self,
        network: Network,
        leases: Leases,
        picker: Picker,
        pool: PoolService,
        cluster: ClusterService,
        oom_retries: int = -1,
    ) -> None:
        self._network = network
        self._leases = leases
        self._picker = picker
        self._pool = pool
        self._cluster = cluster
        self._oom_retries = oom_retries
        cluster.on_change.append(self.reconsider)
        self._keys: dict[LeaseID, tuple[Member, bytes]] = {}
        self._requests: dict[LeaseID, Request] = {}
        self._backlogs: dict[bytes, dict[Resources, int]] = {}  # by owner
        cluster.demand = self.demand
        self._lease_of: dict[bytes, LeaseID] = {}  # by worker
        self._told: dict[
            bytes, None
        ] = {}  # holders that were told `wanted`, and not since `unwanted`
        #: Told of the loss of each leased worker, as its holder is.
        self.on_lost: list[Callable[[hot.WorkerLost], None]] = []
        self._alarm = Alarm(self._calm)
        self._resources: dict[tuple[tuple[str, int], ...], Resources] = {}
        pool.on_lent = self._lent
        pool.on_failed = self._failed
        pool.on_lost = self._lost
        pool.on_crowded = self._crowded
        pool.on_gone.append(self._gone)
        pool.on_parted.append(self._gone)

    @property
    def leases(self) -> Leases:
        """The machine, for those who report on it."""
        return self._leases

    @handles(raylet.Leases.request)
    def request(self, requests: list[hot.LeaseRequest]) -> None:
        link, moment, total = self.caller, now(), self._leases.total
        for wish in requests:
            holder = self._pool.holder(link, wish.holder)
            lease, key = LeaseID(wish.lease), HolderKey(holder.id)
            there = self._cluster.trusted_address_of(NodeKey(wish.near)) if wish.near else None
            if there is not None:
                holder.holder.spilled(hot.Spilled(lease, wish.near, there, ()))
                continue
            self._keys[lease] = holder, wish.key
            demand = self._demand(wish.demand)
            self._requests[lease] = Request(lease, key, demand, wish.depth)
            visited = tuple(NodeKey(node) for node in wish.visited)
            ask = Ask(lease, key, placement.decode(demand, wish.where), visited)
            if self._cluster.is_alone and wish.where is None and demand.fits(total):
                self._place(self._picker.keep(ask, moment))
            else:
                self._place(self._picker.request(ask, self._cluster.nodes(), moment))
        self._cluster.view_may_have_changed()  # some may be parked without a word

    def reconsider(self) -> None:
        """Other nodes have changed: what waits here may be better off there."""
        self._place(self._picker.changed(self._cluster.nodes(), now()))

    @every(seconds=1.0)
    def look_again(self) -> None:
        """Views promise less as they age; see `Picker.changed`."""
        self.reconsider()

    @handles(raylet.Leases.release)
    def release(self, leases: list[bytes]) -> None:
        for each in leases:
            self._end(LeaseID(each))

    def demand(self) -> tuple[Shapes, Shapes]:
        """What waits here for its turn, and what for a node that could serve it."""
        parked = (ask.placement.demand for ask in self._picker.parked())
        return demand.of_node(self._leases.waiting(), parked, self._backlogs.values())

    @handles(raylet.Leases.backlog)
    def backlog(self, backlog: hot.Backlog) -> None:
        owner = self._pool.member(self.caller)
        self._backlogs.pop(owner.id, None)
        if backlog.tasks:
            self._backlogs[owner.id] = dict(views.decode_shapes(backlog.tasks))
        self._cluster.view_may_have_changed()

    @handles(raylet.Leases.unreachable)
    def unreachable(self, lease: bytes) -> None:
        """A holder and its worker have lost one another: how its tasks fare, nobody could tell."""
        known, worker = self._keys.get(LeaseID(lease)), self._pool.worker_of(LeaseID(lease))
        if known is not None and known[0].link is self.caller and worker is not None:
            self._pool.end(worker, "the owner of its task could not reach it any more")

    def revoke(self, holder: bytes, leases: Iterable[LeaseID], cause: str) -> list[LeaseID]:
        """End leases and wishes of a holder; return those of which `on_lost` is still to tell."""
        ending: list[LeaseID] = []
        for lease in leases:
            known, worker = self._keys.get(lease), self._pool.worker_of(lease)
            if known is None or known[0].id != holder:
                continue
            if worker is None:
                self._end(lease)
            else:
                ending.append(lease)
                self._pool.end(worker, cause)
        return ending

    @handles(raylet.Leases.explain)
    def explain(self, lease: bytes) -> hot.Standing:
        """Say why a lease is not granted, for whoever wonders why a task does not run."""
        key = LeaseID(lease)
        since = self._picker.since(key)
        seconds = 0.0 if since is None else now() - since
        if (reason := self._picker.reason(key)) is not None:
            return hot.Standing(reason, seconds)
        standing = self._leases.standing(key)
        if standing is None:
            return hot.Standing(
                "it does not know of it: it has just been granted or withdrawn", 0.0
            )
        if standing.before is None:
            if (delay := self._pool.held_back(key)) is not None:
                counts = self._leases.statistics()
                text = (
                    f"{counts.lent} of its workers are at work, of which {counts.blocked} wait for "
                    f"other tasks: it starts more of them slowly, the next in {delay:.1f} s"
                )
                return hot.Standing(text, seconds)
            if self._pool.worker_of(key) is None:
                return hot.Standing("it starts a worker for it", seconds)
            return hot.Standing("it has granted it", seconds)
        free, total = self._leases.available(), self._leases.total
        return hot.Standing(waiting(standing.demand, free, total, standing.before), seconds)

    @handles(raylet.Leases.blocked)
    def blocked(self, nothing: bytes) -> None:
        member = self._pool.member(self.caller)
        if (lease := self._lease_of.get(member.id)) is not None:
            self._pool.blocked(member)
            self._perform(self._leases.blocked(lease))

    @handles(raylet.Leases.unblocked)
    def unblocked(self, nothing: bytes) -> None:
        member = self._pool.member(self.caller)
        if (lease := self._lease_of.get(member.id)) is not None:
            self._pool.unblocked(member)
            self._perform(self._leases.unblocked(lease))

    @handles(raylet.Leases.spent)
    def spent(self, nothing: bytes) -> None:
        self._pool.spent(self._pool.member(self.caller))

    @handles(raylet.Leases.resources)
    async def resources(self, request: msg.GetResources) -> msg.ResourceView:
        await self._cluster.wait_known(map(NodeKey, request.nodes))
        available = self._leases.available().left()
        return msg.ResourceView(self._leases.total.to_floats(), available)

    def _place(self, effects: list[picking.Effect]) -> None:
        for effect in effects:
            match effect:
                case Keep(ask):
                    if (request := self._requests.get(ask.lease)) is not None:
                        self._perform(self._leases.request(request))
                case Spill(lease, _, node, address, visited):
                    known = self._forget(lease)
                    if known is not None and not known[0].link.is_ended:
                        known[0].holder.spilled(hot.Spilled(lease, node, address, visited))
                case Refuse(lease, _, message):
                    self._tell(lease, message, is_final=True)
                    self._forget(lease)
                case picking.Infeasible(lease, _, message):
                    logger.warning("%s", message)
                    self._tell(lease, message, is_final=False)
                    self._perform(self._leases.release(lease))

    def _forget(self, lease: LeaseID) -> tuple[Member, bytes] | None:
        """Drop a request that is not granted: it is served elsewhere, or nowhere."""
        known = self._keys.pop(lease, None)
        self._requests.pop(lease, None)
        self._perform(self._leases.release(lease))
        return known

    def _perform(self, effects: list[Effect]) -> None:
        self._cluster.view_may_have_changed()
        for effect in effects:
            match effect:
                case Grant(lease, _, demand):
                    self._picker.granted(lease)
                    if lease in self._keys and self._pool.worker_of(lease) is None:
                        holder, key = self._keys[lease]
                        self._pool.lend(lease, key, demand.units("CPU"), holder)
                case Infeasible(lease, _, message):
                    logger.warning("%s", message)
                    self._tell(lease, message, is_final=False)
                case Revoke(lease, _):
                    self._revoke(lease)
                case Wanted(holders):
                    self._want(holders)
                case Unwanted(_):
                    self._alarm.set(now() + _CALM)

    def _want(self, holders: tuple[HolderKey, ...]) -> None:
        for member in self._members(holders):
            if member.id not in self._told:
                self._told[member.id] = None
                member.holder.wanted(b"")

    def _calm(self) -> None:
        """Nobody has waited lately: holders may keep idle leases for a while again."""
        if self._leases.waiting():
            return  # the machine will say when nobody does
        for member in self._members(tuple(HolderKey(id) for id in self._told)):
            member.holder.unwanted(b"")
        self._told.clear()

    async def stopped(self) -> None:
        self._alarm.cancel()

    def _lent(self, lease: LeaseID, worker: Member) -> None:
        known = self._keys.get(lease)
        if known is None or known[0].link.is_ended:
            self._pool.returned(lease)
            return
        self._lease_of[worker.id] = lease
        worker.job = known[1][:4]
        lent = known[0].lent
        lent.pop(WorkerKey(worker.id), None)
        lent[WorkerKey(worker.id)] = None
        if len(lent) > _KNOWN_WORKERS:
            del lent[next(iter(lent))]
        known[0].holder.granted(
            hot.LeaseGrant(
                lease,
                worker.id,
                worker.address,
                self._leases.devices(lease),
                worker.pid,
                self._pool.node_id,
            )
        )

    def _end(self, lease: LeaseID) -> None:
        self._keys.pop(lease, None)
        self._requests.pop(lease, None)
        self._picker.ended(lease)
        worker = self._pool.worker_of(lease)
        if worker is not None:
            self._lease_of.pop(worker, None)
        effects = self._leases.release(lease)
        self._pool.returned(lease)
        self._perform(effects)

    def _revoke(self, lease: LeaseID) -> None:
        """Its holder died: what runs on it is nobody's work."""
        self._keys.pop(lease, None)
        self._requests.pop(lease, None)
        worker = self._pool.worker_of(lease)
        if worker is None:
            self._pool.returned(lease)
        else:
            self._lease_of.pop(worker, None)
            self._pool.end(worker, "the owner of its task died")

    def _failed(self, lease: LeaseID, reason: str) -> None:
        self._tell(lease, f"no worker could be started: {reason}", is_final=True)
        self._end(lease)

    def _crowded(self, lease: LeaseID, limit: int) -> None:
        message = (
            f"More than {limit} tasks on this node wait in get() for other tasks, and each keeps its "
            "worker process, so further workers are started ever more slowly, up to a second apart. "
            "This comes from deep recursion: let tasks return the references of what they start "
            "instead of waiting for it, or give the node more CPUs."
        )
        logger.warning("%s", message)
        self._tell(lease, message, is_final=False)

    def _lost(
        self, lease: LeaseID, worker: Member, cause: str, last_task: bytes, reason: hot.LossReason
    ) -> None:
        known = self._keys.pop(lease, None)
        self._requests.pop(lease, None)
        self._picker.ended(lease)
        self._lease_of.pop(worker.id, None)
        loss = hot.WorkerLost(
            lease, worker.id, worker.address, cause, last_task, reason, self._oom_retries
        )
        if known is not None and not known[0].link.is_ended:
            known[0].holder.lost(loss)
        for listener in self.on_lost:
            listener(loss)
        self._perform(self._leases.release(lease))

    def _gone(self, member: Member, cause: str) -> None:
        self._told.pop(member.id, None)
        self._backlogs.pop(member.id, None)
        for lease in [lease for lease, known in self._keys.items() if known[0] is member]:
            if self._pool.worker_of(lease) is None:
                self._keys.pop(lease)
                self._requests.pop(lease, None)
                self._pool.returned(lease)
        self._picker.holder_died(HolderKey(member.id))
        self._perform(self._leases.holder_died(HolderKey(member.id)))

    def _tell(self, lease: LeaseID, message: str, *, is_final: bool) -> None:
        known = self._keys.get(lease)
        if known is not None and not known[0].link.is_ended:
            known[0].holder.problem(hot.LeaseProblem(lease, message, is_final))

    def _members(self, ids: tuple[HolderKey, ...]) -> list[Member]:
        return [
            member
            for member in self._pool.holders()
            if HolderKey(member.id) in ids and not member.link.is_ended
        ]

    def _demand(self, units: dict[str, int]) -> Resources:
        """Return the same object for the same demand: it is a key, and hashed often."""
        key = tuple(units.items())
        demand = self._resources.get(key)
        if demand is None:
            demand = self._resources[key] = Resources.from_units(units)
        return demand
