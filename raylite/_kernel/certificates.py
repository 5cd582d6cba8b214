"""Certificates: a cluster's own CA, and what it issues to nodes.

The one module that needs `cryptography`; whoever only speaks TLS does not import it.
"""

import datetime
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from raylite._kernel.seams import wall
from raylite._kernel.secretfile import read_secret, write_secret
from raylite._kernel.tls import fingerprint
from raylite._types.address import is_ip, plain_ip
from raylite.exceptions import CertificateError

try:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as missing:
    raise ImportError(
        "TLS certificates need the package cryptography: run pip install 'raylite[tls]'"
    ) from missing

DAY = 86400.0  # seconds
LIFETIME = 3650 * DAY  # the end of a certificate is that of its cluster, and of the CA's key
SKEW = 300.0  # seconds that another node's clock may be behind
MOST_HOSTS = 16  # in one certificate

_UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A node's certificate, with that of the CA behind it, and its key; both in PEM."""

    certificate: str
    key: str = field(repr=False)

    def save(self, certificate: str, key: str) -> None:
        """Write both files, so that only this user can read them."""
        write_secret(key, self.key.encode())
        write_secret(certificate, self.certificate.encode())


class Authority:
    """A cluster's CA. `certificate` is what every node has to know of it, in PEM."""

    def __init__(self, certificate: str, key: Ed25519PrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @property
    def fingerprint(self) -> str:
        """What a join string carries, so that the first contact knows the cluster."""
        return fingerprint(self.certificate)

    def issue(self, hosts: Iterable[str], *, lifetime: float = LIFETIME) -> Credentials:
        """Return credentials for a node that is reached at these IP addresses and names.

        They hold for both sides of a connection. A lifetime that is over makes a certificate
        that has expired.
        """
        key = Ed25519PrivateKey.generate()
        certificate = self._issue(key.public_key(), _names(hosts), lifetime)
        return Credentials(certificate, _key_pem(key))

    def sign(self, request: str) -> str:
        """Return the certificate that a node has asked for, with that of the CA behind it.

        Whom to sign for, the caller has decided. The node is believed what its IP addresses are:
        one member of a cluster is not defended against another.

        Args:
            request: As `new_request` makes it.

        Raises:
            CertificateError: It is no such request, or not made by who has its key.
        """
        try:
            asked = x509.load_pem_x509_csr(request.encode())
            key = asked.public_key()
            names = asked.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except _UNREADABLE as error:
            raise CertificateError(f"this is no request for a certificate: {error}") from error
        are_addresses = all(isinstance(name, x509.IPAddress) for name in names)
        if not isinstance(key, Ed25519PublicKey) or not asked.is_signature_valid:
            raise CertificateError("a certificate is asked for with an ed25519 key of one's own")
        if not 0 < len(list(names)) <= MOST_HOSTS or not are_addresses:
            raise CertificateError(f"a certificate is for 1 to {MOST_HOSTS} IP addresses")
        return self._issue(key, list(names), LIFETIME)

    def _issue(self, key: Ed25519PublicKey, names: list[x509.GeneralName], lifetime: float) -> str:
        mine = x509.load_pem_x509_certificate(self.certificate.encode())
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        issued = (
            _valid(lifetime)
            .subject_name(_name("raylite node"))
            .issuer_name(mine.subject)
            .public_key(key)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(both), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, None)
        )
        return _pem(issued) + self.certificate

    def save(self, certificate: str, key: str) -> None:
        """Write both files, so that only this user can read them."""
        Credentials(self.certificate, _key_pem(self._key)).save(certificate, key)


def new_request(hosts: Iterable[str]) -> tuple[str, str]:
    """Return a request for the certificate of a node at these IP addresses, and its new key.

    Both in PEM: the request for `Authority.sign`, the key for nobody.
    """
    key = Ed25519PrivateKey.generate()
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_name("raylite node"))
        .add_extension(x509.SubjectAlternativeName(_names(hosts)), critical=False)
        .sign(key, None)
    )
    return request.public_bytes(serialization.Encoding.PEM).decode(), _key_pem(key)


def new_authority(*, lifetime: float = LIFETIME) -> Authority:
    """Return a CA that nobody knows yet."""
    key = Ed25519PrivateKey.generate()
    name = _name(f"raylite cluster {os.urandom(4).hex()}")
    certificate = (
        _valid(lifetime)
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_signs_certificates(), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, None)
    )
    return Authority(_pem(certificate), key)


def load_authority(certificate: str, key: str) -> Authority:
    """Return the CA that was saved in these files.

    Raises:
        CertificateError: The key was not kept secret, or is none of a CA of raylite's.
    """
    try:
        loaded = serialization.load_pem_private_key(read_secret(key), None)
        with open(certificate, encoding="ascii") as opened:
            shown = opened.read()
        x509.load_pem_x509_certificate(shown.encode())
    except (OSError, ValueError, TypeError) as error:
        raise CertificateError(
            f"{certificate} and {key} hold no CA ({error}): name the files that the head has made"
        ) from error
    if not isinstance(loaded, Ed25519PrivateKey):
        raise CertificateError(f"{key} is no ed25519 key: name the one that the head has made")
    return Authority(shown, loaded)


def _names(hosts: Iterable[str]) -> list[x509.GeneralName]:
    return [
        x509.IPAddress(ipaddress.ip_address(plain_ip(host))) if is_ip(host) else x509.DNSName(host)
        for host in hosts
    ]


def _valid(lifetime: float) -> x509.CertificateBuilder:
    now = datetime.datetime.fromtimestamp(wall(), datetime.UTC)
    begin = now - datetime.timedelta(seconds=SKEW - min(lifetime, 0))
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(now + datetime.timedelta(seconds=lifetime))
    )


def _signs_certificates() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: Ed25519PrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
