"""Fences: what a lessor out of reach lent begins again only when it has ended, or the lessor says how it fares."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from raylite._machines.fences import Ask, Fences, Part, Withdraw
from raylite._types.keys import LeaseID
from raylite._types.strategies import NodeKey

B, C = NodeKey(b"b"), NodeKey(b"c")
ONE, TWO = LeaseID(b"1"), LeaseID(b"2")


def test_leases_end_when_the_fence_is_answered_and_not_before() -> None:
    machine = Fences()
    assert machine.lost("link", B, [ONE, TWO]) == [Ask("link", B, (ONE, TWO))]
    assert machine.lost("link", B, [ONE]) == []  # its session has ended, too
    assert machine.unanswered("link") == [Ask("link", B, (ONE, TWO))]
    assert machine.is_asking("link")
    assert machine.fenced("link") == [Part("link", (ONE, TWO))]
    assert machine.fenced("link") == []
    assert machine.unanswered("link") == []


def test_a_lessor_that_is_reached_again_speaks_for_itself() -> None:
    machine = Fences()
    machine.lost("link", B, [ONE])
    assert machine.settled("link") == [Withdraw("link")]
    assert machine.fenced("link") == []
    assert not machine.shuns(B, [])
    assert machine.settled("link") == []
    assert machine.lost("link", B, [ONE]) == [Ask("link", B, (ONE,))]


def test_one_that_lent_nothing_is_only_shunned_until_it_is_reached() -> None:
    machine = Fences()
    assert machine.lost("link", B, []) == []
    assert machine.shuns(B, [C])
    assert not machine.shuns(B, [C, B])  # nobody else can give what is wished for
    assert not machine.shuns(C, [])
    machine.reached(B)
    assert not machine.shuns(B, [])


def test_the_end_of_an_old_session_says_nothing_of_the_node() -> None:
    machine = Fences()
    machine.lost("old", B, [ONE])
    machine.lost("new", B, [TWO])
    assert machine.settled("old") == [Withdraw("old")]
    assert machine.shuns(B, [])
    machine.settled("new")
    assert not machine.shuns(B, [])


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: an `Ask` has one end, a `Part` or a `Withdraw`."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Fences()
        self.open: dict[int, tuple[LeaseID, ...]] = {}

    @rule(lessor=st.integers(0, 3), leases=st.lists(st.sampled_from([ONE, TWO]), unique=True))
    def lost(self, lessor: int, leases: list[LeaseID]) -> None:
        asks = self.machine.lost(lessor, self.node(lessor), leases)
        assert asks == [Ask(lessor, self.node(lessor), tuple(leases))] * (
            bool(leases) and lessor not in self.open
        )
        if asks:
            self.open[lessor] = tuple(leases)
        assert self.machine.shuns(self.node(lessor), [])

    @rule(lessor=st.integers(0, 3))
    def unanswered(self, lessor: int) -> None:
        known = self.open.get(lessor)
        expected = [] if known is None else [Ask(lessor, self.node(lessor), known)]
        assert self.machine.unanswered(lessor) == expected

    @rule(lessor=st.integers(0, 3))
    def fenced(self, lessor: int) -> None:
        known = self.open.pop(lessor, None)
        assert self.machine.fenced(lessor) == ([] if known is None else [Part(lessor, known)])

    @rule(lessor=st.integers(0, 3))
    def settled(self, lessor: int) -> None:
        known = self.open.pop(lessor, None)
        assert self.machine.settled(lessor) == ([] if known is None else [Withdraw(lessor)])

    @rule(lessor=st.integers(0, 3))
    def reached(self, lessor: int) -> None:
        self.machine.reached(self.node(lessor))
        assert not self.machine.shuns(self.node(lessor), [])

    @invariant()
    def asks_for_what_is_open(self) -> None:
        self.machine.check()
        assert all(self.machine.is_asking(lessor) == (lessor in self.open) for lessor in range(4))

    def node(self, lessor: int) -> NodeKey:
        return (B, C)[lessor % 2]


TestAnyOrder = AnyOrder.TestCase
