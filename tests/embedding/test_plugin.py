"""The pytest plugin, in sessions of pytest of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SETTINGS = """
[pytest]
addopts = -p no:raylite -p raylite.pytest_plugin
raylite_workers = threads
asyncio_mode = auto
"""
TASK = """
import pytest
import raylite as ray


@ray.remote
def double(n):
    return 2 * n

"""


@pytest.fixture
def sessions(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Make sessions that load the plugin of this source tree, and not another installed one."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeini(SETTINGS)
    return pytester


def run(sessions: pytest.Pytester, program: str, *arguments: str) -> pytest.RunResult:
    sessions.makepyfile(TASK + program)
    return sessions.runpytest_subprocess("-n", "0", *arguments)


def test_a_test_gets_a_cluster_and_is_its_driver(sessions: pytest.Pytester) -> None:
    program = """
def test_doubles(raylite_cluster):
    assert ray.get(double.remote(2)) == 4
    assert ray.cluster_resources()["CPU"] == 2

def test_is_over():
    assert not ray.is_initialized()
"""
    run(sessions, program).assert_outcomes(passed=2)


def test_a_marker_has_the_clusters_arguments(sessions: pytest.Pytester) -> None:
    program = """
@pytest.mark.raylite(nodes=[1, {"num_cpus": 1, "resources": {"disk": 1}}])
def test_two_nodes(raylite_cluster):
    assert len(raylite_cluster.nodes) == 2
    assert ray.get(double.options(resources={"disk": 1}).remote(3)) == 6
"""
    run(sessions, program).assert_outcomes(passed=1)


def test_a_session_shares_one_cluster(sessions: pytest.Pytester) -> None:
    program = """
seen = []

@pytest.mark.parametrize("n", range(3))
def test_doubles(raylite_shared, n):
    assert ray.get(double.remote(n)) == 2 * n
    seen.append(raylite_shared)
    assert set(seen) == {raylite_shared}
"""
    run(sessions, program).assert_outcomes(passed=3)


def test_coroutines_await_references(sessions: pytest.Pytester) -> None:
    program = """
async def test_with_pytest_asyncio(raylite_cluster):
    assert await double.remote(2) == 4

async def test_with_a_shared_cluster(raylite_shared):
    assert await double.remote(2) == 4
"""
    run(sessions, program).assert_outcomes(passed=2)


def test_coroutines_of_anyio_await_references(sessions: pytest.Pytester) -> None:
    program = """
@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.anyio
async def test_with_anyio(raylite_cluster):
    assert await double.remote(2) == 4
"""
    run(
        sessions, program, "-p", "no:asyncio", "-o", "asyncio_mode=", "-W", "ignore"
    ).assert_outcomes(passed=1)


def test_unittests_use_a_fixture_by_name(sessions: pytest.Pytester) -> None:
    program = """
import unittest

@pytest.mark.usefixtures("raylite_cluster")
class Doubling(unittest.TestCase):
    def test_doubles(self):
        self.assertEqual(ray.get(double.remote(2)), 4)
"""
    run(sessions, program).assert_outcomes(passed=1)


def test_workers_of_xdist_have_clusters_of_their_own(sessions: pytest.Pytester) -> None:
    sessions.makepyfile(
        TASK
        + """
@pytest.mark.parametrize("n", range(4))
def test_doubles(raylite_shared, n):
    assert ray.get(double.remote(n)) == 2 * n
"""
    )
    sessions.runpytest_subprocess("-n", "2").assert_outcomes(passed=4)


def test_the_plugin_loads_nothing_of_a_cluster() -> None:
    program = (
        "import pytest, sys; known = set(sys.modules); import raylite.pytest_plugin; "
        "print(sorted(name for name in set(sys.modules) - known if name.startswith('raylite')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "['raylite', 'raylite.pytest_plugin']"
