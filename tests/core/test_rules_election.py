"""Rules E1 to E7 of docs/protocol.md: poll, deferring, candidacy, vote, leading, terms, transfer."""

from __future__ import annotations

from typing import Any

import pytest

from nodeproc.core.effects import Promise
from nodeproc.core.events import (
    AskedToStand,
    BecameLeader,
    BecomingCoordinator,
    CatchUpRequested,
    CoordinatorReceived,
    ElectionDeferred,
    ElectionStarted,
    TransferFailed,
    TransferStarted,
    VoteRefused,
)
from nodeproc.core.messages import (
    START,
    Append,
    Appended,
    CatchUp,
    Commit,
    Coordinator,
    Election,
    Heartbeat,
    HeartbeatAck,
    JoinAck,
    Leader,
    Ok,
    Position,
    Record,
    Resume,
    Support,
    TermIs,
    Transfer,
    Vote,
    VoteRequest,
)
from tests.core.cluster import Cluster
from tests.core.single import Single, events, peers_sent, sent, stretch, written

FIVE = (1, 2, 3, 4, 5)


def answer(single: Single, **answers: Any) -> None:
    """Answer the present poll: n3=Ok(...) for node 3, with the poll's number filled in."""
    poll = single.poll()
    for name, (kind, *fields) in answers.items():
        single.give(int(name[1:]), kind(*fields, poll) if kind is not Ok else Ok(poll, *fields))


def candidate(members: tuple[int, ...] = (1, 2, 3), **settings: Any) -> Single:
    """Node 2, its own vote in term 1 durable."""
    single = Single(members=members, **settings)
    poll = single.poll()
    for peer in single.state.peers:
        if single.state.poll is not None:
            single.give(peer, Support(poll))
    single.sync()
    assert single.node.role_name == "candidate"
    return single


# ---- E1 poll ----------------------------------------------------------------------------------------


def test_a_poll_asks_all_peers_and_changes_nothing_durable() -> None:
    """Rule: E1."""
    single = Single(log=stretch(4, 0, 3))
    single.all.persist.clear()
    number = single.poll()
    asked = sent(single.all, Election)
    assert asked == [Election(5, Position(4, 3), 2, number)] * 2
    assert not single.all.persist
    assert single.state.term == 4


def test_no_node_adopts_the_term_that_a_poll_proposes() -> None:
    """Rule: E1, E6."""
    single = Single(term=3)
    fx = single.give(1, Election(99, START, 1, 7))
    assert (single.state.term, single.state.voted_for) == (3, 0)
    assert not written(fx, Promise)


def test_a_leader_answers_a_poll_with_itself_and_a_follower_with_the_leader_that_it_hears() -> None:
    """Rule: E1."""
    leader = Single()
    leader.lead()
    assert sent(leader.give(3, Election(9, START, 3, 7)), Leader, to=3) == [Leader(1, 2, 7)]
    follower = Single()
    follower.follow(1, 4)
    assert sent(follower.give(3, Election(9, START, 3, 7)), Leader, to=3) == [Leader(4, 1, 7)]


@pytest.mark.parametrize(
    ("position", "could_vote"), [(Position(3, 2), True), (Position(3, 1), False), (Position(2, 9), False)]
)
def test_a_node_that_outranks_the_asker_answers_ok_with_could_vote(position: Position, could_vote: bool) -> None:
    """Rule: E1."""
    single = Single(log=stretch(3, 0, 2))
    assert sent(single.give(1, Election(4, position, 1, 7)), Ok, to=1) == [Ok(7, could_vote)]


def test_a_poll_does_not_wait_for_the_leader_that_is_suspected_for_its_silence() -> None:
    """Rule: E1, F2."""
    single = Single()
    single.follow(3, 1)
    answer(single, n1=(Support,))
    assert (single.state.suspected, single.node.role_name) == (3, "candidate")


def test_a_poll_waits_for_a_suspected_leader_whose_link_was_lost_and_opened_again() -> None:
    """It answers, so it may outrank all others. Rule: E1, F2."""
    single = Single()
    single.follow(3, 1)
    single.unlink(3)
    single.link(3)
    answer(single, n1=(Support,))
    assert (single.state.suspected, single.node.role_name) == (3, "follower")


def test_a_poll_that_the_others_do_not_decide_waits_for_the_silent_leader_too() -> None:
    """Rule: E1."""
    single = Single()
    single.follow(3, 1)
    answer(single, n1=(Leader, 1, 3))
    assert single.state.poll is not None
    single.wait(0.16)
    assert single.state.poll is None


def test_a_peer_that_polls_itself_is_asked_again_whatever_it_answered_before() -> None:
    """It heard the leader a moment longer than we did. Rule: E1."""
    single = Single()
    single.follow(3, 1)
    answer(single, n1=(Leader, 1, 3))
    fx = single.give(1, Election(2, START, 1, 7))
    assert peers_sent(fx, Election) == [1]
    answer(single, n1=(Support,))
    assert single.node.role_name == "candidate"


def test_a_node_that_outranks_the_asker_starts_its_own_poll_unless_it_is_in_one() -> None:
    """Rule: E1."""
    single = Single()
    assert peers_sent(single.give(1, Election(1, START, 1, 7)), Election) == [1, 3]
    assert not events(single.give(1, Election(1, START, 1, 8)), ElectionStarted)


@pytest.mark.parametrize(
    "asker", [Election(4, Position(3, 2), 3, 7), Election(4, Position(3, 3), 1, 7), Election(4, Position(4, 0), 0, 7)]
)
def test_a_node_that_does_not_outrank_the_asker_supports_it(asker: Election) -> None:
    """Rule: E1."""
    single = Single(log=stretch(3, 0, 2))
    fx = single.give(3, asker)
    assert sent(fx, Support, to=3) == [Support(7)]
    assert not events(fx, ElectionStarted)


def test_rank_is_position_then_priority_then_id() -> None:
    """Rule: E1."""
    low = Single(priority=0)
    assert sent(low.give(1, Election(1, START, 1, 7)), Support), "priority 1 outranks priority 0 of a higher id"
    equal = Single(priority=1)
    assert sent(equal.give(1, Election(1, START, 1, 7)), Ok), "with equal priorities the id decides"
    fresh = Single(log=stretch(1, 0, 1), priority=0)
    assert sent(fresh.give(3, Election(1, START, 99, 7)), Ok), "the position comes before the priority"


def test_a_poll_ends_when_all_have_answered() -> None:
    """Rule: E1."""
    single = Single(members=FIVE)
    answer(single, n1=(Support,), n3=(Support,), n4=(Support,))
    assert single.node.role_name == "follower"
    answer(single, n5=(Support,))
    assert single.node.role_name == "candidate"


def test_a_poll_does_not_wait_for_a_peer_whose_link_is_lost() -> None:
    """Rule: E1."""
    single = Single()
    answer(single, n1=(Support,))
    single.unlink(3)
    assert single.node.role_name == "candidate"


def test_a_lost_link_ends_no_poll_that_others_have_still_to_answer() -> None:
    """Rule: E1."""
    single = Single(members=FIVE)
    answer(single, n1=(Support,), n3=(Support,))
    single.unlink(4)
    assert single.state.poll is not None
    assert single.node.role_name == "follower"


def test_neither_a_poll_nor_a_deferral_ends_before_its_time() -> None:
    """Rule: E1, E2."""
    single = Single(coordinator_timeout=0.4)
    answer(single, n1=(Support,))
    single.node.tick(single.now + 0.1)
    assert single.state.poll is not None
    answer(single, n3=(Ok, True))
    single.node.tick(single.now + 0.3)
    assert single.state.deferral is not None


def test_a_poll_ends_after_answer_timeout() -> None:
    """Rule: E1."""
    single = Single(answer_timeout=0.2)
    answer(single, n1=(Support,))
    single.wait(0.19)
    assert single.node.role_name == "follower"
    single.wait(0.02)
    assert single.node.role_name == "candidate"


def test_an_answer_to_an_earlier_poll_and_a_second_answer_of_one_peer_do_not_count() -> None:
    """Rule: E1."""
    single = Single(members=FIVE)
    old = single.poll()
    single.wait(0.2)
    assert single.poll() != old
    for peer in (1, 3, 4, 5):
        single.give(peer, Support(old))
    assert single.node.role_name == "follower"
    for _ in range(3):
        answer(single, n1=(Support,))
    single.wait(0.2)
    assert single.node.role_name == "follower"


# ---- E2 deferring -----------------------------------------------------------------------------------


def test_an_ok_makes_the_asker_wait_coordinator_timeout_with_jitter() -> None:
    """Rule: E2."""
    waits = set()
    for seed in range(20):
        single = Single(seed=seed, coordinator_timeout=0.4)
        answer(single, n1=(Support,), n3=(Ok, True))
        assert events(single.all, ElectionDeferred) == [ElectionDeferred(1, 3)]
        waits.add(single.node.next_deadline() - single.now)
    assert min(waits) >= 0.4
    assert max(waits) <= 0.6
    assert len(waits) > 10


@pytest.mark.parametrize(("could_vote", "role"), [(True, "candidate"), (False, "follower")])
def test_a_spent_ok_counts_as_support_if_its_vote_could_be_had(could_vote: bool, role: str) -> None:
    """Rule: E2."""
    single = Single(members=FIVE)
    answer(single, n1=(Support,), n3=(Ok, could_vote), n4=(Leader, 0, 9), n5=(Leader, 0, 9))
    assert single.node.role_name == "follower"
    single.wait(0.76)
    answer(single, n1=(Support,), n3=(Ok, could_vote), n4=(Leader, 0, 9), n5=(Leader, 0, 9))
    assert single.node.role_name == role


def test_an_ok_of_a_peer_that_was_not_waited_for_yet_defers_even_a_majority() -> None:
    """Rule: E2, E3."""
    single = Single(members=FIVE)
    answer(single, n1=(Support,), n3=(Support,), n4=(Support,), n5=(Ok, True))
    assert single.node.role_name == "follower"
    single.wait(0.76)
    answer(single, n1=(Support,), n3=(Support,), n4=(Ok, True), n5=(Ok, True))
    assert single.node.role_name == "follower", "node 4 was not waited for yet"


def test_a_spent_ok_defers_again_once_a_leader_was_heard() -> None:
    """Rule: E2."""
    single = Single()
    answer(single, n1=(Support,), n3=(Ok, True))
    single.wait(0.76)
    assert single.state.spent == {3}
    single.follow(3, 1)
    answer(single, n3=(Ok, True), n1=(Support,))
    assert single.node.role_name == "follower"


def test_a_high_ranked_node_that_cannot_win_blocks_nobody() -> None:
    """The disk of node 3 hangs: its own vote never becomes durable. Rule: E2."""
    cluster = Cluster(3, start=False)
    cluster.hung.add(3)
    for i in cluster.ids:
        cluster.start(i)
    cluster.run(4)
    assert cluster.leader() in (1, 2)


# ---- E3 candidacy -----------------------------------------------------------------------------------


def test_a_candidate_asks_for_votes_once_its_own_is_durable() -> None:
    """Rule: E3."""
    single = Single(log=stretch(4, 0, 3), sync=False)
    answer(single, n1=(Support,), n3=(Support,))
    assert written(single.all, Promise)[-1] == Promise(5, 2)
    assert not sent(single.all, VoteRequest)
    assert single.state.term == 4, "nobody, itself included, sees the term before it is durable"
    assert sent(single.sync(), VoteRequest) == [VoteRequest(5, Position(4, 3))] * 2


def test_support_of_less_than_a_majority_makes_no_candidate() -> None:
    """Rule: E3."""
    single = Single(members=FIVE)
    answer(single, n1=(Support,))
    single.wait(0.16)
    assert (single.node.role_name, single.state.term) == ("follower", 0)


def test_the_answer_leader_does_not_veto_a_majority() -> None:
    """Rule: E3."""
    single = Single(members=FIVE)
    answer(single, n1=(Support,), n3=(Support,), n4=(Leader, 0, 5), n5=(Leader, 0, 5))
    assert single.node.role_name == "candidate"


def test_without_a_majority_the_asker_follows_the_leader_that_a_peer_reported() -> None:
    """Rule: E3."""
    single = Single(members=FIVE)
    answer(single, n1=(Support,), n3=(Leader, 0, 5), n4=(Leader, 0, 5), n5=(Leader, 0, 5))
    assert single.state.leader_id == 5
    assert sent(single.all, CatchUp, to=5)


def test_the_leader_just_suspected_is_not_tried_again_before_it_is_heard() -> None:
    """Rule: E3, F2."""
    single = Single()
    single.follow(3, 1)
    single.wait(0.6)
    assert single.state.suspected == 3
    answer(single, n1=(Leader, 1, 3), n3=(Leader, 1, 3))
    assert single.state.leader_id == 0
    single.give(3, Heartbeat(1, 0, START))
    assert single.state.leader_id == 3


def test_a_poll_without_success_is_repeated_after_a_jittered_pause_with_the_term_unchanged() -> None:
    """Rule: E3."""
    pauses = set()
    for seed in range(20):
        single = Single(members=FIVE, seed=seed)
        single.poll()
        single.wait(0.15)
        while single.state.poll is not None:
            single.wait(0.001)
        pauses.add(single.node.next_deadline() - single.now)
        assert single.state.term == 0
    assert len(pauses) > 10


def test_a_candidate_that_does_not_win_polls_again_and_its_time_doubles_with_each_failure() -> None:
    """Rule: E3."""
    single = candidate()
    times = []
    for _ in range(4):
        times.append(single.node.next_deadline() - single.now)
        single.wait(times[-1])
        assert single.node.role_name == "follower"
        answer(single, n1=(Support,), n3=(Support,))
    for failures, time in enumerate(times):
        assert 0.5 * 2**failures <= time <= 1.0 * 2**failures


def test_the_time_of_a_candidate_is_short_again_once_a_leader_was_heard() -> None:
    """Rule: E3."""
    single = candidate()
    single.wait(single.node.next_deadline() - single.now)
    assert single.state.failures == 1
    single.follow(3, 9)
    assert single.state.failures == 0


def test_a_candidate_asks_a_peer_again_whose_link_opens() -> None:
    """Rule: E3."""
    single = candidate()
    single.unlink(3)
    assert sent(single.link(3), VoteRequest, to=3) == [VoteRequest(1, START)]


def test_jitter_comes_from_the_nodes_own_generator() -> None:
    """Rule: E3."""

    def deadlines(seed: int) -> list[float]:
        single, out = Single(members=FIVE, seed=seed), []
        for _ in range(10):
            out.append(single.node.next_deadline())
            single.wait(out[-1] - single.now)
        return out

    assert deadlines(1) == deadlines(1)
    assert deadlines(1) != deadlines(2)


def test_a_candidates_time_begins_when_it_asks_and_adds_the_time_of_its_own_vote() -> None:
    """A slow disk of its own says how long the others may need. Rule: E3."""
    single = Single(sync=False)
    answer(single, n1=(Support,), n3=(Support,))
    single.now += 5.0
    single.sync()
    single.wait(5.4)
    assert single.node.role_name == "candidate", "5 s for its own vote and at least election_timeout"
    single.wait(0.7)
    assert single.node.role_name == "follower", "and at most twice election_timeout"


# ---- E4 vote ----------------------------------------------------------------------------------------


def test_a_node_that_hears_a_leader_ignores_a_vote_request_and_its_term() -> None:
    """Rule: E4."""
    single = Single()
    single.follow(1, 4)
    fx = single.give(3, VoteRequest(9, Position(8, 8)))
    assert (fx.send, fx.persist, single.state.term) == ([], [], 4)


def test_a_leader_with_a_majoritys_answers_ignores_a_vote_request_and_one_without_does_not() -> None:
    """Rule: E4, F3."""
    single = Single()
    single.lead()
    fx = single.give(3, VoteRequest(9, Position(8, 8)))
    assert (fx.send, fx.persist, single.state.term) == ([], [], 1)
    single.now += 0.55  # Its tick is late: it has not noticed yet that nobody answers.
    assert sent(single.give(3, VoteRequest(9, Position(8, 8))), Vote, to=3) == [Vote(9)]
    assert single.node.role_name == "follower"


def test_a_vote_is_durable_before_it_is_sent() -> None:
    """Rule: E4."""
    single = Single(sync=False)
    fx = single.give(1, VoteRequest(1, START))
    assert written(fx, Promise) == [Promise(1, 1)]
    assert not fx.send
    assert sent(single.sync(), Vote, to=1) == [Vote(1)]


def test_a_node_that_has_just_voted_starts_no_poll_until_the_candidates_time_is_up() -> None:
    """Its own poll would end the candidacy that has its vote. Rule: E1, E4."""
    single = Single()
    assert sent(single.give(3, VoteRequest(1, START)), Vote)
    fx = single.give(1, Election(1, START, 1, 7))
    assert sent(fx, Ok) and not events(fx, ElectionStarted)
    assert not events(single.wait(0.49), ElectionStarted)
    assert events(single.wait(0.52), ElectionStarted), "the candidate did not become leader in time"


def test_a_vote_request_of_an_older_term_is_answered_with_the_current_term() -> None:
    """Rule: E4, E6."""
    fx = Single(term=5).give(1, VoteRequest(4, Position(9, 9)))
    assert fx.send == [(1, TermIs(5))]
    assert not fx.persist


def test_one_vote_a_term_also_across_a_restart() -> None:
    """Rule: E4."""
    single = Single()
    assert sent(single.give(1, VoteRequest(1, START)), Vote, to=1)
    assert not sent(single.give(3, VoteRequest(1, START)), Vote)
    assert sent(single.give(1, VoteRequest(1, START)), Vote, to=1), "the same candidate is told again"
    restarted = Single(term=1, voted_for=1)
    assert not sent(restarted.give(3, VoteRequest(1, START)), Vote)
    assert sent(restarted.give(1, VoteRequest(1, START)), Vote, to=1)


@pytest.mark.parametrize(
    ("position", "granted"),
    [
        (Position(3, 2), True),
        (Position(3, 3), True),
        (Position(4, 0), True),
        (Position(3, 1), False),
        (Position(2, 99), False),
    ],
)
def test_a_vote_goes_to_a_candidate_whose_log_lacks_nothing_and_the_term_is_taken_over_anyhow(
    position: Position, granted: bool
) -> None:
    """Rule: E4."""
    single = Single(log=stretch(3, 0, 2))
    fx = single.give(1, VoteRequest(9, position))
    assert bool(sent(fx, Vote)) == granted
    assert bool(events(fx, VoteRefused)) == (not granted)
    assert written(fx, Promise) == [Promise(9, 1 if granted else 0)]
    assert (single.state.term, single.state.voted_for) == (9, 1 if granted else 0)


def test_a_refusal_leaves_the_vote_to_another_candidate_of_that_term() -> None:
    """Rule: E4."""
    single = Single(log=stretch(3, 0, 2))
    single.give(1, VoteRequest(9, START))
    assert sent(single.give(3, VoteRequest(9, Position(3, 2))), Vote, to=3) == [Vote(9)]


def test_the_position_compared_is_that_of_the_log_as_written_durable_or_not() -> None:
    """Rule: E4."""
    single = Single(sync=False)
    single.give(1, Heartbeat(0, 0, START))
    single.give(1, Append(0, START, 0, tuple(stretch(1, 0, 2))))
    assert single.state.durable == START
    single.unlink(1)
    single.give(3, VoteRequest(9, Position(1, 1)))
    assert not sent(single.sync(), Vote)


# ---- E5 leading -------------------------------------------------------------------------------------


def test_a_majority_of_votes_makes_a_leader_and_less_does_not() -> None:
    """Rule: E5."""
    single = candidate(FIVE)
    single.give(1, Vote(1))
    for _ in range(3):
        single.give(1, Vote(1))
    assert single.node.role_name == "candidate", "one peer has one vote"
    single.give(3, Vote(1))
    assert single.node.role_name == "leader"


def test_a_new_leader_appends_its_mark_and_announces_itself_to_all() -> None:
    """Rule: E5."""
    single = Single(log=stretch(4, 0, 3))
    fx = single.lead()
    (mark,) = [op for op in fx.persist if isinstance(op, Record)]
    assert mark.position == Position(5, 3)
    assert peers_sent(fx, Coordinator) == [1, 3]
    assert events(fx, BecomingCoordinator) == [BecomingCoordinator(5)]
    assert events(fx, BecameLeader) == [BecameLeader(5, 3)]
    assert single.state.log.position == Position(5, 3), "a mark takes no seq_no"


def test_the_leaders_own_mark_counts_only_once_it_is_durable() -> None:
    """Rule: E5, C1."""
    single = Single(log=stretch(4, 0, 3), sync=False)
    single.lead()
    single.give(1, Appended(5, Position(5, 3)))
    assert single.state.commit_seq == 0
    single.sync()
    assert single.state.commit_seq == 3


def test_a_new_leader_takes_messages_at_once() -> None:
    """Rule: E5, R3."""
    single = Single()
    single.lead()
    assert not single.submit("s", 1, "a").reply
    assert single.state.log.position == Position(1, 1)


def test_a_node_asks_a_new_coordinator_for_missing_records() -> None:
    """Rule: E5, R1."""
    fx = Single().give(3, Coordinator(1))
    assert events(fx, CoordinatorReceived) == [CoordinatorReceived(3, 1)]
    assert events(fx, CatchUpRequested)
    assert sent(fx, CatchUp, to=3)


# ---- E6 terms ---------------------------------------------------------------------------------------

TERMED = [
    JoinAck(7, 0),
    Heartbeat(7, 0, START),
    HeartbeatAck(7, START),
    Leader(7, 3, 1),
    Vote(7),
    Coordinator(7),
    TermIs(7),
    CatchUp(7, (), 0, 1),
    Resume(7, START, 1),
    Append(7, START, 0, tuple(stretch(7, 0, 1))),
    Appended(7, START),
    Commit(7, 0),
]


@pytest.mark.parametrize("frame", TERMED, ids=lambda frame: type(frame).__name__)
def test_a_frame_of_a_higher_term_makes_a_leader_follower_of_that_term_durably_first(frame: Any) -> None:
    """Rule: E6."""
    single = Single(sync=False)
    single.lead()
    single.sync()
    fx = single.give(3, frame)
    assert fx.persist == [Promise(7, 0)]
    assert (fx.send, single.state.term) == ([], 1)
    single.sync()
    assert (single.state.term, single.node.role_name) == (7, "follower")


@pytest.mark.parametrize("frame", TERMED, ids=lambda frame: type(frame).__name__)
def test_a_frame_of_a_lower_term_is_answered_with_the_present_term_and_otherwise_ignored(frame: Any) -> None:
    """Rule: E6."""
    single = Single(term=8)
    before = single.node.next_deadline(), single.node.route
    fx = single.give(3, frame)
    assert fx.send == ([] if isinstance(frame, TermIs) else [(3, TermIs(8))])
    assert (fx.persist, fx.emit, fx.deliver) == ([], [], [])
    assert (single.node.next_deadline(), single.node.route) == before


def test_an_acknowledgement_of_a_lower_term_counts_nothing_for_a_leader_of_a_higher_one() -> None:
    """Rule: E6, C1."""
    single = Single(log=stretch(4, 0, 3))
    single.lead()
    single.give(1, Appended(4, Position(5, 3)))
    assert single.state.commit_seq == 0


def test_nothing_else_is_taken_while_a_higher_term_is_on_its_way_to_the_disk() -> None:
    """Rule: E6, R5."""
    single = Single(log=stretch(4, 0, 3), sync=False)
    single.follow(1, 4)
    single.give(3, Heartbeat(5, 0, START))
    assert not single.give(1, Heartbeat(4, 0, START)).send
    assert sent(single.sync(), TermIs, to=1) == [TermIs(5)], "it waited, and is of a lower term now"


# ---- E7 transfer ------------------------------------------------------------------------------------


def leading(**settings: Any) -> Single:
    """Node 2 leads term 5; node 3 has its whole log, node 1 has answered nothing yet."""
    single = Single(log=stretch(4, 0, 3), **settings)
    single.lead()
    single.caught_up(3)
    return single


def test_a_follower_that_has_the_whole_log_is_asked_to_stand_at_once() -> None:
    """Rule: E7."""
    single = leading()
    fx = single.give(2, Transfer(3))
    assert events(fx, TransferStarted) == [TransferStarted(5, 3)]
    assert [(peer, frame) for peer, frame in fx.send if isinstance(frame, Coordinator)] == [(3, Coordinator(5, True))]
    assert single.node.transferring


def test_a_follower_is_asked_to_stand_once_and_only_when_it_has_acknowledged_the_end_of_the_log() -> None:
    """Rule: E7."""
    single = leading()
    assert not sent(single.give(2, Transfer(1)), Coordinator)
    assert not sent(single.give(1, Appended(5, Position(4, 3))), Coordinator), "it lacks the mark"
    assert not sent(single.give(3, Appended(5, Position(5, 3))), Coordinator), "another one has it"
    assert sent(single.give(1, Appended(5, Position(5, 3))), Coordinator, to=1) == [Coordinator(5, True)]
    assert not sent(single.give(1, HeartbeatAck(5, Position(5, 3))), Coordinator)


def test_messages_wait_during_a_transfer_and_are_ordered_when_it_fails() -> None:
    """Rule: E7, R3."""
    single = leading()
    single.give(2, Transfer(3))
    fx = single.submit("s", 1, "a")
    assert not fx.reply and not written(fx, Record)
    single.give(1, HeartbeatAck(5, START))
    fx = single.wait(0.3)
    single.give(1, HeartbeatAck(5, START))
    fx.merge(single.wait(0.35))
    assert events(fx, TransferFailed) == [TransferFailed(5, 3, "node_3: not done within election_timeout")]
    assert [op.position for op in written(fx, Record)] == [Position(5, 4)]
    assert not single.node.transferring and single.node.role_name == "leader"


def test_a_transfer_fails_at_once_when_the_link_is_lost() -> None:
    """Rule: E7, F2."""
    single = leading()
    single.give(2, Transfer(3))
    single.submit("s", 1, "a")
    assert not written(single.unlink(1), Record)
    fx = single.unlink(3)
    assert events(fx, TransferFailed) == [TransferFailed(5, 3, "node_3: the link is lost")]
    assert written(fx, Record)


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        (1, "found node 1, allowed 3"),
        (2, "found node 2, allowed 3"),
        (9, "found node 9, allowed 3"),
        (3, ""),
        (0, ""),
    ],
)
def test_the_leadership_goes_only_to_a_connected_follower(to: int, reason: str) -> None:
    """Rule: E7."""
    single = leading()
    single.unlink(1)
    assert single.node.transfer_refusal(to) == reason
    fx = single.give(2, Transfer(to))
    assert [event.reason for event in events(fx, TransferFailed)] == ([reason] if reason else [])
    assert single.node.transferring == (not reason)


def test_a_node_being_rebuilt_is_not_asked_to_lead() -> None:
    """Rule: E7, M4."""
    single = leading()
    single.unlink(1)
    single.link(3, "another disk", rebuilding=True)
    assert single.node.transfer_refusal(0) == "no follower is connected that has a vote"


def test_only_one_transfer_at_a_time_and_none_from_a_follower_or_in_a_pledge() -> None:
    """Rule: E7."""
    single = leading(sync=False)
    single.sync()
    single.give(2, Transfer(3))
    assert single.node.transfer_refusal(1) == "the leadership is being transferred to node_3"
    single.give(1, TermIs(6))
    assert single.node.transfer_refusal(1) == "a new term begins"
    single.sync()
    assert single.node.transfer_refusal(1) == "this node knows no leader"
    single.follow(1, 6)
    assert single.node.transfer_refusal(3) == "node_1 leads"


def test_the_leader_chooses_a_follower_that_answers_before_one_of_a_longer_log() -> None:
    """Rule: E7."""
    single = Single(members=FIVE, log=stretch(4, 0, 3))
    single.lead()
    single.caught_up(1)
    single.caught_up(5)
    single.wait(0.3)
    for peer in (1, 3, 4):
        single.give(peer, HeartbeatAck(5, START))
    assert events(single.give(2, Transfer()), TransferStarted) == [TransferStarted(5, 1)], (
        "5 is silent, 3 lacks records"
    )


def test_a_follower_asked_by_its_leader_becomes_candidate_without_a_poll() -> None:
    """Rule: E7, E3."""
    single = Single(log=stretch(4, 0, 3), sync=False)
    single.follow(1, 4)
    fx = single.give(1, Coordinator(4, True))
    assert events(fx, AskedToStand) == [AskedToStand(4, 1)]
    assert fx.persist == [Promise(5, 2)] and not fx.send, "its own vote is durable first"
    assert sent(single.sync(), VoteRequest) == [VoteRequest(5, Position(4, 3), True)] * 2


@pytest.mark.parametrize("frame", [Coordinator(4), Coordinator(3, True), Coordinator(5, True)], ids=str)
def test_only_the_own_leader_of_this_term_makes_a_node_stand(frame: Coordinator) -> None:
    """Rule: E7, E6."""
    single = Single(log=stretch(4, 0, 3))
    single.follow(1, 4)
    single.give(1 if frame.term == 4 else 3, frame)
    assert single.node.role_name == "follower"


def test_a_node_that_is_being_rebuilt_or_whose_disk_is_stalled_does_not_stand() -> None:
    """Rule: E7, M4, F4."""
    single = Single(log=stretch(4, 0, 3), rebuilding=True)
    single.follow(1, 4)
    single.give(1, Coordinator(4, True))
    assert single.node.role_name == "follower"
    single = Single(log=stretch(4, 0, 3))
    single.follow(1, 4)
    single.state.stalled = True
    single.give(1, Coordinator(4, True))
    assert single.node.role_name == "follower"


def test_a_node_that_hears_its_leader_votes_in_a_transfer_and_not_otherwise() -> None:
    """Rule: E7, E4."""
    single = Single(log=stretch(4, 0, 3))
    single.follow(1, 4)
    assert not sent(single.give(3, VoteRequest(5, Position(4, 3))), Vote)
    assert sent(single.give(3, VoteRequest(5, Position(4, 3), True)), Vote, to=3) == [Vote(5)]


def test_a_transfer_gets_no_vote_for_a_log_that_is_behind() -> None:
    """Rule: E7, E4."""
    single = Single(log=stretch(4, 0, 3))
    single.follow(1, 4)
    assert not sent(single.give(3, VoteRequest(5, Position(4, 2), True)), Vote)


def test_the_leader_itself_votes_for_its_successor() -> None:
    """Rule: E7, E4."""
    single = leading()
    single.give(2, Transfer(3))
    assert sent(single.give(3, VoteRequest(6, Position(5, 3), True)), Vote, to=3) == [Vote(6)]
    assert (single.node.role_name, single.node.transferring) == ("follower", False)


def test_a_transfer_loses_and_repeats_nothing_and_its_clients_send_again() -> None:
    """Rule: E7, S2, S5."""
    cluster = Cluster(3, through_wire=True)
    cluster.run(1)
    assert cluster.leader() == 3
    cluster.submit(3, "s", 1, "a")
    before = cluster.node(3).route
    cluster.step(3, 3, Transfer(1))
    cluster.submit(3, "s", 2, "b")
    cluster.submit(2, "t", 1, "c")
    cluster.run(0.2)
    assert cluster.leader() == 1, "although node 2 has a higher rank"
    assert cluster.node(3).route != before
    cluster.submit(3, "s", 1, "a", "b")
    cluster.submit(2, "t", 1, "c")
    cluster.run(0.5)
    assert cluster.payloads(1) == cluster.payloads(2) == cluster.payloads(3)
    assert sorted(cluster.payloads(1)) == ["a", "b", "c"]
    assert cluster.leader() == 1
    assert not [
        event
        for member in cluster.members.values()
        for event in member.events
        if isinstance(event, ElectionStarted) and event.term > 1
    ]


def test_the_highest_live_priority_wins_among_idle_equal_logs_and_a_fresher_log_beats_it() -> None:
    """What the election rules give. Rule: E1, E2, E5."""
    cluster = Cluster(3)
    cluster.run(3)
    assert cluster.leader() == 3
    cluster.cut |= {(3, 2)}  # Under load node 2 lags behind.
    cluster.submit(3, "s", 1, "a")
    cluster.run(0.3)
    cluster.kill(3)
    cluster.cut.clear()
    cluster.run(3)
    assert cluster.leader() == 1
    assert cluster.payloads(2) == ["a"]
