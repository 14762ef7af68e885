"""The state of a node (NodeState) and of its role, with the functions that write to disk and send to peers.

Deadlines are fields in monotonic seconds; nothing here reads a clock. Peers are visited in ascending order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import Final, Protocol, TypeAlias

from nodeproc.core.effects import Effects, Met, PersistOp, Promise
from nodeproc.core.events import BecameFollower
from nodeproc.core.log import Log
from nodeproc.core.messages import (
    NOBODY,
    NOTHING,
    START,
    Batch,
    CatchUp,
    Envelope,
    Known,
    Mark,
    MemberList,
    Members,
    NodeId,
    PeerMessage,
    Position,
    Promised,
    Rank,
    Record,
    SeqNo,
    Submit,
    Term,
)
from nodeproc.core.recovered import CoreConfig
from nodeproc.core.sessions import Sessions

FOREVER: Final = float("inf")

# Types of the fields below that depend on the clock. A model of the core finds those fields by these names.
Due: TypeAlias = float
"""When something is due, in seconds of the core's clock. FOREVER means never; every time in the past means now."""
Since: TypeAlias = float
"""When something happened. All times that are further back than election_timeout mean the same."""
Measured: TypeAlias = float
"""A measured duration, or the start of a measurement. It only shows how fast this machine or network is."""


class Seal(Protocol):
    """Encodes the records that the leader orders; implemented by nodeproc.records.Sealer."""

    def mark(self, header: Mark) -> Record: ...

    def batch(self, header: Batch, submits: list[Submit]) -> Record: ...


# ---- election data ------------------------------------------------------------------------------


@dataclass(slots=True)
class Poll:
    """One round of ELECTION and its answers. Rule: E1."""

    number: int
    until: Due
    awaiting: set[NodeId]
    oks: dict[NodeId, bool] = field(default_factory=dict)
    """Peers that outrank this node -> whether they could vote for it."""
    supports: set[NodeId] = field(default_factory=set)
    reported_leader: NodeId = NOBODY
    """A leader of the current term, reported by a peer that hears it."""

    def deferred_to(self, spent: set[NodeId]) -> tuple[NodeId, ...]:
        """Return the peers that outrank this node and whose OK is not spent, ascending. Rule: E2."""
        return tuple(peer for peer in sorted(self.oks) if peer not in spent)

    def supporters(self, spent: set[NodeId]) -> set[NodeId]:
        """Return the peers that would vote for this node. Rule: E2."""
        return self.supports | {peer for peer, could_vote in self.oks.items() if could_vote and peer in spent}


@dataclass(slots=True)
class Deferral:
    """A wait for a peer of higher rank to become leader. Rule: E2."""

    until: Due
    to: tuple[NodeId, ...]


# ---- roles ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Follower:
    """The role data of a node that follows state.leader_id, or looks for a leader while that is NOBODY."""

    heard: bool = False
    """True once the leader has sent HEARTBEAT, APPEND or RESUME in this term (F2)."""
    heard_at: Since = 0.0
    beat_at: Measured = 0.0
    """Arrival time of the leader's last HEARTBEAT; 0 if there was none."""
    leader_commit: SeqNo = 0
    """The highest commit_seq that the leader has sent; used as far as C2 allows."""
    request: int = 0
    """Number of the CATCH_UP that is not answered yet; 0 if there is none."""
    resume_due: Due = FOREVER
    """When CATCH_UP is sent again if no RESUME has come; FOREVER if there is no open request."""
    unanswered: int = 0
    """Number of CATCH_UPs in a row that were not answered in time."""
    buffer: dict[Position, Record] = field(default_factory=dict)
    """Records above a hole, by the position that they follow. Rule: R4."""
    buffered_bytes: int = 0
    hole_since: Since = FOREVER


@dataclass(slots=True)
class Candidate:
    """The role data of a node that asks for votes in state.term."""

    began: Measured
    until: Due = FOREVER
    """End of the candidacy; set when the node's own vote is durable."""
    votes: set[NodeId] = field(default_factory=set)
    transfer: bool = False
    """The leader of the term before has asked this node to stand. Rule: E7."""
    members: MemberList | None = None
    """The new list of members for the mark of the term, if the node stands for a change. Rule: G2."""


@dataclass(slots=True)
class Successor:
    """The follower to which this leader transfers its leadership. Rule: E7."""

    node: NodeId
    until: Due
    """When the transfer has failed; examined with each heartbeat."""
    asked: bool = False
    """The follower has the whole log and was asked to stand."""


@dataclass(slots=True)
class Progress:
    """The leader's state of one follower."""

    answered_at: Since
    votes: bool = True
    """The follower is a voter of the list in force, not a newcomer. Rule: G4."""
    synced: bool = False
    """RESUME was sent over the current link, so that records may be sent after it."""
    live: bool = False
    """Everything in the log was sent: new records are sent at once."""
    caught_up: bool = False
    """Everything in the log was sent at least once since the follower's CATCH_UP."""
    asked: CatchUp | None = None
    """The follower's CATCH_UP that arrived before the link to the follower opened."""
    sent: Position = START
    matched: Position = START
    """The position that the follower has acknowledged as durable in this term."""
    inflight: deque[tuple[Position, int]] = field(default_factory=deque)
    """(position, bytes) sent and not yet acknowledged. Rule: P1."""
    inflight_bytes: int = 0
    fetch: int = 0
    """Token of the disk read under way; 0 if there is none."""
    members_due: Due = 0.0
    """When MEMBERS and PROMISES are sent to the follower again. Rule: M4, M6."""
    round_end: Position = START
    """The end that the log had when a newcomer's latest round of catching up began; START if none did. Rule: G3."""
    round_at: Since = 0.0


@dataclass(slots=True)
class Leader:
    """The role data of the leader, which orders messages in state.term."""

    heartbeat_at: Due
    progress: dict[NodeId, Progress]
    """By node id, ascending."""
    majority: int
    """Of the list of members in force, which stays the same within a term. Rule: G1."""
    has_vote: bool
    """This node is a voter of that list, and counts itself. Rule: G4."""
    waiting: list[Submit] = field(default_factory=list)
    """Accepted messages, in order, for the next batch."""
    waiting_count: int = 0
    commit_unsent: bool = False
    """commit_seq has increased, and no APPEND has carried the new value yet. Rule: C2."""
    settled: bool = False
    """The mark of the term, and with it the list in force, was found to be committed at a heartbeat. Rule: G2."""
    successor: Successor | None = None
    """Set during a transfer of the leadership: accepted messages then wait unordered. Rule: E7."""


RoleData: TypeAlias = Follower | Candidate | Leader


@dataclass(slots=True)
class Pledge:
    """A term, perhaps with a vote, that is being written to disk; until then all other inputs are kept back."""

    ticket: int
    term: Term
    voted_for: NodeId
    then: Envelope | None
    """The frame to handle once the pledge is durable; None: the node then opens its own candidacy."""


@dataclass(slots=True)
class Copying:
    """A range of delivered records that the disk cannot read, requested from one peer after the other. Rule: K6."""

    after: Position
    number: int
    untried: list[NodeId]
    asked: NodeId = NOBODY
    until: Due = FOREVER


@dataclass(slots=True)
class NodeState:
    """The complete state of a node. Only the functions named become_… change `role`."""

    config: CoreConfig
    rng: Random
    seal: Seal
    # durable
    term: Term
    voted_for: NodeId
    identity: str
    rebuilding: bool
    identities: dict[NodeId, Known]
    promised: dict[NodeId, Promised]
    """The known promises of each member's data directory, including this one; durable with a checkpoint (M6)."""
    log: Log
    sessions: Sessions
    # the durable part of the log, and writes under way
    durable: Position
    delivered_seq: SeqNo
    commit_seq: SeqNo
    written: int = 0
    """Number of persist operations issued so far; the ticket of the latest one."""
    synced: int = 0
    """Ticket up to which all operations are durable."""
    unsynced_since: Since = FOREVER
    """Since when operations have waited without any becoming durable; FOREVER if none waits (F4)."""
    sync_took: Measured = 0.0
    """Seconds from the first waiting operation to durability, last time."""
    stalled: bool = False
    """The disk counts as stalled: operations have waited for too long (F4)."""
    unsynced: deque[tuple[int, Position]] = field(default_factory=deque)
    """(ticket, position up to which the log is durable with it), ascending."""
    pledge: Pledge | None = None
    readmission: int = 0
    """Ticket of this node's own Readmitted; 0 if none is under way."""
    # role
    role: RoleData = field(default_factory=Follower)
    leader_id: NodeId = NOBODY
    no_quorum: bool = False
    """The node led and stepped down for lack of answers; clients get this reason until a leader is found (F3)."""
    route_epoch: int = 0
    """Increases when messages forwarded to the leader may have been lost (S5), and with a list of members (G1)."""
    # links and membership
    links: set[NodeId] = field(default_factory=set)
    """Peers to which frames can be sent now."""
    presented: dict[NodeId, str] = field(default_factory=dict)
    """The identity that each peer showed when its last link was opened."""
    learners: set[NodeId] = field(default_factory=set)
    """Peers that are being rebuilt: they have no vote and do not count towards a majority (M4)."""
    rebuilds: dict[NodeId, tuple[str, Position]] = field(default_factory=dict)
    """Learners that have sent CATCH_UP -> (identity, end of the leader's log at that time). Rule: M4."""
    unknown_members: set[NodeId] = field(default_factory=set)
    """Peers whose data directory has another identity than the one on record: their frames are dropped (M4)."""
    unused_links: set[NodeId] = field(default_factory=set)
    """Unknown members to which a link is open; it is used again once MEMBERS confirms their identity."""
    unaware: set[NodeId] = field(default_factory=set)
    """Nodes of an older version, which do not know lists of members (G2)."""
    started_at: Measured = 0.0
    joined: bool = False
    """The node has led or heard a leader since the start of the process."""
    join_answers: set[NodeId] = field(default_factory=set)
    unanswered: set[NodeId] = field(default_factory=set)
    """Peers whose JOIN arrived before there was a link to them (M1)."""
    # election
    poll: Poll | None = None
    deferral: Deferral | None = None
    spent: set[NodeId] = field(default_factory=set)
    """Peers whose OK is spent: the node has waited for them without success (E2)."""
    poll_at: Due = FOREVER
    """When to start the next poll, while there is no leader and no poll."""
    vote_until: Due = 0.0
    """Until then the node waits for the candidate that has its vote to become leader, and starts no poll (E4)."""
    suspected: NodeId = NOBODY
    """The leader suspected last. Until a leader is heard, a peer's report of this one is ignored."""
    silent_since: Measured = FOREVER
    """When `suspected` was heard last, if it is suspected for its silence."""
    silent_term: Term = 0
    """The term in which `suspected` led at that time."""
    beats: int = 0
    """Number of pauses between heartbeats that were measured (F2)."""
    longest_delay: Measured = 0.0
    """The longest recent delay of a heartbeat behind heartbeat_interval; it decays with each heartbeat (F2)."""
    starved: bool = False
    """The last poll was postponed because links to a majority were missing."""
    failures: int = 0
    """Lost candidacies, and votes given without success, since a leader was heard (E3, E4)."""
    # reads that the disk failed
    copying: Copying | None = None
    uncopied: dict[Position, Due] = field(default_factory=dict)
    """Position after which no peer had a copy -> earliest time of the next request. Rule: K6."""
    copy_requests: dict[NodeId, tuple[int, int]] = field(default_factory=dict)
    """Peer -> (token of the disk read for it, number of its COPY_REQUEST). Rule: K6."""
    numbers: int = 0
    """The last poll, request or token number; it starts at random, so that no number repeats after a restart."""

    @property
    def node_id(self) -> NodeId:
        return self.config.node_id

    @property
    def members(self) -> MemberList:
        """The list in force; that of the founders has version 0. Rule: G1."""
        return self.log.members or MemberList(0, self.config.members)

    @property
    def voters(self) -> tuple[NodeId, ...]:
        """The nodes that vote and are counted, by the list in force, ascending. Rule: G1, G4."""
        members = self.log.members
        return self.config.members if members is None else members.voters

    @property
    def electors(self) -> tuple[NodeId, ...]:
        """The voters without this node."""
        return tuple(voter for voter in self.voters if voter != self.config.node_id)

    @property
    def peers(self) -> tuple[NodeId, ...]:
        """All other members: voters and newcomers."""
        members = self.log.members
        if members is None:
            return self.electors
        return tuple(each for each in members.present if each != self.config.node_id)

    @property
    def majority(self) -> int:
        return len(self.voters) // 2 + 1

    @property
    def has_vote(self) -> bool:
        """True if this node may stand and counts itself. Rule: G4."""
        return self.config.node_id in self.voters

    @property
    def rank(self) -> Rank:
        return (self.log.position, self.config.priority, self.node_id)

    def fresh_number(self) -> int:
        self.numbers += 1
        return self.numbers

    def jittered(self, seconds: float) -> float:
        """Return a random duration between 0.5 and 1.5 times `seconds`."""
        return seconds * (0.5 + self.rng.random())

    def persist(self, fx: Effects, op: PersistOp) -> int:
        """Add one operation for the disk; return its ticket."""
        fx.persist.append(op)
        self.written += 1
        return self.written

    def pledge_term(self, fx: Effects, term: Term, voted_for: NodeId, then: Envelope | None) -> None:
        """Begin to write a term and vote; they take effect once they are durable. Rule: E3, E4, E6.

        Until then the node handles no other input: Node.step keeps it back.
        """
        assert self.pledge is None and term >= self.term, (self.pledge, term, self.term)
        self.pledge = Pledge(self.persist(fx, Promise(term, voted_for)), term, voted_for, then)

    def send(self, fx: Effects, peer: NodeId, message: PeerMessage) -> None:
        """Send a message to one peer if there is a link; without a link it is lost, as on the network."""
        if peer in self.links:
            fx.send.append((peer, message))

    @property
    def shown(self) -> Known:
        """The identity that this node shows in a handshake, with its version if it was ever readmitted. Rule: M4."""
        return self.identities.get(self.node_id, Known(self.identity))

    def remember(self, fx: Effects, member: NodeId, known: Known) -> None:
        """Record the data directory of a member durably, and drop what another one has promised. Rule: M4."""
        before = self.identities.get(member)
        if before is not None and before.identity != known.identity:
            self.promised.pop(member, None)
        self.identities[member] = known
        self.persist(fx, Met(member, known))

    def meet_new_members(self, fx: Effects) -> None:
        """Record the data directories of nodes that have become members and to which links are open. Rule: M4."""
        for peer in self.peers:
            if peer in self.links and peer not in self.identities and peer not in self.learners:
                self.remember(fx, peer, Known(self.presented[peer]))  # hit: M4 a new member is met

    def send_members(self, fx: Effects, peer: NodeId) -> None:
        """Send MEMBERS to a peer if the members, or the data directory of any of them, have ever changed. Rule: M4."""
        if self.log.members is not None or any(known.term for known in self.identities.values()):
            self.send(fx, peer, Members(dict(self.identities)))

    def note_promise(self, promised: Promised, member: NodeId) -> None:
        """Record a promise of a member, if it is from the data directory by which the member is known."""
        before = self.promised.get(member, NOTHING)
        if promised == before:
            return
        known = self.identities.get(member)
        if promised.identity == (self.identity if member == self.node_id else known.identity if known else ""):
            self.promised[member] = promised.joined(before)

    def note_vote(self, member: NodeId, term: Term) -> None:
        """Record that a member has shown a vote in this term. Rule: M6."""
        self.note_promise(Promised(self.presented.get(member, ""), term), member)

    def promises(self) -> dict[NodeId, Promised]:
        """Update and return the known promises of all data directories. Rule: M6."""
        role = self.role
        if isinstance(role, Leader):
            for peer, progress in role.progress.items():
                if peer not in self.learners:
                    matched = progress.matched
                    self.note_promise(Promised(self.presented.get(peer, ""), matched.term, matched), peer)
            self.note_promise(Promised(self.identity, self.durable.term, self.durable), self.node_id)
        return dict(self.promised)

    def broadcast(self, fx: Effects, message: PeerMessage, to: tuple[NodeId, ...]) -> None:
        """Send a message to each of these peers to which there is a link."""
        fx.send += [(peer, message) for peer in to if peer in self.links]


def become_follower(state: NodeState, now: float, fx: Effects, reason: str) -> None:
    """Become a follower without a leader in the current term. Clients must resend unordered messages (S5)."""
    if not isinstance(state.role, Follower):
        fx.emit.append(BecameFollower(state.term, reason))
    if isinstance(state.role, Leader):
        state.promises()  # Only the leader knows what the followers have acknowledged.
        state.sessions.rebuild(state.log.tail)  # hit: S3 a lost leadership rolls the sessions back
    state.role = Follower(heard_at=now)
    state.leader_id = NOBODY
    state.route_epoch += 1
    state.poll = state.deferral = None
    state.poll_at = now + state.jittered(state.config.election_timeout)
