"""A node that this process did not start: how a driver, or a command, comes in by its door."""

import os
import platform
import socket
from contextlib import suppress

import msgspec

from raylite._kernel import processes
from raylite._runtime.node import Channel, Failed, NodeConfig, Ready, Stop, Stopped, wait_readable
from raylite._version import __version__

PATIENCE = 10.0  # seconds for the fork server to open: it does nothing long


class GuestNode:
    """A running node, as `NodeProcess` is one that this process owns; its end is not ours to bring.

    Any thread may call anything.

    Args:
        session_dir: The node's session.
        patience: Seconds for it to open.

    Raises:
        ConnectionError: There is no such node, or it does not answer.
        RuntimeError: It runs another version of raylite, or of Python.
    """

    def __init__(self, session_dir: str, patience: float = PATIENCE) -> None:
        self.config = NodeConfig(0, 0, session_dir=session_dir)
        self._reason: str | None = None
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            end.settimeout(patience)
            end.connect(self.config.door)
        except OSError as error:
            end.close()
            raise ConnectionError(
                f"no node answers in {session_dir} ({error.strerror or error}): it has ended, or "
                "it is not a session directory of raylite's"
            ) from error
        self._channel = Channel(socket.socket(fileno=processes.above_stdio(end.detach())))
        self.arena_fd = -1
        self.gcs_pid = 0
        """The GCS's when this process came in; 0 if another node has it."""

        try:
            self._enter(session_dir, patience)
        except BaseException:
            self.stop()
            raise

    def _enter(self, session_dir: str, patience: float) -> None:
        wait_readable(self._channel.fileno(), patience)
        try:
            received = self._channel.receive()
        except msgspec.DecodeError as error:
            raise RuntimeError(_mismatch("another version", __version__, "raylite")) from error
        for message, fds in received:
            if isinstance(message, Ready):
                (self.arena_fd,) = fds
                self.config, self.gcs_pid = message.config, message.gcs or 0
                check_versions(message.version, message.python)
        if self.arena_fd < 0:
            raise ConnectionError(f"the node in {session_dir} does not open: it is about to end")

    def wait_ready(self, timeout: float | None = None) -> None:
        """Do nothing: a node that opens its door is ready."""

    def fileno(self) -> int:
        """The descriptor to watch: when it is readable, ask for `failure`."""
        return self._channel.fileno()

    def failure(self) -> str | None:
        """Say why the node has ended; None while it lives, and after `stop`. Never blocks."""
        if self._reason is None and not self._is_left:
            for message, _ in self._channel.receive():
                if isinstance(message, Failed):
                    self._reason = message.reason
                elif isinstance(message, Stopped):
                    self._reason = "the node was stopped"
            if self._channel.ended and self._reason is None:
                self._reason = "the node's fork server has ended"
        return self._reason

    @property
    def _is_left(self) -> bool:
        return self._channel.fileno() < 0

    def ask_to_stop(self, grace: float) -> None:
        """Have the node stop, for everybody; its processes get so many seconds."""
        self._channel.send(Stop(grace))

    def kill(self) -> None:
        """Do nothing: the node is others' too."""

    def stop(self) -> None:
        """Leave the node, which lives on. Calling it again does nothing."""
        self._channel.close()
        if self.arena_fd >= 0:
            with suppress(OSError):
                os.close(self.arena_fd)
            self.arena_fd = -1


def check_versions(version: str, python: str) -> None:
    """Refuse a cluster whose messages and pickles this process might misread.

    Raises:
        RuntimeError: raylite's version differs, or Python's minor version.
    """
    if version != __version__:
        raise RuntimeError(_mismatch(version, __version__, "raylite"))
    own = platform.python_version()
    if python.split(".")[:2] != own.split(".")[:2]:
        raise RuntimeError(_mismatch(python, own, "Python"))


def _mismatch(theirs: str, own: str, of: str) -> str:
    return (
        f"the cluster runs {of} {theirs}, and this process {own}: they would misread one another. "
        f"Run this program with the cluster's {of}, or start a cluster with this one's"
    )
