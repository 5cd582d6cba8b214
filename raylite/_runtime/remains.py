"""Killing what is left of a node whose fork server can do it no more: it was killed, or has a bug."""

import os
import signal
from contextlib import suppress

from raylite._kernel import processes
from raylite._runtime.node import SESSION_VARIABLE

_SWEEPS = 5  # each finds what processes started just before they were killed by the one before


def sweep(session_dir: str, inode: int | None) -> int:
    """Kill every process of a session, and wait for it; return how many there were.

    Args:
        session_dir: The session's directory, which programs started by workers have in their
            environment.
        inode: The arena's, which processes forked without exec hold; None if it is not known.
    """
    mark = f"{SESSION_VARIABLE}={session_dir}"
    count = 0
    for _ in range(_SWEEPS):
        left = list(processes.strays(mark, inode))
        if not left:
            break
        for pid in left:
            kill(pid)
        count += len(left)
    return count


def kill(pid: int) -> None:
    """SIGKILL a process and wait a second at most for its end."""
    with suppress(ProcessLookupError):
        pidfd = processes.open_pidfd(pid)
        try:
            with suppress(PermissionError):
                processes.send_signal(pidfd, signal.SIGKILL)
                processes.wait_exit(pidfd, 1.0)
        finally:
            os.close(pidfd)
