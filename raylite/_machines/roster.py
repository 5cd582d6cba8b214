"""Roster: whom one holds for members, in a form that two can compare without telling all they know.

Members fall into parts by their ids. A part has a digest, which is equal wherever the same is known, in
whatever order it was told. Who asks sends the digests; of the parts that differ he is told all members. In a
large cluster some news is on its way at any time: it makes one part differ, and not the whole.
"""

from collections.abc import Collection, Iterable
from hashlib import blake2b
from zlib import crc32

PARTS = 64
_WIDTH = 8  # bytes of a digest: two parts that differ look alike once in 2**64


def part_of(node: bytes) -> int:
    """Return the part that a node is in."""
    return crc32(node) % PARTS


class Roster:
    """The members that are known, with their incarnations and whether they are suspected."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int, bool]] = {}
        self._digests: list[int] = [0] * PARTS
        self._changed: list[int] = [0] * PARTS  # and at which revision
        self._revision = 0

    @property
    def revision(self) -> int:
        """Grows with every change; see `settled`."""
        return self._revision

    def put(self, node: bytes, incarnation: int, *, suspect: bool = False) -> None:
        """A node is a member in this incarnation, and in no other."""
        if self._known.get(node) != (incarnation, suspect):
            self.remove(node)
            self._known[node] = incarnation, suspect
            self._mix(node, incarnation, suspect)

    def remove(self, node: bytes) -> None:
        """A node is no member."""
        if (known := self._known.pop(node, None)) is not None:
            self._mix(node, *known)

    def digests(self) -> bytes:
        """Return what this roster is compared by."""
        return _packed(self._digests)

    def differing(self, digests: bytes) -> bytes:
        """Return the parts in which another roster is not like this one; all, if these are no digests."""
        own = self.digests()
        if len(digests) != len(own):
            return bytes(range(PARTS))
        ends = range(0, len(own), _WIDTH)
        return bytes(
            part
            for part, at in enumerate(ends)
            if own[at : at + _WIDTH] != digests[at : at + _WIDTH]
        )

    def settled(self, parts: Iterable[int], revision: int) -> bytes:
        """Return those of the parts that have not changed here since a revision.

        What was told of the others may be older than what is known by now.
        """
        return bytes(part for part in parts if part < PARTS and self._changed[part] <= revision)

    def absent(self, parts: Collection[int], told: Collection[tuple[bytes, int]]) -> list[bytes]:
        """Return the nodes of these parts that are members here, and are not in what was told."""
        return [
            node
            for node, (incarnation, _) in self._known.items()
            if part_of(node) in parts and (node, incarnation) not in told
        ]

    def check(self) -> None:
        """Assert what holds between calls."""
        digests = [0] * PARTS
        for node, known in self._known.items():
            digests[part_of(node)] ^= _digest(node, *known)
        assert digests == self._digests
        assert max(self._changed) <= self._revision

    def _mix(self, node: bytes, incarnation: int, suspect: bool) -> None:
        """Add to its part's digest what is known of a node, or take it out again."""
        part = part_of(node)
        self._digests[part] ^= _digest(node, incarnation, suspect)
        self._revision += 1
        self._changed[part] = self._revision


def _digest(node: bytes, incarnation: int, suspect: bool) -> int:
    said = incarnation.to_bytes(8, "little") + bytes([suspect]) + node
    return int.from_bytes(blake2b(said, digest_size=_WIDTH).digest(), "little")


def _packed(digests: Iterable[int]) -> bytes:
    return b"".join(digest.to_bytes(_WIDTH, "little") for digest in digests)
