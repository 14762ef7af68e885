"""The archive: records of removed WAL segments, with headers here and bodies in the message log.

So a batch is never encoded again. `archive.headers` holds the bytes of each record before its body. `archive.index`
holds one row of fixed size for each record, which names the offset of the body in the message log. Nothing is loaded at
the start: look-ups bisect the rows on the disk. Only checkpoints extend both files, and a row is valid only if a
checkpoint covers it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final
from zlib import crc32

from nodeproc.core.messages import START, Batch, Mark, Position, Record, SeqNo, new_tuple
from nodeproc.disk.checkpoint import ArchiveEnd
from nodeproc.disk.files import Buffer, File, pread
from nodeproc.disk.wal import FOLDER, Place, Segment, damaged
from nodeproc.errors import ReadFailed, Unreadable
from nodeproc.records import MAX_BODY, MAX_HEADER, PREFIX, decode_header, is_intact, joined

HEADERS: Final = f"{FOLDER}/archive.headers"
INDEX: Final = f"{FOLDER}/archive.index"

ROW: Final = struct.Struct("<QQQQQII")
"""term, seq_no, first seq_no, offset in archive.headers, offset in the message log, header bytes, body bytes."""
CHECK: Final = struct.Struct("<I")
ROW_BYTES: Final = ROW.size + CHECK.size
ROWS_AT_ONCE: Final = 2048
TAIL_MAX: Final = 1 << 30


class Row:
    """One record of the archive."""

    __slots__ = ("body_bytes", "first", "header_at", "header_bytes", "lines_at", "position")

    def __init__(
        self, position: Position, first: SeqNo, header_at: int, lines_at: int, header_bytes: int, body_bytes: int
    ) -> None:
        self.position, self.first = position, first
        self.header_at, self.lines_at = header_at, lines_at
        self.header_bytes, self.body_bytes = header_bytes, body_bytes

    def encode(self) -> bytes:
        term, seq_no = self.position
        data = ROW.pack(term, seq_no, self.first, self.header_at, self.lines_at, self.header_bytes, self.body_bytes)
        return data + CHECK.pack(crc32(data))


def decode_row(data: bytes, at: int) -> Row | None:
    """Return the row at this offset; None if it is damaged or not there."""
    check_at = at + ROW.size
    if len(data) < at + ROW_BYTES or crc32(data[at:check_at]) != CHECK.unpack_from(data, check_at)[0]:
        return None
    term, seq_no, first, header_at, lines_at, header_bytes, body_bytes = ROW.unpack_from(data, at)
    return Row(new_tuple(Position, (term, seq_no)), first, header_at, lines_at, header_bytes, body_bytes)


@dataclass(eq=False, slots=True)
class Archive:
    """Reads and extends the archive. Both may run in different threads, because reads stay below `end`.

    Every byte that is returned is proven by its CRC. A row or record that is damaged or cannot be read raises
    Unreadable, unless intact records before it can be returned.

    where: returns the name of a file for messages.
    """

    headers: File
    index: File
    lines: File
    lines_name: str
    where: Callable[[str], str]
    end: ArchiveEnd

    def check_sizes(self) -> None:
        """Check that both files are at least as long as the checkpoint says.

        Raises:
            CorruptionError: a file is too short.
        """
        for name, file, allowed in self._ends():
            if file.size() < allowed:
                raise damaged(
                    self.where(name), file.size(), f"the file ends here, the checkpoint knows {allowed} bytes"
                )

    def cut_back(self) -> None:
        """Cut both files to the part that a checkpoint covers, and make it durable."""
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
        """Append the next records, durably. The caller makes the result the new `end` once a checkpoint contains it.

        Raises:
            ReadFailed: a segment cannot be read; nothing was changed.
        """
        if not places:
            return self.end
        at = self.end.header_bytes
        heads, rows = [], []
        for number, group in groupby(places, key=lambda place: place.segment):
            segment = segments[number]
            data = pread(segment.file, segment.size, 0)
            for place in group:
                heads.append(data[place.at : place.at + place.body_at])
                body_bytes = place.size - place.body_at
                row = Row(place.position, place.first, at, place.lines_at, place.body_at, body_bytes)
                rows.append(row.encode())
                at += place.body_at
        self.headers.append([b"".join(heads)])
        self.index.append([b"".join(rows)])
        self.headers.sync()
        self.index.sync()
        last = places[-1]
        lines_end = last.lines_at + last.size - last.body_at
        return ArchiveEnd(self.end.records + len(places), at, last.position, lines_end)

    # ---- reading -----------------------------------------------------------------------------------

    def read(self, after: Position, max_bytes: int) -> list[Record]:
        """Return consecutive records after a position: at most max_bytes, but at least one if there is any. Rule: R1,
        K6.

        Raises:
            Unreadable: the first of them cannot be read or is damaged.
        """
        number = self._first(lambda row: row.position > after)
        records: list[Record] = []
        for row, head, body in self._stretch(number, max_bytes):
            header = decode_header(head)
            if not isinstance(header, Mark | Batch) or header.position != row.position:
                if records:
                    break
                raise self._unreadable(number, HEADERS, row.header_at, f"found {header}, not {tuple(row.position)}")
            records.append(Record(header, b"".join((head, body)), row.header_bytes))
        return records

    def read_lines(self, start: SeqNo, max_bytes: int) -> tuple[list[Buffer], SeqNo, SeqNo]:
        """Return the bodies of consecutive batches, from the one with message `start` on, and their first and last
        seq_no.

        Raises:
            Unreadable: the first of them cannot be read or is damaged.
        """
        stretch = self._stretch(self._first(lambda row: row.position.seq_no >= start), max_bytes)
        return [body for _, _, body in stretch], stretch[0][0].first, stretch[-1][0].position.seq_no

    def behind(self, after: Position) -> Position:
        """Return the position of the next record whose row is intact, or of the last record."""
        number = self._first(lambda row: row.position > after)
        data = self._read_rows(number, self.end.records - number)
        for at in range(0, len(data), ROW_BYTES):
            if (row := decode_row(data, at)) is not None:
                return row.position
        return self.end.position

    def tail(self, size: int) -> bytes:
        """Return the last lines that the archive covers: at least `size` bytes, or all if there are fewer.

        Raises:
            ReadFailed, Unreadable: the lines are damaged or cannot be read.
        """
        number = self.end.records
        while number and size > 0:
            number -= 1
            row = self._row(number)
            if row is None:
                raise self._unreadable(number, INDEX, number * ROW_BYTES, "the row is damaged or can't be read")
            size -= row.body_bytes
        pieces = self._stretch(number, TAIL_MAX)
        if len(pieces) < self.end.records - number:
            raise ReadFailed(f"{self.where(self.lines_name)}: its end can't be read or is damaged")
        return b"".join(body for _, _, body in pieces)

    def _stretch(self, number: int, max_bytes: int) -> list[tuple[Row, Buffer, Buffer]]:
        """Return rows from this number on with the bytes of header and body, each checked by its CRC."""
        rows: list[Row] = []
        size = 0
        count = min(ROWS_AT_ONCE, self.end.records - number)
        data = self._read_rows(number, count)
        for at in range(0, count * ROW_BYTES, ROW_BYTES):
            row = decode_row(data, at)
            size += 0 if row is None else row.header_bytes + row.body_bytes
            if row is None or (rows and size > max_bytes):
                break
            rows.append(row)
        if number < self.end.records and not rows:
            raise self._unreadable(number, INDEX, number * ROW_BYTES, "the row is damaged or can't be read")
        return self._checked(number, rows)

    def _checked(self, number: int, rows: Sequence[Row]) -> list[tuple[Row, Buffer, Buffer]]:
        """Split contiguous headers and bodies into records, up to the first whose CRC does not match."""
        if not rows:
            return []
        first, last = rows[0], rows[-1]
        name, at = HEADERS, first.header_at
        try:
            heads = pread(self.headers, last.header_at + last.header_bytes - at, at)
            name, at = self.lines_name, first.lines_at
            lines = memoryview(pread(self.lines, last.lines_at + last.body_bytes - at, at))
        except ReadFailed as error:
            if len(rows) > 1:
                return self._checked(number, rows[:1])  # Only the first: the bad place may be after it.
            raise self._unreadable(number, name, at, str(error)) from error
        found: list[tuple[Row, Buffer, Buffer]] = []
        for row in rows:
            at = row.header_at - first.header_at
            head, at = heads[at : at + row.header_bytes], row.lines_at - first.lines_at
            body = lines[at : at + row.body_bytes]
            if not is_intact(head, body):
                break
            found.append((row, head, body))
        if not found:
            place = f"record {tuple(first.position)} of {self.where(HEADERS)}, offset {first.header_at}"
            raise self._unreadable(number, self.lines_name, first.lines_at, f"CRC mismatch with {place}")
        return found

    def _unreadable(self, number: int, name: str, at: int, what: str) -> Unreadable:
        """Return the error for the record of a row; all rows before it are intact (see _first)."""
        before = self._row(number - 1) if number else None
        return Unreadable(before.position if before is not None else START, self.where(name), at, what)

    def _first(self, reached: Callable[[Row], bool]) -> int:
        """Return the number of the first row that satisfies a condition which all later rows satisfy too.

        If rows before it are damaged, return the number of the first damaged one, so that the row before the result is
        always intact.
        """
        low, high = 0, self.end.records
        while low < high:
            middle = (low + high) // 2
            at, row = middle, self._row(middle)
            while row is None and (at := at + 1) < high:
                row = self._row(at)
            if row is None or reached(row):
                high = middle
            else:
                low = at + 1
        return low

    def _read_rows(self, start: int, count: int) -> bytes:
        """Return the bytes of these rows; b"" if the read fails."""
        try:
            return self.index.pread(count * ROW_BYTES, start * ROW_BYTES)
        except OSError:
            return b""

    def _row(self, number: int) -> Row | None:
        return decode_row(self._read_rows(number, 1), 0)

    # ---- repair ------------------------------------------------------------------------------------

    def own_copy(self, after: Position) -> Record | None:
        """Return the record after a position, whose row is damaged, from header and lines alone; None if these are
        damaged too.
        """
        try:
            number, at, lines_at = self._place_behind(after)
            prefix = pread(self.headers, PREFIX.size, at)
            if number == self.end.records or len(prefix) < PREFIX.size:
                return None
            head_bytes, body_bytes, _ = PREFIX.unpack(prefix)
            if head_bytes > MAX_HEADER or body_bytes > MAX_BODY:
                return None
            head = pread(self.headers, PREFIX.size + head_bytes, at)
            return joined(head, pread(self.lines, body_bytes, lines_at))
        except ReadFailed:
            return None

    def places(self, after: Position, records: Sequence[Record]) -> Iterator[tuple[str, int, Buffer]]:
        """Yield the places of a copy of the records after a position: file, offset, bytes. Rule: K6.

        Raises:
            ReadFailed: the copy contradicts intact data here.
        """
        number, at, lines_at = self._place_behind(after)
        for record in records[: self.end.records - number]:
            header = record.header
            first = header.first if isinstance(header, Batch) else header.after + 1
            row = Row(header.position, first, at, lines_at, record.body_at, len(record.raw) - record.body_at)
            known = self._row(number)
            at, lines_at, number = at + row.header_bytes, lines_at + row.body_bytes, number + 1
            at_end = number == self.end.records and (at, lines_at) != (self.end.header_bytes, self.end.lines_bytes)
            if (known is not None and known.encode() != row.encode()) or at_end:
                raise ReadFailed(f"a copy of {tuple(row.position)} has other lengths than the record here")
            yield HEADERS, row.header_at, memoryview(record.raw)[: record.body_at]
            yield self.lines_name, row.lines_at, record.body
            yield INDEX, (number - 1) * ROW_BYTES, row.encode()

    def _place_behind(self, after: Position) -> tuple[int, int, int]:
        """Return the number of the row after a position, and the offsets of its header and its lines.

        Raises:
            ReadFailed: the row that ends at this position is damaged, so the offsets are not known.
        """
        number = self._first(lambda row: row.position > after)
        before = self._row(number - 1) if number else None
        if (START if before is None else before.position) != after:
            raise ReadFailed(f"the row before the record behind {tuple(after)} is damaged too")
        if before is None:
            return number, 0, 0
        return number, before.header_at + before.header_bytes, before.lines_at + before.body_bytes
