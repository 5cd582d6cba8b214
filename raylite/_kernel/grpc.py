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
6. Whoever may not connect is turned away before a byte of a message is read: listen to grpclib's
   ``RecvRequest`` on `GrpcNetwork.server`.
7. Unix sockets inside a node. (TCP between nodes will need TLS, ``TCP_NODELAY`` and
   ``TCP_USER_TIMEOUT``.)

8. h2 and hyperframe make a hundred calls of a frame's way through two processes, more than all that
   stands above them. The DATA frames of the stream are read and written here, by their fixed
   header; whatever else a connection carries (settings, headers, windows, padding) is h2's.

An h2 event that grpclib does not know raises inside ``data_received``; `_Connection` ignores it.
"""

import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, cast

from grpclib.client import Handler as ClientHandler
from grpclib.config import Configuration
from grpclib.const import Cardinality, Handler, Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.protocol import Connection, EventsProcessor, H2Protocol, Stream
from grpclib.server import Handler as ServerHandler, Server, Stream as ServerStream
from grpclib.utils import Wrapper
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RemoteSettingsChanged, WindowUpdated
from h2.exceptions import ProtocolError as H2Error
from h2.settings import SettingCodes, Settings

from raylite._kernel.link import LinkConfig
from raylite._kernel.network import Network
from raylite._kernel.seams import Seams
from raylite._kernel.wire import CLOSING, FIRST_PACKET, Deaf, Wire, WireEvents
from raylite.exceptions import ProtocolError

PATH = "/raylite.Link/Open"
WINDOW = 16 * 1024 * 1024  # HTTP/2 flow control: bytes a peer may send that were not read
FRAME = 256 * 1024  # bytes in an HTTP/2 frame; its default of 16 KiB halves the bulk rate

_CONFIG = Configuration()
_SETTINGS = {
    SettingCodes.ENABLE_PUSH: 0,
    SettingCodes.INITIAL_WINDOW_SIZE: WINDOW,
    SettingCodes.MAX_FRAME_SIZE: FRAME,
    SettingCodes.MAX_CONCURRENT_STREAMS: 8,  # one is used; a second one is told so
    SettingCodes.MAX_HEADER_LIST_SIZE: 64 * 1024,
}
_SCHEME = "unix:"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # what a client's connection begins with

# RFC 9113, 4.1: length (24 bits: two fields here), type, flags, stream. DATA is type 0.
_FRAME = struct.Struct(">HBBBI")
_MESSAGE = struct.Struct(">HBBBIBI")  # the same, and gRPC's head of a message: flags, length
_WINDOW_UPDATE = struct.Struct(">HBBBII")  # the same, and how many bytes more may come
_WINDOW_UPDATE_TYPE = 8
_DEFAULT_FRAME = 16384  # what every peer takes
_DEFAULT_WINDOW = 65535  # a connection's, before it is opened further
_CREDIT = WINDOW // 4  # bytes read after which the peer is told that it may send as many more


class PacketCodec(CodecBase):
    """Packets are encoded above; grpclib carries them as they are. They are protobuf messages."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> bytes:
        return data


class GrpcNetwork(Network):
    """Links over gRPC. Addresses are ``unix:/path``.

    `server` is grpclib's; what must be asked of a peer before it is heard is a listener to the
    server's ``RecvRequest``, added before `listen`. `metadata` is sent with every request.
    """

    def __init__(self, seams: Seams | None = None, config: LinkConfig | None = None) -> None:
        super().__init__(seams, config)
        self.metadata: dict[str, str] = {}
        self.server = _Server(self)
        self._connections: dict[Connection, _Connection] = {}
        self._all_gone = asyncio.Event()
        self._all_gone.set()
        self._path = ""
        self._inode = 0

    async def listen(self, address: str, sock: socket.socket | None = None) -> None:
        """Listen at an address, on `sock` if somebody has bound it already."""
        path = _path(address)
        await self.server.open(path, sock)
        if sock is None:
            self._path, self._inode = path, os.stat(path).st_ino
        self.address = address

    async def dial(self, address: str, events: WireEvents) -> Wire:
        loop = asyncio.get_running_loop()
        transport, connection = await loop.create_unix_connection(self._dialled, _path(address))
        terminated = _Terminated()
        try:
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
            await stream.send_request(headers, _processor=connection.processor)
            wire = GrpcWire(connection, stream, events)
            terminated.wire = wire
            wire.start()
        except (H2Error, StreamTerminatedError) as error:
            transport.abort()
            raise ConnectionError(f"the connection broke while it was opened: {error}") from error
        except BaseException:
            transport.abort()
            raise
        return wire

    async def close(self) -> None:
        """Say goodbye on every link, stop accepting, and leave no connection behind."""
        self.server.refuse()
        await super().close()
        await self._wait_gone(CLOSING)
        for connection in list(self._connections.values()):
            connection.abort()
        await self._wait_gone(CLOSING)
        await self.server.shut(CLOSING)
        try:
            if self._path and os.stat(self._path).st_ino == self._inode:
                os.unlink(self._path)
        except FileNotFoundError:
            pass

    def __mapping__(self) -> dict[str, Handler]:
        """What grpclib asks a handler of requests for."""
        return {PATH: Handler(self._serve, Cardinality.STREAM_STREAM, bytes, bytes)}

    async def _serve(self, stream: "ServerStream[bytes, bytes]") -> None:
        """Serve one stream until it breaks; runs in a task of grpclib's."""
        connection = self._connections.get(stream._stream.connection)
        if connection is None or connection.wire is not None:
            raise GRPCError(Status.RESOURCE_EXHAUSTED, "one stream a connection")
        wire = GrpcWire(connection, stream._stream, Deaf())
        try:
            await stream.send_initial_metadata()
            self.accepted(wire)
            wire.start()
            await wire.gone
        finally:
            wire.abort("the stream was given up")

    def _dialled(self) -> "_Connection":
        config = H2Configuration(
            client_side=True,
            header_encoding="ascii",
            validate_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_inbound_headers=False,
            normalize_outbound_headers=False,
        )
        return _Connection(self, ClientHandler(), _CONFIG.__for_client__(), config)

    def connection_made(self, connection: "_Connection") -> None:
        """Keep every connection, opened by either side, until it is lost."""
        self._connections[connection.connection] = connection
        self._all_gone.clear()

    def connection_lost(self, connection: "_Connection") -> None:
        self._connections.pop(connection.connection, None)
        if not self._connections:
            self._all_gone.set()

    async def _wait_gone(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._all_gone.wait()
        except TimeoutError:
            pass


class _Server(Server):
    """grpclib's server, over unix sockets, on connections of ours."""

    def __init__(self, network: GrpcNetwork) -> None:
        super().__init__([network], codec=PacketCodec(), config=_CONFIG)
        self._network = network

    async def open(self, path: str, sock: socket.socket | None) -> None:
        """Listen. (The `start` of grpclib takes a bound socket for a TCP one.)"""
        loop = asyncio.get_running_loop()
        self._server_closed_fut = loop.create_future()
        if sock is not None:
            self._server = await loop.create_unix_server(self._accepted, sock=sock, backlog=1024)
        else:
            self._server = await loop.create_unix_server(self._accepted, path, backlog=1024)

    def refuse(self) -> None:
        """Accept no more connections."""
        if self._server is not None:
            self._server.close()

    async def shut(self, seconds: float) -> None:
        """Cancel what still serves a request, and wait for it, so long at most."""
        if self._server is not None:
            self.close()
            try:
                async with asyncio.timeout(seconds):
                    await self.wait_closed()
            except TimeoutError:
                pass

    def _accepted(self) -> "_Connection":
        self.__gc_step__()
        handler = ServerHandler(
            self._mapping, self._codec, self._status_details_codec, self.__dispatch__
        )
        self._handlers.add(handler)
        connection = _Connection(self._network, handler, self._config, self._h2_config)
        connection.expect_stream(self._network.config.connect_timeout)
        return connection


class _Connection(H2Protocol):
    """One connection: known to its network, pushing to its one wire, deaf to what nobody needs."""

    def __init__(self, network: GrpcNetwork, handler: Any, config: Any, h2: Any) -> None:
        super().__init__(handler, config, h2)
        self.wire: GrpcWire | None = None
        self.stream = -1  # whose DATA goes to the wire, not to h2
        self._network = network
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._preface = 0 if h2.client_side else len(PREFACE)  # bytes of it still to come
        self._parts: list[bytes] = []  # of a frame that is not whole yet
        self._size = self._wanted = 0

    def expect_stream(self, seconds: float) -> None:
        """Abort unless a stream is opened within so many seconds."""
        self._timer = asyncio.get_running_loop().call_later(seconds, self._give_up)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Do what grpclib does, in one SETTINGS frame instead of three, each to be acknowledged."""
        transport = cast("asyncio.Transport", transport)  # uvloop's has another base
        self._transport = transport
        h2 = H2Connection(config=self.h2_config)
        h2.local_settings = Settings(client=self.h2_config.client_side, initial_values=_SETTINGS)
        h2.max_inbound_frame_size = FRAME
        h2.initiate_connection()
        h2.increment_flow_control_window(2 * WINDOW - _DEFAULT_WINDOW)
        self.connection = Connection(h2, transport, config=self.config)
        self.connection.flush()
        self.processor = EventsProcessor(self.handler, self.connection)
        known = _Known(self.processor.processors)
        known[WindowUpdated] = known[RemoteSettingsChanged] = self._room
        self.processor.processors = known
        self._network.connection_made(self)

    def data_received(self, data: bytes) -> None:
        if self._parts:
            self._parts.append(data)
            self._size += len(data)
            if self._size < self._wanted:
                if self.wire is not None:
                    self.wire.events.arriving()
                return
            data = b"".join(self._parts)
            self._parts.clear()
        position, end = 0, len(data)
        if self._preface:
            position = min(self._preface, end)
            self._preface -= position
            self._process(data[:position])
        while end - position >= _FRAME.size:
            high, low, kind, flags, stream = _FRAME.unpack_from(data, position)
            body = position + _FRAME.size
            frame_end = body + (high << 8 | low)
            if frame_end > end:
                break
            if stream == self.stream and not kind and not flags:
                assert self.wire is not None
                self.wire.take(memoryview(data)[body:frame_end])
            else:
                self._process(data[position:frame_end])
            position = frame_end
        if position < end:
            self._keep(data[position:])

    def _keep(self, part: bytes) -> None:
        """Keep the beginning of a frame, unless it is to be longer than h2 would take."""
        self._parts.append(part)
        self._size, self._wanted = len(part), _FRAME.size
        if len(part) >= _FRAME.size:
            length = int.from_bytes(part[:3], "big")
            self._wanted += length
            if length > self.connection._connection.max_inbound_frame_size:
                self.abort()
            elif self.wire is not None:
                self.wire.events.arriving()

    def _process(self, data: bytes) -> None:
        """Let h2 read what is no DATA of the wire's."""
        try:
            events = self.connection.feed(data)
        except Exception:  # whatever h2 makes of bytes that are not HTTP/2
            self.abort()
            return
        self.connection.flush()
        for event in events:
            self.processor.process(event)
        if not self.connection.is_closing():
            self.connection.flush()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.wire is not None:
            self.wire.pump()

    def connection_lost(self, error: BaseException | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.wire is not None:
            self.wire.break_off(str(error or "the connection was lost"))
            self.wire = None
        super().connection_lost(error)
        self._network.connection_lost(self)

    def close(self) -> None:
        """Close once everything was written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once. (`close()` waits for unsent bytes, however long nobody reads them.)"""
        if self._transport is not None:
            self._transport.abort()

    def _room(self, event: Any) -> None:
        if self.wire is not None:
            self.wire.pump()

    def _give_up(self) -> None:
        if self.wire is None:
            self.abort()


class _Known(dict[Any, Any]):
    """grpclib's handlers of h2 events, without an error for those it does not handle."""

    def __missing__(self, event: Any) -> Callable[[Any], None]:
        return _ignore


def _ignore(event: Any) -> None: ...


class GrpcWire:
    """One stream. Packets are pushed to `events` as their bytes arrive.

    It takes the place of the buffer that grpclib fills for the stream (`add`, `eof`).
    """

    def __init__(self, connection: _Connection, stream: Stream, events: WireEvents) -> None:
        assert stream.id is not None
        self.events = events
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stream, self._id = stream, stream.id
        self._connection = connection
        self._write_ready = connection.connection.write_ready
        self._transport = stream._transport
        self._h2 = stream._h2_connection
        self._h2_stream = self._h2.streams[stream.id]
        self._is_broken = self._is_closing = self._is_over = self._is_paused = False
        self._closing_timer: asyncio.TimerHandle | None = None
        self._unsent: deque[memoryview] = deque()
        self._held: deque[tuple[memoryview, int]] = deque()  # arrived while reading is paused
        self._held_size = 0  # of it, what h2 does not count
        self._uncredited = 0  # bytes read that the peer has not been told of
        self._cutter = _Cutter()
        connection.wire = self

    def start(self) -> None:
        """Begin to read: `events` hears everything from now on."""
        early, self._stream.buffer = self._stream.buffer, self  # type: ignore[assignment]
        while not early._unacked.empty():
            data, _, size = early._unacked.get_nowait()
            if size:
                self.add(data, size)
            else:
                asyncio.get_running_loop().call_soon(self.eof)
        if not self._is_broken:
            self._connection.stream = self._id

    @property
    def limit(self) -> int:
        return self._cutter.limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._cutter.limit = limit

    # ---- writing

    @property
    def is_writable(self) -> bool:
        return not self._unsent

    def send(self, packet: bytes) -> None:
        if self._is_broken or self._is_closing:
            return
        size, h2, stream = len(packet) + 5, self._h2, self._h2_stream
        if (
            size <= _DEFAULT_FRAME
            and size <= stream.outbound_flow_control_window
            and size <= h2.outbound_flow_control_window
            and not self._unsent
            and self._write_ready.is_set()
        ):
            stream.outbound_flow_control_window -= size
            h2.outbound_flow_control_window -= size
            head = _MESSAGE.pack(size >> 8, size & 0xFF, 0, 0, self._id, 0, size - 5)
            self._transport.write(head + packet)
            return
        message = memoryview(b"\0" + len(packet).to_bytes(4, "big") + packet)
        if self._unsent:
            self._unsent.append(message)
        elif (rest := self._write(message)) is not None:
            self._unsent.append(rest)

    def pump(self) -> None:
        """Write on what waited for room: in the window, or in the transport's buffer."""
        if not self._unsent:
            return
        while self._unsent:
            rest = self._write(self._unsent[0])
            if rest is not None:
                self._unsent[0] = rest
                return
            self._unsent.popleft()
        if self._is_closing:
            # Not at once: asyncio closes twice what is closed from within `resume_writing`.
            asyncio.get_running_loop().call_soon(self._connection.close)
        else:
            self.events.writable()

    def _write(self, message: memoryview) -> memoryview | None:
        """Write what flow control admits; return the rest, None if there is none."""
        h2, stream, position, size = self._h2, self._h2_stream, 0, len(message)
        while position < size and not self._is_broken:
            room = min(h2.outbound_flow_control_window, stream.outbound_flow_control_window)
            if room <= 0 or not self._write_ready.is_set():
                return message[position:]
            chunk = min(room, h2.max_outbound_frame_size, size - position)
            h2.outbound_flow_control_window -= chunk
            stream.outbound_flow_control_window -= chunk
            head = _FRAME.pack(chunk >> 8, chunk & 0xFF, 0, 0, self._id)
            self._transport.writelines([head, message[position : position + chunk]])
            position += chunk
        return None

    # ---- reading

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        self._is_paused = False
        while self._held and not self._is_paused:
            data, padded = self._held.popleft()
            if not padded:
                self._held_size -= len(data)
            self.take(data, padded)

    def take(self, data: memoryview, padded: int = 0) -> None:
        """Take what a DATA frame brought; once enough is read, the peer may send as much again.

        `padded` is what h2 counts for a frame that it has read; 0 if it has not.
        """
        if self._is_over:
            return  # the connection is about to go; what it still brings is nobody's
        if self._is_paused:
            self._held.append((data, padded))
            if not padded:
                self._held_size += len(data)
                if self._held_size + self._uncredited > WINDOW:
                    self._refuse(ProtocolError("more was sent than flow control admits"))
            return
        if padded:
            self._connection.connection.ack(self._id, padded)
        else:
            self._uncredited += len(data)
            if self._uncredited >= _CREDIT:
                self._credit()
        cutter = self._cutter
        try:
            if cutter.is_whole(data):
                self.events.packet(data[5:])
                return
            has_packet = False
            for packet in cutter.cut(data):
                has_packet = True
                self.events.packet(packet)
        except ProtocolError as error:
            self._refuse(error)
            return
        if not has_packet:
            self.events.arriving()

    def add(self, data: bytes, ack_size: int) -> None:
        """Take what h2 read: it came before the wire was there, or its frame is padded."""
        self.take(memoryview(data), ack_size)

    def _credit(self) -> None:
        size, self._uncredited = self._uncredited, 0
        self._transport.writelines(
            _WINDOW_UPDATE.pack(0, 4, _WINDOW_UPDATE_TYPE, 0, stream, size)
            for stream in (0, self._id)
        )

    def _refuse(self, error: ProtocolError) -> None:
        self._is_over = True
        self.events.malformed(error)

    def eof(self) -> None:
        """The peer has ended the stream, perhaps with a reason."""
        told = dict(self._stream.trailers or self._stream.headers or ())
        status = " ".join(str(told[key]) for key in ("grpc-status", "grpc-message") if key in told)
        self.break_off(f"the peer ended the stream {status}".rstrip())

    def unacked_size(self) -> int:
        """Return how many bytes that h2 counts were not read, which grpclib asks at the end."""
        return sum(padded for _, padded in self._held)

    # ---- ending

    def close(self, reason: str) -> None:
        if self._is_broken or self._is_closing:
            return
        self._is_closing = self._is_over = True
        loop = asyncio.get_running_loop()
        self._closing_timer = loop.call_later(CLOSING, self.abort, reason)
        if not self._unsent:
            self._connection.close()

    def abort(self, reason: str) -> None:
        self.break_off(reason)

    def break_off(self, reason: str) -> None:
        """End the connection, unsent bytes or not, and tell whoever listens, once."""
        if self._is_broken:
            return
        self._is_broken = self._is_over = True
        self._connection.stream = -1
        self._unsent.clear()
        self._held.clear()
        self._stream.buffer, self._stream.wrapper = _NOBODY, None  # type: ignore[assignment]
        if self._closing_timer is not None:
            self._closing_timer.cancel()
        if not self.gone.done():
            self.gone.set_result(None)
        self._transport.abort()
        self.events.broken(reason)


class _Cutter:
    """Cuts arriving bytes into packets, refusing a length before it keeps a byte of it."""

    def __init__(self) -> None:
        self.limit = FIRST_PACKET
        self._parts: list[bytes] = []
        self._size = 0

    def is_whole(self, data: memoryview) -> bool:
        """Whether these bytes are one packet and nothing else: then there is nothing to cut."""
        size = len(data) - 5
        if self._parts or size < 0 or size > self.limit or data[0]:
            return False
        return int.from_bytes(data[1:5], "big") == size

    def cut(self, data: bytes | memoryview) -> Iterator[memoryview]:
        """Yield the packets that are whole now; `limit` may change between them."""
        if self._parts:
            self._parts.append(bytes(data))
            self._size += len(data)
            if self._size < 5 or self._size < self._wanted():
                return
            data = b"".join(self._parts)
            self._parts.clear()
        position, end = 0, len(data)
        view = memoryview(data)
        while end - position >= 5:
            body = position + 5
            length = self._length(data, position)
            if body + length > end:
                break
            yield view[body : body + length]
            position = body + length
        if position < end:
            self._parts.append(bytes(data[position:]))
            self._size = end - position

    def _wanted(self) -> int:
        if len(self._parts[0]) < 5:
            self._parts = [b"".join(self._parts)]
        return 5 + self._length(self._parts[0], 0)

    def _length(self, data: bytes | memoryview, position: int) -> int:
        length = int.from_bytes(data[position + 1 : position + 5], "big")
        if data[position] or length > self.limit:
            raise ProtocolError(
                f"a message of {length} bytes, flags {data[position]}: "
                f"at most {self.limit} bytes, uncompressed, are accepted"
            )
        return length


class _Nobody:
    """What grpclib fills when nobody reads the stream any more."""

    def add(self, data: bytes, ack_size: int) -> None: ...
    def eof(self) -> None: ...
    def unacked_size(self) -> int:
        return 0


_NOBODY = _Nobody()


class _Terminated(Wrapper):
    """How grpclib tells a client's stream that it was reset."""

    wire: GrpcWire | None = None

    def cancel(self, error: StreamTerminatedError) -> None:  # type: ignore[override]
        if self.wire is not None:
            self.wire.break_off(str(error))
        super().cancel(error)


def _path(address: str) -> str:
    if not address.startswith(_SCHEME):
        raise ValueError(f"cannot reach {address!r}: expected unix:/path")
    return address.removeprefix(_SCHEME)
