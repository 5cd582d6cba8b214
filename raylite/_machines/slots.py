"""Slots: how many more tasks each of some workers is sent, where tasks overlap in a worker."""

from collections.abc import Sequence


def shares(loads: Sequence[int], queued: int, slots: int, coming: int = 0) -> list[int]:
    """Return how many of the `queued` tasks go to each worker, so that all have equally many.

    Args:
        loads: How many tasks each worker has, the smallest first.
        queued: The tasks to share out.
        slots: As many a worker may have.
        coming: Workers that are not there yet. Their share is kept for them.
    """
    level = min(_level(loads, queued, coming), slots)
    counts: list[int] = []
    for load in loads:
        counts.append(min(max(level - load, 0), queued))
        queued -= counts[-1]
    return counts


def _level(loads: Sequence[int], queued: int, coming: int) -> int:
    """Return how many each would have, if none gave any away: rounded up."""
    total = queued
    for count, load in enumerate(loads, coming):
        if count and total <= load * count:
            return -(-total // count)
        total += load
    return -(-total // max(len(loads) + coming, 1))
