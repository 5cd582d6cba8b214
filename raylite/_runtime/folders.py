"""Where sessions lie: a private directory for each user, and in it one for each session."""

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from tempfile import gettempdir

from raylite._kernel import processes
from raylite._runtime import listeners
from raylite._runtime.node import LATEST, RECORD, NodeConfig
from raylite._runtime.settings import setting

_LONGEST_NAME = "w0123456789abcdef.sock"  # a worker's
_ENDED_KEPT = 20  # sessions that have ended, and left logs
_REMEDY = "temporary directory with --temp-dir, _temp_dir or RAYLITE_TMPDIR"
_LEAST_ROOM = 1 << 20  # bytes: tables, logs, secrets
_PATH_LIMIT = 107  # bytes of a unix socket's path, by the size of `sockaddr_un`


def choose_temp_dir(given: str = "") -> Path:
    """Return where sessions are made: as given, as the environment says, or the system's.

    Raises:
        ValueError: What is given is a relative path, as in Ray: nodes run in other directories. Or it is
            not UTF-8, and could not be named to them.
    """
    variable, named = ("", given) if given else setting("TMPDIR")
    chosen = Path(named or gettempdir())
    if not_text := re.findall(r"[\udc80-\udcff]", str(chosen)):
        raise ValueError(
            f"the temporary directory {str(chosen)!r} is not UTF-8 (byte {ord(not_text[0]) - 0xDC00:#x}): "
            f"choose another {_REMEDY}"
        )
    if not chosen.is_absolute():
        which = f"{variable}={named}" if variable else repr(named)
        raise ValueError(
            f"the temporary directory {which} is a relative path: give the whole path, which begins with /"
        )
    return chosen


def sessions(temp_dir: str = "") -> Iterator[Path]:
    """Yield this user's session directories under a temporary directory."""
    for directory in candidates(choose_temp_dir(temp_dir)):
        if _is_private(directory):
            yield from sorted(each for each in directory.glob("session_2*") if each.is_dir())


def make_session_dir(temp_dir: str = "") -> Path:
    """Make a new session's directory, closed to other users.

    Raises:
        ValueError: The temporary directory is a relative path.
        OSError: It could not be made, or the paths of sockets in it would be too long.
    """
    temp = choose_temp_dir(temp_dir)
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S_%f")
    name = f"session_{stamp}_{os.getpid()}"
    try:
        session = _private(temp, name) / name
        for directory in (session, session / "logs", session / "sockets"):
            directory.mkdir(mode=0o700)
    except OSError as error:
        if error.errno is None:  # it is a sentence already
            raise
        raise type(error)(
            f"no session can be made in the temporary directory {temp}: {_reason(temp, error)}; "
            f"choose another {_REMEDY}"
        ) from error
    _prune(session.parent)
    return session


def check_room(session: str) -> None:
    """Refuse a disk that is full, on which a node that lasts would end sooner or later, and wordless.

    Raises:
        OSError: There is no room for what it writes.
    """
    disk = os.statvfs(session)
    free = disk.f_frsize * (disk.f_bavail if os.geteuid() else disk.f_bfree)
    if disk.f_blocks and free < _LEAST_ROOM:
        raise OSError(
            f"the disk of the temporary directory {Path(session).parent.parent} is full ({free} bytes "
            f"are free): make room there, or choose another {_REMEDY}"
        )


def _reason(temp: Path, error: OSError) -> str:
    return "it is a file" if temp.is_file() else f"{error.strerror} ({error.filename})"


def _prune(directory: Path) -> None:
    """Remove what the oldest ended sessions have left, which is their logs. Ray: they stay for ever."""
    ended = [each for each in directory.glob("session_2*") if _has_ended(each)]
    for session in sorted(ended)[:-_ENDED_KEPT]:
        shutil.rmtree(session, ignore_errors=True)


def _has_ended(session: Path) -> bool:
    """Whether a session cleared up, or was killed while it began; if it had a record, see `tidy`."""
    if not (session / "sockets").exists():
        return True
    if (session / RECORD).exists() or processes.birth(maker_of(session)):
        return False
    # The pid may be of another container, with which the directory is shared.
    return not listeners.is_open(NodeConfig(0, 0, session_dir=str(session)).door)


def point_latest_at(session: Path) -> None:
    """Replace the link in one step: two sessions may be made at once."""
    link = session.parent / f".latest_{os.getpid()}_{session.name}"
    with suppress(OSError):  # a convenience: no reason not to start
        link.symlink_to(session.name)
        os.replace(link, session.parent / LATEST)


def maker_of(session: Path) -> int:
    """Return the pid of the process that made a session's directory; 0 if its name is odd."""
    digits = session.name.rpartition("_")[2]
    return int(digits) if digits.isdecimal() else 0


def candidates(temp_dir: Path) -> list[Path]:
    """Return where this user's sessions may be: `_private` says why there are two places."""
    return [temp_dir / name for name in ("raylite", f"raylite-{os.geteuid()}")]


def _private(temp_dir: Path, session: str) -> Path:
    """A directory for all sessions of this user, this one's sockets included.

    Ray: one directory for all users, open to all. Who owns a directory can replace what is in it,
    so the second user gets another.
    """
    for directory in candidates(temp_dir):
        sockets = NodeConfig(0, 0, session_dir=str(directory / session)).sockets
        socket_path = str(sockets / _LONGEST_NAME)
        if len(os.fsencode(socket_path)) > _PATH_LIMIT:
            raise OSError(
                f"AF_UNIX path length cannot exceed {_PATH_LIMIT} bytes: {socket_path!r}; "
                f"choose a shorter {_REMEDY}"
            )

        with suppress(FileExistsError):
            directory.mkdir(mode=0o700, parents=True)
        if _is_private(directory):
            return directory

    if not temp_dir.is_dir():  # a link that leads nowhere
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(temp_dir.resolve()))
    raise PermissionError(f"{directory} is another user's; choose another {_REMEDY}")


def _is_private(directory: Path) -> bool:
    try:
        facts = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid()
