"""The relay: a process is reached by another's port. What a link promises is in the contract's tests.

Those run over a relay too: the kind `grpc-relay`.
"""

import asyncio
import struct
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from grpclib.exceptions import StreamTerminatedError
from h2.exceptions import StreamClosedError
from msgspec.structs import replace

from raylite._kernel.connection import WINDOW
from raylite._kernel.grpc import GrpcNetwork
from raylite._kernel.grpcwire import GrpcWire
from raylite._kernel.relay import is_name, reached, relay
from raylite._kernel.token import new_token
from raylite.exceptions import AuthenticationError, PeerLostError
from tests.kernel.membership import cluster_token
from tests.kernel.rig import (
    IMPATIENT,
    MIB,
    QUICK,
    Recorder,
    Rig,
    Toy,
    ToyService,
    run_on,
    until,
)


def relayed(test: Any) -> Any:
    def run() -> None:
        run_on("grpc-relay", test)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@relayed
async def test_the_relay_sees_two_connections_and_no_link(rig: Rig) -> None:
    async with rig.pair(ToyService()) as (link, _):
        assert await Toy(link).echo(bytes(MIB)) == bytes(MIB)
        assert len(rig.relay._connections) == 2
        assert rig.relay.links == []


@relayed
async def test_a_wire_that_comes_by_a_relay_is_not_taken_for_one_within_the_machine(
    rig: Rig,
) -> None:
    async with rig.pair(ToyService()) as (link, there):
        wires = [link._wire, *(served._wire for served in there.links)]
        assert [wire is not None and wire.is_local for wire in wires] == [False, False]


@relayed
async def test_both_connections_end_with_either_process(rig: Rig) -> None:
    async with rig.serving(ToyService()):
        async with rig.client() as here:
            link = here.connect(rig.address("there"))
            await link.wait_attached()
            link.abort_wire("cut")  # as if the client's machine had gone
            await link.wait_attached()
            assert await Toy(link).echo(b"again") == b"again"
            await until(lambda: len(rig.relay._connections) == 2)
        await until(lambda: not rig.relay._connections)
        async with rig.client() as here:
            await here.connect(rig.address("there")).wait_attached()
            assert len(rig.relay._connections) == 2
            await rig._networks["there"].close()
            await until(lambda: not rig.relay._connections)


@relayed
async def test_a_relay_that_closes_leaves_no_connection(rig: Rig) -> None:
    async with rig.pair(ToyService()) as (link, _):
        began = asyncio.get_running_loop().time()
        await rig.relay.close()
        assert not rig.relay._connections
        assert asyncio.get_running_loop().time() - began < 5
        await link.wait_detached()


@relayed
async def test_what_a_reader_does_not_take_is_kept_by_its_sender(rig: Rig) -> None:
    """Without credit withheld: the relay keeps whatever the sender has, without bound."""
    service = ToyService()
    async with rig.pair(service, replace(QUICK, window=256 * MIB)) as (link, there):
        [served] = there.links
        assert isinstance(served._wire, GrpcWire)
        assert isinstance(link._wire, GrpcWire)
        served._wire.pause_reading()
        for _ in range(80):
            Toy(link).blob(bytes(MIB))
            await asyncio.sleep(0)
        h2, number = link._wire._h2, link._wire._id
        await until(lambda: h2.local_flow_control_window(number) == 0)
        halves = [each.wire for each in rig.relay._connections.values()]
        kept = [sum(map(len, each._unsent)) for each in halves if isinstance(each, GrpcWire)]
        assert 0 < sum(kept) <= WINDOW
        served._wire.resume_reading()
        await Toy(link).echo(b"")
        await until(lambda: service.blobs == 80)


@relayed
async def test_a_frame_that_takes_long_is_no_silence(rig: Rig) -> None:
    """Without nudges: the far end hears nothing of a frame before it is whole."""
    async with rig.pair(ToyService(), replace(IMPATIENT, ping_after=0.5, silence=2.5)) as pair:
        link, there = pair
        [served] = there.links
        wire = served._wire
        assert isinstance(link._wire, GrpcWire)
        link._tick_handle.cancel()  # it says nothing but this packet
        link._wire.pause_reading()
        head = struct.pack(">HBBBI", 0, 100, 0, 0, link._wire._id)
        link._wire._transport.write(head[:9])
        for _ in range(14):
            await asyncio.sleep(0.25)
            link._wire._transport.write(b"x")
        assert served._wire is wire


# ---- whom it connects, and to what -------------------------------------------------------


@relayed
async def test_a_stranger_is_turned_away_at_the_port(rig: Rig) -> None:
    service = ToyService()
    async with rig.serving(service) as there:
        here = GrpcNetwork(config=QUICK, token=new_token())
        with pytest.raises(AuthenticationError, match="another token"):
            await Toy(here.connect(rig.address("there"))).echo(b"")
        assert there._connections == {}  # type: ignore[attr-defined]
        assert service.handled == []
        await here.close()


@relayed
async def test_a_process_with_another_token_is_not_reached(rig: Rig) -> None:
    other = GrpcNetwork(config=QUICK, token=new_token())
    await other.listen(f"unix:{rig.folder}/other")
    async with rig.client(config=IMPATIENT) as here:
        link = here.connect(rig.address("other"))
        with pytest.raises(PeerLostError, match="other does not answer on its node"):
            await Toy(link).echo(b"")
    await other.close()


@relayed
async def test_only_sockets_of_the_directory_are_reached(rig: Rig) -> None:
    port = rig.address("x").partition(";")[0]
    plain = GrpcNetwork(config=IMPATIENT, token=cluster_token())
    for name in ("../outside", "a/b", ".hidden", "", "x" * 100, "nobody"):
        plain.metadata["raylite-to"] = name
        heard = Recorder()
        wire = await plain.dial(port, heard)
        if name:
            with anyio.fail_after(5):
                await heard.done.wait()
        else:
            wire.abort("served by the relay itself")
    await plain.close()
    await until(lambda: not rig.relay._connections)


@relayed
async def test_an_asker_that_is_gone_when_it_is_told_no_ends_nothing_else(rig: Rig) -> None:
    """Without the cure: the relay's process ends, and its node with it."""

    class Gone:
        def __init__(self, error: Exception) -> None:
            self.error = error

        async def send_trailing_metadata(self, **told: Any) -> None:
            raise self.error

    async def reach() -> GrpcWire:
        return await reached(rig.relay.dial, rig.folder, "nobody", 5.0)

    closed: list[str] = []
    wire: Any = SimpleNamespace(close=closed.append)
    for error in (StreamTerminatedError(), StreamClosedError(1), RuntimeError("handler closed")):
        stream: Any = Gone(error)
        await relay(wire, stream, reach)
    assert closed == ["nobody to relay to"] * 3


def test_names_lead_nowhere_else() -> None:
    assert all(map(is_name, ("w0123456789abcdef.sock", "raylet.sock", "there")))
    wrong = ("", ".", "..", "../x", "/x", "x/y", ".x", "x..y", "x.", "x\0", "x\n", "ä", "x" * 65)
    assert not any(map(is_name, wrong))


@relayed
async def test_bytes_that_are_no_packet_are_for_the_process_to_refuse(rig: Rig) -> None:
    async with rig.serving(ToyService()):
        other = GrpcNetwork(config=QUICK, token=cluster_token())
        heard = Recorder()
        wire = await other.dial(rig.address("there"), heard)
        assert isinstance(wire, GrpcWire)
        wire.forward(memoryview(b"\0\xff"))
        wire.forward(memoryview(b"\xff\xff\xff"))
        with anyio.fail_after(5):
            await heard.done.wait()
        await other.close()
        await until(lambda: not rig.relay._connections)


@relayed
async def test_a_process_that_has_taken_anothers_port_is_not_taken_for_it(rig: Rig) -> None:
    """Without names: whoever has the port now is greeted, and runs what another was to run."""
    service = ToyService()
    direct = GrpcNetwork(config=QUICK, token=cluster_token())
    await direct.listen(f"unix:{rig.folder}/second")
    place = await direct.listen("tcp:127.0.0.1:0")
    async with rig.client(config=IMPATIENT) as here:
        with pytest.raises(PeerLostError, match="first is not reached here"):
            await Toy(here.connect(f"{place};aa=unix:{rig.folder}/first")).echo(b"")
    assert service.handled == []
    await direct.close()
