"""The pace of a map: how many elements a task has, and how many tasks are under way."""

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raylite._machines.pace import (
    ARGUMENT_BYTES,
    GROWTH,
    MOST_ELEMENTS,
    RESULT_BYTES,
    TASK_SECONDS,
    Pace,
)


def sizes(pace: Pace, seconds: float, rounds: int, result_bytes: float = 10) -> list[int]:
    """The sizes of tasks one after another, if an element takes so long."""
    seen = []
    for _ in range(rounds):
        seen.append(pace.size)
        pace.sent(10)
        pace.ended(seen[-1], seen[-1] * seconds, result_bytes)
    return seen


def test_quick_elements_travel_together_more_with_each_task() -> None:
    assert sizes(Pace(4, None), 1e-6, 6) == [1, 8, 64, 512, MOST_ELEMENTS, MOST_ELEMENTS]


def test_elements_that_take_as_long_as_a_task_should_go_alone() -> None:
    assert sizes(Pace(4, None), TASK_SECONDS, 3) == [1, 1, 1]
    assert sizes(Pace(4, None), 1.0, 3) == [1, 1, 1]


def test_a_task_is_made_to_take_its_time_but_no_more() -> None:
    assert sizes(Pace(4, None), TASK_SECONDS / 100, 4) == [1, 8, 64, 64]  # 100 is no power of two


def test_elements_that_become_slow_are_fewer_at_once() -> None:
    pace = Pace(4, None)
    sizes(pace, 1e-6, 6)
    pace.sent(10)
    pace.ended(MOST_ELEMENTS, MOST_ELEMENTS * TASK_SECONDS, 10)
    assert pace.size == 1


def test_what_weighs_much_goes_in_smaller_parties() -> None:
    assert sizes(Pace(4, None), 1e-6, 4, RESULT_BYTES / 4)[-1] == 4
    pace = Pace(4, None)
    sizes(pace, 1e-6, 6)
    pace.sent(ARGUMENT_BYTES / 2)
    assert pace.size == 2


def test_a_size_that_was_asked_for_stays() -> None:
    pace = Pace(4, 10)
    pace.sent(ARGUMENT_BYTES)
    pace.ended(10, 100.0, RESULT_BYTES)
    assert pace.size == 10


def test_a_task_that_failed_says_nothing_about_time() -> None:
    pace = Pace(4, None)
    sizes(pace, 1e-6, 3)
    before = pace.size
    pace.sent(10)
    pace.ended(before, None, 0)
    assert pace.size == before


@pytest.mark.parametrize(("slots", "limit"), [(0, 4), (0.5, 4), (4, 8), (10, 20), (10_000, 1024)])
def test_twice_as_many_tasks_are_under_way_as_can_run(slots: float, limit: int) -> None:
    pace = Pace(slots, None)
    for _ in range(limit):
        assert pace.has_room
        pace.sent(1)
    assert not pace.has_room


class Maps(RuleBasedStateMachine):
    """Tasks of one map begin and end in any order, and take any time."""

    def __init__(self) -> None:
        super().__init__()
        self.pace = Pace(3, None)
        self.under_way: list[int] = []

    @precondition(lambda self: self.pace.has_room)
    @rule(weight=st.floats(0, 1e9))
    def send(self, weight: float) -> None:
        self.under_way.append(self.pace.size)
        self.pace.sent(weight)
        assert self.pace.size * weight <= ARGUMENT_BYTES or self.pace.size == 1

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), seconds=st.none() | st.floats(0, 1e6), weight=st.floats(0, 1e9))
    def end(self, data: st.DataObject, seconds: float | None, weight: float) -> None:
        elements = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        before = self.pace.size
        self.pace.ended(elements, seconds, weight)
        size = self.pace.size
        assert size <= max(elements * GROWTH, before)
        if seconds is not None:
            assert size * weight <= RESULT_BYTES or size == 1
            assert size * seconds / elements <= TASK_SECONDS * 1.001 or size == 1

    @invariant()
    def holds(self) -> None:
        self.pace.check()
        assert self.pace.under_way == len(self.under_way)


TestMaps = Maps.TestCase
TestMaps.settings = settings(max_examples=30)
