"""Goodbyes: why a process closes a link is read by its peer, also if that writes at this very moment."""

import asyncio

import pytest

from raylite._kernel.grpcwire import GrpcWire
from raylite._kernel.link import Link
from raylite._kernel.wire import CLOSING
from raylite.exceptions import PeerLostError
from tests.kernel.rig import Rig, Toy, ToyService, run_on, until

GRPC = ["grpc-asyncio", "grpc-uvloop", "grpc-tcp", "grpc-tls", "grpc-relay"]
LOOPS = pytest.mark.parametrize("kind", GRPC)


def wire_of(link: Link) -> GrpcWire:
    assert isinstance(link._wire, GrpcWire)
    return link._wire


async def write_on(link: Link) -> None:
    """Write, while nothing is read."""
    for number in range(10):
        Toy(link).note(number)
        await asyncio.sleep(0.01)


@LOOPS
def test_the_reason_is_read_though_the_peer_writes_when_it_comes(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.pair(ToyService()) as (link, there):
            [served] = there.links
            transport = wire_of(link)._transport
            transport.pause_reading()  # it has not come to it yet
            served.leave("it is the end of the world")
            await write_on(link)
            assert not link.is_ended
            transport.resume_reading()
            await until(lambda: link.is_ended)
            assert isinstance(link.error, PeerLostError)
            assert "it is the end of the world" in str(link.error)

    run_on(kind, scenario)


@LOOPS
def test_a_network_that_closes_is_heard_by_all_and_waits_for_none_that_reads(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.pair(ToyService()) as (link, there):
            transport = wire_of(link)._transport
            transport.pause_reading()
            loop = asyncio.get_running_loop()
            closing = loop.create_task(there.close())
            await write_on(link)
            transport.resume_reading()
            await until(lambda: link.is_ended)
            assert isinstance(link.error, PeerLostError)
            assert "has ended the session" in str(link.error)
            began = loop.time()
            await closing
            assert loop.time() - began < CLOSING / 2

    run_on(kind, scenario)


@LOOPS
def test_a_peer_that_never_reads_is_waited_for_a_while_only(kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.pair(ToyService()) as (link, there):
            wire_of(link)._transport.pause_reading()
            loop = asyncio.get_running_loop()
            began = loop.time()
            await there.close()
            assert loop.time() - began < 4 * CLOSING
            assert not there._connections  # type: ignore[attr-defined]

    run_on(kind, scenario)
