"""The pages of a damaged SQLite file: what can still be read of a table where SQLite gives up.

SQLite reads a table to its first impossible page, and no further. Here its tree is walked from the root,
and a page or a cell that makes no sense costs what is in it, and below it, alone. Whether a record is what
was written, its own checksum says: see `record`.

https://www.sqlite.org/fileformat2.html describes what is read here: the tree of a table WITHOUT ROWID.
"""

from collections.abc import Callable, Iterator

from msgspec import Struct

_INTERIOR, _LEAF = 2, 10  # kinds of pages of such a tree
_HEADER = 100  # bytes of the file's own, in its first page

Record = list[bytes]


class _Page(Struct):
    records: list[Record]
    children: list[int]


class Pages:
    """A file's pages.

    Args:
        data: The whole file, without a log.
        size: Of a page.
        is_sound: Whether a record is what was written.
    """

    def __init__(self, data: bytes, size: int, is_sound: Callable[[Record], bool]) -> None:
        self._data, self._size, self._is_sound = data, size, is_sound
        self._most = (size - 12) * 64 // 255 - 23  # bytes of a cell that are in its page
        self._least = (size - 12) * 32 // 255 - 23  # if it has more

    def records(self, root: int) -> Iterator[Record]:
        """Yield the sound records of the tree that begins at a page."""
        ahead, seen = [root], {root}
        while ahead:
            # One kind is the other with a bit flipped: the right one is that which makes sense.
            found = [self._read(ahead[-1], kind) for kind in (_INTERIOR, _LEAF)]
            page = max(found, key=lambda each: len(each.records))
            ahead.pop()
            yield from page.records
            children = [each for each in page.children if each not in seen]
            ahead += children
            seen.update(children)

    def _page(self, number: int) -> bytes:
        return self._data[(number - 1) * self._size : number * self._size] if number > 0 else b""

    def _read(self, number: int, kind: int) -> _Page:
        page, records, children = self._page(number), list[Record](), list[int]()
        start = _HEADER if number == 1 else 0
        if len(page) < self._size:
            return _Page([], [])
        cells = start + (12 if kind == _INTERIOR else 8)
        count = _number(page[start + 3 : start + 5])
        if kind == _INTERIOR:
            children.append(_number(page[start + 8 : start + 12]))
        for place in range(cells, min(cells + 2 * count, self._size - 1), 2):
            at = _number(page[place : place + 2])
            if kind == _INTERIOR:
                children.append(_number(page[at : at + 4]))
                at += 4
            record = self._record(page, at)
            if record is not None and self._is_sound(record):
                records.append(record)
        return _Page(records, children)

    def _record(self, page: bytes, at: int) -> Record | None:
        length, at = _varint(page, at)
        local = length
        if length > self._most:
            local = self._least + (length - self._least) % (self._size - 4)
            local = local if local <= self._most else self._least
        payload = page[at : at + local]
        further, left = _number(page[at + local : at + local + 4]), length - local
        while left > 0:
            overflow = self._page(further)
            if not overflow or left > len(self._data):
                return None
            payload += overflow[4 : 4 + left]
            further, left = _number(overflow[:4]), left - (self._size - 4)
        return _columns(payload)


def _columns(payload: bytes) -> Record | None:
    """Return a row's three columns, which are bytes."""
    end, at = _varint(payload, 0)
    kinds: list[int] = []
    while at < end and len(kinds) < 4:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    if len(kinds) != 3 or any(kind < 12 for kind in kinds):
        return None
    columns: Record = []
    for kind in kinds:
        size = (kind - 12) // 2
        columns.append(payload[end : end + size])
        end += size
    return columns


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number as SQLite writes it, and where it ends."""
    value = 0
    for place in range(at, min(at + 8, len(data))):
        value = value << 7 | data[place] & 0x7F
        if data[place] < 0x80:
            return value, place + 1
    return 0, at + 8


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")
