"""Marks: which node a process belongs to, as its address says.

An address may end in ``;MARK=...``, where the mark names the node, and what follows is how its own
processes reach it (see `Network`). The processes of a node that died are known by it.
"""

_MARK_BYTES = 8


def mark_of_node(node_id: bytes) -> str:
    """Return the mark that a node's processes bear in their addresses."""
    return node_id[:_MARK_BYTES].hex()


def mark_of(address: str) -> str:
    """Return the mark in an address; empty if there is none: a cluster of one node needs none."""
    _, found, rest = address.rpartition(";")
    return rest.partition("=")[0] if found else ""
