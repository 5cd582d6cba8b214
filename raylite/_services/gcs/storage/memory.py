"""Tables in memory: for embedded clusters, whose tables end with them."""

import asyncio
from collections.abc import Sequence

from raylite._services.gcs.storage.interface import Storage, Write


class MemoryStorage(Storage):
    """Tables that live as long as this object, across the restarts of those who share it."""

    def __init__(self) -> None:
        self._tables: dict[str, dict[bytes, bytes]] = {}

    async def close(self) -> None:
        """Do nothing: the next who is given this object finds the tables as they are."""

    def _commit(self, records: Sequence[Write]) -> "asyncio.Future[None]":
        for write in records:
            table = self._tables.setdefault(write.table, {})
            if write.row is None:
                table.pop(write.key, None)
            else:
                table[write.key] = write.row
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def _read(self, table: str) -> list[tuple[bytes, bytes]]:
        return list(self._tables.get(table, {}).items())
