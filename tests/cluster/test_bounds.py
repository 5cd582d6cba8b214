"""How soon failures are known, and what they held is free: `docs/cluster.md` has the figures.

Each bound holds for a machine that runs a process when it is to run. On one that does not, because
more is to run than it has processors, every step of the way waits for its turn. So a thread here
measures how long such a wait is while the failure is on its way, and the bound is wider by `STEPS`
of the longest one. On an idle machine that is a few milliseconds, and on any machine what polls, or
waits for a timeout, is found out.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.machines import Cluster, cluster_of, joined, until_a_death
from tests.cluster.netns import component
from tests.cluster.started import nodes
from tests.cluster.watching import SOON, Watch, eventually

pytestmark = [pytest.mark.process, pytest.mark.fault, pytest.mark.timeout(300)]

WORKER_DEATH = 0.1
RAYLET_DEATH = 2.0
WORKERS_GONE = 0.5  # after their raylet
DRIVER_FREED = 2.0
GCS_SERVES = 2.0
STEPS = (
    10  # waits for a processor between a failure and who is told: processes, threads, their turns
)
TICK = 0.005
STORE = 80_000_000


class Stopwatch:
    """The seconds since it was made, or begun again, and how late a thread was meanwhile at most."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self.begin()

    def begin(self) -> None:
        self.began, self.delay = time.monotonic(), 0.0

    def measure(self) -> None:
        due = time.monotonic() + TICK
        while not self._over.wait(max(0.0, due - time.monotonic())):
            now = time.monotonic()
            self.delay = max(self.delay, now - due)
            due = now + TICK

    def stop(self) -> float:
        self._over.set()
        return time.monotonic() - self.began


@contextmanager
def within(bound: float, show: "Show", name: str) -> Iterator[Stopwatch]:
    """Have a block take no longer than a bound, and what the machine makes it wait."""
    watch = Stopwatch()
    thread = threading.Thread(target=watch.measure)
    thread.start()
    try:
        yield watch
    finally:
        took = watch.stop()
        thread.join()
    show(name, took, watch.delay)
    assert took <= bound + STEPS * watch.delay, f"{name} took {took:.3f} s"


Show = Callable[[str, float, float], None]


@pytest.fixture
def show(record_property: Callable[[str, object], None]) -> Show:
    """Note a figure in the report of the tests (`--junit-xml`), and print it (`-s`)."""

    def shown(name: str, took: float, delay: float) -> None:
        record_property(name, round(took, 4))
        print(f"{name}: {took:.3f} s, while the machine was late by {delay:.3f} s")

    return shown


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with cluster_of(2, "--num-cpus=2", f"--object-store-memory={STORE}") as cluster:
        yield cluster


HERE, AWAY = {"node:__internal_head__": 1}, {"m2": 1}
PROGRAM = """
from raylite.exceptions import WorkerCrashedError

@ray.remote(max_retries=0)
def rest(path):
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(1000)

ray.init()
"""


def pid_in(path: Path) -> int:
    """The number that a task is about to write."""
    assert eventually(lambda: path.exists() and path.read_text() != "")
    pid = int(path.read_text())
    path.unlink()
    return pid


@pytest.mark.parametrize("number", [1, 2], ids=["of this node", "of another node"])
def test_a_dead_worker_is_known_in_a_tenth_of_a_second(
    cluster: Cluster, tmp_path: Path, show: Show, number: int
) -> None:
    """Known to the driver that waits for its task."""
    path = tmp_path / "pid"
    where = f"resources={AWAY if number == 2 else HERE}"
    program = f"""{PROGRAM}
for _ in range(5):
    ref = rest.options({where}).remote("{path}")
    try:
        ray.get(ref)
    except WorkerCrashedError:
        say("known")
"""
    with cluster.head.driver(program) as driver:
        for _ in range(5):
            with Watch(pid_in(path)) as watch:
                with within(WORKER_DEATH, show, "worker death known"):
                    watch.signal(signal.SIGKILL)
                    assert driver.hear() == "known"
        assert driver.end()[0] == 0


def test_a_dead_raylet_is_known_in_two_seconds_and_its_workers_go_at_once(
    cluster: Cluster, show: Show
) -> None:
    head, away = cluster.record(cluster.head), cluster.others[0]
    for _ in range(3):
        watch = Watch(*cluster.processes(away))
        raylet = component(away, "raylet")
        with watch, within(RAYLET_DEATH, show, "raylet death known") as clock:

            def kill(raylet: int = raylet, clock: Stopwatch = clock) -> None:
                os.kill(raylet, signal.SIGKILL)
                clock.begin()  # until now it was the feed of the table that was waited for

            until_a_death(head, kill)
        joined(cluster.join(away))
    watch = Watch(*cluster.processes(away))
    with watch, within(WORKERS_GONE, show, "processes of a dead raylet gone"):
        watch.signal(signal.SIGKILL, component(away, "raylet"))
        assert watch.left_after(SOON) == []
    joined(cluster.join(away))


def test_what_a_killed_driver_had_is_free_in_two_seconds(
    cluster: Cluster, tmp_path: Path, show: Show
) -> None:
    """Free to another driver, on both nodes: their processors, and all of their memory."""
    theirs = f"""{PROGRAM}
import numpy as np
here = rest.options(resources={HERE}, num_cpus=2).remote("{tmp_path}/here")
away = rest.options(resources={AWAY}, num_cpus=2).remote("{tmp_path}/away")
kept = ray.put(np.ones({STORE} // 2, np.uint8))
say("waiting")
ray.get([here, away])
"""
    ours = f"""{PROGRAM}
import numpy as np

@ray.remote(num_cpus=2)
def whole():
    return np.ones({STORE} - (1 << 16), np.uint8)

hear()  # that the other has what this one is to wait for
refs = [whole.options(resources=at).remote() for at in ({HERE}, {AWAY})]
say("waiting")
ray.wait(refs, num_returns=2, fetch_local=False)
say("free")
"""
    with cluster.head.driver(theirs) as victim, cluster.head.driver(ours) as driver:
        assert victim.hear() == "waiting"
        pids = [pid_in(tmp_path / name) for name in ("here", "away")]
        driver.say("begin")
        assert driver.hear() == "waiting"  # for what the other has
        with Watch(*pids) as watch, within(DRIVER_FREED, show, "what a dead driver had is free"):
            os.kill(victim.pid, signal.SIGKILL)
            assert driver.hear() == "free"
            assert watch.left_after(SOON) == []
        assert driver.end()[0] == 0


def test_a_killed_gcs_serves_again_in_two_seconds(cluster: Cluster, show: Show) -> None:
    head = cluster.record(cluster.head)
    before = {row.node_id for row in nodes(head) if row.alive}
    for _ in range(3):
        with Watch(component(cluster.head, "gcs")) as watch:
            with within(GCS_SERVES, show, "GCS serves again"):
                watch.signal(signal.SIGKILL)
                assert watch.left_after(SOON) == []  # so it is not the old one that answers
                after = {row.node_id for row in nodes(head) if row.alive}
        assert after == before
