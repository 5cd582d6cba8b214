"""Environment: what a `runtime_env` may ask for, and what its variables become in a worker."""

import re
from collections.abc import Mapping
from typing import Any

from raylite._types.text import refuse_text, show_text

_NOT_YET = (
    "working_dir", "py_modules", "py_executable", "excludes", "pip", "conda", "uv", "container",
    "image_uri", "worker_process_setup_hook", "config", "nsight", "rocprof-sys", "mpi",
)  # fmt: skip
_LOCAL = {"working_dir", "py_modules"}
_REFERENCE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})", re.ASCII)
_UNSET = re.compile(r"[A-Z0-9_]+")


def variables_of(runtime_env: Mapping[Any, Any] | None, *, of_job: bool) -> dict[str, str]:
    """Return the environment variables that a runtime environment sets.

    Raises:
        TypeError: Something in it has the wrong type.
        ValueError: It asks for what cannot be had.
    """
    runtime_env = {
        field: value for field, value in (runtime_env or {}).items() if value is not None
    }
    for field, value in runtime_env.items():
        if field != "env_vars":
            raise ValueError(_refusal(field, value, of_job=of_job))
    variables = runtime_env.get("env_vars", {})
    expected = "runtime_env['env_vars'] must be of type Dict[str, str]"
    if not isinstance(variables, Mapping):
        raise TypeError(f"{expected}, got {type(variables)}")
    for name, value in variables.items():
        if not isinstance(name, str):
            raise TypeError(f"{expected}, but the key {name} is of type {type(name)}")
        if not isinstance(value, str):
            raise TypeError(f"{expected}, but the value {value} is of type {type(value)}")
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(
                f"runtime_env['env_vars'] has {name!r}: {value!r}, which no environment can have: "
                "a name is not empty and has no '=', and neither has a NUL"
            )
        which = f"runtime_env['env_vars'] has a variable {show_text(name)}, whose"
        reason = refuse_text(f"{which} name", name) or refuse_text(f"{which} value", value)
        if reason is not None:
            raise ValueError(reason)
    return dict(variables)


def _refusal(field: object, value: object, *, of_job: bool) -> str:
    if field in _LOCAL and not of_job:
        local = next((each for each in _listed(value) if "://" not in each), None)
        if local is not None:
            return (
                f"{local} is not a valid URI. Passing directories or modules to be dynamically "
                "uploaded is only supported at the job level (i.e., passed to `raylite.init`)."
            )
    what = "is not supported yet" if field in _NOT_YET else "is unknown"
    return f"runtime_env['{field}'] {what}: 'env_vars' is the field that raylite supports"


def _listed(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list | tuple) else [str(value)]


def expanded(variables: Mapping[str, str], current: Mapping[str, str]) -> dict[str, str]:
    """Return the variables as a process with the `current` ones is to have them.

    ``$NAME`` and ``${NAME}`` stand for the value there is, be it of a variable set before: so
    ``{"PATH": "/opt/bin:${PATH}"}`` prepends. As in Ray, a ``${NAME}`` in capitals that is not set
    vanishes, and any other reference that leads nowhere stays as it is written.
    """
    result: dict[str, str] = {}

    def value_of(match: re.Match[str]) -> str:
        name = match[1] or match[2] or ""
        if (value := result.get(name, current.get(name))) is not None:
            return value
        return "" if match[2] and _UNSET.fullmatch(name) else match[0]

    for name, value in variables.items():
        result[name] = _REFERENCE.sub(value_of, value)
    return result
