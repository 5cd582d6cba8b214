"""Placements as they travel: strategies and label conditions as plain arrays."""

from collections.abc import Iterable

from raylite._types.resources import Resources
from raylite._types.strategies import (
    DefaultStrategy,
    DoesNotExist,
    Exists,
    In,
    LabelOperator,
    Labels,
    NodeAffinity,
    NodeKey,
    NodeLabels,
    NotIn,
    Placement,
    SpreadStrategy,
    Strategy,
)
from raylite._wire.hot import Where

_Terms = tuple[tuple[str, int, tuple[str, ...]], ...]

_DEFAULT, _SPREAD, _AFFINITY, _LABELS = range(4)
_SOFT, _SPILL, _FAIL = 1, 2, 4  # flags of an affinity
_IN, _NOT_IN, _EXISTS, _DOES_NOT_EXIST = range(4)


def encode(placement: Placement) -> Where | None:
    """Return all of a placement but its demand; None for what asks for nothing special."""
    selectors: tuple[_Terms, ...] = ()
    if placement.selector or placement.fallbacks:
        selectors = tuple(_terms(labels) for labels in placement.selectors())
    match placement.strategy:
        case DefaultStrategy():
            return Where(_DEFAULT, selectors=selectors) if selectors else None
        case SpreadStrategy():
            return Where(_SPREAD, selectors=selectors)
        case NodeAffinity(node, soft, spill, fail):
            flags = soft * _SOFT | spill * _SPILL | fail * _FAIL
            return Where(_AFFINITY, node, flags, selectors=selectors)
        case NodeLabels(hard, soft_labels):
            return Where(_LABELS, hard=_terms(hard), soft=_terms(soft_labels), selectors=selectors)


def decode(demand: Resources, where: Where | None) -> Placement:
    """Return the placement; what no sender of this version sends is read as the default."""
    if where is None:
        return Placement(demand)
    strategy: Strategy = DefaultStrategy()
    if where.strategy == _SPREAD:
        strategy = SpreadStrategy()
    elif where.strategy == _AFFINITY:
        flags = where.flags
        strategy = NodeAffinity(
            NodeKey(where.node), bool(flags & _SOFT), bool(flags & _SPILL), bool(flags & _FAIL)
        )
    elif where.strategy == _LABELS:
        strategy = NodeLabels(_labels(where.hard), _labels(where.soft))
    selector, *fallbacks = [_labels(terms) for terms in where.selectors] or [Labels()]
    return Placement(demand, strategy, selector, tuple(fallbacks))


def _terms(labels: Labels) -> _Terms:
    return tuple((label, *_operator(operator)) for label, operator in labels.terms)


def _operator(operator: LabelOperator) -> tuple[int, tuple[str, ...]]:
    match operator:
        case In(values):
            return _IN, values
        case NotIn(values):
            return _NOT_IN, values
        case Exists():
            return _EXISTS, ()
        case DoesNotExist():
            return _DOES_NOT_EXIST, ()


def _labels(terms: Iterable[tuple[str, int, tuple[str, ...]]]) -> Labels:
    known: dict[int, LabelOperator] = {_EXISTS: Exists(), _DOES_NOT_EXIST: DoesNotExist()}
    return Labels(
        tuple(
            (label, known.get(kind) or (NotIn(values) if kind == _NOT_IN else In(values)))
            for label, kind, values in terms
        )
    )
