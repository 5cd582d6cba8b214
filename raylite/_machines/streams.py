"""Streams: the items that a generator task yields, as their owner counts them.

An attempt at the task numbers its items from 0. What has arrived stays, whatever becomes of the
attempt: the next one is told how many items there are, passes over as many and goes on from there,
so nothing is delivered twice. If it ends before it gets there, it was not the same stream.

The producer may go on `until` it has yielded so many items. With a limit that is so many more than
were read. Without one it is held up only while too many bytes wait to be read: a stream that nobody
reads must not fill its owner's memory. Who asks for the end of the task, and so may wait for it
before reading, lifts that bound; who surely waits for it, and may never read, lifts the limit, too;
who drops the generator lifts both, and gets nothing more.
"""

from collections import deque
from collections.abc import Sequence
from enum import Enum

from msgspec import Struct

ENDLESS = 1 << 62  # more items than any generator yields
ROOM = 64 * 1024 * 1024  # bytes of unread items above which a producer without a limit waits


class Deliver(Struct, frozen=True):
    """These items are the next ones, but for the first few, which are there already."""

    skip: int


class Discard(Struct, frozen=True):
    """Nobody will read these items."""


class Tell(Struct, frozen=True):
    """Tell the producer how far it may go; an abandoned one need not send anything."""

    until: int
    is_abandoned: bool


class End(Enum):
    """How a stream ends. An effect: after the last item, nothing or an error is next."""

    DONE = "the generator returned, or its error was an item"
    FAILED = "the task failed: its error is the last item"
    SHORT = "an attempt yielded less than the one before it"


Effect = Deliver | Discard | Tell | End


class Terms(Struct, frozen=True):
    """What an attempt is sent with: how many items to pass over, and how far it may go."""

    skip: int
    until: int
    is_abandoned: bool


class Stream:
    """One stream. Methods return the effects to carry out, in order.

    Args:
        limit: How many unread items there may be; 0 for no limit.
        room: Bytes of unread items above which a producer without a limit waits.
    """

    def __init__(self, limit: int = 0, room: int = ROOM) -> None:
        self._limit = limit
        self._room = room
        self._unread: deque[int] = deque()  # the sizes of the items that wait to be read
        self._unread_bytes = 0
        self._told = limit or ENDLESS
        self._is_short = False  # this attempt ended before it got to what is new
        self._is_held = False  # the producer waits, for too many bytes are unread
        self._is_bounded = not limit
        self.received: int = 0
        self.is_abandoned: bool = False
        self.is_ended: bool = False

    @property
    def wants_news(self) -> bool:
        """Whether `read` is to be called whenever something was read."""
        return bool(self._limit or self._is_held) and not self.is_ended

    def begin(self) -> Terms:
        """Return what the next attempt is to be told."""
        self._is_short = False
        self._told = self._until()
        return Terms(self.received, self._told, self.is_abandoned or self.is_ended)

    def arrived(self, first: int, sizes: Sequence[int], left: int) -> list[Effect]:
        """Items came, of which the first has this number; of those before, so many are unread.

        An attempt that ended among the items that it was to pass over says so by sending none.
        """
        if first > self.received or (not sizes and first < self.received):
            self._is_short = True  # it skipped some, or yields no more: not what was there before
            return [Discard()]
        if self.is_abandoned or self.is_ended or not sizes:
            return [Discard()]
        self._note(left)
        skip = min(self.received - first, len(sizes))
        fresh = sizes[skip:]
        self.received += len(fresh)
        self._unread.extend(fresh)
        self._unread_bytes += sum(fresh)
        return [Deliver(skip), *self._news()]

    def read(self, left: int) -> list[Effect]:
        """So many items are left unread."""
        self._note(left)
        return self._news()

    def awaited(self) -> list[Effect]:
        """Somebody may wait for the end of the task before reading: let it get there."""
        self._is_bounded = False
        return self._news()

    def unlimited(self) -> list[Effect]:
        """Somebody waits for the end of the task and may never read: nothing holds it back."""
        self._limit = 0
        return self.awaited()

    def abandoned(self) -> list[Effect]:
        """Nobody will read any more. The task goes on to its end, as in Ray."""
        if self.is_abandoned:
            return []
        self.is_abandoned = True
        self._clear()
        return [] if self.is_ended else [Tell(ENDLESS, is_abandoned=True)]

    def ended(self, *, failed: bool) -> list[Effect]:
        """The task has its result: there is no other attempt."""
        if self.is_ended:
            return []
        self.is_ended = True
        if failed:
            return [End.FAILED]
        return [End.SHORT if self._is_short else End.DONE]

    def cancelled(self) -> list[Effect]:
        """The reader does not want the rest, not even what has arrived: its error is next."""
        if self.is_ended:
            return []
        self.is_ended = True
        self._clear()
        return [End.FAILED, Tell(ENDLESS, is_abandoned=True)]

    # ---- inside --------------------------------------------------------------------------

    def _note(self, left: int) -> None:
        unread = self._unread
        for _ in range(len(unread) - left):
            self._unread_bytes -= unread.popleft()

    def _until(self) -> int:
        if self.is_abandoned or self.is_ended:
            return ENDLESS
        if self._is_held:
            return 0
        return self.received - len(self._unread) + self._limit if self._limit else ENDLESS

    def _news(self) -> list[Effect]:
        if self.is_ended or self.is_abandoned:
            return []
        bound = self._room // 2 if self._is_held else self._room
        self._is_held = self._is_bounded and self._unread_bytes > bound
        until = self._until()
        if until == self._told:
            return []
        self._told = until
        return [Tell(until, is_abandoned=False)]

    def _clear(self) -> None:
        self._unread.clear()
        self._unread_bytes = 0
        self._is_held = False

    def check(self) -> None:
        """Assert what holds between calls."""
        assert self._unread_bytes == sum(self._unread)
        assert len(self._unread) <= self.received
        assert not (self.is_abandoned and self._unread), "unread items of a stream nobody reads"
        if not self.is_ended and not self.is_abandoned:
            assert self._told == self._until()
            assert self._is_held or self._unread_bytes <= self._room or not self._is_bounded
