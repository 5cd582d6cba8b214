"""Records: a row's bytes as they are kept, with what shows damage.

A record is a version byte, a checksum and the row. The checksum covers version, table and key as
well, so that a record found under another's key is damage too.
"""

import struct
import zlib

VERSION = 1

_HEAD = struct.Struct("<BI")


class DamagedRecordError(Exception):
    """A record is not what was written; the message goes on after "the record"."""


def seal(table: str, key: bytes, row: bytes) -> bytes:
    return _HEAD.pack(VERSION, _checksum(VERSION, table, key, row)) + row


def unseal(table: str, key: bytes, record: bytes) -> bytes:
    """Return the row, or raise a `DamagedRecordError`."""
    if len(record) < _HEAD.size:
        raise DamagedRecordError(f"is cut off after {len(record)} bytes")
    version, checksum = _HEAD.unpack_from(record)
    row = record[_HEAD.size :]
    if checksum != _checksum(version, table, key, row):
        raise DamagedRecordError("does not match its checksum")
    if version != VERSION:
        raise DamagedRecordError(f"is in version {version}, and this raylite reads {VERSION}")
    return row


def is_sound(table: bytes, key: bytes, record: bytes) -> bool:
    """Whether `unseal` would return a row."""
    try:
        unseal(table.decode(), key, record)
    except (DamagedRecordError, UnicodeDecodeError):
        return False
    return True


def _checksum(version: int, table: str, key: bytes, row: bytes) -> int:
    place = b"%d/%d/%b/%b" % (version, len(key), table.encode(), key)
    return zlib.crc32(row, zlib.crc32(place))
