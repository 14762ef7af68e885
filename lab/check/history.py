"""Read message logs, history and events of a run in pieces, with line numbers.

Files are read in chunks of whole lines, so that memory does not grow with a run. Line numbers start at 1. A message
log consists of delivered lines (docs/protocol.md, "The message log"); NOT_A_MESSAGE takes the place of any other line.
Rows of the lab and of its own nodes must have exactly the bytes that these programs write: a row with an additional or
repeated key is unreadable. An unreadable row raises RunFileError and makes the checks that need it UNKNOWN.
"""

from __future__ import annotations

import json
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Set
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple, assert_never

import msgspec
from msgspec import Struct

from lab.rows import (
    PHASES,
    Acked,
    Failed,
    FaultRow,
    HistoryRow,
    Invoke,
    Meta,
    Phase,
    Shown,
    Unknown,
    decode_fault_row,
    decode_meta,
    encode_row,
)
from lab.steps.rules import CLIENTS, Pair, Rule
from lab.words import LARGEST_PAYLOAD_BYTES
from nodeproc.core.messages import NodeId, SeqNo

CHUNK_BYTES = 1 << 19
"""About 2500 lines of 200 bytes: large enough to make the cost per chunk negligible; smaller chunks were slower."""

KEPT_CHUNKS = 4
"""Decoded chunks of a log that are kept for look-ups: acknowledgements name lines a little before the newest."""


class LogLine(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """One line of a message log: all fields are required, others are refused."""

    seq_no: Annotated[SeqNo, msgspec.Meta(le=2**63 - 1)]
    term: int
    sender_id: int
    msg_id: str
    timestamp: float
    payload: str


_LARGEST_COUNT = 1_000_000
"""Messages in one row of a load's client; a client sends a few thousand at once."""
_ROUNDING_NS = 1_000_000
"""Due times are computed from seconds, as floats."""

NOT_A_MESSAGE = LogLine(0, 0, 0, "", 0.0, "")
"""In place of a line that cannot be read."""

_decoder = msgspec.json.Decoder(LogLine)
_row_decoder = msgspec.json.Decoder(HistoryRow)
encode_line = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines
_decode_any = msgspec.json.Decoder().decode_lines

_TEXT = rb'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"'
_NUMBER = rb"(?:0|[1-9][0-9]*)"
_FORM = re.compile(
    rb'\{"seq_no":%b,"term":%b,"sender_id":%b,"msg_id":%b,"timestamp":%b(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?,"payload":%b\}'
    % (_NUMBER, _NUMBER, _NUMBER, _TEXT, _NUMBER, _TEXT)
)
"""A line of a message log. Nodes in other languages may format times and escape characters differently."""


def form_fault(line: bytes) -> str:
    """Return what is wrong with the form of a readable line, or "".

    Args:
        line: without its newline.
    """
    if _FORM.fullmatch(line):
        return ""
    if line.endswith(b"\r"):
        return "it ends with CR LF instead of LF"
    keys = [key for key, _ in json.loads(line, object_pairs_hook=list)]
    if keys != list(LogLine.__struct_fields__):
        return f"its keys are {', '.join(keys)} instead of {', '.join(LogLine.__struct_fields__)}"
    return "it has white space, or numbers or characters, that its form does not allow"


UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Exceptions that decoding raises for bytes that are not a row."""


class RunFileError(Exception):
    """A file of the run is unreadable. The text begins with file:line."""


class NodeFile(NamedTuple):
    """One node's message log at the end of a run."""

    node: NodeId
    path: Path
    name: str
    """Relative to the run directory."""
    size: int
    """Bytes."""
    data: bytes | None = None
    """The content, if it is not in a file."""

    def open(self) -> BinaryIO:
        return self.path.open("rb") if self.data is None else BytesIO(self.data)

    def last_seq(self) -> SeqNo:
        """The seq_no of the last complete line; 0 if there is none."""
        with self.open() as opened:
            size = 4096
            while True:
                opened.seek(max(self.size - size, 0))
                lines = opened.read().split(b"\n")[:-1]
                if len(lines) > 1 or size >= self.size:
                    return decode_log_lines(lines[-1] + b"\n", 1)[0].seq_no if lines else 0
                size *= 4

    def line(self, number: int) -> bytes | None:
        """Return this line without its newline; None after the end."""
        if self.data is None:
            return find_line(self.path, number)
        lines = self.data.split(b"\n")
        return lines[number - 1] if number < len(lines) else None


class Piece(NamedTuple):
    """Consecutive whole lines of a file."""

    first_line: int
    offset: int
    """Bytes of the file before it."""
    data: bytes
    newlines: int


def read_pieces(path: Path) -> Iterator[Piece]:
    """Yield the file in pieces of complete lines; only the last piece may lack its newline."""
    with path.open("rb", buffering=0) as file:
        first_line, offset, rest = 1, 0, b""
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


def find_line(path: Path, number: int) -> bytes | None:
    """Return line `number` without its newline; None after the end of the file."""
    for piece in read_pieces(path):
        if number < piece.first_line + max(piece.newlines, 1):
            return piece.data.split(b"\n")[number - piece.first_line]
    return None


class Chunk(NamedTuple):
    """Decoded lines of a message log."""

    first_line: int
    lines: list[LogLine]
    contiguous: bool
    """seq_no runs without a gap inside this chunk."""
    misformed: dict[int, str] = {}  # noqa: RUF012 (never changed)
    """Index of a readable line -> what is wrong with its form."""

    def find(self, seq_no: SeqNo) -> LogLine | None:
        """Return the line with this seq_no; None if it is not in this chunk."""
        if self.contiguous:
            at = seq_no - self.lines[0].seq_no
            return self.lines[at] if 0 <= at < len(self.lines) else None
        return next((line for line in self.lines if line.seq_no == seq_no), None)

    def end_of(self, seq_no: SeqNo, start: int) -> int:
        """Return the index of the first line, from index `start` on, with a higher seq_no."""
        lines = self.lines
        if self.contiguous:
            return min(max(seq_no - lines[0].seq_no + 1, start), len(lines))
        return next((at for at in range(start, len(lines)) if lines[at].seq_no > seq_no), len(lines))


def decode_log_lines(data: bytes, count: int) -> list[LogLine]:
    """Decode `count` lines; NOT_A_MESSAGE takes the place of a line that is not a message."""
    try:
        lines = _decoder.decode_lines(data)
    except UNREADABLE:
        lines = []
    if len(lines) == count:
        return lines
    return [_decode_one(line) for line in data.removesuffix(b"\n").split(b"\n")]


def _decode_one(line: bytes) -> LogLine:
    try:
        return _decoder.decode(line)
    except UNREADABLE:
        return NOT_A_MESSAGE


class MessageLog:
    """One node's message log, read once from front to back, with look-ups of lines that were read before.

    `torn` is the line number of a last line without newline, 0 if there is none; such a line is not decoded.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.line_count = 0
        self.torn = 0
        self._pieces: Iterator[Piece] | None = None
        self._file: BinaryIO | None = None
        self._first_lines, self._first_seqs, self._offsets = array("q"), array("q"), array("q", [0])
        self._kept: dict[int, Chunk] = {}

    def place(self, line: int) -> str:
        return f"{self.name}:{line}"

    def chunks(self) -> Iterator[Chunk]:
        """Yield all lines in chunks, none if the file is missing; find() looks up lines that were yielded before."""
        while (chunk := self.next_chunk()) is not None:
            yield chunk

    def next_chunk(self) -> Chunk | None:
        """Return the next lines; None at the end."""
        if self._pieces is None:
            self._pieces = read_pieces(self.path) if self.path.is_file() else iter(())
        piece = next(self._pieces, None)
        if piece is None or self.torn:
            return None
        if not piece.newlines:
            self.torn = piece.first_line
            return None
        chunk = decode_chunk(piece.first_line, piece.data)
        number = len(self._first_lines)
        self._first_lines.append(piece.first_line)
        self._offsets.append(piece.offset + len(piece.data))
        self._first_seqs.append(chunk.lines[0].seq_no)
        self._kept[number] = chunk
        self._kept.pop(number - KEPT_CHUNKS, None)
        self.line_count += len(chunk.lines)
        return chunk

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes of the log from this offset on, or fewer at its end. The file stays open until
        close().
        """
        if self._file is None:
            self._file = self.path.open("rb")
        self._file.seek(offset)
        return self._file.read(size)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def length(self) -> int:
        """The number of complete lines in the whole log, read or not."""
        return sum(piece.newlines for piece in read_pieces(self.path))

    def text(self, line: int) -> bytes:
        """Return a line as it is in the file, without its newline; empty after the end."""
        return find_line(self.path, line) or b""

    def find(self, seq_no: SeqNo) -> LogLine | None:
        """Return the line with this seq_no, if it was read already."""
        number = bisect_right(self._first_seqs, seq_no) - 1
        if number < 0:
            return None
        chunk = self._kept.get(number)
        if chunk is None:
            chunk = self._read_again(number)
        return chunk.find(seq_no)

    def _read_again(self, number: int) -> Chunk:
        """Read a dropped chunk again; it replaces the chunk that was read again before."""
        newest = len(self._first_lines) - KEPT_CHUNKS
        self._kept = {kept: chunk for kept, chunk in self._kept.items() if kept >= newest}
        start, end = self._offsets[number], self._offsets[number + 1]
        with self.path.open("rb") as file:
            file.seek(start)
            data = file.read(end - start)
        chunk = decode_chunk(self._first_lines[number], data)
        self._kept[number] = chunk
        return chunk

    def lines_of(self, msg_ids: Set[str]) -> dict[str, int]:
        """Return the first line of each of these messages that is in the log; reads the whole log again."""
        numbers: dict[str, int] = {}
        for chunk in MessageLog(self.path, self.name).chunks():
            for number, line in enumerate(chunk.lines, chunk.first_line):
                if line.msg_id in msg_ids:
                    numbers.setdefault(line.msg_id, number)
        return numbers

    def start_of(self, line: int) -> tuple[int, int]:
        """Return (line number, byte offset) of the nearest remembered beginning of a line at or before this line."""
        number = bisect_right(self._first_lines, line) - 1
        return (self._first_lines[number], self._offsets[number]) if number >= 0 else (1, 0)


def decode_chunk(first_line: int, data: bytes) -> Chunk:
    """Decode whole lines of a message log; `first_line` is the number of the first."""
    lines = decode_log_lines(data, data.count(b"\n"))
    first = lines[0].seq_no
    contiguous = [line.seq_no for line in lines] == list(range(first, first + len(lines)))
    misformed = {}
    if _encode_lines(lines) != data:
        for at, (line, text) in enumerate(zip(lines, data.split(b"\n"), strict=False)):
            if line is not NOT_A_MESSAGE and (fault := form_fault(text)):
                misformed[at] = fault
    return Chunk(first_line, lines, contiguous, misformed)


def read_history(path: Path) -> Iterator[tuple[int, HistoryRow]]:
    """Yield (line number, row) of history.jsonl, in its order.

    Raises:
        RunFileError: a line is not a row as the lab writes it, or its time is before that of the previous line.
    """
    latest = 0
    for piece in read_pieces(path):
        try:
            rows = _row_decoder.decode_lines(piece.data)
        except UNREADABLE:
            rows = []
        if _encode_lines(rows) != piece.data:
            raise RunFileError(_first_bad_row(path.name, piece))
        for number, row in enumerate(rows, piece.first_line):
            if row.t < latest:
                raise RunFileError(f"{path.name}:{number}: t={row.t} is before t={latest} of the line above")
            if not _is_sound(row):
                raise RunFileError(f"{path.name}:{number}: a row that contradicts itself: {row}"[:400])
            latest = row.t
            yield number, row


def _is_sound(row: HistoryRow) -> bool:
    """Return whether a row is consistent: numbers start at 1, count equals the number of payloads, no message was due
    after t.
    """
    match row:
        case Invoke():
            if row.gen is None:
                counted = len(row.payloads) == row.count
            else:
                counted = (
                    not row.payloads and row.count <= _LARGEST_COUNT and 1 <= row.gen.size <= LARGEST_PAYLOAD_BYTES
                )
            due = row.intended + (row.count - 1) * row.every
            return row.n >= 1 and row.count >= 1 and row.every >= 0 and counted and due <= row.t + _ROUNDING_NS
        case Acked():
            return row.n >= 1
        case Failed() | Unknown():
            return row.n >= 1 and row.count >= 1
        case Shown():
            return row.first >= 1
        case Phase():
            return row.phase in PHASES
        case _:
            assert_never(row)


def _first_bad_row(name: str, piece: Piece) -> str:
    for number, line in enumerate(piece.data.split(b"\n"), piece.first_line):
        try:
            if msgspec.json.encode(_row_decoder.decode(line)) != line:
                return f"{name}:{number}: not a row as the lab writes it: {line[:200].decode('utf-8', 'replace')}"
        except UNREADABLE as error:
            return f"{name}:{number}: not a row of the history: {error}"
    return f"{name}:{piece.first_line + piece.newlines}: the last line has no end"


class Evidence(Struct, frozen=True):
    """The part of a fault row's evidence that judges use."""

    pairs: tuple[Pair, ...] = ((CLIENTS, CLIENTS),)
    """The links that the fault is about; all of them if it does not say."""
    rule: Rule = Rule()
    jump_s: float = 0.0
    slow_s: float = 0.0
    """Each fdatasync takes this much longer."""
    exit: int = 0
    version: int = 0
    voters: tuple[NodeId, ...] = ()
    """Of the newest list of members that was committed when a change was done, or given up."""

    @classmethod
    def of(cls, row: FaultRow) -> Evidence:
        """Raises msgspec.ValidationError if a value has another type."""
        return msgspec.convert(row.evidence, cls)


def read_fault_rows(path: Path) -> list[FaultRow]:
    """Return the rows of faults.jsonl.

    Raises:
        RunFileError: the file does not exist, or a line is not a row as the lab writes it.
    """
    rows = []
    for number, line in enumerate(_whole(path).splitlines(keepends=True), 1):
        try:
            row = decode_fault_row(line)
            Evidence.of(row)
        except UNREADABLE as error:
            raise RunFileError(f"{path.name}:{number}: not a row of the faults: {error}") from None
        if encode_row(row) != line:
            raise RunFileError(f"{path.name}:{number}: not a row as the lab writes it")
        rows.append(row)
    return rows


def read_meta(path: Path) -> Meta:
    """Return the content of meta.json.

    Raises:
        RunFileError: the file cannot be read, has a key twice, or has a number that is too large.
    """
    data = _whole(path)
    try:
        meta = decode_meta(data)
        json.loads(data, object_pairs_hook=_only_once, parse_int=_int64)
        datetime.fromisoformat(meta.started_utc).timestamp()
    except (*UNREADABLE, ValueError, OverflowError) as error:
        raise RunFileError(f"{path.name}: {error}") from None
    return meta


def _int64(digits: str) -> int:
    """Refuse numbers that no clock and no counter of a run reaches, before a division by them fails."""
    if len(digits) > 19:
        raise ValueError(f"the number {digits[:40]} is too large")
    return int(digits)


def _only_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError(f"a key appears twice among {', '.join(key for key, _ in pairs)[:200]}")
    return found


def _whole(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunFileError(f"{path.name}: {error.strerror}") from None


class EventLine(Struct, frozen=True, gc=False):
    """The fields of an event that judges use; other fields are ignored."""

    t_ns: int
    node: int
    event: str
    term: int = 0
    leader: int = 0
    reason: str = ""
    last_seq: int = -1
    """-1: the event has none."""
    peer: int | str = 0
    """A node's id, or a client's address."""
    version: int = 0
    """Of a list of members; the next three fields are that list."""
    voters: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()


_event_decoder = msgspec.json.Decoder(EventLine)
_ROW_START = b'{"t_ns":'
_FIRST_OF_A_START = ("starting", "loaded", "torn_tail_dropped", "message_log_repaired", "listening", "failed")


def read_events(path: Path, node: NodeId) -> Iterator[tuple[int, EventLine]]:
    """Yield (line number, event) of a node's events.jsonl.

    A killed node may leave an incomplete line at the end, to which its next start appends. Such a line is skipped.

    Raises:
        RunFileError: a line is not an event of this node, or its time is before that of the previous line.
    """
    name, latest = f"{path.parent.parent.name}/{path.parent.name}/{path.name}", 0
    for number, event in _every_event(path, name):
        if event.node != node:
            raise RunFileError(f"{name}:{number}: an event of node {event.node}")
        if event.t_ns < latest:
            raise RunFileError(f"{name}:{number}: t_ns={event.t_ns} is before t_ns={latest} of the line above")
        latest = event.t_ns
        yield number, event


def _every_event(path: Path, name: str) -> Iterator[tuple[int, EventLine]]:
    try:
        path.open("rb").close()
    except OSError as error:
        raise RunFileError(f"{name}: {error.strerror}") from None
    for piece in read_pieces(path):
        try:
            events = _event_decoder.decode_lines(piece.data)
            if len(events) == piece.newlines and not _has_doubled_keys(piece.data):
                yield from enumerate(events, piece.first_line)
                continue
        except UNREADABLE:
            pass
        lines = piece.data.split(b"\n")
        for number, line in enumerate(lines[: piece.newlines], piece.first_line):
            yield number, _one_event(name, number, line)
        # A torn row at the end of the file is ignored: its rest was never written.


def _one_event(name: str, number: int, line: bytes) -> EventLine:
    torn = line.rfind(_ROW_START)
    if torn > 0 and line.startswith(_ROW_START):
        event = _event_or_none(line[torn:])
        if event is not None and event.event in _FIRST_OF_A_START:
            return event
    event = _event_or_none(line)
    if event is None:
        raise RunFileError(f"{name}:{number}: not an event: {line[:200].decode('utf-8', 'replace')!r}")
    return event


def _event_or_none(line: bytes) -> EventLine | None:
    try:
        event = _event_decoder.decode(line)
        return None if _has_doubled_keys(line) else event
    except UNREADABLE:
        return None


def _has_doubled_keys(data: bytes) -> bool:
    """Return whether a line has a key twice. Such a line is ambiguous, because JSON readers use the last one."""
    if len(_encode_lines(_decode_any(data))) == len(data.removesuffix(b"\n")) + 1:
        return False
    return any(len({key for key, _ in pairs}) < len(pairs) for pairs in map(_pairs, data.split(b"\n")) if pairs)


def _pairs(line: bytes) -> list[tuple[str, object]]:
    return list(json.loads(line, object_pairs_hook=list)) if line else []
