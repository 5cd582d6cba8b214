"""`LocalCluster`: a cluster for the length of a block."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

import raylite as ray
from raylite._runtime import context
from raylite._services.worker.objects import BlockedThread
from raylite._wire.messages import gcs, raylet
from raylite.exceptions import RuntimeEnvSetupError
from raylite.testing import LocalCluster, Nursery
from raylite.testing.cluster import Workers
from raylite.util import explain

ROOT = Path(__file__).resolve().parents[2]


@ray.remote
def square(n: int) -> int:
    return n * n


@ray.remote
def total(refs: list["ray.ObjectRef[int]"]) -> int:
    return sum(ray.get(refs))


@ray.remote
def fan_out(n: int) -> int:
    return sum(ray.get([square.remote(i) for i in range(n)]))


@ray.remote
def where() -> tuple[int, str]:
    return os.getpid(), threading.current_thread().name


@ray.remote
def doubled(array: Any) -> Any:
    return array * 2


@pytest.fixture(params=["threads", pytest.param("processes", marks=pytest.mark.process)])
def workers(request: pytest.FixtureRequest) -> Workers:
    kind: Workers = request.param
    return kind


@pytest.mark.anew
def test_tasks_run_inside_the_block(workers: Workers) -> None:
    with LocalCluster(workers=workers):
        assert ray.get([square.remote(n) for n in range(5)]) == [0, 1, 4, 9, 16]
        assert ray.get(total.remote([square.remote(3), ray.put(1)])) == 10
        assert ray.get(fan_out.remote(4)) == 14


def test_large_values_go_through_the_store(workers: Workers) -> None:
    array = np.arange(200_000, dtype=np.float64)
    with LocalCluster(workers=workers):
        result = ray.get(doubled.remote(ray.put(array)))
        assert np.array_equal(result, array * 2)
        assert not result.flags.writeable
        del result


def test_nothing_is_initialized_outside_of_the_block(workers: Workers) -> None:
    assert not ray.is_initialized()
    with LocalCluster(workers=workers):
        assert ray.is_initialized()
    assert not ray.is_initialized()


@pytest.mark.anew
def test_a_session_is_known_in_a_program_that_has_loaded_no_more() -> None:
    program = (
        "import sys, raylite as ray; from raylite.testing import LocalCluster\n"
        "with LocalCluster(workers='threads'): print(ray.is_initialized())\n"
        "print(ray.is_initialized(), 'raylite._connect' in sys.modules)"
    )
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["True", "False", "False"]


@pytest.mark.anew
def test_importing_it_loads_little() -> None:
    program = (
        "import sys, raylite.testing\n"
        "heavy = {'anyio', 'asyncio', 'cloudpickle', 'grpclib', 'uvloop'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.anew
@pytest.mark.process
def test_processes_load_what_they_need_before_their_fork_and_nothing_of_the_test() -> None:
    @ray.remote
    def unneeded() -> set[str]:
        return {"anyio", "raylite.testing.inprocess", "raylite.testing.processes"} & set(
            sys.modules
        )

    @ray.remote
    def unused() -> list[str]:  # this worker has neither sent nor received the most of them
        kinds = [*vars(gcs).values(), *vars(raylet).values()]
        messages = [each for each in kinds if hasattr(each, "__dataclass_fields__")]
        assert messages
        return [each.__name__ for each in messages if "_betterproto_meta" not in vars(each)]

    with LocalCluster(num_cpus=1):
        assert ray.get([unneeded.remote(), unused.remote()]) == [set(), []]


@pytest.mark.anew
def test_clusters_follow_one_another(workers: Workers) -> None:
    for n in range(3):
        with LocalCluster(workers=workers):
            assert ray.get(square.remote(n)) == n * n


@pytest.mark.anew
def test_clusters_stand_side_by_side(workers: Workers) -> None:
    with (
        LocalCluster(workers=workers, num_cpus=1) as one,
        LocalCluster(workers="threads", num_cpus=3) as other,
    ):
        assert ray.cluster_resources()["CPU"] == 3  # the innermost
        with one.use():
            assert ray.cluster_resources()["CPU"] == 1
            inner = square.remote(5)
        with other.use():
            outer = square.remote(6)
        assert (ray.get(inner), ray.get(outer)) == (25, 36)


async def awaited() -> int:
    async with LocalCluster(workers="threads"):
        values = await asyncio.gather(*(square.remote(n) for n in range(4)))
        return sum(values)


def test_a_coroutine_awaits_its_tasks() -> None:
    assert asyncio.run(awaited()) == 14


@pytest.mark.anew
@pytest.mark.parametrize("nodes", [None, [1, 1]], ids=["one node", "two nodes"])
@pytest.mark.parametrize("cancels", [1, 2], ids=["cancelled", "cancelled twice"])
def test_a_start_that_is_cancelled_leaves_nothing(
    workers: Workers, nodes: list[int] | None, cancels: int
) -> None:
    async def enter() -> None:
        async with LocalCluster(workers=workers, nodes=nodes):
            raise AssertionError("the block was entered")

    async def cancel() -> None:
        entering = asyncio.create_task(enter())
        for _ in range(cancels):
            await asyncio.sleep(0)
            entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        assert not ray.is_initialized()

    asyncio.run(cancel())


@pytest.mark.anew
def test_an_end_that_is_cancelled_is_an_end(workers: Workers) -> None:
    async def cancel() -> None:
        cluster = LocalCluster(workers=workers)
        await cluster.__aenter__()
        leaving = asyncio.create_task(cluster.__aexit__(None, None, None))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert not ray.is_initialized()

    asyncio.run(cancel())


WAITS: dict[str, Callable[[], object]] = {
    "get": lambda: ray.get(square.remote(8)),
    "get with a timeout": lambda: ray.get(square.remote(8), timeout=5),
    "look": lambda: ray.get(square.remote(8), timeout=0),
    "wait": lambda: ray.wait([square.remote(8)]),
    "put": lambda: ray.put(np.zeros(100_000)),
    "nodes": ray.nodes,
    "future": lambda: square.remote(8).future().result(),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_a_callback_of_a_future_is_refused_what_would_wait(
    wait: Callable[[], object], workers: Workers
) -> None:
    outcomes = SimpleQueue[Any]()

    def done(future: "Future[int]") -> None:
        try:
            outcomes.put(wait())
        except RuntimeError as error:
            outcomes.put((future.result(), str(error)))

    def begin() -> None:  # on the loop, so that the result comes after the callback was added
        square.remote(3).future().add_done_callback(done)

    with LocalCluster(workers=workers) as cluster:
        cluster._cluster.place.core.loop.call_soon_threadsafe(begin)
        result, message = outcomes.get(timeout=20)
        assert result == 9
        assert "executor.submit" in message
        assert ray.get(square.remote(4), timeout=20) == 16


def test_thread_workers_share_the_process() -> None:
    with LocalCluster(workers="threads"):
        pid, thread = ray.get(where.remote())
    assert pid == os.getpid()
    assert thread.startswith("raylite-worker-")


@pytest.mark.process
def test_process_workers_do_not_share_the_process() -> None:
    with LocalCluster(workers="processes"):
        pid, thread = ray.get(where.remote())
    assert pid != os.getpid()
    assert thread == "MainThread"


def test_thread_workers_have_no_environment_of_their_own() -> None:
    with LocalCluster(num_cpus=1, workers="threads"):
        task = where.options(runtime_env={"env_vars": {"OVEN": "hot"}})
        with pytest.raises(RuntimeEnvSetupError, match=r'OVEN: a test .*\(workers="processes"'):
            ray.get(task.remote())
        assert ray.get(where.remote())


def test_an_error_in_the_block_still_ends_the_cluster() -> None:
    with pytest.raises(ZeroDivisionError), LocalCluster(workers="threads"):
        ray.get(square.remote(1))
        _ = 1 / 0
    assert not ray.is_initialized()


def test_stopping_twice_and_using_what_is_stopped_is_refused_clearly() -> None:
    cluster = LocalCluster(workers="threads").start()
    cluster.stop()
    cluster.stop()
    with pytest.raises(RuntimeError, match="not running"), cluster.use():
        pass


def test_references_of_two_that_live_are_not_read_together() -> None:
    with LocalCluster(num_cpus=1, workers="threads"):
        outer = ray.put(1)
        with LocalCluster(num_cpus=1, workers="threads"):
            inner = ray.put(2)
            assert (ray.get(outer), ray.get(inner)) == (1, 2)
            with pytest.raises(ValueError, match=f"{inner.hex()} belongs to another cluster"):
                ray.get([outer, inner])


def test_what_belongs_to_a_stopped_one_is_explained_without_starting_another() -> None:
    with LocalCluster(num_cpus=1, workers="threads"):
        ref = ray.put(1)
    with pytest.raises(ValueError, match="belongs to a session that has ended"):
        explain(ref)
    assert not ray.is_initialized()


def test_an_unknown_kind_of_worker_is_refused() -> None:
    with pytest.raises(ValueError, match="'processes' or 'threads'"):
        LocalCluster(workers="fibres")  # type: ignore[arg-type]


def test_a_node_that_cannot_be_made_leaves_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    with TemporaryDirectory(prefix="rl-") as folder, Nursery():
        monkeypatch.setenv("RAYLITE_TMPDIR", folder)
        with pytest.raises(ValueError, match="object_store_memory is 1000000000000000 bytes"):
            LocalCluster(object_store_memory=10**15).start()
        assert list(Path(folder, "raylite").iterdir()) == []


@pytest.mark.parametrize(("namespace", "error"), [("", ValueError), (5, TypeError)])
def test_a_namespace_that_is_none_is_refused_before_anything_starts(
    namespace: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="namespace"):
        LocalCluster(namespace=namespace)


def test_a_program_may_begin_and_end_its_session_inside() -> None:
    with LocalCluster(workers="threads"):
        ray.init(ignore_reinit_error=True)
        ray.shutdown()
        assert ray.is_initialized()
        assert ray.get(square.remote(3)) == 9


def test_a_task_that_exits_its_thread_is_retried_and_fails_as_a_crash() -> None:
    @ray.remote(max_retries=1)
    def leave() -> None:
        raise SystemExit(3)

    with (
        LocalCluster(workers="threads"),
        pytest.raises(ray.exceptions.WorkerCrashedError, match="exit code 3"),
    ):
        ray.get(leave.remote())


def test_a_wait_whose_values_came_while_it_began_does_not_block() -> None:
    @ray.remote(num_cpus=100)
    def never() -> None: ...

    with LocalCluster(workers="threads"):
        place = context.current()
        assert place is not None
        pending = never.remote()
        place.core._await_values([pending._entry], BlockedThread(0, raises=False), None)


def test_waits_that_are_over_leave_nothing_with_what_is_not_ready() -> None:
    @ray.remote(num_cpus=100)
    def never() -> None: ...

    with LocalCluster(workers="threads"):
        pending = never.remote()
        for n in range(5):
            assert ray.wait([pending, square.remote(n)])[1] == [pending]
        ray.available_resources()  # after everything asked before it
        assert not pending._entry.waiters
