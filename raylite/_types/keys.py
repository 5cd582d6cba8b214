"""Keys: the raw forms in which machines and messages name leases, holders and workers.

They are plain ``bytes`` and ``int`` at run time, so that they cost nothing on the hot path, and
distinct types to mypy, so that one cannot be passed for another.
"""

from typing import NewType

#: The right to run tasks on one worker; chosen by its holder.
LeaseID = NewType("LeaseID", bytes)

#: Whoever asked for a lease and submits tasks on it: a driver or a worker.
HolderKey = NewType("HolderKey", bytes)

#: A registered worker process.
WorkerKey = NewType("WorkerKey", bytes)

#: A worker process that was asked for and has not registered yet. Never reused.
StartToken = NewType("StartToken", int)

#: An object: 24 bytes of the task that made it and 4 of index.
ObjectKey = NewType("ObjectKey", bytes)

#: A task, all its attempts.
TaskKey = NewType("TaskKey", bytes)
