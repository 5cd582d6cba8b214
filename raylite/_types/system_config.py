"""The system config: settings of a cluster's components, by raylite's own names or by Ray's.

Ray has some 260, most of which are about parts that work in another way here: those are taken, for
programs that set them are to run, and have no effect.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any, Self

from msgspec import Struct

from raylite._types.ray_settings import RAYS

Scalar = bool | int | float | str | None

_NUMBER, _INTEGER = (int, float), (int,)
_ANY = -math.inf


class _Setting(Struct, frozen=True):
    """One that has an effect: what its value may be."""

    kinds: tuple[type, ...]
    least: float = _ANY


OWN: Mapping[str, _Setting] = {
    "infeasible_grace_s": _Setting(_NUMBER),
    "object_store_full_grace": _Setting(_NUMBER),
    "task_oom_retries": _Setting(_INTEGER, -1),  # Ray's as well
}
"""The settings that raylite has itself, which messages name."""

_EQUIVALENT: Mapping[str, _Setting] = {
    "health_check_failure_threshold": _Setting(_INTEGER, 1),
    "health_check_period_ms": _Setting(_INTEGER, 0),
    "health_check_timeout_ms": _Setting(_INTEGER, 0),
    "idle_worker_killing_time_threshold_ms": _Setting(_INTEGER, 0),
    "oom_grace_period_s": _Setting(_NUMBER, 0),
}
"""Ray's settings that something here answers to."""

_EFFECTIVE: Mapping[str, _Setting] = {**OWN, **_EQUIVALENT}
_MOST = 2**53  # what a float says exactly; no setting means anything near it

SHORTEST_SILENCE, LONGEST_SILENCE = 3.0, 60.0
"""Seconds of silence: of nodes that beat once a second, and of links, which end after the most."""


class Settings(Struct, frozen=True):
    """What a system config comes to, defaults filled in. Times are seconds."""

    infeasible_grace: float = 300.0
    store_grace: float = 60.0
    oom_retries: int = -1
    #: After so much silence a node is dead.
    silence: float = 10.0
    #: How long a worker that there is no CPU for is kept idle.
    idle_grace: float = 1.0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """What `refuse_setting` lets pass; raylite's own names go before Ray's."""
        get = config.get
        infeasible = float(get("infeasible_grace_s", 300.0))
        store = get("object_store_full_grace", get("oom_grace_period_s", 60.0))
        # Ray: 5 checks of 3 s and a timeout of 10 s, so that a silent node is dead after a minute.
        period = get("health_check_period_ms", 1000) + get("health_check_timeout_ms", 1000)
        silence = get("health_check_failure_threshold", 5) * period / 1000
        return cls(
            infeasible if infeasible >= 0 else math.inf,
            float(store),
            int(get("task_oom_retries", -1)),
            min(max(silence, SHORTEST_SILENCE), LONGEST_SILENCE),
            get("idle_worker_killing_time_threshold_ms", 1000) / 1000,
        )


def refuse_settings(config: Mapping[object, object] | None) -> str | None:
    """Return why a system config is refused, or None if it is not.

    Raises:
        TypeError: A value has the wrong type.
    """
    # Ray: ends with the process of its GCS, which does not know the name.
    for name, value in (config or {}).items():
        if not isinstance(name, str) or (name not in _EFFECTIVE and name not in RAYS):
            return f"There is no setting {name!r} in the system config. There are {', '.join(OWN)}."
        setting = _EFFECTIVE.get(name)
        if setting is not None and (reason := _refuse(name, setting, value)) is not None:
            return reason
    return None


def without_effect(config: Iterable[str]) -> list[str]:
    """Return those of Ray's settings that nothing here answers to."""
    return [name for name in config if name in RAYS and name not in _EFFECTIVE]


def effective(config: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return the settings that something here answers to."""
    return {name: value for name, value in config.items() if name in _EFFECTIVE}


def written(config: Mapping[str, Any]) -> str:
    """Return a system config as the nodes that join read it, see `read`."""
    return json.dumps(effective(config))


def read(text: str) -> dict[str, Scalar]:
    """Return what the head wrote; nothing of it that this version would not have written."""
    try:
        config = json.loads(text or "{}")
        return {} if refuse_settings(config) else effective(config)
    except (ValueError, TypeError, AttributeError):
        return {}


def from_environment() -> dict[str, Scalar]:
    """Return what the environment sets: ``RAYLITE_task_oom_retries``, or Ray's ``RAY_`` name of it.

    Raises:
        ValueError: A variable has a value that the setting cannot have.
    """
    found: dict[str, Scalar] = {}
    for name, setting in _EFFECTIVE.items():
        for variable in (f"RAYLITE_{name}", f"RAY_{name}"):
            text = os.environ.get(variable)
            if text and name not in found:
                found[name] = _read(variable, name, setting, text)
    return found


def _read(variable: str, name: str, setting: _Setting, text: str) -> Scalar:
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    try:
        reason = _refuse(name, setting, value)
    except TypeError as error:
        reason = str(error)
    if reason is not None:
        raise ValueError(f"{variable}={text}: {reason}")
    assert isinstance(value, int | float)
    return value


def _refuse(name: str, setting: _Setting, value: object) -> str | None:
    which = f"The setting {name} of the system config"
    if isinstance(value, bool) or not isinstance(value, setting.kinds):
        what = "a number" if float in setting.kinds else "an integer"
        raise TypeError(f"{which} must be {what}, not {value!r}")
    assert isinstance(value, int | float)
    if isinstance(value, float) and not math.isfinite(value):
        return f"{which} must be a finite number, not {value}"
    if not setting.least <= value <= _MOST:
        least = "" if setting.least == _ANY else f"{setting.least:g} or more and "
        return f"{which} must be {least}at most 2**53, not {value!r}"
    return None
