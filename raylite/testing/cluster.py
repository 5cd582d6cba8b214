"""`LocalCluster`: a whole cluster for the length of a ``with`` block, made for tests.

Example:
    >>> import raylite as ray
    >>> @ray.remote
    ... def square(n):
    ...     return n * n
    >>> with LocalCluster(num_cpus=2, workers="threads"):
    ...     ray.get([square.remote(n) for n in range(4)])
    [0, 1, 4, 9]
"""

import asyncio
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Literal, Self

from raylite._kernel.arena import HeapArena
from raylite._kernel.host import Host
from raylite._kernel.memory import MemoryNetwork, Switch
from raylite._kernel.threads import LoopThread
from raylite._runtime import context
from raylite._runtime.attach import Attachment, attach_driver
from raylite._runtime.components import Raylet, build_gcs, build_raylet
from raylite._runtime.context import Place
from raylite._runtime.local import SessionOptions, start_node
from raylite._runtime.session import Session
from raylite._types import board
from raylite._wire import hot
from raylite.testing.threads import ThreadWorkers

Workers = Literal["processes", "threads"]

STORE = 64 * 1024 * 1024


class LocalCluster:
    """A cluster of one node, and this process as its driver, inside ``with`` or ``async with``.

    Inside the block `raylite.get`, ``.remote()`` and the rest mean this cluster; of nested blocks,
    the innermost. Several may stand side by side: see `use`. When the block ends, nothing is left.

    Args:
        num_cpus: CPUs that tasks may occupy together.
        workers: ``"processes"`` is what production does, up in a third of a second.
            ``"threads"`` is up in milliseconds, and a debugger can step into tasks; but a task
            cannot be killed, and tasks share the interpreter's globals with the test.
        resources: Further resources by name.
        object_store_memory: Bytes for large objects.
        namespace: The namespace of the driver's job.
    """

    def __init__(
        self,
        *,
        num_cpus: float = 2,
        workers: Workers = "processes",
        resources: Mapping[str, float] | None = None,
        object_store_memory: int = STORE,
        namespace: str = "test",
    ) -> None:
        if workers not in ("processes", "threads"):
            raise ValueError(f"workers must be 'processes' or 'threads', not {workers!r}")
        self._options = SessionOptions(
            num_cpus=num_cpus,
            resources=resources,
            object_store_memory=object_store_memory,
            namespace=namespace,
        )
        self._workers = workers
        self._running: Session | ThreadCluster | None = None

    def start(self) -> Self:
        """Start the cluster; what ``with`` does."""
        if self._running is not None:
            raise RuntimeError("this LocalCluster is running already")
        if self._workers == "processes":
            self._running = Session(self._options, start_node(self._options))
        else:
            self._running = ThreadCluster(self._options)
        return self

    def stop(self) -> None:
        """End the cluster; what leaving the block does. Calling it again does nothing."""
        running, self._running = self._running, None
        if running is not None:
            running.close()

    @contextmanager
    def use(self) -> Iterator[Self]:
        """Make this cluster the one that this thread's calls mean, for the block."""
        with context.at(self._place):
            yield self

    @property
    def _place(self) -> Place:
        if self._running is None:
            raise RuntimeError("this LocalCluster is not running")
        return self._running.place

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.shield(asyncio.to_thread(self.stop))


class ThreadCluster:
    """GCS, raylet, store and driver as services on one loop thread, workers as threads."""

    def __init__(self, options: SessionOptions) -> None:
        self._options = options
        self._thread = LoopThread("raylite-cluster")
        try:
            self.place = self._thread.run(self._start(), 30.0)
        except BaseException:
            self._thread.stop()
            raise
        context.enter(self.place)

    async def _start(self) -> Place:
        options = self._options
        cpus = float(options.num_cpus or 1)
        switch = Switch()
        self._arena = HeapArena((options.object_store_memory or STORE) + board.SIZE)
        gcs_network, raylet_network = MemoryNetwork(switch), MemoryNetwork(switch)
        await gcs_network.listen("memory:gcs")
        await raylet_network.listen("memory:raylet")
        self._gcs = build_gcs(gcs_network)
        self._source = ThreadWorkers(switch, "memory:raylet", self._arena, cpus, options.namespace)
        self._node: Raylet = build_raylet(
            raylet_network,
            "memory:gcs",
            self._source,
            self._arena,
            num_cpus=cpus,
            resources=options.resources or {},
            labels={},
            is_head=True,
        )
        self._hosts = [_run(self._gcs), _run(self._node.host)]
        driver_network = MemoryNetwork(switch)
        await driver_network.listen("memory:driver")
        self._attachment: Attachment = await attach_driver(
            driver_network,
            "memory:raylet",
            "memory:gcs",
            self._arena,
            secrets.token_bytes(28),
            cpus=cpus,
            entrypoint="LocalCluster",
            config=hot.JobConfig(options.namespace),
        )
        place = Place(self._attachment.core, self._attachment.node_id)
        place.namespace = options.namespace
        place.gcs_address = "memory:gcs"
        return place

    def close(self) -> None:
        """End everything."""
        context.leave(self.place)
        self.place.core.close()
        try:
            self._thread.run(self._stop(), 10.0)
        finally:
            self._thread.stop()
            for thread in self._source.threads:
                thread.join(1.0)
            self._arena.close()

    async def _stop(self) -> None:
        await self._attachment.detach()
        await self._source.close()
        self._node.host.stop()
        self._gcs.stop()
        await asyncio.wait(self._hosts)
        for host in self._hosts:
            host.result()


def _run(host: Host) -> "asyncio.Task[None]":
    return host.start("host")
