"""What is said when a wire opens, before the session goes on: one frame each way, and then another.

These frames travel outside the sequence of any session. Whatever bytes arrive, reading them gives
a value or a `ProtocolError`.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from raylite._kernel.packet import (
    Frame,
    Kind,
    decode_frames,
    decode_packet,
    encode_frame,
    encode_packet,
)
from raylite._kernel.wire import Deaf, Wire
from raylite.exceptions import ProtocolError

T = TypeVar("T")

ID_SIZE = 16  # bytes in the id of a session or an incarnation


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """Opens a wire. `resumes` names the incarnation that the session began with, if it began.

    `attempt` counts the dialler's attempts, so that one it has given up is not taken for a
    newer one when both arrive together.
    """

    version: int
    session: bytes
    incarnation: bytes
    address: str
    received: int
    resumes: bytes
    attempt: int

    def makes_sense(self) -> bool:
        """Whether a correct peer could have sent it."""
        return (
            len(self.session) == len(self.incarnation) == ID_SIZE
            and len(self.resumes) in (0, ID_SIZE)
            and len(self.address) <= 1024
            and self.received >= 0
            and self.attempt > 0
        )


class Welcome(msgspec.Struct, array_like=True, frozen=True):
    """Answers a hello."""

    incarnation: bytes
    received: int

    def makes_sense(self) -> bool:
        """Whether a correct peer could have sent it."""
        return len(self.incarnation) == ID_SIZE and self.received >= 0


class Refused(msgspec.Struct, array_like=True, frozen=True):
    """Answers with a no.

    `is_gone` when the peer that is asked for no longer exists, `is_over` when only the session does not.
    """

    reason: str
    is_gone: bool
    is_over: bool = False


_encode = msgspec.msgpack.Encoder().encode
read_hello = msgspec.msgpack.Decoder(Hello).decode
read_welcome = msgspec.msgpack.Decoder(Welcome).decode
read_refused = msgspec.msgpack.Decoder(Refused).decode


def aside(kind: Kind, message: Any) -> bytes:
    """Return the packet that says one thing outside the sequence."""
    return encode_packet(0, 0, encode_frame(kind, 0, 0, _encode(message)))


def only_frame(data: bytes | memoryview) -> Frame:
    """Return the one frame of a packet that `aside` made."""
    packet = decode_packet(data)
    frames = list(decode_frames(packet.frames))
    if packet.seq or len(frames) != 1:
        raise ProtocolError("a wire opens with one frame outside the sequence")
    return frames[0]


def decoded(decode: Callable[[bytes | memoryview], T], body: bytes | memoryview) -> T:
    """Decode the body of such a frame."""
    try:
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"a handshake that cannot be read: {error}") from error


def refuse(wire: Wire, reason: str, *, is_gone: bool = False, is_over: bool = False) -> None:
    """Say no, and close the wire once that was said."""
    wire.events = Deaf()
    wire.send(aside(Kind.REFUSED, Refused(reason[:1000], is_gone, is_over)))
    wire.close("refused")
