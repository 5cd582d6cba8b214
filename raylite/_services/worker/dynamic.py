"""`DynamicObjectRefGenerator`: what a task with ``num_returns="dynamic"`` returns."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from raylite._services.worker.objects import ObjectRef

T = TypeVar("T")


class DynamicObjectRefGenerator(Generic[T]):
    """References to all items of a generator task, once it has ended.

    Iterating takes them out, so that each item can be freed as soon as it was used. Unlike an
    `ObjectRefGenerator` it is a value: it can be pickled, and passed to tasks.
    """

    def __init__(self, refs: Iterable[ObjectRef[T]]) -> None:
        self._refs = deque(refs)

    def __iter__(self) -> Iterator[ObjectRef[T]]:
        while self._refs:
            yield self._refs.popleft()

    def __len__(self) -> int:
        return len(self._refs)
