"""The keyring: the tokens by which this process knows members, two while one takes another's place."""

import os
from collections.abc import Callable, Sequence

from raylite._kernel.token import Token, issued_beside, read_issued, read_tokens
from raylite.exceptions import AuthenticationError

_Seen = tuple[tuple[int, int] | None, tuple[int, int] | None]


class Keyring:
    """The tokens that are valid now, the newest first.

    Those of a file, and those that were issued beside it, are read anew when one has changed, which
    is looked at whenever a stream opens: whoever replaces a file need tell nobody. If the cluster's
    is gone, or one is spoilt, the last good ones count.
    """

    def __init__(self, *tokens: Token, path: str = "") -> None:
        self._tokens, self._path = tokens, path
        self._seen: _Seen = (None, None)
        self.on_change: Callable[[], object] = tuple  # the tokens are others now

    @classmethod
    def open(cls, path: str) -> "Keyring":
        """Return the tokens in a file, which only this user can have written.

        Raises:
            AuthenticationError: They cannot be used.
        """
        keyring = cls(path=path)
        keyring._seen = _state(path)
        keyring._tokens = (*read_tokens(path), *read_issued(path))
        return keyring

    @property
    def tokens(self) -> Sequence[Token]:
        """What proves membership."""
        if self._path and (state := _state(self._path)) != self._seen:
            self._seen = state
            try:
                self._tokens = (*read_tokens(self._path), *read_issued(self._path))
            except AuthenticationError:
                pass
            else:
                self.on_change()
        return self._tokens

    @property
    def is_kept(self) -> bool:
        """Whether the tokens are in a file, and so may become others."""
        return bool(self._path)

    def shared(self, ids: Sequence[str]) -> Token:
        """Return the newest token that a peer with these has too; the newest, if there is none."""
        tokens = self.tokens
        return next((token for token in tokens if token.id in ids), tokens[0])


def _state(path: str) -> _Seen:
    return _state_of(path), _state_of(issued_beside(path))


def _state_of(path: str) -> tuple[int, int] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns
