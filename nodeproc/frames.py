"""Frames between nodes. Pure.

Frame:

    u32 header length | u32 body length | u32 CRC-32 of the header      | header, JSON | body, entries

The prefix and the limits are those of an entry (nodeproc.records). Bodies carry their own CRC, so each process sums
them once. A connection between nodes opens with PREAMBLE, whose first byte no line of a client has. An incomplete
frame is not a malformed one: FrameDecoder waits for the rest and raises FrameError only for bytes that no continuation
can mend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias, get_args
from zlib import crc32

import msgspec
from msgspec import Struct

from nodeproc.core.messages import (
    NOTHING,
    Append,
    Copy,
    NodeId,
    PeerMessage,
    Position,
    Promised,
    Record,
    SeqNo,
    Term,
)
from nodeproc.errors import MALFORMED, FrameError, brief
from nodeproc.records import MAX_BODY, MAX_HEADER, PREFIX, decode_records

PREAMBLE = b"\x93LC1"
"""First bytes of a connection between nodes; 0x93 starts neither JSON nor UTF-8 text."""

_encode = msgspec.json.Encoder().encode


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
