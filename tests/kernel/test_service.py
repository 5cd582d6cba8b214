"""A service: what is checked when its class is made, and what its callers can rely on."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from raylite._kernel.host import Host
from raylite._kernel.interface import Interface, batch, call, feed, post
from raylite._kernel.link import Link
from raylite._kernel.memory import MemoryNetwork, Switch
from raylite._kernel.service import Service, every, handles
from raylite.exceptions import (
    PeerLostError,
    ProtocolError,
    RemoteHandlerError,
    UnavailableError,
)
from raylite.testing.loop import SimLoop


class Counter(Interface):
    add = call(int, int)
    add_later = call(int, int)
    set = post(int)
    set_later = post(int)
    all = batch(int)
    upto = feed(int, int)
    whoami = call(int, str)
    whoami_later = call(int, str)
    whoami_feed = feed(int, str)


class CounterService(Service, serves=(Counter,)):
    def __init__(self) -> None:
        self.total = 0
        self.swept = 0
        self.hold = asyncio.Event()
        self.began = asyncio.Event()
        self.told: list[str] = []

    @handles(Counter.add)
    def add(self, amount: int) -> int:
        if amount < 0:
            raise ValueError("a bug")
        self.total += amount
        return self.total

    @handles(Counter.add_later)
    async def add_later(self, amount: int) -> int:
        self.began.set()
        await self.hold.wait()
        if amount < 0:
            raise ValueError("a bug")
        self.total += amount
        return self.total

    @handles(Counter.set)
    def set(self, total: int) -> None:
        if total < 0:
            raise UnavailableError("below zero")
        self.total = total

    @handles(Counter.set_later)
    async def set_later(self, total: int) -> None:
        await asyncio.sleep(0)
        self.set(total)

    @handles(Counter.all)
    def all(self, items: list[int]) -> None:
        self.total += sum(items)

    @handles(Counter.upto)
    async def upto(self, end: int) -> AsyncIterator[int]:
        for number in range(end):
            if number == 3:
                raise ValueError("a bug")
            yield number

    @handles(Counter.whoami)
    def whoami(self, _: int) -> str:
        return self.caller.peer

    @handles(Counter.whoami_later)
    async def whoami_later(self, _: int) -> str:
        return self.caller.peer

    @handles(Counter.whoami_feed)
    async def whoami_feed(self, _: int) -> AsyncIterator[str]:
        yield self.caller.peer

    @every(seconds=10.0)
    def sweep(self) -> None:
        self.swept += 1

    async def started(self) -> None:
        self.told.append("started")

    async def stopped(self) -> None:
        self.told.append("stopped")


class Stage:
    """A counter, hosted, and any number of clients with an address of their own."""

    def __init__(self) -> None:
        self.switch = Switch()
        self.service = CounterService()
        self.there = MemoryNetwork(self.switch)
        self.host = Host(self.there, self.service)
        self.clients: list[MemoryNetwork] = []

    async def link(self, name: str = "here") -> Link:
        if not self.there.address:
            await self.there.listen("there")
            self.running = asyncio.ensure_future(self.host.run())
        client = MemoryNetwork(self.switch)
        await client.listen(name)
        self.clients.append(client)
        link = client.connect("there")
        await link.wait_attached()
        return link

    async def end(self) -> None:
        for client in self.clients:
            await client.close()
        self.host.stop()
        await self.running


def play(scene: Callable[[Stage], Any]) -> None:
    async def main() -> None:
        stage = Stage()
        await scene(stage)
        await stage.end()

    SimLoop().run(main())


# ---- the class ---------------------------------------------------------------------------


def test_a_service_without_a_handler_for_a_route_cannot_be_made() -> None:
    with pytest.raises(TypeError, match=r"Half serves Counter\.add but has no handler"):

        class Half(Service, serves=(Counter,)):
            pass


def test_two_handlers_for_a_route_cannot_be_made() -> None:
    with pytest.raises(TypeError, match=r"Twice has two handlers for Counter\.set"):

        class Twice(Service):
            @handles(Counter.set)
            def one(self, total: int) -> None: ...

            @handles(Counter.set)
            def other(self, total: int) -> None: ...


def test_a_feeds_handler_must_yield_and_no_other_may() -> None:
    async def no_stream(self: Any, end: int) -> int:
        return end

    async def stream(self: Any, amount: int) -> AsyncIterator[int]:
        yield amount

    with pytest.raises(TypeError, match="a feed's handler yields"):
        type("Dry", (Service,), {"upto": handles(Counter.upto)(no_stream)})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="only a feed's handler yields"):
        type("Wet", (Service,), {"add": handles(Counter.add)(stream)})  # type: ignore[arg-type]


def test_a_batchs_handler_must_be_atomic() -> None:
    async def later(self: Any, items: list[int]) -> None: ...

    with pytest.raises(TypeError, match="must be a plain `def`"):
        type("Later", (Service,), {"all": handles(Counter.all)(later)})  # type: ignore[arg-type]


def test_a_subclass_may_override_a_handler() -> None:
    class Doubling(CounterService):
        def add(self, amount: int) -> int:
            self.total += 2 * amount
            return self.total

    async def scene(stage: Stage) -> None:
        stage.service = Doubling()
        stage.there.host(stage.service)
        stage.host = Host(stage.there, stage.service)
        assert await Counter(await stage.link()).add(21) == 42

    play(scene)


# ---- handling ----------------------------------------------------------------------------


def test_the_caller_is_the_link_that_the_message_came_on() -> None:
    async def scene(stage: Stage) -> None:
        links = [await stage.link(name) for name in ("one", "two", "three")]
        for ask in ("whoami", "whoami_later"):
            asked = [getattr(Counter(link), ask)(0) for link in links]
            assert await asyncio.gather(*asked) == ["one", "two", "three"]
        feeds = [anext(aiter(Counter(link).whoami_feed(0))) for link in links]
        assert await asyncio.gather(*feeds) == ["one", "two", "three"]

    play(scene)


def test_what_is_handled_is_counted() -> None:
    async def scene(stage: Stage) -> None:
        counter = Counter(await stage.link())
        for _ in range(3):
            counter.set(5)
        await counter.add(1)
        statistics = stage.service.statistics()
        assert statistics.handled == {"Counter.set": 3, "Counter.add": 1}
        assert statistics.waiting == 0

    play(scene)


def test_periodic_work_runs_again_and_again_between_start_and_stop() -> None:
    async def scene(stage: Stage) -> None:
        await stage.link()
        await asyncio.sleep(35)
        assert stage.service.swept == 3
        assert stage.service.told == ["started"]
        await stage.end()
        assert stage.service.told == ["started", "stopped"]

    play(scene)


def test_an_error_of_a_handler_that_nobody_waits_for_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scene(stage: Stage) -> None:
        counter = Counter(await stage.link())
        counter.set(-1)
        counter.set_later(-1)
        assert await counter.add(0) == 0
        await asyncio.sleep(1)

    with caplog.at_level(logging.WARNING):
        play(scene)
    assert [record.getMessage() for record in caplog.records] == [
        "Counter.set from here failed: below zero",
        "Counter.set_later from here failed: below zero",
    ]


# ---- bugs --------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", ["add", "add_later"])
def test_a_bug_ends_the_service_and_every_caller_hears_of_it(ask: str) -> None:
    async def scene() -> None:
        stage = Stage()
        counter = Counter(await stage.link())
        waiting = asyncio.ensure_future(counter.add_later(1))
        await stage.service.began.wait()
        guilty = asyncio.ensure_future(getattr(counter, ask)(-1))
        queued = asyncio.ensure_future(counter.add(1)) if ask == "add" else None
        if ask == "add_later":
            await asyncio.sleep(1)
            stage.service.hold.set()
        with pytest.raises(RemoteHandlerError, match=f"Counter.{ask} crashed: ValueError: a bug"):
            await guilty
        if queued is not None:
            with pytest.raises((UnavailableError, PeerLostError)):
                await queued
            with pytest.raises((UnavailableError, PeerLostError)):
                await waiting
        with pytest.raises(ValueError, match="a bug"):
            await stage.running
        await waiting if ask == "add_later" else None
        for client in stage.clients:
            await client.close()

    SimLoop().run(scene())


def test_a_bug_in_a_feed_reaches_its_reader_after_what_was_yielded() -> None:
    async def scene() -> None:
        stage = Stage()
        read = []
        with pytest.raises(RemoteHandlerError, match="a bug"):
            async for number in Counter(await stage.link()).upto(10):
                read.append(number)  # noqa: PERF401 - until it raises
        assert read == [0, 1, 2]
        with pytest.raises(ValueError, match="a bug"):
            await stage.running
        for client in stage.clients:
            await client.close()

    SimLoop().run(scene())


def test_a_service_that_has_ended_says_so_while_its_host_lives() -> None:
    """As when a supervisor is about to rebuild it: callers must not wait for ever."""

    async def scene() -> None:
        switch, service = Switch(), CounterService()
        there, here = MemoryNetwork(switch), MemoryNetwork(switch)
        there.host(service)
        await there.listen("there")
        running = asyncio.ensure_future(service.run())
        counter = Counter(here.connect("there"))
        talking = asyncio.ensure_future(counter.add_later(1))
        await service.began.wait()
        unbegun = asyncio.ensure_future(counter.add_later(2))
        await here.connect("there").wait_received()
        running.cancel()
        for waiting in (talking, unbegun):
            with pytest.raises(UnavailableError, match="CounterService ended before it answered"):
                await waiting
        with pytest.raises(UnavailableError, match=r"the service that answers Counter\.add has"):
            await counter.add(1)
        counter.set(1)
        await here.connect("there").wait_received()
        rebuilt = CounterService()
        there.host(rebuilt)
        running = asyncio.ensure_future(rebuilt.run())
        assert await counter.add(1) == 1
        running.cancel()
        await here.close()
        await there.close()

    SimLoop().run(scene())


def test_a_message_that_cannot_be_decoded_fails_its_call_or_ends_its_link() -> None:
    class Other(Interface):
        add = call(str, int)
        set = post(str)

    Other.add.number, Other.set.number = Counter.add.number, Counter.set.number

    async def scene(stage: Stage) -> None:
        link = await stage.link()
        with pytest.raises(ProtocolError, match="not a int"):
            await Other(link).add("one")
        Other(link).set("one")
        with pytest.raises(PeerLostError, match="protocol error"):
            await Counter(link).add(1)

    play(scene)
