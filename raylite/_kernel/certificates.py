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
from raylite.exceptions import AuthenticationError

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as missing:
    raise ImportError(
        "TLS certificates need the package cryptography: run pip install 'raylite[tls]'"
    ) from missing

DAY = 86400.0  # seconds
CA_LIFETIME = 3650 * DAY
LIFETIME = 365 * DAY
SKEW = 300.0  # seconds that another node's clock may be behind


@dataclass(frozen=True, slots=True)
class Credentials:
    """A node's certificate, with that of the CA behind it, and its key; both in PEM."""

    certificate: str
    key: str = field(repr=False)

    def save(self, certificate: str, key: str) -> None:
        """Write both files; the key so that only this user can read it."""
        write_secret(key, self.key.encode())
        with open(certificate, "x", encoding="ascii") as opened:
            opened.write(self.certificate)


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
        mine = x509.load_pem_x509_certificate(self.certificate.encode())
        names: list[x509.GeneralName] = [
            x509.IPAddress(ipaddress.ip_address(plain_ip(host)))
            if is_ip(host)
            else x509.DNSName(host)
            for host in hosts
        ]
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        issued = (
            _valid(lifetime)
            .subject_name(_name("raylite node"))
            .issuer_name(mine.subject)
            .public_key(key.public_key())
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(both), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, None)
        )
        return Credentials(_pem(issued) + self.certificate, _key_pem(key))

    def save(self, certificate: str, key: str) -> None:
        """Write both files; the key so that only this user can read it."""
        Credentials(self.certificate, _key_pem(self._key)).save(certificate, key)


def new_authority(*, lifetime: float = CA_LIFETIME) -> Authority:
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
        AuthenticationError: The key was not kept secret, or is none of a CA of raylite's.
    """
    try:
        loaded = serialization.load_pem_private_key(read_secret(key), None)
        with open(certificate, encoding="ascii") as opened:
            shown = opened.read()
        x509.load_pem_x509_certificate(shown.encode())
    except (OSError, ValueError, TypeError) as error:
        raise AuthenticationError(
            f"{certificate} and {key} hold no CA ({error}): name the files that the head has made"
        ) from error
    if not isinstance(loaded, Ed25519PrivateKey):
        raise AuthenticationError(f"{key} is no ed25519 key: name the one that the head has made")
    return Authority(shown, loaded)


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
