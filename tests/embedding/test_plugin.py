"""The pytest plugin, in sessions of pytest of its own."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]

SETTINGS = """
[pytest]
addopts = -p no:raylite -p raylite.pytest_plugin
raylite_workers = threads
asyncio_mode = auto
"""
TASK = """
from concurrent.futures import ThreadPoolExecutor

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


# ---- in one session ----------------------------------------------------------------------

# As files, in the order in which pytest runs them.
PROGRAMS = {
    "a_driver": """
def test_doubles(raylite_cluster):
    assert ray.get(double.remote(2)) == 4
    assert ray.cluster_resources()["CPU"] == 2

def test_is_over():
    assert not ray.is_initialized()
""",
    "a_marker": """
@pytest.mark.raylite(nodes=[1, {"num_cpus": 1, "resources": {"disk": 1}}])
def test_two_nodes(raylite_cluster):
    assert len(raylite_cluster.nodes) == 2
    assert ray.get(double.options(resources={"disk": 1}).remote(3)) == 6
""",
    "a_nameless_marker": """
@pytest.mark.raylite("threads")
def test_nothing(raylite_cluster): ...
""",
    "a_failure": """
def test_fails(raylite_cluster):
    ray.get(double.remote("a" * 10).future().result() / 2)

def test_has_another(raylite_cluster):
    assert ray.get(double.remote(2)) == 4
    assert len(ray.nodes()) == 1

def test_has_none():
    assert not ray.is_initialized()
""",
    "shared": """
seen = []

@pytest.mark.parametrize("n", range(3))
def test_doubles(raylite_shared, n):
    assert ray.get(double.remote(n)) == 2 * n
    seen.append(raylite_shared)
    assert set(seen) == {raylite_shared}

def test_has_none():
    assert not ray.is_initialized()

def test_has_it_in_every_thread(raylite_shared):
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(ray.get, double.remote(5)).result() == 10
""",
}
UNITTEST = """
import unittest

@pytest.mark.usefixtures("FIXTURE")
class Doubling(unittest.TestCase):
    def test_doubles(self):
        self.assertEqual(ray.get(double.remote(2)), 4)

@pytest.mark.usefixtures("FIXTURE")
class DoublingAsync(unittest.IsolatedAsyncioTestCase):
    async def test_doubles(self):
        self.assertEqual(await double.remote(2), 4)
"""
ASYNCIO = """
@pytest.mark.asyncio
async def test_once(FIXTURE):
    assert await double.remote(2) == 4

@pytest.mark.asyncio(loop_scope="session")
async def test_in_another_loop(FIXTURE):
    assert await double.remote(3) == 6
"""
ANYIO = """
import anyio

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.anyio
async def test_in_a_task_group(FIXTURE):
    async def check(n):
        assert await double.remote(n) == 2 * n

    async with anyio.create_task_group() as group:
        for n in range(3):
            group.start_soon(check, n)
"""
FIXTURES = "raylite_cluster", "raylite_shared"
BOTH = pytest.mark.parametrize("fixture", FIXTURES)


def for_each_fixture(name: str, program: str) -> dict[str, str]:
    """A program for each of the fixtures; the shared cluster's is the later one."""
    return {f"{fixture}_{name}": program.replace("FIXTURE", fixture) for fixture in FIXTURES}


Outcomes = dict[str, list[str]]


def outcomes(folder: Path, programs: dict[str, str], *arguments: str) -> Outcomes:
    """Run a session over programs; return, sorted, how the tests of each ended, and said why."""
    for name, program in programs.items():
        (folder / f"test_{name}.py").write_text(TASK + program)
    (folder / "pytest.ini").write_text(SETTINGS)
    command = [sys.executable, "-m", "pytest", "-n", "0", "--junitxml=ended.xml", *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    ended: Outcomes = {name: [] for name in programs}
    for case in ElementTree.parse(folder / "ended.xml").iter("testcase"):
        name = case.attrib["classname"].removeprefix("test_").partition(".")[0]
        ended[name].append(" ".join(f"{each.tag}: {each.text}" for each in case) or "passed")
    return {name: sorted(each) for name, each in ended.items()}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """How a session ended that has all programs which the same settings do for."""
    programs = (
        PROGRAMS | for_each_fixture("unittest", UNITTEST) | for_each_fixture("asyncio", ASYNCIO)
    )
    return outcomes(tmp_path_factory.mktemp("session"), programs)


def test_a_test_gets_a_cluster_and_is_its_driver(ended: Outcomes) -> None:
    assert ended["a_driver"] == ["passed"] * 2


def test_a_marker_has_the_clusters_arguments(ended: Outcomes) -> None:
    assert ended["a_marker"] == ["passed"]


def test_a_markers_arguments_have_names(ended: Outcomes) -> None:
    [error] = ended["a_nameless_marker"]
    assert error.startswith("error: ")
    assert "the marker raylite takes arguments by name" in error


def test_a_failed_test_leaves_no_cluster_to_the_next(ended: Outcomes) -> None:
    failure, *others = ended["a_failure"]
    assert failure.startswith("failure: ")
    assert "unsupported operand" in failure
    assert others == ["passed"] * 2


def test_a_session_shares_one_cluster(ended: Outcomes) -> None:
    assert ended["shared"] == ["passed"] * 5


@BOTH
def test_unittests_use_a_fixture_by_name(ended: Outcomes, fixture: str) -> None:
    assert ended[f"{fixture}_unittest"] == ["passed"] * 2


@BOTH
def test_coroutines_of_pytest_asyncio_await_references(ended: Outcomes, fixture: str) -> None:
    assert ended[f"{fixture}_asyncio"] == ["passed"] * 2


# ---- in sessions of their own ------------------------------------------------------------


def test_coroutines_of_pytest_asyncio_await_references_in_strict_mode(tmp_path: Path) -> None:
    programs = for_each_fixture("asyncio", ASYNCIO)
    ended = outcomes(tmp_path, programs, "-o", "asyncio_mode=strict")
    assert ended == {name: ["passed"] * 2 for name in programs}


def test_coroutines_of_anyio_await_references(tmp_path: Path) -> None:
    programs = for_each_fixture("anyio", ANYIO)
    arguments = ("-p", "no:asyncio", "-o", "asyncio_mode=", "-W", "ignore")
    ended = outcomes(tmp_path, programs, *arguments)
    assert ended == {name: ["passed"] for name in programs}


@pytest.mark.process
@pytest.mark.timeout(180)  # two interpreters and four clusters at once
@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_workers_of_xdist_have_clusters_of_their_own(
    sessions: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    program = """
import os

@pytest.mark.parametrize("n", range(2))
def test_doubles(raylite_shared, n):
    assert ray.get(double.remote(n)) == 2 * n
    with open(os.environ["SEEN"], "a") as seen:
        print(ray.nodes()[0]["NodeID"], file=seen)

def test_alone(raylite_cluster):
    assert len(ray.nodes()) == 1
"""
    sessions.makepyfile(TASK + program)
    seen = sessions.path / "seen"
    monkeypatch.setenv("SEEN", str(seen))
    done = sessions.runpytest_subprocess("-n", "2", "--dist=each", "-o", f"raylite_workers={kind}")
    done.assert_outcomes(passed=6)
    assert len(set(seen.read_text().split())) == 2


@pytest.mark.process
def test_clusters_of_processes_are_forked_from_one_that_lasts_for_the_session(
    sessions: pytest.Pytester,
) -> None:
    program = """
import os, psutil

seen = []

@ray.remote
def pid():
    return os.getpid()

@pytest.mark.raylite(num_cpus=1)
@pytest.mark.parametrize("n", range(2))
def test_is_in_the_nursery(raylite_cluster, n):
    node = psutil.Process(ray.get(pid.remote())).parent()
    seen.append(node.parent().pid)

def test_is_one():
    assert len(seen) == 2
    assert [child.pid for child in psutil.Process().children(recursive=True)] == seen[:1] == seen[1:]
"""
    run(sessions, program, "-o", "raylite_workers=processes").assert_outcomes(passed=3)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["-o", "raylite_num_cpus=four"], "*raylite_num_cpus is 'four': give a number*"),
        (["-o", "raylite_workers=fibres"], "*workers must be 'processes' or 'threads'*"),
    ],
)
def test_a_setting_that_cannot_be_is_named(
    sessions: pytest.Pytester, given: list[str], reason: str
) -> None:
    done = run(sessions, "def test_nothing(raylite_cluster): ...", *given)
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines([reason])


def test_the_plugin_loads_nothing_but_itself() -> None:
    program = (
        "import pytest, sys; known = set(sys.modules); import raylite.pytest_plugin; "
        "print(sorted(set(sys.modules) - known))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "['raylite', 'raylite.pytest_plugin']"


def test_a_session_that_asks_for_no_cluster_loads_none(sessions: pytest.Pytester) -> None:
    program = """
import sys

def test_is_light():
    heavy = {"asyncio", "anyio", "uvloop", "grpclib", "msgspec", "raylite._init", "raylite.testing"}
    assert not heavy & sys.modules.keys()
"""
    sessions.makepyfile(program)
    others = ("-p", "no:asyncio", "-p", "no:anyio", "-p", "no:hypothesispytest", "-p", "no:xdist")
    done = sessions.runpytest_subprocess(
        *others, "-p", "no:timeout", "-o", "asyncio_mode=", "-W", "ignore"
    )
    done.assert_outcomes(passed=1)
