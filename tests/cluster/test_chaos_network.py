"""Ten thousand tasks on three machines while workers, raylets and the GCS are killed at random."""

import os
import random
import re
import signal
import subprocess
from collections import Counter

import pytest

from tests.cluster.machines import Cluster, cluster_of, joined
from tests.cluster.netns import Machine, component
from tests.cluster.watching import Watch, eventually, title

# A minute on an idle machine of two processors; ten times that, and it goes on as it should.
pytestmark = [pytest.mark.process, pytest.mark.fault, pytest.mark.timeout(600)]

MACHINES = 3
STORE = 268435456
NODE = ("--num-cpus=2", f"--object-store-memory={STORE}")
GCS_KILLS = 4  # a sixth within a minute would be a head's end
# Drawn like cards, of which a run uses two packs at least: chance decides when, and not whether.
STRIKES = [*["worker"] * 17, *["raylet"] * 2, "gcs"]
PRESTART = 2  # idle workers that a raylet keeps for the next driver
HANGS = 60.0  # seconds without progress
CHURN = "from tests.cluster.churn import main; main({seed}, {machines}, {store})"


class Chaos:
    """Kills what runs on a cluster's machines, and replaces the nodes that die of it."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.killed = Counter[str]()
        self._cluster = cluster
        self._choice = random.Random(seed)
        self._cards: list[str] = []
        self._joining: dict[Machine, subprocess.Popen[str]] = {}

    def strike(self) -> None:
        """Kill a worker, whatever it does; now and then a raylet or the GCS."""
        if not self._cards:
            self._cards = self._choice.sample(STRIKES, len(STRIKES))
        card = self._cards.pop()
        if card == "raylet":
            self._kill_node(self._choice.choice(self._cluster.others))
        elif card == "gcs" and self.killed["gcs"] < GCS_KILLS:
            self._cluster.kill(self._cluster.head, "gcs")
            self.killed["gcs"] += 1
        else:
            self._kill_worker(self._choice.choice(self._cluster.machines))

    def end(self) -> None:
        """Kill no more, and wait until every machine is a node again."""
        for joining in self._joining.values():
            joined(joining)
        self._joining.clear()

    def _kill_worker(self, machine: Machine) -> None:
        victims = workers(self._cluster, machine)
        if victims:
            with Watch(self._choice.choice(victims)) as watch:
                watch.signal(signal.SIGKILL)
            self.killed["worker"] += 1

    def _kill_node(self, machine: Machine) -> None:
        if (joining := self._joining.pop(machine, None)) is not None:
            joined(joining)  # the one before is not replaced yet
        with Watch(*self._cluster.processes(machine)) as watch:
            watch.signal(signal.SIGKILL, component(machine, "raylet"))
            assert watch.left_after(10) == []
        self.killed["raylet"] += 1
        self._joining[machine] = self._cluster.join(machine)


def workers(cluster: Cluster, machine: Machine) -> list[int]:
    return [pid for pid in cluster.processes(machine) if title(pid).startswith("raylite::")]


@pytest.mark.parametrize("seed", [1])
def test_results_survive_the_deaths_of_processes_and_nodes_and_nothing_is_leaked(seed: int) -> None:
    with cluster_of(MACHINES, *NODE) as cluster:
        chaos = Chaos(cluster, seed)
        program = CHURN.format(seed=seed, machines=MACHINES, store=STORE)
        with cluster.head.driver(program) as driver:
            while (said := driver.hear(HANGS)) == "more":
                chaos.strike()  # kills follow progress, not the clock: a slow machine makes some too
                driver.say("go on")
            assert said == "worked"
            chaos.end()
            driver.say("go on")
            assert driver.hear(HANGS) == "nothing is leaked"
            status, told = driver.end()
            # Tasks that wait for others are many when nodes have just died, and that is said.
            crowded = re.compile(r"More than \d+ tasks on this node wait in get\(\)")
            assert (status, [line for line in told.splitlines() if not crowded.match(line)]) == (
                0,
                [],
            )
        assert chaos.killed["worker"] > 30
        assert chaos.killed["raylet"] > 2
        assert chaos.killed["gcs"] > 1
        raylet = component(cluster.head, "raylet")
        assert eventually(
            lambda: max(len(workers(cluster, machine)) for machine in cluster.machines) <= PRESTART
        )
        # Each dead worker and node has had links here.
        assert eventually(lambda: len(os.listdir(f"/proc/{raylet}/fd")) < 60)
        watch = Watch(*(pid for machine in cluster.machines for pid in cluster.processes(machine)))
    with watch:
        assert watch.left_after(10) == []
