"""TLS between nodes: version 1.3 only, and both sides show a certificate of the cluster's own CA.

What makes certificates is in `certificates`; this module needs Python's `ssl` only.
"""

import asyncio
import hashlib
import hmac
import re
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from raylite._kernel.secretfile import read_secret
from raylite._kernel.wire import CLOSING
from raylite._types.address import TcpAddress
from raylite.exceptions import CertificateError

P = TypeVar("P", bound=asyncio.BaseProtocol)

FIRST_CONTACT = 5.0  # seconds
_PIN = re.compile(r"sha256:[0-9a-f]{64}")
_BROKE_OFF = (ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
HANDSHAKE = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Tls:
    """How this process speaks TLS, as a server and as a client.

    `certificate` is its own, in DER: what the handshake binds a server's proof to.
    """

    server: ssl.SSLContext = field(repr=False)
    client: ssl.SSLContext = field(repr=False)
    certificate: bytes = field(repr=False)


class Openings:
    """The TLS connections that a process is opening."""

    def __init__(self) -> None:
        self._under_way: set[asyncio.Task[Any]] = set()

    async def open(
        self, context: ssl.SSLContext, place: TcpAddress, protocol: Callable[[], P]
    ) -> tuple[asyncio.Transport, P]:
        """Do what `create_connection` of an event loop does; cancelling it only ends the waiting.

        Were uvloop's cancelled in the moment in which its handshake fails, it would leave a future behind
        with that error, and the loop would say so on the program's output.

        Raises:
            CertificateError: What answers has no certificate that the context trusts.
            ConnectionError: It ended the connection while it was opened.
            OSError: It cannot be reached.
        """
        loop = asyncio.get_running_loop()
        opening = loop.create_task(
            loop.create_connection(
                protocol,
                place.host,
                place.port,
                ssl=context,
                server_hostname=place.host,
                ssl_handshake_timeout=HANDSHAKE,
                ssl_shutdown_timeout=CLOSING,
            )
        )
        self._under_way.add(opening)
        opening.add_done_callback(self._under_way.discard)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_abort)
            loop.call_later(HANDSHAKE, opening.cancel)  # no handshake has begun by then
            raise
        except _BROKE_OFF as error:
            raise ConnectionError(
                f"the TLS handshake broke off ({str(error) or 'reset'}): it has ended, speaks no TLS, "
                "refuses too many connections, or does not accept this process's certificate"
            ) from error
        except ssl.SSLError as error:
            why = getattr(error, "verify_message", "") or error.reason or str(error)
            raise CertificateError(
                f"{place} shows no TLS 1.3 certificate of this cluster to trust: {why}"
            ) from error

    async def close(self) -> None:
        """Break off what nobody waits for any more."""
        for opening in self._under_way:
            opening.cancel()
        if self._under_way:
            await asyncio.wait(self._under_way)


def _abort(opening: "asyncio.Future[tuple[asyncio.Transport, P]]") -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result()[0].abort()


def load_tls(certificate: str, key: str, authority: str, *, newcomers: bool = False) -> Tls:
    """Return TLS with a node's files, in PEM: its certificate, its key, and the CA's certificate.

    With `newcomers`, clients without a certificate are spoken to as well; see `GrpcNetwork.greet`.

    Raises:
        CertificateError: The key is not kept secret, or the files do not belong together.
    """
    read_secret(key)
    try:
        with open(certificate, encoding="utf-8", errors="replace") as opened:
            der = ssl.PEM_cert_to_DER_cert(_first(opened.read()))
        contexts = [
            ssl.SSLContext(side) for side in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)
        ]
        for context in contexts:
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(authority)
            context.load_cert_chain(certificate, key, _no_passphrase)
            context.set_alpn_protocols(["h2"])
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise CertificateError(
            f"TLS cannot use {certificate}, {key} and {authority} ({error}): "
            "name a node's certificate, its key, and the certificate of the CA that issued it"
        ) from error
    server, client = contexts
    server.num_tickets = 0  # sessions are never resumed: a link's connection lives long
    if newcomers:
        server.verify_mode = ssl.CERT_OPTIONAL
    client.check_hostname = True
    return Tls(server, client, der)


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase, which nobody is there to type")


def rehearse(tls: Tls, host: str) -> None:
    """Have both sides of TLS speak to each other, as nodes will that are reached at an address.

    Raises:
        ssl.SSLError: One would not believe the other.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        tls.client.wrap_bio(to_client, to_server, server_hostname=host),
        tls.server.wrap_bio(to_server, to_client, server_side=True),
    ]
    while sides:
        try:
            sides[0].do_handshake()
            sides.pop(0)
        except ssl.SSLWantReadError:
            sides.reverse()


def newcomer_tls(authority: str) -> Tls:
    """Return TLS of a process that knows the CA's certificate, in PEM, and has none of its own yet.

    It can dial, where `newcomers` are spoken to; nobody can dial it.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.minimum_version = ssl.TLSVersion.TLSv1_3
    client.load_verify_locations(cadata=authority)
    client.set_alpn_protocols(["h2"])
    return Tls(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), client, b"")


def fingerprint(certificate: str) -> str:
    """Return the fingerprint of a certificate in PEM, as a join string carries it."""
    return _fingerprint(ssl.PEM_cert_to_DER_cert(_first(certificate)))


@dataclass(frozen=True, slots=True)
class FirstContact:
    """A cluster's CA certificate, in PEM, and the IP address of the node that has shown it."""

    authority: str
    ip: str


def fetch_authority(host: str, port: int, pin: str) -> FirstContact:
    """Return the certificate of a cluster's CA as a node of it shows; blocks.

    For the first contact, when all that is known is the fingerprint: what has another is refused.
    It says nothing yet about who answers, which every later connection verifies with this.

    Raises:
        ValueError: This is no fingerprint.
        CertificateError: Nothing with this fingerprint is shown there.
        OSError: Nobody can be reached there.
    """
    if not _PIN.fullmatch(pin):
        raise ValueError(
            f"{pin!r} is no fingerprint: copy it from the join command of the cluster's head, "
            "from sha256: to the last of its 64 digits"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, port), FIRST_CONTACT) as sock:
        try:
            with context.wrap_socket(sock) as secured:
                chain = _unverified_chain(secured)
                ip: str = secured.getpeername()[0]
        except (ssl.SSLError, ConnectionResetError) as error:
            why = getattr(error, "reason", None) or "it closed the connection"
            raise CertificateError(
                f"{host}:{port} does not speak TLS 1.3 ({why}): name the head of a cluster that "
                "encrypts, which prints a fingerprint when it starts"
            ) from error
    for der in chain:
        if hmac.compare_digest(_fingerprint(der).encode(), pin.encode()):
            return FirstContact(ssl.DER_cert_to_PEM_cert(der), ip)
    raise CertificateError(
        f"{host}:{port} shows no certificate with the fingerprint {pin}: "
        "it is of another cluster, or somebody stands between, so get the join string once more"
    )


def _unverified_chain(secured: ssl.SSLSocket) -> list[bytes]:
    """Return what the server has shown. (Python 3.13 has a public method; the older, a private.)"""
    show = getattr(secured, "get_unverified_chain", None) or secured._sslobj.get_unverified_chain  # type: ignore[attr-defined]
    shown = show() or []
    return [
        c if isinstance(c, bytes) else ssl.PEM_cert_to_DER_cert(c.public_bytes()) for c in shown
    ]


def _first(pem: str) -> str:
    """Return the first certificate of a file that may hold a chain, and text besides."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    return begin + pem.partition(begin)[2].partition(end)[0] + end + "\n"


def _fingerprint(der: bytes) -> str:
    return f"sha256:{hashlib.sha256(der).hexdigest()}"
