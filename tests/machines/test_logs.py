"""Logs: lines reach their driver in order, or are counted; and neither memory nor work waits for one."""

from collections import deque

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raylite._machines.logs import (
    BATCH,
    ENDED_KEPT,
    PATIENCE,
    RETRY,
    ROOM,
    Dropped,
    Effect,
    Logs,
    Resume,
    Send,
)

JOB, OTHER = b"job1", b"job2"
KB = 1024


def known(job: bytes = JOB) -> Logs:
    logs = Logs()
    assert logs.known(job, 0.0) == []
    return logs


def fill(logs: Logs, job: bytes = JOB, now: float = 0.0) -> None:
    while not logs.is_full(job, now):
        logs.printed(job, "x", 32 * KB, 10, now)


def test_a_driver_is_sent_a_batch_and_the_next_when_it_has_shown_that() -> None:
    logs = known()
    assert logs.printed(JOB, "a", 10, 1, 0.0) == [Send(JOB, ("a",))]
    assert logs.printed(JOB, "b", 10, 1, 0.0) == logs.printed(JOB, "c", 10, 1, 0.0) == []
    assert logs.shown(JOB, wants_more=True, now=0.1) == [Send(JOB, ("b", "c"))]
    assert logs.shown(JOB, wants_more=True, now=0.1) == []
    assert logs.shown(JOB, wants_more=True, now=0.1) == []  # said twice


def test_a_batch_is_no_larger_than_that() -> None:
    logs = known()
    for item in "abcd":
        logs.printed(JOB, item, BATCH // 2, 1, 0.0)
    assert logs.shown(JOB, wants_more=True, now=0.0) == [Send(JOB, ("b", "c"))]


def test_lines_wait_until_the_driver_is_known() -> None:
    logs = Logs()
    assert logs.printed(JOB, "a", 10, 1, 0.0) == []
    assert logs.known(JOB, 1.0) == [Send(JOB, ("a",))]
    assert logs.known(JOB, 1.0) == []


def test_workers_of_a_full_job_are_held_back_and_those_of_another_are_not() -> None:
    logs = known()
    fill(logs)
    assert not logs.is_full(OTHER, 0.0)
    effects = [logs.shown(JOB, wants_more=True, now=0.1) for _ in range(2)]
    assert Resume(JOB) in effects[0] + effects[1]
    assert not logs.is_full(JOB, 0.1)


def test_for_a_driver_that_shows_nothing_nobody_waits_long_and_lines_are_counted() -> None:
    logs = known()
    fill(logs)
    assert logs.next_wakeup() == PATIENCE
    assert logs.expire(PATIENCE) == [Resume(JOB)]
    assert not logs.is_full(JOB, PATIENCE)
    for _ in range(1000):
        logs.printed(JOB, "y", 32 * KB, 10, PATIENCE)
        logs.check()
    sent: list[object] = []
    while effects := logs.shown(JOB, wants_more=True, now=5.0):
        sent += [item for e in effects if isinstance(e, Send) for item in e.items]
    assert sent[-1] == Dropped(10 * (1000 - sent.count("y")))
    assert logs.printed(JOB, "z", 10, 1, 5.0) == [Send(JOB, ("z",))]


@pytest.mark.parametrize("now", [0.1, 1.1, 2.1, 1e6 / 3])
def test_the_alarm_for_a_driver_that_shows_nothing_rings_once(now: float) -> None:
    logs = Logs()
    logs.known(JOB, now)
    fill(logs, now=now)
    at = logs.next_wakeup()
    assert at is not None
    assert logs.expire(at) == [Resume(JOB)]
    assert logs.next_wakeup() is None


def test_a_driver_that_wants_nothing_is_sent_nothing() -> None:
    logs = known()
    fill(logs)
    assert logs.shown(JOB, wants_more=False, now=0.0) == [Resume(JOB)]
    assert logs.printed(JOB, "b", 10, 1, 0.0) == []
    assert not logs.is_full(JOB, 0.0)
    assert logs.is_settled(JOB, 999)


def test_what_did_not_arrive_is_told_as_dropped_after_a_while() -> None:
    logs = known()
    logs.printed(JOB, "a", 10, 3, 0.0)
    logs.failed(JOB, 1.0)
    logs.failed(JOB, 1.0)
    assert logs.printed(JOB, "b", 10, 1, 1.5) == []
    assert logs.next_wakeup() == 1.0 + RETRY
    assert logs.expire(1.0 + RETRY) == [Send(JOB, (Dropped(3), "b"))]
    logs.failed(JOB, 2.0)
    assert logs.expire(2.0 + RETRY) == [Send(JOB, (Dropped(4),))]


def test_the_end_of_a_driver_ends_it() -> None:
    logs = known()
    fill(logs)
    assert logs.ended(JOB) == [Resume(JOB)]
    assert logs.printed(JOB, "late", 10, 1, 0.0) == logs.known(JOB, 0.0) == []
    assert logs.shown(JOB, wants_more=True, now=0.0) == logs.ended(JOB) == []
    for number in range(ENDED_KEPT + 10):
        logs.ended(b"%d" % number)
    logs.check()


def test_all_that_was_printed_before_a_mark_is_settled_when_it_is_shown_or_dropped() -> None:
    logs = known()
    assert logs.is_settled(JOB, logs.mark(JOB))
    logs.printed(JOB, "a", 10, 2, 0.0)
    mark = logs.mark(JOB)
    logs.printed(JOB, "b", 10, 2, 0.0)
    assert not logs.is_settled(JOB, mark)
    logs.shown(JOB, wants_more=True, now=0.0)
    assert logs.is_settled(JOB, mark)
    assert not logs.is_settled(JOB, logs.mark(JOB))


class LogsModel(RuleBasedStateMachine):
    """One job's workers print numbered lines; its driver is slow, stopped, out of reach, or gone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.logs = Logs()
        self.lines = 0
        self.got = 0  # the number of the last line that the driver has seen, or knows to be dropped
        self.on_its_way: deque[Send] = deque()
        self.is_held = False
        self.has_ended = False

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    assert not self.on_its_way, "a second batch was sent before the first was shown"
                    assert not self.has_ended
                    self.on_its_way.append(effect)
                case Resume():
                    self.is_held = False

    @precondition(lambda self: not self.is_held)
    @rule(size=st.sampled_from([300, 20 * KB, 64 * KB]), times=st.integers(1, 40))
    def prints(self, size: int, times: int) -> None:
        for _ in range(times):
            self.lines += 1
            self.take(self.logs.printed(JOB, self.lines, size, 1, self.now))
            if self.logs.is_full(JOB, self.now):
                self.is_held = True
                break

    @rule()
    def is_known(self) -> None:
        self.take(self.logs.known(JOB, self.now))

    @precondition(lambda self: self.on_its_way)
    @rule()
    def shows(self) -> None:
        for item in self.on_its_way.popleft().items:
            if isinstance(item, Dropped):
                self.got += item.lines
            else:
                self.got += 1
                assert item == self.got, "lines are missing, doubled or out of order"
        self.take(self.logs.shown(JOB, wants_more=True, now=self.now))

    @precondition(lambda self: self.on_its_way)
    @rule()
    def is_out_of_reach(self) -> None:
        self.on_its_way.clear()
        self.logs.failed(JOB, self.now)

    @rule(seconds=st.sampled_from([0.1, 1.0, PATIENCE]))
    def time_passes(self, seconds: float) -> None:
        end = self.now + seconds
        while (at := self.logs.next_wakeup()) is not None and at <= end:
            self.now = max(at, self.now)
            self.take(self.logs.expire(self.now))
            if self.logs.next_wakeup() == at:
                raise AssertionError("an alarm rings for nothing")
        self.now = end

    @rule()
    @precondition(lambda self: self.lines > 200)
    def ends(self) -> None:
        self.has_ended = True
        self.on_its_way.clear()
        self.take(self.logs.ended(JOB))

    @invariant()
    def memory_is_bounded_and_nobody_waits_for_ever(self) -> None:
        self.logs.check()
        if self.is_held:
            assert self.logs.next_wakeup() is not None
            assert not self.has_ended
            job = self.logs._jobs[JOB]
            assert ROOM <= job.size <= 2 * ROOM

    def teardown(self) -> None:
        if self.has_ended:
            assert not self.logs._jobs
            return
        self.is_known()
        self.time_passes(RETRY + PATIENCE)
        while self.on_its_way:
            self.shows()
        assert self.got == self.lines, "some lines were neither shown nor counted"


TestLogsModel = LogsModel.TestCase
TestLogsModel.settings = settings(max_examples=100)
