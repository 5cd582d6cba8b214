"""Who ends with whom: nothing outlives its parent, and every end is told to those who wait for it."""

import ctypes
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import raylite as ray
from raylite.exceptions import GcsUnavailableError, LocalRayletDiedError, WorkerCrashedError
from tests.cluster.watching import (
    SOON,
    Driver,
    Watch,
    eventually,
    the_only,
    title,
    titled,
    tree,
    workers,
)

pytestmark = [pytest.mark.process, pytest.mark.fault]

# The promises are 0.5 s, 2 s and 0.1 s. The tests allow three times as much: two cores that other
# tests load may not run the process that is to notice an end for a good part of a second.
CHILDREN_END = 3 * 0.5
DRIVER_FREED = 3 * 2.0
DEATH_KNOWN = 3 * 0.1 + 0.5  # a worker with a store mapped takes the kernel a while to tear down
AT_ONCE = 3.0  # for a person who presses Ctrl-C, on a loaded machine


@pytest.fixture
def session() -> Iterator["ray.RayContext"]:
    """A cluster of its own for a test that breaks it."""
    with ray.init(num_cpus=2, object_store_memory=80_000_000, log_to_driver=False) as context:
        yield context


@pytest.fixture(scope="module")
def cluster() -> Iterator["ray.RayContext"]:
    with ray.init(num_cpus=2, object_store_memory=80_000_000, log_to_driver=False) as context:
        yield context


@ray.remote
def rest(path: Any) -> None:
    """Say that it has begun, by making a file, and stay."""
    Path(path).write_text(str(os.getpid()))
    time.sleep(1000)


def pid_in(path: Path) -> int:
    """The number that a task is about to write."""
    assert eventually(lambda: path.exists() and path.read_text() != "")
    return int(path.read_text())


# -- A node's processes


@pytest.mark.parametrize("victim", ["raylite: node", "raylite: gcs", "raylite: raylet"])
def test_a_node_ends_with_any_of_its_components(
    session: "ray.RayContext", tmp_path: Path, victim: str
) -> None:
    running = rest.remote(str(tmp_path / "pid"))
    queued = rest.remote(running)
    pid_in(tmp_path / "pid")
    with Watch(*tree()) as watch:
        watch.signal(signal.SIGKILL, the_only(titled(victim)))
        assert watch.left_after(CHILDREN_END) == []
    for ref in (running, queued):
        with pytest.raises(LocalRayletDiedError, match=r"SIGKILL|ended") as caught:
            ray.get(ref, timeout=SOON)
        assert "unix:" not in str(caught.value)
        is_gcs = victim == "raylite: gcs"  # its tables were in memory, and nobody starts it again
        assert isinstance(caught.value, GcsUnavailableError) is is_gcs


def test_what_is_asked_of_a_dead_node_fails_at_once(session: "ray.RayContext") -> None:
    kept = ray.put(b"kept")
    with Watch(*tree()) as watch:
        watch.signal(signal.SIGKILL, the_only(titled("raylite: raylet")))
        assert watch.left_after(SOON) == []
    for ask in (ray.nodes, ray.cluster_resources, lambda: ray.get(rest.remote(""))):
        with pytest.raises(LocalRayletDiedError):
            ask()
    with pytest.raises(ray.exceptions.RayError):
        ray.put(bytes(1 << 20))
    assert ray.get(kept) == b"kept"  # it is here, and needs no node


def test_a_new_cluster_can_be_started_after_one_broke(session: "ray.RayContext") -> None:
    with Watch(*tree()) as watch:
        watch.signal(signal.SIGKILL)
        assert watch.left_after(SOON) == []
    ray.shutdown()
    assert not Path(session["session_dir"], "sockets").exists()
    with ray.init(num_cpus=1):
        assert ray.get(ray.remote(os.getppid).remote()) != os.getpid()


# -- Drivers


def test_what_a_killed_driver_had_is_gone_soon(tmp_path: Path) -> None:
    program = f"""
        import subprocess
        ray.init(num_cpus=2)
        say(ray.get_runtime_context().get_session_name())

        @ray.remote
        def rest(name):
            child = subprocess.Popen(["sleep", "1000"])
            with open(f"{tmp_path}/{{name}}", "w") as file:
                file.write(str(child.pid))
            time.sleep(1000)

        @ray.remote
        def parent():
            ray.get(rest.remote("nested"))

        ray.get([rest.remote("rest"), parent.remote(), ray.put(bytes(1 << 20))])
    """
    with Driver(program) as driver:
        session = Path("/tmp/raylite", driver.hear())
        grandchildren = [pid_in(tmp_path / name) for name in ("rest", "nested")]
        watched = driver.watch_tree()
        assert set(grandchildren) < set(watched)
        assert len([pid for pid in watched if title(pid).startswith("raylite")]) >= 6
        os.kill(driver.pid, signal.SIGKILL)
        assert driver.watch.left_after(DRIVER_FREED) == []
        assert not (session / "sockets").exists()


WAITS = {
    "get": "ray.get(resting)",
    "get with a timeout": "ray.get([resting], timeout=1000)",
    "wait": "ray.wait([resting])",
    "future": "resting.future().result()",
    "await": "asyncio.run(waiting())",
    "sleep": "time.sleep(1000)",
    # An interrupt inside a finalizer written in Python would be swallowed, so references have none.
    "put": "while True: ray.put(bytes(1 << 21))",
    "put small values": "while True: ray.put(0)",
    "drop references": "while True: [ray.put(n) for n in range(100)].clear()",
    "submit and forget": "while True: ray.wait([nothing.options(num_cpus=0).remote()])",
}
WAITING = """
    import asyncio

    @ray.remote
    def rest():
        time.sleep(1000)

    @ray.remote
    def nothing():
        pass

    async def waiting():
        say("waiting")  # here: an interrupt while the loop is being made is asyncio's own affair
        await resting

    ray.init(num_cpus=1)
    resting = rest.options(num_cpus=0).remote()
    ray.get(nothing.remote())
"""


def test_ctrl_c_interrupts_whatever_goes_on_at_once() -> None:
    program = f"""{WAITING}
    waits = [compile(wait, "wait", "exec") for wait in {list(WAITS.values())!r}]
    for wait in waits:
        try:
            if "asyncio" not in wait.co_names:
                say("waiting")
            exec(wait)
        except KeyboardInterrupt:
            say("interrupted", ray.get(ray.remote(abs).remote(-7)))
    say("over")
    """
    with Driver(program) as driver:
        for wait in WAITS:
            assert driver.hear() == "waiting"
            began = time.monotonic()
            driver.press_ctrl_c()
            assert driver.hear() == "interrupted 7", wait
            assert time.monotonic() - began < AT_ONCE, wait
        assert driver.hear() == "over"
        assert driver.end() == (0, "")


def test_ctrl_c_ends_a_program_and_its_cluster() -> None:
    program = f"""{WAITING}
    try:
        say("waiting")
        ray.get(resting)
    finally:
        say("ending")
        hear()
    """
    with Driver(program) as driver:
        assert driver.hear() == "waiting"
        driver.watch_tree()
        driver.press_ctrl_c()
        assert driver.hear() == "ending"
        driver.say("go on")
        driver.press_ctrl_c()  # the impatient press again
        assert driver.watch.left_after(AT_ONCE) == []
        code, errors = driver.end()
        assert code == -signal.SIGINT
        assert "KeyboardInterrupt" in errors


def test_ctrl_c_at_any_moment_of_init_leaves_nothing() -> None:
    program = """
        import psutil
        from pathlib import Path
        for delay in [0.0, 0.003, 0.02, 0.06, 0.1, 0.15, 0.2, 0.3]:
            timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
            is_whole = False
            try:
                timer.start()
                ray.init(num_cpus=1)
                is_whole = True
                while True:
                    time.sleep(1)
            except KeyboardInterrupt:
                pass
            timer.join()
            was_consistent = ray.is_initialized() or not is_whole
            ray.shutdown()
            say(
                delay,
                was_consistent,
                len(psutil.Process().children(recursive=True)),
                [thread.name for thread in threading.enumerate()][1:],
                signal.getsignal(signal.SIGINT) is signal.default_int_handler,
                list(Path("/tmp/raylite").glob(f"session_*_{os.getpid()}/sockets")),
            )
        say("over")
    """
    with Driver(program) as driver:
        while (said := driver.hear()) != "over":
            assert said.partition(" ")[2] == "True 0 [] True []", said
        assert driver.end() == (0, "")


def test_ctrl_c_at_any_moment_of_shutdown_leaves_nothing() -> None:
    program = """
        import psutil
        for delay in [0.0, 0.001, 0.003, 0.008, 0.015]:
            ray.init(num_cpus=1)
            timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
            try:
                timer.start()
                ray.shutdown()
                while True:
                    time.sleep(1)
            except KeyboardInterrupt:
                ray.shutdown()  # for one that came before this had begun
            timer.join()
            say(
                delay,
                ray.is_initialized(),
                len(psutil.Process().children(recursive=True)),
                [thread.name for thread in threading.enumerate()][1:],
            )
        say("over")
    """
    with Driver(program) as driver:
        while (said := driver.hear()) != "over":
            assert said.partition(" ")[2] == "False 0 []", said
        assert driver.end() == (0, "")


def test_ctrl_c_hurries_a_program_that_has_ended_without_a_word() -> None:
    program = f"""{WAITING}
    def tell():
        while signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            time.sleep(0.001)
        say("shutdown")

    say("stopping")
    hear()
    threading.Thread(target=tell, daemon=True).start()
    """
    with Driver(program) as driver:
        assert driver.hear() == "stopping"
        driver.watch_tree()
        for component in ("raylite: raylet", "raylite: gcs"):  # neither can say goodbye now
            driver.watch.signal(signal.SIGSTOP, the_only(titled(component, driver.pid)))
        driver.say("go on")
        assert driver.hear() == "shutdown"
        driver.press_ctrl_c()
        driver.press_ctrl_c()
        assert driver.watch.left_after(AT_ONCE) == []
        assert driver.end() == (0, "")


@pytest.mark.parametrize("presses", [1, 3])
def test_ctrl_c_cuts_a_slow_shutdown_short(presses: int) -> None:
    program = f"""{WAITING}
    def tell():
        while signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            time.sleep(0.001)
        say("shutdown")

    say("stopping")
    hear()
    threading.Thread(target=tell).start()
    try:
        ray.shutdown()
    except KeyboardInterrupt:
        say("interrupted", ray.is_initialized())
    hear()
    """
    with Driver(program) as driver:
        assert driver.hear() == "stopping"
        driver.watch_tree()
        # Neither can say goodbye now, and whoever waits for it waits in vain.
        for component in ("raylite: raylet", "raylite: gcs"):
            driver.watch.signal(signal.SIGSTOP, the_only(titled(component, driver.pid)))
        driver.say("go on")
        assert driver.hear() == "shutdown"
        began = time.monotonic()
        for _ in range(presses):
            driver.press_ctrl_c()
        assert driver.hear() == "interrupted False"
        assert time.monotonic() - began < AT_ONCE
        assert tree(driver.pid) == []
        driver.say("end")
        assert driver.end()[0] == 0
        assert driver.watch.left_after(AT_ONCE) == []


def test_a_forked_child_of_a_driver_has_no_cluster_and_ends_alone() -> None:
    program = """
        ray.init(num_cpus=1)
        ref = ray.put(bytes(1 << 20))
        view = ray.get(ref)
        task = ray.remote(abs).remote(-7)
        child = os.fork()
        if child == 0:
            assert not ray.is_initialized()
            try:
                ray.get(task)
            except ValueError:  # of a session that this process has no part in
                pass
            del ref, view, task
            sys.exit(7)
        say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        say(ray.get(task), len(ray.get(ref)), len(view))
        ray.shutdown()
    """
    with Driver(program) as driver:
        assert driver.hear() == "7"
        assert driver.hear() == "7 1048576 1048576"
        assert driver.end() == (0, "")


# -- Workers


@ray.remote(max_retries=0)
def title_of_itself() -> str:
    return title(os.getpid())


def test_a_worker_is_called_after_what_it_runs(cluster: "ray.RayContext") -> None:
    assert ray.get(title_of_itself.remote()) == "raylite::title_of_itself"
    named = title_of_itself.options(name="another name").remote()
    assert ray.get(named) == "raylite::another name"
    assert eventually(lambda: {title(pid) for pid in workers()} == {"raylite::IDLE"})


def test_nothing_listens_on_the_network(cluster: "ray.RayContext") -> None:
    ray.get(title_of_itself.remote())
    for pid in [os.getpid(), *tree()]:
        assert psutil.Process(pid).net_connections("inet") == []


def test_sockets_are_closed_to_other_users(cluster: "ray.RayContext") -> None:
    session = Path(cluster["session_dir"])
    for directory in (session.parent, session, session / "sockets", session / "logs"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@ray.remote(max_retries=0)
def end_by(how: str) -> None:
    match how:
        case "sys.exit":
            sys.exit(3)
        case "os._exit":
            os._exit(4)
        case "abort":
            os.abort()
        case "segmentation fault":
            ctypes.string_at(0)
        case number:
            os.kill(os.getpid(), int(number))
            time.sleep(1000)


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("sys.exit", "exit code 3"),
        ("os._exit", "exit code 4"),
        ("abort", "killed by SIGABRT (6)"),
        ("segmentation fault", "killed by SIGSEGV (11)"),
        ("9", "killed by SIGKILL (9)"),
        ("15", "killed by SIGTERM (15)"),
    ],
)
def test_the_error_says_how_a_worker_ended(cluster: "ray.RayContext", how: str, cause: str) -> None:
    with pytest.raises(WorkerCrashedError) as caught:
        ray.get(end_by.remote(how), timeout=SOON)
    assert cause in str(caught.value)
    assert "end_by" in str(caught.value)


def test_a_killed_worker_is_missed_at_once(cluster: "ray.RayContext", tmp_path: Path) -> None:
    ref = rest.options(max_retries=0).remote(str(tmp_path / "pid"))
    with Watch(pid_in(tmp_path / "pid")) as watch:
        began = time.monotonic()
        watch.signal(signal.SIGKILL)
        with pytest.raises(WorkerCrashedError, match="SIGKILL"):
            ray.get(ref, timeout=SOON)
        assert time.monotonic() - began < DEATH_KNOWN


@ray.remote(max_retries=0)
def echo_from(fifo: str) -> str:
    with open(fifo) as file:
        return file.read()


def test_a_worker_that_is_stopped_for_a_while_is_only_slow(
    cluster: "ray.RayContext", tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    ref = echo_from.remote(str(fifo))
    with open(fifo, "w") as file:  # opens once the task does
        with Watch(the_only(titled("raylite::echo_from"))) as watch:
            watch.signal(signal.SIGSTOP)
            file.write("said meanwhile")
            file.close()
            with pytest.raises(ray.exceptions.GetTimeoutError):
                ray.get(ref, timeout=0.3)
            watch.signal(signal.SIGCONT)
            assert ray.get(ref, timeout=SOON) == "said meanwhile"
    assert ray.get(title_of_itself.remote(), timeout=SOON) == "raylite::title_of_itself"


@ray.remote(max_retries=0)
def start_family(path: str) -> None:
    """Start a child that starts a grandchild, in a session of its own; say who it is, and rest."""
    program = f"""
import os, time
if os.fork() == 0:
    os.setsid()
with open({path!r}, "a") as file:
    print(os.getpid(), file=file, flush=True)
time.sleep(1000)
"""
    subprocess.Popen([sys.executable, "-c", program])
    time.sleep(1000)


def test_a_worker_takes_its_children_and_theirs_along(
    cluster: "ray.RayContext", tmp_path: Path
) -> None:
    path = tmp_path / "pids"
    start_family.remote(str(path))
    assert eventually(lambda: path.exists() and path.read_text().count("\n") == 2)
    family = [int(line) for line in path.read_text().split()]
    worker = the_only(titled("raylite::start_family"))
    with Watch(worker, *family) as watch:
        watch.signal(signal.SIGKILL, worker)
        assert watch.left_after(CHILDREN_END) == []


@ray.remote(max_retries=0)
def fork(path: str, ends: str) -> int:
    if os.fork() == 0:
        Path(path).write_text(str(os.getpid()))
        if ends == "exit":
            sys.exit(5)
        if ends == "raise":
            raise ValueError("in the child")
        return -1
    return os.getpid()


@pytest.mark.parametrize("ends", ["return", "exit", "raise"])
def test_a_child_forked_by_a_task_ends_where_the_task_ends(
    cluster: "ray.RayContext", tmp_path: Path, ends: str
) -> None:
    refs = [fork.remote(str(tmp_path / f"{n}"), ends) for n in range(3)]
    forked = [pid_in(tmp_path / f"{n}") for n in range(3)]
    assert set(ray.get(refs, timeout=SOON)) <= set(workers())
    assert eventually(lambda: not any(map(title, forked)))  # zombies, for nobody waits for them
    assert ray.get(title_of_itself.remote(), timeout=SOON) == "raylite::title_of_itself"
