"""`raylite health-check`: for scripts, and for whatever watches over a head."""

import click

from raylite._runtime import inquiry, networks
from raylite._runtime.given import given
from raylite.cli.errors import explained
from raylite.cli.tls import certificates
from raylite.exceptions import RaySystemError


@click.command(name="health-check")
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
def health_check(
    address: str | None,
    token_file: str,
    temp_dir: str,
    ca_fingerprint: str,
    tls_server_cert: str,
    tls_server_key: str,
    tls_ca_cert: str,
) -> None:
    """Ask whether a cluster answers and has a node that lives.

    Says nothing and ends with 0 if so; else it says why not, and ends with 1.
    """
    with explained():
        files = given(tls_server_cert, tls_server_key, tls_ca_cert)
        gcs, keys = networks.way_in(address, token_file, temp_dir, files, ca_fingerprint)
        if not any(node.alive for node in inquiry.list_nodes(gcs, keys)):
            raise RaySystemError(f"the GCS at {gcs} answers, but no node of its cluster lives")
