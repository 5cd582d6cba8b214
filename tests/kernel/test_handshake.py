"""The handshake and the door: nobody is heard who has not proven that it knows the token."""

import asyncio
import contextlib
import gc
import logging
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection

from raylite._kernel.connection import PREFACE
from raylite._kernel.grpc import PATH, GrpcNetwork
from raylite._kernel.grpcwire import GrpcWire
from raylite._kernel.guard import Admission
from raylite._kernel.handshake import Challenge, Proof, path_channel, prove, tcp_channel
from raylite._kernel.host import Host
from raylite._kernel.keyring import Keyring
from raylite._kernel.network import Probe
from raylite._kernel.opening import aside, read_refused
from raylite._kernel.packet import Kind, decode_frames, decode_packet, encode_frame, encode_packet
from raylite._kernel.token import Token, new_token
from raylite._kernel.wire import FIRST_PACKET, Wire
from raylite.exceptions import AuthenticationError
from tests.kernel.membership import cluster_token
from tests.kernel.rig import (
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

PLACES = pytest.mark.parametrize("kind", ["grpc-asyncio", "grpc-uvloop", "grpc-tcp", "grpc-tls"])
SOCKETS = pytest.mark.parametrize("kind", ["grpc-asyncio", "grpc-uvloop", "grpc-tcp"])
ASKED = (
    r"^the peer refuses this process: it asks for the cluster's token, and this process has none: "
    r"copy the file `token` .* name it with --token-file or RAYLITE_TOKEN_FILE$"
)
UNBOTHERED = Admission(failures=10**6)
read_challenge = msgspec.msgpack.Decoder(Challenge).decode


class Watched(GrpcNetwork):
    """Counts the wires that were let in: whoever is heard has been accepted."""

    let_in = 0

    def accepted(self, wire: Wire) -> None:
        self.let_in += 1
        super().accepted(wire)


def network(
    rig: Rig,
    token: Token | None,
    kind: type[GrpcNetwork] = GrpcNetwork,
    config: Any = QUICK,
    admission: Admission = UNBOTHERED,
) -> Any:
    usual = rig.network("here")
    assert isinstance(usual, GrpcNetwork)
    return kind(config=config, token=token, tls=usual._tls, admission=admission, insecure=True)


@contextlib.asynccontextmanager
async def serving(
    rig: Rig, service: ToyService, admission: Admission = UNBOTHERED, token: Token | None = None
) -> AsyncIterator[Watched]:
    there: Watched = network(rig, token or cluster_token(), Watched, admission=admission)
    await there.listen(rig.address("there"))
    host = Host(there, service, grace=0.1)
    running = host.start("host")
    try:
        yield there
    finally:
        host.stop()
        await running
        assert there._connections == {}
        there._reception._guard.check()
        assert there._reception._guard._total == there._reception._local_guard._total == 0


@contextlib.asynccontextmanager
async def connected(address: str) -> AsyncIterator[tuple[Any, Any]]:
    """A bare socket."""
    if address.startswith("unix:"):
        reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
    else:
        _, host, port = address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def wait_end(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(65536):
            pass


class Raw:
    """A stream on which the handshake is spoken by hand, over a network that has no token."""

    def __init__(self, here: GrpcNetwork, address: str) -> None:
        self.here, self.address, self.heard = here, address, Recorder()

    async def open(self) -> bytes:
        """Open it as one who knows the handshake, and return the server's nonce."""
        self.here.metadata["raylite-auth"] = "rl1"
        self.wire = await self.here.dial(self.address, self.heard)
        await until(lambda: bool(self.heard.packets))
        return read_challenge(self.frame(0).body).nonce

    def frame(self, number: int) -> Any:
        [frame] = decode_frames(decode_packet(self.heard.packets[number]).frames)
        return frame

    async def answer(self, packet: bytes) -> str:
        """Send a packet; returns why it was refused, or nothing."""
        self.wire.send(packet)
        await until(lambda: len(self.heard.packets) > 1 or self.heard.done.is_set())
        frame = self.frame(1)
        return read_refused(frame.body).reason if frame.kind is Kind.REFUSED else ""


def channel_of(address: str) -> bytes:
    if address.startswith("unix:"):
        return path_channel(address.removeprefix("unix:"))
    _, host, port = address.split(":")
    return tcp_channel(host, int(port))


def proof(
    address: str,
    nonce: bytes,
    token: Token | None = None,
    role: str = "client",
    mine: bytes = b"c" * 32,
) -> bytes:
    told = prove(token or cluster_token(), role, nonce, mine, channel_of(address))
    return aside(Kind.PROOF, Proof(mine, told))


# ---- members -----------------------------------------------------------------------------


@PLACES
def test_members_of_one_cluster_reach_one_another(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        service = ToyService()
        async with serving(rig, service) as there:
            here = network(rig, cluster_token())
            assert await Toy(here.connect(rig.address("there"))).echo(bytes(MIB)) == bytes(MIB)
            assert (there.let_in, there.refused) == (1, {})
            [connection] = there._connections.values()
            assert connection._transport is not None
            assert connection._transport.get_protocol() is connection  # the door is out of the way
            await here.close()

    run_on(kind, scenario)


@PLACES
def test_a_session_that_is_resumed_is_proven_again(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with serving(rig, ToyService()) as there:
            here = network(rig, cluster_token())
            link = here.connect(rig.address("there"))
            for count in range(1, 4):
                assert await Toy(link).echo(b"again") == b"again"
                assert there.let_in == count
                link.abort_wire("lost")
                await link.wait_attached()
            await here.close()

    run_on(kind, scenario)


# ---- strangers ---------------------------------------------------------------------------


@PLACES
def test_another_clusters_token_ends_the_link_and_enters_no_handler(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = new_token()

    async def scenario(rig: Rig) -> None:
        service = ToyService()
        async with serving(rig, service) as there:
            here = network(rig, other)
            link = here.connect(rig.address("there"))
            with pytest.raises(AuthenticationError, match="refuses this process: it has another"):
                await Toy(link).echo(b"")
            assert link.is_ended
            with pytest.raises(AuthenticationError):
                Toy(link).note(1)
            await asyncio.sleep(0.05)
            assert there.refused == {"wrong proof": 1}  # and it did not dial again
            assert (there.let_in, service.handled, there.links) == (0, [], [])
            await here.close()

    with caplog.at_level(logging.DEBUG):
        run_on(kind, scenario)
    for token in (other, cluster_token()):
        assert token.reveal().split(".")[3] not in caplog.text
        assert token.secret.hex() not in caplog.text
        assert repr(token.secret) not in caplog.text


@PLACES
def test_who_does_not_let_this_process_in_has_not_ended(kind: str) -> None:
    """Such a node of an earlier head is known to the next one by its tables."""

    async def scenario(rig: Rig) -> None:
        async with serving(rig, ToyService()) as there:
            for token in (new_token(), None):
                here = network(rig, token)
                assert await here.probe(rig.address("there"), 5.0) is not Probe.REFUSED
                assert await here.probe("no address", 5.0) is Probe.UNKNOWN
                await here.close()
            assert there.let_in == 0

    run_on(kind, scenario)


@PLACES
def test_a_process_without_a_token_is_told_so(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with serving(rig, ToyService()) as there:
            here = network(rig, None)
            with pytest.raises(AuthenticationError, match=ASKED):
                await Toy(here.connect(rig.address("there"))).echo(b"")
            assert (there.let_in, there.refused) == (0, {"no handshake": 1})
            await here.close()

    run_on(kind, scenario)


@PLACES
def test_a_server_without_a_token_is_not_spoken_to(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        there: Watched = network(rig, None, Watched)
        await there.listen(rig.address("there"))
        here = network(rig, cluster_token())
        with pytest.raises(AuthenticationError, match="refuses this process: it has no token"):
            await Toy(here.connect(rig.address("there"))).echo(b"")
        assert there.let_in == 0
        await here.close()
        await there.close()

    run_on(kind, scenario)


class Impostor(GrpcNetwork):
    """Plays the server's part, without the token."""

    async def _ask(self, wire: GrpcWire, door: Any, keyring: Keyring, accept: Any) -> None:
        recorder = Recorder()
        wire.events = recorder
        wire.start()
        wire.send(aside(Kind.CHALLENGE, Challenge(b"s" * 32)))
        await until(lambda: bool(recorder.packets))
        wire.send(aside(Kind.PROOF, Proof(b"s" * 32, b"p" * 32)))
        await recorder.done.wait()
        assert len(recorder.packets) == 1  # the proof, and no hello


@PLACES
def test_a_server_that_does_not_know_the_token_is_not_greeted(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        there = network(rig, new_token(), Impostor)
        await there.listen(rig.address("there"))
        here = network(rig, cluster_token())
        with pytest.raises(AuthenticationError, match="did not prove that it knows the token"):
            await Toy(here.connect(rig.address("there"))).echo(b"")
        await here.close()
        await there.close()

    run_on(kind, scenario)


# ---- what is said instead of a proof -------------------------------------------------------


@SOCKETS
def test_a_proof_made_by_hand_is_taken(kind: str) -> None:
    """So that those below are refused for what is wrong in them, and for nothing else."""

    async def scenario(rig: Rig) -> None:
        async with serving(rig, ToyService()) as there:
            here = network(rig, None)
            raw = Raw(here, rig.address("there"))
            assert await raw.answer(proof(raw.address, await raw.open())) == ""
            assert (there.let_in, there.refused) == (1, {})
            await here.close()

    run_on(kind, scenario)


Forgery = Callable[[str, bytes], bytes]


@SOCKETS
@pytest.mark.parametrize(
    "forge",
    [
        lambda address, nonce: proof(address, nonce, token=new_token()),
        lambda address, nonce: proof(address, nonce, role="server"),
        lambda address, nonce: proof(address, b"another nonce".ljust(32)),
        lambda address, nonce: proof(f"{address[:-1]}{(int(address[-1], 36) + 1) % 10}", nonce),
        lambda address, nonce: aside(Kind.PROOF, Proof(b"c" * 32, b"")),
        lambda address, nonce: aside(Kind.PROOF, Proof(b"", b"")),
        lambda address, nonce: aside(Kind.PROOF, "no proof"),
        lambda address, nonce: aside(Kind.CHALLENGE, Challenge(nonce)),
        lambda address, nonce: encode_packet(
            1, 0, encode_frame(Kind.POST, Toy.note.number, 0, b"1")
        ),
        lambda address, nonce: b"garbage",
        lambda address, nonce: encode_packet(
            0, 0, encode_frame(Kind.PROOF, 0, 0, bytes(100 * KIB))
        ),
    ],
    ids=[
        "other token",
        "other role",
        "other nonce",
        "other address",
        "empty proof",
        "empty nonce",
        "no proof",
        "a challenge",
        "a post",
        "garbage",
        "too much",
    ],
)
def test_what_is_no_proof_is_refused(kind: str, forge: Forgery) -> None:
    async def scenario(rig: Rig) -> None:
        service = ToyService()
        async with serving(rig, service) as there:
            here = network(rig, None)
            raw = Raw(here, rig.address("there"))
            nonce = await raw.open()
            packet = forge(raw.address, nonce)
            raw.wire.send(packet)
            raw.wire.send(encode_packet(1, 0, encode_frame(Kind.POST, Toy.note.number, 0, b"1")))
            await raw.heard.done.wait()
            assert (there.let_in, service.handled) == (0, [])
            assert sum(there.refused.values()) == 1
            await here.close()

    run_on(kind, scenario)


@SOCKETS
def test_a_handshake_that_was_recorded_is_of_no_use(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with serving(rig, ToyService()) as there:
            here, again = network(rig, None), network(rig, None)
            raw, replay = Raw(here, rig.address("there")), Raw(again, rig.address("there"))
            recorded = proof(raw.address, await raw.open())
            assert await raw.answer(recorded) == ""
            assert await replay.open() != read_challenge(raw.frame(0).body).nonce
            assert "another token" in await replay.answer(recorded)
            assert (there.let_in, there.refused) == (1, {"wrong proof": 1})
            await here.close()
            await again.close()

    run_on(kind, scenario)


def test_a_path_that_leads_to_another_path_is_noticed() -> None:
    """Somebody in between hands the bytes on, from a socket of its own to the server's."""

    async def scenario(rig: Rig) -> None:
        async with serving(rig, ToyService()) as there:

            async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                async with connected(rig.address("there")) as (theirs, ours):

                    async def pass_on(source: Any, sink: Any) -> None:
                        while data := await source.read(65536):
                            sink.write(data)
                        sink.close()

                    with contextlib.suppress(ConnectionError):
                        await asyncio.gather(pass_on(reader, ours), pass_on(theirs, writer))

            middle = rig.address("middle").removeprefix("unix:")
            server = await asyncio.start_unix_server(relay, middle)
            here = network(rig, cluster_token())
            with pytest.raises(AuthenticationError, match="sees this process at another address"):
                await Toy(here.connect(rig.address("middle"))).echo(b"")
            assert there.let_in == 0
            await here.close()
            server.close()
            await asyncio.sleep(0.01)

    run_on("grpc-asyncio", scenario)


# ---- bounds ------------------------------------------------------------------------------


@SOCKETS
@pytest.mark.parametrize("begin", [b"", PREFACE[:10], PREFACE + b"\0\0\0\4\0\0\0\0\0"])
def test_who_proves_nothing_is_gone_after_the_deadline(kind: str, begin: bytes) -> None:
    async def scenario(rig: Rig) -> None:
        async with (
            serving(rig, ToyService(), Admission(deadline=0.1)) as there,
            connected(rig.address("there")) as (reader, writer),
        ):
            writer.write(begin)
            async with asyncio.timeout(2):
                await wait_end(reader)
            assert there.refused == {"no proof within 0.1 s": 1}

    run_on(kind, scenario)


@SOCKETS
def test_slow_peers_do_not_get_more_time_by_saying_a_little(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with (
            serving(rig, ToyService(), Admission(deadline=0.2)) as there,
            connected(rig.address("there")) as (_, writer),
        ):
            with contextlib.suppress(ConnectionError):
                for byte in PREFACE + bytes(200):
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.01)
                    if there.refused:
                        break
            assert there.refused == {"no proof within 0.2 s": 1}

    run_on(kind, scenario)


@SOCKETS
def test_no_more_than_64_kib_are_read_of_a_stranger(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with (
            serving(rig, ToyService()) as there,
            connected(rig.address("there")) as (reader, writer),
        ):
            unknown = b"\0\x40\0\xf0\0\0\0\0\0" + bytes(16 * KIB)  # a frame that h2 lets pass
            writer.write(PREFACE + b"\0\0\0\4\0\0\0\0\0" + unknown * 8)
            await wait_end(reader)
            assert there.refused == {f"no proof in the first {FIRST_PACKET} bytes": 1}

    run_on(kind, scenario)


@PLACES
def test_strangers_are_so_many_at_a_time_and_no_more(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        limits = Admission(total=4, each=3, deadline=5.0)
        room = 3 if rig.is_tcp else 4
        async with (
            serving(rig, ToyService(), limits) as there,
            contextlib.AsyncExitStack() as stack,
        ):
            for _ in range(room):
                await stack.enter_async_context(connected(rig.address("there")))
            guard = there._reception._guard if rig.is_tcp else there._reception._local_guard
            await until(lambda: guard._total == room)
            async with connected(rig.address("there")) as (reader, _):
                await wait_end(reader)
            assert there.refused == {"too many at once": 1}
            here = network(rig, cluster_token())
            link = here.connect(rig.address("there"))
            waiting = asyncio.ensure_future(Toy(link).echo(b"in the end"))
            await until(lambda: there.refused["too many at once"] > 2)
            await stack.aclose()
            assert await waiting == b"in the end"
            await here.close()

    run_on(kind, scenario)


@SOCKETS
@pytest.mark.parametrize("begin", [b"", PREFACE])
def test_strangers_are_turned_away_when_the_network_closes(kind: str, begin: bytes) -> None:
    async def scenario(rig: Rig) -> None:
        there = network(rig, cluster_token())
        await there.listen(rig.address("there"))
        async with connected(rig.address("there")) as (reader, writer):
            writer.write(begin)
            await until(lambda: len(there._reception._doors) == 1)
            await there.close()
            assert there._reception._doors == {}
            await wait_end(reader)
        assert there.refused == {"closing": 1}

    run_on(kind, scenario)


def test_strangers_on_tcp_leave_room_for_those_of_this_machine() -> None:
    async def scenario(rig: Rig) -> None:
        async with serving(rig, ToyService(), Admission(total=2, each=2)) as there:
            path = await there.listen(f"unix:{rig.folder}/local")
            async with connected(rig.address("there")), connected(rig.address("there")):
                await until(lambda: there._reception._guard._total == 2)
                here = network(rig, cluster_token())
                assert await Toy(here.connect(path)).echo(b"local") == b"local"
                await here.close()

    run_on("grpc-tcp", scenario)


def test_who_fails_too_often_is_asked_later() -> None:
    async def scenario(rig: Rig) -> None:
        limits = Admission(failures=2, period=3600.0, tarpit=0.3)
        async with serving(rig, ToyService(), limits) as there:
            loop = asyncio.get_running_loop()
            for _ in range(2):
                here = network(rig, new_token())
                with pytest.raises(AuthenticationError):
                    await Toy(here.connect(rig.address("there"))).echo(b"")
                await here.close()
            for token, error in ((new_token(), AuthenticationError), (cluster_token(), None)):
                here, began = network(rig, token), loop.time()
                with pytest.raises(error) if error else contextlib.nullcontext():
                    await Toy(here.connect(rig.address("there"))).echo(b"")
                assert loop.time() - began >= 0.29
                await here.close()
            assert there.refused == {"wrong proof": 3}

    run_on("grpc-tcp", scenario)


def knocked(address: str, said: bytes = b"") -> None:
    """Connect and close, before the process there has had a moment to look."""
    kind, _, rest = address.partition(":")
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(rest)
    else:
        host, _, port = rest.rpartition(":")
        sock = socket.create_connection((host, int(port)))
    with sock:
        sock.sendall(said)


@PLACES
def test_who_only_tries_whether_connections_are_taken_has_not_failed(kind: str) -> None:
    """So does the GCS with a raylet that is silent; and who dials one that stands still gives up in time."""

    async def scenario(rig: Rig) -> None:
        strict = Admission(failures=1, period=3600.0, tarpit=60.0)
        async with serving(rig, ToyService(), strict) as there:
            for said in (b"", b"", PREFACE, b"GET / HTTP/1.1\r\n\r\n"):
                knocked(rig.address("there"), said)
            here = network(rig, cluster_token())
            assert await Toy(here.connect(rig.address("there"))).echo(b"at once") == b"at once"
            assert there.refused == {}
            await here.close()

    run_on(kind, scenario)


@SOCKETS
@pytest.mark.parametrize(
    ("said", "refused"), [(b"", {}), (PREFACE[:3], {"ended without a proof": 1})]
)
def test_who_leaves_has_failed_if_it_had_begun(
    kind: str, said: bytes, refused: dict[str, int]
) -> None:
    async def scenario(rig: Rig) -> None:
        async with serving(rig, ToyService()) as there:
            async with connected(rig.address("there")) as (_, writer):
                writer.write(said)
                await until(
                    lambda: [door._heard for door in there._reception._doors] == [len(said)]
                )
            await until(lambda: not there._reception._doors)
            assert there.refused == refused

    run_on(kind, scenario)


def test_knocking_is_no_failure() -> None:
    async def scenario(rig: Rig) -> None:
        async with serving(rig, ToyService()) as there:
            here = network(rig, cluster_token())
            for _ in range(20):
                await here.knock(rig.address("there"))
            assert await Toy(here.connect(rig.address("there"))).echo(b"") == b""
            await until(lambda: not there._reception._doors)
            assert there.refused == {}
            await here.close()

    run_on("grpc-tcp", scenario)


BEGIN = PREFACE + b"\0\0\0\4\0\0\0\0\0"


def request(path: str = PATH, auth: str | None = "rl1") -> bytes:
    """The frame that opens a stream."""
    h2 = H2Connection(H2Configuration(client_side=True, header_encoding="ascii"))
    h2.initiate_connection()
    h2.data_to_send()
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "raylite"),
        ("te", "trailers"),
        ("content-type", "application/grpc+proto"),
        *([("raylite-auth", auth)] if auth else []),
    ]
    h2.send_headers(1, headers)
    return h2.data_to_send()


def data_frame(packet: bytes) -> bytes:
    message = b"\0" + len(packet).to_bytes(4, "big") + packet
    return len(message).to_bytes(3, "big") + b"\0\0\0\0\0\1" + message


def test_there_is_one_method_and_all_others_are_unknown() -> None:
    """So that what is tested here of `/raylite.Link/Open` holds for whatever a process serves."""

    async def scenario(rig: Rig) -> None:
        async with serving(rig, ToyService()) as there:
            assert set(there.server._mapping) == {PATH}
            for path in ("/raylite.Link/Close", "/grpc.reflection.v1.ServerReflection/Info", "/"):
                async with connected(rig.address("there")) as (reader, writer):
                    await until(lambda: bool(there._reception._doors))
                    writer.write(BEGIN + request(path) + data_frame(b"anything"))
                    writer.write_eof()
                    await wait_end(reader)
            assert (there.let_in, there.links) == (0, [])

    run_on("grpc-uvloop", scenario)


@pytest.mark.process
@pytest.mark.timeout(120)
def test_ten_thousand_refused_attempts_leave_nothing_in_memory() -> None:
    """In a process of its own, whose memory nothing else uses."""
    code = "from tests.kernel.test_handshake import refuse_many; refuse_many()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path.cwd()
    )
    assert done.returncode == 0, done.stderr
    memory, objects = map(int, done.stdout.split())
    assert memory < MIB
    assert objects < 1000


def refuse_many() -> None:
    """Print how much 10,000 attempts of every kind have left behind."""

    async def scenario(rig: Rig) -> None:
        service = ToyService()
        async with serving(rig, service) as there:
            raw = Raw(network(rig, None), rig.address("there"))
            recorded = proof(raw.address, await raw.open())
            assert await raw.answer(recorded) == ""
            await raw.here.close()
            wrong = aside(Kind.PROOF, Proof(bytes(32), bytes(32)))
            other = proof(raw.address, bytes(32), new_token())
            attempts = [
                BEGIN + request(auth=None),
                *(BEGIN + request() + data_frame(each) for each in (wrong, recorded, other)),
                *[b"GET / HTTP/1.1\r\n\r\n" * 2] * 6,
            ]

            async def attempt_all(times: int) -> None:
                for said in attempts * times:
                    before, socks = there.refused.total(), []
                    for _ in range(50):
                        sock = socket.socket(socket.AF_UNIX)
                        sock.connect(rig.address("there").removeprefix("unix:"))
                        sock.sendall(said)
                        socks.append(sock)
                    await until(lambda before=before: there.refused.total() == before + 50)  # type: ignore[misc]
                    for sock in socks:
                        sock.close()
                    await until(lambda: there._connections == {})
                gc.collect()

            await attempt_all(4)
            memory, objects = psutil.Process().memory_info().rss, len(gc.get_objects())
            for _ in range(10):
                await attempt_all(2)
            print(psutil.Process().memory_info().rss - memory)
            print(len(gc.get_objects()) - objects)
            assert there.refused == {
                "no handshake": 24 * 50, "wrong proof": 24 * 150, "no HTTP/2": 24 * 300
            }  # fmt: skip
            assert (there.let_in, service.handled) == (1, [])

    run_on("grpc-uvloop", scenario, seconds=110)
