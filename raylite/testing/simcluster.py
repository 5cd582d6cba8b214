"""`SimCluster`: a GCS and nodes in virtual time, which join, die, are cut off and come back."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

from raylite._kernel.link import LinkConfig
from raylite.exceptions import RaySystemError
from raylite.testing.hosts import machine_of
from raylite.testing.node import KILLED, SimDriver, SimNode, SimProcess
from raylite.testing.sim import World
from raylite.testing.simgcs import SimDisk, SimGcs


class SimCluster:
    """Many nodes, each a machine of its own, and a GCS on another.

    Args:
        world: Where they are.
        disk: What the GCS has; one without delays if none is given.
        links: The times of all links; those of production if none are given.
    """

    def __init__(
        self, world: World, *, disk: SimDisk | None = None, links: LinkConfig | None = None
    ) -> None:
        self.world = world
        self.links: LinkConfig = links or LinkConfig()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gcs: SimGcs = SimGcs(
            world, disk or SimDisk(world.random("disk")), self.links, self.fail
        )
        self.nodes: dict[str, SimNode] = {}  # those that live
        self.gone: dict[str, SimNode] = {}
        self.on_node_ended: Callable[[SimNode, BaseException], None] = self._ended
        self.is_stopping: bool = False
        self._lives: dict[str, int] = {}

    async def add(self, machine: str, *, is_head: bool = False, **options: Any) -> SimNode:
        """Start a node on a machine that has none; `joined` says when it is a member."""
        life = self._lives[machine] = self._lives.get(machine, 0) + 1
        name = machine if life == 1 else f"{machine}.{life}"
        node = SimNode(self.world, name, links=self.links, fail=self.fail, **options)
        node.on_end = lambda error: self._raylet_ended(node, error)
        self.nodes[name] = node
        await node.start(is_head=is_head)
        return node

    async def joined(self) -> None:
        """Wait until all nodes are members and know one another."""
        nodes = list(self.nodes.values())
        for node in nodes:
            await node.raylet.joined.wait()
        known = [node.raylet.cluster.local for node in nodes]
        for node in nodes:
            await node.raylet.cluster.wait_known(known)

    def kill(self, node: SimNode, linger: float = 0.0) -> None:
        """A raylet dies, and its workers with it. Its drivers live on, and the system refuses calls."""
        node.kill(linger)
        self._bury(node)

    def power_off(self, node: SimNode) -> None:
        """A machine vanishes, with all that runs there."""
        self.world.power_off(machine_of(node.name))
        node.kill()
        for driver in list(node.drivers.values()):
            driver.kill()
        self._bury(node)

    def processes(self) -> Iterator[SimProcess]:
        """The drivers and workers that are attached and live."""
        for node in self.nodes.values():
            yield from node.processes()
        for node in self.gone.values():
            yield from node.drivers.values()

    def drivers(self) -> list[SimDriver]:
        """The drivers that live, those of dead nodes included."""
        nodes = [*self.nodes.values(), *self.gone.values()]
        return [driver for node in nodes for driver in node.drivers.values()]

    def death_of(self, worker: str) -> str | None:
        """Return why a worker ended, by its host; None if it lives."""
        name = worker.partition("/")[0]
        node = self.nodes.get(name) or self.gone[name]
        cause = node.workers.deaths.get(worker)
        return KILLED if cause is None and node.is_dead else cause

    @property
    def failed_starts(self) -> int:
        """How many workers did not start."""
        nodes = [*self.nodes.values(), *self.gone.values()]
        return sum(node.workers.failed_starts for node in nodes)

    def check(self) -> None:
        """Assert what must hold at every moment of every component."""
        for node in self.nodes.values():
            node.check()

    def fail(self, error: BaseException) -> None:
        """Something happened that never should: the simulation ends with it."""
        if not self.failed.done():
            self.failed.set_exception(error)

    async def stop(self) -> None:
        """End everything that is left."""
        self.is_stopping = True
        for node in [*self.gone.values(), *self.nodes.values()]:
            await node.stop()
        await self.gcs.stop()

    def _bury(self, node: SimNode) -> None:
        if self.nodes.pop(node.name, None) is not None:
            self.gone[node.name] = node

    def _raylet_ended(self, node: SimNode, error: BaseException) -> None:
        self._bury(node)
        self.on_node_ended(node, error)

    def _ended(self, node: SimNode, error: BaseException) -> None:
        """A raylet may give up its cluster; anything else is a crash."""
        if not isinstance(error, RaySystemError):
            self.fail(error)
