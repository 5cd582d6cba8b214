"""A GCS alone, in virtual time: one life of it after another, on one storage."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import anyio

from raylite._kernel.link import Link
from raylite._kernel.memory import MemoryNetwork, Switch
from raylite._protocol.gcs import Jobs, Kv, Nodes, Workers
from raylite._runtime.components import build_gcs
from raylite._services.gcs.storage import Storage
from raylite._types.system_config import Scalar
from raylite._wire.messages import gcs as msg
from raylite.testing.loop import SimLoop
from raylite.testing.sim import World

T = TypeVar("T")


class Client:
    """A process that speaks to the GCS, on a link of its own."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network
        self.link: Link = network.connect("gcs")
        self.nodes, self.jobs = Nodes(self.link), Jobs(self.link)
        self.kv, self.workers = Kv(self.link), Workers(self.link)

    async def leave(self) -> None:
        """Say goodbye."""
        await self.network.close()
        await anyio.sleep(0.01)


class Life:
    """One life of the GCS. Clients end with it, if they have not left before."""

    def __init__(self, switch: Switch, world: World) -> None:
        self._switch, self._world = switch, world
        self.clients: list[Client] = []

    def client(self) -> Client:
        seams = self._world.seams(f"client {len(self.clients)}")
        client = Client(MemoryNetwork(self._switch, seams))
        self.clients.append(client)
        return client


@asynccontextmanager
async def life(storage: Storage, **system: Scalar) -> AsyncIterator[Life]:
    """Run a GCS on a storage until the block ends; then it stops before its clients do."""
    switch, world = Switch(), World(1)
    network = MemoryNetwork(switch, world.seams("gcs"))
    await network.listen("gcs")
    host = build_gcs(network, storage, system=system)
    running = host.start("gcs")
    lived = Life(switch, world)
    async with AsyncExitStack() as stack:
        try:
            yield lived
        finally:
            host.stop()
            await running
            for client in lived.clients:
                stack.push_async_callback(client.network.close)


def simulated(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run an async test in virtual time."""

    def run() -> None:
        SimLoop().run(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def node(node_id: bytes = b"n", incarnation: int = 1, address: str = "") -> msg.RegisterNode:
    return msg.RegisterNode(
        node_id=node_id, incarnation=incarnation, address=address, resources={"CPU": 4.0}
    )


async def nodes_of(feed: AsyncIterator[msg.NodeEvent]) -> AsyncIterator[msg.Node]:
    """Read the rows of a feed of nodes one by one; those of one message come in its order."""
    async for event in feed:
        for row in event.nodes:
            yield row


async def take(feed: AsyncIterator[T], count: int) -> list[T]:
    """Read some items of a feed."""
    return [await anext(feed) for _ in range(count)]
