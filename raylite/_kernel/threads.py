"""A loop in a thread of its own: where a driver's or worker's services live, beside user code."""

import asyncio
import concurrent.futures
import signal
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from time import monotonic
from typing import Any, ParamSpec, TypeVar

import uvloop

from raylite._kernel import processes

P = ParamSpec("P")
T = TypeVar("T")


LOOK_UP = 0.25  # seconds after which a main thread that waits looks whether a signal came

_ITS_OWN = {
    signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP,
    signal.SIGPROF,
}  # fmt: skip


def leave_signals_to_main() -> None:
    """Have the calling thread take no signal that is meant for the program.

    The system may hand a process's signal to any thread. Python acts on it in the main one, which
    nothing wakes if another took it: a Ctrl-C would wait as long as the main thread does.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _ITS_OWN)


def acquire(lock: threading.Lock, timeout: float | None = None) -> bool:
    """Acquire a lock, or give up after `timeout` seconds; a Ctrl-C ends the wait.

    CPython misses a signal that comes in the moment before it blocks, and acts on it when it wakes.
    That moment is long where another thread waits for the GIL, so the main thread looks up at times.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return lock.acquire(timeout=-1 if timeout is None else max(timeout, 0.0))
    deadline = None if timeout is None else monotonic() + timeout
    while True:
        left = LOOK_UP if deadline is None else min(deadline - monotonic(), LOOK_UP)
        if lock.acquire(timeout=max(left, 0.0)):
            return True
        if deadline is not None and monotonic() >= deadline:
            return False


def result_of(future: "concurrent.futures.Future[T]", timeout: float | None = None) -> T:
    """Wait for a future's result as `acquire` does for a lock; raises TimeoutError."""
    if not settled(future, timeout):
        raise TimeoutError
    return future.result(0)


def settled(future: "concurrent.futures.Future[Any]", timeout: float | None = None) -> bool:
    """Wait, as `acquire` does for a lock, and return whether a future has its result or error."""
    done = threading.Lock()
    done.acquire()
    future.add_done_callback(lambda future: done.release())
    return acquire(done, timeout)


def refuse_to_wait_for(loop: asyncio.AbstractEventLoop) -> None:
    """Raise if this is the loop's own thread: what waited here for the loop would wait for ever.

    Raises:
        RuntimeError: It is; a user's callback is what can be running there.
    """
    if asyncio._get_running_loop() is loop:
        raise RuntimeError(
            "this would wait for the thread that it is called on, and so for ever: callbacks of "
            "ref.future() run on raylite's own event loop. Do there only what does not wait, such "
            "as future.result() or .remote(), and leave the rest to a thread of your own, for "
            "instance with executor.submit(...)"
        )


def run_on(
    loop: asyncio.AbstractEventLoop,
    work: Callable[P, Coroutine[Any, Any, T]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Call a coroutine function on a loop of another thread, and return here what it returns.

    The coroutine is made there. Here a Ctrl-C could come before it is handed over, and Python
    complains of a coroutine that nobody awaits.
    """
    future: concurrent.futures.Future[T] = concurrent.futures.Future()
    try:
        loop.call_soon_threadsafe(_begin, loop, future, partial(work, *args, **kwargs))
        return result_of(future)
    except BaseException:  # interrupted: nobody wants the result any more
        future.cancel()
        raise


async def await_on(
    loop: asyncio.AbstractEventLoop,
    work: Callable[P, Coroutine[Any, Any, T]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Call a coroutine function on a loop of another thread, and await here what it returns."""
    future: concurrent.futures.Future[T] = concurrent.futures.Future()
    loop.call_soon_threadsafe(_begin, loop, future, partial(work, *args, **kwargs))
    return await asyncio.wrap_future(future)


def _begin(
    loop: asyncio.AbstractEventLoop,
    future: "concurrent.futures.Future[T]",
    work: Callable[[], Coroutine[Any, Any, T]],
) -> None:
    if future.cancelled():
        return
    task = loop.create_task(work())

    def cancel(future: "concurrent.futures.Future[T]") -> None:
        if future.cancelled() and not loop.is_closed():
            loop.call_soon_threadsafe(task.cancel)

    def finish(task: "asyncio.Task[T]") -> None:
        error = None if task.cancelled() else task.exception()
        if task.cancelled():
            future.cancel()
        if not future.set_running_or_notify_cancel():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(task.result())

    future.add_done_callback(cancel)
    task.add_done_callback(finish)


def new_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop of the kind that raylite's processes run on."""
    return uvloop.new_event_loop()


class LoopThread:
    """A running event loop that other threads submit coroutines to.

    Its descriptors must stay open. libuv aborts the program at its next step, whoever takes it,
    when it finds one closed (`os.closerange`); nothing in Python comes before every step. asyncio's
    loop would raise instead, and costs a driver hardly more, but it is woken as if nothing were: by
    a byte into whatever socket of the program's has got the number since, and waiters would hang.
    """

    def __init__(
        self,
        name: str,
        make_loop: Callable[[], asyncio.AbstractEventLoop] = new_loop,
    ) -> None:
        processes.occupy_stdio()
        self.loop = make_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def run(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine there and return its result here."""
        return self.submit(work).result(timeout)

    def submit(self, work: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def stop(self, timeout: float = 5.0) -> None:
        """Cancel what still runs there, then end the loop and its thread."""
        if not self._thread.is_alive():
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout)

    def _run(self) -> None:
        leave_signals_to_main()
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self._finish()

    def _finish(self) -> None:
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


def expect_loop(twin: str) -> None:
    """Raise if no asyncio loop runs here, saying what to do.

    Args:
        twin: What blocks instead, with its arguments: what is run in a thread.

    Raises:
        RuntimeError: None does: this may be trio.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "this can be awaited in an asyncio event loop (asyncio's own or uvloop's), and none "
            "runs here. In trio code call its twin that blocks, in a thread: "
            f"await trio.to_thread.run_sync({twin})"
        ) from None
