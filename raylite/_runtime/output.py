"""What workers print, shown on the driver's terminal with a prefix."""

import logging
import sys
import threading
from queue import SimpleQueue

from raylite._kernel.threads import leave_signals_to_main
from raylite._wire import hot

logger = logging.getLogger("raylite")


class Printer:
    """Prints on a thread of its own, for a terminal can block and the loop must not."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[hot.OutputLines | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def show(self, lines: hot.OutputLines) -> None:
        """Queue lines to be printed."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="raylite-output", daemon=True)
            self._thread.start()
        self._queue.put(lines)

    def close(self) -> None:
        """Print what is queued, then end."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(2.0)

    def _run(self) -> None:
        leave_signals_to_main()
        while (lines := self._queue.get()) is not None:
            stream = sys.stderr if lines.is_stderr else sys.stdout
            prefix = f"({lines.name or 'worker'} pid={lines.pid}) "
            try:
                stream.write("".join(f"{prefix}{line}\n" for line in lines.lines))
                stream.flush()
            except (OSError, ValueError):
                continue  # the program closed its own output


def warn(message: str) -> None:
    """Say something that a user should know, once it is known."""
    logger.warning("%s", message)
