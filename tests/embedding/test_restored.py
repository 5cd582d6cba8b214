"""References made of ids, and of errors, while the last one to the same object has just died."""

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

import raylite as ray
from raylite._runtime import context
from raylite._services.worker.core import Core
from raylite.exceptions import ObjectLostError
from raylite.testing import LocalCluster

PATIENCE = 30.0  # seconds; nothing here takes one


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    with LocalCluster(num_cpus=2, workers="threads"):
        yield


def core() -> Core:
    place = context.current()
    assert place is not None
    return place.core


@contextmanager
def standing_loop() -> Iterator[None]:
    """Let raylite's loop do nothing, until the block ends."""
    stands, go_on = threading.Event(), threading.Event()

    def stand() -> None:
        stands.set()
        go_on.wait()

    core().loop.call_soon_threadsafe(stand)
    stands.wait()
    try:
        yield
    finally:
        go_on.set()


@pytest.mark.parametrize("make", [lambda: b"small", lambda: bytes(1 << 20)], ids=["small", "large"])
def test_an_id_of_an_object_whose_last_reference_has_just_died_is_that_of_a_lost_one(
    make: Callable[[], bytes],
) -> None:
    """It must never be one whose memory is somebody else's by now."""
    ref = ray.put(make())
    core().run(asyncio.sleep, 0.0)  # the loop knows of it
    with ThreadPoolExecutor(1) as pool:
        with standing_loop():
            id = ref.binary()
            del ref
            gc.collect()
            restoring = pool.submit(ray.ObjectRef.from_binary, id)
        with pytest.raises(ObjectLostError):
            ray.get(restoring.result(PATIENCE), timeout=PATIENCE)


def test_an_id_of_an_object_that_a_task_still_needs_is_its_reference() -> None:
    go_on = threading.Event()
    gates.append(go_on)
    ref = ray.put(bytes(1 << 20))
    id = ref.binary()
    waiting = ray.remote(_measure).remote(ref, len(gates) - 1)
    del ref
    gc.collect()
    again = ray.ObjectRef.from_binary(id)
    go_on.set()
    assert ray.get(waiting, timeout=PATIENCE) == 1 << 20
    assert len(ray.get(again, timeout=PATIENCE)) == 1 << 20
    assert ray.ObjectRef.from_binary(id) is again


gates: list[threading.Event] = []


def _measure(value: bytes, gate: int) -> int:
    gates[gate].wait()
    return len(value)
