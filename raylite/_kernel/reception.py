"""The reception: where a process listens, and which of the connections that come in it serves."""

import asyncio
import ipaddress
import os
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from raylite._kernel.connection import Connection
from raylite._kernel.door import Door
from raylite._kernel.guard import Admission, Guard
from raylite._kernel.handshake import Channel, path_channel, tcp_channel, tls_channel
from raylite._kernel.listener import Listener, bind, bound_place, has_left, is_own_user
from raylite._kernel.scope import Scope
from raylite._kernel.tls import Tls
from raylite._kernel.wire import CLOSING
from raylite._types.address import (
    Place,
    TcpAddress,
    UnixAddress,
    is_loopback,
    place_to_listen,
    plain_ip,
)

_LOCAL = "this machine"  # where strangers on unix sockets come from
_SUBNET = 64  # bits of an IPv6 address: whoever has one has all that begin with these


class Rules(Struct, frozen=True):
    """Where a process may listen, and what is allowed to whom."""

    has_token: bool
    tls: Tls | None
    insecure: bool
    admission: Admission

    def check(self, place: TcpAddress, ip: str) -> None:
        """Raise a ValueError if others than intended could connect there, or listen in."""
        if self.insecure:
            return
        if not self.has_token:
            raise ValueError(
                f"{place} would be open to everybody: give the network a token, or insecure=True"
            )
        if self.tls is None and not is_loopback(ip):
            raise ValueError(
                f"{place} would be reached in plain text: give the network tls, or insecure=True"
            )


class Reception:
    """Listens, accepts, and puts a `Door` before each connection that has to prove itself.

    Those are all but unix sockets without a token: who may open their directory is trusted then.
    """

    def __init__(
        self, rules: Rules, make: Callable[[], Connection], scope: Scope, timeout: float
    ) -> None:
        self._rules, self._make, self._scope, self._timeout = rules, make, scope, timeout
        self._listeners: list[Listener] = []
        self._doors: dict[Door, None] = {}
        self.names: set[str] = set()  # of the unix sockets that are listened on
        self._paths: dict[str, int] = {}  # made here, and the inode that shows whether it still is
        everybody = replace(rules.admission, each=rules.admission.total, tarpit=0.0)
        self._guard = Guard(rules.admission)
        self._local_guard = Guard(everybody)  # apart: no flood of TCP shuts this machine out

    @property
    def most_connections(self) -> int:
        """How many this process may have, in both directions."""
        return self._rules.admission.connections

    @property
    def refused(self) -> Counter[str]:
        """How many were turned away, by reason."""
        return self._guard.refused + self._local_guard.refused

    def listen(self, address: str, sock: socket.socket | None) -> str:
        """Listen; see `GrpcNetwork.listen`."""
        place = place_to_listen(address)
        if isinstance(place, TcpAddress):
            self._rules.check(place, place.host)
        is_made_here = sock is None
        sock = sock or bind(place)
        try:
            place = bound_place(sock, place)
            if isinstance(place, TcpAddress):
                self._rules.check(place, sock.getsockname()[0])
            else:
                self.names.add(os.path.basename(place.path))
                if is_made_here:
                    self._paths[place.path] = os.stat(place.path).st_ino
            self._listeners.append(Listener(sock, partial(self._came, place)))
        except BaseException:
            sock.close()
            raise
        return str(place)

    def close(self) -> None:
        """Accept no more connections, and turn away whoever has not proven itself yet."""
        while self._listeners:
            self._listeners.pop().close()
        for door in list(self._doors):
            door.end("closing")

    def clean(self) -> None:
        """Remove the paths that were made here, unless others listen there now."""
        for path, inode in self._paths.items():
            try:
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
            except FileNotFoundError:
                pass
        self._paths.clear()

    def _came(self, place: Place, sock: socket.socket) -> None:
        """Let a connection in that was just accepted, if there is room for it."""
        if isinstance(place, UnixAddress) and not is_own_user(sock):
            self._local_guard.refused["another user"] += 1
            sock.close()
            return
        if has_left(sock):  # it has only tried, or waited in vain: nobody is to be let in
            sock.close()
            return
        if isinstance(place, UnixAddress) and not self._rules.has_token:
            connection = self._make()
            connection.expect_stream(self._timeout)
            self._scope.start(self._serve(sock, connection), f"accepted at {place}")
            return
        try:
            where, channel = self._look_at(place, sock)
        except OSError:  # it is gone already
            sock.close()
            return
        guard = self._local_guard if isinstance(place, UnixAddress) else self._guard
        if not guard.enter(where):
            sock.close()
            return
        door = Door(guard, where, channel, self._make, self._doors)
        is_tls = isinstance(place, TcpAddress) and self._rules.tls is not None
        self._scope.start(self._serve_stranger(sock, door, is_tls), f"accepted from {where}")

    def _look_at(self, place: Place, sock: socket.socket) -> tuple[str, Channel]:
        """Return where a connection comes from, as the guard counts it, and what its channel is."""
        if isinstance(place, UnixAddress):
            return _LOCAL, path_channel(place.path)
        where = ipaddress.ip_address(plain_ip(sock.getpeername()[0]))
        if where.version == 6:
            where = ipaddress.ip_network((where, _SUBNET), strict=False).network_address
        if self._rules.tls is not None:
            return str(where), tls_channel(self._rules.tls.certificate)
        return str(where), tcp_channel(*sock.getsockname()[:2])

    async def _serve(self, sock: socket.socket, connection: Connection) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, sock)
        except OSError:  # it is gone already
            sock.close()
        except asyncio.CancelledError:
            connection.forsaken()
            raise

    async def _serve_stranger(self, sock: socket.socket, door: Door, is_tls: bool) -> None:
        """Speak TLS, if it is due; then the door hears what is said."""
        options: dict[str, Any] = {}
        if is_tls and self._rules.tls is not None:
            options = {
                "ssl": self._rules.tls.server,
                "ssl_handshake_timeout": self._rules.admission.deadline,
                "ssl_shutdown_timeout": CLOSING,
            }
        is_in = False
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: door, sock, **options)
            is_in = True
        except OSError as error:
            door.failed(f"TLS: {getattr(error, 'reason', None) or 'broken off'}")
        finally:
            if not is_in:
                door.forsaken()
