"""Forked workers: the raylet's way to the fork server, and to what workers print."""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping

from msgspec import Struct, field

from raylite._kernel import processes
from raylite._kernel.arena import Arena
from raylite._runtime.node import Channel, Exited, Fork, Forked, ForkFailed
from raylite._services.raylet.pool import SourceListener
from raylite._types import board

MARK = b"\x01raylite:task:"
"""Begins a line by which a worker tells what it runs from now on; the line is not shown."""

_READ = 64 * 1024
_LONGEST_LINE = 64 * 1024

OnLines = Callable[[int, int, str, bool, list[str]], bool]


class _Worker(Struct):
    token: int
    pid: int
    pidfd: int
    outputs: "list[_Output]" = field(default_factory=list)


class ForkedWorkers:
    """Starts workers through the fork server. Make it on a running loop.

    Args:
        control: The channel to the fork server.
        arena: The node's arena, for the board at its end.
        env_vars: Set in the workers' environment.
        on_lines: Takes (token, pid, task name, is stderr, lines); False asks to be given no more
            until `resume`.
        on_gone: Called when the fork server is gone, and with it the node.
    """

    listener: SourceListener

    def __init__(
        self,
        control: Channel,
        arena: Arena,
        env_vars: Mapping[str, str],
        on_lines: OnLines,
        on_gone: Callable[[], None],
    ) -> None:
        self._control = control
        self._env_vars = env_vars
        self._arena = arena
        self._on_lines = on_lines
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._workers: dict[int, _Worker] = {}
        self._by_pid: dict[int, int] = {}
        self._killed: set[int] = set()
        self._loop.add_reader(control.fileno(), self._receive)

    def start(self, token: int) -> None:
        self._slot(token)[:] = bytes(board.SLOT)
        self._control.send(Fork(token, self._env_vars))
        self._watch_room()

    def kill(self, token: int) -> None:
        worker = self._workers.get(token)
        if worker is not None:
            processes.send_signal(worker.pidfd, signal.SIGKILL)
        else:
            self._killed.add(token)

    def last_task(self, token: int) -> bytes:
        return bytes(self._slot(token)[:24])

    def flush_output(self) -> None:
        """Read what workers have printed so far."""
        for worker in self._workers.values():
            for output in worker.outputs:
                output.read()
                output.end_line()

    def resume(self) -> None:
        """Go on reading what workers print."""
        for worker in self._workers.values():
            for output in worker.outputs:
                output.resume()

    def close(self) -> None:
        self._loop.remove_reader(self._control.fileno())
        self._loop.remove_writer(self._control.fileno())
        for worker in self._workers.values():
            for output in worker.outputs:
                output.close()
            os.close(worker.pidfd)
        self._workers.clear()
        self._control.close()

    def _slot(self, token: int) -> memoryview:
        return self._arena.slot(board.slot_offset(self._arena.capacity, token), board.SLOT)

    def _watch_room(self) -> None:
        if self._control.pending:
            self._loop.add_writer(self._control.fileno(), self._flush)

    def _flush(self) -> None:
        self._control.flush()
        if not self._control.pending:
            self._loop.remove_writer(self._control.fileno())

    def _receive(self) -> None:
        for message, fds in self._control.receive():
            match message:
                case Forked(token, pid):
                    self._forked(token, pid, fds)
                case ForkFailed(token, reason):
                    self.listener.start_failed(token, reason)
                case Exited(pid, status):
                    self._exited(processes.Exit.from_wait_status(pid, status))
        if self._control.ended:
            self._loop.remove_reader(self._control.fileno())
            self._on_gone()

    def _forked(self, token: int, pid: int, fds: list[int]) -> None:
        pidfd, out, err = fds
        worker = self._workers[token] = _Worker(token, pid, pidfd)
        self._by_pid[pid] = token
        worker.outputs = [
            _Output(self._loop, worker, fd, is_stderr, self._on_lines)
            for fd, is_stderr in ((out, False), (err, True))
        ]
        if token in self._killed:
            self._killed.discard(token)
            self.kill(token)

    def _exited(self, end: processes.Exit) -> None:
        token = self._by_pid.pop(end.pid)
        worker = self._workers.pop(token)
        for output in worker.outputs:
            output.finish()
        os.close(worker.pidfd)
        self.listener.ended(token, end.describe(), was_killed=end.signal == signal.SIGKILL)


class _Output:
    """One worker's stdout or stderr, cut into lines."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        worker: _Worker,
        fd: int,
        is_stderr: bool,
        on_lines: OnLines,
    ) -> None:
        self._loop = loop
        self._worker = worker
        self._fd = fd
        self._is_stderr = is_stderr
        self._on_lines = on_lines
        self._rest = b""
        self._name = ""
        self._is_reading = True
        os.set_blocking(fd, False)
        loop.add_reader(fd, self.read)

    def read(self) -> bool:
        """Take what is there; False when there is nothing (more)."""
        if self._fd < 0:
            return False
        try:
            data = os.read(self._fd, _READ)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            lines.append(self._rest)
            self._rest = b""
        self._tell(lines)
        return True

    def resume(self) -> None:
        if self._fd >= 0 and not self._is_reading:
            self._is_reading = True
            self._loop.add_reader(self._fd, self.read)

    def finish(self) -> None:
        """The worker has ended: take what it left, the last unfinished line too."""
        for _ in range(64):
            if not self.read():
                break
        self.end_line()
        self.close()

    def end_line(self) -> None:
        """Show an unfinished line as it is."""
        if self._rest:
            rest, self._rest = self._rest, b""
            self._tell([rest])

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _tell(self, lines: list[bytes]) -> None:
        shown: list[str] = []
        for line in lines:
            if MARK in line:
                unfinished, _, name = line.partition(MARK)
                if unfinished:
                    shown.append(unfinished.decode(errors="replace"))
                self._show(shown)
                shown = []
                self._name = name.decode(errors="replace")
            else:
                shown.append(line.decode(errors="replace"))
        self._show(shown)

    def _show(self, lines: list[str]) -> None:
        if not lines:
            return
        worker = self._worker
        wants_more = self._on_lines(worker.token, worker.pid, self._name, self._is_stderr, lines)
        if not wants_more and self._is_reading and self._fd >= 0:
            self._is_reading = False
            self._loop.remove_reader(self._fd)
