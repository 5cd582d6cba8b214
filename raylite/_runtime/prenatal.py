"""A node's process before it is told of its node: it imports everything, then waits.

One that is told of nodes which are not its own (see `raylite.testing.Nursery`) forks the processes that
become those, and stays as it is.
"""

import gc
import importlib
import os
import resource
import signal
import socket
import sys
import traceback
from contextlib import suppress
from typing import NoReturn

from raylite._kernel import processes
from raylite._runtime import child
from raylite._runtime.forkserver import serve
from raylite._runtime.later import Roles, complete, load_roles
from raylite._runtime.logfiles import open_log
from raylite._runtime.node import (
    SESSION_VARIABLE,
    Born,
    Channel,
    Ending,
    Failed,
    NodeConfig,
    Start,
    wait_readable,
)
from raylite._wire.messages import gcs, raylet
from raylite._wire.warm import warm_messages

_ENDING = 3  # seconds that nodes have to end when the process that they were forked from does
_FD_LIMIT = 65536  # more would slow down programs that close every number up to it


def main(fd: int, roles: str) -> NoReturn:
    """Be the fork server of the node that the holder of a socket's other end will name.

    Args:
        fd: The socket.
        roles: Where the functions of the node's processes are, to be imported meanwhile.
    """
    owner = Channel(socket.socket(fileno=fd))
    try:
        _raise_fd_limit()
        loaded = load_roles(roles)
        warm_messages(gcs, raylet)
        gc.freeze()  # or every child's first collection writes to, and so copies, every page
        owner, start = _wait_start(owner, loaded)
        _print_to(start.config)
        for name in start.config.warm:
            importlib.import_module(name)
    except BaseException:
        owner.send(Failed(f"the node's fork server failed:\n{traceback.format_exc()}"))
        traceback.print_exc()
        os._exit(Ending.FAILED)
    gc.freeze()
    gc.enable()
    serve(owner, start, loaded)


def _wait_start(owner: Channel, roles: Roles) -> tuple[Channel, Start]:
    """Wait to be told of a node, and by whom it is owned; without one, this process ends.

    While there is nothing to do it imports the rest of the roles.

    Who is told of nodes that are not its own forks the processes that this returns in.
    """
    while not owner.ended:
        if not wait_readable(owner.fileno(), 0.0):
            complete(roles)
            wait_readable(owner.fileno(), None)
        for message, fds in owner.receive():
            if not isinstance(message, Start) or os.getppid() != message.owner:
                continue
            if not fds:
                return owner, message
            theirs = Channel(socket.socket(fileno=fds[0]))
            if _fork_apart():
                theirs.close()
                continue
            owner.close()
            _begin_as(message, theirs)
            return theirs, message
    signal.alarm(_ENDING)  # of what was forked here: that ends as well, by itself if there is time
    with suppress(ChildProcessError):
        os.wait()
    os._exit(Ending.OWNER_ENDED)


def _fork_apart() -> int:
    """Fork a process that the kernel reaps when it has ended."""
    processes.set_title("raylite: nursery")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    parent, pid = os.getpid(), os.fork()
    if pid == 0:
        child.be_born(parent, 1, 2)
    return pid


def _begin_as(start: Start, owner: Channel) -> None:
    """Be where the owner is, as if this process had been started from there."""
    processes.close_fds({0, 1, 2, owner.fileno()})
    owner.send(Born(os.getpid()), [processes.open_pidfd(os.getpid())])
    environment = {
        name.encode("latin-1"): value.encode("latin-1") for name, value in start.environment.items()
    }
    os.environb.clear()
    os.environb.update(environment)
    sys.path[:] = map(os.fsdecode, start.config.sys_path)
    with suppress(OSError):  # it has been removed
        os.chdir(start.directory)


def _print_to(config: NodeConfig) -> None:
    """Print to the node's log from now on; what was printed before goes there as well."""
    os.environ[SESSION_VARIABLE] = config.session_dir
    log = open_log(config.logs / "node.log")
    os.write(log, os.pread(2, 1 << 20, 0))
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _raise_fd_limit() -> None:
    # The raylet holds three descriptors for each worker; 1024 is a common default.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FD_LIMIT if hard == resource.RLIM_INFINITY else min(hard, _FD_LIMIT)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
