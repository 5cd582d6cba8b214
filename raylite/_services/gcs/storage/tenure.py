"""The tenure of tables in Redis: which GCS writes them, for as long as it gives signs of life.

Redis keeps, beside a cluster's tables, who holds them, and a number that the holder counts up. Whoever
wants them watches that number: one that moves is a living holder's, and one that has stood still for
`LAPSE` seconds, by the clock of who watches and while Redis answered, is a dead one's. So neither
Redis's clock nor its being away takes tables from anybody; what it does take is one look a second.

Each tenure has the number of a writer, which only grows, and without which nothing is written.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import cast

from msgspec import Struct
from redis.asyncio import Redis

from raylite._kernel.seams import now, wall
from raylite._services.gcs.storage.interface import StorageTakenError

logger = logging.getLogger(__name__)

_Reply = int | list[bytes]  # what was asked for, or who holds the tables

RENEW = 2.0  # seconds between two signs of life
LAPSE = 10.0  # seconds without one after which a holder is dead
LOOK = 1.0  # seconds between two looks at another's

_HELD = """
local held = redis.call('HMGET', KEYS[2], 'node', 'place', 'since', 'writer', 'beats')
local sign = held[1] and held[4] .. '.' .. held[5]
local is_free = not held[1] or sign == ARGV[1]
local other = held[1] and {held[1], held[2], held[3], sign}
"""
_TAKE = f"""{_HELD}
if not is_free and held[1] ~= ARGV[2] then return other end
if held[1] ~= ARGV[2] then
    redis.call('DEL', KEYS[2])
    redis.call('HSET', KEYS[2], 'since', ARGV[4])
end
local writer = redis.call('HINCRBY', KEYS[1], 'writers', 1)
redis.call('HSET', KEYS[2], 'node', ARGV[2], 'place', ARGV[3], 'writer', writer, 'beats', 1)
return writer
"""
_VACATE = f"""{_HELD}
if not is_free then return other end
redis.call('DEL', KEYS[2])
return 0
"""
_RENEW = """
if redis.call('HGET', KEYS[1], 'writers') ~= ARGV[1] then return 0 end
redis.call('HSETNX', KEYS[2], 'since', ARGV[4])
redis.call('HSET', KEYS[2], 'node', ARGV[2], 'place', ARGV[3], 'writer', ARGV[1])
return redis.call('HINCRBY', KEYS[2], 'beats', 1)
"""
_RELEASE = """
if redis.call('HGET', KEYS[1], 'writers') == ARGV[1] then
    redis.call('HINCRBY', KEYS[1], 'writers', 1)
    redis.call('DEL', KEYS[2])
end
return 0
"""


class Holder(Struct, frozen=True):
    """Who holds tables: a node, where it is, since when, and the last sign of its life."""

    node: str
    place: str
    since: float
    sign: str

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC)
        return f"the head {self.place} (node {self.node[:12]}), since {since:%Y-%m-%d %H:%M:%S} UTC"


class Tenure:
    """One GCS's claim to a cluster's tables.

    Args:
        client: The Redis.
        cluster: Which of the clusters that share it.
        node: The node of the GCS: another one on it has the tables at once.
        place: Where that is, for people.
    """

    def __init__(self, client: Redis, cluster: str, node: str = "", place: str = "") -> None:
        self._client, self._cluster = client, cluster
        self._keys = (f"raylite:{{{cluster}}}", f"raylite:{{{cluster}}}.lease")
        self._node, self._place, self._since = node, place, wall()
        self._writer = 0

    async def take(self) -> None:
        """Return when the tables are this node's.

        Raises:
            StorageTakenError: A living GCS of another node holds them.
        """
        own = self._node, self._place, repr(self._since)
        self._writer = await self._until_free(lambda sign: self._run(_TAKE, sign, *own))

    async def vacate(self) -> None:
        """Return when nobody holds the tables, and take them from a holder who is dead.

        Raises:
            StorageTakenError: A living GCS holds them.
        """
        await self._until_free(lambda sign: self._run(_VACATE, sign))

    async def renew(self) -> None:
        """Give a sign of life.

        Raises:
            StorageTakenError: The tables are another's, or not there any more.
        """
        own = self._node, self._place, repr(self._since)
        if not await self._run(_RENEW, str(self._writer), *own):
            raise self._taken()

    async def release(self) -> None:
        """Let the next have the tables at once, if they are this GCS's still.

        The number of this writer is no longer the last then: a sign of life that was on its way, by another
        connection, comes too late.
        """
        if self._writer:  # else it never had them, and Redis is perhaps not there
            await self._run(_RELEASE, str(self._writer))

    def check(self, writer: bytes | None) -> None:
        """Refuse to write as another than the writer that Redis names.

        Raises:
            StorageTakenError: It is another, or there is none.
        """
        if writer != b"%d" % self._writer:
            raise self._taken()

    async def _until_free(self, attempt: Callable[[str], Awaitable[_Reply]]) -> int:
        """Repeat what takes the tables if they are free, or the last sign is the one that it is given."""
        began = now()
        found = await attempt("")
        if not isinstance(found, list):
            return found
        first = holder = _holder(found)
        logger.warning(
            "the tables of cluster %r are held by %s: waiting up to %g s for a sign that it lives",
            self._cluster, first, LAPSE,
        )  # fmt: skip
        while holder.sign == first.sign:
            left = began + LAPSE - now()
            if left > 0:
                await asyncio.sleep(min(left, LOOK))
            found = await attempt(first.sign if left <= 0 else "")
            if not isinstance(found, list):
                return found
            holder = _holder(found)
        raise StorageTakenError(
            f"the tables of cluster {self._cluster!r} are in use by {holder}: end it with `raylite "
            "stop` there, or keep this cluster's apart with ?cluster=NAME in --storage"
        )

    async def _run(self, script: str, *arguments: str) -> _Reply:
        reply = self._client.eval(script, len(self._keys), *self._keys, *arguments)
        return await cast(Awaitable[_Reply], reply)

    def _taken(self) -> StorageTakenError:
        return StorageTakenError(
            f"another GCS has taken over cluster {self._cluster!r}, or its tables were "
            "deleted: this one may write no more. Clusters that share a Redis are told apart by "
            "?cluster=NAME in --storage"
        )


def _holder(found: list[bytes]) -> Holder:
    node, place, since, sign = (each.decode() for each in found)
    return Holder(node, place, float(since), sign)
