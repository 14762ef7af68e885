"""Lines between nodes and clients: JSON lines in both directions. Pure.

LineDecoder waits for the rest of an incomplete line; it raises FrameError only for bytes that cannot become a valid
line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import sha256
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from nodeproc.core.messages import NOBODY, Line, MemberAddress, NodeId, SeqNo, Term
from nodeproc.errors import MALFORMED, FrameError, brief

_encode = msgspec.json.Encoder().encode

SESSION_TOKEN: Final = re.compile(r"[A-Za-z0-9_.:-]{16,64}")


def session_of(token: str) -> str:
    """Return the public id of the session with this token. Rule: S1.

    The id is public: it appears in every msg_id. Only the client and the node to which it is connected know the token.
    96 bits are enough: an attacker who wants any one of 100,000 sessions must try 2^79 tokens.

    Returns:
        The first 24 hexadecimal digits, in lower case, of the SHA-256 of the token's bytes.
    """
    return sha256(token.encode()).hexdigest()[:24]


class Hello(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="HELLO"):
    """First line of a client. Rule: S1, S3."""

    client_id: int
    session: str = ""
    """The session's public id, session_of(session_token); the node computes it if it is left out."""
    born: SeqNo | None = None
    """The `born` of the session's first WELCOME; None in the first HELLO of a session."""
    client_token: str | UnsetType = UNSET
    """The client token, if the node requires one in the first line of a connection."""
    session_token: str | UnsetType = UNSET
    """The session's secret. If it is left out, the node makes up a session."""


class Chat(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="CHAT"):
    """Messages first, first + 1, … of the session. Rule: S1."""

    first: int
    payloads: tuple[str, ...]


class Subscribe(
    Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="SUBSCRIBE", rename={"start": "from"}
):
    """Send every delivered message from this seq_no on. Rule: S6."""

    start: SeqNo = 1
    client_token: str | UnsetType = UNSET


class StatusRequest(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="STATUS"):
    """Ask for the node's STATUS_IS. Needs no HELLO."""

    client_token: str | UnsetType = UNSET


_Id: TypeAlias = Annotated[NodeId, Meta(ge=1, le=2**31 - 1)]


class _Administrative(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    client_token: str | UnsetType = UNSET
    admin_token: str | UnsetType = UNSET
    """The node's admin token, if it has one."""


class AddRequest(_Administrative, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="ADD_NODE"):
    """Add this node to the members; the leader must be asked. Answered with CHANGE_IS. Rule: G2, G3."""

    node: _Id
    host: Annotated[str, Meta(min_length=1, max_length=256)]
    """Where the members reach the node."""
    port: Annotated[int, Meta(ge=1, le=65535)]


class RemoveRequest(_Administrative, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="REMOVE_NODE"):
    """Remove this member; the leader must be asked. Answered with CHANGE_IS. Rule: G2, G5."""

    node: _Id


class TransferRequest(_Administrative, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="TRANSFER"):
    """Transfer the leadership; the leader must be asked. Answered with CHANGE_IS. Rule: E7."""

    to: Annotated[NodeId, Meta(ge=NOBODY, le=2**31 - 1)] = NOBODY
    """The follower that is to lead; 0: the leader chooses one."""


AdminRequest: TypeAlias = AddRequest | RemoveRequest | TransferRequest
ClientLine: TypeAlias = Hello | Chat | Subscribe | StatusRequest | AdminRequest


class Welcome(Struct, frozen=True, tag_field="type", tag="WELCOME"):
    """Answer to HELLO."""

    node: NodeId
    session: str
    """The session's public id."""
    born: SeqNo
    """The session's birth, to be repeated in every later HELLO of this session."""
    acknowledged: int
    """Last n of the session that this node has delivered; 0 for none."""
    last_seq: SeqNo
    """The last seq_no that this node has delivered."""
    leader: NodeId
    """The leader that this node knows; 0 if none."""
    term: Term
    acknowledged_seq: SeqNo = 0
    """The seq_no of message `acknowledged`. 0: not known yet; an ACK contains it when the message is sent again."""
    addresses: tuple[MemberAddress, ...] | UnsetType = UNSET
    """Of the members that were added while the cluster ran; left out if the list was never changed. Rule: G1."""


class Ack(Struct, frozen=True, tag_field="type", tag="ACK"):
    """Messages 1..n of the session are delivered; n has this seq_no. Rule: S4."""

    session: str
    n: int
    seq_no: SeqNo


class Reject(Struct, frozen=True, tag_field="type", tag="REJECT"):
    """Messages of a CHAT were not ordered, or the client is refused (first 0). Rule: S2, S3, S7, F3.

    retry: true: send again, from `expected` if it is not 0, otherwise after the next LEADER line.
        false: certainly never ordered.
    """

    session: str
    first: int
    reason: str
    retry: bool
    expected: int = 0


TOKEN_REFUSED: Final = "client token"
"""Reason of a REJECT for a client whose first line lacks the node's client token."""


class LeaderLine(Struct, frozen=True, tag_field="type", tag="LEADER"):
    """The route to the leader or the list of members has changed: send unacknowledged messages again. Rule: S5."""

    leader: NodeId
    term: Term
    addresses: tuple[MemberAddress, ...] | UnsetType = UNSET
    """As in WELCOME."""


class Problem(Struct, frozen=True, tag_field="type", tag="ERROR"):
    """A line could not be accepted; the node closes the connection after this answer. Rule: S7."""

    reason: str


class PeerStatus(Struct, frozen=True):
    """The state of one peer, as the answering node knows it."""

    node: NodeId
    connected: bool
    synced: bool
    """True if the answering node is the leader and sends new records to this peer at once."""
    durable_seq: SeqNo
    """The last durable seq_no that the peer acknowledged to this leader; 0 if the answering node does not lead."""


class MembersStatus(Struct, frozen=True):
    """The list of members in force on the answering node. Rule: G1."""

    version: int
    """The number of changes so far."""
    committed: bool
    """True if the answering node leads and knows that the list is committed."""
    founders: tuple[NodeId, ...]
    voters: tuple[NodeId, ...]
    learners: tuple[NodeId, ...]
    removed: tuple[NodeId, ...]
    addresses: tuple[MemberAddress, ...]
    """Of the members, as far as the node knows them; its own as it listens."""


class ChangeIs(Struct, frozen=True, tag_field="type", tag="CHANGE_IS"):
    """Answer to ADD_NODE, REMOVE_NODE and TRANSFER. Rule: G2, E7."""

    state: Literal["done", "begun", "refused"]
    """done: the committed list has the change. begun: it is under way; ask again to learn whether it is done."""
    reason: str = ""
    """Why it is refused."""
    retry: bool = False
    """The refusal may pass by itself: ask the leader again."""
    leader: NodeId = NOBODY
    """The leader that the node knows; 0: none."""


class Status(Struct, frozen=True, tag_field="type", tag="STATUS_IS"):
    """Answer to STATUS. Another implementation of a node may leave out fields with a default."""

    node: NodeId
    role: str
    """follower | candidate | leader."""
    term: Term
    leader: NodeId
    last_seq: SeqNo
    """Written on this node, delivered or not."""
    commit_seq: SeqNo
    delivered_seq: SeqNo
    rebuilding: bool = False
    uptime_s: float = 0.0
    pid: int = 0
    peers: tuple[PeerStatus, ...] = ()
    counters: dict[str, int] = {}
    members: MembersStatus | None = None


class Shown(Struct, frozen=True, gc=False):
    """Delivered messages first..last, contiguous, as the lines of the message log."""

    first: SeqNo
    last: SeqNo
    lines: bytes
    """Whole lines, newlines included."""


NodeLine: TypeAlias = Welcome | Ack | Reject | LeaderLine | Problem | Status | ChangeIs

_decode_client_line: Callable[[bytes], ClientLine] = msgspec.json.Decoder(ClientLine).decode
_decode_node_line: Callable[[bytes], NodeLine] = msgspec.json.Decoder(NodeLine).decode
_decode_message_line: Callable[[bytes], Line] = msgspec.json.Decoder(Line).decode

MESSAGE_START: Final = b'{"seq_no":'
"""The beginning of a line of the message log; no other line of a node begins so."""


def encode_line(line: ClientLine | NodeLine) -> bytes:
    """Return one encoded line with its newline."""
    return _encode(line) + b"\n"


def _malformed(error: Exception) -> FrameError:
    return FrameError(f"not a line of the client protocol: {brief(error)}")


def decode_client_line(line: bytes) -> ClientLine:
    """Decode a line from a client.

    Raises:
        FrameError: not JSON, an unknown type or key, or a field of the wrong type.
    """
    try:
        return _decode_client_line(line)
    except MALFORMED as error:
        raise _malformed(error) from None


def decode_node_line(line: bytes) -> NodeLine | Line:
    """Decode a line from a node: a delivered message or an answer.

    Raises:
        FrameError: as decode_client_line.
    """
    try:
        return _decode_message_line(line) if line.startswith(MESSAGE_START) else _decode_node_line(line)
    except MALFORMED as error:
        raise _malformed(error) from None


class LineDecoder:
    """Splits the bytes of one connection into lines.

    Args:
        max_line: limit in bytes, without the newline.
    """

    def __init__(self, max_line: int) -> None:
        self.max_line = max_line
        self._buffer = bytearray()

    @property
    def unfinished(self) -> int:
        """The number of bytes of the incomplete line."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that are complete now, without newlines and without blank lines.

        Raises:
            FrameError: a line is longer than allowed.
        """
        end = data.find(b"\n")
        if end == len(data) - 1 and 0 < end <= self.max_line and not self._buffer and not data.isspace():
            return [data[:end]]  # One line: what most reads of a node are.
        if end < 0:
            self._buffer += data
            if len(self._buffer) > self.max_line:
                raise FrameError(f"a line of over {self.max_line} bytes, the longest allowed")
            return []
        *lines, rest = data.split(b"\n")
        if self._buffer:
            lines[0] = bytes(self._buffer) + lines[0]
        self._buffer = bytearray(rest)
        longest = max(max(map(len, lines)), len(rest))
        if longest > self.max_line:
            raise FrameError(f"a line of {longest} bytes, allowed {self.max_line}")
        return [line for line in lines if line.strip()]
