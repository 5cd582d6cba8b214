"""The interpreter of a fork server, which may begin before it is known for which node.

Importing what a node needs takes about as long as importing what a driver needs, and a new cluster
needs both. So `init` begins the first before it loads the second: this module loads almost nothing.
"""

import fcntl
import os
import signal
import socket
import sys
from collections.abc import Sequence

ROLES = "raylite._runtime.roles:ROLES"

# Not `-m`: the node's modules are then found where this process found its own, in the same order.
# A session of its own, so that a Ctrl-C on the terminal reaches the driver only.
_PROGRAM = """\
import gc, os, sys
os.setsid()
gc.disable()  # until all is imported: collecting meanwhile finds nothing and moves much
for fd in map(int, os.listdir("/proc/self/fd")):
    if fd > 3:
        try: os.close(fd)
        except OSError: pass  # that of the listing itself
sys.path[:] = sys.argv[2:]
roles, sys.argv[:] = sys.argv[1], [""]
from raylite._runtime.prenatal import main
main(3, roles)
"""


class Interpreter:
    """A process that imports what a fork server needs, then waits to be told of its node.

    Its first message is to be `Start`; if the channel closes before, it ends. What it prints until
    it is told is in a file without a name.

    Args:
        path: The entries of `sys.path` for it.
        roles: Where the functions of the node's processes are, as ``module:attribute``.
    """

    def __init__(self, path: Sequence[bytes], roles: str = ROLES) -> None:
        self.path: tuple[bytes, ...] = tuple(path)
        self.roles: str = roles
        own, theirs = (_above_stdio(end) for end in socket.socketpair(type=socket.SOCK_SEQPACKET))
        self.end: socket.socket | None = own
        """The channel to it; whoever takes it has to reap the process."""

        self._output = _above_stdio_fd(os.memfd_create("raylite-node.log"))
        try:
            self.pid: int = _spawn([roles, *path], theirs.fileno(), self._output)
        except BaseException:
            own.close()
            os.close(self._output)
            raise
        finally:
            theirs.close()

    def take(self) -> socket.socket:
        """Return the channel's end: the process is the caller's to end and to reap."""
        end, self.end = self.end, None
        assert end is not None, "an interpreter becomes one node only"
        return end

    def said(self) -> str:
        """Return what it printed before it was told of its node."""
        return os.pread(self._output, 1 << 20, 0).decode(errors="replace").strip()

    def close(self) -> None:
        """Have nothing to do with it any more. One that nobody took ends."""
        if self.end is not None:
            self.end.close()
            self.end = None
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        if self._output >= 0:
            os.close(self._output)
            self._output = -1


def import_path() -> tuple[bytes, ...]:
    """`sys.path` for a process that may change its directory: the empty entry means this one.

    As bytes, for the names of files need not be text.
    """
    return tuple(os.fsencode(entry or os.getcwd()) for entry in sys.path)


def _spawn(arguments: Sequence[str | bytes], channel: int, output: int) -> int:
    """Start the process. Its death is not tied to ours by a signal: that would be to this thread's."""
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", _PROGRAM, *arguments],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, channel, 3),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        ],
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
    )


def _above_stdio(end: socket.socket) -> socket.socket:
    return socket.socket(fileno=_above_stdio_fd(end.detach()))


def _above_stdio_fd(fd: int) -> int:
    """Move a descriptor past the numbers that the process's own will have."""
    if fd > 3:
        return fd
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 4)
    os.close(fd)
    return moved
