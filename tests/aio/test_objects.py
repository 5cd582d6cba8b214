"""`raylite.aio`: reading, waiting and storing in coroutines."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import raylite as ray
from raylite import aio
from raylite._services.worker.awaiting import Countdown
from raylite.exceptions import GetTimeoutError, RayTaskError
from raylite.testing import LocalCluster

pytestmark = pytest.mark.usefixtures("cluster")

Run = Callable[[Callable[[], Any]], Any]

GATES: dict[str, threading.Event] = {}
"""What tasks wait for; they are threads of this process."""


@ray.remote
def echo(value: Any) -> Any:
    return value


@ray.remote
def fail(text: str) -> None:
    raise ValueError(text)


def pass_gate(name: str, value: Any) -> Any:
    assert GATES[name].wait(20)
    return value


def yield_at_gate(name: str) -> Iterator[int]:
    yield 0
    yield pass_gate(name, 1)


stream_gated = ray.remote(yield_at_gate)
gated = ray.remote(pass_gate)  # pickled by name, so it finds this module's gates


@pytest.fixture
def gate() -> Iterator[Callable[[str], threading.Event]]:
    """Make a gate that tasks wait at; all are open when the test is over."""

    def make(name: str) -> threading.Event:
        return GATES.setdefault(name, threading.Event())

    yield make
    for each in GATES.values():
        each.set()
    GATES.clear()


Gate = Callable[[str], threading.Event]


# --- get and gather ---


def test_get_awaits_one_value_or_a_list_of_them(run: Run) -> None:
    async def main() -> Any:
        refs = [echo.remote(n) for n in range(5)]
        return await aio.get(refs[3]), await aio.get(refs), await aio.get([]), await aio.gather()

    assert run(main) == (3, [0, 1, 2, 3, 4], [], [])


def test_get_takes_the_same_reference_twice(run: Run) -> None:
    async def main() -> Any:
        ref = echo.remote(1)
        return await aio.gather(ref, ref, ref)

    assert run(main) == [1, 1, 1]


def test_get_raises_the_first_error_while_others_are_unfinished(run: Run, gate: Gate) -> None:
    gate("a")

    async def main() -> Any:
        with pytest.raises(ValueError, match="no") as caught:
            await aio.get([gated.remote("a", 1), fail.remote("no"), echo.remote(2)])
        assert isinstance(caught.value, RayTaskError)

    run(main)


def test_get_returns_exceptions_in_their_places_and_waits_for_all(run: Run) -> None:
    async def main() -> Any:
        refs = [echo.remote(1), fail.remote("x"), echo.remote(2), fail.remote("y")]
        one, x, two, y = await aio.gather(*refs, return_exceptions=True)
        assert (one, two) == (1, 2)
        assert isinstance(x, ValueError)
        assert isinstance(x, RayTaskError)
        assert isinstance(y, ValueError)
        assert isinstance(await aio.get(refs[1], return_exceptions=True), ValueError)

    run(main)


def test_get_times_out_and_calling_again_resumes(run: Run, gate: Gate) -> None:
    held = gate("t")

    async def main() -> Any:
        refs = [gated.remote("t", 1), echo.remote(2)]
        assert await aio.get(refs[1]) == 2
        for seconds in (0, 0.01):
            with pytest.raises(GetTimeoutError):
                await aio.get(refs, timeout=seconds)
            with pytest.raises(GetTimeoutError):
                await aio.get(refs, timeout=seconds, return_exceptions=True)
        held.set()
        assert await aio.get(refs, timeout=20) == [1, 2]
        assert await aio.get(refs, timeout=0) == [1, 2]
        assert await aio.get(refs, timeout=-1) == [1, 2]

    run(main)


def test_a_task_that_raises_a_timeout_error_is_not_taken_for_get_s_own(run: Run) -> None:
    @ray.remote
    def late() -> None:
        raise TimeoutError("the database did not answer")

    async def main() -> Any:
        with pytest.raises(TimeoutError, match="database") as caught:
            await aio.get([late.remote()], timeout=20)
        assert not isinstance(caught.value, GetTimeoutError)

    run(main)


def test_cancelling_a_get_leaves_the_tasks_alone(run: Run, gate: Gate) -> None:
    held = gate("c")

    async def main() -> Any:
        refs = [gated.remote("c", n) for n in range(3)]
        getting = asyncio.ensure_future(aio.get(refs))
        await asyncio.sleep(0)
        getting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await getting
        held.set()
        return await aio.get(refs)

    assert run(main) == [0, 1, 2]


@pytest.mark.parametrize("wrong", [(), "ref", 1, None])
def test_get_refuses_what_is_no_list_of_references(run: Run, wrong: Any) -> None:
    async def main() -> Any:
        with pytest.raises(ValueError, match="Invalid type of object refs"):
            await aio.get(wrong)
        with pytest.raises(TypeError, match="not an raylite"):
            await aio.get([wrong])

    run(main)


def test_the_loop_is_woken_once_for_a_get_of_many(cluster: LocalCluster) -> None:
    wakes = []

    async def main() -> Any:
        loop = asyncio.get_running_loop()
        wake = loop.call_soon_threadsafe

        def counted(*args: Any, **kwargs: Any) -> Any:
            wakes.append(args)
            return wake(*args, **kwargs)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign, assignment]
        return await aio.get([echo.remote(n) for n in range(500)])

    with asyncio.Runner() as runner:
        assert runner.run(main()) == list(range(500))
    assert len(wakes) <= 2  # the value, and at the end the runner's own


# --- wait ---


def test_wait_splits_what_is_there_from_the_rest(run: Run, gate: Gate) -> None:
    held = gate("w")

    async def main() -> Any:
        slow, quick = gated.remote("w", 1), echo.remote(2)
        assert await aio.wait([slow, quick]) == ([quick], [slow])
        assert await aio.wait([slow, quick], num_returns=2, timeout=0.01) == ([quick], [slow])
        assert await aio.wait([slow, quick], num_returns=2, timeout=0) == ([quick], [slow])
        assert await aio.wait([slow], timeout=0) == ([], [slow])
        held.set()
        assert await aio.wait([slow, quick], num_returns=2) == ([slow, quick], [])
        assert await aio.wait([]) == ([], [])
        failed = fail.remote("x")
        assert await aio.wait([failed], fetch_local=False) == ([failed], [])

    run(main)


def test_wait_refuses_what_the_other_wait_refuses(run: Run) -> None:
    async def main() -> Any:
        ref = echo.remote(1)
        with pytest.raises(TypeError, match="got a single"):
            await aio.wait(ref)
        with pytest.raises(ValueError, match="unique"):
            await aio.wait([ref, ref])
        with pytest.raises(ValueError, match="num_returns cannot be greater"):
            await aio.wait([ref], num_returns=2)
        with pytest.raises(ValueError, match="nonnegative"):
            await aio.wait([ref], timeout=-1)

    run(main)


# --- as_completed ---


def test_references_come_as_they_complete(run: Run, gate: Gate) -> None:
    gates = [gate(str(n)) for n in range(3)]

    async def main() -> Any:
        refs = [gated.remote(str(n), n) for n in range(3)]
        which = {ref: n for n, ref in enumerate(refs)}
        order = []
        gates[1].set()
        async for ref in (coming := aio.as_completed(refs)):
            order.append((which[ref], await ref))
            assert len(coming) == 3 - len(order)
            gates[2 if len(order) == 1 else 0].set()
        return order

    assert run(main) == [(1, 1), (2, 2), (0, 0)]


def test_every_reference_comes_once_also_failed_ones_and_those_that_were_there(run: Run) -> None:
    async def main() -> Any:
        there, failed = ray.put(1), fail.remote("x")
        wrong: Any = 1
        refs = [echo.remote(2), there, failed, there]
        seen = {ref async for ref in aio.as_completed(iter(refs))}
        assert seen == set(refs)
        assert [each async for each in aio.as_completed(refs[:0])] == []
        with pytest.raises(TypeError, match="not an raylite"):
            aio.as_completed([there, wrong])

    run(main)


def test_leaving_as_completed_early_leaves_the_tasks_alone(run: Run, gate: Gate) -> None:
    held = gate("early")

    async def main() -> Any:
        refs = [echo.remote(0), gated.remote("early", 1)]
        async for ref in aio.as_completed(refs):
            assert await ref == 0
            break
        held.set()
        return await aio.get(refs)

    assert run(main) == [0, 1]


def test_as_completed_times_out_and_goes_on_when_asked_again(run: Run, gate: Gate) -> None:
    held = gate("late")

    async def main() -> Any:
        coming = aio.as_completed([echo.remote(0), gated.remote("late", 1)], timeout=0.05)
        seen = []
        with pytest.raises(GetTimeoutError):
            async for ref in coming:
                value = await ref
                seen.append(value)
        assert seen == [0]
        assert len(coming) == 1
        held.set()
        ready, _ = await aio.wait([*coming._coming.values()])
        assert [ref async for ref in coming] == ready

    run(main)


def test_a_cancelled_as_completed_loses_nothing(run: Run, gate: Gate) -> None:
    held = gate("cancelled")

    async def main() -> Any:
        coming = aio.as_completed([gated.remote("cancelled", 7)])
        step = asyncio.ensure_future(anext(coming))
        await asyncio.sleep(0)
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
        held.set()
        return [await ref async for ref in coming]

    assert run(main) == [7]


def test_several_coroutines_can_share_an_as_completed(run: Run, gate: Gate) -> None:
    for n in range(4):
        gate(f"shared {n}")

    async def main() -> Any:
        refs = [gated.remote(f"shared {n}", n) for n in range(4)]
        coming = aio.as_completed(refs)
        seen = []

        async def take() -> None:
            async for ref in coming:
                value = await ref
                seen.append(value)

        takers = [asyncio.create_task(take()) for _ in range(3)]
        await asyncio.sleep(0)
        takers[1].cancel()  # which is not that of the others, who wait for the same
        for n in (2, 0, 3, 1):
            gate(f"shared {n}").set()
            await refs[n]
        with pytest.raises(asyncio.CancelledError):
            await takers[1]
        await asyncio.gather(takers[0], takers[2])
        return seen

    assert sorted(run(main)) == [0, 1, 2, 3]


def test_a_timeout_of_as_completed_is_a_number(run: Run) -> None:
    async def main() -> Any:
        refs = [echo.remote(1)]
        with pytest.raises(TypeError, match="timeout must be a number of seconds or None, not str"):
            aio.as_completed(refs, timeout="1")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="NaN"):
            aio.as_completed(refs, timeout=float("nan"))

    run(main)


def test_completions_that_come_while_nobody_looks_wake_the_loop_once() -> None:
    wakes = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        wake = loop.call_soon_threadsafe

        def counted(*args: Any, **kwargs: Any) -> Any:
            wakes.append(args)
            return wake(*args, **kwargs)

        refs = [echo.remote(n) for n in range(500)]
        loop.call_soon_threadsafe = counted  # type: ignore[method-assign, assignment]
        coming = aio.as_completed(refs)
        await asyncio.to_thread(ray.get, refs)
        assert len([ref async for ref in coming]) == 500

    with asyncio.Runner() as runner:
        runner.run(main())
    assert len(wakes) <= 4  # theirs, that of the thread, and at the end the runner's own


class Counted(dict[Any, Any]):
    """What is still to come; counts how often one of it is taken, or looked for."""

    def __init__(self, coming: dict[Any, Any]) -> None:
        super().__init__(coming)
        self.takes = self.looks = 0

    def pop(self, *args: Any) -> Any:
        self.takes += 1
        return super().pop(*args)

    def __iter__(self) -> Iterator[Any]:
        self.looks += 1
        return super().__iter__()

    keys = values = items = __iter__  # type: ignore[assignment]


def test_each_of_many_completions_takes_one_reference_and_looks_at_no_other() -> None:
    async def main() -> None:
        coming = aio.as_completed([echo.remote(n) for n in range(2000)])
        coming._coming = counted = Counted(coming._coming)
        waits = 0
        next_arrival = coming._next_arrival

        async def count_wait() -> None:
            nonlocal waits
            waits += 1
            await next_arrival()

        coming._next_arrival = count_wait  # type: ignore[method-assign]
        assert len([ref async for ref in coming]) == 2000
        assert (counted.takes, counted.looks) == (2000, 0)
        assert waits <= 2000

    asyncio.run(main())


def test_a_countdown_wakes_with_the_last_value_only() -> None:
    async def main() -> None:
        countdown = Countdown(2, raises=True)
        for _ in range(2):
            assert not countdown.future.done()
            countdown.ready(ray.put(1)._entry)
        assert countdown.future.done()

    with asyncio.Runner() as runner:
        runner.run(main())


# --- Streams ---


def test_wait_takes_streams_and_get_leaves_them_as_they_are(run: Run, gate: Gate) -> None:
    held = gate("stream")

    async def main() -> Any:
        stream, other = stream_gated.remote("stream"), echo.remote(1)
        assert await aio.wait([stream, other], num_returns=2, timeout=20) == ([stream, other], [])
        assert await aio.get(await anext(stream)) == 0
        assert await aio.wait([stream], timeout=0.01) == ([], [stream])
        held.set()
        assert await aio.wait([stream], timeout=20) == ([stream], [])
        with pytest.raises(TypeError, match="async for"):
            aio.as_completed(stream)
        return [await ref async for ref in stream]

    assert run(main) == [1]


# --- In tasks ---


def test_a_task_that_is_a_coroutine_may_use_all_of_it(run: Run) -> None:
    @ray.remote
    async def outer(n: int) -> list[int]:
        async with aio.TaskGroup() as group:
            refs = [group.start(echo, each) for each in range(n)]
        seen = [await ref async for ref in aio.as_completed(refs)]
        assert sorted(seen) == await aio.get(refs)
        mapped = [await ref async for ref in echo.map(range(n))]
        return sorted([*seen, *mapped, await (await aio.put(100))])

    async def main() -> Any:
        return await outer.options(num_cpus=0).remote(3)

    assert run(main) == [0, 0, 1, 1, 2, 2, 100]


# --- put ---


def test_put_stores_small_and_large_values(run: Run) -> None:
    async def main() -> Any:
        array: Any = np.arange(1_000_000)
        refs: list[Any] = [await aio.put(value) for value in (1, None, "a" * 5, b"x" * 5000, array)]
        one, none, text, data, back = await aio.get(refs)
        assert (one, none, text, data) == (1, None, "aaaaa", b"x" * 5000)
        assert (back == array).all()
        with pytest.raises(TypeError, match="not allowed"):
            await aio.put(refs[0])
        with pytest.raises(TypeError, match="Could not serialize"):
            await aio.put(threading.Lock())

    run(main)


def test_put_pickles_in_another_thread() -> None:
    threads = []

    class Watched:
        def __reduce__(self) -> Any:
            threads.append(threading.current_thread())
            return int, ()

    async def main() -> Any:
        return await (await aio.put([Watched()]))

    assert asyncio.run(main()) == [0]
    assert threads
    assert threading.current_thread() not in threads


# --- loops ---


def test_several_loops_in_several_threads_wait_for_the_same_references(gate: Gate) -> None:
    held = gate("shared")
    refs = [gated.remote("shared", n) for n in range(4)]
    results: dict[int, Any] = {}
    started = threading.Barrier(4)

    async def main() -> Any:
        coming = aio.as_completed(refs)
        getting = asyncio.ensure_future(aio.get(refs))
        await asyncio.sleep(0)
        await asyncio.to_thread(started.wait)
        return sorted([await ref async for ref in coming]), await getting

    def in_thread(number: int) -> None:
        results[number] = asyncio.run(main())

    threads = [threading.Thread(target=in_thread, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    started.wait()
    held.set()
    for thread in threads:
        thread.join()
    assert results == {n: ([0, 1, 2, 3], [0, 1, 2, 3]) for n in range(3)}


def test_a_loop_that_has_ended_is_not_woken(gate: Gate) -> None:
    held = gate("closed")
    ref = gated.remote("closed", 1)

    async def main() -> Any:
        coming = aio.as_completed([ref])
        with pytest.raises(GetTimeoutError):
            await aio.get(ref, timeout=0.01)
        return coming

    coming = asyncio.run(main())
    held.set()
    assert ray.get(ref) == 1
    assert len(coming) == 1


def test_without_an_asyncio_loop_awaiting_says_what_works(gate: Gate) -> None:
    gate("trio")
    ref = gated.remote("trio", 1)
    for waiting in (aio.get([ref]), aio.wait([ref])):
        with pytest.raises(RuntimeError, match=r"an asyncio event loop .* trio.to_thread"):
            waiting.send(None)
    starting = aio.init()
    for blocking in (aio.put([1]), aio.shutdown(), starting._begin(), aio.TaskGroup().__aenter__()):
        with pytest.raises(RuntimeError, match="an asyncio event loop"):
            blocking.send(None)
    for awaited, twin in (
        (aio.put([1]), "raylite.put, value"),
        (aio.cancel(ref), "raylite.cancel, ref"),
        (anext(gated.map(["trio"], [1])), "next, refs, None"),
    ):
        with pytest.raises(RuntimeError, match=rf"an asyncio event loop .*run_sync\({twin}\)"):
            awaited.send(None)
    with pytest.raises(RuntimeError, match="an asyncio event loop"):
        aio.as_completed([ref])
    with pytest.raises(RuntimeError, match="an asyncio event loop"):
        next(ref.__await__())
