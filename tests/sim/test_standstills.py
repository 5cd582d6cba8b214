"""A healthy cluster that is late and stands still again and again: nobody is taken for dead, and all is right."""

import pytest

from tests.sim.standstills import simulate
from tests.sim.workload import quiet_collector

pytestmark = pytest.mark.sim


def test_nothing_dies_of_being_slow() -> None:
    with quiet_collector():
        outcome = simulate(0, traced=False)
    assert outcome.attempts > 200
    assert sum("raylet" in what for what in outcome.faults) > 20
    assert sum("gcs" in what for what in outcome.faults) > 5
    assert any("raylet for 20.00" in what for what in outcome.faults)
