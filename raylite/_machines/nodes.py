"""Nodes: who is in the cluster, who may not be any more, and who has been silent for too long."""

from enum import Enum
from math import inf

from msgspec import Struct

GRACE = 10.0  # seconds of silence after which a node is dead
DEAD_KEPT = 10_000  # incarnations remembered as dead; older ones are gone for good
RESTORED = 1.5  # times as long has a member that a GCS that was started again knows of
SLOW = 3.0  # times as long has one that stands still, or says that its own loop does at times
LAG = 1.0  # seconds for which it must have stood still
GAP = 3.5  # beats without a sign of life after which a member is not heard steadily
STEADY = 15.0  # seconds that others may take to reach again one that had fallen silent
SUSPECT = 0.5  # of the grace is how long a node may be silent and be trusted
BEAT, PER_SECOND = 1.0, 1000  # seconds between two signs of life, and how many may come in one
SWEEP = 0.5  # seconds between two calls of `expire`
STALL = 1.5  # seconds without one after which it is not the nodes that were silent


class NodeJoined(Struct, frozen=True):
    """A node is a member from now on."""

    node_id: bytes


class NodeDied(Struct, frozen=True):
    """A node is a member no more, and why."""

    node_id: bytes
    reason: str


class NodeSuspected(Struct, frozen=True):
    """A member has been silent for half of what makes it dead."""

    node_id: bytes


class NodeTrusted(Struct, frozen=True):
    """A member that was suspected has been heard."""

    node_id: bytes


class NodeFenced(Struct, frozen=True):
    """An incarnation that is dead asked to join, and may not; why it is dead."""

    node_id: bytes
    reason: str


Effect = NodeJoined | NodeDied | NodeSuspected | NodeTrusted | NodeFenced


class Standing(Enum):
    """What the one who gave a sign of life is."""

    MEMBER = "member"
    UNKNOWN = "unknown"  # it may join
    REPLACED = "replaced"  # another incarnation of the same node is the member


class _Member(Struct):
    incarnation: int
    heard_at: float
    steady_since: float
    patience: float = 1.0  # how many times the grace it may be silent
    answered_at: float = -inf  # when connections to it were last taken
    is_suspect: bool = False


class Nodes:
    """The members. A node is its id and its incarnation; each death is told once.

    What concerns an incarnation that is no member, because it died or was replaced, is ignored. It
    may not join again: the others have given up its processes, so what these say now would be taken
    for the words of strangers, and what they own is lost.

    Args:
        grace: Seconds of silence after which a node is dead.
        stall: Seconds without `expire` that are nobody's silence.
    """

    def __init__(self, grace: float = GRACE, stall: float = STALL) -> None:
        self._grace = grace
        self._stall = stall
        self._members: dict[bytes, _Member] = {}
        self._dead: dict[tuple[bytes, int], str] = {}  # and why
        self._expired_at: float | None = None

    def restored(self, node_id: bytes, incarnation: int, now: float) -> None:
        """A node was a member before the GCS was started: it has more than a grace to be heard."""
        self._members.setdefault(node_id, _Member(incarnation, now, now, RESTORED))
        self._watch(now)

    def restored_dead(self, node_id: bytes, incarnation: int, reason: str) -> None:
        """A node had died before the GCS was started."""
        self._note_dead(node_id, incarnation, reason)

    def joined(
        self, node_id: bytes, incarnation: int, now: float, *, returns: bool = False
    ) -> list[Effect]:
        """A node registered. Doing so again with the same incarnation is a sign of life.

        A dead incarnation is let in only if it `returns`.
        """
        standing = self.standing(node_id, incarnation)
        if standing is Standing.MEMBER:
            return self._heard(node_id, now)
        if (reason := self._dead.get((node_id, incarnation))) is not None:
            if not returns:
                return [NodeFenced(node_id, reason)]
            del self._dead[node_id, incarnation]
        effects: list[Effect] = []
        if standing is Standing.REPLACED:
            effects.append(self._die(node_id, "it was replaced by a new incarnation"))
        self._members[node_id] = _Member(incarnation, now, now)
        self._watch(now)
        return [*effects, NodeJoined(node_id)]

    def heard(self, node_id: bytes, incarnation: int, now: float, lag: float = 0.0) -> list[Effect]:
        """A node gave a sign of life, which counts if it is a member's.

        Who says that it stood still for `lag` seconds since the last one may do so again, and longer.
        """
        if not self.is_member(node_id, incarnation):
            return []
        self._members[node_id].patience = SLOW if lag >= LAG else 1.0
        return self._heard(node_id, now)

    def answered(self, node_id: bytes, incarnation: int, now: float) -> None:
        """Connections to a silent member are taken: it is there, and slow, or stands still.

        To one that is cut off, or has no power, they would not be. It has as long as one that said that it
        is slow: before the first time that a node stands still it could not.
        """
        if self.is_member(node_id, incarnation):
            self._members[node_id].answered_at = now

    def standing(self, node_id: bytes, incarnation: int) -> Standing:
        """Return what an incarnation of a node is to the cluster."""
        member = self._members.get(node_id)
        if member is None:
            return Standing.UNKNOWN
        return Standing.MEMBER if member.incarnation == incarnation else Standing.REPLACED

    @property
    def grace(self) -> float:
        """How many seconds a node may be silent."""
        return self._grace * self.beat / BEAT

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
        """Declare dead who has been silent for the whole grace, and suspect who has been for half of it.

        To be called every `SWEEP` seconds. Who asks only after `stall` seconds stood still meanwhile
        and has not read what the nodes said: that time is nobody's silence. After half the grace their
        connections have broken as well, as when the GCS is started again: all have the grace anew.
        """
        if self._expired_at is not None and now - self._expired_at >= self._stall:
            for member in self._members.values():
                self._forgive(member, self._expired_at, now)
        self._expired_at = now
        grace, effects = self.grace, list[Effect]()
        for node_id, member in list(self._members.items()):
            silence, patience = now - member.heard_at, grace * member.patience
            if silence >= grace * SLOW and member.answered_at > member.heard_at:
                effects.append(self._die(node_id, f"it stood still for {grace * SLOW:g} s"))
            elif silence >= patience and now - member.answered_at >= grace:
                effects.append(self._die(node_id, f"it was silent for {patience:g} s"))
            elif silence >= grace * SUSPECT and not member.is_suspect:
                member.is_suspect = True
                effects.append(NodeSuspected(node_id))
        return effects

    def silent(self, seconds: float, now: float) -> list[tuple[bytes, int]]:
        """Return the members and incarnations that were last heard so long ago."""
        return [
            (node_id, member.incarnation)
            for node_id, member in self._members.items()
            if now - member.heard_at >= seconds
        ]

    def suspects(self) -> list[tuple[bytes, int]]:
        """Return the members that are suspected, and their incarnations."""
        return [
            (node_id, member.incarnation)
            for node_id, member in self._members.items()
            if member.is_suspect
        ]

    def is_suspect(self, node_id: bytes) -> bool:
        """Whether a node is a member that has been silent for long."""
        member = self._members.get(node_id)
        return member is not None and member.is_suspect

    def is_member(self, node_id: bytes, incarnation: int) -> bool:
        """Whether this incarnation of a node is in the cluster."""
        member = self._members.get(node_id)
        return member is not None and member.incarnation == incarnation

    def is_steady(self, node_id: bytes, now: float) -> bool:
        """Whether a member has been heard without a gap for so long that all who can reach it do.

        One that cannot be reached by others, and is not steady, may stand still: as long as that has
        its grace nothing is to be ended for it, nor before the others have dialled again.
        """
        member = self._members.get(node_id)
        if member is None or now - member.heard_at > GAP * self.beat:
            return False
        return now - member.steady_since >= STEADY

    def alive(self) -> list[bytes]:
        """Return the members, in the order they joined."""
        return list(self._members)

    def members(self) -> list[tuple[bytes, int]]:
        """Return the members and their incarnations, in the order they joined."""
        return [(node_id, member.incarnation) for node_id, member in self._members.items()]

    def check(self) -> None:
        """Assert what always holds."""
        for node_id, member in self._members.items():
            assert (node_id, member.incarnation) not in self._dead, "a member that has died"
            assert member.steady_since <= member.heard_at, "it is steady before it is heard"

    def _watch(self, now: float) -> None:
        """There is somebody to be heard: whoever stands still before the first `expire` does so, too."""
        if self._expired_at is None:
            self._expired_at = now

    def _forgive(self, member: _Member, since: float, now: float) -> None:
        """Nobody listened since then, nor tried a silent node."""
        if now - since >= self.grace * SUSPECT:
            if now - member.heard_at > GAP * self.beat:
                member.steady_since = now
            member.heard_at = now
            return
        member.heard_at += max(now - max(since, member.heard_at) - SWEEP, 0.0)
        member.answered_at += max(now - max(since, member.answered_at) - SWEEP, 0.0)

    def _heard(self, node_id: bytes, now: float) -> list[Effect]:
        member = self._members[node_id]
        if now - member.heard_at > GAP * self.beat:
            member.steady_since = now
        member.heard_at, was_suspect, member.is_suspect = now, member.is_suspect, False
        return [NodeTrusted(node_id)] if was_suspect else []

    def _die(self, node_id: bytes, reason: str) -> NodeDied:
        self._note_dead(node_id, self._members.pop(node_id).incarnation, reason)
        return NodeDied(node_id, reason)

    def _note_dead(self, node_id: bytes, incarnation: int, reason: str) -> None:
        self._dead[node_id, incarnation] = reason
        if len(self._dead) > DEAD_KEPT:
            del self._dead[next(iter(self._dead))]
