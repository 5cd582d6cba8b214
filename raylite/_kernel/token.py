"""The cluster's token: 256 random bits, which make a process a member of the cluster.

Its text is ``rl1.<scope>.<id>.<secret>.<crc>``, so that scanners and redaction can find it. It never
travels: the `handshake` proves that both sides know it.
"""

import base64
import binascii
import os
import re
import secrets
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from raylite._kernel.interface import SCOPES
from raylite._kernel.secretfile import read_secret, write_secret
from raylite.exceptions import AuthenticationError

SECRET = 32  # bytes
MOST = 2  # tokens of the cluster that are valid at one time
MOST_LESSER = 16  # and tokens of a lesser scope

_TEXT = re.compile(r"rl1\.([a-z]+)\.([0-9a-f]{8})\.([A-Za-z0-9_-]{43})\.([0-9a-f]{8})")


@dataclass(frozen=True, slots=True)
class Token:
    """A secret with a name that may be told. Neither `repr` nor `str` shows the secret."""

    scope: str
    id: str
    secret: bytes = field(repr=False)

    @property
    def is_lesser(self) -> bool:
        """Whether it allows less than the cluster's own token."""
        return self.scope != SCOPES[-1]

    def reveal(self) -> str:
        """Return the text, secret and all: for a file or an inherited descriptor, never a log."""
        secret = base64.urlsafe_b64encode(self.secret).decode().rstrip("=")
        return _with_crc(f"rl1.{self.scope}.{self.id}.{secret}")


def new_token(scope: str = "admin") -> Token:
    """Return a token that nobody else has."""
    if scope not in SCOPES:
        raise ValueError(f"{scope!r} is no scope of a token: choose one of {', '.join(SCOPES)}")
    return Token(scope, secrets.token_hex(4), secrets.token_bytes(SECRET))


def parse_token(text: str) -> Token:
    """Return the token with this text.

    Raises:
        AuthenticationError: It is none. The message does not repeat it.
    """
    text = text.strip()
    match = _TEXT.fullmatch(text)
    if match is None or match[1] not in SCOPES:
        raise AuthenticationError(
            "this is no token of raylite's: copy all of it, from rl1. to the last character"
        )
    if _with_crc(text.rpartition(".")[0]) != text:
        raise AuthenticationError("the token is damaged: copy all of it once more")
    try:
        secret = base64.b64decode(match[3] + "=", b"-_", validate=True)
    except binascii.Error as error:
        raise AuthenticationError("the token is damaged: copy all of it once more") from error
    return Token(match[1], match[2], secret)


def create_token(path: str, scope: str = "admin") -> Token:
    """Make a token and keep it in a new file, as `write_secret` does."""
    token = new_token(scope)
    write_secret(path, token.reveal().encode() + b"\n")
    return token


def read_token(path: str) -> Token:
    """Return the token in a file, the newest if there are two; see `read_tokens`."""
    return read_tokens(path)[0]


def read_tokens(path: str) -> tuple[Token, ...]:
    """Return the tokens in a file, if only this user could have written it.

    Those of the cluster come first, the newest before the other, and then those of lesser scopes.

    Raises:
        AuthenticationError: There is none, or too many, or others could have used the file.
    """
    try:
        lines = read_secret(path).decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise AuthenticationError(
            f"{path} holds no token: name the file that the cluster's head has made"
        ) from error
    while len(lines) > 1 and not lines[-1].strip():
        lines.pop()
    if len(lines) > MOST + MOST_LESSER:
        raise AuthenticationError(f"{path} holds {len(lines)} tokens, which is too many")
    try:
        tokens = [parse_token(line) for line in lines]
    except AuthenticationError as error:
        raise AuthenticationError(f"{path} cannot be read: {error}") from error
    tokens.sort(key=lambda token: token.is_lesser)  # a stable sort
    if (count := len(tokens) - sum(token.is_lesser for token in tokens)) > MOST:
        raise AuthenticationError(f"{path} holds {count} tokens, and {MOST} is the most")
    return tuple(tokens)


def read_issued(path: str) -> tuple[Token, ...]:
    """Return the tokens of lesser scopes that were issued beside those in a file; see `write_issued`.

    Raises:
        AuthenticationError: They cannot be used.
    """
    beside = issued_beside(path)
    if not os.path.lexists(beside):
        return ()
    return tuple(token for token in read_tokens(beside) if token.is_lesser)


def write_issued(path: str, tokens: Sequence[Token]) -> None:
    """Keep the tokens that were issued beside those in a file, in one step.

    In a file of their own: a copy of the cluster's token, for another machine, is to hold no other.
    """
    if tokens:
        write_tokens(issued_beside(path), tokens)
        return
    with suppress(FileNotFoundError):
        os.unlink(issued_beside(path))


def issued_beside(path: str) -> str:
    """Return where the tokens are that were issued beside those in a file; it need not exist."""
    return f"{path}.issued"


def write_tokens(path: str, tokens: Sequence[Token]) -> None:
    """Keep these tokens in a file, in one step in the place of those that are there."""
    new = f"{path}.new"
    with suppress(FileNotFoundError):  # of somebody who was killed
        os.unlink(new)
    write_secret(new, "".join(f"{token.reveal()}\n" for token in tokens).encode())
    os.replace(new, path)


def _with_crc(text: str) -> str:
    return f"{text}.{zlib.crc32(text.encode()):08x}"
