"""Chunks: which parts of objects have come, and which to ask whom for next.

`Chunks` keeps the books of one object. `Lines` says what to ask each source for: the objects of
higher priority first, and those of one priority one after another, so that the first is complete
as early as can be.
"""

from collections import deque
from operator import itemgetter
from typing import Final

from msgspec import Struct, field

from raylite._types.keys import ObjectKey
from raylite._types.strategies import NodeKey

CHUNK: Final = 1 << 20
"""Bytes to ask for at once. Ray: 5 MB (object_manager_default_chunk_size). Smaller ones hold up a
link's other messages for less long, and their headers still cost nothing beside them."""

WINDOW: Final = 8
"""Chunks that one source is asked for at a time: 8 MiB, what 2 GB/s carry in 4 ms."""


class Chunk(Struct, frozen=True):
    """A run of an object's bytes."""

    offset: int
    size: int


class Chunks:
    """The chunks of one object, each asked for from one source at a time."""

    __slots__ = ("_again", "_chunk", "_fresh", "_size", "flying", "written")

    def __init__(self, size: int, chunk: int = CHUNK) -> None:
        self._size, self._chunk = size, chunk
        # The first offset never asked for; and those that were asked for in vain.
        self._fresh = 0
        self._again: deque[int] = deque()
        #: The offsets that the present source was asked for.
        self.flying: set[int] = set()
        #: Bytes that have come.
        self.written = 0

    @property
    def is_complete(self) -> bool:
        """Whether every byte has come."""
        return self.written == self._size

    @property
    def wants(self) -> bool:
        """Whether something has yet to be asked for."""
        return bool(self._again) or self._fresh < self._size

    def take(self) -> Chunk:
        """Return the next chunk to ask for, which is on its way from now on."""
        if self._again:
            offset = self._again.popleft()
        else:
            offset = self._fresh
            self._fresh += self._chunk

        self.flying.add(offset)
        return self._at(offset)

    def came(self, offset: int, size: int) -> bool:
        """A chunk has come; False if it was not on its way, or has the wrong size."""
        if offset not in self.flying or size != self._at(offset).size:
            return False

        self.flying.remove(offset)
        self.written += size
        return True

    def turn_back(self) -> None:
        """What is on its way will not come: it has to be asked for again."""
        self._again.extend(sorted(self.flying))
        self.flying.clear()

    def check(self) -> None:
        """Assert that every byte is in one place."""
        again = set(self._again)
        assert len(again) == len(self._again), "asked for twice"
        assert not again & self.flying
        asked = min(self._fresh, self._size)
        pending = sum(self._at(offset).size for offset in again | self.flying)
        assert self.written + pending == asked

    def _at(self, offset: int) -> Chunk:
        return Chunk(offset, min(self._chunk, self._size - offset))


class _Line(Struct):
    """The objects that come from one source."""

    flying: int = 0
    objects: dict[ObjectKey, Chunks] = field(default_factory=dict)
    # Those that may have something to ask for, by priority, first come, first served.
    queues: dict[int, dict[ObjectKey, None]] = field(default_factory=dict)


class Lines:
    """What every source is asked for, a window of chunks at a time."""

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._lines: dict[NodeKey, _Line] = {}

    def join(self, source: NodeKey, object_id: ObjectKey, chunks: Chunks, priority: int) -> None:
        """An object is to come from a source; lower priorities first. May be called to raise it."""
        line = self._lines.setdefault(source, _Line())
        line.objects[object_id] = chunks
        for queue in line.queues.values():
            queue.pop(object_id, None)

        line.queues.setdefault(priority, {})[object_id] = None

    def leave(self, source: NodeKey, object_id: ObjectKey) -> None:
        """An object comes from this source no more; what is on its way is to be asked for again."""
        line = self._lines[source]
        chunks = line.objects.pop(object_id)
        line.flying -= len(chunks.flying)
        chunks.turn_back()
        for queue in line.queues.values():
            queue.pop(object_id, None)

        if not line.objects:
            del self._lines[source]

    def came(self, source: NodeKey, object_id: ObjectKey, offset: int, size: int) -> bool:
        """A chunk has come; False if it was not on its way, or has the wrong size."""
        line = self._lines[source]
        if not line.objects[object_id].came(offset, size):
            return False

        line.flying -= 1
        return True

    def fill(self, source: NodeKey) -> list[tuple[ObjectKey, Chunk]]:
        """Return what to ask a source for now, which is on its way from then on."""
        asked: list[tuple[ObjectKey, Chunk]] = []
        if (line := self._lines.get(source)) is None:
            return asked

        for _, queue in sorted(line.queues.items(), key=itemgetter(0)):
            while queue and line.flying < self._window:
                object_id = next(iter(queue))
                chunks = line.objects[object_id]
                if not chunks.wants:
                    del queue[object_id]
                    continue

                asked.append((object_id, chunks.take()))
                line.flying += 1

        return asked

    def sources(self) -> dict[ObjectKey, NodeKey]:
        """Return which object comes from where."""
        lines = self._lines.items()
        return {object_id: source for source, line in lines for object_id in line.objects}

    def check(self) -> None:
        """Assert what holds once every line is filled."""
        for line in self._lines.values():
            assert line.objects, "a line of nothing"
            assert line.flying == sum(len(chunks.flying) for chunks in line.objects.values())
            assert line.flying <= self._window
            queued = [object_id for queue in line.queues.values() for object_id in queue]
            assert len(queued) == len(set(queued))
            wanting = {object_id for object_id, chunks in line.objects.items() if chunks.wants}
            assert wanting <= set(queued) <= line.objects.keys()
            assert not wanting or line.flying == self._window, "a source is left idle"
            for chunks in line.objects.values():
                chunks.check()
