"""SQLite's write-ahead log: how to read on after a flipped bit in it.

SQLite reads a log up to the first frame that does not match its checksum. After a crash that is right:
what follows was never acknowledged. After damage it is not: all that was committed later is gone without
a word, up to a thousand pages. Here each frame is judged by itself, for its checksum continues the one
that stands *written* in the frame before. And a commit begins when the one before it is on the disk: so a
bad frame that another commit follows is damage, while one in the last commit may be a tear.
"""

import struct
from array import array
from collections.abc import Iterator
from itertools import pairwise
from sys import byteorder

from msgspec import Struct

# A log's header: magic, version, page size, number, salt, checksum. A frame's: its page, how many
# pages there are if it ends a commit (else 0), salt, checksum; the page itself follows.
_HEADER, _FRAME = 32, 24
_PLACE, _SALT, _SUM = slice(8), slice(8, 16), slice(16, 24)
_BIG_ENDIAN = 1  # in the magic: of which words the checksums are

Sum = tuple[int, int]


class Log(Struct, frozen=True):
    """What was found in a log.

    Attributes:
        hides: Are there commits behind damage, which SQLite would not read?
        is_torn: Was the last commit left out, because it is torn or damaged?
        readable: A log in which SQLite reads all but that one. Pages are as they were found.
    """

    hides: bool
    is_torn: bool
    readable: bytes


def length(log: bytes, page_size: int) -> int:
    """Return how many frames a log has: SQLite reads so many, unless the last commit was not finished."""
    return len(_heads(log, log[16:24], page_size))


class _Frame(Struct):
    place: bytes
    page: bytes
    is_sound: bool


def examine(log: bytes, page_size: int) -> Log:
    """Judge a log, which belongs to a file with pages of that size."""
    header = _header(log, page_size)
    if header is None:
        return Log(hides=False, is_torn=False, readable=log)
    frames = list(_frames(log, header, page_size))
    ends = [number for number, each in enumerate(frames, 1) if any(each.place[4:])]
    commits = [frames[begin:end] for begin, end in pairwise([0, *ends])]
    sound = [all(frame.is_sound for frame in commit) for commit in commits]
    is_torn = bool(sound) and not sound[-1]
    last = len(sound) - is_torn
    hides = False in sound[:last] or (last > 0 and header != log[:_HEADER])
    kept = [frame for commit in commits[:last] for frame in commit]
    return Log(hides, is_torn, _written(header, kept))


def _header(log: bytes, page_size: int) -> bytes | None:
    """Return a log's header, without the bit that is flipped in it, if one is."""
    if len(log) < _HEADER + _FRAME + page_size:
        return None
    for fields in _nearby(log[:24]):
        if _header_sum(fields) == log[24:_HEADER]:
            return fields + log[24:_HEADER]
    header = log[:24] + _header_sum(log[:24])
    first = next(_frames(log, header, page_size), None)
    return header if first is not None and first.is_sound else None


def _header_sum(fields: bytes) -> bytes:
    return _bytes(_sum(fields[3] & _BIG_ENDIAN, (0, 0), fields))


def _frames(log: bytes, header: bytes, page_size: int) -> Iterator[_Frame]:
    """Yield the frames of this log; those of the one before, which it has not reached, are no part of it."""
    is_big, salt, before = header[3] & _BIG_ENDIAN, header[16:24], header[24:]
    for place, head in _heads(log, salt, page_size):
        page = log[place + _FRAME : place + _FRAME + page_size]
        yield _judged(is_big, _numbers(before), head, page, is_ours=head[_SALT] == salt)
        before = head[_SUM]


def _heads(log: bytes, salt: bytes, page_size: int) -> list[tuple[int, bytes]]:
    """Return where the frames of this log are, and their headers."""
    places = range(_HEADER, len(log) - _FRAME - page_size + 1, _FRAME + page_size)
    heads = [(place, log[place : place + _FRAME]) for place in places]
    while heads and heads[-1][1][_SALT] != salt:
        heads.pop()
    return heads


def _judged(is_big: int, before: Sum, head: bytes, page: bytes, *, is_ours: bool) -> _Frame:
    for place in _nearby(head[_PLACE]):  # a page that is put elsewhere would be two errors
        if _bytes(_sum(is_big, _sum(is_big, before, place), page)) == head[_SUM]:
            return _Frame(place, page, is_sound=is_ours and place == head[_PLACE])
    return _Frame(head[_PLACE], page, is_sound=False)


def _written(header: bytes, frames: list[_Frame]) -> bytes:
    is_big, parts, before = header[3] & _BIG_ENDIAN, [header], _numbers(header[24:])
    for frame in frames:
        before = _sum(is_big, _sum(is_big, before, frame.place), frame.page)
        parts += [frame.place, header[16:24], _bytes(before), frame.page]
    return b"".join(parts)


def _sum(is_big: int, start: Sum, data: bytes) -> Sum:
    words = array("I", data)
    if bool(is_big) != (byteorder == "big"):
        words.byteswap()
    one, other = start
    pairs = iter(words)
    for first, second in zip(pairs, pairs, strict=True):
        one = (one + first + other) & 0xFFFFFFFF
        other = (other + second + one) & 0xFFFFFFFF
    return one, other


def _nearby(data: bytes) -> Iterator[bytes]:
    """Yield bytes as they are, then with each of their bits flipped."""
    yield data
    number = int.from_bytes(data, "big")
    for bit in range(len(data) * 8):
        yield (number ^ 1 << bit).to_bytes(len(data), "big")


def _bytes(sums: Sum) -> bytes:
    return struct.pack(">II", *sums)


def _numbers(written: bytes) -> Sum:
    one, other = struct.unpack(">II", written)
    return one, other
