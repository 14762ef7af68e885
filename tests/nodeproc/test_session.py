"""The client's session against situations by name, and against a hostile model of a cluster."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nodeproc.core.messages import Line
from nodeproc.errors import FrameError
from nodeproc.lines import (
    TOKEN_REFUSED,
    Ack,
    Chat,
    Hello,
    LeaderLine,
    NodeLine,
    PeerStatus,
    Problem,
    Reject,
    Shown,
    Status,
    StatusRequest,
    Subscribe,
    Welcome,
    decode_client_line,
    encode_line,
    session_of,
)
from nodeproc.net.nodestream import NodeStream, cut_run, read_run
from nodeproc.outcome import Outcome
from nodeproc.session import NEVER, Session, SessionSettings

TOKEN = "5f0c2a9be1d044171d3c7e0f96b25a48"
ID = session_of(TOKEN)


def hello(born: int | None = None) -> Hello:
    return Hello(101, ID, born, session_token=TOKEN)


def make_session(**changes: float | str) -> Session:
    return Session(101, TOKEN, SessionSettings(**changes))  # type: ignore[arg-type]


def welcome(leader: int = 3, last_seq: int = 0, acknowledged: int = 0, acknowledged_seq: int = 0) -> Welcome:
    return Welcome(1, ID, last_seq, acknowledged, last_seq, leader, 1, acknowledged_seq)


def said(session: Session, now: float) -> list[object]:
    """All that the session has to say now."""
    lines: list[object] = []
    while (line := session.next_line(now)) is not None:
        assert line.endswith(b"\n") and line.count(b"\n") == 1
        lines.append(decode_client_line(line[:-1]))
    return lines


def connected_session(**changes: float) -> Session:
    """A session that was welcomed at time 0, HELLO already said."""
    session = make_session(**changes)
    session.connected(0.0)
    assert said(session, 0.0) == [hello()]
    session.received(welcome(), 0.0)
    return session


def message_lines(first: int, last: int) -> bytes:
    return b"".join(encode_message(seq_no) for seq_no in range(first, last + 1))


def encode_message(seq_no: int) -> bytes:
    import msgspec

    return msgspec.json.encode(Line(seq_no, 1, 7, f"s-{seq_no}", 1.5, f"text {seq_no}\n")) + b"\n"


# ---- S1: numbering ------------------------------------------------------------------------------


def test_nothing_is_sent_before_the_welcome() -> None:
    session = make_session()
    session.submit(["a"], 0.0)
    assert said(session, 0.0) == []
    session.connected(0.0)
    assert said(session, 0.0) == [hello()]
    session.received(welcome(), 0.1)
    assert said(session, 0.1) == [Chat(1, ("a",))]


def test_messages_that_wait_travel_in_one_line() -> None:
    session = connected_session()
    assert [session.submit([text], 0.0) for text in "abc"] == [1, 2, 3]
    assert said(session, 0.0) == [Chat(1, ("a", "b", "c"))]
    assert session.submit(["d", "e"], 0.0) == 4
    assert said(session, 0.0) == [Chat(4, ("d", "e"))]


def test_a_line_holds_no_more_messages_than_allowed() -> None:
    session = connected_session(line_messages=2)
    session.submit(list("abcde"), 0.0)
    assert said(session, 0.0) == [Chat(1, ("a", "b")), Chat(3, ("c", "d")), Chat(5, ("e",))]


def test_a_line_is_no_longer_than_allowed_unless_it_holds_one_message() -> None:
    session = connected_session(line_bytes=200)
    session.submit(["x" * 60] * 8 + ["y" * 500] + ["z"] * 20, 0.0)
    lines = said(session, 0.0)
    payloads: list[str] = []
    for line in lines:
        assert isinstance(line, Chat) and line.first == len(payloads) + 1
        assert len(encode_line(line)) <= 200 or len(line.payloads) == 1
        payloads += line.payloads
    assert payloads == ["x" * 60] * 8 + ["y" * 500] + ["z"] * 20
    assert len(lines) < 20


def test_the_window_bounds_what_is_sent_and_not_acknowledged() -> None:
    session = connected_session(window_messages=4, line_messages=2)
    session.submit(list("abcdef"), 0.0)
    assert said(session, 0.0) == [Chat(1, ("a", "b")), Chat(3, ("c", "d"))]
    session.received(Ack(ID, 1, 1), 0.1)
    assert said(session, 0.1) == [Chat(5, ("e",))]
    session.received(Ack(ID, 5, 5), 0.1)
    assert said(session, 0.1) == [Chat(6, ("f",))]


def test_the_window_bounds_bytes_too() -> None:
    session = connected_session(window_bytes=1000, line_messages=1)
    session.submit(["x" * 400] * 5, 0.0)
    assert len(said(session, 0.0)) == 3
    session.received(Ack(ID, 2, 2), 0.1)
    assert len(said(session, 0.1)) == 2


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        ("x" * 65, "message of 65 bytes, allowed 64"),
        ("ä" * 33, "message of 66 bytes, allowed 64"),
        ("a\udc80", "character 1 is '\\udc80', which has no UTF-8 form"),
    ],
)
def test_an_unsendable_message_takes_no_number(payload: str, found: str) -> None:
    session = connected_session(payload_bytes=64)
    with pytest.raises(ValueError, match="^" + found.replace("\\", "\\\\") + "$"):
        session.submit(["fine", payload], 0.0)
    assert session.submit(["ä" * 32], 0.0) == 1


# ---- S4: acknowledgements -----------------------------------------------------------------------


def test_an_ack_settles_every_message_up_to_its_n() -> None:
    session = connected_session()
    session.submit(list("abc"), 0.0)
    said(session, 0.0)
    session.received(Ack(ID, 2, 9), 0.1)
    assert session.take_outcomes() == [Outcome("ok", 1, 2, 9)]
    session.received(Ack(ID, 2, 9), 0.1)
    session.received(Ack(ID, 1, 8), 0.1)
    assert session.take_outcomes() == []
    session.received(Ack(ID, 3, 12), 0.2)
    assert session.take_outcomes() == [Outcome("ok", 3, 3, 12)]
    assert (session.unsettled, session.last_seq) == (0, 12)


@pytest.mark.parametrize(
    "line", [Ack(ID, 3, 9), Reject(ID, 2, "gap", True, 4), Welcome(1, ID, 0, 3, 9, 3, 1, 9)], ids=type
)
def test_a_session_that_another_client_used_ends_with_what_was_sent_unknown(line: NodeLine) -> None:
    """Rule: S1."""
    session = connected_session(window_messages=2)
    session.submit(["a", "b", "never sent"], 0.0)
    said(session, 0.0)
    for _ in range(2):  # Whatever a node says of the session afterwards changes nothing.
        if isinstance(line, Welcome):
            session.disconnected()
            session.connected(0.1)
        session.received(line, 0.1)
    assert session.take_outcomes() == [
        Outcome("unknown", 1, 2, reason="another client used this session"),
        Outcome("rejected", 3, 3, reason="another client used this session"),
    ]
    assert session.ended == "another client used this session" and not session.unsettled


def test_an_answer_for_another_session_is_the_nodes_fault() -> None:
    session = connected_session()
    lines: list[NodeLine] = [Ack("other", 1, 1), Reject("other", 1, "gap", True, 1)]
    for line in lines:
        with pytest.raises(FrameError, match="session 'other'"):
            session.received(line, 0.1)


# ---- S5: sending again --------------------------------------------------------------------------


def test_a_reconnect_sends_what_is_not_acknowledged_again_in_order() -> None:
    session = connected_session(line_messages=2)
    session.submit(list("abcd"), 0.0)
    said(session, 0.0)
    session.received(Ack(ID, 1, 1), 0.1)
    session.disconnected()
    assert said(session, 0.2) == []
    session.connected(0.3)
    assert said(session, 0.3) == [hello(0)]
    session.received(welcome(), 0.4)
    assert said(session, 0.4) == [Chat(2, ("b", "c")), Chat(4, ("d",))]


def test_born_is_repeated_as_the_first_welcome_told_it() -> None:
    session = make_session()
    session.connected(0.0)
    said(session, 0.0)
    session.received(welcome(last_seq=40), 0.0)
    session.submit(["a"], 0.0)
    said(session, 0.0)
    session.disconnected()
    session.connected(1.0)
    assert said(session, 1.0) == [hello(40)]
    session.received(welcome(last_seq=70), 1.0)
    assert session.born == 40


def test_a_session_that_has_sent_nothing_is_born_anew_on_each_connection() -> None:
    """Rule: S3."""
    session = make_session()
    for last_seq in (40, 70):
        session.connected(0.0)
        assert said(session, 0.0) == [hello()]
        session.received(welcome(last_seq=last_seq), 0.0)
        assert session.born == last_seq
        session.disconnected()


def test_a_welcome_acknowledges_what_the_node_has_delivered() -> None:
    session = connected_session()
    session.submit(list("abc"), 0.0)
    said(session, 0.0)
    session.disconnected()
    session.connected(1.0)
    said(session, 1.0)
    session.received(welcome(acknowledged=2, acknowledged_seq=7), 1.0)
    assert session.take_outcomes() == [Outcome("ok", 1, 2, 7)]
    assert said(session, 1.0) == [Chat(3, ("c",))]


def test_a_new_leader_means_sending_again_and_no_leader_means_waiting() -> None:
    session = connected_session()
    session.submit(["a"], 0.0)
    assert said(session, 0.0) == [Chat(1, ("a",))]
    session.received(LeaderLine(0, 2), 0.1)
    session.submit(["b"], 0.1)
    assert said(session, 0.2) == []
    session.received(LeaderLine(2, 2), 0.3)
    assert said(session, 0.3) == [Chat(1, ("a", "b"))]
    assert (session.leader, session.term) == (2, 2)


def test_a_gap_sends_again_from_the_expected_number() -> None:
    session = connected_session(line_messages=1)
    session.submit(list("abc"), 0.0)
    said(session, 0.0)
    session.received(Reject(ID, 3, "gap", True, 2), 0.1)
    assert said(session, 0.1) == [Chat(2, ("b",)), Chat(3, ("c",))]


def test_a_burst_of_gaps_repeats_the_window_once_and_once_more_after_a_pause() -> None:
    session = connected_session(line_messages=1, retry_pause=0.02)
    session.submit(["x"] * 100, 0.0)
    said(session, 0.0)
    sent = 0
    for n in range(2, 101):
        session.received(Reject(ID, n, "gap", True, 1), 0.1)
        sent += len(said(session, 0.1))
    assert sent == 100
    assert session.next_deadline() == pytest.approx(0.12)
    session.tick(0.13)
    assert len(said(session, 0.13)) == 100


def test_an_acknowledgement_ends_a_repetition_that_is_due() -> None:
    session = connected_session()
    session.submit(list("ab"), 0.0)
    said(session, 0.0)
    session.received(Reject(ID, 1, "no_leader", True, 0), 0.1)
    assert said(session, 0.1) == [] and session.refused == "no_leader"
    session.received(Ack(ID, 2, 2), 0.11)
    session.tick(10.0)
    assert [line for line in said(session, 10.0) if isinstance(line, Chat)] == []


def test_a_refusal_without_a_leader_is_repeated_after_a_growing_pause() -> None:
    session = connected_session(retry_pause=0.02, deadline=1000, patience=1000)
    session.submit(["a"], 0.0)
    said(session, 0.0)
    now, pauses = 0.1, []
    for _ in range(8):
        session.received(Reject(ID, 1, "no_leader", True, 0), now)
        at = session.next_deadline()
        assert said(session, now) == []
        pauses.append(at - now)
        now = at
        session.tick(now)
        assert said(session, now) == [Chat(1, ("a",))]
    assert pauses == sorted(pauses)
    assert pauses[0] == pytest.approx(0.02) and pauses[-1] == pytest.approx(1.0)


def test_silence_sends_again_after_the_retry_interval() -> None:
    session = connected_session()
    session.submit(["a"], 0.0)
    said(session, 0.0)
    session.tick(0.99)
    assert said(session, 0.99) == []
    assert session.next_deadline() == 1.0
    session.tick(1.0)
    assert said(session, 1.0) == [Chat(1, ("a",))]


def test_a_status_that_knows_another_leader_counts_as_its_announcement() -> None:
    session = connected_session()
    session.submit(["a"], 0.0)
    said(session, 0.0)
    session.received(Status(1, "follower", 2, 2, 5, 5, 5, False, 1.0, 1, (PeerStatus(2, True, False, 0),), {}), 0.1)
    assert said(session, 0.1) == [Chat(1, ("a",))]
    assert (session.leader, session.last_seq) == (2, 5)


# ---- deadlines and ends -------------------------------------------------------------------------


def test_past_its_deadline_a_message_is_unknown_and_a_late_ack_changes_nothing() -> None:
    session = connected_session(deadline=10.0)
    session.submit(["a"], 0.0)
    said(session, 0.0)
    session.tick(9.9)
    assert session.take_outcomes() == []
    session.tick(10.2)
    assert session.take_outcomes() == [Outcome("unknown", 1, 1, reason="no answer within 10 s")]
    session.received(Ack(ID, 1, 1), 10.3)
    assert session.take_outcomes() == []


def test_an_unknown_message_is_sent_again_only_when_a_later_one_needs_it() -> None:
    session = connected_session(deadline=1.5, patience=100)
    session.submit(["a"], 0.0)
    said(session, 0.0)
    session.tick(2.0)
    session.tick(50.0)
    assert [line for line in said(session, 50.0) if isinstance(line, Chat)] == []
    session.submit(["b"], 60.0)
    session.tick(60.0)
    assert said(session, 60.0) == [Chat(1, ("a", "b"))]
    session.received(Ack(ID, 2, 2), 60.1)
    assert [(o.kind, o.first, o.last) for o in session.take_outcomes()] == [("unknown", 1, 1), ("ok", 2, 2)]


def test_many_messages_of_one_moment_share_one_deadline() -> None:
    session = make_session()
    for at in range(1000):
        session.submit(["a"], at / 100_000)
    session.tick(40.0)
    assert len(session.take_outcomes()) <= 2
    assert session.next_deadline() == NEVER


def test_an_expired_session_leaves_what_was_sent_twice_unknown_and_rejects_the_rest() -> None:
    """Rule: S3."""
    session = connected_session(window_messages=3)
    session.submit(list("abcde"), 0.0)
    said(session, 0.0)
    session.received(Ack(ID, 1, 1), 0.1)
    session.received(LeaderLine(2, 2), 0.1)
    said(session, 0.1)
    session.received(Reject(ID, 2, "expired", False), 0.2)
    assert [(o.kind, o.first, o.last) for o in session.take_outcomes()] == [
        ("ok", 1, 1),
        ("unknown", 2, 4),
        ("rejected", 5, 5),
    ]
    assert session.ended == "session expired"
    assert session.submit(["f"], 0.3) == 6
    assert [(o.kind, o.first, o.last) for o in session.take_outcomes()] == [("rejected", 6, 6)]
    assert said(session, 0.3) == []


def test_what_an_expired_session_sent_once_was_certainly_not_ordered() -> None:
    """Rule: S3, S5. The session was idle until the table forgot it; the message before may have been ordered."""
    session = connected_session(line_messages=1)
    session.submit(list("abcd"), 0.0)
    said(session, 0.0)
    session.received(Ack(ID, 1, 1), 0.1)
    session.received(Reject(ID, 3, "expired", False), 0.2)
    assert [(o.kind, o.first, o.last) for o in session.take_outcomes()] == [
        ("ok", 1, 1),
        ("unknown", 2, 2),
        ("rejected", 3, 4),
    ]


def test_an_invalid_message_rejects_itself_and_all_behind_it_but_nothing_before() -> None:
    session = connected_session(line_messages=2)
    session.submit(list("abcdef"), 0.0)
    said(session, 0.0)
    session.received(Reject(ID, 3, "invalid", False), 0.1)
    assert session.take_outcomes() == [Outcome("rejected", 3, 6, reason="invalid")]
    session.received(Reject(ID, 5, "gap", True, 3), 0.1)
    session.received(Ack(ID, 2, 2), 0.2)
    assert session.take_outcomes() == [Outcome("ok", 1, 2, 2)]


def test_an_invalid_message_that_was_sent_twice_is_unknown() -> None:
    session = connected_session()
    session.submit(["a"], 0.0)
    said(session, 0.0)
    session.received(LeaderLine(2, 2), 0.1)
    said(session, 0.1)
    session.received(Reject(ID, 1, "invalid", False), 0.2)
    assert session.take_outcomes() == [Outcome("unknown", 1, 1, reason="invalid")]


def test_closing_rejects_what_was_never_sent_and_leaves_the_rest_unknown() -> None:
    session = connected_session(window_messages=1)
    session.submit(list("ab"), 0.0)
    said(session, 0.0)
    session.close("client closed")
    assert [(o.kind, o.first, o.last) for o in session.take_outcomes()] == [("unknown", 1, 1), ("rejected", 2, 2)]
    session.close("again")
    assert session.take_outcomes() == []


# ---- a node that is of no use -------------------------------------------------------------------


def test_a_node_that_does_not_answer_hello_is_given_up() -> None:
    session = make_session(patience=3.0)
    session.connected(5.0)
    said(session, 5.0)
    assert not session.gave_up(7.9) and session.next_deadline() == 8.0
    assert session.gave_up(8.0)


def test_a_node_that_acknowledges_nothing_is_given_up_and_one_that_does_is_not() -> None:
    session = connected_session(patience=3.0)
    session.submit(list("ab"), 1.0)
    said(session, 1.0)
    session.received(Ack(ID, 1, 1), 3.5)
    assert not session.gave_up(4.5)
    assert session.gave_up(6.5)


def test_a_message_that_passes_its_deadline_does_not_renew_the_patience_and_an_acknowledgement_does() -> None:
    session = connected_session(patience=3.0, deadline=0.5, keepalive=1000)
    for first, acknowledged in ((10.0, 0), (110.0, 3)):
        if acknowledged:
            session.received(Ack(ID, acknowledged, 3), first - 1.0)
        for now in (first, first + 1.0):
            session.submit(["a"], now)
            said(session, now)
            assert not session.gave_up(now)
            session.tick(now + 1.0)
            assert session.take_outcomes()[-1].kind == "unknown"
        session.submit(["a"], first + 50.0)  # The time without messages does not count.
        said(session, first + 50.0)
        assert not session.gave_up(first + 50.9) and session.gave_up(first + 51.0)
        session.tick(first + 51.0)


def test_a_node_without_a_leader_is_given_up_only_while_a_message_waits() -> None:
    session = make_session(patience=3.0)
    session.connected(0.0)
    said(session, 0.0)
    session.received(welcome(leader=0), 0.0)
    session.received(LeaderLine(0, 2), 50.0)
    assert not session.gave_up(51.0)
    session.submit(["a"], 51.0)
    assert not session.gave_up(53.9) and session.gave_up(54.0)


def test_an_idle_node_is_asked_and_one_that_does_not_answer_is_given_up() -> None:
    session = connected_session(keepalive=2.0, patience=3.0)
    assert session.next_deadline() == 2.0
    session.tick(2.0)
    assert said(session, 2.0) == [StatusRequest()]
    assert not session.gave_up(4.9) and session.gave_up(5.0)
    session.received(LeaderLine(3, 1), 4.9)
    assert not session.gave_up(5.0) and session.next_deadline() == pytest.approx(6.9)


def no_leader(up: int, term: int = 1) -> Status:
    peers = tuple(PeerStatus(node, node <= up, False, 0) for node in (2, 3))
    return Status(1, "follower", term, 0, 0, 0, 0, peers=peers)


def test_a_node_without_a_leader_is_asked_who_is_up_and_kept_where_there_is_no_other() -> None:
    session = connected_session(keepalive=2.0, patience=3.0, deadline=1000)
    session.addresses = 1
    session.submit(["a"], 0.0)
    said(session, 0.0)
    session.received(LeaderLine(0, 1), 1.0)
    now, asked = 1.0, []
    for term in range(1, 50):
        now = session.next_deadline()
        session.tick(now)
        assert not session.gave_up(now)
        assert said(session, now) == [StatusRequest()]
        asked.append(now)
        session.received(no_leader(1 + term % 2, term), now)
        assert session.members == (1 + term % 2, 3)
    assert asked[0] == 1.25 and min(b - a for a, b in itertools.pairwise(asked)) == 2.0
    session.received(LeaderLine(2, 60), now)
    assert said(session, now) == [Chat(1, ("a",))]
    assert session.members is None


def test_a_node_without_a_leader_that_falls_silent_is_left_also_where_there_is_no_other() -> None:
    session = connected_session(keepalive=2.0, patience=3.0)
    session.addresses = 1
    session.submit(["a"], 0.0)
    session.received(LeaderLine(0, 1), 0.0)
    session.tick(0.25)
    assert said(session, 0.25) == [StatusRequest()]
    assert not session.gave_up(3.2) and session.gave_up(3.25)


def test_a_node_that_acknowledges_nothing_but_answers_is_kept_where_there_is_no_other() -> None:
    session = connected_session(keepalive=2.0, patience=3.0, retry_interval=100)
    session.addresses = 1
    session.submit(["a"], 0.0)
    said(session, 0.0)
    for now in (2.0, 4.0, 6.0):
        assert session.next_deadline() == now
        session.tick(now)
        assert said(session, now) == [StatusRequest()]
        session.received(Status(1, "follower", 1, 3, 0, 0, 0), now)
    session.tick(8.0)
    assert not session.gave_up(10.9) and session.gave_up(11.0)


def test_the_patience_with_nodes_without_a_leader_doubles_when_all_were_tried_until_there_is_one() -> None:
    session = make_session(patience=1.0, keepalive=2.0, deadline=1000)
    session.addresses = 2
    session.submit(["a"], 0.0)
    waits = []
    for leader in (0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0):
        session.connected(0.0)
        said(session, 0.0)
        session.received(welcome(leader), 0.0)
        if leader:
            session.received(LeaderLine(0, 2), 0.0)
        at = 1.0
        while not session.gave_up(at):
            session.received(no_leader(1), at)
            at += 1.0
        waits.append(at)
        session.disconnected()
    assert waits == [1, 1, 2, 2, 4, 4, 8, 8, 8, 1, 1, 2]


def test_silence_of_the_readers_own_making_is_excused() -> None:
    session = connected_session(patience=3.0)
    session.submit(["a"], 0.0)
    said(session, 0.0)
    session.excuse(10.0)
    assert not session.gave_up(10.0)


def test_an_error_line_is_kept_for_people() -> None:
    session = connected_session()
    session.received(Problem("a line of 9 bytes, allowed 8"), 0.1)
    assert session.problem == "a line of 9 bytes, allowed 8"


# ---- S6: subscriptions --------------------------------------------------------------------------


def test_a_subscriber_keeps_its_place_over_a_reconnect() -> None:
    session = make_session()
    session.subscribe(5)
    session.connected(0.0)
    said(session, 0.0)
    session.received(welcome(last_seq=9), 0.0)
    assert said(session, 0.0) == [Subscribe(5)]
    session.received(read_run(message_lines(5, 7)), 0.1)
    session.disconnected()
    session.connected(1.0)
    said(session, 1.0)
    session.received(welcome(last_seq=9), 1.0)
    assert said(session, 1.0) == [Subscribe(8)]
    session.received(read_run(message_lines(6, 9)), 1.1)
    shown = session.take_shown()
    assert b"".join(run.lines for run in shown) == message_lines(5, 9)
    assert [(run.first, run.last) for run in shown] == [(5, 7), (8, 9)]
    assert (session.place, session.last_seq) == (10, 9)


def test_what_was_shown_already_is_not_shown_again() -> None:
    session = connected_session()
    session.subscribe(1)
    session.received(read_run(message_lines(1, 3)), 0.1)
    session.received(read_run(message_lines(2, 3)), 0.1)
    assert len(session.take_shown()) == 1


def test_a_gap_in_what_is_shown_is_the_nodes_fault() -> None:
    session = connected_session()
    session.subscribe(1)
    with pytest.raises(FrameError, match="from seq_no=2 on, allowed from 1 on"):
        session.received(read_run(message_lines(2, 3)), 0.1)


def test_messages_without_a_subscription_are_the_nodes_fault() -> None:
    with pytest.raises(FrameError, match="allowed from nowhere on"):
        connected_session().received(read_run(message_lines(1, 1)), 0.1)


def test_a_subscription_from_now_on_starts_behind_the_first_welcome() -> None:
    session = make_session()
    session.subscribe(None)
    for last_seq in (6, 9):
        session.connected(0.0)
        said(session, 0.0)
        session.received(welcome(last_seq=last_seq), 0.0)
        assert said(session, 0.0) == [Subscribe(7)]
        session.disconnected()


# ---- the stream of bytes ------------------------------------------------------------------------


def stream_of_all() -> tuple[bytes, list[object]]:
    pieces: list[object] = [
        welcome(),
        Shown(1, 3, message_lines(1, 3)),
        Ack(ID, 2, 2),
        LeaderLine(2, 4),
        Shown(4, 4, message_lines(4, 4)),
        Reject(ID, 3, "gap", True, 2),
    ]
    return b"".join(p.lines if isinstance(p, Shown) else encode_line(p) for p in pieces), pieces  # type: ignore[arg-type]


def joined(pieces: Sequence[object]) -> list[object]:
    """Runs that follow each other as one: a cut of the stream may part them."""
    result: list[object] = []
    for piece in pieces:
        if isinstance(piece, Shown) and result and isinstance(before := result[-1], Shown):
            result[-1] = Shown(before.first, piece.last, before.lines + piece.lines)
        else:
            result.append(piece)
    return result


def test_a_stream_cut_at_every_byte_means_the_same() -> None:
    data, pieces = stream_of_all()
    for cut in range(len(data) + 1):
        stream = NodeStream()
        assert joined([*stream.feed(data[:cut]), *stream.feed(data[cut:])]) == pieces


def test_a_stream_in_single_bytes_means_the_same() -> None:
    data, pieces = stream_of_all()
    stream = NodeStream()
    assert joined([piece for at in range(len(data)) for piece in stream.feed(data[at : at + 1])]) == pieces


@pytest.mark.parametrize(
    "data",
    [
        message_lines(1, 1) + message_lines(3, 3),
        message_lines(1, 2) + message_lines(2, 2),
        message_lines(2, 2) + message_lines(1, 1),
        b'{"seq_no":x,"term":1}\n',
        b'{"seq_no":0,"term":1}\n',
        b'{"seq_no":5}\n',
        b'{"type":"NOISE"}\n',
        b"GET / HTTP/1.1\n",
        b"\xff\xfe\n",
    ],
)
def test_a_stream_that_no_node_sends_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError):
        list(NodeStream().feed(data))


def test_a_line_without_end_is_refused() -> None:
    stream = NodeStream(max_line=100)
    with pytest.raises(FrameError, match="over 100 bytes"):
        for _ in range(3):
            list(stream.feed(b"x" * 50))


@given(st.integers(1, 50), st.integers(1, 20), st.data())
def test_a_cut_run_is_the_rest_of_the_run(first: int, count: int, data: st.DataObject) -> None:
    last = first + count
    start = data.draw(st.integers(first + 1, last))
    assert cut_run(read_run(message_lines(first, last)), start) == read_run(message_lines(start, last))


# ---- a hostile cluster --------------------------------------------------------------------------


@dataclass
class Link:
    """Submits on their way from one node to the leader; `client` is the connection that they came by."""

    lines: list[tuple[int, Chat]] = field(default_factory=list)


class ClusterModel:
    """S2 to S4 of a cluster whose links lose and delay, whose leaders lose what is not committed.

    Node 1 refuses payloads that contain "BAD", node 2 takes them: a rejection by one node is not one by all.
    """

    def __init__(self) -> None:
        self.log: list[tuple[int, str]] = []
        """(n, payload) in order; seq_no is the index + 1."""
        self.committed = 0
        self.expired = False
        self.leader = 3
        self.term = 1
        self.links = {1: Link(), 2: Link()}
        self.delivered = {1: 0, 2: 0}

    def last_n(self, upto: int) -> int:
        return self.log[upto - 1][0] if upto else 0

    def order(self, chat: Chat) -> tuple[str, int] | None:
        """Take a Submit as the leader does; the refusal (reason, expected n) if it is one."""
        if not self.leader:
            return "no_leader", 0
        if self.expired:
            return "expired", 0
        last = self.last_n(len(self.log))
        if chat.first > last + 1:
            return "gap", last + 1
        self.log += list(enumerate(chat.payloads, chat.first))[last + 1 - chat.first :]
        return None

    def change_leader(self, kept: int, leader: int) -> None:
        """What is not committed may be lost; kept: how much of it survives."""
        del self.log[self.committed + kept :]
        self.leader = leader
        self.term += 1


class SessionAgainstCluster(RuleBasedStateMachine):
    """Any interleaving of losses, leaders, reconnects and time; see the invariants at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = ClusterModel()
        self.session = Session(
            7, TOKEN, SessionSettings(deadline=200.0, window_messages=12, line_messages=3, patience=3.0)
        )
        self.now = 100.0
        self.payloads: list[str] = []
        self.outcomes: dict[int, Outcome] = {}
        self.node = 0
        self.connection = 0
        self.upstream: list[bytes] = []
        self.downstream: list[NodeLine] = []
        self.reach = 0
        """Last n sent on this connection."""
        self.acknowledged = 0

    @initialize()
    def begin(self) -> None:
        self.connect(1)

    # What the client's surroundings do.

    @rule(texts=st.lists(st.sampled_from(["a", "b", "BAD"]) | st.text(max_size=3), min_size=1, max_size=5))
    def submit(self, texts: list[str]) -> None:
        texts = [text + str(len(self.payloads) + i) for i, text in enumerate(texts)]
        assert self.session.submit(texts, self.now) == len(self.payloads) + 1
        self.payloads += texts
        self.collect()

    @precondition(lambda self: self.node)
    @rule(count=st.integers(1, 6))
    def client_writes(self, count: int) -> None:
        for _ in range(count):
            line = self.session.next_line(self.now)
            if line is None:
                break
            self.upstream.append(line)
            chat = decode_client_line(line[:-1])
            if isinstance(chat, Chat):
                self.check_chat(chat)

    def check_chat(self, chat: Chat) -> None:
        """One payload per number for ever; no hole within a connection, save what is acknowledged."""
        assert chat.payloads, "an empty CHAT"
        last = chat.first + len(chat.payloads) - 1
        assert list(chat.payloads) == self.payloads[chat.first - 1 : last], "a number was used twice"
        assert chat.first <= max(self.reach, self.acknowledged) + 1, "a hole"
        assert last - self.acknowledged <= 12, "over the window"
        self.reach = last

    @precondition(lambda self: not self.node)
    @rule(node=st.integers(1, 2))
    def connect(self, node: int) -> None:
        self.node, self.reach = node, 0
        self.connection += 1
        self.session.connected(self.now)

    @precondition(lambda self: self.node)
    @rule()
    def disconnect(self) -> None:
        self.node = 0
        self.upstream.clear()
        self.downstream.clear()
        self.session.disconnected()

    @precondition(lambda self: self.upstream)
    @rule(count=st.integers(1, 6))
    def node_reads(self, count: int) -> None:
        for _ in range(min(count, len(self.upstream))):
            line = decode_client_line(self.upstream.pop(0)[:-1])
            if isinstance(line, Hello):
                self.welcome()
            elif isinstance(line, Chat):
                self.take_chat(line)
            elif isinstance(line, StatusRequest):
                c = self.cluster
                self.downstream.append(Status(self.node, "follower", c.term, c.leader, 0, 0, 0, False, 1.0, 1, (), {}))

    def welcome(self) -> None:
        cluster = self.cluster
        seq_no = cluster.delivered[self.node]
        n = cluster.last_n(seq_no)
        self.downstream.append(
            Welcome(self.node, ID, 0, n, seq_no, cluster.leader, cluster.term, seq_no if self.node == 1 else 0)
        )

    def take_chat(self, chat: Chat) -> None:
        delivered = self.cluster.delivered[self.node]
        if self.node == 1 and any("BAD" in payload for payload in chat.payloads):
            self.downstream.append(Reject(ID, chat.first, "invalid", False))
        elif chat.first + len(chat.payloads) - 1 <= self.cluster.last_n(delivered):
            self.downstream.append(Ack(ID, self.cluster.last_n(delivered), delivered))
        else:
            self.cluster.links[self.node].lines.append((self.connection, chat))

    @rule(node=st.integers(1, 2), count=st.integers(1, 6), lost=st.booleans())
    def link_moves(self, node: int, count: int, lost: bool) -> None:
        for _ in range(min(count, len(self.cluster.links[node].lines))):
            connection, chat = self.cluster.links[node].lines.pop(0)
            refusal = None if lost else self.cluster.order(chat)
            if refusal is not None and connection == self.connection and self.node:
                reason, expected = refusal
                self.downstream.append(Reject(ID, chat.first, reason, reason != "expired", expected))

    @rule(count=st.integers(1, 9))
    def commit(self, count: int) -> None:
        if self.cluster.leader:
            self.cluster.committed = min(len(self.cluster.log), self.cluster.committed + count)

    @rule(node=st.integers(1, 2))
    def deliver(self, node: int) -> None:
        before, now = self.cluster.delivered[node], self.cluster.committed
        if now > before:
            self.cluster.delivered[node] = now
            if node == self.node:
                self.downstream.append(Ack(ID, self.cluster.last_n(now), now))

    @rule(kept=st.integers(0, 4), leader=st.sampled_from([0, 1, 2, 3]), told=st.booleans())
    def change_leader(self, kept: int, leader: int, told: bool) -> None:
        self.cluster.change_leader(kept, leader)
        if told and self.node:
            self.downstream.append(LeaderLine(leader, self.cluster.term))

    @precondition(lambda self: self.downstream)
    @rule(count=st.integers(1, 6))
    def client_reads(self, count: int) -> None:
        for _ in range(min(count, len(self.downstream))):
            line = self.downstream.pop(0)
            if isinstance(line, Ack):
                self.acknowledged = max(self.acknowledged, line.n)
            if isinstance(line, Welcome) and line.acknowledged_seq:
                self.acknowledged = max(self.acknowledged, line.acknowledged)
            if isinstance(line, Reject) and line.expected:
                self.reach = max(self.reach, line.expected - 1)
            self.session.received(line, self.now)
        self.collect()

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.3, 1.0, 1.0, 3.0, 201.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.session.tick(self.now)
        self.collect()

    @precondition(lambda self: self.cluster.log)
    @rule(sure=st.integers(0, 3))
    def expire(self, sure: int) -> None:
        self.cluster.expired = self.cluster.expired or sure == 3

    @precondition(lambda self: self.node)
    @rule(counts=st.lists(st.integers(0, 6), min_size=6, max_size=6))
    def all_moves_on(self, counts: list[int]) -> None:
        """Each station of a message's way takes a step, so that short examples reach its end."""
        self.client_writes(counts[0])
        self.node_reads(counts[1])
        self.link_moves(self.node, counts[2], False)
        self.commit(counts[3])
        if counts[4]:
            self.deliver(self.node)
        self.client_reads(counts[5])

    # What must hold.

    def collect(self) -> None:
        for outcome in self.session.take_outcomes():
            assert outcome.first <= outcome.last
            for n in range(outcome.first, outcome.last + 1):
                assert n not in self.outcomes, f"two outcomes of n={n}: {self.outcomes[n]} {outcome}"
                assert 1 <= n <= len(self.payloads)
                self.outcomes[n] = outcome
                if outcome.kind == "ok":
                    assert self.is_committed(n)
            if outcome.seq_no:
                assert self.cluster.log[outcome.seq_no - 1][0] == outcome.last

    def is_committed(self, n: int) -> bool:
        return self.cluster.last_n(self.cluster.committed) >= n

    @invariant()
    def the_log_holds_each_message_once_in_order(self) -> None:
        expected = list(enumerate(self.payloads[: len(self.cluster.log)], 1))
        assert self.cluster.log == expected

    @invariant()
    def every_message_is_settled_or_counted_as_unsettled(self) -> None:
        assert len(self.outcomes) + self.session.unsettled == len(self.payloads)

    @invariant()
    def what_was_rejected_was_not_ordered(self) -> None:
        for n, _ in self.cluster.log:
            assert n not in self.outcomes or self.outcomes[n].kind != "rejected", n

    @invariant()
    def the_next_deadline_is_not_in_the_past_after_a_tick(self) -> None:
        self.session.tick(self.now)
        self.collect()
        assert self.session.next_deadline() > self.now or self.session.gave_up(self.now)

    def teardown(self) -> None:
        """Heal: every copy still on its way arrives, and every message gets its outcome; all is ok if time allows."""
        if not self.cluster.leader:
            self.change_leader(1, 3, True)
        for _ in range(400):
            if self.node and self.session.gave_up(self.now):
                self.disconnect()
            if not self.node:
                self.connect(2)
            for node in (1, 2):
                self.link_moves(node, 6, False)
            self.all_moves_on([6] * 6)
            self.time_passes(0.1)
            self.what_was_rejected_was_not_ordered()
            if not self.session.unsettled and not any(link.lines for link in self.cluster.links.values()):
                break
        assert len(self.outcomes) == len(self.payloads)
        self.the_log_holds_each_message_once_in_order()
        healed = self.now - 200 < 100 and not self.session.ended
        assert not healed or all(outcome.kind == "ok" for outcome in self.outcomes.values())


TestSessionAgainstCluster = SessionAgainstCluster.TestCase
TestSessionAgainstCluster.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


STEPS = {
    "submit": 5,
    "client_writes": 5,
    "node_reads": 5,
    "link_moves": 7,
    "commit": 4,
    "deliver": 4,
    "client_reads": 6,
    "time_passes": 3,
    "all_moves_on": 3,
    "disconnect": 0.5,
    "connect": 2,
    "change_leader": 0.7,
    "expire": 0.2,
}
"""How often a walk takes each step, relative to the others."""


def walk(seed: int, steps: int = 120) -> SessionAgainstCluster:
    """One random walk of the state machine: gets deeper than hypothesis does, and a seed repeats it."""
    rng = random.Random(seed)
    world = SessionAgainstCluster()
    world.begin()
    names, weights = list(STEPS), list(STEPS.values())
    bad = rng.choice(["BAD", "good"])
    for name in rng.choices(names, weights, k=steps):
        up = bool(world.node)
        if name == "submit":
            world.submit([rng.choice(["a", "b", "ccc", bad if rng.random() < 0.1 else "d"])] * rng.randint(1, 5))
        elif name == "link_moves":
            world.link_moves(rng.randint(1, 2), rng.randint(1, 6), rng.random() < 0.15)
        elif name in ("client_writes", "node_reads", "commit", "client_reads"):
            if up or name == "commit":
                getattr(world, name)(rng.randint(1, 6))
        elif name in ("deliver", "connect"):
            if not (up and name == "connect"):
                getattr(world, name)(rng.randint(1, 2))
        elif name == "time_passes":
            world.time_passes(rng.choice([0.01, 0.02, 0.1, 0.3, 1.0] if rng.random() < 0.98 else [201.0]))
        elif name == "change_leader":
            world.change_leader(rng.randint(0, 4), rng.randint(0, 3), rng.random() < 0.8)
        elif name == "all_moves_on" and up:
            world.all_moves_on([rng.randint(0, 6) for _ in range(6)])
        elif name == "disconnect" and up:
            world.disconnect()
        elif name == "expire" and world.cluster.log:
            world.expire(3)
        check_world(world)
    world.teardown()
    return world


def check_world(world: SessionAgainstCluster) -> None:
    world.the_log_holds_each_message_once_in_order()
    world.every_message_is_settled_or_counted_as_unsettled()
    world.what_was_rejected_was_not_ordered()
    world.the_next_deadline_is_not_in_the_past_after_a_tick()


def test_random_walks_keep_every_promise_and_reach_every_outcome() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(400):
        try:
            world = walk(seed)
        except Exception as error:
            raise AssertionError(f"walk({seed}) fails") from error
        kinds.update((outcome.kind, outcome.reason)[bool(outcome.reason)] for outcome in world.outcomes.values())
    assert set(kinds) == {"ok", "invalid", "session expired", "no answer within 200 s"}
    assert all(count >= 100 for count in kinds.values()), kinds


# ---- the client token ---------------------------------------------------------------------------


def test_the_token_is_shown_in_every_hello() -> None:
    session = make_session(client_token="secret")
    session.connected(0.0)
    assert said(session, 0.0) == [Hello(101, ID, client_token="secret", session_token=TOKEN)]


def test_a_refused_token_ends_the_session_and_says_so() -> None:
    session = make_session(client_token="wrong")
    session.submit(["a", "b"], 0.0)
    session.connected(0.0)
    said(session, 0.0)
    session.received(Reject(ID, 0, TOKEN_REFUSED, False), 0.1)
    assert session.ended == session.problem == "the client token is wrong or missing"
    assert session.take_outcomes() == [Outcome("rejected", 1, 2, reason="the client token is wrong or missing")]
