"""What each process of a node runs after its fork: the GCS, the raylet, a worker."""

import asyncio
import logging
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

import uvloop

from raylite._kernel import processes
from raylite._kernel.audit import refuse_unpickling
from raylite._kernel.grpc import GrpcNetwork
from raylite._kernel.keyring import Keyring
from raylite._kernel.service import Service
from raylite._kernel.threads import LoopThread
from raylite._machines.epochs import Epochs
from raylite._runtime import context, credentials, networks, settings
from raylite._runtime.attach import Attachment, attach_worker
from raylite._runtime.components import Raylet, build_gcs, build_raylet
from raylite._runtime.drivers import DriverWatch
from raylite._runtime.issued import IssuedService
from raylite._runtime.logfiles import ComponentLog, WorkerLogs
from raylite._runtime.membership import NodeFenced
from raylite._runtime.networks import NetworkOf
from raylite._runtime.node import FENCED, Inherited, NodeConfig, Roles
from raylite._runtime.pipes import MARK
from raylite._runtime.striker import Striker
from raylite._runtime.variables import Variables
from raylite._runtime.workers import ForkedWorkers
from raylite._services.gcs.certificates import CertificateService
from raylite._services.gcs.epoch import Epoch
from raylite._services.gcs.storage import (
    Storage,
    StorageError,
    StorageTakenError,
    open_storage,
    wait_for_storage,
)
from raylite._services.worker.coroutines import AsyncRunner
from raylite._services.worker.execute import QueueExecutor
from raylite._types import board
from raylite._types.text import one_line
from raylite._wire import hot

IDLE = "raylite::IDLE"


def _keep_log(inherited: Inherited) -> None:
    """Have log records in the component's file: problems, or more if the environment asks for it."""
    config = inherited.config
    log = ComponentLog(config.logs / f"{inherited.role}.log", config.rotation)
    logging.getLogger().addHandler(log)
    logging.getLogger("raylite").setLevel(settings.backend_level())


def gcs(inherited: Inherited, network_of: NetworkOf = networks.network_of) -> None:
    """Serve the cluster's tables until SIGTERM."""
    refuse_unpickling()
    _keep_log(inherited)
    uvloop.run(_gcs(inherited, network_of))


async def _gcs(inherited: Inherited, network_of: NetworkOf) -> None:
    config = inherited.config
    network = network_of(config, newcomers=not config.one_port)
    attempt = partial(_open_tables, config, network)
    try:
        storage, epoch = await (wait_for_storage(attempt) if inherited.again else attempt())
    except StorageTakenError as error:
        _be_fenced(error)
    except (StorageError, ValueError) as error:
        sys.exit(str(error))
    try:
        issued = Keyring.open(config.token_file) if config.token_file else None
        host = build_gcs(
            network,
            storage,
            *_signing(network, config),
            epoch=epoch,
            system=config.system,
            keyring=issued,
        )
        await networks.listen(
            network, config, config.gcs_address, inherited.listener, inherited.tcp
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, host.stop)
        host.also(storage.watch(), "watch the tables")
        await host.run()
    except StorageTakenError as error:
        _be_fenced(error)
    finally:
        await storage.close()


async def _open_tables(config: NodeConfig, network: GrpcNetwork) -> tuple[Storage, Epoch]:
    """Open the tables and begin an epoch of theirs, which shows that they can be written."""
    place = f"{config.cluster or config.ip} on {os.uname().nodename}"
    storage = await open_storage(config.storage, config.node_id, place)
    try:
        epoch = Epoch(storage, network.seams.random("cluster"))
        await epoch.begin()
    except BaseException:
        await storage.close()
        raise
    return storage, epoch


def _be_fenced(error: Exception) -> NoReturn:
    print(error, file=sys.stderr)
    sys.exit(FENCED)


def _signing(network: GrpcNetwork, config: NodeConfig) -> list[Service]:
    """Return what signs for nodes that have no certificate yet, and let those reach it."""
    if not credentials.can_sign(config.tls):
        return []
    service = CertificateService(partial(credentials.sign, config.tls))
    network.greet(service)
    return [service]


def raylet(inherited: Inherited, network_of: NetworkOf = networks.network_of) -> None:
    """Serve the node until SIGTERM, or until the fork server is gone."""
    refuse_unpickling()
    processes.keep_freed_memory()
    _keep_log(inherited)
    uvloop.run(_raylet(inherited, network_of))


async def _raylet(inherited: Inherited, network_of: NetworkOf) -> None:
    config = inherited.config
    assert inherited.control is not None
    network = network_of(config, newcomers=config.one_port)
    network.relays = str(config.sockets)
    further, epochs = list[Service](), Epochs()
    if config.one_port:
        network.front = Path(config.gcs_address).name
        further = _signing(network, config)
    if config.token_file and not config.head:  # a head has them as they are issued
        further.append(IssuedService(network, config.gcs_url, config.token_file, epochs))
    await networks.listen(network, config, config.raylet_address, inherited.listener, inherited.tcp)
    built: list[Raylet] = []
    workers = ForkedWorkers(
        inherited.control,
        inherited.arena,
        config.env_vars,
        lambda: built[0].host.stop(),
    )
    node = build_raylet(
        network,
        config.gcs_url,
        workers,
        inherited.arena,
        num_cpus=config.num_cpus,
        resources=config.resources,
        labels=config.labels,
        is_head=config.head,
        ip=config.ip,
        node_id=bytes.fromhex(config.node_id),
        further=further,
        system=config.system,
        log_files=WorkerLogs(config.logs, config.rotation),
        epochs=epochs,
    )
    built.append(node)
    watch = DriverWatch(node.pool)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, node.host.stop)
    try:
        await node.host.run()
    except NodeFenced as error:
        _be_fenced(error)
    finally:
        watch.close()
        workers.close()


def worker(inherited: Inherited, network_of: NetworkOf = networks.network_of) -> None:
    """Run tasks on this thread, the process's main one, until told to leave."""
    assert inherited.token is not None
    sys.setswitchinterval(0.001)
    thread = LoopThread("raylite-core")
    executor = QueueExecutor(thread.loop)
    attachment = thread.run(_attach(inherited, inherited.token, executor, network_of))
    core = attachment.core
    arena = inherited.arena
    slot = arena.slot(board.slot_offset(arena.capacity, inherited.token), board.SLOT)

    def note(task: bytes) -> None:
        slot[:24] = task

    pid = os.getpid()

    def leave(code: int) -> None:
        if os.getpid() == pid:
            thread.run(_say_goodbye(attachment, executor))
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):  # user code closed or removed it
                stream.flush()

    def forked() -> None:
        """A child that a task forked goes on with the task's code, and ends where that ends."""
        executor.take_back()
        executor.leave()

    os.register_at_fork(after_in_child=forked)

    def begin(job: hot.JobConfig) -> None:
        """Be what the job wants of its workers, before its first task."""
        place.namespace = job.namespace
        variables.adopt(job.env_vars)
        sys.path.extend(each for each in map(os.fsdecode, job.sys_path) if each not in sys.path)

    teller, variables = _Teller(), Variables(os.environ)
    ip = inherited.config.ip
    runner = AsyncRunner(
        executor, core, note, teller.tell, leave, ip, teller.idle, begin, variables.hold
    )  # fmt: skip
    place = context.Place(core, attachment.node_id, runner)
    place.session_dir = inherited.config.session_dir
    place.labels = inherited.config.labels
    place.gcs_address = attachment.gcs_address
    place.cluster = inherited.config.cluster or attachment.gcs_address
    place.ip = ip
    place.variable = variables.before
    context.enter(place)
    executor.strike = Striker(thread.loop, runner.strikes).strike
    executor.die = partial(os._exit, 1)
    core.raylet_link.on_end(lambda link: os._exit(1))
    try:
        runner.run()
        leave(0)
    finally:
        slot.release()


async def _attach(
    inherited: Inherited, token: int, executor: QueueExecutor, network_of: NetworkOf
) -> Attachment:
    config = inherited.config
    network = network_of(config)
    id = network.seams.random("worker").randbytes(28)
    path = f"{config.sockets}/w{id.hex()[:16]}.sock"
    await networks.listen(network, config, path, ports=config.worker_ports)
    return await attach_worker(
        network,
        f"unix:{config.raylet_address}",
        inherited.arena,
        id,
        token,
        executor,
        config.num_cpus,
    )


async def _say_goodbye(attachment: Attachment, executor: QueueExecutor) -> None:
    """Send what has been worked out; the raylet learns of the end by the exit itself."""
    executor.flush()
    await attachment.core.flush()


class _Teller:
    """Shows what is being run: in the process's title, and to whoever reads its output."""

    def __init__(self) -> None:
        self._shown = self._marked = ""

    def idle(self) -> None:
        """Nothing is being run."""
        self._shown = ""
        processes.set_title(IDLE)

    def tell(self, name: str) -> None:
        _reopen_streams()
        if name != self._shown:
            self._shown = name
            processes.set_title(f"raylite::{name}")
        if name != self._marked:
            self._marked = name
            mark = MARK + one_line(name).encode() + b"\n"
            for stream, fd in ((sys.stdout, 1), (sys.stderr, 2)):
                try:
                    stream.flush()
                    os.write(fd, mark)
                except (AttributeError, OSError, ValueError):
                    pass  # user code closed or removed it


def _reopen_streams() -> None:
    """Give the next task the streams that one before it has closed; the descriptors are still there.

    Ray: such a worker dies at the next line that is printed, and another runs that task again.
    """
    for name, fd in (("stdout", 1), ("stderr", 2)):
        if getattr(getattr(sys, name), "closed", False):
            with suppress(OSError):  # the task has closed the descriptor, too
                own = open(fd, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
                setattr(sys, name, own)


ROLES: Roles = {"gcs": gcs, "raylet": raylet, "worker": worker}
