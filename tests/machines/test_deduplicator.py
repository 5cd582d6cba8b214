"""Deduplicator: alike lines of several processes are shown once and counted; nothing else is held back."""

import re
from collections import Counter

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from raylite._machines import deduplicator
from raylite._machines.deduplicator import LONGEST, PATTERNS, WINDOW, Deduplicator, Printed


def of(pid: int, *lines: str, ip: str = "10.0.0.1", is_stderr: bool = False) -> Printed:
    return Printed(ip, pid, "f", is_stderr, lines)


def texts(shown: list[Printed]) -> list[str]:
    return [line for printed in shown for line in printed.lines]


def test_what_one_process_repeats_is_shown_each_time() -> None:
    dedup = Deduplicator()
    assert dedup.printed(of(1, "a", "a"), 0.0) == [of(1, "a", "a")]
    assert dedup.printed(of(1, "a"), 1.0) == [of(1, "a")]
    assert dedup.expire(99.0) == dedup.flush() == []


def test_what_others_print_alike_is_counted_and_told_when_the_window_is_over() -> None:
    dedup = Deduplicator()
    assert dedup.printed(of(1, "ready"), 0.0) == [of(1, "ready")]
    for pid in (2, 3, 4):
        assert dedup.printed(of(pid, "ready"), 1.0) == []
    assert dedup.next_wakeup() == WINDOW
    assert dedup.expire(WINDOW - 0.1) == []
    [told] = dedup.expire(WINDOW)
    assert (told.pid, told.lines[0].partition(" (")[0]) == (4, "ready [repeated 3x across cluster]")


def test_how_to_switch_it_off_is_said_once() -> None:
    dedup = Deduplicator()
    dedup.printed(of(1, "a", "b"), 0.0)
    dedup.printed(of(2, "a", "a", "b", "b"), 0.0)
    told = texts(dedup.expire(WINDOW))
    assert [line.startswith(f"{name} [repeated 2x") for name, line in zip("ab", told, strict=True)]
    assert [("RAYLITE_DEDUP_LOGS" in line) for line in told] == [True, False]


def test_a_single_like_line_is_told_as_it_is() -> None:
    dedup = Deduplicator()
    dedup.printed(of(1, "at 10 %"), 0.0)
    dedup.printed(of(2, "at 20 %"), 0.0)
    assert dedup.expire(WINDOW) == [of(2, "at 20 %")]
    assert dedup.next_wakeup() is None


def test_a_fruitful_pattern_goes_on_and_a_fruitless_one_ends() -> None:
    dedup = Deduplicator()
    dedup.printed(of(1, "ready"), 0.0)
    dedup.printed(of(2, "ready", "ready"), 0.0)
    assert len(dedup.expire(WINDOW)) == 1
    assert dedup.printed(of(1, "ready"), WINDOW + 1) == []
    assert texts(dedup.expire(2 * WINDOW)) == ["ready"]
    assert dedup.printed(of(1, "ready"), 2 * WINDOW) == [of(1, "ready")]


def test_lines_that_differ_in_numbers_are_alike_and_numbers_alone_are_not() -> None:
    dedup = Deduplicator()
    dedup.printed(of(1, "loss 0.5 in step 3", "17"), 0.0)
    assert dedup.printed(of(2, "loss 0.25 in step 9"), 0.0) == []
    assert dedup.printed(of(2, "18", ""), 0.0) == [of(2, "18", "")]


def test_stdout_and_stderr_are_not_alike_nor_pids_on_two_nodes_one_process() -> None:
    dedup = Deduplicator()
    dedup.printed(of(1, "a"), 0.0)
    assert dedup.printed(of(2, "a", is_stderr=True), 0.0) == [of(2, "a", is_stderr=True)]
    assert dedup.printed(of(1, "a", ip="10.0.0.2"), 0.0) == []


def test_lines_may_be_exempt_or_left_out() -> None:
    dedup = Deduplicator(allow=re.compile("keep"), skip=re.compile("noise"))
    for pid in (1, 2):
        lines = "keep this", "noise", "keep this noise"
        assert texts(dedup.printed(of(pid, *lines), 0.0)) == ["keep this", "keep this noise"]


def test_flushing_tells_what_is_held_back_and_begins_anew() -> None:
    dedup = Deduplicator()
    for pid in (1, 2):
        dedup.printed(of(pid, "a"), 0.0)
    assert dedup.flush() == [of(2, "a")]
    assert dedup.printed(of(3, "a"), 0.0) == [of(3, "a")]


def test_long_lines_are_not_kept_and_patterns_not_without_bound() -> None:
    dedup = Deduplicator()
    long = "x" * (LONGEST + 1)
    assert texts(dedup.printed(of(1, long), 0.0) + dedup.printed(of(2, long), 0.0)) == [long] * 2
    words = [f"{'ab'[n & 1]}{'x' * (n >> 1)}" for n in range(900)]
    dedup.printed(of(1, *(f"{one} {other}" for one in words for other in words[:20])), 0.0)
    dedup.check()
    assert len(dedup._patterns) == PATTERNS


class DeduplicatorModel(RuleBasedStateMachine):
    """Every line is shown or counted exactly once, in its window or soon after."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.dedup = Deduplicator()
        self.printed, self.shown = Counter[str](), Counter[str]()
        self.first_held: dict[str, float] = {}
        self.pids: dict[str, set[int]] = {}

    def take(self, shown: list[Printed]) -> None:
        for line in texts(shown):
            text, repeated, rest = line.partition(" [repeated ")
            self.shown[text] += int(rest.partition("x")[0]) if repeated else 1
            if self.shown[text] == self.printed[text]:
                self.first_held.pop(text, None)

    @rule(pid=st.integers(1, 3), lines=st.lists(st.sampled_from("abcd"), min_size=1, max_size=4))
    def prints(self, pid: int, lines: list[str]) -> None:
        for line in lines:
            self.printed[line] += 1
            self.first_held.setdefault(line, self.now)
            self.pids.setdefault(line, set()).add(pid)
        self.take(self.dedup.printed(of(pid, *lines), self.now))

    @rule(seconds=st.sampled_from([0.5, 2.0, WINDOW]))
    def time_passes(self, seconds: float) -> None:
        end = self.now + seconds
        while (at := self.dedup.next_wakeup()) is not None and at <= end:
            self.now = max(at, self.now)
            self.take(self.dedup.expire(self.now))
        self.now = end

    @rule()
    def is_flushed(self) -> None:
        self.take(self.dedup.flush())
        assert self.shown == self.printed

    @invariant()
    def nothing_is_lost_late_or_shown_twice(self) -> None:
        self.dedup.check()
        assert self.shown <= self.printed
        for line, pids in self.pids.items():
            assert len(pids) > 1 or self.shown[line] == self.printed[line]
        assert all(self.now - since <= WINDOW for since in self.first_held.values())

    def teardown(self) -> None:
        self.is_flushed()


TestDeduplicatorModel = DeduplicatorModel.TestCase
TestDeduplicatorModel.settings = settings(max_examples=100)


def test_a_full_table_tells_its_oldest_early() -> None:
    dedup = Deduplicator()
    dedup.printed(of(1, "first"), 0.0)
    dedup.printed(of(2, "first"), 0.0)
    words = [f"{'ab'[n & 1]}{'x' * (n >> 1)}" for n in range(900)]
    many = [f"{one} {other}" for one in words for other in words[: PATTERNS // 900 + 1]]
    shown = dedup.printed(of(1, *many), 1.0)
    assert replace(shown[-1], lines=()) == of(2)
    assert shown[-1].lines == ("first",)
    assert len(dedup._patterns) == deduplicator.PATTERNS
