"""`Nursery`: clusters that are forked from one process, one after the other and side by side."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import raylite as ray
from raylite.exceptions import LocalRayletDiedError
from raylite.testing import LocalCluster, Nursery
from tests.cluster.watching import SOON, Driver, Watch, title, tree

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        with LocalCluster(num_cpus=1):  # it is there, and has imported all
            pass
        yield nursery


@ray.remote
def surroundings() -> tuple[str, str | None, bool]:
    return os.getcwd(), os.environ.get("GIVEN"), "/nowhere" in sys.path


@ray.remote
def pid() -> int:
    return os.getpid()


@ray.remote
def rest() -> None:
    threading.Event().wait()


def nodes_of(nursery: Nursery) -> list[int]:
    return [child.pid for child in psutil.Process(nursery.pid).children()]


def test_a_cluster_ends_with_its_block_and_the_nursery_stays(nursery: Nursery) -> None:
    pids = list[int]()
    for _ in range(2):
        with LocalCluster(nodes=[1, 1]) as cluster:
            (head,) = nodes_of(nursery)
            assert title(head) == "raylite: node"
            assert len(ray.nodes()) == len(cluster.nodes) == 2
            pids.append(head)
        assert tree(nursery.pid) == []
    assert len(set(pids)) == 2
    assert title(nursery.pid) == "raylite: nursery"


def test_clusters_from_one_nursery_stand_side_by_side(nursery: Nursery) -> None:
    with LocalCluster(num_cpus=1), LocalCluster(num_cpus=3):
        assert len(nodes_of(nursery)) == 2
        assert ray.cluster_resources()["CPU"] == 3
    assert tree(nursery.pid) == []


def test_a_cluster_is_where_this_process_is_when_it_starts(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIVEN", "caf\xe9 \udcff")  # as bytes that are no text are shown
    monkeypatch.syspath_prepend("/nowhere")
    with LocalCluster(num_cpus=1):
        assert ray.get(surroundings.remote()) == (str(tmp_path), "caf\xe9 \udcff", True)
    monkeypatch.undo()
    with LocalCluster(num_cpus=1):
        assert ray.get(surroundings.remote())[1:] == (None, False)


def test_what_init_starts_is_forked_as_well_and_is_a_cluster_like_others(nursery: Nursery) -> None:
    with ray.init(num_cpus=1):
        (head,) = nodes_of(nursery)
        assert title(head) == "raylite: node"
        assert psutil.Process(ray.get(pid.remote())).ppid() == head
        with LocalCluster(num_cpus=3):
            assert len(nodes_of(nursery)) == 2
            assert ray.cluster_resources()["CPU"] == 3
        endless = rest.remote()
        with Watch(head) as watch:
            watch.signal(signal.SIGKILL)
            with pytest.raises(LocalRayletDiedError):
                ray.get(endless)
    assert tree(nursery.pid) == []


def test_an_environment_that_is_too_large_is_refused_in_words(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIVEN", "x" * 120_000)
    monkeypatch.setenv("MORE", "x" * 120_000)
    with pytest.raises(ValueError, match="environment is too large for a Nursery"):
        LocalCluster().start()
    assert tree(nursery.pid) == []


def test_a_nursery_that_was_killed_is_replaced() -> None:
    with Nursery() as nursery:
        killed = nursery.pid
        with Watch(killed) as watch:
            watch.signal(signal.SIGKILL)
            assert watch.left_after(SOON) == []
        with LocalCluster(num_cpus=1):
            assert len(nodes_of(nursery)) == 1
        assert nursery.pid != killed


PROGRAM = """
from raylite.testing import LocalCluster, Nursery

if __name__ == "__main__":
    nursery = Nursery()
    cluster = LocalCluster(nodes=[1, 1]).start()
    say(cluster._running._head.config.session_dir)
    if hear() == "close":
        nursery.close()
    say("closed")
    hear()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_a_killed_process_and_its_nursery(number: int) -> None:
    with Driver(PROGRAM) as driver:
        session = Path(driver.hear())
        assert len(driver.watch_tree()) > 6
        driver.watch.signal(number, driver.pid)
        assert driver.watch.left_after(3 * 2.0) == []
        assert not (session / "sockets").exists()


def test_closing_it_ends_the_clusters_that_run_in_it() -> None:
    with Driver(PROGRAM) as driver:
        driver.hear()
        inside = [pid for pid in driver.watch_tree() if pid != driver.pid]
        driver.say("close")
        assert driver.hear() == "closed"
        with Watch(*inside) as watch:
            assert watch.left_after(3 * 2.0) == []
