"""What came of cancelling a task."""

import enum


class CancelOutcome(enum.Enum):
    """What came of cancelling a task: known when the task has ended, one way or another."""

    BEFORE_START = "before start"
    """Its body has not run and will not; reading the result raises `TaskCancelledError`."""

    WHILE_RUNNING = "while running"
    """It was interrupted, or was waiting to be tried again; its result is an error."""

    FINISHED_FIRST = "finished first"
    """It had ended, perhaps cancelled by another, or ended in spite of the interrupt: its result, or
    its error, stays."""
