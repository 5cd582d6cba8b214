"""What workers print, shown on the driver's terminal with a prefix."""

import asyncio
import logging
import sys
import threading
from collections.abc import Sequence
from queue import SimpleQueue

from raylite._kernel.threads import leave_signals_to_main
from raylite._machines.deduplicator import Printed

logger = logging.getLogger("raylite")

_Queued = tuple[Sequence[Printed], "asyncio.Future[None]"]


class Printer:
    """Prints on a thread of its own, for a terminal can block and the loop must not.

    Args:
        ip: This node's address: other nodes' lines say theirs.
    """

    def __init__(self, ip: str) -> None:
        self._ip = ip
        self._queue: SimpleQueue[_Queued | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def show(self, printed: Sequence[Printed]) -> None:
        """Print lines, and return when they are printed."""
        if not printed:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="raylite-output", daemon=True)
            self._thread.start()
        done = asyncio.get_running_loop().create_future()
        self._queue.put((printed, done))
        await done

    def close(self) -> None:
        """Print what is queued, then end."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(2.0)

    def _run(self) -> None:
        leave_signals_to_main()
        while (queued := self._queue.get()) is not None:
            printed, done = queued
            for each in printed:
                self._print(each)
            try:
                done.get_loop().call_soon_threadsafe(_finish, done)
            except RuntimeError:
                continue  # the loop has ended, and nobody waits

    def _print(self, printed: Printed) -> None:
        # A program that began with its stdout closed has None there, and may have the other.
        stream = (not printed.is_stderr and sys.stdout) or sys.stderr
        if stream is None:
            return
        pid = f" pid={printed.pid}" if printed.pid else ""
        where = f", ip={printed.ip}" if printed.ip != self._ip else ""
        prefix = f"({printed.name or 'worker'}{pid}{where}) "
        try:
            stream.write("".join(f"{prefix}{line}\n" for line in printed.lines))
            stream.flush()
        except Exception:
            pass  # the program closed its own output, or put something there that raises


def _finish(done: "asyncio.Future[None]") -> None:
    if not done.done():
        done.set_result(None)


def warn(message: str) -> None:
    """Say something that a user should know, once it is known."""
    logger.warning("%s", message)
