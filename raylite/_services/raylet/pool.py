"""The Pool service: this node's worker processes and drivers, from their start to their death."""

import asyncio
import logging
from collections.abc import Callable, Hashable
from typing import Protocol

from msgspec import Struct, field

from raylite._kernel.alarm import Alarm
from raylite._kernel.link import Link
from raylite._kernel.network import Network
from raylite._kernel.seams import now
from raylite._kernel.service import Service, every, handles
from raylite._machines.pool import Crowded, Effect, Fail, Lend, Lost, Pool, Retire, Start
from raylite._protocol import raylet
from raylite._types.keys import LeaseID, StartToken, WorkerKey
from raylite._types.marks import mark_of
from raylite._wire import hot
from raylite._wire.hot import LossReason
from raylite._wire.messages import raylet as msg
from raylite.exceptions import PeerLostError, ProtocolError, UnavailableError

logger = logging.getLogger(__name__)

MOST_PIDS = 1 << 22  # what Linux gives at most
PULSE = 1.0  # seconds
PRESTART_AFTER = 0.3  # seconds, unless a driver comes: a node that begins has more urgent work
_STILLBORN_KEPT = 1000
_JOBS_KEPT = 10_000  # jobs that have ended, against waiting for what they might need
_NODES_KEPT = 10_000


class WorkerSource(Protocol):
    """Starts workers and knows of their deaths: the fork server, or threads, or a simulation.

    It tells `started`, `failed` and `ended` of the listener, in that order, once each.
    """

    listener: "SourceListener"
    output: "OutputListener"

    def start(self, token: int) -> None: ...
    def kill(self, token: int) -> None: ...
    def last_task(self, token: int) -> bytes: ...
    def flush_output(self) -> None: ...
    def resume_output(self) -> None: ...
    def runs(self, unheard: float) -> None:
        """The raylet runs, which the GCS heard so many seconds ago.

        If it does not say so for long, its workers are ended, see `Pulse`.
        """


class OutputListener(Protocol):
    """Who is told what workers print, and is asked before more of it is read."""

    def printed(
        self, token: int, pid: int, name: str, is_stderr: bool, lines: list[bytes], is_cut: bool
    ) -> None: ...
    def closed(self, token: int, pid: int, is_stderr: bool) -> None: ...
    def may_read(self, token: int) -> bool: ...


class SourceListener(Protocol):
    """Who is told of workers' starts that failed, and of their ends."""

    def start_failed(self, token: int, reason: str, *, was_killed: bool = False) -> None: ...
    def ended(self, token: int, cause: str, *, was_killed: bool = False) -> None: ...


class Member(Struct):
    """A process of this node: a worker, or a driver (`token` None). Or a guest: one of another node."""

    id: bytes
    address: str
    pid: int
    link: Link
    token: int | None
    process: raylet.Process
    holder: raylet.Holder
    job: bytes = b""
    is_guest: bool = False
    lent: dict[WorkerKey, None] = field(default_factory=dict)  # workers it had, the last one last


class PoolService(Service, serves=(raylet.Pool,)):
    """Carries out what `Pool` decides. Others listen to `on_lent`, `on_failed` and `on_gone`."""

    def __init__(
        self, network: Network, pool: Pool, source: WorkerSource, node_id: bytes, gcs: str
    ) -> None:
        self._network = network
        self._pool = pool
        self._source = source
        self.node_id = node_id
        self._gcs = gcs
        self._workers: dict[bytes, Member] = {}
        self._drivers: dict[bytes, Member] = {}
        self._guests: dict[bytes, Member] = {}  # of other nodes, who hold or want leases here
        self._parted: dict[
            bytes, Member
        ] = {}  # guests out of reach, of whom nobody says that they are dead
        self._by_link: dict[Link, Member] = {}
        self._ids: dict[int, bytes] = {}  # workers by the token they were started with
        self._alarm = Alarm(self._expire)
        self._prestart = Alarm(self._start)
        self.arena_size = 0
        self.heard_at: float = now()  # by the GCS: when what it answered last was sent
        self.on_lent: Callable[[LeaseID, Member], None] = _ignore
        self.on_failed: Callable[[LeaseID, str], None] = _ignore
        self.on_crowded: Callable[[LeaseID, int], None] = _ignore
        self.on_lost: Callable[[LeaseID, Member, str, bytes, LossReason], None] = _ignore
        self.on_gone: list[Callable[[Member, str], None]] = []
        #: Told of guests that cannot be reached any more: what they have here stays, but for leases.
        self.on_parted: list[Callable[[Member, str], None]] = []
        self.on_driver: Callable[[Member], None] = _ignore
        #: Set once this node is in the GCS's table, where drivers look for it.
        self.joined: asyncio.Event | None = None
        self._ending: dict[bytes, str] = {}
        self._reasons: dict[bytes, LossReason] = {}  # of those killed for another than the usual
        self._ended_jobs: dict[bytes, None] = {}
        self._dead_nodes: dict[str, str] = {}  # by their marks, and why
        self._stillborn: dict[int, None] = {}  # tokens of workers that ended and may yet register
        source.listener = self

    async def started(self) -> None:
        self._prestart.set(now() + PRESTART_AFTER)
        self.pulse()

    async def stopped(self) -> None:
        self._prestart.cancel()
        self._alarm.cancel()

    @every(seconds=PULSE)
    def pulse(self) -> None:
        self._source.runs(now() - self.heard_at)

    def _start(self) -> None:
        self._perform(self._pool.start(now()))

    @property
    def pool(self) -> Pool:
        """The machine, for those who report on it."""
        return self._pool

    # ---- who is here ---------------------------------------------------------------------

    @handles(raylet.Pool.register_worker)
    def register_worker(self, request: msg.RegisterWorker) -> msg.WorkerRegistered:
        token = int.from_bytes(request.token, "little")
        if token in self._stillborn:
            raise UnavailableError("this worker is dead already: its last words came late")
        member = self._member(request.worker_id, request.address, request.pid, token)
        self._workers[member.id] = member
        self._ids[token] = member.id
        effects = self._pool.registered(StartToken(token), WorkerKey(member.id), now())
        self._perform(effects)
        return msg.WorkerRegistered(self.node_id, self._gcs, self.arena_size)

    @handles(raylet.Pool.register_driver)
    async def register_driver(self, request: msg.RegisterDriver) -> msg.DriverRegistered:
        if not 0 < request.pid <= MOST_PIDS:
            raise ProtocolError(f"a driver whose process would be {request.pid}")
        member = self._member(request.driver_id, request.address, request.pid, None)
        member.job = request.job_id
        self._drivers[member.id] = member
        self._start()
        self.caller.on_end(lambda link: self.driver_ended(member))
        self.on_driver(member)
        if self.joined is not None:
            await self.joined.wait()
        return msg.DriverRegistered(self.node_id, self._gcs, self.arena_size)

    def member(self, link: Link) -> Member:
        """Return the process at the other end of a link."""
        member = self._by_link.get(link)
        if member is None:
            raise UnavailableError(f"{link.peer} has not registered with this raylet")
        return member

    def holder(self, link: Link, id: bytes) -> Member:
        """Return who asks for leases on a link: a process of this node, or a guest of that id."""
        member = self._by_link.get(link)
        if member is not None:
            return member
        if not id:
            raise UnavailableError(f"{link.peer} has not registered with this raylet")
        self._parted.pop(id, None)
        guest = self._guests[id] = self._by_link[link] = Member(
            id, link.peer, 0, link, None, raylet.Process(link), raylet.Holder(link),
            is_guest=True,
        )  # fmt: skip
        link.on_end(lambda link: self._guest_left(guest))
        return guest

    def holders(self) -> list[Member]:
        """The members, and the guests."""
        return [*self.members(), *self._guests.values()]

    def members(self) -> list[Member]:
        return [*self._workers.values(), *self._drivers.values()]

    def workers(self) -> list[Member]:
        return list(self._workers.values())

    def drivers(self) -> list[Member]:
        return list(self._drivers.values())

    def guests(self) -> list[Member]:
        """Those who have, or had, leases here, and live as far as is known."""
        return [*self._guests.values(), *self._parted.values()]

    def jobs(self) -> list[bytes]:
        """The jobs that workers here are bound to."""
        keys = self._pool.keys()
        return list(dict.fromkeys(key[:4] for key in keys if isinstance(key, bytes)))

    def drivers_of(self, job: bytes) -> list[Member]:
        return [driver for driver in self._drivers.values() if driver.job == job]

    def member_by_token(self, token: int) -> Member | None:
        return self._workers.get(self._ids.get(token, b""))

    def tell(self, death: hot.Death) -> None:
        """Let this node's processes know of the death of a process, here or elsewhere."""
        for member in self.members():
            if not member.link.is_ended:
                member.process.died(death)

    # ---- lending -------------------------------------------------------------------------

    def lend(self, lease: LeaseID, key: Hashable, cpu: int, holder: Member) -> None:
        """Find a worker for a granted lease; `on_lent` tells which."""
        self._perform(self._pool.lend(lease, key, now(), cpu=cpu, known=reversed(holder.lent)))

    def returned(self, lease: LeaseID) -> None:
        self._perform(self._pool.withdraw(lease, now()))

    def blocked(self, member: Member) -> None:
        self._perform(self._pool.blocked(WorkerKey(member.id), now()))

    def unblocked(self, member: Member) -> None:
        self._perform(self._pool.unblocked(WorkerKey(member.id)))

    def spent(self, member: Member) -> None:
        self._perform(self._pool.spent(WorkerKey(member.id), now()))

    def end(self, worker: bytes, cause: str, reason: LossReason = LossReason.DIED) -> None:
        """Kill a worker: what it does is nobody's any more, or has to begin again."""
        member = self._workers.get(worker)
        if member is not None and member.token is not None:
            self._ending[worker] = cause
            if reason is not LossReason.DIED:
                self._reasons[worker] = reason
            self._source.kill(member.token)

    def worker_of(self, lease: LeaseID) -> bytes | None:
        return self._pool.worker_of(lease)

    def held_back(self, lease: LeaseID) -> float | None:
        """Return the seconds until a worker may be started for a lease, if it has to wait for that."""
        return self._pool.held_back(lease, now())

    # ---- what the source says ------------------------------------------------------------

    def start_failed(self, token: int, reason: str, *, was_killed: bool = False) -> None:
        failed = self._pool.start_failed(StartToken(token), reason, now(), was_killed=was_killed)
        self._perform(failed)

    def ended(self, token: int, cause: str, *, was_killed: bool = False) -> None:
        id = self._ids.pop(token, None)
        if id is None:
            self._stillborn[token] = None
            if len(self._stillborn) > _STILLBORN_KEPT:
                del self._stillborn[next(iter(self._stillborn))]
            reason = f"a worker process ended before it was ready: {cause}"
            self.start_failed(token, reason, was_killed=was_killed)
            return
        member = self._workers.pop(id)
        self._by_link.pop(member.link, None)
        cause = self._ending.pop(id, cause)
        loss = self._reasons.pop(id, LossReason.DIED)
        last_task = self._source.last_task(token)
        effects = self._pool.died(WorkerKey(id), now())
        for effect in effects:
            if isinstance(effect, Lost):
                self.on_lost(effect.lease, member, cause, last_task, loss)
        self._gone(member, cause)
        self._perform([effect for effect in effects if not isinstance(effect, Lost)])

    def driver_ended(self, driver: Member) -> None:
        """A driver said goodbye, or somebody saw it end: its job is nobody's. Once is enough."""
        if self._drivers.pop(driver.id, None) is None:
            return
        self._by_link.pop(driver.link, None)
        self._gone(driver, "the driver has exited")
        self.job_ended(driver.job)

    def job_ended(self, job: bytes) -> None:
        """Nobody needs this job's workers any more, on whatever node its driver was."""
        if job in self._ended_jobs and job not in self.jobs():
            return
        self._ended_jobs[job] = None
        if len(self._ended_jobs) > _JOBS_KEPT:
            del self._ended_jobs[next(iter(self._ended_jobs))]
        for id in self._ending:  # those that wait until nobody needs them
            if (worker := self._workers.get(id)) is not None and worker.job == job:
                self._retire(WorkerKey(id))
        bound = self._pool.keys()
        for key in bound:
            if isinstance(key, bytes) and key[:4] == job:
                self._perform(self._pool.retire_key(key, now()))

    def _guest_left(self, guest: Member) -> None:
        self._by_link.pop(guest.link, None)
        if self._guests.get(guest.id) is not guest:
            return
        del self._guests[guest.id]
        error, cause = guest.link.error, "its link has ended"
        if isinstance(error, PeerLostError) and not error.confirmed:
            self._parted[guest.id] = guest
            for listener in self.on_parted:
                listener(guest, cause)
            if (death := self._dead_nodes.get(mark_of(guest.address))) is not None:
                self.died_elsewhere(guest.id, death)  # it came when that had been told
        else:
            self._gone(guest, cause)  # what it owned here goes: readers must know

    def died_elsewhere(self, id: bytes, cause: str) -> None:
        """A process of another node is dead; if it was a guest out of reach, what it has here goes."""
        if (guest := self._parted.pop(id, None)) is not None:
            self._gone(guest, cause)

    def node_died(self, mark: str, cause: str) -> None:
        """Another node is dead, and so are the guests that came from there, or will until it hears so."""
        self._dead_nodes[mark] = cause
        if len(self._dead_nodes) > _NODES_KEPT:
            del self._dead_nodes[next(iter(self._dead_nodes))]
        for guest in [each for each in self._parted.values() if mark_of(each.address) == mark]:
            self.died_elsewhere(guest.id, cause)

    def _gone(self, member: Member, cause: str) -> None:
        self._network.confirm_dead(member.address, cause)
        member.link.confirm_dead(cause)
        self.tell(hot.Death(member.id, member.address, cause))
        for listener in self.on_gone:
            listener(member, cause)

    # ---- inside --------------------------------------------------------------------------

    def _member(self, id: bytes, address: str, pid: int, token: int | None) -> Member:
        link = self.caller
        process, holder = raylet.Process(link), raylet.Holder(link)
        member = Member(id, address, pid, link, token, process, holder)
        self._by_link[link] = member
        return member

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Lend(worker, lease):
                    self.on_lent(lease, self._workers[worker])
                case Start(token, _):
                    self._source.start(token)
                case Retire(worker):
                    self._retire(worker)
                case Fail(lease, reason):
                    self.on_failed(lease, reason)
                case Crowded(lease, limit):
                    self.on_crowded(lease, limit)
                case Lost(_, _):
                    pass  # told by `ended`, which knows the cause
        self._alarm.set(self._pool.next_wakeup(now()))

    def _retire(self, worker: WorkerKey) -> None:
        member = self._workers.get(worker)
        if member is not None and not member.link.is_ended:
            self._ending[worker] = "it was idle and has been retired"
            is_needed = member.job and member.job not in self._ended_jobs
            member.process.leave(hot.Leave(not is_needed))

    def _expire(self) -> None:
        self._perform(self._pool.expire(now()))


def _ignore(*args: object) -> None: ...
