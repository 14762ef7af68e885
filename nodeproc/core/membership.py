"""Membership: links, JOIN and JOIN_ACK, the identities of data directories, and their promises."""

from __future__ import annotations

from nodeproc.core.catchup import ask_catch_up, follow, on_link_opened
from nodeproc.core.effects import Effects, Readmitted
from nodeproc.core.election import ask_again, become_candidate, on_poll_unreachable
from nodeproc.core.events import AwaitingMembers, JoinAnswered, NodeReadmitted, UnknownMemberRefused
from nodeproc.core.failure import hears_leader, heartbeat, on_sign_of_restart, suspect
from nodeproc.core.messages import (
    NOBODY,
    START,
    Join,
    JoinAck,
    Known,
    LinkUp,
    Members,
    NodeId,
    Promised,
    Promises,
    VoteRequest,
)
from nodeproc.core.ordering import majority_position
from nodeproc.core.state import Candidate, Follower, Leader, NodeState, Progress
from nodeproc.core.transfer import give_up

# ---- links ------------------------------------------------------------------------------------------


def on_link_up(state: NodeState, peer: NodeId, msg: LinkUp, now: float, fx: Effects) -> None:
    """Check the identity of the peer on a new link and send it the messages that were due. Rule: M1, M4, R1."""
    if peer not in state.peers:
        forget_others(state, peer)
    state.presented[peer] = msg.shown.identity
    state.unaware.discard(peer)
    if not msg.knows_lists:
        state.unaware.add(peer)
    admitted = admit(state, peer, msg.shown, msg.rebuilding, fx)
    role = state.role
    progress = role.progress.get(peer) if isinstance(role, Leader) else None
    if progress is not None:
        unsync(progress)
        if peer in state.learners or not admitted:
            progress.matched = START  # The records that it had acknowledged are lost with its disk.
    if not admitted:
        if msg.outgoing or peer in state.links:
            state.unused_links.add(peer)
        state.links.discard(peer)
        return
    state.unused_links.discard(peer)
    if msg.outgoing:
        state.links.add(peer)
        state.uncopied.clear()  # The peer may have the records that no other peer had (K6).
        state.send_members(fx, peer)
        if not state.joined:
            state.send(fx, peer, Join(state.log.position))
        if peer in state.unanswered:
            answer_join(state, peer, now, fx)  # hit: M1 a JOIN is answered late as its link opens
        if state.starved and len(state.links.intersection(state.electors)) + 1 >= state.majority:
            state.poll_at = now
    ask_again(state, peer, fx)
    if isinstance(role, Leader):
        if progress is None:
            return  # hit: G5 a leader serves members only
        state.send(fx, peer, heartbeat(state, role, progress))
        if msg.outgoing:
            on_link_opened(state, role, peer, fx)
        else:
            progress.asked = None  # A CATCH_UP that came over the link before this one.
    elif isinstance(role, Follower) and peer == state.leader_id:
        state.route_epoch += 1  # Messages forwarded over the old link may be lost.
        ask_catch_up(state, role, now, fx)  # hit: R1 a new link to the leader asks again
    elif isinstance(role, Candidate) and msg.outgoing and peer in state.electors:
        # The first one may be lost. Rule: E3.
        state.send(fx, peer, VoteRequest(state.term, state.log.position, role.transfer))


def forget_others(state: NodeState, peer: NodeId) -> None:
    """Forget the nodes without a link that are no members, except this one: a process can use any number of ids."""
    others = state.presented.keys() - {*state.peers, *state.links, peer}
    for other in sorted(others):
        del state.presented[other]
        for known in (state.learners, state.unaware, state.unanswered, state.join_answers):
            known.discard(other)


def on_link_down(state: NodeState, peer: NodeId, now: float, fx: Effects) -> None:
    """Stop sending to a peer whose link is lost; suspect it if it is the leader. Rule: F2."""
    state.links.discard(peer)
    state.unused_links.discard(peer)
    role = state.role
    if isinstance(role, Leader):
        if peer in role.progress:
            unsync(role.progress[peer])
        if role.successor is not None and role.successor.node == peer:
            give_up(state, role, role.successor, "the link is lost", fx)
    elif isinstance(role, Follower) and peer == state.leader_id:
        suspect(state, "the link is lost", now, fx)  # hit: F2 a leader is suspected for its lost link
    on_poll_unreachable(state, peer, now, fx)


def unsync(progress: Progress) -> None:
    """Send no records to this follower until its next CATCH_UP. Rule: R1."""
    progress.synced = progress.live = False
    progress.fetch = 0
    progress.inflight.clear()
    progress.inflight_bytes = 0


# ---- joining ----------------------------------------------------------------------------------------


def on_join(state: NodeState, sender: NodeId, now: float, fx: Effects) -> None:
    """Answer a starting peer with term and leader, as soon as there is a link to it. Rule: M1, F2."""
    on_sign_of_restart(state, sender, "JOIN", now, fx)
    if sender in state.links:
        answer_join(state, sender, now, fx)
    else:
        state.unanswered.add(sender)


def answer_join(state: NodeState, sender: NodeId, now: float, fx: Effects) -> None:
    """Send JOIN_ACK. Rule: M1."""
    state.unanswered.discard(sender)
    if isinstance(state.role, Leader):
        leader = state.node_id
    else:
        leader = state.leader_id if hears_leader(state, now) else NOBODY
    waited = 0.0 if state.joined else now - state.started_at
    state.send(fx, sender, JoinAck(state.term, leader, waited))
    fx.emit.append(JoinAnswered(sender, leader, state.term))


def on_join_ack(state: NodeState, sender: NodeId, msg: JoinAck, now: float, fx: Effects) -> None:
    """Follow the leader that a peer reports; start a poll if all peers have answered and none knows a leader.

    Rule: M1, M2.
    """
    state.join_answers.add(sender)
    if not isinstance(state.role, Follower) or state.leader_id != NOBODY:
        return
    if msg.leader not in (NOBODY, state.node_id):
        if msg.leader in state.links:
            follow(state, msg.leader, now, fx)  # hit: M2 a restarted node follows the leader that lives
    elif not state.joined and state.join_answers.issuperset(state.electors):
        state.poll_at = now  # hit: M1 all have answered and none knows a leader
    elif not state.joined and state.term and len(state.join_answers.intersection(state.electors)) + 1 >= state.majority:
        # hit: M1 a majority that was restarted waits as long again as it took to come
        waited = max(msg.waited, now - state.started_at)
        await_members(state, now + max(2 * waited, state.config.election_timeout), now, fx)


def await_members(state: NodeState, until: float, now: float, fx: Effects) -> None:
    """Postpone the first poll until then, unless it is due earlier, and report the missing members. Rule: M1."""
    if until < state.poll_at:
        state.poll_at = until
        missing = ", ".join(f"node_{peer}" for peer in state.electors if peer not in state.join_answers)
        fx.emit.append(AwaitingMembers(missing, round((until - now) * 1000)))


# ---- identities -------------------------------------------------------------------------------------


def admit(state: NodeState, peer: NodeId, shown: Known, rebuilding: bool, fx: Effects) -> bool:
    """Decide whether a peer is a full member, a learner, or refused; return False if it is refused. Rule: M4.

    The identity of a node that is no member is not recorded: any process could use up the id of a newcomer.

    A peer that is started with --rebuild and has the identity on record was readmitted already, without knowing it: it
    is a full member.
    """
    known = state.identities.get(peer)
    state.unknown_members.discard(peer)
    refused = identity_refusal(state, peer, shown, rebuilding)
    if refused is not None:
        state.unknown_members.add(peer)  # hit: M4 an unknown member is refused
        fx.emit.append(refused)
        return False
    if rebuilding and (known is None or known.identity != shown.identity):
        state.learners.add(peer)  # hit: M4 a declared rebuild is admitted without vote
        return True
    if shown.newer_than(known) and (known is not None or peer in state.peers):
        state.remember(fx, peer, shown)  # hit: M4 a readmission is learnt from the readmitted node itself
    state.learners.discard(peer)
    return True


def identity_refusal(state: NodeState, peer: NodeId, shown: Known, rebuilding: bool) -> UnknownMemberRefused | None:
    """Return why a peer that shows this data directory is refused, or None if it is not. Rule: M4.

    The transport calls this at the end of each handshake, so that an unknown member cannot replace the link of the
    known one.
    """
    known = state.identities.get(peer)
    if rebuilding or known is None or known.identity == shown.identity or shown.newer_than(known):
        return None
    return UnknownMemberRefused(peer, known.identity, shown.identity)


def stale_data(state: NodeState, promised: Promised, by: NodeId) -> str:
    """Return why this node must stop if its data is older than its promises; "" if it is not. Rule: M6.

    Everything that the node has shown others was durable, and only a higher term can drop it.

    Args:
        promised: the promises of this node that node `by` has recorded.
    """
    identity, term, position = promised
    if identity != state.identity:
        return ""
    if state.term >= term and (state.term > position.term or state.log.position >= position):
        return ""
    # hit: M6 a node that has forgotten a promise stops
    return (
        f"this node's data is older than what it promised: node_{by} knows of term {max(term, position.term)} and an "
        f"acknowledgement up to {tuple(position)}, here are term {state.term} and {tuple(state.log.position)}. The "
        "data was restored from an older copy, or the disk lost synced data. Nothing was changed; to get this node's "
        "data from the others, move its data directory away and start it with --rebuild"
    )


def on_promises(state: NodeState, msg: Promises) -> None:
    """Record the promises of members. Node has already checked the entry about this node. Rule: M6."""
    if msg.promised == state.promised:
        return  # Nothing is new, as nearly always: promises are repeated.
    peers = state.peers
    for member, promised in sorted(msg.promised.items()):
        if member == state.node_id or member in peers:
            state.note_promise(promised, member)


def tick_learners(state: NodeState, leader: Leader, now: float, fx: Effects) -> None:
    """Readmit rebuilt peers; send MEMBERS and PROMISES again. Called with every heartbeat. Rule: M4, M6.

    A vote that was on the lost disk may still count for a candidate of a term that this node has never heard of. The
    candidate cannot win any more once a record ordered after the peer joined is durable on a majority without the
    peer: this majority refuses the candidate for its position. So the peer waits for such a record. In an idle cluster
    the leader creates one by opening a new term.
    """
    reached = majority_position(state, leader)
    promises: Promises | None = None
    for peer, progress in leader.progress.items():
        if now >= progress.members_due:
            # Sent repeatedly: if one is lost, a rebuilt node stays without a vote, or unknown to the other members.
            progress.members_due = now + state.config.election_timeout
            state.send_members(fx, peer)
            promises = promises or Promises(state.promises())
            state.send(fx, peer, promises)  # hit: M6 the leader passes promises on
        if peer not in state.learners or peer not in state.rebuilds or reached is None:
            continue
        if reached > state.rebuilds[peer][1] and progress.matched >= reached:
            _readmit(state, leader, peer, now, fx)  # hit: M4 a rebuilt node is readmitted
            promises = None
        elif leader.successor is not None:
            continue  # Who leads next opens a term anyway.
        elif reached == state.log.position == progress.matched and progress.live and peer in state.links:
            become_candidate(state, now, fx)
            return


def _readmit(state: NodeState, leader: Leader, peer: NodeId, now: float, fx: Effects) -> None:
    """Record the peer's new data directory; notify the other members now, the peer with the next heartbeat."""
    before = state.identities.get(peer)
    change = before.change + 1 if before is not None and before.term == state.term else 1
    state.remember(fx, peer, Known(state.presented[peer], state.term, change))
    state.learners.discard(peer)
    fx.emit.append(NodeReadmitted(peer, state.term))
    for other, progress in leader.progress.items():
        progress.members_due = now + state.config.election_timeout if other != peer else now
        if other != peer:
            state.send_members(fx, other)
    del state.rebuilds[peer]


def on_members(state: NodeState, msg: Members, fx: Effects) -> None:
    """Adopt newer identities of members; this node's own identity among them ends its rebuild. Rule: M4.

    What a node being rebuilt has met by itself counts less than MEMBERS: it has forgotten whom it knew.
    """
    for member, known in sorted(msg.identities.items()):
        if member == state.node_id:
            if state.rebuilding and not state.readmission and known.identity == state.identity:
                state.remember(fx, member, known)
                state.readmission = state.persist(fx, Readmitted(state.term))  # hit: M4 MEMBERS ends our own rebuild
            continue
        own = state.identities.get(member)
        if known != own and (
            known.newer_than(own) or (state.rebuilding and own is not None and not own.newer_than(known))
        ):
            state.remember(fx, member, known)
        if member not in state.presented:
            continue
        if state.presented[member] == state.identities[member].identity:
            state.learners.discard(member)
            state.unknown_members.discard(member)
            if member in state.unused_links:
                state.unused_links.discard(member)
                state.links.add(member)  # hit: M4 a shut link is used again
        elif member not in state.learners:
            _refuse_replaced(state, member)


def _refuse_replaced(state: NodeState, member: NodeId) -> None:
    """Hear a member no more whose data directory was replaced, on open links too, and drop what it has promised."""
    state.unknown_members.add(member)  # hit: M4 a replaced data directory is heard no more
    if member in state.links:
        state.links.discard(member)
        state.unused_links.add(member)
    if isinstance(state.role, Leader) and member in state.role.progress:
        unsync(state.role.progress[member])
        state.role.progress[member].matched = START
    elif isinstance(state.role, Candidate):
        state.role.votes.discard(member)
