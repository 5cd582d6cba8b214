"""Blocking: what is said to who stops an event loop by waiting for values in it."""

import logging
import os
import sys

logger = logging.getLogger("raylite")

_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(__file__))) + os.sep
_TWINS = (
    "`await ref`, `await raylite.aio.get(refs)` or `await raylite.aio.wait(refs)`, and `async for` over "
    "a generator or a map"
)


def refuse() -> RuntimeError:
    """What is raised where it would stop the loop that a worker's tasks share."""
    return RuntimeError(
        "this would stop all tasks of this worker, for they share its event loop: in an `async def` "
        f"task write {_TWINS}"
    )


def warn() -> None:
    """Warn of it where only the caller's own loop stops. In a notebook a cell is to wait."""
    if "ipykernel" not in sys.modules:
        logger.warning(
            "%s blocks its event loop with raylite.get or raylite.wait: until the values have come, "
            "nothing else runs on it. In a coroutine write %s. This is said once.",
            _caller(), _TWINS,
        )  # fmt: skip


def _caller() -> str:
    """Return where raylite was called."""
    frame = sys._getframe()
    while frame.f_code.co_filename.startswith(_PACKAGE) and frame.f_back is not None:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
