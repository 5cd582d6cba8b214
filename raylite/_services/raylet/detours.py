"""A raylet's detours: who may reach a node that cannot be reached from here, and what is carried for others.

See `raylite._kernel.detour`.
"""

import math
from collections.abc import Sequence

from raylite._kernel.network import Network
from raylite._services.raylet.cluster import ClusterService
from raylite._types.address import host_of
from raylite._types.marks import mark_of

MOST = 3  # nodes that are asked in one attempt, before the GCS


class RayletDetours:
    """Knows the nodes of the cluster; carries to them what others cannot send."""

    bandwidth: float = math.inf

    def __init__(self, network: Network, cluster: ClusterService, gcs_address: str) -> None:
        self._cluster = cluster
        self._gcs = "" if gcs_address.startswith("unix:") else gcs_address  # no other machine
        self._random = network.seams.random("detours")

    def ways(self, address: str) -> Sequence[str]:
        """The raylets of other nodes, the head's first; and the GCS, which has to be reached by all.

        Those that may stand still come last of the nodes: each would be waited for.
        """
        mark = mark_of(address)
        if not self.carries(address):
            return ()
        raylets = self._cluster.raylets()
        ways = [there for there in raylets if mark_of(there) != mark]
        self._random.shuffle(ways)
        suspects = self._cluster.suspects()
        ways.sort(key=lambda way: (way in suspects, way != self._cluster.head))
        return [*ways[:MOST], self._gcs] if self._gcs else ways[:MOST]

    def carries(self, address: str) -> bool:
        """Whether this is a process of another node that lives."""
        mark = mark_of(address)
        known = (there for there in self._cluster.raylets() if mark_of(there) == mark)
        there = next(known, None) if mark else None
        return there is not None and host_of(there) == host_of(address)
