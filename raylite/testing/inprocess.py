"""A cluster inside this process: GCS, raylets and stores as services on one loop, workers as threads."""

import asyncio
import secrets
from collections.abc import Iterable
from contextlib import suppress

from raylite._kernel.arena import HeapArena
from raylite._kernel.host import Host
from raylite._kernel.memory import MemoryNetwork, Switch
from raylite._kernel.threads import LoopThread
from raylite._runtime import context
from raylite._runtime.attach import Attachment, attach_driver
from raylite._runtime.components import Raylet, build_gcs, build_raylet
from raylite._runtime.context import Place
from raylite._types import board
from raylite._types.marks import mark_of_node
from raylite._wire import hot
from raylite.exceptions import RaySystemError
from raylite.testing.nodes import LocalNode, NodeSpec
from raylite.testing.threads import ThreadWorkers

GCS = "memory:gcs"


class _Node:
    """A raylet with its store and its workers."""

    def __init__(self, switch: Switch, spec: NodeSpec, namespace: str, *, is_head: bool) -> None:
        id = secrets.token_bytes(28)
        self.handle = LocalNode(id.hex(), spec)
        self.name = f"node-{id.hex()[:8]}"
        self.mark = mark_of_node(id)
        self.address = self.address_of("raylet")
        self.arena = HeapArena(spec.object_store_memory + board.SIZE)
        self.network = MemoryNetwork(switch)
        self.workers = ThreadWorkers(
            switch, self.address, self.arena, spec.num_cpus, namespace, spec.labels, self.address_of
        )
        self.raylet: Raylet = build_raylet(
            self.network,
            GCS,
            self.workers,
            self.arena,
            num_cpus=spec.num_cpus,
            resources=spec.amounts(),
            labels=spec.labels,
            is_head=is_head,
            node_id=id,
            address=self.address,
        )
        self.running: asyncio.Task[None] | None = None

    def address_of(self, process: str) -> str:
        return f"memory:{self.name}/{process};{self.mark}="

    async def start(self) -> None:
        await self.network.listen(self.address)
        self.running = self.raylet.host.start("raylet")

    async def stop(self) -> None:
        """End it in order, so that the cluster knows at once."""
        await self.workers.close()
        self.raylet.host.stop()
        if self.running is not None:
            await asyncio.wait([self.running])

    @property
    def is_running(self) -> bool:
        return self.running is not None and not self.running.done()

    @property
    def networks(self) -> list[MemoryNetwork]:
        return [self.network, *self.workers.networks]


class InProcessCluster:
    """Nodes on one loop thread, and this process as a driver of the first. Any thread may call it."""

    def __init__(self, specs: Iterable[NodeSpec], namespace: str) -> None:
        self._namespace = namespace
        self._nodes: dict[str, _Node] = {}
        self._gone: list[_Node] = []
        self._island: list[_Node] = []  # those that are cut off from the head
        self._thread = LoopThread("raylite-cluster")
        try:
            self.place: Place = self._thread.run(self._start(list(specs)), 30.0)
        except BaseException:
            self._thread.stop()
            raise
        context.enter(self.place)

    @property
    def nodes(self) -> list[LocalNode]:
        """The nodes that were neither removed nor killed, the head first."""
        return [node.handle for node in self._nodes.values()]

    def add_node(self, spec: NodeSpec) -> LocalNode:
        """Let a node join."""
        return self._thread.run(self._add(spec, is_head=False), 10.0)

    def remove_node(self, handle: LocalNode) -> None:
        """End a node in order."""
        self._thread.run(self._remove(handle), 10.0)

    def kill_node(self, handle: LocalNode) -> None:
        """End a node without a word."""
        self._thread.run(self._kill(handle), 10.0)

    def partition(self, handles: Iterable[LocalNode]) -> None:
        """Let nothing pass between these and the others."""
        self._thread.run(self._cut(list(handles)), 10.0)

    def heal(self) -> None:
        """Let everything pass again."""
        self._thread.run(self._heal(), 10.0)

    def close(self) -> None:
        """End everything."""
        context.leave(self.place)
        self.place.core.close()
        try:
            self._thread.run(self._stop(), 10.0)
        finally:
            self._thread.stop()
            for node in (*self._nodes.values(), *self._gone):
                for thread in node.workers.threads:
                    thread.join(1.0)
                node.arena.close()

    # ---- on the loop ---------------------------------------------------------------------

    async def _start(self, specs: list[NodeSpec]) -> Place:
        self._switch = Switch()
        self._gcs_network = MemoryNetwork(self._switch)
        await self._gcs_network.listen(GCS)
        self._gcs: Host = build_gcs(self._gcs_network)
        self._gcs_running = self._gcs.start("gcs")
        for number, spec in enumerate(specs):
            await self._add(spec, is_head=number == 0)
        head = next(iter(self._nodes.values()))
        self._driver_network = MemoryNetwork(self._switch)
        await self._driver_network.listen(head.address_of("driver"))
        self._attachment: Attachment = await attach_driver(
            self._driver_network,
            head.address,
            GCS,
            head.arena,
            secrets.token_bytes(28),
            cpus=head.handle.spec.num_cpus,
            entrypoint="LocalCluster",
            node_id=head.raylet.node_id,
            config=hot.JobConfig(self._namespace),
        )
        place = Place(self._attachment.core, self._attachment.node_id)
        place.namespace, place.labels = self._namespace, head.handle.spec.labels
        place.gcs_address = GCS
        return place

    async def _add(self, spec: NodeSpec, *, is_head: bool) -> LocalNode:
        node = _Node(self._switch, spec, self._namespace, is_head=is_head)
        self._nodes[node.handle.node_id] = node
        await node.start()
        await node.raylet.joined.wait()
        nodes = self._nodes.values()
        reached = [each for each in nodes if each.is_running and each not in self._island]
        for each in reached:
            await each.raylet.cluster.wait_known(other.raylet.cluster.local for other in reached)
        return node.handle

    async def _remove(self, handle: LocalNode) -> None:
        node = self._take(handle)
        await node.stop()

    async def _kill(self, handle: LocalNode) -> None:
        node = self._take(handle)
        for network in node.networks:
            self._switch.unplug(network)
        await node.stop()

    async def _cut(self, handles: list[LocalNode]) -> None:
        chosen = [self._node(handle) for handle in handles]
        is_ours = next(iter(self._nodes.values())) in chosen
        self._island = [node for node in self._nodes.values() if (node in chosen) is not is_ours]
        self._switch.cut(network for node in self._island for network in node.networks)

    async def _heal(self) -> None:
        self._island = []
        self._switch.heal()

    async def _stop(self) -> None:
        self._switch.heal()
        await self._attachment.detach()
        for node in self._nodes.values():
            await node.stop()
        self._gcs.stop()
        await asyncio.wait([self._gcs_running])
        self._gcs_running.result()
        for node in self._nodes.values():
            if node.running is not None:
                with suppress(RaySystemError):  # it had been cut off for so long that it gave up
                    node.running.result()

    def _node(self, handle: LocalNode) -> _Node:
        node = self._nodes.get(handle.node_id)
        if node is None:
            raise ValueError(f"{handle} is not a node of this cluster, or is one no more")
        return node

    def _take(self, handle: LocalNode) -> _Node:
        node = self._node(handle)
        if node is next(iter(self._nodes.values())):
            raise ValueError("the first node is this process's own; end the cluster instead")
        self._gone.append(self._nodes.pop(handle.node_id))
        return node
