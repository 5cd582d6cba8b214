"""The Worker service: what raylets report of their workers, and that workers die with their node."""

import anyio

from raylite._services.gcs.storage import MemoryStorage
from raylite._wire.messages import gcs as msg
from tests.services.rig import Client, life, node, simulated
from tests.services.storages import GatedStorage


def report(
    client: Client, *workers: msg.Worker, complete: bool = False, incarnation: int = 1
) -> None:
    client.workers.report(msg.ReportWorkers(b"n", incarnation, list(workers), complete))


def living(worker_id: bytes) -> msg.Worker:
    return msg.Worker(worker_id=worker_id, pid=7, job_id=b"j", alive=True)


async def rows(client: Client) -> dict[bytes, msg.Worker]:
    return {row.worker_id: row for row in (await client.workers.list(msg.ListWorkers())).workers}


async def causes(client: Client) -> dict[bytes, str | None]:
    """Return why each worker died; None of those that live."""
    return {id: None if row.alive else row.exit_cause for id, row in (await rows(client)).items()}


@simulated
async def test_a_worker_is_listed_from_its_start_to_after_its_end() -> None:
    async with life(MemoryStorage()) as gcs:
        raylet, watcher = gcs.client(), gcs.client()
        await raylet.nodes.register(node())
        events = aiter(watcher.workers.watch(msg.WatchWorkers()))
        assert not (await anext(events)).workers
        report(raylet, living(b"w"))
        await anyio.sleep(0.1)
        born = (await rows(watcher))[b"w"]
        report(raylet, msg.Worker(worker_id=b"w", pid=7, job_id=b"j", exit_cause="signal 9"))
        (died,) = (await anext(events)).workers
        assert (born.alive, born.node_id, born.pid) == (True, b"n", 7)
        assert (died.alive, died.exit_cause) == (False, "signal 9")
        assert died.started_at == born.started_at
        assert died.ended_at >= died.started_at > born.ended_at == 0
        assert await rows(watcher) == {b"w": died}
        assert [died] == (await anext(aiter(raylet.workers.watch(msg.WatchWorkers())))).workers


@simulated
async def test_a_complete_report_ends_those_that_are_not_in_it() -> None:
    async with life(MemoryStorage()) as gcs:
        raylet = gcs.client()
        await raylet.nodes.register(node())
        report(raylet, living(b"a"), living(b"b"))
        report(raylet, living(b"b"), living(b"c"), complete=True)
        await anyio.sleep(0.1)
        gone = "its raylet knows of it no more"
        assert await causes(raylet) == {b"a": gone, b"b": None, b"c": None}


@simulated
async def test_workers_die_with_their_node() -> None:
    async with life(MemoryStorage()) as gcs:
        raylet, other = gcs.client(), gcs.client()
        await raylet.nodes.register(node())
        report(raylet, living(b"w"))
        await anyio.sleep(0.1)
        await raylet.leave()
        await anyio.sleep(1.1)
        assert await causes(other) == {b"w": "its node died"}


@simulated
async def test_reports_of_who_is_no_member_are_ignored() -> None:
    async with life(MemoryStorage()) as gcs:
        raylet = gcs.client()
        report(raylet, living(b"early"))
        await raylet.nodes.register(node(incarnation=2))
        report(raylet, living(b"stale"), incarnation=1)
        await anyio.sleep(0.1)
        assert await rows(raylet) == {}


@simulated
async def test_a_lost_report_is_made_up_for_by_a_complete_one_that_is_asked_for() -> None:
    storage = GatedStorage()
    async with life(storage) as gcs:
        raylet = gcs.client()
        await raylet.nodes.register(node())
        storage.fails = True
        report(raylet, living(b"w"))
        await anyio.sleep(0.1)
        assert await rows(raylet) == {}
        storage.fails = False
        beat = msg.Heartbeat(b"n", 1)
        assert (await raylet.nodes.sync(beat)).register_again
        await raylet.nodes.register(node())
        assert not (await raylet.nodes.sync(beat)).register_again
        report(raylet, living(b"w"), complete=True)
        await anyio.sleep(0.1)
        assert await causes(raylet) == {b"w": None}


@simulated
async def test_a_repeated_report_is_not_written_again() -> None:
    storage = GatedStorage()
    async with life(storage) as gcs:
        raylet = gcs.client()
        await raylet.nodes.register(node())
        report(raylet, living(b"w"))
        await anyio.sleep(0.1)
        before = storage.commits
        report(raylet, living(b"w"), complete=True)
        await anyio.sleep(0.1)
        assert storage.commits == before


@simulated
async def test_after_a_restart_workers_live_while_their_node_does() -> None:
    storage = MemoryStorage()
    async with life(storage) as gcs:
        raylet = gcs.client()
        await raylet.nodes.register(node())
        report(raylet, living(b"w"))
        await anyio.sleep(0.1)
    async with life(storage) as gcs:
        client = gcs.client()
        await anyio.sleep(5)
        assert await causes(client) == {b"w": None}
        await anyio.sleep(12)
        assert await causes(client) == {b"w": "its node died"}
