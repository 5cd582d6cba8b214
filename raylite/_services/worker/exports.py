"""Exports: functions on their way to workers: how large one may be, and how often it is normal to define one."""

import logging
from collections import Counter
from collections.abc import Callable
from types import CodeType
from typing import Any

logger = logging.getLogger("raylite")

WARNING, LIMIT = 10 * 1024 * 1024, 100 * 1024 * 1024  # bytes of a pickled function
REPEATS = 100  # definitions of the same code in a session that are not yet remarkable
_CODES_KEPT = 1000


def check_size(kind: str, name: str, size: int) -> None:
    """Warn of a function, or a class, that is large to send to each worker; refuse one that is too large."""
    advice = (
        "Check that its definition is not implicitly capturing a large array or other object in "
        "scope. Tip: use raylite.put() to put large objects in the object store."
    )
    if size > LIMIT:
        raise ValueError(
            f"The {kind} {name} is too large ({size >> 20} MiB > "
            f"FUNCTION_SIZE_ERROR_THRESHOLD={LIMIT >> 20} MiB). {advice}"
        )
    if size > WARNING:
        logger.warning("The %s %s is very large (%s MiB). %s", kind, name, size >> 20, advice)


class Exports:
    """Counts the definitions of a session by their code: one that is made anew in a loop is sent each time."""

    def __init__(self) -> None:
        self._counts: Counter[CodeType] = Counter()

    def note(self, kind: str, name: str, function: Callable[..., Any]) -> None:
        """Take note of one, and warn when there are remarkably many like it."""
        code = getattr(function, "__code__", None)
        if code is None:
            return
        self._counts[code] += 1
        if self._counts[code] == REPEATS + 1:
            logger.warning(
                "The %s '%s' has been exported %s times. It's possible that this warning is "
                "accidental, but this may indicate that the same %s is being defined repeatedly from "
                "within many tasks and exported to all of the workers. Define it once, at the top "
                "of a module, and call it with different arguments.",
                kind, name, REPEATS, kind,
            )  # fmt: skip
        if len(self._counts) > _CODES_KEPT:
            del self._counts[next(iter(self._counts))]
