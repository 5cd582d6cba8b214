"""Unsent: what could not be sent to a worker, for it has yet to read much else, or at all."""

from collections.abc import Callable, Coroutine
from typing import Any

from raylite._machines.submitter import Pending
from raylite._services.worker.owned import Peer
from raylite._types.keys import LeaseID
from raylite.exceptions import LinkError, RayError


class Unsent:
    """Keeps what waits until its worker reads on, and, for a moment, what no message can say.

    A large function, or tasks with very many small values, fill a link for a while. What is pushed
    meanwhile waits here, in order. A worker that does not read for good is not this class's matter: its
    link ends.

    Args:
        push: Sends tasks to a worker.
        spawn: Runs a coroutine in the name of the service that this is part of.
    """

    def __init__(
        self,
        push: Callable[[Peer, list[Pending]], None],
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:
        self._push = push
        self._spawn = spawn
        self.held: dict[Peer, list[Pending]] = {}
        #: The tasks that cannot be sent to anybody, and the leases that cannot be asked for, and why.
        self.failed: list[tuple[Peer, Pending, RayError]] = []
        self.refused: list[tuple[LeaseID, RayError]] = []

    def hold(self, peer: Peer, tasks: list[Pending]) -> None:
        """Send these when the worker has read what is before them."""
        if peer in self.held:
            self.held[peer] += tasks
        else:
            self.held[peer] = list(tasks)
            self.later(peer, lambda: self._release(peer))

    def take(self, peer: Peer, task: Pending) -> bool:
        """Say whether a task waits here, which it does no longer."""
        held = self.held.get(peer, ())
        if task not in held:
            return False
        self.held[peer].remove(task)
        return True

    def later(self, peer: Peer, send: Callable[[], None]) -> None:
        """Call back when there is room on the link to a worker; never, if it ends."""
        self._spawn(self._later(peer, send), "send when there is room")

    async def _later(self, peer: Peer, send: Callable[[], None]) -> None:
        try:
            await peer.link.wait_room()
        except LinkError:
            self.held.pop(peer, None)  # the raylet will say that this worker is gone
        else:
            send()

    def _release(self, peer: Peer) -> None:
        self._push(peer, [task for task in self.held.pop(peer) if task.worker == peer.key])
