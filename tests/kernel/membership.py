"""What makes test processes members of a cluster: its token, and TLS credentials from its CA."""

import functools
import ssl
import tempfile
from collections.abc import Iterable
from pathlib import Path

from raylite._kernel.certificates import LIFETIME, Authority, Credentials, new_authority
from raylite._kernel.tls import Tls, load_tls
from raylite._kernel.token import Token, new_token

LOOPBACK = ("127.0.0.1", "::1")


@functools.cache
def cluster_token() -> Token:
    return new_token()


@functools.cache
def cluster_authority() -> Authority:
    return new_authority()


@functools.cache
def cluster_tls() -> Tls:
    return tls_from(cluster_authority())


def tls_from(
    authority: Authority,
    hosts: Iterable[str] = LOOPBACK,
    *,
    trusted: Authority | None = None,
    lifetime: float = LIFETIME,
    newcomers: bool = False,
) -> Tls:
    """TLS of a node that an authority has issued credentials to, and that trusts one."""
    issued = authority.issue(hosts, lifetime=lifetime)
    trust = (trusted or authority).certificate
    return tls_from_files(issued.certificate, issued.key, trust, newcomers=newcomers)


def tls_from_files(
    certificate: str, key: str, trusted: str = "", *, newcomers: bool = False
) -> Tls:
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / name) for name in ("node.pem", "node.key", "ca.pem")]
        Credentials(certificate, key).save(*paths[:2])
        Path(paths[2]).write_text(trusted or cluster_authority().certificate)
        return load_tls(*paths, newcomers=newcomers)


def old_client(tls: Tls) -> Tls:
    """The same, but as a client that knows TLS 1.2 only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=cluster_authority().certificate)
    return Tls(tls.server, context, tls.certificate)
