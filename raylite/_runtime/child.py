"""What a process of a node does between its fork and its role: it stops being the fork server."""

import atexit
import io
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from raylite._kernel import processes
from raylite._runtime.later import Role
from raylite._runtime.node import Inherited

SIGNALS = {signal.SIGCHLD, signal.SIGTERM}
"""What the fork server handles, and a child does not."""


def be_born(parent: int, out: int, err: int) -> None:
    """Die with the fork server, lead a session, have signals and streams of one's own."""
    processes.die_with_parent(parent)
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.dup2(out, 1)
    os.dup2(err, 2)


def keep_only(inherited: Inherited) -> None:
    """Close every descriptor but those inherited, and the memory's; forget what was to be done at exit.

    What the fork server has as objects must be closed as objects before, lest a finalizer close a
    number that means another by then.
    """
    own = (inherited.listener, inherited.tcp, inherited.control)
    keep = {0, 1, 2, *(each.fileno() for each in own if each is not None)}
    processes.close_fds(keep, file=inherited.arena.fileno())

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    atexit._clear()
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed()  # the interpreter reseeds `random`, but nobody else's


def be_worker(niceness: int) -> None:
    """Keep one's orphans, heed Ctrl-C, and be the first to go when memory runs out."""
    processes.adopt_orphans()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if niceness:
        os.nice(niceness)
    with suppress(OSError):  # when memory runs out, a task dies and not its raylet
        Path("/proc/self/oom_score_adj").write_text("1000")


def run(role: Role, inherited: Inherited) -> int:
    """Run a role to its end as an interpreter would run a program; return the exit code."""
    code = 1
    try:
        role(inherited)
        code = 0
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            code = ended.code or 0
        else:
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads any more, or user code closed it
                stream.flush()
    return code & 0xFF
