"""Two nodes cannot reach each other, and the GCS reaches both: nothing hangs, and nothing runs twice."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from raylite._kernel.link import Link, LinkConfig
from raylite.exceptions import LocalRayletDiedError, OwnerDiedError, WorkerCrashedError
from raylite.testing.hosts import machine_of
from raylite.testing.loop import SimLoop
from raylite.testing.node import GCS, KILLED, STOOD_STILL, SimDriver, TaskContext
from raylite.testing.sim import SimWire, World
from raylite.testing.simcluster import SimCluster
from tests.sim.ledger import moment

BOUND = 40.0  # seconds after which a pair that is cut makes nobody wait
LONG = 500.0
LARGE = 1_500_000

pytestmark = pytest.mark.sim


@dataclass
class Run:
    """A body that began, where, and whether its worker lived when the next one began."""

    worker: str
    at: float


@dataclass
class Scene:
    """A driver on `n1` whose first task runs on `n2`; what is run later has `n3`, too."""

    cluster: SimCluster
    driver: SimDriver
    runs: list[Run] = field(default_factory=list)

    async def run(self, task: TaskContext, seconds: float) -> str:
        for run in self.runs:
            assert self.cluster.death_of(run.worker), "it runs twice at a time"
        self.runs.append(Run(task.worker, moment()))
        # Whoever runs it again has an easier time of it.
        await task.sleep(seconds if len(self.runs) == 1 else 0.0)
        return task.worker

    async def begun(self) -> None:
        while not self.runs:
            await asyncio.sleep(0.1)

    def cut(self, one: str = "n1", other: str = "n2") -> None:
        self.cluster.world.cut(one, other, silently=True)

    def links(self) -> list[Link]:
        """What the driver's process and its raylet have dialled, and what is on `n2`."""
        networks = list(self.cluster.world.networks.values())
        return [
            link
            for network in networks
            for link in network._links.values()
            if {machine_of(network.name), machine_of(link.peer)} == {"n1", "n2"}
        ]

    def is_carried(self, link: Link) -> bool:
        wire = link._wire
        return isinstance(wire, SimWire) and len(wire.path) > 2

    def heal(self) -> None:
        self.cluster.world.heal("n1", "n2")

    def carriers(self) -> set[str]:
        """The machines by which the links are carried, apart from the two that are parted."""
        hosts = {host for link in self.links() if self.is_carried(link) for host in _path(link)}
        return {machine_of(host) for host in hosts} - {"n1", "n2"}

    async def stand_still(self, node: str, seconds: float) -> None:
        """Let a node's raylet do so; its workers go on."""
        self.cluster.world.freeze(f"{node}/raylet")
        await asyncio.sleep(seconds)
        self.cluster.world.thaw(f"{node}/raylet")


def _path(link: Link) -> Sequence[str]:
    assert isinstance(link._wire, SimWire)
    return link._wire.path


_scenes: list[Scene] = []


def rest(task: TaskContext, seconds: float) -> Awaitable[str]:
    return _scenes[-1].run(task, seconds)


def where(task: TaskContext) -> Awaitable[str]:
    return _where(task)


async def _where(task: TaskContext) -> str:
    return task.worker


def read(task: TaskContext, refs: list[Any]) -> Awaitable[str]:
    return _read(task, refs)


async def _read(task: TaskContext, refs: list[Any]) -> str:
    return str((await task.get(refs))[0])


def put(task: TaskContext) -> Awaitable[list[Any]]:
    return _put(task)


async def _put(task: TaskContext) -> list[Any]:
    return [await task.put(bytes(LARGE))]


def read_size(task: TaskContext, refs: list[Any]) -> Awaitable[int]:
    return _read_size(task, refs)


async def _read_size(task: TaskContext, refs: list[Any]) -> int:
    return len((await task.get(refs))[0])


def make(task: TaskContext) -> Awaitable[bytes]:
    return _make()


async def _make() -> bytes:
    return bytes(LARGE)


@asynccontextmanager
async def scene(*, detours: bool = False, seed: int = 5) -> AsyncIterator[Scene]:
    """A cluster in which nobody carries what others cannot send, or one in which all do."""
    links = LinkConfig() if detours else LinkConfig(detour=math.inf)
    cluster = SimCluster(World(seed), links=links)
    await cluster.gcs.start()
    await cluster.add("n0", is_head=True, cpus=0)
    here = await cluster.add("n1", cpus=0)
    await cluster.add("n2", cpus=1)
    await cluster.joined()
    at = Scene(cluster, await here.driver("driver"))
    _scenes.append(at)
    yield at
    _scenes.clear()
    assert not cluster.failed.done()
    cluster.check()
    await cluster.stop()


def simulated(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        SimLoop().run(test(), within=1000.0)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def outcome(at: Scene, ref: Any) -> Any:
    return (await at.driver.get([ref]))[0]


@simulated
async def test_a_task_whose_owner_cannot_be_reached_is_ended_and_then_runs_elsewhere() -> None:
    async with scene() as at:
        ref = at.driver.submit(rest, LONG, max_retries=1)
        await at.begun()
        await at.cluster.add("n3", cpus=1)
        began = moment()
        at.cut()
        assert (await outcome(at, ref)).startswith("n3/")
        assert moment() - began < BOUND
        assert [run.worker.partition("/")[0] for run in at.runs] == ["n2", "n3"]
        assert sorted(at.cluster.nodes) == ["n0", "n1", "n2", "n3"]


@simulated
async def test_it_fails_if_it_may_not_be_tried_again() -> None:
    async with scene() as at:
        ref = at.driver.submit(rest, LONG, max_retries=0)
        await at.begun()
        began = moment()
        at.cut()
        with pytest.raises(WorkerCrashedError, match="could not be reached"):
            await outcome(at, ref)
        assert moment() - began < BOUND
        assert not at.cluster.nodes["n2"].raylet.leases.leases.statistics().lent


@simulated
async def test_a_shorter_cut_costs_no_attempt() -> None:
    async with scene() as at:
        ref = at.driver.submit(rest, 30.0, max_retries=0)
        await at.begun()
        at.cut()
        await asyncio.sleep(15.0)
        at.heal()
        assert (await outcome(at, ref)).startswith("n2/")


@simulated
async def test_what_runs_where_a_raylet_stands_still_goes_on_with_it_within_its_grace() -> None:
    async with scene() as at:
        ref = at.driver.submit(rest, 60.0, max_retries=0)
        await at.begun()
        await at.cluster.add("n3", cpus=1)
        await asyncio.sleep(20.0)
        await at.stand_still("n2", 26.3)  # its owner asks after 26, and reaches it after the GCS
        assert (await outcome(at, ref)).startswith("n2/")
        assert len(at.runs) == 1


@simulated
async def test_what_runs_where_a_raylet_stands_still_for_longer_ends_before_it_runs_elsewhere() -> (
    None
):
    for worker_too in (False, True):
        async with scene() as at:
            ref = at.driver.submit(rest, LONG, max_retries=1)
            await at.begun()
            await at.cluster.add("n3", cpus=1)
            began = moment()
            standing = asyncio.create_task(at.stand_still("n2", 45.0))
            if worker_too:
                at.cluster.world.freeze(at.runs[0].worker)
            await asyncio.sleep(25.5)
            assert at.cluster.death_of(at.runs[0].worker) is None
            await asyncio.sleep(2.0)
            assert at.cluster.death_of(at.runs[0].worker) == STOOD_STILL
            assert (await outcome(at, ref)).startswith("n3/")
            assert 29.0 <= moment() - began <= 33.0
            assert len(at.runs) == 2
            assert sorted(at.cluster.nodes) == ["n0", "n1", "n2", "n3"]
            await standing
            await asyncio.sleep(2.0)
            assert sorted(at.cluster.nodes) == ["n0", "n1", "n3"]


@simulated
async def test_so_it_is_with_a_raylet_that_had_not_been_heard_for_five_seconds_before() -> None:
    """The GCS counts from when it heard it last, and its node is dead so much sooner."""
    async with scene() as at:
        ref = at.driver.submit(rest, LONG, max_retries=1)
        await at.begun()
        await at.cluster.add("n3", cpus=1)
        at.cut(GCS, "n2")
        await asyncio.sleep(5.0)
        at.cluster.world.heal(GCS, "n2")
        began = moment()
        standing = asyncio.create_task(at.stand_still("n2", 45.0))
        assert (await outcome(at, ref)).startswith("n3/")
        assert 24.0 <= moment() - began <= 27.0
        assert at.cluster.death_of(at.runs[0].worker) == STOOD_STILL
        await standing


@simulated
async def test_a_raylet_that_goes_on_before_its_node_is_dead_has_lost_its_workers_and_says_why() -> (
    None
):
    async with scene() as at:
        ref = at.driver.submit(rest, LONG, max_retries=0)
        await at.begun()
        await at.stand_still("n2", 28.0)
        with pytest.raises(WorkerCrashedError, match=STOOD_STILL):
            await outcome(at, ref)
        assert (await outcome(at, at.driver.submit(where))).startswith("n2/")


@simulated
async def test_a_driver_whose_raylet_stands_still_hears_that_its_node_is_lost() -> None:
    async with scene() as at:
        driver = await at.cluster.nodes["n2"].driver("driver")
        ref = driver.submit(rest, LONG, max_retries=0)
        await at.begun()
        began = moment()
        standing = asyncio.create_task(at.stand_still("n2", 60.0))
        with pytest.raises(LocalRayletDiedError, match="its raylet stands still"):
            await driver.get([ref])
        assert 32.0 <= moment() - began <= 34.0
        await standing


@simulated
async def test_workers_go_on_without_a_gcs() -> None:
    async with scene() as at:
        ref = at.driver.submit(rest, 100.0, max_retries=0)
        await at.begun()
        at.cluster.gcs.kill()
        await asyncio.sleep(50.0)
        await at.cluster.gcs.start()
        assert (await outcome(at, ref)).startswith("n2/")


@simulated
async def test_what_only_a_node_out_of_reach_could_run_waits_for_it() -> None:
    async with scene() as at:
        ref = at.driver.submit(rest, LONG, max_retries=1)
        await at.begun()
        at.cut()
        await asyncio.sleep(150.0)
        assert len(at.runs) == 1
        assert at.cluster.death_of(at.runs[0].worker) == KILLED
        at.heal()
        began = moment()
        assert (await outcome(at, ref)).startswith("n2/")
        assert moment() - began < 10.0


@simulated
async def test_it_waits_for_a_gcs_that_is_away_though_its_session_has_ended() -> None:
    async with scene() as at:
        ref = at.driver.submit(rest, LONG, max_retries=1)
        await at.begun()
        await at.cluster.add("n3", cpus=1)
        await asyncio.sleep(1.0)
        at.cut()
        await asyncio.sleep(20.0)
        at.cluster.gcs.kill()
        await asyncio.sleep(50.0)  # the session with the lessor has ended, too
        assert len(at.runs) == 1
        await at.cluster.gcs.start()
        assert (await outcome(at, ref)).startswith("n3/")


@simulated
async def test_what_is_submitted_during_a_cut_goes_elsewhere_at_once() -> None:
    async with scene() as at:
        ref = at.driver.submit(rest, LONG, max_retries=0)
        await at.begun()
        await at.cluster.add("n3", cpus=1)
        at.cut()
        with pytest.raises(WorkerCrashedError):
            await outcome(at, ref)
        for _ in range(3):
            began = moment()
            ref = at.driver.submit(where)
            assert (await outcome(at, ref)).startswith("n3/")
            assert moment() - began < 1.0
            await asyncio.sleep(45.0)
        at.heal()


@simulated
async def test_a_wish_that_waits_there_goes_elsewhere() -> None:
    async with scene() as at:
        busy = at.driver.submit(rest, LONG, max_retries=0)
        await at.begun()
        waiting = at.driver.submit(where)
        await asyncio.sleep(1.0)
        began = moment()
        at.cut()
        await at.cluster.add("n3", cpus=1)
        assert (await outcome(at, waiting)).startswith("n3/")
        assert moment() - began < BOUND
        with pytest.raises(WorkerCrashedError):
            await outcome(at, busy)


@simulated
async def test_a_large_result_of_a_node_out_of_reach_is_read_by_way_of_another() -> None:
    async with scene() as at:
        ref = at.driver.submit(make)
        while ref._entry.value is None:
            await asyncio.sleep(0.1)
        began = moment()
        at.cut()
        assert len(await outcome(at, ref)) == LARGE
        assert moment() - began < BOUND


@simulated
async def test_a_read_that_begins_when_a_fence_was_asked_for_waits_no_more() -> None:
    async with scene() as at:
        ref = at.driver.submit(make)
        while ref._entry.value is None:
            await asyncio.sleep(0.1)
        resting = at.driver.submit(rest, LONG, max_retries=0)
        await at.begun()
        at.cut()
        with pytest.raises(WorkerCrashedError):
            await outcome(at, resting)
        began = moment()
        assert len(await outcome(at, ref)) == LARGE
        assert moment() - began < 2.0


@simulated
async def test_what_was_wished_for_while_a_fence_was_asked_for_is_not_forgotten() -> None:
    async with scene() as at:
        ref = at.driver.submit(rest, LONG, max_retries=1)
        await at.begun()
        at.cut()
        await asyncio.sleep(15.0)
        at.cluster.gcs.kill()
        await asyncio.sleep(15.0)
        other = at.driver.submit(where)
        await asyncio.sleep(38.0)  # the session with the lessor has ended, too
        await at.cluster.gcs.start()
        await asyncio.sleep(10.0)
        at.heal()
        for each in (ref, other):
            assert (await outcome(at, each)).startswith("n2/")


# ---- and others carry what they cannot send each other -------------------------------------


@simulated
async def test_what_two_nodes_cannot_send_each_other_is_carried_by_a_third() -> None:
    async with scene(detours=True) as at:
        resting = at.driver.submit(rest, 200.0, max_retries=0)
        await at.begun()
        at.cut()
        await asyncio.sleep(15.0)
        for link in at.links():
            assert link.is_attached
        assert (await outcome(at, resting)).startswith("n2/")  # it never began anew
        assert len(at.runs) == 1


@simulated
async def test_a_borrower_reads_what_an_owner_out_of_reach_makes_long_after() -> None:
    async with scene(detours=True) as at:
        await at.cluster.add("n3", cpus=1)
        at.driver.submit(make)
        later = at.driver.submit(rest, 0.0)
        await outcome(at, later)
        at.runs.clear()
        source = at.driver.submit(rest, 150.0)  # on one of them; the reader on the other
        await at.begun()
        reader = at.driver.submit(read, [source])
        at.cut()
        at.cut("n1", "n3")
        at.cut("n2", "n3")
        assert await outcome(at, reader) == await outcome(at, source)


@simulated
async def test_tasks_and_objects_pass_during_a_cut_as_before() -> None:
    async with scene(detours=True) as at:
        assert len(await outcome(at, at.driver.submit(make))) == LARGE
        at.cut()
        await asyncio.sleep(20.0)
        began = moment()
        for _ in range(3):
            assert (await outcome(at, at.driver.submit(where))).startswith("n2/")
            assert len(await outcome(at, at.driver.submit(make))) == LARGE
            await asyncio.sleep(1.0)
        assert moment() - began < 4.0


@simulated
async def test_the_direct_way_is_taken_when_it_is_there_again() -> None:
    async with scene(detours=True) as at:
        await outcome(at, at.driver.submit(where))
        links = at.links()
        at.cut()
        await asyncio.sleep(30.0)
        assert all(at.is_carried(link) for link in links)
        at.heal()
        await asyncio.sleep(30.0)
        assert [link for link in links if link.is_ended or at.is_carried(link)] == []
        assert (await outcome(at, at.driver.submit(where))).startswith("n2/")


@simulated
async def test_the_one_that_carries_may_die_and_another_does() -> None:
    async with scene(detours=True) as at:
        third = await at.cluster.add("n3", cpus=0)
        resting = at.driver.submit(rest, 200.0, max_retries=0)
        await at.begun()
        at.cut("n0", "n2")  # so it is not the head that carries
        at.cut()
        await asyncio.sleep(20.0)
        assert all(at.is_carried(link) for link in at.links())
        at.cluster.kill(third)
        await asyncio.sleep(1.0)
        await at.cluster.add("n4", cpus=0)
        assert (await outcome(at, resting)).startswith("n2/")
        assert len(at.runs) == 1


@asynccontextmanager
async def carried(by: str, *, seed: int = 5) -> AsyncIterator[tuple[Scene, Any]]:
    """A pair of nodes that is carried by one of two, while something runs on one for the other."""
    async with scene(detours=True, seed=seed) as at:
        await at.cluster.add("n3", cpus=0)
        resting = at.driver.submit(rest, 150.0, max_retries=0)
        await at.begun()
        other = "n3" if by == "n0" else "n0"
        at.cut("n2", other)
        at.cut()
        await asyncio.sleep(20.0)
        assert at.carriers() == {by}
        at.cluster.world.heal("n2", other)
        yield at, resting
        assert (await outcome(at, resting)).startswith("n2/")
        assert len(at.runs) == 1  # it never began anew


@simulated
async def test_the_one_that_carries_may_stand_still_and_another_does() -> None:
    for by, other in ("n0", "n3"), ("n3", "n0"):
        async with carried(by) as (at, _):
            standing = asyncio.create_task(at.stand_still(by, 25.0))
            await asyncio.sleep(18.0)
            assert all(at.is_carried(link) for link in at.links())
            assert at.carriers() == {other}
            await standing
            await asyncio.sleep(5.0)
            assert all(at.is_carried(link) for link in at.links())


@simulated
async def test_the_one_that_carries_may_lose_its_power_and_another_does() -> None:
    async with carried("n3") as (at, _):
        at.cluster.power_off(at.cluster.nodes["n3"])
        await asyncio.sleep(18.0)
        assert all(at.is_carried(link) for link in at.links())
        assert at.carriers() == {"n0"}


@simulated
async def test_the_gcs_carries_where_no_raylet_can() -> None:
    async with scene(detours=True) as at:
        resting = at.driver.submit(rest, 200.0, max_retries=0)
        await at.begun()
        at.cut("n0", "n1")  # the head's raylet, whose port is closed to one of them
        at.cut()
        await asyncio.sleep(25.0)
        assert at.links()
        for link in at.links():
            assert isinstance(link._wire, SimWire)
            assert "gcs" in link._wire.path[1:-1]
        assert len(await outcome(at, at.driver.submit(make, num_cpus=0))) == LARGE
        assert (await outcome(at, resting)).startswith("n2/")
        assert len(at.runs) == 1


@simulated
async def test_it_carries_to_no_node_that_is_dead_or_unknown() -> None:
    async with scene(detours=True) as at:
        gcs = at.cluster.world.networks["gcs"].detours
        there = at.cluster.nodes["n2"].address("raylet")
        assert gcs.carries(there)
        assert [gcs.carries(each) for each in ("n2/raylet", "")] == [False, False]
        at.cluster.kill(at.cluster.nodes["n2"])
        await asyncio.sleep(15.0)
        assert not gcs.carries(there)


@simulated
async def test_when_the_one_that_carries_stands_still_the_direct_way_is_taken_before_long() -> None:
    for by in ("n0", "n3"):
        async with carried(by) as (at, _):
            at.heal()
            at.cluster.world.cut("n0" if by == "n3" else "n3", "n2", silently=True)
            standing = asyncio.create_task(at.stand_still(by, 25.0))
            await asyncio.sleep(18.0)
            assert [link for link in at.links() if not link.is_attached] == []
            await standing
            await asyncio.sleep(30.0)  # the GCS may have carried for so long
            assert [link for link in at.links() if at.is_carried(link)] == []


@simulated
async def test_whoever_carries_what_is_sent_it_comes_once() -> None:
    """Carriers stand still and die in the middle of packets, by turns; and the direct way comes and goes."""
    for seed in range(2):
        async with carried("n3", seed=seed) as (at, _):
            draw, life = at.cluster.world.random("carriers"), 3
            for fault in draw.sample(["n0", "last", "dies", "heals"], 4):
                large, small = at.driver.submit(make), [at.driver.submit(where) for _ in range(5)]
                match fault:
                    case "dies":
                        at.cluster.kill(at.cluster.nodes[f"n{life}"])
                        life += 1
                        await at.cluster.add(f"n{life}", cpus=0)
                    case "heals":
                        at.heal()
                        await asyncio.sleep(draw.uniform(0.0, 25.0))
                        at.cut()
                    case "n0" | "last":
                        node = fault if fault == "n0" else f"n{life}"
                        await at.stand_still(node, draw.uniform(1.0, 20.0))
                assert len(await outcome(at, large)) == LARGE
                for ref in small:
                    assert (await outcome(at, ref)).startswith("n2/")
                del large


@simulated
async def test_a_node_that_nobody_reaches_is_dead_as_soon_as_ever() -> None:
    async with scene(detours=True) as at:
        ref = at.driver.submit(rest, LONG, max_retries=1)
        await at.begun()
        await at.cluster.add("n3", cpus=1)
        began = moment()
        at.cluster.power_off(at.cluster.nodes["n2"])
        assert (await outcome(at, ref)).startswith("n3/")
        assert moment() - began < 15.0


# ---- and where nobody can carry, it works again when the cut is over -------------------------

FORGOTTEN = 100.0  # seconds of a cut after which every session has ended


@simulated
async def test_what_an_owner_has_on_a_node_out_of_reach_is_there_after_a_long_cut() -> None:
    async with scene() as at:
        ref = at.driver.submit(make)
        while ref._entry.value is None:
            await asyncio.sleep(0.1)
        at.cut()
        await asyncio.sleep(FORGOTTEN)
        at.heal()
        assert len(await outcome(at, ref)) == LARGE


@simulated
async def test_what_is_borrowed_from_a_process_out_of_reach_is_there_after_a_long_cut() -> None:
    async with scene() as at:
        [inner] = await outcome(at, at.driver.submit(put))
        await asyncio.sleep(5.0)  # its lease is given back
        at.cut()
        await asyncio.sleep(FORGOTTEN)
        at.heal()
        await asyncio.sleep(5.0)
        assert len(await outcome(at, inner)) == LARGE


@simulated
async def test_a_driver_out_of_reach_for_long_owns_and_runs_there_as_before() -> None:
    async with scene() as at:
        await outcome(at, at.driver.submit(where))
        at.cut()
        await asyncio.sleep(FORGOTTEN)
        at.heal()
        await asyncio.sleep(5.0)
        mine = await at.driver.put(bytes(LARGE))
        for _ in range(2):
            assert await outcome(at, at.driver.submit(read_size, [mine])) == LARGE
        assert (await outcome(at, at.driver.submit(where))).startswith("n2/")


@simulated
async def test_what_an_owner_out_of_reach_had_goes_when_it_dies_meanwhile() -> None:
    async with scene() as at:
        ref = at.driver.submit(make)
        while ref._entry.value is None:
            await asyncio.sleep(0.1)
        memory = at.cluster.nodes["n2"].raylet.objects.memory
        at.cut()
        await asyncio.sleep(FORGOTTEN)
        assert memory.statistics().used >= LARGE
        at.driver.kill()
        await asyncio.sleep(5.0)
        assert not memory.statistics().used


def put_small(task: TaskContext) -> Awaitable[list[Any]]:
    return _put_small(task)


async def _put_small(task: TaskContext) -> list[Any]:
    return [await task.put(b"small")]


@simulated
async def test_a_reader_waits_for_an_owner_out_of_reach_and_fails_when_that_dies() -> None:
    async with scene() as at:
        [there] = await outcome(at, at.driver.submit(put_small))
        await asyncio.sleep(5.0)  # its lease is given back
        at.cut()
        reading = asyncio.create_task(outcome(at, there))
        await asyncio.sleep(FORGOTTEN)
        assert not reading.done()
        began = moment()
        at.cluster.kill(at.cluster.nodes["n2"])
        with pytest.raises(OwnerDiedError):
            await reading
        assert moment() - began < BOUND
