"""Changing a cluster's tokens while it runs: for a while two are valid, then the old one is no more.
Tokens of a lesser scope come and go beside them.

Each machine is told by its user, who takes the new token there as he took the first: a token never
travels by itself. Processes find it in their node's file when they next open a stream.
"""

from msgspec import Struct

from raylite._kernel.secretfile import write_secret
from raylite._kernel.token import (
    MOST_LESSER,
    Token,
    new_token,
    read_issued,
    read_tokens,
    write_issued,
    write_tokens,
)
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
    known = _own(nodes[0])
    if len(known) > 1:
        raise AuthenticationError(
            f"two tokens are valid on this machine already, {known[0].id} and {known[1].id}: when every "
            "machine has the first, run `raylite token revoke` on each"
        )
    added = _added(token_file, known[0]) if token_file else new_token()
    return _write(nodes, (added, known[0]), added, known[0])


def revoke(address: str | None = None, temp_dir: str = "") -> Rotation:
    """Have this machine's nodes of a cluster forget the older of two tokens; see `rotate`.

    Raises:
        ConnectionError: No node of the cluster runs here.
        AuthenticationError: There is one token only.
    """
    nodes = _nodes(address, temp_dir)
    known = _own(nodes[0])
    if len(known) < 2:
        raise AuthenticationError(
            f"only the token {known[0].id} is valid on this machine: run `raylite token rotate` first"
        )
    new, old = known
    return _write(nodes, (new,), new, old)


def issue(path: str, scope: str, address: str | None = None, temp_dir: str = "") -> Rotation:
    """Make a token of a lesser scope, which the head on this machine knows from now on.

    The GCS tells of those of the scope `node` to nodes that have the cluster's own token.

    Args:
        path: The new file to keep it in, for who is to have it.
        scope: `read` or `node`; see `SCOPES`.
        address: The cluster; None for that of the node that was started last.
        temp_dir: Where sessions are.

    Raises:
        ConnectionError: No head of the cluster runs here.
        AuthenticationError: The file is there already, or there are too many tokens.
        OSError: It cannot be made.
    """
    head = _head(address, temp_dir)
    own, issued, known = _own(head), new_token(scope), read_issued(head.token_file)
    if len(known) >= MOST_LESSER:
        ids = ", ".join(token.id for token in known)
        raise AuthenticationError(
            f"{MOST_LESSER} tokens, which is the most, were issued: revoke one of {ids}"
        )
    write_secret(path, issued.reveal().encode() + b"\n")
    write_issued(head.token_file, (*known, issued))
    return Rotation(head.cluster, issued.id, own[0].id, (path,))


def withdraw(id: str, address: str | None = None, temp_dir: str = "") -> Rotation:
    """Have the head on this machine forget a token that was issued, and all nodes; see `issue`.

    Raises:
        ConnectionError: No head of the cluster runs here.
        AuthenticationError: It knows no such token.
    """
    head = _head(address, temp_dir)
    own, known = _own(head), read_issued(head.token_file)
    if not any(token.id == id for token in known):
        ids = ", ".join(token.id for token in known)
        raise AuthenticationError(f"no token {id} was issued; those that were: {ids or 'none'}")
    write_issued(head.token_file, [token for token in known if token.id != id])
    return Rotation(head.cluster, own[0].id, id, ())


def _head(address: str | None, temp_dir: str) -> NodeRecord:
    nodes = _nodes(address, temp_dir)
    for node in nodes:
        if node.head:
            return node
    raise ConnectionError(
        f"the head of the cluster at {nodes[0].cluster} runs on another machine: tokens are issued, and "
        "what was issued is revoked, there"
    )


def _own(node: NodeRecord) -> list[Token]:
    """Return the cluster's own tokens, the newest first."""
    own = [token for token in read_tokens(node.token_file) if not token.is_lesser]
    if not own:
        raise AuthenticationError(
            "this machine's nodes joined with a token of a lesser scope: run this on the head"
        )
    return own


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
