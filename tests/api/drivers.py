"""Drivers in processes of their own, and facts that take a moment to become true."""

import subprocess
import textwrap
import time
from collections.abc import Callable, Mapping

from tests.programs import begin

PREAMBLE = "import os, sys, time\nimport raylite as ray\n"


def drive(
    script: str, environment: Mapping[str, str] | None = None, timeout: float = 30.0
) -> "subprocess.CompletedProcess[str]":
    """Run a program that uses raylite as ``ray``, to its end."""
    with begin(PREAMBLE + textwrap.dedent(script), environment=environment) as program:
        try:
            out, errors = program.communicate(timeout=timeout)
        except BaseException:
            program.kill()
            raise
    return subprocess.CompletedProcess(program.args, program.wait(), out, errors)


def drive_well(script: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a program that must end well, and return what it printed."""
    done = drive(script, environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def eventually(fact: Callable[[], bool], within: float = 10.0) -> bool:
    """Wait for something that another process will soon have done."""
    deadline = time.monotonic() + within
    while not fact():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
