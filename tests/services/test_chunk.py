"""A chunk: several calls as one task."""

from collections.abc import Iterator, Sequence
from typing import Any

from raylite._services.worker.chunk import Chunk, Failed


def halve(n: int, by: int) -> float:
    return n / by


def test_the_results_are_those_of_the_calls_and_the_seconds_last() -> None:
    one, error, two, seconds = Chunk(halve, 2)(2, 2, 1, 0, 4, 2)
    assert (one, two) == (1, 2)
    assert isinstance(error, Failed)
    assert isinstance(error.error, ZeroDivisionError)
    assert seconds >= 0


def test_a_chunk_that_is_made_again_has_the_results_of_the_other_way() -> None:
    def again(calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        return iter(calls)

    assert list(Chunk(halve, 2, again)(2, 2, 1, 0)) == [(2, 2), (1, 0), None]
    assert next(iter(Chunk(halve, 2, lambda calls: None)(4, 2))) == 2
