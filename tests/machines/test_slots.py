"""Slots: overlapping tasks are shared out evenly, and never more than a worker may have."""

import pytest
from hypothesis import given, strategies as st

from raylite._machines.slots import shares


@pytest.mark.parametrize(
    ("loads", "queued", "slots", "coming", "counts"),
    [
        ([], 5, 10, 0, []),
        ([], 5, 10, 2, []),
        ([0], 0, 10, 0, [0]),
        ([0], 5, 10, 0, [5]),
        ([0], 50, 10, 0, [10]),
        ([0, 0, 0], 10, 10, 0, [4, 4, 2]),
        ([0], 100, 1000, 3, [25]),
        ([25, 25], 50, 1000, 2, [0, 0]),
        ([25, 25], 50, 1000, 0, [25, 25]),
        ([1, 2, 90], 5, 1000, 0, [3, 2, 0]),
        ([10, 10], 7, 10, 0, [0, 0]),
        ([0, 12], 7, 10, 0, [7, 0]),
    ],
)
def test_all_have_equally_many(
    loads: list[int], queued: int, slots: int, coming: int, counts: list[int]
) -> None:
    assert shares(loads, queued, slots, coming) == counts


@given(
    st.lists(st.integers(0, 30), max_size=6).map(sorted),
    st.integers(0, 200),
    st.integers(1, 40),
    st.integers(0, 5),
)
def test_nobody_has_more_than_slots_and_no_slot_is_free_while_tasks_wait(
    loads: list[int], queued: int, slots: int, coming: int
) -> None:
    counts = shares(loads, queued, slots, coming)
    after = [load + count for load, count in zip(loads, counts, strict=True)]
    assert sum(counts) <= queued
    assert all(a <= max(load, slots) for a, load in zip(after, loads, strict=True))
    taken = [a for a, count in zip(after, counts, strict=True) if count]
    assert not taken or max(taken) - min(after) <= 1 or sum(counts) == queued
    if not coming and sum(counts) < queued:
        assert all(a >= slots for a in after)
