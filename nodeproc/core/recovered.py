"""What the core is given at its start: its settings and what the disk remembers."""

from __future__ import annotations

from dataclasses import dataclass, field

from nodeproc.core.messages import NOBODY, START, Known, Mark, NodeId, Position, Promised, Record, SeqNo, Term


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """Settings of the core. Times are seconds, sizes bytes.

    members: every node's id, this one's included, ascending; 1 to 9 of them.
    join_timeout: how long a node of a cluster that starts waits for all members before it polls (M1).
    coordinator_timeout: how long one OK makes an asker wait.
    batch_least_messages: so many don't wait for the batch before theirs to be committed (R3); 1: none ever waits.
    inflight_max_bytes: sent to one follower and not yet durable there; past it the follower is served from disk.
    buffer_max_bytes: records that a follower keeps above a hole.
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
    """What was durable when the node last stopped; all of it is durable again when the core gets it.

    tail: the records behind the last delivered batch, in order, marks included.
    sessions: session -> (last n, its seq_no) over all delivered messages, least recently used first.
    horizon: highest seq_no at which a session dropped from the table was last used (S3).
    promised: what the members' data directories were known to have promised at the latest checkpoint (M6).
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
    """What a checkpoint keeps of the core (K4): the state as of delivered_seq, and the present promises."""

    term: Term
    voted_for: NodeId
    rebuilding: bool
    identities: dict[NodeId, Known]
    marks: tuple[Mark, ...]
    delivered_seq: SeqNo
    sessions: dict[str, tuple[int, SeqNo]]
    horizon: SeqNo
    promised: dict[NodeId, Promised] = field(default_factory=dict)
