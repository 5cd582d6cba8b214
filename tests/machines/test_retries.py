"""Retries: at once at first, then after growing, jittered delays."""

import pytest
from hypothesis import given, strategies as st

from raylite._machines.retries import FIRST, LONGEST, retry_delay


@pytest.mark.parametrize("attempt", [0, 1])
def test_the_first_retry_is_not_delayed(attempt: int) -> None:
    assert retry_delay(attempt, 1.0) == 0.0


def test_delays_double_up_to_the_longest() -> None:
    delays = [retry_delay(attempt, 1.0) for attempt in range(2, 11)]
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, LONGEST, LONGEST]


def test_jitter_takes_away_up_to_half() -> None:
    assert retry_delay(2, 0.0) == FIRST / 2
    assert retry_delay(100, 0.0) == LONGEST / 2


@given(st.integers(2, 10**9), st.floats(0, 1), st.floats(0, 1))
def test_no_attempt_comes_sooner_than_the_one_before_nor_is_it_put_off_for_ever(
    attempt: int, jitter: float, other: float
) -> None:
    delay = retry_delay(attempt, jitter)
    assert FIRST / 2 <= delay <= LONGEST
    assert retry_delay(attempt + 1, jitter) >= delay
    assert (retry_delay(attempt, other) > delay) <= (other > jitter)
