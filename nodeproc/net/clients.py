"""Connections of clients: their lines in, acknowledgements and delivered messages out. Rules: S1 to S7.

All memory here is bounded. The node stops reading from a client that does not read its answers, and from all submitting
clients while it holds more messages than it can forward and deliver. A subscriber that is too slow gets its messages
from the disk. Unfinished lines, clients that send nothing and clients that are gone are bounded as well: see
nodeproc.config.Limits.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections import Counter, deque
from collections.abc import Sequence
from typing import Final, Protocol, cast

from msgspec import UNSET, UnsetType

from nodeproc.config import Limits, is_loopback
from nodeproc.core.events import BadInput, ClientConnected, ClientLeft, Event
from nodeproc.core.messages import Batch, MemberAddress, NodeId, Position, Record, Refuse, SeqNo, Submit, Term
from nodeproc.errors import FrameError, brief
from nodeproc.lines import (
    SESSION_TOKEN,
    TOKEN_REFUSED,
    Ack,
    AddRequest,
    AdminRequest,
    ChangeIs,
    Chat,
    ClientLine,
    Hello,
    LeaderLine,
    LineDecoder,
    NodeLine,
    Problem,
    Reject,
    RemoveRequest,
    Status,
    StatusRequest,
    Subscribe,
    TransferRequest,
    Welcome,
    decode_client_line,
    encode_line,
    session_of,
)
from nodeproc.net.sockets import WILDCARDS, address_of, is_host, probe_when_silent, send_at_once
from nodeproc.net.subscription import Subscription

LARGEST: Final = 2**53 - 1
"""The largest client id, n and seq_no: every JSON reader keeps it exact."""
STUCK_S: Final = 1.0
"""If nothing was delivered for this time and nothing is left to deliver, submitted messages may be lost on their way,
and the node reads from clients again. If the log holds undelivered messages, the disks are slow, and it does not."""
FIRST_LINE_BYTES: Final = 4096
"""The longest unfinished first line: HELLO, SUBSCRIBE and STATUS are short."""
OVERDUE_S: Final = 1.0
"""A client without a complete line after this time is closed when a new client needs its place."""
KEEPALIVE_S: Final = 60
"""The kernel probes a silent connection at this interval, so that the connection of a vanished machine ends."""
NEW_SESSIONS_S: Final = 600.0
"""Period over which new sessions are counted: see Limits.new_sessions."""
COUNTED_SESSIONS: Final = 100_000
"""With more new sessions, counting restarts: with that many addresses a bound for each of them has no effect."""
LINGER_S: Final = 5.0
"""How long a closing connection may take to receive its last line."""


class Backend(Protocol):
    """The node, as client connections use it."""

    def submit(self, message: Submit) -> None: ...

    def delivered_session(self, session: str) -> tuple[int, SeqNo] | None: ...

    def route(self) -> tuple[NodeId, Term]: ...

    def is_member(self) -> bool:
        """Return whether the list in force has this node: otherwise it gets no messages (G5)."""

    def new_addresses(self) -> tuple[MemberAddress, ...] | None:
        """Return the addresses of the members that were added; None if the list was never changed."""

    def delivered_seq(self) -> SeqNo: ...

    def last_seq(self) -> SeqNo: ...

    def read_lines(self, start: SeqNo, max_bytes: int) -> tuple[bytes, SeqNo]:
        """See Reading.lines. After an Unreadable, Clients.read_again is called."""

    def status(self) -> Status: ...

    def administer(self, request: AdminRequest) -> ChangeIs: ...

    def report(self, event: Event, address: str = "") -> None: ...


class Clients:
    """All clients of a node.

    Args:
        client_token: the first line of every connection must contain it; "": none is needed.
        admin_token: an operator's requests must contain it; "": they are accepted from this machine only.
    """

    def __init__(
        self, node_id: NodeId, backend: Backend, limits: Limits, client_token: str = "", admin_token: str = ""
    ) -> None:
        self.node_id, self.backend, self.limits = node_id, backend, limits
        self.client_token, self.admin_token = client_token, admin_token
        self.connections: dict[ClientConnection, None] = {}
        self.sessions: dict[str, ServedSession] = {}
        self.subscribers: dict[Subscription, None] = {}
        self.intake_bytes = 0
        """Bytes submitted by clients and not yet delivered here (S7)."""
        self.unfinished_bytes = 0
        """Bytes of lines whose end has not arrived."""
        self._of_address: Counter[str] = Counter()
        self._begun: dict[str, set[str]] = {}
        """Address -> sessions that began there since _counting_since; at most COUNTED_SESSIONS in total."""
        self._begun_count = 0
        self._counting_since = -NEW_SESSIONS_S
        self._sweeper: asyncio.TimerHandle | None = None
        self._held: dict[ClientConnection, None] = {}
        self._deliveries = 0
        self._timer: asyncio.TimerHandle | None = None

    def accept(self) -> ClientConnection:
        """Return the protocol for a new connection."""
        return ClientConnection(self)

    # ---- from the node ------------------------------------------------------------------------------

    def delivered(self, records: Sequence[Record]) -> None:
        """Send the messages to subscribers, and acknowledge those of this node's clients. Rule: S4, S6."""
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
            self._release()

    def read_again(self, after: Position, reason: str) -> None:
        """Take the result of the search for a copy of damaged records; see Subscription.read_again. Rule: K6."""
        for subscriber in list(self.subscribers):
            subscriber.read_again(after, reason)

    def _acknowledge(self, headers: Sequence[Batch]) -> None:
        """Send one ACK to each session in these batches."""
        reached: dict[ServedSession, tuple[int, SeqNo]] = {}
        for header in headers:
            for public_id, last_n, seq_no in header.sessions:
                session = self.sessions.get(public_id)
                if session is not None:
                    reached[session] = (last_n, seq_no)
        for session, (last_n, seq_no) in reached.items():
            session.acknowledge(last_n, seq_no)  # hit: S4 a client's messages are acknowledged

    def refused(self, refusals: Sequence[Refuse]) -> None:
        """Tell clients which of their messages were not ordered. Rule: S2, S3, F3."""
        for refusal in refusals:
            session = self.sessions.get(refusal.session)
            if session is not None:
                session.refused(refusal)

    def route_changed(self, leader: NodeId, term: Term) -> None:
        """Tell clients the new leader. They send all messages again that are not acknowledged (S5)."""
        self.forget_intake()
        line = encode_line(LeaderLine(leader, term, self.addresses()))
        for session in self.sessions.values():
            session.connection.transport.write(line)

    def addresses(self) -> tuple[MemberAddress, ...] | UnsetType:
        """Return the field `addresses` of WELCOME and LEADER."""
        found = self.backend.new_addresses()
        return UNSET if found is None else found

    def close(self) -> None:
        for timer in (self._sweeper, self._timer):
            if timer is not None:
                timer.cancel()
        for connection in list(self.connections):
            connection.transport.close()

    # ---- admission ----------------------------------------------------------------------------------

    def came(self, connection: ClientConnection) -> str:
        """Add a new connection; return why it must be closed, or ""."""
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
        """Remove a connection that is closed or closing."""
        if connection in self.connections:
            del self.connections[connection]
            self.unfinished_bytes -= connection.unfinished
            self._of_address[connection.address] -= 1
            if not self._of_address[connection.address]:
                del self._of_address[connection.address]
        self._held.pop(connection, None)
        subscription, session = connection.subscription, connection.session
        if subscription is not None:
            subscription.close()
            self.subscribers.pop(subscription, None)
        if session is not None:
            session.forget_intake()
            if self.sessions.get(session.id) is session:
                del self.sessions[session.id]

    def _make_room(self, address: str = "") -> bool:
        """Close the oldest connection whose first line is overdue, or else the oldest subscriber that has closed its
        sending half: TCP does not show whether such a client is still there.

        Args:
            address: consider only connections from this address; "": all.
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
        """Count bytes of unfinished lines. Above the limit the client with the longest one is closed."""
        self.unfinished_bytes += more
        found, allowed = self.unfinished_bytes, self.limits.unfinished_bytes
        if found > allowed:
            longest = max(self.connections, key=lambda each: each.unfinished)
            longest.give_up(f"{found} bytes of unfinished lines, allowed {allowed} for all clients")

    def _sweep_later(self) -> None:
        if self._sweeper is None and self.limits.idle_ms:
            self._sweeper = asyncio.get_running_loop().call_later(self.limits.idle_ms / 1000, self._sweep)

    def _sweep(self) -> None:
        """Close all connections that were idle since the last sweep."""
        self._sweeper = None
        for connection in list(self.connections):
            connection.leave_if_idle()
        if self.connections:
            self._sweep_later()

    def begin_session(self, session: str, address: str) -> bool:
        """Count a session that sends its first message; False if the address has begun too many. Rule: S3."""
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

    # ---- flow control -------------------------------------------------------------------------------

    def take_in(self, connection: ClientConnection, size: int) -> None:
        """Count a submission. Above the window, the node stops reading from the client. Rule: S7."""
        self.intake_bytes += size
        if self.intake_bytes > self.limits.intake_window_bytes:
            self._held[connection] = None
            connection.hold(True)  # hit: S7 a client is not read as the intake window is full
            self._watch()

    def forget_intake(self) -> None:
        for session in list(self.sessions.values()):
            session.forget_intake()
        self._release()

    def _release(self) -> None:
        held, self._held = self._held, {}
        for connection in held:
            connection.hold(False)

    def _watch(self) -> None:
        """While the node does not read from clients, check regularly whether messages are delivered."""
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
        self.clients, self._backend, self._limits = clients, clients.backend, clients.limits
        self._decoder = LineDecoder(clients.limits.max_line_bytes)
        self.transport: asyncio.Transport
        self.address = ""
        self.unfinished = 0
        """Bytes of the unfinished line, as Clients has counted them."""
        self.session: ServedSession | None = None
        self.subscription: Subscription | None = None
        self._met = False
        """Whether the first line was accepted."""
        self._since = 0.0
        self._spoke = True
        """Whether the client has sent something since the last sweep."""
        self._timer: asyncio.TimerHandle | None = None
        """Limits the time for the first line, and for closing."""
        self._closing = False
        self.half_closed = False
        """Whether the client has closed its sending half."""
        self._choked = self._held = self._paused = False

    # ---- asyncio ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self.transport.set_write_buffer_limits(high=self._limits.subscriber_buffer_bytes)
        send_at_once(self.transport)
        probe_when_silent(self.transport, KEEPALIVE_S)
        self.address = address_of(self.transport)
        loop, patience_s = asyncio.get_running_loop(), self._limits.first_line_ms / 1000
        self._since = loop.time()
        self._timer = loop.call_later(patience_s, self._fail, f"no complete line within {patience_s:g} s")
        if reason := self.clients.came(self):
            self._fail(reason)

    def data_received(self, data: bytes) -> None:
        self._spoke = True
        decoder = self._decoder
        try:
            self._take(decoder.feed(data))
            if decoder.unfinished != self.unfinished:
                self._count_unfinished(decoder.unfinished)
        except FrameError as error:
            self._fail(str(error))

    def _take(self, lines: Sequence[bytes]) -> None:
        """Handle the lines of one read."""
        try:
            for line in lines:
                if self._closing:
                    return
                said = decode_client_line(line)
                if not self._met and not self._meet(said):
                    return
                self._on_line(said, len(line))
        finally:
            if self.session is not None:
                self.session.submit()

    def _meet(self, first: ClientLine) -> bool:
        """Accept the first line; False if the client token is needed and missing or wrong."""
        if self.clients.client_token and not shows_token(first, self.clients.client_token):
            session = first.session if isinstance(first, Hello) else ""
            self._fail("a wrong client token, or none", Reject(session, 0, TOKEN_REFUSED, False))
            return False
        self._met = True
        if self._timer is not None:
            self._timer.cancel()
        return True

    def _count_unfinished(self, size: int) -> None:
        if not self._met and size > FIRST_LINE_BYTES:
            raise FrameError(f"a first line of over {FIRST_LINE_BYTES} bytes, the longest allowed")
        if self in self.clients.connections:
            more, self.unfinished = size - self.unfinished, size
            self.clients.keep_unfinished(more)

    def eof_received(self) -> bool:
        """Keep the connection while answers are due: `nc` closes its sending half at the end of its input."""
        if self._decoder.unfinished:
            self._fail("the input ends in the middle of a line: a newline is missing")
        self.half_closed = self._expects_data and not self._closing
        return self.half_closed

    def connection_lost(self, error: Exception | None) -> None:
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        self.clients.left(self)
        if self.session is not None:
            self._backend.report(ClientLeft(self.session.client_id, self.session.id), self.address)

    def pause_writing(self) -> None:
        self._choke(True)  # hit: S7 a client is not read as its answers pile up

    def resume_writing(self) -> None:
        self._choke(False)

    def _choke(self, choked: bool) -> None:
        self._choked = choked
        self._set_reading()
        if self.subscription is not None:
            self.subscription.choke(choked)

    @property
    def _expects_data(self) -> bool:
        """Whether the client waits for an answer or has subscribed."""
        return self.subscription is not None or (self.session is not None and bool(self.session.intake))

    @property
    def only_listens(self) -> bool:
        """Whether the client has closed its sending half and waits for no answer."""
        return self.half_closed and not (self.session is not None and self.session.intake)

    def is_overdue(self, now: float) -> bool:
        """Whether the client is connected for a while and has not completed a line."""
        return not self._met and now - self._since > OVERDUE_S

    def leave_if_idle(self) -> None:
        """Close the connection if the client has sent nothing since the last call and expects no data."""
        if not self._spoke and not self._expects_data:
            self._fail(f"nothing received for {self._limits.idle_ms / 1000:g} s")
        self._spoke = False

    def give_up(self, reason: str) -> None:
        """Close the connection, and remove it at once."""
        self._fail(reason)
        self.clients.left(self)

    # ---- lines from the client ----------------------------------------------------------------------

    def _on_line(self, line: ClientLine, size: int) -> None:
        session = self.session
        if type(line) is Chat:
            if session is None:
                raise FrameError("CHAT before HELLO")
            session.on_chat(line, size)
            return
        if session is not None:
            session.submit()
        match line:
            case Hello() | Subscribe() if not self._backend.is_member():
                # hit: S6 a node that is no member sends its clients to others
                self._end_with(Problem("this node is no member of the cluster; use another node"))
            case Hello():
                self._on_hello(line)
            case Subscribe():
                self._on_subscribe(line)
            case StatusRequest():
                self._check_answers_are_read("STATUS")
                self.say(self._backend.status())
            case AddRequest() | RemoveRequest() | TransferRequest():
                self._check_answers_are_read("an operator's request")
                self._on_request(line)

    def _check_answers_are_read(self, what: str) -> None:
        """Refuse a request if too many answers wait: otherwise short requests could make any number of them wait."""
        if self._choked:
            unread = self._limits.subscriber_buffer_bytes
            raise FrameError(f"{what} while over {unread} bytes of answers are not read")

    def _on_request(self, request: AdminRequest) -> None:
        """Answer an operator. Rule: G2, E7."""
        wanted, shown = self.clients.admin_token, request.admin_token
        if wanted and (shown is UNSET or not hmac.compare_digest(shown.encode(), wanted.encode())):
            raise FrameError("a wrong admin_token, or none")
        if not wanted and not is_loopback(self.address):
            raise FrameError(f"an operator's request from {self.address}, allowed from this machine (no admin_token)")
        if isinstance(request, AddRequest) and (request.host in WILDCARDS or not is_host(request.host)):
            raise FrameError(f"found host {request.host!r}, allowed one at which the members reach the node")
        self.say(self._backend.administer(request))

    def _on_hello(self, hello: Hello) -> None:
        if self.session is not None:
            raise FrameError("HELLO twice on one connection")
        public_id = proven_session(hello)
        for name, number in (("client_id", hello.client_id), ("born", hello.born or 0)):
            if not 0 <= number <= LARGEST:
                raise FrameError(f"{name} {number}, allowed 0..{LARGEST}")
        older = self.clients.sessions.get(public_id)
        if older is not None:
            older.connection.supersede()  # hit: S1 a session is opened on another connection
        session = self.session = ServedSession(self, public_id, hello)
        self.clients.sessions[public_id] = session  # hit: S1 a session is opened
        self.say(session.welcome())
        self._backend.report(ClientConnected(hello.client_id, public_id), self.address)

    def _on_subscribe(self, subscribe: Subscribe) -> None:
        if self.subscription is not None:
            raise FrameError("SUBSCRIBE twice on one connection")
        if not 1 <= subscribe.start <= LARGEST:
            raise FrameError(f"SUBSCRIBE from {subscribe.start}, allowed 1..{LARGEST}")
        self.subscription = Subscription(subscribe.start, self.transport, self._backend.read_lines, self._fail)
        self.clients.subscribers[self.subscription] = None
        self.subscription.choke(self._choked)

    # ---- to the client ------------------------------------------------------------------------------

    def say(self, line: NodeLine) -> None:
        """Send a line."""
        if not self.transport.is_closing():
            self.transport.write(encode_line(line))

    def answered(self) -> None:
        """Close the connection if the client has closed its sending half and expects no more data."""
        if self.half_closed and not self._expects_data:
            self.transport.close()

    def supersede(self) -> None:
        """Close the connection: its client has opened the session on another one. No misuse, so nothing is reported."""
        self._end_with(Problem("this session was opened on another connection"))
        self.clients.left(self)

    def hold(self, held: bool) -> None:
        """Stop or continue reading, because of the amount of undelivered messages (S7)."""
        self._held = held
        self._set_reading()

    def _fail(self, reason: str, line: NodeLine | None = None) -> None:
        """Send one clear line, close the connection and report it. Rule: S7."""
        if self._closing:
            return
        reason = brief(reason)
        self._end_with(line or Problem(reason))
        who = "a client" if self.session is None else f"client {self.session.client_id}"
        self._backend.report(BadInput(who, reason), self.address)

    def _end_with(self, line: NodeLine) -> None:
        """Send a last line and close."""
        if self._closing:
            return
        self.say(line)
        self._closing = True
        if self.subscription is not None:
            self.subscription.close()
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


class ServedSession:
    """A client's session on the node that serves it. Rules: S1 to S5, S7.

    Args:
        public_id: proven to belong to the client.
    """

    def __init__(self, connection: ClientConnection, public_id: str, hello: Hello) -> None:
        self.connection, self._clients, self._backend = connection, connection.clients, connection.clients.backend
        self.id, self.client_id = public_id, hello.client_id
        self._born = self._backend.delivered_seq() if hello.born is None else hello.born
        self._acked = self._backend.delivered_session(public_id) or (0, 0)
        self._is_new = hello.born is None
        """The session is born with its first message, if it has not sent it yet."""
        self._begun = self._acked != (0, 0)
        """Whether the session is in the table, or was counted as one that may enter it."""
        self.intake: deque[tuple[int, int]] = deque()
        """(last n, bytes) of submitted messages that are not acknowledged."""
        self._first = self._last = self._bytes = 0
        """First and last n of the messages that wait for submit(), and the bytes of their lines; 0: none wait."""
        self._payloads: tuple[str, ...] | list[str] = ()

    def welcome(self) -> Welcome:
        """Return the answer to HELLO."""
        leader, term = self._backend.route()
        acked_n, acked_seq = self._acked
        last_seq = self._backend.delivered_seq()
        node, addresses = self._clients.node_id, self._clients.addresses()
        return Welcome(node, self.id, self._born, acked_n, last_seq, leader, term, acked_seq, addresses)

    def on_chat(self, chat: Chat, size: int) -> None:
        """Take the messages of a line for submit(), together with those of earlier lines that they continue.

        So many lines with one message each cost the cluster no more than one line with all of them. A line that may be
        refused for its size stays alone.
        """
        first, payloads = chat.first, chat.payloads
        last = first + len(payloads) - 1
        if first < 1 or not payloads or last > LARGEST:
            raise FrameError(f"CHAT of {len(payloads)} messages from n={first}, allowed one or more from 1 on")
        limits, whole = self._clients.limits, self._bytes + size
        if (
            self._bytes
            and first == self._last + 1
            and last - self._first < limits.max_line_messages
            and size <= limits.max_payload_bytes
            and whole <= limits.max_line_bytes
        ):
            if isinstance(self._payloads, tuple):
                self._payloads = list(self._payloads)
            self._payloads += payloads
            self._last, self._bytes = last, whole
        else:
            self.submit()
            self._first, self._last, self._payloads, self._bytes = first, last, payloads, size
            if size > limits.max_payload_bytes:
                self.submit()

    def submit(self) -> None:
        """Forward the messages that on_chat() has taken, unless all of them are delivered already. Rule: S1, S2, S4."""
        size, self._bytes = self._bytes, 0
        if not size:
            return
        if reason := self._why_refused(size):
            self.connection.say(Reject(self.id, self._first, reason, False))
        elif self._last <= self._acked[0]:
            # hit: S4 delivered messages sent again are acknowledged at once
            self.connection.say(Ack(self.id, *self._acked))
        else:
            self.intake.append((self._last, size))
            self._clients.take_in(self.connection, size)
            payloads = tuple(self._payloads)
            self._backend.submit(Submit(self.id, self.client_id, self._born, self._first, payloads))

    def _why_refused(self, size: int) -> str:
        """Return why the messages of lines with this size are never ordered; "" if they may be."""
        limits, payloads = self._clients.limits, self._payloads
        if not self._begun:
            address = self.connection.address
            self._begun = self._clients.begin_session(self.id, address)
            if not self._begun:
                minutes, allowed = NEW_SESSIONS_S / 60, limits.new_sessions
                return f"new sessions from {address}: allowed {allowed} within {minutes:g} minutes"
            if self._is_new:
                self._born = self._backend.delivered_seq()  # hit: S3 a session is born when it sends its first message
        allowed = limits.max_line_messages
        if len(payloads) > allowed:
            return f"CHAT of {len(payloads)} messages, allowed {allowed}"
        allowed = limits.max_payload_bytes
        # A character has at most four bytes, and a line is longer than its messages.
        if size > allowed and max(map(len, payloads)) * 4 > allowed:
            for payload in payloads:
                if len(payload) * 4 > allowed and (found := len(payload.encode())) > allowed:
                    return f"message of {found} bytes, allowed {allowed}"
        return ""

    def acknowledge(self, last_n: int, seq_no: SeqNo) -> None:
        """All messages up to last_n are delivered here. Rule: S4."""
        self._acked = (last_n, seq_no)
        intake = self.intake
        while intake and intake[0][0] <= last_n:
            self._clients.intake_bytes -= intake.popleft()[1]
        connection = self.connection
        connection.say(Ack(self.id, last_n, seq_no))
        if connection.half_closed:
            connection.answered()

    def refused(self, refusal: Refuse) -> None:
        """Tell the client. It sends again from the n that the node expects, so nothing counts as submitted."""
        retry = refusal.reason in ("gap", "no_leader", "no_quorum", "disk_stalled")
        self.connection.say(Reject(refusal.session, refusal.first, refusal.reason, retry, refusal.expected))
        self.forget_intake()

    def forget_intake(self) -> None:
        """Submitted messages may be lost. The client sends them again, unless it has closed its sending half."""
        self._clients.intake_bytes -= sum(size for _, size in self.intake)
        self.intake.clear()
        self.connection.answered()


def shows_token(first: ClientLine, token: str) -> bool:
    """Return whether a first line contains the node's client token."""
    shown = UNSET if isinstance(first, Chat) else first.client_token
    return shown is not UNSET and hmac.compare_digest(shown.encode(), token.encode())


def proven_session(hello: Hello) -> str:
    """Return the public id of the session that a client opens. Rule: S1.

    Raises:
        FrameError: the client does not prove that the session is its own.
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
