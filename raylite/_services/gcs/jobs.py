"""The Job service: one row a driver, from its start to its end."""

from raylite._kernel.link import Link
from raylite._kernel.seams import wall
from raylite._kernel.service import Service, handles
from raylite._protocol import gcs
from raylite._services.gcs.storage import Storage
from raylite._wire.messages import gcs as msg

_TABLE = "jobs"


class JobService(Service, serves=(gcs.Jobs,)):
    """Numbers jobs from 1 and notes when they end: by their word, or with their driver."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._rows: dict[bytes, msg.Job] = {}
        self._last = 0

    async def started(self) -> None:
        for key, value in await self._storage.scan(_TABLE):
            self._rows[key] = msg.Job.parse(value)
            self._last = max(self._last, int.from_bytes(key, "little"))

    @handles(gcs.Jobs.add)
    async def add(self, request: msg.AddJob) -> msg.JobAdded:
        link = self.caller
        for row in self._rows.values():
            if row.driver_id == request.driver_id:
                return msg.JobAdded(row.job_id)
        self._last += 1
        job_id = self._last.to_bytes(4, "little")
        row = self._rows[job_id] = msg.Job(
            job_id=job_id,
            driver_id=request.driver_id,
            driver_pid=request.driver_pid,
            entrypoint=request.entrypoint,
            namespace=request.namespace,
            started_at=wall(),
        )
        await self._storage.put(_TABLE, job_id, bytes(row))
        link.on_end(lambda ended: self._driver_left(ended, job_id))
        return msg.JobAdded(job_id)

    @handles(gcs.Jobs.finish)
    async def finish(self, request: msg.FinishJob) -> msg.JobFinished:
        await self._finish(request.job_id)
        return msg.JobFinished()

    @handles(gcs.Jobs.list)
    def list_jobs(self, request: msg.ListJobs) -> msg.JobList:
        return msg.JobList([*self._rows.values()])

    def _driver_left(self, link: Link, job_id: bytes) -> None:
        if not self.scope.is_closed:
            self.spawn(self._finish(job_id), "finish job")

    async def _finish(self, job_id: bytes) -> None:
        row = self._rows.get(job_id)
        if row is None or row.finished:
            return
        row.finished = True
        row.finished_at = wall()
        await self._storage.put(_TABLE, job_id, bytes(row))
