"""What nodes and drivers say to the cluster's tables."""

from raylite._kernel.interface import Interface, call, feed, post
from raylite._wire.messages import gcs as msg


class Nodes(Interface):
    """The members of the cluster."""

    register = call(msg.RegisterNode, msg.Registered)  # once a node, before it takes leases
    heartbeat = post(msg.Heartbeat)  # every second; silence is how a node dies
    list = call(msg.ListNodes, msg.NodeList)
    watch = feed(msg.WatchNodes, msg.NodeEvent)  # the present members, then every change


class Jobs(Interface):
    """Drivers, each a job from its start to its end."""

    add = call(msg.AddJob, msg.JobAdded)
    finish = call(msg.FinishJob, msg.JobFinished)
    list = call(msg.ListJobs, msg.JobList)


class Kv(Interface):
    """Small values by namespace and key."""

    put = call(msg.KvPut, msg.KvStored)
    get = call(msg.KvGet, msg.KvValue)
    delete = call(msg.KvDelete, msg.KvDeleted)
    keys = call(msg.KvKeys, msg.KvKeyList)
