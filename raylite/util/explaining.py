"""`explain`: why a result is not there yet."""

from typing import Any

from raylite._api import home
from raylite._services.worker.generator import ObjectRefGenerator
from raylite._services.worker.objects import ObjectRef
from raylite._wire.hot import Explanation, TaskState


def explain(ref: ObjectRef[Any] | ObjectRefGenerator[Any]) -> Explanation:
    """Say why an object is not there yet, or where it is: a sentence, and the facts behind it.

    Asks whoever knows, the object's owner and the raylet that was asked for a worker, and waits three
    seconds for them at most; that somebody does not answer is part of the explanation then. It
    changes nothing and does not wait for the object. What it says was true when it was asked.

    Args:
        ref: A reference, this process's own or a borrowed one; a generator stands for its task.

    Raises:
        TypeError: `ref` is not a reference.
        ValueError: It belongs to a session that has ended.

    Example:
        >>> print(explain(f.options(num_cpus=64).remote()))  # doctest: +SKIP
        f (c8ef45cc...) waits for a worker with 64 CPUs; the raylet at unix:/tmp/... was asked 2.1 s
        ago: no node has 64 CPUs (largest: 8 on 10.0.0.7); lower num_cpus or add a node
    """
    if isinstance(ref, ObjectRefGenerator):
        ref = ref._end
    if not isinstance(ref, ObjectRef):
        raise TypeError(f"explain() takes an ObjectRef, not {type(ref).__name__}")
    core = home([ref])
    return core.run(core.explain, ref._entry)


__all__ = ["Explanation", "TaskState", "explain"]
