"""Certificates of a user's own CA, instead of those of the cluster's.

They are three files, by Ray's names: a node's certificate, its key, and the CA that has signed for every
node. Whether they are of any use is tried before anything starts: a node has to believe itself.
"""

import os
import ssl

from msgspec import Struct

from raylite._kernel.secretfile import read_secret
from raylite._kernel.tls import Tls, load_tls, rehearse
from raylite.exceptions import CertificateError

OPTIONS = {
    "certificate": "--tls-server-cert",
    "key": "--tls-server-key",
    "authority": "--tls-ca-cert",
}


class Given(Struct, frozen=True):
    """The paths of three files in PEM: a certificate, its key, and the CA's certificate."""

    certificate: str
    key: str
    authority: str


class Texts(Struct, frozen=True):
    """What is in them."""

    certificate: str
    key: str
    authority: str

    def __repr__(self) -> str:
        return "Texts(...)"  # the key is a secret


def given(certificate: str, key: str, authority: str) -> Given | None:
    """Return the files that were named, None if none was.

    Raises:
        ValueError: One or two of them were.
    """
    named = {"certificate": certificate, "key": key, "authority": authority}
    if missing := [OPTIONS[name] for name, path in named.items() if not path]:
        if len(missing) == len(named):
            return None
        raise ValueError(
            f"{', '.join(OPTIONS.values())} belong together: name {' and '.join(missing)} as well"
        )
    return Given(certificate, os.path.realpath(key), authority)  # a link, where secrets are mounted


def load_given(files: Given) -> Tls:
    """Return TLS with these files, for a process that dials and is not dialled.

    Raises:
        AuthenticationError: They cannot be used.
    """
    return _load(files)[1]


def read_given(files: Given, ip: str) -> Texts:
    """Return what is in these files, for a node that is reached at an IP address.

    Raises:
        AuthenticationError: They cannot be used, or others could have read the key.
        CertificateError: Other nodes would not believe that node.
    """
    texts, tls = _load(files)
    try:
        rehearse(tls, ip)
    except ssl.SSLError as error:
        why = getattr(error, "verify_message", "") or error.reason or str(error)
        raise CertificateError(
            f"other nodes would not believe a node at {ip} with {files.certificate} ({why}): name a "
            f"certificate that is valid now, of a CA in {files.authority}, for servers and clients, and "
            f"for the IP address {ip}"
        ) from error
    return texts


def _load(files: Given) -> tuple[Texts, Tls]:
    texts = Texts(
        _read(OPTIONS["certificate"], files.certificate),
        read_secret(files.key).decode(errors="replace"),
        _read(OPTIONS["authority"], files.authority),
    )
    try:
        return texts, load_tls(files.certificate, files.key, files.authority)
    except CertificateError as error:
        if isinstance(cause := error.__cause__, ssl.SSLError) and "MISMATCH" in str(cause):
            raise CertificateError(
                f"the key in {files.key} is not that of the certificate in {files.certificate}: name "
                "the two that belong together"
            ) from error
        raise


def _read(option: str, path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as opened:
            return opened.read()
    except OSError as error:
        raise CertificateError(
            f"{option}={path} cannot be read ({error.strerror or error}): name a file in PEM"
        ) from error
