"""Loading what is heavy, when it is first needed."""

from __future__ import annotations

import gc
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType


def load(name: str) -> ModuleType:
    """Import a module that brings many others, with the garbage collector at rest.

    Modules are not garbage, and looking for it among them takes a tenth of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return import_module(name)
    finally:
        if was_enabled:
            gc.enable()
