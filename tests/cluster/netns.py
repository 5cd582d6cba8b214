"""Machines for tests: network namespaces joined by a bridge in one of their own.

Nothing leaves these namespaces. Making them needs root, `ip`, `tc` and `ss`; without, the tests fail
and say so.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.watching import Driver, the_only, titled
from tests.programs import ROOT

COMMAND = "from raylite.cli import main; main()"
HOLE = "hole"  # a device of the switch that leads nowhere
TOOLS = ("ip", "tc", "ss")


def run(*words: str) -> str:
    """Run a tool; return what it printed."""
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=20)
    return done.stdout


class Machine:
    """A namespace with an address, a directory for sessions, and nothing in common with others.

    Only the file system is shared; with another directory, no node is found through it.
    """

    def __init__(self, lan: str, number: int, folder: Path) -> None:
        self.name = f"{lan}-{number}"
        self.number = number
        self.port = f"p{number}"  # its end at the switch
        self.ip = f"10.77.0.{number}"
        self.folder = folder
        self._inside = ["ip", "netns", "exec", self.name]
        self._environment = {"PYTHONPATH": str(ROOT), "RAYLITE_TMPDIR": str(folder)}
        folder.mkdir()

    def record(self) -> dict[str, Any]:
        """Return what its node wrote for others to find it by."""
        [path] = self.folder.glob("*/session_latest/node.json")
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found

    def popen(self, *words: str) -> "subprocess.Popen[str]":
        """Start Python on this machine."""
        return subprocess.Popen(
            [*self._inside, sys.executable, *words], env=os.environ | self._environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def begin(self, *words: str) -> "subprocess.Popen[str]":
        """Begin to run a command of raylite."""
        return self.popen("-c", COMMAND, *words)

    def raylite(self, *words: str) -> str:
        """Run a command of raylite; return what it printed."""
        code, out, err = self.attempt(*words)
        assert code == 0, err
        return out

    def attempt(self, *words: str) -> tuple[int, str, str]:
        """Run a command of raylite; return its exit code and what it printed, errors apart."""
        with self.begin(*words) as process:
            out, err = process.communicate(timeout=50)
        return process.returncode, out, err

    def run(self, program: str) -> str:
        """Run a program; return what it printed."""
        with self.popen("-c", program) as process:
            out, err = process.communicate(timeout=50)
        assert process.returncode == 0, err
        return out

    def driver(self, program: str) -> Driver:
        """Run a program that talks with the test by lines."""
        return Driver(program, self._inside, self._environment)

    def tool(self, *words: str) -> str:
        """Run a tool on this machine; return what it printed."""
        return run(*self._inside, *words)


class Lan:
    """A switch, the machines that are plugged in, and the faults of what lies between them.

    The faults act in the switch and on established connections, never on the ends' routes: nobody
    is told of them who would not be told by a real network.
    """

    def __init__(self, folder: Path) -> None:
        self.name = f"rl{os.getpid()}"
        self._folder = folder
        self.machines: list[Machine] = []
        self._blocked: dict[tuple[int, int], None] = {}
        run("ip", "netns", "add", self.name)
        self._device("add", "br0", "type", "bridge")
        # A filter can redirect what it matches, and not every kernel can have it dropped.
        self._device("add", HOLE, "type", "veth", "peer", "name", "bottom")
        for device in ("br0", HOLE):
            self._device("set", device, "up")

    def machine(self) -> Machine:
        """Add a machine."""
        number = len(self.machines) + 1
        machine = Machine(self.name, number, self._folder / f"m{number}")
        run("ip", "netns", "add", machine.name)
        self.machines.append(machine)
        self._device(
            "add", machine.port, "type", "veth", "peer", "name", "eth0", "netns", machine.name
        )
        run("ip", "-n", machine.name, "addr", "add", f"{machine.ip}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            run("ip", "-n", machine.name, "link", "set", device, "up")
        self._control("qdisc", "add", "dev", machine.port, "clsact")
        self.plug(machine)
        return machine

    def plug(self, machine: Machine) -> None:
        self._device("set", machine.port, "master", "br0", "up")

    def unplug(self, machine: Machine) -> None:
        """Let nothing pass to or from a machine; nobody is told."""
        self._device("set", machine.port, "nomaster")

    def block(self, sender: Machine, receiver: Machine) -> None:
        """Lose whatever one machine sends to another. What goes the other way arrives."""
        self._control(
            "filter", "add", "dev", receiver.port, "egress", "protocol", "ip",
            "pref", str(sender.number), "u32", "match", "ip", "src", f"{sender.ip}/32",
            "action", "mirred", "egress", "redirect", "dev", HOLE,
        )  # fmt: skip
        self._blocked[sender.number, receiver.number] = None

    def cut(self, one: Machine, other: Machine) -> None:
        """Let nothing pass between two machines; both reach all others."""
        self.block(one, other)
        self.block(other, one)

    def mend(self) -> None:
        """Let everything pass again."""
        for sender, receiver in self._blocked:
            port = self.machines[receiver - 1].port
            self._control("filter", "del", "dev", port, "egress", "pref", str(sender))
        self._blocked.clear()
        for machine in self.machines:
            self.plug(machine)

    def limit(self, machine: Machine, megabits: int) -> None:
        """Send no more than so much to a machine; what is more waits, for a second and not longer.

        It delays too, by that wait. A delay alone needs `netem`, which kernels often lack.
        """
        self._control(
            "qdisc", "add", "dev", machine.port, "root",
            "tbf", "rate", f"{megabits}mbit", "burst", "64kb", "latency", "1s",
        )  # fmt: skip

    def unlimit(self, machine: Machine) -> None:
        self._control("qdisc", "del", "dev", machine.port, "root")

    def reset(self, one: Machine, other: Machine) -> int:
        """Break every TCP connection between two machines by a reset; return how many."""
        broken = one.tool("ss", "-K", "-Htn", "state", "established", "dst", other.ip)
        return len(re.findall(re.escape(other.ip) + r"\]?:\d", broken))

    def close(self) -> None:
        with ExitStack() as stack:
            for name in (self.name, *(machine.name for machine in self.machines)):
                stack.callback(run, "ip", "netns", "del", name)

    def _device(self, *words: str) -> None:
        run("ip", "-n", self.name, "link", *words)

    def _control(self, *words: str) -> None:
        run("tc", "-n", self.name, *words)


def component(machine: Machine, role: str) -> int:
    """Return the pid of the GCS or raylet of a machine's node."""
    return the_only(titled(f"raylite: {role}", machine.record()["pid"]))


@contextmanager
def lan(folder: Path) -> Iterator[Lan]:
    """Make a network; without the means for it, fail the test and say which."""
    for tool in TOOLS:
        if shutil.which(tool) is None:
            pytest.fail(f"machines need `{tool}`: apt-get install iproute2", pytrace=False)
    if os.geteuid():
        pytest.fail("network namespaces need root: run the tests as root", pytrace=False)
    try:
        network = Lan(folder)
    except subprocess.CalledProcessError as error:
        pytest.fail(f"network namespaces cannot be made here: {error.stderr}", pytrace=False)
    try:
        yield network
    finally:
        network.close()
