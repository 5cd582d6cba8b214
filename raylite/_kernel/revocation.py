"""Revocation: what was opened by a token that is valid no more is cut, and in time."""

import asyncio
from collections.abc import Iterable

from raylite._kernel.connection import Connection
from raylite._kernel.grpcwire import GrpcWire
from raylite._kernel.keyring import Keyring


def cut_revoked(connections: Iterable[Connection], keyring: Keyring) -> None:
    """Break what was opened by other tokens than a keyring's; who knows one of these dials again."""
    valid = {token.id for token in keyring.tokens}
    for connection in list(connections):
        wire = connection.wire
        if isinstance(wire, GrpcWire) and wire.token and wire.token not in valid:
            wire.abort("its token has been revoked")


async def look_again(keyring: Keyring, seconds: float) -> None:
    """See every so often whether the tokens are others now, though no stream opens."""
    while True:
        await asyncio.sleep(seconds)
        _ = keyring.tokens  # it looks, and tells of a change
