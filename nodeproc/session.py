"""The client's half of rules S1 to S6, as a pure state machine: no socket, no clock, no randomness.

One Session is one session of the protocol: one token, and messages numbered 1, 2, 3, … across all its connections. The
caller reports what happened (connected, received, submit, disconnected, tick) and then performs these duties, in any
order:

    while connected and the socket accepts more: write next_line(now)
    pass on take_outcomes() and take_shown()
    call tick(now) no later than next_deadline()
    leave this connection for another node when gave_up(now)

A cursor points to the next unacknowledged message to be sent. To send messages again, the session moves the cursor
back; it makes a line only when the socket accepts one. Every message has exactly one outcome:

    ok        delivered: an ACK covers it
    rejected  certainly never ordered
    unknown   its deadline passed, or the session ended, after it may have been sent: it may still be delivered

A message whose outcome is unknown keeps its number. While later messages of the session wait, it is sent again like any
other, because the leader accepts no n + 1 without n (S2).

`now` is time.monotonic(), seconds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from msgspec import UNSET, UnsetType

from nodeproc.core.messages import NOBODY, MemberAddress, NodeId, SeqNo, Term
from nodeproc.errors import FrameError
from nodeproc.lines import (
    TOKEN_REFUSED,
    Ack,
    Chat,
    Hello,
    LeaderLine,
    NodeLine,
    Problem,
    Reject,
    Shown,
    Status,
    StatusRequest,
    Subscribe,
    Welcome,
    encode_line,
    session_of,
)
from nodeproc.net.nodestream import cut_run
from nodeproc.outcome import Outcome, OutcomeKind

NEVER: Final = math.inf
EXPIRED: Final = "session expired"
USED_BY_ANOTHER: Final = "another client used this session"


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Settings of a session. Times are seconds, sizes bytes.

    deadline: the outcome of a message is unknown this long after it was submitted.
    retry_interval: after this time without progress, all unacknowledged messages are sent again.
    retry_pause: minimum time between two repetitions that refusals ask for; doubles up to retry_interval.
    patience: a node that does not answer for this time is given up. A node that answers but makes no progress for this
        time, even if messages pass their deadlines meanwhile, is given up if there is another one; this time doubles,
        up to 8 times, whenever as many nodes in a row had no leader as there are addresses.
    keepalive: a silent node, or one without a leader, is sent STATUS after this time. The answer shows whether the node
        is alive, and how many nodes are up.
    window_messages, window_bytes: limits of messages that are sent and not acknowledged; further messages wait.
    line_messages, line_bytes: limits of a CHAT line; a single larger message has a line of its own.
    payload_bytes: limit of a message, UTF-8.
    client_token: sent in the first line of each connection; "" if the nodes require none.
    """

    deadline: float = 30.0
    retry_interval: float = 1.0
    retry_pause: float = 0.02
    patience: float = 2.0
    keepalive: float = 2.0
    window_messages: int = 16_384
    window_bytes: int = 2 << 20
    line_messages: int = 512
    line_bytes: int = 256 << 10
    payload_bytes: int = 64 << 10
    client_token: str = ""


def why_unsendable(payload: str, limit: int) -> str:
    """Return why this payload cannot be sent, or "" if it can.

    Args:
        limit: bytes of UTF-8.
    """
    if payload.isascii():
        size = len(payload)
    else:
        try:
            size = len(payload.encode())
        except UnicodeEncodeError as error:
            return f"character {error.start} is {payload[error.start]!a}, which has no UTF-8 form"
    return f"message of {size} bytes, allowed {limit}" if size > limit else ""


class Session:
    """One session of a client; see the module's docstring.

    Args:
        token: the session's secret, 16 to 64 of A-Z a-z 0-9 _ . : -, fresh and random for each Session. Two clients
            with the same token would use the same numbers for different messages.
    """

    # What the nodes have reported.
    node: NodeId = NOBODY
    leader: NodeId = NOBODY
    term: Term = 0
    last_seq: SeqNo = 0
    members: tuple[int, int] | None = None
    """(nodes that are up, all nodes), from the STATUS of a node without a leader; None if not known."""
    new_addresses: tuple[MemberAddress, ...] = ()
    """Where the members listen that were added while the cluster ran, as a node has reported them."""
    addresses = 2
    """Of nodes. With only one, a node that answers is never given up."""
    refused = ""
    """The reason why the node refused messages the last time."""
    problem = ""
    """The reason of the latest ERROR line."""
    ended = ""
    """Why the session accepts no more messages; "" while it does."""

    def __init__(self, client_id: int, token: str, settings: SessionSettings | None = None) -> None:
        self.client_id = client_id
        self.token, self.id = token, session_of(token)
        self.settings = settings = settings or SessionSettings()
        self.born: SeqNo | None = None

        # The messages. _base <= _cursor <= _last + 1; n below _base are acknowledged.
        self._payloads: list[str] = []
        self._payloads_from = 1
        self._base = 1
        self._cursor = 1
        """Next n to send on this connection."""
        self._last = 0
        """Last n that may be sent; lowered when the session ends."""
        self._numbered = 0
        """Last n that a message has got."""
        self._sent = 0
        """Highest n ever passed to a connection."""
        self._repeated = 0
        """Highest n that was, or may be, sent more than once."""
        self._settled = 0
        """All n up to here, and all above _last, have their outcome."""
        self._due: deque[tuple[float, int]] = deque()
        """(deadline, last n with this deadline), both ascending."""
        self._outcomes: list[Outcome] = []

        # This connection.
        self._connected = False
        self._welcomed = False
        self._to_say: deque[Hello | Subscribe | StatusRequest] = deque()
        self._lines: deque[tuple[int, int]] = deque()
        """(last n, bytes) of the CHAT lines that are sent and not acknowledged."""
        self._lines_bytes = 0
        self._line_messages = settings.line_messages
        self._heard_at = self._waiting_since = self._gave_up_at = 0.0
        self._asked_at = NEVER
        """When STATUS was sent to a node that has sent nothing since."""
        self._survey_at = NEVER
        """When to send STATUS to a node without a leader."""
        self._leaderless = 0
        """Nodes in a row that were left without a leader."""

        # Sending again.
        self._retry_from = self._rewind_ok_at = 0.0
        self._rewind_to = 1
        self._rewind_at = NEVER
        self._pause = settings.retry_pause

        # The subscription.
        self._subscribed = False
        self._place: SeqNo = 0
        """Next seq_no to show; 0: begin after the first WELCOME."""
        self._shown: list[Shown] = []

    # ---- for the caller --------------------------------------------------------------------------

    @property
    def welcomed(self) -> bool:
        """True if the node of the current connection has answered HELLO."""
        return self._welcomed

    @property
    def unsettled(self) -> int:
        """The number of messages without an outcome."""
        return self._last - self._settled

    @property
    def last_n(self) -> int:
        """The n of the message submitted last."""
        return self._numbered

    @property
    def place(self) -> SeqNo:
        """The next seq_no to show; 0 without a subscription, or if it is not known yet."""
        return self._place if self._subscribed else 0

    def take_outcomes(self) -> list[Outcome]:
        """Return the outcomes since the last call."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def take_shown(self) -> list[Shown]:
        """Return the messages that the subscription received since the last call, without gaps. Rule: S6."""
        shown, self._shown = self._shown, []
        return shown

    # ---- events ----------------------------------------------------------------------------------

    def subscribe(self, start: SeqNo | None) -> None:
        """Show every delivered message from `start` on; None: from now on. At most one call per session."""
        assert not self._subscribed and (start is None or start >= 1), start
        self._subscribed = True
        self._place = start or (self.last_seq + 1 if self.born is not None else 0)
        if self._welcomed:
            self._to_say.append(Subscribe(self._place))

    def submit(self, payloads: Sequence[str], now: float) -> int:
        """Number the messages and send them in this order. Rule: S1.

        Returns:
            The n of the first. In a session that has ended, all are rejected at once.

        Raises:
            ValueError: one of them cannot be sent (why_unsendable); none was accepted.
        """
        limit = self.settings.payload_bytes
        for payload in payloads:
            # Most payloads are short and ASCII.
            if (len(payload) > limit or not payload.isascii()) and (reason := why_unsendable(payload, limit)):
                raise ValueError(reason)
        first, self._numbered = self._numbered + 1, self._numbered + len(payloads)
        if self.ended:
            self._outcomes.append(Outcome("rejected", first, self._numbered, reason=self.ended))
            return first
        if self._last == self._settled:
            # A deadline does not renew the patience with the node; only the time without messages is left out.
            self._waiting_since += now - max(self._waiting_since, self._gave_up_at)
        self._payloads += payloads
        self._last = self._numbered
        # Deadlines are rounded up by up to 1/64 of their length, so that a million messages make few entries.
        deadline = self.settings.deadline
        grain = deadline / 64
        due = math.ceil((now + deadline) / grain) * grain
        if self._due and self._due[-1][0] == due:
            self._due.pop()
        self._due.append((due, self._last))
        return first

    def connected(self, now: float) -> None:
        """Begin with a new connection to a node."""
        assert not self._connected
        self._connected, self._welcomed = True, False
        self._heard_at = self._waiting_since = now
        self._asked_at = NEVER
        self._to_say.clear()
        shown = self.settings.client_token or UNSET
        born = self.born if self._sent else None  # hit: S3 a session that has sent nothing is born anew
        self._to_say.append(Hello(self.client_id, self.id, born, shown, self.token))

    def disconnected(self) -> None:
        """End the connection; what was sent on it may or may not have arrived."""
        if self._welcomed and self.leader == NOBODY:
            self._leaderless += 1
        self._connected = self._welcomed = False
        self.members = None
        self.node = self.leader = NOBODY
        self._move_cursor(self._base)  # hit: S5 a lost connection has all sent again

    def received(self, line: NodeLine | Shown, now: float) -> None:
        """Handle a line from the node, or delivered messages, as decoded by NodeStream.

        Raises:
            FrameError: the line is not allowed now; close this connection.
        """
        self._heard_at = now
        self._asked_at = NEVER
        if type(line) is Ack:  # Most lines are; a match would compare the other classes first.
            self._check_session(line.session)
            self._on_acknowledged(line.n, line.seq_no, now)
            return
        match line:
            case Shown():
                self._on_shown(line)
            case Reject():
                self._check_session(line.session)
                self._on_reject(line, now)
            case LeaderLine():
                self._on_addresses(line.addresses)
                self._on_leader(line.leader, line.term, now)
            case Welcome():
                self._on_addresses(line.addresses)
                self._on_welcome(line, now)
            case Status():
                self.last_seq = max(self.last_seq, line.delivered_seq)
                if (line.leader, line.term) != (self.leader, self.term):
                    self._on_leader(line.leader, line.term, now)
                if line.leader == NOBODY:
                    self.members = 1 + sum(peer.connected for peer in line.peers), 1 + len(line.peers)
                    self._survey_at = now + self.settings.keepalive
            case Problem():
                self.problem = line.reason

    def tick(self, now: float) -> None:
        """Handle what is due: deadlines, repetitions, keepalive."""
        while self._due and self._due[0][0] <= now:
            _, n = self._due.popleft()
            # hit: S5 a deadline makes the outcome unknown
            self._settle("unknown", min(n, self._last), reason=f"no answer within {self.settings.deadline:g} s")
            self._gave_up_at = now
        if not self._welcomed:
            return
        if self._rewind_at <= now:
            self._rewind(self._rewind_to, now)
        elif self._retry_from + self.settings.retry_interval <= now and self._retry_due() <= now:
            self._rewind(self._base, now)  # hit: S5 want of progress has all sent again
        if self._status_due() <= now:
            self._to_say.append(StatusRequest())
            self._asked_at = now

    def next_deadline(self) -> float:
        """Return when tick or gave_up is due next; NEVER if only input can change that."""
        when = self._due[0][0] if self._due else NEVER
        if self._connected and (due := self._give_up_at()) < when:
            when = due
        if self._welcomed:
            if self._rewind_at < when:
                when = self._rewind_at
            if (due := self._retry_due()) < when:
                when = due
            if (due := self._status_due()) < when:
                when = due
        return when

    def gave_up(self, now: float) -> bool:
        """Return whether to close this connection and try the next node."""
        return self._connected and self._give_up_at() <= now

    def excuse(self, now: float) -> None:
        """Ignore the silence up to now: the caller itself had stopped reading."""
        self._heard_at = self._waiting_since = self._retry_from = now
        if self._asked_at != NEVER:
            self._asked_at = now

    def close(self, reason: str) -> None:
        """End the session: messages never sent are rejected, the outcome of the others is unknown. Rule: S5."""
        self._end(reason, self._base, certain_above=self._sent)

    # ---- to the node -----------------------------------------------------------------------------

    def next_line(self, now: float) -> bytes | None:
        """Return the next line to send, or None if there is nothing to send."""
        if not self._connected:
            return None
        if self._to_say:
            return encode_line(self._to_say.popleft())
        return self._next_chat(now)

    def _next_chat(self, now: float) -> bytes | None:
        """Return a line with the next messages that fit the window, or None. Rule: S1, S5.

        Nothing is sent while no leader is known or a repetition is pending, because it would be refused. Nothing is
        sent if all messages have an outcome, because their deadline is over (S5).
        """
        first, last = self._cursor, self._last
        if first > last or last == self._settled or not self._welcomed or self.leader == NOBODY:
            return None
        settings = self.settings
        room = min(last + 1, self._base + settings.window_messages) - first
        if room <= 0 or self._lines_bytes >= settings.window_bytes or self._rewind_at != NEVER:
            return None
        if first == self._base:
            self._retry_from = now
        line, count = self._encode_chat(first, room)
        self._cursor = first + count
        last = self._cursor - 1
        if first <= self._sent:
            self._repeated = max(self._repeated, min(self._sent, last))
        if last > self._sent:
            self._sent = last
        self._lines.append((last, len(line)))
        self._lines_bytes += len(line)
        return line

    def _encode_chat(self, first: int, room: int) -> tuple[bytes, int]:
        """Return a CHAT line with as many messages as line_messages and line_bytes allow, and their number."""
        at, limit = first - self._payloads_from, self.settings.line_bytes
        while True:
            count = self._line_messages if self._line_messages < room else room
            line = encode_line(Chat(first, tuple(self._payloads[at : at + count])))
            if len(line) <= limit or count == 1:
                break
            # The count is kept, so that large messages are not encoded again and again at counts that don't fit.
            self._line_messages = count // 2
        if len(line) * 2 <= limit and self._line_messages < self.settings.line_messages:
            self._line_messages = min(self._line_messages * 2, self.settings.line_messages)
        return line, count

    # ---- from the node ---------------------------------------------------------------------------

    def _check_session(self, session: str) -> None:
        if session != self.id:
            raise FrameError(f"an answer for session {session!r}, not {self.id!r}")

    def _is_foreign(self, n: int) -> bool:
        """Return whether this n, which a node has sent, was never sent by this client; the session then ends. Rule: S1.

        Another client uses the same token. A message sent here may have been dropped as a duplicate of the other
        client's, and recent acknowledgements may be for the other client's messages, so the outcome of sent messages is
        unknown. A message that was never sent was certainly not ordered.
        """
        if n <= self._sent:
            return False
        # hit: S1 another client used the session
        self._end(USED_BY_ANOTHER, self._base, certain_above=self._sent)
        return True

    def _on_welcome(self, line: Welcome, now: float) -> None:
        self._check_session(line.session)
        if not self._sent:
            self.born = line.born
        self._welcomed = True
        self._waiting_since = now
        self.node, self.problem = line.node, ""
        self.last_seq = max(self.last_seq, line.last_seq)
        if self._is_foreign(line.acknowledged):
            return
        if line.acknowledged_seq:
            self._on_acknowledged(line.acknowledged, line.acknowledged_seq, now)
        self._on_leader(line.leader, line.term, now)
        if self._subscribed:
            self._place = self._place or line.last_seq + 1
            self._to_say.append(Subscribe(self._place))

    def _on_addresses(self, addresses: tuple[MemberAddress, ...] | UnsetType) -> None:
        if addresses is not UNSET and addresses != self.new_addresses:
            self.new_addresses = addresses

    def _on_leader(self, leader: NodeId, term: Term, now: float) -> None:
        """Send all unacknowledged messages again, on the new route to the leader. Rule: S5."""
        self.leader, self.term = leader, term
        if leader == NOBODY:
            # Most elections take less time.
            self._survey_at = now + self.settings.keepalive / 8
        else:
            self.members, self._leaderless = None, 0
            self._waiting_since = self._retry_from = self._rewind_ok_at = now
            self._pause = self.settings.retry_pause
            self._move_cursor(self._base)  # hit: S5 another leader has all sent again

    def _on_acknowledged(self, n: int, seq_no: SeqNo, now: float) -> None:
        """Record that all messages up to n are delivered. Rule: S4."""
        if seq_no > self.last_seq:
            self.last_seq = seq_no
        if n < self._base or (n > self._sent and self._is_foreign(n)):
            return
        self._base = n + 1
        if self._cursor <= n:
            self._cursor = n + 1
        while self._lines and self._lines[0][0] <= n:
            self._lines_bytes -= self._lines.popleft()[1]
        self._drop_payloads()
        self._pause = self.settings.retry_pause
        self._waiting_since = self._retry_from = now
        if self._rewind_to <= n:
            self._rewind_at = NEVER
        if n <= self._last:
            self._settle("ok", n, seq_no)
        else:
            self._settle("ok", self._last)
        while self._due and self._due[0][1] <= self._settled:
            self._due.popleft()

    def _on_reject(self, line: Reject, now: float) -> None:
        """Handle a refusal: send the messages again, or end the session. Rule: S2, S3, S7."""
        if not line.first and line.reason == TOKEN_REFUSED:
            self.problem = "the client token is wrong or missing"
            self._end(self.problem, self._base, certain_above=self._sent)
        elif not line.retry:
            # The leader orders nothing above line.first without it (S2). But if it was sent before, an earlier copy may
            # have reached a leader over another node.
            certain_above = line.first - 1 if line.first > self._repeated else self._sent
            if line.reason == "expired":
                # The messages below may have been ordered before the table forgot the session (S3).
                # hit: S3 a client's session has expired
                self._end(EXPIRED, self._base, certain_above)
            elif line.first >= self._base:
                # hit: S5 a rejection ends a client's session
                self._end(line.reason, line.first, certain_above)
            return
        if self._is_foreign(line.expected - 1):
            return
        self.refused = line.reason
        if self._cursor > self._base:
            # hit: S2 a client is asked to send again
            self._rewind_to = min(max(line.expected, self._base), self._cursor)
            # A burst of refusals, one for each sent line, must cause only one retry of the window.
            wait = 0.0 if line.expected else self._pause
            self._rewind_at = min(self._rewind_at, max(self._rewind_ok_at, now + wait))
            if self._rewind_at <= now:
                self._rewind(self._rewind_to, now)

    def _on_shown(self, shown: Shown) -> None:
        """Add delivered messages to those to be shown, without duplicates; a gap is an error of the node. Rule: S6."""
        if not self._place or shown.first > self._place:
            raise FrameError(f"messages from seq_no={shown.first} on, allowed from {self._place or 'nowhere'} on")
        if shown.last >= self._place:
            # hit: S6 a subscriber is shown messages
            self._shown.append(shown if shown.first == self._place else cut_run(shown, self._place))
            self._place = shown.last + 1
            self.last_seq = max(self.last_seq, shown.last)

    # ---- numbering and outcomes ------------------------------------------------------------------

    def _move_cursor(self, n: int) -> None:
        self._cursor = n
        self._lines.clear()
        self._lines_bytes = 0
        self._rewind_at = NEVER

    def _rewind(self, n: int, now: float) -> None:
        """Send again from n on, or from the first unacknowledged message if that is later."""
        self._move_cursor(min(max(n, self._base), self._cursor))
        self._retry_from = now
        self._rewind_ok_at = now + self._pause
        self._pause = min(self._pause * 2, self.settings.retry_interval)

    def _drop_payloads(self) -> None:
        """Drop acknowledged payloads, many at once, because dropping moves the remaining ones."""
        done = self._base - self._payloads_from
        if done * 2 >= len(self._payloads):
            del self._payloads[:done]
            self._payloads_from = self._base

    def _settle(self, kind: OutcomeKind, last: int, seq_no: SeqNo = 0, reason: str = "") -> None:
        """Set this outcome for all messages up to `last` that have none."""
        if last > self._settled:
            self._outcomes.append(Outcome(kind, self._settled + 1, last, seq_no, reason))
            self._settled = last

    def _end(self, reason: str, first: int, certain_above: int) -> None:
        """Stop sending messages from `first` on, and end the session; lower ones are still sent.

        Args:
            certain_above: messages above this n were certainly not ordered; the outcome of the others is unknown.
        """
        self.ended = self.ended or reason
        first = max(first, self._settled + 1)
        if first <= self._last:
            doubtful = min(certain_above, self._last)
            if first <= doubtful:
                # hit: S5 the end of a session leaves outcomes unknown
                self._outcomes.append(Outcome("unknown", first, doubtful, reason=reason))
            if max(first, doubtful + 1) <= self._last:
                self._outcomes.append(Outcome("rejected", max(first, doubtful + 1), self._last, reason=reason))
            self._last = first - 1
        self._cursor = min(self._cursor, self._last + 1)
        if not self.unsettled:
            self._due.clear()

    # ---- deadlines -------------------------------------------------------------------------------

    def _retry_due(self) -> float:
        in_flight = self._cursor > self._base and self._last > self._settled and self.leader != NOBODY
        return self._retry_from + self.settings.retry_interval if in_flight else NEVER

    def _status_due(self) -> float:
        if self._asked_at != NEVER:
            return NEVER
        if self.leader == NOBODY:
            return self._survey_at
        # If there are other addresses, missing acknowledgements show soon enough that the node is dead.
        return NEVER if self.addresses > 1 and self._last > self._settled else self._heard_at + self.settings.keepalive

    def _give_up_at(self) -> float:
        if not self._welcomed:
            return self._waiting_since + self.settings.patience
        stuck = NEVER
        if self.addresses > 1 and self._last > self._settled:
            stuck = self._waiting_since + self.settings.patience * min(2 ** (self._leaderless // self.addresses), 8)
        return stuck if self._asked_at == NEVER else min(stuck, self._asked_at + self.settings.patience)
