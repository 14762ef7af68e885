"""Mutants of the log: appending, acknowledging, counting, catching up, truncating, delivering."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from lab.mutants.patch import Collection, Patch
from nodeproc.core import catchup, ordering
from nodeproc.core.effects import Effects, Truncate
from nodeproc.core.log import Log
from nodeproc.core.messages import NOBODY, Append, Appended, Envelope, Mark, NodeId, Position, Record, Resume
from nodeproc.core.node import Node
from nodeproc.core.state import FOREVER, Follower, Leader, NodeState, Progress

LOGS: Final = Collection()


def unchecked(self: Log, record: Record) -> None:
    """Log.append without its assertions, so that others have to notice."""
    if isinstance(record.header, Mark):
        self.marks.append(record.header)
    self.tail.append(record)
    self.position = record.position


def obeyed(follower: Follower, msg: Resume) -> bool:
    return follower.request != 0 and msg.request == follower.request


def drop(state: NodeState, keep: Position, fx: Effects) -> None:
    """What on_resume does to drop records."""
    state.log.truncate(keep)
    state.sessions.rebuild(state.log.tail)
    state.unsynced.clear()
    state.unsynced.append((state.persist(fx, Truncate(keep)), state.log.position))
    state.durable = min(state.durable, state.log.position)


# ---- acknowledging and counting -----------------------------------------------------------------


@LOGS.add("R5", "A follower acknowledges records before they are durable.")
def acknowledge_before_durable(patch: Patch) -> None:
    right = ordering.store

    def wrong(state: NodeState, record: Record, fx: Effects) -> None:
        right(state, record, fx)
        if isinstance(state.role, Follower):
            state.send(fx, state.leader_id, Appended(state.term, state.log.position))

    patch.everywhere(right, wrong)


@LOGS.add("C1", "The leader counts its own copy as soon as it is written.")
def leader_counts_itself_before_its_fsync(patch: Patch) -> None:
    right = ordering.majority_position

    def wrong(state: NodeState, leader: Leader) -> Position | None:
        durable, state.durable = state.durable, state.log.position
        try:
            return right(state, leader)
        finally:
            state.durable = durable

    patch.everywhere(right, wrong)


def count_all(patch: Patch, counts: Any) -> None:
    """Make the leader count every acknowledged position for which counts(state, position) is true."""
    right = ordering.count_answer

    def majority(state: NodeState, leader: Leader) -> Position | None:
        acknowledged = [p.matched for peer, p in leader.progress.items() if peer not in state.learners] + [
            state.durable
        ]
        counted = sorted((position for position in acknowledged if counts(state, position)), reverse=True)
        return counted[state.majority - 1] if len(counted) >= state.majority else None

    def count(state: NodeState, leader: Leader, progress: Progress, position: Position, fx: Effects) -> None:
        progress.matched = max(progress.matched, position)
        right(state, leader, progress, position, fx)
        ordering.advance_commit(state, leader, fx)

    patch.everywhere(ordering.majority_position, majority)
    patch.everywhere(right, count)


@LOGS.add("C1", "The leader counts positions of any term, even of logs that are no prefix of its own.")
def commit_without_the_terms_mark_on_a_majority(patch: Patch) -> None:
    count_all(patch, lambda state, position: True)


@LOGS.add("C1", "Messages of an earlier term are committed by their copies alone, without the current term's mark.")
def earlier_terms_committed_by_count_alone(patch: Patch) -> None:
    def own(state: NodeState, position: Position) -> bool:
        """Return whether that log is a prefix of the leader's."""
        known = position.term == 0 or any(mark.term == position.term for mark in state.log.marks)
        return known and position.seq_no <= state.log.end_of(position.term)

    count_all(patch, own)


@LOGS.add("C2", "A follower uses commit_seq before its log has the mark of the leader's term.")
def commit_seq_used_before_the_own_mark(patch: Patch) -> None:
    def wrong(state: NodeState, follower: Follower, fx: Effects) -> None:
        reached = min(follower.leader_commit, state.durable.seq_no)
        if reached > state.commit_seq:
            ordering.commit(state, reached, fx)

    patch.everywhere(ordering.follow_commit, wrong)


@LOGS.add("E6", "An APPENDED of an older term counts as one of the current term.")
def stale_appended_counted(patch: Patch) -> None:
    right = Node._take

    def wrong(self: Node, envelope: Envelope, now: float, fx: Effects) -> None:
        state, msg = self.state, envelope.message
        leads = isinstance(state.role, Leader) and state.pledge is None
        if leads and isinstance(msg, Appended) and msg.term < state.term:
            seq_no = min(msg.position.seq_no, state.log.position.seq_no)
            envelope = Envelope(envelope.sender, Appended(state.term, Position(state.term, seq_no)))
        right(self, envelope, now, fx)

    patch.set(Node, "_take", wrong)


# ---- ordering, appending and delivering ---------------------------------------------------------


@LOGS.add("R3", "Messages that wait for the next batch are packed in reverse order.")
def batch_packed_backwards(patch: Patch) -> None:
    right = ordering.order

    def wrong(state: NodeState, leader: Leader, fx: Effects) -> None:
        leader.waiting.reverse()
        right(state, leader, fx)

    patch.everywhere(right, wrong)


@LOGS.add("P1", "A follower is sent all new records, regardless of the bytes in flight.")
def slow_follower_sent_without_limit(patch: Patch) -> None:
    right = ordering.append_as_leader

    def wrong(state: NodeState, leader: Leader, record: Record, fx: Effects) -> None:
        config = state.config
        state.config = replace(config, inflight_max_bytes=1 << 62)
        try:
            right(state, leader, record, fx)
        finally:
            state.config = config

    patch.everywhere(right, wrong)


@LOGS.add("R4", "A record above a hole is appended as if there were no hole.")
def gap_in_the_log_accepted(patch: Patch) -> None:
    right = ordering.on_append

    def wrong(state: NodeState, follower: Follower, leader: NodeId, msg: Append, now: float, fx: Effects) -> None:
        if msg.previous > state.log.position:
            msg = Append(msg.term, state.log.position, msg.commit_seq, msg.records)
        right(state, follower, leader, msg, now, fx)

    patch.everywhere(right, wrong)
    patch.set(Log, "append", unchecked)


@LOGS.add("R4", "A record is accepted if the seq_no before it fits, whatever its term.")
def record_taken_by_seq_no_alone(patch: Patch) -> None:
    right = ordering.on_append

    def wrong(state: NodeState, follower: Follower, leader: NodeId, msg: Append, now: float, fx: Effects) -> None:
        if msg.previous.seq_no == state.log.position.seq_no and msg.records[0].position > state.log.position:
            msg = Append(msg.term, state.log.position, msg.commit_seq, msg.records)
        right(state, follower, leader, msg, now, fx)

    patch.everywhere(right, wrong)
    patch.set(Log, "append", unchecked)


@LOGS.add("D1", "A node delivers records that are durable on its own disk, committed or not.")
def delivery_before_commit(patch: Patch) -> None:
    right = ordering.on_durable

    def wrong(state: NodeState, ticket: int, fx: Effects) -> None:
        right(state, ticket, fx)
        if state.durable.seq_no > state.commit_seq:
            ordering.commit(state, state.durable.seq_no, fx)

    patch.everywhere(right, wrong)


# ---- catching up and truncating -----------------------------------------------------------------


@LOGS.add("R1", "The fork is the smaller of the two last seq_nos, regardless of their terms.")
def fork_is_a_bare_seq_no(patch: Patch) -> None:
    def wrong(self: Log, marks: Any, last_seq: int) -> Position:
        seq_no = min(last_seq, self.position.seq_no)
        terms = [mark.term for mark in self.marks if mark.after <= seq_no and mark.term < self.position.term]
        return Position(max(terms, default=0), seq_no)

    patch.set(Log, "fork", wrong)


@LOGS.add("R1", "A follower asks for the records that it lacks only once.", "liveness")
def catch_up_asked_once(patch: Patch) -> None:
    patch.everywhere(catchup.resume_timeout, lambda state, follower: FOREVER)


@LOGS.add("R2", "A RESUME drops records of the current term too.")
def resume_truncates_a_log_of_this_term(patch: Patch) -> None:
    right = catchup.on_resume

    def wrong(state: NodeState, follower: Follower, msg: Resume, fx: Effects) -> None:
        own_term = state.log.position.term == state.term
        if obeyed(follower, msg) and own_term and state.log.base <= msg.fork < state.log.position:
            drop(state, msg.fork, fx)
        right(state, follower, msg, fx)

    patch.everywhere(right, wrong)


@LOGS.add("R2", "A RESUME of any term is obeyed, regardless of the CATCH_UP that it answers.")
def stale_resume_obeyed(patch: Patch) -> None:
    take, right = Node._take, catchup.on_resume

    def any_term(self: Node, envelope: Envelope, now: float, fx: Effects) -> None:
        state, sender, msg = self.state, envelope.sender, envelope.message
        from_leader = state.pledge is None and sender == state.leader_id
        if from_leader and isinstance(msg, Resume) and msg.term < state.term:
            envelope = Envelope(sender, Resume(state.term, msg.fork, msg.request))
        take(self, envelope, now, fx)

    def any_request(state: NodeState, follower: Follower, msg: Resume, fx: Effects) -> None:
        follower.request = msg.request
        right(state, follower, msg, fx)

    patch.set(Node, "_take", any_term)
    patch.everywhere(right, any_request)


@LOGS.add("R2", "The fork is the start of the last common term, and a node drops even delivered records.")
def truncation_below_commit_accepted(patch: Patch) -> None:
    fork, right = Log.fork, catchup.on_resume

    def too_low(self: Log, marks: Any, last_seq: int) -> Position:
        term = fork(self, marks, last_seq).term
        return Position(term, next((mark.after for mark in self.marks if mark.term == term), 0))

    def wrong(state: NodeState, follower: Follower, msg: Resume, fx: Effects) -> None:
        log, keep = state.log, msg.fork
        own_term = log.position.term == state.term
        if obeyed(follower, msg) and not own_term and (keep < log.base or keep.seq_no < state.commit_seq):
            if keep < log.base:
                log.base = keep
                log.tail.clear()
            drop(state, keep, fx)
            state.delivered_seq = min(state.delivered_seq, log.base.seq_no)
            state.commit_seq = keep.seq_no
        right(state, follower, msg, fx)

    patch.set(Log, "fork", too_low)
    patch.everywhere(right, wrong)


@LOGS.add(
    "R2",
    "A term without a vote is adopted before it is durable, and an fdatasync that began before a truncation counts for "
    "records written after it at the same seq_nos.",
)
def fsync_before_a_truncation_counts(patch: Patch) -> None:
    right, durable, take = catchup.on_resume, ordering.on_durable, Node._take

    def keep_tickets(state: NodeState, follower: Follower, msg: Resume, fx: Effects) -> None:
        before, written = list(state.unsynced), state.written
        right(state, follower, msg, fx)
        if state.written > written:
            state.unsynced.extendleft(reversed(before))

    def present(state: NodeState, reached: Position) -> Position:
        """Return the position, or if the log does not have it, the last one in the log with at most its seq_no."""
        places = [record.position for record in state.log.tail]
        if reached <= state.log.base or reached in places:
            return reached
        return max((place for place in places if place.seq_no <= reached.seq_no), default=state.log.base)

    def wrong(state: NodeState, ticket: int, fx: Effects) -> None:
        for at, (each, reached) in enumerate(state.unsynced):
            if each > ticket:
                break
            state.unsynced[at] = (each, present(state, reached))
        durable(state, ticket, fx)

    def at_once(self: Node, envelope: Envelope, now: float, fx: Effects) -> None:
        """Without this a new term waits for everything before it, so that nothing unsynced is ever truncated."""
        take(self, envelope, now, fx)
        pledge = self.state.pledge
        if pledge is not None and pledge.voted_for == NOBODY and pledge.then is not None:
            self._keep_pledge(now, fx)

    patch.everywhere(right, keep_tickets)
    patch.everywhere(durable, wrong)
    patch.set(Node, "_take", at_once)
