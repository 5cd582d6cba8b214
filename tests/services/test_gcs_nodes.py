"""The Node service: who is in the cluster, over restarts of the GCS too."""

import math
from dataclasses import replace

import anyio
import pytest

from raylite._kernel.host import Host
from raylite._kernel.network import Probe
from raylite._kernel.seams import now
from raylite._kernel.service import Service, handles
from raylite._kernel.wire import Wire, WireEvents
from raylite._machines.roster import Roster, part_of
from raylite._protocol import raylet
from raylite._protocol.gcs import Nodes
from raylite._runtime.components import build_gcs
from raylite._services.gcs.storage import MemoryStorage
from raylite._wire import hot
from raylite._wire.messages import gcs as msg
from raylite.exceptions import AuthenticationError, NodeDiedError, UnavailableError
from raylite.testing.loop import SimLoop
from raylite.testing.sim import SimNetwork, World
from tests.services.rig import Client, life, node, nodes_of, simulated, take
from tests.services.storages import GatedStorage, damage


async def rows(client: Client) -> dict[bytes, msg.Node]:
    return {row.node_id: row for row in (await client.nodes.list(msg.ListNodes())).nodes}


async def beat(client: Client, seconds: float, node_id: bytes = b"n") -> None:
    for _ in range(int(seconds)):
        client.nodes.heartbeat(msg.Heartbeat(node_id, 1, {"CPU": 2.0}))
        await anyio.sleep(1)


@simulated
async def test_a_registration_is_answered_when_it_is_durable() -> None:
    storage = GatedStorage()
    async with life(storage) as gcs:
        raylet, other = gcs.client(), gcs.client()
        await rows(other)
        answers: list[msg.Registered] = []

        async def register() -> None:
            answers.append(await raylet.nodes.register(node()))

        storage.is_holding = True
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(register)
            await anyio.sleep(1)
            assert await rows(other) == {}
            assert not answers
            storage.release()
        assert len(answers) == 1
        assert (await rows(other))[b"n"].alive


@simulated
async def test_a_watcher_sees_the_members_and_then_every_change() -> None:
    async with life(MemoryStorage()) as gcs:
        raylet, watcher = gcs.client(), gcs.client()
        await raylet.nodes.register(node(b"a"))
        events = nodes_of(watcher.nodes.watch(msg.WatchNodes()))
        second = gcs.client()
        assert await anext(events) == (await rows(raylet))[b"a"]
        await second.nodes.register(node(b"b"))
        await second.leave()
        seen = await take(events, 2)
        assert [(row.node_id, row.alive) for row in seen] == [(b"b", True), (b"b", False)]
        assert seen[1].death_reason == "its raylet ended the session"
        assert seen[1].left
        assert seen[1].ended_at > 0


@simulated
async def test_a_new_incarnation_follows_the_death_of_the_old() -> None:
    async with life(MemoryStorage()) as gcs:
        raylet = gcs.client()
        await raylet.nodes.register(node(incarnation=1, address="old"))
        events = nodes_of(raylet.nodes.watch(msg.WatchNodes()))
        first = await anext(events)
        await raylet.nodes.register(node(incarnation=2, address="new"))
        seen = [first, *await take(events, 2)]
        told = [(row.address, row.alive) for row in seen]
        assert told == [("old", True), ("old", False), ("new", True)]
        assert seen[1].death_reason == "it was replaced by a new incarnation"


@simulated
async def test_a_node_on_the_port_of_another_shows_that_to_be_dead() -> None:
    storage = MemoryStorage()
    async with life(storage) as gcs:
        port, further = "tcp:10.0.0.7:7001", "tcp:10.0.0.7:70012"
        for name, address in ((b"a", f"{port};0a=unix:/a"), (b"b", further), (b"c", "unix:/r")):
            await gcs.client().nodes.register(node(name, address=address))
        later = gcs.client()
        await later.nodes.register(node(b"d", address=f"{port};0d=unix:/d"))
        await later.nodes.register(node(b"d", address=f"{port};0d=unix:/d"))  # once more, as ever
        await gcs.client().nodes.register(node(b"e", address="unix:/r"))  # on a machine of its own
        found = await rows(later)
        assert {name: row.alive for name, row in found.items()} == {
            **dict.fromkeys((b"b", b"c", b"d", b"e"), True),
            b"a": False,
        }
        assert found[b"a"].death_reason == "another node has its address"
    async with life(storage) as gcs:
        later = gcs.client()
        await later.nodes.register(node(b"f", address=further))
        found = await rows(later)
        assert [found[name].alive for name in (b"b", b"c", b"d", b"f")] == [False, True, True, True]


@simulated
async def test_an_old_session_of_a_node_ends_unnoticed() -> None:
    async with life(MemoryStorage()) as gcs:
        old, new = gcs.client(), gcs.client()
        await old.nodes.register(node())
        await new.nodes.register(node())
        await old.leave()
        assert (await rows(new))[b"n"].alive


@simulated
async def test_a_silent_node_dies_after_ten_seconds() -> None:
    async with life(MemoryStorage()) as gcs:
        raylet = gcs.client()
        await raylet.nodes.register(node())
        await beat(raylet, 30)
        last = now() - 1
        events = nodes_of(raylet.nodes.watch(msg.WatchNodes()))
        await take(events, 2)
        assert 10 <= now() - last <= 10.6
        row = (await rows(raylet))[b"n"]
        assert (row.alive, row.death_reason) == (False, "it was silent for 10 s")
        assert not row.left


@simulated
async def test_the_settings_say_after_how_much_silence_a_node_dies() -> None:
    threshold = {"health_check_failure_threshold": 2, "health_check_period_ms": 3000}
    async with life(MemoryStorage(), **threshold) as gcs:
        raylet = gcs.client()
        await raylet.nodes.register(node())
        events = nodes_of(raylet.nodes.watch(msg.WatchNodes()))
        _, death = await take(events, 2)
        assert death.death_reason == "it was silent for 8 s"


@simulated
async def test_heartbeats_tell_what_is_available() -> None:
    async with life(MemoryStorage()) as gcs:
        raylet = gcs.client()
        await raylet.nodes.register(node())
        assert (await rows(raylet))[b"n"].available == {"CPU": 4.0}
        await beat(raylet, 1)
        assert (await rows(raylet))[b"n"].available == {"CPU": 2.0}


@simulated
async def test_who_is_unknown_is_asked_to_register_and_who_is_stale_is_ignored() -> None:
    async with life(MemoryStorage()) as gcs:
        raylet = gcs.client()
        unknown = await raylet.nodes.sync(msg.Heartbeat(b"n", 1))
        await raylet.nodes.register(node(incarnation=2))
        stale = await raylet.nodes.sync(msg.Heartbeat(b"n", 1, {"CPU": 0.5}))
        member = await raylet.nodes.sync(msg.Heartbeat(b"n", 2, {"CPU": 1.5}))
        answers = [answer.register_again for answer in (unknown, stale, member)]
        assert answers == [True, False, False]
        assert (await rows(raylet))[b"n"].available == {"CPU": 1.5}


@simulated
async def test_a_death_is_told_once_the_storage_takes_it() -> None:
    storage = GatedStorage()
    async with life(storage) as gcs:
        raylet, watcher = gcs.client(), gcs.client()
        await raylet.nodes.register(node())
        events = nodes_of(watcher.nodes.watch(msg.WatchNodes()))
        await anext(events)
        storage.fails = True
        await raylet.leave()
        await anyio.sleep(3)
        assert (await rows(watcher))[b"n"].alive
        storage.fails = False
        assert not (await anext(events)).alive


@simulated
async def test_a_registration_that_cannot_be_kept_is_refused_and_may_be_tried_again() -> None:
    storage = GatedStorage()
    async with life(storage) as gcs:
        raylet = gcs.client()
        await rows(raylet)
        storage.fails = True
        with pytest.raises(UnavailableError, match="the disk is full"):
            await raylet.nodes.register(node())
        assert await rows(raylet) == {}
        storage.fails = False
        await raylet.nodes.register(node())
        assert (await rows(raylet))[b"n"].alive


@simulated
async def test_a_node_that_was_taken_for_dead_may_not_come_back_unless_it_is_the_head() -> None:
    storage = MemoryStorage()
    async with life(storage) as gcs:
        raylet = gcs.client()
        await raylet.nodes.register(node())
        head = replace(node(b"head"), head=True)
        await raylet.nodes.register(head)
        await anyio.sleep(12)
        assert not any(row.alive for row in (await rows(raylet)).values())
        assert (await raylet.nodes.sync(msg.Heartbeat(b"n", 1))).register_again
        with pytest.raises(NodeDiedError, match="dead to its cluster: it was silent for 10 s"):
            await raylet.nodes.register(node())
        await raylet.nodes.register(head)
        assert (await rows(raylet))[b"head"].alive
    async with life(storage) as gcs:
        raylet = gcs.client()
        with pytest.raises(NodeDiedError):
            await raylet.nodes.register(node())
        await raylet.nodes.register(node(incarnation=2))
        assert (await rows(raylet))[b"n"].alive


# ---- restarts ----------------------------------------------------------------------------


@simulated
async def test_a_restart_keeps_the_members_and_grows_the_epoch() -> None:
    storage = MemoryStorage()
    async with life(storage) as gcs:
        first = await gcs.client().nodes.register(node())
    async with life(storage) as gcs:
        raylet = gcs.client()
        listed = await raylet.nodes.list(msg.ListNodes())
        assert [row.alive for row in listed.nodes] == [True]
        assert first.epoch is not None
        assert listed.epoch is not None
        assert (first.epoch.number, listed.epoch.number) == (1, 2)
        assert first.epoch.cluster_id == listed.epoch.cluster_id
        assert len(first.epoch.cluster_id) == 16
        synced = await raylet.nodes.sync(msg.Heartbeat(b"n", 1))
        assert (synced.register_again, synced.epoch) == (False, listed.epoch)


@simulated
async def test_after_a_restart_members_have_fifteen_seconds_and_then_die() -> None:
    storage = MemoryStorage()
    async with life(storage) as gcs:
        for node_id in (b"beats", b"silent"):
            await gcs.client().nodes.register(node(node_id))
        await anyio.sleep(9)
    async with life(storage) as gcs:
        raylet = gcs.client()
        await beat(raylet, 14, b"beats")
        assert {row.alive for row in (await rows(raylet)).values()} == {True}
        await beat(raylet, 2, b"beats")
        alive = {node_id: row.alive for node_id, row in (await rows(raylet)).items()}
        assert alive == {b"beats": True, b"silent": False}


@simulated
async def test_a_member_that_registers_again_after_a_restart_is_not_replaced() -> None:
    storage = MemoryStorage()
    async with life(storage) as gcs:
        await gcs.client().nodes.register(node())
    async with life(storage) as gcs:
        raylet, watcher = gcs.client(), gcs.client()
        events = nodes_of(watcher.nodes.watch(msg.WatchNodes()))
        before = await anext(events)
        await raylet.nodes.register(node())
        after = await anext(events)
        assert before == after
        await raylet.leave()
        assert not (await anext(events)).alive


@simulated
async def test_a_member_whose_record_is_damaged_has_fifteen_seconds_until_others_miss_it() -> None:
    storage, known = MemoryStorage(), Roster()
    async with life(storage) as gcs:
        for node_id in (b"damaged", b"sound"):
            raylet = gcs.client()
            await raylet.nodes.register(node(node_id))
            worker = msg.Worker(worker_id=b"of " + node_id, alive=True)
            report = msg.ReportWorkers(node_id, 1, [worker], complete=True)
            raylet.workers.report(report)
            known.put(node_id, 1)
        await anyio.sleep(0.1)
    await damage(storage, "nodes", b"damaged", lambda record: record[:-1])
    async with life(storage):
        pass  # and that it was found is remembered
    async with life(storage) as gcs:
        client = gcs.client()

        async def missed() -> tuple[bool, list[bool]]:
            told = await client.nodes.compare(msg.KnownNodes(known.digests()))
            listed = await client.workers.list(msg.ListWorkers())
            is_missed = known.absent(told.parts, {(b"sound", 1)}) == [b"damaged"]
            return is_missed, [row.alive for row in listed.workers]

        first = await anext(aiter(gcs.client().nodes.watch(msg.WatchNodes())))
        assert ([row.node_id for row in first.nodes], first.complete) == ([b"sound"], False)
        await beat(client, 14, b"sound")
        assert await missed() == (False, [True, True])
        await beat(client, 4, b"sound")
        assert await missed() == (True, [False, True])
        assert (await anext(aiter(client.nodes.watch(msg.WatchNodes())))).complete
        await client.nodes.register(node(b"damaged"))
        assert (await rows(client))[b"damaged"].alive
    await damage(storage, "nodes", b"damaged", lambda record: record[:-1])
    async with life(storage) as gcs:
        client = gcs.client()
        await client.nodes.register(node(b"damaged"))
        assert (await anext(aiter(client.nodes.watch(msg.WatchNodes())))).complete


@simulated
async def test_the_dead_stay_dead_over_a_restart() -> None:
    storage = MemoryStorage()
    async with life(storage) as gcs:
        raylet = gcs.client()
        await raylet.nodes.register(node())
        await raylet.leave()
    async with life(storage) as gcs:
        assert not (await rows(gcs.client()))[b"n"].alive


# ---- partitions --------------------------------------------------------------------------


@pytest.mark.sim
@pytest.mark.parametrize("seed", range(5))
def test_a_silent_partition_is_declared_after_ten_seconds(seed: int) -> None:
    async def main() -> float:
        world = World(seed)
        there = SimNetwork(world, "gcs")
        await there.listen("gcs")
        host: Host = build_gcs(there)
        running = host.start("gcs")
        raylet = Nodes(SimNetwork(world, "raylet").connect("gcs"))
        watcher = Nodes(SimNetwork(world, "watcher").connect("gcs"))

        async def beats() -> None:
            while True:
                raylet.heartbeat(msg.Heartbeat(b"n", 1))
                await anyio.sleep(1)

        await raylet.register(node())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(beats)
            await anyio.sleep(20 + seed / 7)
            events = nodes_of(watcher.watch(msg.WatchNodes()))
            await anext(events)
            world.cut("raylet", "gcs", silently=True)
            began = now()
            assert not (await anext(events)).alive
            took = now() - began
            tasks.cancel_scope.cancel()
        host.stop()
        await running
        return took

    assert 9 <= SimLoop().run(main()) <= 11


@pytest.mark.sim
@pytest.mark.parametrize(("listens", "earliest", "latest"), [(False, 1, 2.5), (True, 29, 31)])
def test_a_raylet_that_refuses_connections_is_dead_and_a_silent_one_may_live(
    listens: bool, earliest: float, latest: float
) -> None:
    async def main() -> float:
        world = World(1)
        there, its = SimNetwork(world, "gcs"), SimNetwork(world, "raylet")
        await there.listen("gcs")
        await its.listen("raylet:1")
        host: Host = build_gcs(there)
        running = host.start("gcs")
        await Nodes(its.connect("gcs")).register(node(address="raylet:1"))
        watcher = Nodes(SimNetwork(world, "watcher").connect("gcs"))
        events = nodes_of(watcher.watch(msg.WatchNodes()))
        await anext(events)
        began = now()
        if not listens:
            world.kill("raylet:1")
        assert not (await anext(events)).alive
        took = now() - began
        host.stop()
        await running
        return took

    assert earliest <= SimLoop().run(main()) <= latest


class Standstill(SimNetwork):
    """A GCS's, to which some addresses take connections and answer nothing."""

    stalled: frozenset[str] = frozenset()

    async def dial(self, address: str, events: WireEvents) -> Wire:
        if address in self.stalled:
            await anyio.sleep_forever()
        return await super().dial(address, events)


async def standstill(seconds: float, *, is_cut_at: float = math.inf) -> tuple[float, str]:
    """Return when, and why, a node dies that falls silent, and whose machine answers for a while."""
    world = World(1)
    there, its = Standstill(world, "gcs"), SimNetwork(world, "raylet")
    await there.listen("gcs")
    await its.listen("raylet:1")
    host: Host = build_gcs(there)
    running = host.start("gcs")
    raylet = Nodes(its.connect("gcs"))
    await raylet.register(node(address="raylet:1"))
    watcher = Nodes(SimNetwork(world, "watcher").connect("gcs"))
    events = nodes_of(watcher.watch(msg.WatchNodes()))
    await anext(events)
    there.stalled = frozenset(["raylet:1"])
    began, row = now(), None
    with anyio.move_on_after(is_cut_at):
        await anyio.sleep(seconds)
        raylet.heartbeat(msg.Heartbeat(b"n", 1, lag=seconds))
        await anyio.sleep(0.1)
        [row] = (await watcher.list(msg.ListNodes())).nodes
        assert row.alive
        assert not row.suspect
        began = now()
    if row is None:
        world.cut("raylet", "gcs", silently=True)
    died = await anext(events)
    took = now() - began
    host.stop()
    await running
    return took, died.death_reason


@pytest.mark.sim
@pytest.mark.parametrize("refused", [1, 2, 3])
def test_refusals_that_do_not_go_on_are_no_death(refused: int) -> None:
    """A raylet that is late, to which a firewall that is being loaded refuses a connection or two."""

    async def main() -> tuple[bool, int]:
        asked = 0

        async def probe(address: str, seconds: float) -> Probe:
            nonlocal asked
            asked += 1
            return Probe.REFUSED if asked <= refused else Probe.UNKNOWN

        world = World(1)
        there = SimNetwork(world, "gcs")
        there.probe = probe  # type: ignore[method-assign]
        await there.listen("gcs")
        host: Host = build_gcs(there)
        running = host.start("gcs")
        raylet = Nodes(SimNetwork(world, "raylet").connect("gcs"))
        await raylet.register(node(address="raylet"))
        await anyio.sleep(4)
        raylet.heartbeat(msg.Heartbeat(b"n", 1))
        await anyio.sleep(0.1)
        [row] = (await raylet.list(msg.ListNodes())).nodes
        host.stop()
        await running
        return row.alive, asked

    is_alive, asked = SimLoop().run(main())
    assert asked >= 3
    assert is_alive == (refused < 3)


@pytest.mark.sim
def test_a_node_that_stands_still_for_less_than_thirty_seconds_lives_and_then_has_thirty() -> None:
    took, reason = SimLoop().run(standstill(25))
    assert 30 <= took <= 31
    assert reason == "it stood still for 30 s"


@pytest.mark.sim
def test_a_node_that_stands_still_and_is_cut_off_then_has_ten_seconds_more() -> None:
    took, reason = SimLoop().run(standstill(25, is_cut_at=8))
    assert 14 <= took <= 18
    assert reason == "it was silent for 10 s"


@simulated
async def test_a_node_that_missed_five_beats_is_a_suspect_until_its_next_one() -> None:
    async with life(MemoryStorage()) as gcs:
        raylet, watcher = gcs.client(), gcs.client()
        await raylet.nodes.register(node())
        events = aiter(watcher.nodes.watch(msg.WatchNodes()))
        assert not (await anext(events)).doubts
        began = now()
        [doubt] = (await anext(events)).doubts
        assert 5 <= now() - began <= 5.6
        assert (doubt.node_id, doubt.incarnation, doubt.suspect) == (b"n", 1, True)
        late = await anext(aiter(gcs.client().nodes.watch(msg.WatchNodes())))
        assert late.doubts == [doubt]
        row = (await rows(raylet))[b"n"]
        assert (row.alive, row.suspect) == (True, True)
        raylet.nodes.heartbeat(msg.Heartbeat(b"n", 1))
        [doubt] = (await anext(events)).doubts
        assert not doubt.suspect
        assert not (await rows(raylet))[b"n"].suspect
        await beat(raylet, 5)
        assert not (await anext(aiter(gcs.client().nodes.watch(msg.WatchNodes())))).doubts


class Locked(SimNetwork):
    """Another cluster's network to everybody whom it dials."""

    async def dial(self, address: str, events: WireEvents) -> Wire:
        raise AuthenticationError(f"{address} refuses this process: it has another token")


@pytest.mark.sim
def test_a_node_of_an_earlier_head_that_still_runs_does_not_end_the_gcs() -> None:
    """It has the earlier token; all that this GCS knows of it is in the tables."""
    storage = MemoryStorage()

    async def main() -> list[msg.Node]:
        async with life(storage) as gcs:
            await gcs.client().nodes.register(node(address="raylet:1"))
        world = World(1)
        there = Locked(world, "gcs")
        await there.listen("gcs")
        host = build_gcs(there, storage)
        running = host.start("gcs")
        watcher = Nodes(SimNetwork(world, "watcher").connect("gcs"))
        seen = await take(nodes_of(watcher.watch(msg.WatchNodes())), 2)
        host.stop()
        await running
        return seen

    alive, dead = SimLoop().run(main())
    assert alive.alive
    assert (dead.alive, dead.death_reason) == (False, "it was silent for 15 s")


@simulated
async def test_who_compares_is_told_of_what_differs_and_of_nothing_else() -> None:
    async with life(MemoryStorage()) as gcs:
        raylet, leaves, known = gcs.client(), gcs.client(), Roster()
        for n in range(20):
            await raylet.nodes.register(node(b"n%d" % n))
            known.put(b"n%d" % n, 1)
        await leaves.nodes.register(node(b"leaves"))
        known.put(b"leaves", 1)

        async def compare() -> dict[bytes, bool]:
            answer = await raylet.nodes.compare(msg.KnownNodes(known.digests()))
            assert answer.epoch is not None
            assert {part_of(row.node_id) for row in answer.nodes} == set(answer.parts)
            return {row.node_id: row.alive for row in answer.nodes}

        assert await compare() == {}
        await leaves.leave()
        told = await compare()
        assert told[b"leaves"] is False
        assert len(told) < 5
        known.remove(b"leaves")
        known.put(b"n1", 2)
        assert (await compare())[b"n1"]
        known.put(b"n1", 1)
        assert await compare() == {}
        assert len((await raylet.nodes.compare(msg.KnownNodes(b"odd"))).nodes) == 21


@simulated
async def test_who_compares_while_a_change_is_not_durable_is_told_what_watchers_know() -> None:
    storage = GatedStorage()
    async with life(storage) as gcs:
        raylet, known = gcs.client(), Roster()
        await rows(raylet)
        storage.is_holding = True
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(gcs.client().nodes.register, node())
            await anyio.sleep(1)
            assert not (await raylet.nodes.compare(msg.KnownNodes(known.digests()))).parts
            storage.release()
        assert (await raylet.nodes.compare(msg.KnownNodes(known.digests()))).parts


class Lessor(Service, serves=(raylet.Fences,)):
    """A raylet that ends what it is told to."""

    def __init__(self) -> None:
        self.ended: list[hot.Fence] = []

    @handles(raylet.Fences.ask)
    def ask(self, fence: hot.Fence) -> hot.Fenced:
        raise AssertionError("nobody asks here")

    @handles(raylet.Fences.revoke)
    def revoke(self, fence: hot.Fence) -> hot.Fenced:
        self.ended.append(fence)
        return hot.Fenced()


@simulated
async def test_leases_of_a_node_that_is_silent_or_was_a_moment_ago_are_not_ended() -> None:
    """It may stand still; then it has them when it goes on, and is dead when its grace is over."""
    async with life(MemoryStorage(), health_check_timeout_ms=60_000) as gcs:
        client, owner, lessor = gcs.client(), gcs.client(), Lessor()
        host = Host(client.network, lessor)
        running = host.start("lessor")
        await client.nodes.register(node())
        fence = hot.Fence(b"n", b"owner", (b"lease",))
        await beat(client, 20)
        assert await owner.nodes.fence(fence) == hot.Fenced()
        assert len(lessor.ended) == 1
        await anyio.sleep(4)
        with pytest.raises(UnavailableError, match="was silent a moment ago"):
            await owner.nodes.fence(fence)
        await beat(client, 14)
        with pytest.raises(UnavailableError, match="was silent a moment ago"):
            await owner.nodes.fence(fence)
        await beat(client, 2)
        await owner.nodes.fence(fence)
        assert len(lessor.ended) == 2
        events = nodes_of(owner.nodes.watch(msg.WatchNodes()))
        await take(events, 2)
        dead = await owner.nodes.fence(fence)
        assert dead.death.startswith("it was silent for")
        assert len(lessor.ended) == 2
        host.stop()
        await running
