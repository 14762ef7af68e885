"""STORY 2: a node gets what it lacks.

A follower meets a leader and says what it has (CATCH_UP); the leader finds the fork and says so (RESUME); the follower
drops what is above it; the leader sends everything behind it, from memory or from its disk, and then goes on live.
"""

from __future__ import annotations

from typing import Final

from nodeproc.core.effects import Effects, Fetch, Truncate
from nodeproc.core.events import CatchUpRequested, CatchUpServed, CaughtUp, NewCoordinator, Resumed
from nodeproc.core.messages import NOBODY, Append, CatchUp, NodeId, OlderMarks, Position, Record, Resume, Term
from nodeproc.core.ordering import count_answer, follow_commit, send_records
from nodeproc.core.state import FOREVER, Follower, Leader, NodeState, Progress, become_follower

MOST_UNANSWERED: Final = 5
"""What is counted: 32 times the patience of the first time are enough."""

MARKS_AT_ONCE: Final = 4096
"""In one CATCH_UP: some 100 KB. Only leaders that delivered nothing leave more of them."""

# ---- the follower asks ----------------------------------------------------------------------------


def follow(state: NodeState, leader: NodeId, now: float, fx: Effects) -> None:
    """Take a node for the leader of the present term and ask it for what we lack. Rule: R1, E2, E3.

    From here it has election_timeout to be heard (F2).
    """
    assert state.leader_id in (NOBODY, leader), (state.term, state.leader_id, leader)
    become_follower(state, now, fx, f"node_{leader} leads")
    state.leader_id = leader
    state.no_quorum = False
    fx.emit.append(NewCoordinator(state.term, leader))
    assert isinstance(state.role, Follower)
    ask_catch_up(state, state.role, now, fx)


def ask_catch_up(state: NodeState, follower: Follower, now: float, fx: Effects) -> None:
    """Say what we have; only the answer to this very request will be taken. Rule: R1, R2."""
    follower.request = state.fresh_number()
    follower.requested_at = now
    follower.hole_since = FOREVER
    if state.leader_id not in state.links:
        return  # Asked again when the link opens.
    _send_marks(state, follower, None, fx)
    fx.emit.append(CatchUpRequested(state.leader_id, state.log.position.seq_no, follower.request))


def _send_marks(state: NodeState, follower: Follower, up_to: Term | None, fx: Effects) -> None:
    marks, older = state.log.doubtful_marks(up_to, MARKS_AT_ONCE)
    last_seq = state.log.position.seq_no
    state.send(fx, state.leader_id, CatchUp(state.term, tuple(marks), last_seq, follower.request, older))


def on_older_marks(state: NodeState, follower: Follower, msg: OlderMarks, now: float, fx: Effects) -> None:
    """Go on with the marks before those that the leader does not have. Rule: R1."""
    if follower.request and msg.request == follower.request:
        follower.requested_at = now
        _send_marks(state, follower, msg.up_to, fx)  # hit: R1 older marks are asked for


def catch_up_deadline(state: NodeState, follower: Follower) -> float:
    """When to ask again: an answer that stays away, or a hole that stays. Rule: R1."""
    if follower.request:
        return follower.requested_at + answer_patience(state, follower)
    return follower.hole_since + 2 * state.config.heartbeat_interval


def answer_patience(state: NodeState, follower: Follower) -> float:
    """How long to wait for RESUME, longer each time: behind all that was sent before it, it may be long on its way.

    Who asks faster than a slow link carries the answers never gets the answer to its latest request.
    """
    return 2 * state.config.answer_timeout * float(2**follower.unanswered)


def ask_again(state: NodeState, follower: Follower, now: float, fx: Effects) -> None:
    """An answer or what should fill a hole stayed away. Rule: R1."""
    if follower.request:
        follower.unanswered = min(follower.unanswered + 1, MOST_UNANSWERED)
    ask_catch_up(state, follower, now, fx)


# ---- the leader answers ---------------------------------------------------------------------------


def on_catch_up(state: NodeState, leader: Leader, sender: NodeId, msg: CatchUp, fx: Effects) -> None:
    """Find the fork, say it, and begin to send what lies behind. Rule: R1."""
    if sender not in state.links:
        leader.progress[sender].asked = msg
        return
    if msg.older and msg.marks and not any(state.log.has_mark(term) for term, _ in msg.marks):
        # The oldest of them once more: it says where the stretch before it ends.
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


def on_way_open(state: NodeState, leader: Leader, peer: NodeId, fx: Effects) -> None:
    """Our link to a peer has opened: answer the CATCH_UP that came before it. Rule: R1.

    The peer learns of this link first, asks, and may be heard before we learn of it.
    """
    progress = leader.progress[peer]
    asked, progress.asked = progress.asked, None
    if asked is not None:
        on_catch_up(state, leader, peer, asked, fx)  # hit: R1 a CATCH_UP is answered late as the link opens


def pump(state: NodeState, peer: NodeId, progress: Progress, fx: Effects) -> None:
    """Send a follower that is behind its next records, as far as its limit allows. Rule: R1, P1."""
    limit = state.config.inflight_max_bytes
    while progress.synced and not progress.live and not progress.fetch and progress.inflight_bytes * 2 < limit:
        if progress.sent == state.log.position:
            progress.live = True
            if not progress.caught_up:  # One that only had to wait for room (P1) is no news.
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
    """What the disk had behind a follower's position; an answer to an older question is dropped.

    records: none where they can't be read now: tried again with the follower's next answer (K6).
    """
    progress = leader.progress[peer]
    if progress.fetch != token:
        return
    progress.fetch = 0
    if not records:
        return  # hit: K6 a follower waits for what can't be read
    _send_next(state, peer, progress, records, fx)
    pump(state, peer, progress, fx)


def _send_next(state: NodeState, peer: NodeId, progress: Progress, records: list[Record], fx: Effects) -> None:
    send_records(state, peer, progress, Append(state.term, progress.sent, state.commit_seq, tuple(records)), fx)


def on_answer(state: NodeState, leader: Leader, sender: NodeId, position: Position, now: float, fx: Effects) -> None:
    """HEARTBEAT_ACK or APPENDED in our own term: it lives, and so much is durable there. Rule: F3, C1, P1."""
    progress = leader.progress[sender]
    progress.answered_at = now
    count_answer(state, leader, progress, position, fx)
    if not progress.live:
        pump(state, sender, progress, fx)


# ---- the follower goes on -------------------------------------------------------------------------


def on_resume(state: NodeState, follower: Follower, msg: Resume, fx: Effects) -> None:
    """Drop what the leader does not have; its records follow. Rule: R2."""
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
            dropped = state.log.truncate(msg.fork)  # hit: R2 RESUME drops records
            state.sessions.rebuild(state.log.tail)  # hit: S3 a truncation rolls the sessions back
            # What an fdatasync under way covers may be what was just dropped: only one begun from here on counts.
            state.unsynced.clear()
            state.unsynced.append((state.persist(fx, Truncate(msg.fork)), state.log.position))
            state.durable = min(state.durable, state.log.position)
    follower.request = follower.unanswered = 0  # hit: R2 RESUME is obeyed
    follower.buffer.clear()
    follower.buffered_bytes = 0
    follower.hole_since = FOREVER
    fx.emit.append(Resumed(state.log.position.seq_no, dropped))
    follow_commit(state, follower, fx)
