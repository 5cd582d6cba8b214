"""What nodes and drivers say to the cluster's tables.

A change that was answered is durable. A watcher is told the present rows, then every change; an
`UnavailableError` out of a feed means that it missed some and must watch anew.
"""

from raylite._kernel.interface import Interface, call, feed, post
from raylite._wire import hot
from raylite._wire.messages import gcs as msg


class Nodes(Interface):
    """The members of the cluster."""

    register = call(msg.RegisterNode, msg.Registered)  # once a node, before it takes leases
    heartbeat = post(msg.Heartbeat)  # every second; silence is how a node dies
    sync = call(msg.Heartbeat, msg.Synced)  # a heartbeat that asks whether it was one of a member
    fence = call(hot.Fence, hot.Fenced)  # from a raylet, for what cannot reach another's
    fate = call(hot.AskFate, hot.Fate)  # from a raylet, of a process of another node
    list = call(msg.ListNodes, msg.NodeList, scope="read")
    watch = feed(msg.WatchNodes, msg.NodeEvent)  # all nodes, dead ones too, then what changes
    compare = call(msg.KnownNodes, msg.NodesCompared)  # every 30 s: what a watcher has missed


class Views(Interface):
    """What every node has of resources, and what of it is free: as versioned deltas."""

    report = call(hot.ViewDelta, hot.ViewWanted)  # a raylet's own, a tenth of a second apart
    watch = feed(hot.WatchViews, hot.ViewDeltas)  # all that is known, then what changes
    demand = call(hot.AskDemand, hot.Demand, scope="read")  # what waits, in all nodes' views


class Jobs(Interface):
    """Drivers, each a job from its start to its end."""

    add = call(msg.AddJob, msg.JobAdded, scope="admin")  # and again after a restart of the GCS
    finish = call(msg.FinishJob, msg.JobFinished)
    list = call(msg.ListJobs, msg.JobList, scope="read")
    ended = call(msg.AskEnded, msg.JobList)  # of these jobs; also those that were forgotten
    watch = feed(msg.WatchJobs, msg.JobEvent)


class Workers(Interface):
    """The processes that run tasks, as their raylets tell of them."""

    report = post(msg.ReportWorkers)  # those that began or ended; all of them every 30 s
    list = call(msg.ListWorkers, msg.WorkerList, scope="read")
    ended = call(msg.AskEnded, msg.WorkerList)  # of these workers
    watch = feed(msg.WatchWorkers, msg.WorkerEvent)  # those that ended, and then whoever ends


class Certificates(Interface):
    """The cluster's CA; all that a node can reach which has the token and no certificate yet."""

    sign = call(msg.CertificateRequest, msg.Certificate)


class Tokens(Interface):
    """The tokens of nodes that were issued on the head; only who has the cluster's own can open them."""

    watch = feed(msg.WatchTokens, msg.TokenList)  # all of them, and again when they are others


class Kv(Interface):
    """Small values by namespace and key."""

    put = call(msg.KvPut, msg.KvStored)
    get = call(msg.KvGet, msg.KvValue)
    delete = call(msg.KvDelete, msg.KvDeleted)
    keys = call(msg.KvKeys, msg.KvKeyList)
    watch = feed(msg.WatchKv, msg.KvEvent)
