"""A chunk: several calls of one function as one task, each with a result or an error of its own."""

import functools
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Any

from msgspec import Struct


class Failed(Struct, frozen=True):
    """In the place of a result: reading it raises the error, or the very same if `is_told`."""

    error: Exception
    is_told: bool = False


Again = Callable[[Sequence[tuple[Any, ...]]], Iterator[Any] | None]
"""Makes the calls of a chunk in another way, if there is reason to."""


class Chunk:
    """Calls a function with the arguments of several calls, which come one after another.

    Its results are those of the calls, and the seconds that all took. What ends the whole process,
    or interrupts it, ends the chunk; any other error is the result of one call.

    Args:
        function: The function.
        width: How many arguments a call has.
        again: Asked first for the results, with the arguments of each call; None if it has none.
            So a chunk whose worker died is made otherwise the next time.
    """

    def __init__(
        self, function: Callable[..., Any], width: int, again: "Again | None" = None
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.width = width
        self.again = again

    def __call__(self, *arguments: Any) -> Iterator[Any]:
        return self._results(arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return Chunk, (self.function, self.width, self.again)

    def _results(self, arguments: tuple[Any, ...]) -> Iterator[Any]:
        function, width = self.function, self.width
        began = perf_counter()
        if self.again is not None:
            calls = [arguments[n : n + width] for n in range(0, len(arguments), width)]
            results = self.again(calls)
            if results is not None:
                yield from results
                yield None  # how long it took says nothing
                return
        for first in range(0, len(arguments), width):
            try:
                result = function(*arguments[first : first + width])
            except Exception as error:
                result = Failed(error)
            yield result
        yield perf_counter() - began


OUTCOMES = Chunk._results.__code__
"""By it, the results of a chunk are told from those of a user's generator."""
