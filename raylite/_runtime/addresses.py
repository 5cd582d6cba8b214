"""Addresses of clusters as users type them, and what they stand for on this machine.

``HOST:PORT`` is where a head listens. The directory of a session on this machine (or its GCS's
socket) stands for the cluster of that node.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from raylite._runtime import records
from raylite._runtime.listeners import host_port
from raylite._runtime.node import NodeConfig
from raylite._runtime.records import NodeRecord

FORMS = "HOST:PORT of a head, or the session directory of a node on this machine"
AUTO = "auto"
"""Stands for the cluster that runs on this machine."""

NOT_HERE = (
    "no cluster runs on this machine: name one with --address, or start one with "
    "`raylite start --head`"
)
"""What a command says that was to find one."""

_UNIX = "unix:"
_PORTS = range(1, 65536)


def from_environment() -> str | None:
    """Return the address that the environment names, if it does."""
    return os.environ.get("RAYLITE_ADDRESS") or os.environ.get("RAY_ADDRESS") or None


def choose(address: str | None, temp_dir: str = "") -> str:
    """Return the address to dial of the cluster that a command means.

    The order is that of `init`: what is given, the environment, the cluster that was started or
    joined on this machine last and still runs.

    Raises:
        ValueError: This is no address.
        ConnectionError: No cluster runs on this machine, and none is named.
    """
    address = address or from_environment() or AUTO
    if address != AUTO:
        return resolve(address, temp_dir)
    nodes = records.living(temp_dir)
    if not nodes:
        raise ConnectionError(NOT_HERE)
    return nodes[0].gcs


def resolve(address: str, temp_dir: str = "") -> str:
    """Return the address at which this machine dials the GCS of a cluster.

    That of a head on this machine is its unix socket, whatever it listens on besides.

    Raises:
        ValueError: This is no address.
        ConnectionError: There is no such session.
    """
    session = session_of(address)
    if session is not None:
        record = records.read(session)
        if record is not None:
            return record.gcs
        gcs = NodeConfig(0, 0, session_dir=str(session)).gcs_address
        if not Path(gcs).exists():
            raise ConnectionError(f"there is no running cluster in {session}: give {FORMS}")
        return f"{_UNIX}{gcs}"
    host, port = parse(address)
    heads = [node for node in nodes_of(address, temp_dir) if node.head]
    return heads[0].gcs if heads else f"tcp:{host_port(host, port)}"


def session_of(address: str) -> Path | None:
    """Return the session directory that an address names; None if it is a HOST:PORT."""
    path = address.removeprefix(_UNIX)
    if "/" not in path or "://" in path:
        return None
    place = Path(path).absolute()
    return place.parent.parent if place.suffix == ".sock" else place


def parse(address: str) -> tuple[str, int]:
    """Take HOST:PORT apart; an IPv6 host stands in brackets.

    Raises:
        ValueError: It is something else.
    """
    host, colon, digits = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    is_plain = colon and host and "/" not in host and digits.isdecimal() and int(digits) in _PORTS
    if not is_plain or (":" in host and not _is_ipv6(host)):
        raise ValueError(f"{address!r} is not the address of a cluster: give {FORMS}")
    return host, int(digits)


def nodes_of(address: str, temp_dir: str = "") -> list[NodeRecord]:
    """Return the living nodes of this machine that belong to the cluster at HOST:PORT."""
    host, port = parse(address)
    wanted = {host_port(ip, port) for ip in (host, *_ips(host))}
    return [node for node in records.living(temp_dir) if node.cluster in wanted]


def node_of(address: str | None, temp_dir: str = "") -> NodeRecord | None:
    """Return this machine's node of the cluster that an address stands for; the latest, of any."""
    session = session_of(address) if address else None
    if session is not None:
        return records.read(session)
    if address and address != AUTO:
        return next(iter(nodes_of(address, temp_dir)), None)
    return next(iter(records.living(temp_dir)), None)


def own_ip(peer: str) -> str:
    """Return the address by which this machine is known to another: that of the way there."""
    for ip in _ips(peer):
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((ip, 9))  # of a datagram socket: it sends nothing
            own: str = probe.getsockname()[0]
            return own
    return "127.0.0.1"


def _ips(host: str) -> Iterator[str]:
    with suppress(OSError):
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
        yield from dict.fromkeys(str(each[4][0]) for each in found)


def _is_ipv6(host: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, host)
    except OSError:
        return False
    return True
