"""The log in memory: all marks, the position, and the records that are not delivered yet.

The core never reads delivered records again; the storage keeps them. Undelivered records are bounded by the
messages that clients may have in flight (S7), so of a long history only the marks use memory.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from nodeproc.core.messages import START, Batch, Mark, MemberList, MembersMark, Position, Record, SeqNo, Term


def _position(record: Record) -> Position:
    return record.header.position


def _term(mark: Mark) -> Term:
    return mark.term


@dataclass(slots=True)
class Log:
    """Marks and undelivered records, in order.

    Invariant: tail[0] follows `base`, each record follows the one before it, `position` is that of the last record.
    """

    marks: list[Mark] = field(default_factory=list)
    base: Position = START
    """Position of the last delivered batch; START while there is none."""
    tail: list[Record] = field(default_factory=list)
    position: Position = START
    tail_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.tail_bytes = sum(len(record.raw) for record in self.tail)

    @property
    def members(self) -> MemberList | None:
        """The list in force, that of the last mark; None while the members are the founders. Rule: G1."""
        last = self.marks[-1] if self.marks else None
        return last.members if isinstance(last, MembersMark) else None

    def append(self, record: Record) -> None:
        """Append a record. The caller has checked that it follows the last one (R4)."""
        header, (term, seq_no) = record.header, self.position
        if isinstance(header, Mark):
            assert header.term > term and header.after == seq_no, (header, self.position)
            self.marks.append(header)
        else:
            assert header.term == term and header.first == seq_no + 1 <= header.last, (header, self.position)
        self.tail.append(record)
        self.tail_bytes += len(record.raw)
        self.position = header.position

    def truncate(self, keep: Position) -> int:
        """Drop every record whose position is above `keep`; return their number. Rule: R2.

        `keep` must not be below `base`: delivered messages are never dropped.
        """
        assert keep >= self.base, (keep, self.base)
        kept = bisect_right(self.tail, keep, key=_position)
        dropped = len(self.tail) - kept
        self.tail_bytes -= sum(len(record.raw) for record in self.tail[kept:])
        del self.tail[kept:]
        self.position = self.tail[-1].header.position if self.tail else self.base
        while self.marks and self.marks[-1].position > self.position:
            self.marks.pop()  # hit: R2 a truncation drops a mark
        return dropped

    def delivered_up_to(self, commit_seq: SeqNo) -> list[Record]:
        """Remove and return the records, in order, up to the last batch that ends at or before commit_seq."""
        count = 0
        for at, record in enumerate(self.tail):
            header = record.header
            if isinstance(header, Batch):
                if header.last > commit_seq:
                    break
                count, self.base = at + 1, header.position
        taken = self.tail[:count]
        del self.tail[:count]
        self.tail_bytes -= sum(len(record.raw) for record in taken)
        return taken

    def records_after(self, after: Position, max_bytes: int) -> list[Record] | None:
        """Return consecutive records after a position: at most max_bytes, but at least one record if there is any.

        None if the first of them is below `base`, and thus only on disk.
        """
        if after < self.base:
            return None
        taken: list[Record] = []
        size = 0
        for record in self.tail[bisect_right(self.tail, after, key=_position) :]:
            size += len(record.raw)
            if taken and size > max_bytes:
                break
            taken.append(record)
        return taken

    def end_of(self, term: Term) -> SeqNo:
        """Return the last seq_no that this log has in a term, or before the first mark for term 0."""
        at = bisect_right(self.marks, term, key=_term)
        return self.marks[at].after if at < len(self.marks) else self.position.seq_no

    def has_mark(self, term: Term) -> bool:
        at = bisect_left(self.marks, term, key=_term)
        return at < len(self.marks) and self.marks[at].term == term

    def catch_up_marks(self, up_to: Term | None, most: int) -> tuple[list[tuple[Term, SeqNo]], bool]:
        """Return the marks from which a leader can find the fork, and whether older ones were left out. Rule: R1.

        Delivered messages are in the log of every later leader, and so is the mark of the last delivered one: older
        marks are not needed.

        Args:
            up_to: the newest term to include; None for all.
            most: maximum number of marks; the newest ones are returned.
        """
        first = bisect_left(self.marks, self.base.term, key=_term)
        end = len(self.marks) if up_to is None else bisect_right(self.marks, up_to, key=_term)
        start = max(first, end - most)
        return [(mark.term, mark.after) for mark in self.marks[start:end]], start > first

    def fork(self, marks: Sequence[tuple[Term, SeqNo]], last_seq: SeqNo) -> Position:
        """Return the last position that this log has in common with another one. Rule: R1.

        Args:
            marks: the other log's marks as (term, seq_no it starts after), ascending, complete above the highest
                mark that both logs have.
            last_seq: the other log's last seq_no.
        """
        common = next((term for term, _ in reversed(marks) if self.has_mark(term)), 0)
        theirs_end = next((after for term, after in marks if term > common), last_seq)
        return Position(common, min(self.end_of(common), theirs_end))
