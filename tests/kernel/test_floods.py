"""Floods: frames that cost more to read than to send, from peers that have been let in."""

import asyncio
import struct

import pytest

from raylite._kernel.connection import CONTROL_BURST, FRAME_HEAD, PREFACE
from raylite._kernel.grpcwire import GrpcWire
from tests.kernel.rig import MIB, QUICK, Rig, Toy, ToyService, run_on, until

LOOPS = pytest.mark.parametrize("kind", ["grpc-asyncio", "grpc-uvloop"])
PING, SETTINGS, RST, PRIORITY, WINDOW_UPDATE, CONTINUATION = 6, 4, 3, 2, 8, 9


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return FRAME_HEAD.pack(len(body) >> 8, len(body) & 0xFF, kind, flags, stream) + body


FLOODS = {
    "ping": frame(PING, 0, 0, bytes(8)),
    "ping answers": frame(PING, 1, 0, bytes(8)),
    "settings": frame(SETTINGS, 0, 0, b""),
    "reset": frame(RST, 0, 1, bytes(4)),
    "priority": frame(PRIORITY, 0, 3, bytes(4) + b"\1"),
    "windows opened by a byte": frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1)),
    "data without a byte": frame(0, 0, 1, b""),
    "padding": frame(0, 8, 1, b"\0"),
    "unknown frames": frame(200, 0, 0, b"x"),
}


@LOOPS
@pytest.mark.parametrize("flood", list(FLOODS))
def test_a_flood_of_control_frames_ends_its_connection(kind: str, flood: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.pair(ToyService()) as (link, _there), rig.client("innocent") as other:
            innocent = other.connect(rig.address("there"))
            await innocent.wait_attached()
            assert isinstance(link._wire, GrpcWire)
            wire = link._wire
            wire._transport.write(FLOODS[flood] * 10 * CONTROL_BURST)  # however long reading takes
            await until(lambda: wire._is_broken)
            assert await Toy(innocent).echo(b"alive") == b"alive"
            assert await Toy(link).echo(b"resumed") == b"resumed"  # the session goes on

    run_on(kind, scenario)


@LOOPS
def test_a_burst_within_the_bound_is_answered(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.pair(ToyService()) as (link, _):
            assert isinstance(link._wire, GrpcWire)
            wire = link._wire
            wire._transport.write(FLOODS["ping"] * (CONTROL_BURST - 100))
            assert await Toy(link).echo(b"alive") == b"alive"
            assert link._wire is wire

    run_on(kind, scenario)


@LOOPS
def test_windows_that_are_opened_for_data_are_no_flood(kind: str) -> None:
    """At full speed there are hundreds a second of them, a bound by the clock would end the link."""

    async def scenario(rig: Rig) -> None:
        async with rig.pair(ToyService()) as (link, there):
            assert isinstance(link._wire, GrpcWire)
            wire = link._wire
            opened = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 16384))
            wire._transport.write(opened * 2 * CONTROL_BURST)
            assert await Toy(link).echo(bytes(MIB)) == bytes(MIB)
            assert link._wire is wire
            assert there.links

    run_on(kind, scenario)


@LOOPS
def test_a_header_list_of_more_than_64_kib_ends_the_connection(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.serving(ToyService()) as there:
            reader, writer = await asyncio.open_unix_connection(
                rig.address("there").removeprefix("unix:")
            )
            size = 70 * 1024  # a literal header, not indexed: name, and a length in 7 bits and more
            more = size - 127
            length = bytes([127, more & 0x7F | 0x80, more >> 7 & 0x7F | 0x80, more >> 14])
            block = b"\0\1x" + length + b"y" * size
            writer.write(PREFACE + frame(SETTINGS, 0, 0, b"") + frame(1, 4, 1, block))
            while await reader.read(65536):
                pass
            await until(lambda: there._connections == {})  # type: ignore[attr-defined]
            writer.close()

    run_on(kind, scenario)


@LOOPS
def test_headers_that_never_end_end_the_connection(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.serving(ToyService()) as there:
            reader, writer = await asyncio.open_unix_connection(
                rig.address("there").removeprefix("unix:")
            )
            writer.write(PREFACE + frame(SETTINGS, 0, 0, b"") + frame(1, 0, 1, b""))
            writer.write(frame(CONTINUATION, 0, 1, b"") * 2000)
            async with asyncio.timeout(QUICK.connect_timeout / 2):
                try:
                    while await reader.read(65536):
                        pass
                except ConnectionError:
                    pass
            await until(lambda: there._connections == {})  # type: ignore[attr-defined]
            writer.close()

    run_on(kind, scenario)


@LOOPS
def test_no_more_than_eight_streams_are_opened_on_a_connection(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.pair(ToyService()) as (link, there):
            assert isinstance(link._wire, GrpcWire)
            h2 = link._wire._h2
            assert h2.remote_settings.max_concurrent_streams == 8
            [served] = there.links
            wire = served._wire
            block = h2.encoder.encode(
                [(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "x")]
            )
            for stream in range(3, 3 + 2 * 8, 2):
                link._wire._transport.write(frame(1, 4, stream, block))
            await until(lambda: not served.is_attached or served._wire is not wire)
            assert await Toy(link).echo(b"resumed") == b"resumed"

    run_on(kind, scenario)
