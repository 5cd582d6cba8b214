"""The raylet's watch over this node's drivers: a killed one's job ends with it, not a minute later.

A link outlasts a broken connection, so the link to a driver that was killed would not end before
the session timeout. That a process of this machine has ended, its pidfd says at once and exactly.
"""

import asyncio
import os
from functools import partial

from raylite._kernel import processes
from raylite._services.raylet.pool import Member, PoolService

_SCHEME = "unix:"


class DriverWatch:
    """Tells a pool of its drivers' ends, and removes the sockets that dead processes leave."""

    def __init__(self, pool: PoolService) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._pidfds: dict[bytes, int] = {}
        pool.on_driver = self._follow
        pool.on_gone.append(self._gone)

    def close(self) -> None:
        for id in list(self._pidfds):
            self._leave(id)

    def _follow(self, driver: Member) -> None:
        self._leave(driver.id)
        try:
            pidfd = processes.open_pidfd(driver.pid)
        except ProcessLookupError:
            self._loop.call_soon(self._pool.driver_ended, driver)
            return
        self._pidfds[driver.id] = pidfd
        self._loop.add_reader(pidfd, partial(self._pool.driver_ended, driver))

    def _gone(self, member: Member, cause: str) -> None:
        self._leave(member.id)
        if _SCHEME in member.address and not member.is_guest:
            try:
                os.unlink(member.address.rpartition(_SCHEME)[2])
            except OSError:
                pass  # it removed its socket itself

    def _leave(self, id: bytes) -> None:
        if (pidfd := self._pidfds.pop(id, None)) is not None:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
