"""Storages by URL."""

from pathlib import Path

import pytest

from raylite._kernel.seams import now
from raylite._services.gcs.storage import (
    MemoryStorage,
    Storage,
    StorageError,
    StorageUnusableError,
    check_storage,
    open_storage,
    wait_for_storage,
)
from raylite._services.gcs.storage.redis import RedisStorage
from raylite._services.gcs.storage.sqlite import SqliteStorage
from raylite.testing.loop import SimLoop
from tests.services.storages import RedisServer


@pytest.mark.asyncio
async def test_memory() -> None:
    assert isinstance(await open_storage("memory"), MemoryStorage)


@pytest.mark.asyncio
@pytest.mark.parametrize("prefix", ["", "sqlite://"])
async def test_a_path_is_a_sqlite_file(tmp_path: Path, prefix: str) -> None:
    storage = await open_storage(f"{prefix}{tmp_path}/gcs.db")
    assert isinstance(storage, SqliteStorage)
    await storage.close()
    assert (tmp_path / "gcs.db").is_file()


@pytest.mark.asyncio
async def test_a_relative_path_is_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    await (await open_storage("gcs.db")).close()
    assert (tmp_path / "gcs.db").is_file()


@pytest.mark.asyncio
@pytest.mark.process
async def test_redis_by_host_port_and_database(redis_server: RedisServer) -> None:
    url = f"redis://127.0.0.1:{redis_server.port}/3"
    for cluster, found in (("a", {}), ("b", {}), ("a", {b"k": b"a"})):
        storage = await open_storage(f"{url}?cluster={cluster}")
        assert isinstance(storage, RedisStorage)
        assert await storage.load("t") == found
        await storage.put("t", b"k", cluster.encode())
        await storage.close()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "url",
    [
        "",
        "memroy",
        "sqlite://",
        "sqlite:///",
        "postgres://host/db",
        "http://host",
        "redis://",
        "redis://:6379/0",
        "redis://host:port/0",
        "redis://host:99999/0",
        "redis://host:6379/zero",
        "redis://host/0?cluster=a&ttl=3",
    ],
)
async def test_another_url_is_refused_with_what_is_allowed(url: str) -> None:
    with pytest.raises(ValueError, match=r"a storage is `memory`, a file .* or `redis://host:port"):
        await open_storage(url)


def test_what_can_be_no_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    for url in ("memory", "redis://nobody:1", str(tmp_path / "x.db"), f"sqlite://{tmp_path}/x.db"):
        check_storage(url)
    with pytest.raises(ValueError, match="'mysql://host' is not a storage: a storage is `memory`"):
        check_storage("mysql://host")
    with pytest.raises(StorageError, match="is a directory: name a file in it"):
        check_storage(str(tmp_path))
    with pytest.raises(
        StorageError, match="none is no directory, so make it first, or name another"
    ):
        check_storage(f"{tmp_path}/none/x.db")


@pytest.mark.asyncio
async def test_a_refusal_does_not_repeat_a_password() -> None:
    with pytest.raises(ValueError) as caught:
        await open_storage("redis://:secret@host:port/0")
    assert "secret" not in str(caught.value)


def test_a_storage_that_is_away_is_waited_for() -> None:
    attempts: list[float] = []

    async def attempt() -> Storage:
        attempts.append(now())
        if now() - attempts[0] < 60:
            raise StorageUnusableError("Redis failed: connection refused")
        return MemoryStorage()

    storage = SimLoop().run(wait_for_storage(attempt))
    assert isinstance(storage, MemoryStorage)
    assert 60 <= attempts[-1] - attempts[0] <= 63
    assert len(attempts) < 40


def test_tables_that_cannot_be_read_are_not_waited_for() -> None:
    async def attempt() -> Storage:
        raise StorageError("in format 7")

    with pytest.raises(StorageError, match="in format 7"):
        SimLoop().run(wait_for_storage(attempt))


@pytest.mark.asyncio
@pytest.mark.process
async def test_a_redis_that_is_away_can_be_waited_for(redis_server: RedisServer) -> None:
    redis_server.kill()
    with pytest.raises(StorageUnusableError):
        await open_storage(f"redis://127.0.0.1:{redis_server.port}/0")
