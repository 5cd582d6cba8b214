"""Ports as options: which are possible, and which clash."""

from collections.abc import Mapping
from typing import Any

import click

LOWEST, HIGHEST = 1024, 65535
FIRST_OF_WORKERS, LAST_OF_WORKERS = 10002, 19999  # Ray's, where one end of the range is not given
_ALLOWED = f"a port is 0, for any that is free, or from {LOWEST} to {HIGHEST}"


class Port(click.ParamType[int]):
    """A port that a program may listen on, or 0."""

    name = "port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read one."""
        text = str(value).strip()
        if not text.isdecimal() or not (int(text) == 0 or LOWEST <= int(text) <= HIGHEST):
            self.fail(f"{text!r} is not possible: {_ALLOWED}.", param, ctx)
        return int(text)


class Ports(click.ParamType[tuple[int, ...]]):
    """Several ports, with commas between them."""

    name = "ports"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Read all of them."""
        return tuple(PORT.convert(each, param, ctx) for each in str(value).split(","))


PORT, PORTS = Port(), Ports()


def check_ports(
    own: Mapping[str, int], first: int | None, last: int | None, several: tuple[int, ...] | None
) -> tuple[int, ...]:
    """Return the ports for workers: 0 for any, none if they are to have none of their own.

    Args:
        own: The node's own ports by the option that gives them; 0 is any.
        first: The first of a range for workers.
        last: The last of it.
        several: The workers' ports one by one, instead of a range.

    Raises:
        ValueError: The range is none, or one port is meant for two.
    """
    chosen = {option: port for option, port in own.items() if port}
    for option, port in chosen.items():
        others = [other for other, its in chosen.items() if its == port and other != option]
        if others:
            raise ValueError(f"{option} and {others[0]} are both {port}: give them different ports")
    workers = _workers(first, last, several)
    for option, port in chosen.items():
        if port in workers:
            raise ValueError(
                f"{option}={port} is one of the workers' ports, {_listed(workers)}: "
                "choose another port, or other ports for workers"
            )
    return workers


def _workers(
    first: int | None, last: int | None, several: tuple[int, ...] | None
) -> tuple[int, ...]:
    if several is not None:
        if first is not None or last is not None:
            raise ValueError(
                "--worker-port-list, and a range with --min-worker-port and --max-worker-port, "
                "exclude one another: leave one out"
            )
        return tuple(sorted(set(several)))
    if first is None and last is None:
        return ()
    if not first and not last:
        return (0,)
    lowest = first or FIRST_OF_WORKERS
    highest = last or (LAST_OF_WORKERS if lowest <= LAST_OF_WORKERS else HIGHEST)
    if lowest > highest:
        remedy = "exchange them" if first else f"give the first port, which is {lowest} otherwise"
        raise ValueError(
            f"--min-worker-port={lowest} is above --max-worker-port={highest}: {remedy}"
        )
    return tuple(range(lowest, highest + 1))


def _listed(ports: tuple[int, ...]) -> str:
    """`ports`, which are in order, as a user has given them: a range, or one by one."""
    if len(ports) > 1 and ports[-1] - ports[0] == len(ports) - 1:
        return f"{ports[0]} to {ports[-1]}"
    return ", ".join(map(str, ports))
