"""What a node's processes say to its raylet, and what it says to them."""

from types import NoneType

from raylite._kernel.interface import Interface, batch, call, post
from raylite._wire import hot
from raylite._wire.messages import raylet as msg


class Pool(Interface):
    """Workers and drivers make themselves known."""

    register_worker = call(msg.RegisterWorker, msg.WorkerRegistered)
    register_driver = call(msg.RegisterDriver, msg.DriverRegistered)


class Leases(Interface):
    """Whoever submits tasks asks for workers."""

    request = batch(hot.LeaseRequest, bulk=False)
    release = batch(bytes, bulk=False)  # a lease: given back, or no longer wished for
    unreachable = post(bytes)  # a lease: its worker answers no more, though nobody said it died
    backlog = post(hot.Backlog)  # from an owner, to its own raylet: once a second, if it changed
    explain = call(bytes, hot.Standing)  # a lease: why it is not granted yet
    blocked = post(bytes)  # from a worker: its task waits in `get`, lend its CPU to others
    unblocked = post(bytes)
    spent = post(bytes)  # from a worker: it runs nothing more, and is to end
    resources = call(msg.GetResources, msg.ResourceView)


class Fences(Interface):
    """A holder that cannot reach the raylet of its leases has the GCS tell it to end them."""

    ask = call(hot.Fence, hot.Fenced)  # from a process, to its own raylet
    revoke = call(hot.Fence, hot.Fenced)  # from the GCS; replies when the workers have ended


class Fates(Interface):
    """Whether a process is dead that cannot be reached: the raylet of its node knows, whoever asks."""

    ask = call(hot.AskFate, hot.Fate)  # from a process, to its own raylet
    tell = call(hot.AskFate, hot.Fate)  # from the GCS, of a process of this node


class Logs(Interface):
    """What workers print; a raylet shows it to drivers by `worker.Output`."""

    flush = call(bytes, NoneType)  # replies when what this job's workers printed so far is shown


class Holder(Interface):
    """What the raylet tells those who asked for leases."""

    granted: batch[hot.LeaseGrant] = batch(hot.LeaseGrant, bulk=False)
    problem: batch[hot.LeaseProblem] = batch(hot.LeaseProblem, bulk=False)
    spilled: batch[hot.Spilled] = batch(hot.Spilled, bulk=False)  # ask another raylet
    lost: batch[hot.WorkerLost] = batch(hot.WorkerLost, bulk=False)
    wanted: post[bytes] = post(bytes)  # others wait: give idle leases back at once
    unwanted: post[bytes] = post(bytes)


class Objects(Interface):
    """The node's object store."""

    allocate = call(hot.Allocate, hot.Allocation)  # waits for room; then ObjectStoreFullError
    free = batch(hot.Freed, bulk=False)
    viewless = post(bytes)  # from a reader: it views nothing of this dead owner any more


class Transfers(Interface):
    """What a node brings from others: its processes ask, and owners tell where things are."""

    pull = call(hot.Pull, hot.Pulled)  # replies when all are here, and pins them; may be cancelled
    unpin = batch(hot.Unpin, bulk=False)
    located = batch(hot.Located, bulk=False)  # from an owner: who has an object now
    lost = batch(bytes, bulk=False)  # from an owner: nobody has this object, nor will


class Copies(Interface):
    """What a node has of objects: other raylets read it, owners decide on it."""

    read = call(hot.ReadChunk, memoryview, bulk=True)  # ObjectLostError: not here, or not all of it
    order = batch(hot.Order, bulk=False)


class Relays(Interface):
    """Raylets that cannot reach one another, to one that can reach both."""

    read = call(hot.RelayChunk, memoryview, bulk=True)  # as `Copies.read` of that node


class Process(Interface):
    """What the raylet tells every process of its node."""

    died: post[hot.Death] = post(
        hot.Death
    )  # another one ended; answer with `viewless` when nothing of it is viewed
    node_died: post[hot.NodeDeath] = post(hot.NodeDeath)  # another node, with all its processes
    leave: post[hot.Leave] = post(hot.Leave)  # to workers: exit, when nobody needs you
