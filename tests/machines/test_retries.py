"""Retries: three budgets, each attempt counted once, and delays that grow."""

import pytest
from hypothesis import given, strategies as st

from raylite._machines.retries import (
    FIRST,
    LONGEST,
    MEMORY_FIRST,
    MEMORY_LONGEST,
    Failure,
    GiveUp,
    Retries,
    RunAgain,
    retry_delay,
)

DEATHS = (Failure.WORKER_DIED, Failure.NODE_DIED)


def fail(retries: Retries, *failures: Failure, allowed: int, oom: int = -1) -> list[object]:
    """Let one attempt after the other fail."""
    effects: list[object] = []
    for attempt, failure in enumerate(failures):
        effects.append(retries.failed(attempt, failure, allowed, 1.0, oom_allowed=oom))
        retries.check()
    return effects


def is_given_up(effect: object) -> bool:
    return isinstance(effect, GiveUp)


def test_a_task_runs_again_as_often_as_it_may() -> None:
    effects = fail(Retries(), *[Failure.WORKER_DIED] * 4, allowed=3)
    assert effects[:3] == [RunAgain(1, 0.0), RunAgain(2, 0.1), RunAgain(3, 0.2)]
    assert effects[3] == GiveUp(
        "attempt 4, the last that max_retries=3 allows, of which 4 ended with their worker"
    )


@pytest.mark.parametrize("failure", Failure)
def test_without_retries_nothing_is_retried_for_any_reason(failure: Failure) -> None:
    (effect,) = fail(Retries(), failure, allowed=0, oom=5)
    assert effect == GiveUp("attempt 1, the last that max_retries=0 allows")


def test_the_end_of_a_worker_and_that_of_a_node_are_one_budget() -> None:
    effects = fail(Retries(), Failure.WORKER_DIED, Failure.NODE_DIED, allowed=1)
    assert effects[1] == GiveUp(
        "attempt 2, the last that max_retries=1 allows, of which 1 ended with their worker, "
        "1 ended with their node"
    )


def test_what_a_task_raised_and_what_befell_it_are_two_budgets() -> None:
    failures = [Failure.RAISED, Failure.WORKER_DIED, Failure.RAISED]
    assert list(map(is_given_up, fail(Retries(), *failures, allowed=1))) == [False, False, True]


def test_want_of_memory_is_a_budget_of_its_own_with_longer_delays() -> None:
    failures = [Failure.OUT_OF_MEMORY] * 3
    assert fail(Retries(), *failures, allowed=1, oom=2) == [
        RunAgain(1, MEMORY_FIRST),
        RunAgain(2, 2.0),
        GiveUp(
            "attempt 3, the last that task_oom_retries=2 allows, of which 3 were ended for want of "
            "memory"
        ),
    ]
    many = fail(Retries(), *[Failure.OUT_OF_MEMORY] * 1100, allowed=1)
    assert many[-1] == RunAgain(1100, MEMORY_LONGEST)


def test_infinite_retries_end_only_for_want_of_memory() -> None:
    """As Ray has it, so that what needs more memory than there is does not run for ever."""
    assert not any(map(is_given_up, fail(Retries(), *[Failure.WORKER_DIED] * 50, allowed=-1)))
    failures = [Failure.OUT_OF_MEMORY] * 3
    assert is_given_up(fail(Retries(), *failures, allowed=-1, oom=2)[-1])


def test_an_attempt_that_failed_is_not_counted_again() -> None:
    retries = Retries()
    assert retries.failed(0, Failure.WORKER_DIED, 1, 1.0) == RunAgain(1, 0.0)
    assert retries.failed(0, Failure.NODE_DIED, 1, 1.0) is None  # the same death, told by another
    assert retries.failed(0, Failure.RAISED, 1, 1.0) is None  # a result that was on its way
    assert is_given_up(retries.failed(1, Failure.NODE_DIED, 1, 1.0))
    assert retries.failed(1, Failure.NODE_DIED, 1, 1.0) is None


@given(
    st.lists(st.tuples(st.sampled_from(Failure), st.integers(0, 3)), max_size=60),
    st.integers(-1, 4),
    st.integers(-1, 4),
)
def test_attempts_are_bounded_by_what_each_budget_allows(
    told: list[tuple[Failure, int]], allowed: int, oom: int
) -> None:
    """Whatever is told, how late and how often: the model counts each attempt's first failure."""
    retries, attempt = Retries(), 0
    spent = {"deaths": 0, "raised": 0, "memory": 0}
    for failure, late in told:
        effect = retries.failed(attempt - late, failure, allowed, 0.5, oom_allowed=oom)
        retries.check()
        if late:
            assert effect is None
            continue
        is_memory = failure is Failure.OUT_OF_MEMORY
        budget = "deaths" if failure in DEATHS else "memory" if is_memory else "raised"
        spent[budget] += 1
        limit = oom if is_memory and allowed else allowed
        if 0 <= limit < spent[budget]:
            assert isinstance(effect, GiveUp)
            assert f"attempt {attempt + 1}," in effect.story
            return
        attempt += 1
        assert isinstance(effect, RunAgain)
        assert effect.attempt == attempt
        assert 0 <= effect.delay <= (MEMORY_LONGEST if is_memory else LONGEST)


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
