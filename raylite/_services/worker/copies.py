"""Copies: what this process reads of objects that lie on other nodes.

Such an object is first brought to this node, which the raylet does, and is then read where it lies
now, like any other. The raylet keeps a copy as long as somebody reads it: here, as long as there is
a view of it. Whoever has a view needs no more than let it die; whoever gives up waiting for one,
cancels, and the wish is withdrawn.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TypeAlias

from raylite._kernel.arena import Arena
from raylite._kernel.link import Link
from raylite._protocol import raylet
from raylite._services.worker.objects import Entry, Fetching, Views
from raylite._services.worker.owner import ID, OwnerService, error_of
from raylite._types.ids import ObjectID
from raylite._wire import hot
from raylite._wire.hot import PullFailure, Value
from raylite.exceptions import (
    LinkError,
    ObjectLostError,
    ObjectStoreFullError,
    OwnerDiedError,
    RayError,
    raylet_died,
    to_raise,
)

GET, WAIT, ARGUMENT = range(3)
"""Why an object is wanted; lower goes first. As in `_machines/admission.py`."""

Bringing: TypeAlias = Future[Views]


class Copies:
    """Brings objects here. `bring` may be called by any thread, the rest by the loop only.

    Args:
        owner: The Owner service, which counts views.
        raylet_link: The link to this node's raylet.
        arena: The node's shared memory.
        do: Has the loop do something soon; any thread may call it, even inside the collector.
    """

    def __init__(
        self, owner: OwnerService, raylet_link: Link, arena: Arena, do: Callable[..., None]
    ) -> None:
        self._owner = owner
        self._raylet = raylet_link
        self._transfers = raylet.Transfers(raylet_link)
        self._arena = arena
        self._do = do
        self._numbers = itertools.count(1)
        self._fetching: dict[Entry, list[Fetching]] = {}
        #: This process's node, once the process is attached to it.
        self.node = b""

    def is_away(self, value: Value) -> bool:
        """Whether a value lies on another node; False as long as this process's own is unknown."""
        return bool(value.node and self.node) and value.node != self.node

    def bring(self, entries: Sequence[Entry], priority: int) -> Bringing:
        """Have objects brought here, all of them or none; the future is of views of their bytes.

        Cancel it when nobody waits any more.
        """
        bringing: Bringing = Future()
        self._do(self.begin, entries, priority, bringing)
        return bringing

    def begin(self, entries: Sequence[Entry], priority: int, bringing: Bringing) -> None:
        """Do what `bring` says."""
        if self._owner.scope.is_closed:
            bringing.cancel()
            return
        task = self._owner.spawn(self._bring(entries, priority, bringing), "bring copies")
        task.add_done_callback(lambda task: bringing.cancel())  # if this process ends before
        bringing.add_done_callback(partial(self._ended, task.cancel))

    def fetch(self, entry: Entry, waiter: Fetching) -> None:
        """Have an object brought here though nobody reads it yet: it stays if there is room.

        Ray: what `wait` has begun to fetch goes on when it returns, so that calling it in a loop,
        with a short timeout or none, comes to an end.
        """
        waiters = self._fetching.get(entry)
        if waiters is None:
            self._fetching[entry] = [waiter]
            self._owner.spawn(self._fetch(entry), "fetch a copy")
        else:
            waiters.append(waiter)

    def forget(self, entries: Iterable[Entry], waiter: Fetching) -> None:
        """This one waits no more."""
        for entry in entries:
            waiters = self._fetching.get(entry, ())
            if waiter in waiters:
                self._fetching[entry] = [each for each in waiters if each is not waiter]

    async def settle(self) -> None:
        """Wait until the raylet has answered what it can answer at once: that is what is here."""
        with suppress(RayError):
            await self._transfers.pull(hot.Pull(next(self._numbers), GET, ()))

    # ---- inside ----------------------------------------------------------------------------

    def _ended(self, cancel: Callable[[], object], bringing: Bringing) -> None:
        if bringing.cancelled():
            self._do(cancel)

    async def _bring(self, entries: Sequence[Entry], priority: int, bringing: Bringing) -> None:
        try:
            views = await self._pull(entries, priority)
            if bringing.set_running_or_notify_cancel():
                bringing.set_result(views)
        except RayError as error:
            if bringing.set_running_or_notify_cancel():
                bringing.set_exception(error)

    async def _fetch(self, entry: Entry) -> None:
        try:
            await self._pull([entry], WAIT)
        except RayError:
            pass  # whoever reads the object is told
        finally:
            for waiter in self._fetching.pop(entry):
                waiter.fetched(entry)

    async def _pull(self, entries: Sequence[Entry], priority: int) -> Views:
        number = next(self._numbers)
        wanted = [_wanted(entry) for entry in entries]
        for entry in entries:
            entry.views += 1
        try:
            pulled = await self._transfers.pull(hot.Pull(number, priority, tuple(wanted)))
            if pulled.failure:
                raise self._error(pulled, entries)
        except BaseException as error:
            self._unpin(hot.Unpin(number))  # the answer may be on its way
            for entry in entries:
                self._dropped_view(entry)
            if isinstance(error, LinkError) and self._raylet.is_ended:
                raise raylet_died(error) from error
            raise
        return {
            entry: self._arena.view(offset, each.size, self._dropper(entry, number, each.key))
            for entry, each, offset in zip(entries, wanted, pulled.offsets, strict=True)
        }

    def _error(self, pulled: hot.Pulled, entries: Sequence[Entry]) -> RayError:
        id = pulled.key[:ID]
        entry = next((each for each in entries if each.id == id), None)
        ref = None if entry is None else entry.known_ref
        return to_raise(_failure(pulled, id.hex()), ref, ObjectID(id).task_id() if id else None)

    def _dropper(self, entry: Entry, number: int, key: bytes) -> Callable[[], None]:
        unpin = hot.Unpin(number, key)

        def dropped() -> None:
            self._do(self._let_go, entry, unpin)

        return dropped

    def _let_go(self, entry: Entry, unpin: hot.Unpin) -> None:
        self._unpin(unpin)
        self._dropped_view(entry)

    def _unpin(self, unpin: hot.Unpin) -> None:
        if not self._raylet.is_ended:
            self._transfers.unpin(unpin)

    def _dropped_view(self, entry: Entry) -> None:
        self._owner.perform(self._owner.refs.dropped_view(entry))
        if not entry.views:
            self._owner.on_viewless()


def _failure(pulled: hot.Pulled, id: str) -> RayError:
    match PullFailure(pulled.failure):
        case PullFailure.OWNER_DIED:
            return OwnerDiedError(id, None, "")
        case PullFailure.NO_ROOM:
            return ObjectStoreFullError(pulled.message)
        case _:
            return ObjectLostError(id, None, "")


def _wanted(entry: Entry) -> hot.Wanted:
    value, keeper = entry.value, entry.keeper
    assert value is not None
    if entry.is_error:  # since it was asked for
        raise error_of(value, entry)
    owner = entry.owner or keeper.address
    return hot.Wanted(value.key or entry.id, value.size, owner, (value.node,))
