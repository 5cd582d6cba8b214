"""A cluster of machines, each a network namespace: what crosses the wire, and what a cut does."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.cluster.netns import Lan, Machine, lan

pytestmark = [pytest.mark.process, pytest.mark.fault, pytest.mark.timeout(120)]

LITTLE = ("--num-cpus=1", "--object-store-memory=80000000", "--insecure-plaintext")


@dataclass(frozen=True, slots=True)
class Cluster:
    network: Lan
    head: Machine
    other: Machine

    def record(self, machine: Machine) -> dict[str, object]:
        [path] = machine.folder.glob("*/session_latest/node.json")
        found: dict[str, object] = json.loads(path.read_bytes())
        return found

    def join(self) -> None:
        token, address = self.record(self.head)["token_file"], f"{self.head.ip}:6379"
        self.other.raylite(
            "start", f"--address={address}", f"--token-file={token}", *LITTLE,
            '--resources={"far": 1}', f"--node-ip-address={self.other.ip}",
        )  # fmt: skip


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    # Not `tmp_path`: the paths of sockets would be too long.
    with TemporaryDirectory(prefix="rl") as folder, lan(Path(folder)) as network:
        made = Cluster(network, network.machine(), network.machine())
        head = made.head
        head.raylite("start", "--head", f"--node-ip-address={head.ip}", *LITTLE)
        try:
            made.join()
            yield made
        finally:
            network.plug(made.other)
            for machine in (made.other, head):
                machine.raylite("stop", "--force")


PROGRAM = """
import sys, time
import raylite as ray

ray.init()

@ray.remote
def where():
    return ray.util_node()

@ray.remote(resources={"far": 1})
def far(data=b""):
    time.sleep(WAIT)
    return len(data), bytes(2_000_000)

def alive():
    return sum(row["Alive"] for row in ray.nodes())
"""


def program(text: str, wait: float = 0.0) -> str:
    shared = PROGRAM.replace("WAIT", str(wait))
    return shared.replace("ray.util_node()", "ray.get_runtime_context().get_node_id()") + text


def hear(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        assert process.stderr is not None
        pytest.fail(process.stderr.read())
    return line


def test_tasks_and_large_objects_pass_between_machines(cluster: Cluster) -> None:
    told = cluster.head.run(
        program("""
spread = where.options(scheduling_strategy="SPREAD")
print(len(set(ray.get([spread.remote() for _ in range(4)]))))
size, back = ray.get(far.remote(ray.put(bytes(3_000_000))))
print(size, len(back))
""")
    )
    assert told.split() == ["2", "3000000", "2000000"]


def test_a_blackout_of_five_seconds_is_invisible(cluster: Cluster) -> None:
    running = cluster.head.popen(
        "-c",
        program(
            """
ref = far.remote()
print("running", flush=True)
print(ray.get(ref)[0], alive(), flush=True)
print(ray.get(far.remote(b"more"))[0], flush=True)
""",
            wait=2.0,
        ),
    )
    with running:
        assert hear(running) == "running"
        time.sleep(1.0)
        cluster.network.unplug(cluster.other)
        time.sleep(5.0)
        cluster.network.plug(cluster.other)
        assert hear(running) == "0 2"
        assert hear(running) == "4"
        assert running.wait(20) == 0


def test_a_machine_that_is_cut_off_is_dead_after_ten_seconds(cluster: Cluster) -> None:
    watching = cluster.head.popen(
        "-c",
        program("""
print("ready", alive(), flush=True)
sys.stdin.readline()
began = time.monotonic()
while alive() == 2:
    time.sleep(0.05)
print(time.monotonic() - began, flush=True)
"""),
    )
    with watching:
        assert hear(watching) == "ready 2"
        cluster.network.unplug(cluster.other)
        assert watching.stdin is not None
        watching.stdin.write("\n")
        watching.stdin.flush()
        assert 8.5 <= float(hear(watching)) <= 11.5
        assert watching.wait(20) == 0


def test_a_killed_raylet_is_known_within_two_seconds(cluster: Cluster) -> None:
    watching = cluster.head.popen(
        "-c",
        program("""
print("ready", flush=True)
sys.stdin.readline()
began = time.monotonic()
while alive() == 2:
    time.sleep(0.02)
print(time.monotonic() - began, flush=True)
"""),
    )
    with watching:
        assert hear(watching) == "ready"
        server = int(str(cluster.record(cluster.other)["pid"]))
        os.kill(raylet_of(server), signal.SIGKILL)
        assert watching.stdin is not None
        watching.stdin.write("\n")
        watching.stdin.flush()
        assert float(hear(watching)) <= 2.5
        assert watching.wait(20) == 0


def raylet_of(server: int) -> int:
    for child in Path(f"/proc/{server}/task/{server}/children").read_text().split():
        if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"raylite: raylet"):
            return int(child)
    raise AssertionError("the node has no raylet")
