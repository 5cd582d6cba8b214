"""Lessors: the raylets that an owner asked for leases, and which of them has which lease."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from raylite._kernel.alarm import Alarm
from raylite._kernel.link import Link
from raylite._kernel.network import Network
from raylite._kernel.seams import now
from raylite._machines.submitter import LaneKey, Submitter
from raylite._protocol import raylet
from raylite._services.worker.fencing import Fencing
from raylite._types.keys import LeaseID
from raylite._types.resources import Resources
from raylite._types.strategies import NodeKey
from raylite._wire import hot
from raylite.exceptions import PeerLostError, reason_of

BACKLOG = 1.0  # seconds between two reports of what waits


class Lessors:
    """Asks raylets for leases: this node's first, then those that the last asked has named.

    Args:
        network: Where raylets of other nodes are dialled.
        local: The link to this node's raylet.
        submitter: What wishes for leases; its backlog is told to this node's raylet.
        id: This process's id: a raylet of another node does not know it by its link.
        spawn: Starts a task that ends with the owner.
        on_ended: Called when another node's raylet is gone, or has ended what it had lent since this
            process cannot reach it, with the leases and what was heard of them. Those which are
            only wished for are asked of this node's raylet then.
    """

    def __init__(
        self,
        network: Network,
        local: Link,
        submitter: Submitter,
        id: bytes,
        spawn: Callable[[Coroutine[Any, Any, Any], str], "asyncio.Task[Any]"],
        on_ended: Callable[[list[LeaseID], hot.Fenced], None],
    ) -> None:
        self._network = network
        self._submitter = submitter
        self._local = local
        self._id = id
        self._on_ended = on_ended
        self._fencing = Fencing(local, id, spawn, self._parted)
        self._nodes: dict[Link, NodeKey] = {}  # of other nodes' raylets
        self._raylets: dict[Link, raylet.Leases] = {local: raylet.Leases(local)}
        self._homes: dict[LeaseID, Link] = {}  # which raylet was asked for a lease, or gave it
        self._wishes: dict[LeaseID, LaneKey] = {}  # what was asked for and is not granted
        self._wanting: dict[Link, None] = {}  # the raylets where others wait
        self._backlog_told: dict[Resources, int] = {}
        self._alarm = Alarm(self._tell_backlog)
        network.on_unreachable.append(self._unreachable)

    @property
    def links(self) -> list[Link]:
        """This node's raylet, and those of which leases were asked."""
        return list(self._raylets)

    # ---- what the owner wants ------------------------------------------------------------

    def wish(self, lease: LeaseID, key: LaneKey) -> None:
        """Ask for a lease."""
        self._wishes[lease] = key
        self._request(lease, self._local, near=key.near)
        self._alarm.set(now() + BACKLOG)

    def give_back(self, lease: LeaseID) -> None:
        """Return a lease, or withdraw the wish for one."""
        self._wishes.pop(lease, None)
        home = self._homes.pop(lease, None)
        if home is not None and not home.is_ended:
            self._raylets[home].release(lease)

    def give_up(self, lease: LeaseID) -> None:
        """Have the worker of a lease end, since it cannot be reached: its raylet will say so."""
        home = self._homes.get(lease)
        if home is not None and not home.is_ended:
            self._raylets[home].unreachable(lease)

    def home(self, lease: LeaseID) -> Link | None:
        """Return the raylet that was asked for a lease, or gave it."""
        return self._homes.get(lease)

    def close(self) -> None:
        """Be in no cluster any more: what other nodes lent is theirs again."""
        for home in list(self._raylets):
            home.close()

    def stop(self) -> None:
        """Tell nothing more."""
        self._alarm.cancel()

    # ---- what raylets say ----------------------------------------------------------------

    def granted(self, lease: LeaseID) -> LaneKey | None:
        """Return what the lease was asked for; None if it is wished for no more."""
        return self._wishes.pop(lease, None)

    def has_left(self, lease: LeaseID, by: Link) -> bool:
        """Whether this raylet grants what is wished for of another by now; then it has it back."""
        home = self._homes.get(lease)
        if home is None or home is by:
            return False
        raylet.Leases(by).release(lease)
        return True

    def spilled(self, spill: hot.Spilled, by: Link) -> None:
        """A raylet knows a better one for a lease: ask that one."""
        lease = LeaseID(spill.lease)
        if lease in self._wishes and self._homes.get(lease) is by:
            link, node = self._network.connect(spill.address), NodeKey(spill.node)
            if self._fencing.shuns(link, node, spill.visited):
                self._request(lease, self._local, (*spill.visited, node))
            else:
                self._nodes[link] = node
                self._request(lease, link, spill.visited)

    def refused(self, lease: LeaseID) -> None:
        self._wishes.pop(lease, None)
        self._homes.pop(lease, None)

    def lost(self, lease: LeaseID) -> Link | None:
        """The worker of a lease died. Return the raylet that lent it, if it lives."""
        home = self._homes.pop(lease, None)
        return None if home is None or home.is_ended else home

    def wanted(self, by: Link) -> None:
        """Others wait at this raylet."""
        self._wanting[by] = None

    def unwanted(self, by: Link) -> bool:
        """Nobody waits at this raylet any more; say whether that is so of all."""
        self._wanting.pop(by, None)
        return not self._wanting

    # ---- inside --------------------------------------------------------------------------

    def _request(
        self, lease: LeaseID, home: Link, visited: tuple[bytes, ...] = (), near: bytes = b""
    ) -> None:
        """Ask a raylet; this node's names that of the node `near`, unless it knows none there."""
        if home not in self._raylets:
            self._raylets[home] = raylet.Leases(home)
            home.on_end(self._ended)
        self._homes[lease] = home
        key = self._wishes[lease]
        demand, where = key.demand.to_units(), key.where
        assert where is None or isinstance(where, hot.Where)
        if not home.is_ended:
            self._raylets[home].request(
                hot.LeaseRequest(
                    lease, demand, key.environment, key.depth, self._id, where, visited, near
                )
            )

    def _ended(self, home: Link) -> None:
        """Another node's raylet is gone, and with it the workers it lent: the local one is asked.

        Of one that merely cannot be reached nobody knows that, before somebody else has ended them.
        """
        self._raylets.pop(home, None)
        self._wanting.pop(home, None)
        leases = [lease for lease, at in self._homes.items() if at is home]
        node = self._nodes.get(home)
        error = home.error
        if isinstance(error, PeerLostError) and not error.confirmed and node is not None:
            self._fencing.lost(home, node, leases)
            if not self._fencing.fences.is_asking(home):
                del self._nodes[home]
        else:
            self._fencing.ended(home)
            self._nodes.pop(home, None)
            self._part(home, leases, hot.Fenced(death=reason_of(error)), ())

    def _unreachable(self, home: Link) -> None:
        """There has been no wire to a raylet for long."""
        if home in self._raylets and (node := self._nodes.get(home)) is not None:
            leases = [lease for lease, at in self._homes.items() if at is home]
            self._fencing.lost(home, node, leases)

    def _parted(self, home: Link, leases: Sequence[LeaseID], heard: hot.Fenced) -> None:
        """What a raylet that cannot be reached was asked for, and had lent, is no more."""
        node = self._nodes[home]
        if home.is_ended:  # what was wished for since was never heard of there
            del self._nodes[home]
            leases = [lease for lease, at in self._homes.items() if at is home]
        self._part(home, leases, heard, (node,))

    def _part(
        self, home: Link, leases: Sequence[LeaseID], heard: hot.Fenced, visited: tuple[bytes, ...]
    ) -> None:
        there = [lease for lease in leases if self._homes.get(lease) is home]
        self._on_ended([lease for lease in there if lease not in self._wishes], heard)
        for lease in there:
            if self._homes.get(lease) is home:
                del self._homes[lease]
                if lease in self._wishes and not self._local.is_ended:
                    self._request(lease, self._local, visited)

    def _tell_backlog(self) -> None:
        """Tell what waits, as long as something may: whoever looks at the cluster is to see it."""
        backlog = self._submitter.backlog()
        if self._local.is_ended or self._local.is_congested:
            return
        if backlog != self._backlog_told:
            self._backlog_told = backlog
            tasks = tuple((demand.to_units(), count) for demand, count in backlog.items())
            self._raylets[self._local].backlog(hot.Backlog(tasks))
        if self._wishes:
            self._alarm.set(now() + BACKLOG)

    def check(self, leased: set[LeaseID]) -> None:
        """Assert what holds between calls, given the leases in use."""
        assert self._wishes.keys() <= self._homes.keys()
        assert self._homes.keys() == self._wishes.keys() | leased
