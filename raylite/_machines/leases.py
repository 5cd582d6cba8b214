"""Leases: one node's resources, lent out.

Who is next
    Deeper requests come first (`Request.depth`): finishing work that was started keeps the number
    of blocked workers small. Equal depths are served first come, first served. After seven grants
    by that order one goes to the oldest request, so that shallow work cannot starve.

Who waits for whom
    A request that does not fit holds back later ones that need a resource it lacks, for a large
    demand must not starve because small ones keep arriving. One that waits for GPUs does not hold
    back work that needs CPUs only. And it holds nobody back unless it would fit if the tasks now
    running ended: what an actor keeps for life, or a task keeps while it waits in ``get``, might
    never come back, or only after the very request that is held back has run. That is why the
    queue cannot dead-lock: whoever holds others back waits only for tasks that can end.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from operator import itemgetter
from typing import Final

from msgspec import Struct

from raylite._machines.devices import NOTHING, Devices
from raylite._types.accelerators import Shares
from raylite._types.keys import HolderKey, LeaseID
from raylite._types.resources import Resources, amount_text

_GRANTS_BETWEEN_OLDEST: Final = 7


class Request(Struct, frozen=True):
    """A wish for a worker that holds `demand`."""

    lease: LeaseID
    holder: HolderKey
    demand: Resources
    #: How many tasks deep the submitter is: 0 for a driver's own tasks.
    depth: int = 0
    #: Lent for life, to an actor, and not until a task ends.
    lasting: bool = False


class Grant(Struct, frozen=True):
    """The lease is its holder's, until released."""

    lease: LeaseID
    holder: HolderKey
    demand: Resources


class Infeasible(Struct, frozen=True):
    """This node could not grant it even when idle. It stays listed, in case the node grows."""

    lease: LeaseID
    holder: HolderKey
    message: str


class Revoke(Struct, frozen=True):
    """A granted lease is void because its holder died; its worker must stop the holder's work."""

    lease: LeaseID
    holder: HolderKey


class Wanted(Struct, frozen=True):
    """Others wait: these holders are to give idle leases back at once, until `Unwanted`."""

    holders: tuple[HolderKey, ...]


class Unwanted(Struct, frozen=True):
    """Nobody waits any more: these holders, told `Wanted` before, may keep idle leases a while."""

    holders: tuple[HolderKey, ...]


Effect = Grant | Infeasible | Revoke | Wanted | Unwanted


class LeaseStatistics(Struct, frozen=True):
    """Counts of leases by where they stand."""

    #: Lent, the blocked ones included.
    lent: int
    #: Lent, and their task waits in ``get``.
    blocked: int
    waiting: int
    infeasible: int
    #: Ever granted.
    granted: int


class Standing(Struct, frozen=True):
    """Where a request stands."""

    demand: Resources
    #: How many requests that wait come before it; None if it is granted.
    before: int | None


class _Loan(Struct):
    request: Request
    #: What the pool is without because of this loan.
    held: Resources
    blocked: bool = False
    devices: Shares = NOTHING

    @property
    def is_pinned(self) -> bool:
        """Whether it does not come back by a task's ending."""
        return self.blocked or self.request.lasting

    @property
    def pinned(self) -> Resources:
        """The part of it that does not come back by a task's ending."""
        return self.held if self.blocked or self.request.lasting else _NOTHING


_NOTHING: Final = Resources()

# Sorts by depth, deepest first, then by age.
_Place = tuple[int, int, Request]


class _Line:
    """The waiting requests of one demand, by depth and by age."""

    def __init__(self, demand: Resources) -> None:
        self.demand = demand
        # Holds withdrawn places too, until they come first or outnumber the others.
        self._heap: list[_Place] = []
        self._places: OrderedDict[LeaseID, _Place] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[_Place]:
        return iter(self._places.values())

    def __getitem__(self, lease: LeaseID) -> _Place:
        return self._places[lease]

    def add(self, place: _Place) -> None:
        self._places[place[2].lease] = place
        heappush(self._heap, place)

    def remove(self, lease: LeaseID) -> None:
        del self._places[lease]
        if len(self._heap) > 2 * len(self._places) + 16:
            self._heap = list(self._places.values())
            heapify(self._heap)

    def first(self) -> _Place:
        heap = self._heap
        while self._places.get(heap[0][2].lease) is not heap[0]:
            heappop(heap)

        return heap[0]

    def oldest(self) -> _Place:
        return next(iter(self._places.values()))


class Leases:
    """Lends one node's resources; every method returns the effects to carry out, in order.

    Between calls what is free and what is lent make up the total (see `check`). All methods take
    repeated, late and unknown leases and holders for what they are, and change nothing.
    """

    def __init__(self, total: Resources) -> None:
        self._total = self._free = total
        self._devices = Devices(total)
        # Held by loans that do not end by themselves: see `_Loan.pinned`.
        self._pinned = _NOTHING
        self._loans: dict[LeaseID, _Loan] = {}
        self._waiting: dict[LeaseID, _Line] = {}
        self._infeasible: dict[LeaseID, _Place] = {}
        self._lines: dict[Resources, _Line] = {}
        # How many lines need each resource.
        self._needed: Counter[str] = Counter()
        # Every lease of a holder, wherever it stands; and how many of them are lent.
        self._leases_of: dict[HolderKey, dict[LeaseID, None]] = {}
        self._lent_to: dict[HolderKey, int] = {}
        # Dicts for sets, where order must not depend on hashes: a run is to be repeatable.
        self._told: dict[HolderKey, None] = {}
        self._contended = False
        self._requests = self._granted = self._since_oldest = 0

    @property
    def total(self) -> Resources:
        """All that this node has."""
        return self._total

    def available(self) -> Resources:
        """Return what is not lent. CPU is negative after more were unblocked than fit."""
        return self._free

    def request(self, request: Request) -> list[Effect]:
        """Grant a demand, or queue it. Asking again repeats what was answered, if anything was."""
        lease = request.lease
        if (loan := self._loans.get(lease)) is not None:
            return [Grant(lease, loan.request.holder, loan.request.demand)]

        if (known := self._infeasible.get(lease)) is not None:
            return [self._report(known[2])]

        if lease in self._waiting:
            return []

        self._leases_of.setdefault(request.holder, {})[lease] = None
        self._requests += 1
        effects: list[Effect] = []
        if self._admit((-request.depth, self._requests, request), effects) and self._fits(
            request.demand
        ):
            self._advance(effects)

        self._settle(effects)
        return effects

    def devices(self, lease: LeaseID) -> Shares:
        """Return which devices a granted lease has, GPUs mostly."""
        loan = self._loans.get(lease)
        return NOTHING if loan is None else loan.devices

    def release(self, lease: LeaseID) -> list[Effect]:
        """Return a lease, or withdraw a waiting one."""
        return self._end([lease])

    def blocked(self, lease: LeaseID) -> list[Effect]:
        """Lend out the CPU of a lease whose task waits in ``get``; the rest stays held."""
        return self._set_blocked(lease, True)

    def unblocked(self, lease: LeaseID) -> list[Effect]:
        """Take the CPU back at once, though it be lent: availability may become negative.

        An actor's CPU is then out of reach again for large demands, which so may let others pass.
        """
        return self._set_blocked(lease, False)

    def holder_died(self, holder: HolderKey) -> list[Effect]:
        """End everything a holder has or waits for."""
        leases = list(self._leases_of.get(holder, ()))
        lent = [lease for lease in leases if lease in self._loans]
        self._told.pop(holder, None)
        return [*(Revoke(lease, holder) for lease in lent), *self._end(leases)]

    def set_total(self, total: Resources) -> list[Effect]:
        """Change what the node has. Requests become feasible or infeasible; none is dropped."""
        self._free += total - self._total
        self._total = total
        self._devices.resize(total)
        queued = [place for line in self._lines.values() for place in line]
        again = sorted([*self._infeasible.values(), *queued], key=itemgetter(1))
        known = set(self._infeasible)
        self._infeasible.clear()
        self._waiting.clear()
        self._lines.clear()
        self._needed.clear()
        effects: list[Effect] = []
        for place in again:
            self._admit(place, effects)

        self._advance(effects)
        self._settle(effects)
        return [e for e in effects if not (isinstance(e, Infeasible) and e.lease in known)]

    def waiting(self) -> dict[Resources, int]:
        """Return how many feasible requests wait, by demand."""
        return {demand: len(line) for demand, line in self._lines.items()}

    def infeasible(self) -> tuple[Request, ...]:
        """Return the requests that this node is too small for, oldest first."""
        return tuple(request for _, _, request in self._infeasible.values())

    def standing(self, lease: LeaseID) -> Standing | None:
        """Return where a feasible request stands; None if there is no such."""
        if (loan := self._loans.get(lease)) is not None:
            return Standing(loan.request.demand, None)
        line = self._waiting.get(lease)
        if line is None:
            return None
        place = line[lease]
        before = sum(other < place for each in self._lines.values() for other in each)
        return Standing(line.demand, before)

    def statistics(self) -> LeaseStatistics:
        """Return the counts at this moment."""
        return LeaseStatistics(
            lent=len(self._loans),
            blocked=sum(loan.blocked for loan in self._loans.values()),
            waiting=len(self._waiting),
            infeasible=len(self._infeasible),
            granted=self._granted,
        )

    def _admit(self, place: _Place, effects: list[Effect]) -> bool:
        """Report an infeasible request and queue a feasible one; say whether it was feasible."""
        request = place[2]
        demand = request.demand
        if not demand.fits(self._total):
            self._infeasible[request.lease] = place
            effects.append(self._report(request))
            return False

        if (line := self._lines.get(demand)) is None:
            line = self._lines[demand] = _Line(demand)
            self._needed.update(demand)

        line.add(place)
        self._waiting[request.lease] = line
        return True

    def _advance(self, effects: list[Effect]) -> None:
        while (request := self._next()) is not None:
            self._unqueue(request.lease)
            self._loans[request.lease] = loan = _Loan(request, request.demand)
            self._lent_to[request.holder] = self._lent_to.get(request.holder, 0) + 1
            self._free -= request.demand
            self._pinned += loan.pinned
            if self._devices.are_any:
                loan.devices = self._devices.take(request.demand)
                if loan.is_pinned:
                    self._devices.pin(loan.devices)
            self._granted += 1
            effects.append(Grant(request.lease, request.holder, request.demand))

    def _next(self) -> Request | None:
        """Pick the request to grant now, by the rules at the top of this module."""
        for demand in self._lines:
            if self._fits(demand):
                break
        else:  # most often: what was given back has just been granted, and no more is there
            return None

        reach = self._total - self._pinned
        due = self._since_oldest >= _GRANTS_BETWEEN_OLDEST
        oldest = self._oldest(reach) if due else None
        order = sorted(line.first() for line in self._lines.values())
        short: set[str] = set()
        for place in [oldest, *order] if oldest is not None else order:
            demand = place[2].demand
            if self._fits(demand) and not demand.uses(short):
                self._since_oldest = 0 if place is oldest else self._since_oldest + 1
                return place[2]

            if self._is_in_reach(demand, reach):
                short.update(demand.lacking(self._free) or self._devices.lacking(demand))
                if len(short) == len(self._needed) and _NOTHING not in self._lines:
                    break  # Nobody who waits can do without what is short.

        return None

    def _oldest(self, reach: Resources) -> _Place | None:
        lines = (line for line in self._lines.values() if self._is_in_reach(line.demand, reach))
        return min((line.oldest() for line in lines), key=itemgetter(1), default=None)

    def _fits(self, demand: Resources) -> bool:
        """Say whether a demand could be granted now."""
        return demand.fits(self._free) and not (
            self._devices.are_any and self._devices.lacking(demand)
        )

    def _is_in_reach(self, demand: Resources, reach: Resources) -> bool:
        """Say whether it could be if the tasks now running ended."""
        if not demand.fits(reach):
            return False
        return not self._devices.are_any or self._devices.are_in_reach(demand)

    def _unqueue(self, lease: LeaseID) -> None:
        line = self._waiting.pop(lease)
        line.remove(lease)
        if not line:
            del self._lines[line.demand]
            self._needed.subtract(line.demand)
            self._needed = +self._needed

    def _end(self, leases: Iterable[LeaseID]) -> list[Effect]:
        for lease in leases:
            if (loan := self._loans.pop(lease, None)) is not None:
                request = loan.request
                self._free += loan.held
                self._pinned -= loan.pinned
                if loan.devices:
                    self._devices.give_back(loan.devices)
                    if loan.is_pinned:
                        self._devices.unpin(loan.devices)
                self._lent_to[request.holder] -= 1
                if not self._lent_to[request.holder]:
                    del self._lent_to[request.holder]

                self._forget(request)
            elif (line := self._waiting.get(lease)) is not None:
                self._forget(line[lease][2])
                self._unqueue(lease)
            elif (known := self._infeasible.pop(lease, None)) is not None:
                self._forget(known[2])

        effects: list[Effect] = []
        self._advance(effects)
        self._settle(effects)
        return effects

    def _forget(self, request: Request) -> None:
        leases = self._leases_of[request.holder]
        del leases[request.lease]
        if not leases:
            del self._leases_of[request.holder]

    def _set_blocked(self, lease: LeaseID, blocked: bool) -> list[Effect]:
        loan = self._loans.get(lease)
        if loan is None or loan.blocked == blocked:
            return []

        self._free += loan.held
        self._pinned -= loan.pinned
        was_pinned, loan.blocked = loan.is_pinned, blocked
        demand = loan.request.demand
        loan.held = demand.without("CPU") if blocked else demand
        self._free -= loan.held
        self._pinned += loan.pinned
        if loan.devices and loan.is_pinned is not was_pinned:
            (self._devices.pin if loan.is_pinned else self._devices.unpin)(loan.devices)
        effects: list[Effect] = []
        self._advance(effects)
        self._settle(effects)
        return effects

    def _settle(self, effects: list[Effect]) -> None:
        """Tell holders that leases are wanted, or no longer."""
        if self._waiting:
            told, new = self._told, dict[HolderKey, None]()
            if self._contended:
                for effect in effects:
                    if isinstance(effect, Grant) and effect.holder not in told:
                        new[effect.holder] = None
            else:
                new = {holder: None for holder in self._lent_to if holder not in told}
            if new:
                told.update(new)
                effects.append(Wanted(tuple(new)))
        elif self._told:
            effects.append(Unwanted(tuple(self._told)))
            self._told.clear()

        self._contended = bool(self._waiting)

    def _report(self, request: Request) -> Infeasible:
        name = request.demand.lacking(self._total)[0]
        units = request.demand.units(name)
        match name:
            case "CPU" | "GPU":
                plural = "" if amount_text(units) == "1" else "s"
                what, option = f"{amount_text(units)} {name}{plural}", f"num_{name.lower()}s"
            case "memory":
                what, option = f"{amount_text(units)} bytes of memory", "memory"
            case _:
                what, option = f"{amount_text(units)} {name}", f"resources={{{name!r}: ...}}"

        largest = amount_text(self._total.units(name))
        message = f"no node has {what} (largest: {largest}); lower {option} or add a node"
        return Infeasible(request.lease, request.holder, message)

    def check(self) -> None:
        """Assert what must hold between calls; the tests run it after every step."""
        loans = self._loans.values()
        assert sum((loan.held for loan in loans), self._free) == self._total
        assert sum((loan.pinned for loan in loans), _NOTHING) == self._pinned
        self._devices.check([loan.devices for loan in loans], self._free)
        queued = {request.lease: line for line in self._lines.values() for *_, request in line}
        assert queued == self._waiting
        assert all(self._lines.values()), "a line without requests"
        assert all(d.fits(self._total) for d in self._lines)
        assert not any(request.demand.fits(self._total) for request in self.infeasible())
        assert self._needed == Counter(name for demand in self._lines for name in demand)
        known = [*self._loans, *self._waiting, *self._infeasible]
        assert len(known) == len(set(known)), "a lease stands in two places"
        assert set(known) == {lease for held in self._leases_of.values() for lease in held}
        assert self._lent_to == Counter(loan.request.holder for loan in loans)
        assert self._lent_to.keys() <= self._told.keys() or not self._waiting
        assert self._waiting or not self._told
        since_oldest = self._since_oldest
        assert self._next() is None, "a request that could be granted waits"
        self._since_oldest = since_oldest
