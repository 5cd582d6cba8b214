"""The network of a node's process: the sockets it listens on, its address, and what lets it in.

A node that was started for others listens on TCP besides its unix sockets. Its processes then have
addresses of two places, of which their own node uses the unix socket. See `_types/address.py`.

Workers and drivers share the port of the node's raylet, which relays, unless the node has ports for
them: then others reach them directly.
"""

import os
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from raylite._kernel.grpc import GrpcNetwork
from raylite._kernel.interface import SCOPES
from raylite._kernel.keyring import Keyring
from raylite._kernel.link import LinkConfig
from raylite._kernel.relay import SCOPE
from raylite._kernel.tls import FirstContact, Tls, fetch_authority, newcomer_tls
from raylite._runtime import addresses, credentials
from raylite._runtime.given import Given, load_given
from raylite._runtime.listeners import host_port
from raylite._runtime.node import NodeConfig
from raylite._runtime.records import NodeRecord
from raylite._types.marks import mark_of_node

TOKEN_VARIABLE = "RAYLITE_TOKEN_FILE"


class Keys(Struct, frozen=True):
    """What lets a process in at a cluster: its tokens, and certificates if its nodes encrypt.

    With `reads` it asks for no more than a reader's token allows, and then needs no certificate.
    """

    keyring: Keyring | None = None
    tls: Tls | None = None
    reads: bool = False


def read_keys(token_file: str, folder: str, *, newcomers: bool = False) -> Keys:
    """Return what is in a token's file, and in a directory of credentials; either may be empty.

    Raises:
        AuthenticationError: They cannot be used.
    """
    keyring = Keyring.open(token_file) if token_file else None
    return Keys(keyring, credentials.load(folder, newcomers=newcomers))


class NetworkOf(Protocol):
    """What makes the network of a node's process: `network_of`, or a test's own."""

    def __call__(self, config: NodeConfig, *, newcomers: bool = False) -> GrpcNetwork:
        """Return a network that listens nowhere yet."""


def network_of(
    config: NodeConfig,
    *,
    newcomers: bool = False,
    make: Callable[..., GrpcNetwork] = GrpcNetwork,
) -> GrpcNetwork:
    """Return a network for a process of a node; it listens nowhere yet.

    Args:
        config: The node's.
        newcomers: Is this the process that nodes without a certificate turn to?
        make: Its class.

    Raises:
        AuthenticationError: The cluster's token, or the node's credentials, cannot be read.
    """
    keys = read_keys(config.token_file, config.tls, newcomers=newcomers)
    network = make(token=keys.keyring, tls=keys.tls, insecure=config.insecure)
    network.node = mark_of_node(bytes.fromhex(config.node_id)) if config.node_id else ""
    return network


def network_for(keys: Keys, links: LinkConfig) -> GrpcNetwork:
    """Return a network for a process outside, which only asks."""
    network = GrpcNetwork(config=links, token=keys.keyring, tls=keys.tls)
    if keys.reads:
        network.metadata[SCOPE] = SCOPES[0]
    return network


async def listen(
    network: GrpcNetwork,
    config: NodeConfig,
    path: str,
    listener: socket.socket | None = None,
    tcp: socket.socket | None = None,
    ports: Sequence[int] = (),
) -> None:
    """Listen on a unix socket; if the node is reached by TCP, the network's address says that too.

    Args:
        network: The process's.
        config: Its node's.
        path: The unix socket's.
        listener: That socket, if it is bound already.
        tcp: A bound TCP socket.
        ports: Without one, the TCP ports to choose from, 0 for any that is free. Without these too, the
            process is reached by the raylet's port, which hands on what comes for it; so it is if
            none of them is free.
    """
    await network.listen(f"unix:{path}", listener)
    network.address = f"unix:{path}"
    if config.raylet_port is None:
        return
    if tcp is not None:
        port: int = tcp.getsockname()[1]
        await network.listen(f"tcp:{host_port(config.listens_at, port)}", tcp)
    elif ports:
        port = await _listen_on_any(network, config.listens_at, ports) or config.raylet_port
    else:
        port = config.raylet_port
    network.address = f"tcp:{host_port(config.ip, port)};{network.node}=unix:{path}"


def token_file_for(node: NodeRecord | None, given: str = "") -> str:
    """Return the file of a cluster's token; empty if none is known.

    That is the one given, the one that the environment names, or that of this machine's node of
    the cluster.
    """
    return given or os.environ.get(TOKEN_VARIABLE, "") or (node.token_file if node else "")


def way_in(
    address: str | None,
    token_file: str = "",
    temp_dir: str = "",
    files: Given | None = None,
    pin: str = "",
) -> tuple[str, Keys]:
    """Return how a command asks the cluster that it means, see `addresses.choose`: where, and as whom.

    Args:
        address: The cluster.
        token_file: Where its token is; empty for that of the environment, or of a node on this machine.
        temp_dir: Where sessions are.
        files: Certificates of one's own; None for those of a node on this machine.
        pin: The fingerprint of the cluster's CA. It does for a certificate, for who only reads.

    Raises:
        ValueError: This is no address, or no fingerprint.
        ConnectionError: No cluster runs on this machine, and none is named; or nobody answers there.
        AuthenticationError: The token or the certificates cannot be used, or are of another cluster.
    """
    gcs = addresses.choose(address, temp_dir)
    node = addresses.node_of(address or addresses.from_environment(), temp_dir)
    token = token_file_for(node, token_file)
    if files is not None:
        return gcs, Keys(read_keys(token, "").keyring, load_given(files))
    if pin and node is None:
        contact, port = first_contact(gcs.removeprefix("tcp:"), pin)
        keys = Keys(read_keys(token, "").keyring, newcomer_tls(contact.authority), reads=True)
        return f"tcp:{host_port(contact.ip, port)}", keys
    return gcs, read_keys(token, node.tls if node else "")


def first_contact(address: str, pin: str) -> tuple[FirstContact, int]:
    """Return what the head at HOST:PORT shows, whose CA has a fingerprint, and the port.

    Raises:
        ValueError: This is no address, or no fingerprint.
        ConnectionError: Nobody answers there.
        AuthenticationError: It is of another cluster.
    """
    host, port = addresses.parse(address)
    try:
        return fetch_authority(host, port, pin), port
    except OSError as error:
        raise ConnectionError(
            f"no cluster answers at {host_port(host, port)}: {error.strerror or error}. Is its head "
            "running, and is this its address?"
        ) from error


async def _listen_on_any(network: GrpcNetwork, ip: str, ports: Sequence[int]) -> int:
    """Return the port that was free, 0 if none was."""
    ports = list(ports)
    # Shuffled, so that workers that start at once do not all try the same.
    network.seams.random("ports").shuffle(ports)
    for port in ports:
        try:
            place = await network.listen(f"tcp:{host_port(ip, port)}")
            return int(place.rpartition(":")[2])
        except OSError:
            continue
    return 0
