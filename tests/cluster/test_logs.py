"""Output of real workers: in files, from other nodes, and when there is too much of it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent

import psutil
import pytest

from raylite._runtime.records import NodeRecord
from tests.api.drivers import drive
from tests.cluster.started import component, raylite, start
from tests.cluster.watching import Driver, eventually, titled

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

MB = 1024 * 1024


@pytest.fixture(autouse=True)
def temp_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place of its own for each test's clusters, which end with it."""
    with TemporaryDirectory(prefix="rl-") as folder:
        monkeypatch.setenv("RAYLITE_TMPDIR", folder)
        yield Path(folder)
        raylite("stop", "--force")


@pytest.fixture
def nodes() -> tuple[NodeRecord, NodeRecord]:
    """A head, and a node that has the resource `far`."""
    head = start("--head", "--port=0")
    return head, start(f"--address={head.cluster}", '--resources={"far": 2}')


def logs(session_dir: str, pattern: str) -> list[Path]:
    return sorted(Path(session_dir, "logs").glob(pattern))


def test_a_worker_of_another_node_is_heard_by_its_driver_and_kept_by_its_node(
    nodes: tuple[NodeRecord, NodeRecord],
) -> None:
    head, far = nodes
    done = drive("""
    ray.init("auto")
    @ray.remote(resources={"far": 1})
    def say():
        print("from afar")
        print("trouble", file=sys.stderr)
        return os.getpid(), ray.get_runtime_context().get_job_id()
    told = ray.get(say.remote())
    ray.shutdown()  # shows what was printed
    print(*told)
    """)
    assert done.returncode == 0, done.stderr
    *shown, told = done.stdout.splitlines()
    pid, job = told.split()
    assert shown == [f"(say pid={pid}) from afar"]
    assert done.stderr == f"(say pid={pid}) trouble\n"
    for end, text in (("out", "from afar\n"), ("err", "trouble\n")):
        pattern = f"worker-{'?' * 56}-{job}-{pid}.{end}"
        assert eventually(lambda p=pattern: bool(logs(far.session_dir, p)))  # type: ignore[misc]
        (path,) = logs(far.session_dir, pattern)
        assert path.read_text() == text
        assert path.stat().st_mode & 0o777 == 0o600
    assert logs(head.session_dir, "worker-*") == []


def test_like_lines_of_several_workers_are_shown_once() -> None:
    program = """
    import time
    ray.init(num_cpus=3)
    path = os.environ["RAYLITE_TMPDIR"]
    def wait(*names):
        while not all(os.path.exists(f"{path}/{name}") for name in names):
            time.sleep(0.01)
    @ray.remote
    def say(n):
        open(f"{path}/{n}", "w").close()
        wait("0", "1", "2")
        print("ready to work")
    ray.get([say.remote(n) for n in range(3)])
    """
    shown = drive(program).stdout.splitlines()
    assert [line.partition(") ")[2].partition(" (")[0] for line in shown] == [
        "ready to work",
        "ready to work [repeated 2x across cluster]",
    ]
    shown = drive(program, {"RAYLITE_DEDUP_LOGS": "0"}).stdout.splitlines()
    assert [line.partition(") ")[2] for line in shown] == ["ready to work"] * 3


def test_a_workers_file_is_rotated() -> None:
    program = """
    here = ray.init(num_cpus=1, log_to_driver=False)
    @ray.remote
    def flood():
        for n in range(40_000):
            print(n, "x" * 93)
    ray.get(flood.remote())
    print(here["session_dir"])
    """
    small = {"RAYLITE_ROTATION_MAX_BYTES": "1000000", "RAYLITE_ROTATION_BACKUP_COUNT": "2"}
    done = drive(program, small)
    paths = logs(done.stdout.strip(), "worker-*.out*")
    assert [path.name.rpartition("-")[2].partition(".")[2] for path in paths] == [
        "out", "out.1", "out.2",
    ]  # fmt: skip
    assert all(path.stat().st_size <= 1_000_000 for path in paths)
    text = "".join(path.read_text() for path in reversed(paths))
    numbers = [int(line.split()[0]) for line in text.splitlines()[1:]]
    assert numbers == list(range(numbers[0], 40_000))


def test_a_flood_fills_no_memory_though_its_driver_stands_still() -> None:
    program = """
    os.dup2(2, 1)  # what is shown goes to stderr; what is said, as before
    here = ray.init(num_cpus=2)
    @ray.remote
    def flood():
        line = b"x" * 999 + b"\\n"
        while True:
            os.write(1, line * 64)
    @ray.remote
    def quick(n): return n
    flooding = flood.remote()
    ray.get(quick.remote(1))
    os.write(talk, here["session_dir"].encode() + b"\\n")
    hear()
    ray.get([quick.remote(n) for n in range(100)])
    ray.shutdown()
    """
    with Driver(
        "talk = os.dup(1); os.dup2(os.open(os.devnull, os.O_WRONLY), 2)\n" + dedent(program)
    ) as driver:
        session_dir = driver.hear()
        (pid,) = titled("raylite: raylet", driver.pid)
        raylet = psutil.Process(pid)
        before = raylet.memory_info().rss
        os.kill(driver.pid, signal.SIGSTOP)
        # The worker was held back for two seconds; then it went on, into its files only.
        assert eventually(lambda: len(logs(session_dir, "worker-*.out*")) == 5)
        grown = raylet.memory_info().rss - before
        os.kill(driver.pid, signal.SIGCONT)
        assert grown < 32 * MB
        driver.say("go on")
        assert driver.end()[0] == 0


def test_components_tell_what_happened_in_their_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLITE_BACKEND_LOG_LEVEL", "info")
    head = start("--head", "--port=0")
    far = start(f"--address={head.cluster}")
    (log,) = logs(head.session_dir, "gcs.log")
    assert log.read_text().count(" joined\n") == 2
    os.kill(component(far, "raylet"), signal.SIGKILL)
    assert eventually(lambda: " died: " in log.read_text())
