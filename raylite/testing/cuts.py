"""Cutting nodes off from one another whose processes are real: nothing passes, and nobody is told."""

import asyncio
import mmap
import struct
from collections.abc import Iterable
from functools import partial
from typing import Any

from raylite._kernel.grpc import GrpcNetwork
from raylite._kernel.interface import SCOPES
from raylite._kernel.wire import Wire, WireEvents
from raylite._runtime import networks
from raylite._runtime.node import NodeConfig
from raylite._types.marks import mark_of
from raylite.exceptions import LinkError

CUTS = "cuts"
"""The setting of a node that names the file of its cluster's `Cuts`."""

_HEAD = struct.Struct("<QI")  # how often it was changed, and how long what follows is
_SIZE = 64 * 1024
_MARK = 16  # characters


class Cuts:
    """Which nodes are cut off from the others, in a file that every process of a cluster maps.

    One process writes it.

    Args:
        path: The file, made if it is not there.
    """

    def __init__(self, path: str) -> None:
        with open(path, "a+b") as file:
            file.truncate(_SIZE)
            self._map = mmap.mmap(file.fileno(), _SIZE)
        self._seen = b""
        self._island = frozenset[str]()

    def set(self, marks: Iterable[str]) -> None:
        """Cut the nodes with these marks off from all others; with none, from nobody.

        Raises:
            ValueError: There are too many.
        """
        text = "".join(marks).encode()
        if len(text) > _SIZE - _HEAD.size:
            raise ValueError(f"{len(text) // _MARK} nodes cannot be cut off at once")
        number, _ = _HEAD.unpack_from(self._map)
        self._map[_HEAD.size : _HEAD.size + len(text)] = text
        _HEAD.pack_into(self._map, 0, number + 1, len(text))  # last: who reads it has the rest

    def passes(self, one: str, other: str) -> bool:
        """Say whether anything passes between two nodes."""
        head = self._map[: _HEAD.size]
        if head != self._seen:
            self._seen = head
            _, size = _HEAD.unpack(head)
            text = self._map[_HEAD.size : _HEAD.size + size].decode()
            self._island = frozenset(text[n : n + _MARK] for n in range(0, size, _MARK))
        return (one in self._island) == (other in self._island)

    def close(self) -> None:
        """Unmap the file."""
        self._map.close()


class CuttableNetwork(GrpcNetwork):
    """A network whose connections to other nodes carry nothing while a cut is between.

    The side that has dialled drops what comes and goes, as a router would.
    """

    def __init__(self, cuts: Cuts, **options: Any) -> None:
        super().__init__(**options)
        self._cuts = cuts

    async def dial(
        self, address: str, events: WireEvents, *, relays: str = "", onward: str = ""
    ) -> Wire:
        mark = mark_of(address)
        if mark in ("", self.node):
            return await super().dial(address, events, relays=relays, onward=onward)
        if not self._cuts.passes(self.node, mark):
            await asyncio.get_running_loop().create_future()  # nobody answers; the dialler gives up
        wire = _CutWire(partial(self._cuts.passes, self.node, mark), events)
        wire.inner = await super().dial(address, wire, relays=relays, onward=onward)
        return wire

    async def knock(self, address: str) -> None:
        if (mark := mark_of(address)) and not self._cuts.passes(self.node, mark):
            raise ConnectionError("no machine answers there")
        await super().knock(address)


class _CutWire:
    """A wire to another node. One that has lost something breaks when next it could carry something."""

    inner: Wire
    is_local = False
    scope = SCOPES[-1]  # it was dialled, by a member

    def __init__(self, passes: partial[bool], events: WireEvents) -> None:
        self.events = events
        self._passes = passes
        self._has_lost = self._is_broken = False

    # ---- what links ask of it ------------------------------------------------------------

    @property
    def limit(self) -> int:
        return self.inner.limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self.inner.limit = limit

    @property
    def is_writable(self) -> bool:
        return self.inner.is_writable

    def send(self, packet: bytes) -> None:
        if self._carries():
            self.inner.send(packet)

    def pause_reading(self) -> None:
        self.inner.pause_reading()

    def resume_reading(self) -> None:
        self.inner.resume_reading()

    def close(self, reason: str) -> None:
        self.inner.close(reason)

    def abort(self, reason: str) -> None:
        self.inner.abort(reason)
        if self._is_broken:  # which nobody was told
            self._is_broken = False
            asyncio.get_running_loop().call_soon(self.events.broken, reason)

    # ---- what it hears -------------------------------------------------------------------

    def packet(self, data: bytes | memoryview) -> None:
        if self._carries():
            self.events.packet(data)

    def arriving(self) -> None:
        if self._carries():
            self.events.arriving()

    def malformed(self, error: LinkError) -> None:
        self.events.malformed(error)

    def broken(self, reason: str) -> None:
        if self._passes():
            self.events.broken(reason)
        else:
            self._is_broken = self._has_lost = True

    def writable(self) -> None:
        self.events.writable()

    def _carries(self) -> bool:
        if self._passes() and not self._has_lost:
            return True
        if not self._has_lost:
            self._has_lost = True
        elif self._passes():
            asyncio.get_running_loop().call_soon(self.abort, "something was lost on the way")
        return False


def network_of(
    config: NodeConfig, *, newcomers: bool = False, cuts: Cuts | None = None
) -> GrpcNetwork:
    """Return a network for a process of a node that may be cut off, if it says by what."""
    if cuts is None and CUTS not in config.system:  # what `init` starts in a `Nursery`
        return networks.network_of(config, newcomers=newcomers)
    cuts = cuts or Cuts(str(config.system[CUTS]))
    return networks.network_of(config, newcomers=newcomers, make=partial(CuttableNetwork, cuts))
