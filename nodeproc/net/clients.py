"""Connections of clients: their lines in, acknowledgements and delivered messages out. Rule: S1 to S7.

Every memory here is bounded by not reading: a client whose answers pile up, and every submitting client once the node
has taken in more than it could pass on and deliver, is not read until that is better. A subscriber that does not keep
up gets its messages from the disk, where they lie anyway. Lines without an end, clients without a first line and
those that have gone without a word are bounded too: nodeproc.config.Limits says how.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections import Counter, deque
from collections.abc import Sequence
from typing import Final, Protocol, cast

from msgspec import UNSET

from nodeproc.config import Limits
from nodeproc.core.events import BadInput, ClientConnected, ClientLeft, Event
from nodeproc.core.messages import Batch, NodeId, Position, Record, Refuse, SeqNo, Submit, Term
from nodeproc.errors import FrameError, Unreadable, brief
from nodeproc.lines import (
    SESSION_TOKEN,
    TOKEN_REFUSED,
    Ack,
    Chat,
    ClientLine,
    Hello,
    LeaderLine,
    LineDecoder,
    NodeLine,
    Problem,
    Reject,
    Status,
    StatusRequest,
    Subscribe,
    Welcome,
    decode_client_line,
    encode_line,
    session_of,
)
from nodeproc.net.sockets import address_of, probe_when_silent, send_at_once

LARGEST: Final = 2**53 - 1
"""Of client ids, n and seq_no: what every JSON reader keeps exact."""
CHUNK_BYTES: Final = 256 << 10
"""Read from the disk for a subscriber at once."""
STUCK_S: Final = 1.0
"""Nothing delivered for so long, and nothing to deliver: what was taken in may be lost on its way, and clients must be
heard again. Where the log holds more than is delivered, a majority's disks are slow, and more must not be taken in."""
FIRST_LINE_BYTES: Final = 4096
"""A stranger's line may be no longer before its end has come: HELLO, SUBSCRIBE and STATUS are short."""
OVERDUE_S: Final = 1.0
"""Who has not said a line after so long gives way to a new client where there are too many."""
KEEPALIVE_S: Final = 60
"""A silent connection is tried so often by the kernel: one whose machine is gone without a word ends."""
NEW_SESSIONS_S: Final = 600.0
"""Sessions that begin are counted for so long: see Limits.new_sessions."""
COUNTED_SESSIONS: Final = 100_000
"""Past it counting starts anew: with so many addresses no bound for each of them helps."""
LINGER_S: Final = 5.0
"""For a closed connection to take the line that says why."""


class Backend(Protocol):
    """What client connections ask of their node."""

    def submit(self, message: Submit) -> None: ...

    def delivered_session(self, session: str) -> tuple[int, SeqNo] | None: ...

    def route(self) -> tuple[NodeId, Term]: ...

    def delivered_seq(self) -> SeqNo: ...

    def last_seq(self) -> SeqNo: ...

    def read_lines(self, start: SeqNo, max_bytes: int) -> tuple[bytes, SeqNo]:
        """As Reading.lines: what can't be read now is told by Clients.read_again."""

    def status(self) -> Status: ...

    def report(self, event: Event, address: str = "") -> None: ...


class Clients:
    """All clients of a node.

    Args:
        client_token: what the first line of every connection must show; "": nothing.
    """

    def __init__(self, node_id: NodeId, backend: Backend, limits: Limits, client_token: str = "") -> None:
        self.node_id, self.backend, self.limits, self.client_token = node_id, backend, limits, client_token
        self.connections: dict[ClientConnection, None] = {}
        self.sessions: dict[str, ClientConnection] = {}
        self.subscribers: dict[ClientConnection, None] = {}
        self.intake_bytes = 0
        """Taken from clients and not yet delivered here (S7)."""
        self.unfinished_bytes = 0
        """Of lines whose end has not come."""
        self._of_address: Counter[str] = Counter()
        self._begun: dict[str, set[str]] = {}
        """Address -> sessions that began there since _counting_since; at most COUNTED_SESSIONS in all."""
        self._begun_count = 0
        self._counting_since = -NEW_SESSIONS_S
        self._sweeper: asyncio.TimerHandle | None = None
        self._held: dict[ClientConnection, None] = {}
        self._deliveries = 0
        self._timer: asyncio.TimerHandle | None = None

    def accept(self) -> ClientConnection:
        """The protocol for a connection that opened like a client's."""
        return ClientConnection(self)

    # ---- what the node tells ------------------------------------------------------------------------

    def delivered(self, records: Sequence[Record]) -> None:
        """Push the messages to subscribers and acknowledge those of our clients. Rule: S4, S6."""
        batches = [(record.header, record) for record in records if isinstance(record.header, Batch)]
        if not batches:
            return
        self._deliveries += 1
        if self.subscribers:
            bodies = [record.body for _, record in batches]
            for subscriber in list(self.subscribers):
                subscriber.push(batches[0][0].first, batches[-1][0].last, bodies)
        if self.sessions:
            self._acknowledge([header for header, _ in batches])
        if self._held and self.intake_bytes * 2 <= self.limits.intake_window_bytes:
            self._let_go()

    def read_again(self, after: Position, reason: str) -> None:
        """The search for a copy of what stands behind a position has ended. Rule: K6.

        Args:
            reason: why it still can't be read; "": it can be.
        """
        for subscriber in list(self.subscribers):
            subscriber.read_again(after, reason)

    def _acknowledge(self, headers: Sequence[Batch]) -> None:
        """One ACK a session for all of them."""
        reached: dict[ClientConnection, tuple[int, SeqNo]] = {}
        for header in headers:
            for session, last_n, seq_no in header.sessions:
                connection = self.sessions.get(session)
                if connection is not None:
                    reached[connection] = (last_n, seq_no)
        for connection, (last_n, seq_no) in reached.items():
            connection.acknowledge(last_n, seq_no)  # hit: S4 a client's messages are acknowledged

    def refused(self, refusals: Sequence[Refuse]) -> None:
        """Tell our clients what was not ordered. Rule: S2, S3, F3."""
        for refusal in refusals:
            connection = self.sessions.get(refusal.session)
            if connection is not None:
                connection.refused(refusal)

    def route_changed(self, leader: NodeId, term: Term) -> None:
        """What was taken and is not delivered comes again (S5)."""
        self.forget_intake()
        line = encode_line(LeaderLine(leader, term))
        for connection in self.sessions.values():
            connection.transport.write(line)

    def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self.connections):
            connection.transport.close()

    # ---- who may come, and stay ---------------------------------------------------------------------

    def came(self, connection: ClientConnection) -> str:
        """Take it in. Returns why it can't stay, "" where it can."""
        count, allowed = len(self.connections) + 1, self.limits.max_clients
        address, of_address = connection.address, self._of_address[connection.address] + 1
        has_room = count <= allowed or self._make_room()
        address_has_room = not address or of_address <= self.limits.max_per_address or self._make_room(address)
        self.connections[connection] = None
        self._of_address[address] += 1
        self._sweep_later()
        if not has_room:
            return f"{count} clients, allowed {allowed}"
        if not address_has_room:
            return f"{of_address} clients from {address}, allowed {self.limits.max_per_address}"
        return ""

    def left(self, connection: ClientConnection) -> None:
        """It is gone, or takes no more part."""
        if connection in self.connections:
            del self.connections[connection]
            self.unfinished_bytes -= connection.unfinished
            self._of_address[connection.address] -= 1
            if not self._of_address[connection.address]:
                del self._of_address[connection.address]
        self.subscribers.pop(connection, None)
        self._held.pop(connection, None)
        connection.forget_intake()
        if self.sessions.get(connection.session) is connection:
            del self.sessions[connection.session]

    def _make_room(self, address: str = "") -> bool:
        """End the oldest of those whose first line is overdue, else the oldest subscriber that has closed its sending
        half: it may be gone altogether, TCP does not tell.

        Args:
            address: only one from there; "": any.
        """
        now = asyncio.get_running_loop().time()
        for is_unwanted in (lambda each: each.is_overdue(now), lambda each: each.only_listens):
            candidates = (each for each in self.connections if not address or each.address == address)
            unwanted = next(filter(is_unwanted, candidates), None)
            if unwanted is not None:
                self.left(unwanted)
                unwanted.transport.abort()
                return True
        return False

    def keep_unfinished(self, more: int) -> None:
        """A line without its end has grown, or has come to its end. Past the limit the longest one's client goes."""
        self.unfinished_bytes += more
        found, allowed = self.unfinished_bytes, self.limits.unfinished_bytes
        if found > allowed:
            longest = max(self.connections, key=lambda each: each.unfinished)
            longest.give_up(f"{found} bytes of unfinished lines, allowed {allowed} for all clients")

    def _sweep_later(self) -> None:
        if self._sweeper is None and self.limits.idle_ms:
            self._sweeper = asyncio.get_running_loop().call_later(self.limits.idle_ms / 1000, self._sweep)

    def _sweep(self) -> None:
        """Leave those that were idle since the last time."""
        self._sweeper = None
        for connection in list(self.connections):
            connection.leave_if_idle()
        if self.connections:
            self._sweep_later()

    def begin_session(self, session: str, address: str) -> bool:
        """Count a session that sends its first message; False: none may begin from there now. Rule: S3."""
        now = asyncio.get_running_loop().time()
        if now - self._counting_since > NEW_SESSIONS_S or self._begun_count >= COUNTED_SESSIONS:
            self._begun.clear()
            self._begun_count, self._counting_since = 0, now
        begun = self._begun.setdefault(address, set())
        if session not in begun:
            if len(begun) >= self.limits.new_sessions:
                return False  # hit: S3 one address begins too many sessions
            begun.add(session)
            self._begun_count += 1
        return True

    # ---- how much is taken in -----------------------------------------------------------------------

    def take_in(self, connection: ClientConnection, size: int) -> None:
        """A client's submission goes to the core; past the window the client is not read. Rule: S7."""
        self.intake_bytes += size
        if self.intake_bytes > self.limits.intake_window_bytes:
            self._held[connection] = None
            connection.hold(True)  # hit: S7 a client is not read as the intake window is full
            self._watch()

    def forget_intake(self) -> None:
        for connection in list(self.sessions.values()):
            connection.forget_intake()
        self._let_go()

    def _let_go(self) -> None:
        held, self._held = self._held, {}
        for connection in held:
            connection.hold(False)

    def _watch(self) -> None:
        """While clients are held, see that deliveries go on."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(STUCK_S, self._look_again, self._deliveries)

    def _look_again(self, deliveries: int) -> None:
        self._timer = None
        stuck = self._deliveries == deliveries
        if self._held and stuck and self.backend.last_seq() == self.backend.delivered_seq():
            self.forget_intake()  # hit: S7 what was taken in and got lost is forgotten
        elif self._held:
            self._watch()


class ClientConnection(asyncio.Protocol):
    """One client."""

    def __init__(self, clients: Clients) -> None:
        self._clients, self._backend, self._limits = clients, clients.backend, clients.limits
        self._decoder = LineDecoder(clients.limits.max_line_bytes)
        self.transport: asyncio.Transport
        self.address = ""
        self.unfinished = 0
        """Bytes of a line without its end, as the node has counted them."""
        self._met = False
        """Its first line was understood."""
        self._since = 0.0
        self._spoke = True
        """Since the last sweep."""
        self._timer: asyncio.TimerHandle | None = None
        """Of the first line, and of the end."""
        self.session = ""
        self._client_id = 0
        self._born: SeqNo = 0
        self._acked: tuple[int, SeqNo] = (0, 0)
        self._is_new = True
        """The session sends its first message over this connection, if it has not sent it yet."""
        self._begun = False
        """The session is in the table, or was counted as one that may come into it."""
        self.intake: deque[tuple[int, int]] = deque()
        """(last n, bytes) of what was submitted and is not acknowledged."""
        self._closing = self._half_closed = False
        self._choked = self._held = self._paused = False
        self._next: SeqNo = 0
        """Next seq_no for the subscriber; 0: none is subscribed."""
        self._behind = False
        """Its next messages come from the disk."""
        self._lacking: Position | None = None
        """Its next messages can't be read: those behind this position; whether they can be had is not known yet."""

    # ---- asyncio ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self.transport.set_write_buffer_limits(high=self._limits.subscriber_buffer_bytes)
        send_at_once(self.transport)
        probe_when_silent(self.transport, KEEPALIVE_S)
        self.address = address_of(self.transport)
        loop, patience_s = asyncio.get_running_loop(), self._limits.first_line_ms / 1000
        self._since = loop.time()
        self._timer = loop.call_later(patience_s, self._fail, f"no whole line within {patience_s:g} s")
        if reason := self._clients.came(self):
            self._fail(reason)

    def data_received(self, data: bytes) -> None:
        self._spoke = True
        decoder = self._decoder
        try:
            for line in decoder.feed(data):
                if self._closing:
                    return
                said = decode_client_line(line)
                if not self._met and not self._meet(said):
                    return
                self._on_line(said, len(line))
            if decoder.unfinished != self.unfinished:
                self._count_unfinished(decoder.unfinished)
        except FrameError as error:
            self._fail(str(error))

    def _meet(self, first: ClientLine) -> bool:
        """Take the first line as that of a client; False where it does not show the token that everybody needs."""
        if self._clients.client_token and not self._shows_token(first):
            session = first.session if isinstance(first, Hello) else ""
            self._fail("a wrong client token, or none", Reject(session, 0, TOKEN_REFUSED, False))
            return False
        self._met = True
        if self._timer is not None:
            self._timer.cancel()
        return True

    def _shows_token(self, first: ClientLine) -> bool:
        shown = UNSET if isinstance(first, Chat) else first.client_token
        return shown is not UNSET and hmac.compare_digest(shown.encode(), self._clients.client_token.encode())

    def _count_unfinished(self, size: int) -> None:
        if not self._met and size > FIRST_LINE_BYTES:
            raise FrameError(f"a first line of over {FIRST_LINE_BYTES} bytes, the longest allowed")
        if self in self._clients.connections:
            more, self.unfinished = size - self.unfinished, size
            self._clients.keep_unfinished(more)

    def eof_received(self) -> bool:
        """A client that only closed its sending half (`nc` at the end of its input) still gets its answers."""
        if self._decoder.unfinished:
            self._fail("the input ends in the middle of a line: a newline is missing")
        self._half_closed = bool(self.intake or self._next) and not self._closing
        return self._half_closed

    def connection_lost(self, error: Exception | None) -> None:
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        self._clients.left(self)
        if self.session:
            self._backend.report(ClientLeft(self._client_id, self.session), self.address)

    def pause_writing(self) -> None:
        self._choked = True  # hit: S7 a client is not read as its answers pile up
        self._set_reading()

    def resume_writing(self) -> None:
        self._choked = False
        self._set_reading()
        if self._behind:
            self._pump()

    @property
    def only_listens(self) -> bool:
        """It has closed its sending half, and only what others send is still to be told to it."""
        return self._half_closed and not self.intake

    def is_overdue(self, now: float) -> bool:
        """It is here for a while and has not said a line."""
        return not self._met and now - self._since > OVERDUE_S

    def leave_if_idle(self) -> None:
        """Close it if it said nothing since the last call, waits for no answer, and is told nothing by others."""
        if not self._spoke and not self.intake and not self._next:
            self._fail(f"nothing said for {self._limits.idle_ms / 1000:g} s")
        self._spoke = False

    def give_up(self, reason: str) -> None:
        """Close it and go on without it at once."""
        self._fail(reason)
        self._clients.left(self)

    # ---- what the client says -----------------------------------------------------------------------

    def _on_line(self, line: ClientLine, size: int) -> None:
        match line:
            case Chat():
                self._on_chat(line, size)
            case Hello():
                self._on_hello(line)
            case Subscribe():
                self._on_subscribe(line)
            case StatusRequest():
                if self._choked:  # Else a few bytes each would make any number of answers wait here.
                    unread = self._limits.subscriber_buffer_bytes
                    raise FrameError(f"STATUS behind answers of over {unread} bytes that are not read")
                self._say(self._backend.status())

    def _on_hello(self, hello: Hello) -> None:
        if self.session:
            raise FrameError("HELLO twice on one connection")
        session = proven_session(hello)
        for name, number in (("client_id", hello.client_id), ("born", hello.born or 0)):
            if not 0 <= number <= LARGEST:
                raise FrameError(f"{name} {number}, allowed 0..{LARGEST}")
        older = self._clients.sessions.get(session)
        if older is not None:
            older.supersede()  # hit: S1 a session is opened on another connection
        delivered_seq = self._backend.delivered_seq()
        self.session, self._client_id = session, hello.client_id
        self._born = delivered_seq if hello.born is None else hello.born
        self._acked = self._backend.delivered_session(session) or (0, 0)
        self._is_new, self._begun = hello.born is None, self._acked != (0, 0)
        self._clients.sessions[session] = self  # hit: S1 a session is opened
        leader, term = self._backend.route()
        acked_n, acked_seq = self._acked
        self._say(Welcome(self._clients.node_id, session, self._born, acked_n, delivered_seq, leader, term, acked_seq))
        self._backend.report(ClientConnected(hello.client_id, session), self.address)

    def _on_chat(self, chat: Chat, size: int) -> None:
        """Pass the messages on, unless all of them are delivered already. Rule: S1, S2, S4."""
        if not self.session:
            raise FrameError("CHAT before HELLO")
        last_n = chat.first + len(chat.payloads) - 1
        if chat.first < 1 or not chat.payloads or last_n > LARGEST:
            raise FrameError(
                f"CHAT of {len(chat.payloads)} messages from n={chat.first}, allowed one or more from 1 on"
            )
        if reason := self._why_refused(chat, size):
            self._say(Reject(self.session, chat.first, reason, False))
        elif last_n <= self._acked[0]:
            self._say(Ack(self.session, *self._acked))  # hit: S4 delivered messages sent again are acknowledged at once
        else:
            self.intake.append((last_n, size))
            self._clients.take_in(self, size)
            self._backend.submit(Submit(self.session, self._client_id, self._born, chat.first, chat.payloads))

    def _why_refused(self, chat: Chat, size: int) -> str:
        """Why none of these messages is ever ordered; "" where they may be."""
        if not self._begun:
            self._begun = self._clients.begin_session(self.session, self.address)
            if not self._begun:
                minutes, allowed = NEW_SESSIONS_S / 60, self._limits.new_sessions
                return f"new sessions from {self.address}: allowed {allowed} within {minutes:g} minutes"
            if self._is_new:
                self._born = self._backend.delivered_seq()  # hit: S3 a session is born when it sends its first message
        allowed = self._limits.max_line_messages
        if len(chat.payloads) > allowed:
            return f"CHAT of {len(chat.payloads)} messages, allowed {allowed}"
        allowed = self._limits.max_payload_bytes
        if size > allowed and max(map(len, chat.payloads)) * 4 > allowed:  # Else no message in the line can be.
            for payload in chat.payloads:
                if len(payload) * 4 > allowed and (found := len(payload.encode())) > allowed:
                    return f"message of {found} bytes, allowed {allowed}"
        return ""

    def _on_subscribe(self, subscribe: Subscribe) -> None:
        if self._next:
            raise FrameError("SUBSCRIBE twice on one connection")
        if not 1 <= subscribe.start <= LARGEST:
            raise FrameError(f"SUBSCRIBE from {subscribe.start}, allowed 1..{LARGEST}")
        self._next, self._behind = subscribe.start, True
        self._clients.subscribers[self] = None
        self._pump()

    # ---- what the node says -------------------------------------------------------------------------

    def acknowledge(self, last_n: int, seq_no: SeqNo) -> None:
        """All up to last_n is delivered here. Rule: S4."""
        self._acked = (last_n, seq_no)
        intake = self.intake
        while intake and intake[0][0] <= last_n:
            self._clients.intake_bytes -= intake.popleft()[1]
        self._say(Ack(self.session, last_n, seq_no))
        self._end_half_closed()

    def refused(self, refusal: Refuse) -> None:
        """The client sends again from what the node expects, so what it sent is not on its way any more."""
        retry = refusal.reason in ("gap", "no_leader", "no_quorum", "disk_stalled")
        self._say(Reject(refusal.session, refusal.first, refusal.reason, retry, refusal.expected))
        self.forget_intake()

    def forget_intake(self) -> None:
        """What was submitted is not on its way any more; a client that has closed its half can't send it again."""
        self._clients.intake_bytes -= sum(size for _, size in self.intake)
        self.intake.clear()
        self._end_half_closed()

    def push(self, first: SeqNo, last: SeqNo, bodies: Sequence[memoryview]) -> None:
        """Send a subscriber what was just delivered, or leave it to the disk. Rule: S6."""
        if self._behind or last < self._next:
            return
        if self._choked or first != self._next:
            self._behind = True  # hit: S6 a subscriber is served from disk
            self._pump()
        else:
            self.transport.writelines(bodies)
            self._next = last + 1

    def supersede(self) -> None:
        """Close it: its client has opened the session on another connection. That is no misuse: nothing is reported."""
        self._end_with(Problem("this session was opened on another connection"))
        self._clients.left(self)

    def hold(self, held: bool) -> None:
        """Stop or go on reading because of what the node has taken in (S7)."""
        self._held = held
        self._set_reading()

    def _pump(self) -> None:
        """One chunk from the disk to the subscriber; the next one after the others had their turn. Rule: S6."""
        if not self._behind or self._choked or self._closing or self._lacking is not None:
            return
        try:
            lines, last = self._backend.read_lines(self._next, CHUNK_BYTES)
        except Unreadable as error:
            self._lacking = Position(*error.after)
            return
        if not lines:
            self._behind = False
            return
        self.transport.write(lines)
        self._next = last + 1
        asyncio.get_running_loop().call_soon(self._pump)

    def read_again(self, after: Position, reason: str) -> None:
        """Go on, or say what is missing and leave it to another node: a subscriber never gets a gap. Rule: S6, K6."""
        if self._lacking is None:
            return
        if reason and self._lacking == after:
            # hit: K6 a subscriber is told what is missing
            self._fail(f"messages from seq_no {self._next} on can't be read here: {reason}; ask another node")
        else:
            self._lacking = None
            self._pump()

    def _end_half_closed(self) -> None:
        if self._half_closed and not self.intake and not self._next:
            self.transport.close()

    def _say(self, line: NodeLine) -> None:
        if not self.transport.is_closing():
            self.transport.write(encode_line(line))

    def _fail(self, reason: str, line: NodeLine | None = None) -> None:
        """One clear line, then the end; other clients don't notice. Rule: S7."""
        if self._closing:
            return
        reason = brief(reason)
        self._end_with(line or Problem(reason))
        who = f"client {self._client_id}" if self.session else "a client"
        self._backend.report(BadInput(who, reason), self.address)

    def _end_with(self, line: NodeLine) -> None:
        """Say a last line and close."""
        if self._closing:
            return
        self._say(line)
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(LINGER_S, self.transport.abort)
        self.transport.close()

    def _set_reading(self) -> None:
        paused = self._choked or self._held
        if paused != self._paused and not self.transport.is_closing():
            self._paused = paused
            if paused:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()


def proven_session(hello: Hello) -> str:
    """The public id of the session that a client opens. Rule: S1.

    Raises:
        FrameError: the client does not show that the session is its own.
    """
    token = hello.session_token
    if token is UNSET:
        if hello.session:
            # hit: S1 a session without its token is refused
            raise FrameError(
                f"session {hello.session!r} without its session_token, allowed with it, or neither of both"
            )
        token = secrets.token_hex(16)
    if not SESSION_TOKEN.fullmatch(token):
        raise FrameError(f"session_token of {len(token)} characters, allowed 16 to 64 of A-Z a-z 0-9 _ . : -")
    session = session_of(token)
    if hello.session not in ("", session):
        # hit: S1 a session with another one's token is refused
        raise FrameError(f"session {hello.session!r}, allowed {session!r} for this session_token")
    return session
