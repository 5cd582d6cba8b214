"""Clusters of many nodes in virtual time: random tasks, deaths, partitions and restarts of the GCS.

Another seed, or one that failed: ``python -m tests.sim --nodes 1234`` from the repository's root.
"""

from collections.abc import Iterator

import pytest

from tests.sim.cluster import simulate
from tests.sim.workload import quiet_collector

CHUNK = 5
SEEDS = range(300)

pytestmark = pytest.mark.sim


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet_collector():
        yield


@pytest.mark.parametrize("first", range(0, len(SEEDS), CHUNK))
def test_every_seed_keeps_the_promises_and_one_in_five_is_seen_to_repeat_itself(first: int) -> None:
    for seed in SEEDS[first : first + CHUNK]:
        again = seed == first  # they take half a second; those of one node are all run again
        trace = simulate(seed, traced=again).trace
        if again:
            assert trace
            assert simulate(seed).trace == trace, f"seed {seed} ran in two ways"


@pytest.mark.parametrize("seed", [307, 409])
def test_seeds_that_once_failed_keep_the_promises(seed: int) -> None:
    """A guest came from a node that was dead already; a raylet ended while it waited for an object."""
    simulate(seed, traced=False)
