"""A cluster of machines, each a network namespace, that `raylite start` began on them."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from raylite._kernel.link import Link
from raylite._protocol.gcs import Nodes
from raylite._runtime import records
from raylite._runtime.records import NodeRecord
from raylite._wire.messages import gcs as msg
from tests.cluster.netns import Lan, Machine, component, lan
from tests.cluster.started import ask
from tests.cluster.watching import SOON, Watch, tree


class Cluster:
    """A head, and the other machines; the node of each is there until it is killed.

    Args:
        network: What joins them.
        words: Arguments of `raylite start`, for every node.
    """

    def __init__(self, network: Lan, *words: str) -> None:
        self.network = network
        self.machines: list[Machine] = []
        self._words = words
        self._command: list[str] = []

    @property
    def head(self) -> Machine:
        return self.machines[0]

    @property
    def others(self) -> list[Machine]:
        return self.machines[1:]

    def begin(self, count: int) -> None:
        """Plug in so many machines, and start a node on each."""
        self.machines = [self.network.machine() for _ in range(count)]
        head = self.head
        told = head.raylite("start", "--head", f"--node-ip-address={head.ip}", *self._words)
        [command] = [line for line in told.splitlines() if " --address=" in line]
        token = head.record()["token_file"]
        self._command = command.replace("=FILE", f"={token}").split()[1:]
        for joining in [self.join(machine) for machine in self.others]:
            joined(joining)

    def join(self, machine: Machine) -> "subprocess.Popen[str]":
        """Begin to make a machine a node; it has a resource `m` and its number."""
        return machine.begin(
            *self._command, *self._words, f'--resources={{"m{machine.number}": 1}}'
        )

    def record(self, machine: Machine) -> NodeRecord:
        """What a machine's node says of itself."""
        [path] = machine.folder.glob("*/session_latest")
        found = records.read(path)
        assert found is not None
        return found

    def processes(self, machine: Machine) -> list[int]:
        """The processes of a machine's node; none if it has none."""
        paths = list(machine.folder.glob("*/session_latest"))
        found = records.read(paths[0]) if paths else None
        return [found.pid, *tree(found.pid)] if found is not None and found.is_living else []

    def kill(self, machine: Machine, role: str) -> None:
        """Kill a node's GCS or raylet as `kill -9` does, and wait until it is no more."""
        with Watch(component(machine, role)) as watch:
            watch.signal(signal.SIGKILL)
            assert watch.left_after(SOON) == []

    def stop(self) -> None:
        self.network.mend()
        for machine in reversed(self.machines):
            machine.raylite("stop", "--force")


def joined(joining: "subprocess.Popen[str]") -> None:
    """Wait until a machine has become a node."""
    with joining:
        _, errors = joining.communicate(timeout=50)
    assert joining.returncode == 0, errors


def until_a_death(head: NodeRecord, act: Callable[[], object]) -> float:
    """Do something, and count the seconds until the cluster's table says that a node is dead."""

    async def question(link: Link) -> float:
        began = 0.0
        async for event in Nodes(link).watch(msg.WatchNodes()):
            if not began:  # the first event: the feed is there
                act()
                began = time.monotonic()
            elif not all(row.alive for row in event.nodes):
                break
        return time.monotonic() - began

    return ask(head, question)


@contextmanager
def cluster_of(count: int, *words: str) -> Iterator[Cluster]:
    """Start a cluster of so many machines, for the time of a block."""
    # Not `tmp_path`: the paths of sockets would be too long.
    with TemporaryDirectory(prefix="rl") as folder, lan(Path(folder)) as network:
        cluster = Cluster(network, *words)
        try:
            cluster.begin(count)
            yield cluster
        finally:
            cluster.stop()
