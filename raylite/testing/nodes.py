"""Nodes as a test speaks of them: what one is to offer, and by what it is named afterwards."""

from collections.abc import Mapping
from mmap import PAGESIZE as PAGE_SIZE
from typing import Self

from msgspec import Struct, field

from raylite._options import validate_init_options

STORE = 64 * 1024 * 1024


class NodeSpec(Struct, frozen=True):
    """What a node of a test cluster offers. Sizes are in bytes."""

    num_cpus: float = 2
    num_gpus: float = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    object_store_memory: int = STORE

    def __post_init__(self) -> None:
        """Refuse what `init` would; the store may be smaller.

        Raises:
            TypeError: A value has the wrong type.
            ValueError: A value is impossible.
        """
        names = ("num_cpus", "num_gpus", "resources", "labels")
        validate_init_options({name: getattr(self, name) for name in names})
        size: object = self.object_store_memory
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"object_store_memory must be a number of bytes, an int, not {size!r}")
        if size < PAGE_SIZE:
            raise ValueError(
                f"object_store_memory must be {PAGE_SIZE} bytes or more, not {size}: leave it out for {STORE}"
            )

    @classmethod
    def of(cls, given: "float | Mapping[str, object] | NodeSpec") -> Self:
        """Return a node from what a test wrote: its CPUs, or its fields by name, None for a default."""
        if isinstance(given, NodeSpec):
            given = {name: getattr(given, name) for name in cls.__struct_fields__}
        if isinstance(given, int | float):
            return cls(num_cpus=given)
        if unknown := set(given) - set(cls.__struct_fields__):
            fields = ", ".join(cls.__struct_fields__)
            raise TypeError(f"a node has no {', '.join(sorted(unknown))}; it has {fields}")
        return cls(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]

    def amounts(self) -> dict[str, float]:
        """Return the resources besides CPUs."""
        return {**({"GPU": self.num_gpus} if self.num_gpus else {}), **self.resources}


class LocalNode:
    """A node of a `LocalCluster`; what its `add_node` returns.

    Args:
        node_id: Its id, in hexadecimal.
        spec: What it offers.
    """

    def __init__(self, node_id: str, spec: NodeSpec) -> None:
        self.node_id = node_id
        self.spec = spec

    @classmethod
    def checked(cls, given: object) -> Self:
        """Return what a test names a node by, if it is one.

        Raises:
            TypeError: It is not, but a node's number, its id or the like.
        """
        if not isinstance(given, cls):
            raise TypeError(
                f"a node is one of the cluster's `nodes`, or what `add_node` returned, not {given!r}"
            )
        return given

    def __repr__(self) -> str:
        return f"LocalNode({self.node_id[:8]}, {self.spec.num_cpus:g} CPUs)"
