"""The whole GCS on one SQLite file: killed at any moment, and started again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from raylite._kernel.link import Link
from raylite._protocol.gcs import Jobs, Kv, Nodes
from raylite._runtime.components import build_gcs
from raylite._services.gcs.storage import MemoryStorage, StorageError, open_storage
from raylite._services.gcs.storage.sqlite import SqliteStorage
from raylite._wire.messages import gcs as msg
from raylite.exceptions import RayError
from raylite.testing.loop import SimLoop
from raylite.testing.sim import SimNetwork, World
from tests.services.rig import life, node
from tests.services.storages import damage


class Acknowledged:
    """What a client was told is done."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.jobs: set[bytes] = set()
        self.epochs: list[int] = []


class Disk:
    """Takes some milliseconds a call, and after a kill does nothing any more."""

    def __init__(self, world: World, name: str) -> None:
        self._pauses = world.random(name)
        self.is_dead = False

    async def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        await anyio.sleep(self._pauses.expovariate(200))
        if self.is_dead:
            raise StorageError("the process is dead")
        return function(*args)


async def lived(world: World, path: Path, seconds: float, known: Acknowledged) -> None:
    """Let clients write to a GCS until it is killed, having checked what it kept."""
    disk = Disk(world, f"disk {len(known.epochs)}")
    storage = await SqliteStorage.open(path, disk)
    there, here = SimNetwork(world, "gcs"), SimNetwork(world, "client")
    await there.listen("gcs")
    running = build_gcs(there, storage).start("gcs")
    link = here.connect("gcs")
    await check(link, known)

    async def write(writer: int) -> None:
        for n in range(1000):
            key, value = b"%d/%d" % (writer, n % 7), world.random(f"{writer} {n}").randbytes(9)
            try:
                await Kv(link).put(msg.KvPut(b"", key, value, True))
                known.values[key] = value
                added = await Jobs(link).add(msg.AddJob(driver_id=b"%d/%d" % (writer, n)))
                known.jobs.add(added.job_id)
            except RayError:
                known.values.pop(key, None)  # it may be this value or the one before
                return

    async with anyio.create_task_group() as tasks:
        for writer in range(5):
            tasks.start_soon(write, writer)
        await anyio.sleep(seconds)
        disk.is_dead = True
        world.kill("gcs")
        running.cancel()
        link.confirm_dead("it was killed")
    with pytest.raises(StorageError, match="dead"):
        await storage.close()
    storage._file.close()


async def check(link: Link, known: Acknowledged) -> None:
    for key, value in known.values.items():
        assert (await Kv(link).get(msg.KvGet(b"", key))).value == value
    jobs = await Jobs(link).list(msg.ListJobs())
    assert {row.job_id for row in jobs.jobs} >= known.jobs
    registered = await Nodes(link).register(node())
    assert registered.epoch is not None
    known.epochs.append(registered.epoch.number)


@pytest.mark.sim
@pytest.mark.parametrize("seed", range(5))
def test_nothing_acknowledged_is_lost_when_the_gcs_is_killed(seed: int, tmp_path: Path) -> None:
    world, known = World(seed), Acknowledged()
    chance = world.random("kills")

    async def main() -> None:
        for _ in range(4):
            await lived(world, tmp_path / "gcs.db", chance.uniform(0.1, 0.4), known)

    SimLoop().run(main())
    assert known.epochs == [1, 2, 3, 4]
    assert len(known.jobs) > 20


@pytest.mark.asyncio
async def test_an_epoch_survives_damage_to_one_of_its_copies() -> None:
    storage = MemoryStorage()
    async with life(storage):
        await anyio.sleep(0.01)
    await damage(storage, "cluster", b"one", lambda record: record[:-1])
    async with life(storage) as gcs:
        listed = await gcs.client().nodes.list(msg.ListNodes())
        assert listed.epoch is not None
        assert listed.epoch.number == 2


@pytest.mark.asyncio
async def test_a_gcs_on_a_file_by_url_keeps_its_tables(tmp_path: Path) -> None:
    for number in (1, 2):
        storage = await open_storage(f"sqlite://{tmp_path}/gcs.db")
        async with life(storage) as gcs:
            client = gcs.client()
            stored = await client.kv.put(msg.KvPut(b"", b"k", b"v"))
            assert stored.added == (number == 1)
        await storage.close()
