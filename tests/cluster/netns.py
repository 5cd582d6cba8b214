"""Machines for tests: network namespaces joined by a bridge in one of their own.

Nothing leaves these namespaces. Making them needs root and `ip`; without, the tests fail and say so.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.watching import the_only, titled

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "from raylite.cli import main; main()"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20)


class Machine:
    """A namespace with an address, a directory for sessions, and nothing in common with others.

    Only the file system is shared; with another directory, no node is found through it.
    """

    def __init__(self, lan: str, number: int, folder: Path) -> None:
        self.name = f"{lan}-{number}"
        self.port = f"p{number}"  # its end at the switch
        self.ip = f"10.77.0.{number}"
        self.folder = folder
        folder.mkdir()

    def record(self) -> dict[str, Any]:
        """Return what its node wrote for others to find it by."""
        [path] = self.folder.glob("*/session_latest/node.json")
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found

    def popen(self, *words: str) -> "subprocess.Popen[str]":
        """Start Python on this machine."""
        environment = os.environ | {"PYTHONPATH": str(ROOT), "RAYLITE_TMPDIR": str(self.folder)}
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, sys.executable, *words],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def raylite(self, *words: str) -> str:
        """Run a command of raylite; return what it printed."""
        code, out, err = self.attempt(*words)
        assert code == 0, err
        return out

    def attempt(self, *words: str) -> tuple[int, str, str]:
        """Run a command of raylite; return its exit code and what it printed, errors apart."""
        with self.popen("-c", COMMAND, *words) as process:
            out, err = process.communicate(timeout=50)
        return process.returncode, out, err

    def run(self, program: str) -> str:
        """Run a program; return what it printed."""
        with self.popen("-c", program) as process:
            out, err = process.communicate(timeout=50)
        assert process.returncode == 0, err
        return out


class Lan:
    """A switch, and the machines that are plugged in."""

    def __init__(self, folder: Path) -> None:
        self.name = f"rl{os.getpid()}"
        self._folder = folder
        self.machines: list[Machine] = []
        ip("netns", "add", self.name)
        ip("-n", self.name, "link", "add", "br0", "type", "bridge")
        ip("-n", self.name, "link", "set", "br0", "up")

    def machine(self) -> Machine:
        """Add a machine."""
        number = len(self.machines) + 1
        machine = Machine(self.name, number, self._folder / f"m{number}")
        ip("netns", "add", machine.name)
        self.machines.append(machine)
        ip(
            "-n", self.name, "link", "add", machine.port, "type", "veth",
            "peer", "name", "eth0", "netns", machine.name,
        )  # fmt: skip
        ip("-n", machine.name, "addr", "add", f"{machine.ip}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", machine.name, "link", "set", device, "up")
        self.plug(machine)
        return machine

    def plug(self, machine: Machine) -> None:
        ip("-n", self.name, "link", "set", machine.port, "master", "br0", "up")

    def unplug(self, machine: Machine) -> None:
        """Let nothing pass to or from a machine; nobody is told."""
        ip("-n", self.name, "link", "set", machine.port, "nomaster")

    def close(self) -> None:
        with ExitStack() as stack:
            for name in (self.name, *(machine.name for machine in self.machines)):
                stack.callback(ip, "netns", "del", name)


def component(machine: Machine, role: str) -> int:
    """Return the pid of the GCS or raylet of a machine's node."""
    return the_only(titled(f"raylite: {role}", machine.record()["pid"]))


@contextmanager
def lan(folder: Path) -> Iterator[Lan]:
    """Make a network; without the means for it, fail the test and say which."""
    if shutil.which("ip") is None:
        pytest.fail("network namespaces need `ip`: apt-get install iproute2", pytrace=False)
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
