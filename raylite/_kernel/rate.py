"""A rate: how often something may happen, on average and at once."""


class Rate:
    """A bucket of permits, which refills with time. It starts full."""

    __slots__ = ("_burst", "_each_second", "_left", "_then")

    def __init__(self, each_second: float, burst: float, now: float) -> None:
        self._each_second, self._burst = each_second, burst
        self._left, self._then = burst, now

    def spend(self, now: float, amount: float = 1) -> bool:
        """Take so many permits; False if there is none left. The last may be owed in part."""
        self._refill(now)
        if self._left < 1:
            return False
        self._left -= amount
        return True

    def is_spent(self, now: float) -> bool:
        """Whether there is no permit left."""
        self._refill(now)
        return self._left < 1

    def wait(self, now: float) -> float:
        """Return the seconds until there is a permit."""
        self._refill(now)
        return max(1 - self._left, 0.0) / self._each_second

    def _refill(self, now: float) -> None:
        self._left = min(self._burst, self._left + max(now - self._then, 0) * self._each_second)
        self._then = now
