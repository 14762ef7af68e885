"""STORY 1: a message is submitted, numbered, stored, acknowledged, committed, delivered.

Read from top to bottom: what happens to one message, on the leader and on its followers.
"""

from __future__ import annotations

from nodeproc.core.effects import Effects
from nodeproc.core.events import Buffered, Delivered, DeliveredFromBuffer, SessionExpired
from nodeproc.core.messages import (
    NOBODY,
    Append,
    Appended,
    Batch,
    Commit,
    NodeId,
    Position,
    Record,
    Refuse,
    RefuseReason,
    SeqNo,
    SessionUse,
    Submit,
)
from nodeproc.core.state import FOREVER, Follower, Leader, NodeState, Progress

# ---- submitted ------------------------------------------------------------------------------------


def on_submit(state: NodeState, sender: NodeId, msg: Submit, fx: Effects) -> None:
    """Take a client's messages if we lead, pass them on if another node does. Rule: S2."""
    if state.stalled:
        refuse(state, sender, msg, "disk_stalled", 0, fx)  # hit: F4 messages are refused while the disk is stalled
    elif isinstance(state.role, Leader):
        take(state, state.role, sender, msg, fx)
    elif sender == state.node_id and state.leader_id in state.links:
        fx.send.append((state.leader_id, msg))
    else:
        # hit: S2 messages are refused for want of a leader
        refuse(state, sender, msg, "no_quorum" if state.no_quorum else "no_leader", 0, fx)


def refuse(state: NodeState, sender: NodeId, msg: Submit, reason: RefuseReason, expected: int, fx: Effects) -> None:
    """Tell the node whose client it is, which may be this one, why messages were not ordered."""
    answer = Refuse(msg.session, msg.first, reason, expected)
    if sender == state.node_id:
        fx.reply.append(answer)
    else:
        state.send(fx, sender, answer)


def take(state: NodeState, leader: Leader, sender: NodeId, msg: Submit, fx: Effects) -> None:
    """Keep the messages that are next in their session for the batch in the making. Rule: S2, S3.

    Their seq_no is settled here, the batch made at the end of the turn (order).
    """
    expected = state.sessions.expected(msg.session, msg.born)
    if expected is None:
        fx.emit.append(SessionExpired(msg.session, msg.client_id))  # hit: S3 an expired session is refused
        refuse(state, sender, msg, "expired", 0, fx)
        return
    if msg.first > expected:
        refuse(state, sender, msg, "gap", expected, fx)  # hit: S2 a gap is refused
        return
    known = expected - msg.first
    count = len(msg.payloads) - known
    if count <= 0:
        # hit: S2 a duplicate is dropped
        return  # All of it was ordered before: acknowledged when it is delivered.
    if known:
        # hit: S2 what is known of a submission is trimmed
        msg = Submit(msg.session, msg.client_id, msg.born, expected, msg.payloads[known:])
    leader.waiting.append(msg)
    leader.waiting_count += count
    state.sessions.take(msg.session, expected + count - 1, state.log.position.seq_no + leader.waiting_count)


# ---- numbered and stored by the leader ----------------------------------------------------------


def is_order_due(state: NodeState, leader: Leader) -> bool:
    """Whether what waits is to be ordered now: at once while nothing is under way, else when it is worth a batch.

    A batch costs the cluster some hundred times what a message in it costs. So the messages of many clients that wait
    one by one gather while the batch before theirs is on its way, and none of them waits for longer than for that.
    Rule: R3.
    """
    if not leader.waiting:
        return False
    return state.log.position.seq_no <= state.commit_seq or leader.waiting_count >= state.config.batch_least_messages


def order(state: NodeState, leader: Leader, fx: Effects) -> None:
    """Pack all that waits into batches, as few as the limits allow, append and send them. Rule: R3."""
    waiting, leader.waiting, leader.waiting_count = leader.waiting, [], 0
    start = 0
    while start < len(waiting):
        end, count = _cut(state, waiting, start)
        submits = waiting[start:end]
        # hit: R3 messages are ordered
        append_as_leader(state, leader, state.seal.batch(_header(state, submits, count), submits), fx)
        start = end


def _cut(state: NodeState, waiting: list[Submit], start: int) -> tuple[int, int]:
    """Where the batch that starts at waiting[start] ends, and how many messages it holds; a Submit is never split."""
    count = size = 0
    for at in range(start, len(waiting)):
        payloads = waiting[at].payloads
        count += len(payloads)
        size += sum(map(len, payloads))
        if at > start and (count > state.config.batch_max_messages or size > state.config.batch_max_bytes):
            return at, count - len(payloads)  # hit: R3 a batch is cut at its limit
    return len(waiting), count


def _header(state: NodeState, submits: list[Submit], count: int) -> Batch:
    seq_no = state.log.position.seq_no
    uses: dict[str, SessionUse] = {}
    for submit in submits:
        seq_no += len(submit.payloads)
        uses.pop(submit.session, None)  # Put it last: ascending by last use.
        uses[submit.session] = SessionUse(submit.session, submit.first + len(submit.payloads) - 1, seq_no)
    first = state.log.position.seq_no + 1
    return Batch(state.term, first, first + count - 1, tuple(uses.values()))


def append_as_leader(state: NodeState, leader: Leader, record: Record, fx: Effects) -> None:
    """Store a record of our own and send it to every follower that has all before it. Rule: R3, E5.

    The leader's copy counts only once it is durable: persisted() sees to that, as for any follower.
    """
    previous = state.log.position
    store(state, record, fx)
    message = Append(state.term, previous, state.commit_seq, (record,))
    for peer, progress in leader.progress.items():
        if progress.live:
            assert progress.sent == previous, (peer, progress.sent, previous)
            if progress.inflight_bytes < state.config.inflight_max_bytes:
                send_records(state, peer, progress, message, fx)
            else:
                # hit: P1 a follower reaches its limit of bytes under way
                progress.live = False  # P1: served from behind, once it has acknowledged some.
    leader.commit_untold = False


def store(state: NodeState, record: Record, fx: Effects) -> None:
    """Append a record to the log and hand it to the disk."""
    state.log.append(record)
    if isinstance(record.header, Batch):
        state.sessions.appended(record.header)
    state.unsynced.append((state.persist(fx, record), state.log.position))


def send_records(state: NodeState, peer: NodeId, progress: Progress, message: Append, fx: Effects) -> None:
    """Send consecutive records to a peer and keep account of what is under way. Rule: P1."""
    fx.send.append((peer, message))
    size = sum(len(record.raw) for record in message.records)
    progress.sent = message.records[-1].position
    progress.inflight.append((progress.sent, size))
    progress.inflight_bytes += size


# ---- stored by a follower -----------------------------------------------------------------------


def on_append(state: NodeState, follower: Follower, leader: NodeId, msg: Append, now: float, fx: Effects) -> None:
    """Take the leader's next records, keep what is above a hole, answer what is known already.

    Args:
        leader: leads state.term and is heard; Node.step has answered older terms (E6).

    Rule: R4; the test of the previous position, both halves, stands for Raft's prefix test (Raft 5.3).
    """
    previous, duplicate = msg.previous, False
    for record in msg.records:
        if previous == state.log.position:
            store(state, record, fx)
        elif previous > state.log.position:
            _keep_above_hole(state, follower, previous, record, now, fx)
        else:
            duplicate = True
        previous = record.position
    _take_from_buffer(state, follower, now, fx)
    if duplicate:
        state.send(fx, leader, Appended(state.term, state.durable))  # hit: R4 a duplicate record is answered


def _keep_above_hole(
    state: NodeState, follower: Follower, previous: Position, record: Record, now: float, fx: Effects
) -> None:
    header = record.header
    seq_no = header.first if isinstance(header, Batch) else header.after
    if follower.hole_since == FOREVER:
        follower.hole_since = now
    if previous in follower.buffer or follower.buffered_bytes + len(record.raw) > state.config.buffer_max_bytes:
        # hit: R4 the buffer is full or holds that record
        return  # Bounded: what does not fit comes again with the CATCH_UP that a lasting hole asks for.
    follower.buffer[previous] = record  # hit: R4 a record above a hole is buffered
    follower.buffered_bytes += len(record.raw)
    fx.emit.append(Buffered(seq_no, state.log.position.seq_no + 1))


def _take_from_buffer(state: NodeState, follower: Follower, now: float, fx: Effects) -> None:
    if not follower.buffer:
        return
    while (record := follower.buffer.pop(state.log.position, None)) is not None:
        follower.buffered_bytes -= len(record.raw)
        store(state, record, fx)  # hit: R4 a hole is filled from the buffer
        follower.hole_since = now
        fx.emit.append(DeliveredFromBuffer(state.log.position.seq_no))
    stale = [previous for previous in follower.buffer if previous < state.log.position]
    for previous in stale:
        follower.buffered_bytes -= len(follower.buffer.pop(previous).raw)
    if not follower.buffer:
        follower.hole_since = FOREVER


# ---- durable, acknowledged, committed -----------------------------------------------------------


def on_durable(state: NodeState, ticket: int, fx: Effects) -> None:
    """Count what became durable: the leader for itself, a follower by telling its leader. Rule: R5, C1."""
    moved = False
    while state.unsynced and state.unsynced[0][0] <= ticket:
        state.durable = state.unsynced.popleft()[1]
        moved = True
    if not moved:
        return
    deliver(state, fx)
    if state.pledge is not None:
        # hit: R5 what becomes durable during a pledge is not told
        return  # A node with a pledge under way is moving on: nothing more is counted or told in the old term.
    if isinstance(state.role, Leader):
        advance_commit(state, state.role, fx)
    elif isinstance(state.role, Follower) and state.leader_id != NOBODY:
        # hit: R5 a follower acknowledges what is durable
        state.send(fx, state.leader_id, Appended(state.term, state.durable))
        follow_commit(state, state.role, fx)


def count_answer(state: NodeState, leader: Leader, progress: Progress, position: Position, fx: Effects) -> None:
    """A follower told, in our term, what is durable there. Rule: C1, P1.

    A position of an older term says nothing about our log: only one whose last mark is ours is our prefix. It still
    makes room for more, else a follower that lacks much of older terms would be served up to the limit and no further.
    """
    inflight = progress.inflight
    while inflight and inflight[0][0] <= position:
        progress.inflight_bytes -= inflight.popleft()[1]
    if position.term != state.term:
        return  # hit: C1 an answer of an older log is not counted
    progress.matched = max(progress.matched, position)
    # Also for nothing new: it may have told so while it was being rebuilt, and counts only since (M4).
    advance_commit(state, leader, fx)


def majority_position(state: NodeState, leader: Leader) -> Position | None:
    """The highest position durable on a majority, counting only logs that carry this term's mark. Rule: C1, M4."""
    counted = [
        progress.matched
        for peer, progress in leader.progress.items()
        if progress.matched.term == state.term and peer not in state.learners
    ]
    if state.durable.term == state.term:
        counted.append(state.durable)
    if len(counted) < state.majority:
        return None
    counted.sort(reverse=True)
    return counted[state.majority - 1]


def advance_commit(state: NodeState, leader: Leader, fx: Effects) -> None:
    """Commit what a majority holds; messages of earlier terms are committed by this term's mark. Rule: C1."""
    reached = majority_position(state, leader)
    if reached is None:
        return
    seq_no = reached.seq_no
    if seq_no > state.durable.seq_no and state.log.tail_bytes > state.config.inflight_max_bytes:
        seq_no = state.durable.seq_no  # hit: P1 the leader's own disk holds the commit up
    if seq_no > state.commit_seq:
        leader.commit_untold = True  # hit: C1 a majority commits
        commit(state, seq_no, fx)


def tell_commit(state: NodeState, leader: Leader, fx: Effects) -> None:
    """Send commit_seq by itself, as no APPEND has carried it. Rule: C2."""
    leader.commit_untold = False
    message = Commit(state.term, state.commit_seq)  # hit: C2 COMMIT goes out by itself
    fx.send += [(peer, message) for peer, progress in leader.progress.items() if progress.synced]


def follow_commit(state: NodeState, follower: Follower, fx: Effects) -> None:
    """Use the leader's commit_seq as far as our own log is durable and known to be its prefix. Rule: C2."""
    if state.log.position.term != state.term:
        return  # hit: C2 commit_seq is held back without the mark of this term
    reached = min(follower.leader_commit, state.durable.seq_no)
    if reached > state.commit_seq:
        commit(state, reached, fx)


# ---- delivered ------------------------------------------------------------------------------------


def commit(state: NodeState, commit_seq: SeqNo, fx: Effects) -> None:
    """Move commit_seq up and deliver what it covers."""
    state.commit_seq = commit_seq
    deliver(state, fx)


def deliver(state: NodeState, fx: Effects) -> None:
    """Deliver what is committed and durable here, in order, each message once. Rule: D1.

    The followers' copies can commit what the leader's own disk has not synced yet. It waits for that, so that a
    message log never holds what its node's WAL may lose.
    """
    reached = min(state.commit_seq, state.durable.seq_no)
    if reached <= state.delivered_seq:
        return
    records = state.log.delivered_up_to(reached)
    if not records:
        return
    first = state.delivered_seq + 1
    for record in records:
        if isinstance(record.header, Batch):
            assert record.header.first == state.delivered_seq + 1, (record.header, state.delivered_seq)
            state.delivered_seq = record.header.last
            state.sessions.delivered(record.header)
    fx.deliver += records  # hit: D1 messages are delivered
    fx.emit.append(Delivered(first, state.delivered_seq))
