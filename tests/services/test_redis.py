"""The Redis storage: several clusters, several writers, and a server that comes and goes."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import suppress

import pytest
from redis.asyncio import Redis

from raylite._kernel.seams import now
from raylite._services.gcs.storage import (
    StorageError,
    StorageTakenError,
    StorageUnusableError,
    wait_for_storage,
)
from raylite._services.gcs.storage.redis import RedisStorage
from tests.services.storages import RedisServer

pytestmark = [pytest.mark.asyncio, pytest.mark.process]


class Told(logging.Handler):
    """What is logged, to be awaited."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[str] = []
        self._news = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record.getMessage())
        self._news.set()

    async def wait(self, words: str) -> None:
        """Wait until these words have been logged."""
        while not any(words in record for record in self._records):
            self._news.clear()
            await self._news.wait()


@pytest.fixture
def told() -> Iterator[Told]:
    logger, handler = logging.getLogger("raylite"), Told()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


async def test_clusters_that_share_a_redis_do_not_meet(redis_server: RedisServer) -> None:
    one = await RedisStorage.open(redis_server.url, "one")
    two = await RedisStorage.open(redis_server.url, "two")
    await one.put("t", b"k", b"of one")
    await two.put("t", b"k", b"of two")
    assert await one.load("t") == {b"k": b"of one"}
    client = Redis.from_url(redis_server.url)
    names = {bytes(name) for name in await client.keys("*") if isinstance(name, bytes)}
    assert names == {
        b"raylite:{%s}%s" % (cluster, key)
        for cluster in (b"one", b"two")
        for key in (b"", b".lease", b":t")
    }
    for closing in (one, two):
        await closing.close()
    await client.aclose()


async def test_a_gcs_that_is_started_again_on_its_node_has_the_tables_at_once(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    old = await RedisStorage.open(redis_server.url, "c", "node")
    await old.put("t", b"k", b"old")
    new = await RedisStorage.open(redis_server.url, "c", "node")
    with pytest.raises(StorageError, match="another GCS has taken over cluster 'c'"):
        await old.put("t", b"k", b"too late")
    assert await new.load("t") == {b"k": b"old"}
    await new.put("t", b"k", b"new")
    await asyncio.gather(old.close(), new.close())
    assert not caplog.records


async def test_a_watch_ends_though_redis_py_lost_its_cancellation(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raylite._services.gcs.storage.redis.RENEW", 0.0)
    storage = await RedisStorage.open(redis_server.url, "c", "node")
    has_begun = asyncio.Event()

    async def renew() -> None:
        has_begun.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    monkeypatch.setattr(storage._tenure, "renew", renew)
    watching = asyncio.ensure_future(storage.watch())
    await has_begun.wait()
    watching.cancel()
    await asyncio.wait([watching])
    await storage.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("tenure.LOOK", 0.02), ("redis.RENEW", 0.04)):
        monkeypatch.setattr(f"raylite._services.gcs.storage.{name}", seconds)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raylite._services.gcs.storage.tenure.LAPSE", 0.2)


HELD = r"cluster 'c' are in use by the head 10.0.0.7:6379 \(node aaaaaaaaaaaa\), since 20\d\d-.* UTC: end it"


@pytest.mark.usefixtures("quick")
async def test_tables_that_a_living_gcs_writes_are_refused_to_other_nodes(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    held = await RedisStorage.open(redis_server.url, "c", "a" * 56, "10.0.0.7:6379")
    watching = asyncio.ensure_future(held.watch())
    with pytest.raises(StorageTakenError, match=HELD):
        await RedisStorage.open(redis_server.url, "c", "b")
    with pytest.raises(StorageTakenError, match=HELD):
        await RedisStorage.vacate(redis_server.url, "c")
    assert "waiting up to 10 s for a sign that it lives" in caplog.text
    await held.put("t", b"k", b"v")
    assert not watching.done()
    watching.cancel()
    await asyncio.wait([watching])
    await held.close()


async def test_tables_that_were_closed_are_the_next_nodes_at_once(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    await (await RedisStorage.open(redis_server.url, "c", "a")).close()
    await RedisStorage.vacate(redis_server.url, "c")
    await (await RedisStorage.open(redis_server.url, "c", "b")).close()
    assert not caplog.records


@pytest.mark.usefixtures("quick", "impatient")
async def test_the_tables_of_a_dead_gcs_are_the_next_ones_and_it_may_write_no_more(
    redis_server: RedisServer,
) -> None:
    dead = await RedisStorage.open(redis_server.url, "c", "a")
    began = now()
    new = await RedisStorage.open(redis_server.url, "c", "b")
    assert now() - began >= 0.2
    with pytest.raises(StorageTakenError, match=r"cluster 'c', .*cluster=NAME"):
        await dead.watch()  # it was only asleep
    with pytest.raises(StorageError, match="this one may write no more"):
        await dead.put("t", b"k", b"too late")
    await dead.close()  # lets go of nothing that is not its own
    client = Redis.from_url(redis_server.url)
    assert await client.exists("raylite:{c}.lease")
    await client.aclose()
    await new.close()


async def test_a_sign_of_life_that_comes_after_the_end_takes_nothing_back(
    redis_server: RedisServer,
) -> None:
    ended = await RedisStorage.open(redis_server.url, "c", "a")
    await ended.close()
    with pytest.raises(StorageTakenError):
        await ended._tenure.renew()
    await ended.close()  # what that opened
    next_one = await RedisStorage.open(redis_server.url, "c", "b")  # at once, without a wait
    await next_one.put("t", b"k", b"v")
    await next_one.close()


@pytest.mark.usefixtures("quick")
async def test_a_gcs_whose_tables_nobody_took_in_its_sleep_has_them_still(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asleep = await RedisStorage.open(redis_server.url, "c", "a")
    with monkeypatch.context() as impatient:
        impatient.setattr("raylite._services.gcs.storage.tenure.LAPSE", 0.0)
        await RedisStorage.vacate(redis_server.url, "c")
    await asleep.put("t", b"k", b"v")
    await asleep._tenure.renew()
    watching = asyncio.ensure_future(asleep.watch())
    with pytest.raises(StorageTakenError):
        await RedisStorage.open(redis_server.url, "c", "b")
    watching.cancel()
    await asyncio.wait([watching])
    await asleep.close()


@pytest.mark.usefixtures("quick")
async def test_a_redis_that_was_away_takes_the_tables_from_no_living_gcs(
    redis_server: RedisServer,
) -> None:
    held = await RedisStorage.open(redis_server.url, "c", "a")
    watching = asyncio.ensure_future(held.watch())
    waiting = asyncio.ensure_future(
        wait_for_storage(lambda: RedisStorage.open(redis_server.url, "c", "b"))
    )
    redis_server.kill()
    with pytest.raises(StorageError):
        await held.put("t", b"k", b"v")
    redis_server.start()
    with pytest.raises(StorageTakenError, match="are in use by"):
        await waiting
    assert not watching.done()
    await held.put("t", b"k", b"v")
    watching.cancel()
    await asyncio.wait([watching])
    await held.close()


@pytest.mark.usefixtures("quick")
async def test_a_redis_that_is_full_fails_writes_and_ends_nobody(
    redis_server: RedisServer, told: Told
) -> None:
    held = await RedisStorage.open(redis_server.url, "c", "a")
    await held.put("t", b"k", b"v")
    watching = asyncio.ensure_future(held.watch())
    client = Redis.from_url(redis_server.url)
    await client.config_set("maxmemory", "1")
    with pytest.raises(StorageUnusableError, match=r"^Redis failed: \W*command not allowed when"):
        await held.put("t", b"k", b"not kept")
    assert await held.load("t") == {b"k": b"v"}
    again = asyncio.ensure_future(
        wait_for_storage(lambda: RedisStorage.open(redis_server.url, "c", "a"))
    )
    await told.wait("the tables cannot be watched")
    await told.wait("the GCS waits for its tables")
    assert not watching.done()
    assert not again.done()
    await client.config_set("maxmemory", "0")
    await client.aclose()
    watching.cancel()
    await asyncio.wait([watching])
    new = await again
    assert await new.load("t") == {b"k": b"v"}
    await asyncio.gather(held.close(), new.close())


async def test_tables_that_were_deleted_end_their_writer(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raylite._services.gcs.storage.redis.RENEW", 0.01)
    storage = await RedisStorage.open(redis_server.url, "c", "a")
    client = Redis.from_url(redis_server.url)
    await client.flushall()
    await client.aclose()
    with pytest.raises(StorageTakenError, match="its tables were deleted"):
        await storage.watch()
    await storage.close()


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
