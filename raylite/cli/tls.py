"""The options that name certificates of one's own; the environment may name them, too, as Ray's does."""

from collections.abc import Callable
from typing import Any

import click

_OPTIONS = (
    ("--tls-server-cert", "This node's certificate, of a CA of your own"),
    ("--tls-server-key", "Its key, which only you may read"),
    ("--tls-ca-cert", "The CA that has signed for every node of the cluster"),
)


def certificates(command: Callable[..., Any]) -> Callable[..., Any]:
    """Take the three files, in PEM: as `tls_server_cert`, `tls_server_key`, `tls_ca_cert`."""
    for name, what in reversed(_OPTIONS):
        variable = name.strip("-").replace("-", "_").upper()
        command = click.option(
            name,
            default="",
            metavar="FILE",
            envvar=[f"RAYLITE_{variable}", f"RAY_{variable}"],
            help=f"{what}.  [default: $RAYLITE_{variable}, $RAY_{variable}]",
        )(command)
    return command
