"""Failure detection: heartbeats, suspicion of the leader, a leader's loss of its quorum, stalled disks."""

from __future__ import annotations

from typing import Final

from nodeproc.core.catchup import ask_again, catch_up_deadline, follow, on_answer
from nodeproc.core.effects import Effects
from nodeproc.core.events import (
    DiskAnswered,
    DiskStalled,
    HeartbeatReceived,
    HeartbeatSent,
    LeaderTimeout,
    QuorumLost,
)
from nodeproc.core.messages import (
    NOBODY,
    Append,
    Appended,
    Commit,
    Heartbeat,
    HeartbeatAck,
    NodeId,
    OlderMarks,
    Resume,
)
from nodeproc.core.ordering import follow_commit
from nodeproc.core.state import FOREVER, Candidate, Follower, Leader, NodeState, Progress, become_follower
from nodeproc.core.transfer import give_up

MIN_PAUSES: Final = 10
"""Number of measured pauses between heartbeats from which they set the allowed silence."""
DELAY_DECAY: Final = 0.9999
"""Factor of the longest delay for each further heartbeat; half is left after 6,900 heartbeats.

On busy cores a leader gets no CPU for 0.1 to 0.5 s every few minutes: one minute's memory forgets that in between.
"""
INTERVALS_OF_SILENCE: Final = 2
"""Heartbeat intervals in the allowed silence: one heartbeat may be lost."""
DELAYS_OF_SILENCE: Final = 5
"""Longest delays in the allowed silence. Busy cores delay many heartbeats by 10 to 20 ms before one by 300."""
MIN_SILENCE: Final = 0.45
"""The shortest allowed silence, as a fraction of election_timeout."""

# ---- conditions -----------------------------------------------------------------------------------


def hears_leader(state: NodeState, now: float) -> bool:
    """Return whether the leader was heard in this term, and within the allowed silence. Rule: F2.

    A lost link needs no test here: on_link_down makes the node suspect its leader at once.
    """
    role = state.role
    if not isinstance(role, Follower) or state.leader_id == NOBODY:
        return False
    return role.heard and now - role.heard_at < allowed_silence(state)


def allowed_silence(state: NodeState) -> float:
    """Return the allowed silence: the seconds after which a leader that is not heard is suspected. Rule: F2.

    Measured delays are kept when the leader changes: they depend on machine and network more than on the leader.
    """
    most = state.config.election_timeout
    if state.beats < MIN_PAUSES:
        return most
    silence = INTERVALS_OF_SILENCE * state.config.heartbeat_interval + DELAYS_OF_SILENCE * state.longest_delay
    least = MIN_SILENCE * most
    return most if silence > most else silence if silence > least else least


def measure_delay(state: NodeState, pause: float) -> None:
    """Remember by how much a pause between heartbeats was longer than their interval. Rule: F2."""
    state.longest_delay = max(state.longest_delay, pause - state.config.heartbeat_interval)


def has_quorum(state: NodeState, leader: Leader, now: float) -> bool:
    """Return whether a majority, this node included, answered in this term within election_timeout. Rule: F3."""
    timeout = state.config.election_timeout
    recent = sum(
        progress.votes and now - progress.answered_at < timeout
        for peer, progress in leader.progress.items()
        if peer not in state.learners
    )
    return recent + leader.has_vote >= leader.majority


# ---- the node's own disk ----------------------------------------------------------------------------


def expect_disk(state: NodeState, now: float) -> None:
    """Start to time the disk if operations wait and none did before. Called after each step. Rule: F4."""
    if state.unsynced_since == FOREVER and state.written > state.synced:
        state.unsynced_since = now


def disk_deadline(state: NodeState) -> float:
    """Return when the disk counts as stalled: election_timeout, plus twice the time that it took last. Rule: F4."""
    if state.stalled or state.unsynced_since == FOREVER:
        return FOREVER
    return state.unsynced_since + state.config.election_timeout + 2 * state.sync_took


def on_disk_stalled(state: NodeState, now: float, fx: Effects) -> None:
    """Report the stalled disk. From now on the node tells its clients that it has no leader (Node.route). Rule: F4."""
    state.stalled = True  # hit: F4 a disk is stalled
    fx.emit.append(DiskStalled(round((now - state.unsynced_since) * 1000)))


def on_disk_answer(state: NodeState, ticket: int, now: float, fx: Effects) -> None:
    """Record that all operations up to this ticket are durable; a stalled disk has recovered. Rule: F4."""
    if ticket <= state.synced:
        return
    state.synced, state.sync_took = ticket, now - min(state.unsynced_since, now)
    state.unsynced_since = FOREVER
    if state.stalled:
        state.stalled = False  # hit: F4 a stalled disk answers again
        state.route_epoch += 1
        state.poll_at = min(state.poll_at, now + state.jittered(state.config.election_timeout))
        fx.emit.append(DiskAnswered(round(state.sync_took * 1000)))


# ---- the follower's side ----------------------------------------------------------------------------


def hear(
    state: NodeState, sender: NodeId, msg: Heartbeat | Append | Resume | OlderMarks | Commit, now: float, fx: Effects
) -> Follower:
    """Record a frame from the leader of the current term; follow it if the node did not yet. Rule: F2, E2."""
    if state.leader_id != sender or not isinstance(state.role, Follower):
        assert not isinstance(state.role, Leader), (state.term, sender, "a second leader in the term")
        follow(state, sender, now, fx)
    follower = state.role
    assert isinstance(follower, Follower)
    if type(msg) is not Commit:
        follower.heard, follower.heard_at = True, now
        state.joined = True
        state.failures, state.vote_until = 0, 0.0
        if sender == state.suspected and state.silent_since != FOREVER and state.term == state.silent_term:
            # hit: F2 a suspicion was wrong and teaches patience
            measure_delay(state, now - state.silent_since)
        state.suspected, state.silent_since = NOBODY, FOREVER
        if state.spent:
            state.spent.clear()  # hit: E2 a leader is heard and spent OKs are good again
    if (type(msg) is Append or type(msg) is Heartbeat or type(msg) is Commit) and (
        msg.commit_seq > follower.leader_commit
    ):
        follower.leader_commit = msg.commit_seq
    return follower


def on_heartbeat(state: NodeState, sender: NodeId, msg: Heartbeat, now: float, fx: Effects) -> None:
    """Answer with the durable position; detect a hole that no later record has shown. Rule: F1, C2, R1."""
    follower = hear(state, sender, msg, now, fx)
    fx.emit.append(HeartbeatReceived(sender, state.term))
    if follower.beat_at:
        state.beats += 1
        state.longest_delay *= DELAY_DECAY
        measure_delay(state, now - follower.beat_at)
    follower.beat_at = now
    follow_commit(state, follower, fx)
    if msg.sent > state.log.position and not follower.request and follower.hole_since == FOREVER:
        follower.hole_since = now  # hit: R1 a heartbeat shows a hole
    elif msg.sent <= state.log.position and not follower.buffer:
        follower.hole_since = FOREVER
    state.send(fx, sender, HeartbeatAck(state.term, state.durable))  # hit: F1 a heartbeat is answered


def suspect(state: NodeState, reason: str, now: float, fx: Effects, silent_since: float = FOREVER) -> None:
    """Give up the leader and start a poll at once. Rule: F2.

    Args:
        silent_since: when the leader was heard last, if it is suspected for its silence.
    """
    fx.emit.append(LeaderTimeout(state.leader_id, reason))
    state.suspected, state.silent_since, state.silent_term = state.leader_id, silent_since, state.term
    become_follower(state, now, fx, reason)
    state.poll_at = now


def on_sign_of_restart(state: NodeState, sender: NodeId, what: str, now: float, fx: Effects) -> None:
    """Suspect the leader if it has sent JOIN, ELECTION or VOTE_REQUEST: it leads no more. Rule: F2."""
    if sender == state.leader_id and isinstance(state.role, Follower):
        suspect(state, f"it sent {what}", now, fx)  # hit: F2 a leader is suspected for a sign of its restart


def tick_follower(state: NodeState, follower: Follower, now: float, fx: Effects) -> None:
    """Suspect a silent leader; repeat a CATCH_UP that is not answered or a hole that is not filled. Rule: F2, R1."""
    # Add as follower_deadline does: at that deadline, now - heard_at may be rounded to less than the allowed silence.
    if now >= follower.heard_at + allowed_silence(state):
        # hit: F2 a leader is suspected for its silence
        suspect(state, "not heard", now, fx, follower.heard_at)
    elif now >= catch_up_deadline(state, follower):
        ask_again(state, follower, now, fx)  # hit: R1 a hole or an answer that stays away is asked for again


def follower_deadline(state: NodeState, follower: Follower) -> float:
    """Return when tick_follower is due."""
    silence = follower.heard_at + allowed_silence(state)
    if not follower.request and follower.hole_since == FOREVER:
        return silence
    return min(silence, catch_up_deadline(state, follower))


# ---- the leader's side ----------------------------------------------------------------------------


def on_heartbeat_ack(state: NodeState, sender: NodeId, msg: HeartbeatAck | Appended, now: float, fx: Effects) -> None:
    """Handle a follower's answer in the current term. Rule: F3, C1."""
    if isinstance(state.role, Leader) and sender in state.role.progress:
        on_answer(state, state.role, sender, msg.position, now, fx)


def tick_leader(state: NodeState, leader: Leader, now: float, fx: Effects) -> None:
    """Step down without answers from a majority, else send the heartbeat that is due. Rule: F1, F3."""
    if not has_quorum(state, leader, now):
        fx.emit.append(QuorumLost(state.term))  # hit: F3 a leader without a quorum steps down
        become_follower(state, now, fx, "no quorum")
        state.no_quorum = True
        return
    if state.stalled and others_are_ahead(state, leader):
        # hit: F4 a leader whose disk is stalled gives the leadership up
        become_follower(state, now, fx, "its disk does not answer")
        state.poll_at = now  # The poll shows the followers at once that this node leads no more.
        return
    if leader.successor is not None and now >= leader.successor.until:
        give_up(state, leader, leader.successor, "not done within election_timeout", fx)
    interval = state.config.heartbeat_interval
    leader.heartbeat_at += interval
    if leader.heartbeat_at <= now:  # Late by more than one interval: start a new rhythm.
        leader.heartbeat_at = now + interval
    send_heartbeats(state, leader, fx)


def others_are_ahead(state: NodeState, leader: Leader) -> bool:
    """Return whether a majority without this node has durable records that this node's disk lacks. Rule: F4.

    If the disk hangs although the whole log is durable here, such as over an identity, a majority with the whole log
    is enough: this node refuses messages, so no other node could ever get ahead.
    """
    whole = state.durable == state.log.position
    ahead = sum(
        progress.votes
        and progress.matched.term == state.term
        and (progress.matched > state.durable or (whole and progress.matched == state.durable))
        for peer, progress in leader.progress.items()
        if peer not in state.learners
    )
    return ahead >= leader.majority


def send_heartbeats(state: NodeState, leader: Leader, fx: Effects) -> None:
    """Send one HEARTBEAT to every peer with a link. Rule: F1."""
    reached = 0
    for peer, progress in leader.progress.items():
        if peer in state.links:
            state.send(fx, peer, heartbeat(state, leader, progress))
            reached += 1
    if reached:
        fx.emit.append(HeartbeatSent(reached, state.term))


def heartbeat(state: NodeState, leader: Leader, progress: Progress) -> Heartbeat:
    """Return the HEARTBEAT for a peer.

    Its `sent` is the last position sent to the peer, or the end of the log if CATCH_UP is still due. Rule: F1, R1.
    """
    sent = progress.sent if progress.synced else state.log.position
    return Heartbeat(state.term, state.commit_seq, sent, leader.settled)


def lose_candidacy(state: NodeState, candidate: Candidate, now: float, fx: Effects) -> None:
    """Give up a candidacy that did not win in time; the next one may take longer. Rule: E3."""
    state.failures += 1  # hit: E3 a candidate does not win in time
    become_follower(state, now, fx, f"{len(candidate.votes)} votes of {state.majority} in time")
    state.poll_at = now + state.jittered(state.config.answer_timeout)
