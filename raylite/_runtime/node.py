"""A node's processes: what each one is told, and the messages between them."""

import os
import platform
import select
import shutil
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import IntEnum
from pathlib import Path

import msgspec
from msgspec import Struct, field

from raylite._kernel import processes
from raylite._kernel.arena import Arena
from raylite._version import __version__

SESSION_VARIABLE = "RAYLITE_SESSION"
"""In the environment of every process of a node: the name of its session directory."""

_LARGEST_MESSAGE = 192 * 1024  # what the kernel's default socket buffer takes in one piece
_MOST_FDS = 16
_TAIL = 2000  # bytes of a log file that go into the reason of a failure

IN_MEMORY = "memory"
LATEST = "session_latest"
"""A symlink beside the sessions, to the one that was made last."""

RECORD = "node.json"
"""The file, in the session's directory, by which others find a node."""

TOKEN = "token"
ISSUED = f"{TOKEN}.issued"  # as `issued_beside` names it, of which `init` has no need
"""The file, in the session's directory, of the cluster's token."""

TLS = "tls"
"""The directory, in the session's directory, of the node's credentials."""

OWN_STORAGE = "gcs.db"
"""The file, in the session's directory, of tables that nobody named another place for."""

FENCED = 17
"""The exit code of a raylet whose node is taken for dead, and of a GCS whose tables are another's."""

Scalar = bool | int | float | str | None


class Rotation(Struct, frozen=True):
    """When log files are rotated, and how many older ones are kept of each."""

    # Ray: 512 MB (100 MB of a component), and 5. A node can have hundreds of workers.
    size: int = 16 * 1024 * 1024
    backups: int = 4


class NodeConfig(Struct, frozen=True):
    """What a node is made from. Plain data: it travels as JSON.

    Args:
        num_cpus: Logical CPUs that the node offers.
        object_store_memory: Bytes of the arena.
        head: Does this node run the GCS?
        resources: Further resources by name: GPU, memory, custom ones.
        labels: Labels of the node.
        system: Settings of the components by name.
        temp_dir: Where session directories are made; empty means the system's.
        session_dir: This session's directory; `launch` makes it and fills this in.
        sys_path: `sys.path` of every process of the node; empty means the launcher's.
        warm: Modules to import before forking, besides those of the roles. None that starts a
            thread: a fork would copy the locks it holds.
        env_vars: Set in the environment of workers.
        worker_nice: Added to the niceness of workers.
        ip: Where this node is reached, if it is from other machines.
        gcs: The address of the GCS; empty on the head, where it is the GCS's own socket.
        cluster: The cluster's address as users type it.
        gcs_port: The GCS's TCP port, 0 for any that is free; None for its unix socket only.
        raylet_port: The raylet's, likewise.
        one_port: Do GCS and raylet share `gcs_port`? The raylet then hands on what comes for the GCS.
        worker_ports: TCP ports of workers and drivers, 0 for any that is free; without them they are
            reached by the raylet's.
        storage: Where the cluster's tables are kept, see `open_storage`. With tables in memory the
            node ends with its GCS; with others the GCS is started again.
        is_listed: Do others on this machine find the node?
        node_id: The node's id, in hexadecimal; empty to have one made.
        token_file: The file of the cluster's token; empty for a cluster without one.
        tls: The directory of the node's credentials, with which it encrypts what it says to other
            nodes; empty for plain text.
        bind: The IP address to listen at; empty for that of `ip`.
        insecure: Is it accepted that what nodes say to each other can be read on the network?
        rotation: How large log files grow, and how many older ones of each are kept.
    """

    num_cpus: float
    object_store_memory: int
    head: bool = True
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    system: Mapping[str, Scalar] = field(default_factory=dict)
    temp_dir: str = ""
    session_dir: str = ""
    sys_path: Sequence[bytes] = ()
    warm: Sequence[str] = ()
    env_vars: Mapping[str, str] = field(default_factory=dict)
    # Ray: workers run at nice 15, which yields to the rest of the machine. Here they are the rest.
    worker_nice: int = 0
    ip: str = "127.0.0.1"
    gcs: str = ""
    cluster: str = ""
    gcs_port: int | None = None
    raylet_port: int | None = None
    one_port: bool = False
    worker_ports: Sequence[int] = ()
    storage: str = IN_MEMORY
    is_listed: bool = False
    node_id: str = ""
    token_file: str = ""
    tls: str = ""
    bind: str = ""
    insecure: bool = False
    rotation: Rotation = Rotation()

    @property
    def sockets(self) -> Path:
        """The directory of the node's sockets."""
        return Path(self.session_dir, "sockets")

    @property
    def logs(self) -> Path:
        """The directory of the node's log files."""
        return Path(self.session_dir, "logs")

    @property
    def gcs_address(self) -> str:
        """The path of the GCS's unix socket; it exists on the head only."""
        return str(self.sockets / "gcs.sock")

    @property
    def raylet_address(self) -> str:
        """The path of the raylet's unix socket."""
        return str(self.sockets / "raylet.sock")

    @property
    def door(self) -> str:
        """The path of the fork server's unix socket, where drivers get the arena."""
        return str(self.sockets / "node.sock")

    @property
    def listens_at(self) -> str:
        """The IP address of the node's TCP sockets."""
        return self.bind or self.ip

    @property
    def gcs_url(self) -> str:
        """The address at which this node's processes dial the GCS."""
        return self.gcs or f"unix:{self.gcs_address}"


def own_tls(session_dir: str) -> str:
    """Return where a session keeps its node's credentials, if it has some."""
    return str(Path(session_dir, TLS))


def own_token(session_dir: str) -> str:
    """Return where a session keeps the cluster's token, if it has one."""
    return str(Path(session_dir, TOKEN))


def tail(log: Path) -> str:
    """The end of a log file as the continuation of a sentence; nothing if there is nothing."""
    with suppress(OSError):
        text = log.read_bytes()[-_TAIL:].decode(errors="replace").strip()
        if text:
            return f"; {log} ends with:\n{text}"
    return ""


def clear(config: NodeConfig) -> None:
    """Remove a session's sockets, record, secrets and own tables, and whatever else of it is empty.

    Logs with text in them stay.
    """
    tables = (f"{OWN_STORAGE}{end}" for end in ("", "-wal", "-shm"))
    for own in (RECORD, f"{RECORD}.half", TOKEN, ISSUED, *tables):
        Path(config.session_dir, own).unlink(missing_ok=True)
    for folder in (config.sockets, own_tls(config.session_dir)):
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        for log in config.logs.iterdir():
            if log.stat().st_size == 0:
                log.unlink()
        config.logs.rmdir()
        session = Path(config.session_dir)
        session.rmdir()
        latest = session.parent / LATEST
        if os.readlink(latest) == session.name:
            latest.unlink()


class Ending(IntEnum):
    """Why a fork server ended: its exit code."""

    STOPPED = 0
    FAILED = 1
    OWNER_ENDED = 3
    GCS_ENDED = 4
    RAYLET_ENDED = 5


# Owner (the driver, or `raylite start`) to fork server; `Stop` also from any other process that
# came through the node's door.


class Start(msgspec.Struct, frozen=True, tag=True):
    """The first message: which node, for whom.

    One that brings the descriptor of another channel is about another node: its fork server is
    forked from this process, and hears its owner by that channel.

    Args:
        config: What the node is made from.
        owner: The process that it belongs to.
        directory: Where its processes are to be, if not where the one they are forked from is.
        environment: Theirs, if not that of the one they are forked from; bytes as Latin-1.
    """

    config: NodeConfig
    owner: int
    directory: bytes = b""
    environment: Mapping[str, str] = {}


class Accepted(msgspec.Struct, frozen=True, tag=True):
    """The owner has seen the node at work: from now on a GCS that ends is started again.

    With `outlives` the owner's end is no more the node's.
    """

    outlives: bool


class Stop(msgspec.Struct, frozen=True, tag=True):
    """SIGTERM the raylet, then the GCS; SIGKILL what is left after so many seconds."""

    grace: float


# Fork server to owner, and to whoever came through the door.


class Born(msgspec.Struct, frozen=True, tag=True):
    """The first message of a fork server that was forked from another's. Brings its pidfd."""

    pid: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The tree stands and its sockets accept connections. Brings the arena's descriptor.

    `config` is what became of the owner's: what was to be chosen has been.
    """

    raylet: int
    gcs: int | None
    config: NodeConfig
    version: str = __version__
    python: str = platform.python_version()


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The tree ends, or never stood; the reason is for the user."""

    reason: str


class Stopped(msgspec.Struct, frozen=True, tag=True):
    """A `Stop` is done: every process has been reaped."""


# Raylet to fork server.


class Fork(msgspec.Struct, frozen=True, tag=True):
    """Start a worker. The token is the raylet's name for it until it has a pid."""

    token: int
    env: Mapping[str, str] = {}
    title: str = "raylite::IDLE"


class Runs(msgspec.Struct, frozen=True, tag=True):
    """The raylet runs, once a second.

    Args:
        at: When it said so, see `boottime`; that may be read late.
        unheard: How many seconds ago it was heard by the GCS.
    """

    at: float
    unheard: float


# Fork server to raylet.


class Forked(msgspec.Struct, frozen=True, tag=True):
    """A worker runs. Brings its pidfd, and the read ends of its stdout and its stderr."""

    token: int
    pid: int


class ForkFailed(msgspec.Struct, frozen=True, tag=True):
    """A worker could not be started."""

    token: int
    reason: str


class Exited(msgspec.Struct, frozen=True, tag=True):
    """A worker ended, by itself unless there is a cause. Never before its `Forked`."""

    pid: int
    status: int
    cause: str = ""


Message = (
    Start
    | Accepted
    | Stop
    | Born
    | Ready
    | Failed
    | Stopped
    | Fork
    | Runs
    | Forked
    | ForkFailed
    | Exited
)


class Channel:
    """One end of a socket pair that carries messages, some with file descriptors.

    Nothing blocks: what the peer has no room for waits here, and leaves with `flush`. A peer that
    has gone is not an error of `send`; `receive` tells.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._outgoing = deque[tuple[bytes, tuple[int, ...]]]()
        self._decoder = msgspec.json.Decoder[Message](Message)
        self.ended = False
        """Has the peer closed its end, or died?"""

    def fileno(self) -> int:
        """The descriptor to watch; readable when `receive` has something."""
        return self._socket.fileno()

    @property
    def pending(self) -> bool:
        """Does a message wait for room? Then `flush` when the descriptor is writable."""
        return bool(self._outgoing)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message and give its descriptors away: they are closed here once they left.

        Raises:
            ValueError: The message is larger than a socket takes in one piece.
        """
        data = msgspec.json.encode(message)
        if len(data) > _LARGEST_MESSAGE:
            raise ValueError(
                f"a message of {len(data)} bytes to a process of this node; "
                f"{_LARGEST_MESSAGE} is the most"
            )

        self._outgoing.append((data, tuple(fds)))
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        while self._outgoing:
            data, fds = self._outgoing[0]
            if not self.ended:
                try:
                    socket.send_fds(self._socket, [data], list(fds))
                except BlockingIOError:
                    return
                except OSError:  # the peer is gone, and `receive` will say so
                    self.ended = True

            self._outgoing.popleft()
            for fd in fds:
                os.close(fd)

    def receive(self) -> list[tuple[Message, list[int]]]:
        """Return the messages that are here, each with its descriptors, which the caller owns.

        Sets `ended` when the peer has gone and all it said has been returned.
        """
        received = list[tuple[Message, list[int]]]()
        while True:
            try:
                # Not `socket.recv_fds`, which leaves the close-on-exec flag off.
                data, ancillary, flags, _ = self._socket.recvmsg(
                    _LARGEST_MESSAGE, socket.CMSG_SPACE(4 * _MOST_FDS), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return received
            except ConnectionResetError:
                data, ancillary, flags = b"", [], 0

            if not data:
                self.ended = True
                return received

            raw_fds = (fd for _, _, raw in ancillary for fd in memoryview(raw).cast("i"))
            fds = [processes.above_stdio(fd) for fd in raw_fds]
            if flags & socket.MSG_CTRUNC:
                for fd in fds:
                    os.close(fd)
                raise OSError("out of file descriptors: those of a new process were lost")

            received.append((self._decoder.decode(data), fds))

    def close(self) -> None:
        """Close this end, and the descriptors that never left."""
        self.ended = True
        self.flush()
        with suppress(OSError):
            self._socket.close()


def wait_readable(fd: int, timeout: float | None) -> bool:
    """Block until a descriptor is readable, or time is up; return whether it is readable."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected ends for a `Channel` each, message boundaries kept."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one, other = (socket.socket(fileno=processes.above_stdio(end.detach())) for end in ends)
    return one, other


class Inherited(Struct, frozen=True):
    """What a role's process gets from the fork server. It owns these, and no other descriptors.

    Args:
        role: The name of the role.
        config: What the node is made from.
        arena: The node's shared memory.
        listener: The bound and listening unix socket: the GCS's and the raylet's.
        tcp: Their TCP socket likewise, if they are to have one.
        control: The way to the fork server, with `Fork` and its answers: the raylet's.
        token: The raylet's name for this worker: a worker's.
        again: Does it take the place of one that has worked: the GCS's.
    """

    role: str
    config: NodeConfig
    arena: Arena
    listener: socket.socket | None = None
    control: Channel | None = None
    token: int | None = None
    tcp: socket.socket | None = None
    again: bool = False
