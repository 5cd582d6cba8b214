"""The network of a node's process: the sockets it listens on, its address, and the cluster's token.

A node that was started for others listens on TCP besides its unix sockets. Its processes then have
addresses of two places, of which their own node uses the unix socket. See `_types/address.py`.
"""

import os
import socket

from raylite._kernel.grpc import GrpcNetwork
from raylite._kernel.link import LinkConfig
from raylite._kernel.token import read_token
from raylite._runtime import addresses, records
from raylite._runtime.listeners import host_port
from raylite._runtime.node import NodeConfig
from raylite._types.marks import mark_of_node

TOKEN_VARIABLE = "RAYLITE_TOKEN_FILE"


def network_of(config: NodeConfig, links: LinkConfig | None = None) -> GrpcNetwork:
    """Return a network for a process of a node; it listens nowhere yet.

    Raises:
        AuthenticationError: The cluster's token cannot be read.
    """
    token = read_token(config.token_file) if config.token_file else None
    network = GrpcNetwork(config=links, token=token, insecure=config.insecure)
    network.node = mark_of_node(bytes.fromhex(config.node_id)) if config.node_id else ""
    return network


def network_for(token_file: str, links: LinkConfig) -> GrpcNetwork:
    """Return a network for a process outside, which only asks."""
    return GrpcNetwork(config=links, token=read_token(token_file) if token_file else None)


async def listen(
    network: GrpcNetwork,
    config: NodeConfig,
    path: str,
    listener: socket.socket | None = None,
    tcp: socket.socket | None = None,
) -> None:
    """Listen on a unix socket, and on TCP if the node does; the network's address says both.

    Args:
        network: The process's.
        config: Its node's.
        path: The unix socket's.
        listener: That socket, if it is bound already.
        tcp: A bound TCP socket; without one, a port is taken as `config.worker_ports` says.

    Raises:
        OSError: None of the ports is free.
    """
    await network.listen(f"unix:{path}", listener)
    network.address = f"unix:{path}"
    if config.raylet_port is None:
        return
    if tcp is not None:
        ip, port, *_ = tcp.getsockname()
        place = await network.listen(f"tcp:{host_port(ip, port)}", tcp)
    else:
        place = await _listen_on_any(network, config)
    network.address = f"{place};{network.node}=unix:{path}"


def token_file_for(address: str | None, given: str = "", temp_dir: str = "") -> str:
    """Return the file of the token of the cluster at an address; empty if none is known.

    That is the one given, the one that the environment names, or that of a node of this machine
    which belongs to the cluster.
    """
    if named := given or os.environ.get(TOKEN_VARIABLE, ""):
        return named
    session = addresses.session_of(address) if address else None
    if session is not None:
        record = records.read(session)
        return record.token_file if record is not None else ""
    living = records.living(temp_dir)
    if address and address != addresses.AUTO:
        living = addresses.nodes_of(address, temp_dir)
    return next((node.token_file for node in living if node.token_file), "")


async def _listen_on_any(network: GrpcNetwork, config: NodeConfig) -> str:
    ports = list(config.worker_ports) or [0]
    # Shuffled, so that workers that start at once do not all try the same.
    network.seams.random("ports").shuffle(ports)
    for port in ports:
        try:
            return await network.listen(f"tcp:{host_port(config.ip, port)}")
        except OSError:
            continue
    raise OSError(
        f"none of the {len(ports)} worker ports is free on {config.ip}: give this node more of them "
        "with --min-worker-port and --max-worker-port"
    )
