"""Fences: what an owner does about a raylet that lent it workers and cannot be reached.

What runs there may go on, so it may not begin elsewhere: somebody whom both can reach has to end it
first. That is asked for until it is answered, or the raylet is reached again. As long as it is not,
leases are wished for elsewhere, unless nobody else can give them.
"""

from collections.abc import Collection, Hashable

from msgspec import Struct

from raylite._types.keys import LeaseID
from raylite._types.strategies import NodeKey


class Ask(Struct, frozen=True):
    """Have these leases ended, and hear that they are."""

    lessor: Hashable
    node: NodeKey
    leases: tuple[LeaseID, ...]


class Withdraw(Struct, frozen=True):
    """The answer is wanted no more: the raylet itself says how its leases fare."""

    lessor: Hashable


class Part(Struct, frozen=True):
    """These have ended there: begin again elsewhere what is left of them."""

    lessor: Hashable
    leases: tuple[LeaseID, ...]


Effect = Ask | Withdraw | Part


class _Asking(Struct):
    node: NodeKey
    leases: tuple[LeaseID, ...]


class Fences:
    """The lessors of one owner that it cannot reach. A lessor is one session with a raylet."""

    def __init__(self) -> None:
        self._asking: dict[Hashable, _Asking] = {}
        self._shunned: dict[NodeKey, Hashable] = {}  # and the lessor that was lost last there

    def lost(self, lessor: Hashable, node: NodeKey, leases: Collection[LeaseID]) -> list[Effect]:
        """A lessor that has given leases, or is to, cannot be reached. Once is enough."""
        self._shunned[node] = lessor
        if lessor in self._asking or not leases:
            return []
        self._asking[lessor] = _Asking(node, tuple(leases))
        return [Ask(lessor, node, tuple(leases))]

    def unanswered(self, lessor: Hashable) -> list[Effect]:
        """Whoever was asked is not to be had now; to be called some time later."""
        asking = self._asking.get(lessor)
        return [] if asking is None else [Ask(lessor, asking.node, asking.leases)]

    def fenced(self, lessor: Hashable) -> list[Effect]:
        """What was asked for has been done, or the lessor's node is dead."""
        asking = self._asking.pop(lessor, None)
        return [] if asking is None else [Part(lessor, asking.leases)]

    def settled(self, lessor: Hashable) -> list[Effect]:
        """A lessor is reached again, in the same session, or it is known to be gone."""
        asking = self._asking.pop(lessor, None)
        for node in [node for node, lost in self._shunned.items() if lost is lessor]:
            del self._shunned[node]
        return [] if asking is None else [Withdraw(lessor)]

    def reached(self, node: NodeKey) -> None:
        """A node is reached, in whatever session."""
        self._shunned.pop(node, None)

    def shuns(self, node: NodeKey, visited: Collection[NodeKey]) -> bool:
        """Whether to wish elsewhere for a lease that this node could give.

        Who was told so, and named it again, knows no other.
        """
        return node in self._shunned and node not in visited

    def is_asking(self, lessor: Hashable) -> bool:
        """Whether the leases of a lessor are being ended: they are neither lost nor to be used."""
        return lessor in self._asking

    def check(self) -> None:
        """Assert what holds between calls."""
        assert all(asking.leases for asking in self._asking.values()), "asks for nothing"
