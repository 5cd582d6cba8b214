"""An owner's tasks until their results, and the workers they are sent to."""

from typing import Protocol

from raylite._kernel.link import Link
from raylite._machines.retries import Retries
from raylite._machines.submitter import LaneKey, Pending
from raylite._protocol import worker
from raylite._services.worker.objects import Entry
from raylite._services.worker.running import RunningTask
from raylite._types.keys import LeaseID, TaskKey, WorkerKey
from raylite._wire import hot


class Beginner(Protocol):
    """Who is told that a task can begin: see `SubmitService`."""

    def arguments_ready(self, task: "OwnedTask") -> None: ...


class OwnedTask(Pending):
    """A task with what is sent to its worker, and the objects that its result completes."""

    __slots__ = (
        "arguments", "contained", "depth", "entries", "failures", "inputs", "missing", "name", "owner",
        "parent",
        "retry_on",
    )  # fmt: skip

    def __init__(
        self,
        id: TaskKey,
        key: LaneKey,
        function: int,
        retries: int,
        arguments: bytes,
        entries: tuple[Entry, ...],
        name: str,
        retry_on: bytes,
        inputs: tuple[tuple[int | str, Entry], ...] = (),
        contained: tuple[Entry, ...] = (),
        parent: RunningTask | None = None,
    ) -> None:
        self.id = id
        self.key = key
        self.function = function
        self.retries = retries
        self.failures: Retries | None = None
        self.parent: RunningTask | None = parent
        self.attempt = 0
        self.worker: WorkerKey | None = None
        self.arguments: bytes = arguments
        self.entries: tuple[Entry, ...] = entries
        self.name: str = name
        self.retry_on: bytes = retry_on
        self.inputs: tuple[tuple[int | str, Entry], ...] = inputs
        self.contained: tuple[Entry, ...] = contained
        self.missing: int = 0
        self.owner: Beginner | None = None

    def ready(self, entry: Entry) -> None:
        """An argument has its value; the last one lets the task go, and a failed one ends it."""
        self.missing -= 1
        if (not self.missing or entry.is_error) and self.owner is not None:
            self.owner.arguments_ready(self)


class Peer:
    """A leased worker as the link that leads to it, and the definitions it was sent."""

    __slots__ = ("address", "defined", "execute", "key", "lease", "link", "node", "pid")

    def __init__(self, grant: hot.LeaseGrant, link: Link, defined: set[int]) -> None:
        self.key: WorkerKey = WorkerKey(grant.worker)
        self.lease: LeaseID = LeaseID(grant.lease)
        self.address: str = grant.address
        self.node: bytes = grant.node
        self.pid: int = grant.pid
        self.link: Link = link
        self.execute: worker.Execute = worker.Execute(link)
        self.defined: set[int] = defined
