"""All messages between nodes, the records that they carry, and the other inputs of the core.

A record is the unit of the log: a batch of messages or a term mark. The leader that orders a record encodes it once;
the bytes are the same on every connection and every disk. In memory a record is a parsed header next to these bytes.
Rules are quoted by their number in docs/protocol.md.

Units: terms, sequence numbers and ids are integers, and 0 means "none yet". No message carries a clock reading.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias

from msgspec import Struct

NodeId: TypeAlias = int
Term: TypeAlias = int
SeqNo: TypeAlias = int

NOBODY: Final = 0
"""The id that means no node, as in "voted for nobody" or "knows no leader". Configured ids start at 1."""


class Position(NamedTuple):
    """The end of a log: (term of its last mark, its last seq_no). Positions compare as pairs."""

    term: Term
    seq_no: SeqNo


new_tuple: Final = tuple.__new__
"""Makes a NamedTuple in half the time of its constructor; several positions are made for each record."""
START = Position(0, 0)
"""The position of the empty log, which all logs have in common."""

Rank: TypeAlias = tuple[Position, int, NodeId]
"""(position, priority, id): the Bully order. The most complete log wins, then the priority, then the id."""


class Known(NamedTuple):
    """The identity of a member's data directory, with a version. Rule: M4."""

    identity: str
    term: Term = 0
    """The term in which the directory was readmitted after a rebuild; 0 for the member's first directory."""
    change: int = 0
    """The number of this change within the term. The greater (term, change) is the newer version."""

    @property
    def version(self) -> tuple[Term, int]:
        return (self.term, self.change)

    def newer_than(self, other: Known | None) -> bool:
        return other is None or self.version > other.version


class Promised(NamedTuple):
    """The least that a data directory must contain, because the node has shown it to others. Rule: M6."""

    identity: str = ""
    term: Term = 0
    """The highest term that the node has sent in a frame: it votes in no lower one."""
    position: Position = START
    """The highest position acknowledged under its own term: only a higher term can drop records up to it."""

    def joined(self, other: Promised) -> Promised:
        """Return the maximum of both; self if they are of different data directories."""
        if self.identity != other.identity:
            return self
        return Promised(self.identity, max(self.term, other.term), max(self.position, other.position))


NOTHING = Promised()
"""The value that says that no promise is known."""


class SessionUse(NamedTuple):
    """The last message of one session in one batch."""

    session: str
    last_n: int
    seq_no: SeqNo
    """The seq_no of message `last_n` of that session."""


class Mark(Struct, frozen=True, gc=False, tag_field="kind", tag="mark"):
    """The term mark: the first record that a leader appends in its term. It has no seq_no of its own. Rule: E5."""

    term: Term
    leader: NodeId
    after: SeqNo
    """The last seq_no before this term."""

    @property
    def position(self) -> Position:
        return new_tuple(Position, (self.term, self.after))


class MemberAddress(NamedTuple):
    """Where a member listens that was added to a running cluster. Rule: G1."""

    node: NodeId
    host: str
    port: int


class MemberList(Struct, frozen=True, omit_defaults=True):
    """The members of a cluster whose list was changed while it ran. Rule: G1."""

    version: int
    """The number of changes so far."""
    voters: tuple[NodeId, ...]
    """The nodes that vote and are counted, ascending."""
    learners: tuple[NodeId, ...] = ()
    """Newcomers: they get all records, have no vote and are not counted. At most one."""
    removed: tuple[NodeId, ...] = ()
    """The former members, ascending. Their ids are never used again."""
    addresses: tuple[MemberAddress, ...] = ()
    """Of the members that are not among the founders, ascending."""

    @property
    def present(self) -> tuple[NodeId, ...]:
        """All members, voters and newcomers, ascending."""
        return tuple(sorted(self.voters + self.learners))


class MembersMark(Mark, frozen=True, gc=False, tag_field="kind", tag="members_mark"):
    """The term mark of a leader whose cluster has changed its list of members, with the list in force. Rule: G1.

    It is another kind of entry than Mark, so that a node which does not know lists refuses it instead of counting by
    the wrong list.
    """

    members: MemberList


class Batch(Struct, frozen=True, tag_field="kind", tag="batch"):
    """The header of consecutive messages ordered in one term. Rule: R3, S3."""

    term: Term
    first: SeqNo
    last: SeqNo
    sessions: tuple[SessionUse, ...]
    """One entry for each session with a message in this batch, ascending by the seq_no of its last message."""

    @property
    def position(self) -> Position:
        return new_tuple(Position, (self.term, self.last))


class Record(Struct, frozen=True, gc=False):
    """One entry of the log: parsed header and the exact bytes. Rule: K1.

    `raw` is prefix, header and body in the format of nodeproc.records. `raw[body_at:]` is the body: the JSONL lines of
    a batch, nothing for a mark.
    """

    header: Mark | Batch
    raw: bytes
    body_at: int

    @property
    def position(self) -> Position:
        """The position of a log whose last record is this one."""
        return self.header.position

    @property
    def body(self) -> memoryview:
        return memoryview(self.raw)[self.body_at :]


class Line(Struct, frozen=True, gc=False):
    """One delivered message, with the fields of a line of the message log in their order."""

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
    """A starting node announces itself, until it has led or followed for the first time. Rule: M1."""

    position: Position


class JoinAck(Struct, frozen=True, tag_field="type", tag="JOIN_ACK"):
    """Answer to JOIN: the sender's term and leader. Rule: M1.

    waited: seconds since the sender's own start while it still waits for other members; else 0.
    """

    term: Term
    leader: NodeId
    waited: float = 0.0


class Members(Struct, frozen=True, tag_field="type", tag="MEMBERS"):
    """The identities of the members' data directories that the sender knows; the newer version wins. Rule: M4.

    The message has no term: only a leader changes an identity, but any member may forward the change.
    """

    identities: dict[NodeId, Known]


class Promises(Struct, frozen=True, tag_field="type", tag="PROMISES"):
    """The promises of each member's data directory that the sender knows. The message has no term. Rule: M6."""

    promised: dict[NodeId, Promised]


# ---- failure detection --------------------------------------------------------------------------


class Heartbeat(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="HEARTBEAT"):
    """The leader shows that it is alive, and how far it has committed. Rule: F1, C2."""

    term: Term
    commit_seq: SeqNo
    sent: Position
    """The last position sent to this peer, or the end of the leader's log while the peer has not sent CATCH_UP.

    A follower whose log ends below it, and that has no CATCH_UP under way, lacks records: it has a hole (R1, R4).
    """
    settled: bool = False
    """The mark of the term has a list of members, and is committed. Rule: G5."""


class HeartbeatAck(Struct, frozen=True, tag_field="type", tag="HEARTBEAT_ACK"):
    """Answer to HEARTBEAT, with the follower's durable position. Rule: F1; counted by F3 and C1."""

    term: Term
    position: Position


# ---- election -----------------------------------------------------------------------------------


class Election(Struct, frozen=True, tag_field="type", tag="ELECTION"):
    """A poll: the sender asks its peers whether they would follow it. It promises nothing. Rule: E1."""

    term: Term
    """The proposed term, for readers of the logs only: no receiver adopts it."""
    position: Position
    priority: int
    poll: int
    """The number of the poll. Answers repeat it, so that late answers to an older poll are recognized."""


class Leader(Struct, frozen=True, gc=False, tag_field="type", tag="LEADER"):
    """Answer to a poll: the sender is the leader, or hears one. Rule: E1, E3."""

    term: Term
    leader: NodeId
    poll: int


class Ok(Struct, frozen=True, gc=False, tag_field="type", tag="OK"):
    """Answer to a poll: the sender has a higher rank. It defers the asker, it does not veto. Rule: E1, E2."""

    poll: int
    could_vote: bool
    """True if the asker's position is at least the sender's, so that the sender could vote for it."""


class Support(Struct, frozen=True, gc=False, tag_field="type", tag="SUPPORT"):
    """Answer to a poll: the sender would follow the asker. Rule: E1."""

    poll: int


class Abstain(Struct, frozen=True, gc=False, tag_field="type", tag="ABSTAIN"):
    """Answer to a poll: the sender has no vote, because it is being rebuilt or its disk is stalled. Rule: M4, F4."""

    poll: int


class VoteRequest(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="VOTE_REQUEST"):
    """A candidate whose own vote is durable asks for votes. Rule: E3, E4."""

    term: Term
    position: Position
    transfer: bool = False
    """The leader has asked the sender to stand, so nodes that hear this leader answer too. Rule: E7."""


class Vote(Struct, frozen=True, gc=False, tag_field="type", tag="VOTE"):
    """A durable vote for the receiver. Rule: E4."""

    term: Term


class Coordinator(Struct, frozen=True, gc=False, omit_defaults=True, tag_field="type", tag="COORDINATOR"):
    """The sender leads this term. Rule: E5."""

    term: Term
    stand: bool = False
    """The receiver, which has the sender's whole log, is to stand for the next term at once. Rule: E7."""


class TermIs(Struct, frozen=True, gc=False, tag_field="type", tag="TERM"):
    """Answer to a frame of an older term: the sender's term. It is never answered itself. Rule: E6."""

    term: Term


# ---- replication --------------------------------------------------------------------------------


class Removed(Struct, frozen=True, gc=False, tag_field="type", tag="REMOVED"):
    """A committed list of members names the receiver as removed. Rule: G5."""

    term: Term


class CatchUp(Struct, frozen=True, tag_field="type", tag="CATCH_UP"):
    """A follower describes its log to the leader, in order to be sent the records it lacks. Rule: R1."""

    term: Term
    marks: tuple[tuple[Term, SeqNo], ...]
    """(term, seq_no it starts after) of the marks in its log from that of its last delivered message on, ascending."""
    last_seq: SeqNo
    request: int
    """A new number for each CATCH_UP; the same number when it continues with older marks."""
    older: bool = False
    """True if only the newest marks were sent, and older ones may be needed."""


class OlderMarks(Struct, frozen=True, gc=False, tag_field="type", tag="OLDER_MARKS"):
    """The leader has none of the marks of a CATCH_UP, and asks for the marks up to this term. Rule: R1."""

    term: Term
    up_to: Term
    request: int


class Resume(Struct, frozen=True, tag_field="type", tag="RESUME"):
    """Answer to CATCH_UP: drop the records above the fork. The leader's records after it follow. Rule: R1, R2."""

    term: Term
    fork: Position
    request: int


class Append(Struct, frozen=True, tag_field="type", tag="APPEND"):
    """The next records of the leader's log, in order. Rule: R3, R4."""

    term: Term
    previous: Position
    """The position of the log before the first record."""
    commit_seq: SeqNo
    records: tuple[Record, ...]
    """At least one; consecutive. Their bytes are the body of the frame."""


class Appended(Struct, frozen=True, tag_field="type", tag="APPENDED"):
    """The sender's log is durable up to this position. Rule: R5."""

    term: Term
    position: Position


class Commit(Struct, frozen=True, gc=False, tag_field="type", tag="COMMIT"):
    """The leader's commit_seq, when no APPEND or HEARTBEAT is due that would carry it. Rule: C2."""

    term: Term
    commit_seq: SeqNo


class CopyRequest(Struct, frozen=True, tag_field="type", tag="COPY_REQUEST"):
    """The sender cannot read the delivered records after this position from its disk, and asks for a copy. Rule: K6.

    The message has no term: delivered records are the same in all terms.
    """

    after: Position
    number: int
    """The number of the request, which the answer repeats."""


class Copy(Struct, frozen=True, tag_field="type", tag="COPY"):
    """Answer to COPY_REQUEST: delivered records after that position, the same bytes on every node. Rule: K6."""

    number: int
    records: tuple[Record, ...]
    """Consecutive; empty if the sender has none. Their bytes are the body of the frame."""


# ---- client messages on their way to the leader ------------------------------------------------


class Submit(Struct, frozen=True, tag_field="type", tag="SUBMIT"):
    """Messages first, first + 1, … of one session, to be ordered. Rule: S2.

    If a client of this node has submitted them, the envelope's sender is the node itself. A follower forwards the
    message to the leader unchanged.
    """

    session: str
    client_id: int
    born: SeqNo
    """The delivered seq_no at which the session was born (S3)."""
    first: int
    payloads: tuple[str, ...]


RefuseReason: TypeAlias = Literal["gap", "expired", "no_leader", "no_quorum", "disk_stalled", "invalid"]


class Refuse(Struct, frozen=True, tag_field="type", tag="REFUSE"):
    """The reason why a Submit was not ordered. Rule: S2, S3, F3.

    gap: send again from `expected`. no_leader, no_quorum, disk_stalled: send again when there is a leader.
    expired, invalid: rejected for good.
    """

    session: str
    first: int
    reason: RefuseReason
    expected: int
    """The n that the leader expects next; 0 if it is not known."""


# ---- inputs from transport and storage (never sent to other nodes) ------------------------------


class LinkUp(Struct, frozen=True):
    """A link to or from this peer was opened, and both ends have authenticated. Rule: M3, R1."""

    shown: Known
    """The identity of the peer's data directory, as the peer showed it in the handshake."""
    rebuilding: bool
    outgoing: bool
    """True: frames can be sent to the peer from now on. False: its frames arrive over a new link from now on."""
    promised: Promised = NOTHING
    """The promises of this node that the peer knows."""
    knows_lists: bool = True
    """False: the peer runs an older version, which does not know lists of members. Rule: G2."""


class LinkDown(Struct, frozen=True, gc=False):
    """The outgoing link was lost, and an immediate attempt to open it again failed. Rule: F2."""


class Transfer(Struct, frozen=True, gc=False):
    """SIGUSR1, or a clean stop of this process: a leader is to transfer its leadership. Rule: E7."""

    to: NodeId = NOBODY
    """The follower that is to lead; NOBODY: the leader chooses one."""


class AddNode(Struct, frozen=True):
    """An operator asks the leader to add this node to the members. Rule: G2, G3."""

    node: NodeId
    host: str
    port: int


class RemoveNode(Struct, frozen=True, gc=False):
    """An operator asks the leader to remove this member. Rule: G2, G5."""

    node: NodeId


Change: TypeAlias = AddNode | RemoveNode


class Damaged(Struct, frozen=True):
    """The delivered records after this position cannot be read from the node's own disk. Rule: K6."""

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
    | Removed
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
"""The messages that a frame between nodes can contain."""

Input: TypeAlias = PeerMessage | LinkUp | LinkDown | Transfer | Change | Damaged


class Envelope(Struct, frozen=True, gc=False):
    """One input of the core. `sender` is the peer, or the node's own id for its clients and its disk."""

    sender: NodeId
    message: Input
