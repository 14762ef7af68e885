"""Who belongs to the cluster: links, JOIN / JOIN_ACK, and the identities of data directories."""

from __future__ import annotations

from nodeproc.core.catchup import ask_catch_up, follow, on_way_open
from nodeproc.core.effects import Effects, Met, Readmitted
from nodeproc.core.election import ask_again, become_candidate, on_poll_unreachable
from nodeproc.core.events import AwaitingMembers, JoinAnswered, NodeReadmitted, StrangerRefused
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

# ---- links ------------------------------------------------------------------------------------------


def on_link_up(state: NodeState, peer: NodeId, msg: LinkUp, now: float, fx: Effects) -> None:
    """Both ends have proven themselves: see who it is and what it must be told. Rule: M1, M4, R1."""
    state.presented[peer] = msg.identity
    admitted = admit(state, peer, msg.identity, msg.rebuilding, fx)
    role = state.role
    if isinstance(role, Leader):
        unsync(role.progress[peer])
        if peer in state.learners or not admitted:
            role.progress[peer].matched = START  # What it had acknowledged is gone with its disk.
    if not admitted:
        if msg.outgoing or peer in state.links:
            state.shut.add(peer)
        state.links.discard(peer)
        return
    state.shut.discard(peer)
    if msg.outgoing:
        state.links.add(peer)
        state.uncopied.clear()  # It may have what nobody had (K6).
        state.send_members(fx, peer)
        if not state.joined:
            state.send(fx, peer, Join(state.log.position))
        if peer in state.unanswered:
            answer_join(state, peer, now, fx)  # hit: M1 a JOIN is answered late as its link opens
        if state.starved and len(state.links) + 1 >= state.majority:
            state.poll_at = now
    ask_again(state, peer, fx)
    if isinstance(role, Leader):
        state.send(fx, peer, heartbeat(state, role.progress[peer]))
        if msg.outgoing:
            on_way_open(state, role, peer, fx)
        else:
            role.progress[peer].asked = None  # It came over the link before this one.
    elif isinstance(role, Follower) and peer == state.leader_id:
        state.route_epoch += 1  # What was passed on over the old link may be lost.
        ask_catch_up(state, role, now, fx)  # hit: R1 a new link to the leader asks again
    elif isinstance(role, Candidate) and msg.outgoing:
        state.send(fx, peer, VoteRequest(state.term, state.log.position))  # The one before may be lost. Rule: E3.


def on_link_down(state: NodeState, peer: NodeId, now: float, fx: Effects) -> None:
    """The link is lost and can't be opened again: nothing is sent there, a leader there is suspected. Rule: F2."""
    state.links.discard(peer)
    state.shut.discard(peer)
    if isinstance(state.role, Leader):
        unsync(state.role.progress[peer])
    elif isinstance(state.role, Follower) and peer == state.leader_id:
        suspect(state, "the link is lost", now, fx)  # hit: F2 a leader is suspected for its lost link
    on_poll_unreachable(state, peer, now, fx)


def unsync(progress: Progress) -> None:
    """Nothing more goes to this follower until it has said again what it has. Rule: R1."""
    progress.synced = progress.live = False
    progress.fetch = 0
    progress.inflight.clear()
    progress.inflight_bytes = 0


# ---- joining ----------------------------------------------------------------------------------------


def on_join(state: NodeState, sender: NodeId, now: float, fx: Effects) -> None:
    """A peer has started: tell it term and leader, as soon as there is a link to it. Rule: M1, F2."""
    on_sign_of_restart(state, sender, "JOIN", now, fx)
    if sender in state.links:
        answer_join(state, sender, now, fx)
    else:
        state.unanswered.add(sender)


def answer_join(state: NodeState, sender: NodeId, now: float, fx: Effects) -> None:
    """JOIN_ACK with what is known now. Rule: M1."""
    state.unanswered.discard(sender)
    if isinstance(state.role, Leader):
        leader = state.node_id
    else:
        leader = state.leader_id if hears_leader(state, now) else NOBODY
    waited = 0.0 if state.joined else now - state.started_at
    state.send(fx, sender, JoinAck(state.term, leader, waited))
    fx.emit.append(JoinAnswered(sender, leader, state.term))


def on_join_ack(state: NodeState, sender: NodeId, msg: JoinAck, now: float, fx: Effects) -> None:
    """Follow the leader that a live peer knows; with none known to anybody, look for one. Rule: M1, M2."""
    state.join_answers.add(sender)
    if not isinstance(state.role, Follower) or state.leader_id != NOBODY:
        return
    if msg.leader not in (NOBODY, state.node_id):
        if msg.leader in state.links:
            follow(state, msg.leader, now, fx)  # hit: M2 a restarted node follows the leader that lives
    elif not state.joined and state.join_answers.issuperset(state.peers):
        state.poll_at = now  # hit: M1 all have answered and none knows a leader
    elif not state.joined and state.term and len(state.join_answers) + 1 >= state.majority:
        # hit: M1 a majority that was restarted waits as long again as it took to come
        waited = max(msg.waited, now - state.started_at)
        await_members(state, now + max(2 * waited, state.config.election_timeout), now, fx)


def await_members(state: NodeState, until: float, now: float, fx: Effects) -> None:
    """Put the first poll off until then, unless it is due before, and say for whom. Rule: M1."""
    if until < state.poll_at:
        state.poll_at = until
        missing = ", ".join(f"node_{peer}" for peer in state.peers if peer not in state.join_answers)
        fx.emit.append(AwaitingMembers(missing, round((until - now) * 1000)))


# ---- identities -------------------------------------------------------------------------------------


def admit(state: NodeState, peer: NodeId, identity: str, rebuilding: bool, fx: Effects) -> bool:
    """Is this the peer's known data directory, or its first, or a declared rebuild? Rule: M4.

    One that comes under --rebuild with the identity by which we know it was readmitted, and has not heard of that.
    """
    known = state.identities.get(peer)
    state.strangers.discard(peer)
    refused = stranger(state, peer, identity, rebuilding)
    if refused is not None:
        state.strangers.add(peer)  # hit: M4 a stranger is refused
        fx.emit.append(refused)
        return False
    if rebuilding and (known is None or known.identity != identity):
        state.learners.add(peer)  # hit: M4 a declared rebuild is admitted without vote
        return True
    if known is None:
        remember(state, peer, Known(identity), fx)
    state.learners.discard(peer)
    return True


def stranger(state: NodeState, peer: NodeId, identity: str, rebuilding: bool) -> StrangerRefused | None:
    """Why a peer with this data directory is refused; None: it is not. Rule: M4.

    The transport asks at the end of each handshake, so that a link of the known member is not dropped for a stranger's.
    """
    known = state.identities.get(peer)
    if rebuilding or known is None or known.identity == identity:
        return None
    return StrangerRefused(peer, known.identity, identity)


def forgotten(state: NodeState, promised: Promised, by: NodeId) -> str:
    """Why this node must stop: its data is older than what it has promised; "": it is not. Rule: M6.

    What it showed others was durable, and nothing of it is ever dropped but in a higher term.

    Args:
        promised: by this node, as node `by` knows.
    """
    identity, term, position = promised
    if identity != state.identity:
        return ""
    if state.term >= term and (state.term > position.term or state.log.position >= position):
        return ""
    # hit: M6 a node that has forgotten a promise stops
    return (
        f"this node's data is older than what it promised: node_{by} knows of term {max(term, position.term)} and an "
        f"acknowledgement up to {tuple(position)}, here are term {state.term} and {tuple(state.log.position)}. It was "
        "put back from an older copy, or the disk lost what was synced. Nothing was changed; to get this node's "
        "data from the others, move its data directory away and start it with --rebuild"
    )


def on_promises(state: NodeState, msg: Promises) -> None:
    """Remember what members have promised; Node has judged what it says of this one. Rule: M6."""
    for member, promised in sorted(msg.promised.items()):
        if member in state.config.members:
            state.note_promise(promised, member)


def remember(state: NodeState, member: NodeId, known: Known, fx: Effects) -> None:
    """Know a member by this data directory from now on, durably. Rule: M4."""
    state.identities[member] = known
    state.persist(fx, Met(member, known))


def tend_learners(state: NodeState, leader: Leader, now: float, fx: Effects) -> None:
    """Make rebuilt peers members again, pass promises on. Called with every heartbeat. Rule: M4, M6.

    A vote or acknowledgement that the lost disk had given may still count for a candidate of some term we never
    heard of. It can't win any more once a record ordered after the peer joined is durable on a majority without
    that peer: this majority refuses that candidate by position. So the peer waits for such a record; an idle cluster
    makes one by opening a new term.
    """
    reached = majority_position(state, leader)
    for peer, progress in leader.progress.items():
        if now >= progress.members_due:
            # Again and again: one that is lost would leave a rebuilt node without a vote, or a stranger to the others.
            progress.members_due = now + state.config.election_timeout
            state.send_members(fx, peer)
            state.send(fx, peer, Promises(state.promises()))  # hit: M6 the leader passes promises on
        if peer not in state.learners or peer not in state.rebuilds or reached is None:
            continue
        if reached > state.rebuilds[peer][1] and progress.matched >= reached:
            _readmit(state, leader, peer, now, fx)  # hit: M4 a rebuilt node is readmitted
        elif reached == state.log.position == progress.matched and progress.live and peer in state.links:
            become_candidate(state, now, fx)
            return


def _readmit(state: NodeState, leader: Leader, peer: NodeId, now: float, fx: Effects) -> None:
    """Remember the peer's new data directory; tell the others first, the peer itself with the next heartbeat."""
    before = state.identities.get(peer)
    change = before.change + 1 if before is not None and before.term == state.term else 1
    remember(state, peer, Known(state.presented[peer], state.term, change), fx)
    state.promised.pop(peer, None)
    state.learners.discard(peer)
    fx.emit.append(NodeReadmitted(peer, state.term))
    for other, progress in leader.progress.items():
        progress.members_due = now + state.config.election_timeout if other != peer else now
        if other != peer:
            state.send_members(fx, other)
    del state.rebuilds[peer]


def on_members(state: NodeState, msg: Members, fx: Effects) -> None:
    """Take over what is newer than what we know; our own data directory among it ends our rebuild. Rule: M4."""
    for member, known in sorted(msg.identities.items()):
        if member == state.node_id:
            if state.rebuilding and not state.readmission and known.identity == state.identity:
                state.readmission = state.persist(fx, Readmitted(state.term))  # hit: M4 MEMBERS ends our own rebuild
            continue
        if known.newer_than(state.identities.get(member)):
            remember(state, member, known, fx)
            state.promised.pop(member, None)
        if state.presented.get(member) == state.identities[member].identity:
            state.learners.discard(member)
            state.strangers.discard(member)
            if member in state.shut:
                state.shut.discard(member)
                state.links.add(member)  # hit: M4 a shut link is used again
