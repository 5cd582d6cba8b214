"""Ray's options that have no effect here: taken, so that its command lines work, and not in the help."""

from collections.abc import Callable
from typing import Any

import click

Command = Callable[..., Any]

_EVERYWHERE: dict[str, type] = {"--log-style": str, "--log-color": str}
_OF_START: dict[str, type] = {
    "--autoscaling-config": str,
    "--cgroup-path": str,
    "--dashboard-agent-grpc-port": int,
    "--dashboard-agent-listen-port": int,
    "--dashboard-host": str,
    "--dashboard-port": int,
    "--include-dashboard": bool,
    "--include-log-monitor": bool,
    "--metrics-export-port": int,
    "--node-name": str,
    "--object-manager-port": int,
    "--object-spilling-directory": str,
    "--plasma-directory": str,
    "--proxy-server-url": str,
    "--ray-client-server-port": int,
    "--redis-password": str,
    "--redis-shard-ports": str,
    "--redis-username": str,
    "--runtime-env-agent-port": int,
    "--system-reserved-cpu": float,
    "--system-reserved-memory": int,
    "--tracing-startup-hook": str,
}
_FLAGS_OF_START = (
    "--disable-usage-stats",
    "--enable-object-reconstruction",
    "--enable-resource-isolation",
    "--no-monitor",
    "--no-redirect-output",
    "--ray-debugger-external",
)


def of_start(command: Command) -> Command:
    """Take those of `ray start`."""
    for name in _FLAGS_OF_START:
        command = click.option(name, is_flag=True, hidden=True, expose_value=False)(command)
    return _options(_OF_START, of_any(command))


def of_any(command: Command) -> Command:
    """Take those that most commands of Ray's have."""
    verbose = click.option("-v", "--verbose", count=True, hidden=True, expose_value=False)
    return _options(_EVERYWHERE, verbose(command))


def _options(kinds: dict[str, type], command: Command) -> Command:
    for name, kind in kinds.items():
        command = click.option(name, type=kind, hidden=True, expose_value=False)(command)
    return command
