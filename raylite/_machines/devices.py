"""Devices: which of a node's GPUs, and of its other accelerators, a lease has.

Whole devices go to whole demands. Fractions share: one goes to the device that has the least room
which is enough, so that others stay whole.
"""

from typing import Final

from raylite._types.accelerators import VISIBLE, Shares
from raylite._types.resources import UNIT, Resources

Rooms = list[int]
"""Ten-thousandths, by device."""

NOTHING: Final[Shares] = ()


class Devices:
    """The devices of one node. What fits as an amount may yet fit on no device."""

    def __init__(self, total: Resources) -> None:
        self._total = {name: _rooms(total.units(name)) for name in VISIBLE if name in total}
        self._free = {name: list(rooms) for name, rooms in self._total.items()}
        # What of the total is never lent for good: see `Leases`.
        self._reach = {name: list(rooms) for name, rooms in self._total.items()}
        self.are_any: bool = bool(self._total)

    def lacking(self, demand: Resources) -> tuple[str, ...]:
        """Return those of which no device, or not enough of them, has room for this now."""
        return _lacking(demand, self._free)

    def are_in_reach(self, demand: Resources) -> bool:
        """Say whether this would fit if all that is not pinned came back."""
        return not _lacking(demand, self._reach)

    def take(self, demand: Resources) -> Shares:
        """Lend devices to a demand that lacks none."""
        shares = []
        for name, free in self._free.items():
            if units := demand.units(name):
                chosen = _choose(units, free)
                for device, share in chosen:
                    free[device] -= share
                shares.append((name, chosen))
        return tuple(shares)

    def give_back(self, shares: Shares) -> None:
        """End a loan."""
        _add(shares, self._free, 1)

    def pin(self, shares: Shares) -> None:
        """Note that these do not come back by a task's ending."""
        _add(shares, self._reach, -1)

    def unpin(self, shares: Shares) -> None:
        """Note that they do."""
        _add(shares, self._reach, 1)

    def resize(self, total: Resources) -> None:
        """Change what the node has; what is lent of devices that are gone is owed."""
        for name in VISIBLE:
            rooms = _rooms(total.units(name))
            old = self._total.get(name, [])
            count = max(len(rooms), len(old))
            rooms += [0] * (count - len(rooms))
            if not count:
                continue
            for kind in (self._free, self._reach):
                now = kind.setdefault(name, [])
                now += [0] * (count - len(now))
                for device, room in enumerate(rooms):
                    now[device] += room - (old[device] if device < len(old) else 0)
            self._total[name] = rooms
        self.are_any = bool(self._total)

    def check(self, loans: list[Shares], free: Resources) -> None:
        """Assert that what is free and what is lent make up the total."""
        for name, rooms in self._total.items():
            lent = [0] * len(rooms)
            for shares in loans:
                for device, share in dict(shares).get(name, ()):
                    assert 0 < share <= UNIT
                    lent[device] += share
            left = [room - used for room, used in zip(rooms, lent, strict=True)]
            assert left == self._free[name]
            assert sum(left) == free.units(name)


def _rooms(units: int) -> Rooms:
    whole, rest = divmod(units, UNIT)
    return [UNIT] * whole + ([rest] if rest else [])


def _lacking(demand: Resources, rooms: dict[str, Rooms]) -> tuple[str, ...]:
    return tuple(
        name
        for name, free in rooms.items()
        if (units := demand.units(name)) and not _has_room(units, free)
    )


def _has_room(units: int, free: Rooms) -> bool:
    whole, rest = divmod(units, UNIT)
    full = sum(room >= UNIT for room in free)
    if full < whole:
        return False
    return not rest or full > whole or any(rest <= room < UNIT for room in free)


def _choose(units: int, free: Rooms) -> tuple[tuple[int, int], ...]:
    whole, rest = divmod(units, UNIT)
    full = [device for device, room in enumerate(free) if room >= UNIT]
    chosen = [(device, UNIT) for device in full[:whole]]
    if rest:
        partial = [(room, device) for device, room in enumerate(free) if rest <= room < UNIT]
        chosen.append((min(partial)[1] if partial else full[whole], rest))
    return tuple(chosen)


def _add(shares: Shares, rooms: dict[str, Rooms], sign: int) -> None:
    for name, chosen in shares:
        for device, share in chosen:
            rooms[name][device] += sign * share
