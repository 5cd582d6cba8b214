"""The tokens that were issued on the head, at the other nodes: kept beside the cluster's own.

All processes of a node find them there, as those that were issued on the head find them on the head. Who
has joined with such a token himself can open what he shares with those who have another (see `pairing`).
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence

from raylite._kernel.network import Network
from raylite._kernel.sealing import Sealed, unseal
from raylite._kernel.service import Service
from raylite._kernel.token import Token, read_issued, read_tokens, write_issued
from raylite._machines.epochs import Epochs
from raylite._protocol import gcs
from raylite._services.raylet.epochs import believe
from raylite._wire.messages import gcs as msg
from raylite.exceptions import AuthenticationError, RayError

logger = logging.getLogger(__name__)

AGAIN = 1.0  # seconds after which a GCS that has ended is asked again
REFUSED = 8.0  # and one that has refused this node


def keep_issued(token_file: str, known: msg.TokenList) -> None:
    """Have beside the tokens in a file what the GCS tells those of who have them, and no other of nodes.

    Raises:
        AuthenticationError: The file cannot be used.
    """
    own, kept = read_tokens(token_file), read_issued(token_file)
    wanted = (*(token for token in kept if token.scope != "node"), *_opened(known.tokens, own))
    if set(wanted) != set(kept):
        write_issued(token_file, wanted)


def _opened(sealed: Sequence[msg.SealedToken], own: Iterable[Token]) -> list[Token]:
    """Return what the newest of this node's tokens opens that opens anything; others open no more."""
    for under in own:
        if opened := [token for each in sealed if (token := _unsealed(each, under)) is not None]:
            return opened
    return []


def _unsealed(each: msg.SealedToken, under: Token) -> Token | None:
    if each.under != under.id:
        return None
    found = Sealed(each.under, each.scope, each.id, each.nonce, each.masked, each.proof)
    return unseal(found, under)


class IssuedService(Service):
    """Keeps a node's file of issued tokens as the GCS says, for as long as the node is.

    Args:
        network: The raylet's.
        gcs_address: Where the GCS is.
        token_file: The node's file of the cluster's token.
        epochs: Which GCS is believed.
    """

    def __init__(self, network: Network, gcs_address: str, token_file: str, epochs: Epochs) -> None:
        self._network, self._gcs_address, self._token_file = network, gcs_address, token_file
        self._epochs = epochs

    async def started(self) -> None:
        self.spawn(self._follow(), "follow the tokens that are issued")

    async def _follow(self) -> None:
        while True:
            pause = AGAIN
            try:
                tokens = gcs.Tokens(self._network.connect(self._gcs_address))
                async for known in tokens.watch(msg.WatchTokens()):
                    believe(self._epochs, known.epoch)
                    keep_issued(self._token_file, known)
            except AuthenticationError as error:
                pause = REFUSED
                logger.info("the tokens that are issued are not known: %s", error)
            except RayError as error:
                logger.info("the GCS cannot be asked for tokens: %s", error)
            except OSError as error:  # a full disk
                pause = REFUSED
                logger.warning(
                    "this node cannot keep which tokens are valid, and goes on with those that were; it "
                    "tries again each %g s: %s", pause, error,
                )  # fmt: skip
            await asyncio.sleep(pause)
