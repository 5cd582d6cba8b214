"""The sockets at which a node is reached: bound before its processes exist, and kept over a restart.

Connections queue in them until somebody accepts, so a process that is started again in another's
place is reached by those who have just lost the first.
"""

import errno
import os
import socket

from msgspec import Struct

_BACKLOG = 4096


class CannotListen(Exception):
    """An address cannot be had. The message is for the user."""


class Listeners(Struct, frozen=True):
    """A component's bound and listening sockets."""

    unix: socket.socket
    tcp: socket.socket | None = None

    @property
    def port(self) -> int | None:
        """The TCP port, also when any was asked for."""
        if self.tcp is None:
            return None
        port: int = self.tcp.getsockname()[1]
        return port

    def close(self) -> None:
        """Close them here: the component holds its own."""
        self.unix.close()
        if self.tcp is not None:
            self.tcp.close()


def bind(path: str, ip: str, port: int | None, option: str) -> Listeners:
    """Listen at a path and, unless `port` is None, on TCP.

    Args:
        path: The unix socket's.
        ip: The address to listen at.
        port: The TCP port, 0 for any.
        option: What the port is called where users choose it.

    Raises:
        CannotListen: The port is taken, or the address is not this machine's.
    """
    unix = _listening(socket.AF_UNIX, path)
    if port is None:
        return Listeners(unix)
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        return Listeners(unix, _listening(family, (ip, port)))
    except OSError as error:
        unix.close()
        raise CannotListen(_explain(error, ip, port, option)) from error


def door(path: str) -> socket.socket:
    """Listen for processes of this machine that want the arena's descriptor: see `Channel`."""
    return _listening(socket.AF_UNIX, path, socket.SOCK_SEQPACKET)


def is_open(path: str) -> bool:
    """Whether somebody listens at a door."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as visitor:
        try:
            visitor.connect(path)
        except OSError:
            return False
    return True


def host_port(ip: str, port: int) -> str:
    """Write an address as users do: an IPv6 address in brackets."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _listening(
    family: int, address: str | tuple[str, int], kind: int = socket.SOCK_STREAM
) -> socket.socket:
    listener = socket.socket(family, kind)
    try:
        if family != socket.AF_UNIX:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # as the sockets of workers: `::` is not 0.0.0.0 as well
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        if isinstance(address, str):
            os.chmod(address, 0o600)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _explain(error: OSError, ip: str, port: int, option: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} of {ip} is in use, by another cluster or another program: end that, with "
            f"`raylite stop` if it is yours, or choose another with {option}"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return (
            f"{ip} is not an address of this machine: give one that is with --node-ip-address, or "
            "listen at another with --bind"
        )
    return f"cannot listen on port {port} of {ip}: {error.strerror}; choose another with {option}"
