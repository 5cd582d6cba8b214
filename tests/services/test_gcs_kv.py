"""The Kv service: small values by namespace and key."""

import anyio
import pytest

from raylite._services.gcs.storage import MemoryStorage
from raylite._wire.messages import gcs as msg
from raylite.exceptions import UnavailableError
from tests.services.rig import Client, life, simulated, take
from tests.services.storages import GatedStorage


async def put(client: Client, key: bytes, value: bytes, *, overwrite: bool = False) -> bool:
    return (await client.kv.put(msg.KvPut(b"space", key, value, overwrite))).added


async def get(client: Client, key: bytes, namespace: bytes = b"space") -> bytes | None:
    return (await client.kv.get(msg.KvGet(namespace, key))).value


async def keys(client: Client, prefix: bytes = b"") -> list[bytes]:
    return list((await client.kv.keys(msg.KvKeys(b"space", prefix))).keys)


@simulated
async def test_a_value_is_replaced_only_when_asked() -> None:
    async with life(MemoryStorage()) as gcs:
        client = gcs.client()
        assert await put(client, b"k", b"1")
        assert not await put(client, b"k", b"2")
        assert await get(client, b"k") == b"1"
        assert not await put(client, b"k", b"3", overwrite=True)
        assert await get(client, b"k") == b"3"
        assert await get(client, b"k", b"spac") is None
        assert await get(client, b"", b"spacek") is None


@simulated
async def test_keys_go_one_by_one_or_by_prefix() -> None:
    async with life(MemoryStorage()) as gcs:
        client = gcs.client()
        for key in (b"b", b"a/2", b"a/1", b""):
            await put(client, key, b"v")
        assert await keys(client) == [b"", b"a/1", b"a/2", b"b"]
        assert await keys(client, b"a/") == [b"a/1", b"a/2"]
        assert (await client.kv.delete(msg.KvDelete(b"space", b"a"))).count == 0
        assert (await client.kv.delete(msg.KvDelete(b"space", b"a/", True))).count == 2
        assert (await client.kv.delete(msg.KvDelete(b"space", b"b"))).count == 1
        assert await keys(client) == [b""]


@simulated
async def test_of_two_who_put_at_once_one_is_first() -> None:
    storage = GatedStorage()
    async with life(storage) as gcs:
        client = gcs.client()
        assert await keys(client) == []
        storage.is_holding = True
        first: dict[bytes, bool] = {}

        async def put_first(value: bytes) -> None:
            first[value] = await put(client, b"k", value)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(put_first, b"one")
            await anyio.sleep(0.1)
            tasks.start_soon(put_first, b"two")
            await anyio.sleep(1)
            assert first == {}
            assert await get(client, b"k") is None
            storage.release()
        assert first == {b"one": True, b"two": False}
        assert await get(client, b"k") == b"one"


@simulated
async def test_a_put_that_fails_is_told_and_undone() -> None:
    storage = GatedStorage()
    async with life(storage) as gcs:
        client = gcs.client()
        await put(client, b"k", b"old")
        storage.fails = True
        with pytest.raises(UnavailableError, match="the disk is full"):
            await put(client, b"k", b"new", overwrite=True)
        assert await get(client, b"k") == b"old"


@simulated
async def test_a_watcher_sees_what_is_there_and_every_change() -> None:
    async with life(MemoryStorage()) as gcs:
        client, watcher = gcs.client(), gcs.client()
        await put(client, b"a/1", b"1")
        await put(client, b"b/1", b"1")
        events = aiter(watcher.kv.watch(msg.WatchKv(b"space", b"a/")))
        assert await anext(events) == msg.KvEvent(b"a/1", b"1")
        await put(client, b"b/2", b"2")
        await put(client, b"a/2", b"")
        await client.kv.delete(msg.KvDelete(b"space", b"a/1"))
        assert await take(events, 2) == [msg.KvEvent(b"a/2", b""), msg.KvEvent(b"a/1", None)]


@simulated
async def test_a_restart_keeps_the_values() -> None:
    storage = MemoryStorage()
    async with life(storage) as gcs:
        client = gcs.client()
        for key in (b"kept", b"gone"):
            await put(client, key, b"v")
        await client.kv.delete(msg.KvDelete(b"space", b"gone"))
    async with life(storage) as gcs:
        assert await keys(gcs.client()) == [b"kept"]
