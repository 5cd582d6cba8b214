"""The Fate service: whether a process is dead, for those whose sessions with it have ended.

The end of a session is no death, and news of a death is told once: who begins after it has not heard it. So
whoever has to know asks. Of the processes of a node its raylet knows; of nodes the GCS does, which asks that raylet.
"""

from raylite._kernel.network import Network
from raylite._kernel.service import Service, handles
from raylite._machines.epochs import Epochs
from raylite._protocol import gcs, raylet
from raylite._services.raylet.cluster import ClusterService
from raylite._services.raylet.pool import PoolService
from raylite._types.marks import mark_of, mark_of_node
from raylite._wire import hot
from raylite.exceptions import UnavailableError


class FateService(Service, serves=(raylet.Fates,)):
    """Answers for the processes of this node, and asks after those of others.

    Args:
        network: The raylet's.
        gcs_address: Who is asked.
        pool: This node's processes.
        cluster: The nodes that are known to be dead.
        epochs: Which GCS is believed.
    """

    def __init__(
        self,
        network: Network,
        gcs_address: str,
        pool: PoolService,
        cluster: ClusterService,
        epochs: Epochs,
    ) -> None:
        self._network = network
        self._gcs = gcs_address
        self._pool = pool
        self._cluster = cluster
        self._epochs = epochs
        self._mark = mark_of_node(pool.node_id)

    @handles(raylet.Fates.ask)
    async def ask(self, ask: hot.AskFate) -> hot.Fate:
        mark = mark_of(ask.address)
        if mark in ("", self._mark):
            return self._here(ask.address)
        if (death := self._cluster.death_of(mark)) is not None:
            return hot.Fate(True, death.cause)
        fate = await gcs.Nodes(self._network.connect(self._gcs)).fate(ask)
        if not self._epochs.obeys(fate.cluster, fate.epoch):
            raise UnavailableError(self._replaced(fate.epoch))
        return fate

    @handles(raylet.Fates.tell)
    def tell(self, ask: hot.AskFate) -> hot.Fate:
        if not self._epochs.obeys(ask.cluster, ask.epoch):
            raise UnavailableError(self._replaced(ask.epoch))
        if mark_of(ask.address) != self._mark:
            raise UnavailableError(f"{ask.address} is not of this node")
        return self._here(ask.address)

    def _here(self, address: str) -> hot.Fate:
        lives = any(member.address == address for member in self._pool.members())
        if lives or address == self._network.address:
            return hot.Fate(False)
        return hot.Fate(True, "its raylet knows of it no more")

    def _replaced(self, epoch: int) -> str:
        return (
            f"life {epoch} of the GCS knows nothing of deaths for sure: this node obeys life "
            f"{self._epochs.number}, ask that one"
        )
