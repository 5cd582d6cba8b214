"""Outcomes: of each object its value, or the error that reading it would raise."""

from collections.abc import Sequence
from time import monotonic
from typing import Any

from raylite._services.worker.copies import Bringing
from raylite._services.worker.core import Core
from raylite._services.worker.objects import Entry, ObjectRef
from raylite._wire import pickling
from raylite.exceptions import RayError


def outcomes(core: Core, refs: Sequence[ObjectRef[Any]], timeout: float | None) -> list[Any]:
    """Block until all these objects are there and here; return values and errors, in order.

    Raises:
        GetTimeoutError: Time ran out, which is no outcome of any of them.
    """
    started = monotonic()
    entries = [ref._entry for ref in refs]
    core.await_all(entries, timeout)
    away = [entry for entry in dict.fromkeys(entries) if core.is_away(entry)]
    if not away:
        return [_outcome(core, entry, None) for entry in entries]
    left = None if timeout is None else timeout - (monotonic() - started)
    # One by one: of several that are brought together, all fail with the first.
    brought = dict(zip(away, core.bring_each([[entry] for entry in away], left), strict=True))
    return [_outcome(core, entry, brought.get(entry)) for entry in entries]


def _outcome(core: Core, entry: Entry, bringing: Bringing | None) -> Any:
    try:
        if bringing is not None:
            return pickling.load_value(bringing.result()[entry])
        return core.load(entry)
    except RayError as error:
        return error.with_traceback(None)  # nobody raised it yet; its frames would hold the core
