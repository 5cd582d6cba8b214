"""What every storage promises: memory, SQLite and Redis."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from raylite._services.gcs.storage import (
    MemoryStorage,
    Storage,
    StorageError,
    StorageUnusableError,
    Write,
)
from raylite._services.gcs.storage.record import _HEAD, _checksum
from tests.services.storages import KINDS, Reopen, damage, opener

pytestmark = pytest.mark.asyncio


@pytest.fixture(params=KINDS)
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Reopen:
    server = request.getfixturevalue("redis_server") if request.param == "redis" else None
    return opener(request.param, tmp_path, server)


@asynccontextmanager
async def opened(reopen: Reopen) -> AsyncIterator[Storage]:
    storage = await reopen()
    async with contextlib.aclosing(_Closing(storage)):
        yield storage


class _Closing:
    def __init__(self, storage: Storage) -> None:
        self.aclose = storage.close


async def test_what_was_put_is_there_after_a_restart(reopen: Reopen) -> None:
    async with opened(reopen) as storage:
        await storage.put("jobs", b"one", b"1")
        await storage.put("jobs", b"two", b"")
        await storage.put("nodes", b"one", b"other")
    async with opened(reopen) as storage:
        assert await storage.load("jobs") == {b"one": b"1", b"two": b""}
        assert await storage.load("nodes") == {b"one": b"other"}
        assert await storage.load("empty") == {}


async def test_the_last_write_of_a_key_is_what_stays(reopen: Reopen) -> None:
    async with opened(reopen) as storage:
        await storage.put("t", b"k", b"old")
        await storage.put("t", b"k", b"new")
        await storage.put("t", b"gone", b"x")
        await storage.delete("t", b"gone")
        await storage.delete("t", b"never was")
    async with opened(reopen) as storage:
        assert await storage.load("t") == {b"k": b"new"}


async def test_a_batch_is_in_order_and_over_several_tables(reopen: Reopen) -> None:
    async with opened(reopen) as storage:
        await storage.batch(
            [Write("a", b"k", b"1"), Write("b", b"k", b"2"), Write("a", b"k", None)]
        )
        await storage.batch([])
    async with opened(reopen) as storage:
        assert await storage.load("a") == {}
        assert await storage.load("b") == {b"k": b"2"}


async def test_concurrent_writes_keep_the_order_they_were_begun_in(reopen: Reopen) -> None:
    async with opened(reopen) as storage:
        puts = [storage.put("t", b"%d" % (n % 10), b"%d" % n) for n in range(500)]
        await asyncio.gather(*puts)
    async with opened(reopen) as storage:
        assert await storage.load("t") == {b"%d" % n: b"%d" % (490 + n) for n in range(10)}


async def test_keys_and_rows_are_any_bytes(reopen: Reopen) -> None:
    rows = {b"": b"", b"\0'\xff": bytes(range(256)), b"big": b"\xa5" * 300_000}
    async with opened(reopen) as storage:
        await storage.batch([Write("t: {\u00e4}", key, row) for key, row in rows.items()])
    async with opened(reopen) as storage:
        assert await storage.load("t: {\u00e4}") == rows


async def test_a_write_whose_writer_is_cancelled_happens_all_the_same(reopen: Reopen) -> None:
    async with opened(reopen) as storage:
        writing = asyncio.ensure_future(storage.put("t", b"k", b"v"))
        await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait([writing])
        await storage.put("t", b"later", b"v")
    async with opened(reopen) as storage:
        assert await storage.load("t") == {b"k": b"v", b"later": b"v"}


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "torn": lambda record: record[:-1],
    "torn to a rump": lambda record: record[:3],
    "torn to nothing": lambda record: b"",
    "flipped in the row": lambda record: record[:-1] + bytes([record[-1] ^ 1]),
    "flipped in the checksum": lambda record: record[:2] + b"\xff" + record[3:],
    "flipped in the version": lambda record: b"\x03" + record[1:],
}


@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES.keys())
async def test_a_damaged_record_is_quarantined_and_the_rest_loads(
    reopen: Reopen, change: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(reopen) as storage:
        for key in (b"a", b"b", b"c"):
            await storage.put("t", key, b"row " + key)
        await damage(storage, "t", b"b", change)
        found = dict(await storage._read("t"))[b"b"]
    async with opened(reopen) as storage:
        with caplog.at_level(logging.ERROR):
            assert await storage.load("t") == {b"a": b"row a", b"c": b"row c"}
            assert await storage.load("t") == {b"a": b"row a", b"c": b"row c"}
        assert storage.quarantined == 1
        assert await storage.lost("t") == [b"b"]
        assert await storage.lost("u") == []
        assert [r.getMessage() for r in caplog.records if "record 62 of table t" in r.getMessage()]
        assert len(caplog.records) == 1
        await storage.put("t", b"b", b"again")
    async with opened(reopen) as storage:
        assert await storage.load("t") == {b"a": b"row a", b"b": b"again", b"c": b"row c"}
        assert await storage.damaged() == {b"t/b": found}
        assert await storage.lost("t") == []


async def test_a_damaged_record_that_cannot_be_moved_is_left_out_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = FullStorage()
    await storage.put("t", b"a", b"row a")
    await storage.put("t", b"b", b"row b")
    await damage(storage, "t", b"b", lambda record: record[:-1])
    storage.is_full = True
    assert await storage.load("t") == {b"a": b"row a"}
    assert "it stays there unread, for the disk is full" in caplog.text
    storage.is_full = False
    assert await storage.load("t") == {b"a": b"row a"}
    assert list(await storage.damaged()) == [b"t/b"]


class FullStorage(MemoryStorage):
    is_full = False

    def _commit(self, records: Sequence[Write]) -> "asyncio.Future[None]":
        if not self.is_full:
            return super()._commit(records)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_exception(StorageUnusableError("the disk is full"))
        return done


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "memory"])
async def test_tables_that_are_open_are_refused_to_another_node(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raylite._services.gcs.storage.redis.RENEW", 0.01)
    server = request.getfixturevalue("redis_server") if kind == "redis" else None
    rival = opener(kind, tmp_path, server, "another")
    async with opened(opener(kind, tmp_path, server)) as storage:
        watching = asyncio.ensure_future(storage.watch())
        with pytest.raises(StorageError, match="in use by"):
            await rival()
        await storage.put("t", b"k", b"v")
        watching.cancel()
        await asyncio.wait([watching])
    async with opened(rival) as storage:
        assert await storage.load("t") == {b"k": b"v"}


async def test_a_record_under_another_key_or_table_is_damage(reopen: Reopen) -> None:
    async with opened(reopen) as storage:
        await storage.put("t", b"k", b"v")
        record = dict(await storage._read("t"))[b"k"]
        await storage._commit([Write("t", b"l", record), Write("u", b"k", record)])
        assert (await storage.load("t"), await storage.load("u")) == ({b"k": b"v"}, {})


async def test_a_record_of_a_later_version_is_kept_unread(
    reopen: Reopen, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(reopen) as storage:
        await storage._commit([Write("t", b"k", _record_of_version(9, "t", b"k", b"v"))])
        assert await storage.load("t") == {}
        assert "is in version 9" in caplog.text
        assert len(await storage.damaged()) == 1


async def test_a_closed_storage_finishes_what_was_begun_and_takes_no_more(reopen: Reopen) -> None:
    storage = await reopen()
    writing = [asyncio.ensure_future(storage.put("t", b"%d" % n, b"v")) for n in range(50)]
    await asyncio.sleep(0)
    await storage.close()
    assert await asyncio.gather(*writing) == [None] * 50
    async with opened(reopen) as again:
        assert len(await again.load("t")) == 50
        if again is not storage:
            with pytest.raises(StorageError, match="closed"):
                await storage.put("t", b"late", b"v")


def _record_of_version(version: int, table: str, key: bytes, row: bytes) -> bytes:
    return _HEAD.pack(version, _checksum(version, table, key, row)) + row
