"""What workers print, from any node to their job's driver and into files, in virtual time."""

from collections.abc import Sequence

import anyio

from raylite._machines.deduplicator import WINDOW, Deduplicator, Printed
from raylite._machines.logs import PATIENCE, ROOM
from raylite._services.raylet.logs import FILE_ROOM, FLOOD
from raylite._services.worker.output import OutputService
from tests.services.nodes import Driver, Node, cluster
from tests.services.rig import simulated

LINE = "x" * 999


class Shown:
    """A driver's screen, which can be stopped."""

    def __init__(self) -> None:
        self.printed: list[Printed] = []
        self.goes_on = anyio.Event()
        self.goes_on.set()

    async def show(self, printed: Sequence[Printed]) -> None:
        await self.goes_on.wait()
        self.printed += printed

    def stop(self) -> None:
        self.goes_on = anyio.Event()

    @property
    def lines(self) -> list[str]:
        return [f"{each.ip} {each.pid} {line}" for each in self.printed for line in each.lines]


async def driver(node: Node, name: str, dedup: Deduplicator | None = None) -> tuple[Driver, Shown]:
    screen = Shown()
    return await node.driver(name, OutputService(screen, dedup)), screen


@simulated
async def test_each_driver_is_shown_what_its_own_job_prints_on_every_node() -> None:
    async with cluster() as nodes:
        a, b = await nodes.add("a"), await nodes.add("b")
        (one, shown), (other, others) = await driver(a, "one"), await driver(b, "other")
        for node, pid in ((a, 1), (b, 2)):
            (await node.worker(pid, one.attachment.job)).print("mine", "too")
            (await node.worker(pid + 10, other.attachment.job)).print("theirs", is_stderr=True)
        await anyio.sleep(1)
        assert sorted(shown.lines) == ["ip-a 1 mine", "ip-a 1 too", "ip-b 2 mine", "ip-b 2 too"]
        assert sorted(others.lines) == ["ip-a 11 theirs", "ip-b 12 theirs"]
        assert {(each.name, each.is_stderr) for each in others.printed} == {("f", True)}


@simulated
async def test_alike_lines_of_many_nodes_are_shown_once_and_counted() -> None:
    async with cluster() as nodes:
        a, b = await nodes.add("a"), await nodes.add("b")
        one, shown = await driver(a, "one", Deduplicator())
        workers = [await node.worker(pid, one.attachment.job) for node, pid in ((a, 1), (b, 2))]
        for worker in workers * 2:
            worker.print("ready")
        await anyio.sleep(1)
        first = len(shown.lines)  # two, if a process says it twice before the other does
        await anyio.sleep(WINDOW)
        assert 1 <= first <= 2
        assert len(shown.lines) == first + 1
        assert first == 2 or " [repeated 3x across cluster]" in shown.lines[-1]


@simulated
async def test_what_is_held_back_is_shown_before_a_driver_leaves() -> None:
    async with cluster() as nodes:
        a, b = await nodes.add("a"), await nodes.add("b")
        one, shown = await driver(a, "one", Deduplicator())
        first, second = await a.worker(1, one.attachment.job), await b.worker(2, one.attachment.job)
        first.print("ready")
        second.print("ready", "only mine")
        await anyio.sleep(0.5)
        second.print("last words")
        await one.attachment.flush_output()
        said = [line.partition(" ")[2].partition(" ")[2] for line in shown.lines]
        assert sorted(said) == ["last words", "only mine", "ready", "ready"]


@simulated
async def test_a_driver_that_shows_nothing_holds_its_workers_back_for_a_moment_only() -> None:
    async with cluster() as nodes:
        a, b = await nodes.add("a"), await nodes.add("b")
        (one, shown), (other, others) = await driver(a, "one"), await driver(a, "other")
        flooding = await b.worker(1, one.attachment.job)
        quiet = await b.worker(2, other.attachment.job)
        shown.stop()
        printed = 0
        while flooding.print(*[LINE] * 64):
            printed += 64
            await anyio.sleep(0.01)
        printed += 64
        assert printed * 1000 < 2 * ROOM
        assert quiet.print("I am not concerned")
        resumed = b.source.resumed
        await anyio.sleep(PATIENCE)
        assert b.source.resumed > resumed
        for _ in range(100):  # it goes on as if nobody listened
            assert flooding.print(*[LINE] * 64)
            printed += 64
            await anyio.sleep(0.05)
        assert others.lines == ["ip-b 2 I am not concerned"]
        shown.goes_on.set()
        await anyio.sleep(1)
        lines = [line for line in shown.lines if line.endswith(LINE)]
        (left_out,) = (line for line in shown.lines if line not in lines)
        assert left_out.split()[2:4] == [str(printed - len(lines)), "lines"]
        assert len(b.log_files.files["worker-31-" + one.attachment.job.hex() + "-1.out"]) == (
            printed * 1000
        )
        assert flooding.print("again")
        await anyio.sleep(1)
        assert shown.lines[-1] == "ip-b 1 again"


@simulated
async def test_a_driver_that_died_holds_nobody_back() -> None:
    async with cluster() as nodes:
        a, b = await nodes.add("a"), await nodes.add("b")
        one, shown = await driver(a, "one")
        shown.stop()
        worker = await b.worker(1, one.attachment.job)
        while worker.print(*[LINE] * 64):
            await anyio.sleep(0.001)
        a.raylet.pool.driver_ended(a.raylet.pool.drivers()[0])  # as its pidfd says
        a.drivers.remove(one)
        await one.die()
        await anyio.sleep(2)
        for _ in range(100):
            assert worker.print(*[LINE] * 64)
            await anyio.sleep(0.01)
        assert b.raylet.logs.logs.mark(one.attachment.job) == 0


@simulated
async def test_a_driver_that_wants_no_output_is_sent_one_batch() -> None:
    async with cluster() as nodes:
        a, b = await nodes.add("a"), await nodes.add("b")
        one = await a.driver("one")
        worker = await b.worker(1, one.attachment.job)
        for _ in range(100):
            assert worker.print(*[LINE] * 64)
            await anyio.sleep(0.01)
        assert one.attachment.output is not None
        assert one.attachment.output.statistics().handled == {"Output.show": 1}


@simulated
async def test_what_is_printed_while_the_network_is_cut_is_shown_when_it_is_whole() -> None:
    async with cluster() as nodes:
        a, b = await nodes.add("a"), await nodes.add("b")
        one, shown = await driver(a, "one")
        worker = await b.worker(1, one.attachment.job)
        worker.print("before")
        await anyio.sleep(1)
        nodes.world.cut("b", "one")
        for number in range(30):
            worker.print(f"line {number}")
            await anyio.sleep(0.1)
        assert shown.lines == ["ip-b 1 before"]
        nodes.world.heal("b", "one")
        await anyio.sleep(5)
        assert shown.lines[1:] == [f"ip-b 1 line {number}" for number in range(30)]


@simulated
async def test_a_file_is_named_after_its_worker_as_soon_as_it_is_known_whose_it_is() -> None:
    async with cluster() as nodes:
        a = await nodes.add("a")
        one, shown = await driver(a, "one")
        worker = await a.worker(7)
        worker.print("before any task")
        await anyio.sleep(1)
        assert list(a.log_files.files) == ["worker-37-ffffffff-7.out"]
        worker.belong_to(one.attachment.job)
        worker.print("of a task", "two")
        worker.print("wrong", is_stderr=True)
        await anyio.sleep(1)
        name = f"worker-37-{one.attachment.job.hex()}-7"
        assert a.log_files.files == {
            f"{name}.out": b"before any task\nof a task\ntwo\n",
            f"{name}.err": b"wrong\n",
        }
        assert shown.lines[0] == "ip-a 7 before any task"


@simulated
async def test_a_slow_disk_and_a_flood_hold_back_who_prints_and_nobody_else() -> None:
    async with cluster() as nodes:
        a = await nodes.add("a")
        worker = await a.worker(7)
        a.log_files.seconds = 30.0
        printed = 0
        while worker.print(*[LINE] * 64):
            printed += 64_000
            await anyio.sleep(0.01)
        assert printed <= FILE_ROOM + 64_000 * 2
        resumed = a.source.resumed
        await anyio.sleep(65)
        assert a.source.resumed > resumed
        a.log_files.seconds, printed = 0.0, 0
        while worker.print(*[LINE] * 64):
            printed += 64_000
            await anyio.sleep(0.0001)
        assert FLOOD * 0.9 < printed < FLOOD * 1.5
        await anyio.sleep(0.1)
        assert worker.print("a little")
