"""What came of cancelling a task."""

import enum


class CancelOutcome(enum.IntEnum):
    """What came of cancelling a task: known when the task has ended, one way or another."""

    BEFORE_START = 0
    """Its body has not run and will not; reading the result raises `TaskCancelledError`."""

    WHILE_RUNNING = 1
    """It was interrupted, or was waiting to be tried again; its result is an error."""

    FINISHED_FIRST = 2
    """It had ended, or ended in spite of the interrupt: its result stays."""
