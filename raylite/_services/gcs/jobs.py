"""The Job service: one row a driver, from its start to its end."""

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

from raylite._kernel.codec import Encoded
from raylite._kernel.link import Link
from raylite._kernel.seams import now, wall
from raylite._kernel.service import Service, every, handles
from raylite._protocol import gcs
from raylite._services.gcs.epoch import Epoch
from raylite._services.gcs.news import TableNews
from raylite._services.gcs.storage import Storage, StorageError, Write
from raylite._services.gcs.table import Change, Table
from raylite._wire.messages import gcs as msg
from raylite.exceptions import LinkClosedError

logger = logging.getLogger(__name__)

RECLAIM = 60.0  # seconds that drivers have after a restart of the GCS to say that they are there

_SIZE = 4  # bytes of a job's id, which is its number
_COUNTER = ("counters", b"jobs")


class JobService(Service, serves=(gcs.Jobs,)):
    """Numbers jobs from 1 and notes when they end: by their word, or with their driver.

    A number is never given twice, though jobs that ended long ago are forgotten.
    """

    def __init__(self, storage: Storage, epoch: Epoch) -> None:
        self._storage = storage
        self._epoch = epoch
        self._table = Table(storage, "jobs", msg.Job.parse, lambda row: row.finished)
        self._news = TableNews(
            self._table,
            lambda row: bytes(msg.JobEvent([row])),
            lambda: bytes(msg.JobEvent(epoch=epoch.message)),
        )
        self._last = 0
        self._links: dict[bytes, Link] = {}
        self._gone: dict[bytes, None] = {}  # jobs whose driver is, and whose row does not say so
        self._lost: dict[bytes, None] = {}  # jobs whose records were found damaged
        self._reclaimable: dict[bytes, None] = {}
        self._reclaim_until = 0.0

    async def started(self) -> None:
        await self._epoch.begin()
        await self._table.load()
        self.spawn(self._news.run(), "tell of jobs")
        table, key = _COUNTER
        counter = (await self._storage.load(table)).get(key, b"")
        self._lost = dict.fromkeys(await self._storage.lost(self._table.name))
        known = (*self._table.rows, *self._lost)
        numbers = [int.from_bytes(job_id, "little") for job_id in known if len(job_id) == _SIZE]
        self._last = max([int.from_bytes(counter, "little"), *numbers])
        running = (job_id for job_id, row in self._table.rows.items() if not row.finished)
        self._reclaimable = dict.fromkeys(running)
        self._reclaim_until = now() + RECLAIM

    @handles(gcs.Jobs.add)
    async def add(self, request: msg.AddJob) -> msg.JobAdded:
        row = self._of(request.driver_id)
        if row is None and request.job_id and not self._may_return(request.job_id):
            return msg.JobAdded(request.job_id, self._epoch.message, has_ended=True)
        if row is None:
            row = _row(request.job_id or self._next(), request)
            self._follow(self.caller, row.job_id)
            counter = Write(*_COUNTER, self._last.to_bytes(_SIZE, "little"))
            await self._table.write([Change(row.job_id, row)], also=[counter])
        elif row.finished:
            return msg.JobAdded(row.job_id, self._epoch.message, has_ended=True)
        else:
            self._follow(self.caller, row.job_id)
            await self._table.durable(row.job_id)
        return msg.JobAdded(row.job_id, self._epoch.message)

    @handles(gcs.Jobs.finish)
    async def finish(self, request: msg.FinishJob) -> msg.JobFinished:
        row = self._table.latest(request.job_id)
        if row is None or row.finished:
            await self._table.durable(request.job_id)
        else:
            state = msg.JobState.DEAD if request.died else msg.JobState.SUCCEEDED
            await self._table.write([_ended(row, state)])
        return msg.JobFinished()

    def _next(self) -> bytes:
        self._last += 1
        return self._last.to_bytes(_SIZE, "little")

    def _may_return(self, job_id: bytes) -> bool:
        """Whether a driver may have this job again, of which there is no row."""
        is_free = self._table.latest(job_id) is None
        return job_id in self._lost and is_free and now() < self._reclaim_until

    @handles(gcs.Jobs.list)
    def list_jobs(self, request: msg.ListJobs) -> msg.JobList:
        return msg.JobList([*self._table.rows.values()], self._epoch.message)

    @handles(gcs.Jobs.ended)
    def ended(self, request: msg.AskEnded) -> msg.JobList:
        return msg.JobList([*filter(None, map(self._over, request.ids))], self._epoch.message)

    @handles(gcs.Jobs.watch)
    async def watch(self, request: msg.WatchJobs) -> AsyncIterator[Encoded]:
        async with aclosing(self._news.messages()) as messages:
            async for message in messages:
                yield message

    @every(seconds=1.0)
    async def sweep(self) -> None:
        if now() >= self._reclaim_until:
            self._gone |= self._reclaimable
            self._reclaimable = {}
        await self._end_gone()

    async def _end_gone(self) -> None:
        """End the jobs whose drivers are gone; when the storage fails, the sweep tries again."""
        rows = [row for job_id in self._gone if (row := self._table.latest(job_id)) is not None]
        dead = [_ended(row, msg.JobState.DEAD) for row in rows if not row.finished]
        try:
            if dead:
                await self._table.write(dead)
        except StorageError as error:
            logger.warning("%d jobs that ended are not in the table yet: %s", len(dead), error)
        over = [job_id for job_id in self._gone if self._is_over(job_id)]
        for job_id in over:
            del self._gone[job_id]

    def _over(self, job_id: bytes) -> msg.Job | None:
        """Return the row of a job if it has ended; where that was forgotten, one that says only so."""
        row = self._table.rows.get(job_id)
        if row is not None:
            return row if row.finished else None
        number = int.from_bytes(job_id, "little")
        is_forgotten = number <= self._last and self._table.latest(job_id) is None
        if not is_forgotten or now() < self._reclaim_until:
            return None  # it is new, or its driver may yet add it again
        return msg.Job(job_id=job_id, finished=True, state=msg.JobState.DEAD)

    def _is_over(self, job_id: bytes) -> bool:
        """Whether nothing is left to be written about a job."""
        row = self._table.rows.get(job_id)
        return row.finished if row is not None else self._table.latest(job_id) is None

    def _of(self, driver_id: bytes) -> msg.Job | None:
        return next((r for _, r in self._table.all_latest() if r.driver_id == driver_id), None)

    def _follow(self, link: Link, job_id: bytes) -> None:
        """Take the end of the session that the driver came on last for the driver's."""

        def ended(link: Link) -> None:
            if self._links.get(job_id) is not link:
                return
            del self._links[job_id]
            if isinstance(link.error, LinkClosedError) or self.scope.is_closed:
                return  # it is the GCS that ends
            self._gone[job_id] = None
            self.spawn(self._end_gone(), "end a job")

        self._reclaimable.pop(job_id, None)
        self._gone.pop(job_id, None)
        if self._links.get(job_id) is not link:
            self._links[job_id] = link
            link.on_end(ended)


def _row(job_id: bytes, request: msg.AddJob) -> msg.Job:
    return msg.Job(
        job_id=job_id,
        driver_id=request.driver_id,
        driver_pid=request.driver_pid,
        driver_address=request.driver_address,
        node_id=request.node_id,
        entrypoint=request.entrypoint,
        namespace=request.namespace,
        config=request.config,
        started_at=wall(),
    )


def _ended(row: msg.Job, state: msg.JobState) -> Change[msg.Job]:
    return Change(row.job_id, replace(row, finished=True, state=state, finished_at=wall()))
