"""`SimGcs`: the GCS in virtual time, which can be killed and started again on what its disk kept."""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

from raylite._kernel.host import Host
from raylite._kernel.link import LinkConfig
from raylite._runtime.components import build_gcs
from raylite._services.gcs.storage import Storage, StorageError, Write
from raylite.testing.node import GCS
from raylite.testing.sim import SimNetwork, World

RESTART = 0.3  # seconds until a GCS that could not begin is started again


class SimDisk:
    """What is durable: it survives every GCS. Records are kept sealed, as on a real disk.

    Args:
        random: Decides how long each commit takes, and which fail.
        delay: The mean time of a commit in seconds.
        failures: How likely a commit is to fail.
    """

    def __init__(self, random: random.Random, delay: float = 0.0, failures: float = 0.0) -> None:
        self.random = random
        self.delay = delay
        self.failures = failures
        self.tables: dict[str, dict[bytes, bytes]] = {}
        self.on_write: list[Callable[[Sequence[Write]], None]] = []

    def write(self, records: Sequence[Write]) -> None:
        """Make records durable, all of them."""
        for write in records:
            table = self.tables.setdefault(write.table, {})
            if write.row is None:
                table.pop(write.key, None)
            else:
                table[write.key] = write.row
        for listener in self.on_write:
            listener(records)


class SimStorage(Storage):
    """The tables of one life of the GCS: group commit, one at a time, in virtual time."""

    def __init__(self, disk: SimDisk) -> None:
        self._disk = disk
        self._waiting: list[tuple[Sequence[Write], asyncio.Future[None]]] = []
        self._flying: list[tuple[Sequence[Write], asyncio.Future[None]]] = []
        self._is_dead = False

    def kill(self) -> None:
        """Die in the middle of a commit: it may be durable, and nobody was told."""
        if self._flying and self._disk.random.random() < 0.5:
            self._disk.write([write for records, _ in self._flying for write in records])
        self._is_dead = True

    async def close(self) -> None:
        """Do nothing: the disk stays."""

    def _commit(self, records: Sequence[Write]) -> "asyncio.Future[None]":
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((records, done))
        self._begin()
        return done

    async def _read(self, table: str) -> list[tuple[bytes, bytes]]:
        return list(self._disk.tables.get(table, {}).items())

    def _begin(self) -> None:
        if self._waiting and not self._flying:
            self._flying, self._waiting = self._waiting, []
            delay = self._disk.delay and self._disk.random.expovariate(1 / self._disk.delay)
            asyncio.get_running_loop().call_later(delay, self._written)

    def _written(self) -> None:
        if self._is_dead:
            return
        flying, self._flying = self._flying, []
        if self._disk.random.random() < self._disk.failures:
            for _, done in flying:
                done.set_exception(StorageError("the disk is full"))
        else:
            self._disk.write([write for records, _ in flying for write in records])
            for _, done in flying:
                done.set_result(None)
        self._begin()


class SimGcs:
    """One GCS after another, on the same address and disk.

    Args:
        world: Where it lives, as the host `gcs`.
        disk: What its lives have in common.
        links: The times of its links.
        fail: Told of the crash of one that nobody killed.
    """

    def __init__(
        self,
        world: World,
        disk: SimDisk,
        links: LinkConfig,
        fail: Callable[[BaseException], None],
    ) -> None:
        self.disk = disk
        self.host: Host
        self.lives: int = 0
        self._world = world
        self._links = links
        self._fail = fail
        self._life: tuple[SimStorage, asyncio.Task[None]] | None = None
        self._ending: dict[asyncio.Future[Any], None] = {}

    @property
    def is_running(self) -> bool:
        """Whether there is one now."""
        return self._life is not None

    async def start(self) -> None:
        """Begin a life."""
        with self._world.at(GCS):
            network = SimNetwork(self._world, GCS, self._links)
            await network.listen(GCS)
            storage = SimStorage(self.disk)
            self.host = build_gcs(network, storage)
            running = self.host.start(GCS)
        self.lives += 1
        self._life = storage, running
        running.add_done_callback(self._ended)

    def kill(self, linger: float = 0.0) -> None:
        """End it without a word."""
        if self._life is not None:
            (storage, running), self._life = self._life, None
            storage.kill()
            self._world.kill(GCS, linger=linger)
            if running.cancel():  # else it has ended by itself
                self._ending[running] = None

    async def stop(self) -> None:
        """End it in order, and see off those that were killed."""
        if self._life is not None:
            (_, running), self._life = self._life, None
            self.host.stop()
            await asyncio.wait([running])
        while self._ending:
            await asyncio.wait(list(self._ending))

    def _ended(self, running: "asyncio.Task[None]") -> None:
        self._ending.pop(running, None)
        if running.cancelled() or (error := running.exception()) is None or not self._life:
            return
        if not isinstance(error, StorageError):
            self._fail(error)
            return
        self.kill()  # it could not begin; its node starts another
        with self._world.at(GCS):
            self._again = asyncio.get_running_loop().create_task(self._start_later())

    async def _start_later(self) -> None:
        await asyncio.sleep(RESTART)
        await self.start()
