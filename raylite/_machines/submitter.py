"""The submitter: which of an owner's tasks goes to which leased worker, and when.

Tasks with the same needs (resources, environment) share a lane: a queue, and the workers leased
for it.

Pipelining is adaptive. While nothing is known of a function's run time, its tasks go one to a
worker. Once it is known, a worker is sent as many as make a few milliseconds of work, so that short
tasks do not wait for a round trip each. What was sent and not started can come back: a worker that
blocks gives it back by itself, and one that makes no progress is asked to, so a pipeline never
waits behind a sleeper.

Leases are kept a while after the last task, unless others wait for them.
"""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

from raylite._types.keys import LeaseID, TaskKey, WorkerKey
from raylite._types.resources import UNIT, Resources

PIPELINE_SECONDS = 0.005  # the work that a worker is sent ahead
PIPELINE_TASKS = 512
STALLED_SECONDS = 0.02  # a pipeline without a result for so long is asked to give back
LINGER_SECONDS = 1.0  # how long an idle lease is kept
UNKNOWN = -1.0


class Pending:
    """A task until its result: what the submitter needs to know of it, and who made it."""

    __slots__ = ("attempt", "function", "id", "key", "payload", "retries", "sent_at", "worker")

    def __init__(self, id: TaskKey, key: "LaneKey", function: int, retries: int, payload: object):
        self.id = id
        self.key = key
        self.function = function
        self.retries = retries
        self.payload = payload
        self.attempt = 0
        self.worker: WorkerKey | None = None
        self.sent_at = 0.0


@dataclass(frozen=True, slots=True)
class LaneKey:
    """What tasks must share to run on each other's leases."""

    demand: Resources
    environment: Hashable
    depth: int


@dataclass(frozen=True, slots=True)
class RequestLease:
    lease: LeaseID
    key: LaneKey


@dataclass(frozen=True, slots=True)
class ReturnLease:
    """Give a lease back, or withdraw the wish for one."""

    lease: LeaseID


@dataclass(frozen=True, slots=True)
class Push:
    """Send these tasks to a worker, in this order."""

    worker: WorkerKey
    tasks: list[Pending]


@dataclass(frozen=True, slots=True)
class AskBack:
    """Ask a worker to give back what it has not started."""

    worker: WorkerKey


Effect = RequestLease | ReturnLease | Push | AskBack


class _Worker:
    """A leased worker and what it was sent, oldest first."""

    __slots__ = ("asked", "idle_since", "key", "lane", "lease", "progress_at", "sent")

    def __init__(self, key: WorkerKey, lease: LeaseID, lane: "_Lane", now: float) -> None:
        self.key = key
        self.lease = lease
        self.lane = lane
        self.sent: dict[TaskKey, Pending] = {}
        self.progress_at = self.idle_since = now
        self.asked = False


class _Lane:
    """One kind of need: the queue and the workers leased for it."""

    __slots__ = ("key", "limit", "queue", "requested", "workers")

    def __init__(self, key: LaneKey, limit: int) -> None:
        self.key = key
        self.limit = limit
        self.queue: deque[Pending] = deque()
        self.requested: dict[LeaseID, None] = {}
        self.workers: dict[WorkerKey, _Worker] = {}


class Submitter:
    """Every method returns the effects to carry out, in order.

    Args:
        lease_prefix: What this owner's lease ids begin with.
        cpus: The CPUs of the node, in ten-thousandths: no more leases are asked for than fit.
    """

    def __init__(self, lease_prefix: bytes, cpus: int) -> None:
        self._prefix = lease_prefix
        self._cpus = cpus
        self._leases = 0
        self._lanes: dict[LaneKey, _Lane] = {}
        self._workers: dict[WorkerKey, _Worker] = {}
        self._requests: dict[LeaseID, _Lane] = {}
        self._run_time: dict[int, float] = {}
        self._is_wanted = False

    # ---- what can happen -----------------------------------------------------------------

    def submit(self, tasks: list[Pending], now: float) -> list[Effect]:
        """Queue tasks whose arguments are ready."""
        effects: list[Effect] = []
        lane: _Lane | None = None
        for task in tasks:
            if lane is None or lane.key is not task.key:
                if lane is not None:
                    self._advance(lane, effects, now)
                lane = self._lane(task.key)
            lane.queue.append(task)
        if lane is not None:
            self._advance(lane, effects, now)
        return effects

    def granted(self, lease: LeaseID, worker: WorkerKey, now: float) -> list[Effect]:
        """A worker is ours. One that is not needed any more goes back at once."""
        lane = self._requests.pop(lease, None)
        if lane is None:
            return [ReturnLease(lease)]
        lane.requested.pop(lease, None)
        known = _Worker(worker, lease, lane, now)
        lane.workers[worker] = self._workers[worker] = known
        effects: list[Effect] = []
        self._advance(lane, effects, now)
        if not known.sent and self._is_wanted:
            self._give_up(known, effects)
        return effects

    def finished(self, worker: WorkerKey, task: Pending, seconds: float, now: float) -> None:
        """A result came; call `advance` once all that came with it are noted."""
        old = self._run_time.get(task.function, UNKNOWN)
        weight = 0.5 if seconds > old else 0.1
        self._run_time[task.function] = (
            seconds if old == UNKNOWN else old + weight * (seconds - old)
        )
        known = self._workers.get(worker)
        if known is not None and known.sent.pop(task.id, None) is not None:
            known.progress_at = now
            if not known.sent:
                known.idle_since = now

    def advance(self, workers: list[WorkerKey], now: float) -> list[Effect]:
        """Send these workers, from which results came, what is next."""
        effects: list[Effect] = []
        lanes = {known.lane.key: known.lane for w in workers if (known := self._workers.get(w))}
        for lane in lanes.values():
            self._advance(lane, effects, now)
        if self._is_wanted:
            for worker in workers:
                if (known := self._workers.get(worker)) is not None and not known.sent:
                    self._give_up(known, effects)
        return effects

    def given_back(self, worker: WorkerKey, tasks: list[Pending], now: float) -> list[Effect]:
        """A worker returned tasks it has not started: they go first again."""
        known = self._workers.get(worker)
        lanes: dict[LaneKey, _Lane] = {}
        for task in reversed(tasks):
            if known is not None:
                known.sent.pop(task.id, None)
                known.asked = True  # or it would be sent the same tasks again
            task.worker = None
            lane = self._lane(task.key)
            lane.queue.appendleft(task)
            lanes[task.key] = lane
        effects: list[Effect] = []
        for lane in lanes.values():
            self._advance(lane, effects, now)
        return effects

    def lost(
        self, worker: WorkerKey, last_task: TaskKey, now: float
    ) -> tuple[list[Pending], list[Effect]]:
        """A worker died. Return the tasks it had begun; the others are queued again.

        A worker runs what it is sent in order, so everything up to the task it started last may
        have run, and nothing after it has.
        """
        known = self._workers.pop(worker, None)
        if known is None:
            return [], []
        lane = known.lane
        del lane.workers[worker]
        sent = list(known.sent.values())
        begun = 0
        for position, task in enumerate(sent):
            task.worker = None
            if task.id == last_task:
                begun = position + 1
        lane.queue.extendleft(reversed(sent[begun:]))
        effects: list[Effect] = []
        self._advance(lane, effects, now)
        return sent[:begun], effects

    def refused(self, lease: LeaseID) -> list[Pending]:
        """A lease can never be had: return the tasks that waited for it."""
        lane = self._requests.pop(lease, None)
        if lane is None:
            return []
        lane.requested.pop(lease, None)
        if lane.workers:
            return []
        failed = list(lane.queue)
        lane.queue.clear()
        return failed

    def wanted(self, is_wanted: bool) -> list[Effect]:
        """Others wait for resources (or no longer): keep no idle lease meanwhile."""
        self._is_wanted = is_wanted
        effects: list[Effect] = []
        if is_wanted:
            for known in list(self._workers.values()):
                if not known.sent and not known.lane.queue:
                    self._give_up(known, effects)
        return effects

    def withdraw(self, task: Pending) -> bool:
        """Take a task out of its queue; False if it is not waiting there."""
        lane = self._lanes.get(task.key)
        if lane is None or task.worker is not None:
            return False
        try:
            lane.queue.remove(task)
        except ValueError:
            return False
        return True

    def expire(self, now: float) -> list[Effect]:
        """Give idle leases back in time, and ask stalled pipelines for what they hold."""
        effects: list[Effect] = []
        for known in list(self._workers.values()):
            if not known.sent:
                if now - known.idle_since >= LINGER_SECONDS and not known.lane.queue:
                    self._give_up(known, effects)
            elif self._is_stalled(known, now):
                known.asked = True
                first = next(iter(known.sent.values()))
                elapsed = now - known.progress_at
                if elapsed > self._run_time.get(first.function, 0.0):
                    self._run_time[first.function] = elapsed
                effects.append(AskBack(known.key))
        return effects

    def next_expiry(self, now: float) -> float | None:
        """When `expire` should next be called; None when there is nothing to wait for."""
        due: float | None = None
        for known in self._workers.values():
            if not known.sent:
                at = known.idle_since + LINGER_SECONDS
            elif len(known.sent) > 1 and not known.asked:
                at = known.progress_at + STALLED_SECONDS
            else:
                continue
            due = at if due is None or at < due else due
        return due

    # ---- inside --------------------------------------------------------------------------

    def _is_stalled(self, known: _Worker, now: float) -> bool:
        return (
            len(known.sent) > 1
            and not known.asked
            and now - known.progress_at >= STALLED_SECONDS * 0.99
        )

    def _lane(self, key: LaneKey) -> _Lane:
        lane = self._lanes.get(key)
        if lane is None:
            cpu = key.demand.units("CPU")
            limit = max(1, -(-self._cpus // cpu)) if cpu else PIPELINE_TASKS
            lane = self._lanes[key] = _Lane(key, limit)
        return lane

    def _advance(self, lane: _Lane, effects: list[Effect], now: float) -> None:
        if lane.queue and lane.workers:
            self._fill(lane, effects, now)
        self._settle_requests(lane, effects)

    def _fill(self, lane: _Lane, effects: list[Effect], now: float) -> None:
        """Share the queue out, the emptiest workers first, as deep as run times allow."""
        queue = lane.queue
        for known in sorted(lane.workers.values(), key=_load):
            if not queue:
                return
            if known.sent and known.asked:
                continue  # it made no progress and gave back the rest: let it finish
            depth = self._depth(queue[0].function)
            room = depth - len(known.sent)
            if room <= 0 or (known.sent and room < depth // 2):
                continue
            share = -(-len(queue) // len(lane.workers))
            tasks: list[Pending] = []
            if not known.sent:
                known.progress_at = now
                known.asked = False
            for _ in range(min(room, share, len(queue))):
                if tasks and self._depth(queue[0].function) <= len(known.sent):
                    break
                task = queue.popleft()
                task.worker = known.key
                known.sent[task.id] = task
                tasks.append(task)
            effects.append(Push(known.key, tasks))

    def _depth(self, function: int) -> int:
        run_time = self._run_time.get(function, UNKNOWN)
        if run_time == UNKNOWN:
            return 1
        return max(1, min(PIPELINE_TASKS, int(PIPELINE_SECONDS / (run_time + 1e-6))))

    def _settle_requests(self, lane: _Lane, effects: list[Effect]) -> None:
        """Wish for as many leases as the queue can use, no more."""
        waiting = len(lane.queue)
        if waiting:
            waiting = -(-waiting // self._depth(lane.queue[0].function))
        wished = min(waiting, lane.limit)
        while len(lane.requested) < wished:
            self._leases += 1
            lease = LeaseID(self._prefix + self._leases.to_bytes(8, "big"))
            lane.requested[lease] = None
            self._requests[lease] = lane
            effects.append(RequestLease(lease, lane.key))
        while len(lane.requested) > wished:
            lease, _ = lane.requested.popitem()
            del self._requests[lease]
            effects.append(ReturnLease(lease))

    def _give_up(self, known: _Worker, effects: list[Effect]) -> None:
        del self._workers[known.key]
        del known.lane.workers[known.key]
        effects.append(ReturnLease(known.lease))
        lane = known.lane
        if not lane.workers and not lane.queue and not lane.requested:
            self._lanes.pop(lane.key, None)

    def check(self) -> None:
        """Assert what holds between calls."""
        for lane in self._lanes.values():
            assert not lane.queue or lane.workers or lane.requested, "tasks wait for nothing"
            assert len(lane.requested) <= lane.limit
            for key, known in lane.workers.items():
                assert self._workers[key] is known
                assert all(task.worker == key for task in known.sent.values())
            assert all(task.worker is None for task in lane.queue)
        assert set(self._requests) == {x for lane in self._lanes.values() for x in lane.requested}


def _load(known: _Worker) -> int:
    return len(known.sent)
