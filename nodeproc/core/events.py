"""All events that a node can report: a closed list.

An event has two forms. In node.log it is a line for people: `text` with the fields filled in, under `logger` and
`level`. In events.jsonl it is the object {"t_ns", "node", "event", …fields}. The core only reports events; the host
writes them.
"""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

from msgspec import Struct

from nodeproc.core.messages import NodeId, SeqNo, Term

Level: TypeAlias = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
Logger: TypeAlias = Literal["node", "election", "ordering", "membership", "failure", "storage", "transport"]


class Event(Struct, frozen=True, gc=False, tag_field="event"):
    """Base of all events; subclasses are listed below and nowhere else."""

    logger: ClassVar[Logger]
    level: ClassVar[Level] = "INFO"
    text: ClassVar[str]

    def line(self) -> str:
        """Return the line for people: `text` with the fields filled in."""
        return self.text.format_map({name: getattr(self, name) for name in self.__struct_fields__})


# ---- node ---------------------------------------------------------------------------------------


class Starting(Event, frozen=True, tag="starting"):
    logger = "node"
    text = "Starting node..."
    term: Term
    last_seq: SeqNo


class NothingSynced(Event, frozen=True, tag="nothing_synced"):
    logger = "storage"
    level = "WARNING"
    text = "durability: os: after a power loss of this machine, only --rebuild keeps acknowledged messages safe"


class BecameLeader(Event, frozen=True, tag="became_leader"):
    logger = "node"
    text = "Became LEADER for term {term}"
    term: Term
    last_seq: SeqNo


class BecameFollower(Event, frozen=True, tag="became_follower"):
    logger = "node"
    text = "Became FOLLOWER in term {term}: {reason}"
    term: Term
    reason: str


class BecameCandidate(Event, frozen=True, tag="became_candidate"):
    logger = "node"
    text = "Became CANDIDATE for term {term}"
    term: Term


class NewCoordinator(Event, frozen=True, tag="new_coordinator"):
    logger = "node"
    text = "New coordinator: node_{leader}, term={term}"
    term: Term
    leader: NodeId


class Stopping(Event, frozen=True, tag="stopping"):
    logger = "node"
    text = "Stopping: {reason}"
    reason: str


class Failed(Event, frozen=True, tag="failed"):
    logger = "node"
    level = "ERROR"
    text = "{reason}"
    reason: str


# ---- membership ---------------------------------------------------------------------------------


class Joining(Event, frozen=True, tag="joining"):
    logger = "membership"
    text = "Attempting to join..."


class AwaitingMembers(Event, frozen=True, tag="awaiting_members"):
    logger = "membership"
    text = "Waiting up to {wait_ms} ms for {missing} before an election"
    missing: str
    wait_ms: int


class JoinAnswered(Event, frozen=True, tag="join_answered"):
    logger = "membership"
    text = "Sent JOIN_ACK to node_{peer} ({known}, term={term})"
    peer: NodeId
    leader: NodeId
    """0: this node knows no leader."""
    term: Term

    def line(self) -> str:
        known = f"leader node_{self.leader}" if self.leader else "no leader known"
        return self.text.format(peer=self.peer, known=known, term=self.term)


class UnknownMemberRefused(Event, frozen=True, tag="unknown_member_refused"):
    logger = "membership"
    level = "ERROR"
    text = "node_{peer} has data directory {found}, expected {known}: refused (a lost disk needs --rebuild)"
    peer: NodeId
    known: str
    found: str


class NodeReadmitted(Event, frozen=True, tag="node_readmitted"):
    logger = "membership"
    text = "node_{peer} is rebuilt and votes again, term={term}"
    peer: NodeId
    term: Term


class MembersChanged(Event, frozen=True, tag="members_changed"):
    """The list in force of this node has changed: a mark with another list was written, or was dropped again."""

    logger = "membership"
    text = "The members are version {version}: voters {voters}, learners {learners}, removed {removed}"
    term: Term
    """Of the mark."""
    version: int
    voters: tuple[NodeId, ...]
    learners: tuple[NodeId, ...]
    removed: tuple[NodeId, ...]

    def line(self) -> str:
        voters, learners, removed = (_ids(each) for each in (self.voters, self.learners, self.removed))
        return self.text.format(version=self.version, voters=voters, learners=learners, removed=removed)


class MembersCommitted(MembersChanged, frozen=True, tag="members_committed"):
    """The leader's mark is committed, and with it the list that is in force."""

    text = "The members of version {version} are committed: voters {voters}, learners {learners}, removed {removed}"


class ChangeStarted(Event, frozen=True, tag="change_started"):
    logger = "membership"
    text = "Changing the members after term {term}: {change}"
    term: Term
    change: str


class ChangeRefused(Event, frozen=True, tag="change_refused"):
    logger = "membership"
    level = "WARNING"
    text = "Can't {change}: {reason}"
    term: Term
    change: str
    reason: str


class NodeRemoved(Event, frozen=True, tag="node_removed"):
    """This node is a member no more."""

    logger = "membership"
    level = "WARNING"
    text = "Removed from the cluster, as node_{by} says in term {term}"
    term: Term
    by: NodeId


def _ids(nodes: tuple[NodeId, ...]) -> str:
    return ", ".join(map(str, nodes)) or "none"


# ---- failure ------------------------------------------------------------------------------------


class LeaderTimeout(Event, frozen=True, tag="leader_timeout"):
    logger = "failure"
    level = "WARNING"
    text = "Leader timeout! node_{leader}: {reason}"
    leader: NodeId
    reason: str


class QuorumLost(Event, frozen=True, tag="quorum_lost"):
    logger = "failure"
    level = "WARNING"
    text = "No answer from a majority in term {term}: stepping down"
    term: Term


class DiskStalled(Event, frozen=True, tag="disk_stalled"):
    logger = "storage"
    level = "WARNING"
    text = "The disk has not answered for {waited_ms} ms: no messages are accepted until it does"
    waited_ms: int


class DiskAnswered(Event, frozen=True, tag="disk_answered"):
    logger = "storage"
    level = "WARNING"
    text = "The disk answers again after {waited_ms} ms"
    waited_ms: int


class HeartbeatSent(Event, frozen=True, tag="heartbeat_sent"):
    logger = "failure"
    level = "DEBUG"
    text = "Sent heartbeat to {peers} peers"
    peers: int
    term: Term


class HeartbeatReceived(Event, frozen=True, tag="heartbeat_received"):
    logger = "failure"
    level = "DEBUG"
    text = "Heartbeat received from leader, term={term}"
    leader: NodeId
    term: Term


# ---- election -----------------------------------------------------------------------------------


class ElectionStarted(Event, frozen=True, tag="election_started"):
    logger = "election"
    text = "Starting election for term {term}"
    term: Term


class ElectionDeferred(Event, frozen=True, tag="election_deferred"):
    logger = "election"
    text = "Deferring to node_{to}, term {term}"
    term: Term
    to: NodeId


class ElectionFailed(Event, frozen=True, tag="election_failed"):
    logger = "election"
    text = "Election for term {term} not won: {reason}"
    term: Term
    reason: str


class VoteGranted(Event, frozen=True, tag="vote_granted"):
    logger = "election"
    text = "Voted for node_{candidate} in term {term}"
    term: Term
    candidate: NodeId


class VoteRefused(Event, frozen=True, tag="vote_refused"):
    logger = "election"
    text = "Refused node_{candidate} a vote in term {term}: {reason}"
    term: Term
    candidate: NodeId
    reason: str


class BecomingCoordinator(Event, frozen=True, tag="becoming_coordinator"):
    logger = "election"
    text = "Becoming coordinator for term {term}"
    term: Term


class CoordinatorReceived(Event, frozen=True, tag="coordinator_received"):
    logger = "election"
    text = "Received COORDINATOR from node_{leader}"
    leader: NodeId
    term: Term


class TransferStarted(Event, frozen=True, tag="transfer_started"):
    logger = "election"
    text = "Transferring the leadership of term {term} to node_{to}"
    term: Term
    to: NodeId


class TransferFailed(Event, frozen=True, tag="transfer_failed"):
    logger = "election"
    level = "WARNING"
    text = "No transfer of the leadership of term {term}: {reason}"
    term: Term
    to: NodeId
    """0: none was chosen."""
    reason: str


class AskedToStand(Event, frozen=True, tag="asked_to_stand"):
    """The node's leader transfers its leadership to it: it becomes candidate without a poll."""

    logger = "election"
    text = "Asked by node_{leader} to lead after term {term}"
    term: Term
    leader: NodeId


# ---- ordering and catch-up ----------------------------------------------------------------------


class CatchUpRequested(Event, frozen=True, tag="catch_up_requested"):
    logger = "ordering"
    text = "Requesting catch-up from seq_no={after}"
    leader: NodeId
    after: SeqNo
    request: int


class CatchUpServed(Event, frozen=True, tag="catch_up_served"):
    logger = "ordering"
    text = "Serving catch-up to node_{peer} from seq_no={after}"
    peer: NodeId
    after: SeqNo


class CaughtUp(Event, frozen=True, tag="caught_up"):
    """The leader has sent node `peer` all its records, and from now on sends new ones at once."""

    logger = "ordering"
    text = "node_{peer} has been sent everything up to seq_no={seq_no}"
    peer: NodeId
    seq_no: SeqNo


class Resumed(Event, frozen=True, tag="resumed"):
    logger = "ordering"
    text = "Catching up behind seq_no={after} (dropped {dropped} unacknowledged entries)"
    after: SeqNo
    dropped: int


class Buffered(Event, frozen=True, tag="buffered"):
    logger = "ordering"
    level = "DEBUG"
    text = "Buffered out-of-order message seq_no={seq_no} (expected {expected})"
    seq_no: SeqNo
    expected: SeqNo


class DeliveredFromBuffer(Event, frozen=True, tag="taken_from_buffer"):
    logger = "ordering"
    level = "DEBUG"
    text = "Delivering seq_no={seq_no} from buffer"
    seq_no: SeqNo


class Delivered(Event, frozen=True, tag="delivered"):
    logger = "ordering"
    level = "DEBUG"
    text = "Delivering seq_no={first}..{last}"
    first: SeqNo
    last: SeqNo


class SessionExpired(Event, frozen=True, tag="session_expired"):
    logger = "ordering"
    level = "WARNING"
    text = "Session {session} of client {client_id} expired"
    session: str
    client_id: int


# ---- storage ------------------------------------------------------------------------------------


class Loaded(Event, frozen=True, tag="loaded"):
    logger = "storage"
    text = "Loaded {messages} messages from log"
    messages: SeqNo


class SequenceSet(Event, frozen=True, tag="sequence_set"):
    logger = "ordering"
    text = "Set last_seq={last_seq}, next_expected={next_expected}"
    last_seq: SeqNo
    next_expected: SeqNo


class TornTailDropped(Event, frozen=True, tag="torn_tail_dropped"):
    logger = "storage"
    level = "WARNING"
    text = "Dropped a torn tail of {lost} bytes from {file}"
    file: str
    lost: int


class TailWrittenAnew(Event, frozen=True, tag="tail_written_anew"):
    """After an unclean stop these entries were read, but perhaps from the system's cache only and not from disk."""

    logger = "storage"
    text = "Wrote the last {size} bytes of the log again, in {file}"
    file: str
    size: int


class MessageLogRepaired(Event, frozen=True, tag="message_log_repaired"):
    logger = "storage"
    level = "WARNING"
    text = "Message log cut to seq_no={kept}, rewritten to seq_no={last}"
    kept: SeqNo
    last: SeqNo


class DamageFound(Event, frozen=True, tag="damage_found"):
    logger = "storage"
    level = "WARNING"
    text = "Damage in {file}, offset {at} (messages from seq_no={seq_no} on): {what}"
    file: str
    at: int
    seq_no: SeqNo
    what: str


class DamageRepaired(Event, frozen=True, tag="damage_repaired"):
    """The records of seq_no `first` to `last` are intact again; `places` names up to three of `count` places."""

    logger = "storage"
    level = "WARNING"
    text = "Repaired seq_no={first}..{last}: {count} places, {places}"
    first: SeqNo
    last: SeqNo
    places: str
    count: int


class DamageLeft(Event, frozen=True, tag="damage_left"):
    logger = "storage"
    level = "WARNING"
    text = "Messages from seq_no={seq_no} on can't be read: {reason}"
    seq_no: SeqNo
    reason: str


class CheckpointPutOff(Event, frozen=True, tag="checkpoint_put_off"):
    logger = "storage"
    level = "WARNING"
    text = "Checkpoint postponed until the next WAL file is finished: {reason}"
    reason: str


class CheckpointWritten(Event, frozen=True, tag="checkpoint_written"):
    logger = "storage"
    level = "DEBUG"
    text = "Checkpoint at seq_no={seq_no}, dropped {segments} WAL segments"
    seq_no: SeqNo
    segments: int


# ---- transport ----------------------------------------------------------------------------------


class Listening(Event, frozen=True, tag="listening"):
    logger = "transport"
    text = "Listening on {host}:{port}"
    host: str
    port: int


class PeerConnected(Event, frozen=True, tag="peer_connected"):
    logger = "transport"
    text = "Connected to node_{peer}"
    peer: NodeId


class PeerLost(Event, frozen=True, tag="peer_lost"):
    logger = "transport"
    text = "Failed to connect to node_{peer}: {reason}"
    peer: NodeId
    reason: str


class PeerRefused(Event, frozen=True, tag="peer_refused"):
    logger = "transport"
    level = "ERROR"
    text = "Link to node_{peer} refused: {reason}"
    peer: NodeId
    reason: str


class ClientConnected(Event, frozen=True, tag="client_connected"):
    logger = "transport"
    text = "Client {client_id} connected"
    client_id: int
    session: str


class ClientLeft(Event, frozen=True, tag="client_left"):
    logger = "transport"
    text = "Client {client_id} left"
    client_id: int
    session: str


class BadInput(Event, frozen=True, tag="bad_input"):
    logger = "transport"
    level = "WARNING"
    text = "Closed {peer}: {reason}"
    peer: str
    reason: str
