"""Processes: endings in words, signals that cannot miss, and finding what is left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from raylite._kernel import processes
from raylite._kernel.processes import Exit

pytestmark = pytest.mark.process

SOON = 5.0
RESTS = "import signal; print(flush=True); signal.pause()"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a session, and rests."""
    with subprocess.Popen(
        [sys.executable, "-Sc", RESTS],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "RAYLITE_TEST": "test_processes"},
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def in_child(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter of its own: it changes what belongs to a whole process."""
    path = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", f"from raylite._kernel import processes\nimport os\n{code}"]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("status", "ending", "words"),
    [
        (0, Exit(7, code=0), "exit code 0"),
        (3 << 8, Exit(7, code=3), "exit code 3"),
        (9, Exit(7, signal=9), "killed by SIGKILL (9)"),
        (0x80 | 11, Exit(7, signal=11), "killed by SIGSEGV (11)"),
        (40, Exit(7, signal=40), "killed by signal 40"),
    ],
)
def test_an_ending_in_words(status: int, ending: Exit, words: str) -> None:
    assert Exit.from_wait_status(7, status) == ending
    assert ending.describe() == words
    assert ending.clean == (status == 0)


def test_a_pidfd_tells_the_end_and_signals_nobody_else(child: subprocess.Popen[bytes]) -> None:
    pidfd = processes.open_pidfd(child.pid)
    assert not processes.wait_exit(pidfd, 0)
    assert processes.send_signal(pidfd, signal.SIGTERM)
    assert processes.wait_exit(pidfd)
    child.wait()
    assert not processes.send_signal(pidfd, signal.SIGTERM)
    os.close(pidfd)


def test_there_is_no_pidfd_of_a_process_that_was_reaped(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    with pytest.raises(ProcessLookupError):
        processes.open_pidfd(child.pid)


def test_a_group_dies_with_its_leader_and_only_once(child: subprocess.Popen[bytes]) -> None:
    processes.kill_group(child.pid)
    assert child.wait() == -signal.SIGKILL
    processes.kill_group(child.pid)


def test_children_are_listed(child: subprocess.Popen[bytes]) -> None:
    assert child.pid in processes.children()


def test_what_a_tree_left_behind_is_found_by_its_environment(
    child: subprocess.Popen[bytes],
) -> None:
    assert list(processes.strays("RAYLITE_TEST=test_processes", None)) == [child.pid]
    assert list(processes.strays("RAYLITE_TEST=test_proc", None)) == []


def test_what_a_tree_left_behind_is_found_by_its_arena() -> None:
    done = in_child("""
arena = os.memfd_create("arena")
inode = os.fstat(arena).st_ino
read, write = os.pipe()
if (pid := os.fork()) == 0:
    processes.set_title("raylite::test")
    os.write(write, b".")
    import signal; signal.pause()
os.read(read, 1)
another = os.fstat(os.memfd_create("another")).st_ino  # that no other process has, nor gets
try:
    assert list(processes.strays("RAYLITE_TEST=no", inode)) == [pid]
    assert list(processes.strays("RAYLITE_TEST=no", another)) == []
    assert list(processes.strays("RAYLITE_TEST=no", None)) == []
finally:
    processes.kill_group(pid)
""")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_dies_with_its_parent() -> None:
    done = in_child("""
read, write = os.pipe()
if (child := os.fork()) == 0:
    parent = os.getpid()
    if (grandchild := os.fork()) == 0:
        processes.die_with_parent(parent)
        os.write(write, b"%d" % os.getpid())
        import signal; signal.pause()
    import signal; signal.pause()
processes.adopt_orphans()
grandchild = int(os.read(read, 10))
os.kill(child, 9)
os.waitpid(child, 0)
assert processes.Exit.from_wait_status(*os.waitpid(grandchild, 0)).signal == 9
""")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_whose_parent_died_before_it_asked_dies() -> None:
    done = in_child("processes.die_with_parent(os.getppid() + 1)")
    assert done.returncode == -signal.SIGKILL


def test_a_request_that_the_kernel_refuses_is_an_error() -> None:
    with pytest.raises(OSError, match="prctl"):
        processes._prctl(-1, 0)


def test_a_title_is_what_ps_shows() -> None:
    done = in_child("""
for title in ("raylite: one", "raylite: two", "raylite: two"):
    processes.set_title(title)
print(open("/proc/self/cmdline").read().rstrip("\\0"))
""")
    assert done.stdout == "raylite: two\n"


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("a\0b\nc\x1b[1m\udcff", "a?b?c?[1m?"),
        ("\u00e4 \u2028", "\u00e4 ?"),
        ("x" * 10_000, "x" * 200 + "..."),
    ],
    ids=["control", "letters", "long"],
)
def test_a_title_may_be_any_text(title: str, shown: str) -> None:
    done = in_child(f"""
processes.set_title({title!a})
print(ascii(open("/proc/self/cmdline").read().rstrip("\\0")))
""")
    assert (done.stdout, done.stderr) == (f"{shown!a}\n", "")


CHURN = """
import resource, sys
from raylite._kernel import processes

if sys.argv[1:] == ["keep"]:
    processes.keep_freed_memory()
for _ in range(50):
    buffers = [bytes([1]) * 1_000_000 for _ in range(16)]
    del buffers
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def test_memory_that_was_freed_is_used_again_without_a_page_fault() -> None:
    faults = [
        int(subprocess.check_output([sys.executable, "-c", CHURN, *words]))
        for words in ((), ("keep",))
    ]
    assert faults[1] < 50_000 < faults[0]


def test_a_descriptor_leaves_the_numbers_of_the_standard_streams() -> None:
    done = in_child("""
high = processes.above_stdio(0)
assert high > 2 and not os.get_inheritable(high)
assert processes.above_stdio(high) == high
os.fstat(high)
try:
    os.fstat(0)
except OSError:
    print("moved")
""")
    assert (done.stdout, done.stderr) == ("moved\n", "")


def test_the_numbers_of_closed_standard_streams_are_taken_and_open_ones_left_alone() -> None:
    done = in_child("""
os.close(0), os.close(2)
processes.occupy_stdio()
print([os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 2)], os.open(os.devnull, os.O_RDONLY) > 2)
processes.occupy_stdio()
""")
    assert (done.stdout, done.returncode) == ("['/dev/null', '/dev/null'] True\n", 0)


def test_descriptors_are_closed_except_those_to_keep_and_the_duplicates_of_a_file() -> None:
    done = in_child("""
file = os.memfd_create("arena")
twin, pipe = os.dup(file), os.pipe()
processes.close_fds({0, 1, 2, pipe[0]}, file)
found = set()
for fd in range(20):
    try:
        os.fstat(fd)
        found.add(fd)
    except OSError:
        pass
assert found == {0, 1, 2, file, twin, pipe[0]}, found
""")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_list_of_children_is_empty_where_the_kernel_has_none() -> None:
    done = in_child("""
from pathlib import Path
def refuse(path): raise FileNotFoundError(path)
Path.read_text = refuse
print(processes.children())
""")
    assert done.stdout == "[]\n"
