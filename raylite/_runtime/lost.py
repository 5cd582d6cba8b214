"""Nodes whose session's directory somebody has removed, with the record by which others would find them.

The kernel still knows the path of the door at which the fork server listens, and who holds it.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from raylite._kernel import processes
from raylite._runtime import folders
from raylite._runtime.node import NodeConfig

_SOCKETS = "/proc/net/unix"


class LostNode(Struct, frozen=True):
    """A node that lives and cannot be asked any more.

    Args:
        pid: The fork server's.
        session_dir: Where the session was.
    """

    pid: int
    session_dir: str


def find(temp_dir: str = "") -> list[LostNode]:
    """Return this user's nodes on this machine that lost their session in a temporary directory.

    Not those of programs that live, which end with them.
    """
    doors = dict(_doors(temp_dir))
    return list(_holders(doors)) if doors else []


def _doors(temp_dir: str) -> Iterator[tuple[str, str]]:
    """Yield the sockets that listen at doors which are gone, each with its session's directory."""
    places = folders.candidates(folders.choose_temp_dir(temp_dir))
    with open(_SOCKETS, encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            *facts, path = line.rstrip("\n").split(maxsplit=7)
            session = Path(path).parent.parent
            if (
                session.parent in places
                and path == NodeConfig(0, 0, session_dir=str(session)).door
                and not Path(path).exists()
                and not processes.birth(folders.maker_of(session))
            ):
                yield f"socket:[{facts[-1]}]", str(session)


def _holders(doors: dict[str, str]) -> Iterator[LostNode]:
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):  # it ended meanwhile, or is another user's
            if not Path("/proc", name, "cmdline").read_bytes().startswith(b"raylite: node"):
                continue
            held = {os.readlink(each) for each in Path("/proc", name, "fd").iterdir()}
            for door in held & doors.keys():
                yield LostNode(int(name), doors[door])
