"""One port a node: what listens, and that everything finds its way through it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.cluster.netns import Lan, Machine, component, lan

pytestmark = [pytest.mark.process, pytest.mark.fault, pytest.mark.timeout(120)]

LITTLE = ("--num-cpus=2", "--object-store-memory=80000000")

LISTENING = """
import ipaddress, struct
from pathlib import Path

for name in ("tcp", "tcp6"):
    for line in Path("/proc/net", name).read_text().splitlines()[1:]:
        address, state = line.split()[1], line.split()[3]
        host, port = address.split(":")
        words = struct.pack("<%dI" % (len(host) // 8), *struct.unpack(">%dI" % (len(host) // 8), bytes.fromhex(host)))
        if state == "0A" and not ipaddress.ip_address(words).is_loopback:
            print(int(port, 16))
"""

PROGRAM = """
import raylite as ray

ray.init()

@ray.remote(num_cpus=1)
def twice(data):
    return ray.get_runtime_context().get_node_id(), data + data

@ray.remote(resources={"far": 1})
def far(nested, small, large):
    # Its worker owns these tasks, and a large object; those that run them are on both nodes.
    spread = twice.options(scheduling_strategy="SPREAD")
    made = ray.get([spread.remote(small) for _ in range(nested)])
    refs = [twice.options(resources={"near": 1}, num_cpus=0).remote(large) for _ in range(2)]
    return [node for node, _ in made], [len(each) for _, each in made], [
        len(each) for _, each in ray.get(refs)
    ], ray.put(large)

nodes, small, large, ref = ray.get(far.remote(20, b"x" * 50_000, bytes(3_000_000)))
print(len(set(nodes)), set(small), large, len(ray.get(ref)))
"""


def listening(machine: Machine) -> list[int]:
    """The ports of a machine at which others reach it."""
    return sorted(map(int, machine.run(LISTENING).split()))


@pytest.fixture
def network() -> Iterator[Lan]:
    # Not `tmp_path`: the paths of sockets would be too long.
    with TemporaryDirectory(prefix="rl") as folder, lan(Path(folder)) as made:
        made.machine(), made.machine()
        try:
            yield made
        finally:
            for machine in reversed(made.machines):
                machine.raylite("stop", "--force")


def start(network: Lan, *words: str) -> None:
    """Start a cluster of the two machines; the words are for either."""
    head, other = network.machines
    where = f"--node-ip-address={head.ip}"
    told = head.raylite("start", "--head", where, '--resources={"near": 2}', *LITTLE, *words)
    [command] = [line for line in told.splitlines() if " --address=" in line]
    join = command.replace("=FILE", f"={head.record()['token_file']}").split()[1:]
    other.raylite(*join, '--resources={"far": 1}', *LITTLE, *words)


def test_one_port_a_node_is_enough_for_tasks_of_tasks_and_large_objects(network: Lan) -> None:
    start(network)
    head, other = network.machines
    running = head.popen("-c", PROGRAM + "\nprint('done', flush=True)\ninput()\n")
    with running:
        assert running.stdout is not None
        assert running.stdin is not None
        told = [running.stdout.readline().strip() for _ in range(2)]
        assert told == ["2 {100000} [6000000, 6000000] 3000000", "done"]
        # With workers and a driver there.
        assert listening(head) == [6379]
        [port] = listening(other)
        assert port != 6379
        running.stdin.write("\n")
    assert running.returncode == 0


def test_ports_of_their_own_let_workers_be_reached_directly(network: Lan) -> None:
    start(network, "--node-manager-port=7000", "--min-worker-port=7100", "--max-worker-port=7150")
    head, other = network.machines
    running = head.popen("-c", PROGRAM + "\nprint('done', flush=True)\ninput()\n")
    with running:
        assert running.stdout is not None
        assert running.stdin is not None
        told = [running.stdout.readline().strip() for _ in range(2)]
        assert told == ["2 {100000} [6000000, 6000000] 3000000", "done"]
        driver, *workers = [port for port in listening(head) if port not in (6379, 7000)]
        assert 7100 <= driver <= 7150
        assert workers
        assert {7000} < set(listening(other)) <= {7000, *range(7100, 7151)}
        running.stdin.write("\n")
    assert running.returncode == 0


def test_a_gcs_that_was_started_again_is_reached_by_the_heads_port(network: Lan) -> None:
    start(network)
    head, other = network.machines
    os.kill(component(head, "gcs"), signal.SIGKILL)
    told = other.run("""
import raylite as ray

ray.init()

@ray.remote(resources={"near": 1})
def near():
    return 7

print(ray.get(near.remote()), sum(row["Alive"] for row in ray.nodes()))
""")
    assert told.split() == ["7", "2"]
