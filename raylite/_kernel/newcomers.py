"""Newcomers: peers that have the cluster's token and no certificate yet.

TLS lets them in where it is told to, and they reach few services: what signs a certificate for them. Mere
readers need none.
"""

from raylite._kernel.connection import Connection
from raylite._kernel.handshake import is_tls
from raylite._kernel.network import Network
from raylite._kernel.wire import Wire, WireEvents


class Newcomers(Network):
    """Their links, apart from those of members, and the services that answer on them."""

    async def listen(self, address: str) -> str:
        raise NotImplementedError("its wires are accepted by another network")

    async def dial(self, address: str, events: WireEvents) -> Wire:
        raise ConnectionError("a newcomer is not dialled")


def is_newcomer(connection: Connection) -> bool:
    """Whether a peer was let in by TLS without a certificate."""
    if connection.door is None or not is_tls(connection.door.channel):
        return False
    transport = connection._transport
    secured = None if transport is None else transport.get_extra_info("ssl_object")
    return secured is None or not secured.getpeercert(binary_form=True)
