"""Rules M1 to M6 of docs/protocol.md, as far as the core implements them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nodeproc.core.effects import Effects, Met, Readmitted
from nodeproc.core.events import AwaitingMembers, ElectionStarted, JoinAnswered, NodeReadmitted, UnknownMemberRefused
from nodeproc.core.messages import (
    NOTHING,
    START,
    Abstain,
    Append,
    Appended,
    Coordinator,
    Election,
    Heartbeat,
    HeartbeatAck,
    Join,
    JoinAck,
    Known,
    LinkUp,
    Members,
    NodeId,
    Position,
    Promised,
    Promises,
    Support,
    Term,
    Vote,
    VoteRequest,
)
from tests.core.cluster import Cluster
from tests.core.single import Single, events, peers_sent, sent, stretch, written

# ---- M1 joining -----------------------------------------------------------------------------------


def test_a_starting_node_announces_itself_with_its_position_to_each_peer_whose_link_opens() -> None:
    """Rule: M1."""
    single = Single(log=stretch(4, 0, 3), links=False)
    assert sent(single.give(1, LinkUp(Known("disk-1"), False, True)), Join, to=1) == [Join(Position(4, 3))]
    assert sent(single.give(3, LinkUp(Known("disk-3"), False, True)), Join, to=3) == [Join(Position(4, 3))]
    assert not sent(single.give(3, LinkUp(Known("disk-3"), False, False)), Join), (
        "over an incoming link nothing can be sent"
    )


def test_a_node_that_has_heard_a_leader_announces_itself_no_more() -> None:
    """Rule: M1."""
    single = Single()
    single.follow(1, 1)
    single.unlink(3)
    assert not sent(single.link(3), Join)


def test_a_leader_answers_join_with_itself() -> None:
    """Rule: M1."""
    single = Single()
    single.lead()
    fx = single.give(3, Join(START))
    assert sent(fx, JoinAck, to=3) == [JoinAck(single.state.term, 2)]
    assert events(fx, JoinAnswered) == [JoinAnswered(3, 2, single.state.term)]
    assert JoinAnswered(3, 2, 1).line() == "Sent JOIN_ACK to node_3 (leader node_2, term=1)"
    assert JoinAnswered(3, 0, 1).line() == "Sent JOIN_ACK to node_3 (no leader known, term=1)"


def test_a_follower_answers_join_with_the_leader_that_it_hears() -> None:
    """Rule: M1."""
    single = Single()
    single.follow(1, 7)
    assert sent(single.give(3, Join(START)), JoinAck, to=3) == [JoinAck(7, 1)]


def test_a_node_reports_no_leader_in_join_ack_if_it_does_not_hear_one() -> None:
    """Rule: M1."""
    announced_only = Single()
    announced_only.give(1, Coordinator(7))
    assert sent(announced_only.give(3, Join(START)), JoinAck) == [JoinAck(7, 0)]
    assert sent(Single(term=5).give(3, Join(START)), JoinAck) == [JoinAck(5, 0)]


def test_a_starting_node_follows_the_leader_that_a_peer_names() -> None:
    """Rule: M1."""
    single = Single()
    single.give(3, JoinAck(7, 1))
    assert single.node.route[:2] == (1, 7)


def test_a_node_that_every_peer_answered_without_a_leader_polls_at_once() -> None:
    """Rule: M1, E1."""
    single = Single()
    assert not sent(single.give(1, JoinAck(0, 0)), Election)
    assert peers_sent(single.give(3, JoinAck(0, 0)), Election) == [1, 3]


def test_a_node_waits_for_silent_peers_as_long_as_join_timeout() -> None:
    """Rule: M1."""
    single = Single(join_timeout=2.0)
    assert not sent(single.wait(1.9), Election)
    assert sent(single.wait(0.2), Election)


def test_a_restarted_cluster_waits_as_a_new_one_does() -> None:
    """Rule: M1."""
    single = Single(term=5, join_timeout=15.0)
    assert events(single.all, AwaitingMembers) == [AwaitingMembers("node_1, node_3", 15000)]
    assert not sent(single.wait(14.9), Election)
    assert sent(single.wait(0.2), Election)


@pytest.mark.parametrize(
    ("own", "told", "longer"),
    [(5.0, 0.0, 9.5), (0.1, 5.0, 10.0), (0.1, 0.2, 0.5), (12.0, 0.0, 3.0)],
    ids=["twice what it waited", "twice what the other waited", "election_timeout", "join_timeout in all"],
)
def test_a_majority_that_was_restarted_waits_for_the_others_as_long_again_as_it_took_to_come(
    own: float, told: float, longer: float
) -> None:
    """A member that is gone for good must not hold up every restart by join_timeout. Rule: M1."""
    single = Single(term=5, join_timeout=15.0)
    single.wait(own)
    fx = single.give(1, JoinAck(5, 0, told))
    assert [each.missing for each in events(fx, AwaitingMembers)] in ([], ["node_3"])
    assert not sent(single.wait(longer - 0.05), Election)
    assert sent(single.wait(0.6), Election)


def test_a_node_that_waits_itself_says_in_its_answer_for_how_long_it_has() -> None:
    """Rule: M1."""
    single = Single(term=5)
    single.wait(0.3)
    (answer,) = sent(single.give(3, Join(START)), JoinAck)
    assert answer.waited == pytest.approx(0.3)
    single.follow(1, 5)
    assert sent(single.give(3, Join(START)), JoinAck) == [JoinAck(5, 1)]


# ---- M2 no return by rank -----------------------------------------------------------------------


@pytest.mark.parametrize("through_wire", [False, True])
def test_a_restarted_node_of_the_highest_priority_follows_the_leader_that_lives(through_wire: bool) -> None:
    """Rule: M2, M1."""
    cluster = Cluster(3, through_wire=through_wire)
    cluster.run(3)
    assert cluster.leader() == 3
    cluster.kill(3)
    cluster.run(3)
    assert cluster.leader() == 2
    term = cluster.node(2).state.term
    cluster.start(3)
    cluster.run(5)
    assert cluster.leader() == 2
    assert cluster.node(3).route[:2] == (2, term)


def test_a_restarted_node_with_a_longer_log_of_its_own_follows_the_leader_that_lives() -> None:
    """Rule: M2, R2."""
    cluster = Cluster(3)
    cluster.run(3)
    cluster.cut |= {(3, 1), (3, 2)}
    cluster.submit(3, "s", 1, "only node 3 has this")
    cluster.settle()
    cluster.kill(3)
    cluster.cut.clear()
    cluster.run(3)
    cluster.start(3)
    cluster.run(3)
    assert cluster.leader() == 2
    assert set(cluster.positions().values()) == {Position(2, 0)}


# ---- M3 proof -----------------------------------------------------------------------------------


def test_nothing_is_sent_to_a_peer_before_both_ends_have_proven_themselves() -> None:
    """The handshake is the transport's; LinkUp tells that it succeeded. Rule: M3."""
    single = Single(links=False)
    single.give(1, LinkUp(Known("disk-1"), False, True))
    single.wait(5.0)
    single.give(3, Election(9, START, 3, 1))
    assert {peer for peer, _ in single.all.send} == {1}


# ---- M4 identity ----------------------------------------------------------------------------------


def test_the_identity_first_met_for_a_member_is_remembered_on_disk() -> None:
    """Rule: M4."""
    single = Single(links=False)
    assert written(single.give(1, LinkUp(Known("blue"), False, True)), Met) == [Met(1, Known("blue"))]
    assert not written(single.give(1, LinkUp(Known("blue"), False, True)), Met), "once is enough"


def test_another_identity_under_a_known_id_is_refused_and_nothing_of_it_is_taken() -> None:
    """Rule: M4."""
    single = Single()
    fx = single.link(3, "another")
    assert events(fx, UnknownMemberRefused)[0] == UnknownMemberRefused(3, "disk-3", "another")
    for frame in (VoteRequest(9, START), Election(9, START, 3, 1), Heartbeat(9, 0, START), Join(START)):
        assert not single.give(3, frame).send
    assert single.state.term == 0
    assert 3 not in peers_sent(single.wait(3.0), Election)


def test_an_unknown_member_that_returns_with_the_known_identity_is_a_member_again() -> None:
    """Rule: M4."""
    single = Single()
    single.link(3, "another")
    single.link(3)
    assert sent(single.give(3, Join(START)), JoinAck, to=3)


def test_a_peer_whose_rebuild_has_ended_when_its_link_opens_is_a_member() -> None:
    """Rule: M4."""
    single = Single()
    single.link(3, rebuilding=True)
    single.link(3)
    poll = single.poll()
    single.give(1, Abstain(poll))
    single.give(3, Support(poll))
    assert single.node.role_name == "candidate"


def test_a_wiped_node_is_refused_after_a_restart_of_the_others_too() -> None:
    """Rule: M4."""
    cluster = Cluster(3)
    cluster.run(3)
    for i in cluster.ids:
        cluster.kill(i)
    cluster.wipe(1, rebuild=False)
    for i in cluster.ids:
        cluster.start(i)
    cluster.run(3)
    assert cluster.node(1).route[0] == 0
    assert 1 in cluster.node(2).state.unknown_members
    assert 1 in cluster.node(3).state.unknown_members


def test_a_leader_sends_nothing_to_a_peer_that_returns_as_an_unknown_member() -> None:
    """Rule: M4."""
    single = Single()
    single.lead()
    single.caught_up(1)
    single.caught_up(3)
    single.give(3, LinkUp(Known("another"), False, False))
    assert peers_sent(single.submit("s", 1, "a"), Append) == [1]
    assert single.node.progress()[3] == (False, START)


def test_a_node_under_rebuild_abstains_in_polls_and_gives_no_vote() -> None:
    """Rule: M4."""
    single = Single(rebuilding=True)
    assert sent(single.give(1, Election(1, START, 1, 77)), Abstain) == [Abstain(77)]
    fx = single.give(1, VoteRequest(5, START))
    assert not sent(fx, Vote)
    assert (single.state.term, single.state.voted_for) == (5, 0), (
        "a higher term is taken over where the vote is refused"
    )


def test_a_node_under_rebuild_never_stands() -> None:
    """Rule: M4."""
    single = Single(rebuilding=True)
    poll = single.poll()
    for peer in (1, 3):
        single.give(peer, Support(poll))
    assert (single.node.role_name, single.state.term) == ("follower", 0)


def test_abstention_and_vote_of_a_node_under_rebuild_do_not_count() -> None:
    """Rule: M4, E5."""
    single = Single(members=(1, 2, 3))
    single.link(3, "new", rebuilding=True)
    poll = single.poll()
    single.give(3, Abstain(poll))
    single.give(1, Support(poll))
    assert single.node.role_name == "candidate"
    single.give(3, Vote(single.state.term))
    assert single.node.role_name == "candidate"
    single.give(1, Vote(single.state.term))
    assert single.node.role_name == "leader"


def test_acknowledgements_of_a_node_under_rebuild_do_not_count() -> None:
    """Rule: M4, C1."""
    single = Single()
    single.lead()
    single.link(3, "new", rebuilding=True)
    single.caught_up(3)
    single.submit("s", 1, "a")
    single.give(3, Appended(single.state.term, single.state.log.position))
    assert single.state.commit_seq == 0
    single.caught_up(1)
    assert single.state.commit_seq == 1


def test_the_answers_of_a_node_under_rebuild_do_not_keep_a_leader() -> None:
    """Rule: M4, F3."""
    single = Single()
    single.lead()
    single.link(3, "new", rebuilding=True)
    for _ in range(6):
        single.wait(0.1)
        single.give(3, HeartbeatAck(single.state.term, START))
    assert single.node.role_name == "follower"


def test_acknowledgements_of_the_lost_disk_are_dropped() -> None:
    """Rule: M4, C1."""
    single = Single()
    single.lead()
    single.caught_up(3)
    assert single.node.progress()[3] == (True, single.state.log.position)
    single.link(3, "new", rebuilding=True)
    assert single.node.progress()[3] == (False, START)


def test_acknowledgements_of_a_peer_that_was_only_away_still_count() -> None:
    """Rule: M4, C1."""
    single = Single()
    single.lead()
    single.caught_up(3)
    position = single.state.log.position
    assert single.unlink(3).send == []
    assert 3 not in peers_sent(single.submit("s", 1, "a"), Append)
    single.link(3)
    assert single.node.progress()[3] == (False, position)


def test_a_rebuilt_node_is_no_member_before_a_later_record_is_durable_on_a_majority_without_it() -> None:
    """Rule: M4."""
    single = Single(members=(1, 2, 3))
    single.lead()
    single.link(3, "new", rebuilding=True)
    single.caught_up(3)
    single.submit("s", 1, "after the joining")
    single.give(3, Appended(single.state.term, single.state.log.position))
    single.wait(0.15)
    assert 3 in single.state.learners, "nobody but itself and the leader has the record"
    single.caught_up(1)
    fx = single.wait(0.1)
    assert written(fx, Met) == [Met(3, Known("new", single.state.term, 1))]
    assert sent(fx, Members, to=1)[0].identities[3].identity == "new"
    assert events(fx, NodeReadmitted)
    assert 3 not in single.state.learners
    assert sent(single.wait(0.1), Members, to=3)[0].identities[3].identity == "new"


def test_a_rebuilt_node_in_an_idle_cluster_is_readmitted_in_a_new_term() -> None:
    """Rule: M4."""
    cluster = Cluster(3)
    cluster.run(3)
    cluster.submit(1, "s", 1, "a")
    cluster.run(1)
    term = cluster.node(cluster.leader()).state.term
    cluster.kill(1)
    cluster.wipe(1, rebuild=True)
    cluster.start(1)
    cluster.run(5)
    assert not cluster.node(1).state.rebuilding
    assert cluster.node(cluster.leader()).state.term == term + 1
    assert cluster.payloads(1) == ["a"]
    cluster.kill(2)
    cluster.submit(3, "s", 2, "b")
    cluster.run(2)
    assert cluster.payloads(1) == ["a", "b"], "it counts again"


def test_members_is_sent_again_until_every_member_knows_the_rebuilt_node() -> None:
    """Rule: M4. Frames can be lost on links that stay open."""
    cluster = Cluster(3)
    cluster.run(3)
    lost = 0

    def lose_members(node_id: NodeId, fx: Effects) -> None:
        nonlocal lost
        kept = [each for each in fx.send if not isinstance(each[1], Members)]
        lost += len(fx.send) - len(kept)
        fx.send = kept

    cluster.on_perform = lose_members
    cluster.kill(1)
    cluster.wipe(1, rebuild=True)
    cluster.start(1)
    cluster.run(5)
    assert lost and cluster.node(1).state.rebuilding
    cluster.on_perform = lambda node_id, fx: None
    cluster.run(1)
    assert not cluster.node(1).state.rebuilding
    leader = cluster.leader()
    for node_id in cluster.ids:
        assert not cluster.node(node_id).state.learners
        if node_id != 1:
            assert cluster.node(node_id).state.identities[1].identity == cluster.members[1].disk.identity
    cluster.kill(leader)
    cluster.run(5)
    assert cluster.leader() != leader, "the rebuilt node and the third are a majority"


def test_a_node_that_has_not_heard_of_its_readmission_is_a_member_to_those_that_have() -> None:
    """Rule: M4. Else its leader would make it wait for a record that no majority without it may be there to hold."""
    single = Single()
    single.lead()
    single.give(1, Members({1: Known("new", 1, 1)}))
    assert not events(single.give(1, LinkUp(Known("new"), True, True)), UnknownMemberRefused)
    assert not single.state.learners
    single.give(1, LinkUp(Known("newer"), True, True))
    assert single.state.learners == {1}, "another disk is another matter"


def test_acknowledgements_during_a_rebuild_count_once_it_has_ended() -> None:
    """Rule: M4, C1."""
    cluster = Cluster(3)
    cluster.run(3)
    assert cluster.leader() == 3
    cluster.kill(1)
    cluster.wipe(1, rebuild=True)
    cluster.start(1)
    cluster.settle()
    cluster.submit(3, "s", 1, "behind its join")
    cluster.settle()
    cluster.cut = {(2, 3), (3, 2)}
    cluster.submit(3, "s", 2, "for the two of them")
    cluster.settle()
    assert cluster.node(1).state.rebuilding
    assert cluster.payloads(3) == ["behind its join"]
    cluster.run(0.4)
    assert not cluster.node(1).state.rebuilding
    assert cluster.payloads(3) == cluster.payloads(1) == ["behind its join", "for the two of them"]


def test_a_rebuilt_node_votes_only_when_its_readmission_is_durable() -> None:
    """Rule: M4."""
    single = Single(rebuilding=True, sync=False)
    single.give(1, Heartbeat(0, 0, START))
    fx = single.give(1, Members({2: Known("disk-2", 3, 1)}))
    assert written(fx, Readmitted) == [Readmitted(0)]
    assert single.state.rebuilding
    single.sync()
    assert not single.state.rebuilding


def test_a_readmitted_node_notes_and_shows_the_version_of_its_identity() -> None:
    """Rule: M4."""
    single = Single(rebuilding=True)
    assert single.state.shown == Known("disk-2")
    fx = single.give(1, Members({2: Known("disk-2", 3, 1)}))
    assert written(fx, Met) == [Met(2, Known("disk-2", 3, 1))]
    assert single.state.shown == Known("disk-2", 3, 1)


def test_a_member_whose_readmission_nobody_else_knows_any_more_is_believed() -> None:
    """Rule: M4. The leader that readmitted it may have lost its own note of it, or its disk."""
    single = Single()
    fx = single.give(3, LinkUp(Known("new", 4, 1), False, True))
    assert written(fx, Met) == [Met(3, Known("new", 4, 1))]
    assert not events(fx, UnknownMemberRefused)
    assert not single.state.learners
    for older in (Known("disk-3"), Known("another", 4, 1), Known("another", 3, 9)):
        fx = single.give(3, LinkUp(older, False, True))
        assert [each.found for each in events(fx, UnknownMemberRefused)] == [older.identity]
    assert single.state.identities[3] == Known("new", 4, 1)


def test_what_a_lost_disk_has_promised_is_forgotten_when_its_successor_shows_itself() -> None:
    """Rule: M4, M6."""
    single = Single()
    single.give(1, Promises({3: Promised("disk-3", 9, Position(9, 9))}))
    single.give(3, LinkUp(Known("new", 4, 1), False, True))
    assert 3 not in single.node.snapshot().promised


def test_a_readmitted_node_is_a_member_to_a_node_that_no_members_has_reached() -> None:
    """Rule: M4. The leader dies before it has notified any other."""
    cluster = Cluster(3)
    cluster.run(3)
    assert cluster.leader() == 3

    def lose_members(node_id: NodeId, fx: Effects) -> None:
        fx.send = [(to, message) for to, message in fx.send if to != 2 or not isinstance(message, Members)]

    cluster.on_perform = lose_members
    cluster.kill(1)
    cluster.wipe(1, rebuild=True)
    cluster.start(1)
    cluster.run(5)
    assert not cluster.node(1).state.rebuilding
    assert cluster.node(2).state.identities[1].identity != cluster.members[1].disk.identity
    cluster.kill(3)
    cluster.kill(1)
    cluster.start(1)
    cluster.run(5)
    assert cluster.leader() in (1, 2)


def test_a_node_under_rebuild_that_the_leader_names_by_its_old_identity_goes_on_rebuilding() -> None:
    """Rule: M4."""
    single = Single(rebuilding=True)
    assert not written(single.give(1, Members({2: Known("the lost disk", 3, 1)})), Readmitted)
    assert single.state.rebuilding


def test_the_link_of_an_unknown_member_is_used_again_once_members_confirms_it() -> None:
    """Rule: M4."""
    single = Single()
    single.follow(1, 4)
    single.link(3, "new")
    single.give(1, Members({1: Known("disk-1"), 2: Known("disk-2"), 3: Known("new", 4, 1)}))
    assert sent(single.give(3, Join(START)), JoinAck, to=3) == [JoinAck(4, 1)]


def test_a_node_that_was_away_during_a_rebuild_follows_the_rebuilt_leader() -> None:
    """Rule: M4."""
    cluster = Cluster(5)
    cluster.run(3)
    for i in (1, 5):
        cluster.kill(i)
    cluster.run(3)
    cluster.wipe(5, rebuild=True)
    cluster.start(5)
    cluster.run(5)
    cluster.kill(4)
    cluster.run(5)
    assert cluster.leader() == 5
    cluster.start(1)
    cluster.run(5)
    assert cluster.node(1).route[0] == 5


def test_a_replaced_data_directory_is_heard_no_more_on_a_link_that_is_open() -> None:
    """It and its successor could both vote, for two candidates in a term. Rule: M4."""
    single = Single()
    poll = single.poll()
    for peer in (1, 3):
        single.give(peer, Support(poll))
    assert single.node.role_name == "candidate"
    single.give(1, Members({3: Known("new", 4, 1)}))
    single.give(3, Vote(single.state.term))
    assert single.node.role_name == "candidate"
    single.link(3, "new")
    single.give(3, Vote(single.state.term))
    assert single.node.role_name == "leader"


def test_what_a_replaced_data_directory_has_promised_counts_no_more() -> None:
    """Rule: M4, C1, E5."""
    leader = Single()
    leader.lead()
    leader.caught_up(3)
    leader.give(1, Members({3: Known("new", 4, 1)}))
    assert leader.node.progress()[3] == (False, START)
    assert not peers_sent(leader.submit("s", 1, "a"), Append)
    candidate = Single(members=(1, 2, 3, 4, 5))
    poll = candidate.poll()
    for peer in (1, 3, 4, 5):
        candidate.give(peer, Support(poll))
    candidate.give(3, Vote(candidate.state.term))
    candidate.give(1, Members({3: Known("new", 4, 1)}))
    candidate.give(4, Vote(candidate.state.term))
    assert candidate.node.role_name == "candidate"


def test_a_node_under_rebuild_believes_members_more_than_whom_it_has_met() -> None:
    """It may have met a lost disk, which those that know the member refuse. Rule: M4."""
    single = Single(rebuilding=True)
    single.link(3, "a lost disk")
    single.state.identities[3] = Known("a lost disk")
    single.give(1, Members({2: Known("disk-2", 4, 1), 3: Known("disk-3")}))
    assert single.state.identities[3] == Known("disk-3")
    assert not single.give(3, Election(9, START, 3, 1)).send, "it is heard no more"


def test_older_knowledge_of_a_members_data_directory_changes_nothing() -> None:
    """Rule: M4."""
    single = Single()
    single.give(1, Members({3: Known("newer", 4, 2)}))
    for older in (Known("older", 4, 1), Known("oldest"), Known("another", 4, 2)):
        assert not written(single.give(1, Members({3: older})), Met)
    assert single.state.identities[3].identity == "newer"


def test_a_node_that_hears_a_leader_starts_no_poll() -> None:
    """Rule: M2, E1."""
    single = Single(node_id=3)
    single.follow(1, 4)
    assert not events(single.give(2, Election(5, START, 2, 1)), ElectionStarted)


# ---- M6 promises ----------------------------------------------------------------------------------


def up(promised: Promised, identity: str = "disk-1") -> LinkUp:
    return LinkUp(Known(identity), False, True, promised)


@pytest.mark.parametrize(
    ("promised", "stops"),
    [
        (Promised("disk-2", 4, Position(4, 4)), True),
        (Promised("disk-2", 4, Position(4, 3)), False),
        (Promised("disk-2", 5, START), True),
        (Promised("disk-2", 4, Position(3, 9)), False),
        (Promised("disk-2", 3, Position(3, 9)), False),
        (Promised("disk-2, lost long ago", 9, Position(9, 9)), False),
        (NOTHING, False),
    ],
)
@pytest.mark.parametrize("told_by", ["link", "frame"])
def test_a_node_whose_data_is_older_than_its_promises_stops(promised: Promised, stops: bool, told_by: str) -> None:
    """Records that it dropped under a higher term were not promised in that term. Rule: M6."""
    single = Single(log=stretch(4, 0, 3))
    fx = single.give(1, up(promised) if told_by == "link" else Promises({2: promised, 3: NOTHING}))
    assert bool(fx.halt) is stops
    if stops:
        assert "older than what it promised" in fx.halt and "--rebuild" in fx.halt
        assert not fx.persist and not fx.send


def test_a_promise_in_the_term_that_is_being_written_is_judged_by_the_disk() -> None:
    """Behind the pledge the forgotten term would be its own again. Rule: M6, E6."""
    single = Single(log=stretch(4, 0, 3), sync=False)
    assert not single.give(3, Heartbeat(9, 0, START)).halt
    assert single.give(1, up(Promised("disk-2", 6, Position(6, 5)))).halt


def leading_with_an_acknowledgement() -> tuple[Single, Term]:
    """A leader whose peer 1 has acknowledged message 1, and its term."""
    single = Single()
    single.lead()
    term = single.state.term
    single.caught_up(1)
    single.submit("s", 1, "a")
    single.give(1, Appended(term, Position(term, 1)))
    return single, term


def test_a_leader_knows_what_its_followers_acknowledged_and_passes_it_on() -> None:
    """Rule: M6."""
    single, term = leading_with_an_acknowledgement()
    told = sent(single.wait(1.0), Promises, to=3)[-1].promised
    assert told[1] == Promised("disk-1", term, Position(term, 1))
    assert told[2] == Promised("disk-2", term, Position(term, 1)), "its own copy counts too"


def test_promises_known_to_a_leader_survive_loss_of_leadership_and_restart() -> None:
    """Rule: M6, K4."""
    single, term = leading_with_an_acknowledgement()
    single.give(3, Heartbeat(term + 1, 0, START))
    known = Promised("disk-1", term, Position(term, 1))
    assert single.state.promises()[1] == known
    assert single.node.snapshot().promised[1] == known


def test_the_voter_and_the_candidate_remember_each_others_vote() -> None:
    """Rule: M6, E4."""
    voter = Single()
    voter.give(3, VoteRequest(7, START))
    assert voter.state.promises()[3] == Promised("disk-3", 7)
    candidate = Single()
    candidate.give(1, Support(candidate.poll()))
    candidate.give(1, Vote(candidate.state.term))
    assert candidate.state.promises()[1] == Promised("disk-1", candidate.state.term)


def test_a_follower_keeps_the_highest_promises_it_has_received() -> None:
    """Rule: M6."""
    single = Single()
    more, less = Promised("disk-3", 5, Position(4, 7)), Promised("disk-3", 4, Position(4, 9))
    for told in (more, less, Promised("another", 9, Position(9, 9))):
        single.give(1, Promises({3: told, 8: told}))
    assert single.state.promises() == {3: Promised("disk-3", 5, Position(4, 9))}


def test_the_promises_of_a_lost_disk_are_dropped() -> None:
    """Rule: M6, M4."""
    single = Single()
    single.give(1, Promises({3: Promised("disk-3", 5, Position(5, 7))}))
    single.give(1, Members({3: Known("new", 6, 1)}))
    assert 3 not in single.state.promises()


@pytest.mark.parametrize("through_wire", [False, True])
def test_a_disk_put_back_from_an_older_copy_is_refused_by_a_follower_alone(through_wire: bool) -> None:
    """The leader is dead, and the follower lacks what the copy forgets: together they would lose it. Rule: M6, A4."""
    cluster = Cluster(3, through_wire=through_wire)
    cluster.run(3)
    copy = replace(cluster.members[2].disk, ops=list(cluster.members[2].disk.ops))
    cluster.cut |= {(3, 1)}
    cluster.submit(3, "s", 1, "acknowledged by 2 and 3")
    cluster.run(0.2)
    assert cluster.node(3).state.delivered_seq == 1
    cluster.cut.clear()
    cluster.queues[3, 1].clear()
    cluster.step(1, 3, Promises(cluster.node(3).state.promises()))
    cluster.kill(3)
    cluster.kill(2)
    cluster.put_back(2, copy)
    cluster.start(2)
    cluster.run(5)
    assert "older than what it promised" in cluster.members[2].halted
    assert cluster.node(1).route[0] == 0, "nobody leads, and nothing is lost"
    cluster.start(3)
    cluster.run(5)
    assert cluster.leader() == 3 and cluster.node(1).state.delivered_seq == 1
