"""What each process of a node runs after its fork: the GCS and the raylet; a worker, see `workerprocess`."""

import asyncio
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import NoReturn

import uvloop

from raylite._kernel import processes
from raylite._kernel.audit import refuse_unpickling
from raylite._kernel.grpc import GrpcNetwork
from raylite._kernel.keyring import Keyring
from raylite._kernel.service import Service
from raylite._machines.epochs import Epochs
from raylite._runtime import credentials, networks, settings
from raylite._runtime.components import Raylet, build_gcs, build_raylet
from raylite._runtime.drivers import DriverWatch
from raylite._runtime.issued import IssuedService
from raylite._runtime.later import Later, Roles
from raylite._runtime.logfiles import ComponentLog, WorkerLogs
from raylite._runtime.membership import NodeFenced
from raylite._runtime.networks import NetworkOf
from raylite._runtime.node import FENCED, Inherited, NodeConfig
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

WORKER = "raylite._runtime.workerprocess:worker"


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
            volatile=config.storage == "memory",
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


ROLES: Roles = {"gcs": gcs, "raylet": raylet, "worker": Later(WORKER)}
