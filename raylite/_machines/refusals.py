"""Refusals: how often a node asks a cluster that will not have it, and for how long.

That is a cluster whose token or certificates are others now, since its head was started anew, or the
node's were revoked. Its user may yet give the node the new ones.
"""

from math import inf

from msgspec import Struct

FIRST_PAUSE, LAST_PAUSE = 1.0, 8.0  # seconds between two attempts
PATIENCE = 60.0  # seconds, as long as a cluster that cannot be reached is waited for


class Tell(Struct, frozen=True):
    """Tell the user what to do, who has so many seconds for it."""

    seconds: float


class GiveUp(Struct, frozen=True):
    """The node has asked for so many seconds: it ends."""

    seconds: float


Effect = Tell | GiveUp


class Refusals:
    """One node's, since it was let in last.

    Args:
        patience: Seconds after which to give up; infinite for a node that has nowhere else to go.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self.accepted()

    def accepted(self) -> None:
        """It was let in."""
        self._since: float | None = None
        self._next, self._pause = -inf, FIRST_PAUSE

    def may_ask(self, at: float) -> bool:
        """Whether it is time to ask."""
        return at >= self._next

    def refused(self, at: float) -> list[Effect]:
        """It was refused."""
        is_first = self._since is None
        if self._since is None:
            self._since = at
        if at - self._since >= self._patience:
            return [GiveUp(at - self._since)]
        self._next = min(at + self._pause, self._since + self._patience)
        self._pause = min(self._pause * 2, LAST_PAUSE)
        return [Tell(self._patience)] if is_first else []

    def check(self) -> None:
        """Assert what always holds."""
        assert FIRST_PAUSE <= self._pause <= LAST_PAUSE
        if self._since is not None:
            assert self._since < self._next <= self._since + self._patience
