"""Starting a node from this process, and its end: the driver's side of the fork server."""

import os
import signal
import socket
import threading
from contextlib import suppress
from time import monotonic
from typing import Protocol, Self

from msgspec import Struct
from msgspec.structs import replace

from raylite._kernel import processes
from raylite._runtime import nurseries
from raylite._runtime.folders import make_session_dir
from raylite._runtime.interpreter import ROLES, Interpreter, import_path
from raylite._runtime.node import (
    Accepted,
    Born,
    Channel,
    Ending,
    Failed,
    NodeConfig,
    Ready,
    Start,
    Stop,
    Stopped,
    clear,
    pair,
    tail,
    wait_readable,
)
from raylite._runtime.remains import sweep
from raylite.exceptions import RaySystemError

_TIDY = frozenset(Ending) - {Ending.FAILED}  # a fork server that ended so left nothing behind

_DYING = 1.0  # seconds for killed processes to end; only one stuck in the kernel takes longer


class Addresses(Struct, frozen=True):
    """The paths of a node's unix sockets."""

    gcs: str
    raylet: str


class Parent(Protocol):
    """What forks fork servers of nodes."""

    def fork(self, start: Start, end: socket.socket) -> None:
        """Fork one, and give it an end of a channel to its owner."""


class NodeProcess:
    """A node started by this process, which ends with it or with `stop`.

    Any thread may call anything. In a process forked from this one nothing has an effect.

    Args:
        config: What it is made from.
        roles: Where the functions of its processes are, as ``module:attribute``.
        parent: A node whose fork server is to fork this one's, which takes milliseconds, or another
            process that can. Then it ends with that one, too, and has its roles.
        interpreter: One that is to be the fork server, else; None to begin one.
    """

    def __init__(
        self,
        config: NodeConfig,
        roles: str,
        parent: Parent | None = None,
        interpreter: Interpreter | None = None,
    ) -> None:
        self.config: NodeConfig = config
        self.addresses: Addresses = Addresses(config.gcs_address, config.raylet_address)
        self._starter = os.getpid()
        self._lock = threading.Lock()
        self._ready: Ready | None = None
        self._reason: str | None = None
        self._arena_fd = -1
        self._stopped = False
        self.was_stopped: bool = False
        """Did it end because somebody asked it to?"""

        self._log = config.logs / "node.log"
        self.pid: int = 0
        """The fork server's."""

        self._pidfd = -1
        self._killed: list[int] = []
        """The fork server's children when it was killed, as pidfds: they end a moment after it."""

        self._status: int | None = None
        self._interpreter: Interpreter | None = None  # unless another node forks it
        start = Start(config, self._starter)
        try:
            if parent is None:
                self._begin(start, interpreter or Interpreter(config.sys_path, roles))
            else:
                self._be_born(start, parent)
        except BaseException:
            clear(config)
            raise

    def _begin(self, start: Start, interpreter: Interpreter) -> None:
        self.pid, self._pidfd = interpreter.pid, processes.open_pidfd(interpreter.pid)
        self._interpreter, self._channel = interpreter, Channel(interpreter.take())
        self._channel.send(start)

    def _be_born(self, start: Start, parent: Parent) -> None:
        own, theirs = pair()
        self._channel = Channel(own)
        try:
            parent.fork(start, theirs)
            self._wait_born()
        except BaseException:
            self._channel.close()
            raise
        finally:
            theirs.close()

    def fork(self, start: Start, end: socket.socket) -> None:
        """Have the fork server fork another node's, which gets an end of a channel to its owner."""
        with self._lock:
            if self._stopped or self._ready is None:
                raise RaySystemError("the node that was to fork another is not running")
            self._channel.send(start, [end.detach()])

    def _wait_born(self) -> None:
        while self._pidfd < 0:
            wait_readable(self._channel.fileno(), None)
            self._read()
            if self._channel.ended and self._pidfd < 0:
                raise RaySystemError("the node that was to fork another has ended")

    @property
    def raylet_pid(self) -> int:
        """The raylet's, once the node is ready; 0 before."""
        return self._ready.raylet if self._ready is not None else 0

    @property
    def arena_fd(self) -> int:
        """The arena's descriptor once the node is ready; `stop` closes it, so duplicate it."""
        return self._arena_fd

    @property
    def is_running(self) -> bool:
        """Does anything of it live, as far as one can know?"""
        return self.failure() is None and not self._stopped

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
                    wait_readable(self._channel.fileno(), left)
                    continue
                reason = f"the node did not start within {timeout} s{self._said()}"

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
                    self.config = message.config
                case Born(pid):
                    self.pid, (self._pidfd,) = pid, fds
                case Failed(reason) if self._reason is None:
                    self._reason = reason
                case Stopped():
                    self.was_stopped = True
        if self._channel.ended and self._reason is None:
            self._reason = (
                f"the node's fork server (pid {self.pid}) ended{self._how()}{self._said()}"
            )

    def _how(self) -> str:
        # Its descriptors are closed a moment before its status can be had.
        if not processes.wait_exit(self._pidfd, 1.0) or (status := self._reap()) is None:
            return ""
        return f": {processes.Exit.from_wait_status(self.pid, status).describe()}"

    def _said(self) -> str:
        text = tail(self._log)
        if not text and self._interpreter is not None and (early := self._interpreter.said()):
            text = f"; it had said:\n{early}"
        return text

    def _reap(self) -> int | None:
        """Wait for the fork server's end; None if its status is another's to have."""
        if self._status is None and self._interpreter is not None:
            with suppress(ChildProcessError):  # the program waits for children that are not its own
                self._status = os.waitpid(self.pid, 0)[1]
        return self._status

    def accept(self, *, outlives: bool) -> None:
        """Take a ready node for good: from now on it starts a GCS again that ends.

        Args:
            outlives: It is also to live on when this process ends; nothing here has an effect on it
                any more.

        Raises:
            RaySystemError: It has failed meanwhile.
        """
        if (reason := self.failure()) is not None:
            self.stop()
            raise RaySystemError(reason)
        with self._lock:
            self._channel.send(Accepted(outlives))
            if outlives:
                self._stopped = True
                self._close()

    def wait_end(self, timeout: float | None = None) -> bool:
        """Block until the node has ended by itself; False when time ran out first."""
        return self._stopped or processes.wait_exit(self._pidfd, timeout)

    def kill(self) -> None:
        """End the node at once, without a goodbye; `stop` is still to be called.

        Takes no lock: it is what a signal handler does while `stop` runs.
        """
        if os.getpid() != self._starter or (pidfd := self._pidfd) < 0:
            return
        with suppress(OSError):  # it ended, or was closed, this moment
            for child in processes.children(self.pid):
                with suppress(ProcessLookupError):
                    self._killed.append(processes.open_pidfd(child))
            if processes.parent(self.raylet_pid) == self.pid:
                os.kill(self.raylet_pid, signal.SIGKILL)  # or it hears the fork server's end first
            processes.send_signal(pidfd, signal.SIGKILL)

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
                self._close()

    def _close(self) -> None:
        self._channel.close()
        fds = (self._arena_fd, self._pidfd, *self._killed)
        self._arena_fd = self._pidfd = -1
        self._killed.clear()
        for fd in fds:
            if fd >= 0:
                os.close(fd)
        if self._interpreter is not None:
            self._interpreter.close()

    def _end(self, timeout: float) -> None:
        is_over = False
        try:
            self._channel.send(Stop(min(1.0, timeout)))
            # One that is not up yet has nothing to be graceful about, and may be far from listening.
            is_over = self._ready is not None and processes.wait_exit(self._pidfd, timeout)
        finally:  # also when a signal handler of the program has raised
            if not is_over:
                self.kill()
            if not self._is_tidy():
                inode = os.fstat(self._arena_fd).st_ino if self._arena_fd >= 0 else None
                sweep(self.config.session_dir, inode)
            deadline = monotonic() + _DYING
            for pidfd in self._killed:  # whose title is gone already, so that no sweep finds them
                processes.wait_exit(pidfd, deadline - monotonic())
            clear(self.config)

    def _is_tidy(self) -> bool:
        """Wait for the fork server's end; return whether it has left nothing behind."""
        processes.wait_exit(self._pidfd)
        if (status := self._reap()) is not None:
            return os.waitstatus_to_exitcode(status) in _TIDY
        for message, fds in self._channel.receive():  # its exit code is not known here
            self.was_stopped = self.was_stopped or isinstance(message, Stopped)
            for fd in fds:
                os.close(fd)
        return self.was_stopped

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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


def start(
    config: NodeConfig,
    roles: str = ROLES,
    parent: Parent | None = None,
    interpreter: Interpreter | None = None,
) -> NodeProcess:
    """Start a node and return at once: `launch` without the wait, which may serve for other work."""
    if parent is None and interpreter is None and roles == ROLES:
        parent = nurseries.current()
    if not config.session_dir:
        config = replace(config, session_dir=str(make_session_dir(config.temp_dir)))
    if not config.sys_path:
        config = replace(config, sys_path=interpreter.path if interpreter else import_path())
    return NodeProcess(config, roles, parent, interpreter)
