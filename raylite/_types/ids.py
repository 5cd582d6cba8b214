"""Ids: the public names of jobs, actors, tasks, objects, nodes and workers.

An id is a fixed number of bytes. Larger ids end or begin with smaller ones, so that the job of an
actor, the actor of a task and the task of an object are slices::

    JobID              4 bytes  a number, little endian
    ActorID           16 bytes  12 unique + JobID
    TaskID            24 bytes  8 unique + ActorID
    ObjectID          28 bytes  TaskID + index, little endian, from 1
    PlacementGroupID  18 bytes  14 unique + JobID
    NodeID, WorkerID and the rest of UniqueID's kind: 28 bytes, all unique

The nil id of each kind is all 0xff; a task that belongs to no actor holds an actor id with a nil
unique part. Hot paths carry the bytes alone: these classes are what users see.
"""

import secrets
from builtins import int as integer  # `JobID.int` hides the builtin inside its class
from collections.abc import Callable
from typing import ClassVar, Self

RandomBytes = Callable[[int], bytes]


class BaseID:
    """The root of all ids: immutable bytes, of one length and compared within one class."""

    __slots__ = ("_binary",)

    _SIZE: ClassVar[integer]

    def __init__(self, id: bytes) -> None:
        """Wrap the bytes of an id.

        Raises:
            TypeError: `id` is not bytes.
            ValueError: `id` has the wrong length.
        """
        if not isinstance(id, bytes):
            raise TypeError(f"Unsupported type: {type(id)}, expected bytes")
        if len(id) != self._SIZE:
            raise ValueError(f"ID string needs to have length {self._SIZE}, got {len(id)}")
        self._binary = id

    @classmethod
    def size(cls) -> integer:
        """The number of bytes in an id of this class."""
        return cls._SIZE

    @classmethod
    def nil(cls) -> Self:
        """The id that names nothing."""
        return cls(b"\xff" * cls._SIZE)

    @classmethod
    def from_binary(cls, binary: bytes) -> Self:
        """The id with these bytes."""
        return cls(binary)

    @classmethod
    def from_hex(cls, hex_id: str | bytes) -> Self:
        """The id whose `hex()` is this; anything else is a ValueError."""
        # Ray: text that is not an id gives the nil id, which then fails far from the mistake.
        text = hex_id.decode("ascii") if isinstance(hex_id, bytes) else hex_id
        return cls(bytes.fromhex(text))

    @classmethod
    def from_random(cls, random_bytes: RandomBytes = secrets.token_bytes) -> Self:
        """A new id, all of it drawn from `random_bytes`."""
        return cls(random_bytes(cls._SIZE))

    def binary(self) -> bytes:
        """The id's bytes."""
        return self._binary

    def hex(self) -> str:
        """The id's bytes as lower-case hexadecimal digits."""
        return self._binary.hex()

    def is_nil(self) -> bool:
        """Whether this is the id that names nothing."""
        return self._binary == b"\xff" * self._SIZE

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._binary == self._binary

    def __hash__(self) -> integer:
        return hash(self._binary)

    # Ray: its ids have no order. A sorted listing is worth having.
    def __lt__(self, other: Self) -> bool:
        return self._binary < other._binary if type(other) is type(self) else NotImplemented

    def __le__(self, other: Self) -> bool:
        return self._binary <= other._binary if type(other) is type(self) else NotImplemented

    def __gt__(self, other: Self) -> bool:
        return self._binary > other._binary if type(other) is type(self) else NotImplemented

    def __ge__(self, other: Self) -> bool:
        return self._binary >= other._binary if type(other) is type(self) else NotImplemented

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._binary.hex()})"

    def __reduce__(self) -> tuple[type[Self], tuple[bytes]]:
        return type(self), (self._binary,)


class JobID(BaseID):
    """A driver's connection to the cluster, numbered from 1 as drivers come."""

    __slots__ = ()
    _SIZE = 4

    @classmethod
    def from_int(cls, value: integer) -> Self:
        """The id of the job with this number."""
        if not 0 <= value < 2**32:
            raise ValueError(f"a JobID integer is from 0 to 2**32 - 1, not {value}")
        return cls(value.to_bytes(4, "little"))

    def int(self) -> integer:
        """The job's number."""
        return integer.from_bytes(self._binary, "little")


class ActorID(BaseID):
    """An actor, through all its restarts."""

    __slots__ = ()
    _SIZE = 16

    @classmethod
    def of(cls, job_id: JobID, random_bytes: RandomBytes = secrets.token_bytes) -> Self:
        """A new actor id in a job."""
        return cls(random_bytes(12) + job_id.binary())

    @property
    def job_id(self) -> JobID:
        """The job that created the actor."""
        return JobID(self._binary[12:])


class TaskID(BaseID):
    """One call of a remote function or an actor's method, through all its retries."""

    __slots__ = ()
    _SIZE = 24

    @classmethod
    def for_driver_task(cls, job_id: JobID) -> Self:
        """The task that a driver's own code counts as."""
        return cls(b"\xff" * 20 + job_id.binary())

    @classmethod
    def for_normal_task(
        cls, job_id: JobID, random_bytes: RandomBytes = secrets.token_bytes
    ) -> Self:
        """A new id for a task outside actors."""
        return cls(random_bytes(8) + b"\xff" * 12 + job_id.binary())

    @classmethod
    def for_actor_creation_task(cls, actor_id: ActorID) -> Self:
        """The task that runs an actor's constructor."""
        return cls(b"\xff" * 8 + actor_id.binary())

    @classmethod
    def for_actor_task(
        cls, actor_id: ActorID, random_bytes: RandomBytes = secrets.token_bytes
    ) -> Self:
        """A new id for a call of one of an actor's methods."""
        return cls(random_bytes(8) + actor_id.binary())

    def actor_id(self) -> ActorID:
        """The actor that runs the task; with a nil unique part if there is none."""
        return ActorID(self._binary[8:])

    def job_id(self) -> JobID:
        """The job that the task belongs to."""
        return JobID(self._binary[20:])


class ObjectID(BaseID):
    """A value that a task returned or put: the task, and a number from 1."""

    __slots__ = ()
    _SIZE = 28

    @classmethod
    def of(cls, task_id: TaskID, index: integer) -> Self:
        """A task's object with this index: its results first, then what it puts."""
        return cls(task_id.binary() + index.to_bytes(4, "little"))

    def task_id(self) -> TaskID:
        """The task that made the object."""
        return TaskID(self._binary[:24])

    def job_id(self) -> JobID:
        """The job that the object belongs to."""
        return JobID(self._binary[20:24])

    def index(self) -> integer:
        """The object's number within its task."""
        return integer.from_bytes(self._binary[24:], "little")


class PlacementGroupID(BaseID):
    """A group of reserved bundles."""

    __slots__ = ()
    _SIZE = 18

    @classmethod
    def of(cls, job_id: JobID, random_bytes: RandomBytes = secrets.token_bytes) -> Self:
        """A new placement group id in a job."""
        return cls(random_bytes(14) + job_id.binary())


class UniqueID(BaseID):
    """The root of ids that hold no other."""

    __slots__ = ()
    _SIZE = 28


class NodeID(UniqueID):
    """One run of a node: a machine that restarts its node joins under a new id."""

    __slots__ = ()


class WorkerID(UniqueID):
    """One worker process; a driver counts as one."""

    __slots__ = ()


class FunctionID(UniqueID):
    """A remote function's definition."""

    __slots__ = ()


class ActorClassID(UniqueID):
    """An actor class's definition."""

    __slots__ = ()


class ClusterID(UniqueID):
    """One cluster, through restarts of its head that keep its storage."""

    __slots__ = ()
