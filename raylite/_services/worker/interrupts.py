"""Interrupts: which attempts that a worker runs are to be interrupted."""

from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FrameType, TracebackType

from raylite._wire import hot


class Interrupts:
    """The attempts that were cancelled and are in the task thread's hands, or were.

    The loop asks; the task thread looks. Neither waits for the other.
    """

    def __init__(self) -> None:
        #: By task. Whoever looks for every task looks first whether there is any.
        self.asked: dict[bytes, hot.Cancel] = {}
        self._older: list[hot.Cancel] = []

    def ask(self, cancel: hot.Cancel) -> None:
        """Have an attempt interrupted that the thread has, or has had."""
        self.asked[cancel.task] = cancel

    def has(self, task: bytes, attempt: int) -> bool:
        """Say, on any thread, whether this attempt is to be interrupted."""
        cancel = self.asked.get(task)
        return cancel is not None and cancel.attempt == attempt

    def ended(
        self, tasks: Iterable[bytes], runs: Callable[[hot.Cancel], bool]
    ) -> Iterator[hot.Cancel]:
        """Forget those that have ended, and yield those of them that are among these tasks.

        What was asked for while the thread had it is among those that end next, unless it still
        runs beside others; else it was not here any more.
        """
        for task in tasks:
            if (cancel := self.asked.pop(task, None)) is not None:
                yield cancel
        for cancel in self._older:
            if not runs(cancel):
                self.asked.pop(cancel.task, None)
        self._older = list(self.asked.values())


def is_below(frame: FrameType | None, code: CodeType) -> bool:
    """Say whether a call of this code leads to the frame."""
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


def came_through(error: BaseException, caller: CodeType, called: Iterable[CodeType]) -> bool:
    """Say whether an error was raised in what this code called, if that is one of these."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None and trace.tb_frame.f_code is not caller:
        trace = trace.tb_next
    inner = trace.tb_next if trace is not None else None
    return inner is not None and inner.tb_frame.f_code in called
