"""Logs to put on simulated disks, and the plain meaning of persist operations to compare a recovery with."""

from __future__ import annotations

from dataclasses import dataclass, field

from lab.course.simfiles import SimFiles
from nodeproc.core.effects import Met, PersistOp, Promise, Readmitted, Truncate
from nodeproc.core.events import Event
from nodeproc.core.messages import (
    START,
    Batch,
    Known,
    Mark,
    MemberList,
    MembersMark,
    Position,
    Record,
    SessionUse,
    Submit,
)
from nodeproc.core.recovered import Recovered, Snapshot
from nodeproc.core.sessions import Sessions
from nodeproc.disk.storage import Storage
from nodeproc.records import Sealer

LINES = "logs/node_1_messages.jsonl"
FIRST = "wal/000000000001.wal"
SECOND = "wal/000000000002.wal"
CHECKPOINT = "wal/checkpoint"
IDENTITY = "the-first-one"


@dataclass
class Meaning:
    """What a sequence of persist operations amounts to, told without any file."""

    term: int = 0
    voted_for: int = 0
    rebuilding: bool = False
    identities: dict[int, Known] = field(default_factory=dict)
    log: list[Record] = field(default_factory=list)

    @classmethod
    def of(cls, ops: list[PersistOp], rebuilding: bool = False) -> Meaning:
        meaning = cls(rebuilding=rebuilding)
        for op in ops:
            meaning.take(op)
        return meaning

    def take(self, op: PersistOp) -> None:
        if isinstance(op, Record):
            self.log.append(op)
        elif isinstance(op, Truncate):
            self.log = [record for record in self.log if record.position <= op.keep]
        elif isinstance(op, Promise):
            self.term, self.voted_for = op.term, op.voted_for
        elif isinstance(op, Met):
            self.identities[op.peer] = op.known
        elif isinstance(op, Readmitted):
            self.rebuilding = False

    @property
    def end(self) -> Position:
        return self.log[-1].position if self.log else START

    def base(self, delivered_seq: int) -> Position:
        """Position of the last delivered batch."""
        ends = [r.position for r in self.log if isinstance(r.header, Batch) and r.header.last <= delivered_seq]
        return ends[-1] if ends else START

    def delivered(self, delivered_seq: int) -> list[Record]:
        return [r for r in self.log if isinstance(r.header, Batch) and r.header.last <= delivered_seq]

    def lines(self, delivered_seq: int) -> bytes:
        """The message log's bytes."""
        return b"".join(record.body for record in self.delivered(delivered_seq))

    def recovered(self, delivered_seq: int, max_sessions: int = 100_000) -> Recovered:
        """What the core must get after a restart."""
        sessions = Sessions(max_sessions)
        for record in self.delivered(delivered_seq):
            assert isinstance(record.header, Batch)
            sessions.delivered(record.header)
        base = self.base(delivered_seq)
        return Recovered(
            identity=IDENTITY,
            rebuilding=self.rebuilding,
            term=self.term,
            voted_for=self.voted_for,
            identities=self.identities,
            marks=[record.header for record in self.log if isinstance(record.header, Mark)],
            position=self.end,
            delivered_seq=base.seq_no,
            tail=[record for record in self.log if record.position > base],
            sessions=sessions.table,
            horizon=sessions.horizon,
        )

    def snapshot(self, delivered_seq: int) -> Snapshot:
        """What the core would hand to a checkpoint."""
        core = self.recovered(delivered_seq)
        base = self.base(delivered_seq)
        marks = tuple(mark for mark in core.marks if mark.position < base)
        return Snapshot(
            0, 0, False, {}, marks, core.delivered_seq, core.sessions, core.horizon
        )  # The promises in it are not used.


class Scribe:
    """Makes the next records of a log that only grows or is truncated by hand."""

    def __init__(self) -> None:
        self.ops: list[PersistOp] = []
        self.meaning = Meaning()
        self._sealer = Sealer(lambda: 1732300000.123)
        self._sent: dict[str, int] = {}

    def add(self, op: PersistOp) -> PersistOp:
        self.ops.append(op)
        self.meaning.take(op)
        return op

    def mark(self, term: int, members: MemberList | None = None) -> Record:
        """Open a term, perhaps with a list of members."""
        after = self.meaning.end.seq_no
        record = self._sealer.mark(Mark(term, 1, after) if members is None else MembersMark(term, 1, after, members))
        self.add(record)
        return record

    def batch(self, *payloads: str, session: str = "s") -> Record:
        """Messages of one session in the present term."""
        end = self.meaning.end
        first, last = end.seq_no + 1, end.seq_no + len(payloads)
        n = self._sent.get(session, 0)
        self._sent[session] = n + len(payloads)
        header = Batch(end.term, first, last, (SessionUse(session, n + len(payloads), last),))
        record = self._sealer.batch(header, [Submit(session, 9, 0, n + 1, payloads)])
        self.add(record)
        return record


def opened(
    files: SimFiles, segment_bytes: int = 1 << 20, rebuild: bool = False
) -> tuple[Storage, Recovered, list[Event]]:
    """Storage.open for node 1."""
    return Storage.open(files, 1, segment_bytes=segment_bytes, rebuild=rebuild, new_identity=lambda: IDENTITY)


def everything(storage: Storage, max_bytes: int = 1 << 30) -> list[Record]:
    """All records, read in pieces."""
    records: list[Record] = []
    while more := storage.read_records(records[-1].position if records else START, max_bytes):
        records += more
    return records


def all_lines(storage: Storage, start: int = 1, max_bytes: int = 1 << 30) -> bytes:
    """All delivered lines, read in pieces."""
    pieces: list[bytes] = []
    while True:
        piece, last = storage.read_lines(start, max_bytes)
        if not piece:
            return b"".join(pieces)
        assert last == start + piece.count(b"\n") - 1
        pieces.append(piece)
        start = last + 1


def a_short_life(segment_bytes: int = 1 << 20) -> tuple[SimFiles, Scribe]:
    """A disk with promises, two terms, a truncation and notes of delivery up to seq_no 4; 7 is the last message."""
    files, scribe = SimFiles(), Scribe()
    storage, _, _ = opened(files, segment_bytes)
    storage.write([scribe.add(Met(2, Known("its-identity"))), scribe.add(Promise(1, 1))])
    storage.write([scribe.mark(1)])
    for payloads in (("one",), ("two", "drei ü", "four")):
        record = scribe.batch(*payloads)
        storage.write([record])
        storage.sync()
        storage.deliver([record])
    storage.write([scribe.batch("lost")])
    storage.write([scribe.add(Promise(2, 3))])
    storage.write([scribe.add(Truncate(Position(1, 4)))])
    storage.write([scribe.mark(2), scribe.batch("five", "six", session="t")])
    storage.sync()
    storage.write([scribe.batch("seven")])
    storage.sync()
    return files, scribe


def write_and_deliver(storage: Storage, scribe: Scribe, batches: int, size: int = 100) -> None:
    """Each batch in a write of its own, synced and delivered."""
    for number in range(batches):
        record = scribe.batch("x" * size, f"message {number}")
        storage.write([record])
        storage.sync()
        storage.deliver([record])
