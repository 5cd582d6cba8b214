"""`GrpcNetwork`: a wire is one long-lived bidirectional stream, ``/raylite.Link/Open``, of grpclib.

grpclib's HTTP/2 layer is used as it is; around it stands what it lacks. Each point has a test
in ``tests/kernel/test_grpc.py`` that fails without its cure.

1. It trusts the 4-byte length of a message and buffers up to 4 GiB. A wire takes the place of its
   buffer and refuses a length above its limit before keeping a byte of it.
2. Its keepalive is off, and would use ``close()``, which waits for unsent bytes for many minutes.
   Links ping, and give a wire up with ``transport.abort()``.
3. A request parked on a full connection is never woken when that connection is lost, and stream
   101 waits silently. There is one stream a connection, and a deadline on opening it.
4. ``Server.close()`` leaves clients connected. `GrpcNetwork.close` aborts their transports.
5. Its own cancellation leaks counts of ``Task.cancelling()``. No task of ours waits inside it:
   packets are pushed from ``data_received`` and written without an ``await``.
6. It hears whoever connects. Where there is a token, a `Door` stands before each connection, and
   both sides prove that they know it (`handshake`) before a message is read.
7. Its server knows TCP only, and its TLS begins before anybody has counted the connection. Sockets
   are bound and accepted here (`listener`).
8. h2 and hyperframe are slow, and their control frames free: see `GrpcWire` and `Connection`.
9. It serves whoever dials a port. Processes of a node may share one: see `relay`. And what a process
   cannot reach, another may: see `detour`.

An h2 event that grpclib does not know raises inside ``data_received``; `Connection` ignores it.
"""

import asyncio
import math
import socket
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from grpclib.client import Handler as ClientHandler
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.server import Stream as ServerStream
from h2.config import H2Configuration
from h2.exceptions import ProtocolError as H2Error

from raylite._kernel.connection import Connection, Gate
from raylite._kernel.grpcwire import GrpcWire, Terminated
from raylite._kernel.guard import Admission
from raylite._kernel.handshake import (
    METADATA,
    MISMATCH,
    SCHEME,
    Answering,
    Asking,
    Channel,
    path_channel,
    tcp_channel,
    tls_channel,
)
from raylite._kernel.interface import SCOPES
from raylite._kernel.keyring import Keyring
from raylite._kernel.link import LinkConfig
from raylite._kernel.listener import tune
from raylite._kernel.network import Network
from raylite._kernel.newcomers import Newcomers, is_newcomer
from raylite._kernel.rate import Rate
from raylite._kernel.reception import Reception, Rules
from raylite._kernel.relay import FOR, ONWARD, SCOPE, TO, carried, reached, relay
from raylite._kernel.revocation import cut_revoked, look_again
from raylite._kernel.seams import Seams
from raylite._kernel.server import CONFIG, LinkServer
from raylite._kernel.service import Service
from raylite._kernel.tls import Openings, Tls
from raylite._kernel.token import Token
from raylite._kernel.wire import CLOSING, Deaf, Wire, WireEvents
from raylite._types.address import Place, UnixAddress, place_to_dial, socket_name

PATH = "/raylite.Link/Open"


class GrpcNetwork(Network):
    """Links over gRPC, on unix sockets and TCP. See `raylite._types.address` for addresses.

    `server` is grpclib's, for listeners to its ``RecvRequest``. `metadata` is sent with every request.

    Args:
        seams: Where randomness and threads come from.
        config: The links' times and sizes.
        token: The cluster's, or a keyring of several. With one, whoever does not prove that it has
            it is not heard, nor spoken to; without one, this process listens on no TCP port.
        tls: Used for every TCP address; without it this process listens on the loopback only.
        insecure: Listen all the same. Whoever reaches the port can then run code as this user,
            or read what is sent.
        admission: What is allowed to peers that have not proven themselves.
    """

    def __init__(
        self,
        seams: Seams | None = None,
        config: LinkConfig | None = None,
        *,
        token: Token | Keyring | None = None,
        tls: Tls | None = None,
        insecure: bool = False,
        admission: Admission | None = None,
    ) -> None:
        super().__init__(seams, config)
        self.metadata: dict[str, str] = {} if token is None else {METADATA: SCHEME}
        self.server: LinkServer = LinkServer(self)
        self._keyring = Keyring(token) if isinstance(token, Token) else token
        self._tls = tls
        if self._keyring is not None and self._keyring.is_kept:
            kept = self._keyring
            kept.on_change = lambda: cut_revoked(self._connections.values(), kept)
            self._scope.start(look_again(kept, self.config.ping_after), "look at the tokens")
        rules = Rules(token is not None, tls, insecure, admission or Admission())
        self._reception = Reception(
            rules, self.server.connection, self._scope, self.config.connect_timeout
        )
        self._newcomers: Network | None = None
        #: The directory of the unix sockets that others reach by this process's ports; none if empty.
        self.relays = ""
        #: The name of the socket among them for who names none; this process itself if empty.
        self.front = ""
        self._connections: dict[Any, Connection] = {}
        self._carry_rate: Rate | None = None
        self._openings = Openings()
        self._all_gone = asyncio.Event()
        self._all_gone.set()

    def greet(self, *services: Service) -> None:
        """Let these services, and no others, answer peers that prove the token and have no certificate.

        Those that may, or will, do no more than read are served as all readers are. Only where the
        TLS given speaks to newcomers; without this, they are refused.
        """
        self._newcomers = Newcomers(self.seams, self.config)
        self._newcomers.host(*services)

    @property
    def refused(self) -> Counter[str]:
        """How many peers were turned away before they were heard, by reason."""
        return self._reception.refused

    async def listen(self, address: str, sock: socket.socket | None = None) -> str:
        """Listen at an address, on `sock` if somebody has bound it already; returns the address.

        May be called for one address after another. Port 0 takes any port that is free, which the
        address returned has. If this network has no address yet, it is this one.

        Raises:
            ValueError: It is no address, or to listen there would be insecure.
            OSError: It is taken, or not of this machine.
        """
        listening = self._reception.listen(address, sock)
        self.address: str = self.address or listening
        return listening

    async def dial(
        self, address: str, events: WireEvents, *, relays: str = "", onward: str = ""
    ) -> Wire:
        """Open a wire.

        Args:
            address: Where to.
            events: Who hears it.
            relays: The scope of the one whom it is for, if that is not this process.
            onward: Where the one who is dialled is to carry it, see `detour`.
        """
        place = place_to_dial(address, self.node)
        transport, connection = await self._connect(place)
        terminated = Terminated()
        try:
            if connection.lost:  # already: the server is full, or does not want this client
                raise ConnectionError(connection.lost)
            stream = connection.processor.connection.create_stream(wrapper=terminated)
            headers = [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", PATH),
                (":authority", "raylite"),
                ("te", "trailers"),
                ("content-type", "application/grpc+proto"),
                *self.metadata.items(),
            ]
            if name := socket_name(address):
                headers.append((TO, name))
            if relays:
                headers += [(FOR, "another node"), (SCOPE, relays)]
            if onward:
                headers.append((ONWARD, onward))
            await stream.send_request(headers, _processor=connection.processor)
            wire = GrpcWire(connection, stream, events)
            wire.is_local = wire.is_local and not onward
            terminated.wire = wire
            if self._keyring is None:
                wire.start()
            else:
                channel = self._channel(place, transport)
                wire.events = answering = Answering(wire, self._keyring, channel, events, address)
                wire.start()
                await answering.done
                wire.token = answering.token.id
            connection.is_member = True
        except (H2Error, StreamTerminatedError) as error:
            transport.abort()
            raise ConnectionError(f"the connection broke while it was opened: {error}") from error
        except BaseException:
            transport.abort()
            raise
        return wire

    async def dial_through(self, way: str, address: str, events: WireEvents) -> Wire:
        return await self.dial(way, events, onward=address)

    async def knock(self, address: str) -> None:
        place, loop = place_to_dial(address, self.node), asyncio.get_running_loop()
        transport: asyncio.Transport
        if isinstance(place, UnixAddress):
            transport, _ = await loop.create_unix_connection(asyncio.Protocol, place.path)
        else:
            transport, _ = await loop.create_connection(asyncio.Protocol, place.host, place.port)
        transport.abort()

    async def close(self) -> None:
        """Say goodbye on every link, stop accepting, and leave no connection behind."""
        self._reception.close()
        await asyncio.sleep(0)  # a task cancelled before it began would leave its socket open
        await super().close()
        await self._openings.close()
        if self._newcomers is not None:
            await self._newcomers.close()
        await self._wait_gone(CLOSING)
        for connection in list(self._connections.values()):
            connection.abort()
        await self._wait_gone(CLOSING)
        await self.server.shut(CLOSING)
        self._reception.clean()

    def __mapping__(self) -> dict[str, Handler]:
        """What grpclib asks a handler of requests for."""
        return {PATH: Handler(self._serve, Cardinality.STREAM_STREAM, bytes, bytes)}

    async def _serve(self, stream: "ServerStream[bytes, bytes]") -> None:
        """Serve one stream until it breaks; runs in a task of grpclib's."""
        connection = self._connections.get(stream._stream.connection)
        if connection is None or connection.wire is not None:
            raise GRPCError(Status.RESOURCE_EXHAUSTED, "one stream a connection")
        if len(self._connections) > self._reception.most_connections:
            raise GRPCError(
                Status.RESOURCE_EXHAUSTED,
                f"this process has {len(self._connections) - 1} connections, and not enough open files "
                "left for more: raise its limit (ulimit -n)",
            )
        door, told = connection.door, dict(stream.metadata or {})
        if (told.get(METADATA) == SCHEME) != (self._keyring is not None):
            if door is not None:
                door.failed("no handshake")
            raise GRPCError(Status.UNAUTHENTICATED, MISMATCH[self._keyring is not None])
        is_new = is_newcomer(connection)
        if is_new and self._newcomers is None:
            if door is not None:
                door.failed("no certificate")
            told_no = "this process shows no certificate of the cluster"
            raise GRPCError(Status.UNAUTHENTICATED, told_no)
        wire = GrpcWire(connection, stream._stream, Deaf())
        wire.is_local = wire.is_local and FOR not in told
        wire.scope = _scope(str(told.get(SCOPE, SCOPES[-1])))
        name = str(told.get(TO) or self.front)
        onward = str(told.get(ONWARD, ""))
        # Where two share a port, and none of them is named, this one carries as well as the other.
        is_ours = not name or name in self._reception.names or (onward and TO not in told)

        def accept(wire: GrpcWire) -> None:
            connection.is_member = True
            if is_new and self._newcomers is not None and wire.scope != SCOPES[0]:
                self._newcomers.accepted(wire)
            elif not is_ours:
                self._pass_on(stream, name, wire)
            elif onward:
                self._carry(stream, onward, wire)
            else:
                self.accepted(wire)

        try:
            await stream.send_initial_metadata()
            if self._keyring is not None:
                assert door is not None, "nobody is let in without a proof"
                await self._ask(wire, door, self._keyring, accept)
            else:
                if door is not None:
                    door.passed()
                accept(wire)
                wire.start()
            await wire.gone
        finally:
            wire.abort("the stream was given up")

    async def _ask(
        self, wire: GrpcWire, door: Gate, keyring: Keyring, accept: Callable[[GrpcWire], None]
    ) -> None:
        """Ask a stranger for a proof: at once, unless too many from where it comes have failed."""

        def passed(token: Token) -> None:
            wire.token = token.id
            wire.scope = min(wire.scope, token.scope, key=SCOPES.index)
            door.passed()
            accept(wire)

        if door.delay:
            await asyncio.sleep(door.delay)
            if wire.gone.done():
                return
        wire.events = asking = Asking(wire, keyring, door.channel, passed, door.failed)
        wire.start()
        asking.begin()

    def _pass_on(self, stream: "ServerStream[bytes, bytes]", name: str, wire: GrpcWire) -> None:
        """A member has opened a wire that is meant for another process."""
        wire.pause_reading()
        dial = partial(self.dial, relays=wire.scope)
        reach = partial(reached, dial, self.relays, name, self.config.connect_timeout)
        self._scope.start(relay(wire, stream, reach), f"relay to {name}")

    def _carry(self, stream: "ServerStream[bytes, bytes]", address: str, wire: GrpcWire) -> None:
        """A member has opened a wire that is meant for a process which it does not reach."""
        wire.pause_reading()

        def dial(way: str, onward: str, events: WireEvents) -> Coroutine[Any, Any, Wire]:
            return self.dial(way, events, relays=wire.scope, onward=onward)

        bandwidth = self.detours.bandwidth
        if self._carry_rate is None and bandwidth < math.inf:
            now = asyncio.get_running_loop().time()
            self._carry_rate = Rate(bandwidth, bandwidth, now)  # a second's worth at once
        reach = partial(carried, self.detours, address, wire, dial, self.config.carry_timeout)
        work = relay(wire, stream, reach, self._carry_rate)
        self._scope.start(work, f"carry to {address}")

    # ---- connections -------------------------------------------------------------------------

    async def _connect(self, place: Place) -> tuple[asyncio.Transport, Connection]:
        """Reach a place."""
        loop = asyncio.get_running_loop()
        transport: asyncio.Transport
        if isinstance(place, UnixAddress):
            transport, connection = await loop.create_unix_connection(self._dialled, place.path)
            return transport, connection
        if self._tls is None:
            transport, connection = await loop.create_connection(
                self._dialled, place.host, place.port
            )
        else:
            transport, connection = await self._openings.open(
                self._tls.client, place, self._dialled
            )
        if (sock := transport.get_extra_info("socket")) is not None:  # it is, once lost
            tune(sock)
        return transport, connection

    def _channel(self, place: Place, transport: asyncio.Transport) -> Channel:
        """Return what this end sees of a connection that it has opened."""
        if isinstance(place, UnixAddress):
            return path_channel(place.path)
        if self._tls is not None:
            shown = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
            return tls_channel(shown)
        if not (peer := transport.get_extra_info("peername")):
            raise ConnectionError("the connection was lost at once")
        return tcp_channel(*peer[:2])

    def _dialled(self) -> Connection:
        config = H2Configuration(
            client_side=True,
            header_encoding="ascii",
            validate_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_inbound_headers=False,
            normalize_outbound_headers=False,
        )
        return Connection(self, ClientHandler(), CONFIG.__for_client__(), config)

    def connection_made(self, connection: Connection) -> None:
        """Keep every connection, opened by either side, until it is lost."""
        self._connections[connection.connection] = connection
        self._all_gone.clear()

    def connection_lost(self, connection: Connection) -> None:
        self._connections.pop(connection.connection, None)
        if not self._connections:
            self._all_gone.set()

    async def _wait_gone(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._all_gone.wait()


def _scope(told: str) -> str:
    """Return what a relay says of whom it speaks for; the least if that makes no sense."""
    return told if told in SCOPES else SCOPES[0]
