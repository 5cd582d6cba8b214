"""Peers: the workers that are lent to this process, and what each of them has been told."""

from collections.abc import Callable
from functools import partial

from raylite._kernel.link import Link
from raylite._kernel.network import Network
from raylite._machines.submitter import Pending
from raylite._services.worker.owned import OwnedTask, Peer
from raylite._services.worker.schedule import Schedule
from raylite._services.worker.streams import Streams
from raylite._services.worker.unsent import Unsent
from raylite._types.keys import LeaseID, WorkerKey
from raylite._types.resources import ONE_CPU, Resources
from raylite._wire import hot
from raylite.exceptions import CongestedError, LinkClosedError, PeerLostError, ProtocolError


class Peers:
    """Reaches the workers that this process leases; a worker that it leases again is known already.

    Args:
        network: This process's network.
        streams: Says how far the generator that a task is may go.
        limits: Says how long a task may take.
        unsent: Takes what cannot be sent now, or ever.
        on_unreachable: Called with a worker whose link has ended, when nobody has said that it died.
    """

    def __init__(
        self,
        network: Network,
        streams: Streams,
        limits: Schedule,
        unsent: Unsent,
        on_unreachable: Callable[[Peer], None],
    ) -> None:
        self._network = network
        self._streams = streams
        self._limits = limits
        self._unsent = unsent
        self._held = unsent.held
        self._on_unreachable = on_unreachable
        self.definitions: dict[int, hot.Definition] = {}
        self.table: dict[WorkerKey, Peer] = {}
        self._by_link: dict[Link, Peer] = {}
        self._defined_on: dict[Link, set[int]] = {}
        self._held_on: dict[Link, hot.Holding] = {}  # what was told, if it is not one CPU

    def at(self, link: Link) -> Peer | None:
        """Return the worker at the other end of a link, if it is lent to this process now."""
        return self._by_link.get(link)

    def granted(self, grant: hot.LeaseGrant, demand: Resources | None) -> Peer:
        """Know a worker that is lent to this process for this demand (None: no longer wanted)."""
        link = self._network.connect(grant.address)
        if link not in self._defined_on:
            self._defined_on[link] = set()
            link.on_end(self._link_ended)
        peer = Peer(grant, link, self._defined_on[link])
        self.table[peer.key] = self._by_link[link] = peer
        if demand is not None and (grant.devices or demand != ONE_CPU or link in self._held_on):
            self._tell_holding(peer, hot.Holding(demand.to_units(), grant.devices))
        return peer

    def returned(self, lease: LeaseID) -> None:
        """A lease was given back, and its worker with it."""
        for key, peer in self.table.items():
            if peer.lease == lease:
                del self.table[key]
                if self._by_link.get(peer.link) is peer:
                    del self._by_link[peer.link]
                return

    def push(self, peer: Peer, tasks: list[Pending]) -> None:
        """Send tasks to a worker, and before a function's first task the function."""
        run, defined, streams = peer.execute.run, peer.defined, self._streams.table
        limited = bool(self._limits.times)
        if peer.link.is_ended:
            return  # the raylet will say that this worker is gone, and the tasks be queued again
        if self._held and peer in self._held:
            self._unsent.hold(peer, tasks)
            return
        for task in tasks:
            assert isinstance(task, OwnedTask)
            try:
                if task.function not in defined:
                    peer.execute.define(self.definitions[task.function])
                    defined.add(task.function)
                if task.inputs or task.contained or limited or task.id in streams:
                    run(self._in_full(task))
                else:
                    run(
                        hot.Task(
                            task.id, task.attempt, task.function, task.arguments,
                            len(task.entries), task.key.depth, task.name, (), (), task.retry_on,
                        )
                    )  # fmt: skip
            except CongestedError:
                self._unsent.hold(peer, tasks[tasks.index(task) :])
                return
            except ProtocolError as error:
                self._unsent.failed.append((peer, task, error))

    def name(self, task: OwnedTask) -> str:
        """Return what a task is called in messages."""
        return task.name or self.definitions[task.function].title

    def _in_full(self, task: OwnedTask) -> hot.Task:
        here = self._network.address
        inputs = tuple(
            hot.Input(place, entry.id, entry.owner or here, entry.value)
            for place, entry in task.inputs
            if entry.value is not None
        )
        contained = tuple(hot.Contained(each.id, each.owner or here) for each in task.contained)
        return hot.Task(
            task.id, task.attempt, task.function, task.arguments, len(task.entries),
            task.key.depth, task.name, inputs, contained, task.retry_on,
            self._streams.terms(task.id), self._limits.left(task.id),
        )  # fmt: skip

    def _tell_holding(self, peer: Peer, holding: hot.Holding) -> None:
        """Let a worker know what its lease holds, if it takes it for something else."""
        if peer.link.is_congested:
            self._unsent.later(peer, partial(self._tell_holding, peer, holding))
        elif self._held_on.get(peer.link) != holding and not peer.link.is_ended:
            self._held_on[peer.link] = holding
            peer.execute.hold(holding)

    def _link_ended(self, link: Link) -> None:
        self._defined_on.pop(link, None)
        self._held_on.pop(link, None)
        peer = self._by_link.pop(link, None)
        error = link.error
        if peer is None or isinstance(error, LinkClosedError):
            return
        if not (isinstance(error, PeerLostError) and error.confirmed):
            self._on_unreachable(peer)
