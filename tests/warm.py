"""The interpreter that becomes the programs of tests: it imports raylite once, then forks.

It is to programs what `raylite.testing.Nursery` is to nodes. What a program is there differs from one with
an interpreter of its own in what its modules have done already, in `sys.orig_argv`, and in one line more
of a traceback; it has its own ``__main__``, streams, environment, directory, session and end.
"""

import fcntl
import gc
import importlib
import os
import pkgutil
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import msgspec
import setproctitle
from msgspec import Struct

import raylite.cli
from raylite._kernel import processes
from raylite._runtime import interpreter, prenatal
from raylite._wire.messages import gcs, raylet
from raylite._wire.warm import warm_messages
from tests.programs import Birth, Place

_LARGEST = 192 * 1024  # bytes of a message: what a socket takes at once
_IMPORTED = (
    "raylite._connect",
    "raylite.aio",
    "raylite._runtime.roles",
    "raylite._runtime.workerprocess",
)


class _Node(Struct):
    """What the interpreter of a program's first node begins with."""

    arguments: list[bytes]
    place: Place


class Server:
    """Forks programs, and tells of each its number and how it ended.

    One that has ended stays a zombie, and its number its own, until who asked for it has heard so.

    Args:
        asked: Where requests come from; when it ends, so does this process.
    """

    def __init__(self, asked: socket.socket) -> None:
        self._asked = asked
        self._selector = selectors.DefaultSelector()
        self._selector.register(asked, selectors.EVENT_READ)
        self._running: dict[int, tuple[int, socket.socket]] = {}  # by pid: pidfd, who is told

    def wait_birth(self) -> Birth:
        """Serve; return in each process that has been forked to be a program."""
        while True:
            for key, _ in self._selector.select():
                if key.data is not None:
                    key.data()
                elif (birth := self._fork()) is not None:
                    return birth

    def _fork(self) -> Birth | None:
        message, fds, _, _ = socket.recv_fds(self._asked, _LARGEST, 4)
        if not message:
            os._exit(0)
        birth = msgspec.msgpack.decode(message, type=Birth)
        *streams, control = fds
        pid = os.fork()
        if pid == 0:
            self._leave()
            _be_born(birth, streams)
            return birth

        for fd in streams:
            os.close(fd)
        told, pidfd = socket.socket(fileno=control), processes.open_pidfd(pid)
        self._running[pid] = pidfd, told
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._tell(pid))
        told.send(b"%d" % pid)
        return None

    def _tell(self, pid: int) -> None:
        pidfd, told = self._running[pid]
        self._selector.unregister(pidfd)
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        try:
            told.send(b"%d" % code)
        except OSError:  # nobody listens any more
            self._reap(pid)
        else:
            self._selector.register(told, selectors.EVENT_READ, lambda: self._reap(pid))

    def _reap(self, pid: int) -> None:
        pidfd, told = self._running.pop(pid)
        if told in self._selector.get_map():
            self._selector.unregister(told)
        os.waitpid(pid, 0)
        os.close(pidfd)
        told.close()

    def _leave(self) -> None:
        self._selector.close()
        self._asked.close()
        for pidfd, told in self._running.values():
            os.close(pidfd)
            told.close()


def _be_born(birth: Birth, streams: Sequence[int]) -> None:
    if birth.leads_session:
        os.setsid()
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
    processes.close_fds({0, 1, 2})
    birth.place.take()
    _provide_node()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv[:] = ["-c", *birth.words]
    gc.enable()


def _provide_node() -> None:
    """Have a child that becomes the first interpreter which this process begins for a node.

    In place of what would begin one: it is as if the interpreter had started very fast. Nothing of
    raylite is to know of this.
    """
    own, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    if (pid := os.fork()) == 0:
        own.close()
        _become_node(theirs)
    theirs.close()
    way, own_pid = own.detach(), os.getpid()
    begin = interpreter._spawn

    def spawn(arguments: Sequence[str | bytes], channel: int, output: int) -> int:
        interpreter._spawn = begin
        if os.getpid() != own_pid:  # in a process that the program has forked
            return begin(arguments, channel, output)
        words, place = list(map(os.fsencode, arguments)), Place.here(os.environb)
        message = msgspec.msgpack.encode(_Node(words, place))
        with socket.socket(fileno=way) as end:
            socket.send_fds(end, [message], [channel, output])
        return pid

    interpreter._spawn = spawn


def _become_node(told: socket.socket) -> NoReturn:
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nothing, number)  # until it has others: a closed one's number is soon another's
        processes.close_fds({0, 1, 2, told.fileno()})
        message, fds, _, _ = socket.recv_fds(told, _LARGEST, 2)
        if not message:
            os._exit(0)  # the program has ended without a node
        node = msgspec.msgpack.decode(message, type=_Node)
        os.setsid()
        channel, output = (fcntl.fcntl(fd, fcntl.F_DUPFD, 4) for fd in fds)
        for number, fd in enumerate((output, output, channel), 1):
            os.dup2(fd, number)
        processes.close_fds({0, 1, 2, 3})
        node.place.take()
        roles, *path = map(os.fsdecode, node.arguments)
        sys.path[:], sys.argv[:] = path, [""]
        prenatal.main(3, roles)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def program(fd: int) -> str:
    """Import all, then serve; return in a program's process, with what it is to run."""
    asked = socket.socket(fileno=fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's, which is not meant for this one
    gc.disable()
    for name in _IMPORTED:
        importlib.import_module(name)
    for command in pkgutil.iter_modules(raylite.cli.__path__, "raylite.cli."):
        importlib.import_module(command.name)
    warm_messages(gcs, raylet)
    setproctitle.getproctitle()  # it looks where titles go, which nobody finds in another environment
    gc.freeze()
    return Server(asked).wait_birth().program
