"""Lines between nodes and clients: JSON lines in both directions. Pure.

An incomplete line is not a malformed one: LineDecoder waits for the rest, and FrameError is only for bytes that no
continuation can mend.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import sha256
from typing import Final, TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from nodeproc.core.messages import Line, NodeId, SeqNo, Term
from nodeproc.errors import MALFORMED, FrameError, brief

_encode = msgspec.json.Encoder().encode

SESSION_TOKEN: Final = re.compile(r"[A-Za-z0-9_.:-]{16,64}")


def session_of(token: str) -> str:
    """The public id of the session whose secret is this token. Rule: S1.

    Everybody sees the id, in every msg_id; only the client and the node to which it is connected see the token. 96 bits
    are enough: also somebody who would be content with any of 100,000 sessions has to try 2^79 tokens.

    Returns:
        The first 24 hexadecimal digits, in lower case, of the SHA-256 of the token's bytes.
    """
    return sha256(token.encode()).hexdigest()[:24]


class Hello(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="HELLO"):
    """First line of a client. Rule: S1, S3."""

    client_id: int
    session: str = ""
    """The session's public id, session_of(session_token); left out, the node works it out."""
    born: SeqNo | None = None
    """Delivered seq_no when the session was born, as the first WELCOME told; None: born now."""
    client_token: str | UnsetType = UNSET
    """What the node asks of everybody in the first line of a connection, where it asks for one."""
    session_token: str | UnsetType = UNSET
    """The session's secret, which proves that the session is this client's. Left out, the node makes a session up."""


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
    """What does the node know? Needs no HELLO."""

    client_token: str | UnsetType = UNSET


ClientLine: TypeAlias = Hello | Chat | Subscribe | StatusRequest


class Welcome(Struct, frozen=True, tag_field="type", tag="WELCOME"):
    """Answer to HELLO."""

    node: NodeId
    session: str
    """Its public id."""
    born: SeqNo
    """To be repeated in every later HELLO of this session."""
    acknowledged: int
    """Last n of the session that this node has delivered; 0 for none."""
    last_seq: SeqNo
    """Delivered here."""
    leader: NodeId
    """0: none known."""
    term: Term
    acknowledged_seq: SeqNo = 0
    """The seq_no of message `acknowledged`; 0: not told, an ACK tells it when the message is sent again."""


class Ack(Struct, frozen=True, tag_field="type", tag="ACK"):
    """Messages 1..n of the session are delivered; n stands at seq_no. Rule: S4."""

    session: str
    n: int
    seq_no: SeqNo


class Reject(Struct, frozen=True, tag_field="type", tag="REJECT"):
    """Messages of a CHAT were not ordered, or the client is not taken (first 0). Rule: S2, S3, S7, F3.

    retry: true, send again, from `expected` where it is not 0 and else after the next LEADER line;
    false: certainly never ordered.
    """

    session: str
    first: int
    reason: str
    retry: bool
    expected: int = 0


TOKEN_REFUSED = "client token"
"""Reason of a REJECT of the client itself: its first line did not show the node's token."""


class LeaderLine(Struct, frozen=True, tag_field="type", tag="LEADER"):
    """The way to the leader is a new one: what is not acknowledged must be sent again. Rule: S5."""

    leader: NodeId
    term: Term


class Problem(Struct, frozen=True, tag_field="type", tag="ERROR"):
    """A line could not be taken; the connection is closed behind it. Rule: S7."""

    reason: str


class PeerStatus(Struct, frozen=True):
    """How far one peer is, as the answering node knows."""

    node: NodeId
    connected: bool
    synced: bool
    """Is sent new records at once (the leader knows)."""
    durable_seq: SeqNo
    """Last durable seq_no it told this leader; 0 where the answering node does not lead."""


class Status(Struct, frozen=True, tag_field="type", tag="STATUS_IS"):
    """Answer to STATUS. A node of another make may leave out what has a default."""

    node: NodeId
    role: str
    """follower | candidate | leader."""
    term: Term
    leader: NodeId
    last_seq: SeqNo
    """Written here, delivered or not."""
    commit_seq: SeqNo
    delivered_seq: SeqNo
    rebuilding: bool = False
    uptime_s: float = 0.0
    pid: int = 0
    peers: tuple[PeerStatus, ...] = ()
    counters: dict[str, int] = {}


NodeLine: TypeAlias = Welcome | Ack | Reject | LeaderLine | Problem | Status

_decode_client_line: Callable[[bytes], ClientLine] = msgspec.json.Decoder(ClientLine).decode
_decode_node_line: Callable[[bytes], NodeLine] = msgspec.json.Decoder(NodeLine).decode
_decode_message_line: Callable[[bytes], Line] = msgspec.json.Decoder(Line).decode
_LineT = TypeVar("_LineT")

MESSAGE_START = b'{"seq_no":'
"""How a line of the message log starts; no other line of a node does."""


def encode_line(line: ClientLine | NodeLine) -> bytes:
    """One line with its newline."""
    return _encode(line) + b"\n"


def _decode_line(decode: Callable[[bytes], _LineT], line: bytes) -> _LineT:
    try:
        return decode(line)
    except MALFORMED as error:
        raise FrameError(f"not a line of the client protocol: {brief(error)}") from None


def decode_client_line(line: bytes) -> ClientLine:
    """What a client says.

    Raises:
        FrameError: not JSON, an unknown type or key, or a field out of its type.
    """
    return _decode_line(_decode_client_line, line)


def decode_node_line(line: bytes) -> NodeLine | Line:
    """What a node says to a client: a delivered message or an answer.

    Raises:
        FrameError: as decode_client_line.
    """
    if line.startswith(MESSAGE_START):
        return _decode_line(_decode_message_line, line)
    return _decode_line(_decode_node_line, line)


class LineDecoder:
    """Cuts a stream of bytes into lines. One per connection.

    Args:
        max_line: bytes without the newline.
    """

    def __init__(self, max_line: int) -> None:
        self.max_line = max_line
        self._buffer = bytearray()

    @property
    def unfinished(self) -> int:
        """Bytes of a line whose end has not come."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete now, without newlines; blank ones are left out.

        Raises:
            FrameError: a line is longer than allowed.
        """
        if b"\n" not in data:
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
