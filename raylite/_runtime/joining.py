"""Which cluster a driver means: the one it names, one that runs on this machine, or one of its own."""

from collections.abc import Mapping

from raylite._runtime import addresses, records
from raylite._runtime.addresses import AUTO
from raylite._runtime.guest import GuestNode
from raylite._runtime.records import NodeRecord

NEW = "local"


def find(address: str | None, temp_dir: str, only_new: Mapping[str, object]) -> GuestNode | None:
    """Return this machine's node of the cluster that is meant; None if a new one is to be started.

    The order is: what is given, ``RAYLITE_ADDRESS``, ``RAY_ADDRESS``, the cluster that was started
    or joined on this machine last and still runs.

    Args:
        address: As given to `init`.
        temp_dir: Where sessions are; empty means the environment's, or the system's.
        only_new: What was asked for that only the start of a cluster can decide, None if it was not.

    Raises:
        ValueError: This is no address; or something in `only_new`, and there is a cluster.
        ConnectionError: The cluster that is meant has no node here.
        RuntimeError: It runs another version.
    """
    node = _find(address, temp_dir)
    given = [name for name, value in only_new.items() if value is not None]
    if node is not None and given:
        node.stop()
        raise ValueError(
            f"When connecting to an existing cluster, {', '.join(given)} must not be provided: leave "
            f'{"it" if len(given) == 1 else "them"} out, or pass address="{NEW}" to start a cluster '
            "of your own"
        )
    return node


def _find(address: str | None, temp_dir: str) -> GuestNode | None:
    if address is None or address == AUTO:
        address = addresses.from_environment() or address
    if address == NEW:
        return None
    if address is None or address == AUTO:
        return _latest(temp_dir, is_wanted=address == AUTO)
    if "://" in address:
        raise ConnectionError(
            f"cannot connect to {address!r}: a driver connects to a node of its own machine; give "
            f'{addresses.FORMS}, or "{NEW}"'
        )
    session = addresses.session_of(address)
    if session is not None:
        return GuestNode(str(session))
    nodes = addresses.nodes_of(address, temp_dir)
    if not nodes:
        raise ConnectionError(
            f"no node of the cluster at {address} runs on this machine: start one with "
            f"`raylite start --address={address}`, then run this program again"
        )
    return GuestNode(_heads_first(nodes)[0].session_dir)


def _latest(temp_dir: str, *, is_wanted: bool) -> GuestNode | None:
    for record in _heads_first(records.living(temp_dir)):
        try:
            return GuestNode(record.session_dir)
        except ConnectionError:
            continue  # it ended a moment ago
    if is_wanted:
        raise ConnectionError(
            "no cluster runs on this machine: start one with `raylite start --head`, or leave the "
            "address out to have one that ends with this program"
        )
    return None


def _heads_first(nodes: list[NodeRecord]) -> list[NodeRecord]:
    """Of a cluster's nodes on this machine, a driver wants the head, as Ray's; clusters stay in order."""
    clusters = list(dict.fromkeys(node.cluster for node in nodes))
    return sorted(nodes, key=lambda node: (clusters.index(node.cluster), not node.head))
