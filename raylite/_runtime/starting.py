"""Starting a node that outlives its starter: the head of a new cluster, or a member of another."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from raylite._kernel.secretfile import write_secret
from raylite._kernel.token import create_token, read_token
from raylite._runtime import (
    addresses,
    folders,
    inquiry,
    interrupts,
    launch,
    local,
    networks,
    records,
)
from raylite._runtime.guest import check_versions
from raylite._runtime.launch import NodeProcess
from raylite._runtime.listeners import host_port
from raylite._runtime.local import SessionOptions
from raylite._runtime.node import OWN_STORAGE, NodeConfig, own_token
from raylite._types.address import is_loopback
from raylite._wire.messages import gcs as msg

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What `raylite start` was asked for.

    Args:
        resources: What the node is to offer, labels and the temporary directory included.
        address: The cluster to join; None to start one.
        ip: Where this node is reached; empty to choose.
        gcs_port: A head's, 0 for any.
        raylet_port: 0 for any.
        worker_ports: Those that workers may use; empty for any.
        storage: Where a head keeps the cluster's tables; empty for a file of the session's.
        token_file: Where the token of the cluster to join is; empty to look for it on this machine.
        insecure: Is it accepted that what nodes say to each other can be read on the network?
    """

    resources: SessionOptions = field(default_factory=SessionOptions)
    address: str | None = None
    ip: str = ""
    gcs_port: int = 0
    raylet_port: int = 0
    worker_ports: Sequence[int] = ()
    storage: str = ""
    token_file: str = ""
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    """A node that works, and its row in the cluster's table."""

    node: NodeProcess
    row: msg.Node


def start_node(options: NodeOptions) -> Started:
    """Start a node and see it join its cluster; if it does not, nothing of it is left.

    It ends with this process until it is let go by `NodeProcess.accept`.

    Raises:
        ConnectionError: There is a head at this address already, or none at the one to join.
        ValueError: The address is none.
        RuntimeError: The cluster runs another version.
        OSError: The session's directory cannot be made.
        RaySystemError: The node could not start; the message says why.
    """
    temp_dir = options.resources.temp_dir
    records.tidy(temp_dir)
    if options.address is None:
        config = _head(options)
    else:
        config = _member(options, options.address)
    with interrupts.held() as interrupt:
        node = launch.start(config)
        interrupt.hurry(node.kill)
        try:
            node.wait_ready()
            row = inquiry.wait_registered(node)
            interrupt.raise_if_interrupted()
        except BaseException:
            node.stop()
            raise
        return Started(node, row)


def _head(options: NodeOptions) -> NodeConfig:
    ip = options.ip or LOOPBACK
    taken = host_port(ip, options.gcs_port)
    for node in records.living(options.resources.temp_dir):
        if node.head and node.cluster == taken:
            raise ConnectionError(
                f"a cluster runs at {taken} already: join it with `raylite start --address={taken}`, "
                "end it with `raylite stop`, or choose another --port"
            )
    _check_secure(options, ip)
    session = folders.make_session_dir(options.resources.temp_dir)
    create_token(own_token(str(session)))
    storage = options.storage or f"sqlite://{session / OWN_STORAGE}"
    return replace(_config(options, ip, session), gcs_port=options.gcs_port, storage=storage)


def _member(options: NodeOptions, address: str) -> NodeConfig:
    temp_dir = options.resources.temp_dir
    gcs = addresses.resolve(address, temp_dir)
    token_file = networks.token_file_for(address, options.token_file, temp_dir)
    rows = inquiry.list_nodes(gcs, token_file)
    for row in rows:
        if row.alive and row.head:
            check_versions(row.version, row.python)
    is_path = addresses.session_of(address) is not None
    host = LOOPBACK if is_path else addresses.parse(address)[0]
    ip = options.ip or addresses.own_ip(host)
    _check_secure(options, ip)
    session = folders.make_session_dir(temp_dir)
    if token_file:  # a copy: the head's own file ends with the head
        write_secret(own_token(str(session)), read_token(token_file).reveal().encode() + b"\n")
    return replace(
        _config(options, ip, session),
        head=False,
        gcs=gcs,
        cluster=_name_of(gcs, options.resources.temp_dir) or address,
    )


def _name_of(gcs: str, temp_dir: str) -> str:
    """Return what the head calls its cluster, if it is one of this machine's."""
    heads = (node for node in records.living(temp_dir) if node.head and node.gcs == gcs)
    return next((head.cluster for head in heads), "")


def _config(options: NodeOptions, ip: str, session: Path) -> NodeConfig:
    return replace(
        local.node_config(options.resources),
        session_dir=str(session),
        ip=ip,
        raylet_port=options.raylet_port,
        worker_ports=tuple(options.worker_ports),
        is_listed=True,
        node_id=os.urandom(28).hex(),
        token_file=own_token(str(session)) if Path(own_token(str(session))).exists() else "",
        insecure=options.insecure,
    )


def _check_secure(options: NodeOptions, ip: str) -> None:
    if not (options.insecure or is_loopback(ip)):
        raise ValueError(
            f"at {ip} this node would be open to the network, where what nodes say can be read: "
            "encryption between nodes is not there yet. On a network that you trust, say "
            "--insecure-plaintext; strangers are kept out by the cluster's token all the same"
        )
