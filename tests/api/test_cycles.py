"""What a task leaves in the processes that ran it and asked for it: no cycles, however it ends."""

import asyncio
import gc
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

import raylite as ray
from raylite.exceptions import RayError
from raylite.testing import LocalCluster

pytestmark = pytest.mark.usefixtures("threads")


@pytest.fixture(scope="module")
def threads() -> Iterator[LocalCluster]:
    with LocalCluster(num_cpus=1, workers="threads") as cluster:
        yield cluster


class Token:
    """Counted where it is left."""


@ray.remote
def plain(token: Token, kind: str) -> Any:
    if kind == "raises":
        raise ValueError(kind)
    if kind == "reads an error":
        return ray.get(plain.options(num_cpus=0).remote(token, "raises"))
    if kind == "chains":
        try:
            raise KeyError(kind)
        except KeyError as error:
            raise ValueError(kind) from error
    return token


@ray.remote
async def overlapping(token: Token, kind: str) -> Any:
    await asyncio.sleep(0)
    if kind == "raises":
        raise ValueError(kind)
    if kind == "reads an error":
        return await plain.options(num_cpus=0).remote(token, "raises")
    if kind == "chains":
        try:
            await asyncio.create_task(asyncio.sleep(0))
            raise KeyError(kind)
        except KeyError as error:
            raise ValueError(kind) from error
    return token


@ray.remote
def taken(argument: Any) -> None: ...


LEFT = {"Token", "Job", "Work", "RunningTask", "OwnedTask", "coroutine", "frame", "traceback"}


@pytest.mark.parametrize("kind", ["returns", "raises", "reads an error", "chains"])
@pytest.mark.parametrize("function", [plain, overlapping], ids=["plain", "async"])
def test_a_task_leaves_no_cycles(function: Any, kind: str) -> None:
    def use() -> None:
        ref = function.remote(Token(), kind)
        with suppress(ValueError):
            ray.get(ref)
        with suppress(RayError):
            ray.get(taken.remote(ref))
        ray.get(taken.remote(1))  # what runs after it has let go of it

    use()  # what is made once for all
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        use()
        use()
        gc.collect()
        assert not {type(each).__name__ for each in gc.garbage} & LEFT
        assert not [each for each in gc.garbage if isinstance(each, BaseException)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
