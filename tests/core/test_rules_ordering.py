"""Rules R1 to R5, C1, C2, D1 and P1 of docs/protocol.md: ordering, replication, commit, delivery."""

from __future__ import annotations

import pytest

from nodeproc.core import catchup
from nodeproc.core.effects import Truncate
from nodeproc.core.events import Buffered, CatchUpRequested, CaughtUp, Delivered, DeliveredFromBuffer
from nodeproc.core.messages import (
    START,
    Append,
    Appended,
    Batch,
    CatchUp,
    Commit,
    Heartbeat,
    HeartbeatAck,
    Known,
    LinkDown,
    LinkUp,
    OlderMarks,
    Position,
    Record,
    Resume,
    Vote,
    VoteRequest,
)
from tests.core.cluster import Cluster
from tests.core.single import Single, appends, events, peers_sent, sent, stretch, written

AT_TWO = stretch(1, 0, 1, 1)
"""A log of term 1 with two messages in two batches."""


def follower(**settings: object) -> Single:
    """Node 2 with an empty log follows node 1 in term 1 and has its RESUME."""
    single = Single(term=1, **settings)  # type: ignore[arg-type]
    single.follow(1, 1)
    return single


def leader(caught_up: tuple[int, ...] = (1, 3), **settings: object) -> Single:
    """Node 2 leads term 1; these peers have its mark durably."""
    single = Single(**settings)  # type: ignore[arg-type]
    single.lead()
    for peer in caught_up:
        single.caught_up(peer)
    return single


# ---- R1 catch-up ------------------------------------------------------------------------------------


def test_a_follower_says_its_marks_and_its_last_seq_no_when_it_meets_a_new_leader() -> None:
    """Rule: R1."""
    log = stretch(1, 0, 3) + stretch(4, 3, 2)
    single = Single(log=log)
    (asked,) = sent(single.give(1, Heartbeat(6, 0, START)), CatchUp, to=1)
    assert (asked.term, asked.marks, asked.last_seq) == (6, ((1, 0), (4, 3)), 5)
    (again,) = sent(single.give(3, Heartbeat(7, 0, START)), CatchUp, to=3)
    assert again.request != asked.request


def test_a_follower_says_no_mark_below_that_of_its_last_delivered_message() -> None:
    """Rule: R1."""
    log = [record for term in range(1, 500) for record in stretch(term, term - 1, 1)]
    single = Single(log=log, delivered=497)
    (asked,) = sent(single.give(1, Heartbeat(600, 0, START)), CatchUp, to=1)
    assert asked.marks == ((497, 496), (498, 497), (499, 498)) and not asked.older


@pytest.mark.patches
def test_a_leader_asks_for_older_marks_until_one_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: R1."""
    monkeypatch.setattr(catchup, "MARKS_AT_ONCE", 3)
    common = stretch(1, 0, 2) + stretch(2, 2)
    asking = Single(log=common + [record for term in range(10, 17) for record in stretch(term, 2)])
    leader = Single(log=common)
    leader.lead()
    asking.give(1, Heartbeat(20, 0, START))
    term = leader.state.term
    said: list[tuple[int, ...]] = []
    while not (answers := sent(leader.all, Resume, to=1)):
        question = sent(asking.all, CatchUp, to=1)[-1]
        said.append(tuple(mark for mark, _ in question.marks))
        fx = leader.give(1, CatchUp(term, question.marks, question.last_seq, question.request, question.older))
        for wanted in sent(fx, OlderMarks, to=1):
            asking.give(1, OlderMarks(20, wanted.up_to, wanted.request - 1))
            assert sent(asking.all, CatchUp, to=1)[-1] == question, "one that answers another question is passed over"
            asking.give(1, OlderMarks(20, wanted.up_to, wanted.request))
    assert said == [(14, 15, 16), (12, 13, 14), (10, 11, 12), (1, 2, 10)]
    assert answers[-1].fork == Position(2, 2)


def test_a_follower_whose_last_mark_is_of_this_term_asks_too() -> None:
    """Rule: R1."""
    single = Single(log=AT_TWO)
    assert sent(single.give(1, Heartbeat(1, 0, START)), CatchUp, to=1)


@pytest.mark.parametrize("outgoing", [True, False])
def test_a_follower_asks_again_over_a_new_link_in_either_direction(outgoing: bool) -> None:
    """Rule: R1."""
    single = follower()
    assert sent(single.give(1, LinkUp(Known("disk-1"), False, outgoing)), CatchUp, to=1)
    assert not sent(single.give(3, LinkUp(Known("disk-3"), False, outgoing)), CatchUp)


def test_a_catch_up_that_comes_before_the_way_back_is_open_is_answered_as_it_opens() -> None:
    """The follower's question and the news of the leader's link come over two connections. Rule: R1."""
    single = leader()
    term = single.state.term
    single.give(3, LinkDown())
    single.give(3, LinkUp(Known("disk-3"), False, False))
    assert not sent(single.give(3, CatchUp(term, (), 0, 7)), Resume)
    assert sent(single.give(3, LinkUp(Known("disk-3"), False, True)), Resume, to=3) == [Resume(term, START, 7)]
    assert not sent(single.give(3, LinkUp(Known("disk-3"), False, True)), Resume), "once"
    single.give(3, LinkDown())
    single.give(3, CatchUp(term, (), 0, 8))
    single.give(3, LinkUp(Known("disk-3"), False, False))
    assert not sent(single.give(3, LinkUp(Known("disk-3"), False, True)), Resume), "over a link that is gone"


def test_a_follower_asks_again_when_no_answer_comes() -> None:
    """Rule: R1."""
    single = Single(answer_timeout=0.1, election_timeout=5.0)
    single.give(1, Heartbeat(1, 0, START))
    assert not sent(single.wait(0.19), CatchUp)
    assert len(sent(single.wait(0.02), CatchUp, to=1)) == 1


def test_a_follower_waits_twice_as_long_for_each_further_answer_until_one_comes() -> None:
    """The answer can be queued behind many records. Rule: R1, R2."""
    single = Single(answer_timeout=0.1, election_timeout=1000.0)
    single.give(1, Heartbeat(1, 0, START))
    for patience in (0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 6.4):
        assert not sent(single.wait(patience - 0.01), CatchUp)
        (asked,) = sent(single.wait(0.01 + 1e-6), CatchUp, to=1)
    single.give(1, Resume(1, START, asked.request))
    assert not sent(single.wait(50.0), CatchUp)
    single.give(1, LinkUp(Known("disk-1"), False, True))
    assert sent(single.wait(0.21), CatchUp, to=1), "as at first again"


def test_a_hole_before_resume_causes_no_second_request() -> None:
    """Records sent for an older request arrive first. Rule: R1, R4."""
    single = Single(answer_timeout=0.2, election_timeout=5.0)
    single.give(1, Heartbeat(1, 0, START))
    single.give(1, appends(1, START, AT_TWO)[2])
    assert not sent(single.wait(0.39), CatchUp)
    assert sent(single.wait(0.02), CatchUp, to=1)


def test_a_hole_that_stays_makes_a_follower_ask_again() -> None:
    """Rule: R1, R4."""
    single = follower()
    single.give(1, appends(1, START, AT_TWO)[2])
    assert not events(single.wait(0.19), CatchUpRequested)
    assert events(single.wait(0.02), CatchUpRequested)


def test_a_hole_without_later_records_is_detected_by_the_heartbeat() -> None:
    """Rule: R1, F1."""
    single = follower()
    single.give(1, Heartbeat(1, 0, Position(1, 2)))
    assert sent(single.wait(0.21), CatchUp, to=1)


def test_a_follower_that_believes_to_be_served_while_the_leader_waits_for_its_question_asks_again() -> None:
    """The leader saw a new link and the follower did not. Rule: R1, F1."""
    cluster = Cluster(3)
    cluster.run(3)
    cluster.step(3, 1, LinkUp(Known("disk-1"), False, True))
    cluster.submit(3, "s", 1, "a")
    cluster.run(0.5)
    assert cluster.payloads(1) == ["a"]


@pytest.mark.parametrize(
    ("marks", "last_seq", "fork"),
    [
        ((), 0, START),
        (((1, 0), (3, 4)), 6, Position(3, 6)),
        (((1, 0), (3, 4)), 9, Position(3, 8)),
        (((1, 0),), 2, Position(1, 2)),
        (((1, 0),), 4, Position(1, 4)),
        (((1, 0),), 7, Position(1, 4)),
        (((1, 0), (2, 3)), 9, Position(1, 3)),
        (((1, 0), (2, 4)), 9, Position(1, 4)),
        (((2, 0),), 9, START),
        (((1, 0), (3, 4), (4, 8)), 8, Position(4, 8)),
    ],
)
def test_the_fork_is_where_the_highest_common_term_ends_first(
    marks: tuple[tuple[int, int], ...], last_seq: int, fork: Position
) -> None:
    """The leader's log: term 1 up to seq_no 4, term 3 up to 8, its own mark at 8. Rule: R1."""
    single = Single(log=stretch(1, 0, 2, 2) + stretch(3, 4, 2, 2))
    single.lead()
    fx = single.give(1, CatchUp(4, marks, last_seq, 77))
    assert sent(fx, Resume, to=1) == [Resume(4, fork, 77)]


def test_after_resume_all_records_after_the_fork_follow_verbatim_and_then_new_ones() -> None:
    """Rule: R1, R3."""
    log = stretch(1, 0, 2) + stretch(3, 2, 1)
    single = Single(log=log)
    single.lead()
    fx = single.give(1, CatchUp(4, ((1, 0),), 2, 7))
    records = [record for append in sent(fx, Append, to=1) for record in append.records]
    assert [record.raw for record in records[:2]] == [record.raw for record in log[2:]]
    assert [record.position for record in records] == [Position(3, 2), Position(3, 3), Position(4, 3)]
    assert sent(fx, Append, to=1)[0].previous == Position(1, 2)
    assert events(fx, CaughtUp) == [CaughtUp(1, 3)]
    assert len(sent(single.submit("s", 1, "new"), Append, to=1)) == 1


def test_a_peer_that_has_not_asked_is_sent_no_records() -> None:
    """Rule: R1, R3."""
    single = leader((1,))
    assert peers_sent(single.submit("s", 1, "a"), Append) == [1]
    single.give(1, LinkUp(Known("disk-1"), False, True))
    assert peers_sent(single.submit("s", 2, "b"), Append) == []
    assert not sent(single.give(1, HeartbeatAck(1, Position(1, 1))), Append), "an answer is no question"


# ---- R2 truncation ----------------------------------------------------------------------------------


def test_only_the_resume_that_answers_the_latest_catch_up_is_obeyed() -> None:
    """Rule: R2."""
    single = Single(log=AT_TWO)
    single.give(1, Heartbeat(5, 0, START))
    old = single.request()
    single.give(1, LinkUp(Known("disk-1"), False, True))
    latest = single.request()
    assert old != latest
    assert not single.give(1, Resume(5, START, old)).persist
    assert not single.give(3, Resume(5, START, latest)).persist, "of another sender"
    assert written(single.give(1, Resume(5, START, latest)), Truncate) == [Truncate(START)]
    assert not single.give(1, Resume(5, START, latest)).persist, "once"


def test_a_follower_on_this_term_already_truncates_nothing() -> None:
    """Rule: R2."""
    single = Single(log=AT_TWO)
    fx = single.follow(1, 1, Position(1, 1))
    assert not written(fx, Truncate)
    assert single.state.log.position == Position(1, 2)


@pytest.mark.parametrize(
    ("fork", "end"),
    [
        (Position(1, 2), Position(1, 2)),
        (Position(1, 3), Position(1, 3)),
        (Position(2, 3), Position(2, 3)),
        (Position(3, 4), Position(3, 4)),
        (Position(3, 5), Position(3, 5)),
        (START, START),
    ],
)
def test_the_longest_prefix_not_above_the_fork_is_kept_and_marks_at_the_same_seq_no_are_dropped(
    fork: Position, end: Position
) -> None:
    """Rule: R2."""
    log = stretch(1, 0, 1, 1, 1) + stretch(2, 3) + stretch(3, 3, 1, 1)
    single = Single(log=log)
    single.follow(1, 6, fork)
    assert single.state.log.position == end
    assert [record.position for record in single.state.log.tail] == [r.position for r in log if r.position <= fork]
    assert [mark.position for mark in single.state.log.marks] == [m for m in ((1, 0), (2, 3), (3, 3)) if m <= fork]


@pytest.mark.parametrize("fork", [START, Position(1, 1)])
def test_a_fork_below_the_commit_stops_the_node_and_changes_nothing(fork: Position) -> None:
    """Rule: R2."""
    single = Single(log=AT_TWO, delivered=2)
    single.give(1, Heartbeat(5, 0, START))
    fx = single.give(1, Resume(5, fork, single.request()))
    assert "diverged" in fx.halt
    assert not fx.persist
    assert single.state.log.position == Position(1, 2)


def test_an_fdatasync_begun_before_a_truncation_does_not_count_for_later_records() -> None:
    """Rule: R2, R5."""
    single = Single(log=stretch(1, 0, 1), sync=False)
    single.follow(1, 1)
    for append in appends(1, Position(1, 1), stretch(1, 1, 1, 1)[1:]):
        single.give(1, append)
    begun = single.node.written
    single.give(3, Heartbeat(2, 0, START))
    single.sync()
    single.give(3, Resume(2, Position(1, 1), single.request()))
    for append in appends(2, Position(1, 1), stretch(2, 1, 1, 1)):
        single.give(3, append)
    fx = single.node.persisted(begun, single.now)
    assert not fx.send
    assert single.state.durable == Position(1, 1)
    assert sent(single.sync(), Appended, to=3) == [Appended(2, Position(2, 3))]


# ---- R3 ordering ------------------------------------------------------------------------------------


def test_messages_are_numbered_in_the_order_taken_and_packed_into_one_batch_at_the_end_of_the_turn() -> None:
    """Rule: R3."""
    cluster = Cluster(1)
    cluster.run(1)
    for session, payload in [("s", "a"), ("t", "b"), ("u", "c")]:
        cluster.submit(1, session, 1, payload)
    assert cluster.node(1).next_deadline() <= cluster.now, "the end of the turn is due"
    cluster.settle()
    (batch,) = [r.header for r in cluster.members[1].disk.delivered if isinstance(r.header, Batch)]
    assert (batch.first, batch.last) == (1, 3)
    assert [(line.seq_no, line.payload) for line in cluster.lines(1)] == [(1, "a"), (2, "b"), (3, "c")]


def test_a_batch_has_a_limit_and_the_next_takes_the_rest() -> None:
    """Rule: R3."""
    cluster = Cluster(1, limits={"batch_max_messages": 2})
    cluster.run(1)
    for n in range(1, 6):
        cluster.submit(1, "s", n, f"m{n}")
    cluster.settle()
    batches = [r.header for r in cluster.members[1].disk.delivered if isinstance(r.header, Batch)]
    assert [(b.first, b.last) for b in batches] == [(1, 2), (3, 4), (5, 5)]


@pytest.mark.parametrize(("size", "batches"), [(40, [2, 2, 1]), (100, [1, 1, 1, 1, 1])])
def test_a_batch_has_a_limit_in_bytes_and_no_submission_is_split(size: int, batches: list[int]) -> None:
    """Rule: R3."""
    cluster = Cluster(1, limits={"batch_max_bytes": 80})
    cluster.run(1)
    for n in range(1, 6):
        cluster.submit(1, "s", n, "x" * size)
    cluster.settle()
    headers = [r.header for r in cluster.members[1].disk.delivered if isinstance(r.header, Batch)]
    assert [h.last - h.first + 1 for h in headers] == batches


def test_messages_that_come_one_by_one_gather_while_the_batch_before_theirs_is_under_way() -> None:
    """Rule: R3."""
    single = leader(batch_least_messages=4)
    (first,) = sent(single.submit("s", 1, "a"), Append, to=1)
    assert first.records[0].header.position == Position(1, 1), "nothing is under way: at once"
    assert not sent(single.submit("t", 1, "b"), Append, to=1)
    assert not sent(single.submit("u", 1, "c"), Append, to=1)
    assert single.node.next_deadline() > single.now, "nothing is due"
    (second,) = sent(single.give(3, Appended(1, Position(1, 1))), Append, to=1)
    assert (second.commit_seq, second.records[0].header.position) == (1, Position(1, 3))


def test_messages_that_are_worth_a_batch_wait_for_no_other() -> None:
    """Rule: R3."""
    single = leader(batch_least_messages=4)
    single.submit("s", 1, "a")
    assert not sent(single.submit("t", 1, "b", "c", "d"), Append, to=1)
    (append,) = sent(single.submit("u", 1, "e"), Append, to=1)
    assert append.records[0].header.position == Position(1, 5)


def test_messages_that_wait_for_a_batch_that_never_commits_are_left_to_the_clients() -> None:
    """Rule: R3, F3, S5."""
    single = leader(batch_least_messages=4)
    single.submit("s", 1, "a")
    single.submit("t", 1, "b")
    epoch = single.node.route
    single.wait(1.0)
    assert single.node.role_name != "leader"
    assert single.node.route != epoch, "clients are told to send again"
    assert single.state.sessions.expected("t", 0) == 1


def test_append_carries_the_previous_position_and_commit_seq() -> None:
    """Rule: R3, C2."""
    single = leader()
    single.submit("s", 1, "a", "b")
    single.give(1, Appended(1, Position(1, 2)))
    (append,) = sent(single.submit("s", 3, "c"), Append, to=3)
    assert (append.term, append.previous, append.commit_seq) == (1, Position(1, 2), 2)
    header = append.records[0].header
    assert isinstance(header, Batch)
    assert (header.first, header.last) == (3, 3)


def test_batches_go_out_without_waiting_for_earlier_ones_nor_for_the_disk() -> None:
    """Rule: R3."""
    single = leader(sync=False)
    for n in range(1, 4):
        assert peers_sent(single.submit("s", n, "x"), Append) == [1, 3]
    assert single.state.durable == START


# ---- R4 appending -----------------------------------------------------------------------------------


def test_a_record_is_taken_where_its_previous_position_is_the_own_one() -> None:
    """Rule: R4."""
    single = follower()
    for append in appends(1, START, AT_TWO):
        assert len(single.give(1, append).persist) == 1
    assert single.state.log.position == Position(1, 2)


@pytest.mark.parametrize("previous", [Position(2, 2), Position(1, 3), Position(2, 1)])
def test_a_record_above_the_own_position_is_not_taken_where_only_one_half_fits(previous: Position) -> None:
    """Rule: R4."""
    single = Single(log=AT_TWO)
    single.follow(1, 5)
    fx = single.give(1, Append(5, previous, 0, (stretch(5, previous.seq_no, 1)[0],)))
    assert not fx.persist
    assert events(fx, Buffered)


def test_records_above_a_hole_are_buffered_and_stored_once_the_hole_is_filled() -> None:
    """Rule: R4."""
    single = follower()
    mark, first, second = appends(1, START, AT_TWO)
    single.give(1, mark)
    fx = single.give(1, second)
    assert events(fx, Buffered)[0].line() == "Buffered out-of-order message seq_no=2 (expected 1)"
    assert not fx.persist
    fx = single.give(1, first)
    assert [op.position for op in written(fx, Record)] == [Position(1, 1), Position(1, 2)]
    assert events(fx, DeliveredFromBuffer)
    assert not single.following.buffer


def test_the_buffer_is_bounded() -> None:
    """Rule: R4."""
    single = follower(buffer_max_bytes=1000)
    for append in appends(1, START, stretch(1, 0, *[1] * 50))[1:]:
        single.give(1, append)
    role = single.following
    assert 1 <= len(role.buffer) < 10
    assert role.buffered_bytes == sum(len(r.raw) for r in role.buffer.values())
    assert role.buffered_bytes <= 1000


def test_a_record_that_is_buffered_already_takes_no_more_room() -> None:
    """Rule: R4."""
    single = follower()
    record = appends(1, START, AT_TWO)[2]
    single.give(1, record)
    single.give(1, record)
    assert single.following.buffered_bytes == len(record.records[0].raw)


def test_more_frames_above_a_hole_do_not_make_it_younger() -> None:
    """Rule: R4, R1."""
    single = follower()
    frames = appends(1, START, stretch(1, 0, *[1] * 5))[2:]
    asked = []
    for frame in frames:
        single.give(1, frame)
        asked += events(single.wait(0.1), CatchUpRequested)
    assert asked


def test_a_duplicate_is_answered_with_the_durable_position_and_not_stored_again() -> None:
    """Rule: R4."""
    single = follower()
    frames = appends(1, START, AT_TWO)
    for append in frames:
        single.give(1, append)
    single.auto_sync = False
    single.give(1, appends(1, Position(1, 2), stretch(1, 2, 1)[1:])[0])
    fx = single.give(1, frames[1])
    assert fx.send == [(1, Appended(1, Position(1, 2)))]
    assert not fx.persist


# ---- R5 acknowledging -------------------------------------------------------------------------------


def test_records_are_acknowledged_when_durable_and_one_sync_covers_all_before_it() -> None:
    """Rule: R5."""
    single = follower(sync=False)
    sends = [single.give(1, append).send for append in appends(1, START, AT_TWO)]
    assert sends == [[], [], []]
    assert single.sync().send == [(1, Appended(1, Position(1, 2)))]


def test_a_sync_acknowledges_only_records_written_before_it_began() -> None:
    """Rule: R5."""
    single = follower(sync=False)
    frames = appends(1, START, AT_TWO)
    single.give(1, frames[0])
    single.give(1, frames[1])
    begun = single.node.written
    single.give(1, frames[2])
    assert single.node.persisted(begun, single.now).send == [(1, Appended(1, Position(1, 1)))]


def test_records_of_older_terms_are_acknowledged_too() -> None:
    """Rule: R5."""
    single = Single(term=5)
    single.follow(1, 5)
    assert sent(single.give(1, appends(5, START, AT_TWO)[0]), Appended, to=1) == [Appended(5, Position(1, 0))]


def test_records_that_become_durable_in_a_later_term_are_not_acknowledged_to_the_old_leader() -> None:
    """Rule: R5."""
    single = follower(sync=False)
    single.give(1, appends(1, START, AT_TWO)[0])
    single.unlink(1)
    single.link(1)
    single.give(3, VoteRequest(2, Position(9, 9)))
    fx = single.sync()
    assert not sent(fx, Appended)
    assert sent(fx, Vote, to=3)
    assert single.state.durable == Position(1, 0)


# ---- C1 commit --------------------------------------------------------------------------------------


def test_records_durable_on_a_majority_are_committed() -> None:
    """Rule: C1."""
    single = leader((), members=(1, 2, 3, 4, 5))
    single.submit("s", 1, "a", "b")
    single.give(1, Appended(1, Position(1, 2)))
    assert single.state.commit_seq == 0
    single.give(3, HeartbeatAck(1, Position(1, 2)))
    assert single.state.commit_seq == 2


def test_the_highest_seq_no_of_a_majority_counts_not_the_highest_of_anybody() -> None:
    """Rule: C1."""
    single = leader((), members=(1, 2, 3, 4, 5))
    for n in range(1, 6):
        single.submit("s", n, "x")
    for peer, seq_no, committed in [(1, 5, 0), (3, 2, 2), (4, 4, 4), (5, 5, 5)]:
        single.give(peer, Appended(1, Position(1, seq_no)))
        assert single.state.commit_seq == committed


def test_the_leaders_own_copy_counts_only_when_durable() -> None:
    """Rule: C1."""
    single = leader((), sync=False)
    single.submit("s", 1, "a")
    single.give(1, Appended(1, Position(1, 1)))
    assert single.state.commit_seq == 0
    single.sync()
    assert single.state.commit_seq == 1


def test_an_answer_of_this_term_with_a_position_of_an_older_one_commits_nothing() -> None:
    """Rule: C1."""
    single = Single(log=AT_TWO)
    single.lead()
    for peer in (1, 3):
        single.give(peer, Appended(2, Position(1, 2)))
        single.give(peer, HeartbeatAck(2, Position(1, 99)))
    assert single.state.commit_seq == 0


def test_the_mark_commits_the_messages_of_older_terms_without_any_new_message() -> None:
    """Rule: C1."""
    single = Single(log=AT_TWO)
    single.lead()
    fx = single.give(1, Appended(2, Position(2, 2)))
    assert single.state.commit_seq == 2
    assert [record.position for record in fx.deliver] == [r.position for r in AT_TWO]


def test_commit_seq_never_falls() -> None:
    """Rule: C1."""
    single = leader()
    single.submit("s", 1, "a")
    single.give(1, Appended(1, Position(1, 1)))
    single.give(3, Appended(1, Position(1, 0)))
    single.give(1, Appended(1, Position(1, 0)))
    assert single.state.commit_seq == 1


# ---- C2 telling -------------------------------------------------------------------------------------


def test_commit_seq_is_sent_at_once_when_no_append_is_due() -> None:
    """Rule: C2."""
    single = leader()
    single.submit("s", 1, "a")
    assert sent(single.give(1, Appended(1, Position(1, 1))), Commit) == [Commit(1, 1)] * 2


@pytest.mark.parametrize("frame", [Heartbeat(1, 2, Position(1, 2)), Commit(1, 2)], ids=["Heartbeat", "Commit"])
def test_a_follower_delivers_messages_that_heartbeat_or_commit_shows_committed(frame: Heartbeat | Commit) -> None:
    """Rule: C2, D1."""
    single = follower()
    for append in appends(1, START, AT_TWO):
        single.give(1, append)
    assert [r.raw for r in single.give(1, frame).deliver] == [r.raw for r in AT_TWO]


def test_a_follower_learns_commits_from_append_too() -> None:
    """Rule: C2."""
    single = follower()
    frames = appends(1, START, AT_TWO, commit_seq=1)
    assert not single.give(1, frames[0]).deliver
    assert len(single.give(1, frames[1]).deliver) == 2


def test_a_follower_does_not_use_commit_seq_before_it_has_the_leaders_mark() -> None:
    """Its own two messages may be others than the leader's. Rule: C2."""
    single = Single(log=AT_TWO, term=5)
    single.give(1, Heartbeat(5, 2, START))
    single.give(1, Commit(5, 2))
    assert single.state.commit_seq == 0
    single.give(1, Resume(5, Position(1, 2), single.request()))
    fx = single.give(1, appends(5, Position(1, 2), stretch(5, 2))[0])
    assert single.state.commit_seq == 2
    assert fx.deliver


def test_a_leader_that_knows_less_than_was_delivered_here_takes_nothing_back() -> None:
    """Rule: C2, C1."""
    single = Single(log=AT_TWO, delivered=2)
    single.follow(1, 1)
    single.give(1, Commit(1, 1))
    assert (single.state.commit_seq, single.state.delivered_seq) == (2, 2)


def test_a_follower_never_uses_commit_seq_beyond_its_durable_log() -> None:
    """Rule: C2."""
    single = follower(sync=False)
    for append in appends(1, START, AT_TWO, commit_seq=2):
        assert not single.give(1, append).deliver
    assert single.state.commit_seq == 0
    assert single.sync().deliver
    assert single.state.commit_seq == 2


# ---- D1 delivery ------------------------------------------------------------------------------------


def test_messages_are_delivered_in_order_each_once_with_the_bytes_that_the_leader_made() -> None:
    """Rule: D1."""
    single = follower()
    for append in appends(1, START, AT_TWO, commit_seq=1):
        single.give(1, append)
    single.give(1, Commit(1, 2))
    single.give(1, Commit(1, 2))
    single.give(1, Heartbeat(1, 1, Position(1, 2)))
    assert b"".join(r.body for r in single.all.deliver) == b"".join(r.body for r in AT_TWO)
    assert events(single.all, Delivered) == [Delivered(1, 1), Delivered(2, 2)]


def test_a_node_delivers_no_message_again_after_a_restart() -> None:
    """Rule: D1."""
    single = Single(log=AT_TWO, delivered=1)
    single.follow(1, 1)
    single.give(1, Commit(1, 2))
    assert [r.position.seq_no for r in single.all.deliver] == [2]


def test_a_leader_delivers_messages_that_followers_committed_once_its_own_disk_has_them() -> None:
    """Rule: D1, C1."""
    single = leader(sync=False)
    single.sync()
    single.submit("s", 1, "a")
    for peer in (1, 3):
        single.give(peer, Appended(1, Position(1, 1)))
    assert single.state.commit_seq == 1
    assert not [r for r in single.all.deliver if r.body]
    assert [r.position.seq_no for r in single.sync().deliver if r.body] == [1]


@pytest.mark.parametrize("through_wire", [False, True])
def test_all_message_logs_are_equal_byte_for_byte(through_wire: bool) -> None:
    """Rule: D1, R3."""
    cluster = Cluster(3, through_wire=through_wire)
    cluster.run(2)
    for n in range(1, 30):
        cluster.submit(1 + n % 3, f"s{n % 2}", 1 + (n - 1) // 2, "x" * n)
        cluster.run(0.01)
    cluster.run(1)
    bodies = {b"".join(bytes(r.body) for r in cluster.members[i].disk.delivered) for i in cluster.ids}
    assert len(bodies) == 1
    assert len(cluster.lines(1)) == 29


# ---- P1 bounds --------------------------------------------------------------------------------------


def test_bytes_in_flight_to_a_stopped_follower_are_limited() -> None:
    """Rule: P1."""
    single = leader(inflight_max_bytes=3000)
    for n in range(1, 100):
        single.submit("s", n, "x" * 50)
        single.give(1, Appended(1, single.state.log.position))
    to_stopped = sum(len(record.raw) for append in sent(single.all, Append, to=3) for record in append.records)
    assert 3000 <= to_stopped < 3500
    assert single.state.commit_seq == 99, "the others go on"
    assert not single.node.progress()[3][0]
    assert len(single.leading.progress[3].inflight) < 20


def test_an_answer_frees_exactly_the_bytes_that_it_covers() -> None:
    """Rule: P1, C1."""
    single = leader()
    sizes = []
    for n in range(1, 4):
        (append,) = sent(single.submit("s", n, "x" * n), Append, to=3)
        sizes.append(len(append.records[0].raw))
    progress = single.leading.progress[3]
    assert progress.inflight_bytes == sum(sizes)
    single.give(3, Appended(1, Position(1, 2)))
    assert progress.inflight_bytes == sizes[2]
    single.give(3, HeartbeatAck(1, Position(1, 1)))
    assert (progress.inflight_bytes, progress.matched) == (sizes[2], Position(1, 2))


def test_past_the_limit_a_follower_is_served_from_disk_at_the_pace_of_its_answers() -> None:
    """Rule: P1, R1."""
    single = leader(inflight_max_bytes=3000, fetch_max_bytes=1000)
    log = []
    for n in range(1, 100):
        log += written(single.submit("s", n, "x" * 50), Record)
        single.give(1, Appended(1, single.state.log.position))
    fx = single.give(3, Appended(1, sent(single.all, Append, to=3)[-1].records[-1].position))
    for _ in range(200):
        if fx.fetch:
            (fetch,) = fx.fetch
            assert fetch.max_bytes == 1000
            fx = single.node.fetched(3, fetch.token, [r for r in log if r.position > fetch.after][:4], single.now)
            assert single.leading.progress[3].inflight_bytes < 3000
        elif appended := sent(fx, Append, to=3):
            fx = single.give(3, Appended(1, appended[-1].records[-1].position))
    assert single.node.progress()[3] == (True, Position(1, 99))


def test_an_answer_that_comes_during_a_fetch_asks_for_no_second_one() -> None:
    """Rule: P1."""
    single = Single(log=AT_TWO, delivered=2)
    single.lead()
    (fetch,) = single.give(1, CatchUp(2, (), 0, 5)).fetch
    assert not single.give(1, HeartbeatAck(2, START)).fetch
    assert sent(single.node.fetched(1, fetch.token, AT_TWO, single.now), Append, to=1)


def test_the_answer_to_a_fetch_that_is_no_longer_wanted_is_dropped() -> None:
    """Rule: P1, R1."""
    single = Single(log=AT_TWO, delivered=2)
    single.lead()
    (fetch,) = single.give(1, CatchUp(2, (), 0, 5)).fetch
    single.give(1, LinkUp(Known("disk-1"), False, True))
    assert not single.node.fetched(1, fetch.token, AT_TWO, single.now).send


def test_a_follower_that_lacks_more_of_older_terms_than_the_limit_catches_up_all_the_same() -> None:
    """Rule: P1, R5."""
    cluster = Cluster(5, limits={"inflight_max_bytes": 2000, "fetch_max_bytes": 500})
    cluster.run(3)
    cluster.kill(1)
    for n in range(1, 60):
        cluster.submit(5, "s", n, "x" * 50)
        cluster.settle()
    cluster.kill(5)
    cluster.run(3)
    cluster.start(1)
    cluster.run(2)
    assert len(cluster.lines(1)) == 59
