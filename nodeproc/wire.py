"""Bytes <-> messages: the records of the log, the frames between nodes, the lines of clients. Pure.

Entry (a record of the log, on every wire and every disk):

    u32 header length | u32 body length | u32 CRC-32 of header and body | header, JSON | body, JSONL lines

Frame (between nodes):

    u32 header length | u32 body length | u32 CRC-32 of the header      | header, JSON | body, entries

so that bodies, which carry their own CRC, are summed once by each process. All integers are little-endian. A connection
between nodes opens with PREAMBLE, whose first byte no line of a client has; a client's connection is JSON lines.
An incomplete frame or line is not a malformed one: the decoders wait for the rest and raise FrameError only for
bytes that no continuation can mend.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Any, Final, TypeAlias, TypeVar, get_args
from zlib import crc32

import msgspec
from msgspec import UNSET, Struct, UnsetType

from nodeproc.core.effects import LocalOp, Met, Promise, Readmitted, Truncate
from nodeproc.core.messages import (
    NOTHING,
    Append,
    Batch,
    Copy,
    Line,
    Mark,
    NodeId,
    PeerMessage,
    Position,
    Promised,
    Record,
    SeqNo,
    Submit,
    Term,
)
from nodeproc.errors import FrameError

PREAMBLE = b"\x93LC1"
"""First bytes of a connection between nodes; 0x93 starts neither JSON nor UTF-8 text."""

PREFIX = struct.Struct("<III")
MAX_HEADER = 8 << 20
"""Bytes. A Submit's payloads travel in the header: above the largest client line."""
MAX_BODY = 32 << 20
"""Bytes. Above the largest batch and the largest chunk of catch-up."""

_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines

MALFORMED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what they should be: the last two for bad UTF-8 and for deep nesting."""

REASON_MAX = 300
"""Characters of a complaint about somebody's bytes, which may quote them: no stranger fills our log, or our answers."""


def brief(reason: object) -> str:
    """What is told of a complaint."""
    text = str(reason)
    return text if len(text) <= REASON_MAX else f"{text[:REASON_MAX]} …"


# ---- entries -------------------------------------------------------------------------------------


class Committed(Struct, frozen=True, gc=False, tag_field="kind", tag="committed"):
    """A note of the storage in its own WAL: what was delivered and what was durable by then. Rule: K2, K3.

    The WAL was durable up to byte `durable` of file number `segment`; 0 in both: the note does not say.
    """

    seq_no: SeqNo
    segment: int = 0
    durable: int = 0


WAL_VERSION = 2
"""Of the WAL's format. In version 1 notes did not say what was durable."""


class Opening(Struct, frozen=True, gc=False, tag_field="kind", tag="opening"):
    """The first entry of each WAL file: whose it is and which file it continues. Rule: K2, M4."""

    number: int
    """1, 2, 3, …; the file's name."""
    previous_bytes: int
    """Of the file before it so many bytes count; 0 for the first."""
    node: NodeId
    identity: str
    rebuilding: bool
    """When the file was opened."""
    members: tuple[NodeId, ...] = ()
    """The cluster that this data directory belongs to; empty: written before directories knew that."""
    version: int = 1


Buffer: TypeAlias = bytes | bytearray | memoryview
EntryHeader: TypeAlias = Mark | Batch | Promise | Truncate | Met | Readmitted | Committed | Opening
_decode_entry_header: Callable[[bytes | memoryview], EntryHeader] = msgspec.json.Decoder(EntryHeader).decode


class Entry(Struct, frozen=True, gc=False):
    """One entry as it was read: header and place in the buffer."""

    header: EntryHeader
    start: int
    body_at: int
    end: int


class Broken(FrameError):
    """Bytes that are no entry: bad CRC, impossible length or unknown header."""


class NotUnderstood(Broken):
    """The CRC is right and the header is unknown: these bytes were written so, by another version."""


def encode_entry(header: EntryHeader, body: bytes = b"") -> bytes:
    """The bytes of one entry. Rule: K1."""
    head = _encode(header)
    return b"".join((PREFIX.pack(len(head), len(body), crc32(body, crc32(head))), head, body))


def encode_op(op: LocalOp) -> bytes:
    """A promise, truncation or identity as a WAL entry; it never leaves the node."""
    return encode_entry(op)


def decode_entry(buffer: bytes | bytearray | memoryview, at: int) -> Entry | None:
    """The entry that starts at `at`, None where the buffer ends before it does.

    Raises:
        Broken: no continuation makes these bytes an entry. Twelve zero bytes are broken too.
    """
    body_at = at + PREFIX.size
    if len(buffer) < body_at:
        return None
    head_len, body_len, crc = PREFIX.unpack_from(buffer, at)
    if not 0 < head_len <= MAX_HEADER or body_len > MAX_BODY:
        raise Broken(f"entry lengths {head_len} + {body_len} at {at}, allowed 1..{MAX_HEADER} + 0..{MAX_BODY}")
    head_at, body_at = body_at, body_at + head_len
    end = body_at + body_len
    if len(buffer) < end:
        return None
    view = memoryview(buffer)
    if crc32(view[head_at:end]) != crc:
        raise Broken(f"entry CRC mismatch at {at}")
    try:
        header = _decode_entry_header(view[head_at:body_at])
    except MALFORMED as error:
        raise NotUnderstood(f"entry header at {at}: {brief(error)}") from None
    return Entry(header, at, body_at, end)


def is_intact(head: Buffer, body: Buffer) -> bool:
    """Whether an entry's prefix and header, and its body that was kept elsewhere, are what was made. Rule: K1."""
    if len(head) <= PREFIX.size:
        return False
    head_len, body_len, crc = PREFIX.unpack_from(head)
    lengths = (PREFIX.size + head_len, body_len) == (len(head), len(body))
    return lengths and crc32(body, crc32(memoryview(head)[PREFIX.size :])) == crc


def decode_header(head: Buffer) -> EntryHeader:
    """The header of an intact entry.

    Args:
        head: its prefix and header.

    Raises:
        Broken: a kind of entry that is not known.
    """
    try:
        return _decode_entry_header(memoryview(head)[PREFIX.size :])
    except MALFORMED as error:
        raise Broken(f"entry header: {brief(error)}") from None


def joined(head: Buffer, body: Buffer) -> Record | None:
    """The record of a prefix and header and a body kept apart from them; None where they are not one as it was made."""
    header = decode_header(head) if is_intact(head, body) else None
    return Record(header, b"".join((head, body)), len(head)) if isinstance(header, Mark | Batch) else None


def decode_records(body: bytes) -> tuple[Record, ...]:
    """All of a frame's body as records of the log.

    Raises:
        FrameError: not a whole number of intact marks and batches.
    """
    records = []
    at, end = 0, len(body)
    while at < end:
        entry = decode_entry(body, at)
        if entry is None:
            raise Broken(f"entry at {at} is longer than the frame's body of {end} bytes")
        if not isinstance(entry.header, Mark | Batch):
            raise Broken(f"entry at {at} is a {type(entry.header).__name__}, not a mark or a batch")
        raw = body if entry.end - at == end else body[at : entry.end]
        records.append(Record(entry.header, raw, entry.body_at - at))
        at = entry.end
    return tuple(records)


class Sealer:
    """Makes the bytes of records, once, in the leader that orders them.

    Args:
        clock: wall clock, seconds since the epoch; stamps messages.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def mark(self, header: Mark) -> Record:
        raw = encode_entry(header)
        return Record(header, raw, len(raw))

    def batch(self, header: Batch, submits: Sequence[Submit]) -> Record:
        """Number the messages of the submits header.first, first + 1, … in the order given."""
        term, stamp = header.term, round(self._clock(), 3)
        lines: list[Line] = []
        seq_no = header.first
        for submit in submits:
            sender, session = submit.client_id, submit.session
            for n, payload in enumerate(submit.payloads, submit.first):
                lines.append(Line(seq_no, term, sender, f"{session}-{n}", stamp, payload))
                seq_no += 1
        assert seq_no == header.last + 1, (header, seq_no)
        head, body = _encode(header), _encode_lines(lines)
        raw = b"".join((PREFIX.pack(len(head), len(body), crc32(body, crc32(head))), head, body))
        return Record(header, raw, PREFIX.size + len(head))


# ---- frames between nodes -----------------------------------------------------------------------


class PeerHello(Struct, frozen=True, tag_field="type", tag="PEER_HELLO"):
    """The dialling node says who it is. Rule: M3, M4."""

    version: int
    """The newest that it speaks."""
    cluster: str
    node: NodeId
    identity: str
    rebuilding: bool
    nonce: str
    """Fresh random, 32 hex digits; makes every proof unrepeatable."""
    members: tuple[NodeId, ...] = ()
    """All ids, ascending, as its configuration has them."""
    least: int = 0
    """The oldest version that it speaks; 0: `version` only."""


class PeerChallenge(Struct, frozen=True, tag_field="type", tag="PEER_CHALLENGE"):
    """The accepting node says who it is and proves that it knows the secret. Rule: M3."""

    node: NodeId
    identity: str
    rebuilding: bool
    nonce: str
    proof: str
    version: int = 0
    """The newest that it speaks."""


class PeerProof(Struct, frozen=True, tag_field="type", tag="PEER_PROOF"):
    """The dialling node proves that it knows the secret. Rule: M3, M6."""

    proof: str
    promised: Promised = NOTHING
    """By the accepting node, as the dialling one knows; neither says so to one that has proven nothing."""


class PeerWelcome(Struct, frozen=True, tag_field="type", tag="PEER_WELCOME"):
    """The accepting node takes the link: frames may follow. Rule: M3, M4, M6."""

    promised: Promised = NOTHING
    """By the dialling node, as the accepting one knows."""


class PeerRefusal(Struct, frozen=True, tag_field="type", tag="PEER_REFUSAL"):
    """Why a link is closed at once."""

    reason: str


class _AppendHeader(Struct, frozen=True, tag_field="type", tag="APPEND"):
    """An Append on the wire: its records are the frame's body."""

    term: Term
    previous: Position
    commit_seq: SeqNo


class _CopyHeader(Struct, frozen=True, gc=False, tag_field="type", tag="COPY"):
    """A Copy on the wire: its records are the frame's body."""

    number: int


Handshake: TypeAlias = PeerHello | PeerChallenge | PeerProof | PeerWelcome | PeerRefusal
FrameMessage: TypeAlias = PeerMessage | Handshake

_HEADERS: Any = _AppendHeader | _CopyHeader
for _message in get_args(FrameMessage):
    if _message not in (Append, Copy):
        _HEADERS |= _message
_decode_frame_header: Callable[[bytes | memoryview], _AppendHeader | _CopyHeader | FrameMessage] = msgspec.json.Decoder(
    _HEADERS
).decode


def encode_frame(message: FrameMessage) -> list[bytes]:
    """The buffers of one frame, ready for writelines; the records' bytes are not copied."""
    if isinstance(message, Append):
        head = _encode(_AppendHeader(message.term, message.previous, message.commit_seq))
        return _with_records(head, message.records)
    if isinstance(message, Copy):
        return _with_records(_encode(_CopyHeader(message.number)), message.records)
    head = _encode(message)
    return [PREFIX.pack(len(head), 0, crc32(head)) + head]


def _with_records(head: bytes, records: Sequence[Record]) -> list[bytes]:
    bodies = [record.raw for record in records]
    return [PREFIX.pack(len(head), sum(map(len, bodies)), crc32(head)), head, *bodies]


def _decode_frame(head: bytes | memoryview, body: bytes) -> FrameMessage:
    try:
        message = _decode_frame_header(head)
    except MALFORMED as error:
        raise FrameError(f"frame header: {brief(error)}") from None
    if isinstance(message, _AppendHeader):
        if not body:
            raise FrameError("APPEND without records")
        return Append(message.term, message.previous, message.commit_seq, decode_records(body))
    if isinstance(message, _CopyHeader):
        return Copy(message.number, decode_records(body))
    if body:
        raise FrameError(f"a body of {len(body)} bytes behind {type(message).__name__}, which has none")
    return message


class FrameDecoder:
    """Cuts a stream of bytes into frames. One per connection.

    Args:
        max_header, max_body: bytes; smaller ones bound what an unproven peer can make a node hold.
    """

    def __init__(self, max_header: int = MAX_HEADER, max_body: int = MAX_BODY) -> None:
        self.max_header, self.max_body = max_header, max_body
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[FrameMessage]:
        """The frames that are complete now, one at a time: the limits may be changed between two.

        Raises:
            FrameError: the stream can't be understood from here on.
        """
        kept = self._buffer
        if kept:
            kept += data
        # Most often nothing was kept, and whole frames come: they are cut from what came, without a copy in between.
        buffer, at = kept or data, 0
        try:
            while len(buffer) >= at + PREFIX.size:
                head_len, body_len, crc = PREFIX.unpack_from(buffer, at)
                if not 0 < head_len <= self.max_header or body_len > self.max_body:
                    raise FrameError(
                        f"frame lengths {head_len} + {body_len}, allowed 1..{self.max_header} + 0..{self.max_body}"
                    )
                body_at = at + PREFIX.size + head_len
                end = body_at + body_len
                if len(buffer) < end:
                    break
                head, body = _cut(buffer, at + PREFIX.size, body_at), _cut(buffer, body_at, end)
                if crc32(head) != crc:
                    raise FrameError("frame header CRC mismatch")
                at = end
                yield _decode_frame(head, body)
        finally:
            if buffer is kept:
                del kept[:at]
            else:
                kept += data[at:]


def _cut(buffer: bytes | bytearray, start: int, end: int) -> bytes:
    """Some of its bytes, copied once."""
    if isinstance(buffer, bytes):
        return buffer[start:end]
    with memoryview(buffer) as view:
        return bytes(view[start:end])


# ---- lines of clients ---------------------------------------------------------------------------


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
