"""Secret files: what only this user may read, and is refused when others could have.

An error is one sentence that says what to do.
"""

import os
import stat

from raylite.exceptions import AuthenticationError

LARGEST = 64 * 1024  # bytes; a secret is smaller than that

_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC


def write_secret(path: str, data: bytes) -> None:
    """Make a new file that only this user may read, in a directory that only this user may enter.

    The directory is made if it is missing. The umask does not matter.

    Raises:
        AuthenticationError: There is a file already, or the directory is open to others.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        os.mkdir(folder, 0o700)
        os.chmod(folder, 0o700)
    state = os.stat(folder)
    if state.st_uid != os.geteuid() or state.st_mode & 0o077:
        raise AuthenticationError(
            f"{folder} is open to other users: run chmod 700 {folder}, or choose a directory of your own"
        )
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)
    except FileExistsError as error:
        raise AuthenticationError(
            f"{path} exists: use it, or remove it to make a new one"
        ) from error
    with open(file, "wb") as opened:
        os.fchmod(file, 0o600)
        opened.write(data)


def read_secret(path: str) -> bytes:
    """Read a file that only this user could read and write.

    Raises:
        AuthenticationError: It is not there, or others could have read or replaced it.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _OPEN)
    except FileNotFoundError as error:
        raise AuthenticationError(
            f"{path} does not exist: copy it from the cluster's head"
        ) from error
    except OSError as error:
        raise AuthenticationError(
            f"{path} cannot be opened ({error.strerror}): it has to be a file of yours, and no link"
        ) from error
    try:
        _check(path, os.fstat(file))
        data = os.read(file, LARGEST + 1)
    finally:
        os.close(file)
    if len(data) > LARGEST:
        raise AuthenticationError(f"{path} is too large to be a secret: name the right file")
    return data


def _check(path: str, state: os.stat_result) -> None:
    """Raise if this is no file, or if others than this user can, or could, use it."""
    if not stat.S_ISREG(state.st_mode):
        raise AuthenticationError(f"{path} is no file: name the file that holds the secret")
    if state.st_uid != os.geteuid():
        raise AuthenticationError(
            f"{path} belongs to user {state.st_uid}: make a copy that is yours, with mode 600"
        )
    if state.st_mode & 0o077:
        mode = stat.S_IMODE(state.st_mode)
        raise AuthenticationError(
            f"{path} has mode {mode:04o} and others can use it: run chmod 600 {path}, "
            "and make a new secret if they are not to be trusted"
        )
