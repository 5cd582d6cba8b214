"""The running task: what a worker knows of what it runs, and its children of their parent."""

from msgspec import Struct


class RunningTask(Struct, frozen=True):
    """What `get_runtime_context` says about the task being run."""

    id: bytes
    job: bytes
    name: str
    function: str
    depth: int
    attempt: int
    #: When it is to have ended, on its worker's loop's clock.
    deadline: float | None = None
