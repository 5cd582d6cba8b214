"""The process `raylite: node`: forks the others of the node, with everything imported (see `prenatal`).

It has one thread and no event loop, so that a fork copies no lock that another thread holds and
takes milliseconds where a new interpreter takes hundreds. It owns what must exist before the first
process does: the arena, and the listening sockets, where connections queue until somebody accepts.

Every child leads a session of its own. When a child ends, its group and its orphans end with it;
when the raylet or the owner ends, everything does. So it is with a GCS whose tables are in memory;
one whose tables are kept is started again. A raylet that ends because the cluster took its node for
dead is followed by that of a new node, with nothing of the old. One that stands still for so long
that the cluster is about to do so has its workers ended here: what they run may run elsewhere then.

Other processes of this user come in by the door, a unix socket: each is told what the owner was and
given the arena, and hears when the node ends.
"""

import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from msgspec.structs import replace

from raylite._kernel import processes
from raylite._kernel.arena import Arena
from raylite._kernel.listener import is_own_user
from raylite._kernel.seams import boottime
from raylite._machines.pulse import EndWorkers, NodeLost, Pulse
from raylite._runtime import child, folders, listeners, records
from raylite._runtime.child import SIGNALS
from raylite._runtime.later import Roles, complete, is_complete
from raylite._runtime.listeners import CannotListen, Listeners
from raylite._runtime.logfiles import open_log
from raylite._runtime.node import (
    FENCED,
    IN_MEMORY,
    SESSION_VARIABLE,
    Accepted,
    Born,
    Channel,
    Ending,
    Exited,
    Failed,
    Fork,
    Forked,
    ForkFailed,
    Inherited,
    Message,
    Ready,
    Runs,
    Start,
    Stop,
    Stopped,
    clear,
    pair,
    tail,
)
from raylite._types.system_config import Settings

_GRACE = 1.0  # seconds to stop in when a SIGTERM asks, not the owner
_REAPING = 2.0  # seconds to wait for killed processes; only one stuck in the kernel takes longer
_RESTARTS = 5  # of a GCS within so many seconds:
_RESTARTS_WITHIN = 60.0
_QUIET = 0.05  # seconds in which nothing is asked of it, until it imports what is needed later
STOOD_STILL = "its raylet had stood still for {:.0f} s, so the cluster was about to have its tasks run elsewhere"


class ForkServer:
    """The parent of a node's processes.

    Args:
        owner: The way to the process that launched the node; its end is the node's end, unless it
            has said that the node outlives it.
        start: What the owner asked for.
        roles: The functions that the children run, by name: gcs, raylet, worker.
        arena: The node's shared memory.
    """

    def __init__(self, owner: Channel, start: Start, roles: Roles, arena: Arena) -> None:
        self._pid = os.getpid()
        self._owner, self._config, self._roles, self._arena = owner, start.config, roles, arena
        self._owner_pidfd = processes.open_pidfd(start.owner)
        self._is_accepted = self._outlives = False
        self._children: dict[int, str] = {}  # pid to role; a zombie stays until it is reaped
        self._workers: set[int] = set()  # whose exits the raylet is told
        self._causes: dict[int, str] = {}  # of those that were ended here
        self._pulse = self._new_pulse()
        self._ending: Ending | None = None
        self._kill_at: float | None = None  # set while stopping
        self._raylet, raylet_end = (Channel(end) for end in pair())

        self._wakeup, self._wakeup_writer = socket.socketpair()
        for end in (self._wakeup, self._wakeup_writer):
            end.setblocking(False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)  # what matters is the byte written by the wakeup
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

        self._selector = selectors.DefaultSelector()
        self._watch(self._wakeup.fileno(), self._on_signal)
        self._watch(owner.fileno(), self._on_owner)
        self._watch(self._owner_pidfd, self._on_owner_exit)
        self._watch(self._raylet.fileno(), self._on_raylet)

        self._guests: list[Channel] = []
        self._restarts: deque[float] = deque(maxlen=_RESTARTS)
        self._gcs_sockets: Listeners | None = None  # while the GCS is to be started again
        self._door = listeners.door(self._config.door)
        self._watch(self._door.fileno(), self._on_door)

        self._ready = self._start_components(raylet_end)
        folders.point_latest_at(Path(self._config.session_dir))
        if self._config.is_listed:
            records.write(self._config, os.fstat(arena.fileno()).st_ino)
        owner.send(self._ready, [os.dup(arena.fileno())])

    def _start_components(self, raylet_end: Channel) -> Ready:
        config, gcs_pid, shared = self._config, None, None
        if config.head:
            sockets = listeners.bind(
                config.gcs_address, config.listens_at, config.gcs_port, "--port"
            )
            if sockets.port is not None:
                cluster = listeners.host_port(config.ip, sockets.port)
                self._config = config = replace(config, gcs_port=sockets.port, cluster=cluster)
            if config.one_port:
                self._config = config = replace(config, raylet_port=sockets.port)
                sockets, shared = Listeners(sockets.unix), sockets.tcp
            gcs_pid = self._fork_component("gcs", sockets, None)
            if config.storage == IN_MEMORY:
                sockets.close()
            else:
                self._gcs_sockets = sockets
        pid = self._start_raylet(raylet_end, shared)
        return Ready(pid, gcs_pid, self._config)

    def _start_raylet(self, control: Channel, shared: socket.socket | None = None) -> int:
        config = self._config
        port = None if config.one_port else config.raylet_port
        sockets = listeners.bind(
            config.raylet_address, config.listens_at, port, "--node-manager-port"
        )
        if config.one_port:
            sockets = Listeners(sockets.unix, shared)
        self._config = replace(config, raylet_port=sockets.port)
        pid = self._fork_component("raylet", sockets, control)
        sockets.close()
        control.close()
        return pid

    def _join_again(self) -> None:
        """Begin anew as another node; who was attached to the old one is told that it has ended."""
        for pid in self._workers:
            processes.kill_group(pid)
        self._workers.clear()
        self._causes.clear()
        self._dismiss_all("the cluster took this node for dead; it joins again as another one")
        with suppress(KeyError):
            self._selector.unregister(self._raylet.fileno())
        self._raylet.close()
        self._arena.close()
        for socket_file in self._config.sockets.glob("w*.sock"):
            socket_file.unlink(missing_ok=True)
        Path(self._config.raylet_address).unlink(missing_ok=True)

        self._pulse = self._new_pulse()
        self._config = replace(self._config, node_id=os.urandom(28).hex())
        self._arena = Arena.create(self._config.object_store_memory)
        self._raylet, raylet_end = (Channel(end) for end in pair())
        self._watch(self._raylet.fileno(), self._on_raylet)
        try:
            raylet = self._start_raylet(raylet_end)
        except (CannotListen, OSError) as error:
            self._conclude(Ending.RAYLET_ENDED)
            self._tell(Failed(f"the node could not join its cluster again: {error}"))
            return
        self._ready = Ready(raylet, self._ready.gcs, self._config)
        records.write(self._config, os.fstat(self._arena.fileno()).st_ino)

    def _watch(self, fd: int, handler: Callable[[], None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, handler)

    # -- The parent's life

    def run(self) -> Ending:
        """Serve until the node ends; every child has been reaped when this returns."""
        while self._ending is None:
            ready = self._selector.select(self._patience())
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                self._conclude(Ending.STOPPED)
            elif not ready:
                complete(self._roles)
            for key, _ in ready:
                key.data()

            self._look_after_raylet()  # which may have said something just now
            self._rearm(self._raylet, self._on_raylet)

        self._end()
        return self._ending

    def _patience(self) -> float | None:
        """Return the seconds until something is to be done though nobody says anything."""
        kill_at, look_at = self._kill_at, self._pulse.next_wakeup()
        waits = [] if kill_at is None else [kill_at - time.monotonic()]
        waits += [] if look_at is None else [look_at - boottime()]
        if kill_at is None and not is_complete(self._roles):
            waits.append(_QUIET)
        return max(0.0, min(waits)) if waits else None

    def _new_pulse(self) -> Pulse:
        return Pulse(Settings.of(self._config.system).silence)

    def _look_after_raylet(self) -> None:
        for effect in self._pulse.expire(boottime()):
            match effect:
                case EndWorkers(seconds):
                    self._end_workers(STOOD_STILL.format(seconds))
                case NodeLost(seconds) if self._is_member:
                    reason = f"this node's raylet has stood still for {seconds:.0f} s: the cluster takes the node for dead"
                    self._dismiss_all(reason)

    def _end_workers(self, cause: str) -> None:
        if self._workers:
            print(f"{len(self._workers)} workers are ended: {cause}", file=sys.stderr, flush=True)
        for pid in self._workers:
            self._causes[pid] = cause
            processes.kill_group(pid)

    def _dismiss_all(self, reason: str) -> None:
        for guest in list(self._guests):
            guest.send(Failed(reason))
            self._dismiss(guest)

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
        for message, fds in self._owner.receive():
            if isinstance(message, Start):
                self._fork_node(message, Channel(socket.socket(fileno=fds[0])))
            elif isinstance(message, Stop):
                self._stop(message.grace)
            elif isinstance(message, Accepted):
                self._accepted(message)
        if self._owner.ended and self._outlives:
            with suppress(KeyError):
                self._selector.unregister(self._owner.fileno())
        elif self._owner.ended:
            self._conclude(Ending.OWNER_ENDED)

    def _accepted(self, accepted: Accepted) -> None:
        self._is_accepted = True
        if accepted.outlives and not self._outlives:
            self._outlives = True
            self._selector.unregister(self._owner_pidfd)
            os.close(self._owner_pidfd)

    def _on_owner_exit(self) -> None:
        # A process that the owner forked may hold its end of the channel open. What it said last,
        # just before it ended, counts.
        self._on_owner()
        if not self._outlives:
            self._conclude(Ending.OWNER_ENDED)

    def _on_door(self) -> None:
        try:
            end, _ = self._door.accept()
        except OSError:  # it gave up, or there are no descriptors left
            return
        if not is_own_user(end):
            end.close()
            return
        guest = Channel(end)
        self._guests.append(guest)
        self._watch(guest.fileno(), lambda: self._on_guest(guest))
        guest.send(self._ready, [os.dup(self._arena.fileno())])

    def _on_guest(self, guest: Channel) -> None:
        if guest not in self._guests:
            return  # it was dismissed in this turn
        for message, _ in guest.receive():
            if isinstance(message, Stop):
                self._stop(message.grace)
        if guest.ended:
            self._dismiss(guest)

    def _dismiss(self, guest: Channel) -> None:
        self._selector.unregister(guest.fileno())
        self._guests.remove(guest)
        guest.close()

    def _tell(self, message: Message) -> None:
        for channel in (self._owner, *self._guests):
            channel.send(message)

    def _on_raylet(self) -> None:
        self._raylet.flush()
        for message, _ in self._raylet.receive():
            if isinstance(message, Fork):
                self._fork_worker(message)
            elif isinstance(message, Runs):
                self._pulse.felt(message.at, message.unheard)

    def _stop(self, grace: float) -> None:
        if self._kill_at is None:
            self._kill_at = time.monotonic() + grace
            self._terminate_next()

    def _terminate_next(self) -> None:
        """The raylet stops before the GCS, which it has things to tell."""
        running = {role: pid for pid, role in self._children.items() if role != "worker"}
        for role in ("raylet", "gcs"):
            if role in running:
                os.kill(running[role], signal.SIGTERM)
                return
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
        if role in ("worker", "orphan", "node"):
            self._kill_orphans()
            if pid in self._workers:
                self._workers.remove(pid)
                self._raylet.send(Exited(pid, status, self._causes.pop(pid, "")))
        elif self._kill_at is not None:
            self._terminate_next()
        elif role == "gcs" and self._ending is None and self._may_restart_gcs(status):
            assert self._gcs_sockets is not None
            gcs = self._fork_component("gcs", self._gcs_sockets, None, again=True)
            self._ready = replace(self._ready, gcs=gcs)
        elif role == "raylet" and self._ending is None and self._may_join_again(status):
            self._join_again()
        elif self._ending is None:
            self._conclude(Ending.GCS_ENDED if role == "gcs" else Ending.RAYLET_ENDED)
            how = processes.Exit.from_wait_status(pid, status).describe()
            log = self._config.logs / f"{role}.log"
            self._tell(Failed(f"the node's {role} process (pid {pid}) ended: {how}{tail(log)}"))

    def _may_restart_gcs(self, status: int) -> bool:
        """Whether the GCS is to be started again: not if it has never worked, or ends too often.

        Nor if another cluster's has taken its tables over, which it would take back.
        """
        if self._gcs_sockets is None or not self._is_accepted:
            return False
        if os.waitstatus_to_exitcode(status) == FENCED:
            return False
        now = time.monotonic()
        if len(self._restarts) == _RESTARTS and now - self._restarts[0] < _RESTARTS_WITHIN:
            return False
        self._restarts.append(now)
        return True

    def _may_join_again(self, status: int) -> bool:
        """Whether a raylet ended because it was taken for dead; a driver's own node ends with it.

        So does a head's, of whose raylet nothing but its own standing still can say so.
        """
        return self._is_member and os.waitstatus_to_exitcode(status) == FENCED

    @property
    def _is_member(self) -> bool:
        """Whether this node is one that its cluster may lose for good: see `_may_join_again`."""
        return self._outlives and not self._config.head

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
            self._tell(Stopped())

    # -- Forking

    def _fork_component(
        self, role: str, sockets: Listeners, control: Channel | None, *, again: bool = False
    ) -> int:
        log = open_log(self._config.logs / f"{role}.log")
        try:
            inherited = Inherited(
                role, self._config, self._arena, sockets.unix, control, tcp=sockets.tcp, again=again
            )
            return self._fork(inherited, f"raylite: {role}", log, log)
        finally:
            os.close(log)

    def _fork_node(self, start: Start, owner: Channel) -> None:
        """Fork another node's fork server, which has all imported at once; it ends with this one."""
        log = open_log(start.config.logs / "node.log")
        self._children[self._fork_child(lambda: self._become_node(start, owner, log))] = "node"
        os.close(log)
        owner.close()

    def _fork_worker(self, request: Fork) -> None:
        if self._kill_at is not None or self._ending is not None:
            self._raylet.send(ForkFailed(request.token, "the node is stopping"))
            return

        complete(self._roles)
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
        pid = self._fork_child(lambda: self._become(inherited, title, out, err, env or {}))
        self._children[pid] = inherited.role
        return pid

    @staticmethod
    def _fork_child(become: Callable[[], NoReturn]) -> int:
        # A signal between the fork and the child's first steps would write to our wakeup socket.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                become()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return pid

    # -- The child's life

    def _become(
        self, inherited: Inherited, title: str, out: int, err: int, env: Mapping[str, str]
    ) -> NoReturn:
        code = 1
        try:
            child.be_born(self._pid, out, err)
            self._leave()
            if self._gcs_sockets is not None and self._gcs_sockets.unix is not inherited.listener:
                self._gcs_sockets.close()
            child.keep_only(inherited)
            os.environ.update(env)
            processes.set_title(title)
            if inherited.role == "worker":
                child.be_worker(self._config.worker_nice)
            code = child.run(self._roles[inherited.role], inherited)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _become_node(self, start: Start, owner: Channel, log: int) -> NoReturn:
        try:
            child.be_born(self._pid, log, log)
            self._leave()
            if self._gcs_sockets is not None:
                self._gcs_sockets.close()
            self._arena.close()
            processes.close_fds({0, 1, 2, owner.fileno()})
            os.environ[SESSION_VARIABLE] = start.config.session_dir
            owner.send(Born(os.getpid()), [processes.open_pidfd(os.getpid())])
            serve(owner, start, self._roles)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(Ending.FAILED)

    def _leave(self) -> None:
        """Close what is the fork server's own."""
        self._selector.close()
        for channel in (self._owner, self._raylet, *self._guests):
            channel.close()
        for end in (self._wakeup, self._wakeup_writer, self._door):
            end.close()


def _pipe(fds: list[int]) -> tuple[int, int]:
    ends = os.pipe()
    fds.extend(ends)
    return ends


def serve(owner: Channel, start: Start, roles: Roles) -> NoReturn:
    """Be a node's fork server until the node ends, and this process with it."""
    processes.set_title("raylite: node")
    ending = Ending.FAILED
    try:
        processes.adopt_orphans()
        arena = Arena.create(start.config.object_store_memory)
        ending = ForkServer(owner, start, roles, arena).run()
    except CannotListen as error:
        owner.send(Failed(str(error)))
    except BaseException:
        owner.send(Failed(f"the node's fork server failed:\n{traceback.format_exc()}"))
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(ending)
