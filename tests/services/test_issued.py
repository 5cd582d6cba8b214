"""Tokens that are issued on the head become known to nodes that have the cluster's own, and are forgotten."""

import asyncio
import random
from pathlib import Path

import anyio
import pytest

from raylite._kernel.host import Host
from raylite._kernel.keyring import Keyring
from raylite._kernel.memory import MemoryNetwork, Switch
from raylite._kernel.pairing import pair
from raylite._kernel.token import (
    Token,
    create_token,
    new_token,
    read_issued,
    write_issued,
    write_tokens,
)
from raylite._machines.epochs import Epochs
from raylite._protocol.gcs import Tokens
from raylite._runtime.issued import IssuedService
from raylite._services.gcs.epoch import Epoch
from raylite._services.gcs.storage import MemoryStorage
from raylite._services.gcs.tokens import TokenService
from raylite._wire.messages import gcs as msg
from raylite.testing.loop import SimLoop


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def test_nodes_know_what_is_issued_until_it_is_revoked_also_over_a_restart_of_the_gcs(
    folder: Path,
) -> None:
    head, member, lesser = (f"{folder}/{name}" for name in ("head", "member", "lesser"))
    own = create_token(head)
    write_tokens(member, [own])
    first, second, reader = new_token("node"), new_token("node"), new_token("read")
    shared = pair(first, second)
    write_tokens(lesser, [first])  # it has joined with a token that was issued
    write_issued(member, [kept := new_token("read")])

    async def scenario() -> None:
        switch, storage = Switch(), MemoryStorage()

        async def gcs() -> tuple[Host, asyncio.Task[None]]:
            network = MemoryNetwork(switch)
            await network.listen("gcs")
            epoch = Epoch(storage, random.Random(1))
            host = Host(network, TokenService(Keyring.open(head), epoch))
            return host, host.start("gcs")

        nodes = []
        for path in (member, lesser):
            network = MemoryNetwork(switch)
            await network.listen(path)
            host = Host(network, IssuedService(network, "gcs", path, Epochs()))
            nodes.append((host, host.start(path)))
        running, task = await gcs()

        async def known(*tokens: Token) -> None:
            await anyio.sleep(5)
            assert set(read_issued(member)) == {kept, *tokens}
            assert read_issued(lesser) == ((shared,) if {first, second} == {*tokens} else ())

        await known()
        write_issued(head, [first, reader])
        await known(first)
        write_issued(head, [first, reader, second])
        await known(first, second)
        write_tokens(head, [new := new_token(), own])  # the member does not know that one yet
        await known(first, second)
        running.stop()
        await task
        write_issued(head, [second])
        running, task = await gcs()
        await known(second)
        write_tokens(member, [new, own])
        write_tokens(head, [new])
        await known(second)
        write_issued(head, [])
        await known()

        asking = MemoryNetwork(switch)
        write_issued(head, [second])
        async for told in Tokens(asking.connect("gcs")).watch(msg.WatchTokens()):
            assert second.secret not in bytes(told)
            assert [each.id for each in told.tokens] == [second.id]  # no older news
            break
        await asking.close()
        for host, ended in [*nodes, (running, task)]:
            host.stop()
            await ended

    SimLoop().run(scenario())
