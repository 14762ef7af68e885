"""The core's input at start (its settings, the recovered state) and the state that a checkpoint saves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from nodeproc.core.messages import NOBODY, START, Known, Mark, NodeId, Position, Promised, Record, SeqNo, Term

MAX_MEMBERS: Final = 9
"""Maximum number of members of a cluster, newcomers included."""


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """Settings of the core. Times are seconds, sizes bytes.

    members: ids of the founders, the first members of the cluster, ascending; 1 to 9 of them. Without this node, it is
        a newcomer and has no vote until a list of members in its log says so (G1).
    join_timeout: in a starting cluster, how long a node waits for all members before it polls (M1).
    coordinator_timeout: how long a node that received an OK waits for a leader (E2).
    batch_least_messages: with this many messages waiting, the leader sends a batch although the batch before it is
        not committed yet (R3); 1 means that no message waits.
    inflight_max_bytes: limit of bytes sent to one follower and not yet durable there; above it the follower is served
        from disk (P1).
    buffer_max_bytes: limit of the records that a follower keeps above a hole (R4).
    """

    node_id: NodeId
    priority: int
    members: tuple[NodeId, ...]
    heartbeat_interval: float = 0.1
    election_timeout: float = 0.5
    answer_timeout: float = 0.15
    coordinator_timeout: float = 0.5
    join_timeout: float = 0.5
    batch_least_messages: int = 1
    batch_max_messages: int = 4096
    batch_max_bytes: int = 1 << 20
    inflight_max_bytes: int = 8 << 20
    fetch_max_bytes: int = 128 << 10
    buffer_max_bytes: int = 8 << 20
    max_sessions: int = 100_000


@dataclass(slots=True)
class Recovered:
    """The state that recovery read from disk; all of it is durable.

    tail: the records after the last delivered batch, in order, marks included.
    sessions: session -> (last n, its seq_no) over all delivered messages, least recently used first.
    horizon: highest seq_no at which a session that was dropped from the table had been used last (S3).
    promised: the promises of the members' data directories that were known at the latest checkpoint (M6).
    """

    identity: str
    rebuilding: bool = False
    term: Term = 0
    voted_for: NodeId = NOBODY
    identities: dict[NodeId, Known] = field(default_factory=dict)
    marks: list[Mark] = field(default_factory=list)
    position: Position = START
    delivered_seq: SeqNo = 0
    tail: list[Record] = field(default_factory=list)
    sessions: dict[str, tuple[int, SeqNo]] = field(default_factory=dict)
    horizon: SeqNo = 0
    promised: dict[NodeId, Promised] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The core's part of a checkpoint (K4): the state as of delivered_seq, and the current term, vote and promises."""

    term: Term
    voted_for: NodeId
    rebuilding: bool
    identities: dict[NodeId, Known]
    marks: tuple[Mark, ...]
    delivered_seq: SeqNo
    sessions: dict[str, tuple[int, SeqNo]]
    horizon: SeqNo
    promised: dict[NodeId, Promised] = field(default_factory=dict)
