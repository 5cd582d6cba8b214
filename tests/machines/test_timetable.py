"""The timetable: everything is due once, at the time that was set last."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from raylite._machines.timetable import Timetable

KEYS = st.integers(0, 9)


def test_what_is_due_comes_in_order_and_once() -> None:
    table = Timetable[str]()
    for key, at in [("late", 3.0), ("soon", 1.0), ("then", 2.0)]:
        table.set(key, at)
    assert table.next() == 1.0
    assert table.due(2.0) == ["soon", "then"]
    assert table.due(2.0) == []
    assert (table.next(), table.times) == (3.0, {"late": 3.0})


def test_a_key_is_due_at_the_time_that_was_set_last() -> None:
    table = Timetable[str]()
    table.set("a", 1.0)
    table.set("a", 5.0)
    assert (table.next(), table.due(1.0)) == (5.0, [])
    table.set("a", 2.0)
    assert table.due(9.0) == ["a"]


def test_what_is_dropped_is_never_due() -> None:
    table = Timetable[str]()
    table.set("a", 1.0)
    table.drop("a")
    table.drop("unknown")
    assert (table.next(), table.due(9.0), len(table.times)) == (None, [], 0)


def test_equal_times_keep_their_order_and_need_none_of_the_keys() -> None:
    table = Timetable[object]()
    keys = [object() for _ in range(9)]
    for key in keys:
        table.set(key, 1.0)
    assert table.due(1.0) == keys


def test_what_is_set_and_dropped_for_ever_takes_no_room() -> None:
    table = Timetable[int]()
    table.set(-1, 1e9)
    for number in range(10_000):
        table.set(number, 1e6)
        table.drop(number)
        table.check()
    assert len(table._heap) < 200


class Times(RuleBasedStateMachine):
    """Against a plain dict of times."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Timetable[int]()
        self.times: dict[int, float] = {}
        self.now = 0.0

    @rule(key=KEYS, delay=st.sampled_from([0.0, 1.0, 2.0, 7.0]), times=st.sampled_from([1, 2, 100]))
    def sets(self, key: int, delay: float, times: int) -> None:
        for n in range(times):
            self.table.set(key, self.now + delay + n % 2)
        self.times[key] = self.now + delay + (times - 1) % 2

    @rule(key=KEYS)
    def drops(self, key: int) -> None:
        self.table.drop(key)
        self.times.pop(key, None)

    @rule()
    def drops_all(self) -> None:
        for key in list(self.times):
            self.drops(key)

    @rule(delay=st.sampled_from([0.0, 0.5, 1.0, 5.0]))
    def passes(self, delay: float) -> None:
        self.now += delay
        due = self.table.due(self.now)
        assert sorted(due) == sorted(k for k, at in self.times.items() if at <= self.now)
        assert [self.times[key] for key in due] == sorted(self.times[key] for key in due)
        for key in due:
            del self.times[key]

    @invariant()
    def agrees(self) -> None:
        self.table.check()
        assert self.table.next() == min(self.times.values(), default=None)
        assert self.table.times == self.times


TestTimes = Times.TestCase
