"""A link: one peer pair, ordered, full duplex, over wires that may break.

All sends of one loop tick leave as one packet. The caller's cancel scope is the deadline: it
travels with the call, and leaving it sends a cancel. Under the frames lies a `Session`, so a
broken wire is invisible: the network dials again and what was lost is sent again. A link ends for
one of six reasons: you closed it, the peer said goodbye, the peer's incarnation is known dead, the
peer sent what is not the protocol, the two ends are not of one cluster, or no wire could be had for
the session timeout.

This module is longer than most because the two ends of every kind of message, and what a broken
wire, a slow reader and an ended session mean for each, are one idea.
"""

import asyncio
import copy
import math
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from raylite._kernel.deadlines import effective_deadline
from raylite._kernel.interface import SCOPES, Route, batch
from raylite._kernel.mailbox import Mailbox
from raylite._kernel.outbox import Outbox
from raylite._kernel.packet import (
    ASIDE,
    HEADER_SIZE,
    MAX_PACKET,
    Frame,
    Kind,
    decode_frames,
    decode_packet,
    encode_frame as encode,
)
from raylite._kernel.session import WINDOW_BYTES, Session
from raylite._kernel.wire import Deaf, Wire
from raylite._types.address import shown
from raylite.exceptions import (
    AuthenticationError,
    CongestedError,
    LinkClosedError,
    LinkError,
    PeerLostError,
    ProtocolError,
    RayError,
    UnavailableError,
    from_wire,
    to_wire,
)

FEED_CREDIT = 64  # items a feed may be ahead of its reader
ENVELOPE = 64  # bytes of a packet that are not the body of its only frame, and some to spare
LONGEST_DEADLINE = 1e9  # seconds; what is further off is no deadline
UNREAD_ANSWERS = 4  # outbox limits' worth of answers after which a peer that reads none is left
_DEADLINE = struct.Struct("<d")
_new = tuple.__new__  # see `packet`
_encode_error = msgspec.msgpack.Encoder().encode
_decode_error = msgspec.msgpack.Decoder(tuple[str, str]).decode


class LinkConfig(Struct, frozen=True):
    """Times in seconds, sizes in bytes.

    Args:
        ping_after: Silence after which a ping asks whether the peer is there.
        silence: Silence after which the wire is aborted (and dialled again).
        local_patience: How many times longer both are on a wire within the machine, where a
            silent peer is one that stands still, and hundreds of idle links cost their pings.
        unreachable: How long there is no wire until whoever wants to know is told that the peer
            cannot be reached; the session goes on.
        session_timeout: How long the session waits for a new wire.
        connect_timeout: How long one attempt to open a wire may take.
        detour: How long there is no wire until others are asked to carry one, see `detour`.
        carry_timeout: How long somebody who carries it may take to reach the next.
        direct_again: How often the direct way is tried while there is such a wire.
        redial_first: The pause before the first attempt to dial again; later ones double it.
        redial_last: The longest such pause.
        outbox_limit: What may wait to be sent before a post is refused and a call waits.
        packet_size: Frames are gathered up to about this size.
        window: What may be sent and not yet acknowledged.
        max_packet: The largest packet; it bounds the largest message. The same at both ends.
    """

    ping_after: float = 2.0
    silence: float = 6.0
    local_patience: float = 10.0
    unreachable: float = 20.0
    session_timeout: float = 60.0
    connect_timeout: float = 5.0
    detour: float = 4.0
    carry_timeout: float = 2.0
    direct_again: float = 20.0
    redial_first: float = 0.02
    redial_last: float = 2.0
    outbox_limit: int = 64 * 1024 * 1024
    packet_size: int = 1024 * 1024
    window: int = WINDOW_BYTES
    max_packet: int = MAX_PACKET


class Message(NamedTuple):
    """What a link puts into a service's mailbox. `deadline` is on the loop's clock, or infinite."""

    link: "Link"
    route: int
    call: int
    body: bytes | memoryview
    deadline: float


class Destination(NamedTuple):
    """Where the frames of a route go."""

    mailbox: Mailbox[Message]
    route: Route


class _Feed:
    """A feed that is being read: items that arrived, and who waits for them."""

    __slots__ = ("error", "has_ended", "items", "waiter")

    def __init__(self) -> None:
        self.items: deque[bytes | memoryview] = deque()
        self.waiter: asyncio.Future[None] | None = None
        self.has_ended = False
        self.error: RayError | None = None

    def end(self, error: RayError | None) -> None:
        self.has_ended, self.error = True, error
        self.wake()

    def take_error(self) -> BaseException:
        """Return what ends the iteration; kept here too, it and the reader's frame were a cycle."""
        error, self.error = self.error, None
        return error or StopAsyncIteration()

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class _Serving:
    """A call or feed being answered: its task, and the credit its reader gave."""

    __slots__ = ("credit", "task", "waiter")

    def __init__(self) -> None:
        self.task: asyncio.Task[Any] | None = None
        self.credit = FEED_CREDIT
        self.waiter: asyncio.Future[None] | None = None


class Departures:
    """The links of one process that have something to send before this turn of the loop ends.

    Whoever will call `flush` says so with `hold`; otherwise the loop sees to it.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._links: list[Link] = []
        self._is_scheduled = self._is_held = False

    def add(self, link: "Link") -> None:
        self._links.append(link)
        if not self._is_scheduled and not self._is_held:
            self._is_scheduled = True
            self._loop.call_soon(self._on_time)

    def hold(self) -> None:
        """The caller will `flush` before it returns to the loop, whatever happens."""
        self._is_held = True

    def flush(self) -> None:
        """Send now what this turn has gathered; for whoever knows that nothing more comes."""
        self._is_held = False
        if self._links:
            links, self._links = self._links, []
            for link in links:
                link.flush()

    def _on_time(self) -> None:
        self._is_scheduled = False
        self.flush()


class Link:
    """A peer, as seen by those who talk to it. Networks make links; see `Network.connect`."""

    def __init__(
        self,
        peer: str,
        session_id: bytes,
        destinations: Mapping[int, Destination],
        config: LinkConfig,
        departures: "Departures",
        on_end: Callable[["Link"], None],
    ) -> None:
        self.peer = peer
        self.session_id = session_id
        self.peer_incarnation = b""
        self.scope = SCOPES[-1]  # what the peer may do here
        self.attempt = 0  # of the peer's attempts to dial, the last that was accepted
        self.session: Session = Session(config.window)
        self.last_failure: str = "no answer yet"
        self.error: RayError | None = None
        self._destinations = destinations
        self._config = config
        self._departures = departures
        self._loop = asyncio.get_running_loop()
        self.on_unreachable: Callable[[Link], None] = _ignore
        self._is_unreachable = False
        self._on_end: list[Callable[[Link], None]] = [on_end]
        self._wire: Wire | None = None
        self._detached: asyncio.Future[None] | None = None
        self._attached: asyncio.Future[None] | None = None
        self._outbox = Outbox(config.packet_size)
        self._flush_scheduled = False
        self._touched: list[Mailbox[Message]] = []
        self._room: dict[asyncio.Future[None], None] = {}
        self._confirmations: list[asyncio.Future[None]] = []
        self._calls: dict[int, tuple[asyncio.Future[Any], Route]] = {}
        self._feeds: dict[int, _Feed] = {}
        self._serving: dict[int, _Serving] = {}
        self._last_call = 0
        self._paused = False
        self._ping_after, self._silence = config.ping_after, config.silence
        self._heard = self._alive = self._lost_at = self._loop.time()
        self._tick_at = self._heard + config.ping_after
        self._tick_handle = self._loop.call_at(self._tick_at, self._tick)

    def __repr__(self) -> str:
        state = "ended" if self.error else "open" if self._wire else "waiting for a wire"
        return f"<Link to {self.peer}, {state}>"

    # ---- sending -------------------------------------------------------------------------

    @property
    def is_ended(self) -> bool:
        return self.error is not None

    @property
    def is_congested(self) -> bool:
        """Whether the peer reads so slowly that a post would be refused."""
        return self._outbox.size > self._config.outbox_limit

    @property
    def queued(self) -> int:
        """Bytes that wait to be sent, for the peer reads more slowly than this process writes."""
        return self._outbox.size

    async def call(self, route: Route, request: Any) -> Any:
        """Send a request and return its reply; leaving this scope early cancels it at the peer."""
        body = self._encoded(route, request)
        if self.error is not None or self.is_congested:
            await self.wait_room()
        call = self._number()
        future: asyncio.Future[Any] = self._loop.create_future()
        self._calls[call] = future, route
        self._send(encode(Kind.CALL, route.number, call, body, self._deadline()))
        try:
            return await future
        finally:
            del future  # with an exception in it, the two would keep one another alive
            if self._calls.pop(call, None) is not None and self.error is None:
                self._send(encode(Kind.CANCEL, 0, call, b""))

    def post(self, route: Route, message: Any) -> None:
        """Send a message without waiting.

        Raises:
            CongestedError: The peer has stopped reading and too much waits already.
            ProtocolError: The message is larger than a packet may be, or cannot be encoded.
            LinkError: The link has ended.
        """
        if self.error is not None or self.is_congested:
            raise self._refusal()
        body = self._encoded(route, message)
        self._send(encode(Kind.POST, route.number, 0, body))

    def batch(self, route: "batch[Any]", item: Any) -> None:
        """Add an item to the list that this tick sends; raises what `post` raises."""
        outbox = self._outbox
        if self.error is not None or outbox.size > self._config.outbox_limit:
            raise self._refusal()
        try:
            body = route.encode_item(item)
        except Exception as error:
            raise route.unencodable(error) from error
        if len(body) > self._config.max_packet - ENVELOPE:
            raise self._too_large(len(body))
        outbox.add_item(route.number, body)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._departures.add(self)

    def feed(self, route: Route, request: Any) -> "FeedReader":
        """Iterate over the items that the peer streams; leaving the iteration cancels it there.

        The request is sent when the first item is asked for.
        """
        return FeedReader(self, route, self._encoded(route, request))

    async def wait_room(self, queued: int | None = None) -> None:
        """Wait until the peer reads again, if it has stopped; raises if the link has ended.

        Args:
            queued: How many bytes may wait to be sent then, for who would leave room for others.
        """
        limit = self._config.outbox_limit if queued is None else queued
        while True:
            if self.error is not None:
                raise self._refusal()
            if self._outbox.size <= limit:
                return
            room: asyncio.Future[None] = self._loop.create_future()
            self._room[room] = None
            try:
                await room
            finally:
                self._room.pop(room, None)

    async def wait_received(self) -> None:
        """Wait until the peer has received what was sent so far, or the link has ended."""
        sent: int | None = None
        while self.error is None:
            self.flush()
            if sent is None and not self._outbox:
                sent = self.session.sent
            if sent is not None and self.session.confirmed >= sent:
                return
            if self._wire is not None and self._wire.is_writable:
                self._wire.send(self.session.bare(encode(Kind.PING, 0, 0, b"")))
            confirmed: asyncio.Future[None] = self._loop.create_future()
            self._confirmations.append(confirmed)
            await confirmed

    # ---- reading a feed (what a `FeedReader` calls) ----------------------------------------

    def begin_feed(self, route: Route, body: bytes) -> tuple[int, _Feed]:
        """Ask for a feed; its items then gather in what this returns."""
        call = self._number()
        feed = self._feeds[call] = _Feed()
        self._send(encode(Kind.FEED, route.number, call, body, self._deadline()))
        return call, feed

    def more(self, call: int, taken: int) -> None:
        """Let the peer send as many items more as were taken."""
        if self.error is None:
            self._send(encode(Kind.MORE, 0, call, taken.to_bytes(4, "little")))

    def leave_feed(self, call: int) -> None:
        """Tell the peer to stop, if the feed has not ended."""
        feed = self._feeds.pop(call, None)
        if feed is not None and not feed.has_ended and self.error is None:
            self._send(encode(Kind.CANCEL, 0, call, b""))

    def run(self, callback: Callable[..., object], *args: Any) -> None:
        """Call back on this link's loop: now, or soon if this is another thread."""
        try:
            is_here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            is_here = False
        if is_here:
            callback(*args)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *args)

    # ---- answering (what a service calls) --------------------------------------------------

    def serves(self, call: int) -> bool:
        """Whether a call still waits for its answer: neither cancelled nor answered."""
        return call in self._serving

    def serving(self, call: int, task: "asyncio.Task[Any]") -> None:
        """Let a cancel from the peer, or the end of the link, cancel this task."""
        if (serving := self._serving.get(call)) is not None:
            serving.task = task
        else:
            task.cancel()

    @property
    def answering(self) -> int:
        """How many calls and feeds of the peer's are not answered yet."""
        return len(self._serving)

    def reply(self, call: int, body: bytes) -> None:
        """Answer a call; nothing if its caller has left."""
        if len(body) > self._config.max_packet - ENVELOPE:
            self.fail(call, self._too_large(len(body)))
        else:
            self._answer(Kind.REPLY, call, body)

    def fail(self, call: int, error: RayError) -> None:
        """Answer a call, or end a feed, with an error."""
        self._answer(Kind.ERROR, call, _encode_error(to_wire(error)))

    def end(self, call: int) -> None:
        """End a feed."""
        self._answer(Kind.END, call, b"")

    async def item(self, call: int, body: bytes) -> None:
        """Send one item of a feed, once its reader has room for it."""
        if len(body) > self._config.max_packet - ENVELOPE:
            raise self._too_large(len(body))
        while (serving := self._serving.get(call)) is not None:
            if serving.credit <= 0:
                serving.waiter = self._loop.create_future()
                await serving.waiter
            elif self.is_congested:
                await self.wait_room()
            else:
                serving.credit -= 1
                self._send(encode(Kind.ITEM, 0, call, body))
                return

    def _answer(self, kind: Kind, call: int, body: bytes) -> None:
        if self._serving.pop(call, None) is None or self.error is not None:
            return
        self._send(encode(kind, 0, call, body))
        if self._outbox.size > self._config.outbox_limit * UNREAD_ANSWERS:
            # Answers cannot wait, and this peer asks on while it reads nothing.
            self._say_goodbye("too many answers wait for you to read them")
            self.finish(
                CongestedError(
                    f"{shown(self.peer)} left {self._outbox.size} bytes of answers unread"
                )
            )

    # ---- the wire (what a network calls) ---------------------------------------------------

    @property
    def is_attached(self) -> bool:
        """Whether there is a wire at this moment."""
        return self._wire is not None

    @property
    def without_wire(self) -> float:
        """For how many seconds there has been no wire."""
        return 0.0 if self._wire is not None else self._loop.time() - self._lost_at

    def attach(self, wire: Wire, peer_received: int) -> None:
        """Go on over a new wire, sending again what the peer has not received."""
        old, self._wire = self._wire, wire
        self._is_unreachable = False
        if old is not None:
            old.events = Deaf()
            old.abort("replaced by a newer connection")
        self._heard = self._alive = self._loop.time()
        patience = self._config.local_patience if wire.is_local else 1.0
        self._ping_after = patience * self._config.ping_after
        self._silence = patience * self._config.silence
        wire.events = self
        wire.limit = self._config.max_packet
        try:
            again = self.session.resume(peer_received)
        except ProtocolError as error:
            self.malformed(error)
            return
        for packet in again:
            wire.send(packet)
        if self._paused:
            wire.pause_reading()
        if self._attached is not None:
            self._attached.set_result(None)
            self._attached = None
        self.flush()
        self._wake_confirmations()
        self._schedule_tick(self._heard)

    async def wait_detached(self) -> None:
        """Wait until the wire breaks; at once when there is none."""
        if self._wire is not None:
            if self._detached is None:
                self._detached = self._loop.create_future()
            await asyncio.shield(self._detached)

    async def wait_attached(self) -> None:
        """Wait until there is a wire; at once when there is one. Raises if the link has ended."""
        if self._wire is None and self.error is None:
            if self._attached is None:
                self._attached = self._loop.create_future()
            await asyncio.shield(self._attached)
        if self.error is not None:
            raise self._refusal()

    def abort_wire(self, reason: str) -> None:
        """Break the wire, if there is one; the session goes on over the next."""
        if self._wire is not None:
            self._wire.abort(reason)

    def broken(self, reason: str) -> None:
        """The wire broke. Never an error by itself: the session waits for another."""
        self._wire = None
        self._lost_at = self._loop.time()
        self.last_failure = reason
        if self._detached is not None:
            self._detached.set_result(None)
            self._detached = None
        self._schedule_tick(self._lost_at)

    def writable(self) -> None:
        self.flush()

    def arriving(self) -> None:
        self._alive = self._loop.time()

    def packet(self, data: bytes | memoryview) -> None:
        self._heard = self._alive = self._loop.time()
        session = self.session
        try:
            packet = decode_packet(data)
            if session.accept(packet):
                receive = self._receive if packet.seq else self._receive_aside
                for frame in decode_frames(packet.frames):
                    receive(frame)
                    if self.error is not None:
                        return
        except ProtocolError as error:
            self.malformed(error)
            return
        finally:
            if self._touched:
                self._handle_touched()
        if packet.ack:
            if self._outbox.size:
                self.flush()
            if self._confirmations:
                self._wake_confirmations()
        if session.ack_due and self._wire is not None:
            self._wire.send(session.bare())

    def _handle_touched(self) -> None:
        """Have services handle what a packet brought, and send what that caused, in this turn."""
        touched, self._touched = self._touched, []
        self._departures.hold()
        try:
            for mailbox in touched:
                mailbox.drain()
        finally:
            self._departures.flush()

    # ---- ending ----------------------------------------------------------------------------

    def on_end(self, callback: Callable[["Link"], None]) -> None:
        """Call back once when the link has ended; at once if it has."""
        if self.error is not None:
            callback(self)
        else:
            self._on_end.append(callback)

    def close(self) -> None:
        """End the session on purpose: what was sent leaves first, if the peer reads it, then a goodbye.

        Answers that have not come by now are not waited for.
        """
        if self.error is None:
            while self._outbox and self._wire is not None:
                self._wire.send(self.session.pack(self._outbox.take()))
            self._say_goodbye("")
            self.finish(LinkClosedError(f"the link to {shown(self.peer)} was closed here"))

    def confirm_dead(self, reason: str) -> None:
        """The peer's process is known to be gone: whoever waits for it need not."""
        told = f"{shown(self.peer)} is gone: {reason}"
        self.finish(PeerLostError(told, confirmed=True, reason=reason))

    def leave(self, reason: str) -> None:
        """Say goodbye, and let whoever waits for the peer hear the reason: it is lost to this process."""
        self._say_goodbye(reason)
        self.confirm_dead(reason)

    def malformed(self, error: LinkError) -> None:
        """The peer sent what no correct peer sends: end the session."""
        self._say_goodbye(f"protocol error: {error}")
        self.finish(error)

    def finish(self, error: RayError) -> None:
        """End the link: everything that waits for the peer fails with this error."""
        if self.error is not None:
            return
        self.error = error
        self._tick_handle.cancel()
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.events = Deaf()
            wire.abort(str(error))
        for waiting in (self._detached, self._attached):
            if waiting is not None:
                waiting.set_result(None)
        self._detached = self._attached = None
        self._outbox.clear()
        for future, _ in list(self._calls.values()):
            _set_exception(future, self._refusal())
        for feed in self._feeds.values():
            feed.end(self._refusal())
        for serving in list(self._serving.values()):
            if serving.task is not None:
                serving.task.cancel()
        self._serving.clear()
        self._wake_room()
        self._wake_confirmations()
        callbacks, self._on_end = self._on_end, []
        for callback in callbacks:
            try:
                callback(self)
            except Exception as failure:  # the others must hear of it too
                context = {"message": f"a callback on the end of {self!r}", "exception": failure}
                self._loop.call_exception_handler(context)

    def _say_goodbye(self, reason: str) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.events = Deaf()
            wire.send(self.session.bare(encode(Kind.BYE, 0, 0, reason.encode()[:1000])))
            wire.close(reason or "closed")

    # ---- inside ----------------------------------------------------------------------------

    def _refusal(self) -> RayError:
        """Return a new exception: one that is raised in many places collects all their frames."""
        if self.error is None:
            return CongestedError(
                f"{shown(self.peer)} has stopped reading: {self._outbox.size} bytes wait to be sent"
            )
        error = copy.copy(self.error)
        error.__cause__ = self.error.__cause__
        return error

    def _too_large(self, size: int) -> ProtocolError:
        limit = self._config.max_packet - ENVELOPE
        return ProtocolError(f"a message of {size} bytes is too large; at most {limit} can be sent")

    def _encoded(self, route: Route, message: Any) -> bytes:
        try:
            body = route.request.encode(message)
        except Exception as error:
            raise route.unencodable(error) from error
        if len(body) > self._config.max_packet - ENVELOPE:
            raise self._too_large(len(body))
        return body

    def _number(self) -> int:
        call = self._last_call
        while True:
            call = call % 0xFFFFFFFF + 1
            if call not in self._calls and call not in self._feeds:
                self._last_call = call
                return call

    def _deadline(self) -> bytes:
        deadline = effective_deadline()
        if deadline == math.inf:
            return b"\0\0\0\0\0\0\0\0"
        return _DEADLINE.pack(max(deadline - self._loop.time(), 1e-6))

    def _send(self, frame: bytes) -> None:
        self._outbox.add(frame)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._departures.add(self)

    def flush(self) -> None:
        """Send what has been gathered, as far as the wire and the window allow."""
        self._flush_scheduled = False
        session, outbox = self.session, self._outbox
        while outbox.size and session.open and self._wire is not None and self._wire.is_writable:
            self._wire.send(session.pack(outbox.take()))
        if self._room and not self.is_congested:
            self._wake_room()

    def _wake_room(self) -> None:
        for room in self._room:
            if not room.done():
                room.set_result(None)

    def _wake_confirmations(self) -> None:
        waiting, self._confirmations = self._confirmations, []
        for confirmed in waiting:
            if not confirmed.done():
                confirmed.set_result(None)

    def _receive(self, frame: Frame) -> None:
        kind, number, call, body = frame
        if kind is Kind.BATCH or kind is Kind.POST:
            self._deliver(kind, number, 0, body, math.inf)
        elif kind is Kind.REPLY:
            if (pending := self._calls.pop(call, None)) is not None and not pending[0].done():
                try:
                    pending[0].set_result(pending[1].reply.decode(body))
                except ProtocolError as error:
                    _set_exception(pending[0], error)
        elif kind is Kind.CALL or kind is Kind.FEED:
            if call == 0 or call in self._serving:
                raise ProtocolError(f"a {kind.name} frame with a number that is not free: {call}")
            deadline = self._arrival_deadline(body)
            self._serving[call] = _Serving()
            self._deliver(kind, number, call, body[_DEADLINE.size :], deadline)
        elif kind is Kind.ERROR:
            self._failed(call, body)
        elif kind is Kind.ITEM:
            if (feed := self._feeds.get(call)) is not None:
                if len(feed.items) >= FEED_CREDIT:
                    raise ProtocolError("a feed sends more than its reader gave it credit for")
                feed.items.append(body)
                feed.wake()
        elif kind is Kind.END:
            if (feed := self._feeds.get(call)) is not None:
                feed.end(None)
        elif kind is Kind.CANCEL:
            serving = self._serving.pop(call, None)
            if serving is not None and serving.task is not None:
                serving.task.cancel()
        elif kind is Kind.MORE:
            self._more(call, body)
        else:
            raise ProtocolError(f"a {kind.name} frame inside the sequence of a session")

    def _receive_aside(self, frame: Frame) -> None:
        """Hear what is said outside the sequence: it may be repeated or lost without harm."""
        if frame.kind not in ASIDE:
            raise ProtocolError(f"a {frame.kind.name} frame outside the sequence of a session")
        if frame.kind is Kind.PING:
            if self._wire is not None:
                self._wire.send(self.session.bare(encode(Kind.PONG, 0, 0, b"")))
        elif frame.kind is Kind.BYE:
            reason = bytes(frame.body[:1000]).decode(errors="replace")
            told = "has ended the session" + (f": {reason}" if reason else "")
            lost = PeerLostError(f"{shown(self.peer)} {told}", confirmed=True, reason=f"it {told}")
            self.finish(lost)

    def _arrival_deadline(self, body: bytes | memoryview) -> float:
        if len(body) < _DEADLINE.size:
            raise ProtocolError("a call without its deadline")
        (seconds,) = _DEADLINE.unpack_from(body)
        if not seconds >= 0:  # not-a-number too
            raise ProtocolError(f"a call with a deadline of {seconds} seconds")
        if seconds == 0 or seconds > LONGEST_DEADLINE:
            return math.inf
        return self._loop.time() + float(seconds)

    def _deliver(
        self, kind: Kind, number: int, call: int, body: bytes | memoryview, deadline: float
    ) -> None:
        destination = self._destinations.get(number)
        if destination is None:
            if call:
                self.fail(call, self._no_destination(number))
            return
        mailbox, route = destination
        if route.kind is not kind:
            raise ProtocolError(f"{route.name} is a {route.kind.name}, and a {kind.name} was sent")
        if mailbox.is_closed:
            if call:
                self.fail(
                    call, UnavailableError(f"the service that answers {route.name} has ended")
                )
            return
        message = _new(Message, (self, number, call, body, deadline))
        mailbox.put(message, len(body) + HEADER_SIZE, route.bulk, drains=True)
        if mailbox not in self._touched:
            self._touched.append(mailbox)
        if mailbox.full and not self._paused:
            self._paused = True
            if self._wire is not None:
                self._wire.pause_reading()
            mailbox.on_room(self._resume)

    def _no_destination(self, number: int) -> RayError:
        if self.scope != SCOPES[-1]:
            return AuthenticationError(
                f"your token, of the scope {self.scope!r}, does not let you ask this; use the cluster's own"
            )
        return UnavailableError(f"no service here answers route {number:#06x}")

    def _resume(self) -> None:
        self._paused = False
        if self._wire is not None:
            self._wire.resume_reading()

    def _failed(self, call: int, body: bytes | memoryview) -> None:
        try:
            error = from_wire(*_decode_error(body))
        except (msgspec.DecodeError, UnicodeDecodeError) as bad:
            raise ProtocolError(f"an error frame that cannot be read: {bad}") from bad
        if (pending := self._calls.pop(call, None)) is not None:
            _set_exception(pending[0], error)
        elif (feed := self._feeds.get(call)) is not None:
            feed.end(error)

    def _more(self, call: int, body: bytes | memoryview) -> None:
        if len(body) != 4:
            raise ProtocolError("credit of the wrong size")
        if (serving := self._serving.get(call)) is not None:
            serving.credit = min(serving.credit + int.from_bytes(body, "little"), FEED_CREDIT)
            if serving.waiter is not None and not serving.waiter.done():
                serving.waiter.set_result(None)

    # ---- liveness --------------------------------------------------------------------------

    def _tick(self) -> None:
        """Ask after a silent peer, give up a silent wire, and in time the session."""
        now, config, wire = self._loop.time(), self._config, self._wire
        if (late := now - self._tick_at) > self._ping_after / 4:
            # This loop stood still, or the whole process did; that says nothing about the peer.
            self._heard = min(now, self._heard + late)
            self._alive = min(now, self._alive + late)
            self._lost_at = min(now, self._lost_at + late)
        if wire is None:
            if now - self._lost_at >= config.session_timeout - 1e-3:
                timeout = config.session_timeout
                told = f"could not be reached for {timeout:g} s: {self.last_failure}"
                lost = PeerLostError(f"{shown(self.peer)} {told}", reason=f"it {told}")
                self.finish(lost)
                return
            if not self._is_unreachable and now - self._lost_at >= config.unreachable - 1e-3:
                self._is_unreachable = True
                self.on_unreachable(self)
        elif self._paused:
            self._alive = now  # not reading, so hearing nothing; but the peer must hear something
            if wire.is_writable:
                wire.send(self.session.bare(encode(Kind.PONG, 0, 0, b"")))
        elif now - self._alive >= self._silence - 1e-3:
            wire.abort(f"{shown(self.peer)} was silent for {now - self._alive:.1f} s")
        elif (
            now - self._heard >= self._ping_after * 0.9 or self.session.unacknowledged
        ) and wire.is_writable:
            wire.send(self.session.bare(encode(Kind.PING, 0, 0, b"")))
        self._schedule_tick(now)

    def _schedule_tick(self, now: float) -> None:
        """Tick every `ping_after`, and at the moment when patience ends."""
        if self.error is not None:
            return
        config = self._config
        if self._wire is not None:
            patience = self._alive + self._silence
        elif self._is_unreachable or config.unreachable >= config.session_timeout:
            patience = self._lost_at + config.session_timeout
        else:
            patience = self._lost_at + config.unreachable
        self._tick_handle.cancel()
        self._tick_at = now + self._ping_after
        if now + 1e-3 < patience < self._tick_at:  # if it has ended, this tick has seen to it
            self._tick_at = patience
        self._tick_handle = self._loop.call_at(self._tick_at, self._tick)


class FeedReader(AsyncIterator[Any]):
    """The items of one feed. Ends when the feed ends, or fails, or a wait for an item is cancelled.

    Whatever the reason to stop reading, the peer is told: by `aclose`, or when nobody holds the
    reader any more.
    """

    def __init__(self, link: Link, route: Route, body: bytes) -> None:
        self._link, self._route, self._body = link, route, body
        self._call = 0
        self._feed: _Feed | None = None
        self._taken = 0
        self._is_closed = False

    async def __anext__(self) -> Any:
        if self._is_closed:
            raise StopAsyncIteration
        if self._feed is not None and self._feed.waiter is not None:
            raise RuntimeError("two tasks read one feed")
        try:
            feed = await self._wait_item()
            if feed.items:
                item = feed.items.popleft()
                self._taken += 1
                if self._taken >= FEED_CREDIT // 2 and not feed.has_ended:
                    self._link.more(self._call, self._taken)
                    self._taken = 0
                return self._route.reply.decode(item)
            raise feed.take_error()
        except BaseException:
            self.close()
            raise

    async def _wait_item(self) -> _Feed:
        """Wait until there is an item, or none to come."""
        if self._feed is None:
            await self._link.wait_room()
            self._call, self._feed = self._link.begin_feed(self._route, self._body)
        feed = self._feed
        while not feed.items and not feed.has_ended:
            feed.waiter = asyncio.get_running_loop().create_future()
            try:
                await feed.waiter
            finally:
                feed.waiter = None
        return feed

    def close(self) -> None:
        """Stop the feed; iterating on ends at once."""
        self._is_closed = True
        feed, self._feed = self._feed, None
        if feed is not None:
            self._link.run(self._link.leave_feed, self._call)

    async def aclose(self) -> None:
        """Stop the feed, as the iterators do that a generator makes."""
        self.close()

    def __del__(self) -> None:
        self.close()


def _ignore(link: Link) -> None: ...


def _set_exception(future: "asyncio.Future[Any]", error: RayError) -> None:
    """Fail a future that its waiter may have left in this same tick: nobody need retrieve it."""
    if not future.done():
        future.set_exception(error)
        future.exception()
