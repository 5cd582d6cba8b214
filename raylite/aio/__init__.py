"""raylite in coroutines: what would block a thread is awaited, on asyncio's loops and on uvloop.

``.remote()`` and ``.options()`` do not block and are the same everywhere; ``await ref`` gives a
reference's value. The rest is here. Everything works on several loops at once, in several threads.
"""

from raylite._types.cancellation import CancelOutcome as CancelOutcome
from raylite.aio.cluster import init as init, shutdown as shutdown
from raylite.aio.group import TaskGroup as TaskGroup
from raylite.aio.objects import (
    as_completed as as_completed,
    cancel as cancel,
    gather as gather,
    get as get,
    put as put,
    wait as wait,
)
