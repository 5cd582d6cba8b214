"""Strategies: what a task may ask of the node it runs on, and what a node says of itself.

A `Placement` is everything about a task that decides where it may run. Placements are equal when
the answers are, so whoever looks for nodes can treat tasks with equal placements as one.
"""

from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import NewType, Self

from msgspec import Struct, field

from raylite._types.resources import Resources

#: A node of the cluster. One that died does not come back under the same key.
NodeKey = NewType("NodeKey", bytes)

#: How labels begin that users cannot set, and the one that every node has: its id, in hexadecimal.
OWN_LABELS = "ray.io/"
NODE_ID_LABEL = f"{OWN_LABELS}node-id"

#: Demands, and how many want each.
Shapes = tuple[tuple[Resources, int], ...]


class NodeView(Struct, frozen=True):
    """A node as it describes itself; by the time others read it, it may be out of date."""

    node: NodeKey
    #: Which run of it: what an earlier run said is void. Runs have no order.
    incarnation: int
    address: str
    total: Resources
    #: What is not lent. Negative when tasks took back CPUs that they had lent out.
    available: Resources
    labels: Mapping[str, str] = field(default_factory=dict)
    #: How many lease requests wait there: a hint, for choosing among nodes that are all busy.
    backlog: int = 0
    #: It finishes what it runs and takes nothing new.
    draining: bool = False
    #: What waits there for its turn, and what for a node that could serve it; for people.
    pending: Shapes = ()
    infeasible: Shapes = ()
    #: The GCS has not heard it for long: it may be dead. Whoever reads the view knows, not the node.
    suspect: bool = False

    @property
    def host(self) -> str:
        """The address as people name machines: neither port nor socket."""
        where = self.address.partition(";")[0]
        if where.startswith("unix:"):
            return "this machine"
        host, _, port = where.removeprefix("tcp:").rpartition(":")
        return host.strip("[]") if host and port.isdigit() else where


class In(Struct, frozen=True):
    """The label is there and has one of these values."""

    values: tuple[str, ...]

    def accepts(self, value: str | None) -> bool:
        """Say whether a label may have this value; None means that it is absent."""
        return value in self.values

    def __str__(self) -> str:
        return self.values[0] if len(self.values) == 1 else f"in({','.join(self.values)})"


class NotIn(Struct, frozen=True):
    """The label has none of these values. Ray: an absent label is accepted, here too."""

    values: tuple[str, ...]

    def accepts(self, value: str | None) -> bool:
        """Say whether a label may have this value; None means that it is absent."""
        return value not in self.values

    def __str__(self) -> str:
        return f"!{In(self.values)}"


class Exists(Struct, frozen=True):
    """The label is there, whatever its value."""

    def accepts(self, value: str | None) -> bool:
        """Say whether a label may have this value; None means that it is absent."""
        return value is not None

    def __str__(self) -> str:
        return "exists"


class DoesNotExist(Struct, frozen=True):
    """The label is absent."""

    def accepts(self, value: str | None) -> bool:
        """Say whether a label may have this value; None means that it is absent."""
        return value is None

    def __str__(self) -> str:
        return "does not exist"


LabelOperator = In | NotIn | Exists | DoesNotExist


class Labels(Struct, frozen=True):
    """Conditions on a node's labels, all of which must hold; without any, every node will do."""

    terms: tuple[tuple[str, LabelOperator], ...] = ()

    @classmethod
    def of(cls, terms: Mapping[str, LabelOperator]) -> Self:
        """The conditions given by label."""
        return cls(tuple(sorted(terms.items(), key=itemgetter(0))))

    @classmethod
    def parse(cls, selector: Mapping[str, str]) -> Self:
        """The conditions of a ``label_selector``: ``v``, ``!v``, ``in(a,b)`` or ``!in(a,b)`` each.

        What `raylite._options` refuses is read as a value that no label has.
        """
        return cls.of({label: _operator(text) for label, text in selector.items()})

    def match(self, labels: Mapping[str, str]) -> bool:
        """Say whether a node with these labels meets every condition."""
        return all(operator.accepts(labels.get(label)) for label, operator in self.terms)

    def __bool__(self) -> bool:
        return bool(self.terms)

    def __str__(self) -> str:
        return ", ".join(f"{label}: {operator}" for label, operator in self.terms)


class DefaultStrategy(Struct, frozen=True):
    """Ray's hybrid: near at hand until half of that is in use, then where there is most room."""


class SpreadStrategy(Struct, frozen=True):
    """One node after another."""


class NodeAffinity(Struct, frozen=True):
    """One node; if `soft`, any other will do when that one is gone or too small."""

    node: NodeKey
    soft: bool = False
    #: With `soft`: another will also do when that one is merely busy.
    spill_on_unavailable: bool = False
    #: Without `soft`: fail rather than wait when it is busy.
    fail_on_unavailable: bool = False


class NodeLabels(Struct, frozen=True):
    """A node that meets `hard`, and `soft` too if there is such a one with room."""

    hard: Labels = Labels()
    soft: Labels = Labels()


Strategy = DefaultStrategy | SpreadStrategy | NodeAffinity | NodeLabels


class Placement(Struct, frozen=True):
    """What a task needs of a node: resources, a strategy, labels."""

    demand: Resources
    strategy: Strategy = DefaultStrategy()
    #: The ``label_selector``: it holds whatever the strategy.
    selector: Labels = Labels()
    #: The ``fallback_strategy``: selectors to try, in order, while no node is fit for those before.
    fallbacks: tuple[Labels, ...] = ()

    def selectors(self) -> Iterable[Labels]:
        """The selectors in the order in which to try them."""
        return (self.selector, *self.fallbacks)


def _operator(text: str) -> LabelOperator:
    wanted = text.removeprefix("!")
    listed = wanted.startswith("in(") and wanted.endswith(")")
    parts = wanted[3:-1].split(",") if listed else [wanted]
    values = tuple(part.strip() for part in parts)
    return NotIn(values) if text.startswith("!") else In(values)
