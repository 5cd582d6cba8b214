"""Hot-path structures: what travels for every task and object, encoded in about a microsecond.

They are arrays on the wire, so fields are only ever added at the end, with a default.
"""

import enum

import msgspec

from raylite._types.accelerators import Shares
from raylite._types.cancellation import CancelOutcome

INLINE_LIMIT = 100 * 1024  # bytes of a pickled value up to which it travels instead of being stored
INLINE_TOTAL = 10 * 1024 * 1024  # bytes of all arguments of a call, or all results, that do
TASK_LIMIT = 128 * 1024 * 1024  # bytes of the small values that a task's references stand for


def inline_limit(values: int) -> int:
    """Return up to how many bytes each of so many values travels with the task or its result."""
    return INLINE_LIMIT if values * INLINE_LIMIT <= INLINE_TOTAL else INLINE_TOTAL // values


class TaskState(enum.StrEnum):
    """Where a task is, by Ray's names; the last two are raylite's own."""

    PENDING_ARGS_AVAIL = "PENDING_ARGS_AVAIL"
    PENDING_NODE_ASSIGNMENT = "PENDING_NODE_ASSIGNMENT"
    SUBMITTED_TO_WORKER = "SUBMITTED_TO_WORKER"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    PENDING_RETRY = "PENDING_RETRY"
    UNKNOWN = "UNKNOWN"


class Explanation(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Why an object is not there yet: a sentence, `str()` of this, and the facts behind it.

    Attributes:
        state: Where its task is.
        text: The sentence.
        name: What the task is called.
        task: Its id, in hexadecimal.
        attempt: How often it has failed before.
        waits_for: Ids of the objects among its arguments that are not there.
        ahead: How many tasks are to be run before it.
        seconds: How long its lease has been asked for, or how long until it is tried again.
        node: The id of the node where it runs, or its value is.
        pid: The process that runs it.
    """

    state: TaskState
    text: str
    name: str = ""
    task: str = ""
    attempt: int = 0
    waits_for: tuple[bytes, ...] = ()
    ahead: int = 0
    seconds: float = 0.0
    node: bytes = b""
    pid: int = 0

    def __str__(self) -> str:
        return self.text


class Standing(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Why a lease is not granted yet, and for how many seconds it has been asked for."""

    text: str
    seconds: float = 0.0


class Form(enum.IntEnum):
    """How a value is given."""

    INLINE = 0  # `data` is the pickled value
    ARENA = 1  # the pickled value lies in the arena of `node`, at `offset`
    ERROR = 2  # `data` is a pickled RayError that reading the object raises


class Contained(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A reference inside a value, and the address of the object's owner."""

    id: bytes
    owner: str


class Value(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An object's value, or where it is."""

    form: int
    data: bytes = b""
    offset: int = 0
    size: int = 0
    contained: tuple[Contained, ...] = ()
    key: bytes = b""  # its name in the arena, if that is not the object's id
    node: bytes = b""  # where it was stored; other nodes have copies, which only the owner knows


class JobConfig(msgspec.Struct, array_like=True, frozen=True):
    """What a driver wants of the workers that run its job's tasks, wherever they are.

    Tasks with a runtime environment of their own, and those below them, have one of their own.
    """

    namespace: str = ""
    env_vars: dict[str, str] = {}  # as written, with references to other variables
    sys_path: tuple[bytes, ...] = ()  # where the driver finds modules; a worker looks there as well
    environment: bytes = b""  # what tells the env_vars from others of the job; empty for its own


class Definition(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A function, sent once on a link before the first task that runs it.

    `number` is the sender's name for it; `name` has the module, `title` (what tracebacks, process
    titles and output show) has not; `owner` is the sender, who will own what its tasks return.
    `overlaps` says that it is an `async def`: the tasks that a worker has of it run at the same time.
    """

    number: int
    function: bytes
    name: str
    job: bytes
    owner: bytes
    title: str
    config: JobConfig = JobConfig()
    overlaps: bool = False
    max_calls: int = 0  # after how many a worker ends; 0 is never


class Input(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The value of an argument that was a reference: `place` is its position, or its keyword."""

    place: int | str
    id: bytes
    owner: str
    value: Value


class Streaming(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What an attempt at a generator task is to do with its items: see `_machines/streams.py`.

    Pass over the first `skip`, and pause when `until` are yielded. Each yield is `per_yield` items,
    in a tuple or list, unless that is 1.
    """

    skip: int
    until: int
    is_abandoned: bool
    per_yield: int = 1


class StreamItems(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Items of a stream, in order. `first` is the number of the first; none say that no more come."""

    task: bytes
    attempt: int
    first: int
    values: tuple[Value, ...]


class StreamTerms(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The producer may go on until it has yielded so many items; an abandoned one sends none."""

    task: bytes
    attempt: int
    until: int
    is_abandoned: bool


class Task(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One attempt at running a function.

    `arguments` is the pickled ``(args, kwargs)``, None where an input stands; `contained` are the
    references inside them. `depth` counts the tasks above this one. `left` are the seconds until
    the task is to have ended, as they were when it was sent: clocks of two nodes differ.
    """

    id: bytes
    attempt: int
    definition: int
    arguments: bytes
    returns: int = 1
    depth: int = 0
    name: str = ""
    inputs: tuple[Input, ...] = ()
    contained: tuple[Contained, ...] = ()
    retry_on: bytes = b""  # pickled exception classes; b"*" is any; empty is none
    stream: Streaming | None = None  # a generator task, whose items are sent as they come
    left: float | None = None


class Interrupted(enum.IntEnum):
    """How a cancelled attempt was interrupted."""

    NOT = 0
    BEFORE_BODY = 1  # while its function or arguments were loaded
    IN_BODY = 2


class Result(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What came of one attempt: a value for each return, or one error standing for all of them.

    `seconds` is how long the function ran. `kept` are the references given with the task that the
    worker still holds: it has become their borrower. `retry` says that the error is one which the
    task's options retry. `interrupted` says whether it was cancelled, and ended with an error.
    """

    task: bytes
    attempt: int
    seconds: float
    values: tuple[Value, ...]
    kept: tuple[bytes, ...] = ()
    retry: bool = False
    interrupted: int = Interrupted.NOT


class GivenBack(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An attempt that the worker had not started and will not start."""

    task: bytes
    attempt: int


class Cancel(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """End this attempt, which may be queued, running or over.

    `force` ends the worker with it if it runs; `recursive` cancels the tasks that it has started.
    """

    task: bytes
    attempt: int
    force: bool
    recursive: bool


class CancelTask(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A borrower's wish that the owner of this object cancels the task that makes it."""

    id: bytes
    force: bool
    recursive: bool


class Cancelled(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What came of it."""

    outcome: CancelOutcome


class Where(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a task asks of its node besides resources: see `_wire/placement.py`."""

    strategy: int = 0
    node: bytes = b""
    flags: int = 0
    hard: tuple[tuple[str, int, tuple[str, ...]], ...] = ()
    soft: tuple[tuple[str, int, tuple[str, ...]], ...] = ()
    selectors: tuple[tuple[tuple[str, int, tuple[str, ...]], ...], ...] = ()


class LeaseRequest(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A wish for a worker. `demand` is in ten-thousandths, by resource.

    `holder` is the asking process's id: a raylet of another node does not know it by its link.
    `visited` are the nodes whose raylets have sent it on. `near` is the node whose raylet is to decide
    instead of the one asked, if that knows it: the owner does not know where nodes are.
    """

    lease: bytes
    demand: dict[str, int]
    key: bytes
    depth: int
    holder: bytes = b""
    where: Where | None = None
    visited: tuple[bytes, ...] = ()
    near: bytes = b""


class Spilled(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Ask another raylet for this lease; this one keeps nothing of the request."""

    lease: bytes
    node: bytes
    address: str
    visited: tuple[bytes, ...]


class LeaseGrant(msgspec.Struct, array_like=True, frozen=True, gc=False):
    lease: bytes
    worker: bytes
    address: str
    devices: Shares = ()
    pid: int = 0  # the worker's, and its node
    node: bytes = b""


class Holding(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What the lease holds on which an owner's next tasks run: ten-thousandths, and which devices.

    A worker that an owner has told nothing of it holds one CPU.
    """

    demand: dict[str, int]
    devices: Shares = ()


class LeaseProblem(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Why a lease cannot be had: not now (infeasible), or not at all (`is_final`)."""

    lease: bytes
    message: str
    is_final: bool


class LossReason(enum.IntEnum):
    """Why a worker is gone, where it matters to the tasks that it ran."""

    DIED = 0
    OUT_OF_MEMORY = 1  # its raylet ended it, for its node was running out of memory


class WorkerLost(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A leased worker died. `last_task` is the task that it started last.

    `oom_retries` is how often a task may be run again that was ended for want of memory; -1 is no limit.
    """

    lease: bytes
    worker: bytes
    address: str
    cause: str
    last_task: bytes
    reason: int = LossReason.DIED
    oom_retries: int = -1


class Fence(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Have a node end the leases that a process of another node wished for there, or was given.

    The two cannot reach each other, so others carry the word.
    """

    node: bytes
    holder: bytes
    leases: tuple[bytes, ...]
    cluster: bytes = b""  # whose GCS hands it on, and which life of that
    epoch: int = 0


class Fenced(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """None of the leases is any more, and no worker of theirs lives.

    `losses` are the workers that were ended for it. `death` says why the whole node is dead, if it is.
    """

    losses: tuple[WorkerLost, ...] = ()
    death: str = ""


class AskFate(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Whether the process at this address is dead, for somebody whose session with it has ended."""

    address: str
    cluster: bytes = b""  # whose GCS hands it on, and which life of that
    epoch: int = 0


class Fate(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What is known of it, by its own raylet or, if its whole node is dead, by a GCS."""

    is_dead: bool
    cause: str = ""
    cluster: bytes = b""  # whose GCS says so, and which life of that
    epoch: int = 0


class Death(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A process of this node ended. `id` is the worker's or driver's."""

    id: bytes
    address: str
    cause: str


NODE_DIED = "its node died: "
"""How the cause of a process's death begins that ended with its node."""


class NodeDeath(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A node ended, with every process whose address bears its mark."""

    node: bytes
    mark: str
    cause: str


class Profile(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What seldom changes of a node. Amounts are in ten-thousandths."""

    address: str
    total: dict[str, int]
    labels: dict[str, str]
    draining: bool


Shapes = tuple[tuple[dict[str, int], int], ...]
"""Demands, in ten-thousandths by resource, and how many want each."""


class Load(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What changes with every lease of a node."""

    available: dict[str, int]
    backlog: int
    pending: Shapes = ()
    infeasible: Shapes = ()


class ViewDelta(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What changed of a node's view after version `base`: see `_machines/views.py`."""

    node: bytes
    incarnation: int
    base: int
    version: int
    profile: Profile | None
    load: Load | None


class ViewDeltas(msgspec.Struct, array_like=True, frozen=True, gc=False):
    deltas: tuple[ViewDelta, ...]


class ViewWanted(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The answer to a delta: whether the whole view is to be sent, for news of it was missed."""

    is_full: bool


class AskDemand(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A wish to hear what waits in the whole cluster."""


class Demand(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What waits for its turn, and what for a node that could serve it."""

    pending: Shapes
    infeasible: Shapes


class Backlog(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The tasks of an owner that it has not asked leases for yet; this replaces what it said before."""

    tasks: Shapes


class WatchViews(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A wish for all views, then for what changes of them."""


class Leave(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A worker is to end: now, or as soon as no other process needs what it owns."""

    is_urgent: bool


class Allocate(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A wish for arena memory for an object of `owner`."""

    id: bytes
    size: int
    owner: bytes


class Allocation(msgspec.Struct, array_like=True, frozen=True, gc=False):
    offset: int


class Freed(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Nobody refers to this object any more."""

    id: bytes


class Wanted(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An object that is to be brought: its name in arenas, its owner's address, who may have it."""

    key: bytes
    size: int
    owner: str
    nodes: tuple[bytes, ...]


class Pull(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A wish for objects of other nodes, all at once. `number` is the process's name for it."""

    number: int
    priority: int
    objects: tuple[Wanted, ...]


class PullFailure(enum.IntEnum):
    """Why an object will not come."""

    NONE = 0
    LOST = 1
    OWNER_DIED = 2
    NO_ROOM = 3


class Pulled(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where in the node's arena the objects lie, each pinned until it is let go.

    Or why that of this `key` will not come, and so none of them.
    """

    offsets: tuple[int, ...]
    failure: int = PullFailure.NONE
    key: bytes = b""
    message: str = ""


class Unpin(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A process reads this copy no more; without a key, none of that pull, which may yet go on."""

    number: int
    key: bytes = b""


class ReadChunk(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A wish for some of an object's bytes."""

    key: bytes
    offset: int
    size: int


class RelayChunk(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A wish for some of an object's bytes that another node has, which the asking one cannot reach."""

    node: bytes
    chunk: ReadChunk


class Locate(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """`node` wants to hear who has the object, until it says `forget`; `without` say they have not."""

    key: bytes
    node: bytes
    without: tuple[bytes, ...] = ()


class Located(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Who has an object now."""

    key: bytes
    size: int
    nodes: tuple[bytes, ...]


class CopyNews(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """`node` has a copy, or has none; of two that overtook each other, the higher number is true."""

    key: bytes
    node: bytes
    size: int
    number: int
    is_there: bool


class OrderKind(enum.IntEnum):
    """What an owner may have a node do with its copy."""

    DROP = 0  # nobody refers to the object any more
    PIN = 1  # keep it: it is the primary from now on
    VERIFY = 2  # tell whether it is there


class Order(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What `owner` (an address) has a node do with its copy; its own raylet sends it on."""

    kind: int
    key: bytes
    node: bytes
    owner: str


class Fetch(msgspec.Struct, array_like=True, frozen=True, gc=False):
    id: bytes


class Borrow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """`borrower` (an address) holds these objects, handed to it by the sender's `hand_over`."""

    borrower: str
    ids: tuple[bytes, ...]
    number: int = 0  # the sender's, if it may have to say so again: once is meant


class Lent(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What of its own an owner takes its receiver to borrow, in a review of this number."""

    number: int
    ids: tuple[bytes, ...]


class Unheld(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What of that `borrower` (an address) does not hold."""

    borrower: str
    number: int
    ids: tuple[bytes, ...]


class OutputLines(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Lines that a worker printed; or only how many lines were dropped here, of several perhaps."""

    name: str
    pid: int
    is_stderr: bool
    lines: tuple[str, ...]
    dropped: int = 0


class Output(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a job's workers printed on a node, which has this IP address, in order."""

    ip: str
    printed: tuple[OutputLines, ...]


class Shown(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A driver has shown what it was given; whether it wants to be given more, ever."""

    wants_more: bool
