"""What every network promises: the same tests over memory, gRPC on both loops, and simulation."""

import asyncio
import gc
import math
import time
import weakref
from collections.abc import AsyncIterator
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from msgspec.structs import replace

from raylite._kernel.interface import Interface, call, feed
from raylite._kernel.link import FEED_CREDIT, Link
from raylite._kernel.mailbox import HIGH_WATER
from raylite._kernel.opening import Hello
from raylite._kernel.packet import (
    VERSION,
    Kind,
    decode_frames,
    decode_packet,
    encode_frame,
    encode_packet,
)
from raylite._kernel.seams import now
from raylite._kernel.service import Service, handles
from raylite.exceptions import (
    CongestedError,
    LinkClosedError,
    LinkError,
    PeerLostError,
    ProtocolError,
    RemoteHandlerError,
    UnavailableError,
)
from tests.kernel.rig import (
    IMPATIENT,
    KIB,
    MIB,
    PLAIN,
    QUICK,
    Order,
    Recorder,
    Rig,
    Toy,
    ToyService,
    Unserved,
    chunks,
    contract,
    crash,
    freeze,
    run_on,
    until,
)

# ---- order -------------------------------------------------------------------------------


@contract
async def test_messages_are_handled_in_the_order_of_sending(rig: Rig) -> None:
    service = ToyService()
    async with rig.pair(service) as (link, _):
        toy = Toy(link)
        for number in range(500):
            toy.note(number)
        await toy.echo(b"")
        assert service.notes == list(range(500))
        assert service.handled[-1] == "echo"


@contract
async def test_a_batch_arrives_as_one_list_a_tick(rig: Rig) -> None:
    service = ToyService()
    async with rig.pair(service) as (link, _):
        toy, sent = Toy(link), 0
        for size in chunks(300):
            for _ in range(size):
                toy.items(sent)
                sent += 1
            await link.wait_received()
        await until(lambda: sum(map(len, service.lists)) == 300)
        assert [item for items in service.lists for item in items] == list(range(300))
        assert [len(items) for items in service.lists] == list(chunks(300))


@contract
async def test_nothing_is_kept_of_what_was_answered(rig: Rig) -> None:
    async with rig.pair(ToyService()) as (link, there):
        toy = Toy(link)
        for _ in range(50):
            await toy.echo(b"")
            await toy.echo_later(b"")
            assert [number async for number in toy.count(3)] == [0, 1, 2]
            with pytest.raises(UnavailableError):
                await toy.fail("expected")
        [served] = there.links
        await until(lambda: not served._serving)
        assert (link._calls, link._feeds, served._serving, link._room) == ({}, {}, {}, {})
        await link.wait_received()
        await served.wait_received()
        assert link.session.unacknowledged == served.session.unacknowledged == 0


# ---- exactly once ------------------------------------------------------------------------


async def cut_often(rig: Rig, links: list[Link], times: int) -> None:
    for number in range(times):
        link = links[number % len(links)]
        await link.wait_attached()
        await rig.moment()
        link.abort_wire("cut")


@contract
async def test_everything_arrives_once_and_in_order_while_the_wire_is_cut(rig: Rig) -> None:
    service = ToyService()
    async with rig.pair(service) as (link, there):
        toy, replies, counted = Toy(link), list[int](), list[int]()

        async def post() -> None:
            for number in range(400):
                toy.note(number)
                toy.items(number)
                if number % 10 == 0:
                    await rig.moment()

        async def call() -> None:
            for number in range(100):
                replies.append(int(await toy.echo(b"%d" % number)))
                replies.append(int(await toy.echo_later(b"%d" % number)))

        async def read() -> None:
            async for number in toy.count(1000):
                counted.append(number)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cut_often, rig, [link, *there.links], 20)
            for work in (post, call, read):
                tasks.start_soon(work)
        await toy.echo(b"")
        assert service.notes == list(range(400))
        assert [item for items in service.lists for item in items] == list(range(400))
        assert replies == [number // 2 for number in range(200)]
        assert counted == list(range(1000))


@contract
async def test_a_large_message_arrives_once_while_the_wire_is_cut(rig: Rig) -> None:
    service = ToyService()
    async with rig.pair(service) as (link, there):
        toy = Toy(link)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cut_often, rig, [link, *there.links], 6)
            for _ in range(3):
                assert await toy.echo(bytes(8 * MIB)) == bytes(8 * MIB)
        assert service.handled == ["echo"] * 3


@contract
async def test_waiting_for_receipt_ends_when_the_peer_has_it(rig: Rig) -> None:
    service = ToyService()
    async with rig.pair(service) as (link, _):
        for number in range(10):
            Toy(link).note(number)
        link.abort_wire("cut")
        await link.wait_received()
        assert link.session.unacknowledged == 0
        await until(lambda: len(service.notes) == 10)


# ---- back-pressure -----------------------------------------------------------------------

TIGHT = replace(QUICK, outbox_limit=MIB, window=MIB, packet_size=64 * KIB)


class Stopped(ToyService):
    """A service that does not begin to read its mailbox until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()

    async def started(self) -> None:
        await self.go.wait()


async def post_until_congested(link: Link) -> int:
    """Post until the link refuses; every tick, so that what can be sent is sent."""
    sent, refused = 0, 0
    while refused < 50:
        try:
            Toy(link).blob(bytes(64 * KIB))
            sent += 1
            refused = 0
        except CongestedError:
            refused += 1
        await anyio.sleep(0.001)
    return sent


@contract
async def test_a_stopped_reader_bounds_what_its_sender_keeps(rig: Rig) -> None:
    service = Stopped()
    async with rig.pair(service, TIGHT) as (link, _):
        sent = await post_until_congested(link)
        assert link._outbox.size <= TIGHT.outbox_limit + 65 * KIB
        assert link.session.kept_bytes <= TIGHT.window + 65 * KIB
        assert sent * 64 * KIB < HIGH_WATER + 5 * MIB
        service.go.set()
        await Toy(link).echo(b"")
        await until(lambda: service.blobs == sent)


@contract
async def test_a_call_and_a_feed_wait_for_a_stopped_reader(rig: Rig) -> None:
    service = Stopped()
    async with rig.pair(service, TIGHT) as (link, _):
        await post_until_congested(link)
        async with anyio.create_task_group() as tasks:
            replies: list[Any] = []

            async def ask() -> None:
                replies.append(await Toy(link).echo(b"late"))

            async def read() -> None:
                replies.append([number async for number in Toy(link).count(3)])

            tasks.start_soon(ask)
            tasks.start_soon(read)
            for _ in range(5):
                await rig.moment()
            assert replies == []
            assert link.is_congested
            service.go.set()
        assert sorted(replies, key=str) == [[0, 1, 2], b"late"]


@contract
async def test_a_stopped_reader_is_not_taken_for_dead_while_a_frozen_one_is(rig: Rig) -> None:
    service, quick = Stopped(), replace(TIGHT, ping_after=0.05, silence=0.2)
    async with (
        rig.pair(service, quick) as (link, _),
        rig.serving(ToyService(), "frozen") as frozen,
        rig.client("other", quick) as other,
    ):
        wires_lost: list[str] = []
        control = other.connect(rig.address("frozen"))
        await control.wait_attached()
        await post_until_congested(link)
        stopped_wire = link._wire
        freeze(frozen)
        await control.wait_detached()
        assert "silent" in control.last_failure
        assert link._wire is stopped_wire, wires_lost
        service.go.set()
        await Toy(link).echo(b"")


@contract
async def test_a_full_wire_says_when_it_can_be_written_again(rig: Rig) -> None:
    async with rig.pair(ToyService(), replace(QUICK, window=64 * MIB)) as (link, there):
        [served] = there.links
        wire, heard = link._wire, Recorder()
        assert wire is not None
        assert served._wire is not None
        served._wire.pause_reading()
        blob = encode_frame(Kind.POST, Toy.blob.number, 0, bytes(MIB))
        while wire.is_writable:
            wire.send(link.session.pack(blob))
            if rig.kind == "sim":
                await asyncio.sleep(0.001)  # what is on its way does not count there
        wire.events = heard
        served._wire.resume_reading()
        await heard.can_write.wait()
        wire.events = link


@contract
async def test_a_peer_that_asks_on_without_reading_the_answers_is_left(rig: Rig) -> None:
    service = ToyService()
    async with rig.pair(service, replace(QUICK, outbox_limit=MIB, window=MIB)) as (link, there):
        assert link._wire is not None
        link._wire.pause_reading()
        for _ in range(12):
            link.begin_feed(Toy.count, b"\x01")  # any frame that asks, without a waiter
        [served] = there.links
        ended = asyncio.Event()
        served.on_end(lambda _: ended.set())
        asking = [asyncio.ensure_future(Toy(link).make(MIB)) for _ in range(12)]
        await ended.wait()
        assert isinstance(served.error, CongestedError)
        link._wire.resume_reading()
        errors = await asyncio.gather(*asking, return_exceptions=True)
        assert any(isinstance(error, PeerLostError) for error in errors)


# ---- cancellation ------------------------------------------------------------------------


@contract
async def test_a_caller_that_leaves_cancels_the_handler(rig: Rig) -> None:
    service = ToyService()
    async with rig.pair(service) as (link, _), anyio.create_task_group() as tasks:
        tasks.start_soon(Toy(link).hold, b"")
        await service.began.wait()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await service.cancelled.wait()


@contract
async def test_a_reader_that_leaves_cancels_the_feed(rig: Rig) -> None:
    service = ToyService()
    async with rig.pair(service) as (link, _):
        async for _ in Toy(link).hold_feed(1):
            await service.began.wait()
            break
        await service.cancelled.wait()


@contract
async def test_the_end_of_the_link_fails_the_caller_and_cancels_the_handler(rig: Rig) -> None:
    service = ToyService()
    async with rig.pair(service) as (link, there):
        asking = asyncio.ensure_future(Toy(link).hold(b""))
        await service.began.wait()
        [served] = there.links
        served.close()
        with pytest.raises(PeerLostError) as caught:
            await asking
        assert caught.value.confirmed
        await service.cancelled.wait()


@contract
async def test_a_call_cancelled_in_the_mailbox_is_never_handled(rig: Rig) -> None:
    service = Stopped()
    async with rig.pair(service) as (link, _):
        waiting = [
            asyncio.ensure_future(work)
            for work in (
                Toy(link).echo(b""),
                Toy(link).hold(b""),
                anext(Toy(link).hold_feed(1)),
            )
        ]
        await until(lambda: len(service.mailbox) == 3)
        for asking in waiting:
            asking.cancel()
        await asyncio.wait(waiting)
        await link.wait_received()
        service.go.set()
        await Toy(link).echo(b"")
        assert not service.began.is_set()
        assert service.handled == ["echo"]


@contract
async def test_leaving_several_calls_cancels_their_handlers_and_no_other(rig: Rig) -> None:
    service = ToyService()
    async with rig.pair(service) as (link, there):
        kept = asyncio.ensure_future(Toy(link).hold(b"kept"))
        await service.began.wait()
        [served] = there.links
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(Toy(link).hold, b"left")
            await until(lambda: len(served._serving) == 6)
            tasks.cancel_scope.cancel()
        await until(lambda: len(served._serving) == 1)
        service.release.set()
        assert await kept == b"kept"


# ---- deadlines ---------------------------------------------------------------------------


@contract
async def test_the_deadline_of_the_caller_ends_the_handler_though_no_cancel_arrives(
    rig: Rig,
) -> None:
    service = ToyService()
    async with rig.pair(service) as (link, _):
        with pytest.raises(TimeoutError), anyio.fail_after(0.2):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(Toy(link).hold, b"")
                await service.began.wait()
                rig.hide("there")
                link.abort_wire("and no other can be had")
        await service.cancelled.wait()
        assert not link.is_attached
        rig.unhide("there")


@contract
async def test_a_call_that_waited_past_its_deadline_is_not_begun(rig: Rig) -> None:
    service = Stopped()
    async with rig.pair(service) as (link, _):
        with anyio.move_on_after(60) as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(Toy(link).hold, b"")
                await until(lambda: len(service.mailbox) == 1)
                rig.hide("there")
                link.abort_wire("so that no cancel arrives")
                scope.cancel()
        [(message, size)] = service.mailbox._control
        assert now() < message.deadline < math.inf
        service.mailbox._control[0] = message._replace(deadline=now()), size  # a minute later
        service.go.set()
        rig.unhide("there")
        await Toy(link).echo(b"")  # which comes after it
        assert not service.began.is_set()


@contract
async def test_fail_after_works_once_wires_have_broken_under_a_call(rig: Rig) -> None:
    service = ToyService()
    async with rig.pair(service) as (link, _):
        for _ in range(3):
            asking = asyncio.ensure_future(Toy(link).hold(b""))
            await service.began.wait()
            link.abort_wire("cut")
            asking.cancel()
            await asyncio.wait([asking])
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        with anyio.fail_after(5):
            assert await Toy(link).echo(b"fine") == b"fine"


# ---- peer death --------------------------------------------------------------------------


@contract
async def test_a_confirmed_death_fails_what_waits_at_once(rig: Rig) -> None:
    service = ToyService()
    async with rig.pair(service) as (link, _):
        asking = asyncio.ensure_future(Toy(link).hold(b""))
        feed = Toy(link).hold_feed(1)
        assert await anext(feed) == 1
        await service.began.wait()
        link.confirm_dead("exit status 9")
        for waiting in (asking, anext(feed), Toy(link).echo(b"")):
            with pytest.raises(PeerLostError, match="exit status 9") as caught:
                await waiting
            assert caught.value.confirmed
        with pytest.raises(PeerLostError):
            Toy(link).note(1)


@contract
async def test_a_goodbye_fails_what_waits_at_once(rig: Rig) -> None:
    async with rig.client() as here:
        service = ToyService()
        async with rig.serving(service):
            link = here.connect(rig.address("there"))
            asking = asyncio.ensure_future(Toy(link).hold(b""))
            await service.began.wait()
            service.spawn(asyncio.sleep(0))
        with pytest.raises((PeerLostError, UnavailableError)):
            await asking
        await until(lambda: link.is_ended)
        assert isinstance(link.error, PeerLostError)
        assert link.error.confirmed


@contract
async def test_another_process_at_the_address_means_that_the_first_is_dead(rig: Rig) -> None:
    async with rig.client() as here, rig.serving(ToyService(), "other"):
        first = rig.network("there")
        await first.listen(rig.address("there"))
        first.host(ToyService())
        link = here.connect(rig.address("there"))
        await link.wait_attached()
        asking = asyncio.ensure_future(Toy(link).hold(b""))
        crash(first)
        await first.close()
        async with rig.serving(ToyService()):
            with pytest.raises(PeerLostError) as caught:
                await asking
            assert caught.value.confirmed
            again = here.connect(rig.address("there"))
            assert again is not link
            assert await Toy(again).echo(b"new") == b"new"


@contract
async def test_a_peer_that_restarts_is_known_to_have_died_by_those_it_dials(rig: Rig) -> None:
    async with rig.serving(ToyService()) as there:
        first = rig.network("here")
        await first.listen(rig.address("here"))
        await first.connect(rig.address("there")).wait_attached()
        await until(lambda: len(there.links) == 1)
        [old] = there.links
        crash(first)
        await first.close()
        async with rig.client() as second:
            await second.listen(rig.address("here"))
            await second.connect(rig.address("there")).wait_attached()
            await until(lambda: old.is_ended)
            assert isinstance(old.error, PeerLostError)
            assert old.error.confirmed
            assert there.connect(rig.address("here")) is not old


@contract
async def test_a_peer_out_of_reach_for_the_session_timeout_is_lost_unconfirmed(rig: Rig) -> None:
    service = ToyService()
    async with rig.pair(service, IMPATIENT) as (link, there):
        asking = asyncio.ensure_future(Toy(link).hold(b""))
        await service.began.wait()
        [served] = there.links
        rig.hide("there")
        link.abort_wire("cut")
        with pytest.raises(PeerLostError, match=r"could not be reached for 0\.4 s") as caught:
            await asking
        assert not caught.value.confirmed
        await service.cancelled.wait()  # and the other side gives up as well
        assert isinstance(served.error, PeerLostError)
        assert not served.error.confirmed
        rig.unhide("there")


@contract
async def test_a_session_that_only_the_other_end_has_given_up_is_no_death(rig: Rig) -> None:
    async with rig.serving(ToyService()) as there, rig.client() as here:
        link = here.connect(rig.address("there"))
        await link.wait_attached()
        await until(lambda: len(there.links) == 1)
        there.links[0].finish(PeerLostError("its minute was over first", reason="too late"))
        with pytest.raises(PeerLostError, match="has ended the session") as caught:
            await Toy(link).echo(b"")
        assert not caught.value.confirmed
        assert await Toy(here.connect(rig.address("there"))).echo(b"new") == b"new"


@contract
async def test_a_peer_out_of_reach_for_long_is_told_of_once_an_outage(rig: Rig) -> None:
    patient = replace(IMPATIENT, unreachable=0.1, session_timeout=30.0)
    async with rig.pair(ToyService(), patient) as (link, there):
        told: asyncio.Queue[Link] = asyncio.Queue()
        link.on_unreachable = told.put_nowait
        there.on_unreachable.append(told.put_nowait)
        for _ in range(2):
            assert await Toy(link).echo(b"") == b""
            [served] = there.links
            rig.hide("there")
            link.abort_wire("cut")
            assert {await told.get(), await told.get()} == {link, served}
            await asyncio.sleep(0.2)
            assert told.empty()
            rig.unhide("there")
            await link.wait_attached()


@contract
async def test_a_silent_peer_is_dialled_again_and_its_session_goes_on(rig: Rig) -> None:
    service = ToyService()
    async with rig.pair(service, IMPATIENT) as (link, there):
        freeze(there)
        asking = asyncio.ensure_future(Toy(link).echo(b"after the silence"))
        await link.wait_detached()
        assert "silent" in link.last_failure
        assert await asking == b"after the silence"
        assert service.handled == ["echo"]


@contract
async def test_a_process_that_stood_still_does_not_hold_it_against_its_peers(rig: Rig) -> None:
    async with rig.pair(ToyService(), IMPATIENT) as (link, _):
        wire = link._wire
        for _ in range(3):
            if rig.kind != "sim":  # where time cannot pass behind the loop's back
                time.sleep(2 * IMPATIENT.silence)
            assert await Toy(link).echo(b"") == b""
        assert link._wire is wire


@contract
async def test_an_ended_link_answers_at_once(rig: Rig) -> None:
    async with rig.pair(ToyService()) as (link, _):
        link.close()
        link.close()
        with pytest.raises(LinkClosedError):
            await Toy(link).echo(b"")
        with pytest.raises(LinkClosedError):
            Toy(link).items(1)
        with pytest.raises(LinkClosedError):
            await anext(Toy(link).count(1))
        with pytest.raises(LinkClosedError):
            await link.wait_attached()
        await link.wait_received()
        assert link._refusal() is not link._refusal(), "or each raise would add to its traceback"
        heard: list[Link] = []
        link.on_end(heard.append)
        assert heard == [link]


@contract
async def test_all_who_wait_for_the_end_of_a_link_hear_of_it(rig: Rig) -> None:
    async with rig.pair(ToyService()) as (link, _):
        heard: list[str] = []

        def fail(ended: Link) -> None:
            raise ZeroDivisionError

        link.on_end(lambda ended: heard.append("first"))
        link.on_end(fail)
        link.on_end(lambda ended: heard.append("last"))
        lost: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, told: lost.append(told))
        link.close()
        assert heard == ["first", "last"]
        assert [type(told["exception"]) for told in lost] == [ZeroDivisionError]


@contract
async def test_an_address_where_nobody_listens_is_dialled_until_somebody_does(rig: Rig) -> None:
    async with rig.client() as here:
        asking = asyncio.ensure_future(Toy(here.connect(rig.address("there"))).echo(b"patient"))
        await rig.moment()
        async with rig.serving(ToyService()):
            assert await asking == b"patient"


@contract
async def test_a_network_that_is_closing_lets_nobody_begin(rig: Rig) -> None:
    """Also from the callback on the end of a link, where trying again is what comes to mind."""
    async with rig.serving(ToyService()):
        here = rig.network("here")
        link = here.connect(rig.address("there"))
        await link.wait_attached()
        again: list[Link] = []
        link.on_end(lambda ended: again.append(here.connect(ended.peer)))
        await here.close()
        assert [one.is_ended for one in again] == [True]
        with pytest.raises(LinkClosedError):
            await Toy(here.connect(rig.address("there"))).echo(b"")
        await here.close()


@contract
async def test_two_that_dial_one_another_at_once_both_get_through(rig: Rig) -> None:
    one_service, other_service = ToyService(), ToyService()
    async with (
        rig.serving(one_service, "one") as one,
        rig.serving(other_service, "other") as other,
    ):
        there, here = one.connect(rig.address("other")), other.connect(rig.address("one"))
        for number in range(100):
            Toy(there).note(number)
            Toy(here).note(number)
        await Toy(there).echo(b"")
        await Toy(here).echo(b"")
        assert one_service.notes == other_service.notes == list(range(100))
        one.confirm_dead(rig.address("other"), "both links go")
        assert one.links == []


# ---- feeds -------------------------------------------------------------------------------


@contract
async def test_a_feed_is_at_most_its_credit_ahead_of_its_reader(rig: Rig) -> None:
    service = ToyService()
    async with rig.pair(service) as (link, _):
        feed, read = Toy(link).count(1000), 0
        async for number in feed:
            assert number == read
            read += 1
            assert service.produced <= read + FEED_CREDIT + 1
            if read % 100 == 0:
                await rig.moment()
        assert read == 1000


@contract
async def test_a_feed_that_sends_beyond_its_credit_is_a_protocol_error(rig: Rig) -> None:
    service = ToyService()
    async with rig.pair(service) as (link, there):
        feed = Toy(link).hold_feed(1)
        assert await anext(feed) == 1
        [served] = there.links
        for _ in range(FEED_CREDIT + 1):
            served._send(encode_frame(Kind.ITEM, 0, 1, b"\x01"))
        await until(lambda: link.is_ended)
        assert isinstance(link.error, ProtocolError)


@contract
async def test_feeds_of_large_items_wait_for_a_reader_that_stopped(rig: Rig) -> None:
    service = ToyService()
    config = replace(QUICK, outbox_limit=MIB, window=MIB)
    async with rig.pair(service, config) as (link, there):
        feeds = [Toy(link).fill(Order(100, 256 * KIB)) for _ in range(2)]
        assert link._wire is not None
        for feed in feeds:
            assert len(await anext(feed)) == 256 * KIB
        link._wire.pause_reading()
        [served] = there.links
        await until(lambda: served.is_congested)
        for _ in range(10):
            await rig.moment()
        assert served._outbox.size <= 2 * MIB
        assert service.produced < 150
        link._wire.resume_reading()
        for feed in feeds:
            assert len([item async for item in feed]) == 99


@contract
async def test_one_feed_has_one_reader(rig: Rig) -> None:
    service = ToyService()
    async with rig.pair(service) as (link, _):
        feed = Toy(link).hold_feed(1)
        assert await anext(feed) == 1
        reading = asyncio.ensure_future(anext(feed))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="two tasks"):
            await anext(feed)
        reading.cancel()
        await asyncio.wait([reading])
        with pytest.raises(StopAsyncIteration):
            await anext(feed)


# ---- lanes -------------------------------------------------------------------------------


@contract
async def test_control_overtakes_bulk(rig: Rig) -> None:
    service = Stopped()
    async with rig.pair(service) as (link, _):
        for number in range(50):
            Toy(link).bulk(number)
        Toy(link).note(1)
        await until(lambda: len(service.mailbox) == 51)
        service.go.set()
        await Toy(link).echo(b"")
        await until(lambda: len(service.handled) == 52)
        assert service.handled == ["note"] + ["bulk"] * 50 + ["echo"] or (
            service.handled[0] == "note"
        )


# ---- errors ------------------------------------------------------------------------------


@contract
async def test_a_handlers_error_travels_by_its_type_and_the_service_lives(rig: Rig) -> None:
    async with rig.pair(ToyService()) as (link, _):
        with pytest.raises(UnavailableError, match="no luck"):
            await Toy(link).fail("expected")
        assert await Toy(link).echo(b"alive") == b"alive"


@contract
async def test_a_handlers_bug_is_told_to_its_caller_and_ends_the_service(rig: Rig) -> None:
    service = ToyService()
    with pytest.raises(ZeroDivisionError):
        async with rig.pair(service) as (link, _):
            waiting = asyncio.ensure_future(Toy(link).hold(b""))
            await service.began.wait()
            with pytest.raises(RemoteHandlerError, match=r"Toy\.fail crashed: ZeroDivision"):
                await Toy(link).fail("a bug")
            with pytest.raises((UnavailableError, PeerLostError)):
                await waiting


@contract
async def test_a_call_that_nobody_serves_is_answered_so(rig: Rig) -> None:
    async with rig.pair(ToyService()) as (link, _):
        with pytest.raises(UnavailableError, match="no service here"):
            await Unserved(link).ask(b"")
        Unserved(link).tell(b"ignored")
        assert await Toy(link).echo(b"alive") == b"alive"


@contract
async def test_a_message_too_large_to_send_fails_alone(rig: Rig) -> None:
    async with rig.pair(ToyService(), replace(QUICK, max_packet=MIB)) as (link, _):
        toy = Toy(link)
        for size in (MIB, 2 * MIB):
            with pytest.raises(ProtocolError, match="too large"):
                await toy.echo(bytes(size))
            with pytest.raises(ProtocolError, match="too large"):
                toy.blob(bytes(size))
            with pytest.raises(ProtocolError, match="too large"):
                await toy.make(size)
            with pytest.raises(ProtocolError, match="too large"):
                await anext(toy.fill(Order(1, size)))
        largest = MIB - 64
        assert await toy.echo(bytes(largest)) == bytes(largest)


class Odd(Interface):
    at_once = call(int, int)
    later = call(int, int)
    several = feed(int, int)


class OddService(Service, serves=(Odd,)):
    """Answers the number two with what no message can say."""

    @handles(Odd.at_once)
    def at_once(self, number: int) -> int:
        return _odd(number)

    @handles(Odd.later)
    async def later(self, number: int) -> int:
        return _odd(number)

    @handles(Odd.several)
    async def several(self, upto: int) -> AsyncIterator[int]:
        for number in range(1, upto):
            yield _odd(number)


def _odd(number: int) -> int:
    return 2**70 if number == 2 else number


@contract
async def test_a_message_that_cannot_be_encoded_fails_alone(rig: Rig) -> None:
    service: Any = ToyService()
    async with rig.pair(service) as (link, _):
        toy: Any = Toy(link)
        for bad in (object(), 2**70, "half a \ud800 pair", [[...]]):
            with pytest.raises(ProtocolError, match=r"Toy\.note cannot be encoded"):
                toy.note(bad)
            with pytest.raises(ProtocolError, match=r"Toy\.items cannot be encoded"):
                toy.items(bad)
            with pytest.raises(ProtocolError, match=r"Toy\.fail cannot be encoded"):
                await toy.fail(bad)
            with pytest.raises(ProtocolError, match=r"Toy\.count cannot be encoded"):
                await anext(toy.count(bad))
            toy.items(1)
        assert await toy.echo(b"alive") == b"alive"
        assert [item for items in service.lists for item in items] == [1] * 4


@contract
async def test_an_answer_that_cannot_be_encoded_fails_its_call_and_its_service_lives(
    rig: Rig,
) -> None:
    async with rig.pair(OddService()) as (link, _):
        odd = Odd(link)
        for ask in (odd.at_once, odd.later):
            with pytest.raises(ProtocolError, match=r"Odd\.\w+ cannot be encoded: OverflowError"):
                await ask(2)
            assert await ask(1) == 1
        items = odd.several(5)
        assert await anext(items) == 1
        with pytest.raises(ProtocolError, match=r"Odd\.several cannot be encoded"):
            await anext(items)


# ---- malformed packets -------------------------------------------------------------------


@contract
async def test_a_packet_above_the_limit_ends_the_session_of_its_sender_only(rig: Rig) -> None:
    service = ToyService()
    small, large = replace(QUICK, max_packet=256 * KIB), QUICK
    async with (
        rig.serving(service, config=small) as there,
        rig.client("large", large) as here,
        rig.client("small", small) as other,
    ):
        link = here.connect(rig.address("there"))
        await link.wait_attached()
        [served] = there.links
        innocent = other.connect(rig.address("there"))
        with pytest.raises(PeerLostError, match="protocol error"):
            await Toy(link).echo(bytes(MIB))
        assert isinstance(served.error, ProtocolError)
        assert await Toy(innocent).echo(b"alive") == b"alive"


FRAMES = st.builds(
    encode_frame,
    st.integers(0, 255),
    st.one_of(st.integers(0, 0xFFFF), st.sampled_from([r.number for r in Toy.routes.values()])),
    st.one_of(st.integers(0, 3), st.integers(0, 0xFFFFFFFF)),
    st.one_of(
        st.binary(max_size=40),
        st.binary(max_size=8).map(lambda body: bytes(8) + body),
    ),
)
PACKETS = st.one_of(
    st.binary(max_size=60),
    st.builds(
        encode_packet,
        st.integers(0, 3),
        st.integers(0, 3),
        st.lists(FRAMES, max_size=4).map(b"".join),
    ),
    st.builds(encode_packet, st.just(1), st.just(0), FRAMES),
)
FUZZ = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
NAN = b"\0\0\0\0\0\0\xf8\x7f"


async def still_serves(rig: Rig) -> None:
    async with rig.client("innocent") as other:
        assert await Toy(other.connect(rig.address("there"))).echo(b"alive") == b"alive"


@contract
async def test_a_call_with_the_number_of_another_is_a_protocol_error(rig: Rig) -> None:
    for number in (0, 1):
        async with rig.pair(ToyService()) as (link, there):
            [served] = there.links
            asking = asyncio.ensure_future(Toy(link).hold(b""))
            await until(lambda served=served: len(served._serving) == 1)  # type: ignore[misc]
            link._send(encode_frame(Kind.CALL, Toy.hold.number, number, bytes(8)))
            with pytest.raises(PeerLostError, match="a number that is not free"):
                await asking


@pytest.mark.parametrize("kind", PLAIN)
@FUZZ
@given(packets=st.lists(PACKETS, min_size=1, max_size=6))
@example(packets=[encode_packet(1, 0, encode_frame(Kind.CALL, Toy.hold.number, 1, NAN))])
@example(packets=[encode_packet(1, 0, encode_frame(Kind.CALL, Toy.echo.number, 0, bytes(8)))])
@example(packets=[encode_packet(0, 0, encode_frame(Kind.CALL, Toy.echo.number, 1, bytes(8)))])
@example(packets=[encode_packet(0, 0, encode_frame(Kind.BYE, 0, 0, b"\xff"))])
@example(packets=[encode_packet(1, 0, encode_frame(Kind.ERROR, 0, 1, b"\x92\xa1x\xa0"))])
def test_any_packet_on_an_open_wire_is_served_or_ends_that_link(
    kind: str, packets: list[bytes]
) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.pair(ToyService()) as (link, there):
            [served] = there.links
            assert link._wire is not None
            for packet in packets:
                link._wire.send(packet)
            await still_serves(rig)
            if served.is_ended:
                assert isinstance(served.error, LinkError)

    run_on(kind, scenario)


@pytest.mark.parametrize("kind", PLAIN)
@FUZZ
@given(first=PACKETS, more=st.lists(PACKETS, max_size=2))
@example(first=b"", more=[])
@example(
    first=encode_packet(0, 0, encode_frame(Kind.HELLO, 0, 0, b"\x97\x01" + b"\xc4\0" * 6)), more=[]
)
def test_any_first_packet_on_a_wire_is_refused_in_words(
    kind: str, first: bytes, more: list[bytes]
) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.serving(ToyService()) as there, rig.client() as here:
            heard = Recorder()
            wire = await here.dial(rig.address("there"), heard)
            for packet in (first, *more):
                wire.send(packet)
            await heard.done.wait()
            [answer] = heard.packets
            [frame] = decode_frames(decode_packet(answer).frames)
            assert frame.kind is Kind.REFUSED
            assert there.links == []
            await still_serves(rig)

    run_on(kind, scenario)


@pytest.mark.parametrize("kind", PLAIN)
@FUZZ
@given(answer=PACKETS)
@example(answer=encode_packet(0, 0, encode_frame(Kind.WELCOME, 0, 0, b"\x92\xc4\x01a\x00")))
@example(answer=encode_packet(0, 0, encode_frame(Kind.REFUSED, 0, 0, b"\x92\xa0\xc2")))
def test_any_answer_to_a_hello_ends_the_link_with_a_typed_error(kind: str, answer: bytes) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.client("there") as there, rig.client() as here:
            there.greeted = lambda wire, hello: wire.send(answer)  # type: ignore[method-assign]
            await there.listen(rig.address("there"))
            link = here.connect(rig.address("there"))
            with pytest.raises(LinkError):
                await Toy(link).echo(b"")
            assert isinstance(link.error, ProtocolError)

    run_on(kind, scenario)


def hello(attempt: int, *, session: bytes = b"s" * 16, version: int = VERSION) -> bytes:
    greeting = Hello(version, session, b"i" * 16, "", 0, b"", attempt)
    frame = encode_frame(Kind.HELLO, 0, 0, msgspec.msgpack.encode(greeting))
    return encode_packet(0, 0, frame)


def kinds(heard: Recorder) -> list[str]:
    frames = [decode_frames(decode_packet(packet).frames) for packet in heard.packets]
    return [frame.kind.name for some in frames for frame in some]


@contract
async def test_a_wire_without_a_hello_is_given_up(rig: Rig) -> None:
    async with rig.serving(ToyService(), config=IMPATIENT), rig.client() as here:
        heard = Recorder()
        await here.dial(rig.address("there"), heard)
        await heard.done.wait()
        assert heard.packets == []


@contract
async def test_a_first_packet_is_small(rig: Rig) -> None:
    async with rig.serving(ToyService()), rig.client() as here:
        heard = Recorder()
        wire = await here.dial(rig.address("there"), heard)
        wire.send(encode_packet(0, 0, encode_frame(Kind.HELLO, 0, 0, bytes(100 * KIB))))
        await heard.done.wait()
        assert kinds(heard) == ["REFUSED"]


@contract
async def test_another_version_is_refused(rig: Rig) -> None:
    async with rig.serving(ToyService()), rig.client() as here:
        heard = Recorder()
        wire = await here.dial(rig.address("there"), heard)
        wire.send(hello(1, version=VERSION + 1))
        await heard.done.wait()
        assert kinds(heard) == ["REFUSED"]
        assert b"speaks version 2, this process 1" in heard.packets[0]


@contract
async def test_an_attempt_that_was_given_up_does_not_replace_a_later_one(rig: Rig) -> None:
    async with rig.serving(ToyService()) as there, rig.client() as here:
        first, second = Recorder(), Recorder()
        early = await here.dial(rig.address("there"), first)
        late = await here.dial(rig.address("there"), second)
        late.send(hello(2))
        await until(lambda: len(second.packets) > 0)
        early.send(hello(1))
        await first.done.wait()
        assert (kinds(first), kinds(second)) == ([], ["WELCOME"])
        [served] = there.links
        assert served.is_attached
        assert not second.done.is_set()
        third = Recorder()
        latest = await here.dial(rig.address("there"), third)
        latest.send(hello(3))
        await second.done.wait()  # this one does replace it
        await until(lambda: len(third.packets) > 0)
        assert kinds(third) == ["WELCOME"]
        assert there.links == [served]


# ---- no garbage --------------------------------------------------------------------------


@contract
async def test_a_link_that_ended_is_freed_without_the_collector(rig: Rig) -> None:
    service = ToyService()
    async with rig.serving(service) as there:
        gc.collect()
        gc.disable()
        try:
            here = rig.network("here")
            link = here.connect(rig.address("there"))
            assert await Toy(link).echo(b"") == b""
            assert [number async for number in Toy(link).count(3)] == [0, 1, 2]
            with pytest.raises(UnavailableError):
                await Toy(link).fail("expected")
            ends = [weakref.ref(link), *map(weakref.ref, there.links)]
            await here.close()
            del link, here, service.caller
            await until(lambda: there.links == [])
            for _ in range(10):
                await asyncio.sleep(0)
            if rig.kind == "sim":
                await asyncio.sleep(10)  # timers that were cancelled are dropped when they are due
            assert [end() for end in ends] == [None, None]
        finally:
            gc.enable()
