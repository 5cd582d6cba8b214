"""Pulse: a raylet's workers end before its cluster has their tasks run elsewhere, and never for nothing."""

import math

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from raylite._machines.nodes import SLOW, NodeDied, Nodes
from raylite._machines.pulse import STALL, TURN, EndWorkers, NodeLost, Pulse

BEAT = 1.0
END, LOST = 27.0, 33.0  # seconds after the last word
UNHEARD = 5.0  # seconds for which a link may be gone, and nobody is the worse for it


def test_workers_end_in_time_and_once_and_then_the_node_is_lost() -> None:
    pulse = Pulse()
    pulse.felt(100.0, 0.5)
    assert pulse.next_wakeup() == 100.0 + END
    assert pulse.expire(100.0 + END - 0.5) == []
    assert pulse.expire(100.0 + END + 0.5) == [EndWorkers(END + 0.5)]
    assert pulse.expire(100.0 + END + 0.6) == []
    assert pulse.next_wakeup() == 100.0 + LOST
    assert pulse.expire(100.0 + LOST + 0.5) == [NodeLost(LOST + 0.5)]
    assert pulse.next_wakeup() is None
    assert pulse.expire(1000.0) == []


def test_a_raylet_that_says_something_has_all_its_time_again() -> None:
    pulse = Pulse()
    pulse.felt(0.0, 0.5)
    pulse.felt(END - 1, 0.5)
    assert pulse.expire(END) == []
    assert pulse.expire(2 * END - 1) == [EndWorkers(END)]
    pulse.felt(2 * END, 0.5)
    assert pulse.expire(3 * END) == [EndWorkers(END)]


def test_a_raylet_that_never_said_anything_has_nothing_to_lose() -> None:
    pulse = Pulse()
    assert pulse.next_wakeup() is None
    assert pulse.expire(1e9) == []


def test_what_is_read_late_is_as_old_as_it_is() -> None:
    pulse = Pulse()
    pulse.felt(10.0, 0.5)
    pulse.felt(9.0, 0.5)
    assert pulse.next_wakeup() == pytest.approx(10.0 + END)


def test_a_cluster_with_another_patience_has_other_bounds() -> None:
    pulse = Pulse(3.0)
    pulse.felt(0.0, 0.0)
    assert pulse.expire(8.0) == []
    assert pulse.expire(8.2) == [EndWorkers(8.2)]


def test_a_raylet_that_was_not_heard_has_less_and_as_much_less_as_it_may_matter() -> None:
    """The GCS counts from when it heard it. Who was not heard for very long is dead, or has no GCS."""
    for unheard, less in (1.0, 0.0), (1.5, 0.5), (4.9, 3.9), (60.0, 4.0):
        pulse = Pulse()
        pulse.felt(100.0, unheard)
        assert pulse.next_wakeup() == pytest.approx(100.0 + END - less)


def test_who_stood_still_itself_lets_the_raylet_say_something_first() -> None:
    """A machine, or a container, that stood still as a whole: perhaps with its GCS, and nobody is dead."""
    pulse = Pulse()
    pulse.felt(0.0, 0.5)
    assert pulse.expire(END + STALL + 50) == []
    pulse.felt(END + STALL + 50.5, 0.5)
    assert pulse.expire(END + STALL + 52) == []


def test_it_lets_it_do_so_once_or_it_would_never_end_anything_where_all_is_slow() -> None:
    pulse = Pulse()
    pulse.felt(0.0, 0.5)
    assert pulse.expire(END + STALL + 50) == []
    assert pulse.next_wakeup() == END + STALL + 50 + TURN
    assert pulse.expire(END + STALL + 50 + TURN / 2) == []
    late = END + STALL + 50 + TURN + 2 * STALL
    assert pulse.expire(late) == [EndWorkers(late), NodeLost(late)]


class PulseModel(RuleBasedStateMachine):
    """A raylet that runs and stands still, its GCS, and who watches it, who may be late as well."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.pulse, self.gcs = Pulse(), Nodes()
        self.gcs.joined(b"n", 1, self.now)
        self.felt_at = self.heard_at = self.now
        self.pulse.felt(self.now, 0.0)
        self.ended = self.is_dead = False

    @rule(beats=st.integers(1, 10), is_heard=st.booleans())
    def run(self, beats: int, is_heard: bool) -> None:
        """The raylet runs, and says so each second; the GCS may not hear it for a while."""
        for _ in range(beats):
            if not self.is_dead:
                self.pass_seconds(BEAT)
                if is_heard or self.now - self.heard_at >= UNHEARD:
                    self.gcs.heard(b"n", 1, self.now)
                    self.heard_at = self.now
                self.pulse.felt(self.now, self.now - self.heard_at)
                self.felt_at, self.ended = self.now, False

    @rule(seconds=st.floats(0.1, 40.0), late=st.floats(0.0, STALL))
    def stand_still(self, seconds: float, late: float) -> None:
        """The raylet does not run; its machine takes connections, and who watches is late at times."""
        until = self.now + seconds
        while self.now < until and not self.is_dead:
            due = self.pulse.next_wakeup()
            look_at = math.inf if due is None else max(due + late, self.now)
            self.pass_seconds(min(BEAT, look_at - self.now))
            if self.now >= look_at:
                self.look()

    def pass_seconds(self, seconds: float) -> None:
        self.now += seconds
        self.gcs.answered(b"n", 1, self.now)
        if any(isinstance(effect, NodeDied) for effect in self.gcs.expire(self.now)):
            self.is_dead = True
            assert self.ended, "its tasks run elsewhere, and its workers live"

    def look(self) -> None:
        effects = self.pulse.expire(self.now)
        for effect in effects:
            assert effect.seconds >= SLOW * 10.0 * 0.8, "for nothing"
            assert isinstance(effect, EndWorkers) or self.is_dead or self.now - self.felt_at > 30.0
        self.ended = self.ended or any(isinstance(effect, EndWorkers) for effect in effects)

    @invariant()
    def holds(self) -> None:
        self.pulse.check()
        due = self.pulse.next_wakeup()
        assert due is not None or self.ended


TestPulseModel = PulseModel.TestCase
