"""Nodes: who is in the cluster, and who has been silent for too long."""

from dataclasses import dataclass

GRACE = 10.0  # seconds of silence after which a node is dead


@dataclass(frozen=True, slots=True)
class NodeJoined:
    node_id: bytes


@dataclass(frozen=True, slots=True)
class NodeDied:
    node_id: bytes
    reason: str


Effect = NodeJoined | NodeDied


class Nodes:
    """A node is its id and its incarnation; a death is told once."""

    def __init__(self, grace: float = GRACE) -> None:
        self._grace = grace
        self._heard: dict[bytes, float] = {}
        self._incarnations: dict[bytes, int] = {}

    def joined(self, node_id: bytes, incarnation: int, now: float) -> list[Effect]:
        """A node registered. Doing so again with the same incarnation changes nothing."""
        effects: list[Effect] = []
        known = self._incarnations.get(node_id)
        if known == incarnation and node_id in self._heard:
            self._heard[node_id] = now
            return effects
        if node_id in self._heard:
            effects.append(NodeDied(node_id, "it was replaced by a new incarnation"))
        self._incarnations[node_id] = incarnation
        self._heard[node_id] = now
        return [*effects, NodeJoined(node_id)]

    def heard(self, node_id: bytes, incarnation: int, now: float) -> bool:
        """A node gave a sign of life; False if it is not (or no longer) a member."""
        if node_id not in self._heard or self._incarnations[node_id] != incarnation:
            return False
        self._heard[node_id] = now
        return True

    def left(self, node_id: bytes, reason: str) -> list[Effect]:
        """A node's end is known."""
        if self._heard.pop(node_id, None) is None:
            return []
        del self._incarnations[node_id]
        return [NodeDied(node_id, reason)]

    def expire(self, now: float) -> list[Effect]:
        """Declare dead who has been silent for the whole grace."""
        silent = [id for id, heard in self._heard.items() if now - heard >= self._grace]
        effects: list[Effect] = []
        for node_id in silent:
            effects += self.left(node_id, f"it was silent for {self._grace:g} s")
        return effects

    def alive(self) -> list[bytes]:
        """Return the members, in the order they joined."""
        return list(self._heard)

    def check(self) -> None:
        """Assert what holds between calls."""
        assert self._heard.keys() == self._incarnations.keys()
