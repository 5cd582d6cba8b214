"""Large objects between nodes that are processes, with shared memory of their own each."""

from tempfile import TemporaryDirectory

import pytest

from tests.api.drivers import drive_well
from tests.cluster.started import raylite, start

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

SCRIPT = """
import numpy as np
from raylite.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

@ray.remote
def make(n):
    return np.arange(n, dtype=np.float64)

@ray.remote
def total(array):
    return float(array.sum())

ray.init()
here = ray.get_runtime_context().get_node_id()
(there,) = (node["NodeID"] for node in ray.nodes() if node["NodeID"] != here)
for _ in range(8):  # the stores hold 80 MB, so what is done with has to go
    ref = make.options(scheduling_strategy=On(there, soft=False)).remote(3_000_000)
    array = ray.get(ref)
    assert array.sum() == ray.get(total.remote(ref)) and not array.flags.writeable
    put = ray.put(array)
    assert ray.get(total.options(scheduling_strategy=On(there, soft=False)).remote(put)) == array.sum()
    del ref, array, put
print("done")
"""


def test_objects_pass_between_nodes_and_are_freed_on_both(monkeypatch: pytest.MonkeyPatch) -> None:
    with TemporaryDirectory(prefix="rl-") as folder:
        monkeypatch.setenv("RAYLITE_TMPDIR", folder)
        try:
            head = start("--head", "--port=0")
            start(f"--address={head.cluster}")
            assert drive_well(SCRIPT) == "done\n"
        finally:
            raylite("stop")
