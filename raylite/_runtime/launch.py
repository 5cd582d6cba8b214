"""Starting a node from this process, and its end: the driver's side of the fork server."""

import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from tempfile import gettempdir
from time import monotonic
from types import TracebackType
from typing import Self

from raylite._kernel import processes
from raylite._runtime.node import (
    SESSION_VARIABLE,
    Channel,
    Ending,
    Failed,
    NodeConfig,
    Ready,
    Start,
    Stop,
    clear,
    pair,
    tail,
)
from raylite.exceptions import RaySystemError

ROLES = "raylite._runtime.roles:ROLES"

_TIDY = frozenset(Ending) - {Ending.FAILED}  # a fork server that ended so left nothing behind
_SWEEPS = 5  # each finds what processes started just before they were killed by the one before
_PATH_LIMIT = 107  # bytes of a unix socket's path, by the size of `sockaddr_un`
# Not `-m`: the node's modules are then found where this process found its own, in the same order.
_PROGRAM = """\
import sys
fd, sys.path[:] = int(sys.argv[1]), sys.argv[2:]
sys.argv[:] = [""]
from raylite._runtime.forkserver import main
main(fd)
"""


@dataclass(frozen=True, slots=True)
class Addresses:
    """The paths of a node's unix sockets."""

    gcs: str
    raylet: str


class NodeProcess:
    """A node started by this process, which ends with it or with `stop`.

    Any thread may call anything. In a process forked from this one nothing has an effect.
    """

    def __init__(self, config: NodeConfig, roles: str) -> None:
        self.config = config
        self.addresses = Addresses(config.gcs_address, config.raylet_address)
        self._starter = os.getpid()
        self._lock = threading.Lock()
        self._ready: Ready | None = None
        self._reason: str | None = None
        self._arena_fd = -1
        self._stopped = False

        self._log = config.logs / "node.log"
        own, theirs = pair()
        self._channel = Channel(own)
        try:
            self._channel.send(Start(config, roles, self._starter))
            self._process = _spawn(config, theirs, self._log)
        except BaseException:
            self._channel.close()
            clear(config)
            raise
        finally:
            theirs.close()
        self._pidfd = processes.open_pidfd(self._process.pid)

    @property
    def pid(self) -> int:
        """The fork server's."""
        return self._process.pid

    @property
    def arena_fd(self) -> int:
        """The arena's descriptor once the node is ready; `stop` closes it, so duplicate it."""
        return self._arena_fd

    def fileno(self) -> int:
        """The descriptor to watch: when it is readable, ask for `failure`."""
        return self._channel.fileno()

    def wait_ready(self, timeout: float | None = 60.0) -> None:
        """Block until the node's sockets accept connections. A failed node is stopped.

        Raises:
            RaySystemError: The node could not start, or took too long. The message has the reason.
        """
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            reason = self.failure()
            if self._ready is not None:
                return
            if reason is None:
                left = None if deadline is None else deadline - monotonic()
                if left is None or left > 0:
                    _wait_readable(self._channel.fileno(), left)
                    continue
                reason = f"the node did not start within {timeout} s{tail(self._log)}"

            self.stop()
            raise RaySystemError(reason)

    def failure(self) -> str | None:
        """Say why the node ended by itself; None while it lives, and after `stop`. Never blocks."""
        if os.getpid() == self._starter and self._lock.acquire(blocking=False):
            try:
                if not self._stopped:
                    self._read()
            finally:
                self._lock.release()
        return self._reason

    def _read(self) -> None:
        for message, fds in self._channel.receive():
            match message:
                case Ready():
                    self._ready, (self._arena_fd,) = message, fds
                case Failed(reason) if self._reason is None:
                    self._reason = reason
        if self._channel.ended and self._reason is None:
            self._reason = (
                f"the node's fork server (pid {self.pid}) ended{self._how()}{tail(self._log)}"
            )

    def _how(self) -> str:
        # Its descriptors are closed a moment before its status can be had.
        if not processes.wait_exit(self._pidfd, 1.0):
            return ""
        code = self._process.wait()
        ended = (
            processes.Exit(self.pid, code=code)
            if code >= 0
            else processes.Exit(self.pid, signal=-code)
        )
        return f": {ended.describe()}"

    def kill(self) -> None:
        """End the node at once, without a goodbye; `stop` is still to be called.

        Takes no lock: it is what a signal handler does while `stop` runs.
        """
        if os.getpid() == self._starter:
            self._process.kill()

    def stop(self, timeout: float = 5.0) -> None:
        """End the node and wait until nothing of it is left. Calling it again does nothing.

        The components get up to a second of `timeout` to stop by themselves.
        """
        if os.getpid() != self._starter:
            return
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            try:
                self._end(timeout)
            finally:
                self._channel.close()
                for fd in (self._arena_fd, self._pidfd):
                    if fd >= 0:
                        os.close(fd)
                self._arena_fd = self._pidfd = -1

    def _end(self, timeout: float) -> None:
        is_over = False
        try:
            self._channel.send(Stop(min(1.0, timeout)))
            # One that is not up yet has nothing to be graceful about, and may be far from listening.
            is_over = self._ready is not None and processes.wait_exit(self._pidfd, timeout)
        finally:  # also when a signal handler of the program has raised
            if not is_over:
                self._process.kill()
            if self._process.wait() not in _TIDY:
                self._sweep()
            clear(self.config)

    def _sweep(self) -> None:
        """Do what the fork server could not: it was killed, or has a bug."""
        inode = os.fstat(self._arena_fd).st_ino if self._arena_fd >= 0 else None
        mark = f"{SESSION_VARIABLE}={self.config.session_dir}"
        for _ in range(_SWEEPS):
            left = list(processes.strays(mark, inode))
            if not left:
                break
            for pid in left:
                _kill(pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def launch(config: NodeConfig, roles: str = ROLES) -> NodeProcess:
    """Start a node and wait until its sockets accept connections.

    Args:
        config: What the node is made from; its `session_dir` is made here if it is empty.
        roles: Where the functions of its processes are, as ``module:attribute``.

    Raises:
        OSError: There is no room for the session's directory, or its path is too long for a socket.
        RaySystemError: The node could not start.
    """
    node = start(config, roles)
    node.wait_ready()
    return node


def start(config: NodeConfig, roles: str = ROLES) -> NodeProcess:
    """Start a node and return at once: `launch` without the wait, which may serve for other work."""
    if not config.session_dir:
        config = replace(config, session_dir=str(make_session_dir(config.temp_dir)))
    if not config.sys_path:
        config = replace(config, sys_path=_import_path(sys.path))
    return NodeProcess(config, roles)


def make_session_dir(temp_dir: str = "") -> Path:
    """Make a new session's directory, closed to other users, under the system's or another.

    Raises:
        OSError: It could not be made, or the paths of sockets in it would be too long.
    """
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S_%f")
    name = f"session_{stamp}_{os.getpid()}"
    session = _private(Path(temp_dir or gettempdir()).absolute(), name) / name
    for directory in (session, session / "logs", session / "sockets"):
        directory.mkdir(mode=0o700)
    return session


def _private(temp_dir: Path, session: str) -> Path:
    """A directory for all sessions of this user, this one's sockets included.

    Ray: one directory for all users, open to all. Who owns a directory can replace what is in it,
    so the second user gets another.
    """
    for name in ("raylite", f"raylite-{os.geteuid()}"):
        directory = temp_dir / name
        socket_path = NodeConfig(0, 0, session_dir=str(directory / session)).raylet_address
        if len(os.fsencode(socket_path)) > _PATH_LIMIT:
            raise OSError(
                f"AF_UNIX path length cannot exceed {_PATH_LIMIT} bytes: {socket_path!r}; "
                "choose a shorter temporary directory"
            )

        with suppress(FileExistsError):
            directory.mkdir(mode=0o700, parents=True)
        facts = directory.lstat()
        if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid():
            return directory

    raise PermissionError(f"{directory} is another user's; choose another temporary directory")


def _import_path(entries: Sequence[object]) -> tuple[str, ...]:
    """`sys.path` for a process that may change its directory: the empty entry means this one."""
    return tuple(entry or os.getcwd() for entry in entries if isinstance(entry, str))


def _spawn(config: NodeConfig, end: socket.socket, log: Path) -> subprocess.Popen[bytes]:
    """Start the fork server with one end of a channel.

    It gets a session of its own, so that a Ctrl-C on the terminal reaches the driver only. Its
    death is not tied to ours by a signal: that would be to the death of the calling *thread*.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    with open(log, "ab", opener=lambda path, _: os.open(path, flags, 0o600)) as output:
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(end.fileno()), *config.sys_path],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[end.fileno()],
            start_new_session=True,
            env={**os.environ, SESSION_VARIABLE: config.session_dir},
        )


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        pidfd = processes.open_pidfd(pid)
        try:
            with suppress(PermissionError):
                processes.send_signal(pidfd, signal.SIGKILL)
                processes.wait_exit(pidfd, 1.0)
        finally:
            os.close(pidfd)


def _wait_readable(fd: int, timeout: float | None) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll(None if timeout is None else timeout * 1000)
