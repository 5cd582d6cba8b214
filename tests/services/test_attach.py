"""A worker's first moments, in virtual time: its raylet lends it before it knows where it is."""

from collections.abc import Collection

import anyio

from raylite._kernel.arena import HeapArena
from raylite._kernel.host import Host
from raylite._kernel.memory import MemoryNetwork, Switch
from raylite._kernel.service import Service, handles
from raylite._protocol import raylet, worker
from raylite._runtime.attach import attach_worker
from raylite._services.worker.core import Core
from raylite._services.worker.execute import UNTOLD, Attempt, ExecuteService, Job
from raylite._services.worker.producer import Gate, Producer
from raylite._types import board
from raylite._wire import hot
from raylite._wire.hot import Form, Value
from raylite._wire.messages import raylet as msg
from raylite.testing.sim import World
from tests.services.rig import simulated

HERE, THERE = b"h" * 28, b"t" * 28


class Shelf:
    """An executor that begins nothing."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.holding = UNTOLD
        self.has_some = anyio.Event()

    def serve(self, service: ExecuteService, core: Core) -> None: ...

    def run(self, job: Job) -> None:
        self.jobs.append(job)
        self.has_some.set()

    def take_back(self, wanted: Collection[Attempt] | None = None) -> list[Job]:
        taken = [j for j in self.jobs if wanted is None or (j.task.id, j.task.attempt) in wanted]
        self.jobs = [job for job in self.jobs if job not in taken]
        return taken

    def leave(self) -> None: ...
    def flush(self) -> None: ...
    def runs(self, cancel: hot.Cancel) -> bool:
        return False

    def interrupt(self, cancel: hot.Cancel) -> None: ...
    def die(self) -> None: ...

    def note(self, producer: Producer) -> None: ...

    def new_gate(self, job: Job) -> Gate:
        raise AssertionError("nothing is streamed here")


def task(number: int, node: bytes) -> hot.Task:
    """A task whose argument lies on a node."""
    id = number.to_bytes(24, "little")
    value = Value(Form.ARENA, b"", 0, 64, (), id + bytes(4), node)
    return hot.Task(id, 0, 1, b"", inputs=(hot.Input(0, id + bytes(4), "driver", value),))


class QuickRaylet(Service, serves=(raylet.Pool, raylet.Transfers)):
    """It takes a worker in only when the worker has been sent its first tasks."""

    def __init__(self, network: MemoryNetwork, shelf: Shelf) -> None:
        self._network = network
        self._shelf = shelf
        self.pulled: list[bytes] = []

    @handles(raylet.Pool.register_worker)
    async def register_worker(self, request: msg.RegisterWorker) -> msg.WorkerRegistered:
        execute = worker.Execute(self._network.connect(request.address))
        execute.define(hot.Definition(1, b"", "f", b"job!", b"o" * 28, "f"))
        execute.run(task(1, HERE))
        execute.run(task(2, THERE))
        await self._shelf.has_some.wait()
        return msg.WorkerRegistered(node_id=HERE, gcs_address="gcs")

    @handles(raylet.Pool.register_driver)
    async def register_driver(self, request: msg.RegisterDriver) -> msg.DriverRegistered:
        raise AssertionError("there is no driver")

    @handles(raylet.Transfers.pull)
    async def pull(self, request: hot.Pull) -> hot.Pulled:
        self.pulled += [each.key for each in request.objects]
        return hot.Pulled(tuple(0 for _ in request.objects))

    @handles(raylet.Transfers.unpin)
    def unpin(self, unpins: list[hot.Unpin]) -> None: ...

    @handles(raylet.Transfers.located)
    def located(self, news: list[hot.Located]) -> None: ...

    @handles(raylet.Transfers.lost)
    def lost(self, keys: list[bytes]) -> None: ...


@simulated
async def test_a_task_that_outruns_the_registration_brings_only_what_lies_elsewhere() -> None:
    switch, world, shelf = Switch(), World(1), Shelf()
    network = MemoryNetwork(switch, world.seams("raylet"))
    await network.listen("raylet")
    node = QuickRaylet(network, shelf)
    host = Host(network, node)
    running = host.start("raylet")
    arena = HeapArena((1 << 20) + board.SIZE)
    own = MemoryNetwork(switch, world.seams("worker"))
    await own.listen("worker")

    attachment = await attach_worker(own, "raylet", arena, b"w" * 28, 1, shelf, 1.0)
    here, there = shelf.jobs
    assert here.brought is None
    assert there.brought is not None
    await anyio.sleep(1)
    assert node.pulled == [there.task.inputs[0].value.key]
    assert there.brought.done()

    await attachment.detach()
    host.stop()
    await running
    await own.close()
    await network.close()
    arena.close()
