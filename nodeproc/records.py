"""What is on disk, and what frames carry in their bodies: entries, which hold the records of the log. Pure.

Entry (a record of the log, on every wire and every disk):

    u32 header length | u32 body length | u32 CRC-32 of header and body | header, JSON | body, JSONL lines

All integers are little-endian. An incomplete entry is not a malformed one: the decoders wait for the rest and raise
Broken only for bytes that no continuation can mend.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TypeAlias
from zlib import crc32

import msgspec
from msgspec import Struct

from nodeproc.core.effects import Met, Promise, Readmitted, Truncate
from nodeproc.core.messages import Batch, Line, Mark, NodeId, Record, SeqNo, Submit
from nodeproc.errors import MALFORMED, FrameError, brief

PREFIX = struct.Struct("<III")
MAX_HEADER = 8 << 20
"""Bytes. A Submit's payloads travel in the header: above the largest client line."""
MAX_BODY = 32 << 20
"""Bytes. Above the largest batch and the largest chunk of catch-up."""

_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines


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
