"""How a message becomes bytes: decided once per type, when an interface is made."""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from raylite.exceptions import ProtocolError

encode_msgpack = msgspec.msgpack.Encoder().encode


class Encoded(NamedTuple):
    """A message whose bytes are made already: what a feed yields that many read."""

    body: bytes


class Codec(NamedTuple):
    """`encode` turns a message into bytes; `decode` turns bytes back or raises ProtocolError."""

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes | memoryview], Any]


def codec_for(message: Any) -> Codec:
    """Return the codec of a message type: raw bytes, a protobuf message, or a msgspec structure.

    Bytes that are read as a memoryview are not copied: it keeps the packet that brought them.
    """
    if message is bytes:
        return Codec(_encode_bytes, bytes)
    if message is memoryview:
        return Codec(_encode_bytes, memoryview)
    if message is None or message is type(None):
        return Codec(_encode_nothing, _decode_nothing)
    if is_protobuf(message):
        return Codec(bytes, _protobuf_decoder(message))
    return Codec(encode_msgpack, _msgpack_decoder(message))


def is_protobuf(message: Any) -> bool:
    """Whether this is a generated class of protobuf messages."""
    return hasattr(message, "parse") and hasattr(message, "__bytes__")


def _encode_bytes(message: bytes | memoryview) -> bytes:
    if not isinstance(message, bytes | bytearray | memoryview):
        raise TypeError(f"expected bytes, got {type(message).__name__}")
    return bytes(message)


def _encode_nothing(message: None) -> bytes:
    return b""


def _decode_nothing(body: bytes | memoryview) -> None:
    if len(body):
        raise ProtocolError(f"expected an empty message, got {len(body)} bytes")


def _msgpack_decoder(message: Any) -> Callable[[bytes | memoryview], Any]:
    decode_body = msgspec.msgpack.Decoder(message).decode

    def decode(body: bytes | memoryview) -> Any:
        try:
            return decode_body(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"not a {_name(message)}: {error}") from error

    return decode


def _protobuf_decoder(message: Any) -> Callable[[bytes | memoryview], Any]:
    def decode(body: bytes | memoryview) -> Any:
        try:
            return message.parse(bytes(body))
        except Exception as error:  # the generated parser raises whatever its bytes lead it to
            raise ProtocolError(f"not a {_name(message)}: {error}") from error

    return decode


def _name(message: Any) -> str:
    return str(getattr(message, "__name__", message))
