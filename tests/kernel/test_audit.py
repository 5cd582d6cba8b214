"""The audit: what a process that has refused unpickling does not live to do."""

import subprocess
import sys

import pytest

from raylite._kernel.audit import REFUSED

pytestmark = pytest.mark.process

SETUP = """
import io, marshal, os, pickle, subprocess, sys
class Bomb:
    def __reduce__(self):
        return os.mkdir, (sys.argv[1],)
bomb, harmless = pickle.dumps(Bomb()), pickle.dumps({"plain": [1, 2.0, "three", b"four"]})
code = marshal.dumps(compile("print('run')", "", "exec"))
from raylite._kernel.audit import refuse_unpickling
refuse_unpickling()
"""


def attempt(code: str, tmp_path: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"{SETUP}\n{code}\nprint('still there')", f"{tmp_path}/marker"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("pickle.loads(bomb)", "pickle.find_class 'posix'.'mkdir'"),
        ("pickle._Unpickler(io.BytesIO(bomb)).load()", "pickle.find_class 'posix'.'mkdir'"),
        ("try:\n    pickle.loads(bomb)\nexcept BaseException:\n    pass", "pickle.find_class"),
        ("marshal.loads(code)", "marshal.loads"),
        ("eval('marshal.loads(code)')", "marshal.loads"),
        ("os.system('true')", "os.system"),
        ("subprocess.Popen(['true'])", "subprocess.Popen"),
        ("subprocess.run('true', shell=True)", "subprocess.Popen"),
    ],
)
def test_the_process_ends_before_the_deed(code: str, told: str, tmp_path: object) -> None:
    done = attempt(code, tmp_path)
    assert done.returncode == REFUSED
    assert f"this process may not do this, and ends: {told}" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert subprocess.run(["ls", str(tmp_path)], capture_output=True, check=True).stdout == b""


@pytest.mark.parametrize(
    "code",
    [
        "import sqlite3, email.message, wave",  # from compiled files, which are unmarshalled
        "assert pickle.loads(harmless)['plain'][0] == 1",
        "pickle.dumps(Bomb()); marshal.dumps([1])",
        "import raylite._kernel.grpc",
    ],
)
def test_importing_and_plain_values_go_on(code: str, tmp_path: object) -> None:
    assert attempt(code, tmp_path).stdout == "still there\n"


def test_what_an_attacker_named_cannot_write_lines_of_its_own(tmp_path: object) -> None:
    forged = "pickle.loads(b'cos\\x1b[2Jevil\\nnothing\\n.')"
    done = attempt(forged, tmp_path)
    assert done.returncode == REFUSED
    assert "\x1b" not in done.stderr
