"""A host: one process's services on one network, from start to stop."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from raylite._kernel.network import Network
from raylite._kernel.scope import Scope
from raylite._kernel.service import Service


class Host:
    """Runs services until told to stop, or until one of them crashes.

    `stop` refuses new work, gives the services `grace` seconds to finish their conversations, then
    cancels. A crash of a service is raised by `run`, even one that happens on the way out.
    """

    def __init__(self, network: Network, *services: Service, grace: float = 1.0) -> None:
        self.network = network
        self._services = services
        self._grace = grace
        self._scope = Scope("host")
        self._stopping = asyncio.Event()
        self._signals: list[int] = []
        network.host(*services)

    def also(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Run something beside the services whose end, other than by stop, is a crash."""
        self._scope.start(work, name).add_done_callback(self._done)

    def stop(self) -> None:
        """Let `run` end."""
        self._stopping.set()

    def stop_on(self, *signals: int) -> None:
        """Stop when the process is sent one of these signals, until `run` has ended."""
        for number in signals:
            asyncio.get_running_loop().add_signal_handler(number, self.stop)
            self._signals.append(number)

    def start(self, name: str) -> "asyncio.Task[None]":
        """Begin to `run` beside the caller, who awaits the task."""
        return asyncio.get_running_loop().create_task(self.run(), name=name)

    async def run(self) -> None:
        """Serve until `stop`, and raise what crashed, if anything did."""
        for service in self._services:
            self.also(service.run(), type(service).__name__)
        self._scope.start(self._wait_stopping(), "host stop")
        try:
            await self._scope.join()
        finally:
            for number in self._signals:
                asyncio.get_running_loop().remove_signal_handler(number)
            try:
                await self.network.close()
            finally:
                await self._scope.close()

    async def _wait_stopping(self) -> None:
        await self._stopping.wait()
        try:
            async with asyncio.timeout(self._grace):
                for service in self._services:
                    await service.drain()
        except TimeoutError:
            pass  # what has not ended by now is cancelled
        self._scope.end()

    def _done(self, task: "asyncio.Task[Any]") -> None:
        is_stopping = self._stopping.is_set() or self._scope.is_closed
        if not is_stopping and not task.cancelled() and task.exception() is None:
            self._scope.crash(RuntimeError(f"{task.get_name()} has ended, and should not"))
