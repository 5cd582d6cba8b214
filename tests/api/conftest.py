"""One cluster for each module of tests that wants one."""

from collections.abc import Iterator

import pytest
import uvloop

import raylite as ray

# The first loop makes a pipe for signals that libuv keeps for as long as the process lives.
uvloop.new_event_loop().close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A local cluster with four CPUs, which this process is the driver of."""
    with ray.init(num_cpus=4):
        yield
