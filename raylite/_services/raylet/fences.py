"""The Fence service: leases are ended though their holder and their raylet cannot reach each other.

The holder asks its own raylet, that one the GCS, and the GCS the raylet that lent the workers. It answers when
they have ended, so what they ran may begin elsewhere.
"""

import asyncio
from collections.abc import Callable

from msgspec import Struct

from raylite._kernel.network import Network
from raylite._kernel.service import Service, handles
from raylite._machines.epochs import Epochs
from raylite._protocol import gcs, raylet
from raylite._services.raylet.leases import LeaseService
from raylite._types.keys import LeaseID
from raylite._types.strategies import NodeKey
from raylite._wire import hot
from raylite.exceptions import UnavailableError

_CAUSE = "the owner of its task could not be reached, and had it ended"


class _Revocation(Struct):
    """Leases whose workers are being ended, and those that have ended."""

    ending: dict[LeaseID, None]
    done: asyncio.Future[None]
    losses: list[hot.WorkerLost]


class FenceService(Service, serves=(raylet.Fences,)):
    """Asks for others' fences, and ends what others may not wait for.

    Args:
        network: The raylet's.
        gcs_address: Who is asked.
        leases: What may have to end.
        epochs: Which GCS may have it end.
        on_asked: Told of each node that a process here cannot reach.
    """

    def __init__(
        self,
        network: Network,
        gcs_address: str,
        leases: LeaseService,
        epochs: Epochs,
        on_asked: Callable[[NodeKey], None],
    ) -> None:
        self._network = network
        self._gcs = gcs_address
        self._leases = leases
        self._epochs = epochs
        self._on_asked = on_asked
        self._revocations: list[_Revocation] = []
        leases.on_lost.append(self._lost)

    @handles(raylet.Fences.ask)
    async def ask(self, fence: hot.Fence) -> hot.Fenced:
        self._on_asked(NodeKey(fence.node))
        return await gcs.Nodes(self._network.connect(self._gcs)).fence(fence)

    @handles(raylet.Fences.revoke)
    async def revoke(self, fence: hot.Fence) -> hot.Fenced:
        if not self._epochs.obeys(fence.cluster, fence.epoch):
            raise UnavailableError(
                f"life {fence.epoch} of the GCS cannot have leases ended: this node obeys life "
                f"{self._epochs.number}, ask that one"
            )
        leases = [LeaseID(lease) for lease in fence.leases]
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        revocation = _Revocation(dict.fromkeys(leases), done, [])
        self._revocations.append(revocation)
        try:
            lent = self._leases.revoke(fence.holder, leases, _CAUSE)
            for lease in leases:
                if lease not in lent:
                    del revocation.ending[lease]
            if revocation.ending:
                await done
        finally:
            self._revocations.remove(revocation)
        return hot.Fenced(tuple(revocation.losses))

    def _lost(self, loss: hot.WorkerLost) -> None:
        for revocation in self._revocations:
            if (lease := LeaseID(loss.lease)) in revocation.ending:
                del revocation.ending[lease]
                revocation.losses.append(loss)
                if not revocation.ending and not revocation.done.done():
                    revocation.done.set_result(None)
