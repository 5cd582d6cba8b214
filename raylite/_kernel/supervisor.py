"""Supervision: rebuild what crashed, and give up when it keeps crashing."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from msgspec import Struct

from raylite._kernel.seams import now
from raylite._kernel.service import Service

logger = logging.getLogger(__name__)


class Restart(Struct, frozen=True):
    """How often a service may crash: `limit` times within `window` seconds, `delay` apart."""

    limit: int = 5
    window: float = 60.0
    delay: float = 0.1


async def supervise(build: Callable[[], Service], policy: Restart) -> None:
    """Run a service, rebuilding it after a crash; when it keeps crashing, let the crash out.

    `build` makes a fresh service, machine and all, and hosts it on its network: a state that led
    to a crash is not reused. A service without somewhere to rebuild from is not supervised.
    """
    crashes: deque[float] = deque()
    while True:
        service = build()
        try:
            await service.run()
            return
        except Exception:
            crashes.append(now())
            while crashes[0] < now() - policy.window:
                crashes.popleft()
            if len(crashes) > policy.limit:
                raise
            logger.exception("%s crashed; restart %d", type(service).__name__, len(crashes))
            await asyncio.sleep(policy.delay)
