"""The records of WAL segments that were dropped: their headers here, their bodies in the message log.

So a batch is never re-encoded: `archive.headers` holds each record's bytes before its body, `archive.index` one row of
fixed size a record, and the body stands in the message log at the offset that the row names. Nothing is loaded at
start: look-ups bisect the rows on the disk. Only checkpoints extend both files; a row counts once a checkpoint says so.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple
from zlib import crc32

from msgspec import Struct

from nodeproc import wire
from nodeproc.core.messages import START, Batch, Mark, Position, Record, SeqNo
from nodeproc.files import File
from nodeproc.wal import FOLDER, Place, Segment, damaged

HEADERS = f"{FOLDER}/archive.headers"
INDEX = f"{FOLDER}/archive.index"

ROW = struct.Struct("<QQQQQII")
"""term, seq_no, first seq_no, offset in archive.headers, offset in the message log, header bytes, body bytes."""
CHECK = struct.Struct("<I")
ROW_BYTES = ROW.size + CHECK.size
ROWS_AT_ONCE = 2048


class ArchiveEnd(Struct, frozen=True):
    """How far the archive reaches, as a checkpoint keeps it."""

    records: int = 0
    header_bytes: int = 0
    position: Position = START
    lines_bytes: int = 0
    """Of the message log, up to the end of the last record."""


class Row(NamedTuple):
    """One record of the archive."""

    position: Position
    first: SeqNo
    header_at: int
    lines_at: int
    header_bytes: int
    body_bytes: int


def encode_row(row: Row) -> bytes:
    (term, seq_no), first, header_at, lines_at, header_bytes, body_bytes = row
    data = ROW.pack(term, seq_no, first, header_at, lines_at, header_bytes, body_bytes)
    return data + CHECK.pack(crc32(data))


@dataclass(eq=False, slots=True)
class Archive:
    """Look-ups and growth. Reading and extending may run in different threads: what is read lies before `end`.

    where: makes a file's name one for messages.
    """

    headers: File
    index: File
    lines: File
    lines_name: str
    where: Callable[[str], str]
    end: ArchiveEnd

    def check_sizes(self) -> None:
        """Both files hold what the checkpoint says.

        Raises:
            CorruptionError: one is too short.
        """
        for name, file, allowed in self._ends():
            if file.size() < allowed:
                raise damaged(
                    self.where(name), file.size(), f"the file ends here, the checkpoint knows {allowed} bytes"
                )

    def cut_back(self) -> None:
        """Drop what no checkpoint knows of, and make the rest durable."""
        for _, file, allowed in self._ends():
            if file.size() > allowed:
                file.truncate(allowed)
            file.sync()

    def _ends(self) -> tuple[tuple[str, File, int], ...]:
        return (
            (HEADERS, self.headers, self.end.header_bytes),
            (INDEX, self.index, self.end.records * ROW_BYTES),
        )

    def extend(self, places: Sequence[Place], segments: dict[int, Segment]) -> ArchiveEnd:
        """Take in the next records, durably; the caller makes the result the new `end` once a checkpoint has it."""
        if not places:
            return self.end
        at = self.end.header_bytes
        for number, group in groupby(places, key=lambda place: place.segment):
            segment = segments[number]
            data = segment.file.pread(segment.size, 0)
            heads, rows = [], []
            for place in group:
                heads.append(data[place.at : place.at + place.body_at])
                body_bytes = place.size - place.body_at
                row = Row(place.position, place.first, at, place.lines_at, place.body_at, body_bytes)
                rows.append(encode_row(row))
                at += place.body_at
            self.headers.append([b"".join(heads)])
            self.index.append([b"".join(rows)])
        self.headers.sync()
        self.index.sync()
        last = places[-1]
        lines_end = last.lines_at + last.size - last.body_at
        return ArchiveEnd(self.end.records + len(places), at, last.position, lines_end)

    def read(self, after: Position, max_bytes: int) -> list[Record]:
        """Consecutive records behind a position, up to max_bytes but at least one if there is any.

        Raises:
            CorruptionError: they are not what was written.
        """
        start = self._bisect(lambda row: row.position > after)
        rows: list[Row] = []
        size = 0
        for row in self._rows(start, min(ROWS_AT_ONCE, self.end.records - start)):
            size += row.header_bytes + row.body_bytes
            if rows and size > max_bytes:
                break
            rows.append(row)
        return self._records(rows) if rows else []

    def holding(self, seq_no: SeqNo) -> Row | None:
        """The batch with this message; None where it is newer than the archive."""
        number = self._bisect(lambda row: row.position.seq_no >= seq_no)
        return self._row(number) if number < self.end.records else None

    def _bisect(self, reached: Callable[[Row], bool]) -> int:
        """Number of the first row that satisfies a condition which, once true, stays true."""
        low, high = 0, self.end.records
        while low < high:
            middle = (low + high) // 2
            if reached(self._row(middle)):
                high = middle
            else:
                low = middle + 1
        return low

    def _rows(self, start: int, count: int) -> Iterator[Row]:
        """Rows from one read, decoded as they are asked for."""
        data = self.index.pread(count * ROW_BYTES, start * ROW_BYTES)
        for at in range(0, count * ROW_BYTES, ROW_BYTES):
            row = data[at : at + ROW.size]
            if len(data) < at + ROW_BYTES or crc32(row) != CHECK.unpack_from(data, at + ROW.size)[0]:
                raise damaged(self.where(INDEX), start * ROW_BYTES + at, "row CRC mismatch")
            term, seq_no, *rest = ROW.unpack(row)
            yield Row(Position(term, seq_no), *rest)

    def _row(self, number: int) -> Row:
        return next(self._rows(number, 1))

    def _records(self, rows: Sequence[Row]) -> list[Record]:
        """Put headers and bodies together again: both are contiguous."""
        heads_at, lines_at = rows[0].header_at, rows[0].lines_at
        heads = self.headers.pread(rows[-1].header_at + rows[-1].header_bytes - heads_at, heads_at)
        lines = self.lines.pread(rows[-1].lines_at + rows[-1].body_bytes - lines_at, lines_at)
        records = []
        for row in rows:
            head_at, body_at = row.header_at - heads_at, row.lines_at - lines_at
            raw = heads[head_at : head_at + row.header_bytes] + lines[body_at : body_at + row.body_bytes]
            try:
                entry = wire.decode_entry(raw, 0)
            except wire.Broken:
                entry = None
            if entry is None or not isinstance(entry.header, Mark | Batch) or entry.header.position != row.position:
                place = f"record {tuple(row.position)} of {self.where(HEADERS)}, offset {row.header_at}"
                raise damaged(self.where(self.lines_name), row.lines_at, f"CRC mismatch with {place}")
            records.append(Record(entry.header, raw, entry.body_at))
        return records
