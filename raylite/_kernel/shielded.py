"""Work in a thread that is not left half-done, whoever cancels those who await it.

A module of its own, for anyio takes tens of milliseconds to load, and workers need none of it.
"""

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

from anyio import CancelScope

from raylite._kernel.threads import expect_loop

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Do this in a thread. A thread cannot be cancelled: who cancels this gets it when all is done.

    The cancellation is then raised from the work's own error, if it ended with one.

    Raises:
        RuntimeError: No asyncio loop runs here: this may be trio.
    """
    expect_loop("raylite.init")
    working = asyncio.ensure_future(asyncio.to_thread(work))
    cancelled: asyncio.CancelledError | None = None
    while not working.done():
        try:
            # An anyio scope that was cancelled says so in every turn of the loop: once is enough.
            with nullcontext() if cancelled is None else CancelScope(shield=True):
                await asyncio.wait([working])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return working.result()
    if (failed := working.exception()) is not None:
        raise cancelled from failed
    raise cancelled
