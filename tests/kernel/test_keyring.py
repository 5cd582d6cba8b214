"""The keyring: two tokens at a time, from a file that is looked at whenever a stream opens."""

import asyncio
import os
from pathlib import Path

import pytest

from raylite._kernel.grpc import GrpcNetwork
from raylite._kernel.host import Host
from raylite._kernel.keyring import Keyring
from raylite._kernel.token import (
    MOST,
    create_token,
    issued_beside,
    new_token,
    read_issued,
    read_tokens,
    write_issued,
    write_tokens,
)
from raylite.exceptions import AuthenticationError
from tests.kernel.rig import QUICK, Rig, Toy, ToyService, run_on

LOOPS = pytest.mark.parametrize("kind", ["grpc-asyncio", "grpc-uvloop", "grpc-tls"])


@pytest.fixture
def path(tmp_path: Path) -> str:
    tmp_path.chmod(0o700)
    return str(tmp_path / "token")


def test_what_is_written_is_read_back_and_kept_secret(path: str) -> None:
    first, second = new_token(), new_token()
    for tokens in ((first,), (second, first), (second,)):
        write_tokens(path, tokens)
        assert read_tokens(path) == tokens
        assert os.stat(path).st_mode & 0o777 == 0o600
        assert os.listdir(os.path.dirname(path)) == ["token"]


def test_a_write_that_was_killed_does_not_stand_in_the_way(path: str) -> None:
    token = create_token(path)
    Path(f"{path}.new").write_text("half")
    assert read_tokens(path) == (token,)
    write_tokens(path, [token])
    assert os.listdir(os.path.dirname(path)) == ["token"]


@pytest.mark.parametrize("text", ["", "\n", "a\n\nb\n"])
def test_a_file_without_tokens_is_refused(path: str, text: str) -> None:
    create_token(path)
    Path(path).write_text(text)
    with pytest.raises(AuthenticationError):
        read_tokens(path)


def test_a_file_of_too_many_tokens_is_refused(path: str) -> None:
    write_tokens(path, [new_token() for _ in range(MOST + 1)])
    with pytest.raises(AuthenticationError, match="holds 3 tokens, and 2 is the most"):
        read_tokens(path)


def test_a_keyring_follows_its_file_and_keeps_the_last_good_tokens(path: str) -> None:
    first, second = create_token(path), new_token()
    keyring = Keyring.open(path)
    assert list(keyring.tokens) == [first]
    write_tokens(path, [second, first])
    assert list(keyring.tokens) == [second, first]
    os.chmod(path, 0o644)
    os.utime(path)
    assert list(keyring.tokens) == [second, first]
    os.unlink(path)
    assert list(keyring.tokens) == [second, first]
    write_tokens(path, [second])
    assert list(keyring.tokens) == [second]


def test_what_is_issued_is_known_by_the_keyring_and_not_in_the_file_that_is_copied(
    path: str,
) -> None:
    own, first, second = create_token(path), new_token("node"), new_token("read")
    keyring = Keyring.open(path)
    changes: list[int] = []
    keyring.on_change = lambda: changes.append(1)
    write_issued(path, [first])
    assert list(keyring.tokens) == [own, first]
    write_issued(path, [first, second])
    assert list(keyring.tokens) == list(Keyring.open(path).tokens) == [own, first, second]
    assert read_tokens(path) == (own,)
    assert os.stat(issued_beside(path)).st_mode & 0o777 == 0o600

    write_tokens(path, [new := new_token()])
    assert list(keyring.tokens) == [new, first, second]
    write_issued(path, [])
    assert (list(keyring.tokens), read_issued(path)) == ([new], ())
    assert len(changes) == 4


def test_a_token_of_the_cluster_is_not_taken_from_the_issued_ones(path: str) -> None:
    own = create_token(path)
    write_issued(path, [new_token()])
    assert list(Keyring.open(path).tokens) == [own]


def test_a_keyring_is_not_opened_without_a_token(path: str) -> None:
    with pytest.raises(AuthenticationError, match="does not exist"):
        Keyring.open(path)


def test_the_newest_token_that_both_have_is_chosen() -> None:
    new, old = new_token(), new_token()
    keyring = Keyring(new, old)
    assert keyring.shared([old.id, new.id]) == new
    assert keyring.shared([old.id]) == old
    assert keyring.shared([new_token().id]) == keyring.shared([]) == new


NEW, OLD = new_token(), new_token()


@LOOPS
@pytest.mark.parametrize("server", [(NEW, OLD), (OLD,), (NEW,)], ids=["both", "old", "new"])
@pytest.mark.parametrize("client", [(NEW, OLD), (OLD,), (NEW,)], ids=["both", "old", "new"])
def test_who_shares_a_token_is_let_in(kind: str, server: object, client: object) -> None:
    assert isinstance(server, tuple)
    assert isinstance(client, tuple)

    async def scenario(rig: Rig) -> None:
        tls = rig.network("any")._tls  # type: ignore[attr-defined]
        there = GrpcNetwork(config=QUICK, token=Keyring(*server), tls=tls)
        await there.listen(rig.address("there"))
        host = Host(there, service := ToyService(), grace=0.1)
        running = host.start("host")
        here = GrpcNetwork(config=QUICK, token=Keyring(*client), tls=tls)
        toy = Toy(here.connect(rig.address("there")))
        if set(server) & set(client):
            assert await toy.echo(b"in") == b"in"
        else:
            with pytest.raises(AuthenticationError, match="it has another token"):
                await toy.echo(b"out")
            assert service.handled == []
        await here.close()
        host.stop()
        await running

    run_on(kind, scenario)


@LOOPS
def test_a_revoked_token_opens_no_stream_any_more(kind: str, path: str) -> None:
    async def scenario(rig: Rig) -> None:
        tls = rig.network("any")._tls  # type: ignore[attr-defined]
        write_tokens(path, [NEW, OLD])
        there = GrpcNetwork(config=QUICK, token=Keyring.open(path), tls=tls)
        await there.listen(rig.address("there"))
        running = asyncio.create_task(Host(there, ToyService(), grace=0.1).run())
        member = GrpcNetwork(config=QUICK, token=Keyring(NEW, OLD), tls=tls)
        late = GrpcNetwork(config=QUICK, token=OLD, tls=tls)
        link = member.connect(rig.address("there"))
        assert await Toy(link).echo(b"in") == b"in"
        write_tokens(path, [NEW])
        with pytest.raises(AuthenticationError):
            await Toy(late.connect(rig.address("there"))).echo(b"out")
        link.abort_wire("lost")
        assert await Toy(link).echo(b"resumed by the new one") == b"resumed by the new one"
        for each in (member, late):
            await each.close()
        running.cancel()
        await asyncio.wait([running])

    run_on(kind, scenario)
