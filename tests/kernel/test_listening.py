"""Where a `GrpcNetwork` listens: several places, ports, sockets bound before, and never unsafely."""

import asyncio
import os
import resource
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from raylite._kernel.grpc import GrpcNetwork
from raylite._kernel.guard import Admission
from raylite._kernel.listener import BACKLOG, bind
from raylite._kernel.token import Token
from raylite._types.address import TcpAddress
from raylite.exceptions import LinkError, PeerLostError
from tests.kernel.membership import cluster_tls, cluster_token
from tests.kernel.rig import IMPATIENT, QUICK, Rig, Toy, ToyService, run_on, until

LOOPS = pytest.mark.parametrize("kind", ["grpc-asyncio", "grpc-uvloop"])
ANY = "tcp:127.0.0.1:0"


def network(**options: Any) -> GrpcNetwork:
    return GrpcNetwork(config=QUICK, **{"token": cluster_token(), **options})


def listening() -> set[str]:
    here = psutil.Process().net_connections("inet")
    return {f"tcp:{c.laddr.ip}:{c.laddr.port}" for c in here if c.status == psutil.CONN_LISTEN}


@LOOPS
def test_one_process_listens_at_several_places_and_closes_them_all(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        there, here = network(), network()
        there.host(ToyService())
        path = await there.listen(f"unix:{rig.folder}/there")
        ports = [await there.listen(ANY) for _ in range(2)]
        assert there.address == path  # the first is its own
        assert listening() == set(ports)
        assert len({path, *ports}) == 3
        for address in (path, *ports):
            await here.connect(address).wait_attached()
        assert len(there.links) == 3
        await here.close()
        await there.close()
        assert listening() == set()
        assert os.listdir(rig.folder) == []

    run_on(kind, scenario)


@LOOPS
def test_an_address_that_was_set_is_kept(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        there = network()
        port = await there.listen(ANY)
        assert there.address == port
        combined = there.address = f"{port};ab=unix:{rig.folder}/there"
        await there.listen(f"unix:{rig.folder}/there")
        assert there.address == combined
        await there.close()

    run_on(kind, scenario)


@LOOPS
def test_a_node_dials_its_own_path_and_others_the_port(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        there = network()
        there.host(ToyService())
        port = await there.listen(ANY)
        path = await there.listen(f"unix:{rig.folder}/there")
        there.address = f"{port};ab12={path}"
        for node, family in (
            ("ab12", socket.AF_UNIX),
            ("ff", socket.AF_INET),
            ("", socket.AF_INET),
        ):
            here = network()
            here.node = node
            link = here.connect(there.address)
            await link.wait_attached()
            [connection] = here._connections.values()
            assert connection._transport is not None
            assert connection._transport.get_extra_info("socket").family == family
            assert link.peer == there.address  # the same identity by either way
            await here.close()
        await there.close()

    run_on(kind, scenario)


@LOOPS
def test_sockets_that_somebody_has_bound_are_listened_on(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        there, here = network(), network()
        sock = bind(TcpAddress("127.0.0.1", 0))
        port = sock.getsockname()[1]
        assert await there.listen(ANY, sock) == f"tcp:127.0.0.1:{port}"
        path = socket.socket(socket.AF_UNIX)
        path.bind(f"{rig.folder}/there")
        assert await there.listen(f"unix:{rig.folder}/there", path) == f"unix:{rig.folder}/there"
        for address in (f"tcp:127.0.0.1:{port}", f"unix:{rig.folder}/there"):
            await here.connect(address).wait_attached()
        await here.close()
        await there.close()

    run_on(kind, scenario)


@LOOPS
def test_a_socket_of_the_wrong_kind_is_refused(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        there = network()
        with pytest.raises(ValueError, match="no TCP socket"):
            await there.listen(ANY, socket.socket(socket.AF_UNIX))
        with pytest.raises(ValueError, match="no unix socket"):
            await there.listen("unix:/nowhere", socket.socket())
        with pytest.raises(OSError, match=r"cannot listen at tcp:198\.51\.100\.1:1: Cannot assign"):
            await network(tls=cluster_tls()).listen("tcp:198.51.100.1:1")
        await there.close()

    run_on(kind, scenario)


@LOOPS
def test_ipv6_is_listened_at_and_dialled(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        there, here = network(), network()
        there.host(ToyService())
        address = await there.listen("tcp:[::1]:0")
        assert address.startswith("tcp:[::1]:")
        await here.connect(address).wait_attached()
        with pytest.raises(LinkError):  # not by IPv4 too
            other = GrpcNetwork(config=IMPATIENT, token=cluster_token())
            try:
                await Toy(other.connect(address.replace("[::1]", "127.0.0.1"))).echo(b"")
            finally:
                await other.close()
        await here.close()
        await there.close()

    run_on(kind, scenario)


@LOOPS
def test_tcp_sends_at_once_and_gives_up_after_six_seconds(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        there, here = network(), network()
        await here.connect(await there.listen(ANY)).wait_attached()
        for side in (there, here):
            [connection] = side._connections.values()
            assert connection._transport is not None
            sock = connection._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 6000
        [listener] = there._reception._listeners
        assert listener._sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        await here.close()
        await there.close()

    run_on(kind, scenario)


@LOOPS
def test_a_burst_of_connections_waits_in_the_backlog(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        there = network()
        _, host, port = (await there.listen(ANY)).split(":")
        limit = int(Path("/proc/sys/net/core/somaxconn").read_text())
        socks = [
            socket.create_connection((host, int(port))) for _ in range(min(BACKLOG, limit, 300))
        ]
        await asyncio.sleep(0.05)
        for sock in socks:
            sock.close()
        await there.close()

    run_on(kind, scenario)


@LOOPS
@pytest.mark.parametrize(
    ("options", "place", "told"),
    [
        ({"token": None}, ANY, "open to everybody: give the network a token, or insecure=True"),
        ({"token": None, "tls": 1}, ANY, "open to everybody"),
        ({}, "tcp:0.0.0.0:0", "plain text: give the network tls, or insecure=True"),
        ({}, "tcp:[::]:0", "plain text: give the network tls, or insecure=True"),
        ({}, "tcp:10.0.0.7:0", "plain text: give the network tls, or insecure=True"),
    ],
)
def test_listening_unsafely_is_refused(
    kind: str, options: dict[str, Any], place: str, told: str
) -> None:
    async def scenario(rig: Rig) -> None:
        if "tls" in options:
            options["tls"] = cluster_tls()
        there = network(**options)
        with pytest.raises(ValueError, match=told):
            await there.listen(place)
        assert listening() == set()
        await there.close()

    run_on(kind, scenario)


def test_the_socket_decides_and_not_the_address_whether_it_is_safe() -> None:
    async def scenario(rig: Rig) -> None:
        there = network()
        everywhere = socket.socket()
        everywhere.bind(("0.0.0.0", 0))
        with pytest.raises(ValueError, match="plain text"):
            await there.listen(ANY, everywhere)
        assert everywhere.fileno() == -1
        await there.close()

    run_on("grpc-asyncio", scenario)


@LOOPS
def test_whoever_insists_listens_unsafely(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        there, here = network(token=None, insecure=True), network(token=None)
        there.host(ToyService())
        address = await there.listen(ANY)
        await here.connect(address).wait_attached()
        [connection] = there._connections.values()
        assert connection._transport is not None
        assert connection._transport.get_protocol() is connection
        await here.close()
        await there.close()

    run_on(kind, scenario)


@LOOPS
@pytest.mark.parametrize("token", [cluster_token(), None], ids=["token", "no token"])
def test_a_unix_socket_is_its_users_only(kind: str, token: Token | None) -> None:
    async def scenario(rig: Rig) -> None:
        there, here = network(token=token), network(token=token)
        there.host(ToyService())
        before = os.umask(0)
        address = await there.listen(f"unix:{rig.folder}/there")
        os.umask(before)
        path = address.removeprefix("unix:")
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        await here.connect(address).wait_attached()
        await here.close()
        if os.geteuid() == 0:
            os.chmod(rig.folder, 0o711)
            assert await heard_by_another_user(path) == "PermissionError"
            os.chmod(
                path, 0o666
            )  # as if somebody had opened it: who comes is looked at all the same
            assert await heard_by_another_user(path) == "b''"
            assert there.refused == {"another user": 1}
        await there.close()

    run_on(kind, scenario)


async def heard_by_another_user(path: str) -> str:
    """What a process of user 65534 is told at a socket, or why it does not get there."""
    code = f"""
import os, socket
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
try:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect({path!r})
        try:
            print(sock.recv(100))
        except ConnectionResetError:
            print(b"")
except OSError as error:
    print(type(error).__name__)
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-c", code, stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    return told.decode().strip()


@pytest.mark.parametrize("kind", ["grpc-asyncio", "grpc-uvloop", "grpc-tls"])
def test_a_process_that_has_all_connections_it_may_have_says_so(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        options: dict[str, Any] = {"tls": cluster_tls() if rig.is_tcp else None}
        there = network(admission=Admission(connections=2), **options)
        there.host(ToyService())
        address = await there.listen(rig.address("there"))
        members = [network(**options) for _ in range(2)]
        for member in members:
            await member.connect(address).wait_attached()
        late = GrpcNetwork(config=IMPATIENT, token=cluster_token(), **options)
        with pytest.raises(
            PeerLostError, match=r"has 2 connections.*raise its limit \(ulimit -n\)"
        ):
            await Toy(late.connect(address)).echo(b"")
        await late.close()
        await members.pop().close()
        await until(lambda: len(there._connections) == 1)
        another = network(**options)
        await another.connect(address).wait_attached()
        for each in (another, *members, there):
            await each.close()

    run_on(kind, scenario)


def test_a_process_may_have_connections_for_most_of_its_files() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert Admission().connections == soft * 8 // 10


@LOOPS
def test_a_port_that_nobody_listens_on_is_dialled_again_until_the_session_ends(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        here = GrpcNetwork(config=IMPATIENT, token=cluster_token())
        sock = bind(TcpAddress("127.0.0.1", 0))
        address = f"tcp:127.0.0.1:{sock.getsockname()[1]}"
        with pytest.raises(PeerLostError, match="could not be reached for"):
            await Toy(here.connect(address)).echo(b"")
        sock.close()
        await here.close()

    run_on(kind, scenario)
