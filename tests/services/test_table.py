"""A table: decisions on the latest rows, sight of the durable ones."""

import asyncio
import itertools

import pytest

from raylite._services.gcs.storage import StorageError, Write
from raylite._services.gcs.table import KEPT, Change, Table
from tests.services.storages import GatedStorage

pytestmark = pytest.mark.asyncio


def bytes_table(storage: GatedStorage) -> Table[bytes]:
    return Table(storage, "t", bytes, is_over=lambda row: row == b"over")


async def test_a_change_is_seen_when_it_is_durable_and_not_before() -> None:
    storage = GatedStorage()
    table = bytes_table(storage)
    storage.is_holding = True
    with table.changes.subscribe() as changes:
        writing = asyncio.ensure_future(table.put(b"k", b"v"))
        await asyncio.sleep(0)
        assert (table.rows.get(b"k"), table.latest(b"k")) == (None, b"v")
        assert not writing.done()
        storage.release()
        await writing
        assert (table.rows[b"k"], table.latest(b"k")) == (b"v", b"v")
        assert await anext(changes) == Change(b"k", b"v")


async def test_a_change_that_fails_leaves_no_trace() -> None:
    storage = GatedStorage()
    table = bytes_table(storage)
    await table.put(b"k", b"old")
    storage.fails = True
    with table.changes.subscribe() as changes:
        with pytest.raises(StorageError, match="the disk is full"):
            await table.write([Change(b"k", b"new"), Change(b"l", b"new")])
        assert (dict(table.rows), dict(table.all_latest())) == ({b"k": b"old"}, {b"k": b"old"})
        storage.fails = False
        await table.put(b"k", b"newer")
        assert await anext(changes) == Change(b"k", b"newer")


async def test_a_change_whose_writer_is_cancelled_happens() -> None:
    storage = GatedStorage()
    table = bytes_table(storage)
    storage.is_holding = True
    writing = asyncio.ensure_future(table.put(b"k", b"v"))
    await asyncio.sleep(0)
    writing.cancel()
    await asyncio.wait([writing])
    storage.release()
    await table.durable(b"k")
    assert table.rows == {b"k": b"v"}
    assert await storage.load("t") == {b"k": b"v"}


async def test_who_failed_unheard_is_no_lost_exception() -> None:
    storage = GatedStorage()
    table = bytes_table(storage)
    storage.is_holding = storage.fails = True
    writing = asyncio.ensure_future(table.put(b"k", b"v"))
    await asyncio.sleep(0)
    writing.cancel()
    await asyncio.wait([writing])
    storage.release()
    await asyncio.sleep(0)
    assert table.latest(b"k") is None


async def test_changes_of_one_key_become_durable_in_order() -> None:
    storage = GatedStorage()
    table = bytes_table(storage)
    storage.is_holding = True
    writing = [asyncio.ensure_future(table.put(b"k", b"%d" % n)) for n in range(5)]
    await asyncio.sleep(0)
    assert table.latest(b"k") == b"4"
    with table.changes.subscribe() as changes:
        storage.release()
        await asyncio.gather(*writing)
        assert [(await anext(changes)).row for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
    assert table.rows == {b"k": b"4"}


async def test_other_writes_go_along_with_a_change() -> None:
    storage = GatedStorage()
    await bytes_table(storage).write([Change(b"k", b"v")], also=[Write("other", b"n", b"1")])
    assert storage.commits == 1
    assert await storage.load("other") == {b"n": b"1"}


async def test_a_loaded_table_has_what_was_kept() -> None:
    storage = GatedStorage()
    first = bytes_table(storage)
    await first.put(b"k", b"v")
    await first.put(b"gone", b"v")
    await first.write([Change(b"gone", None)])
    second = bytes_table(storage)
    await second.load()
    assert second.rows == {b"k": b"v"}


async def test_of_rows_that_are_over_the_last_are_kept() -> None:
    storage = GatedStorage()
    table = bytes_table(storage)
    await table.put(b"lasting", b"v")
    await table.put(b"back", b"over")
    await table.put(b"back", b"v")
    for number in itertools.islice(itertools.count(), KEPT + 50):
        await table.put(b"%d" % number, b"over")
    assert len(table.rows) <= KEPT + 3
    assert {b"lasting", b"back", b"%d" % (KEPT + 49)} <= table.rows.keys()
    assert b"0" not in table.rows
    assert (await storage.load("t")).keys() == table.rows.keys()
