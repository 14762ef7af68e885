"""Every message that crosses the network between nodes, and the records that it carries.

A record is the unit of the log: a batch of messages or a term mark. Its bytes are made once, by the
leader that ordered it, and are the same on every wire and every disk; here it is a parsed header next to those
bytes. Rules are quoted by their number in docs/protocol.md.

Units: terms, sequence numbers and ids are integers, 0 is "nothing yet"; times do not travel.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from msgspec import Struct

NodeId: TypeAlias = int
Term: TypeAlias = int
SeqNo: TypeAlias = int

NOBODY: NodeId = 0
"""No node: voted for nobody, knows no leader. Configured ids start at 1."""


class Position(NamedTuple):
    """How far a log reaches: (term of its last mark, its last seq_no). Compares as a pair."""

    term: Term
    seq_no: SeqNo


START = Position(0, 0)
"""The position of the empty log, common to all."""

Rank: TypeAlias = tuple[Position, int, NodeId]
"""(position, priority, id): the Bully order. The freshest log wins, then priority, then id."""


class Known(NamedTuple):
    """The data directory of a member, and since when it is this one. Rule: M4."""

    identity: str
    term: Term = 0
    """In which it was made a member again; 0: it is the one that was met first."""
    change: int = 0
    """Which of that term's changes; (term, change) tells the newer of two."""

    def newer_than(self, other: Known | None) -> bool:
        return other is None or self[1:] > other[1:]


class Promised(NamedTuple):
    """The least that a data directory must hold, for this it has shown others. Rule: M6."""

    identity: str = ""
    term: Term = 0
    """Shown in a frame: no vote was given, or will be, in a lower one."""
    position: Position = START
    """Acknowledged under its own term: nothing up to it was dropped but in a higher term."""

    def joined(self, other: Promised) -> Promised:
        """What both together know; of two data directories what this one knows."""
        if self.identity != other.identity:
            return self
        return Promised(self.identity, max(self.term, other.term), max(self.position, other.position))


NOTHING = Promised()
"""No promise is known."""


class SessionUse(NamedTuple):
    """The last message of one session in one batch."""

    session: str
    last_n: int
    seq_no: SeqNo
    """The place in the total order of message `last_n` of that session."""


class Mark(Struct, frozen=True, gc=False, tag_field="kind", tag="mark"):
    """The term mark: opens a leader's stretch of the log and takes no seq_no. Rule: E5."""

    term: Term
    leader: NodeId
    after: SeqNo
    """The last seq_no before this term."""

    @property
    def position(self) -> Position:
        return Position(self.term, self.after)


class Batch(Struct, frozen=True, tag_field="kind", tag="batch"):
    """The header of consecutive messages ordered in one term. Rule: R3, S3."""

    term: Term
    first: SeqNo
    last: SeqNo
    sessions: tuple[SessionUse, ...]
    """Each session with a message in this batch, once, ascending by seq_no of its last message."""

    @property
    def position(self) -> Position:
        return Position(self.term, self.last)


class Record(Struct, frozen=True, gc=False):
    """One entry of the log: parsed header and the exact bytes. Rule: K1.

    `raw` is prefix, header and body as nodeproc.records lays them out; `raw[body_at:]` are the JSONL lines
    of a batch, empty for a mark.
    """

    header: Mark | Batch
    raw: bytes
    body_at: int

    @property
    def position(self) -> Position:
        """Where the log ends once this record is its last."""
        return self.header.position

    @property
    def body(self) -> memoryview:
        return memoryview(self.raw)[self.body_at :]


class Line(Struct, frozen=True, gc=False):
    """One delivered message as it stands in the JSONL file; field order is the file's."""

    seq_no: SeqNo
    term: Term
    sender_id: int
    msg_id: str
    """"session-n"."""
    timestamp: float
    """The leader's wall clock when it ordered the message, seconds since the epoch."""
    payload: str


# ---- membership ---------------------------------------------------------------------------------


class Join(Struct, frozen=True, tag_field="type", tag="JOIN"):
    """A starting node announces itself. Rule: M1. Never sent again once it has led or followed."""

    position: Position


class JoinAck(Struct, frozen=True, tag_field="type", tag="JOIN_ACK"):
    """What a live peer knows, for a starting node. Rule: M1.

    waited: seconds since it was started, while it waits for the others itself; else 0.
    """

    term: Term
    leader: NodeId
    waited: float = 0.0


class Members(Struct, frozen=True, tag_field="type", tag="MEMBERS"):
    """Which data directories the sender knows the members by; the newer knowledge wins. Rule: M4.

    Under no term: only a leader makes such a change, and any member may pass it on.
    """

    identities: dict[NodeId, Known]


class Promises(Struct, frozen=True, tag_field="type", tag="PROMISES"):
    """What the sender knows each member's data directory to have promised. Under no term. Rule: M6."""

    promised: dict[NodeId, Promised]


# ---- failure detection --------------------------------------------------------------------------


class Heartbeat(Struct, frozen=True, tag_field="type", tag="HEARTBEAT"):
    """The leader lives. Rule: F1, C2."""

    term: Term
    commit_seq: SeqNo
    sent: Position
    """End of what was sent to this peer before, or of the log while the leader waits for its CATCH_UP.

    A follower that is below it and has asked for nothing has a hole (R1, R4).
    """


class HeartbeatAck(Struct, frozen=True, tag_field="type", tag="HEARTBEAT_ACK"):
    """A follower heard it. Rule: F1; counted by F3 and C1."""

    term: Term
    position: Position
    """Durable."""


# ---- election -----------------------------------------------------------------------------------


class Election(Struct, frozen=True, tag_field="type", tag="ELECTION"):
    """A poll: who would follow me? Promises nothing. Rule: E1."""

    term: Term
    """Proposed, for the reader of logs; nobody takes it over."""
    position: Position
    priority: int
    poll: int
    """Answers repeat it, so that a late one is not taken for this poll's."""


class Leader(Struct, frozen=True, gc=False, tag_field="type", tag="LEADER"):
    """Answer to a poll: there is a leader. Rule: E1, E3."""

    term: Term
    leader: NodeId
    poll: int


class Ok(Struct, frozen=True, gc=False, tag_field="type", tag="OK"):
    """Answer to a poll: I outrank you, wait for me. Defers, never vetoes. Rule: E1, E2."""

    poll: int
    could_vote: bool
    """The asker's position is at least the answerer's, so its vote could be had."""


class Support(Struct, frozen=True, gc=False, tag_field="type", tag="SUPPORT"):
    """Answer to a poll: I would follow you. Rule: E1."""

    poll: int


class Abstain(Struct, frozen=True, gc=False, tag_field="type", tag="ABSTAIN"):
    """Answer to a poll of a node that has no vote: it is being rebuilt, or its disk is stalled. Rule: M4, F4."""

    poll: int


class VoteRequest(Struct, frozen=True, tag_field="type", tag="VOTE_REQUEST"):
    """A candidate, whose own vote is durable, asks for more. Rule: E3, E4."""

    term: Term
    position: Position


class Vote(Struct, frozen=True, gc=False, tag_field="type", tag="VOTE"):
    """A durable vote for the receiver. Rule: E4."""

    term: Term


class Coordinator(Struct, frozen=True, gc=False, tag_field="type", tag="COORDINATOR"):
    """The sender leads this term. Rule: E5."""

    term: Term


class TermIs(Struct, frozen=True, gc=False, tag_field="type", tag="TERM"):
    """Answer to a frame of an older term. Rule: E6. Never answered itself."""

    term: Term


# ---- replication --------------------------------------------------------------------------------


class CatchUp(Struct, frozen=True, tag_field="type", tag="CATCH_UP"):
    """A follower meets its leader anew and says what it has. Rule: R1."""

    term: Term
    marks: tuple[tuple[Term, SeqNo], ...]
    """(term, seq_no it starts after) of the marks in its log from that of its last delivered message on, ascending."""
    last_seq: SeqNo
    request: int
    """Fresh for each CATCH_UP; the same when it goes on with older marks."""
    older: bool = False
    """There are older marks that may be needed: only the newest were sent."""


class OlderMarks(Struct, frozen=True, gc=False, tag_field="type", tag="OLDER_MARKS"):
    """None of the marks of a CATCH_UP is the leader's: it asks for those up to this term. Rule: R1."""

    term: Term
    up_to: Term
    request: int


class Resume(Struct, frozen=True, tag_field="type", tag="RESUME"):
    """Keep what is not above the fork; the rest follows. Rule: R1, R2."""

    term: Term
    fork: Position
    request: int


class Append(Struct, frozen=True, tag_field="type", tag="APPEND"):
    """The next records of the leader's log, in order. Rule: R3, R4."""

    term: Term
    previous: Position
    """Of the log before the first record."""
    commit_seq: SeqNo
    records: tuple[Record, ...]
    """At least one; consecutive. On the wire they are the frame's body, verbatim."""


class Appended(Struct, frozen=True, tag_field="type", tag="APPENDED"):
    """All up to this position is durable here. Rule: R5."""

    term: Term
    position: Position


class Commit(Struct, frozen=True, gc=False, tag_field="type", tag="COMMIT"):
    """commit_seq by itself, when no APPEND or HEARTBEAT is due. Rule: C2."""

    term: Term
    commit_seq: SeqNo


class CopyRequest(Struct, frozen=True, tag_field="type", tag="COPY_REQUEST"):
    """The sender's disk can't give the delivered records behind this position: who has them? Rule: K6.

    Under no term: what is delivered is the same in all of them.
    """

    after: Position
    number: int
    """The answers repeat it."""


class Copy(Struct, frozen=True, tag_field="type", tag="COPY"):
    """Delivered records behind the position that was asked for. Rule: K6. Their bytes are the same on every node."""

    number: int
    records: tuple[Record, ...]
    """Consecutive; none where the sender has none. On the wire they are the frame's body, verbatim."""


# ---- client messages on their way to the leader ------------------------------------------------


class Submit(Struct, frozen=True, tag_field="type", tag="SUBMIT"):
    """Messages first, first + 1, … of one session, to be ordered. Rule: S2.

    From a client of this node it comes as (sender = own id); a follower passes it on unchanged.
    """

    session: str
    client_id: int
    born: SeqNo
    """Delivered seq_no when the session was born (S3)."""
    first: int
    payloads: tuple[str, ...]


RefuseReason: TypeAlias = Literal["gap", "expired", "no_leader", "no_quorum", "disk_stalled", "invalid"]


class Refuse(Struct, frozen=True, tag_field="type", tag="REFUSE"):
    """Why a Submit was not ordered. Rule: S2, S3, F3.

    gap: send again from `expected`. no_leader, no_quorum, disk_stalled: send again when there is a leader.
    expired, invalid: rejected for good.
    """

    session: str
    first: int
    reason: RefuseReason
    expected: int
    """The n that the leader expects next; 0 where it does not know."""


# ---- what transport and storage tell (never on a wire) -----------------------------------------


class LinkUp(Struct, frozen=True):
    """A link to or from this peer was opened and both ends have proven themselves. Rule: M3, R1."""

    identity: str
    rebuilding: bool
    outgoing: bool
    """True: frames can be sent to the peer now. False: frames from it come over a new link."""
    promised: Promised = NOTHING
    """What the peer knows this node to have promised."""


class LinkDown(Struct, frozen=True, gc=False):
    """The outgoing link is lost and could not be opened again at once. Rule: F2."""


class Damaged(Struct, frozen=True):
    """From our own disk: the delivered records behind this position can't be read. Rule: K6."""

    after: Position


PeerMessage: TypeAlias = (
    Join
    | JoinAck
    | Members
    | Promises
    | Heartbeat
    | HeartbeatAck
    | Election
    | Leader
    | Ok
    | Support
    | Abstain
    | VoteRequest
    | Vote
    | Coordinator
    | TermIs
    | CatchUp
    | OlderMarks
    | Resume
    | Append
    | Appended
    | Commit
    | CopyRequest
    | Copy
    | Submit
    | Refuse
)
"""All that a frame between nodes can hold."""

Input: TypeAlias = PeerMessage | LinkUp | LinkDown | Damaged


class Envelope(NamedTuple):
    """One input of the core. `sender` is the peer, or the node's own id for its own clients."""

    sender: NodeId
    message: Input
