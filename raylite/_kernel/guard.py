"""The guard: how many strangers may stand at the door, and how long whoever fails has to wait.

A stranger is a connection whose peer has not proven itself yet. The guard decides only; it is
given the time, and the `Door` acts.
"""

import resource
from collections import Counter

from msgspec import Struct, field

from raylite._kernel.rate import Rate

MOST_FILES = 0.8  # of those that a process may open, in connections
REMEMBERED = 1024  # places whose failures are counted; of more, the longest known is forgotten


def most_connections() -> int:
    """Return how many connections leave a process enough of the files that it may open."""
    return int(MOST_FILES * resource.getrlimit(resource.RLIMIT_NOFILE)[0])


class Admission(Struct, frozen=True):
    """What a stranger is allowed. Times in seconds.

    Args:
        total: Strangers at one time.
        each: Of them, those that come from one place: an IP address.
        deadline: How long one may take to prove itself, the TLS handshake included.
        failures: How many failures of one place are free.
        period: In how long.
        tarpit: After more, how long each stranger from there waits before it is even asked.
        connections: How many a process may have in all, before it refuses more.
    """

    total: int = 64
    each: int = 8
    deadline: float = 5.0
    failures: int = 10
    period: float = 60.0
    tarpit: float = 1.0
    connections: int = field(default_factory=most_connections)


class Guard:
    """Counts strangers and failures by place. Memory is bounded whatever strangers do.

    `refused` counts, by reason, who was turned away.
    """

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.refused: Counter[str] = Counter()
        self._inside: Counter[str] = Counter()
        self._total = 0
        self._failures: dict[str, Rate] = {}

    def enter(self, place: str) -> bool:
        """Let a stranger stand at the door, who must `leave` it; False if there are too many."""
        if self._total >= self.admission.total or self._inside[place] >= self.admission.each:
            self.refused["too many at once"] += 1
            return False
        self._total += 1
        self._inside[place] += 1
        return True

    def leave(self, place: str) -> None:
        """A stranger has proven itself, or is gone."""
        self._total -= 1
        self._inside[place] -= 1
        if not self._inside[place]:
            del self._inside[place]

    def failed(self, place: str, reason: str, now: float) -> None:
        """A stranger was turned away."""
        self.refused[reason] += 1
        rate = self._failures.pop(place, None)
        if rate is None:
            admission = self.admission
            rate = Rate(admission.failures / admission.period, admission.failures, now)
            if len(self._failures) >= REMEMBERED:
                del self._failures[next(iter(self._failures))]
        self._failures[place] = rate
        rate.spend(now)

    def delay(self, place: str, now: float) -> float:
        """Return how long a stranger from this place has to wait before it is asked."""
        rate = self._failures.get(place)
        return self.admission.tarpit if rate is not None and rate.is_spent(now) else 0.0

    def check(self) -> None:
        """Raise an AssertionError if the counts contradict one another."""
        assert self._total == sum(self._inside.values()) <= self.admission.total
        assert all(0 < count <= self.admission.each for count in self._inside.values())
        assert len(self._failures) <= REMEMBERED
