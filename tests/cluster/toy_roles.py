"""Roles for the process tree's tests: a raylet that does what its socket says, simple workers."""

import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

from raylite._kernel.seams import boottime
from raylite._runtime.node import Exited, Fork, Forked, ForkFailed, Inherited, Runs


def gcs(inherited: Inherited) -> NoReturn:
    """Greet whoever connects, to show that this process is itself by now."""
    assert inherited.listener is not None
    inherited.listener.setblocking(True)
    while True:
        client, _ = inherited.listener.accept()
        client.sendall(b"gcs")
        client.close()


def raylet(inherited: Inherited) -> None:
    """Serve one client: a line of JSON for each command and for each event."""
    assert inherited.listener is not None
    assert inherited.control is not None
    control = inherited.control
    inherited.listener.setblocking(True)
    client, _ = inherited.listener.accept()
    outputs: dict[int, int] = {}

    def tell(**event: Any) -> None:
        client.sendall(json.dumps(event).encode() + b"\n")

    poll = select.poll()
    poll.register(client, select.POLLIN)
    poll.register(control.fileno(), select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == control.fileno():
                for message, fds in control.receive():
                    match message:
                        case Forked(token, pid):
                            pidfd, outputs[pid], err = fds
                            os.close(pidfd)
                            os.close(err)
                            tell(forked=token, pid=pid)
                        case ForkFailed(token, reason):
                            tell(failed=token, reason=reason)
                        case Exited(pid, status, cause):
                            tell(exited=pid, status=status, cause=cause)
                if control.ended:
                    return
            else:
                lines = client.recv(65536).splitlines()
                if not lines:
                    poll.unregister(client)
                for line in lines:
                    command = json.loads(line)
                    match command:
                        case {"fork": token, "env": env}:
                            control.send(Fork(token, env))
                        case {"runs": seconds_ago}:
                            control.send(Runs(boottime() - seconds_ago, 0.0))
                        case {"read": pid}:
                            with open(outputs.pop(pid)) as output:
                                tell(output=output.read())
                        case {"limit_fds": number}:
                            parent = os.getppid()
                            _, hard = resource.prlimit(parent, resource.RLIMIT_NOFILE)
                            resource.prlimit(parent, resource.RLIMIT_NOFILE, (number, hard))
                            tell(limited=number)
                        case {"list": _}:
                            tell(parent=os.getppid(), fds=open_fds(), sigint=sigint())
                        case "exit":
                            sys.exit("told to")


def worker(inherited: Inherited) -> None:
    """Do what the environment says."""
    match os.environ["TOY"].split():
        case ["rest"]:
            rest()
        case ["exit", code]:
            sys.exit(int(code))
        case ["raise"]:
            raise LookupError("a bug in a role")
        case ["kill", number]:
            os.kill(os.getpid(), int(number))
        case ["report"]:
            report = {
                "fds": open_fds(),
                "sigint": sigint(),
                "title": Path("/proc/self/cmdline").read_bytes().split(b"\0")[0].decode(),
                "leads": os.getsid(0) == os.getpgrp() == os.getpid(),
                "token": inherited.token,
                "random": random.random(),
                "path": sys.path,
                "threads": len(os.listdir("/proc/self/task")),
            }
            print(json.dumps(report))
        case ["parent", kind]:
            print(grandchild(kind), flush=True)
            os.close(1)
            rest()


def grandchild(kind: str) -> int:
    """Start a process that would live for ever, in one of the ways that users have."""
    if kind == "forked":
        pid = os.fork()
        if pid == 0:
            os.close(1)
            rest()
        return pid

    rests = "os.close(1); signal.pause()"
    leaves = "os.setsid(); child = os.fork(); child and (print(child, flush=True), os._exit(0))"
    python = [sys.executable, "-Sc"]
    match kind:
        case "daemon":
            return int(subprocess.check_output([*python, f"import os, signal; {leaves}; {rests}"]))
        case "session":
            command = [*python, f"import os, signal; {rests}"]
            return subprocess.Popen(command, start_new_session=True).pid
        case _:
            return subprocess.Popen([*python, f"import os, signal; {rests}"]).pid


def rest() -> NoReturn:
    while True:
        signal.pause()


def open_fds() -> dict[str, str]:
    """What each descriptor of this process is; the listing's own excepted."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}").split(":")[0]
        except FileNotFoundError:
            pass
    return found


def sigint() -> str:
    handler = signal.getsignal(signal.SIGINT)
    return handler.name if isinstance(handler, signal.Handlers) else handler.__name__  # type: ignore[union-attr]


ROLES = {"gcs": gcs, "raylet": raylet, "worker": worker}
