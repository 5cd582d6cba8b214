"""Policies: on which of the nodes that are known a task had best run.

A node is *feasible* for a task if it could run it when idle, and *available* if it can now. The
rules are Ray's: available nodes come before feasible ones, and then

- by default, the local node as long as less than half of its scarcest resource is in use. Else one
  of the best fifth of all nodes, drawn at random so that raylets with equal views do not all choose
  alike. Tasks that need no GPU keep off the nodes that have some, if there is room elsewhere.
- with SPREAD, the next node after the one chosen last, in the order of their keys.
- with NodeAffinity, that node; if it is soft and that one will not do, as by default.
- with NodeLabels, one at random that meets the soft conditions; room counts for more than those.

A node that is *suspect*, for the GCS has not heard it for long, is chosen only if no other is feasible,
as the node of an affinity that is not soft for one.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Final, TypeVar

from raylite._types.strategies import (
    DefaultStrategy,
    Labels,
    NodeAffinity,
    NodeKey,
    NodeLabels,
    NodeView,
    Placement,
    SpreadStrategy,
)

SPREAD_THRESHOLD: Final = 0.5
"""Utilisation below which nodes count as equally empty (RAY_scheduler_spread_threshold)."""

TOP_FRACTION: Final = 0.2
"""The share of all nodes to draw from, at least one node (RAY_scheduler_top_k_fraction)."""

# Ray: a busy GPU or custom resource does not make a node count as full either.
_CRITICAL: Final = ("CPU", "memory", "object_store_memory")

T = TypeVar("T")

Draw = Callable[[], float]
"""Returns a random number from 0 to 1, as `random.Random.random` does."""


def draw(choices: Sequence[T], random: Draw) -> T:
    """Return one of several, each as likely as the others."""
    return choices[min(int(random() * len(choices)), len(choices) - 1)]


def is_feasible(placement: Placement, view: NodeView) -> bool:
    """Say whether a node could run the task when idle."""
    return any(_suits(placement, view, labels) for labels in placement.selectors())


def is_available(placement: Placement, view: NodeView) -> bool:
    """Say whether a node can run the task now."""
    return placement.demand.fits(view.available) and is_feasible(placement, view)


def utilisation(view: NodeView) -> float:
    """Return how much of a node's scarcest resource is in use; more than 1 if it is overdrawn."""
    used = [
        1 - view.available.units(name) / total
        for name in _CRITICAL
        if (total := view.total.units(name))
    ]
    return max(used, default=0.0)


def first_raylet(placement: Placement, local: NodeKey, held: Mapping[NodeKey, int]) -> NodeKey:
    """Return which raylet an owner should ask first: the one with most of the arguments' bytes.

    The raylet that is asked prefers its own node, so this is what makes tasks go to their data.
    Ray: a strategy, or being an actor, counts for more than locality.

    Args:
        placement: What the task needs.
        local: The owner's own node, which wins a tie.
        held: The bytes of the task's arguments by the node that holds them.
    """
    if not isinstance(placement.strategy, DefaultStrategy) or not held:
        return local

    most = max(held.values())
    return local if held.get(local, 0) == most else min(n for n in held if held[n] == most)


class Policies:
    """Chooses nodes on behalf of one of them; remembers only where SPREAD stands."""

    def __init__(self, local: NodeKey, random: Draw) -> None:
        self._local, self._random = local, random
        self._last = NodeKey(b"")

    def prefers_local(self, placement: Placement, view: NodeView) -> bool:
        """Say whether the local node will be chosen, whatever the others: a short cut."""
        return (
            isinstance(placement.strategy, DefaultStrategy)
            and placement.demand.fits(view.available)
            and ("GPU" in placement.demand or "GPU" not in view.total)
            and utilisation(view) < SPREAD_THRESHOLD
            and _suits(placement, view, placement.selector)
        )

    def choose(
        self,
        placement: Placement,
        views: Mapping[NodeKey, NodeView],
        *,
        available_only: bool = False,
    ) -> NodeView | None:
        """Return the node to run a task on, or None if no node among `views` is feasible.

        Args:
            placement: What the task needs.
            views: The nodes to choose from.
            available_only: Prefer None to a node where the task would have to wait; a node named
                by an affinity is returned all the same.
        """
        for labels in placement.selectors():
            fit = [v for v in views.values() if _suits(placement, v, labels)]
            if fit:
                fit.sort(key=attrgetter("node"))
                free = [v for v in fit if placement.demand.fits(v.available)]
                return self._among(placement, fit, free, len(views), available_only)

        return None

    def _among(
        self,
        placement: Placement,
        fit: list[NodeView],
        free: list[NodeView],
        count: int,
        available_only: bool,
    ) -> NodeView | None:
        if isinstance(affinity := placement.strategy, NodeAffinity):
            named = next((v for v in fit if v.node == affinity.node), None)
            may_wait = not (affinity.spill_on_unavailable or affinity.fail_on_unavailable)
            is_hopeful = named is not None and not (affinity.soft and named.suspect)
            if is_hopeful and (named in free or may_wait):
                return named
            if affinity.fail_on_unavailable:
                return None

        if trusted := [v for v in fit if not v.suspect]:
            fit, free = trusted, [v for v in free if not v.suspect]

        busy = [] if available_only else fit
        match placement.strategy:
            case SpreadStrategy():
                return self._next(free or busy)
            case NodeLabels(_, soft):
                pools = (free, busy)
                wanted = ([v for v in pool if soft.match(v.labels)] or pool for pool in pools)
                return self._any(next(filter(None, wanted), []))

        if "GPU" not in placement.demand and (plain := [v for v in free if "GPU" not in v.total]):
            free = plain

        return self._best(free or busy, count)

    def _best(self, nodes: list[NodeView], count: int) -> NodeView | None:
        """Return the local node if none is emptier, else one of the emptiest."""
        ranked = sorted((_score(view), view.backlog, view.node, view) for view in nodes)
        for score, *_, view in ranked:
            if view.node == self._local and score <= ranked[0][0]:
                return view

        return self._any([view for *_, view in ranked[: max(1, int(count * TOP_FRACTION))]])

    def _next(self, nodes: list[NodeView]) -> NodeView | None:
        after = [view for view in nodes if view.node > self._last]
        chosen = next(iter(after or nodes), None)
        if chosen is not None:
            self._last = chosen.node

        return chosen

    def _any(self, nodes: list[NodeView]) -> NodeView | None:
        return draw(nodes, self._random) if nodes else None


def _suits(placement: Placement, view: NodeView, labels: Labels) -> bool:
    """Say whether a node is feasible under one of the selectors."""
    if view.draining or not placement.demand.fits(view.total) or not labels.match(view.labels):
        return False

    match placement.strategy:
        case NodeAffinity(node=node, soft=False):
            return view.node == node
        case NodeLabels(hard=hard):
            return hard.match(view.labels)
        case _:
            return True


def _score(view: NodeView) -> float:
    used = utilisation(view)
    return 0.0 if used < SPREAD_THRESHOLD else used
