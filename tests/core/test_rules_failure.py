"""Rules F1 to F4 of docs/protocol.md: heartbeats, suspicion, a leader without a quorum, and a stalled disk."""

from __future__ import annotations

import pytest

from nodeproc.core import failure
from nodeproc.core.events import (
    BecameFollower,
    DiskAnswered,
    DiskStalled,
    HeartbeatReceived,
    HeartbeatSent,
    LeaderTimeout,
    QuorumLost,
)
from nodeproc.core.messages import (
    START,
    Abstain,
    Append,
    Appended,
    CatchUp,
    Commit,
    Coordinator,
    Election,
    Heartbeat,
    HeartbeatAck,
    Input,
    Join,
    JoinAck,
    Known,
    LinkDown,
    LinkUp,
    Members,
    Position,
    Resume,
    Submit,
    Support,
    TermIs,
    Vote,
    VoteRequest,
)
from tests.core.single import Single, appends, events, peers_sent, sent, stretch

TERM = 4


def following(leader: int = 1) -> Single:
    """Node 2, hears node 1 as leader of TERM since this moment."""
    single = Single(log=stretch(TERM, 0, 2))
    single.follow(leader, TERM)
    return single


def leading(members: tuple[int, ...] = (1, 2, 3)) -> Single:
    single = Single(members=members)
    single.lead()
    return single


# ---- F1 heartbeats --------------------------------------------------------------------------------


def test_the_leader_sends_a_heartbeat_to_every_peer_each_heartbeat_interval() -> None:
    """Rule: F1."""
    single = leading()
    single.caught_up(1)
    single.submit("s", 1, "a")
    single.give(1, Appended(1, single.state.log.position))
    fx = single.wait(0.1001)
    assert sent(fx, Heartbeat, to=1) == [Heartbeat(1, 1, Position(1, 1))]
    assert sent(fx, Heartbeat, to=3) == [Heartbeat(1, 1, Position(1, 1))], "what node 3 has to ask for"


def test_the_interval_of_heartbeats_is_the_configured_one() -> None:
    """Rule: F1."""
    single = Single(heartbeat_interval=0.25, election_timeout=100.0)
    single.lead()
    assert len(sent(single.wait(2.55), Heartbeat, to=1)) == 10


def test_a_heartbeat_that_is_a_little_late_does_not_shift_the_rhythm_and_a_long_pause_brings_no_burst() -> None:
    """Rule: F1."""
    single = Single(election_timeout=100.0)
    single.lead()
    due = single.node.next_deadline()
    single.now = due + 0.03
    assert len(sent(single.node.tick(single.now), Heartbeat, to=1)) == 1
    assert single.node.next_deadline() == pytest.approx(due + 0.1)
    single.now += 7.0
    assert len(sent(single.wait(0.05), Heartbeat, to=1)) == 1


def test_heartbeats_are_reported_on_both_sides() -> None:
    """Rule: F1."""
    assert events(leading().wait(0.1001), HeartbeatSent) == [HeartbeatSent(2, 1)]
    assert events(following().give(1, Heartbeat(TERM, 0, START)), HeartbeatReceived) == [HeartbeatReceived(1, TERM)]


def test_a_follower_answers_every_heartbeat_with_its_durable_position() -> None:
    """Rule: F1."""
    single = following()
    single.auto_sync = False
    single.give(1, appends(TERM, Position(TERM, 2), stretch(TERM, 2, 1)[1:])[0])
    beat = Heartbeat(TERM, 0, Position(TERM, 3))
    for _ in range(2):
        assert sent(single.give(1, beat), HeartbeatAck, to=1) == [HeartbeatAck(TERM, Position(TERM, 2))]
    single.sync()
    assert sent(single.give(1, beat), HeartbeatAck, to=1) == [HeartbeatAck(TERM, Position(TERM, 3))]


# ---- F2 suspicion -----------------------------------------------------------------------------------


def test_a_follower_suspects_a_leader_that_is_silent_for_election_timeout() -> None:
    """Rule: F2."""
    single = following()
    assert not events(single.wait(0.49), LeaderTimeout)
    assert events(single.wait(0.02), LeaderTimeout) == [LeaderTimeout(1, "not heard")]
    assert single.state.leader_id == 0


def hear_regularly(single: Single, pause: float, times: int = 11) -> None:
    """Node 1's heartbeats, so many seconds apart."""
    for _ in range(times):
        single.wait(pause)
        single.give(1, Heartbeat(TERM, 0, Position(TERM, 2)))


@pytest.mark.parametrize(
    ("pause", "silence"),
    [(0.01, 0.225), (0.1, 0.225), (0.13, 0.35), (0.4, 0.5)],
    ids=["at least 45 % of election_timeout", "that too", "2 intervals and 5 delays", "at most election_timeout"],
)
def test_a_leader_is_suspected_after_a_silence_that_its_heartbeats_do_not_explain(pause: float, silence: float) -> None:
    """Rule: F2."""
    single = following()
    hear_regularly(single, pause)
    assert not events(single.wait(silence - 0.01), LeaderTimeout)
    assert events(single.wait(0.02), LeaderTimeout)


def test_the_longest_delay_counts_for_minutes_and_what_was_learnt_holds_for_the_next_leader() -> None:
    """Busy cores delay a leader every few minutes. Rule: F2."""
    single = following()
    hear_regularly(single, 0.1)
    hear_regularly(single, 0.14, 1)
    hear_regularly(single, 0.1, 3000)
    single.follow(3, TERM + 1)
    assert not events(single.wait(0.34), LeaderTimeout)
    assert events(single.wait(0.03), LeaderTimeout)


def test_a_pause_in_which_the_own_process_stood_still_is_not_learnt() -> None:
    """Rule: F2."""
    single = following()
    hear_regularly(single, 0.1)
    single.node.stood_still()
    hear_regularly(single, 0.2, 1)
    assert events(single.wait(0.23), LeaderTimeout)


def test_a_wrong_suspicion_extends_the_allowed_silence() -> None:
    """Rule: F2."""
    single = following()
    hear_regularly(single, 0.1)
    assert events(single.wait(0.3), LeaderTimeout)
    single.give(1, Heartbeat(TERM, 0, Position(TERM, 2)))
    assert single.state.leader_id == 1
    assert not events(single.wait(0.49), LeaderTimeout)


def test_a_suspicion_that_was_right_teaches_nothing_when_that_node_leads_again() -> None:
    """Rule: F2. The node that won the election meanwhile has heard no other leader in between."""
    single = following()
    hear_regularly(single, 0.1)
    assert events(single.wait(0.3), LeaderTimeout)
    for _ in range(100):
        single.wait(0.1)
    later = max(single.state.term, TERM) + 3
    for _ in range(3):
        single.give(1, Heartbeat(later, 0, Position(TERM, 2)))
        single.wait(0.1)
    assert single.state.leader_id == 1
    assert events(single.wait(0.3), LeaderTimeout)


def test_a_leader_is_heard_by_heartbeat_append_and_resume() -> None:
    """Rule: F2."""
    frames: list[Input] = [
        Heartbeat(TERM, 0, Position(TERM, 2)),
        appends(TERM, Position(TERM, 2), stretch(TERM, 2, 1)[1:])[0],
        Resume(TERM, Position(TERM, 2), 1),
    ]
    for frame in frames:
        single = following()
        single.wait(0.4)
        single.give(1, frame)
        assert not events(single.wait(0.4), LeaderTimeout), frame


@pytest.mark.parametrize(
    "frame",
    [
        Commit(TERM, 2),
        Coordinator(TERM),
        JoinAck(TERM, 1),
        Members({1: Known("disk-1")}),
        CatchUp(TERM, (), 0, 1),
        HeartbeatAck(TERM, START),
        Submit("s", 101, 0, 1, ("a",)),
        TermIs(TERM),
        Heartbeat(TERM - 1, 0, START),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_a_leader_is_not_heard_by_other_frames_nor_by_those_of_an_older_term(frame: Input) -> None:
    """Rule: F2."""
    single = following()
    single.wait(0.4)
    single.give(1, frame)
    assert events(single.wait(0.2), LeaderTimeout)


def test_a_leader_that_was_only_announced_is_not_heard_yet() -> None:
    """Rule: F2, E1."""
    single = Single()
    single.give(1, Coordinator(TERM))
    assert sent(single.give(3, JoinAck(TERM, 1)), Vote) == []
    assert single.state.leader_id == 1
    fx = single.give(3, VoteRequest(TERM + 1, START))
    assert sent(fx, Vote, to=3), "E4 protects a leader that is heard, not one that is announced"


def test_a_leader_silent_for_election_timeout_is_not_heard_even_before_the_tick_that_says_so() -> None:
    """Rule: F2, E4."""
    single = following()
    single.now += 0.51
    assert sent(single.give(3, VoteRequest(TERM + 1, Position(9, 9))), Vote, to=3)


def test_a_lost_link_makes_the_follower_suspect_at_once_and_ask_around() -> None:
    """Rule: F2, E1."""
    single = following()
    fx = single.give(1, LinkDown())
    assert events(fx, LeaderTimeout) == [LeaderTimeout(1, "the link is lost")]
    assert peers_sent(fx, Election) == [3]


def test_a_lost_link_to_another_peer_is_no_reason_to_suspect() -> None:
    """Rule: F2."""
    assert not events(following().give(3, LinkDown()), LeaderTimeout)


@pytest.mark.parametrize(
    "frame", [Join(START), Election(9, START, 1, 1), VoteRequest(9, START)], ids=lambda frame: type(frame).__name__
)
def test_join_election_and_vote_request_of_the_leader_itself_tell_that_it_leads_no_more(frame: Input) -> None:
    """Rule: F2."""
    assert events(following().give(1, frame), LeaderTimeout)
    assert not events(following().give(3, frame), LeaderTimeout), "from another peer they tell nothing"


# ---- F3 no quorum -----------------------------------------------------------------------------------


def test_a_leader_without_answers_steps_down_after_election_timeout() -> None:
    """Rule: F3."""
    single = leading()
    assert not events(single.wait(0.45), QuorumLost)
    assert events(single.wait(0.2), QuorumLost) == [QuorumLost(1)]
    assert (single.node.role_name, single.state.term) == ("follower", 1)


@pytest.mark.parametrize("kind", [HeartbeatAck, Appended])
def test_heartbeat_ack_and_appended_keep_a_leader(kind: type[HeartbeatAck] | type[Appended]) -> None:
    """Rule: F3."""
    single = leading()
    for _ in range(10):
        single.give(1, kind(1, START))
        single.wait(0.2)
    assert single.node.role_name == "leader"


@pytest.mark.parametrize(
    "frame",
    [
        HeartbeatAck(0, START),
        Appended(0, START),
        CatchUp(1, (), 0, 5),
        Join(START),
        Election(2, START, 1, 1),
        Support(1),
        Vote(1),
        Submit("s", 101, 0, 1, ("a",)),
        LinkUp(Known("disk-1"), False, True),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_other_frames_and_answers_of_an_older_term_keep_no_leader(frame: Input) -> None:
    """Rule: F3."""
    single = leading()
    for _ in range(6):
        single.give(1, frame)
        single.wait(0.1)
    assert single.node.role_name == "follower"


def test_of_five_two_must_answer() -> None:
    """Rule: F3."""
    for answering, role in [((1,), "follower"), ((1, 3), "leader")]:
        single = leading((1, 2, 3, 4, 5))
        for _ in range(6):
            for peer in answering:
                single.give(peer, HeartbeatAck(1, START))
            single.wait(0.1)
        assert single.node.role_name == role, answering


def test_a_leader_of_one_needs_no_answer() -> None:
    """Rule: F3, E5."""
    single = Single(1, (1,))
    single.wait(5.0)
    assert single.node.role_name == "leader"
    assert [r.position.seq_no for r in single.submit("s", 1, "a").deliver if r.body] == [1]


def test_a_leader_that_stepped_down_tells_its_clients_that_it_has_no_quorum_until_it_finds_a_leader() -> None:
    """Rule: F3."""
    single = leading()
    before = single.node.route
    single.wait(0.65)
    assert single.node.route[0] == 0
    assert single.node.route != before
    assert [refusal.reason for refusal in single.submit("s", 1, "a").reply] == ["no_quorum"]
    single.follow(3, 2)
    single.unlink(3)
    assert [refusal.reason for refusal in single.submit("s", 1, "a").reply] == ["no_leader"]


def test_a_leader_that_stepped_down_never_delivers_uncommitted_messages() -> None:
    """Rule: F3, C1."""
    single = leading()
    single.caught_up(1)
    single.submit("s", 1, "a")
    single.wait(0.65)
    fx = single.give(1, Appended(1, Position(1, 1)))
    assert not fx.deliver
    assert single.state.commit_seq == 0


def test_a_leader_may_hear_peers_that_do_not_hear_it_and_steps_down_all_the_same() -> None:
    """Rule: F3."""
    single = leading()
    for poll in range(8):
        for peer in (1, 3):
            single.give(peer, Election(2, START, peer, poll))
        single.wait(0.1)
    assert single.node.role_name == "follower"
    assert not sent(single.all, Append)


# ---- F4 own disk ------------------------------------------------------------------------------------


def stalled(single: Single) -> Single:
    """Its disk has owed an answer for election_timeout."""
    single.auto_sync = False
    single.submit("s", 1, "a")
    single.wait(0.3)
    for peer in single.state.peers:
        single.give(peer, HeartbeatAck(single.state.term, START))
    single.wait(0.21)
    assert single.state.stalled
    return single


def test_a_disk_that_owes_an_answer_for_election_timeout_is_reported_and_its_answer_too() -> None:
    """Rule: F4."""
    single = leading()
    single.auto_sync = False
    single.submit("s", 1, "a")
    assert not events(single.wait(0.49), DiskStalled)
    assert events(single.wait(0.02), DiskStalled) == [DiskStalled(500)]
    assert single.node.route[0] == 0, "no leader for its clients"
    assert events(single.sync(), DiskAnswered) == [DiskAnswered(510)]
    assert single.node.route[0] == 2


def test_a_disk_known_as_slow_has_twice_the_time_that_it_took_before_besides() -> None:
    """Rule: F4."""
    single = Single(election_timeout=100.0)
    single.lead()
    single.auto_sync = False
    single.submit("s", 1, "a")
    single.wait(20.0)
    single.sync()
    single.submit("s", 2, "b")
    single.wait(10.0)
    assert failure.disk_deadline(single.state) == pytest.approx(single.now - 10.0 + 140.0)


def test_a_leader_with_a_stalled_disk_gives_way_once_a_majority_without_it_is_ahead() -> None:
    """Rule: F4."""
    single = stalled(leading())
    single.wait(0.1)
    assert single.node.role_name == "leader", "the others have no more on their disks than it has"
    ahead = single.state.log.position
    single.give(1, Appended(1, ahead))
    single.wait(0.1)
    assert single.node.role_name == "leader", "one of two peers is no majority"
    single.give(3, Appended(1, ahead))
    fx = single.wait(0.11)
    assert events(fx, BecameFollower) == [BecameFollower(1, "its disk does not answer")]
    assert peers_sent(fx, Election) == [1, 3], "which tells them that it leads no more"


def test_a_leader_whose_disk_hangs_over_no_record_gives_way_to_a_majority_that_has_its_whole_log() -> None:
    """It refuses messages, so no follower could ever get ahead of it. Rule: F4."""
    single = leading()
    single.caught_up(1)
    single.auto_sync = False
    single.give(1, Members({3: Known(single.state.presented[3], 1, 1)}))
    single.wait(0.3)
    end = single.state.log.position
    for peer in (1, 3):
        single.give(peer, HeartbeatAck(1, START))
    single.wait(0.3)
    assert single.state.stalled
    assert single.node.role_name == "leader", "node 3 is not known to have the log"
    single.give(3, Appended(1, end))
    assert events(single.wait(0.11), BecameFollower) == [BecameFollower(1, "its disk does not answer")]


def test_a_node_with_a_stalled_disk_neither_stands_nor_votes_nor_takes_over_a_term_and_says_that_it_abstains() -> None:
    """Rule: F4, E1, E4, E6."""
    single = stalled(leading())
    for peer in (1, 3):
        single.give(peer, Appended(1, single.state.log.position))
    single.wait(0.11)
    poll = single.state.poll
    assert poll is not None
    for peer in (1, 3):
        single.give(peer, Support(poll.number))
    assert (single.node.role_name, single.state.pledge) == ("follower", None)
    single.give(1, Heartbeat(7, 0, START))
    single.give(3, VoteRequest(7, Position(9, 9)))
    assert (single.state.term, single.state.pledge) == (1, None)
    assert sent(single.give(1, Election(7, START, 1, 9)), Abstain, to=1) == [Abstain(9)]
    single.sync()
    single.give(1, Heartbeat(7, 0, START))
    assert single.state.pledge is not None, "its disk answers"


def test_a_node_with_a_stalled_disk_refuses_messages_also_those_that_wait_behind_a_pledge() -> None:
    """Rule: F4, S2."""
    assert [refusal.reason for refusal in stalled(leading()).submit("s", 2, "b").reply] == ["disk_stalled"]
    single = Single(sync=False)
    single.give(1, Heartbeat(TERM, 0, START))
    assert single.state.pledge is not None
    assert not single.submit("s", 1, "a").reply
    assert [refusal.reason for refusal in single.wait(0.51).reply] == ["disk_stalled"]
    assert [refusal.reason for refusal in single.submit("s", 1, "a").reply] == ["disk_stalled"]


def test_inputs_kept_back_by_a_pledge_are_bounded_in_bytes_and_keep_the_latest_change_of_a_link() -> None:
    """Rule: F4, E6."""
    single = Single(sync=False, buffer_max_bytes=1000)
    single.give(1, Heartbeat(TERM, 0, START))
    for number in range(100):
        single.give(1, appends(TERM, START, stretch(TERM, 0, 1))[0])
        single.unlink(3)
        single.link(3, f"disk-3-{number}")
    backlog = single.node._backlog
    assert len([each for each in backlog if isinstance(each.message, Append)]) < 20
    assert len([each for each in backlog if each.sender == 3]) == 3


def test_a_leader_commits_no_further_than_its_own_disk_once_undelivered_records_reach_their_limit() -> None:
    """Rule: P1, C1."""
    single = Single(inflight_max_bytes=1000)
    single.lead()
    single.caught_up(1)
    single.caught_up(3)
    single.auto_sync = False
    for n in range(1, 21):
        single.submit("s", n, "x" * 100)
        for peer in (1, 3):
            single.give(peer, Appended(1, single.state.log.position))
    assert 2 <= single.state.commit_seq < 20
    single.sync()
    assert single.state.commit_seq == 20
