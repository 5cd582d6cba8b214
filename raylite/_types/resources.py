"""Resources: exact amounts of CPU, GPU, memory and custom resources.

Amounts are kept as whole ten-thousandths (`UNIT` of them make one), so that adding and
subtracting fractions never drifts: ten times 0.1 CPU is one CPU.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Final, Self, final

from msgspec import Struct

#: Ten-thousandths in one whole.
UNIT: Final = 10_000

# An amount on the wire is a 64-bit integer of ten-thousandths.
_MOST: Final = 2**63 - 1
_BYTES: Final = frozenset({"memory", "object_store_memory"})
_OPTIONS: Final = {"CPU": "num_cpus", "GPU": "num_gpus"}


@final
class Resources(Struct, eq=False):
    """Amounts by name; a name that is absent has the amount zero.

    Build one with `of`, `from_mapping` or `from_units`. Demands and totals are never negative;
    what is *available* can be, when a task took back the CPU it had lent out while it waited.
    """

    # No zeros, so that equal amounts are equal dicts. Nobody writes to it after construction.
    _units: dict[str, int] = {}
    # Zero until first asked for.
    _hash: int = 0

    @classmethod
    def of(cls, **amounts: float) -> Self:
        """Return the amounts given by name: ``Resources.of(CPU=1, GPU=0.5)``."""
        return cls.from_mapping(amounts)

    @classmethod
    def from_mapping(cls, amounts: Mapping[str, float], *, exact: bool = True) -> Self:
        """Return `amounts`, given in wholes (memory in bytes, rounded down).

        Args:
            amounts: Whole and fractional amounts by resource name.
            exact: Refuse amounts with more than four decimals; when False they are rounded down
                and only those that would vanish are refused. Ray: rounds down, so that three
                tasks with ``num_gpus=1/3`` share a GPU.

        Raises:
            ValueError: An amount is negative, too fine, too large or not a number.
        """
        units = {name: _to_units(name, amount, exact) for name, amount in amounts.items()}
        return cls({name: amount for name, amount in units.items() if amount})

    @classmethod
    def from_units(cls, units: Mapping[str, int], *, signed: bool = False) -> Self:
        """Return what `to_units` gave; a negative amount is a ValueError unless `signed`."""
        if not signed:
            for name, amount in units.items():
                if amount < 0:
                    raise ValueError(f"The quantity of resource {name} cannot be negative")

        return cls({name: amount for name, amount in units.items() if amount})

    def to_units(self) -> dict[str, int]:
        """Return the ten-thousandths by name: the form for messages."""
        return dict(self._units)

    def to_floats(self) -> dict[str, float]:
        """Return the amounts by name as users see them; a resource at zero is absent."""
        return {name: amount / UNIT for name, amount in self._units.items()}

    def left(self) -> dict[str, float]:
        """Return what is available as users see it: what was lent twice for a moment is none."""
        return {name: amount / UNIT for name, amount in self._units.items() if amount > 0}

    def units(self, name: str) -> int:
        """Return the ten-thousandths of one resource."""
        return self._units.get(name, 0)

    def fits(self, available: "Resources") -> bool:
        """Say whether `available` has all of this: ``demand.fits(free)``."""
        have = available._units.get
        for name, amount in self._units.items():  # noqa: SIM110  a generator takes twice as long
            if amount > have(name, 0):
                return False

        return True

    def lacking(self, available: "Resources") -> tuple[str, ...]:
        """Return the resources of which `available` has too little for this."""
        have = available._units.get
        return tuple(name for name, amount in self._units.items() if amount > have(name, 0))

    def uses(self, names: Collection[str]) -> bool:
        """Say whether this has some of any of `names`."""
        return any(name in names for name in self._units)

    def without(self, name: str) -> "Resources":
        """Return all of this but one resource."""
        if name not in self._units:
            return self

        if len(self._units) == 1:
            return _NOTHING

        return Resources({key: amount for key, amount in self._units.items() if key != name})

    def only(self, name: str) -> "Resources":
        """Return one resource of this."""
        amount = self._units.get(name, 0)
        return Resources({name: amount} if amount else {})

    def __add__(self, other: "Resources") -> "Resources":
        if not other._units:
            return self

        units = self._units.copy()
        for name, amount in other._units.items():
            if changed := units.get(name, 0) + amount:
                units[name] = changed
            else:
                del units[name]

        return Resources(units)

    def __sub__(self, other: "Resources") -> "Resources":
        if not other._units:
            return self

        units = self._units.copy()
        for name, amount in other._units.items():
            if changed := units.get(name, 0) - amount:
                units[name] = changed
            else:
                del units[name]

        return Resources(units)

    def __iter__(self) -> Iterator[str]:
        return iter(self._units)

    def __contains__(self, name: object) -> bool:
        return name in self._units

    def __bool__(self) -> bool:
        return bool(self._units)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True

        return isinstance(other, Resources) and self._units == other._units

    # A Struct brings its own, which would compare identities.
    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        if not self._hash:
            self._hash = hash(frozenset(self._units.items())) or 1

        return self._hash

    # Hashes of strings differ between processes, so the kept one must not travel.
    def __reduce__(self) -> tuple[type["Resources"], tuple[dict[str, int]]]:
        return Resources, (self._units,)

    def __repr__(self) -> str:
        amounts = (f"{name}={amount_text(self._units[name])}" for name in self._units)
        return f"Resources({', '.join(amounts)})"


def amount_text(units: int) -> str:
    """Return ten-thousandths as people write them: ``4``, ``0.5``."""
    return str(units // UNIT if units % UNIT == 0 else units / UNIT)


def _to_units(name: str, amount: float, exact: bool) -> int:
    option = _OPTIONS.get(name, name)
    if amount < 0:
        raise ValueError(f"The quantity of resource {option} cannot be negative")

    if not math.isfinite(amount):
        raise ValueError(f"The quantity of resource {option} must be a finite number")

    units = _round(option, amount, exact) if name not in _BYTES else int(amount) * UNIT
    if units > _MOST:
        raise ValueError(f"The quantity of resource {option} is too large")

    return units


def _round(option: str, amount: float, exact: bool) -> int:
    if isinstance(amount, int):
        return amount * UNIT

    scaled = amount * UNIT
    nearest = round(scaled)
    # 0.1 + 0.2 has four decimals for its author, whatever binary makes of it.
    if math.isclose(scaled, nearest, rel_tol=1e-12, abs_tol=1e-6) and (nearest or not amount):
        return nearest

    if exact or scaled < 1:
        raise ValueError(
            f"The precision of the fractional quantity of resource {option} cannot go beyond 0.0001"
        )

    return int(scaled)


_NOTHING: Final = Resources()

#: What a task needs that does not say.
ONE_CPU: Final = Resources.of(CPU=1)
