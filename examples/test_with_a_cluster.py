"""A test suite of a program that uses raylite. Run it with `pytest examples/test_with_a_cluster.py`."""

import pytest

import raylite as ray
from raylite.testing import LocalCluster


@ray.remote
def count_words(text: str) -> int:
    return len(text.split())


def total(texts: list[str]) -> int:
    """The program under test."""
    return sum(ray.get([count_words.remote(text) for text in texts]))


def test_words_are_counted(raylite_shared: LocalCluster) -> None:
    assert total(["to be", "or not to be"]) == 6


@pytest.mark.raylite(workers="threads", nodes=[1, {"num_cpus": 1, "labels": {"zone": "b"}}])
def test_the_count_survives_a_lost_node(raylite_cluster: LocalCluster) -> None:
    there = count_words.options(label_selector={"zone": "b"})
    assert ray.get(there.remote("on the second node")) == 4
    raylite_cluster.kill_node(raylite_cluster.nodes[1])
    raylite_cluster.add_node(num_cpus=1, labels={"zone": "b"})
    assert ray.get(there.remote("on the third")) == 3
