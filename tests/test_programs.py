"""A program that was forked is as one with an interpreter of its own, to itself and to its test."""

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests import programs
from tests.cluster.watching import SOON, Watch, eventually
from tests.programs import begin

pytestmark = pytest.mark.process


@pytest.fixture(params=["forked", "interpreter"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    assert programs.kept
    if request.param == "interpreter":
        monkeypatch.setattr(programs, "kept", [])


def run(program: str, *words: str, **variables: str) -> tuple[int, str, str]:
    with begin(program, *words, environment=variables) as running:
        out, errors = running.communicate(timeout=SOON)
    return running.wait(), out, errors


@pytest.mark.usefixtures("kind")
def test_it_has_its_words_variables_directory_and_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    was = os.umask(0o27)
    request.addfinalizer(lambda: os.umask(was))
    said = run(
        """
import os, sys
print(sys.argv, os.environ["OVEN"], os.getcwd(), __name__, sys.path[0] == "", sys.warnoptions)
print(sorted(name for name in globals() if not name.startswith("_")))
import __main__
print(vars(__main__) is globals(), sys.stdin.seekable(), sys.stdout.isatty(), oct(os.umask(0)))
""",
        "bread",
        OVEN="hot",
    )
    assert said == (
        0,
        f"['-c', 'bread'] hot {tmp_path} __main__ True ['error']\n['os', 'sys']\nTrue False False 0o27\n",
        "",
    )


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize(
    ("end", "code", "errors"),
    [
        ("pass", 0, ""),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('no bread')", 1, "no bread\n"),
        ("import os; os._exit(4)", 4, ""),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import atexit, sys; atexit.register(print, 'last', file=sys.stderr)", 0, "last\n"),
    ],
)
def test_it_ends_as_programs_do(end: str, code: int, errors: str) -> None:
    assert run(end) == (code, "", errors)


@pytest.mark.usefixtures("kind")
def test_an_error_is_printed_and_a_warning_is_one() -> None:
    code, _, errors = run("def bake(): import warnings; warnings.warn('burnt')\nbake()")
    assert code == 1
    assert errors.endswith("UserWarning: burnt\n")
    assert "in bake" in errors
    assert "tests/" not in errors


@pytest.mark.usefixtures("kind")
def test_a_ctrl_c_ends_it_and_nothing_else() -> None:
    with begin(
        "import time; print('here', flush=True); time.sleep(60)", leads_session=True
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "here\n"
        assert os.getpgid(program.pid) == program.pid
        os.killpg(program.pid, signal.SIGINT)
        _, errors = program.communicate(timeout=SOON)
    assert program.wait() == -signal.SIGINT
    assert errors.endswith("KeyboardInterrupt\n")
    assert run("print('on')") == (0, "on\n", "")


@pytest.mark.usefixtures("kind")
def test_its_number_is_its_own_until_its_end_was_heard() -> None:
    with begin("input()") as program, Watch(program.pid) as watch:
        assert program.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(0.01)
        program.kill()
        assert watch.left_after(SOON) == []
        os.kill(program.pid, 0)
        assert program.wait() == program.poll() == -signal.SIGKILL
        assert eventually(lambda: not psutil.pid_exists(program.pid))


@pytest.mark.usefixtures("kind")
def test_it_hears_and_says_much() -> None:
    with begin("import sys; sys.stdout.write(sys.stdin.readline() * 100_000)") as program:
        assert program.stdin is not None
        program.stdin.write("bread\n")
        program.stdin.flush()
        assert program.communicate(timeout=SOON) == ("bread\n" * 100_000, "")


NODE = """
import os, raylite as ray
def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as found:
        return found.read().split()
os.environ["OVEN"] = "hot"
for _ in range(2):
    with ray.init(num_cpus=1):
        print(len(children()), ray.get(ray.remote(lambda: os.environ["OVEN"]).remote()))
    print(len(children()))
"""


def test_its_nodes_are_its_children_and_end_before_it() -> None:
    assert run(NODE) == (0, "1 hot\n0\n1 hot\n0\n", "")


def test_a_process_that_it_forks_can_begin_a_node() -> None:
    said = run("""
import os
if (pid := os.fork()) == 0:
    import raylite as ray
    with ray.init(num_cpus=1):
        print(ray.get(ray.remote(lambda: 1).remote()), flush=True)
    os._exit(0)
print(os.waitpid(pid, 0)[1])
""")
    assert said == (0, "1\n0\n", "")
