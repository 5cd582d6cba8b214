"""Arguments that fail: what needs them fails when they do, though no worker is free."""

import threading
from typing import Any

import pytest

import raylite as ray
from raylite.exceptions import RayTaskError
from raylite.testing import LocalCluster

PATIENCE = 30.0  # seconds; nothing here takes one
begun, go_on = threading.Event(), threading.Event()


def hold_the_cpu() -> None:
    begun.set()
    go_on.wait()


class Strange(Exception):
    """An exception of the program's own, as most are."""


def fail() -> int:
    raise Strange("strange")


def add(*values: int) -> int:
    return sum(values)


added: Any = ray.remote(add)


def test_what_needs_a_failed_argument_fails_though_no_worker_is_free() -> None:
    with LocalCluster(num_cpus=1, workers="threads"):
        bad = ray.remote(fail).remote()
        ray.wait([bad])
        held = ray.remote(hold_the_cpu).remote()
        begun.wait()
        try:
            waiting = added.remote(1)  # for the CPU
            chain = added.remote(bad, waiting)  # one argument is an error, the other not there
            for _ in range(500):
                chain = added.remote(chain, waiting)
            with pytest.raises(Strange) as caught:
                ray.get(chain, timeout=PATIENCE)
            assert isinstance(caught.value, RayTaskError)
            assert str(caught.value).startswith("raylite::add() (not run)\n  At least one of the")
            assert str(caught.value).endswith("Strange: strange")
            assert not waiting.done()
        finally:
            go_on.set()
        assert ray.get([waiting, held], timeout=PATIENCE) == [1, None]
