"""The sessions of clients while the judges of A3 to A6 go through the history and the log together."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from lab.check.history import LogLine
from lab.check.verdict import Outcomes
from lab.payloads import payloads
from lab.rows import Acked, Invoke

LATE_MAX = 1000
"""Sent ranges that are kept after the log has passed them; only a broken log needs them."""


class Sent(NamedTuple):
    """Messages first .. last of one session as the history says that they were sent."""

    first: int
    last: int
    row: Invoke
    place: int
    """Line of history.jsonl."""
    after_ack: bool
    """Whether a message was acknowledged before they were sent, so that A6 applies to them."""

    def payloads(self, first: int, count: int) -> list[str]:
        """Return the payloads of the messages first, first + 1, …"""
        row = self.row
        if row.gen is None:
            return list(row.payloads[first - row.n : first - row.n + count])
        return payloads(row.gen.seed, row.client, first, count, row.gen.size)


class Early(NamedTuple):
    """A message that the log has before a row of the history shows that it was sent."""

    number: int
    """Line of the log."""
    line: LogLine
    ack: Acked | None
    """The acknowledgement up to whose seq_no the log was read; None at the end of the history."""
    ack_place: int


@dataclass(slots=True)
class Session:
    """State of one session at this point of the pass."""

    invoked: int = 0
    """Messages 1..invoked were sent."""
    acked: int = 0
    logged: int = 0
    """The highest n seen in the log."""
    rejected: list[tuple[int, int]] = field(default_factory=list)
    unknown: list[tuple[int, int]] = field(default_factory=list)
    sent: deque[Sent] = field(default_factory=deque)
    """Ranges not yet seen in the log, ascending."""
    late: deque[Sent] = field(default_factory=lambda: deque(maxlen=LATE_MAX))
    """Ranges that the log has passed."""
    early: dict[int, Early] = field(default_factory=dict)
    holes: list[tuple[int, int, int]] = field(default_factory=list)
    """(first, last, next line of the log) of each range that the log skipped."""

    def find(self, n: int) -> Sent | None:
        """Return the sent range that contains n."""
        sent = self.sent
        while sent and sent[0].last < n:
            self.late.append(sent.popleft())
        if sent and sent[0].first <= n:
            return sent[0]
        return next((each for each in reversed(self.late) if each.first <= n <= each.last), None)

    def fill_hole(self, n: int) -> bool:
        """Remove n from the holes. False if it was in none."""
        for at, (first, last, line) in enumerate(self.holes):
            if first <= n <= last:
                parts = ((first, n - 1, line), (n + 1, last, line))
                self.holes[at : at + 1] = [part for part in parts if part[0] <= part[1]]
                return True
        return False

    def first_lost(self) -> tuple[int, int] | None:
        """Return the lowest acknowledged n that is not in the log, with the line of the log behind its place.

        None if the log has all of them. The line is 0 if the log ended before.
        """
        lost = [(first, line) for first, _, line in self.holes if first <= self.acked]
        if self.acked > self.logged:
            lost.append((self.logged + 1, 0))
        return min(lost, default=None)

    def in_log(self, first: int, last: int) -> int:
        """Return how many of the messages first..last are in the log. Valid at the end of the pass."""
        count = max(0, min(last, self.logged) - first + 1)
        for low, high, _ in self.holes:
            count -= max(0, min(last, high) - max(first, low) + 1)
        return count


def outcomes(sessions: Iterable[Session], in_log: int) -> Outcomes:
    """The outcomes of everything that was sent, at the end of the pass.

    Args:
        in_log: lines of the log.
    """
    sessions = list(sessions)
    # A later acknowledgement of the session covers what the client had given up.
    unknown = [
        (session, max(first, session.acked + 1), last)
        for session in sessions
        for first, last in session.unknown
        if last > session.acked
    ]
    unknown_in_log = sum(session.in_log(first, last) for session, first, last in unknown)
    unknown_count = sum(last - first + 1 for _, first, last in unknown)
    sent = sum(session.invoked for session in sessions)
    acknowledged = sum(session.acked for session in sessions)
    rejected = sum(last - first + 1 for session in sessions for first, last in session.rejected)
    return Outcomes(
        sent=sent,
        acknowledged=acknowledged,
        rejected=rejected,
        unknown_in_log=unknown_in_log,
        unknown_not_in_log=unknown_count - unknown_in_log,
        unresolved=max(0, sent - acknowledged - rejected - unknown_count),
        in_log=in_log,
    )
