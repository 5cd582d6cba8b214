"""What `raylite status` makes of the cluster's rows."""

import socket
from datetime import datetime

import pytest

from raylite._runtime.inquiry import list_nodes
from raylite._runtime.networks import Keys
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


def test_a_suspect_is_among_the_living_and_said_to_be_one() -> None:
    silent = msg.Node(node_id=b"d" * 28, ip="10.0.0.4", alive=True, suspect=True)
    shown = [line for line in describe([*NODES, silent], NOTHING, NOW) if "SUSPECT" in line]
    assert shown == [
        " 1 node_646464646464 (, 10.0.0.4): SUSPECT, it has not been heard for some seconds"
    ]


def test_who_left_in_order_is_no_failure() -> None:
    shown = "\n".join(describe(NODES, NOTHING, NOW))
    assert "its host was lost" in shown
    assert "it was stopped" not in shown
    assert " (no failures)" in "\n".join(describe(NODES[:2], NOTHING, NOW))


def test_a_cluster_that_does_not_answer_is_told_of_with_what_may_be_missing() -> None:
    with pytest.raises(ConnectionError, match=r"Is its head running, and is this its address\?$"):
        list_nodes("tcp:127.0.0.1:1", Keys(), patience=0.1)
    with pytest.raises(ConnectionError, match="If it encrypts, give --ca-fingerprint as well"):
        list_nodes("tcp:localhost:1", Keys(), patience=0.1)  # a name may be another machine's
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ConnectionError, match=r"it said nothing for 0\.1 s \(no answer yet\)"):
            list_nodes(f"tcp:127.0.0.1:{port}", Keys(), patience=0.1)
