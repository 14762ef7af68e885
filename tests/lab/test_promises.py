"""Promises: honest nodes break none, and each kind of broken one is noticed where it happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import pytest

from lab.sim.promises import Promises
from nodeproc.core.messages import (
    START,
    Appended,
    HeartbeatAck,
    Known,
    Mark,
    NodeId,
    Position,
    SeqNo,
    Term,
    Vote,
    VoteRequest,
)
from nodeproc.core.node import Node
from nodeproc.core.recovered import CoreConfig, Recovered
from nodeproc.core.state import Leader, NodeState
from nodeproc.records import Sealer

NODES = (1, 2, 3)


def state(
    node: NodeId,
    marks: Sequence[tuple[Term, SeqNo]] = ((1, 0),),
    last: SeqNo = 5,
    identity: str = "",
    rebuilding: bool = False,
) -> NodeState:
    """A node that has just recovered a log with these marks, all of it durable and committed."""
    return Node.recover(
        CoreConfig(node, node, NODES),
        Recovered(
            identity or f"disk-{node}",
            rebuilding,
            term=marks[-1][0],
            identities={each: Known(f"disk-{each}") for each in NODES if each != node},
            marks=[Mark(term, 3, after) for term, after in marks],
            position=Position(marks[-1][0], last),
            delivered_seq=last,
        ),
        0.0,
        Random(node),
        Sealer(lambda: 1.5),
    ).state


class Cluster:
    """Three nodes with equal logs; node 3 leads term 1."""

    def __init__(self) -> None:
        self.broken: list[tuple[str, str]] = []
        self.promises = Promises(lambda invariant, text: self.broken.append((invariant, text)))
        self.nodes = {node: state(node) for node in NODES}
        for node in NODES:
            self.promises.started(node, self.nodes[node])
        self.leader = self.nodes[3]
        self.leader.role = Leader(0.0, {}, 2, True)

    def restart(self, node: NodeId, new: NodeState) -> None:
        self.nodes[node] = new
        self.promises.started(node, new)

    def append(self, node: NodeId, durable: SeqNo) -> None:
        """The node's log in term 1 is durable up to there."""
        self.nodes[node].log.position = self.nodes[node].durable = Position(1, durable)
        self.promises.turned(node)

    def commit(self, seq_no: SeqNo) -> None:
        self.leader.commit_seq = seq_no
        self.promises.turned(3)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def test_honest_nodes_break_no_promise(cluster: Cluster) -> None:
    for node in (3, 1):
        cluster.append(node, 7)
        cluster.promises.sent(node, 3, Appended(1, Position(1, 7)))
    cluster.commit(7)
    cluster.restart(1, state(1, last=7))
    for _ in range(2):
        cluster.promises.sent(1, 3, Vote(2))
    cluster.restart(1, state(1, identity="new", last=0, rebuilding=True))
    cluster.promises.sent(1, 3, HeartbeatAck(1, START))
    cluster.leader.rebuilds = {1: ("new", Position(1, 7))}
    cluster.leader.learners = {1}
    cluster.promises.turned(3)
    for node in NODES:
        cluster.append(node, 8)
    cluster.leader.identities[1] = Known("new", 1, 1)
    cluster.leader.rebuilds, cluster.leader.learners = {}, set()
    cluster.commit(8)
    assert not cluster.broken


def commit_alone(cluster: Cluster) -> None:
    cluster.append(3, 7)
    cluster.commit(7)


def commit_on_a_learner(cluster: Cluster) -> None:
    cluster.restart(1, state(1, identity="new", rebuilding=True))
    cluster.append(1, 7)
    commit_alone(cluster)


def commit_without_the_mark(cluster: Cluster) -> None:
    """All have the message, of term 1, but node 3 alone has the mark of its own term."""
    cluster.leader = state(3, ((1, 0), (2, 5)))
    cluster.restart(3, cluster.leader)
    cluster.leader.role, cluster.leader.commit_seq = Leader(0.0, {}, 2, True), 0
    cluster.promises._committed[3] = 0
    cluster.commit(5)


def drop_a_committed_record(cluster: Cluster) -> None:
    for node in (3, 1):
        cluster.append(node, 7)
    cluster.commit(7)
    cluster.append(1, 6)


def vote_twice(cluster: Cluster) -> None:
    cluster.promises.sent(1, 2, Vote(2))
    cluster.restart(1, state(1))
    cluster.promises.sent(1, 3, Vote(2))


def vote_beside_a_candidacy(cluster: Cluster) -> None:
    cluster.promises.sent(1, 2, VoteRequest(2, START))
    cluster.promises.sent(1, 3, Vote(2))


def acknowledge_less(cluster: Cluster) -> None:
    cluster.promises.sent(1, 3, Appended(1, Position(1, 5)))
    cluster.promises.sent(1, 3, HeartbeatAck(1, Position(1, 4)))


def take_part_with_an_undeclared_disk(cluster: Cluster) -> None:
    cluster.restart(1, state(1, identity="new"))
    cluster.promises.sent(1, 3, HeartbeatAck(1, START))


def readmit(cluster: Cluster, joined: Position, term: Term) -> None:
    cluster.leader.rebuilds, cluster.leader.learners = {1: ("new", joined)}, {1}
    cluster.promises.turned(3)
    cluster.leader.rebuilds, cluster.leader.learners = {}, set()
    cluster.leader.identities[1] = Known("new", term, 1)
    cluster.promises.turned(3)


def readmit_too_early(cluster: Cluster) -> None:
    readmit(cluster, Position(1, 5), term=1)


def readmit_in_a_term_that_no_other_has(cluster: Cluster) -> None:
    readmit(cluster, Position(1, 4), term=2)


def test_the_records_up_to_where_a_node_joined_can_be_replaced_before_it_is_readmitted(cluster: Cluster) -> None:
    for node in (3, 2):
        cluster.restart(node, state(node, ((1, 0), (4, 5))))
    cluster.leader = cluster.nodes[3]
    readmit(cluster, Position(3, 7), term=4)
    assert not cluster.broken


def test_a_member_that_has_lost_its_disk_since_counts_for_a_readmission(cluster: Cluster) -> None:
    for node in (2, 3):
        cluster.append(node, 6)
    cluster.restart(2, state(2, last=0, identity="successor", rebuilding=True))
    readmit(cluster, Position(1, 5), term=1)
    assert not cluster.broken


@pytest.mark.parametrize(
    ("do", "invariant", "text"),
    [
        (commit_alone, "A4", "node 3 has committed seq_no 7 in term 1, durable on 1 (C1)"),
        (commit_on_a_learner, "A4", "node 3 has committed seq_no 7 in term 1, durable on 1 (C1)"),
        (commit_without_the_mark, "A4", "node 3 has committed seq_no 5 in term 2, durable on 1 (C1)"),
        (drop_a_committed_record, "A4", "node 1 has dropped records: seq_no 7 is durable on 1 (R2)"),
        (vote_twice, "A7", "node 1 has voted for node 2 and for node 3 in term 2 (E4)"),
        (vote_beside_a_candidacy, "A7", "node 1 has voted for node 1 and for node 3 in term 2 (E4)"),
        (acknowledge_less, "A4", "node 1 acknowledges up to seq_no 4 in term 1, before it was 5 (M6)"),
        (take_part_with_an_undeclared_disk, "A4", "node 1 lost its disk and takes part without a rebuild (M4)"),
        (readmit_too_early, "A4", "node 3 has readmitted node 1, 0 others have a later record (M4)"),
        (readmit_in_a_term_that_no_other_has, "A4", "node 3 has readmitted node 1, 0 others have a later record (M4)"),
    ],
)
def test_a_broken_promise_is_reported(
    do: Callable[[Cluster], None], invariant: str, text: str, cluster: Cluster
) -> None:
    do(cluster)
    assert cluster.broken == [(invariant, text)]
