"""Two hosts and a toy service, over any of the networks: what the contract tests run on."""

import asyncio
import functools
import os
import random
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import anyio
import msgspec
import pytest
import uvloop
from msgspec.structs import replace

from raylite._kernel.grpc import GrpcNetwork
from raylite._kernel.host import Host
from raylite._kernel.interface import Interface, batch, call, feed, post
from raylite._kernel.link import Link, LinkConfig
from raylite._kernel.memory import MemoryNetwork, Switch
from raylite._kernel.network import Network
from raylite._kernel.service import Service, handles
from raylite.exceptions import LinkClosedError, LinkError, UnavailableError
from raylite.testing.loop import SimLoop
from raylite.testing.sim import SimNetwork, World
from tests.kernel.membership import cluster_tls, cluster_token

T = TypeVar("T")

uvloop.new_event_loop().close()  # libuv opens a pipe for signals, once in a process, and keeps it

KINDS = ("memory", "grpc-asyncio", "grpc-uvloop", "grpc-tcp", "grpc-tls", "grpc-relay", "sim")
PLAIN = ("memory", "grpc-asyncio", "grpc-uvloop", "sim")  # for what TCP can make no different
ON_UVLOOP = {"grpc-uvloop", "grpc-tls", "grpc-relay"}
QUICK = LinkConfig(redial_first=0.001, redial_last=0.01, local_patience=1.0)  # all wires alike
IMPATIENT = replace(QUICK, ping_after=0.05, silence=0.2, session_timeout=0.4, connect_timeout=0.2)
KIB, MIB = 1024, 1024 * 1024


class Order(msgspec.Struct, array_like=True, frozen=True):
    """Asks the toy for a number of items of a size."""

    count: int
    size: int = 0


class Toy(Interface):
    echo = call(bytes, bytes)
    echo_later = call(bytes, bytes)
    hold = call(bytes, bytes)
    fail = call(str, bytes)
    make = call(int, bytes)
    note = post(int)
    blob = post(bytes)
    bulk = post(int, bulk=True)
    items = batch(int)
    count = feed(int, int)
    fill = feed(Order, bytes)
    hold_feed = feed(int, int)


class Unserved(Interface):
    ask = call(bytes, bytes)
    tell = post(bytes)


class ToyService(Service, serves=(Toy,)):
    """Remembers what it was told, and says when something begins and how it ends."""

    def __init__(self) -> None:
        self.notes: list[int] = []
        self.lists: list[list[int]] = []
        self.blobs = 0
        self.produced = 0
        self.handled: list[str] = []
        self.began, self.cancelled = asyncio.Event(), asyncio.Event()
        self.release = asyncio.Event()

    @handles(Toy.echo)
    def echo(self, request: bytes) -> bytes:
        self.handled.append("echo")
        return request

    @handles(Toy.echo_later)
    async def echo_later(self, request: bytes) -> bytes:
        await asyncio.sleep(0)
        return request

    @handles(Toy.hold)
    async def hold(self, request: bytes) -> bytes:
        self.began.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return request

    @handles(Toy.fail)
    def fail(self, kind: str) -> bytes:
        if kind == "expected":
            raise UnavailableError("no luck")
        raise ZeroDivisionError("a bug")

    @handles(Toy.make)
    def make(self, size: int) -> bytes:
        return bytes(size)

    @handles(Toy.note)
    def note(self, number: int) -> None:
        self.notes.append(number)
        self.handled.append("note")

    @handles(Toy.blob)
    def blob(self, data: bytes) -> None:
        self.blobs += 1

    @handles(Toy.bulk)
    def bulk(self, number: int) -> None:
        self.handled.append("bulk")

    @handles(Toy.items)
    def items(self, items: list[int]) -> None:
        self.lists.append(items)

    @handles(Toy.count)
    async def count(self, upto: int) -> AsyncIterator[int]:
        for number in range(upto):
            self.produced += 1
            yield number

    @handles(Toy.fill)
    async def fill(self, order: Order) -> AsyncIterator[bytes]:
        for _ in range(order.count):
            self.produced += 1
            yield bytes(order.size)

    @handles(Toy.hold_feed)
    async def hold_feed(self, first: int) -> AsyncIterator[int]:
        try:
            yield first
            self.began.set()
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


class Behind(GrpcNetwork):
    """A process whose node is reached by another's port."""

    async def listen(self, address: str, sock: socket.socket | None = None) -> str:
        self.address = address
        await super().listen(address.rpartition("=")[2], sock)
        return address


class Rig:
    """One kind of network, the loop it runs on, and what can happen to its connections."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.random = random.Random(kind)
        self.folder = tempfile.mkdtemp(prefix="rig-") if kind.startswith("grpc") else ""
        self._switch, self._world = Switch(), World(1)
        self._hidden: dict[str, Any] = {}
        self._ports: dict[str, socket.socket] = {}
        self._networks: dict[str, GrpcNetwork] = {}

    def run(self, work: Coroutine[Any, Any, T], seconds: float = 20) -> T:
        if self.kind == "sim":
            self._world = World(1)
            return SimLoop().run(work)
        make_loop = uvloop.new_event_loop if self.kind in ON_UVLOOP else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=make_loop) as runner:
            if self.is_relayed:
                work = self._behind_a_relay(work)
            return runner.run(_within(seconds, work))

    async def _behind_a_relay(self, work: Coroutine[Any, Any, T]) -> T:
        self.relay = GrpcNetwork(config=QUICK, token=cluster_token())
        self.relay.relays = self.folder
        await self.relay.listen(f"tcp:127.0.0.1:{self._port('relay')}")
        try:
            return await work
        finally:
            await self.relay.close()

    def close(self) -> None:
        if self.folder:
            shutil.rmtree(self.folder)
        for port in self._ports.values():
            port.close()

    @property
    def is_tcp(self) -> bool:
        return self.kind in ("grpc-tcp", "grpc-tls")

    @property
    def is_relayed(self) -> bool:
        return self.kind == "grpc-relay"

    def network(self, name: str, config: LinkConfig = QUICK) -> Network:
        if self.kind == "memory":
            return MemoryNetwork(self._switch, config=config)
        if self.kind == "sim":
            return SimNetwork(self._world, name, config)
        token = cluster_token() if self.is_tcp or self.is_relayed else None
        tls = cluster_tls() if self.kind == "grpc-tls" else None
        make = Behind if self.is_relayed else GrpcNetwork
        network = self._networks[name] = make(config=config, token=token, tls=tls)
        return network

    def address(self, name: str) -> str:
        if self.is_tcp:
            return f"tcp:127.0.0.1:{self._port(name)}"
        if self.is_relayed:
            return f"tcp:127.0.0.1:{self._port('relay')};aa=unix:{self.folder}/{name}"
        return f"unix:{self.folder}/{name}" if self.folder else name

    def _port(self, name: str) -> int:
        """A port that nobody else takes: a socket is bound to it that does not listen."""
        if name not in self._ports:
            sock = self._ports[name] = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", 0))
        return int(self._ports[name].getsockname()[1])

    async def moment(self) -> None:
        """Let a little happen, as much as chance will have it."""
        if self.kind == "sim":
            await asyncio.sleep(self.random.random() * 0.01)
        for _ in range(self.random.randrange(20)):
            await asyncio.sleep(0)

    def hide(self, name: str) -> None:
        """Let nobody reach this host any more."""
        address = self.address(name)
        if self.kind == "memory":
            self._hidden[name] = self._switch.listening.pop(address)
        elif self.kind == "sim":
            self._hidden[name] = self._world.networks.pop(address)
        elif self.is_tcp:
            self._networks[name]._reception.close()
        else:
            os.rename(f"{self.folder}/{name}", f"{self.folder}/{name}-hidden")

    def unhide(self, name: str) -> None:
        address = self.address(name)
        if self.kind == "memory":
            self._switch.listening[address] = self._hidden.pop(name)
        elif self.kind == "sim":
            self._world.networks[address] = self._hidden.pop(name)
        elif self.is_tcp:
            self._networks[name]._reception.listen(address, None)
        else:
            os.rename(f"{self.folder}/{name}-hidden", f"{self.folder}/{name}")

    @asynccontextmanager
    async def serving(
        self, service: Service, name: str = "there", config: LinkConfig = QUICK
    ) -> AsyncIterator[Network]:
        """Host a service until the block ends, which raises what crashed it."""
        network = self.network(name, config)
        await network.listen(self.address(name))
        host = Host(network, service, grace=0.1)
        running = asyncio.create_task(host.run())
        try:
            yield network
        finally:
            host.stop()
            await running

    @asynccontextmanager
    async def client(
        self, name: str = "here", config: LinkConfig = QUICK
    ) -> AsyncIterator[Network]:
        network = self.network(name, config)
        try:
            yield network
        finally:
            await network.close()

    @asynccontextmanager
    async def pair(
        self, service: Service, config: LinkConfig = QUICK
    ) -> AsyncIterator[tuple[Link, Network]]:
        """A service that runs, and an open link to it."""
        async with AsyncExitStack() as stack:
            there = await stack.enter_async_context(self.serving(service, config=config))
            here = await stack.enter_async_context(self.client(config=config))
            link = here.connect(self.address("there"))
            await link.wait_attached()
            yield link, there


def contract(test: Callable[[Rig], Awaitable[None]]) -> Callable[..., None]:
    """Run an async test over every kind of network."""

    @pytest.mark.parametrize("kind", KINDS)
    def run(kind: str) -> None:
        run_on(kind, test)

    functools.update_wrapper(run, test)
    del run.__wrapped__  # type: ignore[attr-defined] # pytest would ask it for its parameters
    return run


def run_on(kind: str, test: Callable[[Rig], Awaitable[T]], seconds: float = 20) -> T:
    """Run an async function on one kind of network; nothing may be left behind in the loop."""
    rig = Rig(kind)

    async def main() -> T:
        result = await test(rig)
        for _ in range(5):
            await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks were left behind: {left}"
        return result

    try:
        return rig.run(main(), seconds)
    finally:
        rig.close()


class Recorder:
    """Hears what a raw wire brings."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []
        self.done = asyncio.Event()
        self.can_write = asyncio.Event()

    def packet(self, data: bytes | memoryview) -> None:
        self.packets.append(bytes(data))

    def arriving(self) -> None: ...

    def malformed(self, error: LinkError) -> None: ...

    def broken(self, reason: str) -> None:
        self.done.set()

    def writable(self) -> None:
        self.can_write.set()


def crash(network: Network) -> None:
    """Let a process die, as its peers see it: no goodbye, and no answer any more."""
    for link in network.links:
        link.finish(LinkClosedError("crashed"))
    network._links.clear()


def freeze(network: Network) -> None:
    """Let a process stand still: it neither reads nor sends, and its connections stay open."""
    for link in network.links:
        link._tick_handle.cancel()
        if link._wire is not None:
            link._wire.pause_reading()


async def until(condition: Callable[[], bool]) -> None:
    """Wait, in loop ticks, for something that other tasks are about to bring about."""
    while not condition():
        await anyio.sleep(0.001)


async def _within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    async with asyncio.timeout(seconds):
        return await work


def chunks(total: int) -> Iterator[int]:
    """Sizes that add up to a total, small and large in turn."""
    sizes = (1, 7, 100, 1)
    done = 0
    while done < total:
        size = min(sizes[done % len(sizes)], total - done)
        yield size
        done += size
