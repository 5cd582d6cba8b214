"""The GCS's detours: what it carries for nodes that cannot reach each other, when no raylet can.

All nodes reach it, and it reaches most of them. But it is one process, which has all the others to hear: it carries
no more than it can beside that. See `raylite._kernel.detour`.
"""

from collections.abc import Sequence

from raylite._services.gcs.nodes import NodeService
from raylite._types.address import host_of
from raylite._types.marks import mark_of, mark_of_node

BANDWIDTH = 32 * 1024 * 1024  # bytes a second; some 6 % of a core


class GcsDetours:
    """Carries to the members of the cluster what others ask it to, and asks nobody."""

    bandwidth: float = BANDWIDTH

    def __init__(self, nodes: NodeService) -> None:
        self._nodes = nodes

    def ways(self, address: str) -> Sequence[str]:
        return ()

    def carries(self, address: str) -> bool:
        """Whether this is a process of a node that lives."""
        mark, members = mark_of(address), self._nodes.membership.alive()
        rows = self._nodes.rows
        known = (rows.get(id) for id in members if mark_of_node(id) == mark)
        there = next(known, None) if mark else None
        return there is not None and there.alive and host_of(there.address) == host_of(address)
