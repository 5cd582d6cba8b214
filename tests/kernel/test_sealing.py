"""Sealing: a token is read by who has the other one, and by nobody else, nor if anything was changed."""

import pytest
from msgspec.structs import asdict, replace

from raylite._kernel.sealing import Sealed, seal, unseal
from raylite._kernel.token import new_token

OWN, ISSUED = new_token(), new_token("node")


def test_who_has_the_other_token_reads_it() -> None:
    sealed = seal(ISSUED, OWN)
    assert (sealed.under, sealed.scope, sealed.id) == (OWN.id, "node", ISSUED.id)
    assert unseal(sealed, OWN) == ISSUED
    assert ISSUED.secret not in b"".join(
        each for each in asdict(sealed).values() if isinstance(each, bytes)
    )
    assert seal(ISSUED, OWN).masked != sealed.masked  # nothing tells that it is the same


def test_who_has_not_reads_nothing() -> None:
    assert unseal(seal(ISSUED, OWN), new_token()) is None
    assert unseal(seal(ISSUED, OWN), ISSUED) is None


@pytest.mark.parametrize("name", ["scope", "id", "nonce", "masked", "proof"])
def test_what_was_changed_is_nothing(name: str) -> None:
    sealed = seal(ISSUED, OWN)
    other = asdict(seal(new_token("read"), OWN))[name]
    assert unseal(replace(sealed, **{name: other}), OWN) is None
    if isinstance(other, bytes):
        for spoilt in (b"", other[:-1], other + b"x"):
            assert unseal(replace(sealed, **{name: spoilt}), OWN) is None


def test_a_token_of_the_cluster_is_not_taken_from_a_seal() -> None:
    sealed: Sealed = seal(new_token("admin"), OWN)
    assert unseal(sealed, OWN) is None
