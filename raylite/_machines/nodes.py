"""Nodes: who is in the cluster, and who has been silent for too long."""

from dataclasses import dataclass

GRACE = 10.0  # seconds of silence after which a node is dead


@dataclass(frozen=True, slots=True)
class NodeJoined:
    """A node is a member from now on."""

    node_id: bytes


@dataclass(frozen=True, slots=True)
class NodeDied:
    """A node is a member no more, and why."""

    node_id: bytes
    reason: str


Effect = NodeJoined | NodeDied


@dataclass(slots=True)
class _Member:
    incarnation: int
    heard_at: float


class Nodes:
    """The members. A node is its id and its incarnation; each death is told once.

    What concerns an incarnation that is no member, because it died or was replaced, is ignored.
    """

    def __init__(self, grace: float = GRACE) -> None:
        self._grace = grace
        self._members: dict[bytes, _Member] = {}

    def joined(self, node_id: bytes, incarnation: int, now: float) -> list[Effect]:
        """A node registered. Doing so again with the same incarnation is a sign of life."""
        if self.heard(node_id, incarnation, now):
            return []
        effects: list[Effect] = []
        if self._members.pop(node_id, None) is not None:
            effects.append(NodeDied(node_id, "it was replaced by a new incarnation"))
        self._members[node_id] = _Member(incarnation, now)
        return [*effects, NodeJoined(node_id)]

    def heard(self, node_id: bytes, incarnation: int, now: float) -> bool:
        """A node gave a sign of life; False if it is not (or no longer) a member."""
        member = self._members.get(node_id)
        if member is None or member.incarnation != incarnation:
            return False
        member.heard_at = now
        return True

    def left(self, node_id: bytes, incarnation: int, reason: str) -> list[Effect]:
        """An incarnation's end is known; one that was replaced takes nobody along."""
        member = self._members.get(node_id)
        if member is None or member.incarnation != incarnation:
            return []
        del self._members[node_id]
        return [NodeDied(node_id, reason)]

    def expire(self, now: float) -> list[Effect]:
        """Declare dead who has been silent for the whole grace."""
        silent = [
            id for id, member in self._members.items() if now - member.heard_at >= self._grace
        ]
        for node_id in silent:
            del self._members[node_id]
        return [NodeDied(node_id, f"it was silent for {self._grace:g} s") for node_id in silent]

    def alive(self) -> list[bytes]:
        """Return the members, in the order they joined."""
        return list(self._members)
