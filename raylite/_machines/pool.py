"""Pool: the worker processes of one node.

A worker is fresh until it is first lent; then it is bound to the key of that lease (its job and
environment) and never works for another key. A lease that no idle worker suits waits for a new
worker.

How the pool grows
    Who may work at all is decided by `Leases`; each `lend` here is for a lease already granted, so
    normally a worker is started for each lease that waits, a few at a time. When the workers that
    are not blocked fill the soft limit, an idle worker of another key makes room. When none is
    idle, or more tasks are blocked in ``get`` than the free limit allows (deep recursion), starts
    are paced by a growing delay of up to a second: slow, but never stopped, since the task at the
    bottom of a recursion is what all the others wait for. Leases that hold no CPU (most actors)
    take no room and are never paced.
"""

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable
from enum import Enum
from itertools import islice
from operator import itemgetter
from typing import Final, final

from msgspec import Struct

from raylite._types.keys import LeaseID, StartToken, WorkerKey
from raylite._types.resources import UNIT

#: Start failures of one key, one after another, that fail its waiting leases.
FAILURES: Final = 3


class Lend(Struct, frozen=True):
    """The lease's tasks run on this worker."""

    worker: WorkerKey
    lease: LeaseID


class Start(Struct, frozen=True):
    """Start a process; answer with `Pool.registered` or `Pool.start_failed`.

    `key` is the key of the lease that needs it, None to have a fresh worker at hand.
    """

    token: StartToken
    key: Hashable


class Lost(Struct, frozen=True):
    """The worker died under this lease."""

    lease: LeaseID
    worker: WorkerKey


class Fail(Struct, frozen=True):
    """No worker can be started for this lease."""

    lease: LeaseID
    reason: str


class Retire(Struct, frozen=True):
    """End this worker; it may take its time, and gets no more work. Answer with `Pool.died`."""

    worker: WorkerKey


class Crowded(Struct, frozen=True):
    """More tasks wait for others than `limit`: the worker for this lease is started late.

    Said once, until not half as many wait.
    """

    lease: LeaseID
    limit: int


Effect = Lend | Start | Lost | Fail | Retire | Crowded


class PoolStatistics(Struct, frozen=True):
    """Counts of processes by state, and of the leases that wait for one."""

    idle: int
    lent: int
    blocked: int
    retiring: int
    starting: int
    waiting: int
    #: Ever started.
    started: int


class _State(Enum):
    IDLE = "idle"
    LENT = "lent"
    BLOCKED = "blocked"
    RETIRING = "retiring"


@final
class _Fresh:
    """The key of workers that were never lent."""


_FRESH: Final = _Fresh()


class _Worker(Struct):
    key: Hashable
    idle_since: float
    state: _State = _State.IDLE
    lease: LeaseID | None = None
    load: int = 0
    #: It is spent, or its key is no longer in use: not to become idle again.
    last_lease: bool = False


class _Ask(Struct, frozen=True):
    number: int
    load: int


class _Beginning(Struct, frozen=True):
    key: Hashable
    load: int


class _Pace:
    """Spaces out attempts, each gap twice the one before, until reset."""

    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest, self._delay = first, longest, first
        self.due: float | None = None

    def delay(self, now: float) -> None:
        self.due = now + self._delay
        self._delay = min(2 * self._delay, self._longest)

    @property
    def is_longest(self) -> bool:
        """Whether gaps do not grow any more."""
        return self._delay >= self._longest

    def ready(self, now: float) -> bool:
        return self.due is None or now >= self.due

    def reset(self) -> None:
        self._delay, self.due = self._first, None


class Pool:
    """Decides which worker serves which lease, and which processes start and end.

    Every method returns the effects to carry out, in order. Repeated, late and unknown leases,
    workers and tokens change nothing. Call `expire` at `next_wakeup`.

    Args:
        soft_limit: Workers wanted at rest, and at work: the node's CPUs.
        prestart: Fresh or bound workers to have at all times, busy ones included.
        spare: Unblocked workers allowed above the soft limit.
        most_starting: Processes that start at the same time.
        idle_grace: Seconds that an idle worker above the soft limit is kept.
        blocked_limit: Blocked workers that are replaced at once; above it starts are paced.
            None: three times the soft limit and 16.
        first_delay: Seconds from one paced start to the next, doubling...
        longest_delay: ...up to this.
    """

    def __init__(
        self,
        *,
        soft_limit: int,
        prestart: int = 0,
        spare: int = 1,
        most_starting: int = 4,
        idle_grace: float = 1.0,
        blocked_limit: int | None = None,
        first_delay: float = 0.02,
        longest_delay: float = 1.0,
    ) -> None:
        self._soft_limit, self._spare, self._most_starting = soft_limit, spare, most_starting
        self._prestart, self._idle_grace = prestart, idle_grace
        self._blocked_limit = 3 * soft_limit + 16 if blocked_limit is None else blocked_limit
        self._floor = 0
        self._workers: dict[WorkerKey, _Worker] = {}
        # The least recently used first; and by key, the most recently used last.
        self._idle: OrderedDict[WorkerKey, None] = OrderedDict()
        self._idle_of: dict[Hashable, dict[WorkerKey, None]] = {}
        self._lent: dict[LeaseID, WorkerKey] = {}
        self._waiting: dict[LeaseID, Hashable] = {}
        self._asks: dict[Hashable, OrderedDict[LeaseID, _Ask]] = {}
        self._starting: dict[StartToken, _Beginning] = {}
        self._starting_for: Counter[Hashable] = Counter()
        # Failures in a row by key, and the first token whose failure would be another in the row.
        self._failures: dict[Hashable, tuple[int, int]] = {}
        # Loads of lent workers at work, and of those that start.
        self._working = self._beginning = 0
        # Numbers of workers: blocked with their CPU lent on, and retiring.
        self._blocked = self._retiring = 0
        self._growth = _Pace(first_delay, longest_delay)
        self._replacement = _Pace(first_delay, longest_delay)
        self._revival = _Pace(first_delay, longest_delay)
        self._is_crowd_told = False
        self._numbers = self._tokens = 0

    def start(self, now: float) -> list[Effect]:
        """Start the workers to have at all times."""
        self._floor = self._prestart
        return self._grow(now)

    def lend(
        self,
        lease: LeaseID,
        key: Hashable,
        now: float,
        *,
        cpu: int = UNIT,
        known: Iterable[WorkerKey] = (),
    ) -> list[Effect]:
        """Find a worker for a granted lease: a warm one of its key, a fresh one, or a new one.

        `key` is anything hashable but None, and `cpu` what the lease holds, in ten-thousandths.
        `known` are workers to be preferred, best first: the holder has a connection to them.
        Asking again repeats the answer.
        """
        if (lent := self._lent.get(lease)) is not None:
            return [Lend(lent, lease)]

        if lease in self._waiting:
            return []

        load = min(cpu, UNIT)
        for suited in (key, _FRESH):
            if idle := self._idle_of.get(suited):
                worker = next((each for each in known if each in idle), None)
                return [self._lend(worker or next(reversed(idle)), lease, key, load)]

        self._numbers += 1
        self._waiting[lease] = key
        asks = self._asks.setdefault(key, OrderedDict())
        asks[lease] = _Ask(self._numbers, load)
        if not load:
            asks.move_to_end(lease, last=False)  # Must not queue behind paced ones.

        return self._grow(now)

    def registered(self, token: StartToken, worker: WorkerKey, now: float) -> list[Effect]:
        """A started process is ready: it serves a waiting lease or becomes idle."""
        if worker in self._workers:
            return []

        if token not in self._starting:
            return [Retire(worker)]  # Its start was given up; a replacement may be on its way.

        key = self._end_start(token)
        self._failures.pop(key, None)
        self._revival.reset()
        self._workers[worker] = _Worker(_FRESH, now)
        self._set_idle(worker, now)
        effects: list[Effect] = []
        if (key := key if key in self._asks else self._oldest_key()) is not None:
            effects.append(self._serve(worker, key))

        return effects + self._grow(now)

    def start_failed(
        self, token: StartToken, reason: str, now: float, *, was_killed: bool = False
    ) -> list[Effect]:
        """A start came to nothing: try again, but fail the leases after `FAILURES` in a row.

        Starts that were under way together and all failed count as one. One that was killed, by
        the machine when memory ran out or by a person, says nothing about the next: it does not
        count, but starts then keep a distance that grows until one succeeds.
        """
        if token not in self._starting:
            return []

        key = self._end_start(token)
        self._replacement.delay(now)
        if was_killed:
            self._revival.delay(now)
            return self._grow(now)

        effects: list[Effect] = []
        # A worker meant for anyone would have served any of those who wait.
        for failing in list(self._asks) if key is _FRESH else [key]:
            count, counts_from = self._failures.get(failing, (0, 0))
            if failing not in self._asks or token < counts_from:
                continue

            if count + 1 < FAILURES:
                self._failures[failing] = (count + 1, self._tokens + 1)
                continue

            for lease in list(self._asks[failing]):
                self._unqueue(lease)
                effects.append(Fail(lease, reason))

        return effects + self._grow(now)

    def returned(self, worker: WorkerKey, lease: LeaseID, now: float) -> list[Effect]:
        """The lease is over; its worker serves the next one, or is idle and warm."""
        known = self._workers.get(worker)
        if known is None or known.lease != lease:
            return []

        self._end_lease(known)
        effects: list[Effect] = []
        if known.last_lease:
            effects.append(self._retire(worker))
        else:
            self._set_idle(worker, now)
            self._replacement.reset()
            if known.key in self._asks:
                effects.append(self._serve(worker, known.key))

        return effects + self._grow(now)

    def spent(self, worker: WorkerKey, now: float) -> list[Effect]:
        """The worker runs nothing more (``max_calls``): it is retired when its lease is over."""
        known = self._workers.get(worker)
        if known is None or known.state is _State.RETIRING:
            return []

        known.last_lease = True
        return [self._retire(worker), *self._grow(now)] if known.lease is None else []

    def withdraw(self, lease: LeaseID, now: float) -> list[Effect]:
        """The lease is over: forget that it waits, or take back its worker."""
        if (worker := self._lent.get(lease)) is not None:
            return self.returned(worker, lease, now)

        if lease in self._waiting:
            self._unqueue(lease)

        return []

    def died(self, worker: WorkerKey, now: float) -> list[Effect]:
        """A registered worker's process has ended, for whatever reason."""
        known = self._workers.get(worker)
        if known is None:
            return []

        effects: list[Effect] = []
        if known.lease is not None:
            effects.append(Lost(known.lease, worker))
            self._end_lease(known)
        elif known.state is _State.IDLE:
            self._unset_idle(worker)
            self._replacement.delay(now)
        else:
            self._retiring -= 1

        del self._workers[worker]
        return effects + self._grow(now)

    def blocked(self, worker: WorkerKey, now: float) -> list[Effect]:
        """The worker's task waits in ``get`` and its CPU is lent on: it takes no room meanwhile."""
        known = self._workers.get(worker)
        if known is None or known.state is not _State.LENT:
            return []

        known.state = _State.BLOCKED
        self._working -= known.load
        self._blocked += known.load > 0
        return self._grow(now)

    def unblocked(self, worker: WorkerKey) -> list[Effect]:
        """The worker's task goes on."""
        known = self._workers.get(worker)
        if known is not None and known.state is _State.BLOCKED:
            known.state = _State.LENT
            self._working += known.load
            self._blocked -= known.load > 0

        return []

    def retire_key(self, key: Hashable, now: float) -> list[Effect]:
        """Retire the workers of a key: idle ones now, others when their lease is over."""
        effects: list[Effect] = [
            self._retire(worker) for worker in list(self._idle_of.get(key, ()))
        ]
        for known in self._workers.values():
            if known.lease is not None and known.key == key:
                known.last_lease = True

        return effects + self._grow(now)

    def keys(self) -> list[Hashable]:
        """Return the keys that workers are bound to."""
        keys = dict.fromkeys(known.key for known in self._workers.values())
        return [key for key in keys if key is not _FRESH]

    def worker_of(self, lease: LeaseID) -> WorkerKey | None:
        """Return the worker that serves a lease, if one does."""
        return self._lent.get(lease)

    def held_back(self, lease: LeaseID, now: float) -> float | None:
        """Return the seconds until a worker may next be started, if this lease needs one and waits."""
        key = self._waiting.get(lease)
        if key is None or not self._asks[key][lease].load or not self._crowded():
            return None

        begun = islice(self._asks[key], self._starting_for[key])
        due = self._due(self._growth)
        return None if due is None or lease in begun else max(due - now, 0.0)

    def expire(self, now: float) -> list[Effect]:
        """Retire what was idle too long above the soft limit, and make the starts now due."""
        effects: list[Effect] = []
        while self._surplus() and self._oldest_idle_ends() <= now:
            effects.append(self._retire(next(iter(self._idle))))

        return effects + self._grow(now)

    def next_wakeup(self, now: float) -> float | None:
        """Return when `expire` next has something to do, None if only an event can change that."""
        times = []
        if self._surplus():
            times.append(self._oldest_idle_ends())

        if len(self._starting) < self._most_starting:
            if (due := self._due(self._growth)) is not None and self._next_start() is not None:
                times.append(due)

            if (due := self._due(self._replacement)) is not None and self._below_floor():
                times.append(due)

        return max(now, min(times)) if times else None

    def statistics(self) -> PoolStatistics:
        """Return the counts at this moment."""
        states = Counter(known.state for known in self._workers.values())
        return PoolStatistics(
            idle=states[_State.IDLE],
            lent=states[_State.LENT],
            blocked=states[_State.BLOCKED],
            retiring=states[_State.RETIRING],
            starting=len(self._starting),
            waiting=len(self._waiting),
            started=self._tokens,
        )

    def _grow(self, now: float) -> list[Effect]:
        """Start what is needed and allowed."""
        effects: list[Effect] = []
        if not self._revival.ready(now):
            return effects

        while len(self._starting) < self._most_starting:
            if (start := self._next_start()) is None:
                break

            if start.load and self._crowded():
                if self._full() and self._idle:
                    effects.append(self._retire(next(iter(self._idle))))
                    continue

                if self._growth.due is None:
                    self._growth.delay(now)

                if not self._growth.ready(now):
                    effects += self._tell_crowd(start)
                    break

                self._growth.delay(now)

            effects.append(self._start(start))

        if not self._crowded():
            self._growth.reset()

        if 2 * self._blocked < self._blocked_limit:
            self._is_crowd_told = False

        while len(self._starting) < self._most_starting and self._below_floor():
            if not self._replacement.ready(now):
                break

            effects.append(self._start(_Beginning(_FRESH, UNIT)))

        return effects

    def _tell_crowd(self, start: _Beginning) -> list[Effect]:
        """Say, once, that a start waits for long because others are blocked."""
        is_crowd = self._blocked >= self._blocked_limit and self._growth.is_longest
        if self._is_crowd_told or not is_crowd:
            return []

        self._is_crowd_told = True
        lease = next(islice(self._asks[start.key], self._starting_for[start.key], None))
        return [Crowded(lease, self._blocked_limit)]

    def _due(self, pace: _Pace) -> float | None:
        """Return when a start of this pace is next allowed, None if nothing holds it back."""
        due, revival = pace.due, self._revival.due
        if due is None or revival is None:
            return revival if due is None else due
        return max(due, revival)

    def _next_start(self) -> _Beginning | None:
        """Return what the next start is for: leases without CPU first, then the oldest."""
        if len(self._waiting) <= len(self._starting):
            return None

        best: tuple[bool, int, Hashable, int] | None = None
        for key, asks in self._asks.items():
            if (begun := self._starting_for[key]) < len(asks):
                ask = next(islice(asks.values(), begun, None))
                candidate = (ask.load > 0, ask.number, key, ask.load)
                if best is None or candidate[:2] < best[:2]:
                    best = candidate

        return None if best is None else _Beginning(best[2], best[3])

    def _full(self) -> bool:
        load = self._working + self._beginning + UNIT * len(self._idle)
        return load >= UNIT * (self._soft_limit + self._spare)

    def _crowded(self) -> bool:
        return self._full() or self._blocked >= self._blocked_limit

    def _below_floor(self) -> bool:
        return self._alive() + len(self._starting) < self._floor

    def _alive(self) -> int:
        return len(self._workers) - self._retiring

    def _surplus(self) -> bool:
        if not self._idle:
            return False

        above = self._working + UNIT * len(self._idle) > UNIT * self._soft_limit
        return above and self._alive() > self._floor

    def _oldest_idle_ends(self) -> float:
        return self._workers[next(iter(self._idle))].idle_since + self._idle_grace

    def _start(self, start: _Beginning) -> Start:
        self._tokens += 1
        token = StartToken(self._tokens)
        self._starting[token] = start
        self._starting_for[start.key] += 1
        self._beginning += start.load
        return Start(token, None if start.key is _FRESH else start.key)

    def _end_start(self, token: StartToken) -> Hashable:
        start = self._starting.pop(token)
        self._beginning -= start.load
        self._starting_for[start.key] -= 1
        if not self._starting_for[start.key]:
            del self._starting_for[start.key]

        return start.key

    def _oldest_key(self) -> Hashable:
        """Return the key of the lease to serve first, None if none waits."""
        heads = ((next(iter(asks.values())), key) for key, asks in self._asks.items())
        return min(((ask.number, key) for ask, key in heads), key=itemgetter(0), default=(0, None))[
            1
        ]

    def _serve(self, worker: WorkerKey, key: Hashable) -> Lend:
        lease, ask = next(iter(self._asks[key].items()))
        self._unqueue(lease)
        return self._lend(worker, lease, key, ask.load)

    def _unqueue(self, lease: LeaseID) -> None:
        key = self._waiting.pop(lease)
        asks = self._asks[key]
        del asks[lease]
        if not asks:
            del self._asks[key]
            self._failures.pop(key, None)

    def _lend(self, worker: WorkerKey, lease: LeaseID, key: Hashable, load: int) -> Lend:
        self._unset_idle(worker)
        known = self._workers[worker]
        known.key, known.lease, known.load, known.state = key, lease, load, _State.LENT
        self._lent[lease] = worker
        self._working += load
        return Lend(worker, lease)

    def _end_lease(self, known: _Worker) -> None:
        if known.state is _State.BLOCKED:
            self._blocked -= known.load > 0
        else:
            self._working -= known.load

        if known.lease is not None:
            del self._lent[known.lease]

        known.lease, known.load = None, 0

    def _set_idle(self, worker: WorkerKey, now: float) -> None:
        known = self._workers[worker]
        known.state, known.idle_since = _State.IDLE, now
        self._idle[worker] = None
        self._idle_of.setdefault(known.key, {})[worker] = None

    def _unset_idle(self, worker: WorkerKey) -> None:
        key = self._workers[worker].key
        del self._idle[worker]
        del self._idle_of[key][worker]
        if not self._idle_of[key]:
            del self._idle_of[key]

    def _retire(self, worker: WorkerKey) -> Retire:
        if worker in self._idle:
            self._unset_idle(worker)

        self._workers[worker].state = _State.RETIRING
        self._retiring += 1
        return Retire(worker)

    def check(self) -> None:
        """Assert what must hold between calls; the tests run it after every step."""
        workers = self._workers.values()
        states = Counter(known.state for known in workers)
        assert list(self._idle) == [*sorted(self._idle, key=self._idle_since)]
        assert self._idle.keys() == {w for w, k in self._workers.items() if k.state is _State.IDLE}
        assert self._idle_of == {
            key: {w: None for w in self._idle if self._workers[w].key == key}
            for key in {self._workers[w].key for w in self._idle}
        }
        assert self._lent == {k.lease: w for w, k in self._workers.items() if k.lease is not None}
        assert len(self._lent) == states[_State.LENT] + states[_State.BLOCKED]
        assert not self._lent.keys() & self._waiting.keys(), "a lease both waits and is served"
        assert self._waiting == {lease: key for key, asks in self._asks.items() for lease in asks}
        assert all(self._asks.values())
        assert not self._asks.keys() & self._idle_of.keys(), "a worker idles while its key waits"
        assert not (self._asks and _FRESH in self._idle_of), "a fresh worker idles while one waits"
        assert self._working == sum(k.load for k in workers if k.state is _State.LENT)
        assert self._blocked == sum(k.load > 0 for k in workers if k.state is _State.BLOCKED)
        assert self._retiring == states[_State.RETIRING]
        assert self._starting_for == Counter(start.key for start in self._starting.values())
        assert self._beginning == sum(start.load for start in self._starting.values())
        assert len(self._starting) <= self._most_starting
        assert self._failures.keys() <= self._asks.keys()

    def _idle_since(self, worker: WorkerKey) -> float:
        return self._workers[worker].idle_since
