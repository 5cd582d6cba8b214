"""Cancelling in virtual time, over many seeds: whatever else goes wrong, only the right task ends.

Another seed, or one that failed: ``python -m tests.sim --cancel 1234`` from the repository's root.
"""

from collections.abc import Iterator

import pytest

from tests.sim.cancelling import CancellingProgram
from tests.sim.workload import quiet_collector, simulate

CHUNK = 10
SEEDS = range(100)

pytestmark = pytest.mark.sim


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet_collector():
        yield


@pytest.mark.parametrize("first", range(0, len(SEEDS), CHUNK))
def test_only_what_was_cancelled_is_interrupted_and_every_outcome_is_told(first: int) -> None:
    for seed in SEEDS[first : first + CHUNK]:
        simulate(seed, CancellingProgram)
