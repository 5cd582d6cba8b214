"""Pickles that do something, sent to the GCS and a raylet in all places: nothing is ever done."""

import asyncio
import copy
import dataclasses
import enum
import inspect
import os
import pickle
import socket
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
import uvloop

from raylite._kernel.codec import Codec
from raylite._kernel.connection import PREFACE
from raylite._kernel.grpc import GrpcNetwork
from raylite._kernel.interface import Interface, Route, batch, call, feed
from raylite._kernel.link import Link, LinkConfig
from raylite._kernel.token import Token, new_token, read_token
from raylite._protocol import gcs, raylet, worker
from raylite._runtime.records import NodeRecord
from raylite.exceptions import AuthenticationError, RayError
from tests.cluster.started import component, nodes, raylite, start

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

INTERFACES = [
    each
    for module in (gcs, raylet, worker)
    for each in vars(module).values()
    if isinstance(each, type) and issubclass(each, Interface) and each is not Interface
]
ROUTES = [route for interface in INTERFACES for route in interface.routes.values()]
BRIEF = LinkConfig(session_timeout=5.0)
RAW = Codec(bytes, bytes)


class Bomb:
    """Makes a directory when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = str(marker)

    def __reduce__(self) -> Any:
        return os.mkdir, (self._marker,)


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeRecord]:
    """A node of which the GCS and the raylet are, in the end, those that they were."""
    with TemporaryDirectory(prefix="rl-") as folder:
        monkeypatch.setenv("RAYLITE_TMPDIR", folder)
        try:
            yield start("--head", "--port=0")
        finally:
            raylite("stop", "--force")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


@pytest.fixture
def bomb(marker: Path) -> bytes:
    made = pickle.dumps(Bomb(marker))
    pickle.loads(made)
    marker.rmdir()  # it works
    return made


def daemons(head: NodeRecord) -> dict[str, int]:
    return {role: component(head, role) for role in ("gcs", "raylet")}


def places(head: NodeRecord) -> list[str]:
    """Where the GCS and the raylet of a node listen."""
    [row] = nodes(head)
    unix = [f"unix:{head.session_dir}/sockets/{role}.sock" for role in ("gcs", "raylet")]
    return [f"tcp:{head.cluster}", row.address.partition(";")[0], *unix]


def test_whoever_has_not_proven_itself_is_not_heard(
    head: NodeRecord, bomb: bytes, marker: Path
) -> None:
    before = daemons(head)
    data = b"\0" + len(bomb).to_bytes(4, "big") + bomb
    frame = len(data).to_bytes(3, "big") + b"\0\0\0\0\0\1" + data
    for place in places(head):
        for said in (bomb, PREFACE + bomb, PREFACE + b"\0\0\0\4\0\0\0\0\0" + frame):
            knock(place, said)
        for token in (None, new_token(), other_scope(head)):
            for route in (gcs.Kv.put, raylet.Leases.blocked, worker.Execute.run):
                with pytest.raises(AuthenticationError):
                    uvloop.run(sent(place, token, raw(route), bomb))
    assert daemons(head) == before
    assert not marker.exists()


def other_scope(head: NodeRecord) -> Token:
    """A token with the cluster's name and another secret."""
    return dataclasses.replace(read_token(head.token_file), secret=bytes(32))


def knock(place: str, said: bytes) -> None:
    """Say something to a bare socket, and wait until it is closed."""
    kind, _, where = place.partition(":")
    with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) as sock:
        sock.settimeout(10)
        host, _, port = where.rpartition(":")
        sock.connect(where if kind == "unix" else (host, int(port)))
        try:
            sock.sendall(said)
            while sock.recv(4096):
                pass
        except ConnectionError:
            pass


async def sent(place: str, token: Token | None, route: Route, message: Any) -> None:
    """Send a message by a route; what comes back does not matter, and the link may end of it."""
    network = GrpcNetwork(config=BRIEF, token=token)
    try:
        await send(network.connect(place), route, message)
    finally:
        await network.close()


async def send(link: Link, route: Route, message: Any) -> None:
    await link.wait_attached()
    async with asyncio.timeout(0.5):
        match route:
            case call():
                await link.call(route, message)
            case feed():
                async for _ in link.feed(route, message):
                    break
            case batch():
                link.batch(route, message)
            case _:
                link.post(route, message)
        await asyncio.sleep(0.05)


def raw(route: Route) -> Route:
    """The same route on the wire, for bodies of any bytes."""
    shadow = copy.copy(route)
    shadow.request = shadow.reply = RAW
    if isinstance(shadow, batch):
        shadow.encode_item = bytes
    return shadow


def kind_of(route: Route) -> Any:
    """The type of a route's messages."""
    if route.request.decode is bytes:
        return bytes
    message = inspect.getclosurevars(route.request.decode).nonlocals["message"]
    return typing.get_args(message)[0] if isinstance(route, batch) else message


def filled(kind: Any, bomb: bytes, depth: int = 4) -> Any:
    """A message of a type, or a value in one, with the bomb wherever there is room for bytes."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is bytes:
        return bomb
    if kind in (int, float, str, bool):
        return kind(1)
    if origin in (typing.Union, types.UnionType):
        return filled(args[0], bomb, depth)
    if origin in (list, tuple, frozenset, set) or origin is Sequence:
        several = [filled(each, bomb, depth - 1) for each in args if each is not ...] * bool(depth)
        return (list if origin is Sequence else origin)(several)
    if origin in (dict, Mapping):
        return {filled(args[0], bomb): filled(args[1], bomb, depth - 1)}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return next(iter(kind))
    if kind is Any or kind is type(None):
        return None
    hints = typing.get_type_hints(kind)
    names = (
        [each.name for each in dataclasses.fields(kind)]
        if dataclasses.is_dataclass(kind)
        else kind.__struct_fields__
    )
    return kind(**{name: filled(hints[name], bomb, depth - 1) for name in names})


def test_most_messages_have_room_for_a_bomb() -> None:
    """So that the test below sends what it says."""
    assert sum(b"bomb" in encoded(route) for route in ROUTES) > 0.7 * len(ROUTES)


def encoded(route: Route) -> bytes:
    message = filled(kind_of(route), b"bomb")
    return (
        msgspec.msgpack.encode(message)
        if isinstance(route, batch)
        else route.request.encode(message)
    )


@pytest.mark.parametrize("whole", [True, False], ids=["as the body", "in every field"])
def test_what_a_member_sends_is_not_unpickled(
    head: NodeRecord, bomb: bytes, marker: Path, whole: bool
) -> None:
    before = daemons(head)
    token = read_token(head.token_file)

    async def send_one(place: str, route: Route) -> None:
        message = bomb if whole else filled(kind_of(route), bomb)
        with suppress(RayError, TimeoutError):
            await sent(place, token, raw(route) if whole else route, message)

    async def send_all(place: str) -> None:
        async with asyncio.TaskGroup() as group:
            for route in ROUTES:
                group.create_task(send_one(place, route))

    for role in ("gcs", "raylet"):
        uvloop.run(send_all(f"unix:{head.session_dir}/sockets/{role}.sock"))
    assert daemons(head) == before
    assert not marker.exists()
    assert raylite("health-check").returncode == 0
