"""Lessors: the raylets that an owner asked for leases, and which of them has which lease."""

from collections.abc import Callable

from raylite._kernel.alarm import Alarm
from raylite._kernel.link import Link
from raylite._kernel.network import Network
from raylite._kernel.seams import now
from raylite._machines.submitter import LaneKey, Submitter
from raylite._protocol import raylet
from raylite._types.keys import LeaseID
from raylite._types.resources import Resources
from raylite._wire import hot

BACKLOG = 1.0  # seconds between two reports of what waits


class Lessors:
    """Asks raylets for leases: this node's first, then those that the last asked has named.

    Args:
        network: Where raylets of other nodes are dialled.
        local: The link to this node's raylet.
        submitter: What wishes for leases; its backlog is told to this node's raylet.
        id: This process's id: a raylet of another node does not know it by its link.
        on_ended: Called when another node's raylet is gone, with the leases that it had given.
            Those which are only wished for are asked of this node's raylet then.
    """

    def __init__(
        self,
        network: Network,
        local: Link,
        submitter: Submitter,
        id: bytes,
        on_ended: Callable[[Link, list[LeaseID]], None],
    ) -> None:
        self._network = network
        self._submitter = submitter
        self._local = local
        self._id = id
        self._on_ended = on_ended
        self._raylets: dict[Link, raylet.Leases] = {local: raylet.Leases(local)}
        self._homes: dict[LeaseID, Link] = {}  # which raylet was asked for a lease, or gave it
        self._wishes: dict[LeaseID, LaneKey] = {}  # what was asked for and is not granted
        self._wanting: dict[Link, None] = {}  # the raylets where others wait
        self._backlog_told: dict[Resources, int] = {}
        self._alarm = Alarm(self._tell_backlog)

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

    def spilled(self, spill: hot.Spilled, by: Link) -> None:
        """A raylet knows a better one for a lease: ask that one."""
        lease = LeaseID(spill.lease)
        if lease in self._wishes and self._homes.get(lease) is by:
            self._request(lease, self._network.connect(spill.address), spill.visited)

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
        """Another node's raylet is gone, and with it the workers it lent: the local one is asked."""
        self._raylets.pop(home, None)
        self._wanting.pop(home, None)
        leases = [lease for lease, at in self._homes.items() if at is home]
        self._on_ended(home, [lease for lease in leases if lease not in self._wishes])
        for lease in leases:
            self._homes.pop(lease, None)
            if lease in self._wishes and not self._local.is_ended:
                self._request(lease, self._local)

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
