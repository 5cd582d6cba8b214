"""Forked workers: the raylet's way to the fork server, and to what workers print."""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping

from msgspec import Struct, field

from raylite._kernel import processes
from raylite._kernel.arena import Arena
from raylite._kernel.seams import boottime
from raylite._runtime.node import Channel, Exited, Fork, Forked, ForkFailed, Runs
from raylite._runtime.pipes import Output
from raylite._services.raylet.pool import OutputListener, SourceListener
from raylite._types import board


class _Worker(Struct):
    token: int
    pid: int
    pidfd: int
    outputs: list[Output] = field(default_factory=list)


class ForkedWorkers:
    """Starts workers through the fork server. Make it on a running loop.

    Args:
        control: The channel to the fork server.
        arena: The node's arena, for the board at its end.
        env_vars: Set in the workers' environment.
        on_gone: Called when the fork server is gone, and with it the node.
    """

    listener: SourceListener
    output: OutputListener

    def __init__(
        self,
        control: Channel,
        arena: Arena,
        env_vars: Mapping[str, str],
        on_gone: Callable[[], None],
    ) -> None:
        self._control = control
        self._env_vars = env_vars
        self._arena = arena
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

    def resume_output(self) -> None:
        """Go on reading what workers print, as far as there is room for it."""
        for worker in self._workers.values():
            for output in worker.outputs:
                output.resume()

    def runs(self, unheard: float) -> None:
        if not self._control.pending:  # else the fork server stands still, and so does its watch
            self._control.send(Runs(boottime(), unheard))
            self._watch_room()

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
                case Exited(pid, status, cause):
                    self._exited(processes.Exit.from_wait_status(pid, status), cause)
        if self._control.ended:
            self._loop.remove_reader(self._control.fileno())
            self._on_gone()

    def _forked(self, token: int, pid: int, fds: list[int]) -> None:
        pidfd, out, err = fds
        worker = self._workers[token] = _Worker(token, pid, pidfd)
        self._by_pid[pid] = token
        worker.outputs = [
            Output(self._loop, self.output, token, pid, fd, is_stderr)
            for fd, is_stderr in ((out, False), (err, True))
        ]
        if token in self._killed:
            self._killed.discard(token)
            self.kill(token)

    def _exited(self, end: processes.Exit, cause: str) -> None:
        token = self._by_pid.pop(end.pid)
        worker = self._workers.pop(token)
        for output in worker.outputs:
            output.finish()
        os.close(worker.pidfd)
        cause = cause or end.describe()
        self.listener.ended(token, cause, was_killed=end.signal == signal.SIGKILL)
