"""Admission: which requests may bring their objects to this node now.

A request names all objects that somebody needs at once: those of a `get`, of a `wait`, or all
arguments of a task. It is *active* as a whole or not at all: half of the arguments of many tasks
would fill the store and let none of them run. The objects of active requests are *admitted*.

Requests whose objects are all located become active in order of priority, then of age, while the
bytes of admitted objects stay within the budget; a large one is not overtaken by small ones. For
one that does not fit, active ones of lower priority are suspended: a task that waits in `get` may
hold the very bytes that they wait for. One is active always, though it be too large.
"""

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable
from enum import IntEnum

from msgspec import Struct

from raylite._types.keys import ObjectKey


class Priority(IntEnum):
    """Why objects are wanted; lower goes first, as in Ray."""

    GET = 0
    WAIT = 1
    ARGUMENT = 2


class Admit(Struct, frozen=True):
    """Bring this object."""

    object_id: ObjectKey


class Suspend(Struct, frozen=True):
    """Give up what has come of this object: others go first."""

    object_id: ObjectKey


Effect = Admit | Suspend

# Sorts by priority and age; no two have the same age.
_Place = tuple[int, int, Hashable]


class _Request(Struct):
    place: _Place
    #: What it still needs.
    missing: dict[ObjectKey, None]
    unlocated: int
    active: bool = False


class Admission:
    """The requests of one node, and the objects they need."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._requests: dict[Hashable, _Request] = {}
        self._needed: dict[ObjectKey, dict[Hashable, None]] = {}
        # The sizes of what is located, and the sum of those admitted.
        self._sizes: dict[ObjectKey, int] = {}
        self._admitted: dict[ObjectKey, None] = {}
        self._bytes = 0
        # What was admitted when `advance` was last called.
        self._told: dict[ObjectKey, None] = {}
        self._ready: list[_Place] = []
        self._active: list[_Place] = []
        self._count = 0

    def __contains__(self, request: Hashable) -> bool:
        return request in self._requests

    def add(self, id: Hashable, objects: Iterable[ObjectKey], priority: Priority) -> None:
        """Somebody needs these objects, one at least; see `advance`."""
        self._count += 1
        missing = dict.fromkeys(objects)
        unlocated = sum(object_id not in self._sizes for object_id in missing)
        request = _Request((priority, self._count, id), missing, unlocated)
        self._requests[id] = request
        for object_id in missing:
            self._needed.setdefault(object_id, {})[id] = None

        if not unlocated:
            insort(self._ready, request.place)

    def remove(self, id: Hashable) -> list[ObjectKey]:
        """A request is over; return the objects that nobody needs any more.

        Those are forgotten here, so there will be no `Suspend` of them.
        """
        request = self._requests[id]
        self._leave(request)
        orphans: list[ObjectKey] = []
        for object_id in request.missing:
            del self._needed[object_id][id]
            if not self._needed[object_id]:
                self._forget(object_id)
                orphans.append(object_id)

        return orphans

    def done(self, object_id: ObjectKey) -> list[Hashable]:
        """An object is here; return the requests that need no other, which are over."""
        fulfilled: list[Hashable] = []
        for id in self._needed[object_id]:
            request = self._requests[id]
            del request.missing[object_id]
            if object_id not in self._sizes:
                self._locate(request)

            if not request.missing:
                fulfilled.append(id)
                self._leave(request)

        self._forget(object_id)
        return fulfilled

    def requests_of(self, object_id: ObjectKey) -> list[Hashable]:
        """Return who needs an object."""
        return list(self._needed.get(object_id, ()))

    def is_admitted(self, object_id: ObjectKey) -> bool:
        """Say whether an object may come."""
        return object_id in self._admitted

    def priority(self, object_id: ObjectKey) -> Priority:
        """Return the highest priority of the active requests that need an object."""
        places = (self._requests[id] for id in self._needed[object_id])
        return min(Priority(each.place[0]) for each in places if each.active)

    def located(self, object_id: ObjectKey, size: int) -> None:
        """It is known where an object is, and how large it is."""
        known = self._sizes.get(object_id)
        self._sizes[object_id] = size
        if object_id in self._admitted:
            self._bytes += size - (known or 0)

        if known is None:
            for id in self._needed[object_id]:
                self._locate(self._requests[id])

    def unlocated(self, object_id: ObjectKey) -> None:
        """Nobody is known to have an object. One that is admitted stays so."""
        if object_id in self._admitted or self._sizes.pop(object_id, None) is None:
            return

        for id in self._needed[object_id]:
            self._unready(self._requests[id])
            self._requests[id].unlocated += 1

    def set_budget(self, budget: int) -> None:
        """Change how many bytes may be admitted; see `advance`."""
        self._budget = budget

    def advance(self) -> list[Effect]:
        """Make requests active and suspend others as the rules have it; say what that changed."""
        while self._bytes > self._budget and len(self._active) > 1:
            self._suspend_last()

        while self._ready:
            request = self._requests[self._ready[0][2]]
            if not self._has_its_turn(request):
                break

            self._activate(request)
            while self._bytes > self._budget and self._active[-1][0] > request.place[0]:
                self._suspend_last()

        told, self._told = self._told, dict(self._admitted)
        return [
            *(Suspend(object_id) for object_id in told if object_id not in self._admitted),
            *(Admit(object_id) for object_id in self._admitted if object_id not in told),
        ]

    def check(self) -> None:
        """Assert what holds after `advance`."""
        ready = [r.place for r in self._requests.values() if not (r.active or r.unlocated)]
        assert self._ready == sorted(ready)
        active = [request for request in self._requests.values() if request.active]
        assert self._active == sorted(request.place for request in active)
        assert self._admitted.keys() == {each for request in active for each in request.missing}
        assert self._admitted.keys() <= self._sizes.keys() <= self._needed.keys()
        assert self._bytes == sum(self._sizes[object_id] for object_id in self._admitted)
        assert self._told == self._admitted
        needed: dict[ObjectKey, dict[Hashable, None]] = {}
        for id, request in self._requests.items():
            assert request.missing
            assert request.unlocated == sum(each not in self._sizes for each in request.missing)
            for object_id in request.missing:
                needed.setdefault(object_id, {})[id] = None

        assert needed == self._needed
        assert self._bytes <= self._budget or len(active) == 1
        assert active or not self._ready, "all wait for nobody"
        if self._ready:
            assert not self._has_its_turn(self._requests[self._ready[0][2]])

    def _has_its_turn(self, request: _Request) -> bool:
        """Say whether there is room, when all of lower priority are suspended if need be."""
        sizes = self._sizes
        new = sum(sizes[each] for each in request.missing if each not in self._admitted)
        if self._bytes + new <= self._budget:
            return True

        staying = [place for place in self._active if place[0] <= request.place[0]]
        kept = set(request.missing).union(*(self._requests[id].missing for *_, id in staying))
        return not staying or sum(sizes[object_id] for object_id in kept) <= self._budget

    def _activate(self, request: _Request) -> None:
        self._unready(request)
        request.active = True
        insort(self._active, request.place)
        for object_id in request.missing:
            if object_id not in self._admitted:
                self._admitted[object_id] = None
                self._bytes += self._sizes[object_id]

    def _deactivate(self, request: _Request) -> None:
        request.active = False
        del self._active[bisect_left(self._active, request.place)]
        for object_id in request.missing:
            if not any(self._requests[id].active for id in self._needed[object_id]):
                del self._admitted[object_id]
                self._bytes -= self._sizes[object_id]

    def _leave(self, request: _Request) -> None:
        if request.active:
            self._deactivate(request)
        else:
            self._unready(request)

        del self._requests[request.place[2]]

    def _suspend_last(self) -> None:
        request = self._requests[self._active[-1][2]]
        self._deactivate(request)
        insort(self._ready, request.place)

    def _locate(self, request: _Request) -> None:
        request.unlocated -= 1
        if not request.unlocated:
            insort(self._ready, request.place)

    def _unready(self, request: _Request) -> None:
        if not request.unlocated:
            del self._ready[bisect_left(self._ready, request.place)]

    def _forget(self, object_id: ObjectKey) -> None:
        del self._needed[object_id]
        self._told.pop(object_id, None)
        size = self._sizes.pop(object_id, 0)
        if object_id in self._admitted:
            del self._admitted[object_id]
            self._bytes -= size
