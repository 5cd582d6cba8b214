"""The handshake: two ends of a wire prove that they know one token, before either is heard.

Of two tokens, while one takes the other's place, it is the newest that both ends know: the server
says which it knows, by their ids.

The server sends a nonce; the client answers with its own and the HMAC-SHA256, under the token, of
``"rl1" || "client" || server's nonce || client's nonce || channel``; the server answers with that of
``"server"``. Both nonces are new, so nothing can be replayed; the roles differ, so nothing can be
reflected; the channel is the same at both ends only if nobody stands between them (see `Channel`).
"""

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Callable

import msgspec

from raylite._kernel.keyring import Keyring
from raylite._kernel.opening import aside, decoded, only_frame, read_refused, refuse
from raylite._kernel.packet import Kind
from raylite._kernel.token import Token
from raylite._kernel.wire import Wire, WireEvents
from raylite._types.address import TcpAddress, plain_ip
from raylite.exceptions import AuthenticationError, LinkError, ProtocolError

METADATA = "raylite-auth"  # in a request: whoever sends it expects a challenge
SCHEME = "rl1"
NONCE = 32  # bytes

REMEDY = (
    "copy the file `token` from the session's directory of its head, and name it with --token-file or "
    "RAYLITE_TOKEN_FILE"
)
#: What is said to who would make no proof and one is asked for, and the reverse.
MISMATCH = {
    True: f"it asks for the cluster's token, and this process has none: {REMEDY}",
    False: "it has no token, and this process expects it to prove that it has the same one",
}

Channel = bytes
"""What both ends see of one connection: a path that was dialled, two ends' view of the server's
address, or the certificate of the TLS server. A peer in between shows either end another one."""


class Challenge(msgspec.Struct, array_like=True, frozen=True):
    """What the server asks, and the ids of the tokens that it knows."""

    nonce: bytes
    ids: tuple[str, ...] = ()


class Proof(msgspec.Struct, array_like=True, frozen=True):
    """What either side answers. The server sends its own nonce once more."""

    nonce: bytes
    proof: bytes


_read_challenge = msgspec.msgpack.Decoder(Challenge).decode
_read_proof = msgspec.msgpack.Decoder(Proof).decode


def path_channel(path: str) -> Channel:
    """Return the channel of a unix socket."""
    return b"unix " + path.encode()


def tcp_channel(host: str, port: int) -> Channel:
    """Return the channel of plain TCP, by the server's address as either end of it sees it."""
    return b"tcp " + str(TcpAddress(plain_ip(host), port)).encode()


def tls_channel(certificate: bytes) -> Channel:
    """Return the channel of TLS, by the server's certificate."""
    return b"tls " + hashlib.sha256(certificate).digest()


def is_tls(channel: Channel) -> bool:
    """Whether a channel is one of TLS."""
    return channel.startswith(b"tls ")


def prove(token: Token, role: str, server: bytes, client: bytes, channel: Channel) -> bytes:
    """Return what only somebody who knows the token can say about two nonces and a channel."""
    told = SCHEME.encode() + role.encode() + server + client + channel
    return hmac.digest(token.secret, told, "sha256")


class Asking:
    """Hears an accepted wire until its peer has proven itself, and then never again.

    `passed` is given the token that the peer knows, and gives the wire its next listener at once. `failed` is called when the peer was told
    no, which also closes the wire.
    """

    def __init__(
        self,
        wire: Wire,
        keyring: Keyring,
        channel: Channel,
        passed: Callable[[Token], None],
        failed: Callable[[str], None],
    ) -> None:
        self._wire, self._tokens, self._channel = wire, keyring.tokens, channel
        self._passed, self._failed = passed, failed
        self._nonce = secrets.token_bytes(NONCE)

    def begin(self) -> None:
        """Ask."""
        ids = tuple(token.id for token in self._tokens)
        self._wire.send(aside(Kind.CHALLENGE, Challenge(self._nonce, ids)))

    def packet(self, data: bytes | memoryview) -> None:
        try:
            frame = only_frame(data)
            if frame.kind is not Kind.PROOF:
                raise ProtocolError(f"a {frame.kind.name} frame instead of a proof")
            answer = decoded(_read_proof, frame.body)
            if len(answer.nonce) != NONCE:
                raise ProtocolError(f"a nonce of {len(answer.nonce)} bytes")
        except ProtocolError as error:
            self.malformed(error)
            return
        nonces = self._nonce, answer.nonce
        for token in self._tokens:
            expected = prove(token, "client", *nonces, self._channel)
            if hmac.compare_digest(expected, answer.proof):
                mine = prove(token, "server", *nonces, self._channel)
                self._wire.send(aside(Kind.PROOF, Proof(self._nonce, mine)))
                self._passed(token)
                return
        self._refuse(
            "wrong proof",
            f"it has another token, or sees this process at another address than its own: {REMEDY}",
        )

    def malformed(self, error: LinkError) -> None:
        self._refuse("no proof", f"it said something else than a proof: {error}")

    def arriving(self) -> None: ...
    def broken(self, reason: str) -> None: ...
    def writable(self) -> None: ...

    def _refuse(self, kind: str, reason: str) -> None:
        refuse(self._wire, reason)
        self._failed(kind)


class Answering:
    """Hears a dialled wire until both sides have proven themselves; then `events` does.

    `done` fails with an `OSError` if the wire broke, with a `LinkError` if the answer was no.
    """

    def __init__(
        self, wire: Wire, keyring: Keyring, channel: Channel, events: WireEvents, peer: str
    ) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wire, self._keyring, self._channel = wire, keyring, channel
        self._token = keyring.shared(())
        self._events, self._peer = events, peer
        self._nonce = secrets.token_bytes(NONCE)
        self._theirs = b""

    @property
    def token(self) -> Token:
        """What this end has proven that it knows."""
        return self._token

    def packet(self, data: bytes | memoryview) -> None:
        try:
            frame = only_frame(data)
            if frame.kind is Kind.CHALLENGE and not self._theirs:
                self._answer(decoded(_read_challenge, frame.body))
            elif frame.kind is Kind.PROOF and self._theirs:
                self._verify(decoded(_read_proof, frame.body))
            elif frame.kind is Kind.REFUSED:
                refused = decoded(read_refused, frame.body)
                raise AuthenticationError(f"{self._peer} refuses this process: {refused.reason}")
            else:
                raise ProtocolError(f"a {frame.kind.name} frame before the handshake was over")
        except LinkError as error:
            self.malformed(error)

    def malformed(self, error: LinkError) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def broken(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError(reason))

    def arriving(self) -> None: ...
    def writable(self) -> None: ...

    def _answer(self, challenge: Challenge) -> None:
        if len(challenge.nonce) != NONCE:
            raise ProtocolError(f"a nonce of {len(challenge.nonce)} bytes")
        self._theirs = challenge.nonce
        self._token = self._keyring.shared(challenge.ids)
        mine = prove(self._token, "client", self._theirs, self._nonce, self._channel)
        self._wire.send(aside(Kind.PROOF, Proof(self._nonce, mine)))

    def _verify(self, answer: Proof) -> None:
        expected = prove(self._token, "server", self._theirs, self._nonce, self._channel)
        if not hmac.compare_digest(expected, answer.proof):
            raise AuthenticationError(
                f"{self._peer} did not prove that it knows the token: {REMEDY}"
            )
        if not self.done.done():
            self._wire.events = self._events
            self.done.set_result(None)
