"""Interfaces and codecs: routes by name, the same in every process, typed at both ends."""

import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from raylite._kernel import interface
from raylite._kernel.codec import codec_for
from raylite._kernel.interface import Interface, Route, batch, call, feed, post
from raylite._wire.messages import Packet
from raylite.exceptions import ProtocolError


class Point(msgspec.Struct, array_like=True, frozen=True):
    x: int
    y: int


class Shapes(Interface):
    area = call(Point, int)
    drop = call(Point, None)
    moved = post(Point)
    points = batch(Point)
    watch = feed(Point, Point)


class MoreShapes(Shapes):
    more = call(bytes, bytes)


class Fake:
    """A sender that remembers what it was asked to send."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, Any]] = []

    async def call(self, route: Route, request: Any) -> Any:
        self.sent.append(("call", route.name, request))
        return 42

    def post(self, route: Route, message: Any) -> None:
        self.sent.append(("post", route.name, message))

    def batch(self, route: batch[Any], item: Any) -> None:
        self.sent.append(("batch", route.name, item))

    async def feed(self, route: Route, request: Any) -> AsyncIterator[Any]:
        self.sent.append(("feed", route.name, request))
        yield request


def test_a_route_has_the_name_of_its_interface_and_a_number_that_follows_from_it() -> None:
    assert Shapes.area.name == "Shapes.area"
    assert repr(Shapes.area) == "<call Shapes.area>"
    assert list(Shapes.routes) == ["area", "drop", "moved", "points", "watch"]
    assert len({route.number for route in Shapes.routes.values()}) == 5


def test_a_routes_number_is_the_same_in_every_process() -> None:
    code = (
        "from raylite._kernel.interface import Interface, post\n"
        "class Shapes(Interface):\n    moved = post(int)\n"
        "print(Shapes.moved.number)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert int(output.stdout) == Shapes.moved.number


def test_an_interface_made_of_another_has_its_routes() -> None:
    assert list(MoreShapes.routes) == [*Shapes.routes, "more"]
    assert MoreShapes.area is Shapes.area


@pytest.mark.asyncio
async def test_the_interface_is_the_client_of_whatever_carries_its_messages() -> None:
    fake = Fake()
    shapes = Shapes(fake)
    assert await shapes.area(Point(1, 2)) == 42
    shapes.moved(Point(3, 4))
    shapes.points(Point(5, 6))
    assert [point async for point in shapes.watch(Point(7, 8))] == [Point(7, 8)]
    assert fake.sent == [
        ("call", "Shapes.area", Point(1, 2)),
        ("post", "Shapes.moved", Point(3, 4)),
        ("batch", "Shapes.points", Point(5, 6)),
        ("feed", "Shapes.watch", Point(7, 8)),
    ]
    assert shapes.moved is shapes.moved, "bound once"


def test_routes_that_share_a_number_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(interface._numbers, Shapes.area.number, "Other.route")
    with pytest.raises(TypeError, match=r"Shapes\.area and Other\.route share a number"):
        type("Shapes", (Interface,), {"area": call(Point, int)})


def test_each_type_of_message_has_its_bytes() -> None:
    packet = Packet(seq=1, ack=2, frames=b"frames")
    for message_type, message, expected in (
        (bytes, b"raw", b"raw"),
        (None, None, b""),
        (int, 5, b"\x05"),
        (Point, Point(1, 2), b"\x92\x01\x02"),
        (Packet, packet, bytes(packet)),
    ):
        codec = codec_for(message_type)
        assert codec.encode(message) == expected
        assert codec.decode(memoryview(expected)) == message


def test_raw_bytes_may_be_anything_with_a_buffer_but_nothing_else() -> None:
    encode = codec_for(bytes).encode
    assert encode(bytearray(b"array")) == b"array"
    assert encode(memoryview(b"view")) == b"view"
    with pytest.raises(TypeError):
        encode(5)  # and not five zeros


@pytest.mark.parametrize(
    ("message_type", "data"),
    [
        (Point, b"\x91\x01"),
        (Point, b""),
        (Point, b"\xc1"),
        (str, b"\xa1\xff"),
        (Any, b"\x91" * 100_000),
        (None, b"x"),
        (Packet, b"\x1a"),
        (Packet, b"\x09\x00"),
        (Packet, b"\x19" + bytes(8)),
    ],
)
def test_bytes_that_are_not_the_message_are_a_protocol_error(
    message_type: Any, data: bytes
) -> None:
    with pytest.raises(ProtocolError):
        codec_for(message_type).decode(data)


@pytest.mark.parametrize(("item_type", "items"), [(bytes, [b"a", b""]), (Point, [Point(1, 2)])])
def test_a_batch_is_the_list_of_its_items(item_type: Any, items: list[Any]) -> None:
    route = batch(item_type)
    joined = b"\xdd" + len(items).to_bytes(4, "big") + b"".join(map(route.encode_item, items))
    assert route.request.decode(joined) == items


def test_a_batch_of_protobuf_messages_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="bytes or structures, not Packet"):
        batch(Packet)
