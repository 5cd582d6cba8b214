"""The pace of a map: how many elements go into a task, and how many tasks are under way at once.

A task costs its owner and its worker some ten microseconds whatever it does, so quick elements
travel together: as many as make a task of `TASK_SECONDS`. The first tasks have one element each;
what they took says how many the next have. Small steps up, for what was quick once may be slow the
next time; down at once.
"""

import math

TASK_SECONDS = 0.02
MOST_ELEMENTS = 1024
ARGUMENT_BYTES = 128 << 10  # what a task's arguments and results may weigh: a window of tasks is
RESULT_BYTES = 256 << 10  # in the owner's memory
GROWTH = 8


class Pace:
    """Decides for one map.

    Args:
        slots: How many tasks can run at once. Twice as many may be under way, so that none of
            those who run them has to wait for the next.
        size: Elements of a task; None finds it out.
    """

    def __init__(self, slots: float, size: int | None) -> None:
        self.limit = min(max(2 * math.ceil(slots), 4), 1024)
        self.under_way = 0
        self.size = size or 1
        self._is_fixed = size is not None
        self._seconds = 0.0  # an element takes
        self._argument_bytes = 0.0  # an element's arguments weigh

    @property
    def has_room(self) -> bool:
        """Whether another task may begin."""
        return self.under_way < self.limit

    def sent(self, argument_bytes: float) -> None:
        """A task was sent, whose elements weigh so much each."""
        self.under_way += 1
        self._argument_bytes = max(argument_bytes, self._argument_bytes / 2)
        if not self._is_fixed:
            self.size = min(self.size, _at_most(ARGUMENT_BYTES, self._argument_bytes))

    def ended(self, elements: int, seconds: float | None, result_bytes: float) -> None:
        """A task has ended.

        Args:
            elements: How many it had.
            seconds: How long it ran; None if nobody can tell.
            result_bytes: What an element's result weighs.
        """
        self.under_way -= 1
        if self._is_fixed or seconds is None:
            return
        each = max(seconds / elements, 1e-7)
        self._seconds = each if not self._seconds else (self._seconds + each) / 2
        wanted = min(
            TASK_SECONDS / max(self._seconds, each),
            elements * GROWTH,
            MOST_ELEMENTS,
            _at_most(ARGUMENT_BYTES, self._argument_bytes),
            _at_most(RESULT_BYTES, result_bytes),
        )
        # A power of two: each size is a way of its own to call the function.
        self.size = 1 << (max(int(wanted), 1).bit_length() - 1)

    def check(self) -> None:
        """Raise AssertionError unless this is a state that there can be."""
        assert 0 <= self.under_way <= self.limit
        assert self.size >= 1
        assert self._is_fixed or self.size <= MOST_ELEMENTS


def _at_most(budget: int, each: float) -> int:
    return max(int(budget / max(each, 1.0)), 1)
