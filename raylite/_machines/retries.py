"""Retries: how long to wait before another attempt."""

FIRST, LONGEST = 0.1, 10.0  # seconds
_DOUBLINGS = 7  # as many lead from FIRST past LONGEST; counting on would overflow in the end


def retry_delay(attempt: int, jitter: float) -> float:
    """Return the seconds before an attempt: none before the first retry, then growing, jittered.

    Ray retries at once, always; a task that crashes its worker then makes a hot loop of forks.

    Args:
        attempt: The number of the attempt; the first is 0.
        jitter: A random number from 0 to 1, so that tasks which failed together do not retry so.
    """
    if attempt <= 1:
        return 0.0
    delay = min(FIRST * 2.0 ** min(attempt - 2, _DOUBLINGS), LONGEST)
    return delay * (0.5 + 0.5 * jitter)
