"""The session table (session -> last n), which makes delivery exactly once and in order per sender. Rule: S2, S3.

The table has two layers. `table` is the state after the last delivered batch: it is the same on all nodes that have
delivered as far, and is never rolled back. `ahead` adds the undelivered records and, on the leader, the messages that
wait to be ordered. After a truncation or a lost leadership `ahead` is rebuilt from the remaining records, so a
rollback needs no undo log.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from nodeproc.core.messages import Batch, Record, SeqNo


@dataclass(slots=True)
class Sessions:
    """The last message of each session.

    table: session -> (last n, its seq_no), least recently used first, at most `limit` sessions.
    horizon: highest seq_no at which a session that was dropped from the table had been used last.
    """

    limit: int
    table: dict[str, tuple[int, SeqNo]] = field(default_factory=dict)
    horizon: SeqNo = 0
    ahead: dict[str, tuple[int, SeqNo]] = field(default_factory=dict)

    def expected(self, session: str, born: SeqNo) -> int | None:
        """Return the n to be ordered next; None if the session may have been dropped from the table.

        A dropped session was used last at or before the horizon, and born before that use. So an unknown session that
        was born at the horizon or later has never been used, and its first n is 1.
        """
        known = self.ahead.get(session) or self.table.get(session)
        if known is not None:
            return known[0] + 1
        return None if born < self.horizon else 1

    def take(self, session: str, last_n: int, seq_no: SeqNo) -> None:
        """Record that the session's messages up to last_n are ordered, the last of them at seq_no."""
        self.ahead[session] = (last_n, seq_no)

    def appended(self, batch: Batch) -> None:
        for use in batch.sessions:
            self.ahead[use.session] = (use.last_n, use.seq_no)

    def rebuild(self, tail: Iterable[Record]) -> None:
        """Rebuild `ahead` from these records alone, after a truncation or a lost leadership."""
        self.ahead.clear()
        for record in tail:
            if isinstance(record.header, Batch):
                self.appended(record.header)

    def delivered(self, batch: Batch) -> None:
        """Move a batch's sessions into the table and drop the least recently used ones above the limit."""
        table, ahead = self.table, self.ahead
        for session, last_n, seq_no in batch.sessions:
            table.pop(session, None)
            table[session] = (last_n, seq_no)
            if ahead.get(session) == (last_n, seq_no):
                del ahead[session]
        while len(table) > self.limit:
            oldest = next(iter(table))  # hit: S3 the session least recently used is dropped
            self.horizon = max(self.horizon, table.pop(oldest)[1])
