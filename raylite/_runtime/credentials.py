"""A node's credentials: the files of the TLS that it speaks with other nodes.

A head makes its cluster's CA and a certificate of its own. Who joins makes a key, and asks the head
to sign for it. Or every node was given those of a CA of its user's (`given`). They lie in a directory of the session and end with the node.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from raylite._kernel.secretfile import read_secret, write_secret
from raylite._kernel.tls import Tls, fingerprint, load_tls
from raylite._runtime.given import Given, read_given

CERTIFICATE, KEY = "node.pem", "node.key"
AUTHORITY, AUTHORITY_KEY = "ca.pem", "ca.key"
GIVEN = "given"  # an empty file beside those that a user has named


def create(folder: str, ip: str) -> None:
    """Make a cluster's CA, and the credentials of its head.

    Raises:
        RuntimeError: What makes certificates is not installed.
    """
    authority = _maker().new_authority()
    authority.save(_in(folder, AUTHORITY), _in(folder, AUTHORITY_KEY))
    authority.issue([ip]).save(_in(folder, CERTIFICATE), _in(folder, KEY))


def request(ip: str) -> tuple[str, str]:
    """Return the request for a certificate of a node at an IP address, and the key for `keep`.

    Raises:
        RuntimeError: What makes certificates is not installed.
    """
    made: tuple[str, str] = _maker().new_request([ip])
    return made


def sign(folder: str, request: str) -> str:
    """Return the certificate that was asked for, signed with the key of a head's CA.

    Raises:
        AuthenticationError: It is no request to be signed.
    """
    authority = _maker().load_authority(_in(folder, AUTHORITY), _in(folder, AUTHORITY_KEY))
    signed: str = authority.sign(request)
    return signed


def keep(folder: str, authority: str, certificate: str, key: str) -> None:
    """Write the credentials of a node that has joined."""
    for name, text in ((AUTHORITY, authority), (CERTIFICATE, certificate), (KEY, key)):
        write_secret(_in(folder, name), text.encode())


def take(folder: str, files: Given, ip: str) -> None:
    """Keep a copy of what a user has named, as the credentials of a node at an IP address.

    Raises:
        AuthenticationError: They cannot be used, see `read_given`.
    """
    texts = read_given(files, ip)
    keep(folder, texts.authority, texts.certificate, texts.key)
    write_secret(_in(folder, GIVEN), b"")


def taken(folder: str) -> Given | None:
    """Return a node's credentials if a user has named them, for another node on its machine."""
    if not folder or not Path(folder, GIVEN).exists():
        return None
    return Given(*(_in(folder, name) for name in (CERTIFICATE, KEY, AUTHORITY)))


def can_sign(folder: str) -> bool:
    """Whether these are the credentials of a head that has made its cluster's CA."""
    return bool(folder) and Path(folder, AUTHORITY_KEY).exists()


def load(folder: str, *, newcomers: bool = False) -> Tls | None:
    """Return how a node with these credentials speaks TLS; None if it has none.

    Raises:
        AuthenticationError: They cannot be used.
    """
    if not folder:
        return None
    files = (_in(folder, name) for name in (CERTIFICATE, KEY, AUTHORITY))
    return load_tls(*files, newcomers=newcomers and can_sign(folder))


def authority(folder: str) -> str:
    """Return the certificate of the cluster's CA, in PEM."""
    return read_secret(_in(folder, AUTHORITY)).decode("ascii")


def pin(folder: str) -> str:
    """Return the fingerprint of the cluster's CA, for join commands."""
    return fingerprint(authority(folder))


def _in(folder: str, name: str) -> str:
    return str(Path(folder, name))


def _maker() -> Any:
    """Return the module that makes certificates: the only one that needs `cryptography`."""
    try:
        return import_module("raylite._kernel.certificates")
    except ImportError as missing:
        raise RuntimeError(
            f"{missing}. Without it, say --insecure-plaintext on a network that you trust"
        ) from missing
