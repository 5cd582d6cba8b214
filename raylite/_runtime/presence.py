"""Whether this thread or process is attached to a cluster: known without loading what that takes."""

import threading
from typing import Protocol


class Attached(Protocol):
    """A core worker, as far as the outside is concerned; see `Place`."""

    node_id: bytes
    session_dir: str
    gcs_address: str
    cluster: str
    ip: str


class OfThread(threading.local):
    """The place of a worker that is a thread."""

    place: Attached | None = None


of_thread = OfThread()
of_process: list[Attached] = []


def current() -> Attached | None:
    """Return the place of this thread, else the one last entered by this process."""
    if of_thread.place is not None:
        return of_thread.place
    return of_process[-1] if of_process else None
