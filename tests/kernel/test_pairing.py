"""Pairing: who has joined with one token of nodes knows who has joined with another, until either is revoked."""

import asyncio
from itertools import combinations
from pathlib import Path

import pytest

from raylite._kernel.grpc import GrpcNetwork
from raylite._kernel.grpcwire import GrpcWire
from raylite._kernel.host import Host
from raylite._kernel.keyring import Keyring
from raylite._kernel.pairing import pair
from raylite._kernel.sealing import seal, unseal
from raylite._kernel.token import Token, new_token, parse_token, write_issued, write_tokens
from raylite.exceptions import AuthenticationError
from tests.kernel.rig import QUICK, Rig, Toy, ToyService, run_on

LOOPS = pytest.mark.parametrize("kind", ["grpc-asyncio", "grpc-uvloop", "grpc-tls"])
ONE, OTHER, THIRD = (new_token("node") for _ in range(3))


def test_a_pair_has_one_token_and_each_pair_another() -> None:
    assert pair(ONE, OTHER) == pair(OTHER, ONE)
    shared = [pair(*two) for two in combinations((ONE, OTHER, THIRD), 2)]
    assert len({token.secret for token in shared}) == len({token.id for token in shared}) == 3
    assert {token.scope for token in shared} == {"node"}


def test_what_a_pair_shares_follows_from_both_secrets() -> None:
    for one, other in ((ONE, OTHER), (OTHER, ONE)):
        guessed = Token("node", other.id, new_token().secret)  # the id is no secret
        assert pair(one, guessed).secret != pair(one, other).secret
        assert pair(one, guessed).id != pair(one, other).id


def test_what_a_pair_shares_is_told_and_kept_as_other_tokens_are() -> None:
    shared = pair(ONE, OTHER)
    assert parse_token(shared.reveal()) == shared
    assert unseal(seal(shared, ONE), ONE) == unseal(seal(shared, OTHER), OTHER) == shared
    assert unseal(seal(shared, ONE), THIRD) is None


@LOOPS
def test_who_is_revoked_is_cut_off_and_nobody_else(kind: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    path = f"{tmp_path}/token"
    write_tokens(path, [ONE])
    write_issued(path, [pair(ONE, OTHER), pair(ONE, THIRD)])

    async def scenario(rig: Rig) -> None:
        tls = rig.network("any")._tls  # type: ignore[attr-defined]
        there = GrpcNetwork(config=QUICK, token=Keyring.open(path), tls=tls)
        await there.listen(rig.address("there"))
        host = Host(there, service := ToyService(), grace=0.1)
        running = asyncio.create_task(host.run())
        peers, toys = [], []
        for token in (OTHER, THIRD):
            shared = pair(ONE, token)
            here = GrpcNetwork(config=QUICK, token=Keyring(token, shared), tls=tls)
            peers.append(here)
            toys.append(Toy(here.connect(rig.address("there"))))
            assert await toys[-1].echo(b"in") == b"in"
        served = [link._wire for link in there.links]
        wires = {wire.token: wire for wire in served if isinstance(wire, GrpcWire)}
        revoked, kept = (wires[pair(ONE, token).id] for token in (OTHER, THIRD))

        write_issued(path, [pair(ONE, THIRD)])  # as the GCS has told it
        await asyncio.wait_for(asyncio.shield(revoked.gone), 5.0)  # though it was open
        with pytest.raises(AuthenticationError, match="it has another token"):
            await toys[0].echo(b"out")
        assert service.handled == ["echo", "echo"]
        assert await toys[1].echo(b"still") == b"still"
        assert not kept.gone.done()
        for peer in peers:
            await peer.close()
        running.cancel()
        await asyncio.wait([running])

    run_on(kind, scenario)
