"""What a storage promises, whichever it is: named tables, and nothing acknowledged is lost.

Subclasses keep records, and know neither what is in them nor what damage is: sealing, checking
and the quarantine are here.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from raylite._services.gcs.storage.record import DamagedRecordError, seal, unseal
from raylite.exceptions import UnavailableError

logger = logging.getLogger(__name__)

QUARANTINE = "quarantine"  # the table of damaged records, under `<their table>/<their key>`


class StorageError(UnavailableError):
    """The storage cannot be opened, read or written. What was being written may be kept or not."""


class StorageUnusableError(StorageError):
    """Nothing answers where the storage is, or it takes nothing: it is full, or read-only. That may pass."""


class StorageTakenError(StorageError):
    """Another cluster's GCS writes the tables now: this one may write no more, ever."""


class Write(Struct, frozen=True):
    """A row to be kept under a key of a table, or with None to be forgotten."""

    table: str
    key: bytes
    row: bytes | None


class Storage(ABC):
    """Tables of rows by key. What is acknowledged is durable, and writes keep their order.

    Opened by whoever made it, who also closes it: the services that share it do neither.
    """

    quarantined: int = 0  # records found damaged since this storage was opened

    async def put(self, table: str, key: bytes, row: bytes) -> None:
        """Keep a row; return when it is durable."""
        await self.batch([Write(table, key, row)])

    async def delete(self, table: str, key: bytes) -> None:
        """Forget a row; one that is not there is forgotten already."""
        await self.batch([Write(table, key, None)])

    async def batch(self, writes: Iterable[Write]) -> None:
        """Make all of these writes durable, or none. Who is cancelled leaves them to be done."""
        await asyncio.shield(self.submit(writes))

    def submit(self, writes: Iterable[Write]) -> "asyncio.Future[None]":
        """Begin a `batch`. The future ends when it is durable; do not cancel it."""
        return self._commit([_sealed(write) for write in writes])

    async def load(self, table: str) -> dict[bytes, bytes]:
        """Return a table's rows. Damaged ones are moved to the quarantine, which is logged."""
        rows: dict[bytes, bytes] = {}
        found: dict[bytes, str] = {}
        moves: list[Write] = []
        for key, record in await self._read(table):
            try:
                rows[key] = unseal(table, key, record)
            except DamagedRecordError as error:
                found[key] = str(error)
                place = table.encode() + b"/" + key
                moves += [Write(QUARANTINE, place, record), Write(table, key, None)]
        where = "it is quarantined"
        if moves:
            try:
                await asyncio.shield(self._commit(moves))
            except StorageUnusableError as error:
                where = f"it stays there unread, for {error}"
            self.quarantined += len(found)
        for key, damage in found.items():
            logger.error("record %s of table %s %s; %s", key.hex(), table, damage, where)
        return rows

    async def damaged(self) -> dict[bytes, bytes]:
        """Return the quarantine: records as they were found, by ``table/key``."""
        return dict(await self._read(QUARANTINE))

    async def lost(self, table: str) -> list[bytes]:
        """Return the keys under which there is nothing, for what there was is in quarantine."""
        prefix = table.encode() + b"/"
        kept = {key for key, _ in await self._read(table)}
        places = [place for place in await self.damaged() if place.startswith(prefix)]
        return [key for place in places if (key := place.removeprefix(prefix)) not in kept]

    async def watch(self) -> None:
        """Last for as long as the tables are this writer's.

        Raises:
            StorageTakenError: They are another's.
        """
        await asyncio.get_running_loop().create_future()

    @abstractmethod
    async def close(self) -> None:
        """Finish what was begun, and let go. Later writes are a `StorageError`."""

    @abstractmethod
    def _commit(self, records: Sequence[Write]) -> "asyncio.Future[None]":
        """Make records durable, all or none, after all that were given before."""

    @abstractmethod
    async def _read(self, table: str) -> list[tuple[bytes, bytes]]:
        """Return a table's records."""


def _sealed(write: Write) -> Write:
    if write.row is None:
        return write
    return replace(write, row=seal(write.table, write.key, write.row))
