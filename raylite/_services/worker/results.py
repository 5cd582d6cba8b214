"""Results: what is said of a value that a task returned, and that cannot be its result."""

import logging
import warnings
from types import AsyncGeneratorType, CodeType, GeneratorType
from typing import Any

from raylite._types.text import show
from raylite._wire import pickling
from raylite._wire.hot import Value
from raylite.exceptions import NumReturnsWarning

logger = logging.getLogger("raylite")

_warned: dict[Any, Any] = {}
"""What was said in this process, as `warnings` remembers it: a task is remarked on once."""


class Packed(tuple[Value, ...]):
    """The results of a task that were packed as they came."""


def not_serializable(error: Exception, result: object, what: str, name: str) -> Exception:
    """Return the error of a task whose result cannot be pickled: it says which, and what in it.

    An error of the value's own (of its ``__getstate__``, say) stays what it is, and where it is from.

    Args:
        error: What pickling raised.
        result: The value.
        what: What it is: the return value, or one of several.
        name: The name of the task's function.
    """
    text = (
        f"Could not serialize the {what} {show(result)} of the task {name}. Check "
        "https://docs.ray.io/en/master/ray-core/objects/serialization.html#troubleshooting for "
        f"more information.\n{pickling.describe_unpicklable(result, what)}"
    )
    if pickling.raised_by_pickler(error):
        return TypeError(text)
    error.add_note(text)
    return error


def remark_ignored(result: object, name: str, code: CodeType | None) -> None:
    """Warn that what a task with ``num_returns=0`` returned is nowhere."""
    if isinstance(result, GeneratorType | AsyncGeneratorType):
        what = "is a generator: it does not run at all"
    else:
        what = f"returned a value of type {type(result).__name__}, which is ignored"
    warnings.warn_explicit(
        f"The task {name} has num_returns=0 and {what}. Leave num_returns out, or return nothing.",
        NumReturnsWarning,
        "<unknown>" if code is None else code.co_filename,
        1 if code is None else code.co_firstlineno,
        registry=_warned,
    )


def wrong_count(found: int, wanted: int) -> ValueError:
    """Return the error of a task that has another number of results than it was to have."""
    return ValueError(f"Task returned {found} objects, but num_returns={wanted}.")


def too_many(wanted: int) -> ValueError:
    """Return what is logged of a generator that has more items than it was to have."""
    return ValueError(f"Task returned more than num_returns={wanted} objects.")


def remark_unread(returns: int) -> None:
    """Log the error that is met here: it came after the last result, so nobody can read it."""
    logger.exception(
        "Unhandled error: Task threw exception, but all %s return values already created.", returns
    )
