"""The Submit service alone, in virtual time: raylets and workers of several nodes are played."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
from msgspec.structs import replace

from raylite._kernel.host import Host
from raylite._kernel.link import Link, LinkConfig
from raylite._kernel.memory import MemoryNetwork, Switch
from raylite._kernel.service import Service, handles
from raylite._machines.submitter import LaneKey, Submitter
from raylite._protocol import raylet, worker
from raylite._services.worker.explain import ExplainService
from raylite._services.worker.locations import LocationService
from raylite._services.worker.objects import Entry
from raylite._services.worker.owned import OwnedTask
from raylite._services.worker.owner import OwnerService, error_of, error_value
from raylite._services.worker.submit import SubmitService
from raylite._types.accelerators import Shares
from raylite._types.cancellation import CancelOutcome
from raylite._types.keys import ObjectKey, TaskKey, WorkerKey
from raylite._types.resources import UNIT, Resources
from raylite._types.strategies import NodeAffinity, NodeKey, Placement, SpreadStrategy
from raylite._wire import hot, placement
from raylite._wire.hot import Form, Value
from raylite._wire.messages import raylet as msg
from raylite.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    OwnerDiedError,
    PeerLostError,
    RayError,
    RaySystemError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
    capture_task_error,
)
from raylite.testing.sim import World
from tests.services.rig import simulated

HERE, FAR, THIRD = (name * 28 for name in (b"h", b"f", b"t"))
PLAIN = LaneKey(Resources.of(CPU=1), b"job!", 0)
KEEPER: Any = SimpleNamespace(address="owner", dropped=lambda drop: None)
MB = 1024 * 1024


class PlayedRaylet(Service, serves=(raylet.Leases, raylet.Objects, raylet.Copies)):
    """Does nothing but note what it is asked; a test answers."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network
        self.requests: list[hot.LeaseRequest] = []
        self.released: list[bytes] = []
        self.unreached: list[bytes] = []
        self.freed: list[bytes] = []
        self.backlogs: list[hot.Shapes] = []
        self.asker: Link | None = None
        self.is_silent = False

    @property
    def holder(self) -> raylet.Holder:
        assert self.asker is not None
        return raylet.Holder(self.asker)

    @handles(raylet.Leases.request)
    def request(self, requests: list[hot.LeaseRequest]) -> None:
        self.asker = self.caller
        self.requests += requests

    @handles(raylet.Leases.release)
    def release(self, leases: list[bytes]) -> None:
        self.released += leases

    @handles(raylet.Leases.unreachable)
    def unreachable(self, lease: bytes) -> None:
        self.unreached.append(lease)

    @handles(raylet.Leases.backlog)
    def backlog(self, backlog: hot.Backlog) -> None:
        self.backlogs.append(backlog.tasks)

    @handles(raylet.Leases.explain)
    async def explain(self, lease: bytes) -> hot.Standing:
        if self.is_silent:
            await anyio.sleep(60)
        position = [each.lease for each in self.requests].index(lease)
        return hot.Standing(f"it is number {position}", 1.5)

    @handles(raylet.Leases.blocked)
    def blocked(self, nothing: bytes) -> None: ...

    @handles(raylet.Leases.unblocked)
    def unblocked(self, nothing: bytes) -> None: ...

    @handles(raylet.Leases.spent)
    def spent(self, nothing: bytes) -> None: ...

    @handles(raylet.Leases.resources)
    def resources(self, request: msg.GetResources) -> msg.ResourceView:
        raise AssertionError("nobody asks this here")

    @handles(raylet.Objects.allocate)
    def allocate(self, request: hot.Allocate) -> hot.Allocation:
        raise AssertionError("nobody stores anything here")

    @handles(raylet.Objects.free)
    def free(self, freed: list[hot.Freed]) -> None:
        self.freed += [each.id for each in freed]

    @handles(raylet.Objects.viewless)
    def viewless(self, owner: bytes) -> None: ...

    @handles(raylet.Copies.read)
    def read(self, request: hot.ReadChunk) -> memoryview:
        raise AssertionError("nobody reads here")

    @handles(raylet.Copies.order)
    def order(self, orders: list[hot.Order]) -> None: ...

    def spill(self, lease: bytes, to: str, *visited: bytes) -> None:
        self.holder.spilled(hot.Spilled(lease, b"", to, visited))

    def grant(self, lease: bytes, worker: "PlayedWorker", devices: Shares = ()) -> None:
        self.holder.granted(
            hot.LeaseGrant(lease, worker.id, worker.network.address, devices, 7, FAR)
        )


class PlayedWorker(Service, serves=(worker.Execute,)):
    """Takes tasks, and does none by itself."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network
        self.id = network.address.encode().ljust(28, b".")
        self.tasks: list[hot.Task] = []
        self.terms: list[hot.StreamTerms] = []
        self.told: list[tuple[hot.Holding, int]] = []  # and how many tasks had come before
        self.cancels: list[hot.Cancel] = []
        self.owner: Link | None = None
        self.asked = 0

    @handles(worker.Execute.define)
    def define(self, definitions: list[hot.Definition]) -> None: ...

    @handles(worker.Execute.hold)
    def hold(self, holdings: list[hot.Holding]) -> None:
        self.told += [(holding, len(self.tasks)) for holding in holdings]

    @handles(worker.Execute.run)
    def run_tasks(self, tasks: list[hot.Task]) -> None:
        self.owner = self.caller
        self.tasks += tasks

    @handles(worker.Execute.cancel)
    def cancel(self, cancels: list[hot.Cancel]) -> None:
        self.cancels += cancels

    @handles(worker.Execute.allow)
    def allow(self, terms: list[hot.StreamTerms]) -> None:
        self.terms += terms

    @handles(worker.Execute.give_back)
    def give_back(self, nothing: bytes) -> None:
        self.asked += 1

    def finish(self, task: hot.Task, *, retry: bool = False) -> None:
        value = Value(Form.INLINE, b"raised" if retry else b"done")
        self.answer(hot.Result(task.id, task.attempt, 0.1, (value,), (), retry))

    def answer(self, result: hot.Result) -> None:
        assert self.owner is not None
        worker.Submit(self.owner).results(result)


class Scene:
    """An owner on one node, and what is played of that and two others."""

    def __init__(self, switch: Switch, world: World) -> None:
        self._switch, self._world = switch, world
        self.networks: dict[str, MemoryNetwork] = {}
        self.hosts: list[Any] = []
        self._numbers = 0

    async def begin(self) -> None:
        self.here, self.far, self.third = [
            await self.play(name, PlayedRaylet) for name in ("here", "far", "third")
        ]
        self.workers = [await self.play(f"w{n}", PlayedWorker) for n in range(3)]
        network = await self.network("owner")
        link = network.connect("here")
        self.locations = LocationService("owner", link)
        self.locations.node = HERE
        self.owner = OwnerService(network, self.locations, link)
        self.submitter = Submitter(WorkerKey(b"o" * 28), 4 * UNIT)
        self.submit = SubmitService(
            network, link, self.owner, self.locations, self.submitter, b"o" * 28
        )
        self.submit.peers.definitions[1] = hot.Definition(1, b"", "f", b"job!", b"o" * 28, "f")
        explain = ExplainService(network, self.owner, self.submit, self.submitter, self.locations)
        host = Host(network, self.owner, self.submit, self.locations, explain)
        self.hosts.append((host, host.start("owner")))

    async def network(self, name: str) -> MemoryNetwork:
        network = MemoryNetwork(self._switch, self._world.seams(name))
        await network.listen(name)
        self.networks[name] = network
        return network

    async def play(self, name: str, kind: Callable[[MemoryNetwork], Any]) -> Any:
        service = kind(await self.network(name))
        host = Host(service.network, service)
        self.hosts.append((host, host.start(name)))
        return service

    async def end(self) -> None:
        for host, running in reversed(self.hosts):
            host.stop()
            await running

    def stored(self, node: bytes, size: int = MB, owner: str = "") -> Entry:
        """An object that lies on a node."""
        self._numbers += 1
        id = ObjectKey(self._numbers.to_bytes(28, "big"))
        entry = Entry(id, KEEPER, owner, 1, Value(Form.ARENA, b"", 0, size, (), b"", node))
        self.owner.refs.add(entry)
        self.owner.stored(entry)
        return entry

    def task(self, *inputs: Entry, key: LaneKey = PLAIN, retries: int = 0) -> OwnedTask:
        self._numbers += 1
        id = TaskKey(self._numbers.to_bytes(24, "big"))
        returned = Entry(ObjectKey(id + bytes(4)), KEEPER, "", 1)
        return OwnedTask(id, key, 1, retries, b"", (returned,), "f", b"", tuple(enumerate(inputs)))

    async def settled(self) -> None:
        """Let whatever was sent arrive, and what follows from it."""
        await anyio.sleep(0.005)

    def check(self) -> None:
        """Nothing is kept of leases that are no more, as long as there is a raylet to lend any."""
        if self.submit._raylet.is_ended:
            return
        self.submitter.check()
        self.submit.lessors.check({peer.lease for peer in self.submit.peers.table.values()})


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    made = Scene(Switch(), World(1))
    await made.begin()
    try:
        yield made
        await made.settled()
        made.check()
    finally:
        await made.end()


def result_of(task: OwnedTask) -> Value | None:
    return task.entries[0].value


# ---- what a worker is told of its lease ---------------------------------------------------


@simulated
async def test_a_worker_is_told_what_it_holds_when_it_cannot_know() -> None:
    large = LaneKey(Resources.of(CPU=2, GPU=1), b"job!", 0)
    one, other = ((("GPU", ((device, UNIT),)),) for device in (0, 1))
    async with scene() as at:
        [played] = at.workers[:1]

        async def lease(key: LaneKey, devices: Shares = ()) -> None:
            """Run two tasks on a lease of the worker's, and give it back."""
            at.submit.submit([at.task(key=key), at.task(key=key)])
            await at.settled()
            name = at.here.requests[-1].lease
            at.here.grant(name, played, devices)
            for _ in range(2):
                await at.settled()
                played.finish(played.tasks[-1])
            await anyio.sleep(2)
            assert name in at.here.released

        await lease(PLAIN)
        assert played.told == []
        await lease(large, one)
        assert played.told == [(hot.Holding({"CPU": 2 * UNIT, "GPU": UNIT}, one), 2)]
        await lease(large, one)
        assert len(played.told) == 1
        await lease(large, other)
        await lease(PLAIN)
        assert played.told[1:] == [
            (hot.Holding({"CPU": 2 * UNIT, "GPU": UNIT}, other), 6),
            (hot.Holding({"CPU": UNIT}), 8),
        ]


# ---- tasks that overlap ------------------------------------------------------------------

OVERLAPPING = LaneKey(Resources.of(CPU=1), b"job!", 0, slots=100)


@simulated
async def test_tasks_that_overlap_are_sent_at_once_and_asked_back_never() -> None:
    async with scene() as at:
        tasks = [at.task(key=OVERLAPPING) for _ in range(50)]
        at.submit.submit(tasks)
        await at.settled()
        [played] = at.workers[:1]
        at.here.grant(at.here.requests[0].lease, played)
        await anyio.sleep(100.0)  # all of them wait for something
        assert len(played.tasks) == 50
        assert played.asked == 0
        for task in reversed(played.tasks):
            played.finish(task)
        await at.settled()
        assert all(result_of(task) == Value(Form.INLINE, b"done") for task in tasks)


@simulated
async def test_a_crash_is_charged_to_the_overlapping_tasks_that_had_begun_and_not_ended() -> None:
    async with scene() as at:
        tasks = [at.task(key=OVERLAPPING, retries=0) for _ in range(6)]
        at.submit.submit(tasks)
        await at.settled()
        crashed, other = at.workers[:2]
        lease = at.here.requests[0].lease
        at.here.grant(lease, crashed)
        await anyio.sleep(1.0)
        crashed.finish(crashed.tasks[3])
        await at.settled()
        last = crashed.tasks[3].id  # it began last, and has ended
        at.here.holder.lost(hot.WorkerLost(lease, crashed.id, "w0", "it was killed", last))
        await at.settled()
        assert [result_of(task) is None for task in tasks] == [False] * 4 + [True] * 2
        for task in tasks[:3]:
            value = result_of(task)
            assert value is not None
            assert isinstance(error_of(value), WorkerCrashedError)
        at.here.grant(at.here.requests[-1].lease, other)
        await anyio.sleep(1.0)
        assert [each.attempt for each in other.tasks] == [0, 0]


# ---- where a lease is asked for ----------------------------------------------------------


@simulated
async def test_a_task_asks_first_where_its_argument_is() -> None:
    async with scene() as at:
        task = at.task(at.stored(FAR))
        at.submit.submit([task])
        await at.settled()
        [request] = at.here.requests
        assert (request.near, request.visited) == (FAR, ())
        at.here.spill(request.lease, "far")
        await at.settled()
        [request] = at.far.requests
        assert (request.near, request.visited, request.holder) == (b"", (), b"o" * 28)
        at.far.grant(request.lease, at.workers[0])
        await at.settled()
        at.workers[0].finish(at.workers[0].tasks[0])
        await at.settled()
        assert result_of(task) == Value(Form.INLINE, b"done")
        await anyio.sleep(2)  # an idle lease is kept for a while
        assert at.far.released == [request.lease]
        assert at.here.released == []


@simulated
async def test_tasks_near_different_nodes_share_no_lease() -> None:
    async with scene() as at:
        far, third, here = at.stored(FAR), at.stored(THIRD), at.stored(HERE)
        at.submit.submit([at.task(far), at.task(third), at.task(here), at.task(), at.task(far)])
        await at.settled()
        assert sorted(each.near for each in at.here.requests) == [b"", b"", FAR, FAR, THIRD]
        [lease] = [each.lease for each in at.here.requests if each.near == THIRD]
        at.here.grant(lease, at.workers[0])
        await at.settled()
        assert [each.inputs[0].id for each in at.workers[0].tasks] == [third.id]


@simulated
async def test_an_argument_that_comes_later_draws_its_task_then() -> None:
    async with scene() as at:
        first, late = at.task(), Entry(ObjectKey(b"l" * 28), KEEPER, "", 1)
        at.owner.refs.add(late)
        at.submit.submit([first, at.task(late)])
        await at.settled()
        assert [each.near for each in at.here.requests] == [b""]
        at.owner.complete(late, Value(Form.ARENA, b"", 0, MB, (), b"", FAR))
        await at.settled()
        assert [each.near for each in at.here.requests] == [b"", FAR]


@simulated
async def test_the_node_with_most_of_the_bytes_is_asked_and_this_one_wins_a_tie() -> None:
    async with scene() as at:
        both = at.stored(FAR)
        at.locations._directory.added(both.id, NodeKey(THIRD), MB, 1)
        for inputs, near in [
            ((at.stored(FAR, 3 * MB), at.stored(THIRD, 2 * MB), at.stored(HERE, 2 * MB)), FAR),
            ((at.stored(FAR, 3 * MB), at.stored(THIRD, 2 * MB), both), FAR),
            ((at.stored(FAR, 3 * MB), at.stored(THIRD, 3 * MB), at.stored(THIRD, 1)), THIRD),
            ((at.stored(FAR), at.stored(HERE)), b""),
            ((at.stored(FAR, MB, owner="other"), at.stored(HERE, MB - 1)), FAR),
        ]:
            at.here.requests.clear()
            at.submit.submit([at.task(*inputs)])
            await at.settled()
            assert at.here.requests[-1].near == near


@simulated
async def test_one_argument_given_twice_counts_once() -> None:
    async with scene() as at:
        far = at.stored(FAR, 2)
        at.submit.submit([at.task(far, far, at.stored(HERE, 3))])
        await at.settled()
        assert [each.near for each in at.here.requests] == [b""]


@simulated
async def test_what_is_read_here_is_here_too_though_another_owns_it() -> None:
    async with scene() as at:
        borrowed = at.stored(FAR, owner="other")
        borrowed.views += 1
        at.submit.submit([at.task(borrowed)])
        await at.settled()
        assert [each.near for each in at.here.requests] == [b""]


@pytest.mark.parametrize("strategy", [SpreadStrategy(), NodeAffinity(NodeKey(THIRD))])
def test_a_strategy_counts_for_more(strategy: Any) -> None:
    where = placement.encode(Placement(PLAIN.demand, strategy))

    @simulated
    async def run() -> None:
        async with scene() as at:
            at.submit.submit(
                [at.task(at.stored(FAR), key=LaneKey(PLAIN.demand, b"job!", 0, where))]
            )
            await at.settled()
            assert [each.near for each in at.here.requests] == [b""]

    run()


# ---- spills ------------------------------------------------------------------------------


@simulated
async def test_a_full_raylet_sends_the_wish_on_with_whom_it_has_seen() -> None:
    async with scene() as at:
        at.submit.submit([at.task(at.stored(FAR))])
        await at.settled()
        lease = at.here.requests[0].lease
        at.here.spill(lease, "far")
        await at.settled()
        at.far.spill(lease, "third", FAR)
        await at.settled()
        [request] = at.third.requests
        assert (request.visited, request.near) == ((FAR,), b"")
        at.third.grant(lease, at.workers[0])
        await at.settled()
        assert len(at.workers[0].tasks) == 1


@simulated
async def test_a_spill_that_comes_twice_or_from_who_is_not_asked_any_more_is_nothing() -> None:
    async with scene() as at:
        at.submit.submit([at.task(at.stored(FAR))])
        await at.settled()
        lease = at.here.requests[0].lease
        at.here.spill(lease, "far")
        at.here.spill(lease, "third")
        await at.settled()
        assert (len(at.far.requests), at.third.requests) == (1, [])
        at.far.grant(lease, at.workers[0])
        at.far.spill(lease, "third")  # after its own grant
        at.here.spill(b"unheard of", "third")
        await at.settled()
        assert at.third.requests == []


@simulated
async def test_a_spill_of_a_wish_that_was_withdrawn_is_nothing() -> None:
    async with scene() as at:
        task = at.task(at.stored(FAR))
        at.submit.submit([task])
        await at.settled()
        lease = at.here.requests[0].lease
        at.submit.cancel(task.id, force=False, recursive=True)
        at.here.spill(lease, "far")
        await at.settled()
        assert at.here.released == [lease]
        assert at.far.requests == []


@simulated
async def test_a_grant_of_a_wish_that_was_withdrawn_runs_nothing() -> None:
    """Its raylet has been told already, and takes the worker back."""
    async with scene() as at:
        first, second = at.task(), at.task()
        at.submit.submit([first, second])
        await at.settled()
        one, other = (each.lease for each in at.here.requests)
        at.here.grant(one, at.workers[0])
        await at.settled()
        at.submit.cancel(second.id, force=False, recursive=True)
        at.here.grant(other, at.workers[1])
        await at.settled()
        assert at.here.released == [other]
        assert at.workers[1].tasks == []
        assert list(at.submit.peers.table) == [at.workers[0].id]


# ---- deaths ------------------------------------------------------------------------------


@simulated
async def test_when_the_far_raylet_is_dead_the_near_one_is_asked_for_itself() -> None:
    async with scene() as at:
        at.submit.submit([at.task(at.stored(FAR))])
        await at.settled()
        lease = at.here.requests[0].lease
        at.here.spill(lease, "far")
        await at.settled()
        at.networks["owner"].confirm_dead("far", "power cut")
        await at.settled()
        again = at.here.requests[1]
        assert (again.lease, again.near, again.visited) == (lease, b"", ())  # or it would go on so
        at.here.grant(lease, at.workers[0])
        await at.settled()
        assert len(at.workers[0].tasks) == 1


@simulated
async def test_tasks_of_a_raylet_that_died_fail_or_are_asked_for_again() -> None:
    async with scene() as at:
        far = at.stored(FAR)
        at.locations._directory.added(far.id, NodeKey(THIRD), MB, 1)  # a copy that outlives it
        fails, runs_again = at.task(far), at.task(far, retries=1)
        at.submit.submit([fails, runs_again])
        await at.settled()
        for number, request in enumerate(list(at.here.requests)):
            at.here.spill(request.lease, "far")
            await at.settled()
            at.far.grant(request.lease, at.workers[number])
            await at.settled()
        at.here.requests.clear()
        at.locations.node_died(NodeKey(FAR))
        at.networks["owner"].confirm_dead("far", "power cut")
        await at.settled()
        failed = result_of(fails)
        assert failed is not None
        error = error_of(failed)
        assert isinstance(error, NodeDiedError)
        assert str(error).endswith(f"; its node {FAR.hex()} (127.0.0.1) died: power cut.")
        assert result_of(runs_again) is None
        assert [each.near for each in at.here.requests] == [THIRD]  # where the argument is now


@simulated
async def test_a_death_that_is_told_late_or_twice_costs_nothing_more() -> None:
    async with scene() as at:
        task = at.task(at.stored(FAR), retries=1)
        at.submit.submit([task])
        await at.settled()
        lease = at.here.requests[0].lease
        at.here.spill(lease, "far")
        await at.settled()
        gone = at.workers[0]
        at.far.grant(lease, gone)
        await at.settled()
        loss = hot.WorkerLost(lease, gone.id, "w0", "it was killed", gone.tasks[0].id)
        for _ in range(2):
            at.far.holder.lost(loss)
            await at.settled()
        assert task.attempt == 1
        assert at.far.freed == [task.entries[0].id]  # what it may have stored, once


@simulated
async def test_the_tasks_of_a_worker_out_of_reach_run_again_once_its_raylet_has_ended_it() -> None:
    async with scene() as at:
        task = at.task(retries=1)
        at.submit.submit([task])
        await at.settled()
        lease, gone = at.here.requests[0].lease, at.workers[0]
        at.here.grant(lease, gone)
        await at.settled()
        assert len(gone.tasks) == 1
        unreached = PeerLostError("w0 could not be reached for 60 s", confirmed=False)
        at.networks["owner"].connect("w0").finish(unreached)
        await at.settled()
        assert at.here.unreached == [lease]
        at.here.holder.lost(hot.WorkerLost(lease, gone.id, "w0", "it was ended", task.id))
        await at.settled()
        assert (task.attempt, len(at.here.requests)) == (1, 2)


@simulated
async def test_a_worker_that_says_goodbye_is_left_to_its_raylet() -> None:
    async with scene() as at:
        at.submit.submit([at.task()])
        await at.settled()
        at.here.grant(at.here.requests[0].lease, at.workers[0])
        await at.settled()
        await at.networks["w0"].close()
        await at.settled()
        assert at.here.unreached == []


@simulated
async def test_without_its_own_raylet_every_task_fails() -> None:
    async with scene() as at:
        tasks = [at.task(at.stored(FAR)), at.task()]
        at.submit.submit(tasks)
        await at.settled()
        at.networks["owner"].confirm_dead("here", "it crashed")
        await at.settled()
        tasks.append(at.task(at.stored(FAR)))
        at.submit.submit(tasks[2:])
        for task in tasks:
            failed = result_of(task)
            assert failed is not None
            assert isinstance(error_of(failed), LocalRayletDiedError)


# ---- retries -----------------------------------------------------------------------------


async def begun(at: Scene, task: OwnedTask, n: int = 0) -> hot.Task:
    """Give a task the n-th worker, and return what it is sent."""
    at.here.grant(at.here.requests[-1].lease, at.workers[n])
    await at.settled()
    sent: hot.Task = at.workers[n].tasks[-1]
    assert (sent.id, sent.attempt) == (task.id, task.attempt)
    return sent


def loss(at: Scene, n: int, task: OwnedTask, reason: hot.LossReason, oom: int = -1) -> None:
    """The raylet says that the n-th worker is gone."""
    gone, lease = at.workers[n], at.here.requests[-1].lease
    at.here.holder.lost(
        hot.WorkerLost(lease, gone.id, f"w{n}", "it was killed", task.id, reason, oom)
    )


@simulated
async def test_a_result_of_an_attempt_that_was_given_up_is_not_the_tasks() -> None:
    async with scene() as at:
        task = at.task(retries=1)
        at.submit.submit([task])
        await at.settled()
        old = await begun(at, task)
        at.here.holder.lost(
            hot.WorkerLost(at.here.requests[0].lease, at.workers[0].id, "", "late", task.id)
        )
        await at.settled()
        new = await begun(at, task, 1)
        at.workers[0].finish(old)
        await at.settled()
        assert result_of(task) is None
        at.workers[1].finish(new)
        await at.settled()
        assert result_of(task) == Value(Form.INLINE, b"done")


@simulated
async def test_exceptions_spend_none_of_what_is_for_deaths() -> None:
    async with scene() as at:
        task = at.task(retries=1)
        at.submit.submit([task])
        await at.settled()
        at.workers[0].finish(await begun(at, task), retry=True)
        await at.settled()
        assert (task.attempt, result_of(task)) == (1, None)  # on the worker that it still has
        loss(at, 0, task, hot.LossReason.DIED)
        await anyio.sleep(0.2)
        assert (task.attempt, result_of(task)) == (2, None)
        at.workers[1].finish(await begun(at, task, 1), retry=True)
        await at.settled()
        assert result_of(task) == Value(Form.INLINE, b"raised")


@simulated
async def test_what_was_ended_for_want_of_memory_waits_and_then_fails_as_such() -> None:
    async with scene() as at:
        task = at.task(retries=1)
        at.submit.submit([task])
        await at.settled()
        await begun(at, task)
        loss(at, 0, task, hot.LossReason.OUT_OF_MEMORY, 1)
        await anyio.sleep(0.4)
        assert len(at.here.requests) == 1
        await anyio.sleep(0.7)
        await begun(at, task, 1)
        loss(at, 1, task, hot.LossReason.OUT_OF_MEMORY, 1)
        await at.settled()
        failed = result_of(task)
        assert failed is not None
        error = error_of(failed)
        assert isinstance(error, OutOfMemoryError)
        assert "attempt 2, the last that task_oom_retries=1 allows" in str(error)
        assert "it was killed" in str(error)


# ---- what cannot be sent -----------------------------------------------------------------

HALF = "\ud800"  # of a surrogate pair: no message can say it
GREEDY = replace(PLAIN, demand=Resources.of(CPU=2))


def unsent(task: OwnedTask) -> str:
    """Return why a task could not be sent."""
    value = result_of(task)
    assert value is not None
    error = error_of(value)
    assert isinstance(error, RaySystemError)
    return str(error)


@simulated
async def test_a_task_that_no_message_can_say_fails_alone() -> None:
    async with scene() as at:
        bad, good = [at.task(key=GREEDY) for _ in range(3)], at.task(key=GREEDY)
        for task in bad:
            task.name = HALF
        at.submit.submit([bad[0], bad[1], good, bad[2]])
        await at.settled()
        sent = await begun(at, good)
        at.workers[0].finish(sent)
        await at.settled()
        assert result_of(good) == Value(Form.INLINE, b"done")
        for task in bad:
            assert "cannot be sent to a worker: a message of Execute.run cannot be" in unsent(task)
        assert at.submit.unfinished == 0


@simulated
async def test_a_function_that_no_message_can_say_fails_each_of_its_tasks_and_no_other() -> None:
    async with scene() as at:
        tasks = [at.task(key=GREEDY) for _ in range(4)]
        at.submit.peers.definitions[2] = hot.Definition(2, b"", HALF, b"job!", b"o" * 28, "f")
        tasks[0].function = tasks[1].function = 2
        at.submit.submit(tasks)
        await at.settled()
        sent = await begun(at, tasks[2])
        at.workers[0].finish(sent)
        await at.settled()
        at.workers[0].finish(at.workers[0].tasks[-1])
        await at.settled()
        assert all("Execute.define cannot be encoded" in unsent(task) for task in tasks[:2])
        assert [result_of(task) for task in tasks[2:]] == [Value(Form.INLINE, b"done")] * 2


@simulated
async def test_a_lease_that_no_message_can_ask_for_fails_the_tasks_that_wanted_it() -> None:
    async with scene() as at:
        odd = replace(PLAIN, environment=cast(bytes, HALF))
        tasks = [at.task(key=odd) for _ in range(3)]
        other = at.task()
        at.submit.submit([*tasks, other])
        await at.settled()
        assert all("Leases.request cannot be encoded" in unsent(task) for task in tasks)
        at.workers[0].finish(await begun(at, other))


@simulated
async def test_tasks_wait_for_a_large_function_that_is_on_its_way() -> None:
    """They are more than a link keeps for a peer that does not read, and this one does."""
    async with scene() as at:
        large = bytes(LinkConfig().outbox_limit + MB)
        at.submit.peers.definitions[2] = hot.Definition(2, large, "g", b"job!", b"o" * 28, "g")
        tasks = [at.task(key=GREEDY) for _ in range(3)]
        tasks[0].function = tasks[1].function = 2
        at.submit.submit(tasks)
        await at.settled()
        at.here.grant(at.here.requests[0].lease, at.workers[0])
        for task in tasks:
            await anyio.sleep(1)
            assert at.workers[0].tasks[-1].id == task.id
            at.workers[0].finish(at.workers[0].tasks[-1])
        await at.settled()
        assert all(result_of(task) == Value(Form.INLINE, b"done") for task in tasks)


@simulated
async def test_a_task_that_waits_for_room_can_be_cancelled() -> None:
    async with scene() as at:
        large = bytes(LinkConfig().outbox_limit + MB)
        at.submit.peers.definitions[2] = hot.Definition(2, large, "g", b"job!", b"o" * 28, "g")
        tasks = [at.task(), at.task()]
        for task in tasks:
            task.function = 2
        [entry] = tasks[0].entries
        at.submit.submit(tasks)
        await at.settled()
        at._switch.cut([at.networks["w0"]])
        at.here.grant(at.here.requests[0].lease, at.workers[0])
        await at.settled()
        told: list[CancelOutcome] = []
        at.submit.cancel(tasks[0].id, force=False, recursive=True, told=told.append)
        assert told == [CancelOutcome.BEFORE_START]
        assert isinstance(error_from(tasks[0], entry), TaskCancelledError)
        at._switch.heal()
        await anyio.sleep(20)  # the worker is dialled again
        assert [task.id for task in at.workers[0].tasks] == [tasks[1].id]
        at.workers[0].finish(at.workers[0].tasks[0])


# ---- arguments that fail -----------------------------------------------------------------


def missing(at: Scene, owner: str = "") -> Entry:
    """An object that is not there yet."""
    at._numbers += 1
    entry = Entry(ObjectKey(at._numbers.to_bytes(28, "big")), KEEPER, owner, 1)
    at.owner.refs.add(entry)
    return entry


def failed(error: BaseException) -> Value:
    """What a task's worker sends when its code has raised this."""
    told = capture_task_error(error, function_name="g", pid=1, ip="ip", proctitle="raylite::g")
    return error_value(told)


def error_from(task: OwnedTask, entry: Entry) -> BaseException:
    assert entry.value is not None
    return error_of(entry.value)


@simulated
async def test_a_task_whose_argument_never_comes_fails_when_the_owner_of_that_dies() -> None:
    async with scene() as at:
        task = at.task(missing(at, "other"))
        [entry] = task.entries
        at.submit.submit([task])
        await at.settled()
        assert result_of(task) is None
        at.owner.process_died("other")
        error = error_from(task, entry)
        assert isinstance(error, OwnerDiedError)
        assert isinstance(error, RayTaskError)
        assert str(error).startswith("raylite::f() (not run)\n  At least one of the input")
        assert (at.here.requests, at.submit.unfinished) == ([], 0)


@simulated
async def test_a_task_fails_with_the_first_of_its_arguments_that_fails() -> None:
    async with scene() as at:
        late, bad = missing(at), missing(at)
        task = at.task(late, bad)
        [entry] = task.entries
        at.submit.submit([task])
        at.owner.complete(bad, failed(ValueError("seven")))
        error = error_from(task, entry)
        assert isinstance(error, ValueError)
        assert error.args[0].args == ("seven",)
        assert str(error).splitlines()[-1] == "ValueError: seven"
        at.owner.complete(late, Value(Form.INLINE, b"late"))
        await at.settled()
        assert (at.here.requests, at.submit.unfinished, late.submitted) == ([], 0, 0)


@simulated
async def test_a_task_with_an_argument_that_had_failed_before_asks_for_no_worker() -> None:
    async with scene() as at:
        bad = missing(at)
        at.owner.complete(bad, failed(KeyError("k")))
        task = at.task(bad, retries=3)
        at.submit.submit([task])
        assert isinstance(error_from(task, task.entries[0]), KeyError)
        await at.settled()
        assert at.here.requests == []


@simulated
async def test_a_long_chain_of_tasks_fails_with_its_first_one() -> None:
    """Neither are they nested in one another, nor does the text grow with each."""
    async with scene() as at:
        first = entry = missing(at)
        for _ in range(3000):
            task = at.task(entry)
            [entry] = task.entries
            at.submit.submit([task])
        at.owner.complete(first, failed(ValueError("first")))
        error = error_from(task, entry)
        assert isinstance(error, ValueError)
        assert len(str(error)) < 20_000
        assert str(error).splitlines()[-1] == "ValueError: first"
        assert (at.here.requests, at.submit.unfinished) == ([], 0)


class OwnError(RayError):
    """A class of the program's, which no owner may import."""


@simulated
async def test_an_error_that_takes_the_programs_code_to_read_is_left_to_a_worker() -> None:
    async with scene() as at:
        bad, late = missing(at), missing(at)
        task = at.task(bad, late)
        at.submit.submit([task])
        at.owner.complete(bad, error_value(OwnError()))
        await at.settled()
        assert at.here.requests == []
        at.owner.complete(late, Value(Form.INLINE, b"late"))
        await at.settled()
        sent = await begun(at, task)
        assert isinstance(error_of(sent.inputs[0].value), OwnError)
        at.workers[0].finish(sent)


@simulated
async def test_a_cancelled_task_whose_argument_fails_afterwards_stays_cancelled() -> None:
    async with scene() as at:
        bad = missing(at)
        task = at.task(bad)
        [entry] = task.entries
        at.submit.submit([task])
        at.submit.cancel(task.id, force=False, recursive=True)
        at.owner.complete(bad, failed(ValueError()))
        assert isinstance(error_from(task, entry), TaskCancelledError)
        await at.settled()
        assert at.submit.unfinished == 0


# ---- contention --------------------------------------------------------------------------


@simulated
async def test_leases_are_kept_again_only_when_nobody_waits_at_any_raylet() -> None:
    async with scene() as at:
        at.submit.submit([at.task(), at.task(at.stored(FAR))])
        await at.settled()
        [far] = [each.lease for each in at.here.requests if each.near]
        [near] = [each.lease for each in at.here.requests if not each.near]
        at.here.spill(far, "far")
        await at.settled()
        at.here.grant(near, at.workers[0])
        at.far.grant(far, at.workers[1])
        await at.settled()
        at.here.holder.wanted(b"")
        at.far.holder.wanted(b"")
        await at.settled()
        at.far.holder.unwanted(b"")
        await at.settled()
        at.workers[0].finish(at.workers[0].tasks[0])
        at.workers[1].finish(at.workers[1].tasks[0])
        await at.settled()
        assert (at.here.released, at.far.released) == ([near], [far])  # others wait at one still


# ---- what waits --------------------------------------------------------------------------


@simulated
async def test_what_waits_is_told_once_a_second_if_it_changed_and_when_nothing_does() -> None:
    async with scene() as at:
        tasks = [at.task() for _ in range(100)]
        at.submit.submit(tasks)
        await anyio.sleep(0.9)
        assert at.here.backlogs == []
        await anyio.sleep(10)
        assert at.here.backlogs == [(({"CPU": UNIT}, 96),)]  # four leases are asked for
        at.submit.submit([at.task() for _ in range(10)])
        await anyio.sleep(2)
        assert at.here.backlogs[1:] == [(({"CPU": UNIT}, 106),)]
        for request in at.here.requests:
            at.here.holder.problem(hot.LeaseProblem(request.lease, "never", is_final=True))
        await anyio.sleep(5)
        assert at.here.backlogs[-1] == ()
        told = len(at.here.backlogs)
        await anyio.sleep(60)
        assert len(at.here.backlogs) == told
