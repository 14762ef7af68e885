"""Properties of the session table: a rollback equals a rebuild, and no message is ordered twice."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeproc.core.messages import Batch, Record, SessionUse
from nodeproc.core.sessions import Sessions

NAMES = "abcde"

Shape = list[list[tuple[str, int]]]
"""Batches: sessions with so many messages each."""

shapes = st.lists(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 3)), min_size=1, max_size=3), max_size=8)


def build(shape: Shape) -> list[Record]:
    """Batches whose headers are as a leader makes them: each session once, ascending by its last use."""
    records: list[Record] = []
    seq_no, last = 0, dict.fromkeys(NAMES, 0)
    for batch in shape:
        first, uses = seq_no + 1, dict[str, SessionUse]()
        for session, count in batch:
            seq_no += count
            last[session] += count
            uses.pop(session, None)
            uses[session] = SessionUse(session, last[session], seq_no)
        records.append(Record(Batch(1, first, seq_no, tuple(uses.values())), b"", 0))
    return records


def header(record: Record) -> Batch:
    assert isinstance(record.header, Batch)
    return record.header


def table_of(records: list[Record], delivered: int, limit: int) -> Sessions:
    """From scratch: the first records delivered, the rest ahead."""
    sessions = Sessions(limit)
    for record in records:
        sessions.appended(header(record))
    for record in records[:delivered]:
        sessions.delivered(header(record))
    return sessions


@given(shapes, st.integers(0, 8), st.integers(0, 8), st.integers(1, 6))
def test_a_rollback_equals_a_rebuild_from_scratch(shape: Shape, kept: int, delivered: int, limit: int) -> None:
    """Rule: S3."""
    records = build(shape)
    kept = min(kept, len(records))
    delivered = min(delivered, kept)
    rolled_back = table_of(records, delivered, limit)
    rolled_back.rebuild(records[delivered:kept])
    assert rolled_back == table_of(records[:kept], delivered, limit)


@given(shapes, st.integers(1, 6))
def test_table_and_horizon_do_not_depend_on_when_batches_were_appended_or_delivered(shape: Shape, limit: int) -> None:
    """Rule: S3."""
    records = build(shape)
    at_once = table_of(records, len(records), limit)
    one_by_one = Sessions(limit)
    for record in records:
        one_by_one.appended(header(record))
        one_by_one.delivered(header(record))
    recovered = Sessions(limit)
    for record in records:
        recovered.delivered(header(record))
    assert at_once == one_by_one == recovered
    assert list(at_once.table) == list(recovered.table), "the order of use is the same too"
    assert not at_once.ahead


@given(shapes, st.integers(1, 6))
def test_the_table_holds_the_sessions_used_last_and_the_horizon_is_the_last_use_of_the_others(
    shape: Shape, limit: int
) -> None:
    """Rule: S3."""
    records = build(shape)
    sessions = table_of(records, len(records), limit)
    uses = sorted(
        (use.seq_no, use.session)
        for name in NAMES
        for use in [u for r in records for u in header(r).sessions if u.session == name][-1:]
    )
    assert list(sessions.table) == [session for _, session in uses[-limit:]]
    dropped_now = [seq_no for seq_no, _ in uses[:-limit]]
    assert sessions.horizon >= max(dropped_now, default=0), "a session may also have been dropped and come back"


@dataclass
class Client:
    """One session that sends whatever of its messages, new or old, at any time."""

    session: str
    born: int
    sent: int = 0


@dataclass
class Ordering:
    """A leader's log with the only rule that keeps messages from being ordered twice: Sessions.expected."""

    sessions: Sessions
    log: list[Batch] = field(default_factory=list)
    delivered: int = 0
    ordered: list[tuple[str, int]] = field(default_factory=list)
    """(session, n) of each message, by seq_no."""

    def submit(self, client: Client, n: int) -> None:
        if self.sessions.expected(client.session, client.born) != n:
            return
        self.ordered.append((client.session, n))
        seq_no = len(self.ordered)
        self.sessions.take(client.session, n, seq_no)
        self.log.append(Batch(1, seq_no, seq_no, (SessionUse(client.session, n, seq_no),)))

    def deliver(self, count: int) -> None:
        for batch in self.log[self.delivered : self.delivered + count]:
            self.sessions.delivered(batch)
        self.delivered = min(len(self.log), self.delivered + count)

    def new_leader(self, keep: int, delivered: int) -> None:
        """Another node leads: it has delivered less, and lacks some of what was not delivered anywhere."""
        assert keep >= self.delivered
        del self.log[keep:], self.ordered[keep:]
        self.delivered = min(delivered, self.delivered)
        self.sessions = Sessions(self.sessions.limit)
        for batch in self.log:
            self.sessions.appended(batch)
        for batch in self.log[: self.delivered]:
            self.sessions.delivered(batch)

    def check(self) -> None:
        for session in {session for session, _ in self.ordered}:
            of_session = [n for name, n in self.ordered if name == session]
            assert of_session == list(range(1, len(of_session) + 1)), f"{session}: {of_session}"


def play(ordering: Ordering, moves: list[tuple[str, int, int]]) -> None:
    """Moves of clients and leaders; `born` is what some node had delivered when the session began."""
    clients: list[Client] = []
    most_delivered = 0
    for move, x, y in moves:
        if move == "new":
            clients.append(Client(f"s{len(clients)}", min(x, most_delivered)))
        elif move == "send" and clients:
            client = clients[x % len(clients)]
            client.sent += 1
            ordering.submit(client, client.sent)
        elif move == "resend" and clients:
            client = clients[x % len(clients)]
            ordering.submit(client, 1 + y % max(1, client.sent))
        elif move == "deliver":
            ordering.deliver(x)
        elif move == "leader":
            ordering.new_leader(max(most_delivered, len(ordering.log) - x), ordering.delivered - y)
        most_delivered = max(most_delivered, ordering.delivered)
        ordering.check()


kinds = st.sampled_from(["new", "send", "send", "resend", "resend", "deliver", "leader"])
plays = st.lists(st.tuples(kinds, st.integers(0, 9), st.integers(0, 5)), max_size=60)


@settings(max_examples=300)
@given(plays, st.integers(1, 3))
def test_dropped_sessions_never_let_a_message_be_ordered_twice(moves: list[tuple[str, int, int]], limit: int) -> None:
    """Rule: S2, S3."""
    play(Ordering(Sessions(limit)), moves)


class NoHorizon(Sessions):
    """Broken: an unknown session always begins with 1."""

    def expected(self, session: str, born: int) -> int | None:
        return super().expected(session, 10**9)


@pytest.mark.patches
def test_without_a_horizon_an_old_first_message_is_ordered_twice() -> None:
    """The property above would find it. Rule: S3."""
    moves = [("new", 0, 0), ("new", 0, 0), ("send", 0, 0), ("send", 1, 0), ("deliver", 9, 0), ("resend", 0, 0)]
    play(Ordering(Sessions(1)), moves)
    broken = Ordering(NoHorizon(1))
    try:
        play(broken, moves)
    except AssertionError as error:
        assert "s0: [1, 1]" in str(error)
    else:
        raise AssertionError("not noticed")
