"""TLS: only members' certificates, only version 1.3, and an error that says what was wrong."""

import asyncio
import contextlib
import gc
import ipaddress
import itertools
import os
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from msgspec.structs import replace

from raylite._kernel.certificates import (
    DAY,
    MOST_HOSTS,
    load_authority,
    new_authority,
    new_request,
)
from raylite._kernel.connection import Connection
from raylite._kernel.grpc import GrpcNetwork
from raylite._kernel.host import Host
from raylite._kernel.interface import Interface, call
from raylite._kernel.keyring import Keyring
from raylite._kernel.link import LinkConfig
from raylite._kernel.relay import SCOPE
from raylite._kernel.service import Service, handles
from raylite._kernel.tls import Tls, fetch_authority, fingerprint, load_tls, newcomer_tls
from raylite._kernel.token import Token, new_token
from raylite._kernel.wire import Deaf
from raylite._types.address import Place
from raylite.exceptions import AuthenticationError, PeerLostError, RayError
from tests.kernel.membership import (
    LOOPBACK,
    cluster_authority,
    cluster_tls,
    cluster_token,
    old_client,
    tls_from,
    tls_from_files,
)
from tests.kernel.rig import QUICK, Rig, Toy, ToyService, run_on, until
from tests.kernel.test_scopes import Desk, DeskService, let

LOOPS = pytest.mark.parametrize("kind", ["grpc-asyncio", "grpc-uvloop"])
SHORT = replace(QUICK, ping_after=0.1, session_timeout=0.5)  # a link looks at the time so often
NOWHERE = "tcp:127.0.0.1:0"


class Greeting(Interface):
    hello = call(bytes, bytes)


class Greeter(Service, serves=(Greeting,)):
    """What a newcomer may talk to."""

    @handles(Greeting.hello)
    def hello(self, name: bytes) -> bytes:
        return b"hello " + name


def network(tls: Tls | None, config: LinkConfig = QUICK, token: Token | None = None) -> GrpcNetwork:
    return GrpcNetwork(config=config, token=token or cluster_token(), tls=tls)


@contextlib.asynccontextmanager
async def serving(
    service: ToyService, tls: Tls | None, place: str = NOWHERE
) -> AsyncIterator[tuple[GrpcNetwork, str]]:
    there = network(tls)
    address = await there.listen(place)
    host = Host(there, service, grace=0.1)
    running = host.start("host")
    try:
        yield there, address
    finally:
        host.stop()
        await running


async def refusal(tls: Tls | None, address: str, config: LinkConfig = QUICK) -> Exception:
    """What becomes of a link to an address."""
    here = network(tls, config)
    try:
        await Toy(here.connect(address)).echo(b"")
    except (AuthenticationError, PeerLostError) as error:
        return error
    finally:
        await here.close()
    raise AssertionError("it was let in")


# ---- members -----------------------------------------------------------------------------


@LOOPS
@pytest.mark.parametrize("place", [NOWHERE, "tcp:[::1]:0"])
def test_nodes_of_one_cluster_speak_tls_1_3(kind: str, place: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with serving(ToyService(), cluster_tls(), place) as (there, address):
            here = network(tls_from(cluster_authority()))  # another node: another certificate
            assert await Toy(here.connect(address)).echo(b"secret") == b"secret"
            for side in (here, there):
                [connection] = side._connections.values()
                assert connection._transport is not None
                spoken = connection._transport.get_extra_info("ssl_object")
                assert (spoken.version(), spoken.compression()) == ("TLSv1.3", None)
            await here.close()

    run_on(kind, scenario)


@LOOPS
def test_a_certificate_for_a_name_is_found_by_that_name(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        tls = tls_from(cluster_authority(), ["localhost"])
        async with serving(ToyService(), tls) as (_, address):
            here = network(tls)
            named = address.replace("127.0.0.1", "localhost")
            assert await Toy(here.connect(named)).echo(b"named") == b"named"
            await here.close()

    run_on(kind, scenario)


# ---- who is refused ----------------------------------------------------------------------


@LOOPS
@pytest.mark.parametrize(
    ("server", "why"),
    [
        (lambda: tls_from(new_authority()), "self-signed certificate in certificate chain"),
        (lambda: tls_from(cluster_authority(), lifetime=-DAY), "certificate has expired"),
        (lambda: tls_from(cluster_authority(), ["10.9.8.7"]), "IP address mismatch"),
        (lambda: tls_from(cluster_authority(), ["localhost"]), "IP address mismatch"),
    ],
    ids=["other CA", "expired", "other IP", "a name only"],
)
def test_a_server_with_the_wrong_certificate_is_not_spoken_to(
    kind: str, server: object, why: str
) -> None:
    async def scenario(rig: Rig) -> None:
        service = ToyService()
        assert callable(server)
        async with serving(service, server()) as (_, address):
            error = await refusal(cluster_tls(), address)
            assert isinstance(error, AuthenticationError)  # at once: it would not get better
            assert f"no TLS 1.3 certificate of this cluster to trust: {why}" in str(error)
            assert service.handled == []

    run_on(kind, scenario)


@LOOPS
@pytest.mark.parametrize(
    ("client", "reason"),
    [
        (
            lambda: tls_from(new_authority(), trusted=cluster_authority()),
            "CERTIFICATE_VERIFY_FAILED",
        ),
        (lambda: tls_from(cluster_authority(), lifetime=-DAY), "CERTIFICATE_VERIFY_FAILED"),
        (lambda: without_certificate(cluster_tls()), "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
        (lambda: old_client(cluster_tls()), "UNSUPPORTED_PROTOCOL"),
        (lambda: None, "WRONG_VERSION_NUMBER"),
    ],
    ids=["other CA", "expired", "none", "TLS 1.2", "plain text"],
)
def test_a_client_with_the_wrong_certificate_is_refused_and_counted(
    kind: str, client: object, reason: str
) -> None:
    """The server can only close, so the client goes on for its session's time, and then knows why."""

    async def scenario(rig: Rig) -> None:
        service = ToyService()
        assert callable(client)
        async with serving(service, cluster_tls()) as (there, address):
            error = await refusal(client(), address, SHORT)
            assert "does not accept this process's certificate" in str(error)
            assert set(there.refused) == {f"TLS: {reason}"}
            assert (service.handled, there.links) == ([], [])
            await until(lambda: there._reception._guard._total == 0)

    run_on(kind, scenario)


@LOOPS
def test_a_server_that_speaks_no_tls_is_known_by_its_answer(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with serving(ToyService(), None) as (there, address):
            error = await refusal(cluster_tls(), address, SHORT)
            assert "the TLS handshake broke off" in str(error)
            assert "speaks no TLS" in str(error)
            assert set(there.refused) == {"no HTTP/2"}

    run_on(kind, scenario)


class Losing(GrpcNetwork):
    """Its connections are lost as soon as they are there, before anybody else knows."""

    async def _connect(self, place: Place) -> tuple[asyncio.Transport, Connection]:
        transport, connection = await super()._connect(place)
        transport.abort()
        while transport.get_extra_info("socket") is not None and not connection.lost:
            await asyncio.sleep(0)
        return transport, connection


@LOOPS
def test_a_connection_that_is_lost_at_once_is_no_error_of_the_link(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with serving(ToyService(), cluster_tls()) as (_, address):
            here = Losing(config=QUICK, token=cluster_token(), tls=cluster_tls())
            for _ in range(5):
                with pytest.raises(OSError):
                    await here.dial(address, Deaf())
            await here.close()

    run_on(kind, scenario)


@LOOPS
def test_the_tls_handshake_has_a_deadline_and_a_place_at_the_door(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        there = network(cluster_tls())
        there._reception._guard.admission = replace(there._reception._guard.admission, total=2)
        there._reception._rules = replace(
            there._reception._rules,
            admission=replace(there._reception._rules.admission, deadline=0.2),
        )
        _, host, port = (await there.listen(NOWHERE)).split(":")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
        async with asyncio.timeout(3):
            for reader, writer in silent:
                with contextlib.suppress(ConnectionError):
                    while await reader.read(1000):
                        pass
                writer.close()
        assert there.refused["too many at once"] == 1
        assert there.refused["TLS: broken off"] == 2
        await there.close()

    run_on(kind, scenario)


@LOOPS
def test_a_dial_that_is_cancelled_while_its_handshake_breaks_off_leaves_nothing(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        said = list[dict[str, object]]()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: said.append(context))
        here = network(cluster_tls())
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            for before, after in itertools.product(range(12), range(25)):
                dial = asyncio.ensure_future(
                    here.dial(f"tcp:127.0.0.1:{server.getsockname()[1]}", Deaf())
                )
                there, _ = await loop.sock_accept(server)
                await _pass(before)
                there.close()
                await _pass(after)
                dial.cancel()
                await asyncio.wait([dial])
                del dial
        gc.collect()  # a future says what nobody read when it is collected
        assert said == []
        await here.close()

    run_on(kind, scenario)


async def _pass(steps: int) -> None:
    for _ in range(steps):
        await asyncio.sleep(0)


def without_certificate(tls: Tls) -> Tls:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=cluster_authority().certificate)
    return Tls(tls.server, context, tls.certificate)


@LOOPS
def test_a_node_that_hands_on_another_nodes_handshake_is_noticed(kind: str) -> None:
    """Both are members and show good certificates: the proof is bound to the certificate."""

    async def scenario(rig: Rig) -> None:
        tls = cluster_tls()
        shown = Tls(tls.server, tls.client, tls_from(cluster_authority()).certificate)
        async with serving(ToyService(), shown) as (there, address):
            error = await refusal(tls, address)
            assert isinstance(error, AuthenticationError)
            assert there.refused == {"wrong proof": 1}

    run_on(kind, scenario)


# ---- first contact -----------------------------------------------------------------------


@LOOPS
def test_the_first_contact_takes_the_ca_with_the_fingerprint_only(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with serving(ToyService(), cluster_tls()) as (_, address):
            _, host, port = address.split(":")
            pin, other = cluster_authority().fingerprint, new_authority().fingerprint
            fetched = await asyncio.to_thread(fetch_authority, host, int(port), pin)
            assert (fingerprint(fetched.authority), fetched.ip) == (pin, "127.0.0.1")
            assert ssl.PEM_cert_to_DER_cert(fetched.authority) == ssl.PEM_cert_to_DER_cert(
                cluster_authority().certificate
            )
            with pytest.raises(AuthenticationError, match="get the join string once more"):
                await asyncio.to_thread(fetch_authority, host, int(port), other)
        await asyncio.get_running_loop().shutdown_default_executor()

    run_on(kind, scenario)


def test_the_first_contact_with_what_speaks_no_tls_says_so() -> None:
    async def scenario(rig: Rig) -> None:
        async with serving(ToyService(), None) as (_, address):
            _, host, port = address.split(":")
            with pytest.raises(AuthenticationError, match=r"does not speak TLS 1\.3"):
                await asyncio.to_thread(fetch_authority, host, int(port), f"sha256:{0:064}")
        await asyncio.get_running_loop().shutdown_default_executor()

    run_on("grpc-asyncio", scenario)


@pytest.mark.parametrize("pin", ["", "sha256:00", "0" * 64, "md5:" + "0" * 64])
def test_what_is_no_fingerprint_is_refused_before_anybody_is_asked(pin: str) -> None:
    with pytest.raises(ValueError, match="is no fingerprint: copy it from the join command"):
        fetch_authority("192.0.2.1", 1, pin)


# ---- newcomers ---------------------------------------------------------------------------


def welcoming() -> Tls:
    """TLS of a node that speaks to clients without a certificate."""
    return tls_from(cluster_authority(), newcomers=True)


@LOOPS
def test_a_newcomer_reaches_only_what_greets_newcomers(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        members, greeter = ToyService(), Greeter()
        async with serving(members, welcoming()) as (there, address):
            there.greet(greeter)
            running = asyncio.create_task(greeter.run())
            here = network(newcomer_tls(cluster_authority().certificate))
            assert await Greeting(here.connect(address)).hello(b"new") == b"hello new"
            with pytest.raises(RayError, match=r"Toy\.echo|route"):
                await Toy(here.connect(address)).echo(b"members only")
            assert (members.handled, there.links) == ([], [])
            member = network(cluster_tls())
            assert await Toy(member.connect(address)).echo(b"member") == b"member"
            with pytest.raises(RayError):
                await Greeting(member.connect(address)).hello(b"newcomers only")
            await here.close()
            await member.close()
            running.cancel()
            await asyncio.wait([running])

    run_on(kind, scenario)


@LOOPS
@pytest.mark.parametrize(
    "token", [new_token("read"), new_token("node"), cluster_token()], ids=["read", "node", "admin"]
)
@pytest.mark.parametrize("is_front", [False, True])
def test_who_only_reads_needs_no_certificate(kind: str, token: Token, is_front: bool) -> None:
    async def scenario(rig: Rig) -> None:
        folder = tempfile.mkdtemp(prefix="rl-")
        there = GrpcNetwork(config=QUICK, token=Keyring(cluster_token(), token), tls=welcoming())
        front = GrpcNetwork(config=QUICK, token=Keyring(cluster_token(), token), tls=welcoming())
        front.relays, front.front = folder, "gcs.sock"
        await there.listen(f"unix:{folder}/gcs.sock")
        address = await (front if is_front else there).listen(NOWHERE)
        (front if is_front else there).greet(Greeter())
        host = Host(there, service := DeskService(), grace=0.1)
        running = host.start("host")
        here = network(newcomer_tls(cluster_authority().certificate), token=token)
        here.metadata[SCOPE] = "read"  # as `raylite status` does
        link = here.connect(address)
        assert await Desk(link).look(b"news") == b"news"
        for route in ("sit", "rule", "follow"):
            assert not await let(Desk(link), route)
        Desk(link).tell(b"something")
        assert await Desk(link).look(b"more") == b"more"
        assert service.told == []
        for each in (here, front):
            await each.close()
        host.stop()
        await running
        os.rmdir(folder)

    run_on(kind, scenario)


@LOOPS
@pytest.mark.parametrize("greets", [True, False])
def test_a_newcomer_without_the_token_is_not_greeted(kind: str, greets: bool) -> None:
    async def scenario(rig: Rig) -> None:
        async with serving(ToyService(), welcoming()) as (there, address):
            greeter = Greeter()
            if greets:
                there.greet(greeter)
            tls = newcomer_tls(cluster_authority().certificate)
            here = network(tls, token=new_token() if greets else None)
            with pytest.raises(AuthenticationError):
                await Greeting(here.connect(address)).hello(b"")
            assert there.refused == {"wrong proof" if greets else "no certificate": 1}
            await here.close()

    run_on(kind, scenario)


@LOOPS
def test_where_newcomers_are_spoken_to_a_wrong_certificate_is_refused_all_the_same(
    kind: str,
) -> None:
    async def scenario(rig: Rig) -> None:
        async with serving(ToyService(), welcoming()) as (there, address):
            there.greet(Greeter())
            tls = tls_from(new_authority(), trusted=cluster_authority())
            await refusal(tls, address, SHORT)
            assert set(there.refused) == {"TLS: CERTIFICATE_VERIFY_FAILED"}

    run_on(kind, scenario)


def test_a_node_gets_a_certificate_for_a_key_that_only_it_has() -> None:
    request, key = new_request(["10.0.0.7", "::1"])
    assert "PRIVATE KEY" in key
    signed = cluster_authority().sign(request)
    shown = x509.load_pem_x509_certificate(signed.encode())
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7", "::1"]
    assert signed.endswith(cluster_authority().certificate)
    assert not shown.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    tls_from_files(signed, key)  # they belong together


def test_what_is_no_request_of_a_node_is_not_signed() -> None:
    good, _ = new_request(["10.0.0.7"])
    lines = good.splitlines()
    middle = len(lines) // 2
    lines[middle] = lines[middle][:-4] + ("AAAA" if lines[middle][-4:] != "AAAA" else "BBBB")
    wrong = [
        "",
        "\n".join(lines),
        cluster_authority().certificate,
        new_request([])[0],
        new_request(["a.name"])[0],
        new_request(f"10.0.0.{n}" for n in range(MOST_HOSTS + 1))[0],
        rsa_request(),
    ]
    for request in wrong:
        with pytest.raises(AuthenticationError):
            cluster_authority().sign(request)


def rsa_request() -> str:
    key = rsa.generate_private_key(65537, 2048)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("10.0.0.7"))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


# ---- files -------------------------------------------------------------------------------


def test_a_ca_that_was_saved_issues_what_its_cluster_trusts(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    certificate, key = str(tmp_path / "ca.pem"), str(tmp_path / "ca.key")
    authority = new_authority()
    authority.save(certificate, key)
    for file in (certificate, key):
        assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    again = load_authority(certificate, key)
    assert again.fingerprint == authority.fingerprint
    assert again.fingerprint.startswith("sha256:")
    tls_from(again, LOOPBACK, trusted=authority)
    os.chmod(key, 0o644)
    with pytest.raises(AuthenticationError, match="run chmod 600"):
        load_authority(certificate, key)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    one, other = (str(tmp_path / name) for name in ("one", "other"))
    for name in (one, other):
        cluster_authority().issue(LOOPBACK).save(f"{name}.pem", f"{name}.key")
    Path(one + ".ca").write_text(cluster_authority().certificate)
    with pytest.raises(AuthenticationError, match="name a node's certificate, its key"):
        load_tls(f"{one}.pem", f"{other}.key", f"{one}.ca")
    with pytest.raises(AuthenticationError, match="name a node's certificate, its key"):
        load_tls(f"{one}.ca", f"{one}.key", f"{one}.key")
    os.chmod(f"{one}.key", 0o640)
    with pytest.raises(AuthenticationError, match="run chmod 600"):
        load_tls(f"{one}.pem", f"{one}.key", f"{one}.ca")


def test_a_private_key_is_in_no_repr() -> None:
    credentials = cluster_authority().issue(LOOPBACK)
    assert "PRIVATE KEY" in credentials.key
    assert "PRIVATE KEY" not in f"{credentials!r} {cluster_authority()!r} {cluster_tls()!r}"


@pytest.mark.process
def test_only_making_certificates_needs_cryptography() -> None:
    code = "import sys; sys.modules['cryptography'] = None; import raylite._kernel.grpc; {}"
    needs = code.format("import raylite._kernel.certificates")
    for program, told in ((code.format("print('fine')"), "fine"), (needs, "'raylite[tls]'")):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert told in done.stdout + done.stderr
