"""Nodes without workers, in virtual time: raylets, stores and drivers, for what passes between nodes."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from raylite._kernel.arena import HeapArena
from raylite._kernel.host import Host
from raylite._kernel.link import LinkConfig
from raylite._protocol import raylet
from raylite._runtime.attach import Attachment, attach_driver
from raylite._runtime.components import Raylet, build_gcs, build_raylet
from raylite._runtime.context import Place
from raylite._services.raylet.logs import Chunk
from raylite._services.raylet.pool import OutputListener, SourceListener
from raylite._services.worker.objects import ObjectRef
from raylite._services.worker.output import OutputService
from raylite._types import board
from raylite._types.marks import mark_of_node
from raylite._wire import hot, pickling
from raylite._wire.hot import Form, Value
from raylite._wire.messages import raylet as msg
from raylite.testing.sim import SimNetwork, World

MB = 1024 * 1024
GCS = "gcs"
LINKS = LinkConfig(  # a cut is one: nobody carries what does not pass
    ping_after=1.0,
    silence=2.0,
    unreachable=3.0,
    session_timeout=6.0,
    connect_timeout=1.0,
    detour=math.inf,
)


class NoWorkers:
    """A `WorkerSource` that starts none; `Node.worker` is one that has registered."""

    listener: SourceListener
    output: OutputListener

    def __init__(self) -> None:
        self.tokens: asyncio.Queue[int] = asyncio.Queue()
        self.resumed = 0

    def start(self, token: int) -> None:
        self.tokens.put_nowait(token)

    def kill(self, token: int) -> None: ...
    def last_task(self, token: int) -> bytes:
        return b""

    def flush_output(self) -> None: ...

    def resume_output(self) -> None:
        self.resumed += 1

    def runs(self, unheard: float) -> None: ...


class Driver:
    """A process of a node. It reads with ``await`` on what `ref` returns."""

    def __init__(self, node: "Node", network: SimNetwork, attachment: Attachment) -> None:
        self.node, self.network, self.attachment = node, network, attachment
        self.core = attachment.core
        self.place = Place(self.core, attachment.node_id)

    async def put(self, value: bytes, at: "Node | None" = None) -> ObjectRef[bytes]:
        """Own a value that is stored on this node, or on another, as a task's result is."""
        node, pickled, id = at or self.node, pickling.dumps(value), self.core.new_object_id()
        if node is not self.node:
            await self._visit(node)
        offset = await node.raylet.objects.reserve(id, pickled.size, self.core.id)
        node.arena.write(offset, pickled.layout())
        stored = Value(Form.ARENA, b"", offset, pickled.size, (), b"", node.raylet.node_id)
        ref = self.core.keep(id, stored, pickled)
        self.core.handover.drain()  # as whatever passes the reference on does
        return ref

    def ref(self, ref: ObjectRef[bytes]) -> ObjectRef[bytes]:
        """Return this process's reference to an object that another owns."""
        return self.core.restore(ref.binary(), ref._entry.owner or ref._entry.keeper.address)

    async def _visit(self, node: "Node") -> None:
        """Be a guest of a node, as whoever has tasks run there is."""
        link, lease = self.core.network.connect(node.network.address), self.core.new_task_id()
        leases = raylet.Leases(link)
        leases.request(hot.LeaseRequest(lease, {}, b"job.", 0, self.core.id))
        leases.release(lease)
        await link.wait_received()

    async def die(self) -> None:
        """End without a word."""
        self.core.close()
        self.node.world.kill(self.network.address)
        self.attachment.running.cancel()
        await asyncio.wait([self.attachment.running])
        await self.network.close()


class Worker:
    """A worker that does nothing but print."""

    def __init__(self, node: "Node", network: SimNetwork, token: int, pid: int) -> None:
        self.node, self.network, self.token, self.pid = node, network, token, pid

    def belong_to(self, job: bytes) -> None:
        member = self.node.raylet.pool.member_by_token(self.token)
        assert member is not None
        member.job = job

    def print(self, *lines: str, name: str = "f", is_stderr: bool = False) -> bool:
        """Print lines; False if the raylet reads no more for now."""
        output = self.node.source.output
        encoded = [line.encode() for line in lines]
        output.printed(self.token, self.pid, name, is_stderr, encoded, False)
        return output.may_read(self.token)


class KeptLogs:
    """Log files in memory, on a disk that may be slow."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.seconds = 0.0
        self._names: dict[tuple[int, bool], str] = {}

    async def write(self, chunks: list[Chunk]) -> None:
        await anyio.sleep(self.seconds)
        for chunk in chunks:
            known = self._names.setdefault(chunk.output, chunk.name)
            self._names[chunk.output] = chunk.name
            self.files[chunk.name] = self.files.pop(known, b"") + chunk.data

    async def close(self) -> None: ...


class Node:
    """A raylet and its store."""

    def __init__(self, world: World, name: str, store: int) -> None:
        id = name.encode().ljust(28, b".")
        self.world, self.name, self.mark = world, name, mark_of_node(id)
        self.arena = HeapArena(store + board.SIZE)
        self.network = SimNetwork(world, name, LINKS)
        self.drivers: list[Driver] = []
        self.workers: list[Worker] = []
        self.source, self.log_files = NoWorkers(), KeptLogs()
        self.raylet: Raylet = build_raylet(
            self.network, GCS, self.source, self.arena, num_cpus=2, resources={}, labels={},
            is_head=False, node_id=id, address=self.address_of(name), ip=f"ip-{name}",
            log_files=self.log_files,
        )  # fmt: skip
        self.running: asyncio.Task[None] | None = None

    def address_of(self, process: str) -> str:
        return f"{process};{self.mark}="

    async def start(self) -> None:
        await self.network.listen(self.address_of(self.name))
        self.running = self.raylet.host.start("raylet")

    async def driver(self, name: str, output: OutputService | None = None) -> Driver:
        """Attach a process."""
        network = SimNetwork(self.world, name, LINKS)
        await network.listen(self.address_of(name))
        attachment = await attach_driver(
            network, self.network.address, GCS, self.arena, name.encode().ljust(28, b"."),
            cpus=1, entrypoint=name, config=hot.JobConfig(), wake=asyncio.get_running_loop().call_soon,
            node_id=self.raylet.node_id, output=output,
        )  # fmt: skip
        self.drivers.append(Driver(self, network, attachment))
        return self.drivers[-1]

    async def worker(self, pid: int, job: bytes = b"") -> "Worker":
        """Have a worker register, which belongs to a job if that is given."""
        network = SimNetwork(self.world, f"worker-{pid}", LINKS)
        token = await self.source.tokens.get()
        await network.listen(self.address_of(f"worker-{pid}"))
        id = b"%d" % pid
        await raylet.Pool(network.connect(self.network.address)).register_worker(
            msg.RegisterWorker(token.to_bytes(8, "little"), id, pid, network.address)
        )
        worker = Worker(self, network, token, pid)
        self.workers.append(worker)
        worker.belong_to(job)
        return worker

    async def die(self) -> None:
        """Lose the node, with all its processes, without a word."""
        for driver in self.drivers:
            await driver.die()
        self.drivers.clear()
        for worker in self.workers:
            await worker.network.close()
        self.workers.clear()
        if self.running is not None:
            self.world.kill(self.network.address)
            running, self.running = self.running, None
            running.cancel()
            await asyncio.wait([running])
            await self.network.close()

    @property
    def used(self) -> int:
        """Bytes that objects have here."""
        return self.raylet.objects.memory.statistics().used

    @property
    def chunks_read(self) -> int:
        """How many chunks other nodes have asked this one for."""
        return self.raylet.copies.statistics().handled.get("Copies.read", 0)

    def check(self) -> None:
        self.raylet.objects.memory.check()
        self.raylet.copies.copies.check()
        self.raylet.transfers.pulls.check()
        self.raylet.logs.logs.check()


class Nodes:
    """A GCS and the nodes that joined it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.all: list[Node] = []

    async def add(self, name: str, store: int = 32 * MB) -> Node:
        node = Node(self.world, name, store)
        await node.start()
        self.all.append(node)
        await node.raylet.joined.wait()
        known = [each.raylet.cluster.local for each in self.all if each.running]
        for each in self.all:
            if each.running:
                await each.raylet.cluster.wait_known(known)
        return node


@asynccontextmanager
async def cluster(seed: int = 1) -> AsyncIterator[Nodes]:
    """Run a GCS, and end it and all nodes after the block."""
    world = World(seed)
    network = SimNetwork(world, GCS, LINKS)
    await network.listen(GCS)
    gcs: Host = build_gcs(network)
    running = gcs.start(GCS)
    nodes = Nodes(world)
    try:
        yield nodes
        await anyio.sleep(2.0)
        for node in nodes.all:
            node.check()
    finally:
        for node in nodes.all:
            await node.die()
            node.arena.close()
        gcs.stop()
        await running
