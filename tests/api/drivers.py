"""Drivers in processes of their own, and facts that take a moment to become true."""

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PREAMBLE = "import os, sys, time\nimport raylite as ray\n"


def drive(
    script: str, environment: Mapping[str, str] | None = None, timeout: float = 30.0
) -> "subprocess.CompletedProcess[str]":
    """Run a program that uses raylite as ``ray``, to its end."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PREAMBLE + textwrap.dedent(script)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | dict(environment or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


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
