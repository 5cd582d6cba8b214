"""Tables in Redis: the storage of a cluster that is to survive its head's machine.

A table is a hash, a group of writes a MULTI/EXEC. How durable an acknowledged write is, Redis
decides: only with ``appendonly yes`` and ``appendfsync always`` as much as a SQLite file.

Whoever opens a cluster's tables last is their writer, and those before can write no more. The same
watch keeps out a transaction that was given up for lost and arrives late, over a newer one.
"""

import asyncio
import logging
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
    RedisError,
    ResponseError,
    TimeoutError as RedisTimeoutError,
    WatchError,
)

from raylite._services.gcs.storage.group import GroupCommit
from raylite._services.gcs.storage.interface import (
    Storage,
    StorageError,
    StorageTakenError,
    StorageUnreachableError,
    Write,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

FORMAT = 1
TIMEOUT = 5.0  # seconds that Redis has for an answer
LOOK = 2.0  # seconds in which a writer learns that another has taken over


class RedisStorage(Storage):
    """Tables under ``raylite:{cluster}:``. Make it with `open`."""

    def __init__(self, url: str, cluster: str) -> None:
        self._client = Redis.from_url(url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT)
        self._cluster = cluster
        self._header = f"raylite:{{{cluster}}}"
        self._writer = 0
        self._group = GroupCommit(self._execute)

    @classmethod
    async def open(cls, url: str, cluster: str) -> "RedisStorage":
        """Become the writer of a cluster's tables.

        Args:
            url: Where Redis is, as redis-py understands it.
            cluster: Which of the clusters that share this Redis.

        Raises:
            StorageError: Redis cannot be reached, or the tables are a newer raylite's.
        """
        storage = cls(url, cluster)
        try:
            with storage._explained():
                await storage._take_over()
                await storage._warn_of_loss()
        except BaseException:
            await storage.close()
            raise
        return storage

    @property
    def commits(self) -> int:
        """Transactions since it was opened."""
        return self._group.commits

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            try:
                with self._explained():
                    self._check(await _typed(bytes, self._client.hget(self._header, "writers")))
            except StorageUnreachableError as error:
                logger.warning("the tables cannot be watched: %s", error)

    async def close(self) -> None:
        await self._group.close()
        await self._client.aclose()

    def _commit(self, records: Sequence[Write]) -> "asyncio.Future[None]":
        return self._group.submit(records)

    async def _read(self, table: str) -> list[tuple[bytes, bytes]]:
        with self._explained():
            records = await _typed(dict[bytes, bytes], self._client.hgetall(self._key(table)))
        return list(records.items())

    def _key(self, table: str) -> str:
        return f"{self._header}:{table}"

    async def _take_over(self) -> None:
        await _typed(int, self._client.hsetnx(self._header, "format", str(FORMAT)))
        format = int(await _typed(bytes, self._client.hget(self._header, "format")))
        if format > FORMAT:
            raise StorageError(
                f"the tables of cluster {self._cluster!r} are in format {format}, and this raylite "
                f"reads up to {FORMAT}: start the raylite that wrote them, or a newer one"
            )
        self._writer = await _typed(int, self._client.hincrby(self._header, "writers", 1))

    async def _warn_of_loss(self) -> None:
        try:
            options = await _typed(dict[str, str], self._client.config_get("append*"))
        except ResponseError:
            return  # a hosted Redis does not say
        if (options.get("appendonly"), options.get("appendfsync")) != ("yes", "always"):
            logger.warning(
                "Redis may lose the last writes of cluster %r when it crashes: "
                "set appendonly to yes and appendfsync to always",
                self._cluster,
            )

    async def _execute(self, writes: Sequence[Write]) -> None:
        with self._explained():
            while not await self._try_to_execute(writes):
                pass  # a transaction given up for lost came in between: these writes repeat it

    async def _try_to_execute(self, writes: Sequence[Write]) -> bool:
        async with self._client.pipeline(transaction=True) as pipe:
            try:
                await pipe.watch(self._header)
                self._check(await _typed(bytes, pipe.hget(self._header, "writers")))
                pipe.multi()  # type: ignore[no-untyped-call] # redis-py forgot
                for write in writes:
                    if write.row is None:
                        pipe.hdel(self._key(write.table), write.key)
                    else:
                        pipe.hset(self._key(write.table), write.key, write.row)
                pipe.hincrby(self._header, "commits", 1)
                await pipe.execute()
            except WatchError:
                return False
        return True

    def _check(self, writer: bytes) -> None:
        if writer != b"%d" % self._writer:
            raise StorageTakenError(
                f"another GCS has taken over cluster {self._cluster!r}, or its tables were "
                "deleted: this one may write no more. Clusters that share a Redis are told apart by "
                "?cluster=NAME in --storage"
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            raise StorageUnreachableError(f"Redis failed: {error}") from error
        except RedisError as error:
            raise StorageError(f"Redis failed: {error}") from error


async def _typed(kind: type[T], reply: object) -> T:
    """Await a reply: redis-py shares its types with its blocking client, and promises either."""
    return await cast(Awaitable[T], reply)
