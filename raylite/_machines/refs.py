"""References: who still needs an object, as this process knows it.

Every object that this process owns or borrows has one `Reference`. It lives while something holds
it: a Python `ObjectRef` (`local`), a task that was submitted with it (`submitted`), a zero-copy view
of its bytes (`views`), the value of another object (`contained`), or, if it is owned here, another
process (`borrowers`). When the last hold goes, an owned object is freed; a borrowed one is given up
to its owner.

Borrowers are a set, not a counter, so a repeated message changes nothing. A borrower may let go
before the news of its borrowing arrives, since the two come from different processes: what it gives
up early is remembered and cancels the borrowing.
"""

from dataclasses import dataclass

from raylite._types.keys import ObjectKey


class Reference:
    """One object's holds. `owner` is the owner's address, empty for this process."""

    __slots__ = ("borrowers", "contained", "holds", "id", "local", "owner", "submitted", "views")

    def __init__(self, id: ObjectKey, owner: str = "", local: int = 0) -> None:
        self.id = id
        self.owner = owner
        self.local = local
        self.submitted = 0
        self.views = 0
        self.contained = 0
        self.borrowers: dict[str, None] | None = None
        self.holds: tuple[Reference, ...] = ()  # what this object's value contains

    @property
    def is_held(self) -> bool:
        return bool(self.local or self.submitted or self.views or self.contained or self.borrowers)

    @property
    def is_held_here(self) -> bool:
        """Whether this process itself, not counting tasks under way, holds it."""
        return bool(self.local or self.views or self.contained)


@dataclass(frozen=True, slots=True)
class Free:
    """Nothing holds this owned object any more: its value can go."""

    reference: Reference


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Nothing here holds this borrowed object any more: tell its owner."""

    reference: Reference


Effect = Free | GiveUp
_NOTHING: list[Effect] = []  # shared, and never changed: most drops end nothing


class Refs:
    """The references of one process, by object."""

    def __init__(self) -> None:
        self.table: dict[ObjectKey, Reference] = {}
        self._early: dict[tuple[ObjectKey, str], None] = {}

    def add(self, reference: Reference) -> None:
        """Begin to keep a reference that something holds."""
        self.table[reference.id] = reference

    def dropped_local(self, reference: Reference) -> list[Effect]:
        """A Python reference died."""
        reference.local -= 1
        return _NOTHING if reference.is_held else self._end(reference)

    def dropped_submitted(self, reference: Reference) -> list[Effect]:
        """A task that was given the object has ended."""
        reference.submitted -= 1
        return _NOTHING if reference.is_held else self._end(reference)

    def dropped_view(self, reference: Reference) -> list[Effect]:
        """The last zero-copy view made by one read of the object died."""
        reference.views -= 1
        return _NOTHING if reference.is_held else self._end(reference)

    def contains(self, outer: Reference, inner: tuple[Reference, ...]) -> None:
        """The value of `outer` holds these."""
        outer.holds += inner
        for reference in inner:
            reference.contained += 1

    def borrowed(self, id: ObjectKey, borrower: str) -> list[Effect]:
        """Another process holds an object of ours."""
        if (id, borrower) in self._early:
            del self._early[id, borrower]
            return _NOTHING
        reference = self.table.get(id)
        if reference is not None:
            if reference.borrowers is None:
                reference.borrowers = {}
            reference.borrowers[borrower] = None
        return _NOTHING

    def gave_up(self, id: ObjectKey, borrower: str) -> list[Effect]:
        """Another process holds an object of ours no more."""
        reference = self.table.get(id)
        if reference is None:
            return _NOTHING
        if reference.borrowers is None or borrower not in reference.borrowers:
            self._early[id, borrower] = None
            return _NOTHING
        del reference.borrowers[borrower]
        return _NOTHING if reference.is_held else self._end(reference)

    def borrower_died(self, borrower: str) -> list[Effect]:
        """A process ended: whatever it borrowed, it holds no more."""
        effects: list[Effect] = []
        for early in [key for key in self._early if key[1] == borrower]:
            del self._early[early]
        for reference in list(self.table.values()):
            if reference.borrowers and borrower in reference.borrowers:
                del reference.borrowers[borrower]
                if not reference.is_held:
                    effects += self._end(reference)
        return effects

    def owned_by(self, owner: str) -> list[Reference]:
        """What is borrowed from one owner."""
        return [reference for reference in self.table.values() if reference.owner == owner]

    def _end(self, reference: Reference) -> list[Effect]:
        """End a reference and, one after another, those that only its value held."""
        effects: list[Effect] = []
        ending = [reference]
        while ending:
            last = ending.pop()
            if self.table.pop(last.id, None) is None:
                continue
            effects.append(GiveUp(last) if last.owner else Free(last))
            if self._early:
                for early in [key for key in self._early if key[0] == last.id]:
                    del self._early[early]
            holds, last.holds = last.holds, ()
            for inner in holds:
                inner.contained -= 1
                if not inner.is_held:
                    ending.append(inner)
        return effects

    def check(self) -> None:
        """Assert what holds between calls."""
        contained: dict[ObjectKey, int] = {}
        for id, reference in self.table.items():
            assert reference.id == id
            assert reference.is_held, f"{id.hex()} is kept and nothing holds it"
            assert min(reference.local, reference.submitted, reference.views) >= 0
            assert not (reference.borrowers and reference.owner), "only owners have borrowers"
            for inner in reference.holds:
                contained[inner.id] = contained.get(inner.id, 0) + 1
        for id, reference in self.table.items():
            assert reference.contained == contained.get(id, 0)
