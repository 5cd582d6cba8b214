"""The records of nodes that others may find: one in the session's directory, while the node lives.

A record is believed only if the process it names is still the one that wrote it. So a crash, a
reboot or a reused pid leaves nothing that could be mistaken for a running node.
"""

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from raylite._kernel import processes
from raylite._runtime import folders, listeners
from raylite._runtime.node import RECORD, NodeConfig, clear
from raylite._runtime.remains import sweep


class NodeRecord(msgspec.Struct, frozen=True):
    """What others must know of a node to find it.

    Args:
        pid: The fork server's.
        birth: What tells that process from a later one with its pid.
        session_dir: The node's session.
        cluster: The cluster's address, as users type it.
        gcs: The GCS's address, as this machine dials it.
        head: Does the GCS run here?
        inode: The arena's, by which strays of the node are known.
        token_file: The file of the cluster's token.
        tls: The directory of the node's credentials.
    """

    pid: int
    birth: str
    session_dir: str
    cluster: str
    gcs: str
    head: bool
    inode: int
    token_file: str = ""
    tls: str = ""

    @property
    def is_living(self) -> bool:
        """Whether the node is there."""
        return processes.birth(self.pid) == self.birth

    @property
    def is_of_this_boot(self) -> bool:
        """Whether processes of the node may be left, and its arena's inode be still its own."""
        boot, _, _ = processes.birth(os.getpid()).partition(":")
        return self.birth.startswith(f"{boot}:")


def write(config: NodeConfig, inode: int) -> None:
    """Record the node of this process, its fork server."""
    pid = os.getpid()
    record = NodeRecord(
        pid=pid,
        birth=processes.birth(pid),
        session_dir=config.session_dir,
        cluster=config.cluster,
        gcs=config.gcs_url,
        head=config.head,
        inode=inode,
        token_file=config.token_file,
        tls=config.tls,
    )
    path = Path(config.session_dir, RECORD)
    half = Path(f"{path}.half")
    half.touch(0o600)
    half.write_bytes(msgspec.json.encode(record))
    os.replace(half, path)


def read(session: Path) -> NodeRecord | None:
    """Return a session's record, whether its node lives or not; None if there is none to be read."""
    try:
        return msgspec.json.decode((session / RECORD).read_bytes(), type=NodeRecord)
    except (OSError, msgspec.DecodeError):
        return None


def living(temp_dir: str = "") -> list[NodeRecord]:
    """Return the nodes that were started on this machine by this user and live, the latest first."""
    found = [read(session) for session in folders.sessions(temp_dir)]
    nodes = [record for record in found if record is not None and record.is_living]
    return sorted(nodes, key=lambda node: Path(node.session_dir).name, reverse=True)


def tidy(temp_dir: str = "") -> int:
    """End and remove what is left of sessions that are over; return how many nodes had a record.

    Logs with text in them stay.
    """
    count = 0
    for session in folders.sessions(temp_dir):
        config, record = NodeConfig(0, 0, session_dir=str(session)), read(session)
        if record is None and processes.birth(folders.maker_of(session)):
            continue  # a driver's own cluster, or one that is being made
        if (record is not None and record.is_living) or listeners.is_open(config.door):
            continue  # of a container that shares the directory, but no pids, only the door tells
        if record is not None:
            count += 1
            if record.is_of_this_boot:
                sweep(record.session_dir, record.inode)
        with suppress(OSError):
            clear(config)
    return count
