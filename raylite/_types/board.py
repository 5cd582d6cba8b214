"""The board: where each worker notes the task it starts, for when it is gone and cannot say.

It takes the last bytes of the arena, a slot a worker. A worker writes the id of every task before
running it; the raylet reads the slot after the worker's death.
"""

SLOT = 32  # bytes; a task id has 24
SLOTS = 4096  # workers of a node at one time
SIZE = SLOT * SLOTS


def slot_offset(capacity: int, token: int) -> int:
    """Return where a worker's slot is.

    Tokens count up, so living workers share none, unless `SLOTS` others were started since.
    """
    return capacity - SIZE + token % SLOTS * SLOT
