"""`raylite token`: a new token in the place of the old, while the cluster runs."""

import click

from raylite._runtime.rotation import (
    issue as add_lesser,
    revoke as revoke_old,
    rotate as add_new,
    withdraw,
)
from raylite.cli.errors import explained

_ROTATED = """\
Two tokens are valid now for this machine's part of the cluster at {cluster}: {new}, which is new, and {old}.

On each other machine, run
    raylite token rotate --token-file=FILE
where FILE is a copy of this machine's {file}, as secret as that is there. When all have it, run on each
    raylite token revoke"""

_REVOKED = """\
The token {old} is no longer valid for this machine's part of the cluster at {cluster}; {new} is. What
was connected by it is cut within seconds, and comes back if it has the new one."""

_ISSUED = """\
{file} holds the token {new}, of the scope {scope}, which the cluster at {cluster} knows. Revoke it with
    raylite token revoke --id={new}"""

_WITHDRAWN = """\
The token {old} is no longer valid for the cluster at {cluster}. What was connected by it is cut within
seconds."""

_ADDRESS = click.option(
    "--address", metavar="HOST:PORT", help="The cluster.  [default: this machine's]"
)
_TEMP_DIR = click.option("--temp-dir", default="", metavar="DIR", help="Where sessions are.")


@click.group()
def token() -> None:
    """Change the token of a running cluster: rotate on each machine, then revoke on each.

    In between two tokens are valid, so nothing that runs is disturbed. Do both when a copy of the
    token may have come into wrong hands, or somebody who had it is no longer to have it.
    """


@token.command()
@_ADDRESS
@click.option(
    "--token-file",
    default="",
    metavar="FILE",
    help="A copy of the file of a machine that has the new token.  [default: a token is made]",
)
@_TEMP_DIR
def rotate(address: str | None, token_file: str, temp_dir: str) -> None:
    """Let this machine's nodes know a new token besides the old one."""
    with explained():
        done = add_new(address, token_file, temp_dir)
    click.echo(
        _ROTATED.format(cluster=done.cluster, new=done.new, old=done.old, file=done.files[0])
    )


@token.command(short_help="Have this machine's nodes forget the old one, or one issued.")
@_ADDRESS
@click.option("--id", metavar="ID", help="A token that was issued, instead.")
@_TEMP_DIR
def revoke(address: str | None, id: str | None, temp_dir: str) -> None:
    """Have this machine's nodes forget the older of two tokens, or one that was issued."""
    if (
        id is not None and not id.strip()
    ):  # of a variable that is not set: it does not mean the cluster's
        raise click.BadParameter(
            "no token has an empty id; `raylite token issue` has told it", param_hint="'--id'"
        )
    with explained():
        done = revoke_old(address, temp_dir) if id is None else withdraw(id, address, temp_dir)
    told = _REVOKED if id is None else _WITHDRAWN
    click.echo(told.format(cluster=done.cluster, new=done.new, old=done.old))


@token.command(short_help="Make a token that allows less, in a new file.")
@click.argument("file")
@click.option(
    "--scope",
    type=click.Choice(["read", "node"]),
    default="read",
    show_default=True,
    help="What it allows: to ask for the cluster's state; or to join nodes, and not to run drivers.",
)
@_ADDRESS
@_TEMP_DIR
def issue(file: str, scope: str, address: str | None, temp_dir: str) -> None:
    """Make a token that allows less than the cluster's own, in a new file.

    `raylite status --address=... --token-file=FILE` needs no more than the scope read. Run this on
    the head's machine, from which the other nodes hear of tokens of the scope node.
    """
    with explained():
        done = add_lesser(file, scope, address, temp_dir)
    click.echo(_ISSUED.format(cluster=done.cluster, new=done.new, scope=scope, file=file))
