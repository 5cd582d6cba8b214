"""Storages by URL."""

from pathlib import Path

import pytest

from raylite._services.gcs.storage import MemoryStorage, open_storage
from raylite._services.gcs.storage.redis import RedisStorage
from raylite._services.gcs.storage.sqlite import SqliteStorage
from tests.services.storages import RedisServer

pytestmark = pytest.mark.asyncio


async def test_memory() -> None:
    assert isinstance(await open_storage("memory"), MemoryStorage)


@pytest.mark.parametrize("prefix", ["", "sqlite://"])
async def test_a_path_is_a_sqlite_file(tmp_path: Path, prefix: str) -> None:
    storage = await open_storage(f"{prefix}{tmp_path}/gcs.db")
    assert isinstance(storage, SqliteStorage)
    await storage.close()
    assert (tmp_path / "gcs.db").is_file()


async def test_a_relative_path_is_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    await (await open_storage("gcs.db")).close()
    assert (tmp_path / "gcs.db").is_file()


@pytest.mark.process
async def test_redis_by_host_port_and_database(redis_server: RedisServer) -> None:
    url = f"redis://127.0.0.1:{redis_server.port}/3"
    for cluster, found in (("a", {}), ("b", {}), ("a", {b"k": b"a"})):
        storage = await open_storage(f"{url}?cluster={cluster}")
        assert isinstance(storage, RedisStorage)
        assert await storage.load("t") == found
        await storage.put("t", b"k", cluster.encode())
        await storage.close()


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


async def test_a_refusal_does_not_repeat_a_password() -> None:
    with pytest.raises(ValueError) as caught:
        await open_storage("redis://:secret@host:port/0")
    assert "secret" not in str(caught.value)
