"""Packets and frames as bytes: round trips, and any bytes at all."""

import pytest
from hypothesis import example, given, strategies as st

from raylite._kernel.packet import (
    Frame,
    Kind,
    Packet,
    decode_frames,
    decode_packet,
    encode_frame,
    encode_packet,
)
from raylite.exceptions import ProtocolError

NUMBERS = st.integers(0, 2**64 - 1)
FRAMES = st.builds(
    Frame,
    st.sampled_from(Kind),
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=300),
)


@given(seq=NUMBERS, ack=NUMBERS, frames=st.binary(max_size=40_000))
def test_a_packet_is_read_as_it_was_written(seq: int, ack: int, frames: bytes) -> None:
    assert decode_packet(encode_packet(seq, ack, frames)) == Packet(seq, ack, frames)


@given(frames=st.lists(FRAMES, max_size=10))
def test_frames_are_read_as_they_were_written(frames: list[Frame]) -> None:
    data = b"".join(encode_frame(*frame) for frame in frames)
    assert list(decode_frames(data)) == frames


@given(frame=FRAMES, prefix=st.binary(max_size=20))
def test_a_prefix_is_the_beginning_of_the_body(frame: Frame, prefix: bytes) -> None:
    kind, route, call, body = frame
    [read] = decode_frames(encode_frame(kind, route, call, body, prefix))
    assert read == Frame(kind, route, call, prefix + bytes(body))


@given(data=st.binary(max_size=200))
@example(b"\x0d\0\0\0")
@example(b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(b"\xff" * 11)
@example(b"\x0b\x0c")
@example(b"\x08\x01")
@example(b"\x02\x00")
def test_any_bytes_are_a_packet_or_a_protocol_error(data: bytes) -> None:
    try:
        packet = decode_packet(data)
    except ProtocolError:
        return
    assert 0 <= packet.seq < 2**64
    assert 0 <= packet.ack < 2**64
    assert len(packet.frames) <= len(data)


@given(data=st.binary(max_size=200))
@example(b"\x04")
@example(encode_frame(Kind.POST, 1, 0, b"abc")[:-1])
@example(encode_frame(99, 1, 0, b""))
def test_any_bytes_are_frames_or_a_protocol_error(data: bytes) -> None:
    try:
        frames = list(decode_frames(data))
    except ProtocolError:
        return
    assert sum(12 + len(frame.body) for frame in frames) == len(data)


def test_unknown_fields_are_skipped_and_the_last_of_a_field_counts() -> None:
    packet = decode_packet(
        encode_packet(1, 2, b"first")
        + b"\x20\x05"  # field 4, a varint
        + b"\x2a\x03abc"  # field 5, bytes
        + b"\x35\0\0\0\0"  # field 6, a fixed32
        + b"\x39" + bytes(8)  # field 7, a fixed64
        + encode_packet(3, 0, b"last")
    )  # fmt: skip
    assert packet == Packet(3, 2, b"last")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x09\0\0", "inside a fixed64"),
        (b"\x35\0", "inside a fixed32"),
        (b"\x1a\x05abc", "inside a field of 5 bytes"),
        (b"\x1a\x80", "varint without an end"),
        (b"\x0b", "wire type 3"),
        (b"\x08\x01", "field 1 has wire type 0"),
        (b"\x19" + bytes(8), "field 3 has wire type 1"),
    ],
)
def test_what_is_wrong_with_a_packet_is_said(data: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        decode_packet(data)
