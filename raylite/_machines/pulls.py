"""Pulls: the objects of other nodes that a raylet brings to its own.

Which of them may come now, `admission` decides. Each is given room in the store, comes in chunks
from one source drawn from those known, and is sealed: once, whoever needs it, and no longer when
nobody does. When its source dies or refuses, what is missing comes from another. When none is left
the owner is asked, with growing delays, until it names one or says that the object is lost.

Every attempt at an object has a number (`pull`), which effects and answers carry: what comes late,
twice or for an attempt that has ended is ignored.
"""

from collections.abc import Collection, Hashable, Iterable, Mapping
from enum import Enum, auto

from msgspec import Struct, field

from raylite._machines.admission import Admission, Admit, Priority, Suspend
from raylite._machines.chunks import CHUNK, WINDOW, Chunks, Lines
from raylite._machines.policies import Draw, draw
from raylite._machines.retries import retry_delay
from raylite._types.keys import ObjectKey
from raylite._types.strategies import NodeKey


class Failure(Enum):
    """Why an object will not come."""

    LOST = auto()
    OWNER_DIED = auto()
    NO_ROOM = auto()


class AskLocations(Struct, frozen=True):
    """Have the owner tell who has the object, now and on changes; `without` said they have not."""

    object_id: ObjectKey
    owner: bytes
    without: tuple[NodeKey, ...]


class Unsubscribe(Struct, frozen=True):
    """The owner need not tell any more."""

    object_id: ObjectKey
    owner: bytes


class Allocate(Struct, frozen=True):
    """Find room in the local store; answer with `allocated` or `allocation_refused`."""

    pull: int
    object_id: ObjectKey
    size: int
    owner: bytes


class RequestChunk(Struct, frozen=True):
    """Have a source send some bytes; they come to `arrived`, or it answers with `refused`.

    If it `is_relayed`, the source cannot be reached, and another node is to hand them on.
    """

    pull: int
    source: NodeKey
    object_id: ObjectKey
    offset: int
    size: int
    is_relayed: bool = False


class Write(Struct, frozen=True):
    """Put the bytes that have just arrived into the store."""

    pull: int
    offset: int
    size: int


class Seal(Struct, frozen=True):
    """All bytes are written: the object is local, and its owner is to know."""

    pull: int
    object_id: ObjectKey


class Abort(Struct, frozen=True):
    """Give back the room of this attempt, or stop looking for it."""

    pull: int


class Fulfilled(Struct, frozen=True):
    """All objects of the request are local."""

    request: Hashable


class Failed(Struct, frozen=True):
    """The request is over because this object will not come."""

    request: Hashable
    object_id: ObjectKey
    failure: Failure
    message: str


Transfer = Allocate | RequestChunk | Write | Seal | Abort
Effect = AskLocations | Unsubscribe | Transfer | Fulfilled | Failed


class _State(Enum):
    """Where an object stands; the last two are those of an attempt at it."""

    IDLE = auto()
    ALLOCATING = auto()
    FETCHING = auto()


class _Object(Struct):
    id: ObjectKey
    owner: bytes
    size: int = 0
    # Who has it, as far as is known, and who said that they have not.
    sources: dict[NodeKey, None] = field(default_factory=dict)
    refused: dict[NodeKey, None] = field(default_factory=dict)
    # How often the owner was asked since a chunk came, and when it is to be asked again.
    asked: int = 0
    ask_at: float | None = None
    # The attempt.
    state: _State = _State.IDLE
    pull: int = 0
    chunks: Chunks = field(default_factory=lambda: Chunks(0))
    source: NodeKey | None = None


class Pulls:
    """One raylet's pulls; every method returns the effects to carry out, in order."""

    def __init__(
        self, local: NodeKey, budget: int, random: Draw, chunk: int = CHUNK, window: int = WINDOW
    ) -> None:
        self._local, self._random, self._chunk = local, random, chunk
        self._admission = Admission(budget)
        self._lines = Lines(window)
        self._objects: dict[ObjectKey, _Object] = {}
        self._pulls: dict[int, _Object] = {}
        self._loose: dict[NodeKey, None] = {}  # sources that may have room in their window
        self._unreachable: dict[NodeKey, None] = {}
        self._last_pull = 0

    def request(
        self, id: Hashable, objects: Mapping[ObjectKey, bytes], priority: Priority, now: float
    ) -> list[Effect]:
        """Pull objects, given with their owners; a request that is known already is ignored."""
        if id in self._admission:
            return []
        if not objects:
            return [Fulfilled(id)]
        self._admission.add(id, objects, priority)
        effects: list[Effect] = []
        for object_id, owner in objects.items():
            if object_id not in self._objects:
                entry = self._objects[object_id] = _Object(object_id, owner)
                self._ask(entry, now, effects)
        return self._advance(now, effects)

    def cancel(self, id: Hashable, now: float) -> list[Effect]:
        """A request is over for whoever made it."""
        effects: list[Effect] = []
        if id in self._admission:
            self._remove(id, effects)
        return self._advance(now, effects)

    def located(
        self, object_id: ObjectKey, size: int, nodes: Collection[NodeKey], now: float
    ) -> list[Effect]:
        """The owner tells who has an object; nobody at present, if `nodes` is empty."""
        entry, effects = self._objects.get(object_id), list[Effect]()
        if entry is None or size < 0:
            return []
        excluded = {self._local, *entry.refused}
        entry.sources = {node: None for node in sorted(nodes) if node not in excluded}
        if entry.sources and size != entry.size:
            # It was rebuilt, and what has come may be part of another value.
            again = entry.state is not _State.IDLE
            self._abort(entry, effects)
            entry.size = size
            self._admission.located(object_id, size)
            if again:
                self._start(entry, effects)
        self._resume(entry, now, effects)
        return self._advance(now, effects)

    def lost(self, object_id: ObjectKey, now: float) -> list[Effect]:
        """The owner tells that an object is gone for good."""
        return self._fail([object_id], Failure.LOST, "every copy of it is lost", now)

    def owner_died(self, owner: bytes, now: float) -> list[Effect]:
        """Nobody can tell any more where the owner's objects are, and they are freed."""
        owned = [entry.id for entry in self._objects.values() if entry.owner == owner]
        return self._fail(owned, Failure.OWNER_DIED, f"its owner {owner.hex()} died", now)

    def node_died(self, node: NodeKey, now: float) -> list[Effect]:
        """A source is gone."""
        effects: list[Effect] = []
        self._unreachable.pop(node, None)
        concerned = [e for e in self._objects.values() if node in e.sources or e.source == node]
        for entry in concerned:
            self._turn_from(entry, node)
        for entry in concerned:
            self._resume(entry, now, effects)
        return self._advance(now, effects)

    def unreachable(self, node: NodeKey, now: float) -> list[Effect]:
        """A source cannot be reached, which may last: what it was asked for is asked of others.

        Of nodes that have the object, if there are any; else of those that can reach this one.
        """
        if node in self._unreachable:
            return []
        effects: list[Effect] = []
        self._unreachable[node] = None
        for entry in [each for each in self._objects.values() if each.source == node]:
            self._detach(entry)
            self._resume(entry, now, effects)
        return self._advance(now, effects)

    def reachable(self, node: NodeKey) -> None:
        """A source can be reached again."""
        self._unreachable.pop(node, None)

    def allocated(self, pull: int, now: float) -> list[Effect]:
        """There is room; if nobody needs it any more, it is given back."""
        entry, effects = self._pulls.get(pull), list[Effect]()
        if entry is None:
            return [Abort(pull)]
        if entry.state is _State.ALLOCATING:
            entry.state = _State.FETCHING
            if entry.chunks.is_complete:  # it is empty
                self._seal(entry, effects)
            else:
                self._resume(entry, now, effects)
        return self._advance(now, effects)

    def allocation_refused(self, pull: int, message: str, now: float) -> list[Effect]:
        """There will be no room."""
        concerned = [self._pulls[pull].id] if pull in self._pulls else []
        return self._fail(concerned, Failure.NO_ROOM, message, now)

    def arrived(
        self, pull: int, source: NodeKey, offset: int, size: int, now: float
    ) -> list[Effect]:
        """A chunk came. One of the wrong size is as good as a refusal."""
        entry, effects = self._pulls.get(pull), list[Effect]()
        if entry is None or entry.source != source or offset not in entry.chunks.flying:
            return []
        if not self._lines.came(source, entry.id, offset, size):
            return self.refused(pull, source, now)
        entry.asked = 0
        effects.append(Write(pull, offset, size))
        if entry.chunks.is_complete:
            self._seal(entry, effects)
        self._loose[source] = None
        return self._advance(now, effects)

    def refused(self, pull: int, source: NodeKey, now: float) -> list[Effect]:
        """A source has not got the object."""
        entry, effects = self._pulls.get(pull), list[Effect]()
        if entry is None or entry.source != source:
            return []
        entry.refused[source] = None
        self._turn_from(entry, source)
        self._resume(entry, now, effects)
        return self._advance(now, effects)

    def became_local(self, object_id: ObjectKey, now: float) -> list[Effect]:
        """The object came to be here in another way: it was made here, or restored."""
        effects: list[Effect] = []
        if (entry := self._objects.get(object_id)) is not None:
            self._abort(entry, effects)
            self._finish(entry, effects)
        return self._advance(now, effects)

    def set_budget(self, budget: int, now: float) -> list[Effect]:
        """Change how many bytes may be on their way: what is free, and what is allocated to them."""
        self._admission.set_budget(budget)
        return self._advance(now, [])

    def expire(self, now: float) -> list[Effect]:
        """Ask again about objects that nobody is known to have."""
        effects: list[Effect] = []
        for entry in self._objects.values():
            if entry.ask_at is not None and entry.ask_at <= now:
                # Whoever refused may have been given the object since.
                self._ask(entry, now, effects)
                entry.refused.clear()
        return effects

    def next_expiry(self) -> float | None:
        """The moment from which `expire` has something to do."""
        moments = (entry.ask_at for entry in self._objects.values() if entry.ask_at is not None)
        return min(moments, default=None)

    def check(self) -> None:
        """Assert what holds between calls."""
        self._admission.check()
        self._lines.check()
        assert not self._loose
        entries = self._objects.values()
        assert self._pulls == {entry.pull: entry for entry in entries if entry.pull}
        sources = {entry.id: entry.source for entry in entries if entry.source is not None}
        assert self._lines.sources() == sources
        for entry in entries:
            assert self._admission.requests_of(entry.id), "pulled for nobody"
            assert self._admission.is_admitted(entry.id) == (entry.state is not _State.IDLE)
            assert (entry.state is _State.IDLE) == (not entry.pull)
            assert entry.state is _State.FETCHING or entry.source is None
            assert entry.state is not _State.FETCHING or entry.source or not entry.sources
            assert (entry.ask_at is None) == bool(entry.sources or entry.source)
            assert not entry.sources.keys() & {*entry.refused, self._local}

    def _advance(self, now: float, effects: list[Effect]) -> list[Effect]:
        while changes := self._admission.advance():
            for change in changes:
                entry = self._objects[change.object_id]
                match change:
                    case Admit():
                        self._start(entry, effects)
                    case Suspend():
                        self._abort(entry, effects)
                        self._resume(entry, now, effects)
        for source in self._loose:
            for object_id, chunk in self._lines.fill(source):
                pull = self._objects[object_id].pull
                is_relayed = source in self._unreachable
                effects.append(
                    RequestChunk(pull, source, object_id, chunk.offset, chunk.size, is_relayed)
                )
        self._loose.clear()
        return effects

    def _start(self, entry: _Object, effects: list[Effect]) -> None:
        """Begin an attempt."""
        self._last_pull += 1
        entry.state, entry.pull = _State.ALLOCATING, self._last_pull
        entry.chunks = Chunks(entry.size, self._chunk)
        self._pulls[entry.pull] = entry
        effects.append(Allocate(entry.pull, entry.id, entry.size, entry.owner))

    def _resume(self, entry: _Object, now: float, effects: list[Effect]) -> None:
        """Go on, as far as sources are known, or find some."""
        if entry.sources:
            self._admission.located(entry.id, entry.size)
        else:
            self._admission.unlocated(entry.id)
        near = [source for source in entry.sources if source not in self._unreachable]
        if near and entry.source in self._unreachable:
            self._detach(entry)
        if entry.state is _State.FETCHING and entry.source is None and entry.sources:
            entry.source = draw(near or list(entry.sources), self._random)
            priority = self._admission.priority(entry.id)
            self._lines.join(entry.source, entry.id, entry.chunks, priority)
            self._loose[entry.source] = None
        if entry.sources or entry.source is not None:
            entry.ask_at = None
        elif entry.ask_at is None:
            self._ask(entry, now, effects)

    def _ask(self, entry: _Object, now: float, effects: list[Effect]) -> None:
        effects.append(AskLocations(entry.id, entry.owner, tuple(entry.refused)))
        entry.asked += 1
        entry.ask_at = now + retry_delay(entry.asked + 1, self._random())

    def _turn_from(self, entry: _Object, node: NodeKey) -> None:
        entry.sources.pop(node, None)
        if entry.source == node:
            self._detach(entry)

    def _detach(self, entry: _Object) -> None:
        if entry.source is not None:
            self._lines.leave(entry.source, entry.id)
            self._loose[entry.source] = None
            entry.source = None

    def _abort(self, entry: _Object, effects: list[Effect]) -> None:
        """End the attempt, if there is one."""
        if entry.pull:
            effects.append(Abort(entry.pull))
            self._close(entry)

    def _close(self, entry: _Object) -> None:
        self._detach(entry)
        del self._pulls[entry.pull]
        entry.state, entry.pull = _State.IDLE, 0

    def _seal(self, entry: _Object, effects: list[Effect]) -> None:
        effects.append(Seal(entry.pull, entry.id))
        self._close(entry)
        self._finish(entry, effects)

    def _finish(self, entry: _Object, effects: list[Effect]) -> None:
        del self._objects[entry.id]
        effects.append(Unsubscribe(entry.id, entry.owner))
        effects += map(Fulfilled, self._admission.done(entry.id))

    def _fail(
        self, objects: Iterable[ObjectKey], failure: Failure, message: str, now: float
    ) -> list[Effect]:
        effects: list[Effect] = []
        for object_id in objects:
            for id in self._admission.requests_of(object_id):
                effects.append(Failed(id, object_id, failure, message))
                self._remove(id, effects)
        return self._advance(now, effects)

    def _remove(self, id: Hashable, effects: list[Effect]) -> None:
        """End a request, and the pulls of what it alone needed."""
        for object_id in self._admission.remove(id):
            entry = self._objects.pop(object_id)
            self._abort(entry, effects)
            effects.append(Unsubscribe(object_id, entry.owner))
