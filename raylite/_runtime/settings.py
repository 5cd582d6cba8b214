"""Settings of logging, which Ray takes from the environment: here by its names or by raylite's."""

import logging
import os
import re

from raylite._machines.deduplicator import WINDOW, Deduplicator
from raylite._runtime.node import Rotation


def rotation() -> Rotation:
    """Return how log files are rotated: `ROTATION_MAX_BYTES` and `ROTATION_BACKUP_COUNT`.

    Raises:
        ValueError: A variable has a value that it cannot have.
    """
    default = Rotation()
    return Rotation(
        int(_number("ROTATION_MAX_BYTES", default.size, 4096)),
        int(_number("ROTATION_BACKUP_COUNT", default.backups, 0)),
    )


def backend_level() -> int:
    """Return the level from which components log: `BACKEND_LOG_LEVEL`; what it is not is a warning."""
    _, name = setting("BACKEND_LOG_LEVEL", "warning")
    return logging.getLevelNamesMapping().get(name.upper(), logging.WARNING)


def deduplicator() -> Deduplicator | None:
    """Return how like lines are shown: `DEDUP_LOGS` and what begins so.

    Raises:
        ValueError: A variable has a value that it cannot have.
    """
    _, is_wanted = setting("DEDUP_LOGS", "1")
    if is_wanted.lower() in ("0", "false"):
        return None
    window = _number("DEDUP_LOGS_AGG_WINDOW_S", WINDOW, 0)
    return Deduplicator(window, _pattern("ALLOW"), _pattern("SKIP"))


def setting(name: str, default: str = "") -> tuple[str, str]:
    """Return the variable that is set, raylite's or else Ray's, and its value."""
    for variable in (f"RAYLITE_{name}", f"RAY_{name}"):
        if value := os.environ.get(variable):
            return variable, value
    return f"RAYLITE_{name}", default


def _number(name: str, default: float, least: int) -> float:
    variable, text = setting(name, str(default))
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not least <= number < 1e15:
        raise ValueError(f"{variable} must be a number, {least} or more, not {text!r}")
    return number


def _pattern(which: str) -> "re.Pattern[str] | None":
    variable, text = setting(f"DEDUP_LOGS_{which}_REGEX", "")
    try:
        return re.compile(text) if text else None
    except re.error as error:
        raise ValueError(f"{variable} is no regular expression: {error}: {text!r}") from error
