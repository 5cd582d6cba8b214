"""Picker: where a raylet has a lease request served: here, on another node, or nowhere yet.

A request comes from its owner, or from another raylet that sent the owner on (`Ask.visited`). The
answer is one of four: it is kept and queued here, sent on, refused for good, or *parked*: kept
until some node can serve it, and refused when none has come within the grace. Which node is best, `policies` knows; this machine sees to it that a
request neither wanders for ever nor is stuck where it once came to stand.

- One that was sent on stays where it is as soon as it can, moves `MAX_HOPS` times at most, and
  returns to a node it has seen only if no other could ever run it.
- One that waits here moves on when another node has room for it and this one has not.
- What was sent to a node is taken off what its view says is available, until the next view.

Its carrier hands it the views as they are kept (see `ResourceViews.nodes`), with its own node's
among them, exact and up to date; and calls `changed` when views have changed, and every second.
"""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from raylite._machines.policies import Draw, Policies, is_available, is_feasible
from raylite._machines.shortage import refusal, shortage
from raylite._types.keys import HolderKey, LeaseID
from raylite._types.resources import Resources
from raylite._types.strategies import NodeAffinity, NodeKey, NodeView, Placement

MAX_HOPS: Final = 3
"""Ray allows one, and begins anew at the first raylet when that fails; see `Ask.visited`."""

UNKNOWN_GRACE: Final = 1.0
"""Seconds in which a node that somebody names should have become known here; views take 0.1."""

INFEASIBLE_GRACE: Final = 300.0
"""Seconds in which somebody may add a node for what none can serve. Ray waits for ever."""

PROMISE_LASTS: Final = 3.0
"""Seconds without a new view after which it is believed again, as Ray does
(ray_syncer_message_refresh_interval_ms): the view of a node that did quick work may not change."""


class Ask(Struct, frozen=True):
    """A wish for a lease, with all that it says about where."""

    lease: LeaseID
    holder: HolderKey
    placement: Placement
    #: The nodes whose raylets have sent it on, the latest last.
    visited: tuple[NodeKey, ...] = ()


class Keep(Struct, frozen=True):
    """Queue it here, or leave it queued."""

    ask: Ask


class Spill(Struct, frozen=True):
    """Have its holder ask this node instead; withdraw it, if it is queued here."""

    lease: LeaseID
    holder: HolderKey
    node: NodeKey
    address: str
    #: For the next `Ask`.
    visited: tuple[NodeKey, ...]


class Refuse(Struct, frozen=True):
    """It can never be granted; withdraw it, if it is queued here."""

    lease: LeaseID
    holder: HolderKey
    message: str


class Infeasible(Struct, frozen=True):
    """No node can serve it at present: tell its holder why. Withdraw it, if it is queued here."""

    lease: LeaseID
    holder: HolderKey
    message: str


Effect = Keep | Spill | Refuse | Infeasible


class _Standing(Enum):
    """Where a request is; one that was sent on or refused is nowhere."""

    WAITING = auto()
    LENT = auto()
    PARKED = auto()


class _Entry(Struct):
    ask: Ask
    since: float
    standing: _Standing = _Standing.PARKED
    #: Why it is parked, as its holder was told; and since when no node could serve it.
    told: str | None = None
    hopeless_since: float | None = None


class _Promise(Struct):
    """What was sent to a node since it last described itself."""

    view: NodeView
    until: float
    demand: Resources


class Picker:
    """The lease requests that one raylet was asked for and has not sent on.

    Args:
        local: The raylet's node.
        random: For the policies.
        grace: Seconds after which a request is refused that no node can serve; never before
            `UNKNOWN_GRACE`. Infinity is Ray's way.
    """

    def __init__(self, local: NodeKey, random: Draw, grace: float = INFEASIBLE_GRACE) -> None:
        self._local = local
        self._policies = Policies(local, random)
        self._grace = max(grace, UNKNOWN_GRACE)
        self._entries: dict[LeaseID, _Entry] = {}
        self._leases_of: dict[HolderKey, dict[LeaseID, None]] = {}
        # Dicts for sets, since their order decides who goes first.
        self._waiting: dict[Placement, dict[LeaseID, None]] = {}
        self._parked: dict[LeaseID, None] = {}
        self._promises: dict[NodeKey, _Promise] = {}

    def request(self, ask: Ask, views: Mapping[NodeKey, NodeView], now: float) -> list[Effect]:
        """Decide about a request. Asking again, unless it was sent on, repeats the answer."""
        entry = self._entries.get(ask.lease)
        if entry is not None and entry.standing is not _Standing.PARKED:
            return [Keep(entry.ask)]

        if entry is not None:
            return [_report(entry.ask, entry.told)] if entry.told is not None else []

        entry = self._entries[ask.lease] = _Entry(ask, now)
        self._leases_of.setdefault(ask.holder, {})[ask.lease] = None
        self._parked[ask.lease] = None
        return self._settle(entry, self._decide(entry, views, now), now, views)

    def keep(self, ask: Ask, now: float) -> list[Effect]:
        """Take a request in that is served here because there is no other node to look at."""
        entry = self._entries.get(ask.lease)
        if entry is None:
            entry = self._entries[ask.lease] = _Entry(ask, now)
            self._leases_of.setdefault(ask.holder, {})[ask.lease] = None
        if entry.standing is _Standing.PARKED:
            self._stand(entry, _Standing.WAITING)
        return [Keep(entry.ask)]

    def granted(self, lease: LeaseID) -> None:
        """It was granted here, so it stays until it has ended."""
        entry = self._entries.get(lease)
        if entry is not None and entry.standing is _Standing.WAITING:
            self._stand(entry, _Standing.LENT)

    def ended(self, lease: LeaseID) -> None:
        """It was given back or withdrawn."""
        if (entry := self._entries.get(lease)) is not None:
            self._forget(entry)

    def holder_died(self, holder: HolderKey) -> None:
        """Forget all that a holder asked for."""
        for lease in list(self._leases_of.get(holder, ())):
            self._forget(self._entries[lease])

    def changed(self, views: Mapping[NodeKey, NodeView], now: float) -> list[Effect]:
        """Think again about what waits or is parked, in the order in which it came to do so."""
        effects: list[Effect] = []
        here = views.get(self._local)
        for placement, leases in list(self._waiting.items()):
            if here is None or not is_feasible(placement, here):
                for lease in list(leases):
                    self._stand(self._entries[lease], _Standing.PARKED)
            elif not placement.demand.fits(here.available):
                effects += self._move(placement, list(leases), views, now)

        hopeless: dict[Placement, str] = {}
        for lease in list(self._parked):
            entry = self._entries[lease]
            entry.ask = replace(entry.ask, visited=())
            is_known = hopeless.get(entry.ask.placement, "") == entry.told
            if is_known and not self._is_overdue(entry, now):
                continue

            effect = self._decide(entry, views, now)
            if isinstance(effect, Infeasible):
                hopeless[entry.ask.placement] = effect.message
                effect = None if effect.message == entry.told else effect

            effects += self._settle(entry, effect, now, views)

        return effects

    def parked(self) -> tuple[Ask, ...]:
        """Return what no node can serve, for whoever can add nodes."""
        entries = (self._entries[lease] for lease in self._parked)
        return tuple(entry.ask for entry in entries if entry.told is not None)

    def since(self, lease: LeaseID) -> float | None:
        """Return when a request came here; None if it is not here."""
        entry = self._entries.get(lease)
        return None if entry is None else entry.since

    def reason(self, lease: LeaseID) -> str | None:
        """Return why no node can serve a request, if that is so."""
        entry = self._entries.get(lease)
        return None if entry is None else entry.told

    def check(self) -> None:
        """Assert what holds between calls."""
        where: dict[_Standing, set[LeaseID]] = {standing: set() for standing in _Standing}
        for lease, entry in self._entries.items():
            where[entry.standing].add(lease)

        assert self._parked.keys() == where[_Standing.PARKED]
        waiting = [lease for leases in self._waiting.values() for lease in leases]
        assert sorted(waiting) == sorted(where[_Standing.WAITING])
        assert all(self._waiting.values()), "a placement that nobody waits with"
        for placement, leases in self._waiting.items():
            assert all(self._entries[lease].ask.placement == placement for lease in leases)

        held = {lease: holder for holder, leases in self._leases_of.items() for lease in leases}
        assert held == {lease: entry.ask.holder for lease, entry in self._entries.items()}
        assert all(self._leases_of.values()), "a holder of nothing is remembered"
        for entry in self._entries.values():
            assert entry.told is None or entry.hopeless_since is not None
            assert entry.hopeless_since is None or entry.standing is _Standing.PARKED

    def _decide(
        self, entry: _Entry, views: Mapping[NodeKey, NodeView], now: float
    ) -> Effect | None:
        """Return the answer; None if it is parked without one, for the time being."""
        ask, placement = entry.ask, entry.ask.placement
        here = views.get(self._local)
        spent = len(ask.visited) >= MAX_HOPS
        if here is not None:
            if not ask.visited and self._policies.prefers_local(placement, here):
                return Keep(ask)

            if ask.visited and (is_feasible if spent else is_available)(placement, here):
                return Keep(ask)

        known = self._known(views, now)
        seen = set(ask.visited) - {self._local}
        unseen = {node: view for node, view in known.items() if node not in seen}
        choice = self._policies.choose(placement, unseen)
        if choice is None and seen:
            choice = self._policies.choose(placement, known)

        if choice is None:
            return self._unplaceable(entry, views, now)

        if choice.node == self._local:
            return Keep(ask)

        return None if spent else self._spill(ask, choice)

    def _unplaceable(
        self, entry: _Entry, views: Mapping[NodeKey, NodeView], now: float
    ) -> Effect | None:
        ask = entry.ask
        match ask.placement.strategy:
            case NodeAffinity(node=node, soft=False):
                named = views.get(node)
                if named is None and now - entry.since < UNKNOWN_GRACE:
                    return None

                return Refuse(ask.lease, ask.holder, refusal(ask.placement, node, named))
            case _:
                if entry.hopeless_since is None:
                    entry.hopeless_since = now
                message = shortage(ask.placement, views.values())
                if self._is_overdue(entry, now):
                    waited = f"{message}; none came within {self._grace:g} s"
                    return Refuse(ask.lease, ask.holder, waited)
                return _report(ask, message)

    def _is_overdue(self, entry: _Entry, now: float) -> bool:
        since = entry.hopeless_since
        return since is not None and now - since >= self._grace

    def _move(
        self,
        placement: Placement,
        leases: list[LeaseID],
        views: Mapping[NodeKey, NodeView],
        now: float,
    ) -> list[Effect]:
        """Send on what waits here for want of room, as long as others have some."""
        effects: list[Effect] = []
        for lease in leases:
            entry = self._entries[lease]
            if len(entry.ask.visited) >= MAX_HOPS:
                continue

            known = self._known(views, now)
            choice = self._policies.choose(placement, known, available_only=True)
            if choice is None or choice.node == self._local:
                break

            effects += self._settle(entry, self._spill(entry.ask, choice), now, views)

        return effects

    def _spill(self, ask: Ask, to: NodeView) -> Spill:
        visited = (*ask.visited, self._local)
        return Spill(ask.lease, ask.holder, to.node, to.address, visited)

    def _known(self, views: Mapping[NodeKey, NodeView], now: float) -> dict[NodeKey, NodeView]:
        """Return the views without what was promised since they came."""
        known = dict(views)
        for node, promise in list(self._promises.items()):
            view = known.get(node)
            if view is not promise.view or now >= promise.until:
                del self._promises[node]
            else:
                known[node] = replace(view, available=view.available - promise.demand)

        return known

    def _settle(
        self, entry: _Entry, effect: Effect | None, now: float, views: Mapping[NodeKey, NodeView]
    ) -> list[Effect]:
        match effect:
            case None:
                return []
            case Keep():
                self._stand(entry, _Standing.WAITING)
            case Infeasible(message=message):
                entry.told = message
            case Refuse():
                self._forget(entry)
            case Spill(node=node):
                self._forget(entry)
                if (promise := self._promises.get(node)) is None:
                    promise = _Promise(views[node], now + PROMISE_LASTS, Resources())
                    self._promises[node] = promise

                promise.demand += entry.ask.placement.demand

        return [effect]

    def _stand(self, entry: _Entry, standing: _Standing) -> None:
        lease, placement = entry.ask.lease, entry.ask.placement
        self._leave(entry)
        entry.standing, entry.told, entry.hopeless_since = standing, None, None
        if standing is _Standing.WAITING:
            self._waiting.setdefault(placement, {})[lease] = None
        elif standing is _Standing.PARKED:
            self._parked[lease] = None

    def _leave(self, entry: _Entry) -> None:
        lease, placement = entry.ask.lease, entry.ask.placement
        self._parked.pop(lease, None)
        if entry.standing is _Standing.WAITING:
            del self._waiting[placement][lease]
            if not self._waiting[placement]:
                del self._waiting[placement]

    def _forget(self, entry: _Entry) -> None:
        self._leave(entry)
        ask = entry.ask
        del self._entries[ask.lease]
        del self._leases_of[ask.holder][ask.lease]
        if not self._leases_of[ask.holder]:
            del self._leases_of[ask.holder]


def _report(ask: Ask, message: str) -> Infeasible:
    return Infeasible(ask.lease, ask.holder, message)
