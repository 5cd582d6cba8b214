"""A scope: none of its tasks outlives it, and what crashes in it is raised."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from raylite._kernel.scope import Scope

pytestmark = pytest.mark.asyncio


def sleeper(name: str, log: list[str]) -> Coroutine[Any, Any, None]:
    async def sleep() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            log.append(name)

    return sleep()


async def fail(error: Exception) -> None:
    raise error


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_closing_cancels_the_tasks_in_the_order_of_their_start() -> None:
    scope, log = Scope("scope"), list[str]()
    for name in "abcdefgh":
        scope.start(sleeper(name, log), name)
    await settle()
    assert len(scope) == 8
    await scope.close()
    assert log == list("abcdefgh")
    assert len(scope) == 0


async def test_a_crash_is_raised_where_the_scope_is_joined() -> None:
    scope, log = Scope("scope"), list[str]()
    scope.start(sleeper("other", log))
    scope.start(fail(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        await scope.join()
    await scope.close()  # raised once, not twice
    assert log == ["other"]


async def test_a_crash_before_anybody_joins_is_not_lost() -> None:
    scope = Scope("scope")
    scope.start(fail(ZeroDivisionError()))
    await settle()
    with pytest.raises(ZeroDivisionError):
        await scope.join()
    await scope.close()


async def test_a_task_that_fails_while_it_is_cancelled_is_raised_by_close() -> None:
    async def clumsy() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            raise ZeroDivisionError

    scope = Scope("scope")
    scope.start(clumsy())
    await settle()
    with pytest.raises(ZeroDivisionError):
        await scope.close()


async def test_a_second_crash_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    scope = Scope("scope")
    scope.start(fail(ZeroDivisionError("first")))
    scope.start(fail(ZeroDivisionError("second")))
    await settle()
    with pytest.raises(ZeroDivisionError, match="first"):
        await scope.close()
    assert [record.getMessage() for record in caplog.records] == ["scope crashed again"]


async def test_a_task_that_ends_is_forgotten() -> None:
    scope = Scope("scope")
    task = scope.start(asyncio.sleep(0, "result"))
    assert await task == "result"
    await settle()
    assert len(scope) == 0
    await scope.close()


async def test_a_closed_scope_starts_nothing() -> None:
    scope = Scope("scope")
    await scope.close()
    assert scope.is_closed
    with pytest.raises(RuntimeError, match="scope has ended"):
        scope.start(sleeper("never", []))


@pytest.mark.parametrize("how", [Scope.end, Scope.close])
async def test_joining_ends_when_the_scope_does(how: Callable[[Scope], Any]) -> None:
    scope = Scope("scope")
    joining = asyncio.ensure_future(scope.join())
    await settle()
    assert not joining.done()
    if (closing := how(scope)) is not None:
        await closing
    await joining
    await scope.close()


async def test_a_scope_can_be_closed_from_a_task_of_its_own() -> None:
    scope, log = Scope("scope"), list[str]()
    scope.start(sleeper("other", log))
    await settle()
    await scope.start(scope.close())
    assert log == ["other"]
