"""What a worker prints, read from the pipe that is its stdout or its stderr, and cut into lines."""

import asyncio
import os

from raylite._services.raylet.pool import OutputListener

MARK = b"\x01raylite:task:"
"""Begins a line by which a worker tells what it runs from now on; the line is not shown."""

_READ = 64 * 1024  # what a pipe holds
_LONGEST_LINE = 64 * 1024
_LAST_READS = 64  # of an ended worker's output: processes it left may print for ever


class Output:
    """One worker's stdout or stderr. Make it on a running loop.

    It is read while its listener has room for more; who prints waits otherwise, on a full pipe.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: OutputListener,
        token: int,
        pid: int,
        fd: int,
        is_stderr: bool,
    ) -> None:
        self._loop, self._listener = loop, listener
        self._token, self._pid, self._is_stderr = token, pid, is_stderr
        self._fd = fd
        self._rest = b""
        self._name = ""
        self._is_reading = True
        os.set_blocking(fd, False)
        loop.add_reader(fd, self._readable)

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
            self.end_line()
            self.close()
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._tell(lines)
        if len(self._rest) > _LONGEST_LINE:
            self.end_line()
        return True

    def resume(self) -> None:
        """Read on, if there is room for more."""
        if self._fd >= 0 and not self._is_reading and self._listener.may_read(self._token):
            self._is_reading = True
            self._loop.add_reader(self._fd, self._readable)

    def finish(self) -> None:
        """The worker has ended: take what it left, the last unfinished line too."""
        for _ in range(_LAST_READS):
            if not self.read():
                break
        self.end_line()
        self.close()

    def end_line(self) -> None:
        """Tell of an unfinished line as it is."""
        if self._rest:
            rest, self._rest = self._rest, b""
            self._tell([rest], is_cut=True)

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._listener.closed(self._token, self._pid, self._is_stderr)

    def _readable(self) -> None:
        self.read()
        if self._fd >= 0 and self._is_reading and not self._listener.may_read(self._token):
            self._is_reading = False
            self._loop.remove_reader(self._fd)

    def _tell(self, lines: list[bytes], *, is_cut: bool = False) -> None:
        shown: list[bytes] = []
        for line in lines:
            if MARK in line:
                unfinished, _, name = line.partition(MARK)
                if unfinished:
                    shown.append(unfinished)
                self._show(shown, is_cut=False)
                shown = []
                self._name = name.decode(errors="replace")
            else:
                shown.append(line)
        self._show(shown, is_cut=is_cut)

    def _show(self, lines: list[bytes], *, is_cut: bool) -> None:
        if lines:
            self._listener.printed(
                self._token, self._pid, self._name, self._is_stderr, lines, is_cut
            )
