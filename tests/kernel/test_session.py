"""A session delivers exactly once and in order, whatever the connections under it do."""

from collections import deque

import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from raylite._kernel.packet import Packet, decode_packet, encode_packet
from raylite._kernel.session import ACK_EVERY_PACKETS, Session
from raylite.exceptions import ProtocolError


def packets(*numbers: int) -> list[Packet]:
    return [Packet(number, 0, b"x") for number in numbers]


def test_packets_are_numbered_from_one_and_carry_what_was_received() -> None:
    session = Session()
    session.accept(Packet(1, 0, b"hello"))
    assert decode_packet(session.pack(b"a")) == Packet(1, 1, b"a")
    assert decode_packet(session.pack(b"b")) == Packet(2, 1, b"b")
    assert decode_packet(session.bare(b"c")) == Packet(0, 1, b"c")
    assert (session.sent, session.confirmed, session.unacknowledged) == (2, 0, 2)


def test_what_is_acknowledged_is_kept_no_longer() -> None:
    session = Session()
    for _ in range(5):
        session.pack(b"frames")
    session.accept(Packet(0, 3, b""))
    assert (session.confirmed, session.unacknowledged) == (3, 2)
    session.accept(Packet(0, 2, b""))  # an old acknowledgement, in a packet sent again
    assert session.confirmed == 3
    session.check()


def test_a_duplicate_is_dropped() -> None:
    session = Session()
    assert [session.accept(packet) for packet in packets(1, 2, 1, 2, 3)] == [
        True,
        True,
        False,
        False,
        True,
    ]


def test_packets_outside_the_sequence_are_always_delivered() -> None:
    session = Session()
    assert [session.accept(packet) for packet in packets(0, 0, 1, 0)] == [True] * 4
    assert session.received == 1


def test_a_gap_is_a_protocol_error() -> None:
    session = Session()
    session.accept(Packet(1, 0, b""))
    with pytest.raises(ProtocolError, match="packet 3 follows packet 1"):
        session.accept(Packet(3, 0, b""))


def test_an_acknowledgement_of_what_was_never_sent_is_a_protocol_error() -> None:
    session = Session()
    session.pack(b"")
    with pytest.raises(ProtocolError, match="acknowledges packet 2 of 1"):
        session.accept(Packet(0, 2, b""))


def test_a_resume_sends_again_what_the_peer_has_not_received() -> None:
    session = Session()
    sent = [session.pack(b"%d" % number) for number in range(5)]
    assert session.resume(2) == sent[2:]
    assert session.resume(2) == sent[2:]
    assert session.resume(5) == []


def test_a_peer_that_forgot_what_it_had_is_a_protocol_error() -> None:
    session = Session()
    for _ in range(3):
        session.pack(b"")
    session.accept(Packet(0, 2, b""))
    with pytest.raises(ProtocolError, match="had confirmed 2"):
        session.resume(1)
    with pytest.raises(ProtocolError, match="acknowledges packet 4"):
        session.resume(4)


def test_the_window_closes_when_full_and_opens_with_an_acknowledgement() -> None:
    session = Session(window=100)
    states = [session.open]
    session.pack(bytes(1000))  # larger than the window: it goes alone
    states.append(session.open)
    session.accept(Packet(0, 1, b""))
    states.append(session.open)
    assert states == [True, False, True]
    assert session.kept_bytes == 0


@pytest.mark.parametrize(("window", "size", "count"), [(1000, 50, 5), (1 << 24, 1, 64)])
def test_an_acknowledgement_is_due_before_the_peer_must_wait_for_it(
    window: int, size: int, count: int
) -> None:
    session = Session(window)
    for number in range(1, count + 1):
        assert not session.ack_due
        session.accept(Packet(number, 0, bytes(size)))
    assert session.ack_due
    session.bare()
    assert not session.ack_due


@given(seq=st.integers(0, 5), ack=st.integers(0, 5), frames=st.binary(max_size=5))
def test_any_packet_is_accepted_dropped_or_refused(seq: int, ack: int, frames: bytes) -> None:
    session = Session()
    session.pack(b"one")
    session.accept(Packet(1, 0, b""))
    try:
        delivered = session.accept(decode_packet(encode_packet(seq, ack, frames)))
    except ProtocolError:
        assert seq > 2 or ack > 1
    else:
        assert delivered == (seq in (0, 2))
    session.check()


class Wire:
    """What is on its way between two sessions, in each direction."""

    def __init__(self) -> None:
        self.queues: tuple[deque[bytes], deque[bytes]] = (deque(), deque())


class SessionModel(RuleBasedStateMachine):
    """Two sessions over connections that lose a suffix, and dial again; sends at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = (Session(window=200), Session(window=200))
        self.sent: tuple[list[bytes], list[bytes]] = ([], [])
        self.heard: tuple[list[bytes], list[bytes]] = ([], [])
        self.wire: Wire | None = None
        self.last = 0

    @initialize()
    def connect_first(self) -> None:
        self.wire = Wire()

    @rule(end=st.sampled_from((0, 1)), size=st.integers(0, 80))
    def send(self, end: int, size: int) -> None:
        if not self.ends[end].open:
            return
        self.last += 1
        frames = b"%d " % self.last + bytes(size)
        self.sent[end].append(frames)
        packet = self.ends[end].pack(frames)
        if self.wire is not None:
            self.wire.queues[end].append(packet)

    @precondition(lambda self: self.wire is not None)
    @rule(end=st.sampled_from((0, 1)))
    def ping(self, end: int) -> None:
        assert self.wire is not None
        self.wire.queues[end].append(self.ends[end].bare())

    @precondition(lambda self: self.wire is not None)
    @rule(end=st.sampled_from((0, 1)), count=st.integers(1, 5))
    def deliver(self, end: int, count: int) -> None:
        """Let some of what `end` sent arrive."""
        assert self.wire is not None
        queue = self.wire.queues[end]
        for _ in range(min(count, len(queue))):
            packet = decode_packet(queue.popleft())
            if self.ends[1 - end].accept(packet) and packet.seq:
                self.heard[end].append(bytes(packet.frames))

    @rule()
    def cut(self) -> None:
        self.wire = None

    @precondition(lambda self: self.wire is None)
    @rule()
    def reconnect(self) -> None:
        """Each side tells the other what it has received, and sends the rest again."""
        self.wire = Wire()
        one, other = self.ends
        received_by_one, received_by_other = one.received, other.received
        self.wire.queues[0].extend(one.resume(received_by_other))
        self.wire.queues[1].extend(other.resume(received_by_one))

    @invariant()
    def each_side_heard_what_the_other_sent_once_and_in_order(self) -> None:
        for session, sent, heard in zip(self.ends, self.sent, self.heard, strict=True):
            session.check()
            assert heard == sent[: len(heard)]

    def teardown(self) -> None:
        """Once the cuts stop, everything arrives and nothing is kept."""
        if self.wire is None:
            self.reconnect()
        for _ in range(3):
            for end in (0, 1):
                self.deliver(end, len(self.wire.queues[end]) if self.wire else 0)
                self.ping(end)
        assert self.heard == self.sent
        assert [session.unacknowledged for session in self.ends] == [0, 0]


TestSessionModel = SessionModel.TestCase
TestSessionModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_receiver_speaks_up_at_least_once_a_window() -> None:
    """Two idle directions: the sender can always go on, since acks are not left to pings."""
    sender, receiver = Session(window=ACK_EVERY_PACKETS * 30), Session(window=1 << 24)
    for _ in range(1000):
        assert sender.open
        receiver.accept(decode_packet(sender.pack(b"f" * 10)))
        if receiver.ack_due:
            sender.accept(decode_packet(receiver.bare()))
