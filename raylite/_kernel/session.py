"""A session: exactly-once, in-order delivery between two live incarnations, over any connection.

A machine: no I/O, no clock. Each side numbers the packets it sends and tells the other how far it
has received; what is not acknowledged is kept, bounded, and sent again after a reconnect;
what arrives twice is dropped. So a dropped connection is invisible above, and no handler needs
an idempotency of its own.
"""

from collections import deque

from raylite._kernel.packet import Packet, encode_packet
from raylite.exceptions import ProtocolError

WINDOW_BYTES = 16 * 1024 * 1024
ACK_EVERY_PACKETS = 64
ACK_EVERY_BYTES = 1024 * 1024  # or a quarter of the window, if that is less


class Session:
    """One side of a session.

    Between calls: every packet sent is either acknowledged or kept, in order; `received` is the
    number of the last packet delivered, and never goes back.
    """

    def __init__(self, window: int = WINDOW_BYTES) -> None:
        self._window = window
        self._ack_every_bytes = min(ACK_EVERY_BYTES, window // 4)
        self._kept: deque[tuple[int, bytes]] = deque()  # (seq, packet), not yet acknowledged
        self._kept_bytes = 0
        self._next = 1
        self._unreported_packets = 0
        self._unreported_bytes = 0
        self.received: int = 0

    @property
    def open(self) -> bool:
        """Whether the window admits another packet; one larger than the window goes alone."""
        return self._kept_bytes < self._window

    @property
    def sent(self) -> int:
        """The number of the last packet sent."""
        return self._next - 1

    @property
    def confirmed(self) -> int:
        """The number of the last packet that the peer is known to have."""
        return self._next - 1 - len(self._kept)

    @property
    def unacknowledged(self) -> int:
        """Packets kept for a replay."""
        return len(self._kept)

    @property
    def kept_bytes(self) -> int:
        return self._kept_bytes

    @property
    def ack_due(self) -> bool:
        """Whether so much has arrived unreported that silence would hold the peer up."""
        return (
            self._unreported_packets >= ACK_EVERY_PACKETS
            or self._unreported_bytes >= self._ack_every_bytes
        )

    def pack(self, frames: bytes) -> bytes:
        """Number the frames, keep them for a replay, and return the packet to send."""
        seq = self._next
        self._next = seq + 1
        packet = encode_packet(seq, self._report(), frames)
        self._kept.append((seq, packet))
        self._kept_bytes += len(packet)
        return packet

    def bare(self, frames: bytes = b"") -> bytes:
        """Return a packet outside the sequence: an ack, with a hello or a ping if given."""
        return encode_packet(0, self._report(), frames)

    def accept(self, packet: Packet) -> bool:
        """Take note of a packet; True when its frames are to be delivered.

        A packet outside the sequence (``seq`` 0) is always delivered: what it says is about the
        wire, not part of the conversation.

        Raises:
            ProtocolError: The peer acknowledges what was never sent, or skips a number.
        """
        seq, ack, frames = packet
        if ack:
            self.acknowledged(ack)
        if seq == 0:
            return True
        if seq <= self.received:
            return False
        if seq != self.received + 1:
            raise ProtocolError(
                f"packet {seq} follows packet {self.received}: the peer lost a packet"
            )
        self.received = seq
        self._unreported_packets += 1
        self._unreported_bytes += len(frames)
        return True

    def acknowledged(self, ack: int) -> None:
        """Forget what the peer has received."""
        if ack >= self._next:
            raise ProtocolError(
                f"the peer acknowledges packet {ack} of {self._next - 1} sent packets"
            )
        while self._kept and self._kept[0][0] <= ack:
            self._kept_bytes -= len(self._kept.popleft()[1])

    def resume(self, peer_received: int) -> list[bytes]:
        """Return what to send again on a new connection, oldest first.

        Raises:
            ProtocolError: The peer has received more than was sent, or less than it said before.
        """
        if peer_received < self.confirmed:
            raise ProtocolError(
                f"the peer resumes after packet {peer_received} and had confirmed {self.confirmed}"
            )
        self.acknowledged(peer_received)
        return [packet for _, packet in self._kept]

    def check(self) -> None:
        """Assert what holds between calls."""
        assert self._kept_bytes == sum(len(packet) for _, packet in self._kept)
        numbers = [seq for seq, _ in self._kept]
        assert numbers == list(range(self._next - len(numbers), self._next))

    def _report(self) -> int:
        self._unreported_packets = self._unreported_bytes = 0
        return self.received
