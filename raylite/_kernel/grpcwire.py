"""`GrpcWire`: the packets of one stream of grpclib, read and written as DATA frames.

h2 and hyperframe make a hundred calls of a frame's way through two processes, more than all that
stands above them. The DATA frames of the stream are written here by their fixed header, and read
here once `Connection` has found them; whatever else a connection carries is h2's.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator

from grpclib.const import Status
from grpclib.exceptions import StreamTerminatedError
from grpclib.protocol import Stream
from grpclib.utils import Wrapper

from raylite._kernel.connection import DEFAULT_FRAME, FRAME_HEAD, WINDOW, WINDOW_UPDATE, Connection
from raylite._kernel.interface import SCOPES
from raylite._kernel.rate import Rate
from raylite._kernel.wire import CLOSING, FIRST_PACKET, WireEvents
from raylite.exceptions import AuthenticationError, LinkError, ProtocolError

_MESSAGE = struct.Struct(">HBBBIBI")  # a frame's head, and gRPC's head of a message: flags, length
_WINDOW_UPDATE = struct.Struct(">HBBBII")  # a frame's head, and how many bytes more may come
_WORTHWHILE = 64 * 1024  # bytes of a part that is kept as it came, with all that came with it
_CREDIT = WINDOW // 4  # bytes read after which the peer is told that it may send as many more


class GrpcWire:
    """One stream. Packets are pushed to `events` as their bytes arrive.

    It takes the place of the buffer that grpclib fills for the stream (`add`, `eof`).
    """

    def __init__(self, connection: Connection, stream: Stream, events: WireEvents) -> None:
        assert stream.id is not None
        self.events = events
        self.scope = SCOPES[-1]
        self.token = ""  # the id of the one by which it was opened
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stream, self._id = stream, stream.id
        self._connection = connection
        self._write_ready = connection.connection.write_ready
        self._transport = stream._transport
        # A connection that was lost in this moment has no socket any more: `gone` will say so.
        sock = self._transport.get_extra_info("socket")
        self.is_local = sock is not None and sock.family == socket.AF_UNIX
        self._h2 = stream._h2_connection
        self._h2_stream = self._h2.streams[stream.id]
        self._is_broken = self._is_closing = self._is_over = False
        self._detour: Callable[[memoryview, int], None] | None = None  # for what is not cut here
        self._onward: GrpcWire | None = None
        self._rate: Rate | None = None  # of what is passed on
        self._pausing: asyncio.TimerHandle | None = None  # until it has a permit
        self._closing_timer: asyncio.TimerHandle | None = None
        self._unsent: deque[memoryview] = deque()
        self._held: deque[tuple[memoryview, int]] = deque()  # arrived while reading is paused
        self._held_size = 0  # of it, what h2 does not count
        self._uncredited = 0  # bytes read that the peer has not been told of
        self._cutter = Cutter()
        connection.wire = self

    def start(self) -> None:
        """Begin to read: `events` hears everything from now on."""
        if self._is_broken:  # whom it was given to did not want it: a network that is closing
            return
        early, self._stream.buffer = self._stream.buffer, self  # type: ignore[assignment]
        while not early._unacked.empty():
            data, _, size = early._unacked.get_nowait()
            if size:
                self.add(data, size)
            else:
                asyncio.get_running_loop().call_soon(self.eof)
        if not self._is_broken:  # by what it has heard
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
            size <= DEFAULT_FRAME
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
        lead = b"\0" + len(packet).to_bytes(4, "big")
        if size <= DEFAULT_FRAME:
            self.forward(memoryview(lead + packet))
        elif self._unsent:
            self._unsent += memoryview(lead), memoryview(packet)
        elif (rest := self._write(memoryview(packet), lead)) is not None:  # not copied: it is large
            self._unsent.append(rest)

    def forward(self, data: memoryview) -> None:
        """Send bytes of another stream, which need not begin or end with a packet."""
        if self._is_broken or self._is_closing:
            return
        if self._unsent:
            self._unsent.append(data)
        elif (rest := self._write(data)) is not None:
            self._unsent.append(rest)

    def nudge(self) -> None:
        """Let the peer know that more is on its way: its listener hears `arriving`."""
        if not (self._is_broken or self._is_closing or self._unsent):
            self._transport.write(FRAME_HEAD.pack(0, 0, 0, 0, self._id))

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

    def _write(self, message: memoryview, lead: bytes = b"") -> memoryview | None:
        """Write what flow control admits; return the rest, None if there is none.

        A lead goes before it in the first frame, or before the rest if there is no room yet.
        """
        h2, stream, position, size = self._h2, self._h2_stream, 0, len(message)
        while position < size and not self._is_broken:
            room = min(h2.outbound_flow_control_window, stream.outbound_flow_control_window)
            if room <= len(lead) or not self._write_ready.is_set():
                if lead:
                    self._unsent.append(memoryview(lead))
                return message[position:]
            taken = min(room, h2.max_outbound_frame_size, len(lead) + size - position)
            h2.outbound_flow_control_window -= taken
            stream.outbound_flow_control_window -= taken
            head = FRAME_HEAD.pack(taken >> 8, taken & 0xFF, 0, 0, self._id) + lead
            end = position + taken - len(lead)
            self._transport.writelines([head, message[position:end]])
            position, lead = end, b""
        return None

    # ---- reading

    def pause_reading(self) -> None:
        self._detour = self._hold

    def resume_reading(self) -> None:
        self._detour = None
        while self._held and self._detour is None:
            data, padded = self._held.popleft()
            if not padded:
                self._held_size -= len(data)
            self.take(data, padded)

    def pass_to(self, onward: "GrpcWire", rate: Rate | None = None) -> None:
        """Send on another wire whatever this one brings from now on, as bytes.

        The peer may send more as the other wire takes it and the rate admits it: see `credit`.
        """
        if self._cutter.has_begun:
            self._refuse(ProtocolError("half a packet before the stream was passed on"))
            return
        self._onward, self._detour, self._rate = onward, self._pass, rate
        held, self._held = self._held, deque()
        for data, padded in held:
            self._pass(data, padded)

    def credit(self) -> None:
        """Let the peer send on, if it has sent enough and the wire that takes it has room."""
        onward, rate = self._onward, self._rate
        if self._uncredited < _CREDIT or self._pausing is not None:
            return
        if onward is not None and not onward.is_writable:
            return
        if rate is not None:
            loop = asyncio.get_running_loop()
            if not rate.spend(loop.time(), self._uncredited):
                self._pausing = loop.call_later(rate.wait(loop.time()), self._resume_credit)
                return
        self._credit()

    def _resume_credit(self) -> None:
        self._pausing = None
        self.credit()

    def take(self, data: memoryview, padded: int = 0) -> None:
        """Take what a DATA frame brought; once enough is read, the peer may send as much again.

        `padded` is what h2 counts for a frame that it has read; 0 if it has not.
        """
        if self._is_over:
            return  # the connection is about to go; what it still brings is nobody's
        if self._detour is not None:
            self._detour(data, padded)
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
            if not data:
                self._connection.count_control()

    def add(self, data: bytes, ack_size: int) -> None:
        """Take what h2 read: it came before the wire was there, or its frame is padded."""
        self.take(memoryview(data), ack_size)

    def _hold(self, data: memoryview, padded: int) -> None:
        self._held.append((data, padded))
        if not padded:
            self._held_size += len(data)
            if self._held_size + self._uncredited > WINDOW:
                self._refuse(ProtocolError("more was sent than flow control admits"))

    def _pass(self, data: memoryview, padded: int) -> None:
        assert self._onward is not None
        self._uncredited += len(data)
        if padded or self._uncredited > WINDOW:  # of padding nobody would know how much there is
            self._refuse(ProtocolError("more was sent than flow control admits, or padding"))
        elif data:
            self._onward.forward(data)
            self.credit()
        else:
            self._connection.count_control()
            self._onward.nudge()

    def _credit(self) -> None:
        size, self._uncredited = self._uncredited, 0
        self._transport.writelines(
            _WINDOW_UPDATE.pack(0, 4, WINDOW_UPDATE, 0, stream, size) for stream in (0, self._id)
        )

    def _refuse(self, error: LinkError) -> None:
        self._is_over = True
        self.events.malformed(error)

    def eof(self) -> None:
        """The peer has ended the stream, perhaps with a reason."""
        told = dict(self._stream.trailers or self._stream.headers or ())
        status = " ".join(str(told[key]) for key in ("grpc-status", "grpc-message") if key in told)
        reason = f"the peer ended the stream {status}".rstrip()
        if told.get("grpc-status") == str(Status.UNAUTHENTICATED.value):
            said = told.get("grpc-message", "it does not say why")
            self._refuse(AuthenticationError(f"the peer refuses this process: {said}"))
        self.break_off(reason)

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
        for timer in (self._closing_timer, self._pausing):
            if timer is not None:
                timer.cancel()
        if not self.gone.done():
            self.gone.set_result(None)
        self._transport.abort()
        self.events.broken(reason)


class Cutter:
    """Cuts arriving bytes into packets, refusing a length before it keeps a byte of it."""

    def __init__(self) -> None:
        self.limit = FIRST_PACKET
        self._parts: list[bytes | memoryview] = []
        self._size = 0

    @property
    def has_begun(self) -> bool:
        """Whether a packet has begun that is not whole yet."""
        return bool(self._parts)

    def is_whole(self, data: memoryview) -> bool:
        """Whether these bytes are one packet and nothing else: then there is nothing to cut."""
        size = len(data) - 5
        if self._parts or size < 0 or size > self.limit or data[0]:
            return False
        return int.from_bytes(data[1:5], "big") == size

    def cut(self, data: bytes | memoryview) -> Iterator[memoryview]:
        """Yield the packets that are whole now; `limit` may change between them."""
        if self._parts:
            self._keep(data)
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
            self._keep(view[position:])
            self._size = end - position

    def _keep(self, part: bytes | memoryview) -> None:
        self._parts.append(part if len(part) >= _WORTHWHILE else bytes(part))

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


class Terminated(Wrapper):
    """How grpclib tells a client's stream that it was reset."""

    wire: GrpcWire | None = None

    def cancel(self, error: StreamTerminatedError) -> None:  # type: ignore[override]
        if self.wire is not None:
            self.wire.break_off(str(error))
        super().cancel(error)
