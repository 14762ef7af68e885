"""Who was heard when: heartbeats, suspicion, and the leader that knows when it leads nobody."""

from __future__ import annotations

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

LEARNT = 10
"""So many pauses between heartbeats are measured before they count."""
FADING = 0.999
"""The longest pause counts for less with each heartbeat: after 690 of them for half."""
PAUSES = 2.25
"""A leader is suspected after so many times the longest pause: one heartbeat may be lost."""
SHORTEST = 0.45
"""Of election_timeout: a shorter silence says nothing, however regular the heartbeats were."""

# ---- questions ------------------------------------------------------------------------------------


def hears_leader(state: NodeState, now: float) -> bool:
    """The leader was heard in this term, and its silence since is not too long. Rule: F2.

    A lost link needs no test: on_link_down has made the node suspect its leader at once.
    """
    role = state.role
    if not isinstance(role, Follower) or state.leader_id == NOBODY:
        return False
    return role.heard and now - role.heard_at < longest_silence(state)


def longest_silence(state: NodeState) -> float:
    """Seconds after which a leader that is not heard is suspected. Rule: F2.

    The pauses belong to the machine and the network more than to one leader: a new one does not begin at the start.
    """
    most = state.config.election_timeout
    if state.beats < LEARNT:
        return most
    return min(most, max(SHORTEST * most, PAUSES * state.longest_pause))


def has_quorum(state: NodeState, leader: Leader, now: float) -> bool:
    """A majority, this node included, answered in this term within election_timeout. Rule: F3."""
    timeout = state.config.election_timeout
    recent = sum(
        now - progress.answered_at < timeout for peer, progress in leader.progress.items() if peer not in state.learners
    )
    return recent + 1 >= state.majority


# ---- the own disk -----------------------------------------------------------------------------------


def expect_disk(state: NodeState, now: float) -> None:
    """The disk owes an answer from now on, if something waits and did not before. Called after each step. Rule: F4."""
    if state.owed_since == FOREVER and state.written > state.synced:
        state.owed_since = now


def disk_deadline(state: NodeState) -> float:
    """When the disk counts as stalled. A slow one is waited for as long again as it took last time, twice. Rule: F4."""
    if state.stalled:
        return FOREVER
    return state.owed_since + state.config.election_timeout + 2 * state.sync_took


def on_disk_silent(state: NodeState, now: float, fx: Effects) -> None:
    """Report it; the node's clients hear that it has no leader for them. Rule: F4."""
    state.stalled = True  # hit: F4 a disk is stalled
    fx.emit.append(DiskStalled(round((now - state.owed_since) * 1000)))


def on_disk_answer(state: NodeState, ticket: int, now: float, fx: Effects) -> None:
    """All up to this ticket is durable. Rule: F4."""
    if ticket <= state.synced:
        return
    state.synced, state.sync_took = ticket, now - min(state.owed_since, now)
    state.owed_since = FOREVER
    if state.stalled:
        state.stalled = False  # hit: F4 a stalled disk answers again
        state.route_epoch += 1
        state.poll_at = min(state.poll_at, now + state.jittered(state.config.election_timeout))
        fx.emit.append(DiskAnswered(round(state.sync_took * 1000)))


# ---- the follower's side ----------------------------------------------------------------------------


def hear(
    state: NodeState, sender: NodeId, msg: Heartbeat | Append | Resume | OlderMarks | Commit, now: float, fx: Effects
) -> Follower:
    """The leader of the present term spoke: follow it if we did not yet. Rule: F2, E2."""
    if state.leader_id != sender or not isinstance(state.role, Follower):
        assert not isinstance(state.role, Leader), (state.term, sender, "a second leader in our term")
        follow(state, sender, now, fx)
    follower = state.role
    assert isinstance(follower, Follower)
    if not isinstance(msg, Commit):
        follower.heard, follower.heard_at = True, now
        state.joined = True
        state.failures, state.vote_until = 0, 0.0
        if sender == state.suspected and state.silent_since != FOREVER and state.term == state.silent_term:
            # hit: F2 a suspicion was wrong and teaches patience
            state.longest_pause = max(state.longest_pause, now - state.silent_since)
        state.suspected, state.silent_since = NOBODY, FOREVER
        if state.spent:
            state.spent.clear()  # hit: E2 a leader is heard and spent OKs are good again
    if not isinstance(msg, Resume | OlderMarks) and msg.commit_seq > follower.leader_commit:
        follower.leader_commit = msg.commit_seq
    return follower


def on_heartbeat(state: NodeState, sender: NodeId, msg: Heartbeat, now: float, fx: Effects) -> None:
    """Answer with what is durable; notice a hole behind which nothing came. Rule: F1, C2, R1."""
    follower = hear(state, sender, msg, now, fx)
    fx.emit.append(HeartbeatReceived(sender, state.term))
    if follower.beat_at:
        state.beats += 1
        state.longest_pause = max(state.longest_pause * FADING, now - follower.beat_at)
    follower.beat_at = now
    follow_commit(state, follower, fx)
    if msg.sent > state.log.position and not follower.request and follower.hole_since == FOREVER:
        follower.hole_since = now  # hit: R1 a heartbeat shows a hole
    elif msg.sent <= state.log.position and not follower.buffer:
        follower.hole_since = FOREVER
    state.send(fx, sender, HeartbeatAck(state.term, state.durable))  # hit: F1 a heartbeat is answered


def suspect(state: NodeState, reason: str, now: float, fx: Effects, silent_since: float = FOREVER) -> None:
    """Take the leader for lost and ask around at once. Rule: F2.

    Args:
        silent_since: when it was heard last, if it is suspected for its silence.
    """
    fx.emit.append(LeaderTimeout(state.leader_id, reason))
    state.suspected, state.silent_since, state.silent_term = state.leader_id, silent_since, state.term
    become_follower(state, now, fx, reason)
    state.poll_at = now


def on_sign_of_restart(state: NodeState, sender: NodeId, what: str, now: float, fx: Effects) -> None:
    """JOIN, ELECTION or VOTE_REQUEST: if it comes from our leader, that leads no more. Rule: F2."""
    if sender == state.leader_id and isinstance(state.role, Follower):
        suspect(state, f"it sent {what}", now, fx)  # hit: F2 a leader is suspected for a sign of its restart


def tick_follower(state: NodeState, follower: Follower, now: float, fx: Effects) -> None:
    """Notice a leader that fell silent, and a catch-up or hole that makes no headway. Rule: F2, R1."""
    # As in follower_deadline: a difference may round to less than the timeout when that deadline is reached.
    if now >= follower.heard_at + longest_silence(state):
        # hit: F2 a leader is suspected for its silence
        suspect(state, "not heard", now, fx, follower.heard_at)
    elif now >= catch_up_deadline(state, follower):
        ask_again(state, follower, now, fx)  # hit: R1 a hole or an answer that stays away is asked for again


def follower_deadline(state: NodeState, follower: Follower) -> float:
    """When tick_follower is due."""
    silence = follower.heard_at + longest_silence(state)
    if not follower.request and follower.hole_since == FOREVER:
        return silence
    return min(silence, catch_up_deadline(state, follower))


# ---- the leader's side ----------------------------------------------------------------------------


def on_heartbeat_ack(state: NodeState, sender: NodeId, msg: HeartbeatAck | Appended, now: float, fx: Effects) -> None:
    """An answer in our own term. Rule: F3, C1."""
    if isinstance(state.role, Leader):
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
        state.poll_at = now  # Asking around tells the followers at once.
        return
    interval = state.config.heartbeat_interval
    leader.heartbeat_at += interval
    if leader.heartbeat_at <= now:  # Late by a whole interval: the rhythm starts anew.
        leader.heartbeat_at = now + interval
    send_heartbeats(state, leader, fx)


def others_are_ahead(state: NodeState, leader: Leader) -> bool:
    """A majority without this node has made durable what this node has not: they can go on without it. Rule: F4."""
    ahead = sum(
        progress.matched.term == state.term and progress.matched > state.durable
        for peer, progress in leader.progress.items()
        if peer not in state.learners
    )
    return ahead >= state.majority


def send_heartbeats(state: NodeState, leader: Leader, fx: Effects) -> None:
    """One HEARTBEAT to every peer with a link. Rule: F1."""
    reached = 0
    for peer, progress in leader.progress.items():
        if peer in state.links:
            state.send(fx, peer, heartbeat(state, progress))
            reached += 1
    if reached:
        fx.emit.append(HeartbeatSent(reached, state.term))


def heartbeat(state: NodeState, progress: Progress) -> Heartbeat:
    """What this peer should have by now: what was sent to it, or all, if it has to ask first. Rule: F1, R1."""
    return Heartbeat(state.term, state.commit_seq, progress.sent if progress.synced else state.log.position)


def lose_candidacy(state: NodeState, candidate: Candidate, now: float, fx: Effects) -> None:
    """The votes stayed away: ask around again, with more patience next time. Rule: E3."""
    state.failures += 1  # hit: E3 a candidate does not win in time
    become_follower(state, now, fx, f"{len(candidate.votes)} votes of {state.majority} in time")
    state.poll_at = now + state.jittered(state.config.answer_timeout)
