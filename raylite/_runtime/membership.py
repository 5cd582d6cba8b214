"""How nodes stay in the GCS's tables, though the GCS may end and come back.

A GCS that was started again is another incarnation, so every link to the one before it ends: who
had said something that counts as long as the link does, says it again on the next.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable

from raylite._kernel.link import Link
from raylite._kernel.network import Network, Probe
from raylite._kernel.seams import now
from raylite._kernel.service import Service, every
from raylite._machines.epochs import Epochs
from raylite._machines.refusals import PATIENCE, Refusals, Tell
from raylite._protocol import gcs
from raylite._services.raylet.leases import LeaseService
from raylite._services.raylet.pool import Member, PoolService
from raylite._types.address import shown
from raylite._wire.messages import gcs as msg
from raylite.exceptions import (
    AuthenticationError,
    NodeDiedError,
    PeerLostError,
    RayError,
    RaySystemError,
    UnavailableError,
)

logger = logging.getLogger(__name__)

BEAT = 1.0
REFUSALS = 3  # in a row by where a GCS was that none follows: it has ended
COMPARE = 30.0  # seconds within which what was lost is found, as long as nodes beat once a second
_ENDED_KEPT = 1000  # ends of workers to be told, while there is no GCS to tell them to


_REFUSED = (
    "the cluster does not let this node in any more: %s. If its head was started anew, run `raylite "
    "stop` here and join again; if this node's token was revoked, run `raylite token rotate "
    "--token-file=FILE` here. The node asks for %g s"
)
_STALE = (
    "an earlier GCS answers in the place of the cluster's: %s. End it; if the cluster's tables were put "
    "back from a copy, run `raylite stop` here and join again. The node asks for %g s"
)


class NodeFenced(RaySystemError):
    """The cluster took this node for dead: what runs here is of use to nobody, so it ends.

    The fork server of a node that was started begins anew then, as another node.
    """


class StaleGcsError(UnavailableError):
    """Where the GCS should be, one answers that another has replaced."""


class MemberService(Service):
    """Keeps this node, its workers and the ends of its drivers in the GCS's tables.

    Each beat compares what the GCS was told with what is, and tells the difference; all of it, if
    the GCS is a new one or asks for it, and twice a minute: so whatever was lost is made up for. Without a GCS a head waits, since its fork server starts
    another; any other node ends when it has not been reachable for a session's timeout, for then
    nobody will ever give it work, when its cluster has taken it for dead, and when that has refused to
    let it in for as long. It ends within seconds when a GCS has ended that kept its tables in memory.
    """

    def __init__(
        self,
        network: Network,
        gcs_address: str,
        row: msg.RegisterNode,
        leases: LeaseService,
        pool: PoolService,
        epochs: Epochs,
    ) -> None:
        self._network = network
        self._gcs_address = gcs_address
        self._row = row
        self._leases = leases
        self._pool = pool
        self._epochs = epochs
        self._registered: tuple[Link, msg.Epoch] | None = None
        self._told: dict[bytes, msg.Worker] = {}
        self._ended: deque[msg.Worker] = deque(maxlen=_ENDED_KEPT)
        self._left: dict[bytes, None] = {}  # jobs whose driver has ended here
        self._refusals = Refusals(math.inf if row.head else PATIENCE)
        self._is_volatile = False  # the GCS, which has said so
        self._refusals_in_row = 0
        self._is_beating = False
        self._beat_seconds = BEAT  # as the GCS wants it
        self._beaten_at = -math.inf
        self._woke_at = math.inf
        self._lag = 0.0  # the longest that this loop has stood still since it last told
        self.joined = asyncio.Event()
        self._compare_at = 0.0  # when all is told the next time
        self._random = network.seams.random("comparing")
        #: Asks what of others is here and should not be; told whether this node has just registered.
        self.compare: Callable[[Link, bool], Awaitable[None]] = _ignore
        pool.on_gone.append(self._gone)

    async def started(self) -> None:
        self.spawn(self.beat(), "join the cluster")

    @every(seconds=BEAT)
    async def beat(self) -> None:
        self._lag = max(self._lag, now() - self._woke_at - BEAT)
        self._woke_at = now()
        if now() - self._beaten_at < self._beat_seconds - BEAT / 2:
            return
        if self._is_beating or not self._refusals.may_ask(now()):
            return  # the first one is still waiting for its answer, or asking is of no use yet
        self._beaten_at = now()
        self._is_beating = True
        try:
            await self._beat(self._network.connect(self._gcs_address))
            self._refusals.accepted()
        except (AuthenticationError, StaleGcsError) as error:
            self._refused(error)
        except PeerLostError as error:
            if not (error.confirmed or self._row.head):
                raise RaySystemError(
                    f"this node ends, for it has lost its cluster: {error}"
                ) from error
        except NodeDiedError as error:
            raise NodeFenced(
                f"all that runs on this node ends, for its cluster has taken it for dead ({error})"
            ) from error
        except RayError as error:
            logger.warning("the GCS does not answer: %s", error)
        finally:
            self._is_beating = False

    @every(seconds=BEAT)
    async def miss(self) -> None:
        """Try a GCS that does not answer a beat, if none follows it."""
        is_late = self._is_beating and now() - self._beaten_at >= BEAT / 2
        if not (is_late and self._is_volatile) or self._row.head:
            self._refusals_in_row = 0
            return
        found = await self._network.probe(self._gcs_address, BEAT)
        self._refusals_in_row = self._refusals_in_row + 1 if found is Probe.REFUSED else 0
        if self._refusals_in_row == REFUSALS:
            raise RaySystemError(
                "this node ends, for its cluster's GCS has ended, and its tables with it, which were in "
                f"memory: nobody listens at {shown(self._gcs_address)} any more"
            )

    def _refused(self, error: AuthenticationError | StaleGcsError) -> None:
        is_stale = isinstance(error, StaleGcsError)
        for effect in self._refusals.refused(now()):
            if isinstance(effect, Tell):
                logger.warning(_STALE if is_stale else _REFUSED, error, effect.seconds)
            else:
                what = "has been another for" if is_stale else "has refused it for"
                raise RaySystemError(
                    f"this node ends, for its cluster {what} {effect.seconds:.0f} s: {error}"
                ) from error

    async def _beat(self, link: Link) -> None:
        is_known, is_due, sent_at = False, now() >= self._compare_at, now()
        if self._epochs.number:
            is_known = await self._sync(link)
        if not is_known:
            self._registered = None  # if this fails, the next beat does it
            registered = await gcs.Nodes(link).register(self._row)
            epoch = registered.epoch or msg.Epoch()
            self._epochs.registered(epoch.cluster_id, epoch.number)
            self._registered, self._is_volatile = (link, epoch), registered.volatile
            self.joined.set()
        self._pool.heard_at = sent_at
        self._report(link, complete=is_due or not is_known)
        if is_due or not is_known:
            await self.compare(link, not is_known)
            # Nodes that joined together, or were heard by a new GCS together, do not go on so.
            share = 1.0 if is_known else self._random.random()
            self._compare_at = now() + share * COMPARE * self._beat_seconds / BEAT
        for job_id in list(self._left):
            await gcs.Jobs(link).finish(msg.FinishJob(job_id, died=True))
            self._left.pop(job_id, None)

    async def _sync(self, link: Link) -> bool:
        """Give a sign of life; whether the GCS knows this node as it was registered on this link.

        Raises:
            StaleGcsError: It is a GCS that another has replaced: this node is not to register with it.
        """
        row, available = self._row, self._leases.leases.available().left()
        lag, self._lag = self._lag, 0.0
        beat = msg.Heartbeat(row.node_id, row.incarnation, available, lag)
        synced = await gcs.Nodes(link).sync(beat)
        self._beat_seconds = synced.beat or BEAT
        epoch = synced.epoch or msg.Epoch()
        if self._epochs.is_replaced(epoch.cluster_id, epoch.number):
            reason = (
                f"it is life {epoch.number} of the GCS, and life {self._epochs.number} is known"
            )
            link.confirm_dead(reason)  # the next beat dials anew, and may find the latest
            raise StaleGcsError(f"{shown(self._gcs_address)}: {reason}")
        return not synced.register_again and self._registered == (link, epoch)

    def _report(self, link: Link, *, complete: bool) -> None:
        row = self._row
        living = {member.id: self._worker(member) for member in self._pool.workers()}
        changed = [
            worker for id, worker in living.items() if complete or self._told.get(id) != worker
        ]
        workers = [*changed, *self._ended]
        if workers or complete:
            report = msg.ReportWorkers(row.node_id, row.incarnation, workers, complete)
            gcs.Workers(link).report(report)
        self._told = living
        self._ended.clear()

    def _worker(self, member: Member) -> msg.Worker:
        return msg.Worker(
            worker_id=member.id,
            node_id=self._row.node_id,
            pid=member.pid,
            job_id=member.job,
            alive=True,
            address=member.address,
        )

    def _gone(self, member: Member, cause: str) -> None:
        if member.is_guest:
            return
        if member.token is None:
            self._left[member.job] = None
            return
        worker = self._worker(member)
        worker.alive, worker.exit_cause = False, cause
        self._ended.append(worker)


async def _ignore(link: Link, is_new: bool) -> None: ...
