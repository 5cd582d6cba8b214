"""The Submit service: the tasks this process owns, from `.remote()` to their results."""

import asyncio
from collections.abc import Callable
from functools import partial
from random import Random

from msgspec.structs import replace

from raylite._kernel.alarm import Alarm
from raylite._kernel.link import Link
from raylite._kernel.network import Network
from raylite._kernel.seams import now
from raylite._kernel.service import Service, handles
from raylite._machines.policies import first_raylet
from raylite._machines.retries import Failure, GiveUp, Retries, RunAgain
from raylite._machines.submitter import (
    AskBack,
    Effect,
    Interrupt,
    Pending,
    Push,
    RequestLease,
    ReturnLease,
    Submitter,
    Withdrawn,
)
from raylite._protocol import raylet, worker
from raylite._services.worker.cancel import (
    FORCE_SECONDS,
    Cancellation,
    Canceller,
    Told,
    cancelled_error,
)
from raylite._services.worker.dependencies import Dependents
from raylite._services.worker.lessors import Lessors
from raylite._services.worker.locations import LocationService
from raylite._services.worker.objects import Entry
from raylite._services.worker.owned import OwnedTask, Peer
from raylite._services.worker.owner import OwnerService, error_value
from raylite._services.worker.running import RunningTask
from raylite._services.worker.schedule import Schedule
from raylite._services.worker.streams import NONE, Streams
from raylite._services.worker.unsent import Unsent
from raylite._types.address import host_of
from raylite._types.cancellation import CancelOutcome
from raylite._types.keys import LeaseID, TaskKey, WorkerKey
from raylite._types.resources import ONE_CPU
from raylite._types.strategies import NodeKey
from raylite._wire import hot, placement
from raylite._wire.hot import Value
from raylite.exceptions import (
    CongestedError,
    LinkClosedError,
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    PeerLostError,
    ProtocolError,
    RayError,
    RaySystemError,
    TaskTimeoutError,
    TaskUnschedulableError,
    WorkerCrashedError,
    reason_of,
)


class SubmitService(Service, serves=(worker.Submit, raylet.Holder)):
    """Carries out what `Submitter` decides."""

    def __init__(
        self,
        network: Network,
        raylet_link: Link,
        owner: OwnerService,
        locations: LocationService,
        submitter: Submitter,
        id: bytes,
    ) -> None:
        self._network = network
        self._owner = owner
        self._locations = locations
        self._submitter = submitter
        self._raylet = raylet_link
        self.lessors: Lessors = Lessors(
            network, raylet_link, submitter, id, self.spawn, self._lessor_ended
        )
        self._random: Random = network.seams.random("retries")
        self._tasks: dict[TaskKey, OwnedTask] = {}
        self._peers: dict[WorkerKey, Peer] = {}
        self._by_link: dict[Link, Peer] = {}
        self._defined_on: dict[Link, set[int]] = {}
        self._held_on: dict[Link, hot.Holding] = {}  # what was told, if it is not one CPU
        self._cancelled: dict[TaskKey, Cancellation] = {}
        self._finishing: dict[TaskKey, None] = {}  # their results came, with references
        self._reported: dict[str, None] = {}
        self.canceller: Canceller = Canceller(network, self, owner.spawn)
        owner.canceller = self.canceller
        self.definitions: dict[int, hot.Definition] = {}
        self.streams: Streams = Streams(owner, self._allow)
        self.on_warning: Callable[[str], None] = _ignore
        self.is_running: Callable[[RunningTask], bool] = _never  # whether this worker runs it
        self._unsent = Unsent(self._push_late, self.spawn)
        self._held = self._unsent.held
        self._dependents = Dependents(self._end, lambda task: self.definitions[task.function].title)
        self._alarm = Alarm(self._expire)
        self.delays: Schedule = Schedule(self._submit_again)  # of what is to be tried again
        self.limits: Schedule = Schedule(self._timed_out)  # of what is to end by then
        self._limited = self.limits.times
        raylet_link.on_end(self._raylet_ended)

    # ---- what this process asks ----------------------------------------------------------

    def submit(self, tasks: list[OwnedTask]) -> None:
        """Take tasks over: each goes to a worker once its arguments are there."""
        ready: list[Pending] = []
        for task in tasks:
            self._tasks[task.id] = task
            for entry in task.entries:
                self._owner.refs.add(entry)
            if task.inputs or task.contained:
                self._hold_arguments(task)
                if self._dependents.doom(task):
                    continue
                if not task.missing and not self._is_sendable(task):
                    continue
            if not task.missing:
                ready.append(task)
        if self._limited and not self._raylet.is_ended:  # nothing begins when its time is over
            ready = [task for task in ready if self.limits.left(task.id) != 0]
        if self._raylet.is_ended:
            for task in tasks:
                self._fail(task, self._raylet_died())
        elif ready:
            self._perform(self._submitter.submit(ready, now()))

    def limit(self, id: TaskKey, seconds: float, until: float | None) -> None:
        """Let a task that is submitted next end within so many seconds, and by a time of this loop's."""
        at = now() + seconds
        self.limits.set(id, at if until is None else min(at, until))

    def arguments_ready(self, task: OwnedTask) -> None:
        """All arguments of a task are there, or one of them has failed."""
        if task.id not in self._tasks:
            return
        if self._raylet.is_ended:
            self._fail(task, self._raylet_died())
        elif self._dependents.doom(task) or task.missing:
            return
        elif self._is_sendable(task):
            self._draw(task)
            self._perform(self._submitter.submit([task], now()))

    def cancel(
        self,
        id: TaskKey,
        *,
        force: bool,
        recursive: bool,
        error: RayError | None = None,
        told: Told | None = None,
    ) -> None:
        """Let a task end early; it is not tried again.

        Args:
            id: The task's id; nothing happens if it has ended, or is not this process's.
            force: End its worker, if it runs already.
            recursive: Cancel what it has started, too.
            error: What reading its results is to raise, instead of TaskCancelledError, and instead of
                a value that it ends with in spite of the interrupt.
            told: Called with the outcome when it has ended, perhaps at once.
        """
        task = self._tasks.get(id)
        if task is None:
            if told is not None:
                told(CancelOutcome.FINISHED_FIRST)
            return
        known = self._cancelled.get(id)
        if known is None:
            known = self._cancelled[id] = Cancellation(force, recursive, error)
        else:
            known.force, known.recursive = known.force or force, known.recursive or recursive
            known.error = known.error or error
        if told is not None:
            known.hear(told)
        task.retries = 0
        if id in self.streams.table:
            text = f"{self.name(task)} was to yield more."
            self.streams.cancelled(id, error or cancelled_error(id, text))
        if id not in self._finishing:
            self._perform(self._submitter.cancel(task))

    def cancel_children(self, parent: bytes, attempt: int, *, force: bool) -> None:
        """Cancel what an attempt of a task has started, and what that has."""
        for task in list(self._tasks.values()):
            by = task.parent
            if by is not None and by.id == parent and by.attempt == attempt:
                self.cancel(task.id, force=force, recursive=True)

    def find(self, id: TaskKey) -> OwnedTask | None:
        """Return one of this process's tasks that have not ended."""
        return self._tasks.get(id)

    def lent(self, key: WorkerKey) -> Peer | None:
        """Return a worker that this process leases."""
        return self._peers.get(key)

    def is_cancelled(self, id: TaskKey) -> bool:
        return id in self._cancelled

    @property
    def unfinished(self) -> int:
        """How many tasks have no result yet."""
        return len(self._tasks)

    def give_leases_back(self) -> None:
        """Keep no idle lease: this process is about to end."""
        self._perform(self._submitter.wanted(True))

    def check(self) -> None:
        self._submitter.check()
        self._owner.refs.check()
        self._owner.errors.unread.check()
        self.streams.check()

    # ---- what workers say ----------------------------------------------------------------

    @handles(worker.Submit.results)
    def results(self, results: list[hot.Result]) -> None:
        peer = self._by_link.get(self.caller)
        moment = now()
        ended: list[tuple[OwnedTask, hot.Result]] = []
        for result in results:
            task = self._tasks.get(TaskKey(result.task))
            if task is None or task.attempt != result.attempt:
                self._discard(
                    result
                )  # of an attempt that was given up: its worker was declared dead
                continue
            if task.worker is not None:
                self._submitter.finished(task.worker, task, result.seconds, moment)
            ended.append((task, result))
        if peer is not None:
            self._perform(self._submitter.advance([peer.key], moment))
        # Last: a thread that is woken while this one still works only fights it for the GIL.
        cancelled = self._cancelled
        for task, result in ended:
            if cancelled and task.id in cancelled:
                self._finish(task, self._interrupted(task, result))
            elif result.retry and self._retry(task, Failure.RAISED) is None:
                self._discard(result)
                for entry, value in zip(task.entries, result.values, strict=False):
                    self._owner.free_value(entry.id, value)
            else:
                if result.retry and self.streams.table:
                    result = self.streams.settle(task.id, result)
                self._finish(task, result)

    @handles(worker.Submit.items)
    def items(self, packets: list[hot.StreamItems]) -> None:
        for packet in packets:
            task = self._tasks.get(TaskKey(packet.task))
            if task is None or task.attempt != packet.attempt or task.id not in self.streams.table:
                self.streams.discard(packet, self.caller)
            else:
                self.streams.arrived(packet, self.caller)

    @handles(worker.Submit.given_back)
    def given_back(self, returned: list[hot.GivenBack]) -> None:
        peer = self._by_link.get(self.caller)
        if peer is None:
            return
        tasks: list[Pending] = []
        for each in returned:
            task = self._tasks.get(TaskKey(each.task))
            if task is not None and task.attempt == each.attempt and task.worker == peer.key:
                tasks.append(task)
        self._perform(self._submitter.given_back(peer.key, tasks, now()))

    @handles(worker.Submit.leaving)
    def leaving(self, nothing: bytes) -> None:
        if (peer := self._by_link.get(self.caller)) is not None:
            self._perform(self._submitter.leaving(peer.key, now()))

    # ---- what the raylet says ------------------------------------------------------------

    @handles(raylet.Holder.granted)
    def granted(self, grants: list[hot.LeaseGrant]) -> None:
        for grant in grants:
            key, lease = WorkerKey(grant.worker), LeaseID(grant.lease)
            if self.lessors.has_left(lease, self.caller):
                continue
            wish = self.lessors.granted(lease)
            link = self._network.connect(grant.address)
            if link not in self._defined_on:
                self._defined_on[link] = set()
                link.on_end(self._link_ended)
            peer = Peer(grant, link)
            peer.defined = self._defined_on[link]
            self._peers[key] = self._by_link[link] = peer
            if wish is not None and (
                grant.devices or wish.demand != ONE_CPU or link in self._held_on
            ):
                self._tell_holding(peer, hot.Holding(wish.demand.to_units(), grant.devices))
            self._perform(self._submitter.granted(lease, key, now()))

    @handles(raylet.Holder.spilled)
    def spilled(self, spills: list[hot.Spilled]) -> None:
        for spill in spills:
            self.lessors.spilled(spill, self.caller)

    @handles(raylet.Holder.problem)
    def problem(self, problems: list[hot.LeaseProblem]) -> None:
        for problem in problems:
            if problem.is_final:
                if self.lessors.home(LeaseID(problem.lease)) is not self.caller:
                    continue  # another raylet is asked by now
                self.lessors.refused(LeaseID(problem.lease))
                failed, effects = self._submitter.refused(LeaseID(problem.lease), now())
                self._perform(effects)
                for task in failed:
                    assert isinstance(task, OwnedTask)
                    self._fail(task, TaskUnschedulableError(problem.message))
            elif problem.message not in self._reported:
                self._reported[problem.message] = None
                self.on_warning(problem.message)

    @handles(raylet.Holder.lost)
    def lost(self, losses: list[hot.WorkerLost]) -> None:
        for loss in losses:
            self._worker_lost(loss)

    @handles(raylet.Holder.wanted)
    def wanted(self, nothing: bytes) -> None:
        self.lessors.wanted(self.caller)
        self._perform(self._submitter.wanted(True))

    @handles(raylet.Holder.unwanted)
    def unwanted(self, nothing: bytes) -> None:
        if self.lessors.unwanted(self.caller):
            self._perform(self._submitter.wanted(False))

    # ---- inside --------------------------------------------------------------------------

    def _hold_arguments(self, task: OwnedTask) -> None:
        task.owner = self
        for entry in task.contained:
            entry.submitted += 1
        for _, entry in task.inputs:
            entry.submitted += 1
            if entry.value is None:
                task.missing += 1
                if entry.waiters is None:
                    entry.waiters = []
                entry.waiters.append(task)
                self._owner.need(entry)
        if task.inputs and not task.missing:
            self._draw(task)

    def _is_sendable(self, task: OwnedTask) -> bool:
        """Fail a task that would make too large a message, by the small values of very many references."""
        if len(task.inputs) * hot.INLINE_LIMIT <= hot.TASK_LIMIT:
            return True
        size = sum(len(entry.value.data) for _, entry in task.inputs if entry.value is not None)
        if size > hot.TASK_LIMIT:
            text = (
                f"Task {task.name or self.definitions[task.function].title} has {len(task.inputs)} references among its arguments, whose "
                f"small values make {size >> 20} MiB together; at most {hot.TASK_LIMIT >> 20} MiB can be "
                "sent with a task. Give it the references in a list, and call get in it."
            )
            self._fail(task, RaySystemError(text))
        return size <= hot.TASK_LIMIT

    def _draw(self, task: OwnedTask) -> None:
        """Let a task run where most of its arguments' bytes are, if much of them is elsewhere."""
        here, key = self._locations.node, task.key
        near = NodeKey(here)
        for _, entry in task.inputs:
            value = entry.value
            if value is not None and value.node and value.node != here:
                held = self._locations.held(entry for _, entry in task.inputs)
                assert key.where is None or isinstance(key.where, hot.Where)
                near = first_raylet(placement.decode(key.demand, key.where), near, held)
                break
        wanted = b"" if near == here else near
        if key.near != wanted:
            task.key = replace(key, near=wanted)

    def _perform(self, effects: list[Effect]) -> None:
        if self._raylet.is_ended:
            return  # and every task has failed
        while effects:
            for effect in effects:
                match effect:
                    case Push(key, tasks):
                        self._push(self._peers[key], tasks)
                    case RequestLease(lease, key):
                        try:
                            self.lessors.wish(lease, key)
                        except ProtocolError as problem:
                            self._unsent.refused.append((lease, problem))
                    case ReturnLease(lease):
                        self._return(lease)
                    case AskBack(key):
                        peer = self._peers[key]
                        if not peer.link.is_congested:  # or it has not even read those tasks
                            peer.execute.give_back(b"")
                    case Interrupt(key, task):
                        self._interrupt(self._peers[key], task)
                    case Withdrawn(task):
                        assert isinstance(task, OwnedTask)
                        error = self._cancelled[task.id].withdrawn(task, self.name(task))
                        self._fail(task, error)
            unsent = self._unsent
            effects = self._fail_unsent() if unsent.failed or unsent.refused else []
        self._alarm.set(self._submitter.next_expiry(now()))

    def _lessor_ended(self, leases: list[LeaseID], heard: hot.Fenced) -> None:
        """A raylet is gone, or what it had lent: what is known of the workers, it has told."""
        lost = {loss.lease: loss for loss in heard.losses}
        for peer in [peer for peer in self._peers.values() if peer.lease in leases]:
            if (loss := lost.get(peer.lease)) is not None:
                self._worker_lost(loss)
            elif heard.death:
                self._lost(peer.key, None, peer.address, heard.death, Failure.NODE_DIED)
            else:
                cause = "it had ended before its node, which cannot be reached, was asked"
                self._lost(peer.key, None, peer.address, cause, Failure.WORKER_DIED)

    def _worker_lost(self, loss: hot.WorkerLost) -> None:
        is_memory = loss.reason == hot.LossReason.OUT_OF_MEMORY
        self._lost(
            WorkerKey(loss.worker), TaskKey(loss.last_task), loss.address, loss.cause,
            Failure.OUT_OF_MEMORY if is_memory else Failure.WORKER_DIED, loss.oom_retries,
        )  # fmt: skip

    def _lost(
        self,
        worker: WorkerKey,
        last_task: TaskKey | None,
        address: str,
        cause: str,
        failure: Failure,
        oom_retries: int = -1,
    ) -> None:
        """A leased worker died: what it had begun is retried, or has failed."""
        peer = self._peers.pop(worker, None)
        home = self.lessors.lost(peer.lease) if peer is not None else None
        begun, effects = self._submitter.lost(worker, last_task, now())
        self._perform(effects)
        self._network.confirm_dead(address, cause)
        if peer is not None and failure is Failure.NODE_DIED:
            reason = cause.removeprefix(hot.NODE_DIED)
            cause = f"{peer.node.hex()} ({host_of(peer.address)}) died: {reason}"
        for task in begun:
            assert isinstance(task, OwnedTask)
            if task.id not in self._tasks:
                continue  # its result came before the news of the death
            if home is not None:
                self._free_returns(task, home)
            if (cancellation := self._cancelled.get(task.id)) is not None:
                self._fail(task, cancellation.lost(task, self.name(task)))
                continue
            spent = self._retry(task, failure, oom_retries)
            if spent is not None:
                self._fail(task, self._loss(task, failure, spent, cause))

    def _push(self, peer: Peer, tasks: list[Pending]) -> None:
        run, defined, streams = peer.execute.run, peer.defined, self.streams.table
        limited = bool(self._limited)
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

    def _push_late(self, peer: Peer, tasks: list[Pending]) -> None:
        """Send what had to wait for room, unless the lease is over."""
        if self._peers.get(peer.key) is peer:
            self._push(peer, tasks)
            self._perform(self._fail_unsent())

    def _fail_unsent(self) -> list[Effect]:
        """Fail what no message can say, and nothing else."""
        unsent, moment = self._unsent, now()
        tasks, unsent.failed = unsent.failed, []
        leases, unsent.refused = unsent.refused, []
        effects: list[Effect] = []
        for peer, task, error in tasks:
            self._cannot_be_sent(task, error)
            effects += self._submitter.unsent(peer.key, task, moment)
        for lease, error in leases:
            self.lessors.refused(lease)
            failed, more = self._submitter.refused(lease, moment)
            effects += more
            for task in failed:
                self._cannot_be_sent(task, error)
        return effects

    def _cannot_be_sent(self, task: Pending, error: RayError) -> None:
        assert isinstance(task, OwnedTask)
        text = f"Task {self.name(task)} ({task.id.hex()}) cannot be sent to a worker: {error}"
        self._fail(task, RaySystemError(text))

    def _interrupt(self, peer: Peer, task: Pending) -> None:
        """Have a worker end what it was sent."""
        if peer.link.is_ended:
            return  # the raylet will say that this worker is gone
        asked = self._cancelled.get(task.id)
        if asked is None:
            return  # it has ended, while this waited for room on the link
        if self._held and self._unsent.take(peer, task):
            self._perform(self._submitter.given_back(peer.key, [task], now()))
            return
        if peer.link.is_congested:
            self._unsent.later(peer, partial(self._interrupt, peer, task))
            return
        peer.execute.cancel(hot.Cancel(task.id, task.attempt, asked.force, asked.recursive))
        if asked.force:
            self.spawn(self._insist(peer, task), "insist on the end of a worker")
        elif asked.error is not None:
            self.canceller.bound(task, peer.key)

    async def _insist(self, peer: Peer, task: Pending) -> None:
        """A worker may be unable to end: code that holds the GIL keeps it from hearing anything."""
        await asyncio.sleep(FORCE_SECONDS)
        if task.id in self._cancelled and task.worker == peer.key:
            self._give_up(peer)

    def _interrupted(self, task: OwnedTask, result: hot.Result) -> hot.Result:
        """Return what a cancelled task ends with."""
        cancellation = self._cancelled[task.id]
        error = cancellation.came(task, result.interrupted)
        if error is None:
            return result
        self._discard(result)
        for entry, value in zip(task.entries, result.values, strict=False):
            self._owner.free_value(entry.id, value)
        return replace(result, values=(NONE if cancellation.is_known else error_value(error),))

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
            self.streams.terms(task.id), self.limits.left(task.id),
        )  # fmt: skip

    def _tell_holding(self, peer: Peer, holding: hot.Holding) -> None:
        """Let a worker know what its lease holds, if it takes it for something else."""
        if peer.link.is_congested:
            self._unsent.later(peer, partial(self._tell_holding, peer, holding))
        elif self._held_on.get(peer.link) != holding and not peer.link.is_ended:
            self._held_on[peer.link] = holding
            peer.execute.hold(holding)

    def _allow(self, id: TaskKey, until: int, is_abandoned: bool) -> None:
        """Tell the worker of a stream how far it may go; the next one, if there is none now."""
        task = self._tasks.get(id)
        peer = self._peers.get(task.worker) if task is not None and task.worker else None
        if task is None or peer is None or peer.link.is_ended:
            return
        if peer.link.is_congested:
            self._unsent.later(peer, partial(self._allow, id, until, is_abandoned))
        else:
            peer.execute.allow(hot.StreamTerms(id, task.attempt, until, is_abandoned))

    def _return(self, lease: LeaseID) -> None:
        self.lessors.give_back(lease)
        for key, peer in self._peers.items():
            if peer.lease == lease:
                del self._peers[key]
                if self._by_link.get(peer.link) is peer:
                    del self._by_link[peer.link]
                return

    def _finish(self, task: OwnedTask, result: hot.Result) -> None:
        """Give the objects their values, and let the arguments go."""
        contained = any(value.contained for value in result.values)
        if contained or result.kept:
            link = self.caller
            self._finishing[task.id] = None
            self.spawn(self._finish_with_references(task, result, link), f"finish {task.name}")
            return
        self._complete(task, result.values)
        if task.inputs or task.contained:
            self._drop_arguments(task)

    async def _finish_with_references(
        self, task: OwnedTask, result: hot.Result, link: Link
    ) -> None:
        """The same, when references travelled: their new holders are made known first."""
        values = _each(result.values, len(task.entries))
        for entry, value in zip(task.entries, values, strict=True):
            if entry.is_held and value.contained:
                await self._owner.hold_contained(entry, value.contained)
        if any(value.contained for value in result.values) and not link.is_ended:
            worker.Owner(link).received(result.task)
        kept = set(result.kept)
        own: list[bytes] = []
        abroad: dict[str, list[Entry]] = {}
        given = dict.fromkeys((*task.contained, *(entry for _, entry in task.inputs)))
        for entry in given:
            if entry.id in kept and entry.owner:
                abroad.setdefault(entry.owner, []).append(entry)
            elif entry.id in kept:
                own.append(entry.id)
        if own:
            self._owner.borrow(hot.Borrow(link.peer, tuple(own)))
        for owner, entries in abroad.items():
            await self._owner.lend(owner, link.peer, [entry.id for entry in entries])
        del self._finishing[task.id]
        self._complete(task, result.values)
        self._drop_arguments(task)

    def _complete(self, task: OwnedTask, values: tuple[Value, ...]) -> None:
        if self._tasks.pop(task.id, None) is None:
            return
        if self._limited:
            self.limits.drop(task.id)
        if not self._tasks:
            self._owner.on_released()
        complete, entries = self._owner.complete, task.entries
        if len(values) == 1 and len(entries) == 1:
            entry = entries[0]
            if entry.is_held:
                complete(entry, values[0])
            else:
                self._owner.unwanted(entry, values[0])
            if self._cancelled:
                self._settle(task)
            return
        for entry, value in zip(entries, _each(values, len(entries)), strict=True):
            if entry.is_held:
                complete(entry, value)
            else:
                self._owner.unwanted(entry, value)
        self._settle(task)

    def _fail(self, task: OwnedTask, error: RayError) -> None:
        if task.id in self._tasks:
            self._end(task, error_value(error))

    def _end(self, task: OwnedTask, error: Value) -> None:
        """Let a task be over that no worker runs, or that none has ended: it has failed."""
        if self._tasks.pop(task.id, None) is None:
            return
        self.limits.drop(task.id)
        self.delays.drop(task.id)
        if not self._tasks:
            self._owner.on_released()
        cancellation = self._cancelled.get(task.id)
        is_known = cancellation is not None and cancellation.is_known
        for entry in task.entries:
            if entry.is_held:
                self._owner.complete(entry, error)
            elif not is_known:
                self._owner.unwanted(entry, error)
        if self._ends_with_parent(task):
            self._owner.errors.read(task.id)
        if task.missing:  # an argument may know it for long
            task.entries, task.arguments = (), b""
        self._drop_arguments(task)
        self._settle(task)

    def _settle(self, task: OwnedTask) -> None:
        """A task that may have been cancelled has ended."""
        cancellation = self._cancelled.pop(task.id, None)
        if cancellation is not None:
            cancellation.settle()

    def _retry(self, task: OwnedTask, failure: Failure, oom_retries: int = -1) -> str | None:
        """Begin another attempt, or return why there is to be none."""
        if task.failures is None:
            task.failures = Retries()
        jitter = self._random.random()
        match task.failures.failed(
            task.attempt, failure, task.retries, jitter, oom_allowed=oom_retries
        ):
            case RunAgain(attempt, delay):
                task.attempt = attempt
                if delay:
                    self.delays.set(task.id, now() + delay)
                else:
                    self._submit_again(task.id)
            case GiveUp(story):
                return story
        return None

    def _submit_again(self, id: TaskKey) -> None:
        task = self._tasks[id]
        self._draw(task)  # its arguments may be elsewhere by now
        self._perform(self._submitter.submit([task], now()))

    def _drop_arguments(self, task: OwnedTask) -> None:
        refs = self._owner.refs
        for _, entry in task.inputs:
            if entry.is_error:
                self._owner.errors.read(entry.id)  # what the task ended with tells of it
        for entry in (*task.contained, *(entry for _, entry in task.inputs)):
            self._owner.perform(refs.dropped_submitted(entry))
        task.inputs = task.contained = ()
        self._owner.on_viewless()

    def _discard(self, result: hot.Result) -> None:
        if any(value.contained for value in result.values) and not self.caller.is_ended:
            worker.Owner(self.caller).received(result.task)

    def _free_returns(self, task: OwnedTask, home: Link) -> None:
        """A worker may have stored results that it could not report any more: its raylet has them."""
        attempt = task.attempt.to_bytes(4, "little") if task.attempt else b""
        for entry in task.entries:
            raylet.Objects(home).free(hot.Freed(entry.id + attempt))
        for id in self.streams.unheard(task.id):
            raylet.Objects(home).free(hot.Freed(id + attempt))

    def _link_ended(self, link: Link) -> None:
        self._defined_on.pop(link, None)
        self._held_on.pop(link, None)
        peer = self._by_link.pop(link, None)
        error = link.error
        if peer is None or isinstance(error, LinkClosedError):
            return
        if not (isinstance(error, PeerLostError) and error.confirmed):
            self._give_up(peer)

    def _give_up(self, peer: Peer) -> None:
        """Have a worker end that cannot be reached: then its raylet says so, as of any other."""
        if self._peers.get(peer.key) is peer:
            self.lessors.give_up(peer.lease)

    def _raylet_ended(self, link: Link) -> None:
        """Without its node a process is in no cluster: what other nodes lent it is theirs again."""
        for task in list(self._tasks.values()):
            self._fail(task, self._raylet_died())
        self.lessors.close()

    def _timed_out(self, id: TaskKey) -> None:
        """A task's time is over: whoever waits for it hears so now, and it is interrupted."""
        task = self._tasks.get(id)
        if task is None or id in self._finishing:
            return
        error = TaskTimeoutError(
            f"Task {self.name(task)} ({id.hex()}) had not ended when its time was over: it "
            f"{self._doing(task)}."
        )
        is_known = self._ends_with_parent(task) or id in self._cancelled
        known = self._cancelled.setdefault(id, Cancellation(False, True, error))
        known.is_known = is_known or any(entry.is_held for entry in task.entries)
        for entry in task.entries:
            if entry.is_held:
                self._owner.fail(entry, error)
        if is_known:
            self._owner.errors.read(id)
        self.cancel(id, force=False, recursive=True, error=error)

    def _ends_with_parent(self, task: OwnedTask) -> bool:
        """Say whether the time of the task that started it, and runs still, is over: that one tells."""
        parent = task.parent
        if parent is None or parent.deadline is None or now() < parent.deadline:
            return False
        return self.is_running(parent)

    def _doing(self, task: OwnedTask) -> str:
        if task.missing:
            return "was waiting for its arguments"
        if task.id in self.delays.times:
            return "was waiting to be tried again"
        if task.worker is None:
            return "was waiting for a worker"
        return "was running, or about to"

    def _expire(self) -> None:
        if not self._raylet.is_ended:
            self._perform(self._submitter.expire(now()))

    def _raylet_died(self) -> LocalRayletDiedError:
        return LocalRayletDiedError(reason_of(self._raylet.error))

    def name(self, task: OwnedTask) -> str:
        return task.name or self.definitions[task.function].title

    def _loss(self, task: OwnedTask, failure: Failure, spent: str, cause: str) -> RayError:
        which = f"Task {self.name(task)} ({task.id.hex()}), {spent}"
        match failure:
            case Failure.OUT_OF_MEMORY:
                return OutOfMemoryError(
                    f"{which}; its worker: {cause}. Give tasks the option memory or more num_cpus, so "
                    "that fewer run at a time, or let each need less."
                )
            case Failure.NODE_DIED:
                return NodeDiedError(f"{which}; its node {cause}.")
            case _:
                return WorkerCrashedError(f"{which}; its worker: {cause}.")

    async def stopped(self) -> None:
        while self._cancelled:
            self._cancelled.popitem()[1].settle()
        self._alarm.cancel()
        self.delays.stop()
        self.limits.stop()
        self.lessors.stop()


def _ignore(message: object) -> None: ...


def _never(task: RunningTask) -> bool:
    return False


def _each(values: tuple[Value, ...], count: int) -> tuple[Value, ...]:
    """One error stands for all returns."""
    return values if len(values) == count else values[:1] * count
