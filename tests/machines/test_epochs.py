"""Epochs: a node obeys the latest life of its cluster's GCS, and no earlier one ever again."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from raylite._machines.epochs import Epochs

A, B = b"one cluster", b"another"


def test_the_first_life_that_is_heard_of_is_obeyed_and_every_later_one() -> None:
    epochs = Epochs()
    assert epochs.obeys(A, 3)
    assert epochs.obeys(A, 3)
    epochs.registered(A, 5)
    assert not epochs.is_replaced(A, 5)
    assert epochs.obeys(A, 6)
    assert epochs.number == 6


def test_an_earlier_life_is_not_obeyed_whoever_spoke_of_the_later_one() -> None:
    epochs = Epochs()
    epochs.registered(A, 2)
    assert epochs.obeys(A, 3)
    assert not epochs.obeys(A, 2)
    assert epochs.is_replaced(A, 2)
    epochs.registered(A, 2)
    assert not epochs.obeys(A, 2)
    assert epochs.obeys(A, 3)


def test_another_cluster_is_obeyed_once_it_has_taken_the_node_in() -> None:
    epochs = Epochs()
    epochs.registered(A, 7)
    assert not epochs.obeys(B, 8)
    assert not epochs.is_replaced(B, 1)
    epochs.registered(B, 1)
    assert not epochs.obeys(A, 9)
    assert epochs.obeys(B, 1)


class EpochsModel(RuleBasedStateMachine):
    """Lives of two clusters speak in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs = Epochs()
        self.cluster: bytes | None = None
        self.latest = 0

    @rule(cluster=st.sampled_from([A, B]), number=st.integers(1, 5))
    def register(self, cluster: bytes, number: int) -> None:
        is_replaced = self.epochs.is_replaced(cluster, number)
        assert is_replaced == (cluster == self.cluster and number < self.latest)
        self.epochs.registered(cluster, number)
        if not is_replaced:
            self.cluster, self.latest = cluster, number

    @rule(cluster=st.sampled_from([A, B]), number=st.integers(1, 5))
    def speak(self, cluster: bytes, number: int) -> None:
        self.cluster = self.cluster or cluster
        is_obeyed = self.epochs.obeys(cluster, number)
        assert is_obeyed == (cluster == self.cluster and number >= self.latest)
        if is_obeyed:
            self.latest = number

    @invariant()
    def holds(self) -> None:
        self.epochs.check()
        assert self.epochs.number == self.latest


TestEpochsModel = EpochsModel.TestCase
