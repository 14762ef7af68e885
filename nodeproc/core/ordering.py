"""STORY 1: a message is submitted, numbered, stored, acknowledged, committed, delivered.

The functions are in the order in which one message passes through them, on the leader and on its followers.
"""

from __future__ import annotations

from nodeproc.core.effects import Effects
from nodeproc.core.events import Buffered, Delivered, DeliveredFromBuffer, MembersChanged, SessionExpired
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
    """Accept a client's messages as leader, forward them to another leader, or refuse them. Rule: S2."""
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
    """Report why messages were not ordered to the node of the client, which may be this node."""
    answer = Refuse(msg.session, msg.first, reason, expected)
    if sender == state.node_id:
        fx.reply.append(answer)
    else:
        state.send(fx, sender, answer)


def take(state: NodeState, leader: Leader, sender: NodeId, msg: Submit, fx: Effects) -> None:
    """Accept the messages that are next in their session for the next batch. Rule: S2, S3.

    Their seq_no is determined here; the batch is encoded at the end of the turn (order).
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
        return  # All of the messages were ordered before; they are acknowledged when they are delivered.
    if known:
        # hit: S2 the known messages of a submission are dropped
        msg = Submit(msg.session, msg.client_id, msg.born, expected, msg.payloads[known:])
    leader.waiting.append(msg)
    leader.waiting_count += count
    state.sessions.take(msg.session, expected + count - 1, state.log.position.seq_no + leader.waiting_count)


# ---- numbered and stored by the leader ----------------------------------------------------------


def is_order_due(state: NodeState, leader: Leader) -> bool:
    """Return whether to order the waiting messages now. Rule: R3.

    They are ordered at once if all earlier messages are committed, else when they are enough for a batch. A batch costs
    the cluster about as much as a hundred messages in it. So the single messages of many clients are collected while
    the batch before theirs is under way, and none of them waits for longer than that. During a transfer they wait for
    its end (E7).
    """
    if not leader.waiting or leader.successor is not None:
        return False
    return state.log.position.seq_no <= state.commit_seq or leader.waiting_count >= state.config.batch_least_messages


def order(state: NodeState, leader: Leader, fx: Effects) -> None:
    """Pack all waiting messages into as few batches as the limits allow, append and send them. Rule: R3."""
    waiting, leader.waiting, leader.waiting_count = leader.waiting, [], 0
    start = 0
    while start < len(waiting):
        end, count = _cut(state, waiting, start)
        submits = waiting[start:end]
        # hit: R3 messages are ordered
        append_as_leader(state, leader, state.seal.batch(_header(state, submits, count), submits), fx)
        start = end


def _cut(state: NodeState, waiting: list[Submit], start: int) -> tuple[int, int]:
    """Return the end index of the batch that starts at waiting[start], and its number of messages.

    A Submit is never split.
    """
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
    """Store a new record and send it to every follower that has been sent all records before it. Rule: R3, E5.

    The leader's own copy counts only once it is durable (Node.persisted), as that of any follower.
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
                progress.live = False  # P1: catchup.pump continues once the follower has acknowledged records.
    leader.commit_unsent = False


def store(state: NodeState, record: Record, fx: Effects) -> None:
    """Append a record to the log and write it to disk."""
    header = record.header
    if isinstance(header, Batch):
        state.log.append(record)
        state.sessions.appended(header)
    else:
        members = state.log.members
        state.log.append(record)
        if state.log.members != members:
            on_new_list(state, fx)  # hit: G1 a mark brings another list
    state.unsynced.append((state.persist(fx, record), state.log.position))


def on_new_list(state: NodeState, fx: Effects) -> None:
    """Another list is in force: meet new members, report it, and let clients and transport know. Rule: G1, M4."""
    state.route_epoch += 1
    state.meet_new_members(fx)
    report_members(state, fx)


def report_members(state: NodeState, fx: Effects, kind: type[MembersChanged] = MembersChanged) -> None:
    """Report the list in force: it has changed, or it is committed. Rule: G1."""
    members, marks = state.members, state.log.marks
    term = marks[-1].term if marks else 0
    fx.emit.append(kind(term, members.version, members.voters, members.learners, members.removed))


def send_records(state: NodeState, peer: NodeId, progress: Progress, message: Append, fx: Effects) -> None:
    """Send consecutive records to a peer and count them as in flight. Rule: P1."""
    fx.send.append((peer, message))
    size = sum(len(record.raw) for record in message.records)
    progress.sent = message.records[-1].position
    progress.inflight.append((progress.sent, size))
    progress.inflight_bytes += size


# ---- stored by a follower -----------------------------------------------------------------------


def on_append(state: NodeState, follower: Follower, leader: NodeId, msg: Append, now: float, fx: Effects) -> None:
    """Store the leader's next records, buffer those above a hole, answer those that are known already.

    Args:
        leader: leads state.term; Node.step has answered older terms (E6).

    Rule: R4. The test of the previous position (term and seq_no) corresponds to Raft's log matching test (Raft 5.3).
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
        return  # Bounded: a hole that lasts causes a CATCH_UP, and the leader sends the record again.
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
    """Count records that became durable: a leader counts its own copy, a follower sends APPENDED. Rule: R5, C1."""
    moved = False
    while state.unsynced and state.unsynced[0][0] <= ticket:
        state.durable = state.unsynced.popleft()[1]
        moved = True
    if not moved:
        return
    deliver(state, fx)
    if state.pledge is not None:
        # hit: R5 records that become durable during a pledge are not acknowledged
        return  # A node with a pledge under way leaves its term: it counts and acknowledges nothing more in it.
    if isinstance(state.role, Leader):
        advance_commit(state, state.role, fx)
    elif isinstance(state.role, Follower) and state.leader_id != NOBODY:
        # hit: R5 a follower acknowledges durable records
        state.send(fx, state.leader_id, Appended(state.term, state.durable))
        follow_commit(state, state.role, fx)


def count_answer(state: NodeState, leader: Leader, progress: Progress, position: Position, fx: Effects) -> None:
    """Count the durable position that a follower has sent in the current term. Rule: C1, P1.

    A follower's log is known to be a prefix of the leader's only if its last mark is that of the current term. A
    position of an older term does not count for a majority, but still frees in-flight bytes: otherwise a follower that
    lacks many records of older terms would get no more of them after the first `inflight_max_bytes`.
    """
    inflight = progress.inflight
    while inflight and inflight[0][0] <= position:
        progress.inflight_bytes -= inflight.popleft()[1]
    if position.term != state.term:
        return  # hit: C1 an answer of an older log is not counted
    if position > progress.matched:
        progress.matched = position
    # Also for a known position: it may be from the time of the follower's rebuild, and count only now (M4).
    advance_commit(state, leader, fx)


def majority_position(state: NodeState, leader: Leader) -> Position | None:
    """Return the highest position durable on a majority, counting only logs with the current term's mark.

    None if these logs are no majority. Rule: C1, M4.
    """
    term, learners = state.term, state.learners
    counted = []
    for peer, progress in leader.progress.items():
        # hit: G4 the newest list counts
        if progress.matched.term == term and progress.votes and peer not in learners:
            counted.append(progress.matched)
    if state.durable.term == term and leader.has_vote:
        counted.append(state.durable)
    if len(counted) < leader.majority:
        return None
    counted.sort(reverse=True)
    return counted[leader.majority - 1]


def advance_commit(state: NodeState, leader: Leader, fx: Effects) -> None:
    """Commit the records that a majority holds. The current term's mark commits those of earlier terms. Rule: C1."""
    if state.commit_seq == state.log.position.seq_no:
        return  # Everything is committed, as at most heartbeats.
    reached = majority_position(state, leader)
    if reached is None:
        return
    seq_no = reached.seq_no
    if seq_no > state.durable.seq_no and state.log.tail_bytes > state.config.inflight_max_bytes:
        seq_no = state.durable.seq_no  # hit: P1 the leader's own disk limits the commit
    if seq_no > state.commit_seq:
        leader.commit_unsent = True  # hit: C1 a majority commits
        commit(state, seq_no, fx)


def send_commit(state: NodeState, leader: Leader, fx: Effects) -> None:
    """Send commit_seq in a separate message, because no APPEND has carried it. Rule: C2."""
    leader.commit_unsent = False
    message = Commit(state.term, state.commit_seq)  # hit: C2 COMMIT goes out by itself
    fx.send += [(peer, message) for peer, progress in leader.progress.items() if progress.synced]


def follow_commit(state: NodeState, follower: Follower, fx: Effects) -> None:
    """Commit up to the leader's commit_seq, as far as this log is durable and a prefix of the leader's. Rule: C2."""
    if state.log.position.term != state.term:
        return  # hit: C2 commit_seq is held back without the mark of this term
    reached = min(follower.leader_commit, state.durable.seq_no)
    if reached > state.commit_seq:
        commit(state, reached, fx)


# ---- delivered ------------------------------------------------------------------------------------


def commit(state: NodeState, commit_seq: SeqNo, fx: Effects) -> None:
    """Set commit_seq and deliver the committed messages."""
    state.commit_seq = commit_seq
    deliver(state, fx)


def deliver(state: NodeState, fx: Effects) -> None:
    """Deliver the messages that are committed and durable here, in order, each once. Rule: D1.

    A majority of followers can commit records that the leader's own disk has not synced yet. The leader delivers them
    only after the sync, so that a message log never contains messages that its node's WAL may lose.
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
