"""Mutants of the session table and of the identities of data directories."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from random import Random
from typing import Any, Final

from lab.mutants.patch import Collection, Patch
from nodeproc import lines
from nodeproc.core import election, membership, ordering
from nodeproc.core.effects import Effects
from nodeproc.core.messages import Batch, Known, Members, NodeId, Position, Record, Submit
from nodeproc.core.node import Node
from nodeproc.core.recovered import CoreConfig, Recovered
from nodeproc.core.sessions import Sessions
from nodeproc.core.state import Leader, NodeState, Seal
from nodeproc.net.clients import ClientConnection, Clients

SESSIONS: Final = Collection()


@SESSIONS.add("S2", "Messages that were ordered before are ordered again.")
def duplicate_not_dropped(patch: Patch) -> None:
    right = ordering.take

    def wrong(state: NodeState, leader: Leader, sender: NodeId, msg: Submit, fx: Effects) -> None:
        expected = state.sessions.expected(msg.session, msg.born)
        if expected is not None and msg.first < expected:
            state.sessions.ahead[msg.session] = (msg.first - 1, 0)
        right(state, leader, sender, msg, fx)

    patch.everywhere(right, wrong)


@SESSIONS.add("S2", "Messages are ordered although those before them are missing.")
def gap_in_n_accepted(patch: Patch) -> None:
    right = ordering.take

    def wrong(state: NodeState, leader: Leader, sender: NodeId, msg: Submit, fx: Effects) -> None:
        expected = state.sessions.expected(msg.session, msg.born)
        if expected is not None and msg.first > expected:
            state.sessions.ahead[msg.session] = (msg.first - 1, 0)
        right(state, leader, sender, msg, fx)

    patch.everywhere(right, wrong)


@SESSIONS.add("S3", "The session table is not rolled back when records are dropped.")
def session_table_not_rolled_back(patch: Patch) -> None:
    right = Sessions.rebuild

    def wrong(self: Sessions, tail: Iterable[Record]) -> None:
        if not self.ahead:  # As after a start.
            right(self, tail)

    patch.set(Sessions, "rebuild", wrong)


@SESSIONS.add("S3", "After a restart the table knows only the sessions of undelivered records.")
def sessions_lost_at_restart(patch: Patch) -> None:
    right = Node.recover

    def wrong(cls: type[Node], config: CoreConfig, recovered: Recovered, now: float, rng: Random, seal: Seal) -> Node:
        return right(config, replace(recovered, sessions={}), now, rng, seal)

    patch.set(Node, "recover", classmethod(wrong))


@SESSIONS.add("S3", "Sessions are dropped from the table without a horizon, so that an old one counts as new.")
def eviction_without_horizon(patch: Patch) -> None:
    right = Sessions.delivered

    def wrong(self: Sessions, batch: Batch) -> None:
        horizon = self.horizon
        right(self, batch)
        self.horizon = horizon

    patch.set(Sessions, "delivered", wrong)


@SESSIONS.add("S1", "A session's public id is its token, so that any reader of the log can use the session.")
def token_in_every_msg_id(patch: Patch) -> None:
    patch.everywhere(lines.session_of, lambda token: token)


@SESSIONS.add("S3", "One address may begin any number of sessions, and so flush all others from the table.")
def session_table_flushed_by_anybody(patch: Patch) -> None:
    patch.set(Clients, "begin_session", lambda self, session, address: True)


@SESSIONS.add("S7", "A node keeps reading from clients although it cannot forward their messages.")
def client_always_read(patch: Patch) -> None:
    patch.set(ClientConnection, "hold", lambda self, held: None)


@SESSIONS.add("M4", "A node whose disk was lost votes and counts at once, with any identity.")
def wiped_disk_votes(patch: Patch) -> None:
    right = Node.recover

    def recover(cls: type[Node], config: CoreConfig, recovered: Recovered, now: float, rng: Random, seal: Seal) -> Node:
        return right(config, replace(recovered, rebuilding=False), now, rng, seal)

    def admit(state: NodeState, peer: NodeId, shown: Known, rebuilding: bool, fx: Effects) -> bool:
        state.unknown_members.discard(peer)
        state.learners.discard(peer)
        known = state.identities.get(peer)
        if known is None or known.identity != shown.identity:
            state.remember(fx, peer, shown)
        return True

    patch.set(Node, "recover", classmethod(recover))
    patch.everywhere(membership.admit, admit)


@SESSIONS.add("M6", "A node whose data is older than its promises continues as if it had promised nothing.")
def older_copy_accepted(patch: Patch) -> None:
    patch.everywhere(membership.stale_data, lambda state, promised, by: "")


@SESSIONS.add("M6", "The leader keeps to itself what the members have promised.")
def promises_not_passed_on(patch: Patch) -> None:
    patch.everywhere(membership.on_promises, lambda state, msg: None)


# ---- identities and rebuilds ----------------------------------------------------------------------------


@SESSIONS.add("M4", "A node that is being rebuilt votes, and its vote counts.")
def rebuilding_node_votes(patch: Patch) -> None:
    def as_member(right: Callable[..., None]) -> Callable[..., None]:
        def wrong(state: NodeState, *args: Any) -> None:
            rebuilding, state.rebuilding = state.rebuilding, False
            learners = state.learners.copy()
            state.learners.clear()
            try:
                right(state, *args)
            finally:
                state.rebuilding = rebuilding
                state.learners |= learners

        return wrong

    for right in (election.on_election, election.on_vote_request, election.on_vote, election.end_poll):
        patch.everywhere(right, as_member(right))


@SESSIONS.add("M4", "Acknowledgements of a node that is being rebuilt count.")
def learners_acknowledgement_counted(patch: Patch) -> None:
    right = ordering.majority_position

    def wrong(state: NodeState, leader: Leader) -> Position | None:
        learners, state.learners = state.learners, set()
        try:
            return right(state, leader)
        finally:
            state.learners = learners

    patch.everywhere(right, wrong)


@SESSIONS.add("M4", "A rebuilt node is readmitted as soon as it has caught up.")
def readmission_too_early(patch: Patch) -> None:
    right = membership.tick_learners

    def wrong(state: NodeState, leader: Leader, now: float, fx: Effects) -> None:
        for peer in sorted(state.learners & state.rebuilds.keys()):
            if leader.progress[peer].matched >= state.rebuilds[peer][1]:
                membership._readmit(state, leader, peer, now, fx)
        right(state, leader, now, fx)

    patch.everywhere(right, wrong)


@SESSIONS.add("M4", "A rebuilt node of an idle cluster waits for the next message to be readmitted.", "liveness")
def idle_cluster_readmits_nobody(patch: Patch) -> None:
    patch.set(membership, "become_candidate", lambda state, now, fx: None)


@SESSIONS.add("M4", "A rebuilt node trusts the identities that it has met more than those in MEMBERS.")
def rebuilt_node_trusts_whom_it_met(patch: Patch) -> None:
    right = membership.on_members

    def wrong(state: NodeState, msg: Members, fx: Effects) -> None:
        newer = {
            member: known
            for member, known in msg.identities.items()
            if member == state.node_id or known.newer_than(state.identities.get(member))
        }
        right(state, Members(newer), fx)

    patch.everywhere(right, wrong)


@SESSIONS.add("M4", "MEMBERS is sent once after a readmission, and not repeated.", "liveness")
def members_sent_once(patch: Patch) -> None:
    right = membership.tick_learners

    def wrong(state: NodeState, leader: Leader, now: float, fx: Effects) -> None:
        before, known = len(fx.send), dict(state.identities)
        right(state, leader, now, fx)
        readmitted = [peer for peer in leader.progress if state.identities.get(peer) != known.get(peer)]
        if not readmitted:
            fx.send[before:] = [each for each in fx.send[before:] if not isinstance(each[1], Members)]
        for peer in readmitted:
            state.send_members(fx, peer)

    patch.everywhere(right, wrong)


@SESSIONS.add("M4", "A readmitted node does not show in a handshake that it was readmitted.", "liveness")
def readmission_not_shown(patch: Patch) -> None:
    patch.set(NodeState, "shown", property(lambda state: Known(state.identity)))


@SESSIONS.add("M4", "The identity shown last replaces the known one, even if it is older.")
def older_identity_believed(patch: Patch) -> None:
    patch.set(Known, "newer_than", lambda self, other: self != other)


@SESSIONS.add("M4", "The identities of the members' data directories are kept in memory only.")
def identities_not_on_disk(patch: Patch) -> None:
    def wrong(state: NodeState, fx: Effects, member: NodeId, known: Known) -> None:
        state.identities[member] = known

    patch.set(NodeState, "remember", wrong)
