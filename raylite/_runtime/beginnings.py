"""One beginning of a session at a time: of threads that all want one, the first makes it."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from raylite._runtime import interrupts

_LOOK_UP = 0.25  # seconds after which a main thread that waits looks whether Ctrl-C was pressed

_lock = threading.RLock()


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other thread begins a session, and let none do so inside the block.

    Whoever waited looks again whether there is a session. Blocks of one thread nest, and they hold
    Ctrl-C back as `interrupts.held` does: it ends the wait, and never leaves the block taken.
    """
    with interrupts.held() as interrupt:
        is_main = threading.current_thread() is threading.main_thread()
        while not _lock.acquire(timeout=_LOOK_UP if is_main else -1):
            interrupt.raise_if_interrupted()
        try:
            yield
        finally:
            _lock.release()


def _after_fork() -> None:
    """The thread that was beginning a session is in the parent only."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)
