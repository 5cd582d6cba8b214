"""Detours: a peer that cannot be reached is reached by way of a node that reaches it.

Two nodes may be unable to reach each other though both reach the rest. What one of them dials in vain for
long it has carried by a raylet of a third node, which `relay` hands on as it does between the processes of
a node, or where none can, by the GCS. A process that is no raylet asks its own one, which knows who else
there is. So there are two carriers at most. The session is between the two ends: it goes on, and who uses it notices nothing. While
the wire is such a one, the direct way is tried every so often, and taken when it is there again.
"""

import math
from collections.abc import Sequence
from typing import Protocol

from raylite._types.marks import mark_of


class Detours(Protocol):
    """Whom a process asks to carry what it cannot send itself, and for whom it does so.

    It carries so many bytes a second at most, for all together: whoever sends more waits.
    """

    bandwidth: float

    def ways(self, address: str) -> Sequence[str]:
        """The addresses of those who may reach an address; the best first, and few."""

    def carries(self, address: str) -> bool:
        """Whether this process carries what is for an address."""


class NoDetours:
    """Those of a process that knows nobody."""

    bandwidth: float = math.inf

    def ways(self, address: str) -> Sequence[str]:
        return ()

    def carries(self, address: str) -> bool:
        return False


class ByRaylet:
    """Those of a driver or a worker: its raylet knows a way to other nodes.

    Args:
        raylet: Its raylet's address.
        address: Its own.
    """

    bandwidth: float = math.inf

    def __init__(self, raylet: str, address: str) -> None:
        self._raylet, self._mark = raylet, mark_of(address)

    def ways(self, address: str) -> Sequence[str]:
        return () if mark_of(address) in ("", self._mark) else (self._raylet,)

    def carries(self, address: str) -> bool:
        return False
