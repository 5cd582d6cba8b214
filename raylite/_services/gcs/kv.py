"""The Kv service: small values by namespace and key."""

from collections.abc import AsyncIterator

from raylite._kernel.service import Service, handles
from raylite._protocol import gcs
from raylite._services.gcs.storage import Storage
from raylite._services.gcs.table import Change, Table
from raylite._wire.messages import gcs as msg


class KvService(Service, serves=(gcs.Kv,)):
    """Keeps values, all of them in memory too."""

    def __init__(self, storage: Storage) -> None:
        self._table: Table[bytes] = Table(storage, "kv", bytes)

    async def started(self) -> None:
        await self._table.load()

    @handles(gcs.Kv.put)
    async def put(self, request: msg.KvPut) -> msg.KvStored:
        place = _place(request.namespace, request.key)
        is_new = self._table.latest(place) is None
        if is_new or request.overwrite:
            await self._table.put(place, request.value)
        else:
            await self._table.durable(place)  # the value that this one gave way to
        return msg.KvStored(added=is_new)

    @handles(gcs.Kv.get)
    def get(self, request: msg.KvGet) -> msg.KvValue:
        return msg.KvValue(value=self._table.rows.get(_place(request.namespace, request.key)))

    @handles(gcs.Kv.delete)
    async def delete(self, request: msg.KvDelete) -> msg.KvDeleted:
        place = _place(request.namespace, request.key)
        places = [
            there
            for there, _ in self._table.all_latest()
            if (there.startswith(place) if request.by_prefix else there == place)
        ]
        if places:
            await self._table.write([Change(there, None) for there in places])
        else:
            await self._table.durable(place)
        return msg.KvDeleted(count=len(places))

    @handles(gcs.Kv.keys)
    def keys(self, request: msg.KvKeys) -> msg.KvKeyList:
        prefix = _place(request.namespace, request.prefix)
        skipped = len(_place(request.namespace, b""))
        places = sorted(place for place in self._table.rows if place.startswith(prefix))
        return msg.KvKeyList([place[skipped:] for place in places])

    @handles(gcs.Kv.watch)
    async def watch(self, request: msg.WatchKv) -> AsyncIterator[msg.KvEvent]:
        prefix = _place(request.namespace, request.prefix)
        skipped = len(_place(request.namespace, b""))
        present = [Change(place, value) for place, value in self._table.rows.items()]
        with self._table.changes.subscribe(present) as changes:
            async for change in changes:
                if change.key.startswith(prefix):
                    yield msg.KvEvent(change.key[skipped:], change.row)


def _place(namespace: bytes, key: bytes) -> bytes:
    """Return the key in the table; that of an empty key is the prefix of a namespace's keys."""
    return len(namespace).to_bytes(4, "big") + namespace + key
