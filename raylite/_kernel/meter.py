"""Counts of what a service did, cheap enough to keep always."""

from collections import Counter

from msgspec import Struct


class Statistics(Struct, frozen=True):
    """A service's counts since it started. `waiting` is how many messages its mailbox holds now."""

    handled: dict[str, int]
    waiting: int


class Meter:
    """Counts by name."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def count(self, name: str, amount: int = 1) -> None:
        self._counts[name] += amount

    def statistics(self, waiting: int) -> Statistics:
        return Statistics(dict(self._counts), waiting)
