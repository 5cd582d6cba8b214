"""Processes on Linux: how they die, who dies with them, and what they are called."""

import ctypes
import fcntl
import os
import select
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import setproctitle
from msgspec import Struct

from raylite._types.text import one_line

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT, _ORDINARY = 32 * 1024 * 1024, 8 * 1024 * 1024  # bytes

_libc = ctypes.CDLL(None, use_errno=True)
_title = ""


class Exit(Struct, frozen=True):
    """How a process ended: with an exit code, or by a signal. One of the two is None."""

    pid: int
    code: int | None = None
    signal: int | None = None

    @classmethod
    def from_wait_status(cls, pid: int, status: int) -> Self:
        """Read the status that `os.waitpid` gave."""
        code = os.waitstatus_to_exitcode(status)
        return cls(pid, code=code) if code >= 0 else cls(pid, signal=-code)

    @property
    def clean(self) -> bool:
        """Did it end by itself, with exit code 0?"""
        return self.code == 0

    def describe(self) -> str:
        """Say it in words: ``killed by SIGKILL (9)`` or ``exit code 3``."""
        if self.signal is None:
            return f"exit code {self.code}"

        try:
            return f"killed by {signal.Signals(self.signal).name} ({self.signal})"
        except ValueError:  # a real-time signal between the two that have names
            return f"killed by signal {self.signal}"


def die_with_parent(parent: int) -> None:
    """Have the kernel SIGKILL this process when the process that forked it ends.

    The parent's *thread* is what counts: fork from the main thread. A parent that died before
    the request could be made is noticed by its number.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends (not inherited by children)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def keep_freed_memory() -> None:
    """Have the C library give memory that was freed, up to 32 MiB, to who allocates next.

    For who moves megabytes through short-lived buffers: glibc gives such back to the kernel at
    once, and the kernel takes as long to hand out fresh pages as it takes to fill them.
    """
    mallopt = getattr(_libc, "mallopt", None)  # musl has none, and keeps what is freed
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
        mallopt(_M_MMAP_THRESHOLD, _ORDINARY)


def _prctl(option: int, value: int) -> None:
    # The zeros: prctl is variadic and reads four longs after the option.
    arguments = [ctypes.c_ulong(number) for number in (value, 0, 0, 0)]
    if _libc.prctl(option, *arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {value}): {os.strerror(code)}")


def set_title(title: str) -> None:
    """Name this process in `ps` and `top`, whatever is in the name. Free when it is the present one."""
    global _title
    if title != _title:
        setproctitle.setproctitle(one_line(title))
        _title = title


def birth(pid: int) -> str:
    """Return what tells a process from every other one with its pid; empty if there is none.

    A zombie is none: it has ended.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    return "" if stat[0] in (b"Z", b"X") else f"{boot}:{stat[19].decode()}"


def parent(pid: int) -> int:
    """Return the pid of a process's parent; 0 if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    return int(stat.rpartition(b")")[2].split()[1])


def open_pidfd(pid: int) -> int:
    """Return a descriptor that becomes readable when the process ends. The caller closes it.

    Raises:
        ProcessLookupError: There is no such process.
    """
    return os.pidfd_open(pid)


def send_signal(pidfd: int, number: int) -> bool:
    """Signal the process behind a pidfd, never a later one with the same number.

    Returns:
        False when it has already ended.
    """
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def wait_exit(pidfd: int, timeout: float | None = None) -> bool:
    """Block until the process behind a pidfd has ended; False when time ran out first."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else max(0, timeout) * 1000))


def kill_group(pid: int) -> None:
    """SIGKILL a process and the group it leads; nothing happens if both are gone.

    Only for a child not yet reaped: afterwards the number may be another's.
    """
    # The group may not exist yet when the child was forked a moment ago, hence the second one.
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def children(pid: int | None = None) -> list[int]:
    """Return a process's children, adopted ones and zombies included; only its main thread's.

    Empty on a kernel built without the list.

    Args:
        pid: The process; None for this one.
    """
    pid = os.getpid() if pid is None else pid
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def above_stdio(fd: int) -> int:
    """Move a descriptor out of the standard streams' numbers, which are free in some programs.

    There, a library that prints would write into it, and a child's streams would replace it.
    """
    if fd > 2:
        return fd

    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return moved


def occupy_stdio() -> None:
    """Have the numbers of the standard streams taken, by the null device where nothing has them.

    A daemon may have closed them. libuv aborts a program when it is to close a descriptor of its
    own that has got such a number.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def close_fds(keep: set[int], file: int | None = None) -> None:
    """Close every descriptor of this process except those to keep, and the duplicates of a file's.

    A mapping made by `mmap` has a duplicate for itself, and will close that number.
    """
    kept = None if file is None else os.fstat(file)
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        with suppress(OSError):  # the listing's own descriptor is in the list
            if fd not in keep and not (kept and os.path.samestat(os.fstat(fd), kept)):
                os.close(fd)


def strays(variable: str, inode: int | None) -> Iterator[int]:
    """Find what a killed tree left behind, through /proc: a last resort, it reads every process.

    Args:
        variable: ``NAME=value`` in the environment that a program started by the tree was given.
        inode: The tree's arena. Processes forked without exec hold it, and have the tree's
            titles, where setproctitle has overwritten the environment.
    """
    mark = variable.encode()
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) == os.getpid():
            continue

        process = Path("/proc", name)
        with suppress(OSError):  # it ended meanwhile, or is another user's
            if mark in (process / "environ").read_bytes().split(b"\0"):
                yield int(name)
            elif inode is not None and (process / "cmdline").read_bytes().startswith(b"raylite:"):
                links = (process / "fd" / fd for fd in os.listdir(process / "fd"))
                if any(_is_memory(link) and link.stat().st_ino == inode for link in links):
                    yield int(name)


def _is_memory(link: Path) -> bool:
    return os.readlink(link).startswith("/memfd:")
