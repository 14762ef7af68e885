"""Rules G1 to G5 of docs/protocol.md: the list of members, changes, newcomers, counting, removal."""

from __future__ import annotations

from typing import Any

import pytest

from nodeproc.core import changes
from nodeproc.core.effects import Effects, Met
from nodeproc.core.events import (
    ChangeRefused,
    ChangeStarted,
    ElectionStarted,
    Event,
    MembersChanged,
    MembersCommitted,
    NodeRemoved,
    UnknownMemberRefused,
)
from nodeproc.core.messages import (
    START,
    Abstain,
    AddNode,
    Appended,
    CatchUp,
    Coordinator,
    Election,
    Heartbeat,
    HeartbeatAck,
    Join,
    Known,
    LinkUp,
    MemberAddress,
    MemberList,
    Members,
    MembersMark,
    Ok,
    Position,
    Record,
    Removed,
    RemoveNode,
    Resume,
    Support,
    Transfer,
    Vote,
    VoteRequest,
)
from tests.core.cluster import Cluster
from tests.core.single import SEALER, Single, appends, events, peers_sent, sent, stretch, written

FOUR = AddNode(4, "h4", 4)
WITH_LEARNER = MemberList(1, (1, 2, 3), learners=(4,), addresses=(MemberAddress(4, "h4", 4),))
WITH_FOUR = MemberList(2, (1, 2, 3, 4), addresses=(MemberAddress(4, "h4", 4),))


def listed(members: MemberList, term: int = 5, after: int = 3, leader: int = 1) -> Record:
    """A mark with this list."""
    return SEALER.mark(MembersMark(term, leader, after, members))


def leading(members: MemberList | None = None, **settings: Any) -> Single:
    """Node 2 leads term 6 (5 without a list); its mark is committed: the other voters have acknowledged its log."""
    log = [*stretch(4, 0, 3), *([] if members is None else [listed(members)])]
    single = Single(log=log, **settings)
    single.lead()
    for peer in single.state.electors:
        single.caught_up(peer)
    return single


def grown(size: int = 3, new: int = 4, **settings: Any) -> Cluster:
    """A cluster of `size` founders to which one node was added, under load."""
    cluster = Cluster(size, through_wire=True, **settings)
    cluster.run(1)
    cluster.submit(1, "s", 1, "a")
    cluster.run(0.2)
    cluster.newcomer(new)
    cluster.change(AddNode(new, f"h{new}", new), 3)
    return cluster


def told(cluster: Cluster, kind: type[Event]) -> dict[int, list[Any]]:
    """The events of a kind, by node."""
    return {i: [each for each in member.events if type(each) is kind] for i, member in cluster.members.items()}


# ---- G1 the list ------------------------------------------------------------------------------------


def test_a_cluster_of_founders_has_no_list_and_its_marks_are_those_of_always() -> None:
    """Rule: G1."""
    single = leading()
    assert single.node.members is None and single.state.voters == (1, 2, 3)
    mark = next(op for op in written(single.all, Record) if not op.body and op.position.term == 5)
    body = mark.raw[12:]
    assert body == b'{"kind":"mark","term":5,"leader":2,"after":3}'


def test_the_list_in_force_is_that_of_the_last_mark_as_written() -> None:
    """Rule: G1."""
    single = Single(log=stretch(4, 0, 3))
    single.follow(1, 5)
    single.auto_sync = False
    route = single.node.route
    fx = single.give(1, appends(5, Position(4, 3), [listed(WITH_FOUR)])[0])
    assert single.node.route != route, "clients are sent the addresses of the new list"
    assert single.state.durable < Position(5, 3), "not even durable here"
    assert (single.node.members, single.state.majority) == (WITH_FOUR, 3)
    assert events(fx, MembersChanged) == [MembersChanged(5, 2, (1, 2, 3, 4), (), ())]


def test_a_truncation_restores_the_list_before() -> None:
    """Rule: G1, R2."""
    log = [*stretch(4, 0, 3), listed(WITH_LEARNER, 5), listed(WITH_FOUR, 6)]
    single = Single(log=log)
    assert single.node.members == WITH_FOUR
    single.give(3, Heartbeat(7, 0, START))
    route = single.node.route
    fx = single.give(3, Resume(7, Position(5, 3), single.request()))
    assert single.node.members == WITH_LEARNER and single.node.route != route
    assert events(fx, MembersChanged) == [MembersChanged(5, 1, (1, 2, 3), (4,), ())]
    fx = single.follow(1, 8, Position(4, 3))
    assert single.node.members is None and single.state.voters == (1, 2, 3)
    assert events(fx, MembersChanged) == [MembersChanged(4, 0, (1, 2, 3), (), ())]


def test_a_restart_finds_the_list_in_its_log() -> None:
    """Rule: G1."""
    log = [*stretch(4, 0, 3), listed(WITH_FOUR), *stretch(6, 3, 1)[:0]]
    assert Single(log=log).node.members == WITH_FOUR
    assert Single(log=log, delivered=3).state.peers == (1, 3, 4)


def test_the_mark_of_every_later_leader_repeats_the_list() -> None:
    """Rule: G1, E5."""
    single = leading(WITH_FOUR)
    assert single.state.log.marks[-1] == MembersMark(6, 2, 3, WITH_FOUR)
    assert not events(single.all, MembersChanged), "it has not changed"


def test_a_mark_that_repeats_the_list_changes_no_route() -> None:
    """Each change of the route makes the clients send all that is not acknowledged again. Rule: G1, S5."""
    single = Single(log=[*stretch(4, 0, 3), listed(WITH_FOUR)])
    single.follow(1, 6)
    route = single.node.route
    single.give(1, appends(6, Position(5, 3), [listed(WITH_FOUR, 6)])[0])
    assert single.state.log.position == (6, 3) and single.node.route == route
    single.follow(3, 7)
    route = single.node.route
    single.give(3, appends(7, Position(6, 3), [listed(WITH_LEARNER, 7)])[0])
    assert single.node.route != route


# ---- G2 a change ------------------------------------------------------------------------------------


def test_a_leader_stands_under_the_old_list_and_its_mark_has_the_new_one() -> None:
    """Rule: G2, E3, E5."""
    single = leading(sync=False)
    single.sync()
    fx = single.give(2, FOUR)
    assert events(fx, ChangeStarted) == [ChangeStarted(5, "add node_4 at h4:4")]
    assert single.node.role_name == "candidate" and single.node.members is None
    assert peers_sent(single.sync(), VoteRequest) == [1, 3]
    fx = single.give(1, Vote(6))
    assert single.node.role_name == "leader", "two of three, by the old list"
    assert single.state.log.marks[-1] == MembersMark(6, 2, 3, WITH_LEARNER)
    assert peers_sent(fx, Coordinator) == [1, 3]
    single.link(4)
    assert list(single.leading.progress) == [1, 3, 4]


def test_a_lost_candidacy_loses_the_new_list() -> None:
    """Rule: G2."""
    single = leading()
    single.give(2, FOUR)
    single.wait(5)
    assert single.node.role_name != "candidate" or single.state.term > 6
    single.lead()
    assert single.node.members is None


def test_no_change_begins_before_the_leader_s_own_mark_is_committed() -> None:
    """The single-server bug of 2015: without this, lists of two leaders could share no majority. Rule: G2."""
    single = Single(log=stretch(4, 0, 3))
    single.lead()
    reason = "the mark of term 5 is not committed yet; ask again"
    assert single.node.change_refusal(FOUR) == reason
    fx = single.give(2, FOUR)
    assert events(fx, ChangeRefused) == [ChangeRefused(5, "add node_4 at h4:4", reason)]
    assert single.node.role_name == "leader"
    single.give(1, Appended(5, Position(4, 3)))
    assert single.node.change_refusal(FOUR) == reason, "it has the records, but not the mark"
    single.give(1, Appended(5, Position(5, 3)))
    assert single.node.change_refusal(FOUR) == ""


def test_a_change_is_refused_while_the_one_before_is_not_committed() -> None:
    """Rule: G2."""
    single = leading()
    single.give(2, RemoveNode(3))
    single.give(1, Vote(6))
    assert single.node.members == MemberList(1, (1, 2), removed=(3,))
    assert single.node.change_refusal(FOUR) == "the mark of term 6 is not committed yet; ask again"
    single.caught_up(1)
    assert single.node.change_refusal(FOUR) == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (AddNode(3, "h", 1), "node_3 is a member already"),
        (AddNode(2, "h", 1), "node_2 is a member already"),
        (AddNode(7, "h", 1), "node_7 was removed, and no id is used again; give the new node another id"),
        (AddNode(5, "h", 1), ""),
        (RemoveNode(5), "found node 5, allowed 1, 2, 3, 4"),
        (RemoveNode(4), ""),
        (RemoveNode(2), ""),
    ],
)
def test_a_change_must_fit_the_list(change: AddNode | RemoveNode, reason: str) -> None:
    """Rule: G2, G5."""
    single = leading(MemberList(3, (1, 2, 3, 4), removed=(7,)))
    assert single.node.change_refusal(change) == reason
    fx = single.give(2, change)
    assert [event.reason for event in events(fx, ChangeRefused)] == ([reason] if reason else [])


def test_one_newcomer_at_a_time_and_at_most_nine_members() -> None:
    """Rule: G2, G3."""
    single = leading(WITH_LEARNER)
    assert single.node.change_refusal(AddNode(5, "h", 1)) == "node_4 is being added; one node at a time"
    assert single.node.change_refusal(RemoveNode(4)) == ""
    single = leading(MemberList(3, (1, 2, 3, 4, 5, 6, 7, 8, 9)))
    assert single.node.change_refusal(AddNode(10, "h", 1)) == "found 9 members, allowed up to 9"


def test_the_only_voter_is_not_removed() -> None:
    """Rule: G2."""
    cluster = Cluster(1)
    cluster.run(1)
    assert cluster.node(1).change_refusal(RemoveNode(1)) == "it is the only voter"


def test_a_majority_of_the_new_list_must_be_live() -> None:
    """Rule: G2."""
    single = leading(MemberList(1, (1, 2, 3, 4)))
    for _ in range(6):
        single.give(1, HeartbeatAck(6, single.state.log.position))
        single.give(3, HeartbeatAck(6, single.state.log.position))
        single.wait(0.1)
    assert single.node.change_refusal(RemoveNode(4)) == "", "1, 2 and 3 of the new 1, 2, 3"
    reason = "no majority of the new list is live: node_3, node_4 can't be counted"
    for _ in range(6):
        single.give(1, HeartbeatAck(6, single.state.log.position))
        single.give(4, HeartbeatAck(6, Position(5, 3)))
        single.wait(0.1)
    single.state.log.marks[-1] = MembersMark(6, 2, 3, MemberList(1, (1, 2, 3, 4)))
    single.leading.progress[4].matched = START
    assert single.node.change_refusal(RemoveNode(1)) == reason


def test_no_change_while_a_voter_is_rebuilt_a_transfer_is_under_way_or_a_member_is_too_old() -> None:
    """Rule: G2, M4, E7."""
    single = leading()
    single.link(3, "another disk", rebuilding=True)
    assert single.node.change_refusal(FOUR) == "node_3 is being rebuilt"
    assert single.node.change_refusal(RemoveNode(3)) == "", "its removal is one way out"
    single = leading()
    single.give(3, LinkUp(Known("disk-3"), False, True, knows_lists=False))
    assert single.node.change_refusal(FOUR) == "node_3 runs an older version, which does not know lists of members"
    single.link(3)
    assert single.node.change_refusal(FOUR) == ""
    single.give(2, Transfer(3))
    assert single.node.change_refusal(FOUR) == "the leadership is being transferred to node_3"


def test_a_node_that_does_not_lead_names_the_leader() -> None:
    """Rule: G2."""
    single = Single(log=stretch(4, 0, 3))
    assert single.node.change_refusal(FOUR) == "this node knows no leader"
    single.follow(1, 4)
    assert single.node.change_refusal(FOUR) == "node_1 leads"


# ---- G3 a newcomer ----------------------------------------------------------------------------------


def test_a_newcomer_gets_everything_and_becomes_a_voter_once_it_keeps_up() -> None:
    """Rule: G3."""
    cluster = grown()
    assert {i: cluster.list_of(i) for i in cluster.ids} == dict.fromkeys(cluster.ids, WITH_FOUR)
    assert cluster.payloads(4) == ["a"]
    cluster.submit(4, "t", 1, "b")
    cluster.run(0.5)
    assert {tuple(cluster.payloads(i)) for i in cluster.ids} == {("a", "b")}
    versions = [event.version for event in told(cluster, MembersCommitted)[cluster.leader()]]
    assert versions == [1, 2]


def test_a_newcomer_that_is_behind_gets_no_vote() -> None:
    """Rule: G3."""
    single = leading(WITH_LEARNER)
    single.link(4)
    end = single.state.log.position
    for step in range(20):  # It acknowledges everything, but each round takes longer than election_timeout.
        for peer in (1, 3):
            single.give(peer, HeartbeatAck(6, single.state.log.position))
        if step % 7 == 6:
            single.give(4, HeartbeatAck(6, end))
            single.submit("s", 1 + step // 7, "x")
            end = single.state.log.position
        single.wait(0.1)
    assert single.node.members == WITH_LEARNER and single.state.term == 6


def test_a_newcomer_that_keeps_up_makes_the_leader_stand_again() -> None:
    """Rule: G3, G2."""
    single = leading(WITH_LEARNER)
    single.link(4)
    fx = single.caught_up(4)
    for _ in range(4):
        for peer in (1, 3, 4):
            single.give(peer, HeartbeatAck(6, single.state.log.position))
        fx.merge(single.wait(0.1))
    assert events(fx, ChangeStarted) == [ChangeStarted(6, "give node_4 a vote")]
    assert 4 not in peers_sent(fx, VoteRequest)


def test_a_newcomer_without_a_list_never_stands() -> None:
    """Rule: G3, G4."""
    single = Single(4)
    fx = single.wait(60)
    assert not sent(fx, Election) and single.node.role_name == "follower" and single.state.term == 0


# ---- G4 counting ------------------------------------------------------------------------------------


def test_the_newest_list_counts_for_commits_also_of_records_before_it() -> None:
    """Rule: G4, C1."""
    single = leading(WITH_FOUR)
    single.link(4)
    single.submit("s", 1, "a")
    end = single.state.log.position
    single.give(1, Appended(6, end))
    assert single.state.commit_seq == 3, "two of four are no majority"
    single.give(4, Appended(6, end))
    assert single.state.commit_seq == 4


def test_a_learner_counts_nowhere() -> None:
    """Rule: G4, C1, F3, E5."""
    single = leading(WITH_LEARNER)
    single.link(4)
    single.submit("s", 1, "a")
    single.give(4, Appended(6, single.state.log.position))
    assert single.state.commit_seq == 3
    single = leading(WITH_LEARNER)
    single.link(4)
    for _ in range(8):
        single.give(4, HeartbeatAck(6, Position(5, 3)))
        single.wait(0.1)
    assert single.node.role_name == "follower", "its answer makes no quorum"


def test_a_learner_is_not_asked_in_a_poll_and_its_vote_is_not_counted() -> None:
    """Rule: G4, E1, E5."""
    single = Single(log=[*stretch(4, 0, 3), listed(WITH_LEARNER)])
    poll = single.poll()
    single.give(4, Support(poll))
    assert 4 not in peers_sent(single.all, Election) and single.node.role_name == "follower"
    single.give(1, Support(poll))
    single.give(3, Support(poll))
    single.give(4, Vote(single.state.term))
    assert single.node.role_name == "candidate"
    single.give(1, Vote(single.state.term))
    assert single.node.role_name == "leader"


def test_a_node_without_a_vote_supports_a_poll_or_abstains_and_defers_nobody() -> None:
    """Rule: G4, E1."""
    single = Single(4, log=[*stretch(4, 0, 3), listed(WITH_LEARNER)])
    assert sent(single.give(1, Election(9, Position(5, 3), 1, 77)), Support, to=1) == [Support(77)]
    fx = single.give(1, Election(9, Position(4, 3), 1, 78))
    assert sent(fx, Abstain, to=1) == [Abstain(78)] and not sent(fx, Ok)
    assert not sent(single.wait(10), Election)


def test_a_node_votes_by_position_for_a_candidate_that_its_own_list_does_not_have() -> None:
    """Rule: G4, E4."""
    single = Single(log=stretch(4, 0, 3))
    single.link(9)
    assert sent(single.give(9, VoteRequest(7, Position(5, 3))), Vote, to=9) == [Vote(7)]
    newcomer = Single(4)
    assert sent(newcomer.give(1, VoteRequest(7, Position(5, 3))), Vote, to=1) == [Vote(7)], "nor itself"


# ---- M4 the data directories of newcomers -------------------------------------------------------------


def test_a_process_with_an_unused_id_does_not_keep_out_the_newcomer_that_gets_the_id() -> None:
    """Rule: M4, G3."""
    single = leading()
    fx = single.link(4, "a process of anybody")
    assert not written(fx, Met) and 4 not in single.state.identities
    single.unlink(4)
    assert not events(single.link(4), UnknownMemberRefused)
    fx = single.give(2, FOUR)
    fx.merge(single.give(1, Vote(6)))
    assert written(fx, Met) == [Met(4, Known("disk-4"))], "it is a member now"
    assert events(single.link(4, "a process of anybody"), UnknownMemberRefused)


def test_a_newcomer_that_is_down_when_it_is_added_is_known_from_its_first_link_on() -> None:
    """Rule: M4, G3."""
    single = leading()
    single.link(4, "given up before it was added")
    single.unlink(4)
    single.give(2, FOUR)
    single.give(1, Vote(6))
    assert written(single.link(4), Met) == [Met(4, Known("disk-4"))]
    assert events(single.link(4, "another"), UnknownMemberRefused)


def test_a_newcomer_that_is_being_rebuilt_is_not_known_before_its_readmission() -> None:
    """Rule: M4."""
    single = leading()
    single.link(4, rebuilding=True)
    fx = single.give(2, FOUR)
    fx.merge(single.give(1, Vote(6)))
    assert not written(fx, Met) and 4 in single.state.learners


def test_the_ids_of_processes_that_are_gone_are_forgotten() -> None:
    """Rule: M4."""
    single = leading(WITH_FOUR)
    single.link(4)
    for stranger in range(100, 200):
        single.give(stranger, Join(START))
        single.give(stranger, LinkUp(Known("x"), True, False, knows_lists=False))
    for known in (single.state.presented, single.state.learners, single.state.unaware, single.state.unanswered):
        assert len(known) <= 5, known
    assert {1, 3, 4} <= single.state.presented.keys()


def test_a_member_learns_whose_data_directory_a_newcomer_has_from_those_that_met_it_as_a_member() -> None:
    """Node 3 was away while node 4 was added, and has met another data directory under its id. Rule: M4."""
    single = leading(WITH_FOUR)
    single.link(4)
    fx = single.link(1)
    assert Known("disk-4") in [message.identities.get(4) for message in sent(fx, Members, to=1)]
    away = Single(3, log=stretch(4, 0, 3))
    away.link(4, "a lost disk's successor")
    away.give(1, Members({4: Known("disk-4")}))
    assert 4 in away.state.unknown_members


# ---- G4 again: a node that lacks its own promotion ------------------------------------------------------


def test_a_promoted_node_that_lacks_the_mark_still_helps_to_elect() -> None:
    """Rule: G4, E4."""
    cluster = Cluster(3)
    cluster.run(1)
    leader = cluster.leader()

    def hide_the_vote(node_id: int, fx: Effects) -> None:
        marks = [op.header for op in written(fx, Record) if isinstance(op.header, MembersMark)]
        if node_id == leader and any(mark.members.voters == (1, 2, 3, 4) for mark in marks):
            cluster.cut.add((leader, 4))

    cluster.on_perform = hide_the_vote
    cluster.newcomer(4)
    cluster.change(FOUR, 2)
    assert cluster.list_of(4) == WITH_LEARNER and cluster.list_of(1) == cluster.list_of(2) == WITH_FOUR
    cluster.kill(leader)
    cluster.run(3)
    assert cluster.leader() in (1, 2) and cluster.list_of(4) == WITH_FOUR, "two of four and the vote of node 4"


# ---- G5 removal -------------------------------------------------------------------------------------


def test_a_removed_node_is_notified_and_stops_and_the_others_go_on() -> None:
    """Rule: G5."""
    cluster = grown()
    leader = cluster.leader()
    gone = next(i for i in cluster.founders if i != leader)
    cluster.change(RemoveNode(gone))
    assert gone not in cluster.running()
    assert cluster.members[gone].left == f"node_{leader} says in term 4 that this node is a member no more"
    assert told(cluster, NodeRemoved)[gone] == [NodeRemoved(4, leader)]
    for i in cluster.running():
        assert cluster.list_of(i).removed == (gone,) and cluster.node(i).state.majority == 2
    cluster.submit(leader, "t", 1, "b")
    cluster.run(0.5)
    assert cluster.payloads(4) == ["a", "b"]


def test_a_removed_node_that_starts_again_is_told_again_and_deposes_nobody() -> None:
    """Rule: G5, E4."""
    cluster = Cluster(3, through_wire=True)
    cluster.run(1)
    leader = cluster.leader()
    gone = next(i for i in cluster.ids if i != leader)
    cluster.cut |= {pair for pair in cluster.queues if gone in pair}
    cluster.change(RemoveNode(gone))
    term = cluster.node(leader).state.term
    cluster.run(10)
    assert gone in cluster.running(), "nothing reaches it"
    cluster.cut.clear()
    cluster.kill(gone)
    cluster.start(gone)
    cluster.run(3)
    assert gone not in cluster.running()
    assert (cluster.leader(), cluster.node(leader).state.term) == (leader, term)


def test_any_member_tells_a_removed_node_that_has_no_link_to_the_leader() -> None:
    """Rule: G5."""
    cluster = Cluster(3, through_wire=True)
    cluster.run(1)
    leader = cluster.leader()
    gone, other = (i for i in cluster.ids if i != leader)
    cluster.cut |= {pair for pair in cluster.queues if gone in pair}
    cluster.change(RemoveNode(gone))
    cluster.cut = {(gone, leader), (leader, gone)}
    cluster.kill(gone)
    cluster.start(gone)
    cluster.run(3)
    assert gone not in cluster.running(), "no message is needed for it"
    assert [each.by for each in told(cluster, NodeRemoved)[gone]] == [other]


def test_a_follower_tells_a_removed_node_only_for_a_list_that_it_knows_to_be_committed() -> None:
    """Rule: G5."""
    without = MemberList(1, (1, 2), removed=(3,))
    single = Single(log=[*stretch(4, 0, 3), listed(without)])
    single.link(3)
    single.follow(1, 6)
    beats = [Heartbeat(6, 3, START, settled) for settled in (False, True)]
    assert not [fx for beat in beats if sent(fx := single.give(1, beat), Removed)], "it lacks the mark of the term"
    single.give(1, appends(6, Position(5, 3), [listed(without, 6)])[0])
    assert [peers_sent(single.give(1, beat), Removed) for beat in beats] == [[], [3]]


def test_a_follower_tells_a_removed_node_once_a_message_behind_the_mark_is_delivered() -> None:
    """Rule: G5."""
    without = MemberList(1, (1, 2), removed=(3,))
    single = Single(log=[*stretch(4, 0, 3), listed(without), *stretch(5, 3, 1)[1:]])
    single.link(3)
    single.follow(1, 6)
    single.give(1, appends(6, Position(5, 4), [listed(without, 6, 4)])[0])
    assert not sent(single.give(1, Heartbeat(6, 3, START)), Removed)
    assert peers_sent(single.give(1, Heartbeat(6, 4, START)), Removed) == [3]


def test_nobody_is_told_before_the_list_is_committed() -> None:
    """Rule: G5."""
    single = leading(MemberList(1, (1, 2, 3, 4)))
    single.link(4)
    single.give(2, RemoveNode(4))
    single.give(1, Vote(7))
    single.give(3, Vote(7))
    assert single.node.members == MemberList(2, (1, 2, 3), removed=(4,))
    single.give(1, HeartbeatAck(7, START))
    assert not sent(single.wait(0.3), Removed)
    single.caught_up(1)
    fx = single.wait(0.15)
    assert peers_sent(fx, Removed) == [4] and not sent(fx, Heartbeat, to=4)


def test_a_removed_node_of_an_older_version_is_sent_no_frame_that_it_does_not_know() -> None:
    """Its removal is the way out of a refusal of all changes. Rule: G2, G5."""
    single = leading(MemberList(1, (1, 2, 3, 4)))
    single.give(4, LinkUp(Known("disk-4"), False, True, knows_lists=False))
    single.give(2, RemoveNode(4))
    single.give(1, Vote(7))
    single.give(3, Vote(7))
    single.caught_up(1)
    assert not sent(single.wait(0.3), Removed)
    single.link(4)
    single.caught_up(3)
    assert peers_sent(single.wait(0.15), Removed) == [4], "it has been updated"


def test_a_leader_serves_members_only() -> None:
    """Rule: G5."""
    single = leading(MemberList(2, (1, 2), removed=(3,)))
    single.link(3)
    fx = single.give(3, CatchUp(6, (), 0, 1))
    fx.merge(single.give(3, HeartbeatAck(6, START)))
    assert not sent(fx, Resume) and list(single.leading.progress) == [1]
    single.unlink(3)


def test_a_leader_that_is_to_be_removed_hands_over_first() -> None:
    """Rule: G5, E7."""
    cluster = grown()
    leader = cluster.leader()
    cluster.change(RemoveNode(leader))
    heir = cluster.leader()
    assert heir != leader and cluster.list_of(heir) == WITH_FOUR
    cluster.change(RemoveNode(leader))
    assert leader not in cluster.running() and cluster.leader() == heir
    polls = [event for member in cluster.members.values() for event in member.events if type(event) is ElectionStarted]
    assert not [event for event in polls if event.term > 1], "nobody waited for an election timeout"


def test_only_a_leader_of_the_present_term_can_say_so() -> None:
    """Rule: G5, E6."""
    single = Single(log=stretch(4, 0, 3))
    single.follow(1, 5)
    assert not single.give(3, Removed(4)).leave
    assert single.give(1, Removed(5)).leave


def test_grow_from_three_to_five_and_shrink_to_three_again() -> None:
    """Rule: G1, G2, G3, G4, G5."""
    cluster = grown()
    cluster.newcomer(5)
    cluster.change(AddNode(5, "h5", 5), 3)
    assert cluster.node(cluster.leader()).state.voters == (1, 2, 3, 4, 5)
    for gone in (1, 2):
        if cluster.leader() == gone:
            cluster.change(RemoveNode(gone))
        cluster.change(RemoveNode(gone))
    assert cluster.running() == [3, 4, 5]
    cluster.kill(cluster.leader())
    cluster.run(3)
    cluster.submit(cluster.leader(), "t", 1, "b")
    cluster.run(0.5)
    assert {tuple(cluster.payloads(i)) for i in cluster.running()} == {("a", "b")}
    for i in cluster.ids:
        if i not in cluster.running():
            cluster.start(i)
    cluster.run(5)
    assert cluster.running() == [3, 4, 5], "the killed one is back, the removed ones are not"
    assert cluster.list_of(3) == cluster.list_of(4) == cluster.list_of(5)


# ---- the single-server bug of 2015 ------------------------------------------------------------------


def quarrel() -> Cluster:
    """Node 4 has written a list without node 1 on its own disk only; then nodes 1 to 3, cut off from it, elect node 3,
    whose mark reaches nobody.
    """
    cluster = Cluster(4)

    def isolate(node_id: int, fx: Effects) -> None:
        if any(op.position.term in (2, 3) for op in written(fx, Record)):
            cluster.cut |= {pair for pair in cluster.queues if node_id in pair}

    cluster.run(1)
    cluster.submit(4, "s", 1, "a")
    cluster.run(0.5)
    cluster.on_perform = isolate
    cluster.change(RemoveNode(1), 0.2)
    assert cluster.list_of(4).voters == (2, 3, 4) and cluster.node(4).role_name == "leader"
    while cluster.node(3).role_name != "leader":
        cluster.run(0.05)
    cluster.on_perform = lambda node_id, fx: None
    cluster.cut -= {(1, 3), (3, 1), (2, 3), (3, 2)}
    for each in (1, 2):  # What was on its way is lost: nobody has the mark of term 3.
        cluster.queues[3, each].clear()
    assert {i: cluster.node(i).state.log.position.term for i in cluster.ids} == {1: 1, 2: 1, 3: 3, 4: 2}
    return cluster


def test_two_uncommitted_lists_do_not_stand_beside_each_other() -> None:
    """Rule: G2."""
    cluster = quarrel()
    cluster.step(3, 3, RemoveNode(4))
    refusals = told(cluster, ChangeRefused)[3]
    assert [event.reason for event in refusals] == ["the mark of term 3 is not committed yet; ask again"]
    cluster.run(1)
    cluster.cut.clear()
    cluster.run(3)
    cluster.submit(cluster.leader(), "t", 1, "b")
    cluster.run(0.5)
    assert {tuple(cluster.payloads(i)) for i in cluster.ids} == {("a", "b")}
    assert all(cluster.node(i).members is None for i in cluster.ids), "the list of node 4 was dropped"


def test_without_the_remedy_two_majorities_commit_different_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The story of the bug: the majorities 1, 3 of 1, 2, 3 and 2, 4 of 2, 3, 4 share no node. Rule: G2."""
    monkeypatch.setattr(changes, "not_now", lambda state, leader, new: "")
    cluster = quarrel()

    def hide_from_node_2(node_id: int, fx: Effects) -> None:
        if any(op.position.term == 4 for op in written(fx, Record)):
            cluster.cut |= {(3, 2), (2, 3), (1, 2), (2, 1)}

    cluster.on_perform = hide_from_node_2
    cluster.step(3, 3, RemoveNode(4))
    cluster.run(0.2)
    assert cluster.list_of(3).voters == (1, 2, 3)
    cluster.submit(3, "t", 1, "b")
    cluster.run(0.3)
    assert cluster.payloads(1) == ["a", "b"], "committed by nodes 1 and 3"
    cluster.cut -= {(2, 4), (4, 2)}
    cluster.run(5)
    cluster.submit(4, "u", 1, "c")
    cluster.run(0.5)
    assert cluster.payloads(4) == ["a", "c"], "committed by nodes 2 and 4"
