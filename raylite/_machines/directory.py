"""Directory: which nodes hold a copy of each large object that this process owns.

One copy is the *primary*: its raylet keeps it until it is told to drop it. The others were pulled
and may be evicted at any time. When the primary goes and there is another, that one is pinned in
its place; when the last goes, the object is lost, and its owner rebuilds it or gives it up.

A raylet numbers what it tells of its copies, so that news may come late or twice: what is not newer
than the last news of the same object and node is old. A copy that nobody expects, because the
object was freed in the meantime, is dropped where it is: nothing else would ever free it.
"""

from collections.abc import Iterable
from enum import Enum, auto
from typing import Final

from msgspec import Struct, field

from raylite._types.keys import ObjectKey
from raylite._types.strategies import NodeKey

DEAD_KEPT: Final = 10_000
"""Nodes remembered as dead. Of one forgotten, late news would count: a pull would correct it."""


class Tell(Struct, frozen=True):
    """These raylets are to know who has the object now; nobody, if `nodes` is empty."""

    subscribers: tuple[NodeKey, ...]
    object_id: ObjectKey
    size: int
    nodes: tuple[NodeKey, ...]


class TellLost(Struct, frozen=True):
    """These raylets wait in vain: the object is gone for good. They are subscribed no more."""

    subscribers: tuple[NodeKey, ...]
    object_id: ObjectKey


class Pin(Struct, frozen=True):
    """This node's copy is the primary from now on; if it has gone meanwhile, news of that comes."""

    object_id: ObjectKey
    node: NodeKey


class Lost(Struct, frozen=True):
    """No copy is left: rebuild the object, unless that is under way, or `give_up` on it."""

    object_id: ObjectKey


class Drop(Struct, frozen=True):
    """This node's copy is not wanted any more."""

    object_id: ObjectKey
    node: NodeKey


class Verify(Struct, frozen=True):
    """Have this node tell anew whether it has a copy."""

    object_id: ObjectKey
    node: NodeKey


Effect = Tell | TellLost | Pin | Lost | Drop | Verify


class _State(Enum):
    """What is to be expected of an object; one that was freed has no state."""

    EXPECTED = auto()  # its task runs, or runs again
    PRESENT = auto()
    LOST = auto()
    GIVEN_UP = auto()


class _Object(Struct):
    state: _State = _State.EXPECTED
    size: int = 0
    # In the order in which they came; the primary is one of them.
    copies: dict[NodeKey, None] = field(default_factory=dict)
    primary: NodeKey | None = None
    # The latest news of each node, of copies that have gone too.
    numbers: dict[NodeKey, int] = field(default_factory=dict)
    subscribers: dict[NodeKey, None] = field(default_factory=dict)


class Directory:
    """The copies of one owner's objects."""

    def __init__(self) -> None:
        self._objects: dict[ObjectKey, _Object] = {}
        # What would have to change if a node died.
        self._concerned: dict[NodeKey, dict[ObjectKey, None]] = {}
        self._dead: dict[NodeKey, None] = {}

    def expect(self, object_id: ObjectKey) -> list[Effect]:
        """An object exists from now on, or is being rebuilt, though no node may have it yet."""
        entry = self._objects.setdefault(object_id, _Object())
        if entry.state is not _State.PRESENT:
            entry.state = _State.EXPECTED

        return []

    def added(
        self, object_id: ObjectKey, node: NodeKey, size: int, number: int, *, primary: bool = False
    ) -> list[Effect]:
        """A node has a copy; with `primary` it has pinned it already."""
        entry = self._objects.get(object_id)
        if node in self._dead:
            return self._lose(object_id, entry) if entry and entry.state is _State.EXPECTED else []

        if entry is None:
            return [Drop(object_id, node)]

        if not self._is_news(object_id, entry, node, number):
            return []

        # A rebuilt object may have another value than an old copy: they are never mixed.
        if entry.state is _State.GIVEN_UP or (entry.copies and size != entry.size):
            return [Drop(object_id, node)]

        if node in entry.copies:
            return []

        entry.state, entry.size = _State.PRESENT, size
        entry.copies[node] = None
        effects: list[Effect] = []
        if entry.primary is None:
            entry.primary = node
            if not primary:
                effects.append(Pin(object_id, node))

        return [*effects, *self._tell(object_id, entry)]

    def removed(self, object_id: ObjectKey, node: NodeKey, number: int) -> list[Effect]:
        """A node has a copy no more, or has none."""
        entry = self._objects.get(object_id)
        if entry is None or node in self._dead or not self._is_news(object_id, entry, node, number):
            return []

        return self._remove(object_id, entry, node)

    def doubted(self, object_id: ObjectKey, node: NodeKey) -> list[Effect]:
        """Somebody asked this node for its copy and was told that it has none."""
        entry = self._objects.get(object_id)
        return [Verify(object_id, node)] if entry is not None and node in entry.copies else []

    def node_died(self, node: NodeKey) -> list[Effect]:
        """A node's copies are gone, and it subscribes to nothing."""
        self._dead[node] = None
        if len(self._dead) > DEAD_KEPT:
            del self._dead[next(iter(self._dead))]

        effects: list[Effect] = []
        for object_id in self._concerned.pop(node, {}):
            entry = self._objects[object_id]
            entry.numbers.pop(node, None)
            entry.subscribers.pop(node, None)
            effects += self._remove(object_id, entry, node)

        return effects

    def subscribe(self, object_id: ObjectKey, node: NodeKey) -> list[Effect]:
        """A raylet is told who has the object: now, and whenever that changes."""
        entry = self._objects.get(object_id)
        if node in self._dead:
            return []

        if entry is None or entry.state is _State.GIVEN_UP:
            return [TellLost((node,), object_id)]

        entry.subscribers[node] = None
        self._concerned.setdefault(node, {})[object_id] = None
        return [Tell((node,), object_id, entry.size, tuple(entry.copies))]

    def unsubscribe(self, object_id: ObjectKey, node: NodeKey) -> list[Effect]:
        """A raylet wants to hear no more."""
        if (entry := self._objects.get(object_id)) is not None:
            entry.subscribers.pop(node, None)
            self._unconcern(object_id, entry, node)

        return []

    def give_up(self, object_id: ObjectKey) -> list[Effect]:
        """A lost object will not be rebuilt. If a copy has turned up after all, it is not lost."""
        entry = self._objects.get(object_id)
        if entry is None or entry.state is _State.PRESENT:
            return []

        entry.state = _State.GIVEN_UP
        return self._tell_lost(object_id, entry)

    def freed(self, object_id: ObjectKey) -> list[Effect]:
        """Nobody needs the object any more; it is never expected again."""
        entry = self._objects.get(object_id)
        if entry is None:
            return []

        effects = self._tell_lost(object_id, entry)
        for node in [*entry.numbers]:
            del entry.numbers[node]
            self._unconcern(object_id, entry, node)

        del self._objects[object_id]
        return [*effects, *(Drop(object_id, node) for node in entry.copies)]

    def locations(self, object_id: ObjectKey) -> tuple[NodeKey, ...]:
        """Return the nodes that have a copy, in the order in which they got it."""
        entry = self._objects.get(object_id)
        return tuple(entry.copies) if entry is not None else ()

    def held(self, objects: Iterable[ObjectKey]) -> dict[NodeKey, int]:
        """Return how many bytes of these objects each node has: see `policies.first_raylet`."""
        sizes: dict[NodeKey, int] = {}
        for object_id in objects:
            if (entry := self._objects.get(object_id)) is not None:
                for node in entry.copies:
                    sizes[node] = sizes.get(node, 0) + entry.size

        return sizes

    def check(self) -> None:
        """Assert what holds between calls."""
        concerned: dict[NodeKey, set[ObjectKey]] = {}
        for object_id, entry in self._objects.items():
            assert (entry.state is _State.PRESENT) == bool(entry.copies)
            assert entry.primary in entry.copies if entry.copies else entry.primary is None
            assert entry.copies.keys() <= entry.numbers.keys()
            assert not (entry.subscribers and entry.state is _State.GIVEN_UP)
            for node in entry.numbers.keys() | entry.subscribers.keys():
                concerned.setdefault(node, set()).add(object_id)

        assert concerned == {node: set(objects) for node, objects in self._concerned.items()}
        assert not concerned.keys() & self._dead.keys(), "the dead have copies or subscribe"
        assert len(self._dead) <= DEAD_KEPT

    def _is_news(self, object_id: ObjectKey, entry: _Object, node: NodeKey, number: int) -> bool:
        if number <= entry.numbers.get(node, -1):
            return False

        entry.numbers[node] = number
        self._concerned.setdefault(node, {})[object_id] = None
        return True

    def _remove(self, object_id: ObjectKey, entry: _Object, node: NodeKey) -> list[Effect]:
        if node not in entry.copies:
            return []

        del entry.copies[node]
        if not entry.copies:
            entry.primary = None
            return [*self._lose(object_id, entry), *self._tell(object_id, entry)]

        effects: list[Effect] = []
        if entry.primary == node:
            entry.primary = next(iter(entry.copies))
            effects.append(Pin(object_id, entry.primary))

        return [*effects, *self._tell(object_id, entry)]

    def _lose(self, object_id: ObjectKey, entry: _Object) -> list[Effect]:
        entry.state = _State.LOST
        return [Lost(object_id)]

    def _tell(self, object_id: ObjectKey, entry: _Object) -> list[Effect]:
        if not entry.subscribers:
            return []

        return [Tell(tuple(entry.subscribers), object_id, entry.size, tuple(entry.copies))]

    def _tell_lost(self, object_id: ObjectKey, entry: _Object) -> list[Effect]:
        subscribers = tuple(entry.subscribers)
        entry.subscribers.clear()
        for node in subscribers:
            self._unconcern(object_id, entry, node)

        return [TellLost(subscribers, object_id)] if subscribers else []

    def _unconcern(self, object_id: ObjectKey, entry: _Object, node: NodeKey) -> None:
        if node in entry.numbers or node in entry.subscribers:
            return

        if (objects := self._concerned.get(node)) is not None:
            objects.pop(object_id, None)
            if not objects:
                del self._concerned[node]
