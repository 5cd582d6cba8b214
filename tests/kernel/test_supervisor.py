"""Supervision: a crashed service is rebuilt, and one that keeps crashing is let out."""

import asyncio
from collections.abc import Callable

import pytest

from raylite._kernel.service import Service
from raylite._kernel.supervisor import Restart, supervise
from raylite.testing.loop import SimLoop

POLICY = Restart(limit=3, window=60.0, delay=1.0)


class Fragile(Service):
    """Crashes so many seconds after it has started."""

    def __init__(self, lives_for: float) -> None:
        self.lives_for = lives_for

    async def started(self) -> None:
        self.spawn(self.crash())

    async def crash(self) -> None:
        await asyncio.sleep(self.lives_for)
        raise ZeroDivisionError


def builder(lives: list[float]) -> tuple[Callable[[], Service], list[float]]:
    """A builder of services with these lives, and when it was asked for them."""
    built: list[float] = []

    def build() -> Service:
        built.append(asyncio.get_running_loop().time())
        return Fragile(lives[len(built) - 1])

    return build, built


def test_a_service_is_rebuilt_after_a_crash_and_a_delay() -> None:
    build, built = builder([5.0, 5.0, 1e6])

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(supervise(build, POLICY), 100)

    SimLoop().run(main())
    assert built == pytest.approx([0.0, 6.0, 12.0])


def test_a_service_that_keeps_crashing_is_let_out() -> None:
    build, built = builder([1.0] * 10)
    with pytest.raises(ZeroDivisionError):
        SimLoop().run(supervise(build, POLICY))
    assert len(built) == 4  # the first, and three restarts


def test_crashes_of_long_ago_do_not_count() -> None:
    build, built = builder([50.0] * 20)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(supervise(build, POLICY), 500)

    SimLoop().run(main())
    assert len(built) == 10


def test_a_supervised_service_can_be_cancelled() -> None:
    build, built = builder([1e6])

    async def main() -> None:
        task = asyncio.ensure_future(supervise(build, POLICY))
        await asyncio.sleep(10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    SimLoop().run(main())
    assert len(built) == 1
