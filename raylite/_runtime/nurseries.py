"""What this process's new nodes are forked from while a test keeps something for that: `Nursery`."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from raylite._runtime.launch import Parent

kept: list[Parent] = []
"""Those that are open, the one opened last at the end."""

os.register_at_fork(after_in_child=kept.clear)


def current() -> Parent | None:
    """Return the one that was opened last and is open, if this process has one."""
    return kept[-1] if kept else None
