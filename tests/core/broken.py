"""Rules of the protocol broken on purpose, one at a time: the walks must notice each.

A breakage patches one function of the core for a while; see test_walks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nodeproc.core import catchup, election, failure, ordering
from nodeproc.core.effects import Effects, Promise, Truncate
from nodeproc.core.log import Log
from nodeproc.core.messages import (
    NOBODY,
    Append,
    Appended,
    Mark,
    NodeId,
    Position,
    Record,
    Resume,
    Submit,
    VoteRequest,
)
from nodeproc.core.sessions import Sessions
from nodeproc.core.state import Candidate, Follower, Leader, NodeState, Progress

Breakage = Callable[[pytest.MonkeyPatch], None]
BREAKAGES: dict[str, Breakage] = {}


def breakage(function: Breakage) -> Breakage:
    BREAKAGES[function.__name__] = function
    return function


def unchecked(self: Log, record: Record) -> None:
    """Log.append without its assertions, so that the walk's own checks have to notice."""
    if isinstance(record.header, Mark):
        self.marks.append(record.header)
    self.tail.append(record)
    self.position = record.position


@breakage
def a_vote_without_a_look_at_the_position(patch: pytest.MonkeyPatch) -> None:
    """Rule: E4."""
    right = election.on_vote_request

    def wrong(state: NodeState, sender: NodeId, msg: VoteRequest, now: float, fx: Effects) -> None:
        right(state, sender, VoteRequest(msg.term, Position(10**6, 10**6)), now, fx)

    patch.setattr(election, "on_vote_request", wrong)


@breakage
def two_votes_in_one_term(patch: pytest.MonkeyPatch) -> None:
    """Rule: E4."""
    right = election.on_vote_request

    def wrong(state: NodeState, sender: NodeId, msg: VoteRequest, now: float, fx: Effects) -> None:
        if msg.term == state.term and state.voted_for != sender and isinstance(state.role, Follower):
            state.voted_for = NOBODY
        right(state, sender, msg, now, fx)

    patch.setattr(election, "on_vote_request", wrong)


@breakage
def a_vote_that_only_memory_has(patch: pytest.MonkeyPatch) -> None:
    """Rule: E4."""
    right = NodeState.pledge_term

    def wrong(state: NodeState, fx: Effects, term: int, voted_for: NodeId, then: Any) -> None:
        right(state, fx, term, voted_for, then)
        fx.persist[-1] = Promise(term, NOBODY)

    patch.setattr(NodeState, "pledge_term", wrong)


@breakage
def duplicates_are_not_dropped(patch: pytest.MonkeyPatch) -> None:
    """Rule: S2."""
    right = ordering.take

    def wrong(state: NodeState, leader: Leader, sender: NodeId, msg: Submit, fx: Effects) -> None:
        expected = state.sessions.expected(msg.session, msg.born)
        if expected is not None and msg.first < expected:
            state.sessions.ahead[msg.session] = (msg.first - 1, 0)
        right(state, leader, sender, msg, fx)

    patch.setattr(ordering, "take", wrong)


@breakage
def a_gap_in_a_session_is_accepted(patch: pytest.MonkeyPatch) -> None:
    """Rule: S2."""
    right = ordering.take

    def wrong(state: NodeState, leader: Leader, sender: NodeId, msg: Submit, fx: Effects) -> None:
        expected = state.sessions.expected(msg.session, msg.born)
        if expected is not None and msg.first > expected:
            state.sessions.ahead[msg.session] = (msg.first - 1, 0)
        right(state, leader, sender, msg, fx)

    patch.setattr(ordering, "take", wrong)


@breakage
def a_gap_in_the_log_is_accepted(patch: pytest.MonkeyPatch) -> None:
    """Rule: R4."""
    right = ordering.on_append

    def wrong(state: NodeState, follower: Follower, leader: NodeId, msg: Append, now: float, fx: Effects) -> None:
        if msg.previous > state.log.position:
            msg = Append(msg.term, state.log.position, msg.commit_seq, msg.records)
        right(state, follower, leader, msg, now, fx)

    patch.setattr(ordering, "on_append", wrong)
    patch.setattr(Log, "append", unchecked)


@breakage
def a_record_is_taken_by_its_seq_no_alone(patch: pytest.MonkeyPatch) -> None:
    """Rule: R4."""
    right = ordering.on_append

    def wrong(state: NodeState, follower: Follower, leader: NodeId, msg: Append, now: float, fx: Effects) -> None:
        if msg.previous.seq_no == state.log.position.seq_no and msg.records[0].position > state.log.position:
            msg = Append(msg.term, state.log.position, msg.commit_seq, msg.records)
        right(state, follower, leader, msg, now, fx)

    patch.setattr(ordering, "on_append", wrong)
    patch.setattr(Log, "append", unchecked)


@breakage
def a_resume_truncates_a_log_of_this_term(patch: pytest.MonkeyPatch) -> None:
    """Rule: R2."""
    right = catchup.on_resume

    def wrong(state: NodeState, follower: Follower, msg: Resume, fx: Effects) -> None:
        obeyed = follower.request and msg.request == follower.request
        if obeyed and state.log.position.term == state.term and state.log.base <= msg.fork < state.log.position:
            state.log.truncate(msg.fork)
            state.sessions.rebuild(state.log.tail)
            state.unsynced.clear()
            state.unsynced.append((state.persist(fx, Truncate(msg.fork)), state.log.position))
            state.durable = min(state.durable, state.log.position)
        right(state, follower, msg, fx)

    patch.setattr(catchup, "on_resume", wrong)


@breakage
def written_counts_as_durable(patch: pytest.MonkeyPatch) -> None:
    """Rule: R5."""
    right = ordering.store

    def wrong(state: NodeState, record: Record, fx: Effects) -> None:
        right(state, record, fx)
        state.durable = state.log.position
        if isinstance(state.role, Follower):
            state.send(fx, state.leader_id, Appended(state.term, state.durable))

    patch.setattr(ordering, "store", wrong)


@breakage
def an_older_position_counts(patch: pytest.MonkeyPatch) -> None:
    """Rule: C1."""

    def wrong(state: NodeState, leader: Leader) -> Position | None:
        counted = [p.matched for peer, p in leader.progress.items() if peer not in state.learners] + [state.durable]
        counted.sort(reverse=True)
        return counted[state.majority - 1] if len(counted) >= state.majority else None

    def count(state: NodeState, leader: Leader, progress: Progress, position: Position, fx: Effects) -> None:
        progress.matched = max(progress.matched, position)
        right(state, leader, progress, position, fx)
        ordering.advance_commit(state, leader, fx)

    right = ordering.count_answer
    patch.setattr(ordering, "majority_position", wrong)
    patch.setattr(catchup, "count_answer", count)


@breakage
def commit_seq_is_used_before_the_mark_is_there(patch: pytest.MonkeyPatch) -> None:
    """Rule: C2."""

    def wrong(state: NodeState, follower: Follower, fx: Effects) -> None:
        reached = min(follower.leader_commit, state.durable.seq_no)
        if reached > state.commit_seq:
            ordering.commit(state, reached, fx)

    for module in (ordering, catchup, failure):
        patch.setattr(module, "follow_commit", wrong)


@breakage
def the_session_table_is_not_rolled_back(patch: pytest.MonkeyPatch) -> None:
    """Rule: S3."""
    patch.setattr(Sessions, "rebuild", lambda self, tail: None)


@breakage
def the_fork_is_a_bare_seq_no(patch: pytest.MonkeyPatch) -> None:
    """Rule: R1."""

    def wrong(self: Log, marks: Any, last_seq: int) -> Position:
        seq_no = min(last_seq, self.position.seq_no)
        terms = [mark.term for mark in self.marks if mark.after <= seq_no and mark.term < self.position.term]
        return Position(max(terms, default=0), seq_no)

    patch.setattr(Log, "fork", wrong)


@breakage
def a_minority_elects(patch: pytest.MonkeyPatch) -> None:
    """Rule: E5."""

    def wrong(state: NodeState, candidate: Candidate, now: float, fx: Effects) -> None:
        if len(candidate.votes) >= state.majority - (len(state.config.members) > 1):
            election.become_leader(state, now, fx)

    patch.setattr(election, "count_votes", wrong)
