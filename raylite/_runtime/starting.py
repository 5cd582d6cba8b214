"""Starting a node that outlives its starter: the head of a new cluster, or a member of another."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct, field
from msgspec.structs import replace

from raylite._kernel.keyring import Keyring
from raylite._kernel.tls import fingerprint, newcomer_tls
from raylite._kernel.token import (
    create_token,
    read_tokens,
    write_tokens,
)
from raylite._runtime import (
    addresses,
    credentials,
    folders,
    inquiry,
    interrupts,
    launch,
    local,
    networks,
    records,
)
from raylite._runtime.given import Given
from raylite._runtime.guest import check_versions
from raylite._runtime.issued import keep_issued
from raylite._runtime.launch import NodeProcess
from raylite._runtime.listeners import host_port
from raylite._runtime.local import SessionOptions
from raylite._runtime.networks import Keys, read_keys
from raylite._runtime.node import OWN_STORAGE, NodeConfig, clear, own_tls, own_token
from raylite._services.gcs.storage import check_storage, vacate_storage
from raylite._types import system_config
from raylite._types.address import is_anywhere, is_ip, is_loopback
from raylite._wire.messages import gcs as msg
from raylite.exceptions import CertificateError

LOOPBACK = "127.0.0.1"
INSECURE_VARIABLE = "RAYLITE_INSECURE_PLAINTEXT"


class NodeOptions(Struct, frozen=True):
    """What `raylite start` was asked for.

    Args:
        resources: What the node is to offer, labels and the temporary directory included.
        address: The cluster to join; None to start one.
        ip: The IP address at which this node is reached; empty to choose.
        bind: The one to listen at, all zeros for every one of this machine; empty for `ip`.
        gcs_port: A head's, 0 for any.
        raylet_port: 0 for any; None for any too, but on a head for the GCS's, which they share then.
        worker_ports: Those that workers and drivers may use, 0 for any; empty if they are to be reached by
            the raylet's.
        storage: Where a head keeps the cluster's tables; empty for a file of the session's.
        token_file: Where the token of the cluster to join is; empty to look for it on this machine.
        pin: The fingerprint of the CA of the cluster to join; empty if a node of it is on this
            machine, or if it does not encrypt.
        insecure: Is it accepted that what nodes say to each other can be read on the network?
        certificates: Files of the node's own, for a cluster whose nodes all have such.
        env_vars: Set in the environment of the node's workers.
    """

    resources: SessionOptions = field(default_factory=SessionOptions)
    address: str | None = None
    ip: str = ""
    bind: str = ""
    gcs_port: int = 0
    raylet_port: int | None = None
    worker_ports: Sequence[int] = ()
    storage: str = ""
    token_file: str = ""
    pin: str = ""
    insecure: bool = False
    certificates: Given | None = None
    env_vars: Mapping[str, str] = field(default_factory=dict)


class Started(Struct, frozen=True):
    """A node that works, and its row in the cluster's table."""

    node: NodeProcess
    row: msg.Node


def start_node(options: NodeOptions) -> Started:
    """Start a node and see it join its cluster; if it does not, nothing of it is left.

    It ends with this process until it is let go by `NodeProcess.accept`.

    Raises:
        ConnectionError: There is a head at this address already, or none at the one to join.
        ValueError: An address is none, or the network would be trusted more than was said.
        AuthenticationError: The head does not let this node in, or is another than the one meant.
        RuntimeError: The cluster runs another version, or what makes certificates is missing.
        OSError: The session's directory cannot be made.
        StorageError: The GCS of another head writes the tables that this one is to have.
        RaySystemError: The node could not start; the message says why.
    """
    if options.address is None and options.storage:
        check_storage(options.storage)
        inquiry.run(vacate_storage(options.storage))
    with interrupts.held() as interrupt:
        node = begin_node(options)
        interrupt.hurry(node.kill)
        try:
            node.wait_ready()
            row = inquiry.wait_registered(node)
            interrupt.raise_if_interrupted()
        except BaseException:
            node.stop()
            raise
        return Started(node, row)


def begin_node(options: NodeOptions) -> NodeProcess:
    """Begin to start a node, and do not wait: `start_node` without its second half.

    Raises:
        ConnectionError: There is a head at this address already, or none at the one to join.
        ValueError: The address is none.
        RuntimeError: The cluster runs another version.
        OSError: The session's directory cannot be made.
    """
    records.tidy(options.resources.temp_dir)
    if options.address is None:
        return launch.start(_head(options))
    return launch.start(_member(options, options.address))


def _head(options: NodeOptions) -> NodeConfig:
    if options.pin:
        raise ValueError("a new cluster makes its own CA: leave --ca-fingerprint out")
    ip = options.ip or ("" if is_anywhere(options.bind) else options.bind) or LOOPBACK
    if options.certificates is not None and options.insecure:
        raise ValueError("with certificates all is encrypted: leave --insecure-plaintext out")
    taken = host_port(ip, options.gcs_port)
    for node in records.living(options.resources.temp_dir):
        if node.head and node.cluster == taken:
            raise ConnectionError(
                f"a cluster runs at {taken} already: join it with `raylite start --address={taken}`, "
                "end it with `raylite stop`, or choose another --port"
            )
    config = _config(options, ip)
    is_open = not is_loopback(config.listens_at)
    with _session(options) as session:
        create_token(own_token(session))
        if options.certificates is not None:
            credentials.take(own_tls(session), options.certificates, ip)
        elif is_open and not options.insecure:
            credentials.create(own_tls(session), ip)
        return replace(
            _in_session(config, session),
            gcs_port=options.gcs_port,
            one_port=options.raylet_port is None,
            storage=options.storage or f"sqlite://{Path(session, OWN_STORAGE)}",
        )


def _member(options: NodeOptions, address: str) -> NodeConfig:
    temp_dir = options.resources.temp_dir
    neighbour = addresses.node_of(address, temp_dir)
    if address == addresses.AUTO:
        if neighbour is None:
            raise ConnectionError(addresses.NOT_HERE)
        address = neighbour.cluster
    cluster = neighbour.cluster if neighbour is not None else address
    host = LOOPBACK if addresses.session_of(cluster) else addresses.parse(cluster)[0]
    gcs, authority = addresses.resolve(address, temp_dir), ""
    own = options.certificates or credentials.taken(neighbour.tls if neighbour is not None else "")
    if own is not None and options.pin:
        raise ValueError(
            f"--ca-fingerprint is for clusters that make their own CA: leave it out, as {own.authority} "
            "says which nodes to believe"
        )
    if own is not None:
        pass  # nothing is to be asked for
    elif neighbour is not None:
        authority = credentials.authority(neighbour.tls) if neighbour.tls else ""
        if options.pin and not (authority and fingerprint(authority) == options.pin):
            raise CertificateError(
                f"the cluster at {address}, of which a node is on this machine, has another "
                "--ca-fingerprint or none: leave it out to join this cluster"
            )
    elif options.pin:
        contact, port = networks.first_contact(address, options.pin)
        host, authority = contact.ip, contact.authority
        gcs = f"tcp:{host_port(host, port)}"
    config = _config(options, options.ip or addresses.own_ip(host))
    if (authority or own) and options.insecure:
        raise ValueError(f"the cluster at {address} encrypts: leave --insecure-plaintext out")
    if not (authority or own or options.insecure):
        _check_local(address, host, config.listens_at)
    token_file = networks.token_file_for(neighbour, options.token_file)
    keyring = Keyring.open(token_file) if token_file else None
    if (authority or own) and keyring is None:
        raise ValueError(
            f"the cluster at {address} asks for its token: copy the file `token` from the session's "
            f"directory of its head, and name it with --token-file or {networks.TOKEN_VARIABLE}"
        )
    with _session(options) as session:
        if keyring is not None:  # a copy: the head's own file ends with the head
            write_tokens(own_token(session), read_tokens(token_file))
        if own is not None:
            credentials.take(own_tls(session), own, config.ip)
        elif authority:
            asked, key = credentials.request(config.ip)
            keys = Keys(keyring, newcomer_tls(authority))
            signed = inquiry.have_signed(gcs, keys, asked)
            credentials.keep(own_tls(session), authority, signed, key)
        config = replace(
            _in_session(config, session),
            head=False,
            gcs=gcs,
            cluster=cluster,
        )
        keys = read_keys(config.token_file, config.tls)
        for row in inquiry.list_nodes(gcs, keys):
            if row.alive and row.head:
                check_versions(row.version, row.python)
                system = {**system_config.read(row.settings), **config.system}
                config = replace(config, system=system)
        if keyring is not None:  # or it would refuse, at first, nodes that joined with such a token
            keep_issued(config.token_file, inquiry.issued(gcs, keys))
        return config


@contextmanager
def _session(options: NodeOptions) -> Iterator[str]:
    """Make a session's directory; of a node that does not get to its start, nothing is left."""
    session = str(folders.make_session_dir(options.resources.temp_dir))
    try:
        folders.check_room(session)
        yield session
    except BaseException:
        clear(NodeConfig(0, 0, session_dir=session))
        raise


def _config(options: NodeOptions, ip: str) -> NodeConfig:
    _check_addresses(ip, options)
    return replace(
        local.node_config(options.resources),
        ip=ip,
        bind=options.bind,
        raylet_port=options.raylet_port or 0,
        worker_ports=tuple(options.worker_ports),
        is_listed=True,
        insecure=options.insecure,
        env_vars=dict(options.env_vars),
    )


def _in_session(config: NodeConfig, session: str) -> NodeConfig:
    """Return the configuration with the session's directory, and the secrets that are there."""
    token_file, tls = own_token(session), own_tls(session)
    return replace(
        config,
        session_dir=session,
        token_file=token_file if Path(token_file).exists() else "",
        tls=tls if Path(tls).exists() else "",
    )


def _check_addresses(ip: str, options: NodeOptions) -> None:
    for option, given in (("--bind", options.bind), ("--node-ip-address", ip)):
        if given and not is_ip(given):
            raise ValueError(f"{option}={given} is no IP address: give one of this machine's")
    if is_anywhere(ip) or (
        options.address is None and is_anywhere(options.bind) and not options.ip
    ):
        raise ValueError(
            "all zeros say where to listen, not where others reach this node: give the address of "
            f"one interface with --node-ip-address, and --bind={options.bind or ip} besides"
        )
    if options.bind and (":" in options.bind) is not (":" in ip):
        raise ValueError(
            f"--bind={options.bind} does not listen at {ip}: choose both of IPv4, or both of IPv6"
        )
    is_repeated = os.environ.get(INSECURE_VARIABLE) == "1"
    if options.insecure and is_anywhere(options.bind) and not is_repeated:
        raise ValueError(
            f"--insecure-plaintext and --bind={options.bind} would speak plain text on every network "
            f"of this machine: bind to one interface, or set {INSECURE_VARIABLE}=1 as well"
        )


def _check_local(address: str, host: str, listens_at: str) -> None:
    """Refuse to join a cluster in plain text over a network, which nobody has allowed."""
    if not is_loopback(host):
        raise ValueError(
            f"how is the cluster at {address} to be known? Add --ca-fingerprint, as the join command "
            "of its head says, or --tls-server-cert and its neighbours if it has certificates of its own. Only if that was started with --insecure-plaintext, say so too"
        )
    if not is_loopback(listens_at):
        raise ValueError(
            f"the cluster at {address} is its machine's only, and at {listens_at} this node would be "
            "open to the network, in plain text: start the head with --node-ip-address, which makes "
            "it encrypt, or say --insecure-plaintext on a network that you trust"
        )
