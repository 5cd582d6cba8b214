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
from raylite._services.worker.owned import OwnedTask, Peer
from raylite._services.worker.owner import OwnerService
from raylite._services.worker.peers import Peers
from raylite._services.worker.schedule import Schedule
from raylite._services.worker.streams import Streams
from raylite._services.worker.unfinished import Unfinished
from raylite._services.worker.unsent import Unsent
from raylite._types.address import host_of
from raylite._types.cancellation import CancelOutcome
from raylite._types.keys import LeaseID, TaskKey, WorkerKey
from raylite._types.strategies import NodeKey
from raylite._wire import hot, placement
from raylite.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    ProtocolError,
    RayError,
    RaySystemError,
    TaskTimeoutError,
    TaskUnschedulableError,
    WorkerCrashedError,
    raylet_died,
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
        self._reported: dict[str, None] = {}
        self.canceller: Canceller = Canceller(network, self, owner.spawn)
        owner.canceller = self.canceller
        self.streams: Streams = Streams(owner, self._allow)
        self.on_warning: Callable[[str], None] = _ignore
        self._alarm = Alarm(self._expire)
        self.delays: Schedule = Schedule(self._submit_again)  # of what is to be tried again
        self.limits: Schedule = Schedule(self._timed_out)  # of what is to end by then
        self._limited = self.limits.times
        self.tasks: Unfinished = Unfinished(
            owner, self.streams, self.limits, self.delays, self.spawn
        )
        self._tasks, self._cancelled = self.tasks.table, self.tasks.cancelled
        self._unsent = Unsent(self._push_late, self.spawn)
        self.peers: Peers = Peers(network, self.streams, self.limits, self._unsent, self._give_up)
        self._dependents = Dependents(
            self.tasks.end, lambda task: self.peers.definitions[task.function].title
        )
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
                self.tasks.fail(task, self._raylet_died())
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
            self.tasks.fail(task, self._raylet_died())
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
        if id not in self.tasks.finishing:
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
        return self.peers.table.get(key)

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
        link = self.caller
        peer = self.peers.at(link)
        moment = now()
        ended: list[tuple[OwnedTask, hot.Result]] = []
        for result in results:
            task = self._tasks.get(TaskKey(result.task))
            if task is None or task.attempt != result.attempt:
                self.tasks.discard(result, link)  # of an attempt whose worker was declared dead
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
                self.tasks.finish(task, self.tasks.interrupted(task, result, link), link)
            elif result.retry and self._retry(task, Failure.RAISED) is None:
                self.tasks.discard(result, link)
                for entry, value in zip(task.entries, result.values, strict=False):
                    self._owner.free_value(entry.id, value)
            else:
                if result.retry and self.streams.table:
                    result = self.streams.settle(task.id, result)
                self.tasks.finish(task, result, link)

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
        peer = self.peers.at(self.caller)
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
        if (peer := self.peers.at(self.caller)) is not None:
            self._perform(self._submitter.leaving(peer.key, now()))

    # ---- what the raylet says ------------------------------------------------------------

    @handles(raylet.Holder.granted)
    def granted(self, grants: list[hot.LeaseGrant]) -> None:
        for grant in grants:
            key, lease = WorkerKey(grant.worker), LeaseID(grant.lease)
            if self.lessors.has_left(lease, self.caller):
                continue
            wish = self.lessors.granted(lease)
            self.peers.granted(grant, None if wish is None else wish.demand)
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
                    self.tasks.fail(task, TaskUnschedulableError(problem.message))
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
                f"Task {self.name(task)} has {len(task.inputs)} references among its arguments, whose "
                f"small values make {size >> 20} MiB together; at most {hot.TASK_LIMIT >> 20} MiB can be "
                "sent with a task. Give it the references in a list, and call get in it."
            )
            self.tasks.fail(task, RaySystemError(text))
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
                        self.peers.push(self.peers.table[key], tasks)
                    case RequestLease(lease, key):
                        try:
                            self.lessors.wish(lease, key)
                        except ProtocolError as problem:
                            self._unsent.refused.append((lease, problem))
                    case ReturnLease(lease):
                        self.lessors.give_back(lease)
                        self.peers.returned(lease)
                    case AskBack(key):
                        peer = self.peers.table[key]
                        if not peer.link.is_congested:  # or it has not even read those tasks
                            peer.execute.give_back(b"")
                    case Interrupt(key, task):
                        self._interrupt(self.peers.table[key], task)
                    case Withdrawn(task):
                        assert isinstance(task, OwnedTask)
                        error = self._cancelled[task.id].withdrawn(task, self.name(task))
                        self.tasks.fail(task, error)
            unsent = self._unsent
            effects = self._fail_unsent() if unsent.failed or unsent.refused else []
        self._alarm.set(self._submitter.next_expiry(now()))

    def _lessor_ended(self, leases: list[LeaseID], heard: hot.Fenced) -> None:
        """A raylet is gone, or what it had lent: what is known of the workers, it has told."""
        lost = {loss.lease: loss for loss in heard.losses}
        for peer in [peer for peer in self.peers.table.values() if peer.lease in leases]:
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
        peer = self.peers.table.pop(worker, None)
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
                self.tasks.free_returns(task, home)
            if (cancellation := self._cancelled.get(task.id)) is not None:
                self.tasks.fail(task, cancellation.lost(task, self.name(task)))
                continue
            spent = self._retry(task, failure, oom_retries)
            if spent is not None:
                self.tasks.fail(task, self._loss(task, failure, spent, cause))

    def _push_late(self, peer: Peer, tasks: list[Pending]) -> None:
        """Send what had to wait for room, unless the lease is over."""
        if self.peers.table.get(peer.key) is peer:
            self.peers.push(peer, tasks)
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
        self.tasks.fail(task, RaySystemError(text))

    def _interrupt(self, peer: Peer, task: Pending) -> None:
        """Have a worker end what it was sent."""
        if peer.link.is_ended:
            return  # the raylet will say that this worker is gone
        asked = self._cancelled.get(task.id)
        if asked is None:
            return  # it has ended, while this waited for room on the link
        if self._unsent.held and self._unsent.take(peer, task):
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

    def _allow(self, id: TaskKey, until: int, is_abandoned: bool) -> None:
        """Tell the worker of a stream how far it may go; the next one, if there is none now."""
        task = self._tasks.get(id)
        peer = self.peers.table.get(task.worker) if task is not None and task.worker else None
        if task is None or peer is None or peer.link.is_ended:
            return
        if peer.link.is_congested:
            self._unsent.later(peer, partial(self._allow, id, until, is_abandoned))
        else:
            peer.execute.allow(hot.StreamTerms(id, task.attempt, until, is_abandoned))

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

    def _give_up(self, peer: Peer) -> None:
        """Have a worker end that cannot be reached: then its raylet says so, as of any other."""
        if self.peers.table.get(peer.key) is peer:
            self.lessors.give_up(peer.lease)

    def _raylet_ended(self, link: Link) -> None:
        """Without its node a process is in no cluster: what other nodes lent it is theirs again."""
        for task in list(self._tasks.values()):
            self.tasks.fail(task, self._raylet_died())
        self.lessors.close()

    def _timed_out(self, id: TaskKey) -> None:
        """A task's time is over: whoever waits for it hears so now, and it is interrupted."""
        task = self._tasks.get(id)
        if task is None or id in self.tasks.finishing:
            return
        error = TaskTimeoutError(
            f"Task {self.name(task)} ({id.hex()}) had not ended when its time was over: it "
            f"{self._doing(task)}."
        )
        is_known = self.tasks.ends_with_parent(task) or id in self._cancelled
        known = self._cancelled.setdefault(id, Cancellation(False, True, error))
        known.is_known = is_known or any(entry.is_held for entry in task.entries)
        for entry in task.entries:
            if entry.is_held:
                self._owner.fail(entry, error)
        if is_known:
            self._owner.errors.read(id)
        self.cancel(id, force=False, recursive=True, error=error)

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
        return raylet_died(self._raylet.error)

    def name(self, task: OwnedTask) -> str:
        return self.peers.name(task)

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
