"""Deadlines: those of anyio's cancel scopes, which travel with calls.

Only a program that has loaded anyio can have set one, so it is loaded here no sooner than a deadline
comes from elsewhere: it is a seventh of what a node's start would import.
"""

import math
import sys
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Protocol


class Scope(Protocol):
    """The part of `anyio.CancelScope` that is used here."""

    @property
    def cancelled_caught(self) -> bool: ...


def effective_deadline() -> float:
    """Return when the innermost scope around the running task ends, by the loop's clock."""
    # Absent, or in the middle of being imported by another thread: then there is no scope.
    innermost = getattr(sys.modules.get("anyio"), "current_effective_deadline", None)
    return math.inf if innermost is None else innermost()


def cancel_scope(deadline: float) -> AbstractContextManager[Scope]:
    """Return a scope that ends at a moment of the loop's clock."""
    scope: AbstractContextManager[Scope] = import_module("anyio").CancelScope(deadline=deadline)
    return scope
