"""Shortage: why a task cannot run anywhere, or not where it must, in words for its user."""

from collections.abc import Iterable

from raylite._types.resources import UNIT, Resources, amount_text
from raylite._types.strategies import NodeKey, NodeLabels, NodeView, Placement

_ACCELERATOR = "accelerator_type:"


def shortage(placement: Placement, views: Iterable[NodeView]) -> str:
    """Return why no node is feasible, and what to do about it."""
    hard = placement.strategy.hard if isinstance(placement.strategy, NodeLabels) else None
    wanted = ", ".join(str(labels) for labels in (placement.selector, hard) if labels)
    which = f"no node with the labels {{{wanted}}}" if wanted else "no node"
    able = [
        view
        for view in views
        if not view.draining
        and any(labels.match(view.labels) for labels in placement.selectors())
        and (hard is None or hard.match(view.labels))
    ]
    if not able:
        remedy = "change the labels or add a node" if wanted else "add a node"
        return f"{which} is in the cluster and takes new work; {remedy}"

    demand = placement.demand
    for name in demand:
        best = min(able, key=lambda view: (-view.total.units(name), view.host))
        if (most := best.total.units(name)) < demand.units(name):
            largest = f"{amount_text(most)} on {best.host}" if most else "0"
            amount, remedy = _wanted(name, demand.units(name))
            if name.startswith(_ACCELERATOR):
                return f"{which} has {amount}; {remedy} or add a node"
            return f"{which} has {amount} (largest: {largest}); {remedy} or add a node"

    amounts = " and ".join(_wanted(name, demand.units(name))[0] for name in demand)
    closest = min(able, key=lambda view: (len(demand.lacking(view.total)), view.host))
    lacking = " and ".join(demand.lacking(closest.total))
    return (
        f"{which} has {amounts} at once (closest: {closest.host}, too little {lacking}); "
        "lower the demand or add a node"
    )


def refusal(placement: Placement, node: NodeKey, view: NodeView | None) -> str:
    """Return why a task cannot run on the one node that it must run on, and what to do about it."""
    if view is None:
        return (
            f"node {node.hex()} is not in the cluster, it died or never joined; "
            "name a node that is alive or use soft=True"
        )

    which, demand = f"node {node.hex()} on {view.host}", placement.demand
    if view.draining:
        return f"{which} is draining and takes no new work; name another node or use soft=True"

    if not any(labels.match(view.labels) for labels in placement.selectors()):
        return f"{which} has not the labels {{{placement.selector}}}; change them or the node"

    for name in demand.lacking(view.total):
        amount, remedy = _wanted(name, demand.units(name))
        has = amount_text(view.total.units(name))
        return f"{which} never has {amount} (it has {has}); {remedy} or name another node"

    amounts = " and ".join(_wanted(name, demand.units(name))[0] for name in demand)
    return (
        f"{which} has not {amounts} free now and _fail_on_unavailable is set; "
        "try again later, or leave it out and wait"
    )


def waiting(demand: Resources, free: Resources, total: Resources, before: int) -> str:
    """Return what a request waits for on a node that could serve it."""
    short = demand.lacking(free)
    parts = [
        f"{max(free.units(name), 0) / UNIT:g} of {amount_text(total.units(name))} {name} are free"
        for name in short or demand
    ]
    requests = "1 request is" if before == 1 else f"{before} requests are"
    return " and ".join([*parts, f"{requests} before it"])


def amounts(demand: Resources) -> str:
    """Return a demand in words."""
    return " and ".join(_wanted(name, demand.units(name))[0] for name in demand)


def _wanted(name: str, units: int) -> tuple[str, str]:
    """Return an amount in words, and what to do if it cannot be had."""
    amount = amount_text(units)
    match name:
        case "CPU" | "GPU":
            return f"{amount} {name}{'' if amount == '1' else 's'}", f"lower num_{name.lower()}s"
        case "memory":
            return f"{amount} bytes of memory", "lower memory"
        case _ if name.startswith(_ACCELERATOR):  # of which a task asks for next to nothing
            return f"an accelerator {name.removeprefix(_ACCELERATOR)}", "change accelerator_type"
        case _:
            return f"{amount} {name}", f"lower resources={{{name!r}: ...}}"
