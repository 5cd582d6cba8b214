"""Rosters: two that know the same members are alike, and what differs is found without telling all."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from raylite._machines.roster import PARTS, Roster, part_of

A, B = b"a", b"b"


def roster(*nodes: bytes) -> Roster:
    known = Roster()
    for node in nodes:
        known.put(node, 1)
    return known


def test_the_same_members_are_alike_in_whatever_order_they_came() -> None:
    one, other = roster(A, B, b"gone"), roster(B, A)
    one.remove(b"gone")
    one.put(A, 1)
    assert one.differing(other.digests()) == b""


def test_a_missing_node_another_incarnation_and_a_doubt_make_a_part_differ() -> None:
    one, other = roster(A, B), roster(B)
    for incarnation, suspect in ((2, False), (1, True), (2, True)):
        assert one.differing(other.digests()) == bytes([part_of(A)])
        other.put(A, incarnation, suspect=suspect)
    assert one.differing(other.digests()) == bytes([part_of(A)])
    other.put(A, 1)
    assert one.differing(other.digests()) == b""


def test_one_of_three_thousand_nodes_that_is_missing_costs_a_sixtieth_of_the_list() -> None:
    nodes = [b"node %d" % n for n in range(3000)]
    parts = roster(*nodes).differing(roster(*nodes[1:]).digests())
    told = [node for node in nodes if part_of(node) in parts]
    assert nodes[0] in told
    assert len(told) < 100


def test_what_is_no_list_of_digests_differs_in_all_parts() -> None:
    for odd in (b"", b"x", bytes(8 * PARTS + 8)):
        assert roster(A).differing(odd) == bytes(range(PARTS))


def test_parts_that_have_changed_meanwhile_are_not_settled_nor_are_parts_that_there_are_not() -> (
    None
):
    known = roster(A, B)
    asked = known.revision
    known.put(B, 2)
    both = [part_of(A), part_of(B), 200]
    assert known.settled(both, asked) == bytes([part_of(A)])
    assert known.settled(both, known.revision) == bytes(both[:2])


def test_who_is_known_and_was_not_told_is_absent_within_the_parts_that_were() -> None:
    known = roster(A, B)
    assert known.absent(range(PARTS), {(A, 2), (B, 1)}) == [A]
    assert known.absent([part_of(B)], ()) == [B]


NODES = st.sampled_from([b"%d" % n for n in range(50)])


class RosterModel(RuleBasedStateMachine):
    """A GCS and a raylet that loses some of its news, and compares now and then, with an answer that is late."""

    def __init__(self) -> None:
        super().__init__()
        self.gcs, self.raylet = Roster(), Roster()
        self.true: dict[bytes, tuple[int, bool]] = {}
        self.believed: dict[bytes, tuple[int, bool]] = {}
        self.answer: tuple[bytes, dict[bytes, tuple[int, bool]], int] | None = None
        self.heard_since: set[bytes] = set()

    @rule(
        node=NODES, incarnation=st.integers(0, 2**64 - 1), suspect=st.booleans(), lost=st.booleans()
    )
    def join(self, node: bytes, incarnation: int, suspect: bool, lost: bool) -> None:
        self.gcs.put(node, incarnation, suspect=suspect)
        self.true[node] = incarnation, suspect
        if not lost:
            self.raylet.put(node, incarnation, suspect=suspect)
            self._hear(node)

    @rule(node=NODES, lost=st.booleans())
    def leave(self, node: bytes, lost: bool) -> None:
        self.gcs.remove(node)
        self.true.pop(node, None)
        if not lost:
            self.raylet.remove(node)
            self._hear(node)

    def _hear(self, node: bytes) -> None:
        before = self.believed.get(node)
        if node in self.true:
            self.believed[node] = self.true[node]
        else:
            self.believed.pop(node, None)
        if before != self.believed.get(node):
            self.heard_since.add(node)

    @rule()
    def ask(self) -> None:
        parts = self.gcs.differing(self.raylet.digests())
        told = {node: known for node, known in self.true.items() if part_of(node) in parts}
        nodes = self.true.keys() | self.believed.keys()
        differ = {part_of(n) for n in nodes if self.true.get(n) != self.believed.get(n)}
        assert set(parts) == differ
        self.answer, self.heard_since = (parts, told, self.raylet.revision), set()

    @rule()
    def take_answer(self) -> None:
        if self.answer is None:
            return
        (said, told, asked), self.answer = self.answer, None
        parts = self.raylet.settled(said, asked)
        changed = {part_of(node) for node in self.heard_since}
        assert set(parts) == set(said) - changed
        for node in self.raylet.absent(parts, {(node, known[0]) for node, known in told.items()}):
            self.raylet.remove(node)
            del self.believed[node]
        for node, (incarnation, suspect) in told.items():
            if part_of(node) in parts:
                self.raylet.put(node, incarnation, suspect=suspect)
                self.believed[node] = incarnation, suspect
        for part in parts:
            assert self._of(self.believed, part) == self._of(told, part)

    def _of(self, known: dict[bytes, tuple[int, bool]], part: int) -> dict[bytes, tuple[int, bool]]:
        return {node: each for node, each in known.items() if part_of(node) == part}

    @invariant()
    def holds(self) -> None:
        self.gcs.check()
        self.raylet.check()


TestRoster = RosterModel.TestCase
