"""Invariants looked at while a simulation runs, and at its end: cheap enough for every seed of a search.

The judges of lab.check work on a run directory; this is the same question asked in memory, so that a seed that
breaks nothing leaves nothing behind. A seed that does is played again into a run directory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence, Set
from zlib import crc32

import msgspec

from lab.plan.workload import FIRST_SUBSCRIBER
from lab.rows import Acked, Failed, HistoryRow, Invoke, Shown, Unknown
from nodeproc.core.events import BecameLeader, Event, HeartbeatReceived, NewCoordinator, Starting
from nodeproc.core.messages import Batch, Line, NodeId, Record, SeqNo, Term

_decode_lines = msgspec.json.Decoder(Line).decode_lines
_NOTHING_SENT = deque([(0, -1)])


class Violation(Exception):
    """An invariant does not hold. args: (invariant, what was seen)."""

    @property
    def invariant(self) -> str:
        return str(self.args[0])

    @property
    def text(self) -> str:
        return str(self.args[1])


class Watch:
    """Fed with every delivery, event and history row; raises Violation at the first that may not be."""

    def __init__(self, ids: Sequence[NodeId]) -> None:
        self.log: list[Record] = []
        """The one order: every batch that any node delivered."""
        self._ends: list[SeqNo] = []
        self.delivered = dict.fromkeys(ids, 0)
        """Node -> batches of the log that it delivered."""
        self._leaders: dict[Term, NodeId] = {}
        self._terms = dict.fromkeys(ids, 0)
        self._reached: dict[str, tuple[int, SeqNo]] = {}
        """Session -> (last n in the log, its seq_no)."""
        self._sent: list[Invoke] = []
        self._floors: list[SeqNo] = []
        """For each of those, the highest seq_no that was acknowledged before."""
        self._acked: SeqNo = 0
        self._shown: dict[int, SeqNo] = {}
        self._failed: list[Failed] = []
        self.elections = self.acknowledged = 0
        self.sent = 0

    @property
    def last_seq(self) -> SeqNo:
        return self._ends[-1] if self._ends else 0

    # ---- while it runs -----------------------------------------------------------------------------

    def on_delivered(self, node: NodeId, records: Sequence[Record]) -> None:
        """Agreement and contiguity. Rule: A1, A2, A5."""
        for record in records:
            header = record.header
            if not isinstance(header, Batch):
                continue
            place = self.delivered[node]
            self.delivered[node] = place + 1
            if place < len(self.log):
                if self.log[place].raw != record.raw:
                    raise Violation("A1", f"node {node} delivered another batch {header.first}..{header.last}")
                continue
            if header.first != self.last_seq + 1 or (self.log and header.term < self.log[-1].header.term):
                raise Violation("A2", f"node {node} delivered {header.first} behind {self.last_seq}")
            self.log.append(record)
            self._ends.append(header.last)
            for session, last_n, seq_no in header.sessions:
                self._reached[session] = (last_n, seq_no)

    def forget(self, node: NodeId) -> None:
        """It lost its disk, and delivers from the beginning."""
        self.delivered[node] = 0
        self._terms[node] = 0

    def recovered(self, node: NodeId, delivered_seq: SeqNo) -> None:
        """A new process goes on behind what its message log holds."""
        count = sum(end <= delivered_seq for end in self._ends)
        if (self._ends[count - 1] if count else 0) != delivered_seq:
            raise Violation("A1", f"node {node} came back with {delivered_seq} delivered, the log has {self.last_seq}")
        self.delivered[node] = count

    def on_event(self, node: NodeId, event: Event) -> None:
        """One leader a term; terms never fall. Rule: A7."""
        match event:
            case BecameLeader():
                self.elections += 1
                self._leads(event.term, node, node)
                self._shows(node, event.term)
            case NewCoordinator() | HeartbeatReceived():
                self._leads(event.term, event.leader, node)
                self._shows(node, event.term)
            case Starting():
                self._shows(node, event.term)
            case _:
                pass

    def _leads(self, term: Term, leader: NodeId, node: NodeId) -> None:
        known = self._leaders.setdefault(term, leader)
        if known != leader:
            raise Violation("A7", f"term {term} has two leaders, node {known} and node {leader} (says node {node})")

    def _shows(self, node: NodeId, term: Term) -> None:
        if term < self._terms[node]:
            raise Violation("A7", f"node {node} shows term {term} after term {self._terms[node]}")
        self._terms[node] = term

    def on_row(self, row: HistoryRow) -> None:
        """Durability of acknowledgements, and what subscribers are shown. Rule: A4, A8."""
        match row:
            case Invoke():
                self._sent.append(row)
                self._floors.append(self._acked)
                self.sent += row.count
            case Acked():
                last_n, _ = self._reached.get(row.session, (0, 0))
                if last_n < row.n:
                    raise Violation("A4", f"n={row.n} of {row.session} was acknowledged, the log has n={last_n}")
                self.acknowledged += 1
                self._acked = max(self._acked, row.seq_no)
            case Shown():
                self._show(row)
            case Failed():
                self._failed.append(row)
            case Unknown():
                pass
            case _:
                pass

    def _show(self, row: Shown) -> None:
        expected = self._shown.get(row.client, 0) + 1
        if row.first != expected:
            raise Violation("A8", f"subscriber {row.client} was shown {row.first}, next is {expected}")
        if row.last > self.last_seq:
            raise Violation("A8", f"subscriber {row.client} was shown {row.last}, delivered is {self.last_seq}")
        self._shown[row.client] = row.last
        if crc32(self._lines(row.first, row.last)) != row.crc:
            raise Violation("A8", f"subscriber {row.client} was shown other bytes for {row.first}..{row.last}")

    def _lines(self, first: SeqNo, last: SeqNo) -> bytes:
        """These lines of the message log; most often whole batches at its end."""
        found = []
        for record in reversed(self.log):
            header = record.header
            assert isinstance(header, Batch)
            if header.last < first:
                break
            if header.first <= last:
                lines = bytes(record.body).splitlines(True)
                start, end = max(first - header.first, 0), last - header.first + 1
                found.append(b"".join(lines[start:end]))
        return b"".join(reversed(found))

    # ---- at the end --------------------------------------------------------------------------------

    def all_shown(self, subscribers: int) -> None:
        """Every subscriber stayed, and has been shown the whole log. Rule: A8, S6."""
        for client in range(FIRST_SUBSCRIBER, FIRST_SUBSCRIBER + subscribers):
            if (last := self._shown.get(client, 0)) < self.last_seq:
                raise Violation("A8", f"subscriber {client} was shown up to {last}, delivered is {self.last_seq}")

    def at_end(self, message_logs: dict[NodeId, bytes], tokens: Set[str] = frozenset()) -> None:
        """Every message was sent, once, in its sender's order, and no acknowledged one came too early. A1, A3, A5, A6.

        Args:
            message_logs: the file of each node that has delivered everything.
            tokens: the secrets of the clients' sessions, which no line may show.
        """
        whole = b"".join(bytes(record.body) for record in self.log)
        for node, data in sorted(message_logs.items()):
            if data != whole:
                raise Violation("A1", f"the message log of node {node} is not what was delivered")
        places: dict[str, deque[tuple[int, int]]] = {}
        """Session -> (first n, number) of what it sent; what lies behind its last n in the log is taken off."""
        for number, row in enumerate(self._sent):
            places.setdefault(row.session, deque()).append((row.n, number))
        rejected = {(row.session, n) for row in self._failed for n in range(row.n, row.n + row.count)}
        last: dict[str, int] = {}
        for line in _decode_lines(whole):
            session, _, digits = line.msg_id.rpartition("-")
            n = int(digits)
            if session in tokens:
                raise Violation("A3", f"seq_no {line.seq_no}: {line.msg_id} shows the secret of its session")
            if n != last.get(session, 0) + 1:
                raise Violation("A5", f"seq_no {line.seq_no} is n={n} of {session} behind n={last.get(session, 0)}")
            last[session] = n
            sent = places.get(session, _NOTHING_SENT)
            while len(sent) > 1 and sent[1][0] <= n:
                sent.popleft()
            first, number = sent[0]
            if number < 0 or not first <= n < first + self._sent[number].count:
                raise Violation("A3", f"seq_no {line.seq_no}: {line.msg_id} was never sent")
            if line.payload != self._sent[number].payload(n):
                raise Violation("A3", f"seq_no {line.seq_no}: {line.msg_id} holds another payload")
            if line.seq_no <= self._floors[number]:
                raise Violation("A6", f"seq_no {line.seq_no} was sent after {self._floors[number]} was acknowledged")
            if (session, n) in rejected:
                raise Violation("A3", f"seq_no {line.seq_no}: {line.msg_id} was reported as rejected")
