"""Programs that tests run: each in an interpreter of its own, or forked from a warm one.

An interpreter that imports raylite takes a fifth of a second of a core, and a node's as much again
and more. While a `Warm` is open, programs and their first nodes are forked from it (see `tests.warm`).
"""

import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self, TextIO, TypeAlias

import msgspec
from msgspec import Struct

ROOT = Path(__file__).resolve().parents[1]

_WARM = "exec(__import__('tests.warm', fromlist=['program']).program({fd}))"


class Place(Struct, kw_only=True):
    """What a process has from the one that starts it."""

    environment: dict[bytes, bytes]
    directory: bytes
    umask: int

    @classmethod
    def here(cls, environment: Mapping[bytes, bytes]) -> "Place":
        with open("/proc/self/status") as status:  # there is no other way than to change it
            umask = next(line.split()[1] for line in status if line.startswith("Umask:"))
        return cls(environment=dict(environment), directory=os.getcwdb(), umask=int(umask, 8))

    def take(self) -> None:
        os.environb.clear()
        os.environb.update(self.environment)
        os.chdir(self.directory)
        os.umask(self.umask)


class Birth(Struct):
    """What a program begins with, besides its streams."""

    program: str
    words: list[str]
    place: Place
    leads_session: bool


class Forked:
    """What `subprocess.Popen` is for a program that was forked elsewhere: what tests use of it."""

    def __init__(self, birth: Birth, asked: socket.socket) -> None:
        pipes = [os.pipe() for _ in range(3)]
        (stdin, own_in), (own_out, stdout), (own_err, stderr) = pipes
        self._told, control = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with control:
            message = msgspec.msgpack.encode(birth)
            socket.send_fds(asked, [message], [stdin, stdout, stderr, control.fileno()])
        for fd in (stdin, stdout, stderr):
            os.close(fd)
        self.args = birth.words
        self.stdin: TextIO = os.fdopen(own_in, "w")
        self.stdout: TextIO = os.fdopen(own_out)
        self.stderr: TextIO = os.fdopen(own_err)
        self.returncode: int | None = None
        self._read: dict[TextIO, bytearray] = {
            each: bytearray() for each in (self.stdout, self.stderr)
        }
        self.pid = int(self._hear())

    def _hear(self) -> bytes:
        said = self._told.recv(32)
        assert said, "the interpreter that programs are forked from has ended"
        return said

    def poll(self) -> int | None:
        """The exit code, or minus the signal; None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._told, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(self._hear())
            self._told.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        deadline = None if timeout is None else time.monotonic() + timeout
        self._close_stdin()
        with selectors.DefaultSelector() as selector:
            for stream in self._read:
                if not stream.closed:
                    selector.register(stream, selectors.EVENT_READ, stream)
            while selector.get_map():
                left = None if deadline is None else max(0, deadline - time.monotonic())
                if not (ready := selector.select(left)):
                    raise subprocess.TimeoutExpired(self.args, timeout or 0)
                for key, _ in ready:
                    if data := os.read(key.fd, 65536):
                        self._read[key.data] += data
                    else:
                        selector.unregister(key.data)
                        key.data.close()
        self.wait(None if deadline is None else max(0, deadline - time.monotonic()))
        return self._read[self.stdout].decode(), self._read[self.stderr].decode()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(15)

    def kill(self) -> None:
        self.send_signal(9)

    def _close_stdin(self) -> None:
        try:
            self.stdin.close()
        except BrokenPipeError:  # it has not read what it was told
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_stdin()
        self.stdout.close()
        self.stderr.close()
        self.wait()


Program: TypeAlias = "subprocess.Popen[str] | Forked"


class Warm:
    """An interpreter that programs are forked from while it is open."""

    def __init__(self) -> None:
        self._asked, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", _WARM.format(fd=theirs.fileno())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        for stream in (self._process.stdin, self._process.stdout):  # of which no program may seek
            assert stream is not None
            stream.close()

    def fork(self, birth: Birth) -> Forked:
        return Forked(birth, self._asked)

    def close(self) -> None:
        self._asked.close()
        self._process.wait()


kept: list[Warm] = []
"""The one that is open, if any."""


def begin(
    program: str,
    *words: str,
    environment: Mapping[str, str] | None = None,
    leads_session: bool = False,
    within: Sequence[str] = (),
) -> Program:
    """Begin to run a Python program in which warnings are errors, and which finds raylite.

    Args:
        program: The program.
        words: What it finds in `sys.argv`.
        environment: More variables for it.
        leads_session: Whether it gets a session, and so a process group, of its own.
        within: A command that becomes the program, such as one that enters a namespace.
    """
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | dict(environment or {})
    if kept and not within:
        environ = {os.fsencode(name): os.fsencode(value) for name, value in variables.items()}
        return kept[-1].fork(Birth(program, list(words), Place.here(environ), leads_session))
    return subprocess.Popen(
        [*within, sys.executable, "-W", "error", "-c", program, *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=leads_session, env=variables,
    )  # fmt: skip
