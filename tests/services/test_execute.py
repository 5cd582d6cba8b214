"""The Execute service alone: what owners say late, twice, of other attempts, or just before they die."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio

from raylite._kernel.arena import HeapArena
from raylite._kernel.host import Host
from raylite._kernel.link import Link
from raylite._kernel.memory import MemoryNetwork, Switch
from raylite._kernel.service import Service, handles
from raylite._machines.streams import ENDLESS
from raylite._protocol import worker
from raylite._runtime.attach import attach_worker
from raylite._services.worker.execute import ExecuteService, Job
from raylite._services.worker.producer import Gate, Producer, ThreadGate
from raylite._types import board
from raylite._types.resources import UNIT
from raylite._wire import hot
from raylite.testing.sim import World
from tests.services.rig import simulated
from tests.services.test_attach import QuickRaylet, Shelf

TASK = b"t" * 24
DEFINITION = hot.Definition(7, b"", "g", b"job!", b"p" * 28, "g")
STREAM = hot.Streaming(0, 3, False)


class Gated(Shelf):
    """An executor that begins nothing, streams neither."""

    def new_gate(self, job: Job) -> Gate:
        return ThreadGate()


class Submitting(Service, serves=(worker.Submit,)):
    """An owner that notes what comes back."""

    def __init__(self) -> None:
        self.results_heard: list[hot.Result] = []
        self.back: list[hot.GivenBack] = []

    @handles(worker.Submit.results)
    def results(self, results: list[hot.Result]) -> None:
        self.results_heard += results

    @handles(worker.Submit.items)
    def items(self, items: list[hot.StreamItems]) -> None: ...

    @handles(worker.Submit.given_back)
    def given_back(self, returned: list[hot.GivenBack]) -> None:
        self.back += returned

    @handles(worker.Submit.leaving)
    def leaving(self, nothing: bytes) -> None: ...


@dataclass
class Bench:
    """A worker, and an owner that is about to say something."""

    execute: ExecuteService
    shelf: Gated
    owner: Submitting
    says: worker.Execute  # what the owner tells the worker
    link: Link  # the worker's end of theirs

    def jobs(self) -> list[Job]:
        """What was begun of this owner's."""
        return [job for job in self.shelf.jobs if job.link is self.link]

    def producer(self) -> Producer:
        return self.execute.producers.table[TASK]


async def settled() -> None:
    await anyio.sleep(0.01)


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    switch, world, shelf = Switch(), World(1), Gated()
    networks = [MemoryNetwork(switch, world.seams(name)) for name in ("raylet", "worker", "owner")]
    raylet, own, other = networks
    for network, name in zip(networks, ("raylet", "worker", "owner"), strict=True):
        await network.listen(name)
    owner = Submitting()
    hosts = [Host(raylet, QuickRaylet(raylet, shelf)), Host(other, owner)]
    running = [host.start("played") for host in hosts]
    arena = HeapArena((1 << 20) + board.SIZE)
    attachment = await attach_worker(own, "raylet", arena, b"w" * 28, 1, shelf, 1.0)
    assert attachment.execute is not None
    says = worker.Execute(other.connect("worker"))
    says.define(DEFINITION)
    await settled()
    link = next(
        link
        for link in own.links
        if link in attachment.execute._submitters and link.peer == "owner"
    )
    try:
        yield Bench(attachment.execute, shelf, owner, says, link)
    finally:
        await attachment.detach()
        for host, task in zip(hosts, running, strict=True):
            host.stop()
            await task
        for network in networks:
            await network.close()
        arena.close()


def streaming(attempt: int = 0) -> hot.Task:
    return hot.Task(TASK, attempt, 7, b"", stream=STREAM)


def terms(until: int, attempt: int = 0, *, is_abandoned: bool = False) -> hot.StreamTerms:
    return hot.StreamTerms(TASK, attempt, until, is_abandoned)


@simulated
async def test_what_an_owner_said_before_it_died_begins_nothing() -> None:
    """It may wait in the mailbox when the link ends, and then be handled."""
    async with bench() as at:
        at.link.confirm_dead("it was killed")
        assert at.link not in at.execute._submitters
        at.execute.caller = at.link
        at.execute.define([DEFINITION])
        at.execute.hold([hot.Holding({"CPU": UNIT})])
        at.execute.run_tasks([streaming(), hot.Task(b"u" * 24, 0, 7, b"")])
        at.execute.allow([terms(9)])
        at.execute.cancel([hot.Cancel(TASK, 0, force=True, recursive=True)])
        at.execute.give_back(b"")
        await settled()
        assert at.jobs() == []
        assert at.execute.producers.table == {}
        assert at.link not in at.execute._submitters
        assert at.link not in at.execute._holdings
        assert not [key for key in at.execute._definitions if key[0] is at.link]


@simulated
async def test_how_far_a_generator_may_go_is_what_was_said_last_of_its_attempt() -> None:
    async with bench() as at:
        at.says.run(streaming(attempt=1))
        for each in (terms(5, 1), terms(5, 1), terms(9, 0), terms(9, 2)):
            at.says.allow(each)
        at.says.allow(hot.StreamTerms(b"x" * 24, 0, 9, False))  # of a task that is not here
        await settled()
        assert (at.producer().until, at.producer().is_abandoned) == (5, False)
        at.says.allow(terms(ENDLESS, 1, is_abandoned=True))
        await settled()
        assert at.producer().is_abandoned


@simulated
async def test_a_generator_whose_owner_died_yields_no_more_whatever_that_had_allowed() -> None:
    async with bench() as at:
        at.says.run(streaming())
        await settled()
        producer = at.producer()
        at.link.confirm_dead("it was killed")
        assert (producer.is_orphan, producer.is_wanted, producer.must_wait) == (True, False, False)
        at.execute.caller = at.link
        at.execute.allow([terms(4)])
        assert (producer.is_orphan, producer.is_wanted, producer.must_wait) == (True, False, False)


@simulated
async def test_what_is_allowed_after_a_task_has_been_given_back_is_nothing() -> None:
    async with bench() as at:
        at.says.run(streaming())
        await settled()
        at.says.give_back(b"")
        at.says.allow(terms(9))
        await settled()
        assert at.owner.back == [hot.GivenBack(TASK, 0)]
        assert at.execute.producers.table == {}
