"""A cluster's processes as the operating system shows them, and drivers to be killed."""

import os
import select
import signal
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Self

import psutil

from raylite._kernel.processes import open_pidfd, send_signal, wait_exit
from tests.programs import begin

SOON = 20.0
"""Seconds that bound a failure; a test that passes does not wait for them."""

PREAMBLE = """\
import os, signal, sys, threading, time
import raylite as ray

def say(*words):
    print(*words, flush=True)

def hear():
    return sys.stdin.readline().strip()
"""


def tree(pid: int | None = None) -> list[int]:
    """The descendants of a process, this one by default."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def title(pid: int) -> str:
    """What a process calls itself; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()
    except OSError:
        return ""


def titled(prefix: str, pid: int | None = None) -> list[int]:
    """The descendants of a process whose title begins so."""
    return [child for child in tree(pid) if title(child).startswith(prefix)]


def workers(pid: int | None = None) -> list[int]:
    """The worker processes of the clusters of a driver, this process by default."""
    return titled("raylite::", pid)


def the_only(pids: Iterable[int]) -> int:
    """The process there is."""
    (pid,) = pids
    return pid


def eventually(fact: Callable[[], bool]) -> bool:
    """Wait for something that another process will soon have done, and that has no event."""
    deadline = time.monotonic() + SOON
    while not fact():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class Watch:
    """Processes held by pidfd, so that their ends are events and their numbers stay theirs."""

    def __init__(self, *pids: int) -> None:
        self._pidfds: dict[int, int] = {}
        for pid in pids:
            try:
                self._pidfds[pid] = open_pidfd(pid)
            except ProcessLookupError:
                continue  # it has ended since it was listed

    def signal(self, number: int, *pids: int) -> None:
        """Send a signal to some of the processes, to all by default."""
        for pid in pids or self._pidfds:
            send_signal(self._pidfds[pid], number)

    def left_after(self, seconds: float) -> list[str]:
        """Wait so long for all of them to end; describe those that have not."""
        deadline = time.monotonic() + seconds
        return [
            f"{pid} {title(pid)}"
            for pid, pidfd in self._pidfds.items()
            if not wait_exit(pidfd, deadline - time.monotonic())
        ]

    def close(self) -> None:
        for pidfd in self._pidfds.values():
            os.close(pidfd)
        self._pidfds.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Driver:
    """A program in a process group of its own that uses raylite as ``ray``.

    It talks by lines: ``say(...)`` there is `hear` here, and the other way round. At the end of the
    block it is killed, and so is what it left of the processes that were being watched.

    Args:
        program: The program.
        within: A command that becomes the program, such as one that enters a namespace.
        environment: More variables for the program.
    """

    def __init__(
        self,
        program: str,
        within: Sequence[str] = (),
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._process = begin(
            PREAMBLE + textwrap.dedent(program),
            environment=environment, leads_session=True, within=within,
        )  # fmt: skip
        self.pid = self._process.pid
        self.watch = Watch()
        self._heard = b""

    def hear(self, within: float = SOON) -> str:
        """The next line that the program says."""
        assert self._process.stdout is not None
        while b"\n" not in self._heard:
            assert select.select([self._process.stdout], [], [], within)[0], "it says nothing"
            data = os.read(self._process.stdout.fileno(), 4096)
            assert data, f"the driver has ended: {self.end()[1]}"
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def say(self, *words: object) -> None:
        """Say a line to the program."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()

    def watch_tree(self) -> list[int]:
        """Watch the program and its present descendants; return their pids."""
        self.watch.close()
        pids = [self.pid, *tree(self.pid)]
        self.watch = Watch(*pids)
        return pids

    def press_ctrl_c(self) -> None:
        """Interrupt the program as a terminal does: with its process group."""
        os.killpg(self.pid, signal.SIGINT)

    def end(self) -> tuple[int, str]:
        """Wait for its end; return the exit code (or minus the signal), and its stderr."""
        _, errors = self._process.communicate(timeout=SOON)
        return self._process.wait(), errors

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        self._process.communicate()
        self.watch.signal(signal.SIGKILL)
        self.watch.close()
