"""Where the cluster's tables are kept: an interface, and the form that keeps them in memory."""

from typing import Protocol


class Storage(Protocol):
    """Named tables of bytes by bytes. What `put` and `delete` acknowledged survives a crash."""

    async def put(self, table: str, key: bytes, value: bytes) -> None: ...
    async def get(self, table: str, key: bytes) -> bytes | None: ...
    async def delete(self, table: str, key: bytes) -> bool: ...
    async def scan(self, table: str, prefix: bytes = b"") -> list[tuple[bytes, bytes]]: ...


class MemoryStorage:
    """Tables that end with the process: for embedded clusters, which end with it too."""

    def __init__(self) -> None:
        self._tables: dict[str, dict[bytes, bytes]] = {}

    async def put(self, table: str, key: bytes, value: bytes) -> None:
        self._tables.setdefault(table, {})[key] = value

    async def get(self, table: str, key: bytes) -> bytes | None:
        return self._tables.get(table, {}).get(key)

    async def delete(self, table: str, key: bytes) -> bool:
        return self._tables.get(table, {}).pop(key, None) is not None

    async def scan(self, table: str, prefix: bytes = b"") -> list[tuple[bytes, bytes]]:
        rows = self._tables.get(table, {})
        return sorted((key, value) for key, value in rows.items() if key.startswith(prefix))
