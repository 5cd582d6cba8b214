"""Attaching a process to its node: the services of a core worker, put together."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from msgspec import Struct

from raylite._kernel.arena import Arena
from raylite._kernel.detour import ByRaylet
from raylite._kernel.host import Host
from raylite._kernel.link import Link
from raylite._kernel.network import Network
from raylite._kernel.scope import Scope
from raylite._kernel.service import Service, handles
from raylite._machines.submitter import Submitter
from raylite._protocol import raylet
from raylite._runtime import output
from raylite._runtime.jobs import DriverService
from raylite._services.worker.core import Core
from raylite._services.worker.execute import ExecuteService, Executor
from raylite._services.worker.explain import ExplainService
from raylite._services.worker.locations import LocationService
from raylite._services.worker.objects import Entry
from raylite._services.worker.output import OutputService
from raylite._services.worker.owner import OwnerService
from raylite._services.worker.submit import SubmitService
from raylite._types.keys import WorkerKey
from raylite._types.resources import UNIT
from raylite._types.strategies import NodeKey
from raylite._wire import hot
from raylite._wire.messages import gcs as gcs_msg, raylet as raylet_msg
from raylite.exceptions import RayError

Wake = Callable[[Callable[[], None]], object]

NO_JOB = b"\xff" * 4


class ProcessService(Service, serves=(raylet.Process,)):
    """What the raylet tells this process: who died, and when to leave."""

    def __init__(
        self,
        network: Network,
        raylet_link: Link,
        owner: OwnerService,
        submit: SubmitService,
        locations: LocationService,
    ) -> None:
        self._network = network
        self._raylet = raylet_link
        self._objects = raylet.Objects(raylet_link)
        self._owner = owner
        self._submit = submit
        self._locations = locations
        self._viewed: dict[bytes, list[Entry]] = {}  # by dead owner: what may still be viewed here
        self.core: Core | None = None
        self.executor: Executor | None = None
        self._is_leaving = False
        owner.on_viewless = self._check_views
        owner.on_released = self._leave_when_free

    @handles(raylet.Process.died)
    def died(self, death: hot.Death) -> None:
        viewed = [entry for entry in self._owner.borrowed_from(death.address) if entry.is_in_arena]
        self._network.confirm_dead(death.address, death.cause)
        self._owner.process_died(death.address)  # from here on nobody begins to view them
        if self.core is not None:
            self.core.handover.drain()  # and those who had begun are counted
        self._viewed[death.id] = viewed
        self._check_views()

    @handles(raylet.Process.node_died)
    def node_died(self, death: hot.NodeDeath) -> None:
        self._network.confirm_node_dead(death.mark, death.cause)
        for address in self._owner.known_at(death.mark):
            self._owner.process_died(address)
        self._locations.node_died(NodeKey(death.node))

    @handles(raylet.Process.leave)
    def leave(self, leave: hot.Leave) -> None:
        self._is_leaving = True
        if leave.is_urgent:
            self._leave()
        else:
            self._leave_when_free()

    def _leave_when_free(self) -> None:
        """Others may hold what this process owns, and its tasks may run: they end with it."""
        if self._is_leaving and not self._submit.unfinished and not self._owner.is_needed:
            self._leave()

    def _leave(self) -> None:
        if self.executor is not None:
            self._submit.give_leases_back()  # or the raylet would kill the workers it has
            self.executor.leave()
            self.executor = None

    def _check_views(self) -> None:
        """Tell the raylet of the dead owners whose bytes nobody here reads or writes any more."""
        for id, entries in list(self._viewed.items()):
            if any(entry.views or entry.submitted for entry in entries):
                continue
            if self.core is not None and self.core.writing.has(id):
                continue
            del self._viewed[id]
            if not self._raylet.is_ended:
                self._objects.viewless(id)


class Attachment(Struct):
    """One process's core worker, running on the loop that made it."""

    core: Core
    host: Host
    running: "asyncio.Task[None]"
    node_id: bytes
    job: bytes
    gcs_address: str
    driver: DriverService | None = None
    execute: ExecuteService | None = None
    output: OutputService | None = None

    async def flush_output(self) -> None:
        """Show what this driver's workers have printed so far, on this node and those it has heard of."""
        assert self.output is not None
        links = {**self.output.raylets, **dict.fromkeys(self.core.submitter.lessors.links)}
        scope = Scope("flush output")
        try:
            await asyncio.wait([scope.start(_flush_output(link, self.job)) for link in links])
        finally:
            await scope.close()
        await self.output.flush()

    async def finish(self) -> None:
        """Say that this driver's job has come to its end; who does not is taken for dead."""
        if self.driver is not None:
            await self.driver.finish(self.job)

    def settle(self, node_id: bytes) -> None:
        """Belong to the node that has taken this process in."""
        self.node_id = node_id
        self.core.settle(node_id)
        if self.execute is not None:
            self.execute.settled()

    async def detach(self) -> None:
        """Say goodbye and end the services."""
        self.host.stop()
        await asyncio.wait([self.running])
        if not self.running.cancelled() and (error := self.running.exception()) is not None:
            raise error


async def _flush_output(link: Link, job: bytes) -> None:
    try:
        await raylet.Logs(link).flush(job)
    except RayError:
        pass  # it is gone, with what it has not said


async def attach_driver(
    network: Network,
    raylet_address: str,
    gcs_address: str,
    arena: Arena,
    id: bytes,
    *,
    cpus: float,
    entrypoint: str,
    config: hot.JobConfig,
    node_id: bytes = b"",
    wake: Wake | None = None,
    output: OutputService | None = None,
) -> Attachment:
    """Make this process a driver: a job of the cluster, and a member of the node.

    Without an `output` it shows nothing of what its workers print.
    """
    row = gcs_msg.AddJob(
        driver_id=id,
        driver_pid=os.getpid(),
        entrypoint=entrypoint,
        namespace=config.namespace,
        driver_address=network.address,
        node_id=node_id,
    )
    output = output or OutputService(None, None)
    driver = DriverService(network, gcs_address, row)
    job = await driver.add()
    attachment = _assemble(
        network, raylet_address, gcs_address, arena, id, job, cpus, None, wake, driver, output
    )
    attachment.driver, attachment.output = driver, output
    attachment.core.join(job, config)
    pool = raylet.Pool(attachment.core.raylet_link)
    with _ending(attachment):
        registered = await pool.register_driver(
            raylet_msg.RegisterDriver(
                driver_id=id, job_id=job, pid=os.getpid(), address=network.address
            )
        )
    attachment.settle(registered.node_id)
    return attachment


async def attach_worker(
    network: Network,
    raylet_address: str,
    arena: Arena,
    id: bytes,
    token: int,
    executor: Executor,
    cpus: float,
    wake: Wake | None = None,
) -> Attachment:
    """Make this process (or thread) a worker of its node."""
    attachment = _assemble(network, raylet_address, "", arena, id, NO_JOB, cpus, executor, wake)
    pool = raylet.Pool(attachment.core.raylet_link)
    with _ending(attachment):
        registered = await pool.register_worker(
            raylet_msg.RegisterWorker(
                token=token.to_bytes(8, "little"),
                worker_id=id,
                pid=os.getpid(),
                address=network.address,
            )
        )
    attachment.settle(registered.node_id)
    attachment.gcs_address = registered.gcs_address
    return attachment


@contextmanager
def _ending(attachment: Attachment) -> Iterator[None]:
    """End what was begun if the block fails: nobody else could."""
    try:
        yield
    except BaseException:
        attachment.running.cancel()
        raise


def _assemble(
    network: Network,
    raylet_address: str,
    gcs_address: str,
    arena: Arena,
    id: bytes,
    job: bytes,
    cpus: float,
    executor: Executor | None,
    wake: Wake | None,
    *more: Service,
) -> Attachment:
    loop = asyncio.get_running_loop()
    network.detours = ByRaylet(raylet_address, network.address)
    link = network.connect(raylet_address)
    locations = LocationService(network.address, link)
    owner = OwnerService(network, locations, link)
    submitter = Submitter(WorkerKey(id), max(int(cpus * UNIT), UNIT))
    submit = SubmitService(network, link, owner, locations, submitter, id)
    submit.on_warning = output.warn  # of a worker, its driver prints it
    process = ProcessService(network, link, owner, submit, locations)
    core = Core(id, job, loop, network, arena, owner, submit, locations, link, wake)
    explain = ExplainService(network, owner, submit, submitter, locations)
    core.explain = explain.of
    services: list[Service] = [owner, submit, process, locations, explain, *more]
    process.core = core
    execute = None
    if executor is not None:
        execute = ExecuteService(owner, core, executor, link)
        process.executor = executor
        core.on_block, core.on_unblock = execute.blocked, execute.unblocked
        core.on_awaiting = execute.awaiting
        executor.serve(execute, core)
        services.append(execute)
    host = Host(network, *services)
    running = host.start("core worker")
    return Attachment(core, host, running, b"", job, gcs_address, execute=execute)
