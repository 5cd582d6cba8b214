"""The Job service: drivers from their start to their end, over restarts of the GCS too."""

import anyio

from raylite._services.gcs.storage import MemoryStorage
from raylite._services.gcs.table import KEPT
from raylite._wire.messages import gcs as msg
from tests.services.rig import Client, life, simulated, take
from tests.services.storages import GatedStorage, damage

RUNNING, SUCCEEDED, DEAD = msg.JobState.RUNNING, msg.JobState.SUCCEEDED, msg.JobState.DEAD


def driver(name: bytes) -> msg.AddJob:
    return msg.AddJob(
        driver_id=name,
        driver_pid=7,
        driver_address="unix:driver",
        node_id=b"n",
        entrypoint="python a.py",
        namespace="space",
        config=b"{}",
    )


async def rows(client: Client) -> list[msg.Job]:
    return list((await client.jobs.list(msg.ListJobs())).jobs)


async def states(client: Client) -> list[msg.JobState]:
    return [row.state for row in await rows(client)]


@simulated
async def test_a_row_says_who_the_driver_is_and_when_it_began() -> None:
    async with life(MemoryStorage()) as gcs:
        client = gcs.client()
        added = await client.jobs.add(driver(b"d"))
        (row,) = await rows(client)
        assert row.job_id == added.job_id == b"\1\0\0\0"
        assert (row.driver_pid, row.driver_address, row.node_id) == (7, "unix:driver", b"n")
        assert (row.entrypoint, row.namespace, row.config) == ("python a.py", "space", b"{}")
        assert (row.state, row.finished, row.started_at > 0) == (RUNNING, False, True)


@simulated
async def test_a_job_ends_by_its_drivers_word_or_with_it() -> None:
    async with life(MemoryStorage()) as gcs:
        one, two, watcher = gcs.client(), gcs.client(), gcs.client()
        added = await one.jobs.add(driver(b"one"))
        await two.jobs.add(driver(b"two"))
        events = aiter(watcher.jobs.watch(msg.WatchJobs()))
        assert len((await anext(events)).jobs) == 2
        await one.jobs.finish(msg.FinishJob(added.job_id))
        await one.jobs.finish(msg.FinishJob(added.job_id))
        await one.leave()
        await two.leave()
        seen = [job for event in await take(events, 2) for job in event.jobs]
        assert [row.state for row in seen] == [SUCCEEDED, DEAD]
        assert await states(watcher) == [SUCCEEDED, DEAD]
        assert all(row.finished and row.finished_at > 0 for row in seen)


@simulated
async def test_adding_twice_at_once_makes_one_job() -> None:
    storage = GatedStorage()
    async with life(storage) as gcs:
        client = gcs.client()
        await rows(client)
        storage.is_holding = True
        added: list[bytes] = []

        async def add() -> None:
            added.append((await client.jobs.add(driver(b"d"))).job_id)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(add)
            tasks.start_soon(add)
            await anyio.sleep(1)
            assert added == []
            storage.release()
        assert added == [b"\1\0\0\0"] * 2
        assert len(await rows(client)) == 1


@simulated
async def test_a_driver_that_left_before_its_job_was_durable_leaves_no_running_job() -> None:
    storage = GatedStorage()
    async with life(storage) as gcs:
        client, other = gcs.client(), gcs.client()
        await rows(other)
        storage.is_holding = True
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.jobs.add, driver(b"d"))
            await anyio.sleep(1)
            tasks.cancel_scope.cancel()
        await client.leave()
        storage.release()
        await anyio.sleep(1)
        assert await states(other) == [DEAD]


@simulated
async def test_an_end_is_told_once_the_storage_takes_it() -> None:
    storage = GatedStorage()
    async with life(storage) as gcs:
        client, other = gcs.client(), gcs.client()
        await client.jobs.add(driver(b"d"))
        storage.fails = True
        await client.leave()
        await anyio.sleep(3)
        assert await states(other) == [RUNNING]
        storage.fails = False
        await anyio.sleep(2)
        assert await states(other) == [DEAD]


# ---- restarts ----------------------------------------------------------------------------


@simulated
async def test_a_restart_keeps_jobs_and_their_driver_may_say_that_it_is_there() -> None:
    storage = MemoryStorage()
    async with life(storage) as gcs:
        staying, leaving = gcs.client(), gcs.client()
        kept = await staying.jobs.add(driver(b"staying"))
        await leaving.jobs.add(driver(b"leaving"))
        before = await rows(staying)
    async with life(storage) as gcs:
        client = gcs.client()
        assert await rows(client) == before
        again = await client.jobs.add(driver(b"staying"))
        assert again.job_id == kept.job_id
        assert again.epoch is not None
        assert again.epoch.number == 2
        await anyio.sleep(59)
        assert await states(client) == [RUNNING, RUNNING]
        await anyio.sleep(3)
        assert await states(client) == [RUNNING, DEAD]
        late = gcs.client()
        refused = await late.jobs.add(driver(b"leaving"))
        assert (refused.job_id, refused.has_ended) == (b"\2\0\0\0", True)
        await client.leave()
        assert await states(late) == [DEAD, DEAD]


@simulated
async def test_a_job_whose_record_is_damaged_is_its_drivers_again_if_it_says_so_in_time() -> None:
    storage = MemoryStorage()
    async with life(storage) as gcs:
        for name in (b"one", b"two", b"three"):
            await gcs.client().jobs.add(driver(name))
    for number in (1, 2):
        await damage(storage, "jobs", b"%c\0\0\0" % number, lambda record: record[:-1])
    async with life(storage) as gcs:

        async def claim(name: bytes, job_id: bytes) -> tuple[bytes, bool]:
            request = driver(name)
            request.job_id = job_id
            added = await gcs.client().jobs.add(request)
            return added.job_id, added.has_ended

        async def again(name: bytes, number: int) -> tuple[bytes, bool]:
            return await claim(name, b"%c\0\0\0" % number)

        for invented in (b"\7\0\0\0", b"\xff" * 4, bytes(140), b"\1"):
            assert await claim(b"liar", invented) == (invented, True)

        assert await again(b"one", 1) == (b"\1\0\0\0", False)
        assert await again(b"one", 1) == (b"\1\0\0\0", False)
        assert await again(b"stranger", 3) == (b"\3\0\0\0", True)
        assert (await gcs.client().jobs.add(driver(b"new"))).job_id == b"\4\0\0\0"
        await anyio.sleep(61)
        assert await again(b"two", 2) == (b"\2\0\0\0", True)


@simulated
async def test_a_number_is_never_given_twice() -> None:
    storage = MemoryStorage()
    async with life(storage) as gcs:
        client = gcs.client()
        for n in range(KEPT + 5):
            added = await client.jobs.add(driver(b"%d" % n))
            await client.jobs.finish(msg.FinishJob(added.job_id))
        assert len(await rows(client)) < KEPT + 3
    await damage(storage, "counters", b"jobs", lambda record: record[:-1])
    async with life(storage) as gcs:
        added = await gcs.client().jobs.add(driver(b"next"))
        assert int.from_bytes(added.job_id, "little") == KEPT + 6
