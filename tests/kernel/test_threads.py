"""A loop in a thread of its own, and who waits for it."""

import asyncio
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from raylite._kernel.threads import LoopThread, run_on


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    thread = LoopThread("test")
    yield thread
    thread.stop()


async def divide(a: int, b: int) -> float:
    return a / b


def test_what_a_coroutine_on_another_threads_loop_returns_or_raises_comes_here(
    thread: LoopThread,
) -> None:
    assert run_on(thread.loop, divide, 1, b=2) == 0.5
    with pytest.raises(ZeroDivisionError):
        run_on(thread.loop, divide, 1, b=0)


def test_a_coroutine_that_is_cancelled_there_is_so_here(thread: LoopThread) -> None:
    async def give_up() -> None:
        raise asyncio.CancelledError

    with pytest.raises(CancelledError):
        run_on(thread.loop, give_up)


def test_a_ctrl_c_cancels_what_is_waited_for(thread: LoopThread) -> None:
    main = threading.main_thread().ident
    assert main is not None
    ended = threading.Event()

    async def work() -> None:
        signal.pthread_kill(main, signal.SIGINT)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    with pytest.raises(KeyboardInterrupt):
        run_on(thread.loop, work)
    assert ended.wait(5.0)


def test_a_ctrl_c_before_the_loop_knows_of_the_work_leaves_no_coroutine() -> None:
    class Interrupted(asyncio.SelectorEventLoop):
        def call_soon_threadsafe(self, *_: object, **__: object) -> asyncio.Handle:
            raise KeyboardInterrupt

    loop = Interrupted()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_on(loop, divide, 1, 2)
    finally:
        loop.close()
