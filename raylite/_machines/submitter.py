"""The submitter: which of an owner's tasks goes to which leased worker, and when.

Tasks with the same needs (resources, environment) share a lane: a queue, and the workers leased
for it.

Pipelining is adaptive. While nothing is known of a function's run time, its tasks go one to a
worker. Once it is known, a worker is sent as many as make a few milliseconds of work, so that short
tasks do not wait for a round trip each. Nothing is sent behind a slow task on purpose, and what was
sent and not started can come back: a worker that blocks gives it back by itself, and one that makes
no progress is asked to, so a pipeline never waits behind a sleeper.

Tasks that overlap have lanes of their own: a worker has as many of them at a time as the lane's key
says, and nothing is asked back. All workers of the lane have equally many. Those of a batch that are
the share of workers still to come are kept for them for a moment, and then go to those that are there.

Leases are kept a while after the last task. While others wait for them, an idle one goes back at
once, and one in use when its turn is over: who has much to do must not starve who has little.
"""

from collections import deque
from collections.abc import Hashable, Iterable
from enum import Enum
from itertools import takewhile

from msgspec import Struct

from raylite._machines.slots import shares
from raylite._types.keys import LeaseID, TaskKey, WorkerKey
from raylite._types.resources import UNIT, Resources

PIPELINE_SECONDS = 0.005  # the work that a worker is sent ahead
PIPELINE_TASKS = 512
STALLED_SECONDS = 0.02  # a pipeline without a result for so long is asked to give back
LINGER_SECONDS = 1.0  # how long an idle lease is kept
TURN_SECONDS = 0.1  # how long a lease is used while others wait; its last task may take longer
REFUSED_SECONDS = 1.0  # how long a lane makes do with its workers after a lease was refused
EARLY_SECONDS = 0.001  # alarms may ring early, by a rounding error or the clock's resolution
SCATTERED_REQUESTS = 10  # at a time, of tasks each of which is to be placed by itself
FUNCTIONS_KNOWN = 1000  # run times remembered
OVERLAPPING_TURN_SECONDS = 1.0  # the same as TURN_SECONDS; a worker is emptied at a turn's end
SPREAD_SECONDS = 0.1  # how long tasks that overlap are kept for workers still to come
SPREAD_AGAIN_SECONDS = 1.0  # how long they are not, after that was in vain


class Pending:
    """A task until its result: what the submitter needs to know of it."""

    __slots__ = ("attempt", "function", "id", "key", "retries", "worker")

    def __init__(self, id: TaskKey, key: "LaneKey", function: int, retries: int):
        self.id: TaskKey = id
        self.key: LaneKey = key
        self.function: int = function
        self.retries: int = retries
        self.attempt: int = 0
        self.worker: WorkerKey | None = None


class LaneKey(Struct, frozen=True):
    """What tasks must share to run on each other's leases."""

    demand: Resources
    #: Workers are never shared between two of these.
    environment: bytes
    depth: int
    #: What the tasks ask of their node besides resources; only compared here.
    where: Hashable = None
    #: Every task gets a lease of its own: a strategy is to choose a node for each.
    scattered: bool = False
    #: The node that has most of the tasks' arguments, if that is another than their owner's.
    near: bytes = b""
    #: How many of them overlap in a worker; 0 for those that run one after another.
    slots: int = 0


class RequestLease(Struct, frozen=True):
    """Ask for a worker that has what the lane demands."""

    lease: LeaseID
    key: LaneKey


class ReturnLease(Struct, frozen=True):
    """Give a lease back, or withdraw the wish for one."""

    lease: LeaseID


class Push(Struct, frozen=True):
    """Send these tasks to a worker, in this order."""

    worker: WorkerKey
    tasks: list[Pending]


class AskBack(Struct, frozen=True):
    """Ask a worker to give back what it has not started."""

    worker: WorkerKey


class Interrupt(Struct, frozen=True):
    """Tell a worker that this task, which it was sent, is cancelled."""

    worker: WorkerKey
    task: Pending


class Withdrawn(Struct, frozen=True):
    """This task is cancelled, and no worker runs it or will."""

    task: Pending


Effect = RequestLease | ReturnLease | Push | AskBack | Interrupt | Withdrawn


class Standing(Struct, frozen=True):
    """Where a task is: in a lane's queue, or with a worker."""

    #: How many tasks are before it there.
    ahead: int
    worker: WorkerKey | None = None
    #: The leases that its lane asks for, and the workers that it has.
    leases: tuple[LeaseID, ...] = ()
    workers: int = 0


class SubmitterStatistics(Struct, frozen=True):
    """Counts of what the submitter keeps at one moment."""

    lanes: int
    queued: int
    sent: int
    requested: int
    leased: int
    cancelled: int
    #: Functions whose run time is known.
    functions: int


class _Pace(Enum):
    FLOWING = "may be sent more, if it has room"
    ASKED = "was asked to give back: what it has not started is on its way here"
    STUCK = "gave back: may be sent more when it has done what it has"


class _Worker:
    """A leased worker and what it was sent, oldest first."""

    __slots__ = (
        "idle_since", "is_spent", "key", "lane", "lease", "order", "pace", "progress_at", "sent",
        "turn_ends",
    )  # fmt: skip

    def __init__(self, key: WorkerKey, lease: LeaseID, lane: "_Lane", now: float) -> None:
        self.key = key
        self.lease = lease
        self.lane = lane
        self.sent: dict[TaskKey, Pending] = {}
        self.pace = _Pace.FLOWING
        self.progress_at = self.idle_since = now
        self.turn_ends = now + (OVERLAPPING_TURN_SECONDS if lane.key.slots else TURN_SECONDS)
        self.is_spent = False  # it has done all that it is to do
        #: Of tasks that overlap, those sent last, for they end in any order: as many as cannot have
        #: begun, and one that may have.
        self.order: deque[TaskKey] = deque(maxlen=lane.key.slots + 1)

    def takes_more(self, now: float) -> bool:
        """Say whether it idles, or makes progress: nothing is sent behind a sleeper."""
        if not self.sent:
            return not self.is_spent
        if slots := self.lane.key.slots:
            return len(self.sent) < slots and not self.is_spent
        return self.pace is _Pace.FLOWING and now < self.progress_at + STALLED_SECONDS

    def behind(self, last: TaskKey) -> int:
        """How many of the tasks it has were sent after the one that began last."""
        return sum(id in self.sent for id in takewhile(last.__ne__, reversed(self.order)))

    def due(self) -> float | None:
        """When it is to be given back, or asked to give back; None while it does well."""
        if not self.sent:
            return self.idle_since + LINGER_SECONDS
        if len(self.sent) > 1 and self.pace is not _Pace.ASKED and not self.lane.key.slots:
            return self.progress_at + STALLED_SECONDS
        return None


class _Lane:
    """One kind of need: the queue and the workers leased for it."""

    __slots__ = (
        "has_leavers", "key", "limit", "queue", "requested", "spread_again", "workers",
    )  # fmt: skip

    def __init__(self, key: LaneKey, limit: int) -> None:
        self.key = key
        self.limit = limit
        self.queue: deque[Pending] = deque()
        self.requested: dict[LeaseID, None] = {}
        self.workers: dict[WorkerKey, _Worker] = {}
        self.spread_again = 0.0  # before then, nothing is kept for workers to come
        self.has_leavers = False  # workers that start nothing more and have yet to end something


class Submitter:
    """Every method returns the effects to carry out, in order.

    Args:
        lease_prefix: What this owner's lease ids begin with.
        cpus: The CPUs of the node, in ten-thousandths: as many leases are asked for at a time.
    """

    def __init__(self, lease_prefix: bytes, cpus: int) -> None:
        self._prefix = lease_prefix
        self._cpus = cpus
        self._leases = 0
        self._lanes: dict[LaneKey, _Lane] = {}
        self._workers: dict[WorkerKey, _Worker] = {}
        self._requests: dict[LeaseID, _Lane] = {}
        self._paused: dict[_Lane, float] = {}  # lanes that ask for no lease until then
        self._spreading: dict[_Lane, float] = {}  # lanes that keep tasks for workers, until then
        self._run_time: dict[int, float] = {}
        self._cancelled: dict[TaskKey, Pending] = {}  # of those that were sent
        self._is_wanted = False

    # ---- what can happen -----------------------------------------------------------------

    def submit(self, tasks: list[Pending], now: float) -> list[Effect]:
        """Queue tasks whose arguments are ready."""
        lanes: dict[_Lane, None] = {}
        key: LaneKey | None = None
        for task in tasks:
            if task.key is not key:
                key = task.key
                lane = self._lane(key)
                lanes[lane] = None
            lane.queue.append(task)
        return self._advance(lanes, now)

    def granted(self, lease: LeaseID, worker: WorkerKey, now: float) -> list[Effect]:
        """A worker is ours. One that is not needed any more goes back at once."""
        lane = self._requests.pop(lease, None)
        if lane is None:
            known = self._workers.get(worker)
            return [] if known is not None and known.lease == lease else [ReturnLease(lease)]
        del lane.requested[lease]
        lane.workers[worker] = self._workers[worker] = _Worker(worker, lease, lane, now)
        return self._advance([lane], now)

    def finished(self, worker: WorkerKey, task: Pending, seconds: float, now: float) -> None:
        """A result came; call `advance` once all that came with it are noted."""
        old = self._run_time.get(task.function)
        if old is None:
            self._learn(task.function, seconds)
        else:
            weight = 0.5 if seconds > old else 0.1
            self._run_time[task.function] = old + weight * (seconds - old)
        known = self._workers.get(worker)
        if known is not None and known.sent.pop(task.id, None) is not None:
            task.worker = None
            if self._cancelled:
                self._cancelled.pop(task.id, None)
            known.progress_at = now
            if known.lane.key.scattered:
                known.is_spent = True
            if not known.sent:
                known.idle_since = now

    def advance(self, workers: list[WorkerKey], now: float) -> list[Effect]:
        """Send these workers, from which results came, what is next."""
        lanes = {known.lane: None for w in workers if (known := self._workers.get(w)) is not None}
        return self._advance(lanes, now)

    def given_back(self, worker: WorkerKey, tasks: list[Pending], now: float) -> list[Effect]:
        """A worker returned tasks it has not started: they go first again."""
        known = self._workers.get(worker)
        if known is None:
            return []
        lane = known.lane
        withdrawn: list[Effect] = []
        for task in reversed(tasks):
            if known.sent.pop(task.id, None) is not None:
                task.worker = None
                if self._cancelled.pop(task.id, None) is not None:
                    withdrawn.append(Withdrawn(task))
                    continue
                lane.queue.appendleft(task)
                known.pace = _Pace.STUCK  # or it would be sent the same tasks again
        if lane.key.slots:
            back = {task.id for task in tasks}
            left = (id for id in known.order if id not in back)
            known.order = deque(left, maxlen=known.order.maxlen)
        if not known.sent:
            known.idle_since = now
        return self._advance([lane], now) + withdrawn

    def unsent(self, worker: WorkerKey, task: Pending, now: float) -> list[Effect]:
        """A task that was to be pushed to a worker cannot be, to any: it has failed."""
        known = self._workers.get(worker)
        if known is None or known.sent.pop(task.id, None) is None:
            return []
        task.worker = None
        self._cancelled.pop(task.id, None)
        if not known.sent:
            known.idle_since = now
        return self._advance([known.lane], now)

    def leaving(self, worker: WorkerKey, now: float) -> list[Effect]:
        """A worker starts nothing more. Its lease goes back when what it was sent has come back."""
        known = self._workers.get(worker)
        if known is None:
            return []
        known.is_spent = known.lane.has_leavers = True
        known.pace = _Pace.STUCK
        return self._advance([known.lane], now)

    def lost(
        self, worker: WorkerKey, last_task: TaskKey | None, now: float
    ) -> tuple[list[Pending], list[Effect]]:
        """A worker died. Return the tasks it had begun; the others are queued again, or withdrawn.

        A worker runs what it is sent in order, so everything up to the task it started last may
        have run, and nothing after it has. None is for a worker that nobody can say this of, since
        its whole node is gone: then any of them may have begun.
        """
        known = self._workers.pop(worker, None)
        if known is None:
            return [], []
        lane = known.lane
        del lane.workers[worker]
        sent = list(known.sent.values())
        begun = len(sent) if last_task is None else 0
        for position, task in enumerate(sent):
            task.worker = None
            if task.id == last_task:
                begun = position + 1
        if lane.key.slots and last_task is not None and last_task in known.order:
            begun = len(sent) - known.behind(last_task)
        withdrawn: list[Effect] = []
        left = sent[begun:]
        if self._cancelled:
            withdrawn += [Withdrawn(task) for task in left if task.id in self._cancelled]
            left = [task for task in left if task.id not in self._cancelled]
            for task in sent:
                self._cancelled.pop(task.id, None)
        lane.queue.extendleft(reversed(left))
        return sent[:begun], self._advance([lane], now) + withdrawn

    def refused(self, lease: LeaseID, now: float) -> tuple[list[Pending], list[Effect]]:
        """No worker can be had. Return the tasks that fail for it, unless others can run them.

        A lane that has workers goes on with those, and asks again after a while: one of them may
        be blocked until a task that is still queued has run.
        """
        lane = self._requests.pop(lease, None)
        if lane is None:
            return [], []
        del lane.requested[lease]
        failed: list[Pending] = []
        if lane.workers:
            self._paused[lane] = now + REFUSED_SECONDS
        else:
            failed.extend(lane.queue)
            lane.queue.clear()
        return failed, self._advance([lane], now)

    def wanted(self, is_wanted: bool) -> list[Effect]:
        """Others wait for resources (or no longer): keep no idle lease meanwhile."""
        self._is_wanted = is_wanted
        effects: list[Effect] = []
        if is_wanted:
            for lane in list(self._lanes.values()):
                self._return_idle(lane, effects)
        return effects

    def cancel(self, task: Pending) -> list[Effect]:
        """Let a task not run, or no longer: one of ours, wherever it is, or waiting elsewhere."""
        if task.worker is not None:
            self._cancelled[task.id] = task
            return [Interrupt(task.worker, task)]
        effects: list[Effect] = []
        lane = self._lanes.get(task.key)
        if lane is not None:
            try:
                lane.queue.remove(task)
            except ValueError:
                pass  # it waits for its arguments, or to be tried again
            else:
                self._settle(lane, effects)
        return [*effects, Withdrawn(task)]

    def expire(self, now: float) -> list[Effect]:
        """Give idle leases back in time, and ask stalled pipelines for what they hold."""
        effects: list[Effect] = []
        lanes: dict[_Lane, None] = {}
        soon = now + EARLY_SECONDS
        for known in list(self._workers.values()):
            due = known.due()
            if due is None or due > soon:
                continue
            lanes[known.lane] = None
            if known.sent:
                self._ask_back(known, effects, now)
            else:
                self._give_up(known, effects)
        for lane in [lane for lane, until in self._paused.items() if until <= soon]:
            del self._paused[lane]
            lanes[lane] = None
        for lane in [lane for lane, until in self._spreading.items() if until <= soon]:
            del self._spreading[lane]
            lane.spread_again = now + SPREAD_AGAIN_SECONDS
            lanes[lane] = None
        return effects + self._advance(lanes, now)

    def next_expiry(self, now: float) -> float | None:
        """When `expire` should next be called; None when there is nothing to wait for."""
        earliest: float | None = None
        for known in self._workers.values():
            due = known.due()
            if due is not None and (earliest is None or due < earliest):
                earliest = due
        for until in (*self._paused.values(), *self._spreading.values()):
            if earliest is None or until < earliest:
                earliest = until
        return earliest

    def standing(self, task: Pending) -> Standing | None:
        """Return where a task is; None if it is not here."""
        known = self._workers.get(task.worker) if task.worker is not None else None
        if known is not None and task.id in known.sent:
            return Standing(list(known.sent).index(task.id), known.key)
        lane = self._lanes.get(task.key)
        if lane is None or task not in lane.queue:
            return None
        ahead = lane.queue.index(task)
        return Standing(ahead, None, tuple(lane.requested), len(lane.workers))

    def backlog(self) -> dict[Resources, int]:
        """Return how many tasks wait that no lease is asked for, by demand."""
        counts: dict[Resources, int] = {}
        for lane in self._lanes.values():
            if (more := len(lane.queue) - len(lane.requested)) > 0:
                counts[lane.key.demand] = counts.get(lane.key.demand, 0) + more
        return counts

    def statistics(self) -> SubmitterStatistics:
        """Return the counts at this moment."""
        return SubmitterStatistics(
            lanes=len(self._lanes),
            queued=sum(len(lane.queue) for lane in self._lanes.values()),
            sent=sum(len(known.sent) for known in self._workers.values()),
            requested=len(self._requests),
            leased=len(self._workers),
            cancelled=len(self._cancelled),
            functions=len(self._run_time),
        )

    # ---- inside --------------------------------------------------------------------------

    def _lane(self, key: LaneKey) -> _Lane:
        lane = self._lanes.get(key)
        if lane is None:
            # A demand of little or no CPU would start as many processes as there are tasks.
            cpu = max(key.demand.units("CPU"), UNIT)
            limit = max(SCATTERED_REQUESTS if key.scattered else 1, -(-self._cpus // cpu))
            lane = self._lanes[key] = _Lane(key, limit)
        return lane

    def _advance(self, lanes: Iterable[_Lane], now: float) -> list[Effect]:
        """Send what can be sent, and wish for, keep and forget what follows from that."""
        effects: list[Effect] = []
        for lane in lanes:
            if lane.has_leavers:
                self._see_off(lane, effects)
            if lane.queue and lane.workers:
                self._fill(lane, effects, now)
            self._settle(lane, effects)
            if self._is_wanted or lane.key.scattered:
                self._return_idle(lane, effects)
        return effects

    def _fill(self, lane: _Lane, effects: list[Effect], now: float) -> None:
        """Share the queue out, the emptiest workers first, as deep as run times allow."""
        queue = lane.queue
        takers = [
            known
            for known in lane.workers.values()
            if known.takes_more(now) and not (self._is_wanted and now >= known.turn_ends)
        ]
        takers.sort(key=_load)
        if lane.key.slots:
            self._share(lane, takers, effects, now)
            return
        left = len(takers)
        for known in takers:
            if not queue:
                return
            share = -(-len(queue) // left)
            left -= 1
            sent = known.sent
            if not sent:
                known.pace = _Pace.FLOWING
                known.progress_at = now
            function = queue[0].function
            room = self._room(sent, function)
            if lane.key.scattered:
                room = min(room, 1 - len(sent))
            if room <= 0:
                continue
            tasks: list[Pending] = []
            for _ in range(share):
                task = queue[0]
                if task.function != function:
                    function = task.function
                    room = min(room, self._depth(function) - len(sent))
                if room <= 0:
                    break
                room -= 1
                del queue[0]
                task.worker = known.key
                sent[task.id] = task
                tasks.append(task)
            effects.append(Push(known.key, tasks))

    def _share(self, lane: _Lane, takers: list[_Worker], effects: list[Effect], now: float) -> None:
        """Share out a queue of tasks that overlap: all workers are to have equally many.

        A batch that is no smaller than what runs already is worth more workers, if there may be.
        """
        queue, there = lane.queue, len(lane.workers)
        is_growing = there < lane.limit and lane not in self._paused
        if not is_growing:
            self._spreading.pop(lane, None)
        elif lane not in self._spreading and now >= lane.spread_again and len(queue) > 1:
            if len(queue) >= sum(map(_load, lane.workers.values())):
                self._spreading[lane] = now + SPREAD_SECONDS
        coming = min(lane.limit - there, len(queue)) if lane in self._spreading else 0
        for known, count in zip(
            takers,
            shares(list(map(_load, takers)), len(queue), lane.key.slots, coming),
            strict=True,
        ):
            if not count:
                continue
            tasks = [queue.popleft() for _ in range(count)]
            for task in tasks:
                task.worker = known.key
                known.sent[task.id] = task
                known.order.append(task.id)
            effects.append(Push(known.key, tasks))
        if not queue:
            self._spreading.pop(lane, None)

    def _room(self, sent: dict[TaskKey, Pending], function: int) -> int:
        """How many tasks of a function to send after these; none until it is worth a message."""
        depth = self._depth(function)
        if not sent:
            return depth
        running = next(iter(sent.values()))
        depth = min(depth, self._depth(running.function))
        room = depth - len(sent)
        return room if room >= max(1, depth // 2) else 0

    def _depth(self, function: int) -> int:
        """How many of a function's tasks a worker may have at a time."""
        run_time = self._run_time.get(function)
        if run_time is None or not run_time < PIPELINE_SECONDS:
            return 1
        if run_time * PIPELINE_TASKS <= PIPELINE_SECONDS:
            return PIPELINE_TASKS
        return int(PIPELINE_SECONDS / run_time)

    def _learn(self, function: int, seconds: float) -> None:
        """Note a run time. Of too many the first learnt is forgotten; if in use, it is soon back."""
        self._run_time[function] = seconds
        if len(self._run_time) > FUNCTIONS_KNOWN:
            del self._run_time[next(iter(self._run_time))]

    def _settle(self, lane: _Lane, effects: list[Effect]) -> None:
        """Wish for as many leases as the queue can use, no more; forget a lane out of use."""
        requested = lane.requested
        wished = 0
        if lane.queue and not (lane.workers and lane in self._paused):
            limit = lane.limit
            if not lane.key.slots:
                depth = 1 if lane.key.scattered else self._depth(lane.queue[0].function)
            elif not lane.workers or lane in self._spreading:
                depth, limit = 1, limit - len(lane.workers)
            else:
                depth = lane.key.slots
            wished = min(-(-len(lane.queue) // depth), limit)
        elif self._spreading and not lane.queue:
            self._spreading.pop(lane, None)
        while len(requested) < wished:
            self._leases += 1
            lease = LeaseID(self._prefix + self._leases.to_bytes(8, "big"))
            requested[lease] = None
            self._requests[lease] = lane
            effects.append(RequestLease(lease, lane.key))
        while len(requested) > wished:
            lease, _ = requested.popitem()
            del self._requests[lease]
            effects.append(ReturnLease(lease))
        if not (lane.queue or lane.workers):
            self._lanes.pop(lane.key, None)
            self._paused.pop(lane, None)
            self._spreading.pop(lane, None)

    def _return_idle(self, lane: _Lane, effects: list[Effect]) -> None:
        for known in list(lane.workers.values()):
            if not known.sent:
                self._give_up(known, effects)
        self._settle(lane, effects)

    def _see_off(self, lane: _Lane, effects: list[Effect]) -> None:
        """Give the leases of workers that leave back, except those that have something to end."""
        leaving = [known for known in lane.workers.values() if known.is_spent]
        for known in leaving:
            if not known.sent:
                self._give_up(known, effects)
        lane.has_leavers = any(known.sent for known in leaving)

    def _give_up(self, known: _Worker, effects: list[Effect]) -> None:
        del self._workers[known.key]
        del known.lane.workers[known.key]
        effects.append(ReturnLease(known.lease))

    def _ask_back(self, known: _Worker, effects: list[Effect], now: float) -> None:
        """Ask for what waits behind a task that takes long, and remember how long it takes."""
        known.pace = _Pace.ASKED
        running = next(iter(known.sent.values()))
        elapsed = now - known.progress_at
        if elapsed > self._run_time.get(running.function, 0.0):
            self._learn(running.function, elapsed)
        effects.append(AskBack(known.key))

    def check(self) -> None:
        """Assert what holds between calls."""
        for key, lane in self._lanes.items():
            assert lane.key == key
            assert lane.queue or lane.workers, "a lane out of use is kept"
            assert not lane.queue or lane.requested or lane in self._paused, (
                "tasks wait for nothing"
            )
            assert lane.queue or not lane.requested, "a lease is asked for that nobody needs"
            assert len(lane.requested) <= lane.limit
            assert all(task.worker is None for task in lane.queue)
            for known in lane.workers.values():
                assert known.lane is lane
                assert known.sent or not (lane.queue or self._is_wanted), "a worker idles"
                assert known.sent or not known.is_spent, "a worker that leaves is kept"
                assert not known.is_spent or lane.has_leavers or key.scattered
                assert all(task.worker == known.key for task in known.sent.values())
        lanes = self._lanes.values()
        assert self._workers == {key: w for lane in lanes for key, w in lane.workers.items()}
        assert self._requests == {lease: lane for lane in lanes for lease in lane.requested}
        assert self._paused.keys() <= set(lanes)
        assert all(lane.queue and lane.key.slots for lane in self._spreading)
        tasks = [task.id for lane in lanes for task in lane.queue]
        tasks += [id for known in self._workers.values() for id in known.sent]
        assert len(tasks) == len(set(tasks)), "a task is in two places"
        assert self._cancelled.keys() <= {id for w in self._workers.values() for id in w.sent}
        assert len(self._run_time) <= FUNCTIONS_KNOWN


def _load(known: _Worker) -> int:
    return len(known.sent)
