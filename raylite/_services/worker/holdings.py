"""Holdings: makes up for what a session has not brought of what this process gave up.

A session that nobody could resume ends with messages on their way, and their sender cannot tell which of
them have been handled. So the objects that this process gave up there are not given up again: their
owner is asked what it takes this process to hold, and told what of that is not so.
"""

import asyncio
from collections.abc import Awaitable, Callable

from raylite._kernel.link import Link
from raylite._kernel.network import Network
from raylite._kernel.scope import Scope
from raylite._protocol import worker
from raylite.exceptions import PeerLostError, RayError


class Holdings:
    """Has owners review what this process holds.

    Args:
        network: This process's.
        scope: What it does ends with this.
        is_dead: Says of an owner whose session ended so whether it is dead.
    """

    def __init__(
        self,
        network: Network,
        scope: Scope,
        is_dead: Callable[[str, PeerLostError], Awaitable[bool]],
    ) -> None:
        self._network = network
        self._scope = scope
        self._is_dead = is_dead
        self._told: dict[Link, None] = {}

    def told(self, link: Link) -> None:
        """An owner is told on this link what this process holds no more."""
        if link not in self._told:
            self._told[link] = None
            link.on_end(self._ended)

    def _ended(self, link: Link) -> None:
        del self._told[link]
        lost = link.error
        if isinstance(lost, PeerLostError) and not lost.confirmed and not self._scope.is_closed:
            self._scope.start(self._have_reviewed(link.peer, lost), "have an owner review")

    async def _have_reviewed(self, owner: str, lost: PeerLostError) -> None:
        """Ask for a review as soon as the owner is reached, and for another one a session later.

        What others tell it on behalf of this process may have been held up by the same cut.
        """
        if await self._is_dead(owner, lost):
            return
        try:
            for pause in (0.0, self._network.config.session_timeout):
                await asyncio.sleep(pause)
                link = self._network.connect(owner)
                self.told(link)  # so if this session ends, too, it begins anew
                await link.wait_attached()
                await link.wait_room()
                worker.Owner(link).review(self._network.address)
        except RayError:  # it has ended
            pass
