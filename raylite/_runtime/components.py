"""The GCS and the raylet, put together from their services; the same in a process, a test, a simulation."""

import asyncio
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from msgspec import Struct

from raylite._kernel.arena import Arena
from raylite._kernel.host import Host
from raylite._kernel.keyring import Keyring
from raylite._kernel.network import Network
from raylite._kernel.service import Service
from raylite._machines.epochs import Epochs
from raylite._machines.leases import Leases
from raylite._machines.memory import Memory
from raylite._machines.nodes import Nodes as Membership
from raylite._machines.picker import Picker
from raylite._machines.pool import Pool
from raylite._runtime.membership import MemberService
from raylite._services.gcs.detours import GcsDetours
from raylite._services.gcs.epoch import Epoch
from raylite._services.gcs.jobs import JobService
from raylite._services.gcs.kv import KvService
from raylite._services.gcs.nodes import NodeService
from raylite._services.gcs.storage import MemoryStorage, Storage
from raylite._services.gcs.tokens import TokenService
from raylite._services.gcs.views import ViewService
from raylite._services.gcs.workers import WorkerService
from raylite._services.raylet.cluster import ClusterService
from raylite._services.raylet.copies import CopyService
from raylite._services.raylet.detours import RayletDetours
from raylite._services.raylet.fates import FateService
from raylite._services.raylet.fences import FenceService
from raylite._services.raylet.leases import LeaseService
from raylite._services.raylet.logs import LogFiles, LogService
from raylite._services.raylet.pool import Member, PoolService, WorkerSource
from raylite._services.raylet.transfer import TransferService
from raylite._services.store.objects import ObjectService
from raylite._types import board
from raylite._types.resources import Resources
from raylite._types.strategies import NODE_ID_LABEL, NodeKey, NodeView
from raylite._types.system_config import Scalar, Settings, written
from raylite._version import __version__
from raylite._wire.messages import gcs as msg

PRESTART = 2  # Ray: one a CPU. Here a start takes 10 ms, and an idle worker 11 MB.
LOOPBACK = "127.0.0.1"
NO_SETTINGS: Mapping[str, Scalar] = MappingProxyType({})


def build_gcs(
    network: Network,
    storage: Storage | None = None,
    *further: Service,
    epoch: Epoch | None = None,
    system: Mapping[str, Scalar] = NO_SETTINGS,
    keyring: Keyring | None = None,
    volatile: bool = False,
) -> Host:
    """Return the GCS, to be run; the storage, if one is given, is for the caller to close.

    It tells nodes of the tokens that a keyring has, and whether its tables are `volatile`: none follows
    it then. Without an epoch it begins one.
    """
    kept = storage or MemoryStorage()
    epoch = epoch or Epoch(kept, network.seams.random("cluster"))
    membership = Membership(Settings.of(system).silence)
    nodes = NodeService(membership, kept, epoch, network.probe, volatile=volatile)
    network.detours = GcsDetours(nodes)
    workers = WorkerService(kept, epoch, nodes)
    views = ViewService(nodes)
    jobs, kv = JobService(kept, epoch), KvService(kept)
    tokens = [] if keyring is None else [TokenService(keyring, epoch)]
    return Host(network, nodes, views, jobs, workers, kv, *tokens, *further)


class Raylet(Struct):
    """A raylet's services, to be run by its host."""

    host: Host
    node_id: bytes
    pool: PoolService
    leases: LeaseService
    objects: ObjectService
    cluster: ClusterService
    copies: CopyService
    transfers: TransferService
    logs: LogService
    joined: asyncio.Event


def build_raylet(
    network: Network,
    gcs_address: str,
    source: WorkerSource,
    arena: Arena,
    *,
    num_cpus: float,
    resources: Mapping[str, float],
    labels: Mapping[str, str],
    is_head: bool,
    ip: str = LOOPBACK,
    system: Mapping[str, Scalar] = NO_SETTINGS,
    node_id: bytes = b"",
    address: str = "",
    further: Sequence[Service] = (),
    log_files: LogFiles | None = None,
    epochs: Epochs | None = None,
) -> Raylet:
    """Return a raylet, to be run.

    The node gets an id unless it has one, which the addresses of its processes are marked with. `epochs`
    is what it has in common with further services.
    """
    network.address = network.address or address
    settings = Settings.of(system)
    node_id = node_id or network.seams.random("node").randbytes(28)
    labels = {**labels, NODE_ID_LABEL: node_id.hex()}
    amounts = {"CPU": num_cpus, **resources, f"node:{ip}": 1.0}
    if is_head:
        amounts["node:__internal_head__"] = 1.0
    total = Resources.from_mapping(amounts)
    cpus = max(int(num_cpus), 1)
    machine = Pool(soft_limit=cpus, prestart=min(cpus, PRESTART), idle_grace=settings.idle_grace)
    pool = PoolService(network, machine, source, node_id, gcs_address)
    pool.arena_size = arena.capacity
    incarnation = int.from_bytes(network.incarnation[:8], "little")
    lent = Leases(total)
    epochs = epochs or Epochs()

    def view() -> NodeView:
        return NodeView(
            NodeKey(node_id), incarnation, network.address, total, lent.available(), labels,
            sum(lent.waiting().values()),
        )  # fmt: skip

    cluster = ClusterService(network, gcs_address, view, pool, epochs)
    picker = Picker(
        NodeKey(node_id), network.seams.random("picker").random, settings.infeasible_grace
    )
    leases = LeaseService(network, lent, picker, pool, cluster, settings.oom_retries)
    memory = Memory(arena.capacity - board.SIZE, grace=settings.store_grace)

    def readers() -> list[bytes]:
        return [member.id for member in pool.members()]

    def owners() -> list[bytes]:
        return [member.id for member in pool.holders()]

    objects = ObjectService(network, memory, arena, pool.member, readers, owners)
    copies = CopyService(network, arena, objects, cluster)
    transfers = TransferService(network, arena, objects, cluster, copies, pool.member)
    objects.evict, objects.on_freed = copies.evict, transfers.review

    def gone(member: Member, cause: str) -> None:
        copies.process_gone(member.address)
        transfers.process_gone(member.id)
        objects.process_gone(member.id)

    pool.on_gone.append(gone)
    row = msg.RegisterNode(
        node_id=node_id,
        address=network.address,
        hostname=socket.gethostname(),
        pid=os.getpid(),
        incarnation=incarnation,
        head=is_head,
        resources=total.to_floats(),
        labels=labels,
        ip=ip,
        version=__version__,
        python=".".join(map(str, sys.version_info[:3])),
        settings=written(system) if is_head else "",
    )
    logs = LogService(network, pool, cluster, source, ip, log_files)
    membership = MemberService(network, gcs_address, row, leases, pool, epochs)
    membership.compare = cluster.compare
    pool.joined = membership.joined
    network.detours = RayletDetours(network, cluster, gcs_address)
    fences = FenceService(network, gcs_address, leases, epochs, transfers.out_of_reach)
    fates = FateService(network, gcs_address, pool, cluster, epochs)
    host = Host(
        network, pool, leases, fences, fates, objects, copies, transfers, membership, cluster, logs,
        *further,
    )  # fmt: skip
    return Raylet(
        host, node_id, pool, leases, objects, cluster, copies, transfers, logs, membership.joined
    )


async def run_until(host: Host, stopping: asyncio.Event) -> None:
    """Run a host until the event is set."""
    host.also(_stop_on(host, stopping), "stop on signal")
    await host.run()


async def _stop_on(host: Host, stopping: asyncio.Event) -> None:
    await stopping.wait()
    host.stop()
