"""The Token service: what was issued on the head is known to every node that has the cluster's own token.

And two nodes that have joined with different tokens, of those that were issued, know what they share.
"""

from collections.abc import AsyncIterator, Iterator
from itertools import combinations

from raylite._kernel.keyring import Keyring
from raylite._kernel.pairing import pair
from raylite._kernel.sealing import Sealed, seal
from raylite._kernel.service import Service, every, handles
from raylite._kernel.token import Token
from raylite._kernel.topic import Topic
from raylite._protocol import gcs
from raylite._services.gcs.epoch import Epoch
from raylite._wire.messages import gcs as msg

LOOK = 1.0  # seconds in which it is noticed that a token was issued or revoked


class TokenService(Service, serves=(gcs.Tokens,)):
    """Tells of the tokens of nodes that a keyring has, sealed under the cluster's own, and of those of pairs.

    Tokens of readers it keeps to itself: those ask nobody but the GCS.

    Args:
        keyring: The head's.
        epoch: Which GCS it is that tells: one that was replaced still knows what was revoked.
    """

    def __init__(self, keyring: Keyring, epoch: Epoch) -> None:
        self._keyring = keyring
        self._epoch = epoch
        self._tokens: tuple[Token, ...] | None = None  # those that `_list` tells of
        self._list = msg.TokenList()
        self._lists: Topic[msg.TokenList] = Topic()

    async def started(self) -> None:
        await self._epoch.begin()
        self.look()

    @every(seconds=LOOK)
    def look(self) -> None:
        tokens = tuple(self._keyring.tokens)
        if tokens != self._tokens:
            self._tokens = tokens
            self._list = self._sealed(tokens)
            self._lists.publish(self._list)

    @handles(gcs.Tokens.watch)
    async def watch(self, request: msg.WatchTokens) -> AsyncIterator[msg.TokenList]:
        self.look()
        with self._lists.subscribe([self._list]) as lists:
            async for each in lists:
                yield each

    def _sealed(self, tokens: tuple[Token, ...]) -> msg.TokenList:
        sealed = [
            msg.SealedToken(each.under, each.scope, each.id, each.nonce, each.masked, each.proof)
            for each in _told(tokens)
        ]
        return msg.TokenList(sealed, self._epoch.message)


def _told(tokens: tuple[Token, ...]) -> Iterator[Sealed]:
    """Seal each token of nodes for who has the cluster's own, and what a pair of them shares for either."""
    own = [token for token in tokens if not token.is_lesser]
    nodes = [token for token in tokens if token.scope == "node"]
    for token in nodes:
        for under in own:
            yield seal(token, under)
    for one, other in combinations(nodes, 2):
        shared = pair(one, other)
        yield seal(shared, one)
        yield seal(shared, other)
