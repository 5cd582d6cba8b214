"""How a driver's job stays in the GCS's table, though the GCS may end and come back.

As with nodes, see `membership`: it says again what counts only as long as a link does. And as a
node may be, a driver can be given up by its cluster; then it has none any more.
"""

import asyncio
import logging
from collections.abc import Callable

from raylite._kernel.link import Link
from raylite._kernel.network import Network
from raylite._kernel.service import Service
from raylite._protocol import gcs
from raylite._wire.messages import gcs as msg
from raylite.exceptions import AuthenticationError, PeerLostError, RayError, RaySystemError

logger = logging.getLogger(__name__)

RETRY = 1.0  # seconds until a GCS that did not take the job is asked again
REFUSED = 8.0  # and until one that has refused this driver's node is


class DriverGivenUp(RaySystemError):
    """The cluster has ended this driver's job: it could not reach the driver for too long."""


class DriverService(Service):
    """Keeps this driver's job in the GCS's table: there the job lasts as long as a link does.

    A driver that the GCS could not reach for a session's time is dead to the cluster. When it hears
    so, it leaves every process that it has to do with, for the reason that all who wait are told.
    """

    def __init__(self, network: Network, gcs_address: str, row: msg.AddJob) -> None:
        self._network = network
        self._gcs_address = gcs_address
        self._row = row
        self._link: Link | None = None
        self.on_given_up: Callable[[str], None] = _ignore

    async def add(self) -> bytes:
        """Make the job known, or known again; return its id."""
        while True:
            self._link = self._network.connect(self._gcs_address)
            try:
                added = await gcs.Jobs(self._link).add(self._row)
                if not added.has_ended:
                    self._row.job_id = added.job_id
                    return added.job_id
                seconds = self._network.config.session_timeout
                raise DriverGivenUp(
                    f"the cluster has given up this driver, for the GCS could not reach it for {seconds:g} s: "
                    f"its job {added.job_id.hex()} has ended, and its tasks with it. Call shutdown() and "
                    "init() to begin another"
                )
            except PeerLostError as error:
                if not error.confirmed:
                    raise  # else another GCS takes the place of the one that was asked

    async def finish(self, job_id: bytes) -> None:
        """Say that the job has come to its end."""
        await gcs.Jobs(self._network.connect(self._gcs_address)).finish(msg.FinishJob(job_id))

    async def started(self) -> None:
        self.spawn(self._stay(), "stay in the table of jobs")

    async def _stay(self) -> None:
        is_known = True
        while True:
            if is_known:
                await _end_of(self._link)
            is_known = False
            try:
                await self.add()
                is_known = True
            except DriverGivenUp as error:
                self._leave(str(error))
                return
            except RayError as error:
                logger.info("the GCS does not take this driver's job: %s", error)
                await asyncio.sleep(REFUSED if isinstance(error, AuthenticationError) else RETRY)

    def _leave(self, reason: str) -> None:
        self.on_given_up(reason)
        for link in self._network.links:
            link.leave(reason)


def _ignore(reason: str) -> None: ...


async def _end_of(link: Link | None) -> None:
    if link is not None:
        ended = asyncio.Event()
        link.on_end(lambda link: ended.set())
        await ended.wait()
