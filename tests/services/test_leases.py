"""The Lease service of a raylet, in virtual time: what holders ask of it."""

import anyio

from raylite._kernel.host import Host
from raylite._kernel.memory import MemoryNetwork
from raylite._kernel.service import Service, handles
from raylite._machines.picker import INFEASIBLE_GRACE
from raylite._protocol import raylet
from raylite._services.raylet.pool import PRESTART_AFTER
from raylite._types.resources import UNIT
from raylite._wire import hot
from raylite._wire.messages import raylet as msg
from tests.services.rig import simulated
from tests.services.test_membership import Site, running


class Hearing(Service, serves=(raylet.Holder,)):
    """Notes what a raylet tells a holder."""

    def __init__(self) -> None:
        self.losses: list[hot.WorkerLost] = []
        self.problems: list[hot.LeaseProblem] = []

    @handles(raylet.Holder.granted)
    def granted(self, grants: list[hot.LeaseGrant]) -> None: ...

    @handles(raylet.Holder.spilled)
    def spilled(self, spills: list[hot.Spilled]) -> None: ...

    @handles(raylet.Holder.problem)
    def problem(self, problems: list[hot.LeaseProblem]) -> None:
        self.problems += problems

    @handles(raylet.Holder.lost)
    def lost(self, losses: list[hot.WorkerLost]) -> None:
        self.losses += losses

    @handles(raylet.Holder.wanted)
    def wanted(self, nothing: bytes) -> None: ...

    @handles(raylet.Holder.unwanted)
    def unwanted(self, nothing: bytes) -> None: ...


LEASE = b"lease".ljust(36, b".")


async def driver(site: Site, name: str) -> tuple[MemoryNetwork, raylet.Leases]:
    """Register somebody who may hold leases."""
    network = site.network(name)
    await network.listen(name)
    link = network.connect("raylet")
    id = name.encode().ljust(28, b".")
    await raylet.Pool(link).register_driver(msg.RegisterDriver(id, b"job!", 7, name))
    return network, raylet.Leases(link)


@simulated
async def test_a_worker_that_its_holder_cannot_reach_is_ended_and_by_no_one_elses_word() -> None:
    site = Site()
    async with site.node(), site.gcs():
        await anyio.sleep(1)
        [token] = site.source.tokens
        worker = await site.register_worker(b"one")
        holder, leases = await driver(site, "holder")
        other, others = await driver(site, "other")
        leases.request(hot.LeaseRequest(LEASE, {"CPU": UNIT}, b"job!", 0))
        await anyio.sleep(1)
        assert site.raylet.leases.leases.statistics().lent == 1

        others.unreachable(LEASE)
        leases.unreachable(b"unknown")
        await anyio.sleep(1)
        assert site.source.killed == []
        leases.unreachable(LEASE)
        await anyio.sleep(1)
        assert site.source.killed == [token]
        for network in (worker, holder, other):
            await network.close()


@simulated
async def test_a_worker_ended_for_want_of_memory_is_missed_for_that_reason() -> None:
    site = Site()
    async with site.node(), site.gcs():
        await anyio.sleep(1)
        [token] = site.source.tokens
        worker = await site.register_worker(b"one")
        holder, leases = await driver(site, "holder")
        hearing = Hearing()
        async with running(Host(holder, hearing)):
            leases.request(hot.LeaseRequest(LEASE, {"CPU": UNIT}, b"job!", 0))
            await anyio.sleep(1)
            [member] = site.raylet.pool.workers()
            site.raylet.pool.end(member.id, "no memory", hot.LossReason.OUT_OF_MEMORY)
            assert site.source.killed == [token]
            site.raylet.pool.ended(token, "SIGKILL", was_killed=True)
            await anyio.sleep(1)
            [loss] = hearing.losses
            assert (loss.cause, loss.reason) == ("no memory", hot.LossReason.OUT_OF_MEMORY)
            assert loss.oom_retries == -1
        await worker.close()


@simulated
async def test_what_no_node_can_run_is_refused_when_nobody_has_added_one() -> None:
    site = Site()
    async with site.node(), site.gcs():
        await anyio.sleep(1)
        holder, leases = await driver(site, "holder")
        hearing = Hearing()
        async with running(Host(holder, hearing)):
            leases.request(hot.LeaseRequest(LEASE, {"GPU": 2 * UNIT}, b"job!", 0))
            await anyio.sleep(INFEASIBLE_GRACE - 1)
            [warning] = hearing.problems
            assert not warning.is_final
            await anyio.sleep(3)
            [_, refusal] = hearing.problems
            assert refusal.is_final
            assert "no node has 2 GPUs (largest: 0)" in refusal.message
            assert site.raylet.leases.demand() == ((), ())


@simulated
async def test_a_raylet_says_what_a_lease_waits_for() -> None:
    site = Site()
    async with site.node(), site.gcs():
        await anyio.sleep(1)
        holder, leases = await driver(site, "holder")
        names = [bytes([n]).ljust(36, b".") for n in range(1, 5)]
        async with running(Host(holder, Hearing())):
            for name, demand in zip(
                names, [{"CPU": UNIT}, {"CPU": UNIT}, {"CPU": UNIT}, {"GPU": UNIT}], strict=True
            ):
                leases.request(hot.LeaseRequest(name, demand, b"job!", 0))
            await anyio.sleep(5)
            told = [await leases.explain(name) for name in [*names, b"unknown".ljust(36, b".")]]
            assert [each.text for each in told] == [
                "it starts a worker for it",
                "0 of 1 CPU are free and 0 requests are before it",
                "0 of 1 CPU are free and 1 request is before it",
                "no node has 1 GPU (largest: 0); lower num_gpus or add a node",
                "it does not know of it: it has just been granted or withdrawn",
            ]
            assert all(4.9 < each.seconds < 5.1 for each in told[:4])


@simulated
async def test_a_deep_recursion_is_told_of_once_and_its_lease_says_what_it_waits_for() -> None:
    site = Site()
    async with site.node(), site.gcs():
        await anyio.sleep(1)
        holder, leases = await driver(site, "holder")
        hearing, workers, texts = Hearing(), list[MemoryNetwork](), []
        async with running(Host(holder, hearing)):
            for depth in range(27):
                name = bytes([depth]).ljust(36, b".")
                leases.request(hot.LeaseRequest(name, {"CPU": UNIT}, b"job!", depth))
                while not site.source.tokens:
                    await anyio.sleep(0.01)
                    texts.append((await leases.explain(name)).text)
                workers.append(await site.register_worker(f"worker {depth}".encode()))
                await anyio.sleep(0.001)
                raylet.Leases(workers[-1].connect("raylet")).blocked(b"")
                await anyio.sleep(0.001)
            [warning] = hearing.problems
            assert not warning.is_final
            assert warning.message.startswith("More than 19 tasks on this node wait in get() for ")
        told = [text for text in texts if "slowly" in text]
        assert told[0].startswith(
            "20 of its workers are at work, of which 19 wait for other tasks:"
        )
        assert "the next in 0.9 s" in "".join(told)
        for network in workers:
            await network.close()


@simulated
async def test_workers_start_ahead_once_a_driver_has_come() -> None:
    site = Site()
    async with site.node(), site.gcs():
        await anyio.sleep(PRESTART_AFTER / 2)
        assert site.source.tokens == []  # the node has itself to start
        network, _ = await driver(site, "driver")
        assert len(site.source.tokens) == 1
        await anyio.sleep(2 * PRESTART_AFTER)
        assert len(site.source.tokens) == 1
        await network.close()


@simulated
async def test_workers_start_ahead_also_where_no_driver_is() -> None:
    site = Site()
    async with site.node(), site.gcs():
        await anyio.sleep(PRESTART_AFTER + 0.01)
        assert len(site.source.tokens) == 1
