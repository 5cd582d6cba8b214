"""A cluster of machines, each a network namespace: how they join, and what crosses the wire."""

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from raylite._kernel.token import create_token
from raylite._runtime import credentials
from tests.cluster.netns import Lan, Machine, component, lan
from tests.cluster.watching import SOON, Watch

pytestmark = [pytest.mark.process, pytest.mark.fault, pytest.mark.timeout(120)]

LITTLE = ("--num-cpus=1", "--object-store-memory=80000000")
PLAIN = "--insecure-plaintext"


@dataclass(frozen=True, slots=True)
class Cluster:
    network: Lan
    head: Machine
    other: Machine
    options: tuple[str, ...]

    def begin(self, *more: str) -> list[str]:
        """Start the head; return the words of the join command that it prints, without `raylite`."""
        told = self.head.raylite(
            "start", "--head", f"--node-ip-address={self.head.ip}", *LITTLE, *self.options, *more
        )
        [command] = [line for line in told.splitlines() if " --address=" in line]
        token = self.head.record()["token_file"]
        return command.replace("=FILE", f"={token}").split()[1:]

    def join(self, command: list[str]) -> None:
        self.other.raylite(*command, *LITTLE, *self.options, '--resources={"far": 1}')


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two machines, whose nodes encrypt unless a test says otherwise."""
    # Not `tmp_path`: the paths of sockets would be too long.
    with TemporaryDirectory(prefix="rl") as folder, lan(Path(folder)) as network:
        machines = network.machine(), network.machine()
        made = Cluster(network, *machines, getattr(request, "param", ()))
        head = made.head
        try:
            made.join(made.begin())
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
    return ray.get_runtime_context().get_node_id()

@ray.remote(resources={"far": 1})
def far(data=b""):
    return len(data), bytes(2_000_000)
"""


def program(text: str) -> str:
    return PROGRAM + text


def hear(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        assert process.stderr is not None
        pytest.fail(process.stderr.read())
    return line


WORK = """
spread = where.options(scheduling_strategy="SPREAD")
print(len(set(ray.get([spread.remote() for _ in range(4)]))), flush=True)
size, back = ray.get(far.remote(ray.put(bytes(3_000_000))))
print(size, len(back), flush=True)
"""


@pytest.mark.parametrize("cluster", [(), (PLAIN,)], indirect=True, ids=["TLS", "plain text"])
def test_tasks_and_large_objects_pass_between_machines(cluster: Cluster) -> None:
    assert cluster.head.run(program(WORK)).split() == ["2", "3000000", "2000000"]


@pytest.mark.parametrize(
    "cluster", [(), ("--min-worker-port=0",)], indirect=True, ids=["one port", "workers' ports"]
)
def test_all_that_nodes_say_to_each_other_is_encrypted(cluster: Cluster) -> None:
    """Also what a GCS says that was started again, and the workers and drivers of both nodes."""
    pin = credentials.pin(cluster.head.record()["tls"])
    watched = Watch(gcs := component(cluster.head, "gcs"))
    os.kill(gcs, signal.SIGKILL)
    assert watched.left_after(SOON) == []
    watched.close()
    with cluster.other.popen("-c", program(f"{WORK}sys.stdin.read()")) as running:
        assert [hear(running) for _ in range(2)] == ["2", "3000000 2000000"]
        for machine in (cluster.head, cluster.other):
            ports = listening(machine)
            assert len(ports) > len(cluster.options)  # the node's; a worker's or the driver's
            other = cluster.other if machine is cluster.head else cluster.head
            shown = other.run(SHOWN.format(ip=machine.ip, ports=ports, pin=pin))
            assert shown.split() == ["sealed"] * len(ports)
        assert running.stdin is not None
        running.stdin.close()
        assert running.wait(20) == 0


SHOWN = """
import socket
from raylite._kernel.tls import fetch_authority

for port in {ports}:
    with socket.create_connection(({ip!r}, port), 5) as sock:
        sock.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes(9))
        try:
            said = sock.recv(100)
        except ConnectionError:
            said = b""
    is_sealed = fetch_authority({ip!r}, port, {pin!r}) and said[:1] in (b"", b"\\x15")  # an alert
    print("sealed" if is_sealed else "plain")
"""


def listening(machine: Machine) -> list[int]:
    """The TCP ports at which a machine's processes listen, by the system's table."""
    shown = machine.tool("cat", "/proc/net/tcp", "/proc/net/tcp6")
    rows = [line.split() for line in shown.splitlines() if ":" in line]
    return [int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"]


def test_what_cannot_join_says_why_and_leaves_nothing() -> None:
    with TemporaryDirectory(prefix="rl") as folder, lan(Path(folder)) as network:
        made = Cluster(network, network.machine(), network.machine(), ())
        try:
            _, address, pin, token = made.begin()
            create_token(other_token := f"{folder}/other/token")
            other_pin = f"--ca-fingerprint=sha256:{0:064}"
            for words, hint in [
                ((address, token), "Add --ca-fingerprint"),
                ((address, pin), "with --token-file or RAYLITE_TOKEN_FILE"),
                ((address, pin, f"--token-file={other_token}"), "it has another token"),
                ((address, token, other_pin), "get the join string once more"),
                ((address, token, "--ca-fingerprint=sha256:12"), "is no fingerprint"),
                ((address, token, PLAIN), "expects TLS"),
                ((address, token, pin, PLAIN), "encrypts: leave --insecure-plaintext out"),
                ((address.replace("6379", "6380"), token, pin), "Is its head running"),
                ((address, token, pin, "--node-ip-address=0.0.0.0"), "where others reach"),
                ((address, token, pin, "--node-ip-address=10.9.9.9"), "is not an address of this"),
            ]:
                code, out, errors = made.other.attempt("start", *words)
                assert (code, out) == (1, ""), words
                assert hint in errors, words
                assert errors.count("\n") == 1, errors
                assert list(made.other.folder.glob("raylite/*")) == []
        finally:
            made.head.raylite("stop", "--force")


def test_a_node_may_listen_on_every_network_and_be_reached_at_one() -> None:
    with TemporaryDirectory(prefix="rl") as folder, lan(Path(folder)) as network:
        made = Cluster(network, network.machine(), network.machine(), ())
        try:
            command = made.begin("--bind=0.0.0.0")
            made.join([*command, "--bind=0.0.0.0"])
            assert made.other.run(program(WORK)).split() == ["2", "3000000", "2000000"]
        finally:
            for machine in (made.other, made.head):
                machine.raylite("stop", "--force")


def test_what_a_worker_of_another_machine_prints_is_shown_with_its_address(
    cluster: Cluster,
) -> None:
    told = cluster.head.run(
        program("""
@ray.remote(resources={"far": 1})
def say():
    print("hello")
    sys.stdout.write("from the other machine")
    import os
    return os.getpid()

pid = ray.get(say.remote())
ray.shutdown()  # shows what was printed
print(pid)
""")
    )
    *shown, pid = told.splitlines()
    prefix = f"(say pid={pid}, ip={cluster.other.ip}) "
    assert shown == [f"{prefix}hello", f"{prefix}from the other machine"]
