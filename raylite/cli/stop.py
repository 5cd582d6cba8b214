"""`raylite stop`: the end of this machine's nodes."""

from math import isfinite

import click

from raylite._runtime.stopping import GRACE, stop_nodes
from raylite.cli import rays
from raylite.cli.errors import explained


def _finite(ctx: click.Context, param: click.Parameter, seconds: float) -> float:
    if not isfinite(seconds):
        raise click.BadParameter(f"{seconds} is no number of seconds", ctx, param)
    return seconds


@click.command()
@click.option("-f", "--force", is_flag=True, help="Kill at once, without a goodbye.")
@click.option(
    "-g",
    "--grace-period",
    type=click.FloatRange(min=0),
    default=GRACE,
    show_default=True,
    callback=_finite,
    metavar="SECONDS",
    help="How long a node has to end by itself before it is killed.",
)
@click.option("--temp-dir", default="", metavar="DIR", help="Where the nodes' sessions are.")
@rays.of_any
def stop(force: bool, grace_period: float, temp_dir: str) -> None:
    """End the nodes that `raylite start` began on this machine, yours only, and in this --temp-dir.

    Other nodes end before heads. Programs that use the cluster are not ended: what they ask of it
    then fails. A cluster that a program started for itself ends with that program.
    """
    with explained():
        stopped = stop_nodes(temp_dir, grace_period, force=force)
    if stopped.nodes:
        by_force = f", {stopped.killed} of them by force" if stopped.killed else ""
        click.echo(f"Stopped {_nodes(stopped.nodes)}{by_force}.")
    else:
        click.echo("No node of yours was running on this machine.")
    if stopped.traces:
        click.echo(f"Cleared up after {_nodes(stopped.traces)} that had crashed.")


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
