"""A table: rows that a service has at hand and a storage keeps."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

from msgspec import Struct

from raylite._kernel.topic import Topic
from raylite._services.gcs.storage import Storage, Write

KEPT = 1000  # rows that are over, and only kept to be looked at


class Row(Protocol):
    """What a table keeps: a message, or bytes."""

    def __bytes__(self) -> bytes: ...


R = TypeVar("R", bound=Row)


class Change(Struct, Generic[R], frozen=True):
    """What stands under a key from now on; None is nothing."""

    key: bytes
    row: R | None


class Table(Generic[R]):
    """Rows by key. What can be read is durable; what is decided on is the latest.

    A handler decides on `latest`, in which each change stands as soon as it is submitted, so that
    two handlers at once cannot both be the first. `rows` and `changes` show a change when it is
    durable, so that nothing which anybody saw is lost. A change whose writer is cancelled happens
    all the same; one that fails leaves no trace.

    Of rows that are over, the last `KEPT` to become so are kept.
    """

    def __init__(
        self,
        storage: Storage,
        name: str,
        decode: Callable[[bytes], R],
        is_over: Callable[[R], bool] = lambda row: False,
    ) -> None:
        self._storage = storage
        self.name = name
        self._decode = decode
        self._is_over = is_over
        self._rows: dict[bytes, R] = {}
        self._over: dict[bytes, None] = {}
        self._submitted: dict[bytes, tuple[R | None, asyncio.Future[None]]] = {}
        self.on_change: list[Callable[[Change[R]], None]] = []  # also of what is read or forgotten
        self.changes: Topic[Change[R]] = Topic()

    async def load(self) -> None:
        """Read what the storage has kept."""
        for key, row in (await self._storage.load(self.name)).items():
            self._apply(Change(key, self._decode(row)))

    @property
    def rows(self) -> Mapping[bytes, R]:
        """The durable rows."""
        return MappingProxyType(self._rows)

    def latest(self, key: bytes) -> R | None:
        """Return what stands under a key once all that was submitted is durable."""
        if key in self._submitted:
            return self._submitted[key][0]
        return self._rows.get(key)

    def all_latest(self) -> Iterator[tuple[bytes, R]]:
        """Yield every row that is there once all that was submitted is durable."""
        for key in [*self._rows, *(key for key in self._submitted if key not in self._rows)]:
            if (row := self.latest(key)) is not None:
                yield key, row

    async def durable(self, key: bytes) -> None:
        """Return when what is latest under a key is durable; raise if that fails."""
        if key in self._submitted:
            await asyncio.shield(self._submitted[key][1])

    async def put(self, key: bytes, row: R) -> None:
        """Change one row; return when that is durable."""
        await self.write([Change(key, row)])

    async def write(self, changes: Sequence[Change[R]], also: Iterable[Write] = ()) -> None:
        """Make changes, all or none, and with them other writes; return when they are durable."""
        forgotten: list[Change[R]] = [Change(key, None) for key in self._outlived()]
        writes = [
            Write(self.name, change.key, None if change.row is None else bytes(change.row))
            for change in [*forgotten, *changes]
        ]
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._submitted.update((change.key, (change.row, ended)) for change in changes)
        done = self._storage.submit([*writes, *also])
        conclude = partial(self._conclude, forgotten, changes, ended)
        if done.done():
            conclude(done)
        else:
            done.add_done_callback(conclude)
        await asyncio.shield(ended)

    def _outlived(self) -> list[bytes]:
        beyond = len(self._over) - KEPT
        oldest = list(self._over)[: max(beyond, 0)]
        return [key for key in oldest if key not in self._submitted]

    def _conclude(
        self,
        forgotten: Sequence[Change[R]],
        changes: Sequence[Change[R]],
        ended: "asyncio.Future[None]",
        done: "asyncio.Future[None]",
    ) -> None:
        for change in changes:
            if change.key in self._submitted and self._submitted[change.key][1] is ended:
                del self._submitted[change.key]
        if (error := done.exception()) is not None:
            ended.set_exception(error)
            ended.exception()  # retrieved: whoever waited may have been cancelled
            return
        for change in forgotten:
            self._apply(change)
        for change in changes:
            self._apply(change)
            self.changes.publish(change)
        ended.set_result(None)

    def _apply(self, change: Change[R]) -> None:
        self._over.pop(change.key, None)
        if change.row is None:
            self._rows.pop(change.key, None)
        else:
            self._rows[change.key] = change.row
            if self._is_over(change.row):
                self._over[change.key] = None
        for listener in self.on_change:
            listener(change)
