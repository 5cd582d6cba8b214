"""What a process's threads hand to its loop."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from raylite._kernel.network import Network
from raylite._services.worker.objects import Drop
from raylite._services.worker.owned import OwnedTask
from raylite._services.worker.owner import OwnerService
from raylite._services.worker.submit import SubmitService


class Handover(deque[Any]):
    """A queue that any thread appends to, and that the loop empties, in order.

    What is in it: tasks to be submitted, references that died, and actions, which are tuples of a
    function and its arguments. The loop is woken once for all that comes before it looks. Nothing
    wakes it for a `Drop`: a reference may die in any allocation, also in one that waking would make.

    Args:
        loop: The loop.
        network: This process's; what is sent while the queue is emptied goes out together.
        owner: The Owner service, which hears of references.
        submit: The Submit service, which gets the tasks, as many at a time as there are.
        wake: Has the loop call something soon, from any thread; a simulation has only one.
    """

    __slots__ = ("_call_soon", "_loop", "_network", "_owner", "_submit", "is_closed", "is_woken")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        network: Network,
        owner: OwnerService,
        submit: SubmitService,
        wake: Callable[[Callable[[], None]], object] | None,
    ) -> None:
        super().__init__()
        self._loop = loop
        self._call_soon = wake or loop.call_soon_threadsafe
        self._network = network
        self._owner = owner
        self._submit = submit
        self.is_woken: bool = False
        #: Whether the loop has ended, or is about to: nothing more will be asked of it.
        self.is_closed: bool = False

    def do(self, *action: Any) -> None:
        """Have the loop call a function with arguments, soon."""
        self.append(action)
        if not self.is_woken:
            self.wake()

    def do_if_open(self, *action: Any) -> None:
        """The same, if there is a loop still: for what dies at any time."""
        self.append(action)
        if not self.is_woken and not self.is_closed:
            self.wake()

    def wake(self) -> None:
        """Have the loop empty this soon."""
        self.is_woken = True
        try:
            self._call_soon(self.drain)
        except RuntimeError:  # the loop was closed: this process is shutting down
            self.is_closed = True

    def forked(self) -> None:
        """Forget the loop, which runs in the process that this one was just forked from."""
        self.is_closed = self.is_woken = True
        self.clear()
        self._call_soon = _refuse

    def drain(self) -> None:
        """Do what the threads have asked for, in order; tasks in batches. For the loop."""
        self.is_woken = False
        departures = self._network.departures
        departures.hold()
        try:
            self._empty()
        finally:
            departures.flush()

    def alerted(self, alert: object = None) -> None:
        """A weak reference's callback: one died that somebody waits for."""
        self.drain()

    def _empty(self) -> None:
        tasks = []
        for _ in range(len(self)):
            item = self.popleft()
            kind = type(item)
            if kind is OwnedTask:
                tasks.append(item)
                continue
            if tasks:
                self._submit.submit(tasks)
                tasks = []
            if kind is Drop:
                effects = self._owner.refs.dropped_local(item.entry)
                if effects:
                    self._owner.perform(effects)
            elif kind is tuple:
                item[0](*item[1:])
            else:
                item.dropped()  # a `GeneratorDrop`
        if tasks:
            self._submit.submit(tasks)
        if self and not self.is_woken:
            self.is_woken = True
            self._loop.call_soon(self.drain)


def _refuse(callback: Callable[[], None]) -> None:
    raise RuntimeError("the loop runs in another process")
