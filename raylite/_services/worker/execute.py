"""The Execute service: running the tasks that owners send to this worker.

The loop side takes tasks in and sends results out, each in batches; the task side, `Runner`, runs
them one after another on a thread of its own (a worker process's main thread). They meet in a queue
and in a list of results, and neither waits for the other.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Protocol

from msgspec.structs import replace

from raylite._kernel.link import Link
from raylite._kernel.seams import now
from raylite._kernel.service import Service, handles
from raylite._protocol import raylet, worker
from raylite._services.worker.copies import ARGUMENT, Bringing
from raylite._services.worker.core import Core
from raylite._services.worker.interrupts import Interrupts
from raylite._services.worker.objects import Entry
from raylite._services.worker.owner import OwnerService, error_value
from raylite._services.worker.producer import CoroutineGate, Gate, Producer, Producers, ThreadGate
from raylite._services.worker.running import RunningTask
from raylite._types.resources import ONE_CPU
from raylite._wire import hot
from raylite._wire.hot import Form
from raylite.exceptions import CongestedError, LinkError, ProtocolError, RaySystemError

#: What a worker's start takes; of a function that ends its worker, each run costs a share of that.
START_SECONDS = 0.02
UNTOLD = hot.Holding(ONE_CPU.to_units())

Attempt = tuple[bytes, int]
"""A task's id, and which attempt at it."""


class Job:
    """One attempt on its way through a worker."""

    __slots__ = (
        "arguments", "brought", "deadline", "definition", "handed", "link", "owner", "result", "task",
    )  # fmt: skip

    def __init__(self, task: hot.Task, definition: hot.Definition, link: Link) -> None:
        self.task: hot.Task = task
        self.definition: hot.Definition = definition
        self.link: Link = link
        self.deadline: float | None = None if task.left is None else now() + task.left
        self.arguments: tuple[Entry, ...] = ()  # entries made for this task's references
        self.handed: tuple[Entry, ...] = ()  # what its result contains
        self.brought: Bringing | None = None  # arguments that lie on other nodes
        self.result: hot.Result | None = None


class Executor(Protocol):
    """Runs jobs in order, elsewhere, and hands each to `ExecuteService.done` when it has ended."""

    holding: hot.Holding  # what the lease of the next jobs holds

    def serve(self, service: "ExecuteService", core: Core) -> None: ...
    def run(self, job: Job) -> None: ...
    def take_back(self, wanted: Collection[Attempt] | None = None) -> list[Job]: ...
    def leave(self) -> None: ...
    def flush(self) -> None: ...

    def runs(self, cancel: hot.Cancel) -> bool:
        """Say whether this attempt is being run."""

    def interrupt(self, cancel: hot.Cancel) -> None:
        """Interrupt this attempt if it is being run, or about to be; nothing else, ever."""

    def die(self) -> None:
        """End this worker, as if it were killed."""

    def note(self, producer: Producer) -> None: ...
    def new_gate(self, job: Job) -> Gate: ...


class ExecuteService(Service, serves=(worker.Execute,)):
    """Takes tasks in and sends results out."""

    def __init__(
        self, owner: OwnerService, keeper: Core, executor: Executor, raylet_link: Link
    ) -> None:
        self._owner = owner
        self._keeper = keeper
        self._executor = executor
        self._leases = raylet.Leases(raylet_link)
        self._raylet = raylet_link
        self._definitions: dict[tuple[Link, int], hot.Definition] = {}
        self._submitters: dict[Link, worker.Submit] = {}  # who sends tasks here
        self._is_blocked = False
        self._is_awaiting = False
        self._is_spent = False
        self._holdings: dict[Link, hot.Holding] = {}  # what owners have told of their leases
        self._lessee: Link | None = None  # whose lease it is
        self._is_dying = False
        self.producers: Producers = Producers(owner, self._submitters, self.spawn)
        keeper.submitter.tasks.is_running = self._runs

    @handles(worker.Execute.define)
    def define(self, definitions: list[hot.Definition]) -> None:
        link = self.caller
        if link.is_ended:
            return  # its owner died while this waited to be handled, and so with all below
        if link not in self._submitters:
            self._submitters[link] = worker.Submit(link)
            link.on_end(self._forget)
            self._keeper.join(definitions[0].job, definitions[0].config)
        for definition in definitions:
            self._definitions[link, definition.number] = definition

    @handles(worker.Execute.hold)
    def hold(self, holdings: list[hot.Holding]) -> None:
        """An owner has another lease of this worker; nothing of the one before is left here."""
        if self.caller.is_ended:
            return
        if self.caller not in self._holdings:
            self.caller.on_end(self._forget_holding)
        self._holdings[self.caller] = holdings[-1]
        self._lessee = None

    @handles(worker.Execute.run)
    def run_tasks(self, tasks: list[hot.Task]) -> None:
        link = self.caller
        if link.is_ended:
            return
        if link is not self._lessee:
            self._lessee = link
            self._executor.holding = self._holdings.get(link, UNTOLD)
        for task in tasks:
            job = Job(task, self._definitions[link, task.definition], link)
            if self._is_blocked or self._is_dying:
                self._submitters[link].given_back(hot.GivenBack(task.id, task.attempt))
                continue
            if task.inputs or task.contained:
                self._hold_arguments(job)
            if task.stream is not None:
                gate = self._executor.new_gate(job)
                self.producers.table[task.id] = Producer(task, link, gate, self._executor.note)
            self._executor.run(job)
        if self._is_spent:
            self.spent()

    @handles(worker.Execute.allow)
    def allow(self, terms: list[hot.StreamTerms]) -> None:
        for each in terms:
            self.producers.allow(each)

    @handles(worker.Execute.give_back)
    def give_back(self, nothing: bytes) -> None:
        for job in self._executor.take_back():
            self.refuse(job)

    def refuse(self, job: Job) -> None:
        """Give a job back to its owner."""
        if not job.link.is_ended:
            self._submitters[job.link].given_back(hot.GivenBack(job.task.id, job.task.attempt))
        self._let_go(job)

    def spent(self) -> None:
        """Run nothing more: a function has been run as often as a worker may (``max_calls``).

        The raylet and the owner are told, in whatever order they hear of it; who sends more, for it has
        not heard, gets it back.
        """
        self.give_back(b"")
        if not self._is_spent and not self._raylet.is_ended:
            self._leases.spent(b"")
        self._is_spent = True
        if self._lessee is not None and not self._lessee.is_ended:
            self._submitters[self._lessee].leaving(b"")

    @handles(worker.Execute.cancel)
    def cancel(self, cancels: list[hot.Cancel]) -> None:
        """End attempts early: what is queued goes back, what runs is interrupted."""
        wanted = {(each.task, each.attempt): each for each in cancels}
        for job in self._executor.take_back(wanted):
            del wanted[job.task.id, job.task.attempt]
            self.refuse(job)
        for each in wanted.values():
            self._executor.interrupt(each)
            if not self._executor.runs(each):
                continue
            if each.recursive:
                self._cancel_children(each)
            if each.force and not self._is_dying:
                self._is_dying = True
                self.give_back(b"")
                self.spawn(self._die_with(each), "end with a task")

    def _runs(self, task: RunningTask) -> bool:
        return self._executor.runs(hot.Cancel(task.id, task.attempt, False, False))

    def _cancel_children(self, cancel: hot.Cancel) -> None:
        self._keeper.handover.drain()  # what it has started just now is known then
        self._keeper.submitter.cancel_children(cancel.task, cancel.attempt, force=cancel.force)

    async def _die_with(self, cancel: hot.Cancel) -> None:
        """End this process, unless the task ends before all else that it did has been told."""
        self._executor.flush()
        await self._keeper.flush()
        if self._executor.runs(cancel):
            self._executor.die()
        self._is_dying = False

    def settled(self) -> None:
        """The raylet has said which node this is, which the first owner's tasks may have outrun.

        None of them has begun: a worker runs nothing before it has been taken in.
        """
        for job in self._executor.take_back():
            self._bring_arguments(job)
            self._executor.run(job)

    def blocked(self) -> None:
        """The running task waits: lend the CPU to others, and give back what is behind it."""
        self._is_blocked = True
        self.give_back(b"")
        self.lend_cpu()

    def unblocked(self) -> None:
        if not self._is_blocked or self._is_awaiting:
            return  # what the task waited for had come before it was taken for blocked
        self._is_blocked = False
        self.take_back_cpu()

    def awaiting(self, is_awaiting: bool) -> None:
        """The running task's own event loop awaits values, or does no more."""
        self._is_awaiting = is_awaiting
        if is_awaiting:
            self.blocked()
        else:
            self.unblocked()

    def lend_cpu(self) -> None:
        """Let others have this worker's CPU; it goes on with what it has."""
        if not self._raylet.is_ended:
            self._leases.blocked(b"")

    def take_back_cpu(self) -> None:
        if not self._raylet.is_ended:
            self._leases.unblocked(b"")

    def done(self, jobs: list[Job]) -> None:
        """These have ended; the references dropped by them are accounted for already."""
        for job in jobs:
            result, link = job.result, job.link
            assert result is not None
            if job.task.stream is not None and not self.producers.finish(
                job.task, partial(self.done, [job])
            ):
                continue
            if link.is_ended:
                self._owner.hand_over(job.task.id, job.handed)
                self._owner.received([job.task.id])
                self._let_go(job)
                continue
            if job.handed:
                self._owner.hand_over(job.task.id, job.handed)
                if any(value.contained for value in result.values):
                    link.on_end(self._receiver_ended(job.task.id))
                else:  # packing failed half-way
                    self._owner.received([job.task.id])
            if job.arguments:
                result = self._with_kept(job, result)
            try:
                self._submitters[link].results(result)
            except CongestedError:
                self.spawn(self._tell_late(job, result), "tell a result when there is room")
                continue
            except ProtocolError as error:
                self._submitters[link].results(self._untold(job, result, error))
            self._let_go(job)

    async def _tell_late(self, job: Job, result: hot.Result) -> None:
        """Tell a result to an owner that has very much to read before it."""
        try:
            await job.link.wait_room()
            self._submitters[job.link].results(result)
        except LinkError:
            pass  # it has ended
        self._let_go(job)

    def _untold(self, job: Job, result: hot.Result, error: ProtocolError) -> hot.Result:
        """Return what is told of a result that no message can say."""
        task = job.task
        for value in result.values:
            if value.form == Form.ARENA and not self._raylet.is_ended:
                raylet.Objects(self._raylet).free(hot.Freed(value.key))
        self._owner.received([task.id])
        name = task.name or job.definition.title
        text = f"the results of task {name} ({task.id.hex()}) cannot be sent to its owner: {error}"
        return replace(result, values=(error_value(RaySystemError(text)),), retry=False)

    def interrupted(self, cancel: hot.Cancel) -> None:
        """An attempt has ended because it was interrupted."""
        if cancel.recursive:
            self._cancel_children(cancel)  # those it started meanwhile

    def _hold_arguments(self, job: Job) -> None:
        """Keep what the task was given until it ends; what it keeps longer, it borrows."""
        entries = []
        for each in job.task.inputs:
            if each.value.form == Form.ARENA or each.value.contained:
                entry = self._owner.entry_for(self._keeper, hot.Contained(each.id, each.owner))
                if entry.value is None:
                    self._owner.complete(entry, each.value)
                    entry.is_pulled = True
                entries.append(entry)
            entries += [
                self._owner.entry_for(self._keeper, inner) for inner in each.value.contained
            ]
        entries += [self._owner.entry_for(self._keeper, inner) for inner in job.task.contained]
        for entry in entries:
            entry.submitted += 1
        job.arguments = tuple(entries)
        self._bring_arguments(job)

    def _bring_arguments(self, job: Job) -> None:
        """Have those of other nodes brought here while other tasks run."""
        copies = self._keeper.copies
        away = [each.id for each in job.task.inputs if copies.is_away(each.value)]
        if away:
            found = dict.fromkeys(entry for entry in job.arguments if entry.id in away)
            job.brought = Future()
            copies.begin(list(found), ARGUMENT, job.brought)

    def _with_kept(self, job: Job, result: hot.Result) -> hot.Result:
        own = Counter(job.arguments + job.handed)
        kept = []
        for entry in job.arguments:
            if entry.is_registered or not entry.owner:
                continue
            if entry.is_held_here or entry.submitted > own[entry]:  # by a task that it started
                entry.is_registered = True  # the task's owner sees to it, before it lets go
                kept.append(bytes(entry.id))
        if not kept:
            return result
        return hot.Result(
            result.task, result.attempt, result.seconds, result.values, tuple(kept), result.retry,
            result.interrupted,
        )  # fmt: skip

    def _let_go(self, job: Job) -> None:
        if job.brought is not None:
            job.brought.cancel()
            job.brought = None
        if job.task.stream is not None:
            del self.producers.table[job.task.id]
        for entry in job.arguments:
            self._owner.perform(self._owner.refs.dropped_submitted(entry))
        if job.arguments:
            job.arguments = ()
            self._owner.on_viewless()

    def _receiver_ended(self, task: bytes) -> Callable[[Link], None]:
        return lambda link: self._owner.received([task])

    def _forget_holding(self, link: Link) -> None:
        del self._holdings[link]

    def _forget(self, link: Link) -> None:
        del self._submitters[link]
        if link is self._lessee:
            self._lessee = None
        self.producers.owner_ended(link)
        for key in [key for key in self._definitions if key[0] is link]:
            del self._definitions[key]


class _Runner(Protocol):
    def runs(self, task: bytes, attempt: int) -> bool: ...
    def interrupt_overlapping(self, task: bytes, attempt: int) -> None: ...


class QueueExecutor:
    """Jobs in a queue that a thread works off; `Runner` is that thread's side."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.holding = UNTOLD
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._ended: list[Job] = []
        self._producing: deque[Producer] = deque()
        self._is_flushing = False
        self._calls: Counter[bytes] = Counter()  # of functions that have `max_calls`
        self._is_spent = False
        self._service: ExecuteService | None = None
        self._core: Core | None = None
        #: Called, on the loop, when a job has come, while the thread does something else than wait
        #: for one.
        self.on_arrival: Callable[[], None] | None = None
        self.interrupts: Interrupts = Interrupts()
        self.runner: _Runner | None = None
        #: Makes the thread look at `interrupts`, whatever it does; ends the worker.
        self.strike: Callable[[], None] = _nothing
        self.die: Callable[[], None] = _nothing

    # ---- the loop's side -----------------------------------------------------------------

    def serve(self, service: ExecuteService, core: Core) -> None:
        self._service, self._core = service, core

    def run(self, job: Job) -> None:
        self._queue.put(job)
        if self.on_arrival is not None:
            self.on_arrival()

    def take_back(self, wanted: Collection[Attempt] | None = None) -> list[Job]:
        """Return what the thread has not begun, in order; if some are named, those alone."""
        taken: list[Job] = []
        left: list[Job | None] = []
        while True:
            try:
                job = self._queue.get_nowait()
            except Empty:
                break
            if job is not None and (wanted is None or (job.task.id, job.task.attempt) in wanted):
                taken.append(job)
            else:
                left.append(job)
        for job in left:
            self._queue.put(job)
        return taken

    def interrupt(self, cancel: hot.Cancel) -> None:
        """Have the thread interrupt this attempt: see `Runner.strikes`."""
        self.interrupts.ask(cancel)
        self.strike()
        if self.runner is not None:
            self.runner.interrupt_overlapping(cancel.task, cancel.attempt)

    def runs(self, cancel: hot.Cancel) -> bool:
        return self.runner is not None and self.runner.runs(cancel.task, cancel.attempt)

    def leave(self) -> None:
        """Let the thread end after what is queued."""
        self._queue.put(None)
        if self.on_arrival is not None:
            self.on_arrival()

    def flush(self) -> None:
        """Hand over what has ended since the last time."""
        self._is_flushing = False
        ended, self._ended = self._ended, []  # first, so that their last items are not missed
        producing = self._producing
        if (ended or producing) and self._service is not None and self._core is not None:
            self._core.handover.drain()  # what the tasks let go of, before saying what they kept
            departures = self._core.network.departures
            departures.hold()
            try:
                while producing:
                    self._service.producers.send(producing.popleft())
                self._service.done(ended)
                if self._is_spent:
                    self._service.spent()
                if self.interrupts.asked:
                    self._interrupted(ended)
            finally:
                departures.flush()

    def _interrupted(self, ended: list[Job]) -> None:
        assert self._service is not None
        tasks = [job.task.id for job in ended if job.result is not None]
        interrupted = {job.task.id for job in ended if job.result and job.result.interrupted}
        for cancel in self.interrupts.ended(tasks, self.runs):
            if cancel.task in interrupted:
                self._service.interrupted(cancel)

    def _refuse(self, job: Job) -> None:
        if self._service is not None:
            self._service.refuse(job)

    # ---- the thread's side ---------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        return self._queue.empty()

    def next(self, patience: float | None = None) -> Job | None:
        """Wait for a job; None means: leave.

        Raises `Empty` when patience (seconds) ends, or what has come is not to be run.
        """
        job = self._queue.get(timeout=patience)
        if self._is_spent and job is not None:
            self._loop.call_soon_threadsafe(self._refuse, job)
            raise Empty
        return job

    def lend_cpu(self) -> None:
        """Let others have the CPU while what runs here waits for values."""
        if self._service is not None:
            self._loop.call_soon_threadsafe(self._service.lend_cpu)

    def take_back_cpu(self) -> None:
        if self._service is not None:
            self._loop.call_soon_threadsafe(self._service.take_back_cpu)

    def ended(self, job: Job) -> None:
        if job.definition.max_calls:
            self._count(job)
        self._ended.append(job)
        if not self._is_flushing:
            self._wake()

    def producer_of(self, job: Job) -> Producer:
        """Return where the items of a generator task go."""
        assert self._service is not None
        return self._service.producers.table[job.task.id]

    def new_gate(self, job: Job) -> Gate:
        return CoroutineGate() if job.definition.overlaps else ThreadGate()

    def note(self, producer: Producer) -> None:
        """A producer has made something."""
        self._producing.append(producer)
        if not self._is_flushing:
            self._wake()

    def _wake(self) -> None:
        self._is_flushing = True
        try:
            self._loop.call_soon_threadsafe(self.flush)
        except RuntimeError:
            pass  # the loop was closed: nobody waits for anything from here

    def _count(self, job: Job) -> None:
        """Note that a function which ends its worker has been run here."""
        definition = job.definition
        self._calls[definition.function] += 1
        if self._calls[definition.function] >= definition.max_calls:
            self._is_spent = True
        assert job.result is not None
        seconds = job.result.seconds + START_SECONDS / definition.max_calls
        job.result = replace(job.result, seconds=seconds)


def _nothing() -> None: ...
