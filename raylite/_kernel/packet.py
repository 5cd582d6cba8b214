"""Packets and frames: the bytes of one gRPC message, and what lies inside it.

A packet is the protobuf message ``Packet`` of ``link.proto`` (``fixed64 seq = 1, fixed64 ack = 2,
bytes frames = 3``), so any gRPC client can speak to raylite. Its codec is written by hand because
the generated one costs 25 us where this costs one; a test holds the bytes equal.

Inside, frames follow one another: a fixed header (kind, route, call id, length) and a body.
Whatever bytes arrive, decoding returns values or raises `ProtocolError`; it never allocates more
than it was given.
"""

import enum
import struct
from typing import NamedTuple

from raylite.exceptions import ProtocolError

VERSION = 1
MAX_PACKET = 160 * 1024 * 1024  # one frame may carry a 100 MB function; nothing may be larger

_FIXED64 = struct.Struct("<Q")
_HEADER = struct.Struct("<BxHII")  # kind, route, call id, length of the body
_HEAD = struct.Struct("<BQBQB")  # the usual packet: seq and ack both present
_SMALL_HEAD = struct.Struct("<BQBQBB")  # the same, with the length of few frames
HEADER_SIZE = _HEADER.size


class Kind(enum.IntEnum):
    """What a frame says."""

    HELLO = 1  # opens a wire: who dials, which session, what it has received
    WELCOME = 2  # answers HELLO
    REFUSED = 3  # answers HELLO: wrong version, or a session this process does not know
    CALL = 4
    REPLY = 5
    ERROR = 6  # ends a call or a feed
    CANCEL = 7  # the caller left a call or a feed
    POST = 8
    BATCH = 9
    FEED = 10
    ITEM = 11
    MORE = 12  # credit for a feed: the reader took this many items
    END = 13
    PING = 14  # asks for a PONG; these two and BYE travel outside the sequence
    PONG = 15
    BYE = 16  # ends the session; the body says why, if there is more to say than goodbye
    CHALLENGE = 17  # before HELLO, where there is a token: asks the dialler for a PROOF
    PROOF = 18  # answers CHALLENGE, and is answered by the other side's


ASIDE = frozenset({Kind.PING, Kind.PONG, Kind.BYE})  # said about the wire, not part of the session

_KINDS = {int(kind): kind for kind in Kind}
_new = tuple.__new__  # makes a named tuple without the call of Python code that its class adds


class Frame(NamedTuple):
    """One message on a link. `body` is a view into the packet that brought it."""

    kind: Kind
    route: int
    call: int
    body: bytes | memoryview


class Packet(NamedTuple):
    """``seq`` 0 marks a packet outside the session's sequence (hello, ping, a bare ack)."""

    seq: int
    ack: int
    frames: bytes | memoryview


def encode_frame(
    kind: int, route: int, call: int, body: bytes | memoryview, prefix: bytes = b""
) -> bytes:
    """Return the bytes of one frame; `prefix` goes before the body, which is copied once only."""
    return _HEADER.pack(kind, route, call, len(prefix) + len(body)) + prefix + body


def decode_frames(data: bytes | memoryview) -> list[Frame]:
    """Return the frames of a packet.

    Raises:
        ProtocolError: The bytes end inside a frame, or a frame's kind is unknown.
    """
    frames: list[Frame] = []
    position, end = 0, len(data)
    while position < end:
        body = position + HEADER_SIZE
        if body > end:
            raise ProtocolError(f"packet ends inside a frame header at byte {position} of {end}")
        kind, route, call, length = _HEADER.unpack_from(data, position)
        position = body + length
        if position > end:
            raise ProtocolError(f"frame of {length} bytes runs past its packet of {end} bytes")
        if kind not in _KINDS:
            raise ProtocolError(f"unknown frame kind {kind}")
        frames.append(_new(Frame, (_KINDS[kind], route, call, data[body:position])))
    return frames


def encode_packet(seq: int, ack: int, frames: bytes) -> bytes:
    size = len(frames)
    if seq and ack and size:
        if size < 0x80:
            return _SMALL_HEAD.pack(0x09, seq, 0x11, ack, 0x1A, size) + frames
        return _HEAD.pack(0x09, seq, 0x11, ack, 0x1A) + _varint(size) + frames
    parts = []
    if seq:
        parts.append(b"\x09" + _FIXED64.pack(seq))
    if ack:
        parts.append(b"\x11" + _FIXED64.pack(ack))
    if size:
        parts.append(b"\x1a" + _varint(size) + frames)
    return b"".join(parts)


def decode_packet(data: bytes | memoryview) -> Packet:
    """Read a packet as protobuf does: fields in any order, unknown fields skipped, last one wins.

    Raises:
        ProtocolError: The bytes are not a protobuf message, or a field has the wrong type.
    """
    end = len(data)
    if end > _HEAD.size + 1:  # the usual packet, of less than 128 or 16,384 bytes of frames
        seq_key, seq, ack_key, ack, frames_key = _HEAD.unpack_from(data)
        if seq_key == 0x09 and ack_key == 0x11 and frames_key == 0x1A:
            low, high = data[_HEAD.size], data[_HEAD.size + 1]
            if end == _HEAD.size + 1 + low:
                return _new(Packet, (seq, ack, data[_HEAD.size + 1 :]))
            if high < 0x80 <= low and end == _HEAD.size + 2 + (high << 7 | low & 0x7F):
                return _new(Packet, (seq, ack, data[_HEAD.size + 2 :]))
    seq = ack = 0
    frames: bytes | memoryview = b""
    view = memoryview(data)
    position = 0
    while position < end:
        key, position = _read_varint(view, position, end)
        field, wire_type = key >> 3, key & 7
        if wire_type == 1:
            if position + 8 > end:
                raise ProtocolError("packet ends inside a fixed64")
            if field == 1:
                (seq,) = _FIXED64.unpack_from(view, position)
            elif field == 2:
                (ack,) = _FIXED64.unpack_from(view, position)
            position += 8
        elif wire_type == 2:
            length, position = _read_varint(view, position, end)
            if position + length > end:
                raise ProtocolError(f"packet ends inside a field of {length} bytes")
            if field == 3:
                frames = view[position : position + length]
            position += length
        elif wire_type == 0:
            _, position = _read_varint(view, position, end)
        elif wire_type == 5:
            position += 4
        else:
            raise ProtocolError(f"packet field {field} has wire type {wire_type}")
        if field == 0 or (field in (1, 2) and wire_type != 1) or (field == 3 and wire_type != 2):
            raise ProtocolError(f"packet field {field} has wire type {wire_type}")
    if position > end:
        raise ProtocolError("packet ends inside a fixed32")
    return Packet(seq, ack, frames)


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(view: memoryview, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 64:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ProtocolError("packet holds a varint without an end")
