"""Tables in Redis: the storage of a cluster that is to survive its head's machine.

A table is a hash, a group of writes a MULTI/EXEC. How durable an acknowledged write is, Redis
decides: only with ``appendonly yes`` and ``appendfsync always`` as much as a SQLite file.

One GCS writes a cluster's tables (`tenure`); one that another has taken them from, because it gave no
sign of life, can write no more. The same watch keeps out a transaction that was given up for lost and
arrives late, over a newer one.
"""

import asyncio
import logging
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
    StorageUnusableError,
    Write,
)
from raylite._services.gcs.storage.tenure import RENEW, Tenure

logger = logging.getLogger(__name__)

T = TypeVar("T")

FORMAT = 1
TIMEOUT = 5.0  # seconds that Redis has for an answer
_BLAME = " of pipeline caused error: "  # redis-py puts the whole command before it


class RedisStorage(Storage):
    """Tables under ``raylite:{cluster}:``. Make it with `open`."""

    def __init__(self, url: str, cluster: str, node: str = "", place: str = "") -> None:
        self._client = Redis.from_url(url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT)
        self._cluster = cluster
        self._header = f"raylite:{{{cluster}}}"
        self._tenure = Tenure(self._client, cluster, node, place)
        self._group = GroupCommit(self._execute)

    @classmethod
    async def open(cls, url: str, cluster: str, node: str = "", place: str = "") -> "RedisStorage":
        """Become the writer of a cluster's tables. That of a node which gives no sign of life is waited for.

        Args:
            url: Where Redis is, as redis-py understands it.
            cluster: Which of the clusters that share this Redis.
            node: Whose tables they are to be: what writes them for this node already is given no time.
            place: Where that node is, for people.

        Raises:
            StorageTakenError: The GCS of another node writes them.
            StorageError: Redis cannot be reached, or the tables are a newer raylite's.
        """
        storage = cls(url, cluster, node, place)
        try:
            with storage._explained():
                await storage._check_format()
                await storage._tenure.take()
                await storage._warn_of_loss()
        except BaseException:
            await storage.close()
            raise
        return storage

    @classmethod
    async def vacate(cls, url: str, cluster: str) -> None:
        """Return when nobody writes a cluster's tables; see `open`, whose errors it raises."""
        storage = cls(url, cluster)
        try:
            with storage._explained():
                await storage._tenure.vacate()
        finally:
            await storage._client.aclose()

    @property
    def commits(self) -> int:
        """Transactions since it was opened."""
        return self._group.commits

    async def watch(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        # A cancellation can be lost on the way: redis-py has `wait_for`, which in Python 3.11 returns
        # instead if what it waited for has come in the same moment (bpo-37658).
        while not task.cancelling():
            await asyncio.sleep(RENEW)
            try:
                with self._explained():
                    await self._tenure.renew()
            except StorageUnusableError as error:
                logger.warning("the tables cannot be watched: %s", error)

    async def close(self) -> None:
        await self._group.close()
        with suppress(RedisError, OSError):  # then whoever comes next has to wait a little
            await self._tenure.release()
        await self._client.aclose()

    def _commit(self, records: Sequence[Write]) -> "asyncio.Future[None]":
        return self._group.submit(records)

    async def _read(self, table: str) -> list[tuple[bytes, bytes]]:
        with self._explained():
            records = await _typed(dict[bytes, bytes], self._client.hgetall(self._key(table)))
        return list(records.items())

    def _key(self, table: str) -> str:
        return f"{self._header}:{table}"

    async def _check_format(self) -> None:
        await _typed(int, self._client.hsetnx(self._header, "format", str(FORMAT)))
        format = int(await _typed(bytes, self._client.hget(self._header, "format")))
        if format > FORMAT:
            raise StorageError(
                f"the tables of cluster {self._cluster!r} are in format {format}, and this raylite "
                f"reads up to {FORMAT}: start the raylite that wrote them, or a newer one"
            )

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
                self._tenure.check(await _typed(bytes, pipe.hget(self._header, "writers")))
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

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            raise StorageUnusableError(
                f"Redis failed: {error} Is it running, and is this where it is?"
            ) from error
        except RedisError as error:  # its memory is full, its disk, it is a replica: that may pass
            reason = str(error).rpartition(_BLAME)[2]
            raise StorageUnusableError(f"Redis failed: {reason}") from error


async def _typed(kind: type[T], reply: object) -> T:
    """Await a reply: redis-py shares its types with its blocking client, and promises either."""
    return await cast(Awaitable[T], reply)
