"""Reading a run's files in pieces: message logs, history and events, with the line number of everything.

Files are read in chunks of whole lines, so that memory does not grow with a run. Line numbers start at 1. A message
log is delivered bytes (docs/protocol.md, "The message log"), a line that is none is kept as NOT_A_MESSAGE in its place.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Struct

from lab.rows import HistoryRow, Invoke, Shown
from nodeproc.core.messages import SeqNo

CHUNK_BYTES = 1 << 19
"""About 2500 lines of 200 bytes: large enough that work per chunk does not show; smaller ones were slower."""

KEPT_CHUNKS = 4
"""Decoded chunks of a log kept for look-ups: acknowledgements come a little behind the newest line read."""


class LogLine(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """One line of a message log, every field demanded and no other allowed."""

    seq_no: Annotated[SeqNo, Meta(le=2**63 - 1)]
    term: int
    sender_id: int
    msg_id: str
    timestamp: float
    payload: str


NOT_A_MESSAGE = LogLine(0, 0, 0, "", 0.0, "")
"""Stands where a line can't be read."""

_decoder = msgspec.json.Decoder(LogLine)
_row_decoder = msgspec.json.Decoder(HistoryRow)


class RunFileError(Exception):
    """A file of the run can't be read as what it should be; the text begins with file:line."""


class Piece(NamedTuple):
    """Consecutive whole lines of a file."""

    first_line: int
    offset: int
    """Bytes of the file before it."""
    data: bytes
    newlines: int


def read_pieces(path: Path, offset: int = 0, first_line: int = 1) -> Iterator[Piece]:
    """The file in pieces of whole lines; only the last may lack its newline."""
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        rest = b""
        while block := file.read(CHUNK_BYTES):
            data = rest + block if rest else block
            end = data.rfind(b"\n") + 1
            if end:
                whole = data if end == len(data) else data[:end]
                newlines = whole.count(b"\n")
                yield Piece(first_line, offset, whole, newlines)
                first_line += newlines
                offset += end
            rest = data[end:]
        if rest:
            yield Piece(first_line, offset, rest, 0)


def line_at(path: Path, number: int) -> bytes:
    """Line `number` without its newline; empty behind the end of the file."""
    for piece in read_pieces(path):
        if number < piece.first_line + max(piece.newlines, 1):
            return piece.data.split(b"\n")[number - piece.first_line]
    return b""


class Chunk(NamedTuple):
    """Decoded lines of a message log."""

    first_line: int
    lines: list[LogLine]
    contiguous: bool
    """seq_no runs without a gap inside this chunk."""

    def find(self, seq_no: SeqNo) -> LogLine | None:
        """The line with this seq_no, if it is in here."""
        if self.contiguous:
            at = seq_no - self.lines[0].seq_no
            return self.lines[at] if 0 <= at < len(self.lines) else None
        return next((line for line in self.lines if line.seq_no == seq_no), None)

    def end_of(self, seq_no: SeqNo, start: int) -> int:
        """Index behind the first line from index `start` on whose seq_no is at least this one."""
        lines = self.lines
        if self.contiguous:
            return min(max(seq_no - lines[0].seq_no + 1, start), len(lines))
        return next((at + 1 for at in range(start, len(lines)) if lines[at].seq_no >= seq_no), len(lines))


def decode_log_lines(data: bytes, count: int) -> list[LogLine]:
    """One LogLine for each of `count` lines, NOT_A_MESSAGE for what is none."""
    try:
        lines = _decoder.decode_lines(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        lines = []
    if len(lines) == count:
        return lines
    return [_decode_one(line) for line in data.removesuffix(b"\n").split(b"\n")]


def _decode_one(line: bytes) -> LogLine:
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return NOT_A_MESSAGE


class MessageLog:
    """One node's message log, read once from front to back, with look-ups of what was read before.

    `torn` is the line number of a last line without newline, 0 where there is none; such a line is not decoded.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.line_count = 0
        self.torn = 0
        self._first_lines, self._first_seqs, self._offsets = array("q"), array("q"), array("q", [0])
        self._kept: dict[int, Chunk] = {}

    def place(self, line: int) -> str:
        return f"{self.name}:{line}"

    def chunks(self) -> Iterator[Chunk]:
        """All lines, none where the file is missing; what was handed out can be looked up with find()."""
        if not self.path.is_file():
            return
        for piece in read_pieces(self.path):
            if not piece.newlines:
                self.torn = piece.first_line
                return
            chunk = _decode_chunk(piece)
            number = len(self._first_lines)
            self._first_lines.append(piece.first_line)
            self._offsets.append(piece.offset + len(piece.data))
            self._first_seqs.append(chunk.lines[0].seq_no)
            self._kept[number] = chunk
            self._kept.pop(number - KEPT_CHUNKS, None)
            self.line_count += len(chunk.lines)
            yield chunk

    def find(self, seq_no: SeqNo) -> LogLine | None:
        """The line with this seq_no among those read so far."""
        number = bisect_right(self._first_seqs, seq_no) - 1
        if number < 0:
            return None
        chunk = self._kept.get(number)
        if chunk is None:
            chunk = self._read_again(number)
        return chunk.find(seq_no)

    def _read_again(self, number: int) -> Chunk:
        """A chunk that was forgotten; it is kept in place of the one that was read again before it."""
        newest = len(self._first_lines) - KEPT_CHUNKS
        self._kept = {kept: chunk for kept, chunk in self._kept.items() if kept >= newest}
        start, end = self._offsets[number], self._offsets[number + 1]
        with self.path.open("rb") as file:
            file.seek(start)
            data = file.read(end - start)
        chunk = _decode_chunk(Piece(self._first_lines[number], start, data, data.count(b"\n")))
        self._kept[number] = chunk
        return chunk

    def start_of(self, line: int) -> tuple[int, int]:
        """(line number, byte offset) of the nearest remembered line start at or before this line."""
        number = bisect_right(self._first_lines, line) - 1
        return (self._first_lines[number], self._offsets[number]) if number >= 0 else (1, 0)


def _decode_chunk(piece: Piece) -> Chunk:
    lines = decode_log_lines(piece.data, piece.newlines)
    first = lines[0].seq_no
    contiguous = [line.seq_no for line in lines] == list(range(first, first + len(lines)))
    return Chunk(piece.first_line, lines, contiguous)


def read_history(path: Path) -> Iterator[tuple[int, HistoryRow]]:
    """(line number, row) of history.jsonl, in its order.

    Raises:
        RunFileError: a line is no row, contradicts itself, or its time is before the line's above.
    """
    latest = 0
    for piece in read_pieces(path):
        try:
            rows = _row_decoder.decode_lines(piece.data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            rows = []
        if len(rows) != piece.newlines or not rows:
            raise RunFileError(_first_bad_row(path.name, piece))
        for number, row in enumerate(rows, piece.first_line):
            if row.t < latest:
                raise RunFileError(f"{path.name}:{number}: t={row.t} is before t={latest} of the line above")
            if not _is_sound(row):
                raise RunFileError(f"{path.name}:{number}: a row that contradicts itself: {row}"[:400])
            latest = row.t
            yield number, row


def _is_sound(row: HistoryRow) -> bool:
    """Numbers start at 1, and as many payloads are there as the row counts."""
    if isinstance(row, Invoke):
        return row.n >= 1 and row.count >= 1 and (row.gen is not None or len(row.payloads) == row.count)
    return not isinstance(row, Shown) or row.first >= 1


def _first_bad_row(name: str, piece: Piece) -> str:
    for number, line in enumerate(piece.data.split(b"\n"), piece.first_line):
        try:
            _row_decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return f"{name}:{number}: not a row of the history: {error}"
    return f"{name}:{piece.first_line}: not rows of the history, one a line"


class EventLine(Struct, frozen=True, gc=False):
    """What the judges read of one line of events.jsonl; other fields are left alone."""

    t_ns: int
    node: int
    event: str
    term: int = 0
    leader: int = 0
    reason: str = ""


_event_decoder = msgspec.json.Decoder(EventLine)


def read_events(path: Path) -> Iterator[tuple[int, EventLine]]:
    """(line number, event) of events.jsonl.

    A killed node may leave a torn line, behind which its next start goes on: such a line is passed over.
    """
    for piece in read_pieces(path):
        try:
            events = _event_decoder.decode_lines(piece.data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            events = []
        if len(events) == piece.newlines:
            yield from enumerate(events, piece.first_line)
            continue
        for number, line in enumerate(piece.data.split(b"\n"), piece.first_line):
            try:
                yield number, _event_decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue
