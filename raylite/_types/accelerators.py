"""Accelerators: resources of which it matters which ones a task has, and how libraries are told."""

from collections.abc import Iterable, Mapping
from typing import Final

#: The resources that are devices, and the variable by which their libraries know which to use.
VISIBLE: Final[Mapping[str, str]] = {
    "GPU": "CUDA_VISIBLE_DEVICES",
    "neuron_cores": "NEURON_RT_VISIBLE_CORES",
    "TPU": "TPU_VISIBLE_CHIPS",
    "NPU": "ASCEND_RT_VISIBLE_DEVICES",
    "HPU": "HABANA_VISIBLE_MODULES",
}

Shares = tuple[tuple[str, tuple[tuple[int, int], ...]], ...]
"""Which devices: by resource, their numbers on the node, and the ten-thousandths of each."""


def listed(visible: str | None) -> list[str] | None:
    """Return the devices that a variable lets this process use; None if it says nothing of it."""
    if visible is None:
        return None
    return [] if visible in ("", "NoDevFiles") else visible.split(",")


def identities(numbers: Iterable[int], visible: str | None) -> list[int] | list[str]:
    """Return by what the user knows devices: their numbers, unless the node was told other names.

    As in Ray, what a task's own environment makes visible wins over the node's numbers.
    """
    names = listed(visible)
    if names is None:
        return sorted(numbers)
    chosen = sorted(numbers)
    if all(number < len(names) for number in chosen):
        return [names[number] for number in chosen]
    return names
