"""Listening: a socket that accepts one connection after another, before anything is read of it.

asyncio's own servers begin a TLS handshake before they tell anybody that a connection has come, so
nobody could say no in time.
"""

import asyncio
import errno
import os
import select
import socket
import stat
from collections.abc import Callable

from raylite._types.address import Place, TcpAddress, UnixAddress

BACKLOG = 1024
AT_ONCE = 64  # connections, after which the loop turns to its other work
UNACKNOWLEDGED = 6000  # milliseconds after which TCP gives a connection up, as links do
FULL = 1.0  # seconds until a process without free descriptors tries again

_FULL = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def bind(place: Place) -> socket.socket:
    """Return a socket bound to a place; a socket that a dead process left at a path is replaced."""
    if isinstance(place, UnixAddress):
        sock = socket.socket(socket.AF_UNIX)
        where: str | tuple[str, int] = place.path
        try:
            if stat.S_ISSOCK(os.stat(place.path).st_mode):
                os.unlink(place.path)
        except FileNotFoundError:
            pass
    else:
        is_six = ":" in place.host
        sock = socket.socket(socket.AF_INET6 if is_six else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_six:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        where = place.host, place.port
    try:
        sock.bind(where)
        if isinstance(place, UnixAddress):
            os.chmod(place.path, 0o600)  # before it listens, so nobody was quicker
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen at {place}: {error.strerror}") from error
    return sock


def bound_place(sock: socket.socket, place: Place) -> Place:
    """Return where a socket for this place is bound: its own port, if any port was asked for."""
    if isinstance(place, UnixAddress):
        if sock.family != socket.AF_UNIX:
            raise ValueError(f"the socket for {place} is no unix socket")
        return place
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        raise ValueError(f"the socket for {place} is no TCP socket")
    return TcpAddress(place.host, sock.getsockname()[1])


def tune(sock: socket.socket) -> None:
    """Let TCP send at once, and give up in time; what is accepted inherits it."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED)


def is_own_user(peer: socket.socket) -> bool:
    """Whether the process at the other end of a unix socket is this user's."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], "little") == os.geteuid()


def has_left(peer: socket.socket) -> bool:
    """Whether the other end of a connection has closed it, or said its last word, by now."""
    poll = select.poll()
    poll.register(peer, select.POLLRDHUP)
    return bool(poll.poll(0))


class Listener:
    """A socket that accepts until it is closed."""

    def __init__(self, sock: socket.socket, accepted: Callable[[socket.socket], None]) -> None:
        tune(sock)
        sock.setblocking(False)
        sock.listen(BACKLOG)
        self._sock, self._accepted = sock, accepted
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._begin()

    def close(self) -> None:
        """Accept no more."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _begin(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock, self._ready)

    def _ready(self) -> None:
        for _ in range(AT_ONCE):
            try:
                peer, _ = self._sock.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # it was gone before it was accepted
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self._loop.remove_reader(self._sock)
                self._pause = self._loop.call_later(FULL, self._begin)
                return
            peer.setblocking(False)
            self._accepted(peer)
