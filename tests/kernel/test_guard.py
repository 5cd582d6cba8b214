"""The guard and its rates: how many strangers, and what those who fail have to wait."""

from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raylite._kernel.guard import REMEMBERED, Admission, Guard
from raylite._kernel.rate import Rate


def test_a_rate_allows_its_burst_at_once_and_then_its_rate() -> None:
    rate = Rate(200, 1000, now=0.0)
    assert sum(rate.spend(0.0) for _ in range(2000)) == 1000
    assert sum(rate.spend(0.5) for _ in range(2000)) == 100
    assert sum(rate.spend(1000.0) for _ in range(2000)) == 1000


def test_a_rate_whose_clock_goes_back_gives_nothing() -> None:
    rate = Rate(1, 1, now=10.0)
    assert rate.spend(10.0)
    assert not rate.spend(0.0)
    assert not rate.spend(0.5)


def test_strangers_are_bounded_in_all_and_from_each_place() -> None:
    guard = Guard(Admission(total=10, each=4))
    assert [guard.enter("a") for _ in range(5)] == [True] * 4 + [False]
    assert [guard.enter("b") for _ in range(4)] == [True] * 4
    assert [guard.enter("c") for _ in range(3)] == [True, True, False]
    guard.leave("a")
    assert guard.enter("c")
    assert guard.refused == {"too many at once": 2}
    guard.check()


def test_who_fails_too_often_waits_until_the_rate_is_kept_again() -> None:
    guard = Guard(Admission(failures=10, period=60.0, tarpit=1.0))
    for count in range(10):
        assert guard.delay("a", float(count)) == 0.0
        guard.failed("a", "wrong proof", float(count))
    assert guard.delay("a", 10.0) == 0.0  # it has earned one in ten seconds
    guard.failed("a", "wrong proof", 10.0)
    assert guard.delay("a", 10.0) == 1.0
    assert guard.delay("b", 10.0) == 0.0
    assert guard.delay("a", 17.0) == 0.0
    assert guard.refused == {"wrong proof": 11}


def test_memory_is_bounded_however_many_places_fail() -> None:
    guard = Guard(Admission())
    for number in range(10 * REMEMBERED):
        guard.failed(str(number), "wrong proof", 0.0)
    assert len(guard._failures) == REMEMBERED
    guard.check()


class Strangers(RuleBasedStateMachine):
    """Strangers of three places come and go in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.guard, self.inside = Guard(Admission(total=5, each=3)), list[str]()

    @rule(place=st.sampled_from("abc"))
    def enter(self, place: str) -> None:
        has_room = len(self.inside) < 5 and self.inside.count(place) < 3
        assert self.guard.enter(place) is has_room
        self.inside += [place] * has_room

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.guard.leave(self.inside.pop(data.draw(st.integers(0, len(self.inside) - 1))))

    @rule(place=st.sampled_from("abc"))
    def fail(self, place: str) -> None:
        self.guard.failed(place, "wrong proof", 0.0)

    @invariant()
    def holds(self) -> None:
        self.guard.check()


TestStrangers = Strangers.TestCase
TestStrangers.settings = settings(
    max_examples=30,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)


@given(st.lists(st.floats(0, 0.1), max_size=200))
def test_a_rate_never_allows_more_than_burst_and_rate(pauses: list[float]) -> None:
    rate, now, allowed = Rate(10, 5, now=0.0), 0.0, 0
    for pause in pauses:
        now += pause
        allowed += rate.spend(now)
        assert allowed <= 5 + 10 * now + 1e-6
