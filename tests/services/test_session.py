"""A driver's session that does not come to be: its node ends while it is being let in."""

import asyncio
import socket
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import pytest

from raylite._kernel.arena import Arena
from raylite._kernel.grpc import GrpcNetwork
from raylite._runtime.guest import GuestNode
from raylite._runtime.local import SessionOptions
from raylite._runtime.networks import listen, network_of
from raylite._runtime.node import NodeConfig
from raylite._runtime.session import Session
from raylite.exceptions import RaySystemError

STORE = 1 << 20


class FailingNode:
    """A node whose GCS lets drivers connect and says nothing, and which ends when one has."""

    def __init__(self, folder: str) -> None:
        self.config = NodeConfig(1, STORE, session_dir=folder)
        self.config.sockets.mkdir()
        self._arena = Arena.create(STORE)
        self.arena_fd = self._arena.fileno()
        self.gcs = socket.socket(socket.AF_UNIX)
        self.gcs.bind(self.config.gcs_address)
        self.gcs.listen()

    def wait_ready(self) -> None: ...
    def fileno(self) -> int:
        return self.gcs.fileno()  # readable when somebody dials

    def failure(self) -> str | None:
        return "the node was struck by lightning"

    def stop(self) -> None:
        self.gcs.close()
        self._arena.close()


def test_an_init_that_fails_midway_leaves_nothing_open() -> None:
    made: list[GrpcNetwork] = []

    def make(config: NodeConfig, *, newcomers: bool = False) -> GrpcNetwork:
        made.append(network_of(config))
        return made[0]

    with TemporaryDirectory(prefix="rl") as folder:  # `tmp_path` is too long for a socket's path
        node = FailingNode(folder)
        with pytest.raises(RaySystemError, match="struck by lightning"):
            Session(SessionOptions(), cast("GuestNode", node), make)
        (network,) = made
        assert network.links == []
        assert network._connections == {}
        assert [path.name for path in Path(node.config.sockets).iterdir()] == ["gcs.sock"]


def test_a_process_without_a_free_port_is_reached_by_that_of_its_raylet(tmp_path: Path) -> None:
    async def scenario() -> str:
        network = network_of(config)
        await listen(network, config, str(tmp_path / "w.sock"), ports=[taken.getsockname()[1]])
        await network.close()
        return network.address

    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = NodeConfig(1, 0, ip="127.0.0.1", raylet_port=1234, insecure=True)
        address = asyncio.run(scenario())
    assert address == f"tcp:127.0.0.1:1234;=unix:{tmp_path}/w.sock"
