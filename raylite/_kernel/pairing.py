"""Pairing: the token of two members that have joined with different tokens of the scope `node`.

It follows from both secrets, so only who has both, the head, can make it. The head tells it to either side
under the token that it has. Nobody else has it: when one of the two is revoked it goes with it, and what
others share goes on; and it need not be kept, for it is the same whenever it is made.
"""

import hmac

from raylite._kernel.token import Token

SCOPE = "node"  # of both, and of what they share


def pair(one: Token, other: Token) -> Token:
    """Return what those who have one of two tokens of nodes share with those who have the other."""
    first, second = sorted((one, other), key=lambda token: (token.id, token.secret))
    half = hmac.digest(second.secret, b"rl1-pair-half" + first.id.encode(), "sha256")
    secret = hmac.digest(first.secret, b"rl1-pair" + half, "sha256")
    # The id is told to everybody who asks, so it says nothing about the secret, nor the reverse.
    name = hmac.digest(secret, b"rl1-pair-id", "sha256")[:4].hex()
    return Token(SCOPE, name, secret)
