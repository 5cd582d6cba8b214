"""How raylets and drivers stay in the tables of a GCS that ends and comes back, in virtual time."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

import anyio
import pytest
from msgspec.structs import replace

from raylite._kernel.arena import HeapArena
from raylite._kernel.host import Host
from raylite._kernel.link import Link
from raylite._kernel.memory import MemoryNetwork, Switch
from raylite._kernel.seams import now
from raylite._kernel.service import Service, handles
from raylite._machines.views import Load, Profile, ViewDelta
from raylite._protocol import gcs, raylet, views as wire
from raylite._runtime.attach import attach_driver
from raylite._runtime.components import Raylet, build_gcs, build_raylet
from raylite._runtime.membership import MemberService
from raylite._services.gcs.storage import MemoryStorage, Storage, StorageError, Write
from raylite._services.raylet.pool import OutputListener, SourceListener
from raylite._types import board
from raylite._types.resources import Resources
from raylite._types.strategies import NodeKey
from raylite._wire import hot
from raylite._wire.messages import gcs as msg, raylet as raylet_msg
from raylite.exceptions import AuthenticationError, RaySystemError, UnavailableError
from raylite.testing.loop import SimLoop
from raylite.testing.sim import World
from tests.services.rig import simulated
from tests.services.storages import GatedStorage, damage


class NoWorkers:
    """A source whose workers register when a test says so."""

    listener: SourceListener
    output: OutputListener

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.killed: list[int] = []

    def start(self, token: int) -> None:
        self.tokens.append(token)

    def kill(self, token: int) -> None:
        self.killed.append(token)

    def last_task(self, token: int) -> bytes:
        return b""

    def flush_output(self) -> None: ...
    def resume_output(self) -> None: ...
    def runs(self, unheard: float) -> None: ...


class Site:
    """One raylet, and a GCS that comes and goes on one storage."""

    def __init__(self) -> None:
        self.switch, self.world = Switch(), World(1)
        self.storage: Storage = MemoryStorage()
        self.source = NoWorkers()
        self.arena = HeapArena((1 << 20) + board.SIZE)
        self.raylet: Raylet

    def network(self, name: str) -> MemoryNetwork:
        return MemoryNetwork(self.switch, self.world.seams(name))

    @asynccontextmanager
    async def gcs(self, *, volatile: bool = False) -> AsyncIterator[None]:
        network = self.network("gcs")
        await network.listen("gcs")
        async with running(build_gcs(network, self.storage, volatile=volatile)):
            yield

    @asynccontextmanager
    async def node(self, *, is_head: bool = True) -> AsyncIterator[None]:
        network = self.network("raylet")
        await network.listen("raylet")
        self.raylet = build_raylet(
            network, "gcs", self.source, self.arena,
            num_cpus=1, resources={}, labels={}, is_head=is_head,
        )  # fmt: skip
        async with running(self.raylet.host):
            yield
        self.arena.close()

    async def rows(self) -> tuple[list[msg.Node], list[msg.Worker], list[msg.Job]]:
        network = self.network("client")
        link = network.connect("gcs")
        nodes = (await gcs.Nodes(link).list(msg.ListNodes())).nodes
        workers = (await gcs.Workers(link).list(msg.ListWorkers())).workers
        jobs = (await gcs.Jobs(link).list(msg.ListJobs())).jobs
        await network.close()
        return list(nodes), list(workers), list(jobs)

    async def register_worker(self, name: bytes) -> MemoryNetwork:
        network = self.network(name.decode())
        token = self.source.tokens.pop(0)
        await raylet.Pool(network.connect("raylet")).register_worker(
            raylet_msg.RegisterWorker(token.to_bytes(8, "little"), name, 7, name.decode())
        )
        return network


@asynccontextmanager
async def running(host: Host) -> AsyncIterator[None]:
    task = host.start("host")
    try:
        yield
    finally:
        host.stop()
        await task


class NoFaster(Service, serves=(gcs.Nodes,)):
    """A GCS's Nodes that wants to hear a node every four seconds."""

    def __init__(self) -> None:
        self.beats: list[tuple[float, float]] = []  # when, and the lag that was told

    @handles(gcs.Nodes.register)
    def register(self, request: msg.RegisterNode) -> msg.Registered:
        return msg.Registered(epoch=msg.Epoch(number=1))

    @handles(gcs.Nodes.sync)
    def sync(self, beat: msg.Heartbeat) -> msg.Synced:
        self.beats.append((now(), beat.lag))
        return msg.Synced(epoch=msg.Epoch(number=1), beat=4.0)

    @handles(gcs.Nodes.heartbeat)
    def heartbeat(self, beat: msg.Heartbeat) -> None: ...

    @handles(gcs.Nodes.fence)
    def fence(self, fence: hot.Fence) -> hot.Fenced:
        raise AssertionError("nobody is out of reach here")

    @handles(gcs.Nodes.fate)
    def fate(self, ask: hot.AskFate) -> hot.Fate:
        raise AssertionError("nobody is out of reach here")

    @handles(gcs.Nodes.list)
    def list_nodes(self, request: msg.ListNodes) -> msg.NodeList:
        return msg.NodeList()

    @handles(gcs.Nodes.compare)
    def compare(self, known: msg.KnownNodes) -> msg.NodesCompared:
        return msg.NodesCompared(epoch=msg.Epoch(number=1))

    @handles(gcs.Nodes.watch)
    async def watch(self, request: msg.WatchNodes) -> AsyncIterator[msg.NodeEvent]:
        yield msg.NodeEvent(complete=True)


@simulated
async def test_a_raylet_beats_as_often_as_the_gcs_wants_and_says_for_how_long_it_stood_still() -> (
    None
):
    site, nodes = Site(), NoFaster()
    network = site.network("gcs")
    await network.listen("gcs")
    async with site.node(), running(Host(network, nodes)):
        await anyio.sleep(20.5)
        times = [at for at, _ in nodes.beats]
        assert [round(later - at) for at, later in pairwise(times[1:])] == [4, 4, 4]
        assert all(lag < 0.1 for _, lag in nodes.beats)
        services = site.raylet.host._services
        [member] = [each for each in services if isinstance(each, MemberService)]
        member._woke_at -= 3.0  # as if this loop had stood still: in virtual time none does
        await anyio.sleep(4.0)
        [_, lag] = nodes.beats[-1]
        assert 2.9 < lag < 3.1


@simulated
async def test_a_raylet_tells_a_new_gcs_of_itself_and_of_all_its_workers() -> None:
    site = Site()
    async with site.node():
        async with site.gcs():
            await anyio.sleep(1)
            worker = await site.register_worker(b"one")
            await anyio.sleep(2)
            (before,), (row,), _ = await site.rows()
            assert (row.worker_id, row.alive, row.node_id) == (b"one", True, before.node_id)
        await anyio.sleep(5)
        site.storage = MemoryStorage()  # all is forgotten
        async with site.gcs():
            await anyio.sleep(5)
            (after,), (row,), _ = await site.rows()
            assert (after.node_id, after.alive) == (before.node_id, True)
            assert (row.worker_id, row.alive) == (b"one", True)
        await worker.close()


@simulated
async def test_a_raylet_tells_a_new_gcs_what_it_offers_though_nothing_has_changed() -> None:
    site = Site()
    async with site.node():
        async with site.gcs():
            await anyio.sleep(5)
        async with site.gcs():
            await anyio.sleep(5)
            network = site.network("client")
            feed = aiter(gcs.Views(network.connect("gcs")).watch(hot.WatchViews()))
            (view,) = (await anext(feed)).deltas
            assert view.node == site.raylet.node_id
            await network.close()


@simulated
async def test_what_a_full_disk_did_not_take_is_told_again() -> None:
    site = Site()
    storage = site.storage = GatedStorage()
    async with site.node(), site.gcs():
        await anyio.sleep(1)
        storage.fails = True
        worker = await site.register_worker(b"one")
        await anyio.sleep(5)
        storage.fails = False
        await anyio.sleep(2)
        _, (row,), _ = await site.rows()
        assert (row.worker_id, row.alive) == (b"one", True)
        await worker.close()


@simulated
async def test_the_end_of_a_worker_is_told_also_if_there_was_no_gcs_to_tell() -> None:
    site = Site()
    async with site.node():
        async with site.gcs():
            await anyio.sleep(1)
            token = site.source.tokens[0]
            worker = await site.register_worker(b"one")
            await anyio.sleep(2)
        site.source.listener.ended(token, "exit code 3")
        await anyio.sleep(5)
        async with site.gcs():
            await anyio.sleep(5)
            _, (row,), _ = await site.rows()
            assert (row.worker_id, row.alive, row.exit_cause) == (b"one", False, "exit code 3")
        await worker.close()


@simulated
async def test_a_driver_keeps_its_job_over_a_restart_and_loses_it_with_its_end() -> None:
    site = Site()
    async with site.node():
        async with site.gcs():
            network = site.network("driver")
            await network.listen("driver")
            config = hot.JobConfig("space")
            attachment = await attach_driver(
                network, "raylet", "gcs", site.arena, b"d", cpus=1, entrypoint="x", config=config
            )
        await anyio.sleep(5)
        async with site.gcs():
            await anyio.sleep(100)  # longer than drivers have to say that they are there
            _, _, (job,) = await site.rows()
            assert (job.job_id, job.namespace, job.finished) == (attachment.job, "space", False)
        attachment.core.close()
        await attachment.detach()
        async with site.gcs():
            await anyio.sleep(5)
            _, _, (job,) = await site.rows()
            assert job.state is msg.JobState.DEAD  # its raylet says so: it had gone without a word


class NoJobs(MemoryStorage):
    """Takes everything but jobs."""

    is_on = False

    def _commit(self, records: Sequence[Write]) -> "asyncio.Future[None]":
        if self.is_on and any(write.table == "jobs" and write.row for write in records):
            refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            refused.set_exception(StorageError("the disk is full"))
            return refused
        return super()._commit(records)


@simulated
async def test_a_driver_whose_jobs_record_is_damaged_keeps_its_job_once_the_storage_takes_it() -> (
    None
):
    site, storage = Site(), NoJobs()
    site.storage = storage
    async with site.node():
        async with site.gcs():
            network = site.network("driver")
            await network.listen("driver")
            config = hot.JobConfig("space")
            attachment = await attach_driver(
                network, "raylet", "gcs", site.arena, b"d", cpus=1, entrypoint="x", config=config
            )
        await damage(storage, "jobs", attachment.job, lambda record: record[:-1])
        storage.is_on = True
        async with site.gcs():
            await anyio.sleep(20)
            assert (await site.rows())[2] == []
            storage.is_on = False
            await anyio.sleep(100)  # longer than drivers have to say that they are there
            _, _, (job,) = await site.rows()
            assert (job.job_id, job.namespace, job.finished) == (attachment.job, "space", False)
            assert [*site.raylet.cluster.drivers] == [attachment.job]
        attachment.core.close()
        await attachment.detach()


@simulated
async def test_a_node_that_has_lost_its_cluster_for_good_ends_and_a_head_waits() -> None:
    site = Site()
    async with site.node(is_head=True):
        await anyio.sleep(200)
        async with site.gcs():
            await anyio.sleep(5)
            assert len((await site.rows())[0]) == 1
    site = Site()
    with pytest.raises(RaySystemError, match="has lost its cluster"):
        async with site.node(is_head=False):
            await anyio.sleep(200)


@simulated
async def test_a_node_ends_soon_after_a_gcs_whose_tables_were_in_memory() -> None:
    site = Site()
    with pytest.raises(
        RaySystemError, match="tables with it, which were in memory: nobody listens"
    ):
        async with site.node(is_head=False):
            async with site.gcs(volatile=True):
                await anyio.sleep(20)
            ended = now()
            with anyio.fail_after(5):
                await site.raylet.host._scope.join()
    assert now() - ended <= 5
    site = Site()
    async with site.node(is_head=False):
        async with site.gcs():
            await anyio.sleep(5)
        await anyio.sleep(50)  # another could have followed this one
        async with site.gcs():
            await anyio.sleep(5)
            assert len((await site.rows())[0]) == 1


class RefusedNetwork(MemoryNetwork):
    """What a node has whose token is not the cluster's any more, until it is let in."""

    is_let_in = False
    asked = 0

    def connect(self, address: str) -> Link:
        link = super().connect(address)
        if address == "gcs" and not (self.is_let_in or link.is_ended):
            self.asked += 1
            link.finish(AuthenticationError("it has another token"))
        return link


@pytest.mark.parametrize("is_head", [False, True])
def test_a_node_that_its_cluster_refuses_asks_seldom_says_so_once_and_ends(
    is_head: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse() -> None:
        site = Site()
        network = RefusedNetwork(site.switch, site.world.seams("raylet"))
        site.network = lambda name: network  # type: ignore[method-assign]
        if is_head:
            async with site.node(is_head=True):
                await anyio.sleep(600)
        else:
            with pytest.raises(RaySystemError, match="refused it for 60 s: it has another token"):
                async with site.node(is_head=False):
                    await anyio.sleep(61)
            site.arena.close()
        most = 600 if is_head else 60
        assert network.asked <= 6 * (most / 8 + 4)  # by the member, and by the feeds of its raylet

    SimLoop().run(refuse())
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1
    assert "raylite stop" in told[0]


@simulated
async def test_a_node_that_was_refused_stays_if_it_is_let_in_within_a_minute() -> None:
    site = Site()
    network = RefusedNetwork(site.switch, site.world.seams("raylet"))
    async with site.gcs():
        plain, site.network = site.network, lambda name: network  # type: ignore[method-assign]
        async with site.node(is_head=False):
            await anyio.sleep(50)
            network.is_let_in = True
            await anyio.sleep(100)
            site.network = plain  # type: ignore[method-assign]
            [row], _, _ = await site.rows()
            assert row.alive


@simulated
async def test_a_node_that_was_taken_for_dead_ends_and_a_head_goes_on() -> None:
    for is_head in (False, True):
        site = Site()
        async with site.gcs():
            network = site.network("raylet")
            await network.listen("raylet")
            site.raylet = build_raylet(
                network, "gcs", site.source, site.arena,
                num_cpus=1, resources={}, labels={}, is_head=is_head,
            )  # fmt: skip
            task = site.raylet.host.start("raylet")
            await anyio.sleep(1)
            site.switch.cut([network])
            await anyio.sleep(15)
            site.switch.heal()
            await anyio.sleep(8)
            (row,), _, _ = await site.rows()
            assert row.alive == is_head
            if is_head:
                site.raylet.host.stop()
                await task
            else:
                with pytest.raises(RaySystemError, match="has taken it for dead"):
                    await task
        site.arena.close()


async def epoch_of(site: Site) -> msg.Epoch:
    network = site.network("client")
    epoch = (await gcs.Nodes(network.connect("gcs")).list(msg.ListNodes())).epoch
    await network.close()
    assert epoch is not None
    return epoch


@simulated
async def test_a_gcs_that_was_replaced_cannot_have_leases_ended() -> None:
    site = Site()
    async with site.node():
        async with site.gcs():
            await anyio.sleep(2)
            old = await epoch_of(site)
        async with site.gcs():
            await anyio.sleep(2)
            latest = await epoch_of(site)
            assert (old.number, latest.number) == (1, 2)
            late = site.network("late")
            fences = raylet.Fences(late.connect("raylet"))
            fence = hot.Fence(site.raylet.node_id, b"holder", (b"lease",))
            for epoch in (msg.Epoch(), old, msg.Epoch(9, b"another cluster")):
                named = replace(fence, cluster=epoch.cluster_id, epoch=epoch.number)
                with pytest.raises(UnavailableError, match="obeys life 2"):
                    await fences.revoke(named)
            named = replace(fence, cluster=latest.cluster_id, epoch=latest.number)
            assert await fences.revoke(named) == hot.Fenced()
            await late.close()


@simulated
async def test_what_an_earlier_gcs_says_in_the_place_of_the_latest_is_not_believed() -> None:
    site = Site()
    async with site.node():
        async with site.gcs():
            network = site.network("driver")
            await network.listen("driver")
            config = hot.JobConfig("space")
            attachment = await attach_driver(
                network, "raylet", "gcs", site.arena, b"d", cpus=1, entrypoint="x", config=config
            )
        kept, old = site.storage, MemoryStorage()
        assert isinstance(kept, MemoryStorage)
        old._tables = {name: dict(rows) for name, rows in kept._tables.items()}
        for _ in range(2):
            async with site.gcs():
                await anyio.sleep(5)
        site.storage = old
        async with site.gcs():
            await anyio.sleep(2)
            assert (await epoch_of(site)).number == 2  # and there was a third
            client = site.network("client")
            await gcs.Jobs(client.connect("gcs")).finish(msg.FinishJob(attachment.job))
            await client.close()
            await anyio.sleep(20)
            _, _, (job,) = await site.rows()
            assert job.finished
            assert [*site.raylet.cluster.drivers] == [attachment.job]
        site.storage = kept
        async with site.gcs():
            await anyio.sleep(10)
            (node,), _, (job,) = await site.rows()
            assert (node.alive, job.finished) == (True, False)
            assert [*site.raylet.cluster.drivers] == [attachment.job]
        attachment.core.close()
        await attachment.detach()


@simulated
async def test_views_that_an_earlier_gcs_tells_in_the_place_of_the_latest_are_no_news() -> None:
    """They have no epoch and need none: versions are counted by the raylet whose view it is."""
    site, other, stranger = Site(), NodeKey(b"other"), NodeKey(b"stranger")

    def view(node: NodeKey, version: int, cpus: float, incarnation: int = 5) -> hot.ViewDelta:
        amount = Resources.of(CPU=cpus)
        profile, load = Profile("there", amount, {}, False), Load(amount, 0)
        return wire.encode(ViewDelta(node, incarnation, 0, version, profile, load))

    @asynccontextmanager
    async def life(storage: Storage) -> AsyncIterator[Link]:
        site.storage = storage
        async with site.gcs():
            yield (network := site.network("other")).connect("gcs")
        await network.close()

    async def report(link: Link, view: hot.ViewDelta) -> None:
        row = msg.RegisterNode(node_id=view.node, incarnation=view.incarnation)
        await gcs.Nodes(link).register(row)
        await gcs.Views(link).report(view)
        await anyio.sleep(2)

    kept, old = MemoryStorage(), MemoryStorage()
    async with site.node():
        async with life(kept) as link:
            await report(link, view(other, 3, cpus=3.0))
        old._tables = {name: dict(rows) for name, rows in kept._tables.items()}
        async with life(kept):
            await anyio.sleep(1)
        async with life(kept) as link:
            await report(link, view(other, 5, cpus=5.0))
            known = site.raylet.cluster.nodes()[other]
            assert known.total == Resources.of(CPU=5)
        async with life(old) as link:
            for wrong in (view(other, 4, 4.0), view(other, 5, 9.0), view(other, 9, 1.0, 4)):
                await report(link, wrong)
                await report(link, view(stranger, 1, 1.0))
                assert site.raylet.cluster.nodes()[other] is known
            fed = site.raylet.cluster._early
            assert stranger in fed  # so it has heard what was told
            assert stranger not in site.raylet.cluster.nodes()


def test_a_node_whose_cluster_an_earlier_gcs_has_taken_over_says_so_and_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def outlive() -> None:
        site = Site()
        async with site.gcs():
            pass
        old = MemoryStorage()
        assert isinstance(site.storage, MemoryStorage)
        old._tables = {name: dict(rows) for name, rows in site.storage._tables.items()}
        async with site.gcs():
            pass
        with pytest.raises(RaySystemError, match=r"another for 60 s: .*it is life 2 of the GCS"):
            async with site.node(is_head=False):
                async with site.gcs():
                    await anyio.sleep(5)
                site.storage = old
                async with site.gcs():
                    await anyio.sleep(100)
        site.arena.close()

    SimLoop().run(outlive())
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len([text for text in told if "an earlier GCS answers" in text]) == 1
