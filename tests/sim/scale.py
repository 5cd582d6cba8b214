"""Measure clusters of many nodes: ``python -m tests.sim.scale 10 100 1000 3000`` prints a table.

The GCS is the shipping one, in virtual time, with two whole nodes on which tasks run. All other
nodes are *hollow*: they register, beat, report their views and watch what a raylet watches, over
links as they are, but only count what they are told. So what a raylet does with that costs nothing
here, and what the GCS does is seen: its CPU time is real, and counted apart from everybody's else.
"""

import asyncio
import contextvars
import gc
import itertools
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVarTuple

from msgspec import Struct

from raylite._kernel.interface import Interface, feed
from raylite._kernel.link import LinkConfig
from raylite._machines.submitter import LINGER_SECONDS
from raylite._machines.views import ViewPublisher
from raylite._protocol import gcs, views as wire
from raylite._runtime.membership import BEAT, COMPARE
from raylite._services.raylet.cluster import between_reports
from raylite._types.resources import Resources
from raylite._types.strategies import NodeKey, NodeView
from raylite._wire import hot
from raylite._wire.messages import gcs as msg
from raylite.testing.loop import PROCESS, Clock, SimLoop
from raylite.testing.node import GCS, SimDriver, TaskContext
from raylite.testing.sim import SimNetwork, SimWire, World
from raylite.testing.simcluster import SimCluster
from raylite.testing.simgcs import SimDisk
from tests.sim.workload import quiet_collector

Ts = TypeVarTuple("Ts")

SIZES = [10, 100, 1_000, 3_000]
COMMIT = 0.005  # seconds that the GCS's disk takes for a commit, in the mean
WHOLE = 2  # nodes that are not hollow
WORKERS = 2  # that a hollow node says it has, as one that has just begun does
TASKS = 1_000
LEASES = 40
OBSERVED = 5.0  # virtual seconds of each state that is looked at


class Figures(Struct):
    """What was measured of one cluster. Times are virtual, but for those of the CPU."""

    nodes: int
    registered: float  # seconds from the first dial until the last node was a member
    acquainted: float  # and until everybody had been told of everybody
    storm_cpu: float  # seconds of the GCS's CPU
    storm_messages: float  # a node
    storm_bytes: float  # a node
    rest_cpu: float  # a second
    rest_messages: float  # a second
    rest_bytes: float
    busy_cpu: float  # the same while the load of every node changes every second
    busy_messages: float
    busy_bytes: float
    memory: float  # bytes of the GCS's a node
    lease: float  # seconds from a task's submission to its value, without its own: the median
    lease_worst: float  # of `LEASES`
    tasks_cpu: float  # seconds of the GCS's CPU that `TASKS` tasks took
    wall: float  # seconds that measuring all this took

    def row(self) -> str:
        """Return these as a row of the table."""
        cells = [
            f"{self.nodes:,}",
            f"{self.registered:.1f}, {self.acquainted:.1f} s",
            f"{self.storm_cpu:.2f} s",
            f"{self.storm_messages:.0f}, {self.storm_bytes / 1e3:,.0f} kB",
            f"{self.rest_cpu:.1%}",
            f"{self.rest_messages:,.0f}, {self.rest_bytes / 1e6:.2f} MB",
            f"{self.busy_cpu:.1%}",
            f"{self.busy_messages:,.0f}, {self.busy_bytes / 1e6:.1f} MB",
            f"{self.memory / 1e3:.0f} kB",
            f"{self.lease * 1e3:.1f}, {self.lease_worst * 1e3:.1f} ms",
            f"{self.tasks_cpu:.2f} s",
            f"{self.wall:.0f} s",
        ]
        return "| " + " | ".join(cells) + " |"


HEADINGS = (
    "nodes",
    "all members, all know all",
    "GCS's CPU for that",
    "said to a node",
    "CPU at rest",
    "said a second",
    "CPU if all loads change",
    "said a second",
    "memory a node",
    f"lease: median, worst of {LEASES}",
    f"CPU for {TASKS:,} tasks",
    "took",
)


class MeteredLoop(SimLoop):
    """Can count the CPU time of what runs by one clock. Keeps no trace, and has no bound on steps.

    Asking for a thread's CPU time may cost more than a callback does, so callbacks are measured in
    plain time, and what the machine did for others meanwhile is taken off in proportion.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._meter: Meter | None = None
        super().__init__(traced=False)

    @contextmanager
    def metering(self) -> Iterator["Meter"]:
        """Measure what runs meanwhile."""
        meter = self._meter = Meter()
        began, spent = time.perf_counter(), time.thread_time()
        try:
            yield meter
        finally:
            self._meter = None
            passed = time.perf_counter() - began
            meter.cpu = meter.took * (time.thread_time() - spent) / passed

    def call_soon(
        self,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        call = self._metered(callback, context)
        return asyncio.SelectorEventLoop.call_soon(self, call, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        call = self._metered(callback, context)
        return super().call_at(when, call, *args, context=context)

    def look_for_end(self) -> None: ...

    def _metered(
        self, callback: Callable[[*Ts], object], context: contextvars.Context | None
    ) -> Callable[[*Ts], object]:
        process = PROCESS.get() if context is None else context.get(PROCESS)
        if self._meter is None or process is None or process.clock is not self._clock:
            return callback
        meter = self._meter

        def metered(*args: *Ts) -> None:
            began = time.perf_counter()
            try:
                callback(*args)
            finally:
                meter.took += time.perf_counter() - began

        return metered


class Meter:
    """Seconds that the callbacks took, and, once it has ended, those of the CPU."""

    took = cpu = 0.0


class Nodes(Interface):
    """Nodes.watch, undecoded: routes go by their names."""

    watch = feed(msg.WatchNodes, bytes)


class Views(Interface):
    """Views.watch, undecoded."""

    watch = feed(hot.WatchViews, bytes)


class Workers(Interface):
    """Workers.watch, undecoded."""

    watch = feed(msg.WatchWorkers, bytes)


class Jobs(Interface):
    """Jobs.watch, undecoded."""

    watch = feed(msg.WatchJobs, bytes)


class HollowNode:
    """A node as the GCS sees it, with nothing behind."""

    def __init__(self, world: World, number: int, nodes: int) -> None:
        self._nodes = nodes
        self.id = world.random(f"hollow {number}").randbytes(28)
        self.is_member = asyncio.Event()
        self.nodes_told = self.views_told = 0
        self._has_changed = asyncio.Event()
        self._network = SimNetwork(world, f"h{number}/raylet", LinkConfig())
        self._address = f"h{number}/raylet;{self.id.hex()[:16]}="
        self._link = self._network.connect(GCS)
        self._total = Resources.from_mapping({"CPU": 4.0, "memory": 8e9})
        self._view = self._view_of(cpus=0)  # it is full, so no task goes there
        self._publisher = ViewPublisher(self._view)
        self._phase = world.random(f"phase {number}").random()

    def start(self) -> list["asyncio.Task[None]"]:
        """Do what a raylet does; the tasks never end."""
        work = [self._be_member(), self._report(), self._watch_nodes(), self._watch_views()]
        work += [_count(Workers(self._link).watch(msg.WatchWorkers()))]
        work += [_count(Jobs(self._link).watch(msg.WatchJobs()))]
        return [asyncio.get_running_loop().create_task(each) for each in work]

    def _view_of(self, *, cpus: int) -> NodeView:
        free = Resources.from_mapping({"CPU": cpus, "memory": 8e9})
        return NodeView(NodeKey(self.id), 1, self._address, self._total, free, {}, 0)

    async def _be_member(self) -> None:
        address, resources = self._address, self._total.to_floats()
        row = msg.RegisterNode(
            node_id=self.id, address=address, hostname="host-0123", pid=4_321, incarnation=1,
            resources=resources, ip="10.0.0.17", version="0.1.0", python="3.12.4",
        )  # fmt: skip
        nodes = gcs.Nodes(self._link)
        await nodes.register(row)
        self.is_member.set()
        workers = [
            msg.Worker(worker_id=self.id + bytes([n]), pid=4_321, alive=True, address=address)
            for n in range(WORKERS)
        ]
        report = msg.ReportWorkers(self.id, 1, workers, complete=True)
        gcs.Workers(self._link).report(report)
        beat, passed = BEAT, self._phase * COMPARE
        while True:
            await asyncio.sleep(beat)
            available = self._view.available.to_floats()
            beat = (await nodes.sync(msg.Heartbeat(self.id, 1, available))).beat or BEAT
            passed += BEAT  # as many beats are between two comparisons, however long they take
            if passed >= COMPARE:
                passed -= COMPARE
                report = msg.ReportWorkers(self.id, 1, workers, complete=True)
                gcs.Workers(self._link).report(report)

    async def _report(self) -> None:
        await self.is_member.wait()
        views = gcs.Views(self._link)
        while True:
            if (delta := self._publisher.changes()) is not None:
                await views.report(wire.encode(delta))
            await asyncio.sleep(between_reports(self._nodes))
            await self._has_changed.wait()
            self._has_changed.clear()

    async def be_busy(self) -> None:
        """Have another load every second."""
        await asyncio.sleep(self._phase)
        for cpus in itertools.cycle(range(4)):
            self._publisher.update(self._view_of(cpus=cpus))
            self._has_changed.set()
            await asyncio.sleep(1.0)

    async def _watch_nodes(self) -> None:
        async for body in Nodes(self._link).watch(msg.WatchNodes()):
            self.nodes_told += rows_in(body)

    async def _watch_views(self) -> None:
        async for body in Views(self._link).watch(hot.WatchViews()):
            self.views_told += deltas_in(body)


async def _count(messages: Any) -> None:
    async for _ in messages:
        pass


def rows_in(body: bytes) -> int:
    """Count the nodes of an encoded `NodeEvent`."""
    count = position = 0
    while position < len(body):
        if body[position] == 0x10:  # `complete`
            position += 2
            continue
        if body[position] == 0x1A:  # `epoch`
            position += 2 + body[position + 1]
            continue
        assert body[position] == 0x0A
        position, shift, length = position + 1, 0, 0
        while True:
            byte = body[position]
            position += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        position += length
        count += 1
    return count


def deltas_in(body: bytes) -> int:
    """Count the deltas of encoded `ViewDeltas`: an array of one array."""
    assert body[0] == 0x91
    if body[1] < 0xA0:
        return body[1] & 0x0F
    return int.from_bytes(body[2:4] if body[1] == 0xDC else body[2:6], "big")


class Traffic:
    """What the GCS has said."""

    def __init__(self, world: World) -> None:
        self.messages = self.bytes = 0
        world.on_packet = self._packet

    def _packet(self, sender: str, receiver: str, size: int) -> None:
        if sender == GCS:
            self.messages += 1
            self.bytes += size


def size_of(roots: Sequence[object]) -> int:
    """Return the bytes of all that is reached from objects, but for the world around them."""
    ends = (SimWire, World, SimLoop, type, types.ModuleType, types.FunctionType, types.FrameType)
    seen: dict[int, object] = {}
    todo, total = list(roots), 0
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, ends):
            continue
        seen[id(thing)] = thing
        total += sys.getsizeof(thing)
        todo += gc.get_referents(thing)
    return total


def short(task: TaskContext) -> Any:
    return task.sleep(0.001)


async def _leases(driver: SimDriver) -> list[float]:
    """Return how long tasks took, one after another, each with a new lease."""
    took = []
    for _ in range(LEASES):
        began = asyncio.get_running_loop().time()
        await driver.get([driver.submit(short)])
        took.append(asyncio.get_running_loop().time() - began - 0.001)
        await asyncio.sleep(LINGER_SECONDS + 0.2)  # the lease is given back
    return sorted(took)


async def _measure(world: World, loop: MeteredLoop, nodes: int) -> Figures:
    began = time.monotonic()
    traffic = Traffic(world)
    cluster = SimCluster(world, disk=SimDisk(world.random("disk"), COMMIT))
    await cluster.gcs.start()
    empty = size_of([cluster.gcs.host])
    with loop.metering() as storm:
        hollow = [HollowNode(world, number, nodes) for number in range(nodes - WHOLE)]
        tasks = [task for node in hollow for task in node.start()]
        for number in range(WHOLE):
            await cluster.add(f"n{number}", is_head=number == 0, cpus=4)
        for node in hollow:
            await node.is_member.wait()
        registered = loop.moment
        while any(node.nodes_told < nodes or node.views_told < nodes for node in hollow):
            await asyncio.sleep(0.01)
        await cluster.joined()
        acquainted = loop.moment
    stormed = storm.cpu, traffic.messages / nodes, traffic.bytes / nodes

    async def a_second() -> tuple[float, float, float]:
        await asyncio.sleep(OBSERVED)
        messages, said = traffic.messages, traffic.bytes
        with loop.metering() as meter:
            await asyncio.sleep(OBSERVED)
        messages, said = traffic.messages - messages, traffic.bytes - said
        return meter.cpu / OBSERVED, messages / OBSERVED, said / OBSERVED

    rest = await a_second()
    memory = (size_of([cluster.gcs.host]) - empty) / nodes
    driver = await cluster.nodes["n0"].driver("driver")
    leases = await _leases(driver)
    at = loop.moment
    with loop.metering() as meter:
        await driver.get([driver.submit(short) for _ in range(TASKS)])
    tasks_cpu = max(0.0, meter.cpu - rest[0] * (loop.moment - at))
    tasks += [loop.create_task(node.be_busy()) for node in hollow]
    busy = await a_second()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await cluster.stop()
    return Figures(
        nodes, registered, acquainted, *stormed, *rest, *busy, memory,
        leases[LEASES // 2], leases[-1], tasks_cpu, time.monotonic() - began,
    )  # fmt: skip


def measure(nodes: int, seed: int = 1) -> Figures:
    """Simulate a cluster of so many nodes that all join at once, and return its figures."""
    world, clock = World(seed), Clock()
    world.clocks[GCS] = clock
    loop = MeteredLoop(clock)
    with quiet_collector():
        return loop.run(_measure(world, loop, nodes))


def main(arguments: list[str]) -> None:
    """Print the table for these sizes."""
    print("| " + " | ".join(HEADINGS) + " |")
    print("|" + "---|" * len(HEADINGS))
    for nodes in [int(text) for text in arguments] or SIZES:
        print(measure(nodes).row(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
