"""What is on its way between machines when connections are reset, and when machines die."""

from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from tests.cluster.machines import Cluster, cluster_of, joined
from tests.cluster.netns import Machine, component
from tests.cluster.started import nodes
from tests.cluster.watching import eventually

pytestmark = [pytest.mark.process, pytest.mark.fault, pytest.mark.timeout(300)]

MB = 1 << 20
STORE = 80 * MB
LARGE = 24 * MB
SLOW = 40  # megabits a second: five seconds for the large object
BOUND = 20.0  # seconds in which a reader must have the object or an error, on a busy machine too
PATIENCE = 60.0

TASKS = f"""
import numpy as np
from raylite.exceptions import ObjectLostError

at = lambda number: {{f"m{{number}}": 0.1}}

@ray.remote(num_cpus=0.1, max_retries=0)
def note(number, journal):
    with open(journal, "a") as file:
        file.write(f"{{number}}\\n")
    return number

@ray.remote(num_cpus=0.1, max_retries=0)
def make(size={LARGE}):
    return np.arange(size // 8)

@ray.remote(num_cpus=0.1, max_retries=0)
def total(array):
    return int(array.sum())

TOTAL = sum(range({LARGE} // 8))
"""


@pytest.fixture(scope="module")
def machines() -> Iterator[Cluster]:
    with cluster_of(3, "--num-cpus=1", f"--object-store-memory={STORE}") as cluster:
        yield cluster


@pytest.fixture
def cluster(machines: Cluster) -> Cluster:
    """Three machines, the same for all tests."""
    return machines


@pytest.fixture
def slow_head(cluster: Cluster) -> Iterator[Cluster]:
    """The same, and what the head is sent comes slowly."""
    cluster.network.limit(cluster.head, SLOW)
    yield cluster
    cluster.network.unlimit(cluster.head)


def traffic(machine: Machine, *, sent: bool = False) -> int:
    """The bytes that a machine has been sent so far, or has sent itself."""
    table = Path(f"/proc/{component(machine, 'raylet')}/net/dev").read_text()
    [row] = [line.split() for line in table.splitlines() if "eth0:" in line]
    return int(row[9 if sent else 1])


def test_resets_in_a_stream_of_tasks_lose_none_and_repeat_none(
    cluster: Cluster, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    program = f"""
    ray.init()
    COUNT = 600
    refs = [note.options(resources=at(2 + n % 2)).remote(n, "{journal}") for n in range(COUNT)]
    waiting = refs
    while waiting:
        _, waiting = ray.wait(waiting, num_returns=min(40, len(waiting)))
        say("more")
        hear()
    assert ray.get(refs) == list(range(COUNT))
    say("over")
    """
    broken = 0
    with cluster.head.driver(TASKS + dedent(program)) as driver:
        while driver.hear(PATIENCE) == "more":
            for machine in cluster.others:
                broken += cluster.network.reset(cluster.head, machine)
            driver.say("go on")
        assert driver.end() == (0, "")
    assert sorted(map(int, journal.read_text().split())) == list(range(600))
    assert broken >= 15  # at least one each time


def test_resets_in_the_middle_of_a_transfer_are_invisible(slow_head: Cluster) -> None:
    head, away = slow_head.head, slow_head.others[0]
    program = """
    ray.init()
    ref = make.options(resources=at(2)).remote()
    ray.wait([ref], fetch_local=False)
    say("made")
    say(ray.get(ref).sum() == TOTAL)
    """
    with head.driver(TASKS + dedent(program)) as driver:
        assert driver.hear(PATIENCE) == "made"
        begun = traffic(head)
        for part in (1, 2, 3):
            assert eventually(lambda: traffic(head) - begun > part * 5 * MB)  # noqa: B023
            assert slow_head.network.reset(head, away) >= 1
        assert driver.hear(PATIENCE) == "True"
        assert traffic(head) - begun < 2 * LARGE  # nothing came anew that was there
        assert driver.end() == (0, "")


FILL = f"""
whole = ray.put(np.zeros({STORE} - (1 << 16), np.uint8))  # not one page is in use otherwise
say(whole is not None)
"""


def test_a_source_that_dies_in_the_middle_of_a_transfer_is_an_error_soon(
    slow_head: Cluster,
) -> None:
    head, away = slow_head.head, slow_head.others[0]
    program = """
    ray.init()
    ref = make.options(resources=at(2)).remote()
    ray.wait([ref], fetch_local=False)
    say("made")
    began = time.monotonic()
    try:
        ray.get(ref)
    except ObjectLostError:
        say("lost")
    del ref
    """
    with head.driver(TASKS + dedent(program) + FILL) as driver:
        assert driver.hear(PATIENCE) == "made"
        begun = traffic(head)
        assert eventually(lambda: traffic(head) - begun > 5 * MB)
        slow_head.kill(away, "raylet")
        assert driver.hear(BOUND) == "lost"
        assert driver.hear(BOUND) == "True"
        assert driver.end()[0] == 0
    joined(slow_head.join(away))


def test_a_transfer_goes_on_from_another_source_when_one_dies(slow_head: Cluster) -> None:
    head, others = slow_head.head, slow_head.others
    program = """
    ray.init()
    ref = make.options(resources=at(2)).remote()
    assert ray.get(total.options(resources=at(3)).remote(ref)) == TOTAL  # a copy is there now
    say("made")
    say(ray.get(ref).sum() == TOTAL)
    del ref
    """
    with head.driver(TASKS + dedent(program) + FILL) as driver:
        assert driver.hear(PATIENCE) == "made"
        before = {machine: traffic(machine, sent=True) for machine in others}
        begun = traffic(head)
        assert eventually(lambda: traffic(head) - begun > 5 * MB)
        source = max(others, key=lambda machine: traffic(machine, sent=True) - before[machine])
        slow_head.kill(source, "raylet")
        assert driver.hear(BOUND) == "True"
        came = traffic(head) - begun
        assert driver.hear(BOUND) == "True"
        assert driver.end()[0] == 0
        assert came < LARGE + 10 * MB  # what had come did not come again
    joined(slow_head.join(source))
    alive = [row for row in nodes(slow_head.record(head)) if row.alive]
    assert len(alive) == 3
