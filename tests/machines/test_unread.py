"""Unread: every error that nobody has read is reported once, when the last reference has gone."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raylite._machines.unread import DELAY, KEPT, Report, Unread
from raylite._types.keys import TaskKey

A, B = TaskKey(b"a"), TaskKey(b"b")


def due(machine: Unread) -> float | None:
    return machine.next_due


def test_an_error_that_is_dropped_unread_is_reported_once() -> None:
    machine = Unread()
    machine.failed(A)
    assert due(machine) is None
    machine.dropped(A, b"error", 1.0)
    assert due(machine) == 1.0 + DELAY
    assert machine.report(DELAY) is None
    assert machine.report(1.0 + DELAY) == Report((b"error",))
    assert machine.report(100.0) is None
    assert due(machine) is None


def test_an_error_that_was_read_is_not() -> None:
    machine = Unread()
    machine.failed(A)
    machine.read(A)
    machine.dropped(A, b"error", 1.0)
    machine.failed(B)
    machine.dropped(B, b"error", 2.0)
    machine.read(B)  # by a thread of which the news is late
    assert machine.report(100.0) is None


def test_the_returns_of_a_task_have_one_error() -> None:
    machine = Unread()
    machine.failed(A)
    machine.abandoned(A, b"error", 1.0)  # one return was dropped before
    machine.failed(A)
    machine.dropped(A, b"error", 1.0)
    assert due(machine) is None  # one is held
    machine.dropped(A, b"error", 2.0)
    assert machine.report(100.0) == Report((b"error",))


def test_an_error_that_nobody_waits_for_is_reported() -> None:
    machine = Unread()
    machine.abandoned(A, b"one", 1.0)
    machine.abandoned(A, b"one", 1.0)
    machine.abandoned(B, b"two", 2.0)
    assert machine.report(1.0 + DELAY) == Report((b"one",))
    assert machine.report(2.0 + DELAY) == Report((b"two",))


def test_a_held_return_of_a_task_lets_the_report_of_another_wait() -> None:
    machine = Unread()
    machine.abandoned(A, b"error", 1.0)
    machine.failed(A)
    assert machine.report(100.0) is None
    machine.dropped(A, b"error", 100.0)
    assert machine.report(100.0 + DELAY) == Report((b"error",))


def test_of_very_many_errors_at_once_the_last_are_not_kept() -> None:
    machine = Unread()
    for number in range(KEPT + 5):
        machine.abandoned(TaskKey(b"%d" % number), b"error", 1.0)
    machine.check()
    assert machine.report(100.0) == Report((b"error",) * KEPT)


class Model(RuleBasedStateMachine):
    """Against the plain story of each task: who holds it, who has read it, what was said of it."""

    tasks = st.sampled_from([TaskKey(b"a"), TaskKey(b"b"), TaskKey(b"c")])

    def __init__(self) -> None:
        super().__init__()
        self.machine = Unread()
        self.now = 0.0
        self.held: dict[TaskKey, int] = {}
        self.is_read: set[TaskKey] = set()
        self.gone: dict[TaskKey, float] = {}
        self.said: list[bytes] = []

    def go(self, task: TaskKey) -> None:
        if not self.held.get(task) and task not in self.is_read:
            self.gone.setdefault(task, self.now)

    @rule(task=tasks)
    def fail(self, task: TaskKey) -> None:
        if task in self.is_read or task in self.said:
            return  # all returns of a task fail at once
        self.machine.failed(task)
        self.held[task] = self.held.get(task, 0) + 1
        self.gone.pop(task, None)

    @rule(task=tasks)
    def abandon(self, task: TaskKey) -> None:
        if task in self.is_read or task in self.said:
            return
        self.machine.abandoned(task, task, self.now)
        self.go(task)

    @rule(task=tasks)
    def read(self, task: TaskKey) -> None:
        self.machine.read(task)
        if self.held.get(task):
            self.is_read.add(task)
        elif task in self.gone:
            self.is_read.add(task)
            del self.gone[task]

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(sorted(t for t, count in self.held.items() if count)))
        self.machine.dropped(task, task, self.now)
        self.held[task] -= 1
        self.go(task)

    @rule(seconds=st.floats(0.1, 6.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        due = {task for task, at in self.gone.items() if at + DELAY <= self.now}
        report = self.machine.report(self.now)
        assert set(report.errors if report else ()) == due
        for task in due:
            del self.gone[task]
            self.said.append(task)

    @invariant()
    def is_consistent(self) -> None:
        self.machine.check()
        assert len(self.said) == len(set(self.said))
        if self.gone:
            assert self.machine.next_due is not None
            assert self.machine.next_due <= min(self.gone.values()) + DELAY


TestUnread = Model.TestCase
