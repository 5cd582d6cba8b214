import pytest
from hypothesis import given, strategies as st

from raylite._types.address import (
    NodeAddress,
    TcpAddress,
    UnixAddress,
    host_of,
    is_anywhere,
    is_loopback,
    parse_address,
    place_to_dial,
    place_to_listen,
    plain_ip,
    shown,
)

PATHS = st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=60).map("/".__add__)
HOSTS = st.one_of(
    st.ip_addresses().map(str),
    st.from_regex(r"[a-z][a-z0-9]{0,20}(\.[a-z][a-z0-9]{0,20}){0,3}", fullmatch=True),
)
UNIX = st.builds(UnixAddress, PATHS)
TCP = st.builds(TcpAddress, HOSTS, st.integers(0, 65535))
NODE = st.builds(NodeAddress, TCP, st.binary(min_size=1, max_size=16).map(bytes.hex), UNIX)


@given(st.one_of(UNIX, TCP, NODE))
def test_what_is_written_is_read_back(address: UnixAddress | TcpAddress | NodeAddress) -> None:
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected unix:/path, tcp:HOST:PORT"),
        ("/tmp/socket", "expected unix:/path, tcp:HOST:PORT"),
        ("http:10.0.0.7:80", "expected unix:/path, tcp:HOST:PORT"),
        ("unix:relative", "expected unix:/path, with an absolute path"),
        ("unix:", "expected unix:/path, with an absolute path"),
        ("unix:/a\0b", "expected unix:/path, with an absolute path"),
        ("unix:/" + "a" * 107, "expected a path of at most 107 bytes"),
        ("tcp:nowhere", r"expected unix:/path, tcp:HOST:PORT, tcp:\[IPV6\]:PORT"),
        ("tcp:10.0.0.7:65536", "expected a port from 0 to 65535"),
        ("tcp:10.0.0.7:-1", "expected unix:/path, tcp:HOST:PORT"),
        ("tcp:10.0.0.7:٣", "expected unix:/path, tcp:HOST:PORT"),
        ("tcp:10.0.0.256:1", "expected an IP address or a host's name"),
        ("tcp:10.0.0:1", "expected an IP address or a host's name"),
        ("tcp::1", "expected an IP address or a host's name"),
        ("tcp:a_b:1", "expected an IP address or a host's name"),
        ("tcp:::1:6379", "expected unix:/path, tcp:HOST:PORT"),
        ("tcp:[10.0.0.7]:1", "expected an IPv6 address between the brackets"),
        ("tcp:[x]:1", "expected an IPv6 address between the brackets"),
        ("tcp:10.0.0.7:1;", "after ';' expected NODE=unix:/path"),
        ("tcp:10.0.0.7:1;xyz=unix:/a", "NODE in hex"),
        ("tcp:10.0.0.7:1;abc=unix:/a", "NODE in hex"),
        ("tcp:10.0.0.7:1;ab=tcp:10.0.0.7:2", "after ';' expected NODE=unix:/path"),
        ("tcp:10.0.0.7:1;ab=unix:a", "expected unix:/path, with an absolute path"),
    ],
)
def test_what_is_no_address_is_refused_with_what_was_expected(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        parse_address(text)


@given(st.text(max_size=80))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        assert str(parse_address(text))
    except ValueError as error:
        assert "expected" in str(error)  # noqa: PT017 - it may not come


def test_the_unix_socket_is_dialled_from_its_own_node_only() -> None:
    address = "tcp:10.0.0.7:4001;ab12=unix:/run/raylet"
    assert place_to_dial(address, "ab12") == UnixAddress("/run/raylet")
    assert place_to_dial(address, "ab13") == TcpAddress("10.0.0.7", 4001)
    assert place_to_dial(address, "") == TcpAddress("10.0.0.7", 4001)
    assert place_to_dial("unix:/a", "ab12") == UnixAddress("/a")


def test_port_0_can_be_listened_at_and_not_dialled() -> None:
    assert place_to_listen("tcp:127.0.0.1:0") == TcpAddress("127.0.0.1", 0)
    with pytest.raises(ValueError, match="expected a port from 1"):
        place_to_dial("tcp:127.0.0.1:0", "")


def test_one_place_is_listened_at_by_its_number() -> None:
    with pytest.raises(ValueError, match="two places: expected one"):
        place_to_listen("tcp:10.0.0.7:4001;ab=unix:/a")
    with pytest.raises(ValueError, match="expected an IP address of this machine"):
        place_to_listen("tcp:localhost:4001")


def test_loopback_is_known_by_its_number() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("127.9.9.9")
    assert is_loopback("::1")
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.7", "localhost", "")))


def test_all_zeros_are_anywhere_however_they_are_written() -> None:
    assert all(map(is_anywhere, ("0.0.0.0", "::", "0::0", "0:0:0:0:0:0:0:0", "::ffff:0.0.0.0")))
    assert not any(map(is_anywhere, ("127.0.0.1", "::1", "10.0.0.0", "localhost", "0", "")))


def test_an_ip_address_is_written_in_one_way() -> None:
    assert plain_ip("::ffff:10.0.0.7") == "10.0.0.7"
    assert plain_ip("fe80::1%eth0") == "fe80::1"
    assert plain_ip("0:0:0:0:0:0:0:1") == "::1"


@pytest.mark.parametrize(
    ("address", "name", "host"),
    [
        (
            "tcp:10.0.0.7:4001;ab=unix:/s/sockets/raylet.sock",
            "the raylet at 10.0.0.7:4001",
            "10.0.0.7",
        ),
        ("tcp:[fe80::7]:6379;ab=unix:/s/gcs.sock", "the GCS at [fe80::7]:6379", "fe80::7"),
        ("tcp:h:1;ab=unix:/s/w0123456789abcdef.sock", "a worker at h:1", "h"),
        ("tcp:10.0.0.7:6379", "10.0.0.7:6379", "10.0.0.7"),
        ("unix:/s/sockets/raylet.sock;ab=", "the raylet on this machine", "127.0.0.1"),
        ("unix:/s/d0123456789abcdef.sock", "a driver on this machine", "127.0.0.1"),
        ("unix:/s/else.sock", "a process on this machine", "127.0.0.1"),
        ("memory:one/raylet;ab=", "memory:one/raylet", "127.0.0.1"),
        ("", "", "127.0.0.1"),
    ],
)
def test_people_are_told_neither_marks_nor_paths(address: str, name: str, host: str) -> None:
    assert (shown(address), host_of(address)) == (name, host)
