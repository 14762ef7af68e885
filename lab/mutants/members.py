"""Mutants of changes of the members."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from lab.mutants.patch import Collection, Patch
from nodeproc.core import changes, election, ordering
from nodeproc.core.effects import Effects
from nodeproc.core.log import Log
from nodeproc.core.messages import Change, MemberList, MembersMark, NodeId, Position, RemoveNode, VoteRequest
from nodeproc.core.state import Follower, Leader, NodeState

MEMBERS: Final = Collection()


@MEMBERS.add("G1", "A list of members is in force only once a message behind its mark is delivered.")
def list_in_force_late(patch: Patch) -> None:
    def wrong(log: Log) -> MemberList | None:
        last = next((mark for mark in reversed(log.marks) if mark.position < log.base), None)
        return last.members if isinstance(last, MembersMark) else None

    patch.set(Log, "members", property(wrong))


@MEMBERS.add("G2", "A leader begins a change before its own mark is committed: the single-server bug of 2015.")
def change_right_after_an_election(patch: Patch) -> None:
    right = changes.not_now

    def wrong(state: NodeState, leader: Leader, new: MemberList) -> str:
        reason = right(state, leader, new)
        return "" if reason.endswith("ask again") and state.pledge is None else reason

    patch.everywhere(right, wrong)


@MEMBERS.add("G2", "A removal takes another voter along.")
def two_voters_at_once(patch: Patch) -> None:
    right = changes.changed

    def wrong(members: MemberList, change: Change) -> MemberList:
        new = right(members, change)
        if isinstance(change, RemoveNode) and len(new.voters) > 1:
            *kept, other = new.voters
            return replace(new, voters=tuple(kept), removed=tuple(sorted((*new.removed, other))))
        return new

    patch.everywhere(right, wrong)


@MEMBERS.add("G2", "A leader begins a change although no majority of the new list answers.", "liveness")
def change_without_a_live_majority(patch: Patch) -> None:
    patch.everywhere(changes._is_live, lambda state, leader, voter: True)


@MEMBERS.add("G2", "A leader begins a change although a voter that stays is being rebuilt.", "liveness")
def change_during_a_rebuild(patch: Patch) -> None:
    right = changes.not_now

    def wrong(state: NodeState, leader: Leader, new: MemberList) -> str:
        rebuilt, state.learners = state.learners, set()
        reason = right(state, leader, new)
        state.learners = rebuilt
        return reason

    patch.everywhere(right, wrong)


@MEMBERS.add("G3", "A newcomer gets a vote although it does not keep up.", "liveness")
def newcomer_votes_unseen(patch: Patch) -> None:
    patch.everywhere(changes._keeps_up, lambda state, leader, newcomer, now: True)


@MEMBERS.add("G4", "A leader counts by the list before its own.")
def old_majority_for_the_new_mark(patch: Patch) -> None:
    right = ordering.majority_position

    def wrong(state: NodeState, leader: Leader) -> Position | None:
        last = state.log.marks.pop()
        leader.majority, leader.has_vote = state.majority, state.has_vote
        state.log.marks.append(last)
        return right(state, leader)

    patch.everywhere(right, wrong)


@MEMBERS.add("G4", "The acknowledgements of a newcomer without a vote count.")
def newcomer_counted(patch: Patch) -> None:
    right = ordering.majority_position

    def wrong(state: NodeState, leader: Leader) -> Position | None:
        for progress in leader.progress.values():
            progress.votes = True
        return right(state, leader)

    patch.everywhere(right, wrong)


@MEMBERS.add("G4", "A node votes only for voters of its own list of members.", "liveness")
def vote_refused_to_unknown_candidates(patch: Patch) -> None:
    right = election.on_vote_request

    def wrong(state: NodeState, sender: NodeId, msg: VoteRequest, now: float, fx: Effects) -> None:
        if sender in state.voters:
            right(state, sender, msg, now, fx)

    patch.everywhere(right, wrong)


@MEMBERS.add("G4", "A node gives no vote while its own list of members says that it has none.", "liveness")
def newcomer_refuses_its_vote(patch: Patch) -> None:
    right = election.on_vote_request

    def wrong(state: NodeState, sender: NodeId, msg: VoteRequest, now: float, fx: Effects) -> None:
        if state.has_vote:
            right(state, sender, msg, now, fx)

    patch.everywhere(right, wrong)


@MEMBERS.add(
    "G5", "A removed node stands again and again instead of stopping, and the members listen to it.", "liveness"
)
def removed_node_keeps_deposing(patch: Patch) -> None:
    right = election.on_vote_request

    def stand(state: NodeState, leader: NodeId, fx: Effects) -> None:
        election.become_candidate(state, state.started_at, fx)

    def listen(state: NodeState, sender: NodeId, msg: VoteRequest, now: float, fx: Effects) -> None:
        if isinstance(state.role, Follower) and sender not in state.voters:
            state.role.heard = False
        right(state, sender, msg, now, fx)

    patch.everywhere(changes.on_removed, stand)
    patch.everywhere(right, listen)


@MEMBERS.add("G5", "Only the leader notifies a node of its removal.")
def removed_node_not_notified(patch: Patch) -> None:
    patch.everywhere(changes.notify_removed, lambda state, settled, fx: None)


@MEMBERS.add("G5", "A node is notified of its removal although the list is not committed.")
def removed_by_an_open_list(patch: Patch) -> None:
    def wrong(state: NodeState, settled: bool, fx: Effects) -> None:
        if state.log.members is not None:
            changes._notify(state, state.log.members.removed, fx)

    patch.everywhere(changes.notify_removed, wrong)


@MEMBERS.add("M4", "MEMBERS is sent only once a data directory has changed, not once the list of members has.")
def members_not_sent_with_a_list(patch: Patch) -> None:
    right = NodeState.send_members

    def wrong(state: NodeState, fx: Effects, peer: NodeId) -> None:
        if any(known.term for known in state.identities.values()):
            right(state, fx, peer)

    patch.set(NodeState, "send_members", wrong)
