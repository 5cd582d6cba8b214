"""The simulated loop and network: the same run every time, and a hang is an exception."""

import asyncio
import contextvars
import random
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import msgspec
import pytest
from anyio._backends._asyncio import CancelScope

from raylite._kernel.host import Host
from raylite._kernel.interface import Interface, call, feed, post
from raylite._kernel.link import LinkConfig
from raylite._kernel.network import Probe
from raylite._kernel.seams import now
from raylite._kernel.service import Service, every, handles
from raylite._kernel.topic import Topic
from raylite.exceptions import PeerLostError
from raylite.testing import loop as loop_module
from raylite.testing.loop import PROCESS, Clock, Hang, Process, SimLoop
from raylite.testing.sim import SimNetwork, World

# ---- time --------------------------------------------------------------------------------


def test_a_thousand_seconds_pass_in_no_time() -> None:
    async def main() -> float:
        await asyncio.sleep(1000)
        return now()

    assert SimLoop().run(main()) == 1000.0


def test_timers_fire_in_the_order_of_their_times() -> None:
    fired: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for delay in (3, 1, 2):
            loop.call_later(delay, fired.append, delay)
        await asyncio.sleep(5)

    SimLoop().run(main())
    assert fired == [1, 2, 3]


def test_anyio_deadlines_are_in_virtual_time() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            with anyio.fail_after(50):
                await anyio.sleep_forever()
        with anyio.move_on_after(10) as scope:
            await anyio.sleep(5)
        assert not scope.cancelled_caught
        return anyio.current_time()

    assert SimLoop().run(main()) == 55.0


# ---- hangs -------------------------------------------------------------------------------


def test_a_wait_for_what_never_comes_is_a_hang_that_names_who_waits() -> None:
    async def wait_for_godot() -> None:
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        await asyncio.create_task(wait_for_godot(), name="vladimir")

    with pytest.raises(Hang, match="every task waits and no timer is set") as caught:
        SimLoop().run(main())
    assert "main waits at" in str(caught.value)
    line = wait_for_godot.__code__.co_firstlineno + 1
    assert f"vladimir waits at {__file__}:{line}" in str(caught.value)


def test_sleeping_for_ever_is_a_hang() -> None:
    with pytest.raises(Hang):
        SimLoop().run(anyio.sleep_forever())


def test_periodic_timers_do_not_hide_a_hang() -> None:
    async def beat() -> None:
        while True:
            await asyncio.sleep(1)

    async def main() -> None:
        beating = asyncio.create_task(beat())
        await asyncio.get_running_loop().create_future()
        await beating

    with pytest.raises(Hang, match="not done after 100 virtual seconds"):
        SimLoop().run(main(), within=100)


def test_a_program_that_never_waits_for_time_is_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        while True:
            await asyncio.sleep(0)

    monkeypatch.setattr(loop_module, "STEPS", 1000)
    with pytest.raises(Hang, match="no end after 1000 callbacks"):
        SimLoop().run(main())


def test_an_exception_of_the_program_comes_out_and_its_tasks_are_cancelled() -> None:
    cancelled: list[str] = []

    async def wait() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append("cleaned up")

    async def main() -> None:
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(1)
        assert not waiting.done()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        SimLoop().run(main())
    assert cancelled == ["cleaned up"]


# ---- threads -----------------------------------------------------------------------------


def test_threads_are_refused() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="tried to run len in a thread; use Seams"):
            asyncio.get_running_loop().run_in_executor(None, len, "")
        with pytest.raises(RuntimeError, match="in a thread; use Seams"):
            await asyncio.to_thread(len, "")

    SimLoop().run(main())


def test_a_thread_cannot_wake_the_loop() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as pool:
            with pytest.raises(RuntimeError, match="a thread tried to wake"):
                pool.submit(loop.call_soon_threadsafe, print).result()

    SimLoop().run(main())


def test_each_life_of_a_host_has_randomness_of_its_own() -> None:
    world, same, other = World(1), World(1), World(2)
    draw = world.seams("a").random("x").random()
    assert same.seams("a").random("x").random() == draw
    assert same.seams("a").random("x").random() != draw, "another life of the host"
    assert same.seams("b").random("x").random() != draw
    assert other.seams("a").random("x").random() != draw


def test_what_a_host_does_in_a_thread_takes_virtual_time() -> None:
    async def main() -> float:
        assert await World(1).seams("a").to_thread(len, "four") == 4
        return now()

    assert 0 < SimLoop().run(main()) < 0.1


# ---- determinism -------------------------------------------------------------------------


async def _cancelled_together(count: int) -> list[int]:
    """Tasks in nested scopes and groups, all cancelled at once: in which order do they hear it?"""
    order: list[int] = []

    async def nested(number: int) -> None:
        with anyio.CancelScope():
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(anyio.sleep_forever)
                    await anyio.sleep_forever()
            finally:
                order.append(number)

    async def plain(number: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            order.append(number)

    with anyio.move_on_after(1):
        async with anyio.create_task_group() as tasks:
            for number in range(count):
                tasks.start_soon(nested if number % 2 else plain, number)
            await anyio.sleep_forever()
    with pytest.raises(ZeroDivisionError):
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(count, 2 * count):
                    group.create_task(plain(number))
                await asyncio.sleep(1)
                raise ZeroDivisionError
        except* ZeroDivisionError as errors:
            raise errors.exceptions[0] from None
    return order


def test_cancellation_comes_in_the_same_order_every_time() -> None:
    def run() -> tuple[list[int], str]:
        loop = SimLoop()
        return loop.run(_cancelled_together(12)), loop.trace

    padding: list[Any] = []
    first = run()
    for _ in range(4):
        padding.append([object() for _ in range(random.randrange(5000))])  # move addresses about
        assert run() == first
    assert sorted(first[0]) == list(range(24))


def test_anyio_is_as_it_was_after_a_simulation() -> None:
    before = CancelScope.__init__
    SimLoop().run(asyncio.sleep(1))
    assert CancelScope.__init__ is before


def test_what_happens_outside_callbacks_can_be_put_into_the_trace() -> None:
    one, other = SimLoop(), SimLoop()
    one.run(asyncio.sleep(1))
    other.note("something")
    other.run(asyncio.sleep(1))
    assert one.trace != other.trace


# ---- a cluster in miniature --------------------------------------------------------------


class Beat(msgspec.Struct, array_like=True, frozen=True):
    node: str


class Event(msgspec.Struct, array_like=True, frozen=True):
    node: str
    is_alive: bool


class Members(Interface):
    join = call(Beat, None)
    beat = post(Beat)
    watch = feed(Beat, Event)


class MemberService(Service, serves=(Members,)):
    """Who is there: silence longer than the grace is a death."""

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.heard: dict[str, float] = {}
        self.events = Topic[Event]()

    @handles(Members.join)
    def join(self, beat: Beat) -> None:
        self.heard[beat.node] = now()
        self.events.publish(Event(beat.node, is_alive=True))

    @handles(Members.beat)
    def beat(self, beat: Beat) -> None:
        if beat.node in self.heard:
            self.heard[beat.node] = now()

    @handles(Members.watch)
    async def watch(self, request: Beat) -> AsyncIterator[Event]:
        with self.events.subscribe([Event(node, is_alive=True) for node in self.heard]) as events:
            async for event in events:
                yield event

    @every(seconds=1.0)
    def sweep(self) -> None:
        for node, heard in list(self.heard.items()):
            if now() - heard > self.grace:
                del self.heard[node]
                self.events.publish(Event(node, is_alive=False))


async def _partition(seed: int) -> float:
    """Return how long after the cut the watcher heard of the death."""
    world = World(seed, delay=0.5)
    there = SimNetwork(world, "gcs")
    await there.listen("gcs")
    host = Host(there, MemberService(grace=30))
    running = asyncio.create_task(host.run())
    node, watcher = SimNetwork(world, "node"), SimNetwork(world, "watcher")
    members = Members(node.connect("gcs"))
    await members.join(Beat("node"))

    async def beat() -> None:
        while True:
            members.beat(Beat("node"))
            await anyio.sleep(5)

    beating = asyncio.create_task(beat())
    events = aiter(Members(watcher.connect("gcs")).watch(Beat("")))
    assert await anext(events) == Event("node", is_alive=True)

    silently = seed % 2 == 0
    world.cut("node", "gcs", silently=silently)
    await anyio.sleep(15)
    world.heal("node", "gcs")  # a short cut is survived
    await anyio.sleep(60)
    world.cut("node", "gcs", silently=silently)
    cut_at = now()
    assert await anext(events) == Event("node", is_alive=False)
    heard_at = now()

    world.heal("node", "gcs")
    await anyio.sleep(60)
    beating.cancel()
    for network in (node, watcher):
        await network.close()
    host.stop()
    await running
    return heard_at - cut_at


@pytest.mark.sim
@pytest.mark.parametrize("seed", range(10))
def test_a_node_cut_off_longer_than_the_grace_dies_once_and_the_run_repeats(seed: int) -> None:
    one, other = SimLoop(), SimLoop()
    took = one.run(_partition(seed))
    assert took == pytest.approx(30, abs=9)
    assert other.run(_partition(seed)) == took
    assert one.trace == other.trace


@pytest.mark.sim
def test_another_seed_is_another_run() -> None:
    traces = set()
    for seed in range(5):
        loop = SimLoop()
        loop.run(_partition(seed))
        traces.add(loop.trace)
    assert len(traces) == 5


@pytest.mark.sim
def test_a_killed_host_is_lost_after_the_session_timeout_and_its_address_is_free() -> None:
    async def main() -> None:
        world = World(3)
        config = LinkConfig(session_timeout=60)
        there = SimNetwork(world, "gcs", config)
        await there.listen("gcs")
        service = MemberService(grace=30)
        host = Host(there, service)
        running = asyncio.create_task(host.run())
        here = SimNetwork(world, "node", config)
        members = Members(here.connect("gcs"))
        await members.join(Beat("node"))
        world.kill("gcs")
        killed_at = now()
        with pytest.raises(PeerLostError, match="nobody answers at gcs") as caught:
            await members.join(Beat("node"))
        assert not caught.value.confirmed
        assert now() - killed_at == pytest.approx(60, abs=1)
        host.stop()
        await running

        again = SimNetwork(world, "gcs", config)
        await again.listen("gcs")
        with pytest.raises(OSError, match="gcs is taken"):
            await SimNetwork(world, "other").listen("gcs")
        assert again.incarnation != there.incarnation
        for network in (here, again):
            await network.close()

    SimLoop().run(main())


@pytest.mark.sim
def test_a_reset_is_not_noticed_above_the_session() -> None:
    async def main() -> int:
        world = World(4, delay=0.01)
        there = SimNetwork(world, "gcs")
        await there.listen("gcs")
        service = MemberService(grace=1e6)
        host = Host(there, service)
        running = asyncio.create_task(host.run())
        here = SimNetwork(world, "node")
        members = Members(here.connect("gcs"))
        joins = [asyncio.create_task(_join(members, number)) for number in range(100)]
        for _ in range(30):
            await asyncio.sleep(0.03)
            world.reset("node", "gcs")
        await asyncio.gather(*joins)
        assert service.statistics().handled == {"Members.join": 100}
        await here.close()
        host.stop()
        await running
        return len(service.heard)

    assert SimLoop().run(main()) == 100


async def _join(members: Members, number: int) -> None:
    await asyncio.sleep(number * 0.01)
    await members.join(Beat(f"node {number}"))


# ---- processes that stand still ----------------------------------------------------------


class Echo(Interface):
    say = call(Beat, Event)
    tell = post(Beat)


class EchoService(Service, serves=(Echo,)):
    """Answers; and notes what it is told, and when it looked at its clock."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, float]] = []

    @handles(Echo.say)
    def say(self, request: Beat) -> Event:
        return Event(request.node, is_alive=True)

    @handles(Echo.tell)
    def tell(self, request: Beat) -> None:
        self.noted.append((request.node, now()))

    @every(seconds=1.0)
    def look(self) -> None:
        self.noted.append(("look", now()))


async def _echo(world: World) -> tuple[EchoService, Echo]:
    """Start a host that answers, and reach it from another."""
    service = EchoService()
    with world.at("n1/there"):
        there = SimNetwork(world, "n1/there")
        await there.listen("n1/there")
        running = Host(there, service).start("there")
    assert not running.done()
    echo = Echo(SimNetwork(world, "n2/here").connect("n1/there"))
    await echo.say(Beat("first"))
    return service, echo


@pytest.mark.parametrize("seed", range(4))
def test_a_frozen_process_does_nothing_and_then_everything_at_once(seed: int) -> None:
    async def main() -> None:
        world = World(seed)
        service, echo = await _echo(world)
        await asyncio.sleep(0.5)
        service.noted.clear()
        world.freeze("n1/there")
        world.freeze("n1/there")
        echo.tell(Beat("one"))
        echo.tell(Beat("two"))
        answer = asyncio.create_task(echo.say(Beat("three")))
        await asyncio.sleep(4.0)
        assert service.noted == [], "no packet is read, no timer fires"
        assert not answer.done()
        world.thaw("n1/there")
        await answer
        names = [name for name, _ in service.noted]
        assert sorted(names) == ["look", "one", "two"], "a timer that is late fires once"
        assert names.index("one") < names.index("two")
        assert {round(at, 1) for _, at in service.noted} == {4.5}

    SimLoop().run(main())


@pytest.mark.parametrize("timers_first", [False, True])
def test_what_waited_before_a_freeze_comes_first_and_then_timers_or_packets(
    timers_first: bool,
) -> None:
    done: list[str] = []

    async def main() -> None:
        loop, process = asyncio.get_running_loop(), Process()
        assert isinstance(loop, SimLoop)
        context = contextvars.copy_context()
        context.run(PROCESS.set, process)
        loop.call_later(1.0, done.append, "timer", context=context)
        loop.call_later(2.0, done.append, "later timer", context=context)
        loop.call_soon(done.append, "before", context=context)
        loop.freeze(process)
        for packet in ("packet", "next packet"):
            loop.call_soon(done.append, packet, context=context)
        await asyncio.sleep(3.0)
        loop.call_soon(done.append, "last packet", context=context)  # in the turn of the thaw
        assert done == []
        loop.thaw(process, timers_first=timers_first)
        loop.thaw(process)
        loop.call_soon(done.append, "after", context=context)
        await asyncio.sleep(0)

    SimLoop().run(main())
    timers, packets = ["timer", "later timer"], ["packet", "next packet", "last packet"]
    middle = [*timers, *packets] if timers_first else [*packets, *timers]
    assert done == ["before", *middle, "after"]


def test_a_session_outlives_a_freeze_that_its_wire_does_not() -> None:
    async def main() -> None:
        world = World(1)
        service, echo = await _echo(world)
        world.freeze("n1/there")
        for number in range(20):
            echo.tell(Beat(str(number)))
            await asyncio.sleep(1.0)  # the silence breaks the wire, and nobody answers the dialler
        world.thaw("n1/there")
        await echo.say(Beat("last"))
        told = [name for name, _ in service.noted if name != "look"]
        assert told == [str(number) for number in range(20)]

    SimLoop().run(main())


def test_a_frozen_process_can_be_killed_and_its_machine_takes_connections_until_then() -> None:
    async def main() -> None:
        world = World(1)
        _, echo = await _echo(world)
        world.freeze("n1/there")
        asker = SimNetwork(world, "n3/asker")
        assert await asker.probe("n1/there", 2.0) is Probe.ANSWERED
        answer = asyncio.create_task(echo.say(Beat("never")))
        await asyncio.sleep(1.0)
        world.kill("n1/there")
        assert await asker.probe("n1/there", 2.0) is Probe.REFUSED
        assert not world.is_frozen("n1/there")
        answer.cancel()

    SimLoop().run(main())


def test_a_simulation_that_fails_meanwhile_ends_all_the_same() -> None:
    async def main() -> None:
        world = World(1)
        await _echo(world)
        world.freeze("n1/there")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        SimLoop().run(main())


@pytest.mark.parametrize("is_clock_stopped", [False, True])
def test_a_machine_that_is_paused_answers_nobody_and_its_clock_jumps_or_has_stood(
    is_clock_stopped: bool,
) -> None:
    rang: list[tuple[str, float, float]] = []

    async def main() -> None:
        loop, world = asyncio.get_running_loop(), World(1)
        assert isinstance(loop, SimLoop)
        world.clocks["n1"] = Clock(100.0, 2.0)

        def ring(name: str) -> None:
            rang.append((name, round(loop.moment, 3), round(loop.time(), 3)))

        with world.at("n1/one"):
            loop.call_later(2.0, ring, "due meanwhile")
        with world.at("n1/two"):
            loop.call_later(12.0, ring, "due later")
        with world.at("n2/other"):
            loop.call_later(1.0, ring, "another machine")
        await asyncio.sleep(0.5)
        world.pause("n1")
        with world.at("n1/three"):  # the first that is heard of it
            loop.call_soon(ring, "parked")
        await asyncio.sleep(4.0)
        world.thaw("n1/one")  # goes on with its machine
        assert [name for name, *_ in rang] == ["another machine"]
        rang.clear()
        world.resume("n1", is_clock_stopped=is_clock_stopped)
        assert not world.frozen
        await asyncio.sleep(10.0)

    SimLoop().run(main())
    parked, meanwhile, later = sorted(rang, key=lambda each: each[1:])
    if is_clock_stopped:
        assert parked == ("parked", 4.5, 101.0)
        assert (meanwhile, later) == (("due meanwhile", 5.0, 102.0), ("due later", 10.0, 112.0))
    else:
        assert {parked, meanwhile} == {("parked", 4.5, 109.0), ("due meanwhile", 4.5, 109.0)}
        assert later == ("due later", 6.0, 112.0)


def test_what_a_paused_machine_is_sent_comes_in_order_when_it_goes_on_and_nobody_is_let_in() -> (
    None
):
    async def main() -> None:
        world = World(1)
        service, echo = await _echo(world)
        await echo.say(Beat("first"))
        world.pause("n1")
        asker = SimNetwork(world, "n3/asker")
        assert await asker.probe("n1/there", 1.0) is Probe.UNKNOWN
        for number in range(20):
            echo.tell(Beat(str(number)))
        await asyncio.sleep(2.0)
        world.resume("n1")
        await echo.say(Beat("last"))
        told = [name for name, _ in service.noted if name.isdigit()]
        assert told == [str(number) for number in range(20)]
        world.pause("n1")
        world.power_off("n1")
        assert not world.frozen
        assert not world.is_paused("n1/there")

    SimLoop().run(main())
