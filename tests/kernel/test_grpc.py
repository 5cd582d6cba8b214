"""What grpclib needs around it: each test fails without its cure, as its docstring says.

The tests of what all networks promise are in `test_network_contract.py`.
"""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from grpclib.const import Status
from grpclib.events import RecvRequest, listen
from grpclib.exceptions import GRPCError
from hypothesis import example, given, settings, strategies as st
from msgspec.structs import replace

from raylite._kernel import grpc
from raylite._kernel.connection import FRAME, WINDOW, Connection
from raylite._kernel.grpc import GrpcNetwork
from raylite._kernel.grpcwire import Cutter, GrpcWire
from raylite._kernel.link import LinkConfig
from raylite._kernel.network import Probe
from raylite._kernel.packet import Kind, decode_frames, decode_packet, encode_packet
from raylite._kernel.token import Token, new_token
from raylite._kernel.wire import Wire
from raylite._wire.messages import Packet
from raylite.exceptions import (
    AuthenticationError,
    CongestedError,
    LinkError,
    PeerLostError,
    ProtocolError,
)
from tests.kernel.rig import (
    IMPATIENT,
    KIB,
    MIB,
    QUICK,
    Recorder,
    Rig,
    Toy,
    ToyService,
    run_on,
    until,
)

GRPC = pytest.mark.parametrize("kind", ["grpc-asyncio", "grpc-uvloop"])
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # and empty settings


def path_of(address: str) -> str:
    return address.removeprefix("unix:")


@contextlib.asynccontextmanager
async def connected(address: str) -> Any:
    """A bare socket connected to an address; closed at the end."""
    reader, writer = await asyncio.open_unix_connection(path_of(address))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


# ---- 1: no message is buffered that is too large -----------------------------------------


@GRPC
def test_a_length_of_four_gigabytes_is_refused_before_a_byte_of_it_comes(kind: str) -> None:
    """Without the cure: grpclib waits for the 4 GiB and buffers them, crediting each chunk."""

    async def scenario(rig: Rig) -> None:
        async with rig.serving(ToyService()), rig.client() as here:
            heard = Recorder()
            wire = await here.dial(rig.address("there"), heard)
            assert isinstance(wire, GrpcWire)
            wire._write(memoryview(b"\0\xff\xff\xff\xff"))  # and nothing more
            await heard.done.wait()
            [answer] = heard.packets
            [frame] = decode_frames(decode_packet(answer).frames)
            assert frame.kind is Kind.REFUSED
            assert b"4294967295" in bytes(frame.body)

    run_on(kind, scenario)


@GRPC
def test_a_length_above_the_limit_ends_an_open_session(kind: str) -> None:
    """Without the cure: as above, and the session would wait for the rest for ever."""

    async def scenario(rig: Rig) -> None:
        async with rig.pair(ToyService()) as (link, there):
            [served] = there.links
            assert isinstance(link._wire, GrpcWire)
            link._wire._write(memoryview(b"\0" + struct.pack(">I", QUICK.max_packet + 1)))
            await until(lambda: link.is_ended)
            assert isinstance(link.error, PeerLostError)
            assert isinstance(served.error, ProtocolError)

    run_on(kind, scenario)


@given(
    lengths=st.lists(st.integers(0, 300), max_size=8),
    cuts=st.lists(st.integers(1, 50), min_size=1, max_size=30),
)
def test_packets_are_cut_out_of_any_chunks(lengths: list[int], cuts: list[int]) -> None:
    cutter, packets = Cutter(), [bytes([n % 256]) * n for n in lengths]
    data = b"".join(b"\0" + struct.pack(">I", len(packet)) + packet for packet in packets)
    found, position, turn = [], 0, 0
    while position < len(data):
        size = cuts[turn % len(cuts)]
        found += [bytes(packet) for packet in cutter.cut(data[position : position + size])]
        position, turn = position + size, turn + 1
    assert found == packets
    assert cutter._parts == []


def test_large_parts_are_kept_as_they_came_and_small_ones_by_themselves() -> None:
    cutter, packet = Cutter(), os.urandom(300 * KIB)
    cutter.limit = len(packet)
    data = memoryview(b"\0" + struct.pack(">I", len(packet)) + packet)
    ends = [100 * KIB, 100 * KIB + 1, len(data) - 1]
    for start, end in zip([0, *ends], ends, strict=False):
        assert list(cutter.cut(data[start:end])) == []
    assert [type(part) for part in cutter._parts] == [memoryview, bytes, memoryview]
    assert list(cutter.cut(data[-1:])) == [packet]


@given(flags=st.integers(0, 2), claimed=st.integers(0, 12), size=st.integers(0, 12))
def test_what_is_taken_uncut_is_one_packet_within_the_limit(
    flags: int, claimed: int, size: int
) -> None:
    cutter = Cutter()
    cutter.limit = 10
    data = memoryview(bytes([flags]) + struct.pack(">I", claimed) + bytes(size))
    assert cutter.is_whole(data) is (not flags and claimed == size <= 10)


@GRPC
def test_a_frame_that_is_too_long_is_refused_before_its_body_comes(kind: str) -> None:
    """Without the cure: 16 MiB of it are kept until h2 says that it is too long."""

    async def scenario(rig: Rig) -> None:
        config = replace(QUICK, connect_timeout=600.0)  # or that ends it as well
        async with (
            rig.serving(ToyService(), config=config),
            connected(rig.address("there")) as (reader, writer),
        ):
            writer.write(PREFACE + b"\xff\xff\xff" + b"\0\0" + struct.pack(">I", 1))
            with contextlib.suppress(ConnectionResetError):
                while await reader.read(1000):
                    pass

    run_on(kind, scenario)


@GRPC
def test_who_sends_more_than_flow_control_admits_to_one_that_reads_nothing_is_ended(
    kind: str,
) -> None:
    """Without the cure: whatever it sends is held, for no window is h2's business here."""

    async def scenario(rig: Rig) -> None:
        async with rig.pair(ToyService()) as (link, there):
            [served], wire = there.links, link._wire
            assert isinstance(wire, GrpcWire)
            assert served._wire is not None
            served._wire.pause_reading()
            frame = struct.pack(">HBBBI", FRAME >> 8, FRAME & 0xFF, 0, 0, wire._id) + bytes(FRAME)
            for _ in range(WINDOW // FRAME + 1):
                wire._transport.write(frame)
            await until(lambda: served.is_ended)
            assert "flow control" in str(served.error)

    run_on(kind, scenario)


@given(data=st.binary(min_size=5, max_size=40))
def test_a_cutter_keeps_no_more_than_its_limit(data: bytes) -> None:
    cutter = Cutter()
    cutter.limit = 10
    try:
        for start in range(len(data)):
            for packet in cutter.cut(data[start : start + 1]):
                assert len(packet) <= 10
            assert sum(map(len, cutter._parts)) <= 15
    except ProtocolError as error:
        assert "at most 10 bytes, uncompressed" in str(error)  # noqa: PT017 - it may not come


@GRPC
def test_what_waits_for_the_window_of_http2_is_sent_when_it_opens(kind: str) -> None:
    """Without a pump on window updates: the rest waits until the wire is given up."""

    async def scenario(rig: Rig) -> None:
        service = ToyService()
        async with rig.pair(service, replace(QUICK, window=64 * MIB)) as (link, there):
            [served] = there.links
            assert isinstance(served._wire, GrpcWire)
            assert isinstance(link._wire, GrpcWire)
            served._wire.pause_reading()
            for _ in range(24):
                Toy(link).blob(bytes(MIB))
                await asyncio.sleep(0)
            h2, number = link._wire._h2, link._wire._id
            await until(lambda: h2.local_flow_control_window(number) == 0)
            assert not link._wire.is_writable
            served._wire.resume_reading()
            with anyio.fail_after(5):  # before silence would have another wire made
                await Toy(link).echo(b"")
            await until(lambda: service.blobs == 24)

    run_on(kind, scenario)


# ---- 2: a silent peer is given up, unsent bytes or not -----------------------------------

CHILD = """
import asyncio, sys, uvloop
from raylite._kernel.grpc import GrpcNetwork
from raylite._kernel.host import Host
from tests.kernel.rig import ToyService

async def main():
    network = GrpcNetwork()
    await network.listen(sys.argv[1])
    service = ToyService()
    print("ready", flush=True)
    await Host(network, service).run()

uvloop.run(main())
"""


@contextlib.contextmanager
def child(address: str) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that serves the toy at an address."""
    command = [sys.executable, "-c", CHILD, address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.process
@pytest.mark.fault
@GRPC
def test_a_stopped_process_is_given_up_with_unsent_bytes_and_resumed_later(kind: str) -> None:
    """Without abort: `close()` waits for the unsent bytes, so `connection_lost` never comes.

    asyncio then tells nobody until the kernel gives up, after some 15 minutes on TCP and never on
    a unix socket: the session could not go on over another connection.
    """

    async def scenario(rig: Rig) -> None:
        config = LinkConfig(
            ping_after=0.1, silence=0.3, local_patience=3.0, redial_first=0.01, redial_last=0.05
        )
        with child(rig.address("there")) as process:
            async with rig.client(config=config) as here:
                link = here.connect(rig.address("there"))
                await link.wait_attached()
                process.send_signal(signal.SIGSTOP)
                stopped_at = asyncio.get_running_loop().time()
                sent = 0
                with contextlib.suppress(CongestedError):
                    for _ in range(64):
                        Toy(link).blob(bytes(MIB))
                        sent += 1
                await asyncio.sleep(0)
                [connection] = here._connections.values()  # type: ignore[attr-defined]
                assert connection._transport.get_write_buffer_size() > 0
                await link.wait_detached()
                patience = asyncio.get_running_loop().time() - stopped_at
                assert 2 * config.silence < patience < 5.0  # three times it, less what came before
                assert "silent" in link.last_failure
                await until(lambda: connection not in here._connections.values())  # type: ignore[attr-defined]
                process.send_signal(signal.SIGCONT)
                assert await Toy(link).echo(b"after the stop") == b"after the stop"

    run_on(kind, scenario)


@GRPC
def test_a_peer_whose_large_packet_is_still_arriving_is_not_silent(kind: str) -> None:
    """Without counting bytes: a packet that takes longer than the silence never gets through."""

    async def scenario(rig: Rig) -> None:
        async with rig.pair(ToyService(), IMPATIENT) as (link, there):
            [served] = there.links
            wire = served._wire
            assert isinstance(link._wire, GrpcWire)
            link._tick_handle.cancel()  # it says nothing but this packet
            link._wire.pause_reading()
            link._wire._write(memoryview(b"\0" + struct.pack(">I", 100 * KIB)))
            arrived = 0
            while arrived < 12:
                link._wire._write(memoryview(bytes(KIB)))
                await asyncio.sleep(IMPATIENT.silence / 4)
                arrived += 1
            assert served._wire is wire

    run_on(kind, scenario)


# ---- 3: opening gives up -----------------------------------------------------------------


@GRPC
def test_a_server_that_never_answers_is_given_up_at_the_deadline(kind: str) -> None:
    """Without the deadline: the opening waits for ever, and so does whoever needs the link."""

    async def scenario(rig: Rig) -> None:
        path = path_of(rig.address("there"))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        async with rig.client(config=IMPATIENT) as here:
            link = here.connect(rig.address("there"))
            with pytest.raises(PeerLostError, match=r"no answer within 0\.2 s"):
                await Toy(link).echo(b"")
            await until(lambda: not here._connections)  # type: ignore[attr-defined]
        listener.close()

    run_on(kind, scenario)


@GRPC
def test_it_can_be_told_whether_connections_are_taken_though_a_process_stands_still(
    kind: str,
) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.pair(ToyService()) as (link, _), rig.client() as here:
            assert await here.probe(link.peer, 5.0) is Probe.ANSWERED
            path = path_of(rig.address("still"))
            sockets = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_INET)
            sockets[0].bind(path)
            sockets[1].bind(("127.0.0.1", 0))
            addresses = f"unix:{path}", f"tcp:127.0.0.1:{sockets[1].getsockname()[1]}"
            for listener in sockets:
                listener.listen()  # the system takes connections, and nobody reads them
            for address in addresses:
                assert await here.probe(address, 0.1) is Probe.ANSWERED
            for listener in sockets:
                listener.close()
            for address in addresses:
                assert await here.probe(address, 5.0) is Probe.REFUSED
            assert await here.probe("nowhere", 5.0) is Probe.UNKNOWN
            assert not here._connections  # type: ignore[attr-defined]

    run_on(kind, scenario)


class FullConnection(Connection):
    """A connection whose write buffer is full from the start."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.pause_writing()


class FullNetwork(GrpcNetwork):
    def _dialled(self) -> Connection:
        usual = super()._dialled()
        return FullConnection(self, usual.handler, usual.config, usual.h2_config)


@GRPC
def test_an_opening_parked_on_a_full_connection_is_given_up(kind: str) -> None:
    """Without the deadline: `send_request` waits for room that nobody announces (issue 216)."""

    async def scenario(rig: Rig) -> None:
        async with rig.serving(ToyService()):
            here = FullNetwork(config=IMPATIENT)
            link = here.connect(rig.address("there"))
            with pytest.raises(PeerLostError, match=r"no answer within 0\.2 s"):
                await Toy(link).echo(b"")
            await here.close()
            assert here._connections == {}

    run_on(kind, scenario)


@GRPC
def test_a_second_stream_on_one_connection_is_refused(kind: str) -> None:
    """Without the refusal: streams share a connection, and the 101st waits without a word."""

    async def scenario(rig: Rig) -> None:
        async with rig.pair(ToyService()) as (link, _):
            assert isinstance(link._wire, GrpcWire)
            connection = link._wire._connection
            stream = connection.processor.connection.create_stream()
            headers = [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", grpc.PATH),
                ("te", "trailers"),
                ("content-type", "application/grpc+proto"),
            ]
            await stream.send_request(headers, _processor=connection.processor)
            told = dict(await stream.recv_headers())
            assert told["grpc-status"] == str(Status.RESOURCE_EXHAUSTED.value)
            assert await Toy(link).echo(b"alive") == b"alive"

    run_on(kind, scenario)


@GRPC
def test_a_connection_that_asks_for_nothing_is_closed(kind: str) -> None:
    """Without the cure: it stays for ever, one descriptor each."""

    async def scenario(rig: Rig) -> None:
        async with (
            rig.serving(ToyService(), config=IMPATIENT),
            connected(rig.address("there")) as (reader, writer),
        ):
            writer.write(PREFACE)
            while await reader.read(1000):
                pass  # until the end of the stream

    run_on(kind, scenario)


# ---- 4: closing ends the connections -----------------------------------------------------


@GRPC
def test_closing_ends_the_connections_of_clients_that_stay(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the cure: `Server.close()` leaves them open, and waits for them from Python 3.12 on."""

    async def scenario(rig: Rig) -> None:
        network = rig.network("there")
        await network.listen(rig.address("there"))
        network.host(ToyService())
        async with rig.client() as here, connected(rig.address("there")) as (reader, writer):
            link = here.connect(rig.address("there"))
            await link.wait_attached()
            writer.write(PREFACE)
            await reader.read(1)
            with anyio.fail_after(5):
                await network.close()
                while await reader.read(1000):
                    pass
                await until(lambda: link.is_ended)
            assert not os.path.exists(path_of(rig.address("there")))

    with caplog.at_level("ERROR"):
        run_on(kind, scenario)
    assert caplog.records == []


@GRPC
@pytest.mark.parametrize("token", [None, new_token()], ids=["open", "token"])
def test_closing_forgets_nobody_who_is_just_being_let_in(
    kind: str, token: Token | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Uvloop tells nobody that it has closed what a task accepted that was cancelled in this moment.

    Such a connection was waited for, and written to, which grpclib logged as an error. So it did when
    a wire was to begin that the network had refused, for it was closing.
    """

    async def close_after(steps: int, address: str) -> None:
        there, here = GrpcNetwork(token=token), [GrpcNetwork(token=token) for _ in range(4)]
        await there.listen(address)
        for network in here:
            network.connect(address)
        for _ in range(steps):
            await asyncio.sleep(0)
        await there.close()
        assert not there._connections
        for network in here:
            await network.close()

    async def scenario(rig: Rig) -> None:
        for steps in range(14):
            await close_after(steps, rig.address("there"))

    run_on(kind, scenario)
    assert not [record for record in caplog.records if record.name.startswith("grpclib")]


@GRPC
def test_closing_does_not_wait_long_for_a_peer_that_does_not_read(kind: str) -> None:
    """Without the abort: the goodbye waits behind bytes that nobody reads."""

    async def scenario(rig: Rig) -> None:
        async with rig.serving(ToyService()) as there:
            here = rig.network("here")
            link = here.connect(rig.address("there"))
            await link.wait_attached()
            for served in there.links:
                assert isinstance(served._wire, GrpcWire)
                served._wire._transport.pause_reading()  # as if the process stood still
            for _ in range(40):
                Toy(link).blob(bytes(MIB))
            with anyio.fail_after(5):
                await here.close()
            assert here._connections == {}  # type: ignore[attr-defined]

    run_on(kind, scenario)


@GRPC
def test_a_goodbye_and_what_was_sent_before_it_arrive(kind: str) -> None:
    """Without a close that flushes: uvloop drops what was written in the same tick as the abort."""

    async def scenario(rig: Rig) -> None:
        service = ToyService()
        async with rig.serving(service) as there:
            here = rig.network("here")
            link = here.connect(rig.address("there"))
            await link.wait_attached()
            [served] = there.links
            Toy(link).note(1)
            Toy(link).blob(bytes(4 * MIB))
            Toy(link).note(2)
            await here.close()
            await until(lambda: served.is_ended)
            assert isinstance(served.error, PeerLostError)
            assert service.notes == [1, 2]

    run_on(kind, scenario)


@GRPC
def test_a_path_taken_over_by_another_server_is_left_to_it(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        first = rig.network("there")
        await first.listen(rig.address("there"))
        async with rig.serving(ToyService()), rig.client() as here:
            await first.close()
            link = here.connect(rig.address("there"))
            assert await Toy(link).echo(b"alive") == b"alive"

    run_on(kind, scenario)


# ---- 5: cancellation does not leak -------------------------------------------------------


@GRPC
def test_a_broken_stream_leaves_no_cancellation_in_the_task_that_opened_it(kind: str) -> None:
    """Without pushing: a task that waits inside grpclib is cancelled and its count stays.

    `asyncio.timeout` then lets a CancelledError out where a TimeoutError is due.
    """

    async def scenario(rig: Rig) -> None:
        async with rig.serving(ToyService()) as there, rig.client() as here:
            task = asyncio.current_task()
            assert task is not None
            for _ in range(3):
                heard = Recorder()
                await here.dial(rig.address("there"), heard)
                await until(lambda: len(there._connections) > 0)  # type: ignore[attr-defined]
                for connection in list(there._connections.values()):  # type: ignore[attr-defined]
                    connection.abort()
                await heard.done.wait()
            assert task.cancelling() == 0
            with pytest.raises(TimeoutError), anyio.fail_after(0.01):
                await anyio.sleep_forever()

    run_on(kind, scenario)


# ---- 6: the place for authentication -----------------------------------------------------


class Counting(GrpcNetwork):
    """Counts the wires that it was given to read from."""

    accepted_wires = 0

    def accepted(self, wire: Wire) -> None:
        self.accepted_wires += 1
        super().accepted(wire)


@GRPC
def test_who_may_not_connect_is_refused_before_a_byte_of_a_message_is_read(kind: str) -> None:
    """Without listening to RecvRequest: the hello is read, and answered, first."""

    async def check(event: RecvRequest) -> None:
        if event.metadata.get("token") != "secret":
            raise GRPCError(Status.UNAUTHENTICATED, "no token")

    async def scenario(rig: Rig) -> None:
        there = Counting(config=QUICK)
        there.host(ToyService())
        listen(there.server, RecvRequest, check)
        await there.listen(rig.address("there"))
        async with rig.client(config=IMPATIENT) as stranger, rig.client("known") as known:
            refused = stranger.connect(rig.address("there"))
            with pytest.raises(AuthenticationError, match="refuses this process: no token"):
                await Toy(refused).echo(b"")
            assert there.accepted_wires == 0
            assert isinstance(known, GrpcNetwork)
            known.metadata["token"] = "secret"
            await known.connect(rig.address("there")).wait_attached()
            assert there.accepted_wires == 1
        await there.close()

    run_on(kind, scenario)


# ---- 7: unix sockets ---------------------------------------------------------------------


@GRPC
def test_nothing_listens_on_tcp(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.pair(ToyService()):
            process = psutil.Process()
            unix = {connection.laddr for connection in process.net_connections("unix")}
            assert path_of(rig.address("there")) in unix
            assert process.net_connections("inet") == []

    run_on(kind, scenario)


@GRPC
def test_a_socket_bound_beforehand_is_listened_on(kind: str) -> None:
    """Without the cure: grpclib takes a bound socket for a TCP one."""

    async def scenario(rig: Rig) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(path_of(rig.address("there")))
        there = GrpcNetwork(config=QUICK)
        await there.listen(rig.address("there"), sock)
        async with rig.client() as here:
            await here.connect(rig.address("there")).wait_attached()
        await there.close()
        assert os.path.exists(path_of(rig.address("there")))  # it belongs to whoever bound it

    run_on(kind, scenario)


@GRPC
def test_an_address_that_is_no_address_ends_the_link(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client() as here:
            link = here.connect("tcp:nowhere")
            with pytest.raises(LinkError, match="expected unix:/path"):
                await Toy(link).echo(b"")
            with pytest.raises(ValueError, match="expected unix:/path"):
                await here.listen("tcp:nowhere")

    run_on(kind, scenario)


# ---- bytes that are not HTTP/2 -----------------------------------------------------------

ALTSVC = b"\0\0\x0a\x0a\0\0\0\0\0" + b"\0\x01a" + b'h2=":1"'


@GRPC
@settings(max_examples=15, deadline=None, database=None)
@given(data=st.binary(max_size=100), with_preface=st.booleans())
@example(data=ALTSVC, with_preface=True)
@example(data=b"\0\0\x04\x01\x05\0\0\0\x01\xff\xff\xff\xff", with_preface=True)
@example(data=b"\0\0\0\7\0\0\0\0\0", with_preface=True)
@example(data=b"\0\0\x01\xf0\0\0\0\0\0x", with_preface=True)
def test_any_bytes_on_a_connection_leave_the_server_serving(
    kind: str, data: bytes, with_preface: bool
) -> None:
    """Without the cure: an h2 event unknown to grpclib is an exception in the event loop."""

    async def scenario(rig: Rig) -> None:
        async with rig.pair(ToyService()) as (link, _):
            async with connected(rig.address("there")) as (reader, writer):
                writer.write(PREFACE * with_preface + data)
                writer.write_eof()
                with contextlib.suppress(ConnectionError):
                    await reader.read()  # to the end: all was heard
            assert await Toy(link).echo(b"alive") == b"alive"

    run_on(kind, scenario)


# ---- protobuf, and other people's clients ------------------------------------------------

NUMBERS = st.integers(0, 2**64 - 1)


@given(seq=NUMBERS, ack=NUMBERS, frames=st.binary(max_size=20_000))
@example(seq=0, ack=0, frames=b"")
@example(seq=1, ack=1, frames=bytes(127))
@example(seq=1, ack=1, frames=bytes(128))
def test_packets_are_the_bytes_that_the_generated_codec_makes(
    seq: int, ack: int, frames: bytes
) -> None:
    generated = Packet(seq=seq, ack=ack, frames=frames)
    assert encode_packet(seq, ack, frames) == bytes(generated)
    assert Packet.parse(encode_packet(seq, ack, frames)) == generated
    assert decode_packet(bytes(generated)) == (seq, ack, frames)


PLAIN_CLIENT = '''
"""A client that knows gRPC, link.proto and the frames, and has none of raylite's networks."""
import os, queue, sys
import grpc, msgspec
from raylite._kernel.packet import Kind, decode_frames, encode_frame
from raylite._wire.messages import Packet

outgoing = queue.SimpleQueue()
with grpc.insecure_channel(sys.argv[1]) as channel:
    stream = channel.stream_stream("/raylite.Link/Open", bytes, Packet.parse)(
        iter(outgoing.get, None)
    )
    hello = msgspec.msgpack.encode([1, b"s" * 16, b"i" * 16, "", 0, b"", 1])
    outgoing.put(Packet(frames=encode_frame(Kind.HELLO, 0, 0, hello)))
    [welcome] = decode_frames(next(stream).frames)
    assert welcome.kind is Kind.WELCOME, welcome
    call = encode_frame(Kind.CALL, int(sys.argv[2]), 7, bytes(8) + b"from outside")
    outgoing.put(Packet(seq=1, frames=call))
    packet = next(stream)
    [reply] = decode_frames(packet.frames)
    print(packet.seq, packet.ack, reply.kind.name, reply.call, bytes(reply.body).decode(), flush=True)
    os._exit(0)  # grpcio's own finalizers can wait for one another when the interpreter ends
'''


@pytest.mark.process
@GRPC
def test_a_plain_grpc_client_is_answered(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.serving(ToyService()) as there:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                PLAIN_CLIENT,
                rig.address("there"),
                str(Toy.echo.number),
                stdout=subprocess.PIPE,
            )
            try:
                output, _ = await process.communicate()
            finally:
                if process.returncode is None:
                    process.kill()
            assert output.decode() == "1 1 REPLY 7 from outside\n"
            await until(lambda: there._connections == {})  # type: ignore[attr-defined]

    run_on(kind, scenario)
