"""The Redis storage: several clusters, several writers, and a server that comes and goes."""

import asyncio
import logging

import pytest
from redis.asyncio import Redis

from raylite._services.gcs.storage import StorageError, StorageTakenError
from raylite._services.gcs.storage.redis import RedisStorage
from tests.services.storages import RedisServer

pytestmark = [pytest.mark.asyncio, pytest.mark.process]


async def test_clusters_that_share_a_redis_do_not_meet(redis_server: RedisServer) -> None:
    one = await RedisStorage.open(redis_server.url, "one")
    two = await RedisStorage.open(redis_server.url, "two")
    await one.put("t", b"k", b"of one")
    await two.put("t", b"k", b"of two")
    assert await one.load("t") == {b"k": b"of one"}
    client = Redis.from_url(redis_server.url)
    names = {bytes(name) for name in await client.keys("*") if isinstance(name, bytes)}
    tables = {b"raylite:{one}", b"raylite:{one}:t", b"raylite:{two}", b"raylite:{two}:t"}
    assert names == tables
    for closing in (one, two):
        await closing.close()
    await client.aclose()


async def test_whoever_opens_last_is_the_writer(redis_server: RedisServer) -> None:
    old = await RedisStorage.open(redis_server.url, "c")
    await old.put("t", b"k", b"old")
    new = await RedisStorage.open(redis_server.url, "c")
    with pytest.raises(StorageError, match="another GCS has taken over cluster 'c'"):
        await old.put("t", b"k", b"too late")
    assert await new.load("t") == {b"k": b"old"}
    await new.put("t", b"k", b"new")
    await asyncio.gather(old.close(), new.close())


async def test_whoever_was_the_writer_learns_of_it_without_a_write(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raylite._services.gcs.storage.redis.LOOK", 0.01)
    old = await RedisStorage.open(redis_server.url, "c")
    watching = asyncio.ensure_future(old.watch())
    redis_server.kill()
    redis_server.start()
    new = await RedisStorage.open(redis_server.url, "c")
    with pytest.raises(StorageTakenError, match=r"cluster 'c', .*cluster=NAME"):
        await watching
    await asyncio.gather(old.close(), new.close())


async def test_writes_that_gather_during_a_commit_share_the_next(redis_server: RedisServer) -> None:
    storage = await RedisStorage.open(redis_server.url, "c")
    await asyncio.gather(*[storage.put("t", b"%d" % n, b"v") for n in range(1000)])
    assert storage.commits <= 2
    assert len(await storage.load("t")) == 1000
    await storage.close()


@pytest.mark.fault
async def test_what_was_acknowledged_survives_the_servers_death(redis_server: RedisServer) -> None:
    storage = await RedisStorage.open(redis_server.url, "c")
    for n in range(50):
        await storage.put("t", b"%d" % n, b"v")
    redis_server.kill()
    with pytest.raises(StorageError, match="Redis failed"):
        await storage.put("t", b"nobody hears", b"v")
    redis_server.start()
    await storage.put("t", b"heard again", b"v")
    assert len(await storage.load("t")) == 51
    await storage.close()


async def test_tables_of_a_newer_format_are_refused(redis_server: RedisServer) -> None:
    await (await RedisStorage.open(redis_server.url, "c")).close()
    client = Redis.from_url(redis_server.url)
    await client.hset("raylite:{c}", "format", "7")
    await client.aclose()
    with pytest.raises(StorageError, match="are in format 7, and this raylite reads up to 1"):
        await RedisStorage.open(redis_server.url, "c")


async def test_a_redis_that_does_not_answer_is_a_storage_error(redis_server: RedisServer) -> None:
    redis_server.kill()
    with pytest.raises(StorageError, match="Redis failed"):
        await RedisStorage.open(redis_server.url, "c")


async def test_a_redis_that_may_lose_writes_is_warned_of(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    await (await RedisStorage.open(redis_server.url, "c")).close()
    assert not caplog.records
    client = Redis.from_url(redis_server.url)
    await client.config_set("appendfsync", "everysec")
    await client.aclose()
    with caplog.at_level(logging.WARNING):
        await (await RedisStorage.open(redis_server.url, "c")).close()
    assert "set appendonly to yes and appendfsync to always" in caplog.text
