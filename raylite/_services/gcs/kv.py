"""The Kv service: small values by namespace and key."""

from raylite._kernel.service import Service, handles
from raylite._protocol import gcs
from raylite._services.gcs.storage import Storage
from raylite._wire.messages import gcs as msg


class KvService(Service, serves=(gcs.Kv,)):
    """Reads and writes the storage; what it acknowledged, the storage keeps."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @handles(gcs.Kv.put)
    async def put(self, request: msg.KvPut) -> msg.KvStored:
        table = _table(request.namespace)
        is_new = await self._storage.get(table, request.key) is None
        if is_new or request.overwrite:
            await self._storage.put(table, request.key, request.value)
        return msg.KvStored(added=is_new)

    @handles(gcs.Kv.get)
    async def get(self, request: msg.KvGet) -> msg.KvValue:
        value = await self._storage.get(_table(request.namespace), request.key)
        return msg.KvValue(value=value)

    @handles(gcs.Kv.delete)
    async def delete(self, request: msg.KvDelete) -> msg.KvDeleted:
        table, keys = _table(request.namespace), [request.key]
        if request.by_prefix:
            keys = [key for key, _ in await self._storage.scan(table, request.key)]
        deleted = [await self._storage.delete(table, key) for key in keys]
        return msg.KvDeleted(count=sum(deleted))

    @handles(gcs.Kv.keys)
    async def keys(self, request: msg.KvKeys) -> msg.KvKeyList:
        rows = await self._storage.scan(_table(request.namespace), request.prefix)
        return msg.KvKeyList([key for key, _ in rows])


def _table(namespace: bytes) -> str:
    return f"kv/{namespace.hex()}"
