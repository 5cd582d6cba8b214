"""`Nursery`: the process that test clusters are forked from, kept from one cluster to the next."""

import os
import socket
import threading
from contextlib import suppress
from typing import Self

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from raylite._runtime import nurseries
from raylite._runtime.interpreter import Interpreter, import_path

ROLES = "raylite.testing.cutroles:ROLES"

_LARGEST = 192 * 1024  # of a message that `Channel` takes


class Nursery:
    """Inside ``with``, clusters of processes start in a third of the time, but for the first.

    What takes the time is an interpreter that imports raylite. Each `LocalCluster` and each new
    cluster of `raylite.init` begins one for itself, unless a nursery is open: then its processes are
    forked from that one, which has imported raylite and nothing of yours. They get this process's
    environment, directory and `sys.path` as they are when the cluster starts. When the block ends,
    the clusters that run in it end as well.

    The pytest plugin keeps one for the session.

    Example:
        >>> from raylite.testing import LocalCluster, Nursery
        >>> with Nursery():  # doctest: +SKIP
        ...     for _ in range(10):
        ...         with LocalCluster(nodes=[1, 1]):
        ...             ...
    """

    def __init__(self) -> None:
        self._starter = os.getpid()
        self._lock = threading.Lock()
        self._interpreter = Interpreter(import_path(), ROLES)
        nurseries.kept.append(self)

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._interpreter.pid

    def fork(self, start: Struct, end: socket.socket) -> None:
        """Fork a node's fork server, and give it an end of a channel to its owner.

        Raises:
            ValueError: The environment is too large to be sent.
        """
        environment = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in os.environb.items()
        }
        message = msgspec.json.encode(
            replace(start, directory=_directory(), environment=environment)
        )
        if len(message) > _LARGEST:
            raise ValueError(
                f"this process's environment is too large for a Nursery: {len(message)} bytes with "
                f"what describes the node, {_LARGEST} is the most; start the cluster without one"
            )
        interpreter = self._interpreter
        try:
            _send(interpreter, message, end)
        except (BrokenPipeError, ConnectionResetError):  # it was killed
            with self._lock:
                if self._interpreter is interpreter:
                    interpreter.close()
                    self._interpreter = Interpreter(import_path(), ROLES)
            _send(self._interpreter, message, end)

    def close(self) -> None:
        """End the process. Calling it again does nothing; nor does it in a forked process."""
        if self in nurseries.kept and os.getpid() == self._starter:
            nurseries.kept.remove(self)
            self._interpreter.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _send(interpreter: Interpreter, message: bytes, end: socket.socket) -> None:
    assert interpreter.end is not None, "this nursery is closed"
    socket.send_fds(interpreter.end, [message], [end.fileno()])
    end.close()  # or nobody would hear the end of the one that has it now


def _directory() -> bytes:
    with suppress(OSError):
        return os.getcwdb()
    return b""  # it has been removed
