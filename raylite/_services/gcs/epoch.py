"""The epoch: which life of the GCS this is, of which cluster."""

import asyncio
from random import Random

from raylite._services.gcs.storage import Storage, Write
from raylite._wire.messages import gcs as msg

_TABLE = "cluster"
_COPIES = (b"one", b"two")  # an epoch that began anew would make every peer newer than the GCS


class Epoch:
    """A number that grows with every start of the GCS, and an id that stays the cluster's.

    Services `begin` it before they answer; the first to do so makes it durable, the others wait.
    """

    def __init__(self, storage: Storage, random: Random) -> None:
        self._storage = storage
        self._random = random
        self._is_beginning = False
        self._has_begun = asyncio.Event()
        self.message = msg.Epoch()

    async def begin(self) -> None:
        """Return when the epoch is durable."""
        if not self._is_beginning:
            self._is_beginning = True
            try:
                await self._begin()
            except BaseException:
                self._is_beginning = False  # the service that failed is perhaps built again
                raise
        await self._has_begun.wait()

    async def _begin(self) -> None:
        kept = [msg.Epoch.parse(row) for row in (await self._storage.load(_TABLE)).values()]
        last = max(kept, key=lambda epoch: epoch.number, default=None)
        if last is None:
            last = msg.Epoch(cluster_id=self._random.randbytes(16))
        epoch = msg.Epoch(number=last.number + 1, cluster_id=last.cluster_id)
        await self._storage.batch([Write(_TABLE, copy, bytes(epoch)) for copy in _COPIES])
        self.message = epoch
        self._has_begun.set()
