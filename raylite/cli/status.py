"""`raylite status`: a cluster at a glance, in the form of Ray's."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

import click

from raylite._runtime import inquiry, networks
from raylite._runtime.given import given
from raylite._types.resources import Resources
from raylite._wire import hot
from raylite._wire.messages import gcs as msg
from raylite.cli import rays
from raylite.cli.errors import explained
from raylite.cli.tls import certificates

_RULE = "-" * 63
_BYTES = ("memory", "object_store_memory")
_FAILURES_SHOWN = 10


@click.command()
@click.option("--address", metavar="HOST:PORT", help="The cluster.  [default: this machine's]")
@click.option(
    "--token-file",
    default="",
    metavar="FILE",
    help="The cluster's token.  [default: $RAYLITE_TOKEN_FILE, or that of this machine's node]",
)
@click.option(
    "--ca-fingerprint",
    default="",
    metavar="sha256:...",
    help="By which the cluster is known on a machine without a node, as its head has printed it.",
)
@certificates
@click.option("--temp-dir", default="", metavar="DIR", help="Where sessions are.")
@rays.of_any
def status(
    address: str | None,
    token_file: str,
    temp_dir: str,
    ca_fingerprint: str,
    tls_server_cert: str,
    tls_server_key: str,
    tls_ca_cert: str,
) -> None:
    """Show a cluster's nodes, those that died of late, what of its resources is in use, and what waits.

    What waits is a second old, and shown by what it needs: the largest numbers, of 20 kinds.
    """
    with explained():
        files = given(tls_server_cert, tls_server_key, tls_ca_cert)
        gcs, keys = networks.way_in(address, token_file, temp_dir, files, ca_fingerprint)
        nodes, demand = inquiry.overview(gcs, keys)
        click.echo("\n".join(describe(nodes, demand, datetime.now())))


def describe(nodes: Sequence[msg.Node], demand: hot.Demand, now: datetime) -> Iterator[str]:
    """Yield the lines that show these rows of the table of nodes, and what waits for a place."""
    living = [node for node in nodes if node.alive]
    dead = [node for node in nodes if not (node.alive or node.left)]  # who left did not fail
    dead = sorted(dead, key=lambda node: -node.ended_at)
    yield f"======== Cluster status: {now:%Y-%m-%d %H:%M:%S} ========"
    yield from ("Node status", _RULE, "Active:")
    yield from map(_node, living) if living else (" (no nodes)",)
    yield "Recent failures:"
    yield from map(_failure, dead[:_FAILURES_SHOWN]) if dead else (" (no failures)",)
    yield from ("", "Resources", _RULE, "Total Usage:")
    yield from _usage(living)
    yield from ("", "Pending Demands:")
    if not (demand.pending or demand.infeasible):
        yield " (no resource demands)"
    for units, count in demand.pending:
        yield f" {_shape(units)}: {count}+ pending tasks/actors"
    for units, count in demand.infeasible:
        yield f" {_shape(units)}: {count}+ pending tasks/actors, infeasible: no node can run them"


def _shape(units: Mapping[str, int]) -> str:
    return str(Resources.from_units(units).to_floats())


def _node(node: msg.Node) -> str:
    role = "head, " if node.head else ""
    doubt = ": SUSPECT, it has not been heard for some seconds" if node.suspect else ""
    return f" 1 node_{node.node_id.hex()[:12]} ({role}{node.hostname}, {node.ip}){doubt}"


def _failure(node: msg.Node) -> str:
    when = datetime.fromtimestamp(node.ended_at)
    return f" node_{node.node_id.hex()[:12]} ({node.ip}) at {when:%H:%M:%S}: {node.death_reason}"


def _usage(nodes: Sequence[msg.Node]) -> Iterator[str]:
    total, free = Counter[str](), Counter[str]()
    for node in nodes:
        total.update(node.resources)
        free.update(node.available)
    for name in sorted(total):
        if not name.startswith("node:"):
            used = max(total[name] - free[name], 0.0)
            yield f" {_amount(name, used)}/{_amount(name, total[name])} {name}"


def _amount(name: str, amount: float) -> str:
    if name not in _BYTES:
        return f"{amount:.10g}" if amount % 1 else f"{amount:.1f}"
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.4g}{unit}"
        amount /= 1024
    return f"{amount:.2f}GiB"
