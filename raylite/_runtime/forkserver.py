"""The process `raylite: node`: imports everything once, then forks the node's processes.

It has one thread and no event loop, so that a fork copies no lock that another thread holds and
takes milliseconds where a new interpreter takes hundreds. It owns what must exist before the first
process does: the arena, and the listening sockets, where connections queue until somebody accepts.

Every child leads a session of its own. When a child ends, its group and its orphans end with it;
when the GCS, the raylet or the owner ends, everything does.
"""

import atexit
import gc
import importlib
import io
import os
import resource
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from raylite._kernel import processes
from raylite._kernel.arena import Arena
from raylite._runtime.node import (
    Channel,
    Ending,
    Exited,
    Failed,
    Fork,
    Forked,
    ForkFailed,
    Inherited,
    Ready,
    Role,
    Roles,
    Start,
    Stop,
    Stopped,
    clear,
    pair,
    tail,
)

_SIGNALS = {signal.SIGCHLD, signal.SIGTERM}
_GRACE = 1.0  # seconds to stop in when a SIGTERM asks, not the owner
_REAPING = 2.0  # seconds to wait for killed processes; only one stuck in the kernel takes longer
_FD_LIMIT = 65536  # more would slow down programs that close every number up to it


class ForkServer:
    """The parent of a node's processes.

    Args:
        owner: The way to the process that launched the node; its end is the node's end.
        start: What the owner asked for.
        roles: The functions that the children run, by name: gcs, raylet, worker.
        arena: The node's shared memory.
    """

    def __init__(self, owner: Channel, start: Start, roles: Roles, arena: Arena) -> None:
        self._pid = os.getpid()
        self._owner, self._config, self._roles, self._arena = owner, start.config, roles, arena
        self._owner_pidfd = processes.open_pidfd(start.owner)
        self._children: dict[int, str] = {}  # pid to role; a zombie stays until it is reaped
        self._workers: set[int] = set()  # whose exits the raylet is told
        self._ending: Ending | None = None
        self._kill_at: float | None = None  # set while stopping
        self._raylet, raylet_end = (Channel(end) for end in pair())

        self._wakeup, self._wakeup_writer = socket.socketpair()
        for end in (self._wakeup, self._wakeup_writer):
            end.setblocking(False)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)  # what matters is the byte written by the wakeup
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

        self._selector = selectors.DefaultSelector()
        self._watch(self._wakeup.fileno(), self._on_signal)
        self._watch(owner.fileno(), self._on_owner)
        self._watch(self._owner_pidfd, self._on_owner_exit)
        self._watch(self._raylet.fileno(), self._on_raylet)

        gcs_pid = None
        if self._config.head:
            with _listener(self._config.gcs_address) as gcs_listener:
                gcs_pid = self._fork_component("gcs", gcs_listener, None)
        with _listener(self._config.raylet_address) as raylet_listener:
            raylet_pid = self._fork_component("raylet", raylet_listener, raylet_end)
        raylet_end.close()
        owner.send(Ready(raylet_pid, gcs_pid), [os.dup(arena.fileno())])

    def _watch(self, fd: int, handler: Callable[[], None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, handler)

    # -- The parent's life

    def run(self) -> Ending:
        """Serve until the node ends; every child has been reaped when this returns."""
        while self._ending is None:
            wait = None if self._kill_at is None else max(0.0, self._kill_at - time.monotonic())
            ready = self._selector.select(wait)
            if not ready and self._kill_at is not None:
                self._conclude(Ending.STOPPED)
            for key, _ in ready:
                key.data()

            self._rearm(self._raylet, self._on_raylet)

        self._end()
        return self._ending

    def _rearm(self, channel: Channel, handler: Callable[[], None]) -> None:
        """Watch for room as well, while something waits to leave."""
        if channel.ended:
            with suppress(KeyError):
                self._selector.unregister(channel.fileno())
        else:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if channel.pending else 0)
            self._selector.modify(channel.fileno(), events, handler)

    def _on_signal(self) -> None:
        with suppress(BlockingIOError):
            if signal.SIGTERM in self._wakeup.recv(4096):
                self._stop(_GRACE)
        self._reap()

    def _on_owner(self) -> None:
        for message, _ in self._owner.receive():
            if isinstance(message, Stop):
                self._stop(message.grace)
        if self._owner.ended:
            self._conclude(Ending.OWNER_ENDED)

    def _on_owner_exit(self) -> None:
        # A process that the owner forked may hold its end of the channel open.
        self._conclude(Ending.OWNER_ENDED)

    def _on_raylet(self) -> None:
        self._raylet.flush()
        for message, _ in self._raylet.receive():
            if isinstance(message, Fork):
                self._fork_worker(message)

    def _stop(self, grace: float) -> None:
        if self._kill_at is None:
            self._kill_at = time.monotonic() + grace
            self._terminate_next()

    def _terminate_next(self) -> None:
        """Components stop in reverse order of start: a raylet has things to tell the GCS."""
        running = [pid for pid, role in self._children.items() if role != "worker"]
        if running:
            os.kill(running[-1], signal.SIGTERM)
        else:
            self._conclude(Ending.STOPPED)

    def _conclude(self, ending: Ending) -> None:
        """Leave the loop; the first reason to do so is the reason."""
        if self._ending is None:
            self._ending = ending

    def _reap(self) -> bool:
        """Collect every child that has ended. False when no child is left at all."""
        while True:
            try:
                # It stays a zombie, and its number its own, until its group is dead too.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return False
            if ended is None:
                return True

            pid = ended.si_pid
            if pid in self._children:
                processes.kill_group(pid)
            self._exited(pid, os.waitpid(pid, 0)[1])

    def _exited(self, pid: int, status: int) -> None:
        role = self._children.pop(pid, "orphan")
        if role in ("worker", "orphan"):
            self._kill_orphans()
            if pid in self._workers:
                self._workers.remove(pid)
                self._raylet.send(Exited(pid, status))
        elif self._kill_at is not None:
            self._terminate_next()
        elif self._ending is None:
            self._conclude(Ending.GCS_ENDED if role == "gcs" else Ending.RAYLET_ENDED)
            how = processes.Exit.from_wait_status(pid, status).describe()
            log = self._config.logs / f"{role}.log"
            self._owner.send(
                Failed(f"the node's {role} process (pid {pid}) ended: {how}{tail(log)}")
            )

    def _kill_orphans(self) -> None:
        # A living worker keeps its orphans to itself (`adopt_orphans`): these lost theirs. Their own
        # children come to light when they are reaped.
        for pid in processes.children():
            if pid not in self._children:
                processes.kill_group(pid)

    def _end(self) -> None:
        """Kill and reap everything, remove the sockets, tell the owner."""
        for pid in self._children:
            processes.kill_group(pid)
        deadline = time.monotonic() + _REAPING
        selector = selectors.DefaultSelector()
        selector.register(self._wakeup, selectors.EVENT_READ)
        while self._reap() and (left := deadline - time.monotonic()) > 0:
            self._kill_orphans()
            selector.select(left)
            with suppress(BlockingIOError):
                self._wakeup.recv(4096)

        clear(self._config)
        if self._ending is Ending.STOPPED:
            self._owner.send(Stopped())

    # -- Forking

    def _fork_component(self, role: str, listener: socket.socket, control: Channel | None) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        log = os.open(self._config.logs / f"{role}.log", flags, 0o600)
        try:
            inherited = Inherited(role, self._config, self._arena, listener, control)
            return self._fork(inherited, f"raylite: {role}", log, log)
        finally:
            os.close(log)

    def _fork_worker(self, request: Fork) -> None:
        if self._kill_at is not None or self._ending is not None:
            self._raylet.send(ForkFailed(request.token, "the node is stopping"))
            return

        inherited = Inherited("worker", self._config, self._arena, token=request.token)
        pid, fds = None, list[int]()
        try:
            out, out_writer = _pipe(fds)
            err, err_writer = _pipe(fds)
            pid = self._fork(inherited, request.title, out_writer, err_writer, request.env)
            pidfd = processes.open_pidfd(pid)  # of a zombie too, if it has been quick
        except OSError as error:
            if pid is not None:
                processes.kill_group(pid)
            for fd in fds:
                os.close(fd)
            self._raylet.send(ForkFailed(request.token, f"cannot fork a worker: {error}"))
            return

        os.close(out_writer)
        os.close(err_writer)
        self._workers.add(pid)
        self._raylet.send(Forked(request.token, pid), [pidfd, out, err])

    def _fork(
        self,
        inherited: Inherited,
        title: str,
        out: int,
        err: int,
        env: Mapping[str, str] | None = None,
    ) -> int:
        # A signal between the fork and the child's first steps would write to our wakeup socket.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                self._become(inherited, title, out, err, env or {})
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

        self._children[pid] = inherited.role
        return pid

    # -- The child's life

    def _become(
        self, inherited: Inherited, title: str, out: int, err: int, env: Mapping[str, str]
    ) -> NoReturn:
        code = 1
        try:
            self._leave(inherited, out, err)
            os.environ.update(env)
            processes.set_title(title)
            if inherited.role == "worker":
                self._be_worker()
            code = _run(self._roles[inherited.role], inherited)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _leave(self, inherited: Inherited, out: int, err: int) -> None:
        """Stop being the fork server: keep nothing of it but the memory."""
        processes.die_with_parent(self._pid)
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

        os.dup2(out, 1)
        os.dup2(err, 2)
        # Closed as objects first, lest a finalizer close a number that means another by then.
        self._selector.close()
        for end in (self._owner, self._raylet, self._wakeup, self._wakeup_writer):
            end.close()
        own = (inherited.listener, inherited.control)
        keep = {0, 1, 2, *(each.fileno() for each in own if each is not None)}
        processes.close_fds(keep, file=inherited.arena.fileno())

        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)
        atexit._clear()
        if (numpy_random := sys.modules.get("numpy.random")) is not None:
            numpy_random.seed()  # the interpreter reseeds `random`, but nobody else's

    def _be_worker(self) -> None:
        processes.adopt_orphans()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._config.worker_nice:
            os.nice(self._config.worker_nice)
        with suppress(OSError):  # when memory runs out, a task dies and not its raylet
            Path("/proc/self/oom_score_adj").write_text("1000")


def _run(role: Role, inherited: Inherited) -> int:
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


@contextmanager
def _listener(path: str) -> Iterator[socket.socket]:
    """A listening socket, which this process closes again: its children hold it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(4096)
        listener.setblocking(False)
        yield listener


def _pipe(fds: list[int]) -> tuple[int, int]:
    ends = os.pipe()
    fds.extend(ends)
    return ends


def _load(start: Start) -> Roles:
    """Import the roles and all that is to be warm, then set the memory up for sharing."""
    gc.disable()  # collecting while importing finds nothing and moves much
    module, _, attribute = start.roles.partition(":")
    roles: Roles = getattr(importlib.import_module(module), attribute)
    for name in start.config.warm:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or every child's first collection writes to, and so copies, every page
    gc.enable()
    return roles


def _raise_fd_limit() -> None:
    # The raylet holds three descriptors for each worker; 1024 is a common default.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FD_LIMIT if hard == resource.RLIM_INFINITY else min(hard, _FD_LIMIT)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(fd: int) -> NoReturn:
    """Run a fork server whose owner holds the other end of a socket."""
    owner = Channel(socket.socket(fileno=fd))
    processes.set_title("raylite: node")
    ending = Ending.FAILED
    try:
        match owner.receive():
            case [(Start() as start, _)] if os.getppid() == start.owner:
                _raise_fd_limit()
                roles = _load(start)
                processes.adopt_orphans()
                arena = Arena.create(start.config.object_store_memory)
                ending = ForkServer(owner, start, roles, arena).run()
            case _:
                ending = Ending.OWNER_ENDED  # before this process was up
    except BaseException:
        owner.send(Failed(f"the node's fork server failed:\n{traceback.format_exc()}"))
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(ending)
