"""STORY 2: a follower gets the records that it lacks.

A follower sends the marks of its log to a new leader (CATCH_UP). The leader determines the fork, the last position
that both logs share, and sends it (RESUME). The follower drops its records above the fork. The leader sends all
records after the fork, from memory or from its disk, and from then on sends new records at once.
"""

from __future__ import annotations

from typing import Final

from nodeproc.core.effects import Effects, Fetch, Truncate
from nodeproc.core.events import CatchUpRequested, CatchUpServed, CaughtUp, NewCoordinator, Resumed
from nodeproc.core.messages import NOBODY, Append, CatchUp, NodeId, OlderMarks, Position, Record, Resume, Term
from nodeproc.core.ordering import count_answer, follow_commit, on_new_list, send_records
from nodeproc.core.state import FOREVER, Follower, Leader, NodeState, Progress, become_follower
from nodeproc.core.transfer import ask_when_ready

MAX_DOUBLINGS: Final = 5
"""Doublings stop here: the wait for RESUME is at most 32 times the first one."""

MARKS_AT_ONCE: Final = 4096
"""Maximum number of marks in one CATCH_UP, about 100 KB. Only a long series of leaders that delivered nothing leaves
more."""

# ---- the follower asks ----------------------------------------------------------------------------


def follow(state: NodeState, leader: NodeId, now: float, fx: Effects) -> None:
    """Follow a node as the leader of the current term and ask it for missing records. Rule: R1, E2, E3.

    The leader must be heard within election_timeout from now (F2).
    """
    assert state.leader_id in (NOBODY, leader), (state.term, state.leader_id, leader)
    become_follower(state, now, fx, f"node_{leader} leads")
    state.leader_id = leader
    state.no_quorum = False
    fx.emit.append(NewCoordinator(state.term, leader))
    assert isinstance(state.role, Follower)
    ask_catch_up(state, state.role, now, fx)


def ask_catch_up(state: NodeState, follower: Follower, now: float, fx: Effects) -> None:
    """Send CATCH_UP; only the RESUME with this request number will be obeyed. Rule: R1, R2."""
    follower.request = state.fresh_number()
    follower.resume_due = now + resume_timeout(state, follower)
    follower.hole_since = FOREVER
    if state.leader_id not in state.links:
        return  # CATCH_UP is sent when the link opens.
    _send_marks(state, follower, None, fx)
    fx.emit.append(CatchUpRequested(state.leader_id, state.log.position.seq_no, follower.request))


def _send_marks(state: NodeState, follower: Follower, up_to: Term | None, fx: Effects) -> None:
    marks, older = state.log.catch_up_marks(up_to, MARKS_AT_ONCE)
    last_seq = state.log.position.seq_no
    state.send(fx, state.leader_id, CatchUp(state.term, tuple(marks), last_seq, follower.request, older))


def on_older_marks(state: NodeState, follower: Follower, msg: OlderMarks, now: float, fx: Effects) -> None:
    """Send the marks before those that the leader does not have. Rule: R1."""
    if follower.request and msg.request == follower.request:
        follower.resume_due = now + resume_timeout(state, follower)
        _send_marks(state, follower, msg.up_to, fx)  # hit: R1 older marks are asked for


def catch_up_deadline(state: NodeState, follower: Follower) -> float:
    """Return when to send CATCH_UP again, because RESUME is late or a hole is not filled. Rule: R1."""
    if follower.request:
        return follower.resume_due
    return follower.hole_since + 2 * state.config.heartbeat_interval


def resume_timeout(state: NodeState, follower: Follower) -> float:
    """Return how long to wait for RESUME: twice as long after each attempt.

    On a slow link RESUME can be queued behind many records. A follower that repeats its request faster than the link
    carries the answers would never get the answer to its latest request.
    """
    return 2 * state.config.answer_timeout * float(2**follower.unanswered)


def ask_again(state: NodeState, follower: Follower, now: float, fx: Effects) -> None:
    """Send CATCH_UP again, because RESUME or the records that fill a hole did not come in time. Rule: R1."""
    if follower.request:
        follower.unanswered = min(follower.unanswered + 1, MAX_DOUBLINGS)
    ask_catch_up(state, follower, now, fx)


# ---- the leader answers ---------------------------------------------------------------------------


def on_catch_up(state: NodeState, leader: Leader, sender: NodeId, msg: CatchUp, fx: Effects) -> None:
    """Determine the fork, send it, and begin to send the records after it. Rule: R1."""
    if sender not in state.links:
        leader.progress[sender].asked = msg
        return
    if msg.older and msg.marks and not any(state.log.has_mark(term) for term, _ in msg.marks):
        # The follower's oldest mark is asked for again: it shows where the term before it ends.
        state.send(fx, sender, OlderMarks(state.term, msg.marks[0][0], msg.request))
        return
    progress = leader.progress[sender]
    fork = state.log.fork(msg.marks, msg.last_seq)
    progress.synced, progress.live, progress.fetch = True, False, 0
    progress.caught_up = False
    progress.sent = fork
    progress.inflight.clear()
    progress.inflight_bytes = 0
    if sender in state.learners and state.rebuilds.get(sender, ("",))[0] != state.presented[sender]:
        state.rebuilds[sender] = (state.presented[sender], state.log.position)
    state.send(fx, sender, Resume(state.term, fork, msg.request))
    state.send_members(fx, sender)
    fx.emit.append(CatchUpServed(sender, fork.seq_no))
    pump(state, sender, progress, fx)


def on_link_opened(state: NodeState, leader: Leader, peer: NodeId, fx: Effects) -> None:
    """The link to a peer has opened: answer the CATCH_UP that arrived before it. Rule: R1.

    The peer sees the link open first, so its CATCH_UP can arrive before this node sees the link open.
    """
    progress = leader.progress[peer]
    asked, progress.asked = progress.asked, None
    if asked is not None:
        on_catch_up(state, leader, peer, asked, fx)  # hit: R1 a CATCH_UP is answered late as the link opens


def pump(state: NodeState, peer: NodeId, progress: Progress, fx: Effects) -> None:
    """Send the next records to a follower that is behind, as far as its in-flight limit allows. Rule: R1, P1."""
    limit = state.config.inflight_max_bytes
    while progress.synced and not progress.live and not progress.fetch and progress.inflight_bytes * 2 < limit:
        if progress.sent == state.log.position:
            progress.live = True
            if not progress.caught_up:  # No event for a follower that only waited for its in-flight limit (P1).
                progress.caught_up = True
                fx.emit.append(CaughtUp(peer, progress.sent.seq_no))
            return
        records = state.log.records_after(progress.sent, state.config.fetch_max_bytes)
        if records is None:
            progress.fetch = state.fresh_number()  # hit: P1 a follower is served from disk
            fx.fetch.append(Fetch(peer, progress.sent, state.config.fetch_max_bytes, progress.fetch))
            return
        _send_next(state, peer, progress, records, fx)


def on_fetched(state: NodeState, leader: Leader, peer: NodeId, token: int, records: list[Record], fx: Effects) -> None:
    """Send a follower the records that were read from disk; ignore the result of an outdated read.

    records: empty if they cannot be read now; the read is repeated after the follower's next answer (K6).
    """
    progress = leader.progress.get(peer)
    if progress is None or progress.fetch != token:
        return
    progress.fetch = 0
    if not records:
        return  # hit: K6 a follower waits for what can't be read
    _send_next(state, peer, progress, records, fx)
    pump(state, peer, progress, fx)


def _send_next(state: NodeState, peer: NodeId, progress: Progress, records: list[Record], fx: Effects) -> None:
    send_records(state, peer, progress, Append(state.term, progress.sent, state.commit_seq, tuple(records)), fx)


def on_answer(state: NodeState, leader: Leader, sender: NodeId, position: Position, now: float, fx: Effects) -> None:
    """Handle HEARTBEAT_ACK or APPENDED of the current term: the follower is alive and has acknowledged `position`.

    Rule: F3, C1, P1.
    """
    progress = leader.progress[sender]
    progress.answered_at = now
    count_answer(state, leader, progress, position, fx)
    if not progress.live:
        pump(state, sender, progress, fx)
    if leader.successor is not None:
        ask_when_ready(state, leader, leader.successor, fx)


# ---- the follower goes on -------------------------------------------------------------------------


def on_resume(state: NodeState, follower: Follower, msg: Resume, fx: Effects) -> None:
    """Drop the records that the leader does not have; the leader's records follow. Rule: R2."""
    if follower.request == 0 or msg.request != follower.request:
        return  # hit: R2 a stale RESUME is ignored
    dropped = 0
    if state.log.position.term != state.term:
        if msg.fork < state.log.base or msg.fork.seq_no < state.commit_seq:
            # hit: R2 a fork below what is committed stops the node
            fx.halt = (
                f"term {state.term}: node_{state.leader_id} shares our log up to {tuple(msg.fork)} only, "
                f"but seq_no {state.commit_seq} was committed here: the message logs have diverged, nothing was changed"
            )
            return
        if msg.fork < state.log.position:
            members = state.log.members
            dropped = state.log.truncate(msg.fork)  # hit: R2 RESUME drops records
            if state.log.members != members:
                on_new_list(state, fx)  # hit: G1 a truncation restores the list before
            state.sessions.rebuild(state.log.tail)  # hit: S3 a truncation rolls the sessions back
            # An fdatasync under way may cover records that were just dropped: only one that begins now counts.
            state.unsynced.clear()
            state.unsynced.append((state.persist(fx, Truncate(msg.fork)), state.log.position))
            state.durable = min(state.durable, state.log.position)
    follower.request = follower.unanswered = 0  # hit: R2 RESUME is obeyed
    follower.resume_due = FOREVER
    follower.buffer.clear()
    follower.buffered_bytes = 0
    follower.hole_since = FOREVER
    fx.emit.append(Resumed(state.log.position.seq_no, dropped))
    follow_commit(state, follower, fx)
