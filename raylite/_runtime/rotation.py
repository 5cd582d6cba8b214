"""Changing a cluster's token while it runs: for a while two are valid, then the old one is no more.

Each machine is told by its user, who takes the new token there as he took the first: a token never
travels by itself. Processes find it in their node's file when they next open a stream.
"""

from msgspec import Struct

from raylite._kernel.token import Token, new_token, read_tokens, write_tokens
from raylite._runtime import addresses, records
from raylite._runtime.records import NodeRecord
from raylite.exceptions import AuthenticationError


class Rotation(Struct, frozen=True):
    """The ids of the token that stays and of the one that goes, and the files they are in.

    Args:
        cluster: The cluster's address.
        new: The id of the token that stays.
        old: The id of the other.
        files: One for each node of the cluster on this machine.
    """

    cluster: str
    new: str
    old: str
    files: tuple[str, ...]


def rotate(address: str | None = None, token_file: str = "", temp_dir: str = "") -> Rotation:
    """Let this machine's nodes of a cluster know a second token, a new one.

    Args:
        address: The cluster; None for that of the node that was started last.
        token_file: A copy of the file of a machine that has it; empty to make a token.
        temp_dir: Where sessions are.

    Raises:
        ConnectionError: No node of the cluster runs here.
        AuthenticationError: There are two tokens already, or the file's are another cluster's.
    """
    nodes = _nodes(address, temp_dir)
    known = read_tokens(nodes[0].token_file)
    if len(known) > 1:
        raise AuthenticationError(
            f"two tokens are valid on this machine already, {known[0].id} and {known[1].id}: when every "
            "machine has the first, run `raylite token revoke` on each"
        )
    added = _added(token_file, known[0]) if token_file else new_token(known[0].scope)
    return _write(nodes, (added, known[0]), added, known[0])


def revoke(address: str | None = None, temp_dir: str = "") -> Rotation:
    """Have this machine's nodes of a cluster forget the older of two tokens; see `rotate`.

    Raises:
        ConnectionError: No node of the cluster runs here.
        AuthenticationError: There is one token only.
    """
    nodes = _nodes(address, temp_dir)
    known = read_tokens(nodes[0].token_file)
    if len(known) < 2:
        raise AuthenticationError(
            f"only the token {known[0].id} is valid on this machine: run `raylite token rotate` first"
        )
    new, old = known
    return _write(nodes, (new,), new, old)


def _nodes(address: str | None, temp_dir: str) -> list[NodeRecord]:
    chosen = addresses.node_of(address or addresses.from_environment(), temp_dir)
    cluster = chosen.cluster if chosen is not None else ""
    living = records.living(temp_dir)
    nodes = [node for node in living if node.cluster == cluster and node.token_file]
    if not nodes:
        raise ConnectionError(
            "no node of that cluster runs on this machine: run this on each machine that has one"
        )
    return nodes


def _added(token_file: str, current: Token) -> Token:
    """Return the new token in a copy of another machine's file."""
    given = read_tokens(token_file)
    if len(given) < 2 or given[1] != current:
        raise AuthenticationError(
            f"{token_file} does not hold a new token beside {current.id}, which is valid here: copy the "
            "file of a machine of this cluster on which `raylite token rotate` was run"
        )
    return given[0]


def _write(nodes: list[NodeRecord], tokens: tuple[Token, ...], new: Token, old: Token) -> Rotation:
    for node in nodes:
        write_tokens(node.token_file, tokens)
    return Rotation(nodes[0].cluster, new.id, old.id, tuple(node.token_file for node in nodes))
