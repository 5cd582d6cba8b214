"""The guards of conftest.py, each shown to catch what it is for and to leave the rest alone."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFTEST = (ROOT / "tests" / "conftest.py").read_text()
PREAMBLE = """
import asyncio, gc, mmap, os, signal, socket, subprocess, sys, threading, time
import pytest

KEPT = []
"""
OFFENDERS = {
    "process": "os.spawnlp(os.P_NOWAIT, 'sleep', 'sleep', '30')",
    "orphan": (
        'script = \'import subprocess; subprocess.Popen(["sleep", "30"])\'\n'
        "    subprocess.run([sys.executable, '-c', script])"
    ),
    "zombie": "pid = os.fork()\n    if pid == 0: os._exit(0)",
    "thread": "threading.Thread(target=time.sleep, args=(30,), daemon=True).start()",
    "descriptor": "KEPT.append(os.open(os.devnull, os.O_RDONLY))",
    "mapping": (
        "fd = os.memfd_create('leak')\n"
        "    os.ftruncate(fd, 4096)\n"
        "    KEPT.append(mmap.mmap(fd, 4096))\n"
        "    os.close(fd)"
    ),
    "handler_exception": (
        "loop = asyncio.new_event_loop()\n"
        "    loop.call_soon(lambda: 1 / 0)\n"
        "    loop.run_until_complete(asyncio.sleep(0))\n"
        "    loop.close()"
    ),
    "uvloop_exception": (
        "import uvloop\n"
        "    loop = uvloop.new_event_loop()\n"
        "    loop.call_soon(lambda: 1 / 0)\n"
        "    loop.run_until_complete(asyncio.sleep(0))\n"
        "    loop.close()"
    ),
    "unretrieved": (
        "async def fail(): raise OSError('nobody asked')\n"
        "    async def main():\n"
        "        task = asyncio.create_task(fail())\n"
        "        cycle = [task]; cycle.append(cycle)\n"
        "        await asyncio.sleep(0)\n"
        "    asyncio.run(main())"
    ),
    "destroyed_pending": (
        "loop = asyncio.new_event_loop()\n"
        "    loop.create_task(asyncio.sleep(30))\n"
        "    loop.run_until_complete(asyncio.sleep(0))\n"
        "    loop.close()"
    ),
    "unraisable": (
        "class Bad:\n"
        "        def __del__(self): raise ValueError('in __del__')\n"
        "    bad = Bad(); bad.itself = bad"
    ),
    "in_thread": (
        "def fail(): raise ValueError('in a thread')\n"
        "    thread = threading.Thread(target=fail); thread.start(); thread.join()"
    ),
}
SAYS = {
    "process": "*process *: sleep 30",
    "orphan": "*process *: sleep 30",
    "zombie": "*nobody waited for it*",
    "thread": "*thread Thread-*",
    "descriptor": "*descriptor *: /dev/null*",
    "mapping": "*mapping of /memfd:leak*",
    "handler_exception": "*ZeroDivisionError*",
    "uvloop_exception": "*ZeroDivisionError*",
    "unretrieved": "*nobody asked*",
    "destroyed_pending": "*Task was destroyed but it is pending*",
    "unraisable": "*ValueError: in __del__*",
    "in_thread": "*ValueError: in a thread*",
}
END_STRAYS = """

def pytest_sessionfinish():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) != os.getpid() and _is_ours(int(pid)):
            os.kill(int(pid), 9)
"""


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A test session of its own under the same conftest, with a mark and a short grace of its own."""
    monkeypatch.delenv("RAYLITE_TESTS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # where `tests` is
    pytester.makeconftest(CONFTEST.replace("GRACE = 2.0", "GRACE = 0.3") + END_STRAYS)
    pytester.makeini(
        "[pytest]\nasyncio_default_fixture_loop_scope = function\n"
        "markers = leaves(*kinds, reason): tolerate\nfilterwarnings = error\n"
    )
    return pytester


def test_each_kind_of_leak_and_of_lost_exception_fails_its_test_and_no_other(
    inner: pytest.Pytester,
) -> None:
    inner.makepyfile(
        PREAMBLE
        + "\n".join(
            f"def test_{name}():\n    {body}\n\ndef test_{name}_after():\n    pass\n"
            for name, body in OFFENDERS.items()
        )
    )
    result = inner.runpytest_subprocess("-p", "no:randomly")
    result.assert_outcomes(passed=2 * len(OFFENDERS), errors=len(OFFENDERS))
    result.stdout.fnmatch_lines_random(
        [f"*ERROR at teardown of test_{name} *" for name in OFFENDERS]
    )
    result.stdout.fnmatch_lines([line for name in OFFENDERS for line in [SAYS[name]]])


def test_tests_that_clean_up_pass(inner: pytest.Pytester) -> None:
    inner.makepyfile(
        PREAMBLE
        + """
def test_a_process_that_was_waited_for():
    subprocess.run(["true"], check=True)

def test_a_thread_that_is_about_to_end():
    threading.Thread(target=time.sleep, args=(0.05,)).start()

def test_a_socket_in_a_cycle_is_closed_by_the_collector():
    left, right = socket.socketpair()
    left.close(); right.close()

def test_a_loop_that_ran():
    asyncio.run(asyncio.sleep(0))

def test_a_lost_exception_that_was_expected(lost_exceptions):
    loop = asyncio.new_event_loop()
    loop.call_soon(lambda: 1 / 0)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert "ZeroDivisionError" in lost_exceptions[0]
    lost_exceptions.clear()

@pytest.mark.leaves("descriptor", reason="shown here")
def test_a_leak_that_has_a_reason():
    os.dup(1)
"""
    )
    inner.runpytest_subprocess().assert_outcomes(passed=6)


def test_a_shared_fixture_may_hold_and_grow_as_long_as_it_lives(inner: pytest.Pytester) -> None:
    inner.makepyfile(
        PREAMBLE
        + """
@pytest.fixture(scope="module")
def shared():
    held = [os.dup(1)]
    yield held
    for one in held:
        os.close(one)

def test_first(shared):
    shared.append(os.dup(1))

def test_second(shared):
    shared.append(os.dup(1))

def test_not_using_it():
    os.dup(1)

def test_asking_for_it_late(request):
    request.getfixturevalue("shared").append(os.dup(1))
"""
    )
    result = inner.runpytest_subprocess()
    result.assert_outcomes(passed=4, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_not_using_it *"])


def test_a_shared_fixture_that_does_not_let_go_fails_at_its_end(inner: pytest.Pytester) -> None:
    inner.makepyfile(
        PREAMBLE
        + """
@pytest.fixture(scope="module")
def shared():
    return os.dup(1)

def test_user(shared):
    pass
"""
    )
    result = inner.runpytest_subprocess()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*fixture *::shared left behind:*"])
