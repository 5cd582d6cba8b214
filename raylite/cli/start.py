"""`raylite start`: a node that goes on when the command has ended."""

import json
import re
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from shlex import quote
from typing import Any, NoReturn

import click

from raylite._options import validate_init_options
from raylite._runtime import credentials
from raylite._runtime.given import given
from raylite._runtime.local import SessionOptions
from raylite._runtime.node import wait_readable
from raylite._runtime.starting import LOOPBACK, NodeOptions, Started, start_node
from raylite._types.address import is_loopback
from raylite.cli import labels as labels_of, rays
from raylite.cli.errors import explained
from raylite.cli.ports import FIRST_OF_WORKERS, LAST_OF_WORKERS, PORT, PORTS, check_ports
from raylite.cli.tls import certificates
from raylite.exceptions import RaySystemError

PORT_OF_HEADS = 6379  # Ray's

_STARTED = """\
This machine is {what}: node {node}, with {resources}.

To join another node to the cluster, run there
    raylite start --address={address}{token}

To use it from a Python program on this machine:
    import raylite as ray
    ray.init({chosen})

To see what it does, run
    raylite status{option}
and to end this machine's part of it
    raylite stop{option}"""

_ELSEWHERE = """ --token-file=FILE
where FILE is a copy of this machine's {file}, as secret as that is there."""

_OWN_CERTIFICATES = " --tls-server-cert=CERT --tls-server-key=KEY --tls-ca-cert=CA"

_READABLE = """\
WARNING: nothing that this node says to others is encrypted. Whoever can read the network between them
reads all data and code that they send; whoever can change what is sent can run code as this user."""

_ONLY_HERE = """\


Only this machine reaches {address}. For others, start the head with --node-ip-address."""

_OF_TABLES = re.compile(
    r"^\S+ \S+ (?:WARNING|ERROR) raylite\._services\.gcs\.storage\.\w+: (.*)", re.MULTILINE
)


@click.command()
@click.option("--head", is_flag=True, help="Start a new cluster, with this node as its head.")
@click.option(
    "--address",
    metavar="HOST:PORT",
    help="Join the cluster whose head listens there. On the machine of one of its nodes the session "
    "directory of that will do as well, or auto for the node that was started last.",
)
@click.option("--port", type=PORT, help=f"The head's port, 0 for any.  [default: {PORT_OF_HEADS}]")
@click.option(
    "--node-ip-address",
    default="",
    metavar="IP",
    help="Where other machines reach this node.  [default: a head's is only this machine's "
    f"{LOOPBACK}, another node's is that of its way to the head]",
)
@click.option(
    "--bind",
    default="",
    metavar="IP",
    help="Where this node listens, 0.0.0.0 or :: for every network of this machine.  "
    "[default: the address where it is reached]",
)
@click.option("--num-cpus", type=float, help="CPUs to offer.  [default: this machine's]")
@click.option("--num-gpus", type=float, help="GPUs to offer.  [default: NVIDIA's that it sees]")
@click.option(
    "--memory",
    type=float,
    metavar="BYTES",
    help="The resource memory.  [default: what is left beside the objects]",
)
@click.option("--resources", metavar="JSON", help="Further resources, like '{\"oven\": 2}'.")
@click.option("--labels", metavar="K=V,...", help="Labels of the node, like zone=a,disk=ssd.")
@click.option("--labels-file", metavar="FILE", help="Others, one on each line, like zone: a.")
@click.option(
    "--object-store-memory",
    type=click.IntRange(min=1),
    metavar="BYTES",
    help="Room for large objects.  [default: 30 % of the memory, used only as objects fill it]",
)
@click.option(
    "--node-manager-port",
    type=PORT,
    help="This node's port, 0 for any.  [default: a head's is --port, another node's is any]",
)
@click.option(
    "--min-worker-port",
    type=PORT,
    help="Let other nodes reach workers and drivers directly, at ports from this one on, 0 for any.  "
    "[default: by this node's port]",
)
@click.option(
    "--max-worker-port",
    type=PORT,
    help=f"The last one.  [default: {LAST_OF_WORKERS}; with it alone, the first is {FIRST_OF_WORKERS}]",
)
@click.option("--worker-port-list", type=PORTS, metavar="PORT,...", help="Those ports, one by one.")
@click.option(
    "--temp-dir",
    default="",
    metavar="DIR",
    help="Where sessions are made, a whole path.  [default: $RAYLITE_TMPDIR, or the system's]",
)
@click.option(
    "--storage",
    default="",
    metavar="URL",
    help="Where a head keeps the cluster's tables: a file, or redis://host:port/db?cluster=name.  "
    "[default: a file that ends with the cluster]",
)
@click.option(
    "--token-file",
    default="",
    metavar="FILE",
    help="The token of the cluster to join, as its head has made it.  [default: "
    "$RAYLITE_TOKEN_FILE, or that of a node of the cluster on this machine]",
)
@click.option(
    "--ca-fingerprint",
    default="",
    metavar="sha256:...",
    help="By which the cluster to join is known, as its head has printed it.  [default: known from "
    "a node of the cluster on this machine]",
)
@click.option(
    "--insecure-plaintext",
    is_flag=True,
    help="Let nodes of other machines speak without encryption. Whoever can read the network "
    "reads all that they say.",
)
@certificates
@click.option(
    "--system-config",
    metavar="JSON",
    help="Settings of the cluster, a head's to give, like '{\"infeasible_grace_s\": 60}'.",
)
@click.option("--block", is_flag=True, help="Stay, and end with the node.")
@rays.of_start
def start(
    head: bool,
    address: str | None,
    port: int | None,
    node_ip_address: str,
    labels: str | None,
    labels_file: str | None,
    resources: str | None,
    system_config: str | None,
    node_manager_port: int | None,
    min_worker_port: int | None,
    max_worker_port: int | None,
    worker_port_list: tuple[int, ...] | None,
    storage: str,
    token_file: str,
    bind: str,
    ca_fingerprint: str,
    tls_server_cert: str,
    tls_server_key: str,
    tls_ca_cert: str,
    insecure_plaintext: bool,
    temp_dir: str,
    block: bool,
    **amounts: Any,
) -> None:
    """Start a cluster on this machine (--head), or have it join one (--address).

    The node goes on when this command has ended, until `raylite stop`. Programs on this machine find
    it by themselves.
    """
    if head is (address is not None):
        raise click.UsageError("Give either --head or --address=HOST:PORT.")
    for name, value in (("port", port), ("storage", storage), ("system-config", system_config)):
        if value not in (None, "") and not head:
            raise click.UsageError(f"--{name} is for heads: leave it out to join {address}.")
    if head and token_file:
        raise click.UsageError(
            "--token-file is to join a cluster: a head makes a token of its own."
        )
    gcs_port = PORT_OF_HEADS if port is None else port
    with explained():
        workers = check_ports(
            {"--port": gcs_port if head else 0, "--node-manager-port": node_manager_port or 0},
            min_worker_port,
            max_worker_port,
            worker_port_list,
        )
        offered = _offered(amounts, _object("--resources", resources), _labels(labels, labels_file))
        system = _object("--system-config", system_config) or {}
        validate_init_options({"_system_config": system})
        started = start_node(
            NodeOptions(
                SessionOptions(**offered, temp_dir=temp_dir, system=system),
                address,
                ip=node_ip_address,
                bind=bind,
                gcs_port=gcs_port,
                raylet_port=node_manager_port,
                worker_ports=workers,
                storage=storage,
                token_file=token_file,
                pin=ca_fingerprint,
                insecure=insecure_plaintext,
                certificates=given(tls_server_cert, tls_server_key, tls_ca_cert),
            )
        )
        if insecure_plaintext:
            click.echo(_READABLE, err=True)
        _warn_of_tables(started)
        if block:
            _watch(started, temp_dir)
        try:
            click.echo(_describe(started, temp_dir))
            started.node.accept(outlives=True)
        except BaseException:
            started.node.stop()
            raise


def _warn_of_tables(started: Started) -> None:
    """Tell here what the GCS has had to say of the tables it found: that some are lost, above all."""
    said = ""
    with suppress(OSError):  # it had nothing to say
        said = (started.node.config.logs / "gcs.log").read_text(errors="replace")
    for warning in _OF_TABLES.findall(said):
        click.echo(f"WARNING: {warning}", err=True)


def _offered(
    amounts: Mapping[str, Any], resources: Any, labels: Mapping[str, str] | None
) -> dict[str, Any]:
    """Check what the node is to offer as `init` would; return what makes `SessionOptions`."""
    offered = {**amounts, "resources": resources, "labels": labels}
    named = {"_memory" if name == "memory" else name: value for name, value in offered.items()}
    validate_init_options(named)
    return offered


def _object(option: str, text: str | None) -> Any:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"{option} is not JSON ({error}): write it like '{{\"name\": 1}}', quotes included"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{option} must be a JSON object, like '{{\"name\": 1}}', not {text}")
    return value


def _labels(text: str | None, file: str | None) -> dict[str, str] | None:
    if text is None and file is None:
        return None
    return {**(labels_of.in_file(file) if file else {}), **labels_of.typed(text)}


def _describe(started: Started, temp_dir: str) -> str:
    row, config = started.row, started.node.config
    address, is_reached = config.cluster, not is_loopback(config.ip)
    option = f" --temp-dir={quote(temp_dir)}" if temp_dir else ""
    if credentials.taken(config.tls) is not None:
        address += _OWN_CERTIFICATES
    elif config.tls:
        address += f" --ca-fingerprint={credentials.pin(config.tls)}"
    shown = {name: row.resources[name] for name in ("CPU", "GPU") if name in row.resources}
    text = _STARTED.format(
        what="the head of a new cluster"
        if row.head
        else f"part of the cluster at {config.cluster}",
        node=row.node_id.hex()[:12],
        resources=", ".join(f"{amount:g} {name}" for name, amount in shown.items()) or "no CPU",
        address=address,
        token=_ELSEWHERE.format(file=config.token_file) if is_reached else option,
        option=option,
        chosen=f"_temp_dir={temp_dir!r}" if temp_dir else "",
    )
    is_closed = row.head and not is_reached
    return text + (_ONLY_HERE.format(address=config.cluster) if is_closed else "")


def _watch(started: Started, temp_dir: str) -> NoReturn:
    """Stay until the node ends, or this process is told to bring its end about."""
    node = started.node
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        click.echo(_describe(started, temp_dir))
        node.accept(outlives=False)
        while (reason := node.failure()) is None:
            wait_readable(node.fileno(), None)
    except KeyboardInterrupt:
        node.stop()
        sys.exit(0)
    was_stopped = node.was_stopped
    node.stop()
    if was_stopped:
        sys.exit(0)
    raise RaySystemError(reason)
