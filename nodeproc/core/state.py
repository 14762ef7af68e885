"""What a node knows and is: NodeState, the data of its role, and the two ways to change what is durable.

Deadlines are fields (monotonic seconds); nothing here reads a clock. Peers are visited in ascending order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import Protocol, TypeAlias

from nodeproc.core.effects import Effects, PersistOp, Promise
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

FOREVER = float("inf")


class Seal(Protocol):
    """Makes the bytes of records, once; nodeproc.records.Sealer is the real one."""

    def mark(self, header: Mark) -> Record: ...

    def batch(self, header: Batch, submits: list[Submit]) -> Record: ...


# ---- election data ------------------------------------------------------------------------------


@dataclass(slots=True)
class Poll:
    """One round of ELECTION and its answers. Rule: E1."""

    number: int
    until: float
    awaiting: set[NodeId]
    oks: dict[NodeId, bool] = field(default_factory=dict)
    """Who outranks us -> could its vote be had."""
    supports: set[NodeId] = field(default_factory=set)
    told: NodeId = NOBODY
    """A leader of the present term that somebody hears."""

    def deferred_to(self, spent: set[NodeId]) -> tuple[NodeId, ...]:
        """Who outranks us and was not yet waited for without success, ascending. Rule: E2."""
        return tuple(peer for peer in sorted(self.oks) if peer not in spent)

    def supporters(self, spent: set[NodeId]) -> set[NodeId]:
        """Who would vote for us. Rule: E2."""
        return self.supports | {peer for peer, could_vote in self.oks.items() if could_vote and peer in spent}


@dataclass(slots=True)
class Deferral:
    """Waiting for somebody who outranks us to lead. Rule: E2."""

    until: float
    to: tuple[NodeId, ...]


# ---- roles ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Follower:
    """Follows state.leader_id, or looks for a leader while that is NOBODY."""

    heard: bool = False
    """HEARTBEAT, APPEND or RESUME came from the leader in this term (F2)."""
    heard_at: float = 0.0
    beat_at: float = 0.0
    """When its last HEARTBEAT came; 0: none came yet."""
    leader_commit: SeqNo = 0
    """The highest commit_seq that the leader told; used as far as C2 allows."""
    request: int = 0
    """Number of the CATCH_UP that is not answered yet; 0: none."""
    requested_at: float = 0.0
    unanswered: int = 0
    """How many CATCH_UP in a row were not answered in time."""
    buffer: dict[Position, Record] = field(default_factory=dict)
    """Records above a hole, by the position that they follow. Rule: R4."""
    buffered_bytes: int = 0
    hole_since: float = FOREVER


@dataclass(slots=True)
class Candidate:
    """Asks for votes in state.term."""

    began: float
    until: float = FOREVER
    """Set when its own vote is durable."""
    votes: set[NodeId] = field(default_factory=set)


@dataclass(slots=True)
class Progress:
    """What the leader knows of one follower."""

    answered_at: float
    synced: bool = False
    """RESUME was sent on the present link: records may follow it."""
    live: bool = False
    """Everything in the log was sent: new records go at once."""
    caught_up: bool = False
    """Was sent all there was, once since its CATCH_UP."""
    asked: CatchUp | None = None
    """Its CATCH_UP that came before our link to it opened."""
    sent: Position = START
    matched: Position = START
    """Durable there, told in this term."""
    inflight: deque[tuple[Position, int]] = field(default_factory=deque)
    """(position, bytes) sent and not yet matched. Rule: P1."""
    inflight_bytes: int = 0
    fetch: int = 0
    """Token of the read under way; 0: none."""
    members_due: float = 0.0
    """When it is told again which data directories have changed, and what each has promised. Rule: M4, M6."""


@dataclass(slots=True)
class Leader:
    """Orders messages in state.term."""

    heartbeat_at: float
    progress: dict[NodeId, Progress]
    """By node id, ascending."""
    waiting: list[Submit] = field(default_factory=list)
    """Taken, in order, to be packed into the next batch."""
    waiting_count: int = 0
    commit_untold: bool = False
    """commit_seq moved and no APPEND has told the followers. Rule: C2."""


RoleData: TypeAlias = Follower | Candidate | Leader


@dataclass(slots=True)
class Pledge:
    """A term, and perhaps a vote, on its way to the disk; nothing else happens until it is there."""

    ticket: int
    term: Term
    voted_for: NodeId
    then: Envelope | None
    """The frame to be taken once it is durable; None: our own candidacy."""


@dataclass(slots=True)
class Copying:
    """A stretch of our log that our disk can't give, asked for from one peer after the other. Rule: K6."""

    after: Position
    number: int
    untried: list[NodeId]
    asked: NodeId = NOBODY
    until: float = FOREVER


@dataclass(slots=True)
class NodeState:
    """All of a node. The stories change it; only the functions named become_… change `role`."""

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
    """What each member's data directory, this node's too, is known to have promised. Durable with a checkpoint (M6)."""
    log: Log
    sessions: Sessions
    # what is durable of the log, and what is on its way
    durable: Position
    delivered_seq: SeqNo
    commit_seq: SeqNo
    written: int = 0
    """Persist operations issued so far: the ticket."""
    synced: int = 0
    """Ticket up to which all is durable."""
    owed_since: float = FOREVER
    """Since when something waits to become durable and nothing has; FOREVER: nothing waits (F4)."""
    sync_took: float = 0.0
    """Seconds that the disk took last time."""
    stalled: bool = False
    """The disk has owed its answer for too long (F4)."""
    unsynced: deque[tuple[int, Position]] = field(default_factory=deque)
    """(ticket, position of the log once it is durable), ascending."""
    pledge: Pledge | None = None
    readmission: int = 0
    """Ticket of our own Readmitted; 0: none under way."""
    # role
    role: RoleData = field(default_factory=Follower)
    leader_id: NodeId = NOBODY
    no_quorum: bool = False
    """We led and stepped down for want of answers; clients are told so until a leader is found (F3)."""
    route_epoch: int = 0
    """Grows when messages passed on to the leader may have been lost on the way (S5)."""
    # links and membership
    links: set[NodeId] = field(default_factory=set)
    """Peers to which frames can be sent now."""
    presented: dict[NodeId, str] = field(default_factory=dict)
    """Identity that each peer showed when its link was opened last."""
    learners: set[NodeId] = field(default_factory=set)
    """Peers under --rebuild: no vote, not counted (M4)."""
    rebuilds: dict[NodeId, tuple[str, Position]] = field(default_factory=dict)
    """Learners that asked us to catch up: (identity, where our log ended then). Rule: M4."""
    strangers: set[NodeId] = field(default_factory=set)
    """Peers that came with another data directory than remembered: nothing of theirs is taken (M4)."""
    shut: set[NodeId] = field(default_factory=set)
    """Strangers to which a link is open: used again once the leader vouches for them."""
    started_at: float = 0.0
    joined: bool = False
    """Has led or heard a leader since the start of the process."""
    join_answers: set[NodeId] = field(default_factory=set)
    unanswered: set[NodeId] = field(default_factory=set)
    """Peers whose JOIN came before there was a link to them (M1)."""
    # election
    poll: Poll | None = None
    deferral: Deferral | None = None
    spent: set[NodeId] = field(default_factory=set)
    """Peers that were waited for in vain (E2)."""
    poll_at: float = FOREVER
    """When to ask again, while there is no leader and no poll."""
    vote_until: float = 0.0
    """Until then a leader is awaited from the candidate that has our vote (E4)."""
    suspected: NodeId = NOBODY
    """The leader that fell silent last; until a leader is heard, being told of it again is no news."""
    silent_since: float = FOREVER
    """When `suspected` was heard last, if it is suspected for its silence."""
    silent_term: Term = 0
    """The term in which it led then."""
    beats: int = 0
    longest_pause: float = 0.0
    """How many pauses between heartbeats were measured, and the longest of late (F2)."""
    starved: bool = False
    """The last poll was put off for want of links to a majority."""
    failures: int = 0
    """Candidacies lost since a leader was heard (E3)."""
    # what a disk can't give
    copying: Copying | None = None
    uncopied: dict[Position, float] = field(default_factory=dict)
    """Position behind which no peer had a copy -> not to be asked for again before. Rule: K6."""
    copy_requests: dict[NodeId, tuple[int, int]] = field(default_factory=dict)
    """Peer -> (token of the read for it, its number). Rule: K6."""
    numbers: int = 0
    """Last poll, request or token number drawn; starts at random so that a restart repeats none."""

    @property
    def node_id(self) -> NodeId:
        return self.config.node_id

    @property
    def peers(self) -> tuple[NodeId, ...]:
        return tuple(member for member in self.config.members if member != self.config.node_id)

    @property
    def majority(self) -> int:
        return len(self.config.members) // 2 + 1

    @property
    def rank(self) -> Rank:
        return (self.log.position, self.config.priority, self.node_id)

    def fresh_number(self) -> int:
        self.numbers += 1
        return self.numbers

    def jittered(self, seconds: float) -> float:
        """Between half of it and one and a half."""
        return seconds * (0.5 + self.rng.random())

    def persist(self, fx: Effects, op: PersistOp) -> int:
        """Hand one operation to the disk. Returns its ticket."""
        fx.persist.append(op)
        self.written += 1
        return self.written

    def pledge_term(self, fx: Effects, term: Term, voted_for: NodeId, then: Envelope | None) -> None:
        """Make a term and vote durable before anybody, we included, sees them. Rule: E3, E4, E6.

        Until then the node takes nothing: whatever comes waits behind it (Node.step).
        """
        assert self.pledge is None and term >= self.term, (self.pledge, term, self.term)
        self.pledge = Pledge(self.persist(fx, Promise(term, voted_for)), term, voted_for, then)

    def send(self, fx: Effects, peer: NodeId, message: PeerMessage) -> None:
        """To one peer, if there is a link; frames without one are lost like any other."""
        if peer in self.links:
            fx.send.append((peer, message))

    def send_members(self, fx: Effects, peer: NodeId) -> None:
        """Pass on which data directories have changed, if any ever has. Rule: M4."""
        if any(known.term for known in self.identities.values()):
            self.send(fx, peer, Members(dict(self.identities)))

    def note_promise(self, promised: Promised, member: NodeId) -> None:
        """Remember what a member's data directory has promised, if it is the one by which the member is known."""
        known = self.identities.get(member)
        if promised.identity == (self.identity if member == self.node_id else known.identity if known else ""):
            self.promised[member] = promised.joined(self.promised.get(member, NOTHING))

    def note_vote(self, member: NodeId, term: Term) -> None:
        """A member has shown a vote in this term. Rule: M6."""
        self.note_promise(Promised(self.presented.get(member, ""), term), member)

    def promises(self) -> dict[NodeId, Promised]:
        """All that is known of what data directories have promised, up to this moment. Rule: M6."""
        role = self.role
        if isinstance(role, Leader):
            for peer, progress in role.progress.items():
                if peer not in self.learners:
                    matched = progress.matched
                    self.note_promise(Promised(self.presented.get(peer, ""), matched.term, matched), peer)
            self.note_promise(Promised(self.identity, self.durable.term, self.durable), self.node_id)
        return dict(self.promised)

    def broadcast(self, fx: Effects, message: PeerMessage) -> int:
        """To every peer with a link; returns how many."""
        reached = [peer for peer in self.peers if peer in self.links]
        fx.send += [(peer, message) for peer in reached]
        return len(reached)


def become_follower(state: NodeState, now: float, fx: Effects, reason: str) -> None:
    """Follow nobody yet, in the present term; what waited to be ordered is the clients' again (S5)."""
    if not isinstance(state.role, Follower):
        fx.emit.append(BecameFollower(state.term, reason))
    if isinstance(state.role, Leader):
        state.promises()  # What the followers acknowledged is known to nobody else.
        state.sessions.rebuild(state.log.tail)  # hit: S3 a lost leadership rolls the sessions back
    state.role = Follower(heard_at=now)
    state.leader_id = NOBODY
    state.route_epoch += 1
    state.poll = state.deferral = None
    state.poll_at = now + state.jittered(state.config.election_timeout)
