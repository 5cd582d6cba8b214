"""`SimGcs`: the GCS in virtual time, which can be killed and started again on what its disk kept."""

import asyncio
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from raylite._kernel.host import Host
from raylite._kernel.link import LinkConfig
from raylite._runtime.components import build_gcs
from raylite._services.gcs.storage import Storage, StorageError, Write
from raylite._services.gcs.storage.group import GroupCommit
from raylite._services.gcs.storage.interface import QUARANTINE
from raylite.testing.node import GCS
from raylite.testing.sim import SimNetwork, World

EPOCHS = "cluster"  # the table of which one record is always sound: they are kept twice
RESTART = 0.3  # seconds until a GCS that could not begin is started again


class SimDisk:
    """What survives every GCS. Records are kept sealed, as on a real disk.

    A commit is written first, and durable when it has been synced. Whoever reads after a crash in between
    finds it whole or not at all; and a record may be damaged: the last one that was written, which is
    torn, or any, in which a bit is flipped.

    Args:
        random: Decides how long each commit takes, which fail, and what a crash does.
        delay: The mean time of a commit in seconds.
        failures: How likely a commit is to fail.
        damage: How likely a crash is to damage a record. None is until the last one has been found.
    """

    def __init__(
        self,
        random: random.Random,
        delay: float = 0.0,
        failures: float = 0.0,
        damage: float = 0.0,
    ) -> None:
        self.random = random
        self.delay = delay
        self.failures = failures
        self.damage = damage
        self.tables: dict[str, dict[bytes, bytes]] = {}  # what is durable
        self.damaged: dict[tuple[str, bytes], bytes] = {}  # records, as they are to be found
        self.on_write: list[Callable[[Sequence[Write]], None]] = []  # of what is durable now
        self.on_commit: Callable[[], None] = _ignore  # one is written, and not durable
        self._unsynced: Sequence[Write] = ()

    async def commit(self, records: Sequence[Write]) -> None:
        """Make records durable, all of them, after a while."""
        self._unsynced = records
        self.on_commit()
        await asyncio.sleep(self.delay and self.random.expovariate(1 / self.delay))
        if self._unsynced is not records:
            raise StorageError("there was a crash")
        if self.random.random() < self.failures:
            self._unsynced = ()
            raise StorageError("the disk is full")
        self._sync()

    def crash(self) -> None:
        """Whoever wrote has died: settle what became of the commit, and perhaps damage a record."""
        rows = [write for write in self._unsynced if write.row is not None]
        written = [write for write in rows if write.table != QUARANTINE]
        if self.random.random() < 0.5:
            self._sync()
        else:
            written, self._unsynced = [], ()
        if self.random.random() < self.damage and not any(map(self._is_unfound, self.damaged)):
            self._tear(written[-1]) if written and self.random.random() < 0.5 else self._flip()

    def check(self) -> None:
        """Assert that what was damaged, and nothing else, is in quarantine, once a GCS has read it."""
        found = self.tables.get(QUARANTINE, {})
        places = {t.encode() + b"/" + key: record for (t, key), record in self.damaged.items()}
        assert found == places, f"in quarantine are {found}, and damaged were {places}"

    def has(self, write: Write) -> bool:
        """Whether that is what is durable, unless it has been damaged since."""
        place = write.table, write.key
        return self.tables.get(write.table, {}).get(write.key) == write.row or place in self.damaged

    def _sync(self) -> None:
        records, self._unsynced = self._unsynced, ()
        for write in records:
            table = self.tables.setdefault(write.table, {})
            if write.row is None:
                table.pop(write.key, None)
            else:
                table[write.key] = write.row
        for listener in self.on_write:
            listener(records)

    def _is_unfound(self, place: tuple[str, bytes]) -> bool:
        table, key = place
        return self.tables[table].get(key) == self.damaged[place]

    def _tear(self, write: Write) -> None:
        assert write.row is not None
        self._spoil(write.table, write.key, write.row[: self.random.randrange(len(write.row))])

    def _flip(self) -> None:
        places = [
            (table, key)
            for table, records in self.tables.items()
            for key in records
            if table != QUARANTINE and (table != EPOCHS or len(records) > 1)
        ]
        if places:
            table, key = self.random.choice(places)
            record = bytearray(self.tables[table][key])
            record[self.random.randrange(len(record))] ^= 1 << self.random.randrange(8)
            self._spoil(table, key, bytes(record))

    def _spoil(self, table: str, key: bytes, record: bytes) -> None:
        self.tables[table][key] = self.damaged[table, key] = record


class SimStorage(Storage):
    """The tables of one life of the GCS.

    Args:
        disk: Where they are.
        fail: Told if something was acknowledged that is not durable.
    """

    def __init__(self, disk: SimDisk, fail: Callable[[BaseException], None]) -> None:
        self._disk = disk
        self._fail = fail
        self._group = GroupCommit(self._write)
        self._is_dead = False

    def kill(self) -> None:
        """Die, perhaps in the middle of a commit."""
        self._is_dead = True
        self._disk.crash()

    async def close(self) -> None:
        """Finish; the disk stays."""
        await self._group.close()

    def _commit(self, records: Sequence[Write]) -> "asyncio.Future[None]":
        done = self._group.submit(records)
        done.add_done_callback(partial(self._acknowledged, records))
        return done

    async def _read(self, table: str) -> list[tuple[bytes, bytes]]:
        return list(self._disk.tables.get(table, {}).items())

    async def _write(self, records: Sequence[Write]) -> None:
        if self._is_dead:
            raise StorageError("the GCS was killed")
        await self._disk.commit(records)

    def _acknowledged(self, records: Sequence[Write], done: "asyncio.Future[None]") -> None:
        if done.cancelled() or done.exception() is not None or self._is_dead:
            return
        last = {(write.table, write.key): write for write in records}
        if not all(map(self._disk.has, last.values())):
            self._fail(AssertionError(f"acknowledged, and not durable: {records}"))


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
            storage = SimStorage(self.disk, self._fail)
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
            (storage, running), self._life = self._life, None
            self.host.stop()
            await asyncio.wait([running])
            await storage.close()
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


def _ignore() -> None: ...
