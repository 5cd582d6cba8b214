"""Nodes: who is in the cluster, and who has been silent for too long."""

from enum import Enum

from msgspec import Struct

GRACE = 10.0  # seconds of silence after which a node is dead
DEAD_KEPT = 10_000  # incarnations remembered as dead; older ones are gone for good
RESTORED = 1.5  # times as long has a member that a GCS that was started again knows of
SLOW = 3.0  # times as long has one that says that its own loop stands still at times
LAG = 1.0  # seconds for which it must have stood still
BEAT, PER_SECOND = 1.0, 1000  # seconds between two signs of life, and how many may come in one
STALL = 5.0  # seconds without `expire` after which it is not the nodes that were silent


class NodeJoined(Struct, frozen=True):
    """A node is a member from now on."""

    node_id: bytes


class NodeDied(Struct, frozen=True):
    """A node is a member no more, and why."""

    node_id: bytes
    reason: str


class NodeFenced(Struct, frozen=True):
    """An incarnation that is dead asked to join, and may not; why it is dead."""

    node_id: bytes
    reason: str


Effect = NodeJoined | NodeDied | NodeFenced


class Standing(Enum):
    """What the one who gave a sign of life is."""

    MEMBER = "member"
    UNKNOWN = "unknown"  # it may join
    REPLACED = "replaced"  # another incarnation of the same node is the member


class _Member(Struct):
    incarnation: int
    heard_at: float
    patience: float = 1.0  # how many times the grace it may be silent


class Nodes:
    """The members. A node is its id and its incarnation; each death is told once.

    What concerns an incarnation that is no member, because it died or was replaced, is ignored. It
    may not join again: the others have given up its processes, so what these say now would be taken
    for the words of strangers, and what they own is lost.
    """

    def __init__(self, grace: float = GRACE, stall: float = STALL) -> None:
        self._grace = grace
        self._stall = stall
        self._members: dict[bytes, _Member] = {}
        self._dead: dict[tuple[bytes, int], str] = {}  # and why
        self._expired_at: float | None = None

    def restored(self, node_id: bytes, incarnation: int, now: float) -> None:
        """A node was a member before the GCS was started: it has more than a grace to be heard."""
        self._members.setdefault(node_id, _Member(incarnation, now, RESTORED))

    def restored_dead(self, node_id: bytes, incarnation: int, reason: str) -> None:
        """A node had died before the GCS was started."""
        self._note_dead(node_id, incarnation, reason)

    def joined(
        self, node_id: bytes, incarnation: int, now: float, *, returns: bool = False
    ) -> list[Effect]:
        """A node registered. Doing so again with the same incarnation is a sign of life.

        A dead incarnation is let in only if it `returns`.
        """
        standing = self.heard(node_id, incarnation, now)
        if standing is Standing.MEMBER:
            return []
        if (reason := self._dead.get((node_id, incarnation))) is not None:
            if not returns:
                return [NodeFenced(node_id, reason)]
            del self._dead[node_id, incarnation]
        effects: list[Effect] = []
        if standing is Standing.REPLACED:
            effects.append(self._die(node_id, "it was replaced by a new incarnation"))
        self._members[node_id] = _Member(incarnation, now)
        return [*effects, NodeJoined(node_id)]

    def heard(self, node_id: bytes, incarnation: int, now: float, lag: float = 0.0) -> Standing:
        """A node gave a sign of life, which counts if it is a member's.

        Who says that it stood still for `lag` seconds since the last one may do so again, and longer.
        """
        member = self._members.get(node_id)
        if member is None:
            return Standing.UNKNOWN
        if member.incarnation != incarnation:
            return Standing.REPLACED
        member.heard_at = now
        member.patience = SLOW if lag >= LAG else 1.0
        return Standing.MEMBER

    @property
    def beat(self) -> float:
        """How many seconds apart each node is to give its signs of life: so that all can be heard."""
        return max(BEAT, len(self._members) / PER_SECOND)

    def left(self, node_id: bytes, incarnation: int, reason: str) -> list[Effect]:
        """An incarnation's end is known; one that was replaced takes nobody along."""
        if not self.is_member(node_id, incarnation):
            return []
        return [self._die(node_id, reason)]

    def expire(self, now: float) -> list[Effect]:
        """Declare dead who has been silent for the whole grace.

        To be called often. Who asks only after `stall` seconds stood still meanwhile and has not
        read what the nodes said: that time is nobody's silence.
        """
        if self._expired_at is not None and now - self._expired_at >= self._stall:
            for member in self._members.values():
                member.heard_at += now - max(self._expired_at, member.heard_at)
        self._expired_at = now
        grace = self._grace * self.beat / BEAT
        silent = {
            id: grace * member.patience
            for id, member in self._members.items()
            if now - member.heard_at >= grace * member.patience
        }
        return [self._die(id, f"it was silent for {seconds:g} s") for id, seconds in silent.items()]

    def silent(self, seconds: float, now: float) -> list[tuple[bytes, int]]:
        """Return the members and incarnations that were last heard so long ago."""
        return [
            (node_id, member.incarnation)
            for node_id, member in self._members.items()
            if now - member.heard_at >= seconds
        ]

    def is_member(self, node_id: bytes, incarnation: int) -> bool:
        """Whether this incarnation of a node is in the cluster."""
        member = self._members.get(node_id)
        return member is not None and member.incarnation == incarnation

    def alive(self) -> list[bytes]:
        """Return the members, in the order they joined."""
        return list(self._members)

    def members(self) -> list[tuple[bytes, int]]:
        """Return the members and their incarnations, in the order they joined."""
        return [(node_id, member.incarnation) for node_id, member in self._members.items()]

    def _die(self, node_id: bytes, reason: str) -> NodeDied:
        self._note_dead(node_id, self._members.pop(node_id).incarnation, reason)
        return NodeDied(node_id, reason)

    def _note_dead(self, node_id: bytes, incarnation: int, reason: str) -> None:
        self._dead[node_id, incarnation] = reason
        if len(self._dead) > DEAD_KEPT:
            del self._dead[next(iter(self._dead))]
