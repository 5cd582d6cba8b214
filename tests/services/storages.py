"""The three storages as the contract tests see them, and storages that misbehave on request."""

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from raylite._services.gcs.storage import MemoryStorage, Storage, StorageError, Write
from raylite._services.gcs.storage.redis import RedisStorage
from raylite._services.gcs.storage.sqlite import SqliteStorage

KINDS = ("memory", "sqlite", "redis")
Reopen = Callable[[], Awaitable[Storage]]


class RedisServer:
    """A redis-server that syncs every write, on a unix socket and a loopback port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.fail("redis-server is not installed: apt-get install redis-server", False)
        options = ["--port", str(self.port), "--bind", "127.0.0.1"]
        options += ["--unixsocket", str(self.socket), "--dir", str(self.folder), "--save", ""]
        options += ["--appendonly", "yes", "--appendfsync", "always"]
        with open(self.folder / "redis.log", "ab") as log:
            self._process = subprocess.Popen([program, *options], stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                pytest.fail(f"redis-server: {(self.folder / 'redis.log').read_text()}", False)
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as wire:
                wire.connect(str(self.socket))
                wire.sendall(b"PING\r\n")
                return wire.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


class GatedStorage(MemoryStorage):
    """Commits at once, or while `is_holding` when it is told to; or fails."""

    def __init__(self) -> None:
        super().__init__()
        self.is_holding = False
        self.fails = False
        self.commits = 0
        self._held: list[tuple[Sequence[Write], asyncio.Future[None]]] = []

    def _commit(self, records: Sequence[Write]) -> "asyncio.Future[None]":
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held.append((records, done))
        if not self.is_holding:
            self.release()
        return done

    def release(self) -> None:
        """Commit what is held, or fail it."""
        self.is_holding = False
        held, self._held = self._held, []
        for records, done in held:
            if self.fails:
                done.set_exception(StorageError("the disk is full"))
            else:
                self.commits += 1
                super()._commit(records)
                done.set_result(None)


def opener(kind: str, folder: Path, server: RedisServer | None, node: str = "node") -> Reopen:
    """Return what opens, each time it is called, a storage on what the last one kept, for a node."""
    memory = MemoryStorage()

    async def reopen() -> Storage:
        if kind == "memory":
            return memory
        if kind == "sqlite":
            return await SqliteStorage.open(folder / "gcs.db")
        assert server is not None
        return await RedisStorage.open(server.url, "tests", node)

    return reopen


async def damage(
    storage: Storage, table: str, key: bytes, change: Callable[[bytes], bytes]
) -> None:
    """Replace a record by what became of it, behind the storage's back."""
    record = dict(await storage._read(table))[key]
    await storage._commit([Write(table, key, change(record))])
