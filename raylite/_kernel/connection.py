"""`Connection`: one HTTP/2 connection of grpclib's, whose DATA frames go straight to a wire.

What a connection carries beside the DATA of its one stream (settings, headers, windows, padding) is
left to h2, so it costs more to read than to send: a peer that floods the connection is cut off.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import Any, Protocol, cast

from grpclib.protocol import Connection as H2Streams, EventsProcessor, H2Protocol
from h2.connection import H2Connection
from h2.events import RemoteSettingsChanged, WindowUpdated
from h2.settings import SettingCodes, Settings

from raylite._kernel.rate import Rate
from raylite._kernel.wire import WireEvents

WINDOW = 16 * 1024 * 1024  # HTTP/2 flow control: bytes a peer may send that were not read
FRAME = 256 * 1024  # bytes in an HTTP/2 frame; its default of 16 KiB halves the bulk rate
DEFAULT_FRAME = 16384  # what every peer takes
CONTROL_RATE, CONTROL_BURST = 200, 1000  # frames a second that are not data, and at once

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # what a client's connection begins with

# RFC 9113, 4.1: length (24 bits: two fields here), type, flags, stream. DATA is type 0.
FRAME_HEAD = struct.Struct(">HBBBI")
DATA, WINDOW_UPDATE = 0, 8

_SETTINGS = {
    SettingCodes.ENABLE_PUSH: 0,
    SettingCodes.INITIAL_WINDOW_SIZE: WINDOW,
    SettingCodes.MAX_FRAME_SIZE: FRAME,
    SettingCodes.MAX_CONCURRENT_STREAMS: 8,  # one is used; a second one is told so
    SettingCodes.MAX_HEADER_LIST_SIZE: 64 * 1024,
}
_DEFAULT_WINDOW = 65535  # a connection's, before it is opened further


class Reader(Protocol):
    """What a connection's DATA goes to: a `GrpcWire`."""

    events: WireEvents

    def take(self, data: memoryview) -> None: ...
    def pump(self) -> None: ...
    def break_off(self, reason: str) -> None: ...


class Gate(Protocol):
    """What stands before an accepted connection until its peer has proven itself: a `Door`."""

    channel: bytes

    @property
    def delay(self) -> float: ...
    def passed(self) -> None: ...
    def failed(self, reason: str) -> None: ...


class Connections(Protocol):
    """Who keeps a process's connections."""

    def connection_made(self, connection: "Connection") -> None: ...
    def connection_lost(self, connection: "Connection") -> None: ...


class Connection(H2Protocol):
    """One connection: known to its network, pushing to its one wire, deaf to what nobody needs."""

    def __init__(self, network: Connections, handler: Any, config: Any, h2: Any) -> None:
        super().__init__(handler, config, h2)
        self.wire: Reader | None = None
        self.lost: str = ""  # why, once it is
        self.door: Gate | None = None
        self.is_member = False  # the peer has proven itself, or need not
        self.stream = -1  # whose DATA goes to the wire, not to h2
        self._network = network
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._preface = 0 if h2.client_side else len(PREFACE)  # bytes of it still to come
        self._parts: list[bytes] = []  # of a frame that is not whole yet
        self._size = self._wanted = 0
        self._has_heard = False
        self._control = Rate(CONTROL_RATE, CONTROL_BURST, self._loop.time())

    def expect_stream(self, seconds: float) -> None:
        """Abort unless a stream is opened within so many seconds."""
        self._timer = self._loop.call_later(seconds, self._give_up)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Do what grpclib does, in one SETTINGS frame instead of three, each to be acknowledged."""
        transport = cast("asyncio.Transport", transport)  # uvloop's has another base
        self._transport = transport
        h2 = H2Connection(config=self.h2_config)
        h2.local_settings = Settings(client=self.h2_config.client_side, initial_values=_SETTINGS)
        h2.max_inbound_frame_size = FRAME
        h2.initiate_connection()
        h2.increment_flow_control_window(2 * WINDOW - _DEFAULT_WINDOW)
        self.connection: Any = H2Streams(h2, transport, config=self.config)
        self.connection.flush()
        self.processor: Any = EventsProcessor(self.handler, self.connection)
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
        while end - position >= FRAME_HEAD.size:
            high, low, kind, flags, stream = FRAME_HEAD.unpack_from(data, position)
            body = position + FRAME_HEAD.size
            frame_end = body + (high << 8 | low)
            if frame_end > end:
                break
            if stream == self.stream and not kind and not flags:
                assert self.wire is not None
                self.wire.take(memoryview(data)[body:frame_end])
            else:
                self._admit(kind, data[body : body + 4], frame_end - body)
                self._process(data[position:frame_end])
            position = frame_end
        if position < end:
            self._keep(data[position:])

    def _keep(self, part: bytes) -> None:
        """Keep the beginning of a frame, unless it is to be longer than h2 would take."""
        self._parts.append(part)
        self._size, self._wanted = len(part), FRAME_HEAD.size
        if len(part) >= FRAME_HEAD.size:
            length = int.from_bytes(part[:3], "big")
            self._wanted += length
            if length > self.connection._connection.max_inbound_frame_size:
                self.abort()
            elif self.wire is not None:
                self.wire.events.arriving()

    def _admit(self, kind: int, begin: bytes, length: int) -> None:
        """Count a frame that h2 is to read, unless flow control bounds how many such may come.

        Windows are opened as fast as data is read, which is often at full speed; one that opens
        them by less than a frame's worth is no such, nor is data without a byte.
        """
        if kind == WINDOW_UPDATE and int.from_bytes(begin, "big") >= DEFAULT_FRAME:
            return
        if kind != DATA or not length:
            self.count_control()

    def count_control(self) -> None:
        """A frame has come that flow control does not bound: abort if there are too many."""
        if not self._control.spend(self._loop.time()):
            self.abort()

    def _process(self, data: bytes) -> None:
        """Let h2 read what is no DATA of the wire's."""
        if self.connection.is_closing():
            return
        self._has_heard = True
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
        if self.lost:  # as `forsaken` said already
            return
        if self._timer is not None:
            self._timer.cancel()
        self.lost = self._why_lost(error)
        if self.wire is not None:
            self.wire.break_off(self.lost)
            self.wire = None
        super().connection_lost(error)
        self._network.connection_lost(self)

    def forsaken(self) -> None:
        """Who accepted it was cancelled, for which uvloop closes the transport and tells nobody."""
        if self._transport is not None:
            self.connection_lost(None)

    def _why_lost(self, error: BaseException | None) -> str:
        if self._has_heard:
            return str(error or "the connection was lost")
        return (
            f"closed without a word{f' ({error})' if error else ''}: it has ended, refuses too many "
            "connections, expects TLS, or does not accept this process's certificate"
        )

    def close(self) -> None:
        """Close once everything was written, and hear nothing more.

        For members, what is read is thrown away until the peer has closed, too: if it writes when nobody
        reads any more, it is told so at once, and what it has not read by then is lost to it.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self.is_member and transport.can_write_eof():  # TLS sees to it by itself
            transport.set_protocol(_Closing(self))
            try:
                transport.write_eof()
            except OSError:  # the peer has reset it, which this transport has not noticed yet
                transport.abort()
        else:
            transport.close()

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


class _Closing(asyncio.Protocol):
    """Hears nothing more of a connection but its end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def connection_lost(self, error: BaseException | None) -> None:
        self._connection.connection_lost(error)


class _Known(dict[Any, Any]):
    """grpclib's handlers of h2 events, without an error for those it does not handle."""

    def __missing__(self, event: Any) -> Callable[[Any], None]:
        return _ignore


def _ignore(event: Any) -> None: ...
