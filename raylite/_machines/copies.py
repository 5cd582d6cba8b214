"""Copies: the objects of other nodes that were brought to this one, and until when they stay.

A copy that somebody reads is pinned. One that nobody reads stays as long as there is room for it:
when there is none, those go first that were last read the longest time ago. One that its owner has
made the primary stays until the owner drops it. What is dropped while it is pinned goes when the
last reader has let go; until then, nobody new is given it.

Every copy has a `room`, its name in the store, which no other copy ever had: so that what is said
of one that has gone is never taken for its successor.
"""

from collections.abc import Hashable, Iterable

from msgspec import Struct, field

from raylite._types.keys import ObjectKey


class Copy(Struct):
    """A whole object, here. `owner` is its owner's address."""

    key: ObjectKey
    room: bytes
    offset: int
    size: int
    owner: str
    pins: dict[Hashable, None] = field(default_factory=dict)
    is_primary: bool = False


class Discard(Struct, frozen=True):
    """Give this copy's room back; with `is_news`, its owner does not know yet."""

    copy: Copy
    is_news: bool


class Copies:
    """The copies of one node."""

    def __init__(self) -> None:
        self._copies: dict[ObjectKey, Copy] = {}
        # Those that may be evicted, the one to go first at the beginning.
        self._idle: dict[ObjectKey, None] = {}
        # Those that nobody new is given, by room.
        self._leaving: dict[bytes, Copy] = {}
        #: How many bytes eviction could give back.
        self.evictable: int = 0

    def add(self, copy: Copy) -> list[Discard]:
        """A copy is complete; whoever needs it should `pin` it before anything else happens."""
        effects = self.drop(copy.key)
        self._copies[copy.key] = copy
        self._rest(copy)
        return effects

    def find(self, key: ObjectKey) -> Copy | None:
        """Return the copy of an object, if it is here. Asking counts as reading."""
        copy = self._copies.get(key)
        if key in self._idle:
            del self._idle[key]
            self._idle[key] = None
        return copy

    def pin(self, key: ObjectKey, reader: Hashable) -> Copy | None:
        """Somebody begins to read an object; None if it is not here."""
        copy = self._copies.get(key)
        if copy is not None:
            self._rouse(copy)
            copy.pins[reader] = None
        return copy

    def unpin(self, copy: Copy, reader: Hashable) -> list[Discard]:
        """Somebody has read it; saying so again changes nothing."""
        copy.pins.pop(reader, None)
        if copy.pins:
            return []
        if self._leaving.pop(copy.room, None) is not None:
            return [Discard(copy, is_news=False)]
        if self._copies.get(copy.key) is copy:
            self._rest(copy)
        return []

    def make_primary(self, key: ObjectKey) -> bool:
        """The owner relies on this copy from now on; False if it is not here."""
        copy = self._copies.get(key)
        if copy is None:
            return False
        self._rouse(copy)
        copy.is_primary = True
        return True

    def drop(self, key: ObjectKey) -> list[Discard]:
        """The owner does not want this copy any more, or another is to take its place."""
        copy = self._copies.pop(key, None)
        return [] if copy is None else self._leave([copy])

    def owner_died(self, owner: str) -> list[Discard]:
        """Nobody will free this owner's objects, or find them."""
        owned = [copy for copy in self._copies.values() if copy.owner == owner]
        for copy in owned:
            del self._copies[copy.key]
        return self._leave(owned)

    def evict(self) -> list[Discard]:
        """Give up the copy that was last read the longest time ago, if there is one to give up."""
        for key in self._idle:
            copy = self._copies.pop(key)
            self._rouse(copy)
            return [Discard(copy, is_news=True)]
        return []

    def check(self) -> None:
        """Assert what holds between calls."""
        idle = [c for c in self._copies.values() if not (c.pins or c.is_primary)]
        assert {copy.key for copy in idle} == self._idle.keys()
        assert self.evictable == sum(copy.size for copy in idle)
        assert all(copy.key == key for key, copy in self._copies.items())
        assert all(copy.pins for copy in self._leaving.values()), "left, and nobody reads it"
        staying = {copy.room for copy in self._copies.values()}
        assert not staying & self._leaving.keys()

    def _leave(self, copies: Iterable[Copy]) -> list[Discard]:
        effects: list[Discard] = []
        for copy in copies:
            self._rouse(copy)
            if copy.pins:
                self._leaving[copy.room] = copy
            else:
                effects.append(Discard(copy, is_news=False))
        return effects

    def _rest(self, copy: Copy) -> None:
        if copy.key not in self._idle and not copy.is_primary:
            self._idle[copy.key] = None
            self.evictable += copy.size

    def _rouse(self, copy: Copy) -> None:
        if copy.key in self._idle:
            del self._idle[copy.key]
            self.evictable -= copy.size
