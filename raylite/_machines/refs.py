"""References: who still needs an object, as this process knows it.

Every object that this process owns or borrows has one `Reference`. It lives while something holds
it: a Python `ObjectRef` (`local`), a task that was submitted with it (`submitted`), a zero-copy view
of its bytes (`views`), the value of another object (`contained`), or, if it is owned here, another
process (`borrowers`). When the last hold goes, an owned object is freed; a borrowed one is given up
to its owner.

A process that borrows an object gives it up once for each time it began to borrow it. The two
messages may come from different processes, so they may overtake each other: a process can let go,
and borrow again, before the news of its first borrowing arrives. So borrowings are counted, by
borrower, and what is given up early is a debt that the late news pays. A borrower's death ends all
its borrowings, whatever the counts.

Objects whose values hold each other in a circle keep each other alive; like Ray, we do not look for
such circles.

What a borrower says may be lost, when a session ends that nobody could resume. Then its holdings are
*reviewed*: it is told what it borrows, as far as is known here, and says which of that it does not
hold. What it has begun to borrow meanwhile is not in question. It says so after all that it has given up,
in the same order of messages, so nothing is counted twice.
"""

from collections.abc import Iterable
from itertools import count

from msgspec import Struct

from raylite._types.keys import ObjectKey

DEBTS_KEPT = 10_000  # objects that were given up early; without a debt, a late borrower just stays


class Reference:
    """One object's holds. `owner` is the owner's address, empty for this process."""

    __slots__ = ("borrowers", "contained", "holds", "id", "local", "owner", "submitted", "views")

    def __init__(self, id: ObjectKey, owner: str = "", local: int = 0) -> None:
        self.id: ObjectKey = id
        self.owner: str = owner
        self.local: int = local
        self.submitted: int = 0
        self.views: int = 0
        self.contained: int = 0
        self.borrowers: dict[str, int] | None = None
        self.holds: tuple[Reference, ...] = ()  # what this object's value contains

    @property
    def is_held(self) -> bool:
        return bool(self.local or self.submitted or self.views or self.contained or self.borrowers)

    @property
    def is_held_here(self) -> bool:
        """Whether this process itself, not counting tasks under way, holds it."""
        return bool(self.local or self.views or self.contained)


class Free(Struct, frozen=True):
    """Nothing holds this owned object any more: its value can go."""

    reference: Reference


class GiveUp(Struct, frozen=True):
    """Nothing here holds this borrowed object any more: tell its owner."""

    reference: Reference


Effect = Free | GiveUp
_NOTHING: list[Effect] = []  # shared, and never changed: most drops end nothing


class _Review(Struct):
    """A borrower is being asked what it holds; `open` is what it did not begin to borrow meanwhile."""

    number: int
    open: dict[ObjectKey, None]


class Refs:
    """The references of one process, by object."""

    def __init__(self) -> None:
        self.table: dict[ObjectKey, Reference] = {}
        self._debts: dict[ObjectKey, dict[str, int]] = {}
        self._reviews: dict[str, _Review] = {}  # by borrower
        self._numbers = count(1)

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

    def contains(self, outer: Reference, inner: tuple[Reference, ...]) -> list[Effect]:
        """The value of `outer` holds these. One that has ended meanwhile holds nothing."""
        if self.table.get(outer.id) is not outer:
            return self._end(*(each for each in inner if not each.is_held))
        outer.holds += inner
        for reference in inner:
            reference.contained += 1
        return _NOTHING

    def borrowed(self, id: ObjectKey, borrower: str) -> list[Effect]:
        """Another process began to hold an object of ours."""
        if self._reviews and (review := self._reviews.get(borrower)) is not None:
            review.open.pop(id, None)
        reference = self.table.get(id)
        if reference is None or self._pays_debt(id, borrower):
            return _NOTHING
        if reference.borrowers is None:
            reference.borrowers = {}
        reference.borrowers[borrower] = reference.borrowers.get(borrower, 0) + 1
        return _NOTHING

    def gave_up(self, id: ObjectKey, borrower: str) -> list[Effect]:
        """Another process ended one of its borrowings of an object of ours."""
        reference = self.table.get(id)
        if reference is None:
            return _NOTHING
        borrowers = reference.borrowers
        if borrowers is None or borrower not in borrowers:
            self._owe(id, borrower)
            return _NOTHING
        borrowers[borrower] -= 1
        if not borrowers[borrower]:
            del borrowers[borrower]
        return _NOTHING if reference.is_held else self._end(reference)

    def review(self, borrower: str) -> tuple[int, list[ObjectKey]]:
        """Return what a process borrows, for it to say what of that it holds no more, and a number.

        The number is for `unheld`. A review that was begun before is over.
        """
        lent = [id for id, each in self.table.items() if borrower in (each.borrowers or ())]
        review = self._reviews[borrower] = _Review(next(self._numbers), dict.fromkeys(lent))
        return review.number, lent

    def unheld(self, borrower: str, number: int, ids: Iterable[ObjectKey]) -> list[Effect]:
        """A process does not hold these, which was asked in the review of this number."""
        review = self._reviews.get(borrower)
        if review is None or review.number != number:
            return _NOTHING
        del self._reviews[borrower]
        ended: list[Reference] = []
        for id in ids:
            reference = self.table.get(id)
            if id in review.open and reference is not None and reference.borrowers:
                if reference.borrowers.pop(borrower, 0) and not reference.is_held:
                    ended.append(reference)
        return self._end(*ended)

    def borrower_died(self, borrower: str) -> list[Effect]:
        """A process ended: whatever it borrowed, it holds no more."""
        self._reviews.pop(borrower, None)
        for id in [id for id, debts in self._debts.items() if borrower in debts]:
            self._settle(id, borrower)
        ended: list[Reference] = []
        for reference in self.table.values():
            if reference.borrowers and reference.borrowers.pop(borrower, 0):
                if not reference.is_held:
                    ended.append(reference)
        return self._end(*ended)

    def owned_by(self, owner: str) -> list[Reference]:
        """What is borrowed from one owner."""
        return [reference for reference in self.table.values() if reference.owner == owner]

    def _end(self, *references: Reference) -> list[Effect]:
        """End references and, one after another, those that only their values held."""
        effects: list[Effect] = []
        ending = list(references)
        while ending:
            last = ending.pop()
            if self.table.get(last.id) is not last:
                continue  # it ended before; the object may have been borrowed anew since then
            del self.table[last.id]
            self._debts.pop(last.id, None)
            effects.append(GiveUp(last) if last.owner else Free(last))
            holds, last.holds = last.holds, ()
            for inner in holds:
                inner.contained -= 1
                if not inner.is_held:
                    ending.append(inner)
        return effects

    def _owe(self, id: ObjectKey, borrower: str) -> None:
        debts = self._debts.setdefault(id, {})
        debts[borrower] = debts.get(borrower, 0) + 1
        if len(self._debts) > DEBTS_KEPT:
            del self._debts[next(iter(self._debts))]

    def _pays_debt(self, id: ObjectKey, borrower: str) -> bool:
        debts = self._debts.get(id)
        if debts is None or borrower not in debts:
            return False
        debts[borrower] -= 1
        if not debts[borrower]:
            self._settle(id, borrower)
        return True

    def _settle(self, id: ObjectKey, borrower: str) -> None:
        debts = self._debts[id]
        del debts[borrower]
        if not debts:
            del self._debts[id]

    def check(self) -> None:
        """Assert what holds between calls."""
        contained: dict[ObjectKey, int] = {}
        for id, reference in self.table.items():
            assert reference.id == id
            assert reference.is_held, f"{id.hex()} is kept and nothing holds it"
            assert min(reference.local, reference.submitted, reference.views) >= 0
            borrowers = reference.borrowers or {}
            assert not (borrowers and reference.owner), "only owners have borrowers"
            assert all(count > 0 for count in borrowers.values())
            assert not borrowers.keys() & self._debts.get(id, {}).keys(), "a debt is not paid"
            for inner in reference.holds:
                contained[inner.id] = contained.get(inner.id, 0) + 1
        for id, reference in self.table.items():
            assert reference.contained == contained.get(id, 0)
        assert len(self._debts) <= DEBTS_KEPT
        for id, debts in self._debts.items():
            assert id in self.table, "a debt of an object that has ended"
            assert debts
            assert all(count > 0 for count in debts.values())
