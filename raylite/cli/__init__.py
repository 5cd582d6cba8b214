"""The `raylite` command: a group that imports a subcommand only when it is asked for."""

from raylite.cli.group import main

__all__ = ("main",)
