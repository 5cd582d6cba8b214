"""A node's process tree: it stands, it ends, and nothing of it outlives its owner."""

import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from raylite._kernel.processes import Exit, open_pidfd, send_signal, wait_exit
from raylite._runtime.folders import make_session_dir
from raylite._runtime.guest import GuestNode
from raylite._runtime.interpreter import Interpreter
from raylite._runtime.launch import NodeProcess, launch, start
from raylite._runtime.node import NodeConfig, Start
from raylite.exceptions import RaySystemError

pytestmark = [pytest.mark.process, pytest.mark.timeout(30)]

ROLES = "toy_roles:ROLES"
HERE = str(Path(__file__).parent)
CONFIG = NodeConfig(
    num_cpus=1, object_store_memory=1 << 24, sys_path=tuple(map(os.fsencode, [*sys.path, HERE]))
)
SOON = 5.0  # generous: it bounds a failure, and a passing test does not wait for it


class Tree:
    """A toy node, and a connection to its raylet."""

    def __init__(self, node: NodeProcess) -> None:
        self.node = node
        self.socket = connect(node.addresses.raylet)
        self.lines = self.socket.makefile("r")
        self.pidfds = dict[int, int]()
        self.tokens = 0
        self.events = list[dict[str, Any]]()
        # Until they answer, the components may still be copies of the fork server.
        self.tell({"list": 0})
        self.hear("fds")
        if node.config.head:
            with connect(node.addresses.gcs) as gcs:
                assert gcs.recv(3) == b"gcs"

    def tell(self, command: Any) -> None:
        self.socket.sendall(json.dumps(command).encode() + b"\n")

    def hear(self, kind: str) -> dict[str, Any]:
        """The next event of a kind; others are kept for later."""
        for event in self.events:
            if kind in event:
                self.events.remove(event)
                return event
        while kind not in (event := json.loads(self.lines.readline())):
            self.events.append(event)
        assert isinstance(event, dict)
        return event

    def fork(self, toy: str) -> int:
        """Fork a worker that does what the toy says; return its pid."""
        self.tokens += 1
        self.tell({"fork": self.tokens, "env": {"TOY": toy}})
        event = self.hear("forked")
        assert event["forked"] == self.tokens
        return int(event["pid"])

    def read(self, pid: int) -> str:
        """All that a worker printed, up to its end or its closing of the stream."""
        self.tell({"read": pid})
        return str(self.hear("output")["output"])

    def watch(self, *pids: int) -> None:
        self.pidfds |= {pid: open_pidfd(pid) for pid in pids if pid not in self.pidfds}

    def watch_all(self) -> list[int]:
        """Watch every process of the node, workers excepted; return the pids."""
        pids = [self.node.pid, *children(self.node.pid)]
        self.watch(*pids)
        return pids

    def assert_gone(self) -> None:
        for pid, pidfd in self.pidfds.items():
            assert wait_exit(pidfd, SOON), f"process {pid} lives"

    def close(self) -> None:
        self.node.stop()
        self.lines.close()
        self.socket.close()
        for pidfd in self.pidfds.values():
            os.close(pidfd)


def connect(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(SOON)
    client.connect(path)
    return client


def children(pid: int) -> list[int]:
    """The children of a process, in the order of their forks."""
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()


def wait_readable(fd: int) -> None:
    assert select.select([fd], [], [], SOON)[0], "nothing happened"


@pytest.fixture
def config() -> Iterator[NodeConfig]:
    # Not `tmp_path`, whose names are too long for a socket's.
    with TemporaryDirectory() as temp_dir:
        yield replace(CONFIG, temp_dir=temp_dir)


class Toys:
    """An interpreter that toy nodes are forked from, as others are from a `Nursery`."""

    def __init__(self) -> None:
        self._interpreter = Interpreter(CONFIG.sys_path, ROLES)

    def fork(self, toy: Start, end: socket.socket) -> None:
        message = msgspec.json.encode(replace(toy, directory=os.getcwdb(), environment={}))
        assert self._interpreter.end is not None
        socket.send_fds(self._interpreter.end, [message], [end.fileno()])
        end.close()

    def close(self) -> None:
        self._interpreter.close()


@pytest.fixture(scope="module")
def toys() -> Iterator[Toys]:
    toys = Toys()
    yield toys
    toys.close()


@contextmanager
def planted(node: NodeProcess) -> Iterator[Tree]:
    node.wait_ready()
    tree = Tree(node)
    try:
        yield tree
    finally:
        tree.close()


@pytest.fixture
def tree(config: NodeConfig) -> Iterator[Tree]:
    """A tree with an interpreter of its own: this process is the fork server's parent."""
    with planted(start(config, ROLES)) as tree:
        yield tree


@pytest.fixture
def quick(config: NodeConfig, toys: Toys) -> Iterator[Tree]:
    """A tree for what is between a fork server and its children, in a tenth of the time."""
    with planted(start(config, ROLES, toys)) as tree:
        yield tree


# -- It stands


def test_the_processes_of_a_node_have_their_titles(tree: Tree) -> None:
    pids = [tree.node.pid, *children(tree.node.pid)]
    assert [title(pid) for pid in pids] == ["raylite: node", "raylite: gcs", "raylite: raylet"]


def test_a_node_that_is_not_the_head_has_no_gcs(config: NodeConfig) -> None:
    tree = Tree(launch(replace(config, head=False), ROLES))
    assert [title(pid) for pid in children(tree.node.pid)] == ["raylite: raylet"]
    assert not Path(tree.node.addresses.gcs).exists()
    tree.close()


def test_the_owner_receives_the_arena(quick: Tree) -> None:
    assert os.fstat(quick.node.arena_fd).st_size >= CONFIG.object_store_memory
    assert os.readlink(f"/proc/self/fd/{quick.node.arena_fd}").startswith("/memfd:")


def test_the_session_is_closed_to_other_users(quick: Tree) -> None:
    session = Path(quick.node.config.session_dir)
    for directory in (session.parent, session, session / "logs", session / "sockets"):
        assert directory.stat().st_mode & 0o777 == 0o700


def test_the_log_files_are_closed_to_other_users(quick: Tree) -> None:
    logs = list(quick.node.config.logs.iterdir())
    assert sorted(log.name for log in logs) == ["gcs.log", "node.log", "raylet.log"]
    assert all(log.stat().st_mode & 0o777 == 0o600 for log in logs)


def test_nothing_listens_on_tcp_or_has_a_name_in_shared_memory(quick: Tree) -> None:
    quick.fork("rest")
    pids = [quick.node.pid, *children(quick.node.pid)]
    held = set[str]()
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                held.add(os.readlink(fd))
    for table in ("tcp", "tcp6", "udp", "udp6"):
        rows = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        assert held.isdisjoint(f"socket:[{row.split()[9]}]" for row in rows)
    assert not any(path.startswith("/dev/shm") for path in held)


def test_nodes_stand_side_by_side(config: NodeConfig) -> None:
    with launch(config, ROLES) as one, launch(config, ROLES) as other:
        assert one.config.session_dir != other.config.session_dir


def test_a_thread_that_ends_does_not_end_the_node_it_launched(config: NodeConfig) -> None:
    nodes = list[NodeProcess]()
    thread = threading.Thread(target=lambda: nodes.append(launch(config, ROLES)))
    thread.start()
    thread.join()
    tree = Tree(nodes[0])
    assert tree.read(tree.fork("report"))
    tree.close()


# -- Workers


def test_a_worker_starts_afresh(quick: Tree) -> None:
    first, second = (json.loads(quick.read(quick.fork("report"))) for _ in range(2))
    assert first["token"] == 1
    assert first["title"] == "raylite::IDLE"
    assert first["leads"]
    assert first["sigint"] == "default_int_handler"
    assert first["path"] == [*map(os.fsdecode, CONFIG.sys_path)]
    assert first["threads"] == 1
    assert first["random"] != second["random"]


def test_a_worker_has_its_streams_and_the_arena_and_nothing_else(tree: Tree) -> None:
    tree.fork("rest")  # whose descriptors might leak into the next
    fds = json.loads(tree.read(tree.fork("report")))["fds"]
    assert [fds.pop(fd) for fd in "012"] == ["/dev/null", "pipe", "pipe"]
    assert set(fds.values()) == {"/memfd"}


def test_the_raylet_has_its_log_its_sockets_and_the_arena_and_nothing_else(tree: Tree) -> None:
    tree.tell({"list": 0})
    found = tree.hear("fds")
    fds, log = found["fds"], str(tree.node.config.logs / "raylet.log")
    assert [fds.pop(fd) for fd in "012"] == ["/dev/null", log, log]
    # Listening, control, and the connection of this test.
    held = sorted(fds.values())
    assert set(held[:-3]) == {"/memfd"}
    assert held[-3:] == ["socket"] * 3
    assert found["sigint"] == "SIG_IGN"


def test_the_fork_server_keeps_nothing_of_its_workers(quick: Tree) -> None:
    counts = set()
    for _ in range(3):
        quick.fork("exit 0")
        quick.hear("exited")  # an exit is told after the descriptors have left
        counts.add(len(os.listdir(f"/proc/{quick.node.pid}/fd")))
    assert len(counts) == 1


@pytest.mark.parametrize(
    ("toy", "ending"),
    [
        ("exit 0", "exit code 0"),
        ("exit 3", "exit code 3"),
        ("raise", "exit code 1"),
        ("kill 9", "killed by SIGKILL (9)"),
        ("kill 11", "killed by SIGSEGV (11)"),
        ("kill 35", "killed by signal 35"),
    ],
)
def test_the_exit_of_a_worker_is_told_exactly(quick: Tree, toy: str, ending: str) -> None:
    pid = quick.fork(toy)
    event = quick.hear("exited")
    assert event["exited"] == pid
    assert Exit.from_wait_status(pid, event["status"]).describe() == ending


def test_the_workers_of_a_raylet_that_stands_still_are_ended_though_they_stand_still_as_well(
    quick: Tree,
) -> None:
    pids = {quick.fork("rest") for _ in range(3)}
    os.kill(min(pids), signal.SIGSTOP)
    quick.tell({"runs": 26.8})
    events = [quick.hear("exited") for _ in pids]
    assert {event["exited"] for event in events} == pids
    assert all("had stood still for 2" in event["cause"] for event in events)
    quick.tell({"runs": 0})  # it goes on, and may have others
    pid = quick.fork("exit 3")
    assert quick.hear("exited") == {"exited": pid, "status": 3 << 8, "cause": ""}


def test_drivers_of_a_raylet_that_stands_still_hear_that_its_node_is_lost(
    config: NodeConfig,
) -> None:
    tree = Tree(launch(replace(config, head=False), ROLES))
    tree.watch_all()
    tree.node.accept(outlives=True)
    guest = GuestNode(tree.node.config.session_dir)
    tree.tell({"runs": 32.8})
    wait_readable(guest.fileno())
    assert "raylet has stood still for 3" in str(guest.failure())
    guest.stop()
    other = GuestNode(tree.node.config.session_dir)  # as `raylite stop`
    other.ask_to_stop(0.0)
    tree.assert_gone()
    os.waitpid(tree.node.pid, 0)
    other.stop()
    tree.close()


@pytest.mark.parametrize("kind", ["forked", "spawned", "session", "daemon"])
def test_what_a_worker_started_ends_with_it(quick: Tree, kind: str) -> None:
    pid = quick.fork(f"parent {kind}")
    quick.watch(int(quick.read(pid)), pid)
    os.kill(pid, signal.SIGKILL)
    quick.assert_gone()


def test_what_a_worker_started_lives_when_another_ends(quick: Tree) -> None:
    parent = quick.fork("parent daemon")
    grandchild = open_pidfd(int(quick.read(parent)))
    quick.fork("exit 0")
    quick.hear("exited")
    assert not wait_exit(grandchild, 0)
    os.close(grandchild)


def test_a_fork_that_fails_is_reported_and_the_next_may_succeed(quick: Tree) -> None:
    quick.tell({"limit_fds": 8})
    quick.tell({"fork": 7, "env": {"TOY": "rest"}})
    event = quick.hear("failed")
    assert event["failed"] == 7
    assert os.strerror(errno.EMFILE) in event["reason"]
    quick.tell({"limit_fds": 1000})
    assert quick.fork("rest")


# -- It ends


def test_stopping_leaves_nothing(tree: Tree) -> None:
    tree.watch(tree.fork("rest"))
    tree.watch_all()
    tree.node.stop()
    tree.assert_gone()
    assert not Path(tree.node.config.session_dir).exists()
    assert tree.node.failure() is None


def test_stopping_twice_is_stopping_once(quick: Tree) -> None:
    quick.node.stop()
    quick.node.stop()


def test_stopping_is_quick(tree: Tree) -> None:
    began = time.monotonic()
    tree.node.stop()
    assert time.monotonic() - began < 0.9  # the grace was not waited out


@pytest.mark.parametrize("victim", ["gcs", "raylet"])
def test_when_a_component_ends_everything_does(quick: Tree, victim: str) -> None:
    quick.watch(quick.fork("rest"), int(quick.read(quick.fork("parent session"))))
    pids = {title(pid): pid for pid in quick.watch_all()}
    os.kill(pids[f"raylite: {victim}"], signal.SIGKILL)
    quick.assert_gone()
    reason = quick.node.failure()
    assert reason is not None
    assert (
        f"{victim} process (pid {pids[f'raylite: {victim}']}) ended: killed by SIGKILL (9)"
        in reason
    )


def test_the_reason_of_a_failure_has_the_last_words_of_the_component(quick: Tree) -> None:
    quick.tell("exit")
    wait_readable(quick.node.fileno())
    reason = quick.node.failure() or ""
    assert "exit code 1" in reason
    assert reason.endswith("told to")


@pytest.mark.parametrize("kind", ["forked", "spawned", "session", "daemon"])
def test_when_the_fork_server_is_killed_everything_ends(tree: Tree, kind: str) -> None:
    worker = tree.fork(f"parent {kind}")
    grandchild = int(tree.read(worker))
    tree.watch_all()
    tree.watch(worker)
    os.kill(tree.node.pid, signal.SIGKILL)
    tree.assert_gone()
    assert "killed by SIGKILL (9)" in (tree.node.failure() or "")

    tree.watch(grandchild)
    tree.node.stop()  # which an owner calls on a failure
    tree.assert_gone()
    assert not Path(tree.node.config.session_dir).exists()


def test_a_fork_server_that_is_told_to_terminate_stops_its_node(tree: Tree) -> None:
    tree.watch(tree.fork("rest"))
    tree.watch_all()
    os.kill(tree.node.pid, signal.SIGTERM)
    tree.assert_gone()
    assert "exit code 0" in (tree.node.failure() or "")


def test_a_component_that_ignores_its_signal_is_killed_after_the_grace(quick: Tree) -> None:
    pids = {title(pid): pid for pid in quick.watch_all()}
    os.kill(pids["raylite: gcs"], signal.SIGSTOP)  # deaf to SIGTERM
    quick.node.stop(timeout=0.2)
    quick.assert_gone()


# -- Its owner


DRIVER = """
import os, signal, sys
from raylite._runtime.launch import launch
from raylite._runtime.node import NodeConfig
node = launch(NodeConfig(1, 1 << 24, temp_dir=sys.argv[1]), "toy_roles:ROLES")
{then}
"""


@contextmanager
def drive(config: NodeConfig, then: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a driver that launches a node, in an interpreter of its own."""
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER.format(then=then), config.temp_dir],
        env={**os.environ, "PYTHONPATH": os.fsdecode(b":".join(config.sys_path))},
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )
    with driver:
        try:
            yield driver
        finally:
            driver.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("before", ["", "os.fork() or signal.pause(); "])
def test_when_the_owner_dies_everything_ends(
    config: NodeConfig, number: signal.Signals, before: str
) -> None:
    """Even if a process that it forked holds all its descriptors."""
    then = f"{before}print(node.pid, flush=True); signal.pause()"
    with drive(config, then, start_new_session=True, stderr=subprocess.DEVNULL) as driver:
        assert driver.stdout is not None
        pid = int(driver.stdout.readline())
        pidfds = [open_pidfd(each) for each in (pid, *children(pid))]
        send_signal(pidfd := open_pidfd(driver.pid), number)
        assert all(wait_exit(each, SOON) for each in (pidfd, *pidfds))
        os.killpg(driver.pid, signal.SIGKILL) if before else None
    for each in (pidfd, *pidfds):
        os.close(each)
    assert not list(Path(config.temp_dir).glob("*/*/sockets"))


def test_a_ctrl_c_on_the_terminal_reaches_the_owner_only(config: NodeConfig) -> None:
    then = """
signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
print(node.pid, flush=True)
print(sys.stdin.readline(), node.failure(), flush=True)
node.stop()
"""
    with drive(config, then, start_new_session=True, stdin=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        pid = int(driver.stdout.readline())
        pidfds = [open_pidfd(each) for each in (pid, *children(pid))]
        os.killpg(driver.pid, signal.SIGINT)
        assert driver.stdout.readline() == "interrupted\n"
        assert not any(wait_exit(each, 0) for each in pidfds)
        assert driver.communicate("then")[0] == "then None\n"
        assert all(wait_exit(each, SOON) for each in pidfds)
    for each in pidfds:
        os.close(each)


def test_a_process_forked_from_the_owner_cannot_stop_the_node(tree: Tree) -> None:
    pid = os.fork()
    if pid == 0:
        tree.node.stop()
        os._exit(0)
    os.waitpid(pid, 0)
    assert tree.fork("rest")


def test_an_owner_may_have_closed_its_standard_streams(config: NodeConfig) -> None:
    then = """
arena = os.readlink(f"/proc/self/fd/{node.arena_fd}")
node.stop()
os._exit(arena.startswith("/memfd:") and node.arena_fd < 0 and 7)
"""
    program = DRIVER.format(then=then)
    closing = "import os, sys; [os.close(fd) for fd in (0, 1, 2)]; exec(sys.argv.pop(1))"
    done = subprocess.run(
        [sys.executable, "-c", closing, program, config.temp_dir],
        env={**os.environ, "PYTHONPATH": os.fsdecode(b":".join(config.sys_path))},
        check=False,
    )
    assert done.returncode == 7


def test_a_driver_sees_no_output_of_its_node(config: NodeConfig) -> None:
    with drive(config, "node.stop()", stderr=subprocess.STDOUT) as driver:
        assert driver.communicate()[0] == ""


# -- It does not stand


def test_a_node_that_cannot_start_says_why(config: NodeConfig) -> None:
    with pytest.raises(RaySystemError, match="no_such_module"):
        launch(replace(config, warm=("no_such_module",)), ROLES)
    assert not list(Path(config.temp_dir).glob("*/*/sockets"))


def test_an_interpreter_that_cannot_start_says_why(config: NodeConfig) -> None:
    with pytest.raises(RaySystemError, match="No module named 'raylite'"):
        launch(replace(config, sys_path=(b"/nowhere",)), ROLES)


def test_a_node_that_is_too_slow_is_stopped(config: NodeConfig) -> None:
    node = start(config, ROLES)
    with pytest.raises(RaySystemError, match=r"did not start within 0\.0 s"):
        node.wait_ready(timeout=0.0)
    assert not Path(node.config.session_dir).exists()


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot exceed 107 bytes"):
        make_session_dir(str(tmp_path / ("x" * 100)))
    assert not list(tmp_path.iterdir())


def test_a_directory_of_another_user_is_not_used(config: NodeConfig) -> None:
    tmp_path = Path(config.temp_dir)
    (tmp_path / "raylite").symlink_to("/")
    session = make_session_dir(str(tmp_path))
    assert session.parent == tmp_path / f"raylite-{os.geteuid()}"

    (tmp_path / f"raylite-{os.geteuid()}").rename(tmp_path / "away")
    (tmp_path / f"raylite-{os.geteuid()}").symlink_to("/")
    with pytest.raises(PermissionError, match="another user's"):
        make_session_dir(str(tmp_path))
