"""STORY 3: silence, poll, answer, vote, coordinator.

The order is that of the Bully algorithm (the highest rank leads), the safety that of Raft (durable votes of a majority,
given only to a candidate whose log is complete enough). A poll precedes the candidacy and promises nothing, so a node
that cannot win or cannot hear the others does not interrupt a working leader.
"""

from __future__ import annotations

from typing import Final

from nodeproc.core.catchup import follow
from nodeproc.core.effects import Effects
from nodeproc.core.events import (
    AskedToStand,
    BecameCandidate,
    BecameLeader,
    BecomingCoordinator,
    CoordinatorReceived,
    ElectionDeferred,
    ElectionFailed,
    ElectionStarted,
    VoteGranted,
    VoteRefused,
)
from nodeproc.core.failure import has_quorum, hears_leader, on_sign_of_restart, send_heartbeats
from nodeproc.core.messages import (
    NOBODY,
    Abstain,
    Coordinator,
    Election,
    Envelope,
    Mark,
    MemberList,
    MembersMark,
    NodeId,
    Ok,
    Support,
    TermIs,
    Vote,
    VoteRequest,
)
from nodeproc.core.messages import Leader as LeaderAnswer
from nodeproc.core.ordering import store
from nodeproc.core.state import (
    FOREVER,
    Candidate,
    Deferral,
    Follower,
    Leader,
    NodeState,
    Poll,
    Progress,
    become_follower,
)

MAX_DOUBLINGS: Final = 6
"""Doublings stop here: the time of a candidacy grows to at most 64 times the first one."""

# ---- silence, poll --------------------------------------------------------------------------------


def tick_leaderless(state: NodeState, now: float, fx: Effects) -> None:
    """Start, end or repeat the poll when it is due, while there is no leader. Rule: E1, E2."""
    if state.poll is not None:
        if now >= state.poll.until:
            end_poll(state, state.poll, now, fx)  # hit: E1 a poll ends by its time
    elif state.deferral is not None:
        if now >= state.deferral.until:
            state.spent.update(state.deferral.to)  # hit: E2 a wait without success spends the OKs
            state.deferral = None
            start_poll(state, now, fx)
    elif now >= state.poll_at:
        start_poll(state, now, fx)


def leaderless_deadline(state: NodeState) -> float:
    """Return when tick_leaderless is due."""
    if state.poll is not None:
        return state.poll.until
    if state.deferral is not None:
        return state.deferral.until
    return state.poll_at


def start_poll(state: NodeState, now: float, fx: Effects) -> None:
    """Ask every reachable voter whether it leads, outranks this node, or would follow it. Rule: E1, G4."""
    if not state.has_vote:
        state.poll_at = FOREVER  # hit: G4 a node without a vote does not stand
        return
    reachable = {peer for peer in state.electors if peer in state.links}
    if len(reachable) + 1 < state.majority:
        # Nobody could be elected. The poll is started as soon as a link opens (membership.on_link_up).
        state.starved = True  # hit: E1 no majority can be asked
        state.poll_at = now + state.jittered(state.config.election_timeout)
        return
    state.starved = False
    if state.vote_until:
        state.vote_until = 0.0
        state.failures += 1  # hit: E4 a vote was given without success
    state.poll_at = FOREVER
    state.poll = Poll(state.fresh_number(), now + state.config.answer_timeout, reachable)
    fx.emit.append(ElectionStarted(state.term + 1))
    ask = Election(state.term + 1, state.log.position, state.config.priority, state.poll.number)
    state.broadcast(fx, ask, state.electors)
    if not reachable:
        end_poll(state, state.poll, now, fx)


def ask_again(state: NodeState, peer: NodeId, fx: Effects) -> None:
    """Ask a peer again in the current poll, unless it has answered OK or SUPPORT. Rule: E1."""
    poll = state.poll
    if poll is None or peer not in state.links or peer not in state.electors:
        return
    if peer not in poll.supports and peer not in poll.oks:
        poll.awaiting.add(peer)  # hit: E1 a peer is asked again
        state.send(fx, peer, Election(state.term + 1, state.log.position, state.config.priority, poll.number))


def on_election(state: NodeState, sender: NodeId, msg: Election, now: float, fx: Effects) -> None:
    """Answer a poll; start a poll too if this node outranks the asker. Rule: E1, F2."""
    on_sign_of_restart(state, sender, "ELECTION", now, fx)
    if state.poll is not None and sender not in state.poll.awaiting:
        ask_again(state, sender, fx)  # The peer hears no leader any more: its earlier answer is outdated.
    if isinstance(state.role, Leader):
        state.send(fx, sender, LeaderAnswer(state.term, state.node_id, msg.poll))
    elif hears_leader(state, now):
        # hit: E1 a follower answers a poll with its leader
        state.send(fx, sender, LeaderAnswer(state.term, state.leader_id, msg.poll))
    elif state.rebuilding:
        state.send(fx, sender, Abstain(msg.poll))  # hit: M4 a node being rebuilt abstains
    elif state.stalled:
        state.send(fx, sender, Abstain(msg.poll))  # hit: F4 a node whose disk is stalled abstains
    elif not state.has_vote:
        # hit: G4 a node without a vote in its own list defers nobody
        could_vote = msg.position >= state.log.position
        state.send(fx, sender, Support(msg.poll) if could_vote else Abstain(msg.poll))
    elif state.rank > (msg.position, msg.priority, sender):
        state.send(fx, sender, Ok(msg.poll, msg.position >= state.log.position))
        if isinstance(state.role, Follower) and state.poll is None and state.deferral is None:
            if state.leader_id != NOBODY:
                return  # A leader was announced, and it has election_timeout to be heard.
            if not state.joined and not state.links.issuperset(state.electors):
                # The node has just started. A link to a peer, perhaps of the highest rank, may be about to open.
                # hit: E1 OK of one just started puts its own poll off
                state.poll_at = min(state.poll_at, now + state.config.answer_timeout)
                return
            if now < state.vote_until:
                return  # hit: E4 no poll while a vote has its time
            start_poll(state, now, fx)  # hit: E1 OK is followed by a poll of its own
    else:
        state.send(fx, sender, Support(msg.poll))


def on_poll_answer(
    state: NodeState, sender: NodeId, msg: LeaderAnswer | Ok | Support | Abstain, now: float, fx: Effects
) -> None:
    """Record an answer to the current poll; the last answer ends the poll. Rule: E1."""
    poll = state.poll
    if poll is None or msg.poll != poll.number or sender not in poll.awaiting:
        return
    poll.awaiting.discard(sender)
    if isinstance(msg, Ok):
        poll.oks[sender] = msg.could_vote
    elif isinstance(msg, Support):
        poll.supports.add(sender)
    elif isinstance(msg, LeaderAnswer) and msg.term == state.term and msg.leader != state.node_id:
        poll.reported_leader = msg.leader
    if is_decided(state, poll):
        end_poll(state, poll, now, fx)


def on_poll_unreachable(state: NodeState, peer: NodeId, now: float, fx: Effects) -> None:
    """Stop waiting for the answer of a peer that has become unreachable. Rule: E1."""
    poll = state.poll
    if poll is not None and peer in poll.awaiting:
        poll.awaiting.discard(peer)
        if is_decided(state, poll):
            end_poll(state, poll, now, fx)


def is_decided(state: NodeState, poll: Poll) -> bool:
    """Return whether the poll is decided. Rule: E1.

    It is when all peers have answered, or all but a leader suspected for its silence if their answers suffice.
    """
    if not poll.awaiting:
        return True
    if state.silent_since == FOREVER or poll.awaiting != {state.suspected}:
        return False
    # hit: E1 the silent leader's answer is not waited for
    return (
        bool(poll.deferred_to(state.spent)) or len(poll.supporters(state.spent) - state.learners) + 1 >= state.majority
    )


def end_poll(state: NodeState, poll: Poll, now: float, fx: Effects) -> None:
    """Defer to a peer, become candidate, or follow the leader that a peer has reported. Rule: E2, E3."""
    state.poll = None
    waited_for, supporters = poll.deferred_to(state.spent), poll.supporters(state.spent)
    if waited_for:
        until = now + state.config.coordinator_timeout * (1 + state.rng.random() / 2)  # hit: E2 an OK defers a poll
        state.deferral = Deferral(until, waited_for)
        fx.emit.append(ElectionDeferred(state.term + 1, waited_for[-1]))
    elif len(supporters - state.learners) + 1 >= state.majority and not (state.rebuilding or state.stalled):
        become_candidate(state, now, fx)  # hit: E3 SUPPORT of a majority makes a candidate
        return
    else:
        # hit: E3 a poll ends without a majority
        support = f"{len(supporters) + 1} of {state.majority} would follow"
        fx.emit.append(ElectionFailed(state.term + 1, "its disk does not answer" if state.stalled else support))
        # A node with a stalled disk cannot become candidate: the next poll starts when the disk answers.
        state.poll_at = FOREVER if state.stalled else now + state.jittered(state.config.answer_timeout)
    if poll.reported_leader in state.links and poll.reported_leader != state.suspected:
        # A leader that this node suspects is followed again on its next heartbeat, if one arrives.
        follow(state, poll.reported_leader, now, fx)  # hit: E3 the leader that a peer reported is followed


# ---- candidacy, vote ----------------------------------------------------------------------------


def become_candidate(
    state: NodeState, now: float, fx: Effects, *, transfer: bool = False, members: MemberList | None = None
) -> None:
    """Vote for this node in the next term; it asks for votes once that is durable. Rule: E3, E7, G2.

    Args:
        members: the new list for the mark of the term; None: the list in force stays.
    """
    if isinstance(state.role, Leader):
        # hit: M4 an idle leader opens a new term for a rebuilt node
        become_follower(state, now, fx, "renewing the term" if members is None else "changing the members")
    state.role = Candidate(now, transfer=transfer, members=members)
    state.leader_id = NOBODY
    state.poll = state.deferral = None
    state.pledge_term(fx, state.term + 1, state.node_id, None)


def candidacy_time(state: NodeState) -> float:
    """Return the time that a candidate has to become leader, for itself and for its voters. Rule: E3, E4."""
    return state.config.election_timeout * (1 + state.rng.random()) * (1 << min(state.failures, MAX_DOUBLINGS))


def open_candidacy(state: NodeState, now: float, fx: Effects) -> None:
    """Ask the peers for their votes, now that the node's own vote is durable. Rule: E3."""
    assert isinstance(state.role, Candidate)
    candidate = state.role
    # The disks of the other nodes are expected to take about as long as this one took for its own vote.
    candidate.until = now + candidacy_time(state) + (now - candidate.began)
    fx.emit.append(BecameCandidate(state.term))
    if state.has_vote:
        candidate.votes.add(state.node_id)
    state.broadcast(fx, VoteRequest(state.term, state.log.position, candidate.transfer), state.electors)
    count_votes(state, candidate, now, fx)


def on_vote_request(state: NodeState, sender: NodeId, msg: VoteRequest, now: float, fx: Effects) -> None:
    """Vote durably for a candidate whose log is at least as complete; ignore it while a leader is heard. Rule: E4, E7.

    The candidate's position is compared with the end of the log as written, durable or not, because a record that was
    written may still be acknowledged.
    """
    on_sign_of_restart(state, sender, "VOTE_REQUEST", now, fx)
    leads = isinstance(state.role, Leader) and has_quorum(state, state.role, now)
    if (leads or hears_leader(state, now)) and not msg.transfer:
        return  # hit: E4 a vote request is ignored where a leader is heard
    if state.stalled:
        return  # hit: F4 a vote that could not become durable is not begun
    if msg.term < state.term:
        state.send(fx, sender, TermIs(state.term))  # hit: E4 a vote request of an older term is answered
        return
    behind = msg.position < state.log.position
    could = not behind and not state.rebuilding
    if msg.term > state.term or (could and state.voted_for == NOBODY):
        # The request is handled again, and answered, once the pledge is durable.
        state.pledge_term(fx, msg.term, sender if could else NOBODY, Envelope(sender, msg))
    elif not could:
        reason = "its log is behind ours" if behind else "this node is being rebuilt"
        fx.emit.append(VoteRefused(msg.term, sender, reason))  # hit: E4 a vote is refused for the position or a rebuild
    elif state.voted_for == sender:
        state.note_vote(sender, state.term)  # The candidate's vote for itself.
        fx.emit.append(VoteGranted(state.term, sender))  # hit: E4 a durable vote is sent
        state.send(fx, sender, Vote(state.term))
        state.poll = state.deferral = None
        state.poll_at = state.vote_until = now + candidacy_time(state)


def on_vote(state: NodeState, sender: NodeId, now: float, fx: Effects) -> None:
    """Count a voter's durable vote in the current term. Rule: E5, G4."""
    state.note_vote(sender, state.term)
    if isinstance(state.role, Candidate) and sender in state.electors and sender not in state.learners:
        state.role.votes.add(sender)
        count_votes(state, state.role, now, fx)


def count_votes(state: NodeState, candidate: Candidate, now: float, fx: Effects) -> None:
    if len(candidate.votes) >= state.majority:
        become_leader(state, now, fx, candidate.members)


# ---- coordinator ------------------------------------------------------------------------------------


def become_leader(state: NodeState, now: float, fx: Effects, members: MemberList | None = None) -> None:
    """Append the mark of the term, announce the leadership, begin to accept messages. Rule: E5, G1, G2.

    Args:
        members: the new list of members; None: the mark repeats the list in force, if the cluster has one.
    """
    fx.emit.append(BecomingCoordinator(state.term))  # hit: E5 a majority of votes makes a leader
    state.leader_id = state.node_id
    state.no_quorum = False
    state.joined = True
    state.failures = 0
    state.spent.clear()
    state.route_epoch += 1
    state.poll_at = FOREVER
    last_seq = state.log.position.seq_no
    members = members or state.log.members
    mark = Mark(state.term, state.node_id, last_seq)
    if members is not None:
        mark = MembersMark(state.term, state.node_id, last_seq, members)  # hit: G1 a mark has the list of members
    store(state, state.seal.mark(mark), fx)
    voters = state.voters
    progress = {peer: Progress(answered_at=now, votes=peer in voters) for peer in state.peers}
    leader = Leader(now + state.config.heartbeat_interval, progress, state.majority, state.has_vote)
    state.role = leader
    fx.emit.append(BecameLeader(state.term, last_seq))
    state.broadcast(fx, Coordinator(state.term), state.peers)
    send_heartbeats(state, leader, fx)


def on_coordinator(state: NodeState, sender: NodeId, msg: Coordinator, now: float, fx: Effects) -> None:
    """Follow the sender, which leads the current term, and ask it for missing records. Rule: E5, R1."""
    if msg.stand:
        on_stand(state, sender, now, fx)
        return
    fx.emit.append(CoordinatorReceived(sender, state.term))
    if state.leader_id != sender:
        follow(state, sender, now, fx)


def on_stand(state: NodeState, leader: NodeId, now: float, fx: Effects) -> None:
    """Become candidate without a poll, because the leader transfers its leadership to this node. Rule: E7."""
    if state.leader_id != leader or state.rebuilding or state.stalled or not state.has_vote:
        return  # hit: E7 a node that can't lead does not stand
    fx.emit.append(AskedToStand(state.term, leader))  # hit: E7 a follower stands because its leader asks it
    become_candidate(state, now, fx, transfer=True)
