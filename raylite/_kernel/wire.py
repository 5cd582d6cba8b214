"""A wire: one connection's life, as links and networks see it.

Packets come in order until the wire breaks, and then never again. Whoever holds a wire gives it a
listener (`events`); exactly one `broken` ends what the listener hears.
"""

from typing import Protocol

from raylite.exceptions import LinkError

FIRST_PACKET = 64 * 1024  # what a peer may send before it has said who it is
CLOSING = 0.5  # seconds that a closing wire may take to write what was sent on it


class WireEvents(Protocol):
    """Who is told what happens on a wire."""

    def packet(self, data: bytes | memoryview) -> None:
        """A packet has arrived."""

    def arriving(self) -> None:
        """Bytes have arrived that do not make a packet yet: the peer lives."""

    def malformed(self, error: LinkError) -> None:
        """What arrived is no packet, too large a one, or a final no; the listener closes the wire."""

    def broken(self, reason: str) -> None:
        """The wire is gone."""

    def writable(self) -> None:
        """`Wire.is_writable` has become true again."""


class Wire(Protocol):
    """One connection. `limit` bounds the packets it takes; it starts at `FIRST_PACKET`.

    One that `is_local` stays within a machine, which reports at once that the other end is gone.
    `scope` is what the peer may do, by the token that it has proven; all, where there are none.
    """

    events: WireEvents
    limit: int
    is_local: bool
    scope: str

    @property
    def is_writable(self) -> bool:
        """Whether what is sent now leaves now, and does not pile up here."""

    def send(self, packet: bytes) -> None:
        """Send a packet, or keep it until it can be sent; nothing if the wire is broken."""

    def pause_reading(self) -> None:
        """Hear no more packets for now, so that the peer's sending backs up."""

    def resume_reading(self) -> None: ...

    def close(self, reason: str) -> None:
        """Break the wire once what was sent has left, or after `CLOSING` seconds."""

    def abort(self, reason: str) -> None:
        """Break the wire at once; what was not written yet is lost."""


class Deaf:
    """Hears nothing more of a wire that was given up."""

    def packet(self, data: bytes | memoryview) -> None: ...
    def arriving(self) -> None: ...
    def malformed(self, error: LinkError) -> None: ...
    def broken(self, reason: str) -> None: ...
    def writable(self) -> None: ...
