"""`aio.TaskGroup`: remote tasks that do not outlive their block, and `aio.cancel`."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

import raylite as ray
from raylite import aio
from raylite.exceptions import TaskCancelledError, TaskTimeoutError

pytestmark = pytest.mark.usefixtures("cluster")

Run = Callable[[Callable[[], Any]], Any]

RUNNING: dict[str, threading.Event] = {}
RELEASED = threading.Event()
ENDED: list[str] = []


@pytest.fixture(autouse=True)
def _gates() -> Iterator[None]:
    RUNNING.clear()
    RELEASED.clear()
    ENDED.clear()
    yield
    RELEASED.set()


def began(name: str) -> threading.Event:
    return RUNNING.setdefault(name, threading.Event())


def stay(name: str, value: Any = None) -> Any:
    """Run until released or interrupted; what ends it is noted."""
    began(name).set()
    try:
        while not RELEASED.wait(0.005):
            pass
        ENDED.append(f"{name} finished")
        return value
    except BaseException:
        ENDED.append(f"{name} interrupted")
        raise


def fail_beside(name: str, text: str = "no") -> None:
    """Fail when another task runs."""
    assert began(name).wait(20)
    raise ValueError(text)


def stay_and_fail(name: str) -> None:
    try:
        stay(name)
    except BaseException as error:
        raise OSError("while cleaning up") from error


def start_another(name: str) -> None:
    stay_remote.remote(name)
    began(f"parent of {name}").set()
    while not RELEASED.wait(0.005):
        pass


def count(n: int) -> Iterator[int]:
    yield from range(n)


async def start_late(group: aio.TaskGroup) -> Any:
    return group.start(limited, 3)


limited = ray.remote(_generator_backpressure_num_objects=1)(count)
stay_remote = ray.remote(stay)  # pickled by name: they find this module's gates
fail = ray.remote(fail_beside)
parent = ray.remote(start_another)
clean_up_badly = ray.remote(stay_and_fail)


@ray.remote
def count_up(items: int) -> Iterator[int]:
    yield from range(items)


def yield_and_stay(name: str) -> Iterator[int]:
    yield 1
    stay(name)


stream_and_stay = ray.remote(yield_and_stay)


@ray.remote
def echo(value: Any) -> Any:
    return value


@ray.remote
def fail_at_once(text: str) -> None:
    raise ValueError(text)


async def running(name: str) -> None:
    assert await asyncio.to_thread(began(name).wait, 20)


def texts(group: BaseExceptionGroup[Any]) -> list[str]:
    errors: tuple[Any, ...] = group.exceptions
    return sorted(str(error.cause) for error in errors)


# --- Ends that are good ---


def test_the_block_is_left_when_all_tasks_have_ended(run: Run) -> None:
    async def main() -> Any:
        async with aio.TaskGroup() as group:
            slow = group.start(stay_remote, "a", 1)
            refs = [group.start(echo, n) for n in range(5)]
            asyncio.get_running_loop().call_later(0.02, RELEASED.set)
        assert ENDED == ["a finished"]
        return await aio.gather(slow, *refs)

    assert run(main) == [1, 0, 1, 2, 3, 4]


def test_a_group_without_tasks_is_left_at_once(run: Run) -> None:
    async def main() -> Any:
        async with aio.TaskGroup():
            pass

    run(main)


def test_a_child_coroutine_may_start_tasks_also_while_the_block_waits(run: Run) -> None:
    async def main() -> Any:
        refs = []

        async def child() -> None:
            refs.append(group.start(echo, 1))
            await running("b")
            await asyncio.sleep(0)  # the block waits already
            refs.append(group.start(echo, 2))
            RELEASED.set()

        async with asyncio.TaskGroup() as coroutines, aio.TaskGroup() as group:
            group.start(stay_remote, "b")
            coroutines.create_task(child())
            await asyncio.sleep(0)
        return await aio.gather(*refs)

    assert run(main) == [1, 2]


def test_options_and_several_results_are_as_without_a_group(run: Run) -> None:
    @ray.remote(num_returns=2)
    def two() -> Any:
        yield 1
        raise ValueError("after one")

    async def main() -> Any:
        with pytest.raises(ExceptionGroup) as caught:
            async with aio.TaskGroup() as group:
                first, _ = group.start(two)
                named = group.start(echo.options(name="other"), value=3)
        assert texts(caught.value) == ["after one"]
        return await first, await named

    assert run(main) == (1, 3)


def test_a_stream_is_waited_for_though_nobody_reads_it_to_its_end(run: Run) -> None:
    async def main() -> Any:
        async with aio.TaskGroup() as group:
            stream = group.start(count_up, 3)
            first = await (await anext(stream))
        rest = [await ref async for ref in stream]
        return first, rest

    assert run(main) == (0, [1, 2])


def test_a_stream_with_a_limit_is_waited_for_though_the_block_reads_no_more(run: Run) -> None:
    async def program() -> None:
        async with asyncio.timeout(20), aio.TaskGroup() as group:
            items = group.start(limited, 5)
            async for first in items:
                assert await first == 0
                break
            late = asyncio.create_task(start_late(group))  # begins when the block is left
        assert [await item async for item in items] == [1, 2, 3, 4]
        assert [await item async for item in await late] == [0, 1, 2]

    run(program)


def test_a_stream_is_cancelled_with_its_group(run: Run) -> None:
    async def main() -> Any:
        with pytest.raises(ExceptionGroup):
            async with aio.TaskGroup() as group:
                stream = group.start(stream_and_stay, "s")
                await anext(stream)
                raise OSError
        cancelled = stream_and_stay.remote("t")
        await running("t")
        outcome = await aio.cancel(cancelled)
        return sorted(ENDED), outcome.name

    assert run(main) == (["s interrupted", "t interrupted"], "WHILE_RUNNING")


# --- Failures ---


def test_the_first_failure_cancels_the_siblings_and_the_block(run: Run) -> None:
    async def main() -> Any:
        with pytest.raises(ExceptionGroup) as caught:
            async with aio.TaskGroup() as group:
                sibling = group.start(stay_remote, "c")
                group.start(fail, "c")
                await asyncio.Event().wait()
        assert ENDED == ["c interrupted"]
        with pytest.raises(TaskCancelledError):
            await sibling
        return texts(caught.value)

    assert run(main) == ["no"]


def test_a_failure_while_the_block_waits_cancels_the_siblings(run: Run) -> None:
    async def main() -> Any:
        with pytest.raises(ExceptionGroup, match="unhandled errors in a TaskGroup") as caught:
            async with aio.TaskGroup() as group:
                group.start(stay_remote, "d")
                group.start(fail, "d")
        current = asyncio.current_task()
        assert current is not None
        assert not current.cancelling()
        await asyncio.sleep(0)
        return texts(caught.value), ENDED

    assert run(main) == (["no"], ["d interrupted"])


def test_failures_can_be_told_apart_with_except_star(run: Run) -> None:
    async def main() -> Any:
        seen = []
        try:
            async with aio.TaskGroup() as group:
                group.start(fail_at_once, "x")
        except* ValueError as found:
            seen += texts(found)
        return seen

    assert run(main) == ["x"]


def test_many_failures_are_raised_together(run: Run) -> None:
    async def main() -> Any:
        with pytest.raises(ExceptionGroup) as caught:
            async with aio.TaskGroup() as group:
                for name in ("v", "w", "x"):
                    group.start(clean_up_badly, name)
                    await running(name)
                group.start(fail_at_once, "no")
        return texts(caught.value)

    assert run(main) == ["no", *["while cleaning up"] * 3]


def test_an_error_that_the_block_met_itself_is_raised_once(run: Run) -> None:
    async def main() -> Any:
        with pytest.raises(ExceptionGroup) as caught:
            async with aio.TaskGroup() as group:
                await group.start(fail_at_once, "met")
        return texts(caught.value)

    assert run(main) == ["met"]


def test_an_error_that_the_block_met_in_another_result_of_the_task_is_raised_once(run: Run) -> None:
    async def main() -> Any:
        with pytest.raises(ExceptionGroup) as several:
            async with aio.TaskGroup() as group:
                first, _second = group.start(fail_at_once.options(num_returns=2), "one of two")
                await first
        with pytest.raises(ExceptionGroup) as streamed:
            async with aio.TaskGroup() as group:
                items = group.start(stream_and_stay.options(timeout=0.2), "streamed")
                async for item in items:
                    await item
        return texts(several.value), [type(error) for error in streamed.value.exceptions]

    assert run(main) == (["one of two"], [TaskTimeoutError])


def test_an_error_of_the_block_cancels_the_tasks(run: Run) -> None:
    async def main() -> Any:
        with pytest.raises(ExceptionGroup) as caught:
            async with aio.TaskGroup() as group:
                group.start(stay_remote, "e")
                await running("e")
                raise OSError("in the block")
        assert [type(error) for error in caught.value.exceptions] == [OSError]
        return ENDED

    assert run(main) == ["e interrupted"]


def test_an_interrupt_in_the_block_is_raised_as_it_is(run: Run) -> None:
    async def main() -> Any:
        with pytest.raises(SystemExit):
            async with aio.TaskGroup() as group:
                group.start(stay_remote, "f")
                await running("f")
                raise SystemExit(3)
        return ENDED

    assert run(main) == ["f interrupted"]


def test_a_task_that_somebody_cancelled_is_no_failure(run: Run) -> None:
    async def main() -> Any:
        async with aio.TaskGroup() as group:
            ref = group.start(stay_remote, "g")
            await running("g")
            outcome = await aio.cancel(ref)
            other = group.start(echo, 1)
        return outcome.name, await other

    assert run(main) == ("WHILE_RUNNING", 1)


# --- Cancellation ---


def test_cancelling_the_block_cancels_the_tasks_and_waits_for_their_ends(run: Run) -> None:
    async def main() -> Any:
        async def block() -> None:
            async with aio.TaskGroup() as group:
                group.start(stay_remote, "h")
                group.start(stay_remote, "i")
                await asyncio.Event().wait()

        blocked = asyncio.ensure_future(block())
        await running("h")
        await running("i")
        blocked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await blocked
        return sorted(ENDED)

    assert run(main) == ["h interrupted", "i interrupted"]


def test_cancelling_while_the_block_waits_does_the_same(run: Run) -> None:
    async def main() -> Any:
        async def block() -> None:
            async with aio.TaskGroup() as group:
                group.start(stay_remote, "j")

        blocked = asyncio.ensure_future(block())
        await running("j")
        blocked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await blocked
        return ENDED

    assert run(main) == ["j interrupted"]


def test_cancelled_a_third_time_the_block_is_left_without_a_task_that_stays(run: Run) -> None:
    async def main() -> Any:
        async def block() -> None:
            async with aio.TaskGroup() as group:
                group.start(stay_remote, "deaf")

        blocked = asyncio.ensure_future(block())
        await running("deaf")
        for _ in range(3):
            assert not blocked.done()
            blocked.cancel()
            await asyncio.sleep(0)
        return blocked.cancelled()

    assert run(main)


def test_tasks_that_tasks_have_started_are_cancelled_too(run: Run) -> None:
    async def main() -> Any:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as limit, aio.TaskGroup() as group:
                group.start(parent, "k")
                await running("parent of k")
                await running("k")
                limit.reschedule(0)
        while not ENDED:  # the children's ends are not waited for
            await asyncio.sleep(0.005)
        return ENDED

    assert run(main) == ["k interrupted"]


def test_a_failure_and_a_cancellation_at_once_keep_both(run: Run) -> None:
    async def main() -> Any:
        async def block() -> None:
            try:
                async with aio.TaskGroup() as group:
                    group.start(stay_remote, "l")
                    await running("l")
                    asyncio.get_running_loop().call_soon(blocked.cancel)
                    raise OSError
            except* OSError:
                await asyncio.sleep(0)  # raises: somebody had cancelled

        blocked = asyncio.ensure_future(block())
        with pytest.raises(asyncio.CancelledError):
            await blocked
        return ENDED

    assert run(main) == ["l interrupted"]


def test_groups_can_be_nested(run: Run) -> None:
    async def main() -> Any:
        with pytest.raises(ExceptionGroup) as caught:
            async with aio.TaskGroup() as outer:
                outer.start(stay_remote, "m")
                async with aio.TaskGroup() as inner:
                    inner.start(stay_remote, "n")
                    inner.start(fail, "n")
        assert sorted(ENDED) == ["m interrupted", "n interrupted"]
        (error,) = caught.value.exceptions
        assert isinstance(error, ExceptionGroup)
        ENDED.clear()
        with pytest.raises(ExceptionGroup) as caught:
            async with aio.TaskGroup() as outer:
                outer.start(fail, "o", "outer")
                async with aio.TaskGroup() as inner:
                    inner.start(stay_remote, "o")
        await asyncio.sleep(0)
        return texts(caught.value), ENDED

    assert run(main) == (["outer"], ["o interrupted"])


def test_nested_groups_that_fail_together_leave_no_cancellation_behind(run: Run) -> None:
    async def main() -> Any:
        with pytest.raises(ExceptionGroup) as caught:
            async with aio.TaskGroup() as outer:
                outer.start(fail, "u", "outer")
                async with aio.TaskGroup() as inner:
                    inner.start(clean_up_badly, "u")
                    await asyncio.Event().wait()
        await asyncio.sleep(0)
        current = asyncio.current_task()
        assert current is not None
        assert not current.cancelling()
        one, other = caught.value.exceptions
        assert isinstance(other, ExceptionGroup)
        return texts(ExceptionGroup("", [one, *other.exceptions]))

    assert run(main) == ["outer", "while cleaning up"]


def test_a_cancelled_anyio_scope_is_heard_once(run: Run) -> None:
    async def main() -> Any:
        loop = asyncio.get_running_loop()
        with anyio.CancelScope() as scope:
            async with aio.TaskGroup() as group:
                group.start(stay_remote, "p")
                await running("p")
                made = []
                create = loop.create_future

                def counted() -> asyncio.Future[Any]:
                    made.append(1)
                    return create()

                loop.create_future = counted  # type: ignore[method-assign]
                scope.cancel()
        assert scope.cancelled_caught
        return ENDED, len(made) < 10

    with asyncio.Runner() as runner:
        assert runner.run(main()) == (["p interrupted"], True)


# --- Mistakes ---


def test_a_group_is_used_in_its_block_only(run: Run) -> None:
    async def main() -> Any:
        group = aio.TaskGroup()
        with pytest.raises(RuntimeError, match="has not been entered"):
            group.start(echo, 1)
        async with group:
            with pytest.raises(RuntimeError, match="entered already"):
                await group.__aenter__()
            with pytest.raises(TypeError, match="missing a required argument"):
                group.start(echo)
            with pytest.raises(
                TypeError, match=r"start\(\) takes a remote function, not <function stay"
            ):
                group.start(stay, "local")  # type: ignore[call-overload]
            with pytest.raises(TypeError, match="not a reference"):
                group.start(echo.options(num_returns=0), 1)
        with pytest.raises(RuntimeError, match="has been left"):
            group.start(echo, 1)
        with pytest.raises(ExceptionGroup):
            async with aio.TaskGroup() as failing:
                failing.start(fail_at_once, "x")
                try:
                    await asyncio.Event().wait()
                finally:
                    with pytest.raises(RuntimeError, match="is cancelling its tasks"):
                        failing.start(echo, 1)

    run(main)


# --- cancel ---


def test_cancel_says_what_came_of_it(run: Run) -> None:
    async def main() -> Any:
        done = echo.remote(1)
        await done
        ref = stay_remote.remote("q")
        waiting = echo.options(num_cpus=4).remote(2)
        await running("q")
        before = await aio.cancel(waiting)
        while_running = await aio.cancel(ref)
        with pytest.raises(TypeError, match="needs an ObjectRef"):
            await aio.cancel(1)  # type: ignore[arg-type]
        return before, while_running, await aio.cancel(done)

    outcome = aio.CancelOutcome
    assert run(main) == (outcome.BEFORE_START, outcome.WHILE_RUNNING, outcome.FINISHED_FIRST)


def test_a_cancel_that_is_cancelled_itself_goes_on(run: Run) -> None:
    async def main() -> Any:
        ref = stay_remote.remote("r")
        await running("r")
        cancelling = asyncio.ensure_future(aio.cancel(ref))
        await asyncio.sleep(0)
        cancelling.cancel()
        with pytest.raises(TaskCancelledError):
            await ref
        return ENDED

    assert run(main) == ["r interrupted"]
