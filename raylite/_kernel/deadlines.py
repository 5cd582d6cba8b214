"""Deadlines: those of anyio's cancel scopes, which travel with calls.

Only a program that has loaded anyio's part for asyncio can have set one, so neither is loaded here
before a deadline comes from elsewhere: each is a seventh of what a node's start would import, and the
latter every process would load anew, after its fork.
"""

import math
import sys
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Protocol

_BACKEND = "anyio._backends._asyncio"  # `import anyio` loads it with the first scope


class Scope(Protocol):
    """The part of `anyio.CancelScope` that is used here."""

    @property
    def cancelled_caught(self) -> bool: ...


def effective_deadline() -> float:
    """Return when the innermost scope around the running task ends, by the loop's clock."""
    # Absent, or in the middle of being imported by another thread: then there is no scope.
    backend = getattr(sys.modules.get(_BACKEND), "AsyncIOBackend", None)
    return math.inf if backend is None else backend.current_effective_deadline()


def cancel_scope(deadline: float) -> AbstractContextManager[Scope]:
    """Return a scope that ends at a moment of the loop's clock."""
    scope: AbstractContextManager[Scope] = import_module("anyio").CancelScope(deadline=deadline)
    return scope
