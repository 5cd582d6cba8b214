"""The command group: names of subcommands and where each is defined."""

import importlib
from collections.abc import Mapping

import click

from raylite._version import __version__

SUBCOMMANDS: Mapping[str, tuple[str, str]] = {
    "health-check": (
        "health_check:health_check",
        "Ask whether a cluster answers: exit code 0 or 1.",
    ),
    "microbenchmark": (
        "microbenchmark:microbenchmark",
        "Measure tasks and objects on a new cluster.",
    ),
    "start": ("start:start", "Start a cluster on this machine, or join one."),
    "status": ("status:status", "Show a cluster's nodes and resources."),
    "stop": ("stop:stop", "End the nodes that were started on this machine."),
    "token": ("token:token", "Change the token of a running cluster."),
}
"""Where each subcommand is in this package, and its line in the group's help."""


class LazyGroup(click.Group):
    """A group whose subcommands are imported when they are used, so that each starts fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all subcommands, sorted."""
        return sorted({*super().list_commands(ctx), *SUBCOMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one subcommand; None if there is none of that name."""
        if cmd_name not in SUBCOMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _, name = SUBCOMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(f"raylite.cli.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in sorted(SUBCOMMANDS.items())])


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"raylite, version {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Clusters for tasks and objects, with the API of Ray Core.

    A program that calls raylite.init() needs none of this: it gets a cluster of its own. These
    commands are for clusters that outlive programs and are shared by them.
    """
