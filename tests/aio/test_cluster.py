"""`aio.init` and `aio.shutdown`: a cluster that begins and ends while the loop goes on."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

import raylite as ray
from raylite import aio
from tests.cluster.watching import Driver, eventually

pytestmark = [pytest.mark.process, pytest.mark.asyncio]


@ray.remote
def echo(value: Any) -> Any:
    return value


async def test_a_cluster_lasts_as_long_as_the_block_and_the_loop_goes_on_meanwhile() -> None:
    turns: list[bool | None] = []

    async def turn() -> None:
        while True:
            turns.append(ray.is_initialized())
            await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as group:
        turning = group.create_task(turn())
        async with aio.init(num_cpus=1) as context:
            assert context["node_id"]
            assert await echo.remote(1) == 1
            with pytest.raises(RuntimeError, match=r"raylite.init twice"):
                async with aio.init():
                    pass
            assert ray.is_initialized()
            assert await aio.init(ignore_reinit_error=True) == context
            turns.append(None)
        assert not ray.is_initialized()
        await aio.shutdown()  # again
        turning.cancel()
    assert turns[: turns.index(None)].count(False) > 20  # while it started
    assert len(turns) - turns.index(None) > 5  # while it ended


async def test_whoever_cancels_a_start_gets_that_when_nothing_of_it_is_left() -> None:
    starting = asyncio.ensure_future(aio.init(num_cpus=1)._begin())
    await asyncio.sleep(0.05)
    starting.cancel()
    await asyncio.sleep(0.01)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not ray.is_initialized()


async def test_a_block_that_is_cancelled_ends_its_cluster_also_when_cancelled_again() -> None:
    entered = asyncio.Event()

    async def main() -> None:
        async with aio.init(num_cpus=1):
            entered.set()
            await asyncio.Event().wait()

    running = asyncio.ensure_future(main())
    await entered.wait()
    running.cancel()
    await asyncio.sleep(0.001)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not ray.is_initialized()


async def test_a_start_that_fails_raises_what_init_raises() -> None:
    with pytest.raises(ConnectionError):
        await aio.init(address="auto")
    with pytest.raises(RuntimeError, match="Unknown keyword"):
        await aio.init(num_cpu=1)
    assert not ray.is_initialized()


async def test_ctrl_c_interrupts_the_tasks_of_a_group_and_ends_the_cluster(tmp_path: Path) -> None:
    program = """
        import asyncio, pathlib
        from raylite import aio

        @ray.remote
        def stay(folder):
            (folder / "runs").touch()
            try:
                for _ in range(3000):
                    time.sleep(0.01)
            finally:
                (folder / "interrupted").touch()

        async def main():
            async with aio.init(num_cpus=1), aio.TaskGroup() as group:
                group.start(stay, pathlib.Path(hear()))

        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            say("interrupted", ray.is_initialized())
    """
    with Driver(program) as driver:
        driver.say(tmp_path)
        assert eventually((tmp_path / "runs").exists)
        driver.watch_tree()
        driver.press_ctrl_c()
        assert driver.hear() == "interrupted False"
        assert (tmp_path / "interrupted").exists()
        assert driver.end() == (0, "")
        assert driver.watch.left_after(2) == []
