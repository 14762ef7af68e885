"""Mutants of the session table and of the identities of data directories."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from random import Random
from typing import Final

from lab.selftest.patch import Collection, Patch
from nodeproc import wire
from nodeproc.clients import ClientConnection, Clients
from nodeproc.core import membership, ordering
from nodeproc.core.effects import Effects
from nodeproc.core.messages import Batch, Known, NodeId, Record, Submit
from nodeproc.core.node import Node
from nodeproc.core.recovered import CoreConfig, Recovered
from nodeproc.core.sessions import Sessions
from nodeproc.core.state import Leader, NodeState, Seal

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


@SESSIONS.add("S3", "What dropped records had put into the session table stays there.")
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


@SESSIONS.add("S3", "Sessions are dropped from the table without a horizon: an old one is taken for a new one.")
def eviction_without_horizon(patch: Patch) -> None:
    right = Sessions.delivered

    def wrong(self: Sessions, batch: Batch) -> None:
        horizon = self.horizon
        right(self, batch)
        self.horizon = horizon

    patch.set(Sessions, "delivered", wrong)


@SESSIONS.add("S1", "A session's public id is its token: everybody who reads the log can go on in the session.")
def token_in_every_msg_id(patch: Patch) -> None:
    patch.everywhere(wire.session_of, lambda token: token)


@SESSIONS.add("S3", "One address may begin any number of sessions: whoever likes makes the cluster forget all others.")
def session_table_flushed_by_anybody(patch: Patch) -> None:
    patch.set(Clients, "begin_session", lambda self, session, address: True)


@SESSIONS.add("S7", "A node goes on reading from clients, however much of theirs it could not pass on.")
def client_always_read(patch: Patch) -> None:
    patch.set(ClientConnection, "hold", lambda self, held: None)


@SESSIONS.add("M4", "A node whose disk was lost votes and counts at once, under whatever identity it comes.")
def wiped_disk_votes(patch: Patch) -> None:
    right = Node.recover

    def recover(cls: type[Node], config: CoreConfig, recovered: Recovered, now: float, rng: Random, seal: Seal) -> Node:
        return right(config, replace(recovered, rebuilding=False), now, rng, seal)

    def admit(state: NodeState, peer: NodeId, identity: str, rebuilding: bool, fx: Effects) -> bool:
        state.strangers.discard(peer)
        state.learners.discard(peer)
        known = state.identities.get(peer)
        if known is None or known.identity != identity:
            membership.remember(state, peer, Known(identity), fx)
        return True

    patch.set(Node, "recover", classmethod(recover))
    patch.everywhere(membership.admit, admit)
