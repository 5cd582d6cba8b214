"""Log files in a session's directory, which grow to a size and are then rotated."""

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from raylite._kernel.threads import LoopThread
from raylite._runtime.node import Rotation
from raylite._services.raylet.logs import Chunk

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


def open_log(path: Path) -> int:
    """Open a log file to append to, closed to other users."""
    return os.open(path, _FLAGS, 0o600)


def rotate(path: Path, backups: int) -> None:
    """Make way for a new file: ``x`` becomes ``x.1``, that ``x.2``, and the oldest goes."""
    if not backups:
        path.unlink(missing_ok=True)
        return
    for number in range(backups - 1, 0, -1):
        if (older := _backup(path, number)).exists():
            older.replace(_backup(path, number + 1))
    if path.exists():
        path.replace(_backup(path, 1))


def _backup(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


class WorkerLogs:
    """What workers print, each output in a file of its own. It writes on a thread of its own.

    A disk that is full, or a directory that has gone, costs the lines and nothing else: how much was
    lost is said in the file when it can be written again.

    Args:
        directory: The session's, for logs.
        rotation: How large a file grows.
    """

    def __init__(self, directory: Path, rotation: Rotation) -> None:
        self._directory, self._rotation = directory, rotation
        self._files: dict[tuple[int, bool], _File] = {}
        self._thread: LoopThread | None = None

    async def write(self, chunks: list[Chunk]) -> None:
        if not chunks:
            return
        if self._thread is None:
            self._thread = LoopThread("raylite-logs", asyncio.new_event_loop)
        await asyncio.wrap_future(self._thread.submit(self._write(chunks)))

    async def close(self) -> None:
        if self._thread is not None:
            await asyncio.wrap_future(self._thread.submit(self._close()))
            self._thread.stop()

    async def _write(self, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            file = self._files.get(chunk.output)
            if file is None and chunk.data:
                file = self._files[chunk.output] = _File(self._directory, self._rotation)
            if file is None:
                continue
            file.write(chunk.name, chunk.data)
            if chunk.is_last:
                file.close()
                del self._files[chunk.output]

    async def _close(self) -> None:
        for file in self._files.values():
            file.close()


class _File:
    """One output's file. All of it blocks."""

    def __init__(self, directory: Path, rotation: Rotation) -> None:
        self._directory, self._rotation = directory, rotation
        self._name = ""
        self._fd = -1
        self._size = 0
        self._lost = 0

    def write(self, name: str, data: bytes) -> None:
        try:
            self._be(name)
            if self._lost:
                self._append(b"[%d bytes could not be written here]\n" % self._lost)
                self._lost = 0
            self._append(data)
        except OSError:
            self._lost += len(data)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, data: bytes) -> None:
        if self._size and self._size + len(data) > self._rotation.size:
            self._rotate()
        while data:
            written = os.write(self._fd, data)
            data = data[written:]
            self._size += written

    def _be(self, name: str) -> None:
        """Be open under this name; it changes when it is known whose the worker is."""
        path = self._directory / name
        if self._fd >= 0 and name != self._name:
            (self._directory / self._name).replace(path)
        self._name = name
        if self._fd < 0:
            self._fd = open_log(path)
            self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        path = self._directory / self._name
        self.close()
        rotate(path, self._rotation.backups)
        self._fd, self._size = open_log(path), 0


class ComponentLog(logging.Handler):
    """Writes a component's log records to its stderr, a log file of its own, and rotates that.

    Whatever else is written to stdout and stderr goes to the same file: both become the new one.
    """

    def __init__(self, path: Path, rotation: Rotation) -> None:
        super().__init__()
        self._path, self._rotation = path, rotation
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = f"{self.format(record)}\n".encode(errors="replace")
            if os.fstat(2).st_size + len(text) > self._rotation.size:
                rotate(self._path, self._rotation.backups)
                fd = open_log(self._path)
                os.dup2(fd, 1)
                os.dup2(fd, 2)
                os.close(fd)
            os.write(2, text)
        except OSError:
            pass  # the disk is full: there is nobody to tell
