"""Scheduling strategies: what to pass as ``scheduling_strategy=`` besides ``"DEFAULT"`` and ``"SPREAD"``."""

import re
from collections.abc import Mapping

from raylite._types.ids import NodeID
from raylite._types.strategies import (
    DoesNotExist as _DoesNotExist,
    Exists as _Exists,
    In as _In,
    LabelOperator,
    Labels,
    NodeAffinity,
    NodeKey,
    NodeLabels,
    NotIn as _NotIn,
    Strategy,
)

_NODE_ID = re.compile(r"[0-9a-fA-F]{56}")
_ID_FORM = '56 hexadecimal digits, as in raylite.nodes()[0]["NodeID"]'


class NodeAffinitySchedulingStrategy:
    """Run on one node.

    Args:
        node_id: The node's id in hexadecimal, as in ``nodes()[0]["NodeID"]``.
        soft: Run elsewhere if the node is gone or could never run the task. Without it the task
            fails with `TaskUnschedulableError`.
        _spill_on_unavailable: With `soft`, also run elsewhere if the node is merely busy.
        _fail_on_unavailable: Without `soft`, fail instead of waiting if the node is busy.

    Raises:
        ValueError: The id is not one, or the flags contradict `soft`.
        TypeError: The id is neither text nor a `NodeID`.
    """

    def __init__(
        self,
        node_id: str | NodeID,
        soft: bool,
        _spill_on_unavailable: bool = False,
        _fail_on_unavailable: bool = False,
    ) -> None:
        if _spill_on_unavailable and not soft:
            raise ValueError("_spill_on_unavailable cannot be set when soft is False.")
        if _fail_on_unavailable and soft:
            raise ValueError("_fail_on_unavailable cannot be set when soft is True.")
        self._key = _node_key(node_id)
        self.node_id: str = self._key.hex()
        if not isinstance(soft, int):
            raise TypeError(f"soft must be True or False, not {soft!r}")
        self.soft: bool = bool(soft)
        self._spill_on_unavailable = _spill_on_unavailable
        self._fail_on_unavailable = _fail_on_unavailable

    def to_strategy(self) -> Strategy:
        """Return it as the scheduler knows it."""
        return NodeAffinity(
            self._key, self.soft, self._spill_on_unavailable, self._fail_on_unavailable
        )


def _node_key(node_id: object) -> NodeKey:
    text = node_id.hex() if isinstance(node_id, NodeID) else node_id
    if not isinstance(text, str):
        raise TypeError(f"node_id must be a string, {_ID_FORM}, not {node_id!r}")
    if not _NODE_ID.fullmatch(text):
        raise ValueError(f"node_id={text!r} is no id of a node: give {_ID_FORM}")
    return NodeKey(bytes.fromhex(text))


class In:
    """The label has one of these values."""

    def __init__(self, *values: str) -> None:
        self.operator: LabelOperator = _In(_checked(values))


class NotIn:
    """The label has none of these values; one that is absent has none."""

    def __init__(self, *values: str) -> None:
        self.operator: LabelOperator = _NotIn(_checked(values))


class Exists:
    """The label is there."""

    operator: LabelOperator = _Exists()


class DoesNotExist:
    """The label is absent."""

    operator: LabelOperator = _DoesNotExist()


LabelConditions = Mapping[str, In | NotIn | Exists | DoesNotExist]


class NodeLabelSchedulingStrategy:
    """Run on a node with certain labels.

    Args:
        hard: Conditions by label, all of which the node must meet.
        soft: Conditions that it should meet, if such a node has room.

    Raises:
        ValueError: There is no condition at all, or one that is none.
    """

    def __init__(
        self, hard: LabelConditions | None = None, *, soft: LabelConditions | None = None
    ) -> None:
        if not hard and not soft:
            raise ValueError(
                "The `hard` and `soft` parameter of NodeLabelSchedulingStrategy cannot both be empty."
            )
        self.hard: Labels = _labels(hard)
        self.soft: Labels = _labels(soft)

    def to_strategy(self) -> Strategy:
        """Return it as the scheduler knows it."""
        return NodeLabels(self.hard, self.soft)


def _labels(conditions: LabelConditions | None) -> Labels:
    for label, condition in (conditions or {}).items():
        if not isinstance(condition, In | NotIn | Exists | DoesNotExist):
            raise ValueError(
                f"The value of label {label!r} must be In, NotIn, Exists or DoesNotExist, "
                f"not {type(condition).__name__}"
            )
    return Labels.of({label: each.operator for label, each in (conditions or {}).items()})


def _checked(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values or not all(isinstance(value, str) for value in values):
        raise ValueError(f"expected label values, each a str, got {values!r}")
    return values
