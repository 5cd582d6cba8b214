"""A GCS dies at each step of telling its nodes of tokens, and comes back: they know what is valid, and no more."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raylite._kernel.host import Host
from raylite._kernel.keyring import Keyring
from raylite._kernel.pairing import pair
from raylite._kernel.token import (
    Token,
    create_token,
    issued_beside,
    new_token,
    read_issued,
    write_issued,
    write_tokens,
)
from raylite._machines.epochs import Epochs
from raylite._runtime.issued import AGAIN, REFUSED, IssuedService
from raylite._services.gcs.epoch import Epoch
from raylite._services.gcs.storage import MemoryStorage
from raylite._services.gcs.tokens import LOOK, TokenService
from raylite.testing.loop import SimLoop
from raylite.testing.sim import SimNetwork, World

BACK = 0.3  # seconds until there is another GCS
SOON = AGAIN + LOOK + 2.0  # seconds after which its nodes are to know what it says
FIRST, SECOND, LATER = (new_token("node") for _ in range(3))
CHANGES: tuple[list[Token], ...] = ([FIRST], [FIRST, SECOND], [SECOND], [])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


class Site:
    """A GCS that may die, a node with the cluster's own token, and one that has joined with `SECOND`."""

    def __init__(self, folder: Path, kill_at: int | None, meanwhile: list[Token] | None) -> None:
        self.head, self.member, self.lesser = (
            str(folder / name) for name in ("head", "member", "lesser")
        )
        own = create_token(self.head)
        write_tokens(self.member, [own])
        write_tokens(self.lesser, [SECOND])
        self.steps = 0
        self._kill_at, self._meanwhile = kill_at, meanwhile
        self._world = World(3)
        self.storage = MemoryStorage()
        self._world.on_packet = self._packet
        self._tasks: list[asyncio.Task[None]] = []
        self._gcs: asyncio.Task[None] | None = None
        self.is_counting = False

    async def start_gcs(self) -> None:
        network = SimNetwork(self._world, "gcs")
        await network.listen("gcs")
        self._gcs = Host(network, self._tokens()).start("gcs")
        self._tasks.append(self._gcs)

    def _tokens(self) -> TokenService:
        epoch = Epoch(self.storage, self._world.random("cluster"))
        return TokenService(Keyring.open(self.head), epoch)

    async def start_node(self, path: str) -> None:
        name = Path(path).name
        network = SimNetwork(self._world, name)
        await network.listen(name)
        service = IssuedService(network, "gcs", path, Epochs())
        self._tasks.append(Host(network, service).start(name))

    def issue(self, tokens: list[Token]) -> None:
        self.is_counting = self.is_counting or not self.steps
        write_issued(self.head, tokens)

    def known(self) -> tuple[set[Token], set[Token]]:
        return set(read_issued(self.member)), set(read_issued(self.lesser))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    def _packet(self, one: str, other: str, size: int) -> None:
        if self.is_counting and "gcs" in (one, other):
            if self.steps == self._kill_at:
                self.is_counting = False
                self._tasks.append(asyncio.get_running_loop().create_task(self._strike()))
            self.steps += 1

    async def replace_gcs(self, storage: MemoryStorage) -> None:
        """Kill the GCS, and have another on these tables in its place."""
        assert self._gcs is not None
        self._world.kill("gcs")
        self._gcs.cancel()
        await asyncio.sleep(BACK)
        self.storage = storage
        await self.start_gcs()

    async def _strike(self) -> None:
        assert self._gcs is not None
        self._world.kill("gcs")
        self._gcs.cancel()
        await asyncio.sleep(BACK)
        if self._meanwhile is not None:
            write_issued(self.head, self._meanwhile)
        await self.start_gcs()


def shared(tokens: list[Token]) -> set[Token]:
    """What who has joined with `SECOND` is to know."""
    return {pair(SECOND, each) for each in tokens if each is not SECOND and SECOND in tokens}


async def told(folder: Path, kill_at: int | None, meanwhile: list[Token] | None) -> int:
    """See tokens issued and revoked, with a GCS that dies at a step; return how many steps there are."""
    site = Site(folder, kill_at, meanwhile)
    await site.start_gcs()
    await site.start_node(site.member)
    await site.start_node(site.lesser)
    await asyncio.sleep(SOON)
    for tokens in CHANGES:
        site.issue(tokens)
        await asyncio.sleep(LOOK + 0.5)
    site.is_counting = False
    await asyncio.sleep(SOON)
    for tokens in ([*read_issued(site.head)], [LATER, SECOND], []):
        write_issued(site.head, tokens)
        await asyncio.sleep(SOON)
        assert site.known() == (set(tokens), shared(tokens))
    await site.stop()
    return site.steps


@pytest.mark.parametrize("meanwhile", [None, [FIRST, LATER], []], ids=["same", "other", "none"])
def test_a_gcs_dies_at_each_step_of_telling(folder: Path, meanwhile: list[Token] | None) -> None:
    def run(name: str, kill_at: int | None) -> int:
        place = folder / name
        place.mkdir(mode=0o700)
        return SimLoop().run(told(place, kill_at, meanwhile))

    steps = run("none", None)
    assert steps >= 4 * len(CHANGES)  # each is told to two nodes, and acknowledged
    for step in range(steps):
        assert run(f"{step}", step) > step


def test_a_token_that_was_revoked_stays_so_whatever_an_earlier_gcs_says(folder: Path) -> None:
    """It was stopped while another took its place, and has the address again; or its tables were put back."""

    async def scenario() -> None:
        site = Site(folder, None, None)
        await site.start_gcs()
        await site.start_node(site.member)
        write_issued(site.head, [FIRST, SECOND])
        await asyncio.sleep(SOON)
        assert site.known() == ({FIRST, SECOND}, set())
        before = MemoryStorage()
        before._tables = {name: dict(rows) for name, rows in site.storage._tables.items()}
        for _ in range(2):  # the third life is the latest
            await site.replace_gcs(site.storage)
            await asyncio.sleep(SOON)
        write_issued(site.head, [SECOND])
        await asyncio.sleep(SOON)
        assert site.known() == ({SECOND}, set())
        write_issued(site.head, [FIRST, SECOND])
        await site.replace_gcs(before)
        for _ in range(int(SOON * 10)):
            await asyncio.sleep(0.1)
            assert site.known() == ({SECOND}, set())
        write_issued(site.head, [SECOND, LATER])
        await site.replace_gcs(site.storage)
        await asyncio.sleep(SOON)
        assert site.known() == ({SECOND, LATER}, set())
        await site.stop()

    SimLoop().run(scenario())


@contextmanager
def in_the_way(path: str) -> Iterator[None]:
    """Where nothing can be written, as if the disk were full: where the new file belongs is a directory."""
    blocked = f"{issued_beside(path)}.new"
    os.mkdir(blocked)
    yield
    os.rmdir(blocked)


def test_a_node_that_cannot_keep_what_it_hears_goes_on_and_tries_again(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        site = Site(folder, None, None)
        await site.start_gcs()
        await site.start_node(site.member)
        with in_the_way(site.member):
            write_issued(site.head, [FIRST])
            await asyncio.sleep(SOON)
            assert site.known() == (set(), set())
        await asyncio.sleep(REFUSED + SOON)
        assert site.known() == ({FIRST}, set())
        await site.stop()

    SimLoop().run(scenario())
    assert "this node cannot keep which tokens are valid" in caplog.text
