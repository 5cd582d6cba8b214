"""A timetable: what is due when, the earliest first."""

from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_SLACK = 64  # entries out of use that are kept before they outnumber the others


class Timetable(Generic[K]):
    """Keys with a time each. Setting, dropping and taking one cost the logarithm of their number."""

    def __init__(self) -> None:
        self.times: dict[K, float] = {}  # to look at only
        # Holds dropped and changed entries too, until they come first or outnumber the others. The
        # number orders what is due at the same time, for keys may have no order.
        self._heap: list[tuple[float, int, K]] = []
        self._number = 0

    def set(self, key: K, at: float) -> None:
        """Let a key be due at this time, whatever was set before."""
        if self.times.get(key) == at:
            return
        self.times[key] = at
        self._number += 1
        heappush(self._heap, (at, self._number, key))
        self._compact()

    def drop(self, key: K) -> None:
        """Forget a key, if it is there."""
        if self.times.pop(key, None) is not None:
            self._compact()

    def due(self, now: float) -> list[K]:
        """Take out what is due, in order."""
        taken: list[K] = []
        while self._heap and self._heap[0][0] <= now:
            at, _, key = heappop(self._heap)
            if self.times.get(key) == at:
                del self.times[key]
                taken.append(key)
        return taken

    def next(self) -> float | None:
        """Return when something is due next."""
        while self._heap:
            at, _, key = self._heap[0]
            if self.times.get(key) == at:
                return at
            heappop(self._heap)
        return None

    def _compact(self) -> None:
        if len(self._heap) <= 2 * len(self.times) + _SLACK:
            return
        kept: dict[K, tuple[float, int, K]] = {}
        for entry in self._heap:
            if self.times.get(entry[2]) == entry[0]:
                kept[entry[2]] = entry
        self._heap = list(kept.values())
        heapify(self._heap)

    def check(self) -> None:
        """Assert what holds between calls."""
        entries = {(at, key) for at, _, key in self._heap}
        assert {(at, key) for key, at in self.times.items()} <= entries, "never due"
        assert len(self._heap) <= 2 * len(self.times) + _SLACK + 1, "what is out of use is kept"
