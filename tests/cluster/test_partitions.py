"""What passes between machines, and what is left of it when the network fails between them.

Each machine is a network namespace. A fault of the network lasts as long as it lasts: who waits out
a blackout of five seconds waits five seconds, and nothing else here sleeps.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from raylite._runtime.records import NodeRecord
from tests.cluster.machines import Cluster, cluster_of, until_a_death
from tests.cluster.netns import component
from tests.cluster.started import nodes
from tests.cluster.watching import SOON, Watch, eventually

pytestmark = [pytest.mark.process, pytest.mark.fault, pytest.mark.timeout(300)]

LITTLE = ("--num-cpus=2", "--object-store-memory=80000000")
BLACKOUT = 5.0
STANDSTILL = 13.0
SLEEP = 12.0  # a node that is silent for ten is dead
PATIENCE = 60.0  # seconds that bound a failure

TASKS = """
import numpy as np
from raylite.exceptions import RayError

at = lambda number: {f"m{number}": 0.1}

@ray.remote(num_cpus=0.1, max_retries=0)
def run(number, journal, data=b"", rest=0.0):
    '''Note that it ran, and return a large object.'''
    with open(journal, "a") as file:
        file.write(f"{number}\\n")
    time.sleep(rest)
    return np.full(200_000, number + len(data))

@ray.remote(num_cpus=0.1, max_retries=0)
def run_elsewhere(number, other, journal):
    '''Own a task on another machine, and read what it makes.'''
    array = ray.get(run.options(resources=at(other)).remote(number, journal, rest=0.5))
    return int(array[0]) + len(array)

def outcome(question):
    try:
        return question()
    except RayError as error:
        return type(error).__name__
"""


def living(head: NodeRecord) -> set[bytes]:
    return {row.node_id for row in nodes(head) if row.alive}


@pytest.fixture(scope="module")
def machines() -> Iterator[Cluster]:
    with cluster_of(3, *LITTLE) as cluster:
        yield cluster


@pytest.fixture
def cluster(machines: Cluster) -> Iterator[Cluster]:
    """Three machines, the same for all tests: a node that one of them lost is there again."""
    yield machines
    machines.network.mend()
    head = machines.record(machines.head)
    assert eventually(lambda: len(living(head)) == len(machines.machines))


def test_tasks_and_large_objects_pass_between_machines(cluster: Cluster, tmp_path: Path) -> None:
    program = f"""
    ray.init()
    where = ray.remote(lambda: ray.get_runtime_context().get_node_id())
    spread = where.options(scheduling_strategy="SPREAD")
    say(len(set(ray.get([spread.remote() for _ in range(6)]))))
    data = ray.put(bytes(3_000_000))
    back = ray.get(run.options(resources=at(2)).remote(7, "{tmp_path}/journal", data))
    say(len(back), back[0])
    """
    with cluster.head.driver(TASKS + dedent(program)) as driver:
        assert driver.hear() == "3"
        assert driver.hear() == "200000 3000007"
        assert driver.end() == (0, "")


def blackout(cluster: Cluster, *links: tuple[int, int]) -> None:
    for sender, receiver in links:
        cluster.network.block(cluster.machines[sender], cluster.machines[receiver])
    time.sleep(BLACKOUT)
    cluster.network.mend()


@pytest.mark.parametrize(
    "links",
    [
        pytest.param([(0, 1), (1, 0)], id="head and node"),
        pytest.param([(1, 2), (2, 1)], id="node and node"),
        pytest.param([(0, 1)], id="head to node"),
        pytest.param([(1, 0)], id="node to head"),
        pytest.param([(1, 2)], id="node to node"),
    ],
)
def test_five_seconds_without_a_link_are_invisible(
    cluster: Cluster, tmp_path: Path, links: list[tuple[int, int]]
) -> None:
    """Raylets, GCS, driver and workers talk over the link all the time; no task may be retried."""
    journal = tmp_path / "journal"
    program = f"""
    ray.init()
    over = threading.Event()
    def submit(number):
        here, there = 2 + number % 2, 3 - number % 2
        return [
            run.options(resources=at(here)).remote(number, "{journal}"),
            run_elsewhere.options(resources=at(here)).remote(number, there, "{journal}"),
        ]
    pending, number = [], 0
    threading.Thread(target=lambda: (hear(), over.set())).start()
    while not over.is_set() or pending:
        if not over.is_set() and len(pending) < 16:
            pending += submit(number)
            number += 1
        [done], pending = ray.wait(pending)
        result = ray.get(done)
        assert isinstance(result, int) or len(result) == 200_000
        if number == 10:
            say("busy")
    say(number)
    """
    head = cluster.record(cluster.head)
    before = living(head)
    with cluster.head.driver(TASKS + dedent(program)) as driver:
        assert driver.hear(PATIENCE) == "busy"
        blackout(cluster, *links)
        driver.say("enough")
        while (said := driver.hear(PATIENCE)) == "busy":
            pass
        assert driver.end() == (0, "")
    ran = sorted(map(int, journal.read_text().split()))
    assert ran == sorted([*range(int(said)), *range(int(said))])
    assert living(head) == before


@pytest.mark.parametrize(
    "links", [[(0, 1), (1, 0)], [(0, 1)], [(1, 0)]], ids=["both ways", "to it", "from it"]
)
def test_a_node_that_is_cut_off_is_dead_after_ten_seconds(
    cluster: Cluster, links: list[tuple[int, int]]
) -> None:
    def cut() -> None:
        for sender, receiver in links:
            cluster.network.block(cluster.machines[sender], cluster.machines[receiver])

    assert 8.9 <= until_a_death(cluster.record(cluster.head), cut) <= 11.5


def test_what_two_nodes_cannot_send_each_other_goes_by_way_of_the_head(
    cluster: Cluster, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    program = f"""
    ray.init()
    far = run.options(resources=at(3))
    large = far.remote(7, "{journal}")
    ray.wait([large], fetch_local=False)
    resting = far.remote(8, "{journal}", rest=20)
    say("submitted")
    hear()
    say(ray.get(large)[0])
    say(ray.get(far.remote(9, "{journal}", data=bytes(300_000)))[0])
    say(ray.get(run_elsewhere.remote(1, 3, "{journal}")))
    say(ray.get(resting)[0])
    hear()
    say(ray.get(far.remote(10, "{journal}"))[0])
    """
    before = living(cluster.record(cluster.head))
    here, there = cluster.others
    with here.driver(TASKS + dedent(program)) as driver:
        assert driver.hear() == "submitted"
        assert eventually(lambda: "8" in journal.read_text())
        cluster.network.cut(here, there)
        began = time.monotonic()
        driver.say("cut")
        assert [driver.hear(PATIENCE) for _ in range(2)] == ["7", "300009"]
        assert time.monotonic() - began < 20  # and a session would have another minute
        assert [driver.hear(PATIENCE) for _ in range(2)] == ["200001", "8"]
        cluster.network.mend()
        driver.say("mended")
        assert driver.hear(PATIENCE) == "10"
        assert driver.end()[0] == 0
    assert sorted(journal.read_text().split()) == sorted(["7", "8", "9", "1", "10"])  # once each
    assert living(cluster.record(cluster.head)) == before


def test_a_raylet_that_stands_still_for_thirteen_seconds_lives_also_the_first_time(
    cluster: Cluster,
) -> None:
    head = cluster.record(cluster.head)
    raylet, before = component(cluster.others[1], "raylet"), living(head)
    os.kill(raylet, signal.SIGSTOP)
    began = time.monotonic()
    assert eventually(lambda: any(row.suspect for row in nodes(head)))
    assert 3.5 <= time.monotonic() - began <= 7
    time.sleep(STANDSTILL - (time.monotonic() - began))
    os.kill(raylet, signal.SIGCONT)
    assert eventually(lambda: not any(row.suspect for row in nodes(head)))
    assert living(head) == before


def test_a_raylet_that_stands_still_is_dead_after_thirty_seconds_and_its_tasks_then_run_elsewhere(
    cluster: Cluster, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    program = f"""
    from raylite.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(max_retries=1)
    def run_on(journal):
        '''Note all the time that it runs; the second may end.'''
        is_second = os.path.exists(journal)
        for _ in range(20 if is_second else 100_000):
            with open(journal, "a") as file:
                file.write(f"{{os.getpid()}} {{time.monotonic()}}\\n")
            time.sleep(0.01)
        return 7

    ray.init()
    where = ray.remote(lambda: ray.get_runtime_context().get_node_id())
    node = ray.get(where.options(resources=at(3)).remote())
    there = NodeAffinitySchedulingStrategy(node, soft=True)
    ref = run_on.options(scheduling_strategy=there).remote("{journal}")
    say("submitted")
    say(ray.get(ref))
    """
    attached = """
    from raylite.exceptions import RayError
    ray.init()
    resting = ray.remote(max_retries=0)(lambda: time.sleep(1000)).remote()
    say("resting")
    try:
        ray.get(resting)
    except RayError as error:
        say(type(error).__name__)
    """
    head, away = cluster.record(cluster.head), cluster.others[1]
    raylet, before = component(away, "raylet"), living(head)
    with cluster.head.driver(TASKS + dedent(program)) as driver, away.driver(attached) as abroad:
        assert driver.hear() == "submitted"
        assert abroad.hear() == "resting"
        assert eventually(journal.exists)
        _, *node = cluster.processes(away)
        with Watch(*node) as watch:
            began = time.monotonic()
            try:
                assert 28.9 <= until_a_death(head, lambda: os.kill(raylet, signal.SIGSTOP)) <= 31.5
                assert watch.left_after(0) == [f"{raylet} raylite: raylet"]
                assert driver.hear(PATIENCE) == "7"
                assert abroad.hear(PATIENCE) == "LocalRayletDiedError"
                assert time.monotonic() - began <= 36
            finally:
                watch.signal(signal.SIGCONT, raylet)
            assert watch.left_after(SOON) == []
        assert driver.end() == (0, "")
        assert abroad.end()[0] == 0
    runs: dict[str, list[float]] = {}
    for pid, moment in map(str.split, journal.read_text().splitlines()):
        runs.setdefault(pid, []).append(float(moment))
    (*_, last), (first, *_) = runs.values()
    assert 25.5 <= last - began <= 28.5
    assert last < first
    assert eventually(lambda: len(living(head)) == 3)
    assert len(before - living(head)) == 1


def test_a_gcs_that_stands_still_takes_nobody_for_dead_when_it_goes_on(
    cluster: Cluster, tmp_path: Path
) -> None:
    program = f"""
    ray.init()
    for number in (1, 2, 3):
        where = at(number) if number > 1 else {{}}
        say(ray.get(run.options(resources=where).remote(number, "{tmp_path}/journal"))[0])
        hear()
    """
    latecomer = """
    say("starting")
    ray.init()
    say(ray.get(ray.remote(abs).remote(-7)))
    """
    head, gcs = cluster.record(cluster.head), component(cluster.head, "gcs")
    before = living(head)
    with cluster.head.driver(TASKS + dedent(program)) as driver:
        assert driver.hear() == "1"
        os.kill(gcs, signal.SIGSTOP)
        began = time.monotonic()
        try:
            driver.say("the GCS sleeps")
            assert driver.hear(SLEEP) == "2"  # on another node
            with cluster.others[0].driver(latecomer) as late:
                assert late.hear() == "starting"
                time.sleep(SLEEP - (time.monotonic() - began))
                os.kill(gcs, signal.SIGCONT)
                assert late.hear(PATIENCE) == "7"
                assert late.end() == (0, "")
        finally:
            os.kill(gcs, signal.SIGCONT)
        driver.say("it is awake")
        assert driver.hear() == "3"
        driver.say("end")
        assert driver.end() == (0, "")
    assert living(head) == before
    assert component(cluster.head, "gcs") == gcs
    assert (tmp_path / "journal").read_text().split() == ["1", "2", "3"]


def test_a_node_that_returns_after_its_death_joins_as_another(
    cluster: Cluster, tmp_path: Path
) -> None:
    program = f"""
    ray.init()
    far = run.options(resources=at(2))
    data = ray.put(bytes(3_000_000))
    kept = far.remote(1, "{tmp_path}/journal", data)
    say(ray.get(far.remote(1, "{tmp_path}/journal", data))[0])
    ray.wait([kept], fetch_local=False)
    say(outcome(lambda: ray.get(far.remote(2, "{tmp_path}/journal", rest=1000))))
    say(outcome(lambda: ray.get(kept)))
    hear()
    say(ray.get(far.remote(3, "{tmp_path}/journal", data))[0])
    say(ray.get(far.remote(4, "{tmp_path}/journal", ray.get(far.remote(0, "{tmp_path}/j"))))[0])
    """
    other = """
    from raylite.exceptions import RayError
    ray.init()
    resting = ray.remote(lambda: time.sleep(1000)).remote()
    say("resting")
    try:
        ray.get(resting)
    except RayError as error:
        say(type(error).__name__)
    ray.shutdown()
    hear()
    ray.init()
    say(ray.get(ray.remote(abs).remote(-7)))
    """
    head, away = cluster.record(cluster.head), cluster.others[0]
    with cluster.head.driver(TASKS + dedent(program)) as driver, away.driver(other) as abroad:
        assert driver.hear() == "3000001"
        assert abroad.hear() == "resting"
        # Of a task that had not begun there, its owner would hear nothing: it waits for another node.
        assert eventually(lambda: "2" in (tmp_path / "journal").read_text())
        before = living(head)
        assert until_a_death(head, lambda: cluster.network.unplug(away)) < 12
        assert driver.hear() == "NodeDiedError"
        assert driver.hear() == "ObjectLostError"
        cluster.network.mend()
        assert eventually(lambda: len(living(head)) == 3)
        assert len(before - living(head)) == 1
        driver.say("go on")
        assert driver.hear() == "3000003"
        assert driver.hear() == "200004"
        assert driver.end()[0] == 0
        assert abroad.hear() == "LocalRayletDiedError"
        abroad.say("go on")
        assert abroad.hear() == "7"
        assert abroad.end()[0] == 0
