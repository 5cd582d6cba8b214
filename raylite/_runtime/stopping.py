"""Ending the nodes that were started on this machine, and clearing up after those that crashed."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from msgspec import Struct

from raylite._kernel import processes
from raylite._runtime import lost as lost_nodes, records
from raylite._runtime.guest import PATIENCE, GuestNode
from raylite._runtime.lost import LostNode
from raylite._runtime.node import NodeConfig, clear
from raylite._runtime.records import NodeRecord
from raylite._runtime.remains import sweep

GRACE = 16.0  # Ray's
_OPENING = 1.0  # seconds at least for a fork server to open: one that stands still never does
_REAPING = 3.0  # seconds for a fork server to reap what it had to kill


class Stopped(Struct, frozen=True):
    """How many nodes were stopped, how many of them by force, and of how many only traces were left."""

    nodes: int
    killed: int
    traces: int


def stop_nodes(
    temp_dir: str = "", grace: float = GRACE, *, force: bool = False, patience: float = PATIENCE
) -> Stopped:
    """End this user's started nodes, heads last: the others have things to tell them.

    Args:
        temp_dir: Where sessions are.
        grace: Seconds that a node has to end by itself.
        force: Kill at once instead.
        patience: Seconds that a node has to be spoken to, if the grace is as long.
    """
    count = killed = 0
    lost = lost_nodes.find(temp_dir)
    nodes = records.living(temp_dir)
    for is_head in (False, True):
        endings = [
            _begin(node, grace, patience, force=force) for node in nodes if node.head is is_head
        ]
        if not is_head:
            endings += [_begin_blindly(node, grace, force=force) for node in lost]
        for end in [end for end in endings if end is not None]:
            count += 1
            killed += end()
    return Stopped(count, killed, records.tidy(temp_dir))


def _begin(
    node: NodeRecord, grace: float, patience: float, *, force: bool
) -> Callable[[], bool] | None:
    """Ask a node to end; None if it is gone. The result waits, and says whether it was killed."""
    try:
        pidfd = processes.open_pidfd(node.pid)
    except ProcessLookupError:
        return None
    if not node.is_living:  # read again, now that the pid is ours to hold
        os.close(pidfd)
        return None
    if not force:
        _ask(node, pidfd, grace, min(max(grace, _OPENING), patience))
    return _ending(pidfd, node.session_dir, node.inode, 0.0 if force else grace + _REAPING)


def _begin_blindly(node: LostNode, grace: float, *, force: bool) -> Callable[[], bool] | None:
    """Ask a node to end that has no door any more."""
    try:
        pidfd = processes.open_pidfd(node.pid)
    except ProcessLookupError:
        return None
    if not force:
        processes.send_signal(pidfd, signal.SIGTERM)
    return _ending(pidfd, node.session_dir, None, 0.0 if force else grace + _REAPING)


def _ending(pidfd: int, session_dir: str, inode: int | None, patience: float) -> Callable[[], bool]:
    deadline = monotonic() + patience  # of each by itself: others are waited for before

    def end() -> bool:
        try:
            is_over = patience > 0 and processes.wait_exit(pidfd, max(deadline - monotonic(), 0.0))
            if not is_over:
                processes.send_signal(pidfd, signal.SIGKILL)
                processes.wait_exit(pidfd, _REAPING)
                sweep(session_dir, inode)
                with suppress(OSError):
                    clear(NodeConfig(0, 0, session_dir=session_dir))
            return not is_over
        finally:
            os.close(pidfd)

    return end


def _ask(node: NodeRecord, pidfd: int, grace: float, patience: float) -> None:
    try:
        guest = GuestNode(node.session_dir, patience)
    except (ConnectionError, RuntimeError):  # of another version: what a signal asks is the same
        processes.send_signal(pidfd, signal.SIGTERM)
    else:
        guest.ask_to_stop(grace)
        guest.stop()
