"""Leases: who is granted what, in which order, and that nothing is lent twice or forgotten."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from raylite._machines.leases import (
    Effect,
    Grant,
    Infeasible,
    Leases,
    LeaseStatistics,
    Request,
    Revoke,
    Standing,
    Unwanted,
    Wanted,
)
from raylite._types.keys import HolderKey, LeaseID
from raylite._types.resources import Resources

DRIVER, OTHER = HolderKey(b"driver"), HolderKey(b"other")
CPU = Resources.of(CPU=1)


def lease(number: int) -> LeaseID:
    return LeaseID(b"%d" % number)


def ask(
    leases: Leases,
    number: int,
    demand: Resources = CPU,
    *,
    holder: HolderKey = DRIVER,
    depth: int = 0,
    lasting: bool = False,
) -> list[Effect]:
    return leases.request(Request(lease(number), holder, demand, depth, lasting))


def granted(effects: list[Effect]) -> list[int]:
    return [int(effect.lease) for effect in effects if isinstance(effect, Grant)]


def test_what_fits_is_granted_at_once() -> None:
    leases = Leases(Resources.of(CPU=2))
    assert ask(leases, 1) == [Grant(lease(1), DRIVER, CPU)]
    assert leases.available() == CPU
    assert leases.total == Resources.of(CPU=2)


def test_equal_requests_are_served_first_come_first_served() -> None:
    leases = Leases(CPU)
    for number in (1, 2, 3):
        ask(leases, number)

    assert granted(leases.release(lease(1))) == [2]
    assert granted(leases.release(lease(2))) == [3]


def test_deeper_requests_come_first() -> None:
    leases = Leases(CPU)
    ask(leases, 1)
    ask(leases, 2)
    ask(leases, 3, depth=1)
    ask(leases, 4, depth=2, demand=Resources.of(CPU=0.5))
    assert granted(leases.release(lease(1))) == [4]
    assert granted(leases.release(lease(4))) == [3]


def test_one_grant_in_eight_goes_to_the_oldest() -> None:
    leases = Leases(CPU)
    ask(leases, 0)
    ask(leases, 100)
    order: list[int] = []
    for number in range(1, 10):
        ask(leases, number, depth=1)
        order += granted(leases.release(lease(order[-1] if order else 0)))

    assert order.index(100) <= 7
    assert [number for number in order if number < 100] == list(range(1, 9))


def test_a_large_demand_is_not_overtaken_by_small_ones() -> None:
    leases = Leases(Resources.of(CPU=4))
    ask(leases, 1, Resources.of(CPU=3))
    assert granted(ask(leases, 2, Resources.of(CPU=2))) == []
    assert granted(ask(leases, 3)) == []
    assert granted(leases.release(lease(1))) == [2, 3]


def test_waiting_for_a_gpu_does_not_hold_back_work_for_cpus() -> None:
    leases = Leases(Resources.of(CPU=4, GPU=1))
    both = Resources.of(CPU=1, GPU=1)
    ask(leases, 1, both)
    assert granted(ask(leases, 2, both)) == []
    assert granted(ask(leases, 3)) == [3]
    assert granted(ask(leases, 4, Resources())) == [4]
    assert granted(leases.release(lease(1))) == [2]


def test_needing_something_else_as_well_is_no_way_to_overtake() -> None:
    leases = Leases(Resources.of(CPU=4, slot=1))
    ask(leases, 1, Resources.of(CPU=3))
    ask(leases, 2, Resources.of(CPU=2))
    assert granted(ask(leases, 3, Resources.of(CPU=1, slot=1))) == []
    assert granted(leases.release(lease(1))) == [2, 3]


def test_a_demand_that_an_actor_keeps_from_fitting_holds_nobody_back() -> None:
    leases = Leases(Resources.of(CPU=2))
    ask(leases, 1, lasting=True)
    assert granted(ask(leases, 2, Resources.of(CPU=2))) == []
    assert granted(ask(leases, 3)) == [3]
    assert granted(leases.release(lease(3))) == []
    assert granted(leases.release(lease(1))) == [2]


def test_a_demand_for_what_a_blocked_task_keeps_does_not_hold_back_its_children() -> None:
    leases = Leases(Resources.of(CPU=4, GPU=2))
    gpu = Resources.of(GPU=1)
    ask(leases, 1, gpu)
    assert granted(ask(leases, 2, Resources.of(GPU=2), depth=1)) == []
    assert granted(ask(leases, 3, gpu, depth=1)) == []
    assert granted(leases.blocked(lease(1))) == [3]
    assert granted(leases.release(lease(3))) == []
    leases.unblocked(lease(1))
    assert granted(leases.release(lease(1))) == [2]


def test_a_demand_for_nothing_is_granted_whoever_waits() -> None:
    leases = Leases(CPU)
    ask(leases, 1)
    ask(leases, 2, depth=1)
    assert granted(ask(leases, 3, Resources())) == [3]


def test_an_actor_that_goes_on_puts_a_large_demand_out_of_reach() -> None:
    leases = Leases(Resources.of(CPU=3))
    ask(leases, 1, lasting=True)
    leases.blocked(lease(1))
    ask(leases, 2)
    ask(leases, 3, Resources.of(CPU=3))
    assert granted(ask(leases, 4)) == []
    assert granted(leases.unblocked(lease(1))) == [4]


def test_the_oldest_demand_in_its_turn_is_one_that_can_be_met() -> None:
    leases = Leases(Resources.of(CPU=1, GPU=1))
    ask(leases, 90, Resources.of(GPU=1), lasting=True)
    ask(leases, 91, Resources.of(GPU=1))
    ask(leases, 0)
    ask(leases, 100)
    order = [0]
    for number in range(1, 12):
        ask(leases, number, depth=1)
        order += granted(leases.release(lease(order[-1])))

    assert 100 in order


def test_a_blocked_task_lends_its_cpu_and_nothing_else() -> None:
    leases = Leases(Resources.of(CPU=1, GPU=1))
    ask(leases, 1, Resources.of(CPU=1, GPU=1))
    ask(leases, 2)
    assert granted(leases.blocked(lease(1))) == [2]
    assert leases.available() == Resources()


def test_recursion_on_one_cpu_does_not_dead_lock() -> None:
    leases = Leases(CPU)
    for depth in range(50):
        assert granted(ask(leases, depth, depth=depth)) == [] or depth == 0
        assert depth == 0 or granted(leases.blocked(lease(depth - 1))) == [depth]

    leases.check()


def test_a_task_that_goes_on_takes_its_cpu_back_at_once() -> None:
    leases = Leases(CPU)
    ask(leases, 1)
    leases.blocked(lease(1))
    ask(leases, 2)
    ask(leases, 3)
    assert leases.unblocked(lease(1)) == []
    assert leases.available().to_floats() == {"CPU": -1.0}
    assert granted(leases.release(lease(1))) == []
    assert granted(leases.release(lease(2))) == [3]


def test_a_lease_can_be_returned_while_blocked() -> None:
    leases = Leases(CPU)
    ask(leases, 1)
    leases.blocked(lease(1))
    leases.release(lease(1))
    assert leases.available() == CPU


def test_repeated_late_and_unknown_messages_change_nothing() -> None:
    leases = Leases(CPU)
    ask(leases, 1)
    ask(leases, 2)
    assert ask(leases, 1) == [Grant(lease(1), DRIVER, CPU)]
    assert ask(leases, 2) == []
    assert leases.unblocked(lease(1)) == []
    assert leases.blocked(lease(2)) == []
    assert granted(leases.blocked(lease(1))) == [2]
    assert leases.blocked(lease(1)) == []
    assert leases.release(lease(9)) == leases.blocked(lease(9)) == leases.unblocked(lease(9)) == []
    assert leases.holder_died(OTHER) == []


def test_a_withdrawn_request_is_not_granted() -> None:
    leases = Leases(CPU)
    for number in (1, 2, 3):
        ask(leases, number)

    leases.release(lease(2))
    assert granted(leases.release(lease(1))) == [3]


def test_withdrawing_a_large_demand_lets_others_pass() -> None:
    leases = Leases(Resources.of(CPU=2))
    ask(leases, 1)
    ask(leases, 2, Resources.of(CPU=2))
    ask(leases, 3)
    assert granted(leases.release(lease(2))) == [3]


def test_withdrawn_requests_leave_nothing_behind() -> None:
    leases = Leases(CPU)
    for number in range(1000):
        ask(leases, number)

    for number in range(2, 999):
        leases.release(lease(number))

    assert leases.waiting() == {CPU: 2}
    assert granted(leases.release(lease(0))) == [1]
    assert granted(leases.release(lease(1))) == [999]


def test_an_infeasible_demand_is_reported_and_stays_listed() -> None:
    leases = Leases(Resources.of(CPU=4, GPU=2))
    message = "no node has 4 GPUs (largest: 2); lower num_gpus or add a node"
    report = Infeasible(lease(1), DRIVER, message)
    assert ask(leases, 1, Resources.of(GPU=4)) == [report]
    assert ask(leases, 1, Resources.of(GPU=4)) == [report]
    assert [request.lease for request in leases.infeasible()] == [lease(1)]
    assert granted(ask(leases, 2, Resources.of(GPU=2))) == [2]
    leases.release(lease(1))
    assert leases.infeasible() == ()


@pytest.mark.parametrize(
    ("demand", "words"),
    [
        ({"CPU": 1}, "1 CPU (largest: 0.5); lower num_cpus or"),
        ({"memory": 100}, "100 bytes of memory (largest: 0); lower memory or"),
        ({"slot": 1.5}, "1.5 slot (largest: 0); lower resources={'slot': ...} or"),
    ],
)
def test_the_report_says_what_is_missing_and_what_to_do(
    demand: dict[str, float], words: str
) -> None:
    [report] = ask(Leases(Resources.of(CPU=0.5)), 1, Resources.from_mapping(demand))
    assert isinstance(report, Infeasible)
    assert words in report.message


def test_a_node_that_grows_grants_what_was_infeasible() -> None:
    leases = Leases(CPU)
    ask(leases, 1, Resources.of(CPU=2))
    ask(leases, 2, Resources.of(CPU=9))
    ask(leases, 3, Resources())
    assert granted(leases.set_total(Resources.of(CPU=2))) == [1]
    assert [request.lease for request in leases.infeasible()] == [lease(2)]


def test_a_node_that_shrinks_reports_what_has_become_infeasible() -> None:
    leases = Leases(Resources.of(CPU=2))
    for number in (1, 2):
        ask(leases, number, Resources.of(CPU=2))

    effects = leases.set_total(CPU)
    assert [type(effect) for effect in effects] == [Infeasible, Unwanted]
    assert leases.available().to_floats() == {"CPU": -1.0}
    assert granted(leases.set_total(Resources.of(CPU=4))) == [2]


def test_requests_keep_their_age_when_the_total_changes() -> None:
    leases = Leases(CPU)
    ask(leases, 1)
    ask(leases, 2, Resources.of(CPU=2))
    ask(leases, 3)
    assert granted(leases.set_total(Resources.of(CPU=2))) == []
    assert granted(leases.release(lease(1))) == [2]


def test_all_that_a_dead_holder_has_comes_back() -> None:
    leases = Leases(Resources.of(CPU=2))
    ask(leases, 1)
    ask(leases, 2, holder=OTHER)
    ask(leases, 3)
    ask(leases, 4, Resources.of(CPU=3))
    ask(leases, 5, holder=OTHER)
    effects = leases.holder_died(DRIVER)
    assert effects[:2] == [Revoke(lease(1), DRIVER), Grant(lease(5), OTHER, CPU)]
    assert leases.infeasible() == ()
    assert leases.holder_died(DRIVER) == []


def test_holders_hear_once_that_others_wait_and_once_that_nobody_does() -> None:
    leases = Leases(Resources.of(CPU=2))
    ask(leases, 1)
    ask(leases, 2)
    assert ask(leases, 3, holder=OTHER) == [Wanted((DRIVER,))]
    assert ask(leases, 4, holder=OTHER) == []
    assert leases.release(lease(1)) == [Grant(lease(3), OTHER, CPU), Wanted((OTHER,))]
    assert leases.release(lease(2)) == [Grant(lease(4), OTHER, CPU), Unwanted((DRIVER, OTHER))]


def test_a_holder_that_died_is_told_nothing_more() -> None:
    leases = Leases(CPU)
    ask(leases, 1)
    ask(leases, 2, holder=OTHER)
    ask(leases, 3, holder=OTHER)
    assert leases.holder_died(DRIVER)[-1] == Wanted((OTHER,))
    assert leases.release(lease(2)) == [Grant(lease(3), OTHER, CPU), Unwanted((OTHER,))]


def test_infeasible_demands_make_nobody_give_leases_back() -> None:
    leases = Leases(CPU)
    ask(leases, 1)
    assert [type(effect) for effect in ask(leases, 2, Resources.of(CPU=2))] == [Infeasible]


def test_statistics_count_every_lease() -> None:
    leases = Leases(Resources.of(CPU=2))
    for number in (1, 2, 3, 4):
        ask(leases, number)

    ask(leases, 5, Resources.of(GPU=1))
    leases.blocked(lease(1))
    expected = LeaseStatistics(lent=3, blocked=1, waiting=1, infeasible=1, granted=3)
    assert leases.statistics() == expected
    assert leases.waiting() == {CPU: 1}


def test_tens_of_thousands_wait_without_slowing_each_other() -> None:
    leases = Leases(CPU)
    for number in range(20_000):
        ask(leases, number)

    for number in range(19_999):
        assert granted(leases.release(lease(number))) == [number + 1]


NODE = Resources.of(CPU=4, GPU=2, slot=1)
demands = st.sampled_from(
    [
        *(Resources.of(CPU=cpus) for cpus in (0, 0.5, 1, 1, 2, 4)),
        *(Resources.of(CPU=cpus, GPU=gpus) for cpus in (0, 1) for gpus in (1, 2)),
        Resources.of(CPU=2, GPU=1, slot=1),
        Resources.of(slot=2),
    ]
)
holders = st.sampled_from([DRIVER, OTHER, HolderKey(b"third")])


def test_where_a_request_stands_is_known() -> None:
    leases = Leases(Resources.of(CPU=1, GPU=1))
    for number, depth in [(1, 0), (2, 0), (3, 2)]:
        ask(leases, number, depth=depth)
    ask(leases, 4, Resources.of(GPU=2))
    assert leases.standing(lease(1)) == Standing(CPU, None)
    assert leases.standing(lease(3)) == Standing(CPU, 0)
    assert leases.standing(lease(2)) == Standing(CPU, 1)  # the deeper one goes first
    assert leases.standing(lease(4)) is None
    assert leases.standing(lease(5)) is None


class LeasesModel(RuleBasedStateMachine):
    """Requests, releases, blocking and deaths in any order; the books are kept a second time."""

    leases_made: Bundle[LeaseID] = Bundle("leases_made")

    def __init__(self) -> None:
        super().__init__()
        self.leases = Leases(NODE)
        self.asked: dict[LeaseID, Request] = {}
        self.held: dict[LeaseID, bool] = {}  # and whether it is blocked
        self.infeasible: set[LeaseID] = set()
        self.told: set[HolderKey] = set()
        self.last = 0

    @rule(
        target=leases_made,
        holder=holders,
        demand=demands,
        depth=st.integers(0, 3),
        lasting=st.sampled_from([False, False, True]),
    )
    def request(self, holder: HolderKey, demand: Resources, depth: int, lasting: bool) -> LeaseID:
        self.last += 1
        request = Request(lease(self.last), holder, demand, depth, lasting)
        self.asked[request.lease] = request
        self.perform(self.leases.request(request))
        return request.lease

    @rule(lease=consumes(leases_made))
    def release(self, lease: LeaseID) -> None:
        self.forget(lease)
        self.perform(self.leases.release(lease))

    @rule(lease=leases_made)
    def ask_again(self, lease: LeaseID) -> None:
        if (request := self.asked.get(lease)) is not None:
            repeated = self.leases.request(request)
            assert granted(repeated) == [int(lease)] * (lease in self.held)
            assert len(repeated) == (lease in self.held or lease in self.infeasible)

    @rule(lease=leases_made)
    def block(self, lease: LeaseID) -> None:
        if lease in self.held:
            self.held[lease] = True

        self.perform(self.leases.blocked(lease))

    @rule(lease=leases_made)
    def unblock(self, lease: LeaseID) -> None:
        if lease in self.held:
            self.held[lease] = False

        self.perform(self.leases.unblocked(lease))

    @rule(holder=holders)
    def holder_dies(self, holder: HolderKey) -> None:
        gone = [r.lease for r in self.asked.values() if r.holder == holder]
        revoked = {lease for lease in gone if lease in self.held}
        for lease in gone:
            self.forget(lease)

        self.told.discard(holder)
        effects = self.leases.holder_died(holder)
        assert {e.lease for e in effects if isinstance(e, Revoke)} == revoked
        self.perform([e for e in effects if not isinstance(e, Revoke)])

    @rule(cpus=st.integers(1, 8), slots=st.integers(0, 2))
    def resize(self, cpus: int, slots: int) -> None:
        self.perform(self.leases.set_total(Resources.of(CPU=cpus, GPU=2, slot=slots)))

    def free(self) -> Resources:
        held = [(self.asked[lease].demand, blocked) for lease, blocked in self.held.items()]
        lent = sum((d.without("CPU") if blocked else d for d, blocked in held), Resources())
        return self.leases.total - lent

    def overtaken_by(self, request: Request) -> list[Request]:
        """Return who came first, can be served, and lacks what this one is now granted."""
        kept = sum(
            (r.demand.without("CPU") if blocked else r.demand for r, blocked in self.kept()),
            Resources(),
        )
        reachable = [
            r
            for r in self.asked.values()
            if r.lease not in self.held and r.demand.fits(self.leases.total - kept)
        ]
        if reachable[:1] == [request]:
            return []  # The oldest has its turn now and then.

        before = [r for r in reachable[: reachable.index(request)] if r.depth >= request.depth]
        before += [r for r in reachable if r.depth > request.depth]
        return [r for r in before if request.demand.uses(r.demand.lacking(self.free()))]

    def forget(self, lease: LeaseID) -> None:
        self.asked.pop(lease, None)
        self.held.pop(lease, None)
        self.infeasible.discard(lease)

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Grant():
                    request = self.asked[effect.lease]  # KeyError: granted after its release
                    assert (request.holder, request.demand) == (effect.holder, effect.demand)
                    assert effect.lease not in self.held, "granted twice"
                    assert request.demand.fits(self.free()), "lent what was not there"
                    assert not self.overtaken_by(request)
                    self.held[effect.lease] = False
                    self.infeasible.discard(effect.lease)
                case Infeasible():
                    assert effect.lease not in self.infeasible, "reported twice"
                    self.infeasible.add(effect.lease)
                case Wanted():
                    assert not self.told & set(effect.holders), "told twice"
                    self.told |= set(effect.holders)
                case Unwanted():
                    assert self.told == set(effect.holders)
                    self.told.clear()
                case Revoke():
                    raise AssertionError("nobody died")

        for lease in list(self.infeasible):
            if self.asked[lease].demand.fits(self.leases.total):
                self.infeasible.discard(lease)  # it waits again

    @invariant()
    def the_books_agree(self) -> None:
        self.leases.check()
        lent = [
            self.asked[lease].demand.without("CPU" if blocked else "")
            for lease, blocked in self.held.items()
        ]
        assert sum(lent, self.leases.available()) == self.leases.total
        assert {request.lease for request in self.leases.infeasible()} == self.infeasible

    @invariant()
    def holders_know_whether_others_wait(self) -> None:
        waiting = len(self.asked) - len(self.held) - len(self.infeasible)
        assert sum(self.leases.waiting().values()) == waiting
        assert {self.asked[lease].holder for lease in self.held} <= self.told or not waiting

    @invariant()
    def what_stands_idle_is_kept_for_somebody_who_will_get_it(self) -> None:
        pinned = [r.demand.without("CPU" if blocked else "") for r, blocked in self.kept()]
        kept = sum(pinned, Resources())
        waiting = self.asked.keys() - self.held.keys() - self.infeasible
        free = [w for w in waiting if self.asked[w].demand.fits(self.leases.available())]
        if free:
            blockers = [self.asked[w].demand for w in waiting if w not in free]
            assert any(demand.fits(self.leases.total - kept) for demand in blockers)

    def kept(self) -> list[tuple[Request, bool]]:
        held = [(self.asked[lease], blocked) for lease, blocked in self.held.items()]
        return [(request, blocked) for request, blocked in held if blocked or request.lasting]

    def teardown(self) -> None:
        while self.held:
            self.release(next(iter(self.held)))

        assert self.asked.keys() == self.infeasible, "a lease was never granted"


TestLeasesModel = LeasesModel.TestCase
