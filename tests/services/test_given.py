"""Certificates of a user's own are tried before a node starts: what cannot be used is said in a sentence."""

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from raylite._kernel.certificates import Authority, new_authority
from raylite._runtime import credentials
from raylite._runtime.given import Given, given, load_given, read_given
from raylite.exceptions import AuthenticationError

IP = "10.0.0.7"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def save(
    folder: Path, authority: Authority, name: str = "node", ip: str = IP, lifetime: float = 1e6
) -> Given:
    """Return files that a CA has issued."""
    authority.issue([ip], lifetime=lifetime).save(f"{folder}/{name}.crt", f"{folder}/{name}.key")
    trusted = folder / f"{name}.ca"
    trusted.write_text(f"Issued by us, für alle:\n{authority.certificate}")
    found = given(f"{folder}/{name}.crt", f"{folder}/{name}.key", str(trusted))
    assert found is not None
    return found


def test_what_is_given_is_copied_and_good_for_both_sides(folder: Path) -> None:
    files, own = save(folder, new_authority()), str(folder / "tls")
    os.symlink(files.key, folder / "link")
    linked = given(files.certificate, f"{folder}/link", files.authority)  # as secrets are mounted
    assert linked == files
    credentials.take(own, files, IP)
    assert {stat.S_IMODE(path.stat().st_mode) for path in Path(own).iterdir()} == {0o600}
    os.unlink(files.key)
    assert credentials.load(own, newcomers=True) is not None
    assert not credentials.can_sign(own)
    again = credentials.taken(own)
    assert again is not None
    assert "PRIVATE" not in repr(read_given(again, IP))
    load_given(again)


def test_what_was_not_given_is_nothing_and_what_was_given_by_half_is_refused() -> None:
    assert given("", "", "") is None
    with pytest.raises(ValueError, match=r"name --tls-server-key and --tls-ca-cert as well"):
        given("node.crt", "", "")


def test_what_other_nodes_would_not_believe_is_refused(folder: Path) -> None:
    ours, theirs = new_authority(), new_authority()
    node = save(folder, ours)
    stranger = save(folder, theirs, "stranger")
    key = serialization.load_pem_private_key(Path(node.key).read_bytes(), None)
    sealed = serialization.BestAvailableEncryption(b"secret")
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    with open(os.open(folder / "sealed.key", os.O_CREAT | os.O_WRONLY, 0o600), "wb") as opened:
        opened.write(key.private_bytes(*form, sealed))
    cases = [
        (save(folder, ours, "old", lifetime=-1), "certificate has expired"),
        (save(folder, ours, "elsewhere", ip="10.0.0.8"), "for the IP address 10.0.0.7"),
        (Given(node.certificate, node.key, stranger.authority), "self-signed certificate in"),
        (Given(node.certificate, stranger.key, node.authority), "is not that of the certificate"),
        (Given("/nowhere", node.key, node.authority), "--tls-server-cert=/nowhere cannot be read"),
        (Given(node.certificate, node.key, str(folder)), "--tls-ca-cert=.* cannot be read"),
        (Given(node.certificate, "/nowhere", node.authority), "/nowhere does not exist"),
        (Given(node.certificate, node.key, node.key), "the certificate of the CA"),
        (Given(node.key, node.key, node.authority), "name a node's certificate"),
        (Given(node.certificate, f"{folder}/sealed.key", node.authority), "has a passphrase"),
    ]
    for files, reason in cases:
        with pytest.raises(AuthenticationError, match=reason) as refused:
            read_given(files, IP)
        assert "\n" not in str(refused.value)
    os.chmod(node.key, 0o644)
    with pytest.raises(AuthenticationError, match="run chmod 600"):
        read_given(node, IP)
