"""Group commit: what gathers while one commit runs becomes durable together in the next."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from raylite._kernel.scope import Scope
from raylite._services.gcs.storage.interface import StorageError, Write


@dataclass(frozen=True, slots=True)
class _Batch:
    writes: Sequence[Write]
    done: "asyncio.Future[None]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class GroupCommit:
    """Feeds a commit, one at a time, with all that waits.

    If it fails, everyone whose writes were in the group is told so. An error that is not a
    `StorageError` is a bug of the commit, and reaches them as it is.
    """

    def __init__(self, commit: Callable[[Sequence[Write]], Awaitable[None]]) -> None:
        self.commits = 0
        self._commit = commit
        self._waiting: list[_Batch] = []
        self._scope = Scope("storage")
        self._working: asyncio.Task[None] | None = None
        self._is_closed = False

    def submit(self, writes: Sequence[Write]) -> "asyncio.Future[None]":
        """Let writes take part in the next commit; the future ends with it."""
        batch = _Batch(writes)
        if self._is_closed:
            batch.done.set_exception(StorageError("the storage is closed"))
            return batch.done
        self._waiting.append(batch)
        if self._working is None:
            self._working = self._scope.start(self._work(), "group commit")
        return batch.done

    async def close(self) -> None:
        """Refuse more, and wait until all that was submitted has been committed, or has failed."""
        self._is_closed = True
        if self._working is not None:
            await asyncio.wait([self._working])
        await self._scope.close()

    async def _work(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting, []
                await self._commit_together(group)
        finally:
            self._working = None

    async def _commit_together(self, group: list[_Batch]) -> None:
        try:
            await self._commit([write for batch in group for write in batch.writes])
        except StorageError as error:
            for batch in group:
                batch.done.set_exception(type(error)(str(error)))  # each its own: it gets frames
        except Exception as error:
            for batch in group:
                batch.done.set_exception(error)
        else:
            self.commits += 1
            for batch in group:
                batch.done.set_result(None)
