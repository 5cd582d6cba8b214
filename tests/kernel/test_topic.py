"""A topic: the present, then every change, or an error; never a silent loss."""

import asyncio

import pytest

from raylite._kernel.topic import GapError, Topic

pytestmark = pytest.mark.asyncio


async def test_a_subscriber_sees_the_present_and_then_every_change() -> None:
    topic = Topic[int]()
    topic.publish(0)  # before anybody listens: nobody's
    with topic.subscribe([1, 2]) as changes:
        topic.publish(3)
        assert [await anext(changes) for _ in range(3)] == [1, 2, 3]
        waiting = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)
        topic.publish(4)
        topic.publish(5)
        assert (await waiting, await anext(changes)) == (4, 5)


async def test_subscribers_are_independent_and_forgotten_when_they_leave() -> None:
    topic = Topic[int]()
    with topic.subscribe() as one:
        with topic.subscribe([9]) as other:
            topic.publish(1)
            assert len(topic) == 2
            assert [await anext(other), await anext(other), await anext(one)] == [9, 1, 1]
        topic.publish(2)
        assert await anext(one) == 2
    assert len(topic) == 0


async def test_a_subscriber_that_falls_too_far_behind_is_told() -> None:
    topic = Topic[int](depth=3)
    with topic.subscribe() as changes:
        for number in range(5):
            topic.publish(number)
        for _ in range(2):  # and told again: it cannot go on
            with pytest.raises(GapError, match="list again"):
                await anext(changes)


async def test_a_long_present_is_not_being_behind() -> None:
    topic = Topic[int](depth=3)
    with topic.subscribe(range(100)) as changes:
        for number in range(100, 103):
            topic.publish(number)
        assert [await anext(changes) for _ in range(103)] == list(range(103))


async def test_a_wait_that_is_cancelled_loses_no_change() -> None:
    topic = Topic[int]()
    with topic.subscribe() as changes:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(changes), 0.001)
        topic.publish(1)
        assert await anext(changes) == 1
