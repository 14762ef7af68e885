"""Mutants of terms, votes, polls, heartbeats and links."""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import replace

from lab.mutants.patch import Collection, Patch
from nodeproc.core import catchup, election, failure, ordering, transfer
from nodeproc.core.effects import Effects, Promise
from nodeproc.core.messages import (
    NOBODY,
    Appended,
    Coordinator,
    Election,
    Envelope,
    Heartbeat,
    HeartbeatAck,
    NodeId,
    Position,
    TermIs,
    VoteRequest,
)
from nodeproc.core.node import Node
from nodeproc.core.state import FOREVER, Candidate, Follower, Leader, NodeState, Poll, Successor, become_follower
from nodeproc.net.silence import Silence

ELECTIONS: Final = Collection()


@ELECTIONS.add("E4", "A node votes regardless of the candidate's position.")
def vote_without_the_position_check(patch: Patch) -> None:
    right = election.on_vote_request

    def wrong(state: NodeState, sender: NodeId, msg: VoteRequest, now: float, fx: Effects) -> None:
        right(state, sender, VoteRequest(msg.term, Position(10**6, 10**6)), now, fx)

    patch.everywhere(right, wrong)


@ELECTIONS.add("E4", "A node votes for every candidate of its term.")
def two_votes_in_one_term(patch: Patch) -> None:
    right = election.on_vote_request

    def wrong(state: NodeState, sender: NodeId, msg: VoteRequest, now: float, fx: Effects) -> None:
        if msg.term == state.term and state.voted_for != sender and isinstance(state.role, Follower):
            state.voted_for = NOBODY
        right(state, sender, msg, now, fx)

    patch.everywhere(right, wrong)


@ELECTIONS.add("E6", "A term that is adopted without a vote is not made durable.")
def term_not_durable(patch: Patch) -> None:
    right = NodeState.pledge_term

    def wrong(state: NodeState, fx: Effects, term: int, voted_for: NodeId, then: Any) -> None:
        right(state, fx, term, voted_for, then)
        if voted_for == NOBODY:
            fx.persist[-1] = Promise(state.term, state.voted_for)

    patch.set(NodeState, "pledge_term", wrong)


@ELECTIONS.add("E4", "A vote is kept in memory only; its term is durable.")
def vote_not_durable(patch: Patch) -> None:
    right = NodeState.pledge_term

    def wrong(state: NodeState, fx: Effects, term: int, voted_for: NodeId, then: Any) -> None:
        right(state, fx, term, voted_for, then)
        fx.persist[-1] = Promise(term, NOBODY)

    patch.set(NodeState, "pledge_term", wrong)


@ELECTIONS.add(
    "R5",
    "Records that become durable in a later term are acknowledged to the leader that ordered them, "
    "and a vote considers only durable records.",
)
def late_acknowledgement_and_vote_by_durable_position(patch: Patch) -> None:
    durable, request = ordering.on_durable, election.on_vote_request

    def late(state: NodeState, ticket: int, fx: Effects) -> None:
        before = state.durable
        durable(state, ticket, fx)
        reached = state.durable
        moved_on = state.pledge is not None or state.term != reached.term or state.leader_id == NOBODY
        if reached > before and moved_on:
            leaders = [mark.leader for mark in state.log.marks if mark.term == reached.term]
            if leaders and leaders[-1] != state.node_id:
                state.send(fx, leaders[-1], Appended(reached.term, reached))

    def by_durable(state: NodeState, sender: NodeId, msg: VoteRequest, now: float, fx: Effects) -> None:
        written = state.log.position
        given = state.term == msg.term and state.voted_for == sender  # The vote is durable: no second check.
        state.log.position = msg.position if given else min(state.durable, written)
        try:
            request(state, sender, msg, now, fx)
        finally:
            state.log.position = written

    patch.everywhere(durable, late)
    patch.everywhere(request, by_durable)


@ELECTIONS.add("E5", "One vote less than a majority makes a leader.")
def minority_elects(patch: Patch) -> None:
    def wrong(state: NodeState, candidate: Candidate, now: float, fx: Effects) -> None:
        if len(candidate.votes) >= state.majority - (len(state.config.members) > 1):
            election.become_leader(state, now, fx, candidate.members)

    patch.everywhere(election.count_votes, wrong)


@ELECTIONS.add("E3", "A node that no higher-ranked node answers leads, and commits what its own disk has.")
def classic_bully_without_majority(patch: Patch) -> None:
    patch.set(NodeState, "majority", property(lambda state: 1))


@ELECTIONS.add("F1", "A follower does not answer heartbeats.", "liveness")
def heartbeats_not_answered(patch: Patch) -> None:
    right = failure.on_heartbeat

    def wrong(state: NodeState, sender: NodeId, msg: Heartbeat, now: float, fx: Effects) -> None:
        before = len(fx.send)
        right(state, sender, msg, now, fx)
        fx.send[before:] = [each for each in fx.send[before:] if not isinstance(each[1], HeartbeatAck)]

    patch.everywhere(right, wrong)


@ELECTIONS.add("E2", "A node waits for an OK again and again, although no leader ever came of it.", "liveness")
def ok_vetoes(patch: Patch) -> None:
    right = election.end_poll

    def wrong(state: NodeState, poll: Poll, now: float, fx: Effects) -> None:
        state.spent.clear()
        right(state, poll, now, fx)

    patch.everywhere(right, wrong)


@ELECTIONS.add("E1", "A node that is asked in a poll adopts the proposed term.", "liveness")
def proposed_term_taken_over(patch: Patch) -> None:
    right = election.on_election

    def wrong(state: NodeState, sender: NodeId, msg: Election, now: float, fx: Effects) -> None:
        if msg.term > state.term:
            state.pledge_term(fx, msg.term, NOBODY, Envelope(sender, msg))
        else:
            right(state, sender, msg, now, fx)

    patch.everywhere(right, wrong)


@ELECTIONS.add("F3", "A leader that hears no majority continues to lead.", "liveness")
def leader_never_steps_down(patch: Patch) -> None:
    # Only in the module where a leader checks itself: its answer to VOTE_REQUEST is another rule.
    patch.set(failure, "has_quorum", lambda state, leader, now: True)


@ELECTIONS.add("L1", "A link on which nothing is acknowledged is never replaced by a new connection.", "liveness")
def link_never_redialled(patch: Patch) -> None:
    patch.set(Silence, "look", lambda self, waits, heard: False)


@ELECTIONS.add("E4", "A node that has just voted starts a poll as soon as a peer of lower rank asks.", "liveness")
def poll_while_a_vote_has_its_time(patch: Patch) -> None:
    right = election.on_election

    def wrong(state: NodeState, sender: NodeId, msg: Election, now: float, fx: Effects) -> None:
        state.vote_until = 0.0
        right(state, sender, msg, now, fx)

    patch.everywhere(right, wrong)


@ELECTIONS.add("E3", "A candidate counts its own vote and asks for others before its vote is durable.")
def own_vote_counted_before_durable(patch: Patch) -> None:
    right = election.become_candidate

    def wrong(state: NodeState, now: float, fx: Effects, **how: Any) -> None:
        right(state, now, fx, **how)
        pledge, state.pledge = state.pledge, None
        assert pledge is not None
        state.term, state.voted_for = pledge.term, pledge.voted_for
        election.open_candidacy(state, now, fx)

    patch.everywhere(right, wrong)


@ELECTIONS.add("F4", "A leader whose disk does not answer continues to lead.", "liveness")
def leader_keeps_on_with_a_stalled_disk(patch: Patch) -> None:
    patch.everywhere(failure.others_are_ahead, lambda state, leader: False)


@ELECTIONS.add(
    "F4", "A leader that has its whole log on disk continues to lead although its disk does not answer.", "liveness"
)
def leader_keeps_on_with_its_whole_log_durable(patch: Patch) -> None:
    right = failure.others_are_ahead

    def wrong(state: NodeState, leader: Leader) -> bool:
        return state.durable != state.log.position and right(state, leader)

    patch.everywhere(right, wrong)


@ELECTIONS.add("F1", "A follower does not compare the end of its log with that of a heartbeat.", "liveness")
def hole_at_the_end_never_noticed(patch: Patch) -> None:
    right = failure.on_heartbeat

    def wrong(state: NodeState, sender: NodeId, msg: Heartbeat, now: float, fx: Effects) -> None:
        right(state, sender, replace(msg, sent=state.log.position), now, fx)

    patch.everywhere(right, wrong)


@ELECTIONS.add("E3", "A candidacy takes no longer after elections without a leader.", "liveness")
def candidacy_time_never_doubled(patch: Patch) -> None:
    patch.set(election, "MAX_DOUBLINGS", 0)


@ELECTIONS.add("E6", "A frame of an older term is ignored without an answer.", "liveness")
def older_term_not_answered(patch: Patch) -> None:
    right = Node._take

    def wrong(self: Node, envelope: Envelope, now: float, fx: Effects) -> None:
        before = len(fx.send)
        right(self, envelope, now, fx)
        fx.send[before:] = [each for each in fx.send[before:] if not isinstance(each[1], TermIs)]

    patch.set(Node, "_take", wrong)


@ELECTIONS.add("F2", "A silent leader is never suspected.", "liveness")
def silent_leader_never_suspected(patch: Patch) -> None:
    patch.everywhere(failure.allowed_silence, lambda state: FOREVER)


@ELECTIONS.add("E4", "A node votes although it hears a leader.", "liveness")
def vote_though_a_leader_is_heard(patch: Patch) -> None:
    right = election.on_vote_request

    def wrong(state: NodeState, sender: NodeId, msg: VoteRequest, now: float, fx: Effects) -> None:
        role = state.role
        heard = isinstance(role, Follower) and role.heard
        if isinstance(role, Follower):
            role.heard = False
        try:
            right(state, sender, msg, now, fx)
        finally:
            if isinstance(role, Follower):
                role.heard = heard

    patch.everywhere(right, wrong)


# ---- starting and returning ------------------------------------------------------------------------------


@ELECTIONS.add("M1", "A starting node looks for a leader at once and waits for no member.", "liveness")
def starting_node_waits_for_nobody(patch: Patch) -> None:
    right = Node.start

    def wrong(self: Node, now: float) -> Effects:
        fx = right(self, now)
        self.state.poll_at = now
        return fx

    patch.set(Node, "start", wrong)


@ELECTIONS.add("M2", "A leader steps down for a member of higher rank that has returned and caught up.", "liveness")
def returning_node_takes_the_lead(patch: Patch) -> None:
    right = catchup.on_answer

    def wrong(state: NodeState, leader: Leader, sender: NodeId, durable: Position, now: float, fx: Effects) -> None:
        right(state, leader, sender, durable, now, fx)
        if sender > state.node_id and durable == state.log.position:
            become_follower(state, now, fx, f"node_{sender} has returned")
            state.poll_at = now + 2 * state.config.election_timeout

    patch.everywhere(right, wrong)


@ELECTIONS.add(
    "E7", "A leader asks its successor to stand before it has the whole log, and voters ask for no position."
)
def successor_trusted_without_the_log(patch: Patch) -> None:
    right = election.on_vote_request

    def ask_at_once(state: NodeState, leader: Leader, successor: Successor, fx: Effects) -> None:
        if not successor.asked:
            successor.asked = True
            state.send(fx, successor.node, Coordinator(state.term, stand=True))

    def wrong(state: NodeState, sender: NodeId, msg: VoteRequest, now: float, fx: Effects) -> None:
        right(state, sender, replace(msg, position=Position(10**6, 10**6)) if msg.transfer else msg, now, fx)

    patch.everywhere(transfer.ask_when_ready, ask_at_once)
    patch.everywhere(right, wrong)


@ELECTIONS.add("E7", "A leader drops the messages that waited for a transfer that fails.")
def messages_dropped_when_a_transfer_fails(patch: Patch) -> None:
    right = transfer.give_up

    def wrong(state: NodeState, leader: Leader, successor: Successor, reason: str, fx: Effects) -> None:
        right(state, leader, successor, reason, fx)
        leader.waiting, leader.waiting_count = [], 0

    patch.everywhere(right, wrong)


@ELECTIONS.add("E7", "A transfer that does not succeed never ends.", "liveness")
def transfer_without_an_end(patch: Patch) -> None:
    patch.everywhere(transfer.give_up, lambda state, leader, successor, reason, fx: None)
