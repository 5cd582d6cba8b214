"""`raylite.aio` in a cluster of several nodes: objects that lie elsewhere are brought here."""

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import raylite as ray
from raylite import aio
from raylite._runtime import context
from raylite.exceptions import GetTimeoutError, ObjectLostError
from raylite.testing import LocalCluster

SIZE = 500_000


@ray.remote(resources={"far": 1}, max_retries=0)
def make(value: float) -> Any:
    return np.full(SIZE, value)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    nodes: list[Any] = [2, {"num_cpus": 2, "resources": {"far": 9}}]
    with LocalCluster(nodes=nodes, workers="threads") as cluster:
        place = context.current()
        assert place is not None
        monkeypatch.setattr(place.core, "_brought", blocked)
        yield cluster


def blocked(*_: object) -> None:
    raise AssertionError("this would have blocked the loop until the object is here")


def test_what_lies_elsewhere_is_brought_here(cluster: LocalCluster) -> None:
    async def main() -> None:
        refs = [make.remote(n) for n in range(3)]
        assert await aio.wait(refs, num_returns=3, fetch_local=False) == (refs, [])
        for options in ({"return_exceptions": True}, {"timeout": 20}, {}):
            arrays: Any = await aio.get([*refs, refs[0]], **options)
            assert [array[0] for array in arrays] == [0, 1, 2, 0]
        values = [(await ref)[0] async for ref in aio.as_completed([make.remote(4)])]
        assert values == [4]

    asyncio.run(main())


def test_wait_is_over_when_the_objects_are_here(cluster: LocalCluster) -> None:
    async def main() -> None:
        refs = [make.remote(n) for n in range(3)]
        assert await aio.wait(refs, num_returns=3, timeout=20) == (refs, [])
        # What is here, is seen at once: here, for nobody has let go of it for lack of room.
        assert await aio.wait(refs, num_returns=3, timeout=0) == (refs, [])
        left = [make.remote(5)]
        while left:  # a look begins to fetch, so a loop of them ends
            _, left = await aio.wait(left, timeout=0)

    asyncio.run(main())


def test_a_get_that_gives_up_can_be_made_again(cluster: LocalCluster) -> None:
    async def main() -> None:
        ref = make.remote(7)
        await aio.wait([ref], fetch_local=False)
        with pytest.raises(GetTimeoutError):
            await aio.get([ref, make.remote(8)], timeout=0)
        getting = asyncio.ensure_future(aio.get([ref]))
        await asyncio.sleep(0)
        getting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await getting
        (array,) = await aio.get([ref])
        assert array[0] == 7

    asyncio.run(main())


def test_an_object_that_went_with_its_node_is_an_error_of_its_own(cluster: LocalCluster) -> None:
    async def main() -> None:
        here, gone = ray.put(1), make.remote(7)
        await aio.wait([gone], fetch_local=False)
        await asyncio.to_thread(cluster.kill_node, cluster.nodes[1])
        one, lost = await aio.get([here, gone], return_exceptions=True)
        assert one == 1
        assert isinstance(lost, ObjectLostError)
        with pytest.raises(ObjectLostError):
            await aio.get([here, gone])

    asyncio.run(main())
