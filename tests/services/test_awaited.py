"""`Awaited`: when a plain task that runs an event loop lends its CPU, and when it has it back."""

import asyncio

from raylite._services.worker.awaited import Awaited


def test_the_cpu_is_lent_until_nothing_more_is_awaited() -> None:
    told: list[bool] = []
    awaited = Awaited(told.append)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        one, two = loop.create_future(), loop.create_future()
        awaited.add(one)
        awaited.add(two)
        one.set_result(None)
        await asyncio.sleep(0)
        two.set_result(None)
        await asyncio.sleep(0)
        assert told == [True]  # who has the value may await another at once
        await asyncio.sleep(0)
        assert told == [True, False]
        again = loop.create_future()
        awaited.add(again)
        again.cancel()

    asyncio.run(main())
    assert told == [True, False, True, False]
    assert not awaited.is_lent


def test_values_between_which_nothing_else_happens_are_one_loan() -> None:
    told: list[bool] = []
    awaited = Awaited(told.append)

    async def main() -> None:
        for _ in range(3):
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            awaited.add(future)
            loop.call_soon(future.set_result, None)
            await future

    asyncio.run(main())
    assert told == [True, False]


def test_what_a_task_leaves_behind_ends_its_loan_and_not_the_next_ones() -> None:
    told: list[bool] = []
    awaited = Awaited(told.append)
    loop = asyncio.new_event_loop()
    left: asyncio.Future[None] = loop.create_future()
    awaited.add(left)
    awaited.end()
    assert told == [True, False]
    other: asyncio.Future[None] = loop.create_future()
    awaited.add(other)
    left.set_result(None)
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0))
    assert told == [True, False, True]
    other.set_result(None)
    loop.run_until_complete(asyncio.sleep(0.0))
    loop.run_until_complete(asyncio.sleep(0.0))
    loop.close()
    assert told == [True, False, True, False]
