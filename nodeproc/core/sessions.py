"""The table session -> last n, with rollback: exactly once, in order per sender. Rule: S2, S3.

Two layers: `table` is as of the last delivered batch, equal on all nodes that delivered as far, and never rolled back;
`ahead` holds what undelivered records, and on the leader the messages waiting to be ordered, add to it. A truncation
or a lost leadership rebuilds `ahead` from the records that are left, so rollback needs no undo log.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from nodeproc.core.messages import Batch, Record, SeqNo


@dataclass(slots=True)
class Sessions:
    """Who sent how far.

    table: session -> (last n, its seq_no), least recently used first, at most `limit` sessions.
    horizon: highest seq_no at which a session dropped from the table was last used.
    """

    limit: int
    table: dict[str, tuple[int, SeqNo]] = field(default_factory=dict)
    horizon: SeqNo = 0
    ahead: dict[str, tuple[int, SeqNo]] = field(default_factory=dict)

    def expected(self, session: str, born: SeqNo) -> int | None:
        """The n to be ordered next; None for a session that may have been dropped from the table.

        A dropped session was last used at or before the horizon and born before that use: an unknown one that
        was born at the horizon or later was never used at all, and starts with 1.
        """
        known = self.ahead.get(session) or self.table.get(session)
        if known is not None:
            return known[0] + 1
        return None if born < self.horizon else 1

    def take(self, session: str, last_n: int, seq_no: SeqNo) -> None:
        """The session's messages up to last_n are ordered, the last of them at seq_no."""
        self.ahead[session] = (last_n, seq_no)

    def appended(self, batch: Batch) -> None:
        for use in batch.sessions:
            self.ahead[use.session] = (use.last_n, use.seq_no)

    def rebuild(self, tail: Iterable[Record]) -> None:
        """Forget what is ahead save for these records: after a truncation or a lost leadership."""
        self.ahead.clear()
        for record in tail:
            if isinstance(record.header, Batch):
                self.appended(record.header)

    def delivered(self, batch: Batch) -> None:
        """Move a batch's sessions into the table and drop the least recently used ones past the limit."""
        table, ahead = self.table, self.ahead
        for session, last_n, seq_no in batch.sessions:
            table.pop(session, None)
            table[session] = (last_n, seq_no)
            if ahead.get(session) == (last_n, seq_no):
                del ahead[session]
        while len(table) > self.limit:
            oldest = next(iter(table))  # hit: S3 the session least recently used is dropped
            self.horizon = max(self.horizon, table.pop(oldest)[1])
