"""An outbox: frames that wait to be sent on a link, in order, and how they make packets."""

import struct
from collections import deque

from raylite._kernel.packet import HEADER_SIZE, Kind, encode_frame

_COUNT = struct.Struct(">BI")  # msgpack's array32: how a batch joins items encoded one by one
_BATCH_OVERHEAD = HEADER_SIZE + _COUNT.size


class _Batch:
    """Items of one batch route, gathered until they are sent."""

    __slots__ = ("items", "route", "size")

    def __init__(self, route: int, item: bytes) -> None:
        self.route = route
        self.items = [item]
        self.size = _BATCH_OVERHEAD + len(item)

    def __len__(self) -> int:
        return self.size

    def frame(self) -> bytes:
        items = self.items
        body = items[0] if len(items) == 1 else b"".join(items)
        return encode_frame(Kind.BATCH, self.route, 0, body, _COUNT.pack(0xDD, len(items)))


class Outbox:
    """Frames in the order they will be sent. `size` is exactly the bytes they will take."""

    __slots__ = ("_entries", "_packet_size", "size")

    def __init__(self, packet_size: int) -> None:
        self._packet_size = packet_size
        self._entries: deque[bytes | _Batch] = deque()
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, frame: bytes) -> None:
        self._entries.append(frame)
        self.size += len(frame)

    def add_item(self, route: int, item: bytes) -> None:
        """Add an item to the batch of this route, if that is what was added last."""
        last = self._entries[-1] if self._entries else None
        if type(last) is not _Batch or last.route != route or last.size >= self._packet_size:
            self._entries.append(_Batch(route, item))
            self.size += _BATCH_OVERHEAD + len(item)
            return
        last.items.append(item)
        last.size += len(item)
        self.size += len(item)

    def take(self) -> bytes:
        """Remove and return the next packet's frames: as many as fit, but at least one."""
        frames: list[bytes] = []
        entries, size = self._entries, 0
        if len(entries) == 1:
            only = entries.popleft()
            self.size = 0
            return only.frame() if type(only) is _Batch else only  # type: ignore[return-value]
        while entries:
            entry = entries[0]
            if frames and size + len(entry) > self._packet_size:
                break
            size += len(entry)
            frames.append(entry.frame() if type(entry) is _Batch else entry)  # type: ignore[arg-type]
            entries.popleft()
        self.size -= size
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def clear(self) -> None:
        self._entries.clear()
        self.size = 0
