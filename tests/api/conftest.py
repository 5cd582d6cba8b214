"""One cluster for each module of tests that wants one."""

from collections.abc import Iterator

import pytest

import raylite as ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A local cluster with four CPUs, which this process is the driver of."""
    with ray.init(num_cpus=4):
        yield
