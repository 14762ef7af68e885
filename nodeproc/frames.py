"""Frames between nodes. Pure.

Frame:

    u32 header length | u32 body length | u32 CRC-32 of the header      | header, JSON | body, entries

The prefix and the limits are those of an entry (nodeproc.records). Bodies carry their own CRC, so each process checks
them once. A connection between nodes begins with PREAMBLE, whose first byte begins no line of a client. FrameDecoder
waits for the rest of an incomplete frame; it raises FrameError only for bytes that cannot become a valid frame.
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
    """The dialling node introduces itself. Rule: M3, M4."""

    version: int
    """The newest version that this node supports."""
    cluster: str
    node: NodeId
    identity: str
    rebuilding: bool
    nonce: str
    """Fresh random value, 32 hexadecimal digits; it prevents the replay of a proof."""
    members: tuple[NodeId, ...] = ()
    """The ids of all members in the node's configuration, ascending."""
    least: int = 0
    """The oldest version that this node supports; 0: only `version`."""
    change: tuple[Term, int] = (0, 0)
    """The version of the identity: the term in which it was readmitted, the number within the term. Rule: M4."""
    address: tuple[str, int] = ("", 0)
    """Host and port on which the dialling node listens, for a node that does not know them; ("", 0): not said."""


class PeerChallenge(Struct, frozen=True, tag_field="type", tag="PEER_CHALLENGE"):
    """The accepting node introduces itself and proves that it knows the secret. Rule: M3."""

    node: NodeId
    identity: str
    rebuilding: bool
    nonce: str
    proof: str
    version: int = 0
    """The newest version that this node supports."""
    change: tuple[Term, int] = (0, 0)
    """The version of the identity, as in PEER_HELLO."""


class PeerProof(Struct, frozen=True, tag_field="type", tag="PEER_PROOF"):
    """The dialling node proves that it knows the secret. Rule: M3, M6."""

    proof: str
    promised: Promised = NOTHING
    """The promises of the accepting node that the dialling node knows. They are sent only to a proven node."""


class PeerWelcome(Struct, frozen=True, tag_field="type", tag="PEER_WELCOME"):
    """The accepting node accepts the link; other frames may follow. Rule: M3, M4, M6."""

    promised: Promised = NOTHING
    """The promises of the dialling node that the accepting node knows."""


class PeerRefusal(Struct, frozen=True, tag_field="type", tag="PEER_REFUSAL"):
    """The accepting node refuses the link and closes it."""

    reason: str


class _AppendHeader(Struct, frozen=True, tag_field="type", tag="APPEND"):
    """The header of an Append frame; the records are the frame's body."""

    term: Term
    previous: Position
    commit_seq: SeqNo


class _CopyHeader(Struct, frozen=True, gc=False, tag_field="type", tag="COPY"):
    """The header of a Copy frame; the records are the frame's body."""

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
    """Return the buffers of one frame, for writelines; the records' bytes are not copied."""
    if type(message) is Append:
        head = _encode(_AppendHeader(message.term, message.previous, message.commit_seq))
        return _with_records(head, message.records)
    if type(message) is Copy:
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
        raise FrameError(f"a body of {len(body)} bytes after {type(message).__name__}, which has none")
    return message


class FrameDecoder:
    """Splits the bytes of one connection into frames.

    Args:
        max_header, max_body: limits in bytes; low limits bound the memory that an unproven peer can use.
    """

    def __init__(self, max_header: int = MAX_HEADER, max_body: int = MAX_BODY) -> None:
        self.max_header, self.max_body = max_header, max_body
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[FrameMessage]:
        """Yield each complete frame; the caller may change the limits in between.

        Raises:
            FrameError: the rest of the stream cannot be decoded.
        """
        kept = self._buffer
        if kept:
            kept += data
        # Mostly nothing is kept and whole frames arrive: then frames are cut from `data` without another copy.
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
                if buffer is data:
                    head, body = data[at + PREFIX.size : body_at], data[body_at:end]
                else:
                    head, body = _cut(kept, at + PREFIX.size, body_at), _cut(kept, body_at, end)
                if crc32(head) != crc:
                    raise FrameError("frame header CRC mismatch")
                at = end
                yield _decode_frame(head, body)
        finally:
            if buffer is kept:
                del kept[:at]
            else:
                kept += data[at:]


def _cut(buffer: bytearray, start: int, end: int) -> bytes:
    """Return a slice of the buffer as bytes, copied once."""
    with memoryview(buffer) as view:
        return bytes(view[start:end])
