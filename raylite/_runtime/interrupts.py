"""Ctrl-C while a cluster starts or ends: held until nothing is left half-done, and hurried to that.

A KeyboardInterrupt can come between any two steps of a program, so between starting a process and
noting that it is there. Where that matters, the interrupt is noted instead, what is going on is cut
short, and the exception is raised at the end. Pressing Ctrl-C again changes nothing.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Held:
    """Says whether Ctrl-C was pressed, and does something about it at once."""

    def __init__(self) -> None:
        self.is_interrupted = False
        self._hurry: Callable[[], object] | None = None

    def hurry(self, action: Callable[[], object]) -> None:
        """Call this, on the main thread, when Ctrl-C is pressed; now if it was pressed already."""
        self._hurry = action
        if self.is_interrupted:
            action()

    def raise_if_interrupted(self) -> None:
        """Raise the interrupt here, where it can be dealt with."""
        if self.is_interrupted:
            raise KeyboardInterrupt from None

    def interrupt(self, *_: object) -> None:
        """Note a Ctrl-C: this is a signal handler."""
        self.is_interrupted = True
        if self._hurry is not None:
            self._hurry()


@contextmanager
def held() -> Iterator[Held]:
    """Hold KeyboardInterrupt back inside the block, and raise it at the block's end.

    Only where it would come at all: in the main thread, when the program has no handler of its own
    for SIGINT. Of nested blocks, the outermost holds.
    """
    holding = Held()
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if is_main else None
    if handler is not signal.default_int_handler:
        outer = getattr(handler, "__self__", None)
        yield outer if isinstance(outer, Held) else holding
        return

    signal.signal(signal.SIGINT, holding.interrupt)
    try:
        yield holding
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        holding.raise_if_interrupted()
