"""The pytest plugin: clusters as fixtures, for tests of programs that use raylite.

Installed with raylite, it costs an import of a few milliseconds; a cluster is made when a test
asks for one. The fixtures are plain ones, so that tests may be sync, async (pytest-asyncio, anyio)
or methods of `unittest.TestCase`. Under pytest-xdist every worker process has clusters of its own.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

_OPTIONS = {
    "raylite_workers": ("processes", "Workers of test clusters: processes or threads"),
    "raylite_num_cpus": ("2", "CPUs of test clusters"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the settings of pytest's configuration file."""
    for name, (default, what) in _OPTIONS.items():
        parser.addini(name, what, default=default)


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        "raylite(**options): arguments of raylite.testing.LocalCluster for the test's cluster",
    )


@pytest.fixture
def raylite_cluster(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A cluster for one test, with the test as its driver; the `raylite` marker has its arguments.

    Example:
        >>> @pytest.mark.raylite(nodes=[1, 1], workers="threads")
        ... def test_two_nodes(raylite_cluster):
        ...     assert len(raylite_cluster.nodes) == 2
    """
    marker = request.node.get_closest_marker("raylite")
    if marker is not None and marker.args:
        raise TypeError(
            f"the marker raylite takes arguments by name, as LocalCluster does, not {marker.args}"
        )
    with _cluster(request, {} if marker is None else marker.kwargs) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def _raylite_nursery() -> Iterator[None]:
    """Keep what clusters of processes are forked from until the session ends."""
    with import_module("raylite.testing").Nursery():
        yield


@pytest.fixture(scope="session")
def _raylite_session_cluster(request: pytest.FixtureRequest) -> Iterator[Any]:
    cluster = _cluster(request, {}).start()
    cluster._set_aside()  # a test that does not ask for it has no cluster
    yield cluster
    cluster.stop()


@pytest.fixture
def raylite_shared(_raylite_session_cluster: Any) -> Iterator[Any]:
    """One cluster for the whole session, started for the first test that asks for it.

    What a test leaves in it, tasks under way for one, is there for the next. It is as the settings
    ``raylite_num_cpus`` and ``raylite_workers`` say; the marker has no effect on it.
    """
    with _raylite_session_cluster._taken_up():
        yield _raylite_session_cluster


def _cluster(request: pytest.FixtureRequest, options: dict[str, Any]) -> Any:
    config = request.config
    defaults: dict[str, Any] = {"workers": config.getini("raylite_workers")}
    if "nodes" not in options:
        defaults["num_cpus"] = _number(config, "raylite_num_cpus")
    given = {**defaults, **options}
    if given["workers"] == "processes":
        request.getfixturevalue("_raylite_nursery")
    return import_module("raylite.testing").LocalCluster(**given)


def _number(config: pytest.Config, name: str) -> float:
    given = config.getini(name)
    try:
        return float(given)
    except ValueError:
        raise ValueError(f"{name} is {given!r}: give a number") from None
