"""A scope owns tasks: none outlives it, a crash in one ends them all.

Like `asyncio.TaskGroup`, with one difference that simulation needs: its tasks are kept, and
cancelled, in the order they were started (a TaskGroup keeps a set hashed by address).
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

logger = logging.getLogger(__name__)


class Scope:
    """Tasks with one owner. `start` begins one; `join` waits until a crash or for ever."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._error: BaseException | None = None
        self._is_raised = False
        self._ended = asyncio.Event()
        self.is_closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, Any], name: str = "") -> "asyncio.Task[Any]":
        """Run `work` as a task of this scope.

        Raises:
            RuntimeError: The scope has ended. The work was not begun.
        """
        if self.is_closed:
            work.close()
            raise RuntimeError(f"{self._name} has ended and starts no more work")
        task = asyncio.get_running_loop().create_task(work, name=name or self._name)
        self._tasks[task] = None
        task.add_done_callback(self._done)
        return task

    async def join(self) -> None:
        """Wait for a crash and raise it; return when the scope is ended or closed."""
        await self._ended.wait()
        self._raise()

    def crash(self, error: BaseException) -> None:
        """End the scope: `join` raises this error, or `close` if nobody joins.

        The first crash is the one raised; later ones are often its consequence and are logged.
        """
        if self._error is None:
            self._error = error
        else:
            logger.error("%s crashed again", self._name, exc_info=error)
        self._ended.set()

    def end(self) -> None:
        """Let `join` return."""
        self._ended.set()

    async def close(self) -> None:
        """Cancel what still runs, first started first, and wait for it.

        Raises the crash that `join` has not raised, if there is one: a task may fail while it
        is being cancelled.
        """
        self.is_closed = True
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel()
        for task in tasks:
            while not task.done():
                await asyncio.wait([task])
        await asyncio.sleep(0)  # done callbacks run after the tasks that they are about
        self._ended.set()
        self._raise()

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.crash(error)

    def _raise(self) -> None:
        if self._error is not None and not self._is_raised:
            self._is_raised = True
            raise self._error
