"""Demand: what waits for resources, as shapes and how many want each; for people, and for whoever adds nodes."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from raylite._types.resources import Resources
from raylite._types.strategies import NodeView, Shapes

MOST: Final = 20
"""Shapes that a node tells of, those that most want first."""


def of_node(
    waiting: Mapping[Resources, int],
    parked: Iterable[Resources],
    backlogs: Iterable[Mapping[Resources, int]],
) -> tuple[Shapes, Shapes]:
    """Return what waits at a node: for its turn, and for a node that could serve it.

    Args:
        waiting: Requests for leases that wait here, by demand.
        parked: The demands of those that no node can serve.
        backlogs: Of each owner, the tasks that it has not yet asked leases for.
    """
    pending, infeasible = Counter(waiting), Counter(parked)
    for backlog in backlogs:
        for demand, count in backlog.items():
            stuck = demand in infeasible and demand not in waiting
            (infeasible if stuck else pending)[demand] += count
    return _shapes(pending), _shapes(infeasible)


def together(views: Iterable[NodeView]) -> tuple[Shapes, Shapes]:
    """Return what waits at all these nodes."""
    pending, infeasible = Counter[Resources](), Counter[Resources]()
    for view in views:
        pending.update(dict(view.pending))
        infeasible.update(dict(view.infeasible))
    return _shapes(pending), _shapes(infeasible)


def _shapes(counts: Counter[Resources]) -> Shapes:
    # By name too, so that what has not changed is told as it was told before.
    wanted = (entry for entry in counts.items() if entry[1] > 0)
    return tuple(sorted(wanted, key=lambda entry: (-entry[1], repr(entry[0])))[:MOST])
