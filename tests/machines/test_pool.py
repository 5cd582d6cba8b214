"""Pool: who gets which worker, when processes start and end, and that no lease waits for ever."""

from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from raylite._machines.pool import (
    FAILURES,
    Crowded,
    Effect,
    Fail,
    Lend,
    Lost,
    Pool,
    PoolStatistics,
    Retire,
    Start,
)
from raylite._types.keys import LeaseID, StartToken, WorkerKey
from raylite._types.resources import UNIT


def lease(number: int) -> LeaseID:
    return LeaseID(b"lease-%d" % number)


def worker(number: int) -> WorkerKey:
    return WorkerKey(b"worker-%d" % number)


def tokens(effects: list[Effect]) -> list[StartToken]:
    return [effect.token for effect in effects if isinstance(effect, Start)]


def staffed(pool: Pool, count: int) -> Pool:
    """Prestart, and register worker 1 to `count` in turn."""
    pending = tokens(pool.start(0.0))
    for number in range(1, count + 1):
        pending += tokens(pool.registered(pending.pop(0), worker(number), 0.0))

    return pool


def busy(pool: Pool, number: int, key: str = "a", now: float = 0.0) -> list[Effect]:
    """Have lease `number` served by a new worker of the same number."""
    [token] = tokens(pool.lend(lease(number), key, now))
    return pool.registered(token, worker(number), now)


def test_workers_are_prestarted_a_few_at_a_time() -> None:
    pool = Pool(soft_limit=4, prestart=3, most_starting=2)
    assert pool.start(0.0) == [Start(StartToken(1), None), Start(StartToken(2), None)]
    assert pool.registered(StartToken(1), worker(1), 0.0) == [Start(StartToken(3), None)]


def test_an_idle_fresh_worker_serves_any_key() -> None:
    pool = staffed(Pool(soft_limit=1, prestart=1), 1)
    assert pool.lend(lease(1), "a", 0.0) == [Lend(worker(1), lease(1))]
    assert pool.worker_of(lease(1)) == worker(1)
    assert pool.keys() == ["a"]


def test_a_lease_without_an_idle_worker_waits_for_a_new_one() -> None:
    pool = Pool(soft_limit=2)
    assert pool.lend(lease(1), "a", 0.0) == [Start(StartToken(1), "a")]
    assert pool.registered(StartToken(1), worker(1), 0.0) == [Lend(worker(1), lease(1))]


def test_a_prestarted_worker_on_its_way_is_waited_for() -> None:
    pool = Pool(soft_limit=2, prestart=1)
    [token] = tokens(pool.start(0.0))
    assert pool.lend(lease(1), "a", 0.0) == []
    assert pool.registered(token, worker(1), 0.0) == [Lend(worker(1), lease(1))]


def test_the_most_recently_used_worker_is_lent_first() -> None:
    pool = Pool(soft_limit=2)
    busy(pool, 1)
    busy(pool, 2)
    pool.returned(worker(2), lease(2), 1.0)
    pool.returned(worker(1), lease(1), 2.0)
    assert pool.lend(lease(3), "a", 3.0) == [Lend(worker(1), lease(3))]


def test_a_returned_worker_serves_the_next_lease_of_its_key() -> None:
    pool = Pool(soft_limit=2)
    busy(pool, 1)
    [token] = tokens(pool.lend(lease(2), "a", 0.0))
    assert pool.returned(worker(1), lease(1), 0.0) == [Lend(worker(1), lease(2))]
    assert pool.registered(token, worker(2), 0.0) == []
    assert pool.lend(lease(3), "b", 0.0) == [Lend(worker(2), lease(3))]


def test_a_worker_is_never_reused_for_another_key() -> None:
    pool = Pool(soft_limit=2)
    busy(pool, 1)
    pool.returned(worker(1), lease(1), 0.0)
    assert pool.lend(lease(2), "b", 0.0) == [Start(StartToken(2), "b")]


def test_an_idle_worker_of_another_key_makes_room() -> None:
    pool = Pool(soft_limit=2, spare=0)
    busy(pool, 1)
    busy(pool, 2)
    pool.returned(worker(2), lease(2), 1.0)
    pool.returned(worker(1), lease(1), 2.0)
    assert pool.lend(lease(3), "b", 2.0) == [Retire(worker(2)), Start(StartToken(3), "b")]
    assert pool.died(worker(2), 2.1) == []


def test_a_spent_worker_is_retired() -> None:
    pool = Pool(soft_limit=2)
    busy(pool, 1)
    assert pool.spent(worker(1), 0.0) == []
    assert pool.returned(worker(1), lease(1), 0.0) == [Retire(worker(1))]
    assert pool.spent(worker(1), 0.0) == pool.spent(worker(9), 0.0) == []
    assert pool.lend(lease(2), "a", 0.0) == [Start(StartToken(2), "a")]


def test_a_worker_that_is_spent_after_its_lease_is_retired_too() -> None:
    pool = Pool(soft_limit=2)
    busy(pool, 1)
    assert pool.returned(worker(1), lease(1), 0.0) == []
    assert pool.spent(worker(1), 0.0) == [Retire(worker(1))]
    busy(pool, 2)
    pool.returned(worker(2), lease(2), 0.0)
    pool.lend(lease(3), "a", 0.0)  # it was lent again before anybody knew
    assert pool.spent(worker(2), 0.0) == []
    assert pool.returned(worker(2), lease(3), 0.0) == [Retire(worker(2))]
    assert pool.spent(worker(2), 0.0) == []
    pool.check()


def test_a_withdrawn_lease_is_not_served() -> None:
    pool = Pool(soft_limit=2)
    pool.lend(lease(1), "a", 0.0)
    pool.withdraw(lease(1), 0.0)
    assert pool.registered(StartToken(1), worker(1), 0.0) == []


def test_withdrawing_a_served_lease_brings_its_worker_back() -> None:
    pool = Pool(soft_limit=2)
    busy(pool, 1)
    pool.withdraw(lease(1), 0.0)
    assert pool.lend(lease(2), "a", 0.0) == [Lend(worker(1), lease(2))]


def test_a_lease_is_lost_with_its_worker() -> None:
    pool = staffed(Pool(soft_limit=1, prestart=1), 1)
    pool.lend(lease(1), "a", 0.0)
    assert pool.died(worker(1), 0.0) == [Lost(lease(1), worker(1)), Start(StartToken(2), None)]
    assert pool.died(worker(1), 0.0) == []


def test_replacements_of_workers_that_die_idle_are_paced() -> None:
    pool = staffed(Pool(soft_limit=1, prestart=1, first_delay=0.5, longest_delay=1.0), 1)
    assert pool.died(worker(1), 10.0) == []
    assert pool.next_wakeup(10.0) == 10.5
    assert pool.expire(10.4) == []
    [token] = tokens(pool.expire(10.5))
    assert pool.start_failed(token, "no memory", 11.0) == []
    assert pool.next_wakeup(11.0) == 12.0


def test_leases_fail_after_three_starts_in_a_row() -> None:
    pool = Pool(soft_limit=4)
    effects = pool.lend(lease(1), "a", 0.0)
    for attempt in range(1, FAILURES):
        effects = pool.start_failed(StartToken(attempt), "bad", 0.0)
        assert effects == [Start(StartToken(attempt + 1), "a")]

    assert pool.start_failed(StartToken(FAILURES), "bad", 0.0) == [Fail(lease(1), "bad")]
    assert pool.lend(lease(2), "a", 0.0) == [Start(StartToken(FAILURES + 1), "a")]


def test_a_start_that_succeeds_begins_the_count_of_failures_anew() -> None:
    pool = Pool(soft_limit=4)
    for number in (1, 2):
        pool.lend(lease(number), "a", 0.0)

    pool.start_failed(StartToken(1), "bad", 0.0)
    pool.start_failed(StartToken(3), "bad", 0.0)
    pool.registered(StartToken(2), worker(1), 0.0)
    assert pool.start_failed(StartToken(4), "bad", 0.0) == [Start(StartToken(5), "a")]


def test_starts_that_are_killed_are_held_against_nobody_but_keep_a_growing_distance() -> None:
    pool = Pool(soft_limit=4, first_delay=0.5, longest_delay=1.0)
    pool.lend(lease(1), "a", 0.0)
    now = 0.0
    for attempt, delay in enumerate([0.5, 1.0, 1.0, 1.0], 1):
        assert pool.start_failed(StartToken(attempt), "killed", now, was_killed=True) == []
        assert pool.next_wakeup(now) == now + delay
        now += delay
        assert pool.expire(now) == [Start(StartToken(attempt + 1), "a")]

    assert pool.registered(StartToken(5), worker(1), now) == [Lend(worker(1), lease(1))]
    pool.lend(lease(2), "a", now)
    assert pool.start_failed(StartToken(6), "killed", now, was_killed=True) == []
    assert pool.next_wakeup(now) == now + 0.5


def test_starts_that_fail_together_count_once() -> None:
    pool = Pool(soft_limit=4)
    for number in range(4):
        pool.lend(lease(number), "a", 0.0)

    effects = [effect for n in range(1, 5) for effect in pool.start_failed(StartToken(n), "x", 0.0)]
    assert tokens(effects) == [5, 6, 7, 8]
    assert len(effects) == 4


def test_a_failing_environment_does_not_fail_the_leases_of_others() -> None:
    pool = Pool(soft_limit=4)
    pool.lend(lease(1), "bad", 0.0)
    pool.lend(lease(2), "good", 0.0)
    failed = [pool.start_failed(StartToken(n), "x", 0.0) for n in (1, 3, 4)]
    assert failed[-1] == [Fail(lease(1), "x")]
    assert pool.registered(StartToken(2), worker(1), 0.0) == [Lend(worker(1), lease(2))]


def test_failing_prestarts_count_against_those_who_wait_for_them() -> None:
    pool = Pool(soft_limit=1, prestart=1)
    pool.start(0.0)
    pool.lend(lease(1), "a", 0.0)
    assert pool.start_failed(StartToken(1), "x", 0.0) == [Start(StartToken(2), "a")]
    pool.start_failed(StartToken(2), "x", 0.0)
    assert Fail(lease(1), "x") in pool.start_failed(StartToken(3), "x", 0.0)


def test_a_blocked_worker_takes_no_room() -> None:
    pool = Pool(soft_limit=1, spare=0)
    busy(pool, 1)
    assert pool.lend(lease(2), "a", 0.0) == []
    assert tokens(pool.blocked(worker(1), 0.0)) == [StartToken(2)]


def test_a_worker_above_the_limit_is_started_late_but_is_started() -> None:
    pool = Pool(soft_limit=1, spare=0, first_delay=0.25)
    busy(pool, 1)
    assert pool.lend(lease(2), "a", 5.0) == []
    assert pool.next_wakeup(5.0) == 5.25
    assert tokens(pool.expire(5.25)) == [StartToken(2)]


def test_deep_recursion_is_replaced_ever_more_slowly() -> None:
    pool = Pool(soft_limit=1, blocked_limit=2, first_delay=0.25, longest_delay=1.0)
    now = waited = 0.0
    waits = []
    for number in range(1, 9):
        pending = tokens(pool.lend(lease(number), "a", now))
        while not pending:
            wakeup = pool.next_wakeup(now)
            assert wakeup is not None
            waited, now = waited + wakeup - now, wakeup
            pending = tokens(pool.expire(now))

        pool.registered(pending[0], worker(number), now)
        pool.blocked(worker(number), now)
        waits.append(waited)
        waited = 0.0

    assert waits == [0, 0, 0.25, 0.5, 1.0, 1.0, 1.0, 1.0]


def recurse(pool: Pool, now: float, numbers: range) -> list[tuple[int, Effect]]:
    """Let task after task start another and wait for it; return what was told, with whose start."""
    told = []
    for number in numbers:
        effects = pool.lend(lease(number), "a", now)
        while not tokens(effects) and pool.worker_of(lease(number)) is None:
            told += [(number, each) for each in effects]
            held_back = pool.held_back(lease(number), now)
            assert held_back is not None
            assert held_back > 0
            now += held_back
            effects = pool.expire(now)

        assert pool.held_back(lease(number), now) is None
        for token in tokens(effects):
            pool.registered(token, worker(number), now)
        serving = pool.worker_of(lease(number))
        assert serving is not None
        pool.blocked(serving, now)

    return told


def test_that_starts_wait_for_long_is_told_once_until_few_are_blocked() -> None:
    pool = Pool(soft_limit=1, blocked_limit=2, first_delay=0.25, longest_delay=1.0)
    assert recurse(pool, 0.0, range(1, 9)) == [(4, Crowded(lease(4), 2))]
    for number in range(1, 9):
        pool.unblocked(worker(number))
        pool.returned(worker(number), lease(number), 50.0)

    pool.expire(60.0)  # the idle ones go
    assert recurse(pool, 60.0, range(11, 19)) == [(14, Crowded(lease(14), 2))]


def test_pacing_ends_with_the_crowd() -> None:
    pool = Pool(soft_limit=1, blocked_limit=1, first_delay=0.25)
    busy(pool, 1)
    pool.blocked(worker(1), 0.0)
    pool.lend(lease(2), "a", 0.0)
    pool.unblocked(worker(1))
    assert pool.returned(worker(1), lease(1), 0.1) == [Lend(worker(1), lease(2))]
    assert pool.next_wakeup(0.1) is None
    pool.blocked(worker(1), 50.0)
    assert pool.lend(lease(3), "a", 50.0) == []
    assert pool.next_wakeup(50.0) == 50.25


def test_leases_without_cpu_take_no_room_and_never_wait_for_it() -> None:
    pool = Pool(soft_limit=1, spare=0, blocked_limit=0, most_starting=100)
    assert len(tokens(pool.lend(lease(100), "a", 0.0))) == 0
    for number in range(50):
        assert len(tokens(pool.lend(lease(number), "a", 0.0, cpu=0))) == 1


def test_a_lease_without_cpu_does_not_queue_behind_paced_ones() -> None:
    pool = Pool(soft_limit=1, spare=0)
    busy(pool, 1)
    assert pool.lend(lease(2), "a", 0.0) == []
    [token] = tokens(pool.lend(lease(3), "a", 0.0, cpu=0))
    assert pool.registered(token, worker(3), 0.0) == [Lend(worker(3), lease(3))]


def test_small_leases_share_the_room_of_one() -> None:
    pool = Pool(soft_limit=1, spare=0, most_starting=100)
    started = [tokens(pool.lend(lease(n), "a", 0.0, cpu=UNIT // 10)) for n in range(11)]
    assert [len(some) for some in started] == [1] * 10 + [0]


def test_a_blocked_lease_without_cpu_calls_for_no_replacement() -> None:
    pool = Pool(soft_limit=1, blocked_limit=1)
    [token] = tokens(pool.lend(lease(1), "a", 0.0, cpu=0))
    pool.registered(token, worker(1), 0.0)
    pool.blocked(worker(1), 0.0)
    assert len(tokens(pool.lend(lease(2), "a", 0.0))) == 1
    pool.unblocked(worker(1))
    pool.check()


def test_idle_workers_above_the_soft_limit_are_retired_after_the_grace() -> None:
    pool = Pool(soft_limit=1, idle_grace=1.0)
    for number in (1, 2):
        busy(pool, number)

    pool.returned(worker(1), lease(1), 10.0)
    pool.returned(worker(2), lease(2), 10.5)
    assert pool.next_wakeup(10.5) == 11.0
    assert pool.expire(10.9) == []
    assert pool.expire(11.0) == [Retire(worker(1))]
    assert pool.next_wakeup(11.0) is None
    assert pool.expire(100.0) == []


def test_prestarted_workers_are_kept_though_above_the_soft_limit() -> None:
    pool = staffed(Pool(soft_limit=1, prestart=2), 2)
    assert pool.expire(100.0) == []
    assert pool.next_wakeup(100.0) is None


def test_a_retired_key_keeps_no_worker() -> None:
    pool = Pool(soft_limit=4)
    for number in (1, 2):
        busy(pool, number)

    pool.returned(worker(1), lease(1), 0.0)
    assert pool.retire_key("a", 0.0) == [Retire(worker(1))]
    assert pool.returned(worker(2), lease(2), 0.0) == [Retire(worker(2))]


def test_repeated_late_and_unknown_messages_change_nothing() -> None:
    pool = staffed(Pool(soft_limit=2, prestart=1), 1)
    pool.lend(lease(1), "a", 0.0)
    assert pool.lend(lease(1), "a", 0.0) == [Lend(worker(1), lease(1))]
    pool.lend(lease(2), "a", 0.0)
    assert pool.lend(lease(2), "a", 0.0) == []
    assert pool.registered(StartToken(2), worker(1), 0.0) == []
    assert pool.returned(worker(1), lease(9), 0.0) == []
    assert pool.returned(worker(9), lease(1), 0.0) == []
    assert pool.start_failed(StartToken(99), "?", 0.0) == []
    assert pool.withdraw(lease(9), 0.0) == pool.died(worker(9), 0.0) == []
    assert pool.blocked(worker(9), 0.0) == pool.unblocked(worker(1)) == []
    assert pool.worker_of(lease(2)) is None


def test_a_worker_whose_start_was_given_up_is_sent_away() -> None:
    pool = Pool(soft_limit=2)
    [token] = tokens(pool.lend(lease(1), "a", 0.0))
    pool.start_failed(token, "too slow", 0.0)
    assert pool.registered(token, worker(1), 0.0) == [Retire(worker(1))]


def test_statistics_count_every_process() -> None:
    pool = Pool(soft_limit=2)
    for number in range(1, 5):
        busy(pool, number, now=float(number)) if number < 3 else None

    pool.blocked(worker(1), 0.0)
    pool.lend(lease(5), "a", 0.0)
    expected = PoolStatistics(
        idle=0, lent=1, blocked=1, retiring=0, starting=1, waiting=1, started=3
    )
    assert pool.statistics() == expected


@dataclass
class Lent:
    lease: LeaseID
    key: str


class PoolModel(RuleBasedStateMachine):
    """A raylet that lends, blocks, loses and ends workers in any order, and checks each effect."""

    @initialize(
        soft=st.integers(1, 3),
        prestart=st.integers(0, 3),
        spare=st.integers(0, 1),
        starting=st.integers(1, 3),
        limit=st.integers(0, 2),
    )
    def build(self, soft: int, prestart: int, spare: int, starting: int, limit: int) -> None:
        self.pool = Pool(
            soft_limit=soft,
            prestart=prestart,
            spare=spare,
            most_starting=starting,
            blocked_limit=limit,
            first_delay=0.1,
        )
        self.most_starting = starting
        self.now = 0.0
        self.numbers = 0
        self.pending: list[StartToken] = []
        self.alive: dict[WorkerKey, Lent | None] = {}
        self.keys: dict[WorkerKey, str] = {}
        self.retired: set[WorkerKey] = set()
        self.ended: set[WorkerKey] = set()
        self.waiting: dict[LeaseID, str] = {}
        self.perform(self.pool.start(self.now))

    @rule(key=st.sampled_from("ab"), cpu=st.sampled_from([0, UNIT // 2, UNIT, 3 * UNIT]))
    def lend(self, key: str, cpu: int) -> None:
        self.numbers += 1
        self.waiting[lease(self.numbers)] = key
        self.perform(self.pool.lend(lease(self.numbers), key, self.now, cpu=cpu))

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def register(self, data: st.DataObject) -> None:
        self.begin(data.draw(st.sampled_from(self.pending)))

    @precondition(lambda self: self.pending)
    @rule()
    def register_all(self) -> None:
        for token in list(self.pending):
            self.begin(token)

    def begin(self, token: StartToken) -> None:
        self.pending.remove(token)
        self.numbers += 1
        self.alive[worker(self.numbers)] = None
        self.perform(self.pool.registered(token, worker(self.numbers), self.now))

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), was_killed=st.booleans())
    def fail_to_start(self, data: st.DataObject, was_killed: bool) -> None:
        token = data.draw(st.sampled_from(self.pending))
        self.pending.remove(token)
        effects = self.pool.start_failed(token, "bad", self.now, was_killed=was_killed)
        assert not was_killed or not any(isinstance(effect, Fail) for effect in effects)
        self.perform(effects)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        dead = data.draw(st.sampled_from(sorted(self.alive)))
        lent = self.alive.pop(dead)
        effects = self.pool.died(dead, self.now)
        lost = [effect for effect in effects if isinstance(effect, Lost)]
        assert lost == ([Lost(lent.lease, dead)] if lent else [])
        self.perform([effect for effect in effects if not isinstance(effect, Lost)])

    @precondition(lambda self: any(self.alive.values()))
    @rule(data=st.data(), spent=st.sampled_from([False, False, False, True]))
    def give_back(self, data: st.DataObject, spent: bool) -> None:
        given = data.draw(st.sampled_from(sorted(w for w, lent in self.alive.items() if lent)))
        lent = self.alive[given]
        assert lent is not None
        self.alive[given] = None
        if spent:
            self.perform(self.pool.spent(given, self.now))
        effects = self.pool.returned(given, lent.lease, self.now)
        assert not spent or effects[0] == Retire(given)
        self.perform(effects)
        self.perform(self.pool.returned(given, lent.lease, self.now))  # said twice

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[gone]
        self.perform(self.pool.withdraw(gone, self.now))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), block=st.booleans())
    def block(self, data: st.DataObject, block: bool) -> None:
        some = data.draw(st.sampled_from(sorted(self.alive)))
        self.perform(self.pool.blocked(some, self.now) if block else self.pool.unblocked(some))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def spend(self, data: st.DataObject) -> None:
        some = data.draw(st.sampled_from(sorted(self.alive)))
        self.perform(self.pool.spent(some, self.now))
        if self.alive[some] is None:
            assert some in self.retired
        self.ended.add(some)

    @rule()
    def end_key(self, key: str = "a") -> None:
        self.perform(self.pool.retire_key(key, self.now))
        bound = {w for w, k in self.keys.items() if k == key and w in self.alive}
        assert {w for w in bound if self.alive[w] is None} <= self.retired
        self.ended |= bound

    @rule(delay=st.floats(0, 3))
    def wait(self, delay: float) -> None:
        self.now += delay
        self.perform(self.pool.expire(self.now))
        wakeup = self.pool.next_wakeup(self.now)
        assert wakeup is None or wakeup > self.now, "something due was left undone"

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Lend():
                    key = self.waiting.pop(effect.lease)  # KeyError: not waiting
                    assert effect.worker not in self.retired | self.ended
                    assert self.alive[effect.worker] is None, "lent twice"
                    assert self.keys.setdefault(effect.worker, key) == key, "reused across keys"
                    self.alive[effect.worker] = Lent(effect.lease, key)
                case Start():
                    assert effect.token not in self.pending
                    self.pending.append(effect.token)
                    assert len(self.pending) <= self.most_starting
                case Retire():
                    assert self.alive[effect.worker] is None, "retired at work"
                    assert effect.worker not in self.retired, "retired twice"
                    self.retired.add(effect.worker)
                case Fail():
                    del self.waiting[effect.lease]
                case Crowded():
                    assert effect.lease in self.waiting
                    assert self.pool.held_back(effect.lease, self.now) is not None
                case Lost():
                    raise AssertionError("nobody died")

    @invariant()
    def the_books_agree(self) -> None:
        self.pool.check()
        statistics = self.pool.statistics()
        assert statistics.waiting == len(self.waiting)
        assert statistics.starting == len(self.pending)
        assert statistics.lent + statistics.blocked == sum(map(bool, self.alive.values()))
        assert statistics.retiring == len(self.retired & self.alive.keys())

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        assert not self.waiting or self.pending or self.pool.next_wakeup(self.now) is not None

    def teardown(self) -> None:
        """Everybody is served in the end, though nobody gives a worker back."""
        if not hasattr(self, "pool"):
            return

        for _ in range(10 * (len(self.waiting) + len(self.pending) + 1)):
            while self.pending:
                self.begin(self.pending[0])

            if not self.waiting:
                break

            wakeup = self.pool.next_wakeup(self.now)
            assert wakeup is not None, "a lease waits and nothing will happen"
            assert wakeup <= self.now + 1.0
            self.now = wakeup
            self.perform(self.pool.expire(self.now))

        assert not self.waiting, "a lease was never served"


TestPoolModel = PoolModel.TestCase


def test_thousands_of_leases_can_wait() -> None:
    pool = Pool(soft_limit=1)
    busy(pool, 0)
    for number in range(1, 5000):
        pool.lend(lease(number), "a", 0.0)

    for number in range(4999):
        assert pool.returned(worker(0), lease(number), 0.0) == [Lend(worker(0), lease(number + 1))]
