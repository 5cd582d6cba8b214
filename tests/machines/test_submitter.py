"""The submitter: every task runs once, none waits for nothing, and leases are kept only for use."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raylite._machines import submitter as limits
from raylite._machines.submitter import (
    AskBack,
    Effect,
    Interrupt,
    LaneKey,
    Pending,
    Push,
    RequestLease,
    ReturnLease,
    Standing,
    Submitter,
    SubmitterStatistics,
    Withdrawn,
)
from raylite._types.keys import LeaseID, TaskKey, WorkerKey
from raylite._types.resources import UNIT, Resources

LANE = LaneKey(Resources.of(CPU=1), b"", 0)
FREE = LaneKey(Resources(), b"", 0)
TINY = 1e-6
NO_TASK = TaskKey(b"")


def make(number: int, function: int = 1, key: LaneKey = LANE) -> Pending:
    return Pending(TaskKey(b"%d" % number), key, function, 0)


def make_many(count: int, function: int = 1) -> list[Pending]:
    return [make(number, function) for number in range(count)]


def numbers(tasks: Iterable[Pending]) -> list[int]:
    return [int(task.id) for task in tasks]


def requests(effects: list[Effect]) -> list[LeaseID]:
    return [effect.lease for effect in effects if isinstance(effect, RequestLease)]


def returns(effects: list[Effect]) -> list[LeaseID]:
    return [effect.lease for effect in effects if isinstance(effect, ReturnLease)]


def pushes(effects: list[Effect]) -> dict[int, list[int]]:
    return {int(e.worker): numbers(e.tasks) for e in effects if isinstance(e, Push)}


class Owner:
    """A submitter of a node with `cpus` CPUs, and the leases it was granted, by worker."""

    def __init__(self, cpus: int = 4) -> None:
        self.machine = Submitter(b"", cpus * UNIT)
        self.waiting: list[LeaseID] = []
        self.leases: dict[int, LeaseID] = {}
        self.now = 0.0

    def submit(self, tasks: list[Pending]) -> list[Effect]:
        return self.perform(self.machine.submit(tasks, self.now))

    def grant(self, worker: int) -> list[Effect]:
        lease = self.leases[worker] = self.waiting.pop(0)
        return self.perform(self.machine.granted(lease, WorkerKey(b"%d" % worker), self.now))

    def result(self, worker: int, tasks: list[Pending], seconds: float = TINY) -> list[Effect]:
        key = WorkerKey(b"%d" % worker)
        for task in tasks:
            self.machine.finished(key, task, seconds, self.now)
        return self.perform(self.machine.advance([key], self.now))

    def give_back(self, worker: int, tasks: list[Pending]) -> list[Effect]:
        key = WorkerKey(b"%d" % worker)
        return self.perform(self.machine.given_back(key, tasks, self.now))

    def lose(self, worker: int, last: TaskKey) -> tuple[list[int], list[Effect]]:
        begun, effects = self.machine.lost(WorkerKey(b"%d" % worker), last, self.now)
        return numbers(begun), self.perform(effects)

    def cancel(self, task: Pending) -> list[Effect]:
        return self.perform(self.machine.cancel(task))

    def expire(self, at: float) -> list[Effect]:
        self.now = at
        return self.perform(self.machine.expire(at))

    def perform(self, effects: list[Effect]) -> list[Effect]:
        self.machine.check()
        self.waiting += requests(effects)
        self.waiting = [lease for lease in self.waiting if lease not in returns(effects)]
        return effects


def owner_with_workers(count: int, seconds: float = TINY, cpus: int = 4) -> Owner:
    """Return one whose idle workers are known to run function 1 in `seconds`."""
    owner = Owner(max(count, cpus))
    tasks = [make(900_000 + number) for number in range(count)]
    owner.submit(tasks)
    for worker in range(count):
        owner.grant(worker)
    for worker, task in enumerate(tasks):
        owner.result(worker, [task], seconds)
    return owner


# ---- leases --------------------------------------------------------------------------------


def test_a_task_waits_for_a_lease_and_goes_to_its_worker() -> None:
    owner = Owner()
    task = make(1)
    [request] = owner.submit([task])
    assert isinstance(request, RequestLease)
    assert request.key == LANE
    assert pushes(owner.grant(7)) == {7: [1]}
    assert task.worker == b"7"


@pytest.mark.parametrize(("cpu", "at_once"), [(0, 4), (0.001, 4), (2, 2), (3, 2), (4, 1), (8, 1)])
def test_as_many_leases_are_asked_for_at_once_as_fit_and_never_more_than_cpus(
    cpu: float, at_once: int
) -> None:
    key = LaneKey(Resources.of(CPU=cpu), b"", 0)
    tasks = [make(number, key=key) for number in range(10_000)]
    assert len(requests(Owner(cpus=4).submit(tasks))) == at_once


def test_tasks_that_no_lease_is_asked_for_are_the_backlog() -> None:
    owner, big = Owner(cpus=4), LaneKey(Resources.of(CPU=2), b"", 0)
    owner.submit(make_many(100))
    owner.submit([make(number, key=big) for number in range(100, 103)])
    assert owner.machine.backlog() == {Resources.of(CPU=1): 96, big.demand: 1}
    owner.submit([make(200, key=LaneKey(big.demand, b"other", 0))])
    assert owner.machine.backlog()[big.demand] == 1


def test_lease_ids_begin_with_their_owners_prefix_and_are_not_used_twice() -> None:
    machine = Submitter(b"owner-", 4 * UNIT)
    leases = requests(machine.submit(make_many(4), 0.0))
    assert all(lease.startswith(b"owner-") for lease in leases)
    assert len(set(leases)) == 4


def test_requests_are_withdrawn_when_the_queue_needs_them_no_more() -> None:
    owner = Owner()
    asked = requests(owner.submit(make_many(2)))
    owner.grant(0)
    assert returns(owner.result(0, [make(0)])) == asked[1:]
    assert owner.machine.statistics().requested == 0


def test_short_tasks_ask_for_as_many_workers_as_pipelines() -> None:
    owner = owner_with_workers(1, seconds=limits.PIPELINE_SECONDS / 10)
    owner.submit(make_many(10))
    assert len(requests(owner.submit(make_many(25)[10:]))) == 2


def test_a_lease_that_comes_after_its_withdrawal_goes_back() -> None:
    owner = Owner()
    _, late = requests(owner.submit(make_many(2)))
    owner.grant(0)
    owner.result(0, [make(0)])
    assert owner.machine.granted(late, WorkerKey(b"9"), 0.0) == [ReturnLease(late)]


def test_a_grant_that_is_repeated_changes_nothing() -> None:
    owner = Owner()
    owner.submit(make_many(1))
    owner.grant(0)
    assert owner.machine.granted(owner.leases[0], WorkerKey(b"0"), 0.0) == []


def test_an_idle_lease_is_kept_a_while_and_then_returned() -> None:
    owner = owner_with_workers(1)
    due = owner.machine.next_expiry(0.0)
    assert due == limits.LINGER_SECONDS
    assert owner.expire(due / 2) == []
    assert owner.expire(due) == [ReturnLease(owner.leases[0])]
    assert owner.machine.next_expiry(due) is None


def test_idle_leases_go_back_at_once_when_others_want_them() -> None:
    owner = owner_with_workers(2)
    owner.submit([make(1)])
    assert returns(owner.machine.wanted(True)) == [owner.leases[1]]
    assert returns(owner.result(0, [make(1)])) == [owner.leases[0]]


def test_idle_leases_are_kept_again_when_nobody_wants_them_any_more() -> None:
    owner = owner_with_workers(1)
    owner.submit([make(1)])
    owner.machine.wanted(True)
    assert owner.machine.wanted(False) == []
    assert owner.result(0, [make(1)]) == []


def test_a_worker_that_gave_all_back_rests_from_then_on() -> None:
    owner = owner_with_workers(1)
    tasks = make_many(1)
    owner.submit(tasks)
    owner.now = 5.0
    assert pushes(owner.give_back(0, tasks)) == {0: [0]}
    owner.result(0, tasks)
    assert owner.machine.next_expiry(5.0) == 5.0 + limits.LINGER_SECONDS


def test_an_alarm_that_rings_early_by_a_rounding_error_is_not_in_vain() -> None:
    owner = owner_with_workers(1)
    due = owner.machine.next_expiry(0.0)
    assert due is not None
    assert returns(owner.expire(due - 1e-9)) == [owner.leases[0]]


# ---- sharing and pipelines -----------------------------------------------------------------


def test_tasks_of_an_unknown_function_go_one_to_each_worker() -> None:
    owner = owner_with_workers(3)
    assert pushes(owner.submit(make_many(3, function=2))) == {0: [0], 1: [1], 2: [2]}


def test_nothing_is_sent_behind_a_task_of_an_unknown_function() -> None:
    owner = owner_with_workers(1)
    owner.submit([make(1, function=2)])
    assert pushes(owner.submit([make(2), make(3, function=2)])) == {}


def test_nothing_is_sent_behind_a_slow_task() -> None:
    owner = owner_with_workers(1, seconds=10.0)
    owner.submit([make(1, function=2)])
    owner.result(0, [make(1, function=2)], TINY)
    assert pushes(owner.submit([make(2), make(3, function=2)])) == {0: [2]}


def test_a_slow_task_is_not_sent_behind_tiny_ones() -> None:
    owner = owner_with_workers(2)
    tasks = [make(1), make(2), make(3, function=2), make(4)]
    assert pushes(owner.submit(tasks)) == {0: [1, 2], 1: [3]}


def test_tiny_tasks_are_shared_by_all_workers() -> None:
    owner = owner_with_workers(4)
    shares = pushes(owner.submit(make_many(1000)))
    assert [len(share) for share in shares.values()] == [250] * 4


def test_what_blocked_workers_could_have_taken_goes_to_the_others() -> None:
    owner = owner_with_workers(3)
    tasks = make_many(306)
    assert pushes(owner.submit(tasks[:6])) == {0: [0, 1], 1: [2, 3], 2: [4, 5]}
    assert pushes(owner.give_back(0, tasks[1:2])) == {1: [1]}
    assert pushes(owner.give_back(1, [tasks[3], tasks[1]])) == {2: [3, 1]}
    assert [len(share) for share in pushes(owner.submit(tasks[6:])).values()] == [300]


@pytest.mark.parametrize(
    ("seconds", "depth"),
    [
        (limits.PIPELINE_SECONDS / 10, 10),
        (limits.PIPELINE_SECONDS / 2, 2),
        (limits.PIPELINE_SECONDS, 1),
        (100.0, 1),
        (0.0, limits.PIPELINE_TASKS),
        (-1.0, limits.PIPELINE_TASKS),
        (float("nan"), 1),
    ],
)
def test_a_worker_is_sent_a_few_milliseconds_of_work(seconds: float, depth: int) -> None:
    owner = owner_with_workers(1, seconds)
    assert len(pushes(owner.submit(make_many(2000)))[0]) == depth


def test_a_pipeline_is_filled_up_when_it_is_half_empty() -> None:
    owner = owner_with_workers(1, seconds=limits.PIPELINE_SECONDS / 10)
    tasks = make_many(100)
    owner.submit(tasks)
    assert pushes(owner.result(0, tasks[:4], limits.PIPELINE_SECONDS / 10)) == {}
    refill = pushes(owner.result(0, tasks[4:5], limits.PIPELINE_SECONDS / 10))
    assert refill == {0: [10, 11, 12, 13, 14]}


def test_a_function_that_became_slow_is_sent_less_at_once_and_more_again_by_and_by() -> None:
    owner = owner_with_workers(1)
    tasks = make_many(3)
    owner.submit(tasks[:1])
    owner.result(0, tasks[:1], 1.0)
    assert pushes(owner.submit(tasks[1:])) == {0: [1]}
    for _ in range(200):
        owner.machine.finished(WorkerKey(b"elsewhere"), tasks[0], TINY, 0.0)
    assert pushes(owner.result(0, tasks[1:2])) == {0: [2]}
    assert len(pushes(owner.submit(make_many(100)[3:]))[0]) > 10


def test_lanes_do_not_share_workers() -> None:
    owner = owner_with_workers(1)
    deep = LaneKey(LANE.demand, b"", 1)
    effects = owner.submit([make(1), make(2, key=deep), make(3), make(4, key=deep)])
    assert pushes(effects) == {0: [1, 3]}
    assert [e.key for e in effects if isinstance(e, RequestLease)] == [deep]


# ---- tasks that overlap --------------------------------------------------------------------

SLOTTED = LaneKey(LANE.demand, b"", 0, slots=10)


def make_overlapping(count: int, first: int = 0) -> list[Pending]:
    return [make(number, key=SLOTTED) for number in range(first, first + count)]


def test_a_worker_has_as_many_overlapping_tasks_as_slots() -> None:
    owner = Owner(cpus=1)
    tasks = make_overlapping(25)
    owner.submit(tasks)
    assert pushes(owner.grant(0)) == {0: list(range(10))}
    assert pushes(owner.result(0, [tasks[7], tasks[3]])) == {0: [10, 11]}


def test_nothing_is_asked_back_of_a_worker_whose_tasks_overlap() -> None:
    owner = Owner(cpus=1)
    owner.submit(make_overlapping(10))
    owner.grant(0)
    assert owner.machine.next_expiry(0.0) is None
    owner.now = 100 * limits.STALLED_SECONDS
    owner.result(0, make_overlapping(1))
    assert pushes(owner.submit(make_overlapping(1, first=10))) == {0: [10]}


def test_a_batch_is_kept_for_a_moment_for_the_workers_that_are_to_come() -> None:
    owner = Owner(cpus=4)
    assert len(requests(owner.submit(make_overlapping(16)))) == 4
    assert pushes(owner.grant(0)) == {0: [0, 1, 2, 3]}
    assert pushes(owner.grant(1)) == {1: [4, 5, 6, 7]}
    assert owner.machine.next_expiry(0.0) == limits.SPREAD_SECONDS
    effects = owner.expire(limits.SPREAD_SECONDS)
    assert pushes(effects) == {0: [8, 9, 10, 11], 1: [12, 13, 14, 15]}
    assert len(returns(effects)) == 2


def test_after_workers_did_not_come_nothing_is_kept_for_them_for_a_while() -> None:
    owner = Owner(cpus=2)
    tasks = make_overlapping(10)
    owner.submit(tasks)
    owner.grant(0)
    owner.expire(limits.SPREAD_SECONDS)
    owner.result(0, tasks)
    assert pushes(owner.submit(tasks)) == {0: list(range(10))}
    owner.result(0, tasks)
    owner.now = limits.SPREAD_SECONDS + limits.SPREAD_AGAIN_SECONDS
    effects = owner.submit(tasks)
    assert pushes(effects) == {0: [0, 1, 2, 3, 4]}
    assert len(requests(effects)) == 1


def test_one_task_more_goes_to_the_worker_that_is_there() -> None:
    owner = Owner(cpus=4)
    owner.submit(make_overlapping(1))
    owner.grant(0)
    effects = owner.submit(make_overlapping(1, first=1))
    assert (pushes(effects), requests(effects)) == ({0: [1]}, [])


def test_more_tasks_than_slots_ask_for_more_workers_than_there_are_cpus() -> None:
    """One of those that run may wait for one that is queued."""
    owner = Owner(cpus=1)
    owner.submit(make_overlapping(25))
    assert len(requests(owner.grant(0))) == 1
    assert pushes(owner.grant(1)) == {1: list(range(10, 20))}


@pytest.mark.parametrize(
    ("last", "begun"),
    [(1, [0, 1]), (2, [0, 1]), (4, [0, 1, 3, 4]), (99, []), (None, [0, 1, 3, 4])],
)
def test_after_a_loss_what_had_begun_is_told_though_the_last_to_begin_has_ended(
    last: int | None, begun: list[int]
) -> None:
    owner = Owner(cpus=1)
    tasks = make_overlapping(5)
    owner.submit(tasks)
    owner.grant(0)
    owner.result(0, tasks[2:3])
    key = None if last is None else TaskKey(b"%d" % last)
    lost, _ = owner.machine.lost(WorkerKey(b"0"), key, 0.0)
    assert numbers(lost) == begun


def test_a_worker_of_overlapping_tasks_takes_turns_with_others() -> None:
    owner = Owner(cpus=1)
    tasks = make_overlapping(30)
    owner.submit(tasks)
    owner.grant(0)
    owner.perform(owner.machine.wanted(True))
    assert pushes(owner.result(0, tasks[:1])) == {0: [10]}
    owner.now = limits.OVERLAPPING_TURN_SECONDS
    assert pushes(owner.result(0, tasks[1:10])) == {}
    assert returns(owner.result(0, tasks[10:11])) == [owner.leases[0]]


# ---- giving back ---------------------------------------------------------------------------


def test_what_a_blocked_worker_gave_back_goes_first_and_elsewhere() -> None:
    owner = owner_with_workers(1)
    tasks = make_many(3)
    owner.submit(tasks)
    owner.submit([make(3)])
    effects = owner.give_back(0, [*tasks[1:], make(3)])
    assert pushes(effects) == {}
    assert pushes(owner.grant(1)) == {1: [1, 2, 3]}


def test_a_worker_that_gave_back_is_sent_nothing_until_it_has_done_what_it_has() -> None:
    owner = owner_with_workers(1)
    tasks = make_many(3)
    owner.submit(tasks)
    owner.give_back(0, tasks[2:])
    assert pushes(owner.result(0, tasks[:1])) == {}
    assert pushes(owner.result(0, tasks[1:2])) == {0: [2]}


def test_a_pipeline_without_progress_is_asked_back_once() -> None:
    owner = owner_with_workers(1)
    owner.submit(make_many(3))
    due = owner.machine.next_expiry(0.0)
    assert due == limits.STALLED_SECONDS
    assert owner.expire(due) == [AskBack(WorkerKey(b"0"))]
    assert owner.machine.next_expiry(due) is None


def test_tasks_sent_while_a_give_back_was_under_way_are_asked_back_too() -> None:
    owner = owner_with_workers(1)
    tasks = make_many(3)
    owner.submit(tasks)
    owner.give_back(0, [])
    owner.give_back(0, tasks[2:])  # the worker blocks, then goes on, and [1] is behind it
    assert owner.expire(limits.STALLED_SECONDS) == [AskBack(WorkerKey(b"0"))]


def test_progress_puts_the_asking_off() -> None:
    owner = owner_with_workers(1)
    tasks = make_many(3)
    owner.submit(tasks)
    owner.now = limits.STALLED_SECONDS / 2
    owner.result(0, tasks[:1])
    assert owner.expire(limits.STALLED_SECONDS) == []
    assert owner.expire(limits.STALLED_SECONDS * 1.5) == [AskBack(WorkerKey(b"0"))]


def test_the_function_of_a_stalled_pipeline_counts_as_slow() -> None:
    owner = owner_with_workers(2)
    owner.submit([make(0, function=3), make(1, function=3)])
    for worker in range(2):
        owner.result(worker, [make(worker, function=3)], TINY)
    tasks = make_many(4)
    owner.submit(tasks)
    owner.expire(limits.STALLED_SECONDS)
    assert pushes(owner.give_back(0, tasks[1:2])) == {}
    assert pushes(owner.result(1, tasks[2:])) == {1: [1]}


def test_a_stall_shorter_than_the_usual_run_time_teaches_nothing() -> None:
    owner = owner_with_workers(1)
    owner.submit(make_many(2))
    for _ in range(20):
        owner.machine.finished(WorkerKey(b"elsewhere"), make(0), 10.0, 0.0)
    owner.expire(limits.STALLED_SECONDS)
    for _ in range(50):
        owner.machine.finished(WorkerKey(b"elsewhere"), make(0), TINY, 0.0)
    assert pushes(owner.result(0, make_many(2))) == {}


def test_nothing_is_sent_behind_a_worker_without_progress() -> None:
    owner = owner_with_workers(1)
    owner.submit([make(1)])
    owner.now = limits.STALLED_SECONDS
    effects = owner.submit([make(2)])
    assert pushes(effects) == {}
    assert len(requests(effects)) == 1


def test_tasks_that_the_worker_was_not_sent_are_not_taken_back() -> None:
    owner = owner_with_workers(1)
    assert owner.give_back(0, [make(5)]) == []
    assert owner.give_back(99, [make(5)]) == []
    assert owner.machine.statistics().queued == 0


# ---- losses --------------------------------------------------------------------------------


def test_after_a_loss_what_had_begun_is_told_and_the_rest_queued_again() -> None:
    owner = owner_with_workers(1)
    tasks = make_many(4)
    owner.submit(tasks)
    begun, effects = owner.lose(0, tasks[1].id)
    assert begun == [0, 1]
    assert len(requests(effects)) == 1
    assert pushes(owner.grant(1)) == {1: [2, 3]}


def test_nothing_had_begun_when_the_last_task_is_none_of_those_sent() -> None:
    owner = owner_with_workers(1)
    owner.submit(make_many(4))
    assert owner.lose(0, NO_TASK)[0] == []
    assert pushes(owner.grant(1)) == {1: [0, 1, 2, 3]}


def test_the_loss_of_an_unknown_worker_is_ignored() -> None:
    assert Owner().lose(3, NO_TASK) == ([], [])


# ---- refusals ------------------------------------------------------------------------------


def test_tasks_fail_when_no_worker_can_be_had() -> None:
    owner = Owner()
    leases = requests(owner.submit(make_many(3)))
    failed, effects = owner.machine.refused(leases[0], 0.0)
    assert numbers(failed) == [0, 1, 2]
    assert set(returns(effects)) == set(leases[1:])
    assert owner.machine.statistics().lanes == 0


def test_tasks_that_have_a_worker_wait_for_it_and_another_is_asked_for_later() -> None:
    owner = Owner()
    owner.submit(make_many(2))
    owner.grant(0)
    failed, effects = owner.machine.refused(owner.waiting.pop(), 0.0)
    assert (failed, requests(owner.perform(effects))) == ([], [])
    owner.submit([make(2)])
    assert owner.waiting == []
    due = owner.machine.next_expiry(0.0)
    assert due == limits.REFUSED_SECONDS
    assert len(requests(owner.expire(due))) == 2


def test_the_next_expiry_is_the_earlier_of_a_pause_and_of_what_workers_are_due() -> None:
    owner = Owner()
    owner.submit(make_many(2))
    owner.grant(0)
    owner.machine.refused(owner.waiting.pop(), 10.0)
    owner.result(0, [make(0)])
    owner.result(0, [make(1)])
    assert owner.machine.next_expiry(0.0) == limits.LINGER_SECONDS
    owner.expire(limits.LINGER_SECONDS)
    assert owner.machine.next_expiry(2.0) is None


def test_a_lane_without_workers_does_not_pause() -> None:
    owner = Owner()
    owner.submit(make_many(2))
    owner.grant(0)
    owner.machine.refused(owner.waiting.pop(), 0.0)
    assert len(requests(owner.lose(0, NO_TASK)[1])) == 2


def test_an_unknown_refusal_is_ignored() -> None:
    assert Owner().machine.refused(LeaseID(b"?"), 0.0) == ([], [])


# ---- cancelling tasks ----------------------------------------------------------------------


def withdrawn(effects: list[Effect]) -> list[int]:
    return numbers(effect.task for effect in effects if isinstance(effect, Withdrawn))


def interrupts(effects: list[Effect]) -> dict[int, int]:
    return {int(e.task.id): int(e.worker) for e in effects if isinstance(e, Interrupt)}


def test_a_queued_task_is_withdrawn_and_its_request_with_it() -> None:
    owner = Owner()
    tasks = make_many(1)
    leases = requests(owner.submit(tasks))
    assert owner.cancel(tasks[0]) == [ReturnLease(leases[0]), Withdrawn(tasks[0])]
    assert owner.machine.statistics().lanes == 0


def test_a_task_that_is_queued_again_is_withdrawn() -> None:
    owner = owner_with_workers(1)
    task = make(1)
    owner.submit([task])
    owner.result(0, [task])
    owner.lose(0, NO_TASK)
    owner.submit([task])
    assert withdrawn(owner.cancel(task)) == [1]


def test_a_task_that_waits_elsewhere_is_withdrawn() -> None:
    owner = owner_with_workers(1)
    for task in (make(2), make(3, key=FREE)):
        assert owner.cancel(task) == [Withdrawn(task)]


def test_the_worker_of_a_task_that_was_sent_is_told() -> None:
    owner = owner_with_workers(1)
    sent = make(1)
    owner.submit([sent])
    for _ in range(2):
        assert owner.cancel(sent) == [Interrupt(WorkerKey(b"0"), sent)]
    owner.result(0, [sent])
    assert owner.machine.statistics().cancelled == 0


def test_a_cancelled_task_that_is_given_back_does_not_run_elsewhere() -> None:
    owner = owner_with_workers(1)
    tasks = make_many(3)
    owner.submit(tasks)
    owner.cancel(tasks[1])
    assert withdrawn(owner.give_back(0, tasks[1:2])) == [1]
    assert pushes(owner.submit([make(4)])) == {0: [4]}
    assert owner.machine.statistics().queued == 0


def test_a_worker_that_gave_back_only_what_was_cancelled_is_sent_more() -> None:
    owner = owner_with_workers(1)
    tasks = make_many(2)
    owner.submit(tasks)
    owner.cancel(tasks[1])
    owner.give_back(0, tasks[1:])
    assert owner.machine.statistics().queued == 0
    assert pushes(owner.submit(make_many(600)[2:]))[0][0] == 2


def test_of_a_lost_workers_tasks_the_cancelled_ones_are_not_queued_again() -> None:
    owner = owner_with_workers(1)
    tasks = make_many(4)
    owner.submit(tasks)
    owner.cancel(tasks[0])
    owner.cancel(tasks[2])
    begun, effects = owner.lose(0, tasks[0].id)
    assert (begun, withdrawn(effects)) == ([0], [2])
    assert pushes(owner.grant(1)) == {1: [1, 3]}
    assert owner.machine.statistics().cancelled == 0


# ---- bounds --------------------------------------------------------------------------------


def test_where_a_task_stands_is_known_from_its_submission_to_its_end() -> None:
    owner = Owner()
    first, second, third = tasks = make_many(3)
    assert owner.machine.standing(first) is None
    owner.submit(tasks)
    leases = tuple(owner.waiting)
    assert owner.machine.standing(third) == Standing(2, None, leases, 0)
    owner.grant(1)
    assert owner.machine.standing(first) == Standing(0, WorkerKey(b"1"))
    assert owner.machine.standing(third) == Standing(1, None, leases[1:], 1)
    owner.result(1, [first])  # now it is known to be quick
    assert owner.machine.standing(first) is None
    assert owner.machine.standing(second) == Standing(0, WorkerKey(b"1"))
    assert owner.machine.standing(third) == Standing(1, WorkerKey(b"1"))


def test_lanes_and_run_times_do_not_pile_up() -> None:
    owner = Owner()
    for number in range(2 * limits.FUNCTIONS_KNOWN):
        key = LaneKey(LANE.demand, b"%d" % number, 0)
        owner.submit([make(number, number, key)])
        owner.grant(number)
        owner.result(number, [make(number, number, key)])
        owner.now += limits.LINGER_SECONDS
        owner.machine.expire(owner.now)
    expected = SubmitterStatistics(
        lanes=0,
        queued=0,
        sent=0,
        requested=0,
        leased=0,
        cancelled=0,
        functions=limits.FUNCTIONS_KNOWN,
    )
    assert owner.machine.statistics() == expected


# ---- the model -----------------------------------------------------------------------------

SECONDS = {1: 2e-5, 2: 1e-3, 3: 0.4}  # by function
KINDS = ("plain", "plain", "plain", "plain", "sleeper", "blocker", "flaky", "last", "unsayable")
CPUS = 3
FEW = LaneKey(LANE.demand, b"", 0, slots=4)


@dataclass(eq=False)
class SimTask:
    """What the world knows of a task."""

    pending: Pending
    kind: str

    @property
    def takes_long(self) -> bool:
        return self.kind in ("sleeper", "blocker")

    @property
    def overlaps(self) -> bool:
        return self.pending.key.slots > 0


@dataclass(eq=False)
class SimWorker:
    """A worker process: begins its queue in order; messages wait in `inbox` and `outbox`.

    None in the inbox asks it to give back.
    """

    key: WorkerKey
    inbox: deque[list[tuple[SimTask, int]] | Interrupt | None] = field(default_factory=deque)
    queue: deque[tuple[SimTask, int]] = field(default_factory=deque)
    outbox: deque[tuple[str, SimTask, int]] = field(default_factory=deque)
    running: list[tuple[SimTask, int]] = field(default_factory=list)
    board: tuple[TaskKey, int] = (NO_TASK, 0)
    is_blocked: bool = False
    is_leaving: bool = False
    is_spent: bool = False  # and the raylet knows

    @property
    def may_start(self) -> bool:
        return bool(self.queue) and (not self.running or self.queue[0][0].overlaps)

    @property
    def has_overlapping(self) -> bool:
        return bool(self.running) and self.running[0][0].overlaps


class World(RuleBasedStateMachine):
    """An owner, a raylet and workers; every message between them may take any time.

    After a task of the kind `last` a worker starts nothing more, and ends when its lease is over; the
    raylet may lend it again before it knows.

    A sleeper runs until it is woken, and so does a blocker, which lends its CPU, and gives back what
    is behind it unless that overlaps. At the end they are woken only when nobody else can do anything.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.machine = Submitter(b"", CPUS * UNIT)
        self.tasks: dict[TaskKey, SimTask] = {}
        self.unfinished: dict[TaskKey, SimTask] = {}
        self.started: set[tuple[TaskKey, int]] = set()
        self.cancelled: set[TaskKey] = set()
        self.asks: deque[RequestLease | ReturnLease] = deque()  # from the owner to the raylet
        self.news: deque[Callable[[], None]] = deque()  # from the raylet to the owner
        self.waiting: dict[LeaseID, LaneKey] = {}
        self.lent: dict[LeaseID, WorkerKey] = {}
        self.demands: dict[LeaseID, LaneKey] = {}
        self.workers: dict[WorkerKey, SimWorker] = {}
        self.others_wait = self.is_told = False
        self.worker_count = 0
        self.nothing = SimTask(make(-1), ""), 0

    # ---- what may happen -------------------------------------------------------------------

    @rule(
        kinds=st.lists(
            st.tuples(st.sampled_from(KINDS), st.integers(1, 3)), min_size=1, max_size=8
        ),
        lane=st.sampled_from([LANE, LANE, LaneKey(LANE.demand, b"", 1), FREE, FEW, FEW]),
        copies=st.sampled_from([1, 1, 30]),
    )
    def submit(self, kinds: list[tuple[str, int]], lane: LaneKey, copies: int) -> None:
        tasks: list[Pending] = []
        for kind, function in kinds * copies:
            pending = make(len(self.tasks), function, lane)
            self.tasks[pending.id] = SimTask(pending, kind if len(tasks) < len(kinds) else "plain")
            self.unfinished[pending.id] = self.tasks[pending.id]
            tasks.append(pending)
        self.perform(self.machine.submit(tasks, self.now))

    @rule(choices=st.lists(st.integers(0, 1000), min_size=1, max_size=20))
    def go_on(self, choices: list[int]) -> None:
        for choice in choices:
            if possible := self.possible():
                possible[choice % len(possible)]()

    @rule()
    def go_on_until_all_wait(self) -> None:
        self.run_on()

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.03, 0.5, 1.1]))
    def time_passes(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.machine.next_expiry(self.now)) is not None and due <= end:
            self.expire(due)
        self.now = end

    @precondition(lambda self: self.workers)
    @rule(choice=st.integers(0, 1000))
    def a_worker_crashes(self, choice: int) -> None:
        worker = list(self.workers.values())[choice % len(self.workers)]
        del self.workers[worker.key]
        for lease in [lease for lease, key in self.lent.items() if key == worker.key]:
            del self.lent[lease]
            self.news.append(partial(self.lost, worker))

    @rule(choice=st.integers(0, 1000))
    def a_sleeper_wakes(self, choice: int) -> None:
        if sleeping := self.sleeping():
            self.wake(*sleeping[choice % len(sleeping)])

    @rule()
    def a_blocker_computes_on(self) -> None:
        for worker in self.workers.values():
            if worker.is_blocked:
                worker.is_blocked = False
                return

    @precondition(lambda self: self.waiting)
    @rule()
    def a_start_fails(self) -> None:
        lease = next(iter(self.waiting))
        del self.waiting[lease]
        self.news.append(partial(self.refused, lease))

    @rule(is_wanted=st.booleans())
    def others_want_cpus(self, is_wanted: bool) -> None:
        self.others_wait = is_wanted

    @precondition(lambda self: self.unfinished)
    @rule(choice=st.integers(0, 1000))
    def a_task_is_cancelled(self, choice: int) -> None:
        task = list(self.unfinished.values())[choice % len(self.unfinished)]
        self.cancelled.add(task.pending.id)
        self.perform(self.machine.cancel(task.pending))

    @rule()
    def unknown_news_comes(self) -> None:
        worker, lease = WorkerKey(b"unknown"), LeaseID(b"unknown")
        assert self.machine.granted(lease, worker, self.now) == [ReturnLease(lease)]
        assert self.machine.advance([worker], self.now) == []
        assert self.machine.leaving(worker, self.now) == []
        assert self.machine.lost(worker, NO_TASK, self.now) == ([], [])

    @invariant()
    def the_books_agree(self) -> None:
        self.machine.check()
        counts = self.machine.statistics()
        assert counts.queued + counts.sent == len(self.unfinished)

    def teardown(self) -> None:
        """Run on until all is done; long tasks end only when nothing else can happen."""
        self.others_wait = False
        while True:
            self.run_on()
            if (due := self.machine.next_expiry(self.now)) is not None:
                self.expire(due)
            elif sleeping := self.sleeping():
                waiting = len(self.unfinished) - len(sleeping)
                assert not waiting or self.free_cpus() <= 0, "tasks starve"
                self.wake(*sleeping[0])
            else:
                break
        assert not self.unfinished, "tasks were lost"
        counts = self.machine.statistics()
        assert (counts.lanes, counts.leased, counts.requested, counts.cancelled) == (0, 0, 0, 0)
        assert not self.lent
        assert not self.waiting

    # ---- the world -------------------------------------------------------------------------

    def run_on(self) -> None:
        for step in range(20_000):
            possible = self.possible()
            if not possible:
                return
            possible[step % len(possible)]()
        raise AssertionError("this goes on without end")

    def possible(self) -> list[Callable[[], None]]:
        """List what can happen next."""
        acts: list[Callable[[], None]] = []
        if self.asks:
            acts.append(self.raylet_hears)
        if self.news:
            acts.append(lambda: self.news.popleft()())
        if self.grantable() is not None:
            acts.append(self.grant)
        if self.is_told != bool(self.waiting or self.others_wait):
            acts.append(self.tell_wanted)
        for worker in self.workers.values():
            if worker.inbox:
                acts.append(partial(self.worker_hears, worker))
            if worker.outbox:
                acts.append(partial(self.owner_hears, worker))
            if worker.is_leaving and not worker.is_spent:
                acts.append(partial(self.raylet_hears_of_leaving, worker))
            if worker.may_start:
                acts.append(partial(self.start, worker))
            acts += [
                partial(self.finish, worker, each)
                for each in worker.running
                if not each[0].takes_long
            ]
        return acts

    def perform(self, effects: list[Effect]) -> None:
        unsent: list[tuple[WorkerKey, Pending]] = []
        for effect in effects:
            match effect:
                case RequestLease() | ReturnLease():
                    self.asks.append(effect)
                case Push(key, tasks):
                    assert tasks, "an empty push"
                    assert not self.cancelled.intersection(task.id for task in tasks)
                    sent = [(self.tasks[task.id], task.attempt) for task in tasks]
                    if key in self.workers:
                        said = [each for each in sent if each[0].kind != "unsayable"]
                        self.workers[key].inbox.append(said)
                        unsent += [(key, t) for t in tasks if self.tasks[t.id].kind == "unsayable"]
                case AskBack(key):
                    if key in self.workers:
                        self.workers[key].inbox.append(None)
                case Interrupt(key):
                    if key in self.workers:
                        self.workers[key].inbox.append(effect)
                case Withdrawn(task):
                    assert task.worker is None
                    assert (task.id, task.attempt) not in self.started, "it runs, or has run"
                    del self.unfinished[task.id]
        after: list[Effect] = []
        for key, task in unsent:
            del self.unfinished[task.id]
            after += self.machine.unsent(key, task, self.now)
            assert self.machine.unsent(key, task, self.now) == []
        if after:
            self.perform(after)

    def expire(self, due: float) -> None:
        self.now = max(self.now, due)
        self.perform(self.machine.expire(self.now))
        again = self.machine.next_expiry(self.now)
        assert again is None or again > self.now, "an alarm in vain"

    # ---- the raylet

    def raylet_hears(self) -> None:
        ask = self.asks.popleft()
        if isinstance(ask, RequestLease):
            assert ask.lease not in self.demands, "a lease id is used twice"
            self.demands[ask.lease] = self.waiting[ask.lease] = ask.key
        elif ask.lease in self.lent:
            worker = self.workers[self.lent.pop(ask.lease)]
            assert not worker.running, "a lease in use is returned"
            assert not worker.queue
            assert worker.is_leaving or not worker.outbox
            if worker.is_spent:
                del self.workers[worker.key]
        else:
            self.waiting.pop(ask.lease, None)

    def free_cpus(self) -> int:
        lent = [key for lease, key in self.lent.items() if self.demands[lease] is not FREE]
        return CPUS - sum(not self.workers[key].is_blocked for key in lent)

    def grantable(self) -> LeaseID | None:
        free = self.free_cpus() > 0
        return next((lease for lease, key in self.waiting.items() if free or key is FREE), None)

    def grant(self) -> None:
        lease = self.grantable()
        assert lease is not None
        del self.waiting[lease]
        lent = self.lent.values()
        idle = [key for key, w in self.workers.items() if key not in lent and not w.is_spent]
        if idle:
            key = idle[0]
        else:
            self.worker_count += 1
            key = WorkerKey(b"w%d" % self.worker_count)
            self.workers[key] = SimWorker(key)
        self.lent[lease] = key
        self.news.append(lambda: self.perform(self.machine.granted(lease, key, self.now)))

    def tell_wanted(self) -> None:
        self.is_told = is_wanted = not self.is_told
        self.news.append(lambda: self.perform(self.machine.wanted(is_wanted)))

    def raylet_hears_of_leaving(self, worker: SimWorker) -> None:
        worker.is_spent = True
        if worker.key not in self.lent.values():
            del self.workers[worker.key]

    # ---- workers

    def worker_hears(self, worker: SimWorker) -> None:
        message = worker.inbox.popleft()
        if isinstance(message, Interrupt):
            self.interrupt(worker, (self.tasks[message.task.id], message.task.attempt))
            return
        if message is not None:
            worker.queue.extend(message)
            keys = [*worker.queue, *worker.running]
            assert len(keys) <= FEW.slots or not keys[0][0].overlaps, "more than slots"
        is_blocked = worker.is_blocked and not worker.has_overlapping
        if message is None or is_blocked or worker.is_leaving:
            self.hand_back(worker)
        if worker.is_leaving:
            worker.outbox.append(("leaving", *self.nothing))

    def interrupt(self, worker: SimWorker, job: tuple[SimTask, int]) -> None:
        if job in worker.queue:
            worker.queue.remove(job)
            worker.outbox.append(("back", *job))
        elif job in worker.running:
            self.finish(worker, job)

    def hand_back(self, worker: SimWorker) -> None:
        worker.outbox.extend(("back", task, attempt) for task, attempt in worker.queue)
        worker.queue.clear()

    def start(self, worker: SimWorker) -> None:
        task, attempt = worker.queue.popleft()
        worker.running.append((task, attempt))
        assert (task.pending.id, attempt) not in self.started, "an attempt began twice"
        assert task.pending.id in self.unfinished, "a task that has ended runs again"
        self.started.add((task.pending.id, attempt))
        worker.board = (task.pending.id, attempt)
        if task.kind == "blocker":
            worker.is_blocked = True
            if not task.overlaps:
                self.hand_back(worker)

    def finish(self, worker: SimWorker, ended: tuple[SimTask, int]) -> None:
        worker.running.remove(ended)
        worker.outbox.append(("result", *ended))
        worker.is_blocked = any(task.kind == "blocker" for task, _ in worker.running)
        if ended[0].kind == "last":
            worker.is_leaving = True
            self.hand_back(worker)
            worker.outbox.append(("leaving", *self.nothing))

    def sleeping(self) -> list[tuple[SimWorker, tuple[SimTask, int]]]:
        workers = self.workers.values()
        return [(w, each) for w in workers for each in w.running if each[0].takes_long]

    def wake(self, worker: SimWorker, ended: tuple[SimTask, int]) -> None:
        self.finish(worker, ended)

    # ---- the owner

    def owner_hears(self, worker: SimWorker) -> None:
        if worker.outbox[0][0] == "leaving":
            worker.outbox.popleft()
            self.perform(self.machine.leaving(worker.key, self.now))
            return
        back: list[Pending] = []
        while worker.outbox and worker.outbox[0][0] == "back":
            _, task, attempt = worker.outbox.popleft()
            assert task.pending.attempt == attempt
            assert task.pending.worker == worker.key
            back.append(task.pending)
        if back:
            self.perform(self.machine.given_back(worker.key, back, self.now))
            return
        again: list[Pending] = []
        while worker.outbox and worker.outbox[0][0] == "result":
            _, task, attempt = worker.outbox.popleft()
            pending = task.pending
            assert pending.attempt == attempt
            self.machine.finished(worker.key, pending, SECONDS[pending.function], self.now)
            if task.kind == "flaky" and attempt == 0 and pending.id not in self.cancelled:
                pending.attempt += 1
                again.append(pending)
            else:
                del self.unfinished[pending.id]
        effects = self.machine.submit(again, self.now)
        self.perform(effects + self.machine.advance([worker.key], self.now))

    def lost(self, worker: SimWorker) -> None:
        last, attempt = worker.board
        begun, effects = self.machine.lost(worker.key, last, self.now)
        self.perform(effects)
        for task in begun:
            has_begun = (task.id, task.attempt) in self.started
            # The board cannot tell two attempts on one worker apart: then one retry is wasted.
            assert has_begun or self.tasks[last].pending.attempt != attempt
            task.attempt += 1
            if task.id in self.cancelled:
                del self.unfinished[task.id]
        assert self.machine.lost(worker.key, last, self.now) == ([], [])
        again = [task for task in begun if task.id not in self.cancelled]
        self.perform(self.machine.submit(again, self.now))

    def refused(self, lease: LeaseID) -> None:
        failed, effects = self.machine.refused(lease, self.now)
        for task in failed:
            del self.unfinished[task.id]
        self.perform(effects)


TestWorld = World.TestCase
