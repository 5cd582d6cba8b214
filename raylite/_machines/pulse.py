"""Pulse: what a raylet that says nothing may keep, and for how long.

A raylet cannot end its workers while it stands still, and its cluster waits for it only so long. Then
what ran on its node may begin elsewhere, so it has to have ended before: whoever started the workers
sees to that. The raylet tells it each second that it runs, and when it was last heard itself.
"""

from msgspec import Struct

from raylite._machines.nodes import GRACE, SLOW

ENOUGH = 0.9  # of the time after which the GCS takes a raylet that stands still for dead
FOR_SURE = 1.1  # times as long after its last word the GCS has done so
USUAL = 0.1  # of the grace is how long it may be since the GCS heard a raylet that runs
MOST = 0.4  # of the grace is what more counts for; who has waited for longer has no GCS, or is dead
STALL = 1.0  # seconds by which who watches may be late; if by more, it stood still itself,
TURN = 2.0  # and the raylet, which perhaps did so as well, has so many to say something


class EndWorkers(Struct, frozen=True):
    """What runs here may soon begin elsewhere; for how long the raylet has said nothing."""

    seconds: float


class NodeLost(Struct, frozen=True):
    """The node is dead to its cluster, and its raylet does not know; for how long it has said nothing.

    Unless the GCS began anew meanwhile: then it will be.
    """

    seconds: float


Effect = EndWorkers | NodeLost


class Pulse:
    """One raylet's, by a clock that the two who are concerned have in common.

    Before its first word a raylet has no workers.

    Args:
        grace: Seconds of silence after which the GCS takes a node for dead, and `SLOW` times as many if its
            raylet stands still.
    """

    def __init__(self, grace: float = GRACE) -> None:
        self._grace = grace
        self._felt_at: float | None = None
        self._not_before = 0.0
        self._has_turn = False  # since it was felt
        self._to_come: list[tuple[float, type[Effect]]] = []

    def felt(self, at: float, unheard: float) -> None:
        """The raylet ran at this moment; what it says may come late.

        Args:
            at: When it said so.
            unheard: For how many seconds the GCS, as far as the raylet knew, had not heard it then.
        """
        if self._felt_at is not None and at <= self._felt_at:
            return
        self._felt_at, self._has_turn, self._not_before = at, False, at
        grace, patience = self._grace, self._grace * SLOW
        waited = min(max(unheard - USUAL * grace, 0.0), MOST * grace)
        self._to_come = [
            (at - waited + patience * ENOUGH, EndWorkers),
            (at + patience * FOR_SURE, NodeLost),
        ]

    def expire(self, now: float) -> list[Effect]:
        """Say what is to be done by now, once. To be called when `next_wakeup` says so."""
        due = self.next_wakeup()
        if due is None or self._felt_at is None or now < due:
            return []
        if now - due > STALL and not self._has_turn:
            self._has_turn, self._not_before = True, now + TURN
            return []
        effects = [effect(now - self._felt_at) for at, effect in self._to_come if at <= now]
        self._to_come = [(at, effect) for at, effect in self._to_come if at > now]
        return effects

    def next_wakeup(self) -> float | None:
        """Return when there may be something to do, if nothing is said until then."""
        return max(self._to_come[0][0], self._not_before) if self._to_come else None

    def check(self) -> None:
        """Assert what always holds."""
        assert self._to_come == sorted(self._to_come, key=lambda each: each[0]), "out of order"
        assert self._felt_at is not None or not self._to_come, (
            "something to do before its first word"
        )
