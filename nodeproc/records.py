"""Entries: the format of the WAL and of the records in frames. Pure.

Entry (a record of the log has the same bytes on every link and every disk):

    u32 header length | u32 body length | u32 CRC-32 of header and body | header, JSON | body, JSONL lines

All integers are little-endian. Broken is raised for bytes that cannot become an entry; an incomplete entry is not an
error.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias
from zlib import crc32

import msgspec

from nodeproc.core.messages import Batch, Line, Mark, Record, Submit
from nodeproc.entries import Broken, Entry, EntryHeader, NotUnderstood
from nodeproc.errors import MALFORMED, brief

PREFIX: Final = struct.Struct("<III")
MAX_HEADER: Final = 8 << 20
"""Bytes; above the largest line of a client, because the header of a Submit holds its payloads."""
MAX_BODY: Final = 32 << 20
"""Bytes; above the largest batch and the largest chunk of catch-up."""

_encode: Final = msgspec.json.Encoder().encode
_encode_lines: Final = msgspec.json.Encoder().encode_lines


Buffer: TypeAlias = bytes | bytearray | memoryview
_decode_entry_header: Final[Callable[[Buffer], EntryHeader]] = msgspec.json.Decoder(EntryHeader).decode


def encode_entry(header: EntryHeader, body: bytes = b"") -> bytes:
    """Return the bytes of an entry. Rule: K1."""
    head = _encode(header)
    return b"".join((PREFIX.pack(len(head), len(body), crc32(body, crc32(head))), head, body))


def decode_entry(buffer: Buffer, at: int) -> Entry | None:
    """Decode the entry at offset `at`; None if the buffer ends before the entry does.

    Raises:
        Broken: these bytes cannot become an entry. Twelve zero bytes are an example.
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
    """Return whether a prefix with header, and a body from another place, are an entry with the right CRC. Rule: K1."""
    if len(head) <= PREFIX.size:
        return False
    head_len, body_len, crc = PREFIX.unpack_from(head)
    if (PREFIX.size + head_len, body_len) != (len(head), len(body)):
        return False
    return bool(crc32(body, crc32(head[PREFIX.size :])) == crc)


def decode_header(head: Buffer) -> EntryHeader:
    """Decode the header of an intact entry.

    Args:
        head: prefix and header.

    Raises:
        Broken: an unknown kind of entry.
    """
    try:
        return _decode_entry_header(head[PREFIX.size :])
    except MALFORMED as error:
        raise Broken(f"entry header: {brief(error)}") from None


def joined(head: Buffer, body: Buffer) -> Record | None:
    """Return the record from a prefix with header, and a body from another place; None if the CRC is wrong."""
    header = decode_header(head) if is_intact(head, body) else None
    return Record(header, b"".join((head, body)), len(head)) if isinstance(header, Mark | Batch) else None


def decode_records(body: bytes) -> tuple[Record, ...]:
    """Decode a frame's body as records of the log.

    Raises:
        FrameError: the body is not a sequence of intact marks and batches.
    """
    records = []
    at, end = 0, len(body)
    while at < end:
        entry = decode_entry(body, at)
        if entry is None:
            raise Broken(f"entry at {at} is longer than the frame's body of {end} bytes")
        header = entry.header
        if not isinstance(header, (Batch, Mark)):
            raise Broken(f"entry at {at} is a {type(header).__name__}, not a mark or a batch")
        raw = body if entry.end - at == end else body[at : entry.end]
        records.append(Record(header, raw, entry.body_at - at))
        at = entry.end
    return tuple(records)


class Sealer:
    """Makes the bytes of records, once, on the leader that orders them.

    Args:
        clock: seconds since the epoch, for the timestamps.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def mark(self, header: Mark) -> Record:
        raw = encode_entry(header)
        return Record(header, raw, len(raw))

    def batch(self, header: Batch, submits: Sequence[Submit]) -> Record:
        """Number the messages of the submits in their order: header.first, header.first + 1, …"""
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
