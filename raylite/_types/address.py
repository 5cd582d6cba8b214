"""Addresses: where a process is reached. Their text is the process's identity everywhere.

``unix:/path`` is reached from its own machine, ``tcp:10.0.0.7:6379`` and ``tcp:[::1]:6379`` from
others too. ``tcp:10.0.0.7:4001;NODE=unix:/path`` is reached by TCP from other nodes, and from its
own, which the hexadecimal mark NODE names, by the unix socket.
"""

import ipaddress
import re

from msgspec import Struct

LONGEST_PATH = 107  # bytes: what the kernel takes for a unix socket

_TCP = re.compile(r"tcp:(?:\[(?P<six>[^\[\]]*)\]|(?P<host>[^:\[\];]*)):(?P<port>[0-9]{1,5})")
_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_MARK = re.compile(r"(?:[0-9a-f]{2})+")
_KINDS = {"raylet": "the raylet", "gcs": "the GCS", "w": "a worker", "d": "a driver"}
_EXPECTED = "expected unix:/path, tcp:HOST:PORT, tcp:[IPV6]:PORT or tcp:HOST:PORT;NODE=unix:/path"


class UnixAddress(Struct, frozen=True):
    """A unix socket, by its absolute path."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


class TcpAddress(Struct, frozen=True):
    """A host, by name or IP address, and a port; port 0 asks for any that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        return (
            f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"
        )


class NodeAddress(Struct, frozen=True):
    """A process that its own node reaches by a unix socket, and others by TCP."""

    tcp: TcpAddress
    node: str
    unix: UnixAddress

    def __str__(self) -> str:
        return f"{self.tcp};{self.node}={self.unix}"


Place = UnixAddress | TcpAddress
Address = UnixAddress | TcpAddress | NodeAddress


def parse_address(text: str) -> Address:
    """Return what an address means.

    Raises:
        ValueError: It is none; the message says what was expected.
    """
    if text.startswith("unix:"):
        return _parse_unix(text, text)
    tcp, is_combined, rest = text.partition(";")
    match = _TCP.fullmatch(tcp)
    if match is None:
        raise ValueError(f"{text!r} is no address: {_EXPECTED}")
    where = _parse_tcp(text, match)
    if not is_combined:
        return where
    node, _, unix = rest.partition("=")
    if not _MARK.fullmatch(node) or not unix.startswith("unix:"):
        raise ValueError(f"{text!r} is no address: after ';' expected NODE=unix:/path, NODE in hex")
    return NodeAddress(where, node, _parse_unix(text, unix))


def place_to_dial(text: str, node: str) -> Place:
    """Return where a process of this node reaches an address."""
    address = parse_address(text)
    if isinstance(address, NodeAddress):
        address = address.unix if address.node == node else address.tcp
    if isinstance(address, TcpAddress) and not address.port:
        raise ValueError(f"{text!r} cannot be reached: expected a port from 1 to 65535")
    return address


def socket_name(text: str) -> str:
    """Return by which name a process is asked for where it is dialled: that of its unix socket.

    Several processes of a node may share one port: see `raylite._kernel.relay`. A port without a
    path names nobody.
    """
    return text.partition("unix:")[2].rpartition("/")[2]


def place_to_listen(text: str) -> Place:
    """Return where to listen for an address: a path or an IP address, and one of them only."""
    address = parse_address(text)
    if isinstance(address, NodeAddress):
        raise ValueError(f"{text!r} is two places: expected one, so listen at each of them")
    if isinstance(address, TcpAddress) and not is_ip(address.host):
        raise ValueError(f"{text!r} is a name to listen at: expected an IP address of this machine")
    return address


def shown(text: str) -> str:
    """Return what people call the process at an address: by what it is, if its socket says so."""
    where, _, unix = text.partition(";")
    named = re.fullmatch(
        r"(?:(raylet|gcs)|([wd])[0-9a-f]{16})\.sock", socket_name(where) or socket_name(unix)
    )
    kind = _KINDS[named[1] or named[2]] if named else "a process"
    if where.startswith("unix:"):
        return f"{kind} on this machine"
    if where.startswith("tcp:"):
        host_and_port = where.removeprefix("tcp:")
        return f"{kind} at {host_and_port}" if named else host_and_port
    return where


def host_of(text: str) -> str:
    """Return the IP address or the name of the machine of an address."""
    match = _TCP.match(text)
    return (match["six"] or match["host"]) if match else "127.0.0.1"


def is_ip(host: str) -> bool:
    """Whether a host is an IP address, and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a host is an IP address that only its own machine reaches."""
    return is_ip(host) and ipaddress.ip_address(host).is_loopback


def is_anywhere(host: str) -> bool:
    """Whether a host is the IP address that stands for all of a machine's: 0.0.0.0 or ::."""
    return is_ip(host) and ipaddress.ip_address(plain_ip(host)).is_unspecified


def plain_ip(host: str) -> str:
    """Return the one way to write an IP address: no zone, and IPv4 as itself inside IPv6."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _parse_unix(whole: str, text: str) -> UnixAddress:
    path = text.removeprefix("unix:")
    if not path.startswith("/") or "\0" in path:
        raise ValueError(f"{whole!r} is no address: expected unix:/path, with an absolute path")
    if len(path.encode()) > LONGEST_PATH:
        raise ValueError(
            f"{whole!r} is no address: expected a path of at most {LONGEST_PATH} bytes"
        )
    return UnixAddress(path)


def _parse_tcp(whole: str, match: "re.Match[str]") -> TcpAddress:
    six, host, port = match["six"], match["host"], int(match["port"])
    if port > 65535:
        raise ValueError(f"{whole!r} is no address: expected a port from 0 to 65535")
    if six is not None:
        if ":" not in six or not is_ip(six):
            raise ValueError(
                f"{whole!r} is no address: expected an IPv6 address between the brackets"
            )
        return TcpAddress(six, port)
    looks_like_ip = re.fullmatch(r"[0-9.]+", host)
    if not (is_ip(host) if looks_like_ip else _NAME.fullmatch(host)):
        raise ValueError(f"{whole!r} is no address: expected an IP address or a host's name")
    return TcpAddress(host, port)
