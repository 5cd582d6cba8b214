"""Variables: the environment of a worker process, as its job and the lease of its tasks want it."""

from collections.abc import MutableMapping

from raylite._types.accelerators import VISIBLE, identities
from raylite._types.environment import expanded
from raylite._types.resources import UNIT
from raylite._wire import hot

_THREADS = "OMP_NUM_THREADS"


class Variables:
    """What a worker sets for its tasks, and puts back when its lease is another.

    Args:
        environment: The process's, `os.environ`.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        self._environment = environment
        self._before: dict[str, str | None] = {}

    def adopt(self, variables: dict[str, str]) -> None:
        """Be what the job, or the task's runtime environment, wants: once, for a worker serves no other."""
        self._environment.update(expanded(variables, self._environment))

    def hold(self, holding: hot.Holding) -> None:
        """Tell libraries what the lease holds: how many threads to make, and which devices to use.

        What the user has set of it stays as it is.
        """
        for name, value in self._before.items():
            if value is None:
                self._environment.pop(name, None)
            else:
                self._environment[name] = value
        self._before.clear()
        if _THREADS not in self._environment:
            self._set(_THREADS, str(max(holding.demand.get("CPU", 0) // UNIT, 1)))
        devices = dict(holding.devices)
        is_zero_told = self._is_on("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO")
        for resource, variable in VISIBLE.items():
            shares = devices.get(resource, ())
            if not (shares or is_zero_told) or self._is_on(f"RAY_EXPERIMENTAL_NOSET_{variable}"):
                continue
            numbers = (device for device, _ in shares)
            chosen = identities(numbers, self._environment.get(variable))
            self._set(variable, ",".join(map(str, chosen)))

    def before(self, name: str) -> str | None:
        """Return the value that a variable had before the lease's was set."""
        return self._before[name] if name in self._before else self._environment.get(name)

    def _set(self, name: str, value: str) -> None:
        self._before[name] = self._environment.get(name)
        self._environment[name] = value

    def _is_on(self, name: str) -> bool:
        return self._environment.get(name, "").lower() in ("1", "true")
