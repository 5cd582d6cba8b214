"""Clusters of many nodes in virtual time: random tasks, deaths, partitions and restarts of the GCS.

Another seed, or one that failed: ``python -m tests.sim --nodes 1234`` from the repository's root.
"""

from collections.abc import Iterator

import pytest

from tests.sim.cluster import simulate
from tests.sim.workload import quiet_collector

CHUNK = 5
UNFAITHFUL = {
    125: "dials once in a cut of 5 s and is not heard when that ends: a real SYN is sent again",
}
SEEDS = [seed for seed in range(300 + len(UNFAITHFUL)) if seed not in UNFAITHFUL]

pytestmark = pytest.mark.sim


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet_collector():
        yield


@pytest.mark.parametrize("first", range(0, len(SEEDS), CHUNK))
def test_every_seed_keeps_the_promises_and_repeats_itself(first: int) -> None:
    for seed in SEEDS[first : first + CHUNK]:
        assert simulate(seed).trace == simulate(seed).trace, f"seed {seed} ran in two ways"
