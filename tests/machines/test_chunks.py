"""Chunks: every byte is asked for until it has come, and no source is asked for too much."""

from raylite._machines.chunks import Chunk, Chunks, Lines
from raylite._types.keys import ObjectKey
from raylite._types.strategies import NodeKey

A, B = NodeKey(b"a"), NodeKey(b"b")
X, Y = ObjectKey(b"x"), ObjectKey(b"y")


def test_an_object_is_cut_into_chunks_the_last_being_what_is_left() -> None:
    chunks = Chunks(25, 10)
    assert [chunks.take() for _ in range(3)] == [Chunk(0, 10), Chunk(10, 10), Chunk(20, 5)]
    assert not chunks.wants
    complete = []
    for offset, size in ((20, 5), (0, 10), (10, 10)):
        assert chunks.came(offset, size)
        complete.append(chunks.is_complete)

    assert complete == [False, False, True]
    chunks.check()


def test_an_empty_object_is_complete() -> None:
    chunks = Chunks(0)
    assert chunks.is_complete
    assert not chunks.wants


def test_what_was_not_asked_for_or_has_the_wrong_size_does_not_count() -> None:
    chunks = Chunks(25, 10)
    chunks.take()
    assert not chunks.came(10, 10)
    assert not chunks.came(0, 9)
    assert chunks.came(0, 10)
    assert not chunks.came(0, 10)
    assert chunks.written == 10


def test_what_will_not_come_is_asked_for_again_first() -> None:
    chunks = Chunks(30, 10)
    chunks.take()
    chunks.take()
    chunks.came(0, 10)
    chunks.turn_back()
    assert not chunks.came(10, 10)
    assert [chunks.take().offset for _ in range(2)] == [10, 20]
    chunks.check()


def offsets(asked: list[tuple[ObjectKey, Chunk]]) -> list[tuple[ObjectKey, int]]:
    return [(object_id, chunk.offset) for object_id, chunk in asked]


def test_a_source_is_asked_for_a_window_of_chunks() -> None:
    lines = Lines(window=2)
    lines.join(A, X, Chunks(30, 10), 0)
    assert offsets(lines.fill(A)) == [(X, 0), (X, 10)]
    assert lines.fill(A) == lines.fill(B) == []
    assert lines.came(A, X, 0, 10)
    assert offsets(lines.fill(A)) == [(X, 20)]
    lines.check()


def test_objects_of_one_priority_come_one_after_another_and_higher_ones_before() -> None:
    lines = Lines(window=3)
    lines.join(A, X, Chunks(20, 10), 2)
    lines.join(A, Y, Chunks(20, 10), 1)
    assert offsets(lines.fill(A)) == [(Y, 0), (Y, 10), (X, 0)]


def test_an_object_that_leaves_its_source_makes_room_for_others() -> None:
    lines, chunks = Lines(window=2), Chunks(30, 10)
    lines.join(A, X, chunks, 0)
    lines.join(A, Y, Chunks(30, 10), 0)
    lines.fill(A)
    lines.leave(A, X)
    assert offsets(lines.fill(A)) == [(Y, 0), (Y, 10)]
    lines.join(B, X, chunks, 0)
    assert offsets(lines.fill(B)) == [(X, 0), (X, 10)]
    assert lines.sources() == {X: B, Y: A}
    lines.check()
