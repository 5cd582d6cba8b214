"""Overrides: what the environment says of a node, by raylite's names or by Ray's.

Whoever starts nodes for others (an autoscaler, a cloud's image) has the environment, and not the command line.
"""

import json
from collections.abc import Mapping
from typing import Any

from raylite._options import validate_init_options
from raylite._runtime.settings import setting
from raylite._types.strategies import OWN_LABELS

_LABELS = {
    "node-group": "NODE_TYPE_NAME",
    "market-type": "NODE_MARKET_TYPE",
    "availability-zone": "NODE_ZONE",
    "availability-region": "NODE_REGION",
}
_KEYWORDS = {
    "CPU": "num_cpus",
    "GPU": "num_gpus",
    "memory": "_memory",
    "object_store_memory": "object_store_memory",
}


def resources() -> dict[str, float]:
    """Return the amounts of `OVERRIDE_RESOURCES`, which go before those that were asked for.

    CPU, GPU, memory and object_store_memory are among them by these names.

    Raises:
        ValueError: The variable has a value that no node can offer.
    """
    variable, text = setting("OVERRIDE_RESOURCES")
    if not text:
        return {}
    try:
        amounts = json.loads(text)
        if not isinstance(amounts, dict):
            raise ValueError("it is no JSON object")
        validate_init_options(_as_keywords(amounts))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{variable}={text} cannot be offered by a node: {error}. Write it like "
            '{"CPU": 4, "oven": 1}'
        ) from error
    return {name: amount for name, amount in amounts.items() if amount is not None}


def labels(accelerator: str) -> dict[str, str]:
    """Return the labels that are the cluster's own, but for the node's id.

    Args:
        accelerator: The type of the node's GPUs, if it has some.
    """
    known = {name: setting(variable)[1] for name, variable in _LABELS.items()}
    known["accelerator-type"] = accelerator
    return {f"{OWN_LABELS}{name}": value for name, value in known.items() if value}


def _as_keywords(amounts: Mapping[str, Any]) -> dict[str, Any]:
    named = {_KEYWORDS[name]: amount for name, amount in amounts.items() if name in _KEYWORDS}
    others = {name: amount for name, amount in amounts.items() if name not in _KEYWORDS}
    return {**named, "resources": others}
