"""Sealing: how tokens of lesser scopes travel to those who have the cluster's own, and to nobody else.

A secret of 32 bytes is masked by the HMAC-SHA256, under the cluster's token, of a new nonce and of what
it is a token for; another HMAC, over all of that, shows that nobody has changed it. Neither can be
mistaken for a proof of the `handshake`, which begins otherwise.
"""

import hmac
import secrets

from msgspec import Struct

from raylite._kernel.interface import SCOPES
from raylite._kernel.token import SECRET, Token

NONCE = 32  # bytes


class Sealed(Struct, frozen=True):
    """A token that only those can read who have another.

    Args:
        under: The id of that other token.
        scope: What the sealed one allows.
        id: Its id.
        nonce: Never used before.
        masked: Its secret, masked.
        proof: What only somebody who has the other token can have made.
    """

    under: str
    scope: str
    id: str
    nonce: bytes
    masked: bytes
    proof: bytes


def seal(token: Token, under: Token) -> Sealed:
    """Return a token for those who have another."""
    nonce = secrets.token_bytes(NONCE)
    masked = _mask(token.secret, token.scope, token.id, nonce, under)
    proof = _proof(token.scope, token.id, nonce, masked, under)
    return Sealed(under.id, token.scope, token.id, nonce, masked, proof)


def unseal(sealed: Sealed, under: Token) -> Token | None:
    """Return the token that was sealed under this one; None if it was not."""
    proof = _proof(sealed.scope, sealed.id, sealed.nonce, sealed.masked, under)
    if len(sealed.masked) != SECRET or sealed.scope not in SCOPES[:-1]:
        return None
    if not hmac.compare_digest(proof, sealed.proof):
        return None
    secret = _mask(sealed.masked, sealed.scope, sealed.id, sealed.nonce, under)
    return Token(sealed.scope, sealed.id, secret)


def _mask(secret: bytes, scope: str, id: str, nonce: bytes, under: Token) -> bytes:
    mask = hmac.digest(under.secret, b"rl1-seal-mask" + _named(scope, id, nonce), "sha256")
    return bytes(one ^ other for one, other in zip(secret, mask, strict=True))


def _proof(scope: str, id: str, nonce: bytes, masked: bytes, under: Token) -> bytes:
    told = b"rl1-seal-proof" + _named(scope, id, nonce) + masked
    return hmac.digest(under.secret, told, "sha256")


def _named(scope: str, id: str, nonce: bytes) -> bytes:
    """Return what a token is called, so that no two names and nonces look alike."""
    return b"".join(len(part).to_bytes(4) + part for part in (scope.encode(), id.encode(), nonce))
