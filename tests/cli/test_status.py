"""What `raylite status` makes of the cluster's rows."""

from datetime import datetime

from raylite._wire import hot
from raylite._wire.messages import gcs as msg
from raylite.cli.status import describe

NODES = [
    msg.Node(node_id=b"a" * 28, ip="10.0.0.1", alive=True),
    msg.Node(node_id=b"b" * 28, ip="10.0.0.2", left=True, death_reason="it was stopped"),
    msg.Node(node_id=b"c" * 28, ip="10.0.0.3", death_reason="its host was lost"),
]


NOTHING = hot.Demand(pending=(), infeasible=())
NOW = datetime(2026, 1, 1)


def test_who_left_in_order_is_no_failure() -> None:
    shown = "\n".join(describe(NODES, NOTHING, NOW))
    assert "its host was lost" in shown
    assert "it was stopped" not in shown
    assert " (no failures)" in "\n".join(describe(NODES[:2], NOTHING, NOW))
