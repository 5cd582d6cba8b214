"""Errors that nobody reads are logged once, seconds after the last reference: a node in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from raylite.exceptions import TaskTimeoutError
from raylite.testing.loop import SimLoop
from raylite.testing.node import SimDriver, SimNode, TaskContext
from raylite.testing.sim import World
from tests.sim.workload import quiet_collector

LATER = 7.0
TEXT = "Unhandled error (suppress with 'RAY_IGNORE_UNHANDLED_ERRORS=1'): "

pytestmark = pytest.mark.sim


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet_collector():
        yield


def fail(task: TaskContext, text: str, seconds: float = 0.0) -> Awaitable[None]:
    return _fail(task, text, seconds)


async def _fail(task: TaskContext, text: str, seconds: float) -> None:
    await task.sleep(seconds)
    raise ValueError(text)


def crash(task: TaskContext) -> Awaitable[None]:
    return task.crash()


def echo(task: TaskContext, value: Any) -> Awaitable[Any]:
    return _echo(task, value)


async def _echo(task: TaskContext, value: Any) -> Any:
    return value


def lead(task: TaskContext, seconds: float, keeps: bool) -> Awaitable[None]:
    return _lead(task, seconds, keeps)


async def _lead(task: TaskContext, seconds: float, keeps: bool) -> None:
    """Start tasks that take long, one after another, another that needs one of them, and forget one."""
    first = task.submit(fail, "first", 20.0)
    refs = [first, task.submit(echo, first), task.submit(sleep_on, 20.0)]
    task.submit(fail, "forgotten", 20.0)
    if not keeps:
        refs.clear()
        del first
    await task.sleep(seconds)


def sleep_on(task: TaskContext, seconds: float) -> Awaitable[None]:
    return task.sleep(seconds)


def read(task: TaskContext, box: list[Any]) -> Awaitable[str]:
    return _read(task, box)


async def _read(task: TaskContext, box: list[Any]) -> str:
    try:
        return str(await task.get(box))
    except ValueError as error:
        return str(error)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was logged since the last look: the last line of each error."""

    def look() -> list[str]:
        texts = [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]
        caplog.clear()
        assert all(text.startswith(TEXT) for text in texts)
        return sorted(text.splitlines()[-1].removeprefix(TEXT) for text in texts)

    return look


def run(program: Callable[[SimDriver], Awaitable[None]]) -> None:
    """Run a program of a driver on a node of its own."""

    async def alone() -> None:
        node = SimNode(World(1), cpus=2)
        await node.start()
        await program(await node.driver("driver"))
        await node.stop()

    SimLoop().run(alone(), within=1000.0)


async def settled(driver: SimDriver, *refs: Any) -> None:
    for ref in refs:
        while not ref.done():
            await asyncio.sleep(0.1)


def test_an_error_is_logged_once_when_its_reference_is_dropped_unread(
    logged: Callable[[], list[str]],
) -> None:
    async def program(driver: SimDriver) -> None:
        ref = driver.submit(fail, "dropped")
        await settled(driver, ref)  # to have waited for it is not to have read it
        await asyncio.sleep(60.0)
        assert logged() == []  # it can be read still
        del ref
        await asyncio.sleep(4.0)
        assert logged() == []
        await asyncio.sleep(LATER - 4.0)
        assert logged() == ["ValueError: dropped"]
        await asyncio.sleep(100.0)
        assert logged() == []

    run(program)


def test_an_error_of_a_task_that_nobody_waits_for_is_logged(
    logged: Callable[[], list[str]],
) -> None:
    async def program(driver: SimDriver) -> None:
        driver.submit(fail, "forgotten", 3.0)
        driver.submit(crash, max_retries=0)
        await asyncio.sleep(3.0 + LATER)
        forgotten, crashed = logged()
        assert forgotten == "ValueError: forgotten"
        assert crashed.startswith("WorkerCrashedError: The worker died unexpectedly")

    run(program)


@pytest.mark.parametrize("how", ["get", "await", "exception", "future", "among others"])
def test_an_error_that_was_read_is_not_logged(how: str, logged: Callable[[], list[str]]) -> None:
    async def program(driver: SimDriver) -> None:
        ref, other = driver.submit(fail, "read"), driver.submit(fail, "other")
        await settled(driver, ref, other)
        if how == "exception":
            assert ref.exception() is not None
            assert other.exception() is not None
        elif how == "future":
            with pytest.raises(ValueError, match="read"):
                await ref.as_future()
            with pytest.raises(ValueError, match="other"):
                await asyncio.wrap_future(other.future())
        elif how == "await":
            with pytest.raises(ValueError, match="read"):
                await ref
            with pytest.raises(ValueError, match="other"):
                await other
        else:
            with pytest.raises(ValueError, match="read"):
                await driver.get([ref, other])
            if how == "get":
                with pytest.raises(ValueError, match="other"):
                    await driver.get([other])
        del ref, other
        await asyncio.sleep(LATER)
        assert logged() == []

    run(program)


def test_the_error_of_an_argument_is_told_by_the_task_that_it_was_given_to(
    logged: Callable[[], list[str]],
) -> None:
    async def program(driver: SimDriver) -> None:
        ref = driver.submit(fail, "first")
        dependent = driver.submit(echo, ref)
        await settled(driver, dependent)
        del ref
        await asyncio.sleep(LATER)
        assert logged() == []
        del dependent
        await asyncio.sleep(LATER)
        assert logged() == ["ValueError: first"]

    run(program)


def test_what_a_borrower_has_read_is_read(logged: Callable[[], list[str]]) -> None:
    async def program(driver: SimDriver) -> None:
        ref = driver.submit(fail, "borrowed")
        reader = driver.submit(read, [ref])
        del ref
        [told] = await driver.get([reader])
        assert "borrowed" in told
        await asyncio.sleep(LATER)
        assert logged() == []

    run(program)


def test_several_returns_of_a_task_are_one_error(logged: Callable[[], list[str]]) -> None:
    async def program(driver: SimDriver) -> None:
        one, two = driver.submit(fail, "both", num_returns=2)
        await settled(driver, one, two)
        del one
        await asyncio.sleep(LATER)
        assert logged() == []
        del two
        await asyncio.sleep(LATER)
        assert logged() == ["ValueError: both"]
        one, two = driver.submit(fail, "one is read", num_returns=2)
        with pytest.raises(ValueError, match="one is read"):
            await driver.get([one])
        del one, two
        await asyncio.sleep(LATER)
        assert logged() == []

    run(program)


def test_an_attempt_that_is_retried_is_no_error(logged: Callable[[], list[str]]) -> None:
    async def program(driver: SimDriver) -> None:
        driver.submit(fail, "again", retry_exceptions=True, max_retries=2)
        await asyncio.sleep(LATER + 5.0)
        assert logged() == ["ValueError: again"]

    run(program)


def test_a_cancelled_task_and_what_needed_it_are_no_errors(
    logged: Callable[[], list[str]],
) -> None:
    async def program(driver: SimDriver) -> None:
        ref = driver.submit(fail, "too late", 20.0)
        dependent = driver.submit(echo, ref)
        await asyncio.sleep(1.0)
        driver.core.cancel(ref._entry, force=False, recursive=True)
        await settled(driver, ref, dependent)
        del ref, dependent
        await asyncio.sleep(30.0)
        assert logged() == []

    run(program)


def test_of_very_many_errors_some_are_shown(logged: Callable[[], list[str]]) -> None:
    async def program(driver: SimDriver) -> None:
        refs = [driver.submit(fail, "many") for _ in range(30)]
        await settled(driver, *refs)
        refs.clear()
        await asyncio.sleep(LATER)
        assert logged() == [*["ValueError: many"] * 10, "and 20 more like these in the same moment"]

    run(program)


def test_those_that_are_not_to_be_shown_are_not_counted_either(
    logged: Callable[[], list[str]],
) -> None:
    async def program(driver: SimDriver) -> None:
        refs = [driver.submit(fail, "never", 1000.0) for _ in range(30)]
        for ref in refs:
            driver.core.cancel(ref._entry, force=False, recursive=True)
        await settled(driver, *refs)
        refs.clear()
        del ref
        await asyncio.sleep(LATER)
        assert logged() == []

    run(program)


@pytest.mark.parametrize("name", ["RAY_IGNORE_UNHANDLED_ERRORS", "RAYLITE_IGNORE_UNHANDLED_ERRORS"])
def test_a_variable_of_the_environment_silences_it(
    name: str, logged: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def program(driver: SimDriver) -> None:
        driver.submit(fail, "ignored")
        await asyncio.sleep(LATER)
        assert logged() == []

    monkeypatch.setenv(name, "1")
    run(program)


@pytest.mark.parametrize("keeps", [True, False])
def test_the_children_of_a_task_whose_time_is_over_are_no_errors(
    keeps: bool, logged: Callable[[], list[str]]
) -> None:
    """Their time was over with it, and its own error tells of that."""

    async def program(driver: SimDriver) -> None:
        ref = driver.submit(lead, 20.0, keeps, timeout=2.0)
        await settled(driver, ref)
        with pytest.raises(TaskTimeoutError):
            await driver.get([ref])
        await asyncio.sleep(LATER + 20.0)
        assert logged() == []

    run(program)


def test_children_that_take_longer_than_a_task_which_ended_in_time_are_errors(
    logged: Callable[[], list[str]],
) -> None:
    """Nobody else would hear that they never came to their end."""

    async def program(driver: SimDriver) -> None:
        ref = driver.submit(lead, 1.0, False, timeout=2.0)
        await driver.get([ref])
        await asyncio.sleep(LATER + 20.0)
        texts = logged()
        assert len(texts) == 3  # of two the reader is the one that needed the other
        assert all("TaskTimeoutError: Task " in text for text in texts)

    run(program)


def test_the_error_of_a_task_whose_time_is_over_was_read_before_the_task_ended(
    logged: Callable[[], list[str]],
) -> None:
    async def program(driver: SimDriver) -> None:
        ref = driver.submit(fail, "too late", 20.0, timeout=2.0)
        with pytest.raises(TaskTimeoutError):
            await driver.get([ref])
        del ref
        driver.submit(fail, "too late", 20.0, timeout=2.0)
        await asyncio.sleep(LATER + 20.0)
        [unread] = logged()
        assert "TaskTimeoutError: Task " in unread

    run(program)
