"""A host: services from start to stop, and a crash let out."""

import asyncio
import os
import signal

import pytest

from raylite._kernel.host import Host
from raylite._kernel.memory import MemoryNetwork, Switch
from raylite._kernel.service import Service
from raylite.exceptions import PeerLostError, UnavailableError
from tests.kernel.rig import Toy, ToyService, until

pytestmark = pytest.mark.asyncio


class Fixture:
    """A host that serves the toy, and a client of it."""

    def __init__(self, *others: Service, grace: float = 5.0) -> None:
        switch = Switch()
        self.service = ToyService()
        self.there, self.here = MemoryNetwork(switch), MemoryNetwork(switch)
        self.host = Host(self.there, self.service, *others, grace=grace)

    async def start(self) -> Toy:
        await self.there.listen("there")
        self.running = asyncio.ensure_future(self.host.run())
        link = self.here.connect("there")
        await link.wait_attached()
        return Toy(link)

    async def end(self) -> None:
        await self.here.close()
        await self.running


async def test_stopping_lets_a_conversation_end_and_refuses_new_ones() -> None:
    fixture = Fixture()
    toy = await fixture.start()
    talking = asyncio.ensure_future(toy.hold(b"to the end"))
    await fixture.service.began.wait()
    fixture.host.stop()
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError, match="ToyService is stopping"):
        await toy.hold(b"too late")
    fixture.service.release.set()
    assert await talking == b"to the end"
    await fixture.end()


async def test_a_conversation_that_outlasts_the_grace_is_cancelled() -> None:
    fixture = Fixture(grace=0.01)
    toy = await fixture.start()
    talking = asyncio.ensure_future(toy.hold(b""))
    await fixture.service.began.wait()
    fixture.host.stop()
    with pytest.raises((PeerLostError, UnavailableError)):
        await talking
    await fixture.service.cancelled.wait()
    await fixture.end()


async def test_what_waits_in_the_mailbox_is_handled_before_the_stop() -> None:
    fixture = Fixture()
    toy = await fixture.start()
    for number in range(1000):
        toy.note(number)
    await fixture.here.connect("there").wait_received()
    fixture.host.stop()
    await fixture.running
    assert fixture.service.notes == list(range(1000))
    await fixture.end()


class Crashing(Service):
    async def started(self) -> None:
        self.spawn(self.crash())

    async def crash(self) -> None:
        raise ZeroDivisionError("a bug")


async def test_a_crash_of_one_service_ends_all_and_is_raised() -> None:
    fixture = Fixture(Crashing())
    await fixture.there.listen("there")
    with pytest.raises(ZeroDivisionError, match="a bug"):
        await fixture.host.run()
    assert fixture.service.scope.is_closed
    await fixture.here.close()


async def test_a_crash_on_the_way_out_is_raised_too() -> None:
    class Clumsy(Service):
        async def stopped(self) -> None:
            raise ZeroDivisionError("while stopping")

    host = Host(MemoryNetwork(Switch()), Clumsy())
    running = asyncio.ensure_future(host.run())
    await asyncio.sleep(0)
    host.stop()
    with pytest.raises(ZeroDivisionError, match="while stopping"):
        await running


async def test_what_runs_beside_the_services_may_not_end_by_itself() -> None:
    host = Host(MemoryNetwork(Switch()))
    host.also(asyncio.sleep(0), "the watch")
    with pytest.raises(RuntimeError, match="the watch has ended, and should not"):
        await host.run()


async def test_what_runs_beside_the_services_is_cancelled_by_the_stop() -> None:
    host = Host(MemoryNetwork(Switch()))
    beside = asyncio.get_running_loop().create_future()

    async def wait() -> None:
        await beside

    host.also(wait(), "the watch")
    running = asyncio.ensure_future(host.run())
    await asyncio.sleep(0)
    host.stop()
    await running
    assert beside.cancelled()


async def test_cancelling_run_closes_the_network() -> None:
    fixture = Fixture()
    toy = await fixture.start()
    fixture.running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fixture.running
    with pytest.raises(PeerLostError):
        await toy.echo(b"")
    await fixture.here.close()


async def test_a_signal_stops_the_host_and_is_the_hosts_no_longer_after() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    host = Host(MemoryNetwork(Switch()))
    host.stop_on(signal.SIGUSR1)
    running = asyncio.ensure_future(host.run())
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGUSR1)
    await running
    assert signal.getsignal(signal.SIGUSR1) == before


async def test_a_service_that_is_not_started_yet_keeps_its_messages() -> None:
    class Slow(ToyService):
        def __init__(self) -> None:
            super().__init__()
            self.ready = asyncio.Event()

        async def started(self) -> None:
            await self.ready.wait()

    switch, service = Switch(), Slow()
    there, here = MemoryNetwork(switch), MemoryNetwork(switch)
    host = Host(there, service)
    await there.listen("there")
    running = asyncio.ensure_future(host.run())
    toy = Toy(here.connect("there"))
    asking = asyncio.ensure_future(toy.echo(b"early"))
    await until(lambda: len(service.mailbox) == 1)
    service.ready.set()
    assert await asking == b"early"
    host.stop()
    await running
    await here.close()
