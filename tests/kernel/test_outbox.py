"""An outbox: batches are joined, packets have a size, and every byte is counted."""

from hypothesis import given, strategies as st
from msgspec import msgpack

from raylite._kernel.outbox import Outbox
from raylite._kernel.packet import Frame, Kind, decode_frames, encode_frame

POST = encode_frame(Kind.POST, 1, 0, b"post")


def take_all(outbox: Outbox) -> list[Frame]:
    frames = []
    while outbox:
        frames += list(decode_frames(outbox.take()))
    return frames


def test_items_of_one_route_are_joined_until_something_else_is_sent() -> None:
    outbox = Outbox(1000)
    for route, item in ((7, 1), (7, 2), (8, 3), (8, 4), (7, 5)):
        outbox.add_item(route, msgpack.encode(item))
    outbox.add(POST)
    outbox.add_item(7, msgpack.encode(6))
    frames = take_all(outbox)
    assert [(f.kind.name, f.route) for f in frames] == [
        ("BATCH", 7),
        ("BATCH", 8),
        ("BATCH", 7),
        ("POST", 1),
        ("BATCH", 7),
    ]
    lists = [msgpack.decode(f.body) for f in frames if f.kind is Kind.BATCH]
    assert lists == [[1, 2], [3, 4], [5], [6]]


def test_a_frame_larger_than_a_packet_goes_alone() -> None:
    outbox = Outbox(100)
    large = encode_frame(Kind.POST, 1, 0, bytes(500))
    for frame in (POST, large, POST):
        outbox.add(frame)
    assert [outbox.take(), outbox.take(), outbox.take()] == [POST, large, POST]
    assert not outbox


def test_a_batch_that_waits_grows_to_the_size_of_a_packet_only() -> None:
    outbox = Outbox(1000)
    for _ in range(100):
        outbox.add_item(7, msgpack.encode(bytes(100)))
    sizes = []
    while outbox:
        sizes.append(len(outbox.take()))
    assert len(sizes) > 5
    assert max(sizes) <= 1000 + 120


@given(
    entries=st.lists(st.tuples(st.sampled_from((0, 7, 8)), st.binary(max_size=60)), max_size=40),
    packet_size=st.integers(1, 200),
)
def test_everything_leaves_once_in_order_and_the_size_is_exact(
    entries: list[tuple[int, bytes]], packet_size: int
) -> None:
    outbox = Outbox(packet_size)
    for route, body in entries:
        if route:
            outbox.add_item(route, msgpack.encode(body))
        else:
            outbox.add(encode_frame(Kind.POST, 0, 0, body))
    left: list[tuple[int, bytes]] = []
    while outbox:
        size = outbox.size
        packet = outbox.take()
        assert outbox.size == size - len(packet)
        for frame in decode_frames(packet):
            if frame.kind is Kind.BATCH:
                left += [(frame.route, item) for item in msgpack.decode(frame.body)]
            else:
                left.append((0, bytes(frame.body)))
    assert outbox.size == 0
    assert left == entries


def test_a_cleared_outbox_is_empty() -> None:
    outbox = Outbox(100)
    outbox.add(POST)
    outbox.add_item(7, b"\x01")
    outbox.clear()
    assert (len(outbox), outbox.size, outbox.take()) == (0, 0, b"")
