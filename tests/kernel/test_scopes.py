"""Scopes: what a peer reaches depends on the token that it has proven, over a relay too."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from raylite._kernel.grpc import GrpcNetwork
from raylite._kernel.host import Host
from raylite._kernel.interface import SCOPES, Interface, allows, call, feed, post
from raylite._kernel.keyring import Keyring
from raylite._kernel.service import Service, handles
from raylite._kernel.token import MOST_LESSER, Token, new_token, read_tokens, write_tokens
from raylite.exceptions import AuthenticationError
from tests.kernel.membership import cluster_token
from tests.kernel.rig import IMPATIENT, QUICK, Behind, Rig, run_on, until

ALL = pytest.mark.parametrize("kind", ["grpc-asyncio", "grpc-uvloop", "grpc-tls", "grpc-relay"])
READ, NODE = new_token("read"), new_token("node")


class Desk(Interface):
    look = call(bytes, bytes, scope="read")
    gaze = feed(bytes, bytes, scope="read")
    sit = call(bytes, bytes)
    follow = feed(bytes, bytes)
    tell = post(bytes)
    rule = call(bytes, bytes, scope="admin")


class DeskService(Service, serves=(Desk,)):
    def __init__(self) -> None:
        self.told: list[bytes] = []

    @handles(Desk.look)
    def look(self, request: bytes) -> bytes:
        return request

    @handles(Desk.gaze)
    async def gaze(self, request: bytes) -> AsyncIterator[bytes]:
        yield request

    @handles(Desk.sit)
    def sit(self, request: bytes) -> bytes:
        return request

    @handles(Desk.follow)
    async def follow(self, request: bytes) -> AsyncIterator[bytes]:
        yield request

    @handles(Desk.tell)
    def tell(self, message: bytes) -> None:
        self.told.append(message)

    @handles(Desk.rule)
    def rule(self, request: bytes) -> bytes:
        return request


@asynccontextmanager
async def desk(rig: Rig, keyring: Keyring) -> AsyncIterator[tuple[DeskService, GrpcNetwork]]:
    if rig.is_relayed:
        rig.relay._keyring = keyring
    tls = rig.network("any")._tls  # type: ignore[attr-defined]
    there = (Behind if rig.is_relayed else GrpcNetwork)(config=QUICK, token=keyring, tls=tls)
    await there.listen(rig.address("there"))
    host = Host(there, service := DeskService(), grace=0.1)
    running = host.start("host")
    try:
        yield service, there
    finally:
        host.stop()
        await running


def client(rig: Rig, *tokens: Token) -> GrpcNetwork:
    tls = rig.network("any")._tls  # type: ignore[attr-defined]
    return GrpcNetwork(config=QUICK, token=Keyring(*tokens), tls=tls)


async def let(desk: Desk, route: str) -> bool:
    """Whether a route answers; if not, the error says why."""
    try:
        if route in ("gaze", "follow"):
            assert [item async for item in getattr(desk, route)(b"x")] == [b"x"]
        else:
            assert await getattr(desk, route)(b"x") == b"x"
    except AuthenticationError as error:
        assert "does not let you ask this" in str(error)  # noqa: PT017
        return False
    return True


@ALL
@pytest.mark.parametrize("token", [cluster_token(), NODE, READ], ids=lambda token: token.scope)
def test_a_peer_reaches_what_its_tokens_scope_allows(kind: str, token: Token) -> None:
    async def scenario(rig: Rig) -> None:
        async with desk(rig, Keyring(cluster_token(), NODE, READ)) as (service, there):
            here = client(rig, token)
            here.address = "somebody"  # a mere reader is nobody whom others dial
            link = here.connect(rig.address("there"))
            reached = Desk(link)
            for name, route in Desk.routes.items():
                if name != "tell":
                    assert await let(reached, name) is allows(token.scope, route.scope), name
            reached.tell(b"news")
            assert await let(reached, "look")  # and the link lives
            assert service.told == ([] if token.scope == "read" else [b"news"])
            [served] = there.links
            assert (served.peer == "somebody") is (token.scope != "read")
            link.abort_wire("lost")
            assert await let(reached, "look")
            assert await let(reached, "rule") is (token.scope == "admin")
            await here.close()

    run_on(kind, scenario)


def test_a_session_is_not_resumed_with_a_token_of_another_scope() -> None:
    async def scenario(rig: Rig) -> None:
        async with desk(rig, Keyring(cluster_token(), READ)):
            here = client(rig, READ)
            link = here.connect(rig.address("there"))
            assert await let(Desk(link), "look")
            here._keyring = Keyring(cluster_token())
            link.abort_wire("lost")
            await until(lambda: link.is_ended)
            assert "a token of another scope" in str(link.error)
            assert await let(Desk(here.connect(rig.address("there"))), "rule")
            await here.close()

    run_on("grpc-uvloop", scenario)


@pytest.mark.parametrize("kind", ["grpc-asyncio", "grpc-uvloop", "grpc-tls"])
def test_what_a_revoked_token_has_opened_is_cut(kind: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    path = str(tmp_path / "token")

    async def scenario(rig: Rig) -> None:
        new, old = new_token(), new_token()
        write_tokens(path, [old])
        tls = rig.network("any")._tls  # type: ignore[attr-defined]
        patient = replace(IMPATIENT, session_timeout=10.0, silence=5.0, local_patience=1.0)
        there = GrpcNetwork(config=patient, token=Keyring.open(path), tls=tls)
        await there.listen(rig.address("there"))
        host = Host(there, DeskService(), grace=0.1)
        running = host.start("host")
        thief, member = client(rig, old), client(rig, new, old)
        stolen, link = (each.connect(rig.address("there")) for each in (thief, member))
        for each in (stolen, link):
            assert await let(Desk(each), "rule")
        was = link._wire
        write_tokens(path, [new, old])
        assert await let(Desk(stolen), "rule")
        write_tokens(path, [new])
        await until(lambda: stolen.is_ended)  # though no stream opens meanwhile but its own
        assert isinstance(stolen.error, AuthenticationError)
        await until(lambda: link._wire is not was and link._wire is not None)
        assert await let(Desk(link), "rule")
        for network in (thief, member):
            await network.close()
        host.stop()
        await running

    run_on(kind, scenario)


def test_a_file_holds_the_clusters_tokens_before_those_of_lesser_scopes(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    path = str(tmp_path / "token")
    new, old = new_token(), new_token()
    write_tokens(path, [READ, new, NODE, old])
    assert read_tokens(path) == (new, old, READ, NODE)
    write_tokens(path, [READ])
    assert read_tokens(path) == (READ,)
    write_tokens(path, [new, *[new_token("read") for _ in range(MOST_LESSER + 2)]])
    with pytest.raises(AuthenticationError, match="too many"):
        read_tokens(path)


def test_each_scope_allows_what_lesser_ones_do() -> None:
    for number, scope in enumerate(SCOPES):
        assert [allows(scope, needed) for needed in SCOPES] == [
            index <= number for index in range(len(SCOPES))
        ]
