"""The Logs service: what this node's workers print, into files and to the drivers of their jobs.

Nothing here is without a bound. Reading waits when the files' thread is behind, when a job's driver is
(see `_machines/logs.py`), and when a second has brought more than `FLOOD`: then the writer waits on its
full pipe, and neither the node nor its memory is filled.
"""

import asyncio
import logging
from collections.abc import Iterator
from typing import Protocol

from msgspec import Struct

from raylite._kernel.alarm import Alarm
from raylite._kernel.link import Link
from raylite._kernel.network import Network
from raylite._kernel.rate import Rate
from raylite._kernel.seams import now
from raylite._kernel.service import Service, handles
from raylite._machines.logs import Dropped, Effect, Logs, Resume, Send
from raylite._protocol import raylet, worker
from raylite._services.raylet.cluster import ClusterService
from raylite._services.raylet.pool import Member, PoolService, WorkerSource
from raylite._wire import hot
from raylite.exceptions import RayError

logger = logging.getLogger(__name__)

FLOOD = 16 * 1024 * 1024  # bytes a second that are read of all workers together
READING = 1024  # bytes that reading something costs at least
PAUSE = 0.05  # seconds until reading goes on after a flood
FILE_ROOM = 2 * 1024 * 1024  # bytes that may wait for the files' thread
ITEM = 256  # bytes that some lines take here besides their text

_NIL_WORKER, _NIL_JOB = b"\xff" * 28, b"\xff" * 4  # Ray's ids of none


class Chunk(Struct, frozen=True):
    """Bytes for the log file of an output. Its name may change; after the last it is complete."""

    output: tuple[int, bool]
    name: str
    data: bytes
    is_last: bool = False


class LogFiles(Protocol):
    """Where output is kept. What cannot be kept is lost, and said there; nothing is raised."""

    async def write(self, chunks: list[Chunk]) -> None: ...
    async def close(self) -> None: ...


class LogService(Service, serves=(raylet.Logs,)):
    """Carries out what `Logs` decides, and keeps everything in files as well.

    Args:
        network: The raylet's.
        pool: Who the workers and the drivers of this node are.
        cluster: Where the drivers on other nodes are.
        source: Tells what workers print, and reads on when asked to.
        ip: This node's address, for drivers of others.
        files: Where output is kept; None keeps none.
    """

    def __init__(
        self,
        network: Network,
        pool: PoolService,
        cluster: ClusterService,
        source: WorkerSource,
        ip: str,
        files: LogFiles | None,
    ) -> None:
        self._network, self._pool, self._cluster = network, pool, cluster
        self._source, self._ip, self._files = source, ip, files
        self.logs: Logs = Logs()
        self._moved = asyncio.Event()
        self._has_chunks = asyncio.Event()
        self._chunks: list[Chunk] = []
        self._waiting = 0
        self._flood = Rate(FLOOD, FLOOD, 0.0)
        self._alarm = Alarm(self._expire)
        self._calm = Alarm(self._read_on)
        source.output = self
        pool.on_gone.append(self._gone)
        cluster.on_driver.append(self._driver_known)
        cluster.on_driver_ended.append(self._driver_ended)

    async def started(self) -> None:
        if self._files is not None:
            self.spawn(self._write(self._files), "write log files")

    async def stopped(self) -> None:
        self._alarm.cancel()
        self._calm.cancel()
        if self._files is not None:
            self._source.flush_output()
            await self._files.write(self._take())
            await self._files.close()

    # ---- what the source says ------------------------------------------------------------

    def printed(
        self, token: int, pid: int, name: str, is_stderr: bool, lines: list[bytes], is_cut: bool
    ) -> None:
        """A worker printed these lines, the last of which may go on (`is_cut`)."""
        member = self._pool.member_by_token(token)
        data = b"\n".join(lines) if is_cut else b"\n".join([*lines, b""])
        self._flood.spend(now(), len(data) + READING)
        self._keep(Chunk((token, is_stderr), _file_name(member, pid, is_stderr), data))
        texts = tuple(line.decode(errors="replace") for line in lines)
        printed = hot.OutputLines(name, pid, is_stderr, texts)
        for job in self._jobs_of(member):
            size = len(data) + ITEM
            self._perform(self.logs.printed(job, printed, size, len(lines), now()))
            if self._link_to(job) is not None:
                self._perform(self.logs.known(job, now()))

    def closed(self, token: int, pid: int, is_stderr: bool) -> None:
        """A worker's output has come to its end."""
        name = _file_name(self._pool.member_by_token(token), pid, is_stderr)
        self._keep(Chunk((token, is_stderr), name, b"", is_last=True))

    def may_read(self, token: int) -> bool:
        """Whether there is room for more of a worker's output; if not, the source hears when."""
        if self._flood.is_spent(now()):
            self._calm.set(now() + PAUSE)
            return False
        if self._waiting >= FILE_ROOM:
            return False
        jobs = self._jobs_of(self._pool.member_by_token(token))
        is_full = [self.logs.is_full(job, now()) for job in jobs]
        self._set_alarm()
        return not any(is_full)

    # ---- files ---------------------------------------------------------------------------

    def _keep(self, chunk: Chunk) -> None:
        if self._files is not None:
            self._chunks.append(chunk)
            self._waiting += len(chunk.data)
            self._has_chunks.set()

    def _take(self) -> list[Chunk]:
        chunks, self._chunks, self._waiting = self._chunks, [], 0
        return chunks

    async def _write(self, files: LogFiles) -> None:
        while True:
            await self._has_chunks.wait()
            self._has_chunks.clear()
            await files.write(self._take())
            self._read_on()

    # ---- drivers -------------------------------------------------------------------------

    @handles(raylet.Logs.flush)
    async def flush(self, job: bytes) -> None:
        self._source.flush_output()
        mark = self.logs.mark(job)
        while not self.logs.is_settled(job, mark):
            self._moved.clear()
            await self._moved.wait()

    def _jobs_of(self, member: Member | None) -> list[bytes]:
        """Whose output it is: before a worker belongs to a job, every driver's of this node."""
        if member is not None and member.job:
            return [member.job]
        return list(dict.fromkeys(driver.job for driver in self._pool.drivers()))

    def _link_to(self, job: bytes) -> Link | None:
        for driver in self._pool.drivers_of(job):
            return driver.link
        address = self._cluster.drivers.get(job)
        return self._network.connect(address) if address is not None else None

    def _driver_known(self, job: bytes) -> None:
        self._perform(self.logs.known(job, now()))

    def _driver_ended(self, job: bytes) -> None:
        self._perform(self.logs.ended(job))
        self._moved.set()

    def _gone(self, member: Member, cause: str) -> None:
        if member.token is None and not member.is_guest:
            self._driver_ended(member.job)

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send() if self.scope.is_closed:
                    self.logs.failed(effect.job, now())
                case Send():
                    self.spawn(self._send(effect), "show output")
                case Resume():
                    self._read_on()
        self._set_alarm()

    async def _send(self, send: Send) -> None:
        link = self._link_to(send.job)
        try:
            if link is None:
                self.logs.failed(send.job, now())
            else:
                shown = await worker.Output(link).show(
                    hot.Output(self._ip, tuple(_encoded(send.items)))
                )
                self._perform(self.logs.shown(send.job, wants_more=shown.wants_more, now=now()))
        except RayError as error:
            logger.info("a driver of job %s shows no output: %s", send.job.hex(), error)
            self.logs.failed(send.job, now())
        self._moved.set()
        self._set_alarm()

    def _expire(self) -> None:
        self._perform(self.logs.expire(now()))

    def _set_alarm(self) -> None:
        self._alarm.set(self.logs.next_wakeup())

    def _read_on(self) -> None:
        self._source.resume_output()


def _encoded(items: tuple[object, ...]) -> Iterator[hot.OutputLines]:
    for item in items:
        match item:
            case Dropped(lines):
                yield hot.OutputLines("", 0, True, (), lines)
            case hot.OutputLines():
                yield item


def _file_name(member: Member | None, pid: int, is_stderr: bool) -> str:
    """Return Ray's name for the file: worker, job, process."""
    worker, job = (member.id, member.job) if member is not None else (b"", b"")
    ids = f"{(worker or _NIL_WORKER).hex()}-{(job or _NIL_JOB).hex()}"
    return f"worker-{ids}-{pid}.{'err' if is_stderr else 'out'}"
