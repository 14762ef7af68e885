"""The files of the write-ahead log: their names and content, and the index of their records.

A WAL file (segment) begins with an Opening, followed by entries in the format of nodeproc.records. A new segment is
called NNNNNNNNNNNN.wal.next until it and the segment before it are durable. Only then it is renamed, and only then
anything in it may be promised. So a renamed segment proves that the one before it is complete, and only the last one
can have a torn tail. A file that is still called .next is ignored.

Claims say how far the WAL was durable. A write begins with a note (Committed) of the durable end before it. When a
segment is renamed, a note at the end of the one before it names the new segment. A checkpoint also names the durable
end. Data below a claim was promised: if it is missing or broken, it is damaged. Data above all claims was never
promised.
"""

from __future__ import annotations

import contextlib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from typing import Final, NamedTuple

from nodeproc.core.effects import Met, Promise, Readmitted
from nodeproc.core.messages import NOBODY, START, Batch, Known, Mark, NodeId, Position, SeqNo, Term
from nodeproc.disk.files import Buffer, File, pread
from nodeproc.entries import WAL_VERSION, Broken, Committed, Entry, NotUnderstood, Opening
from nodeproc.errors import CorruptionError, ReadFailed
from nodeproc.records import PREFIX, decode_entry, is_intact

FOLDER: Final = "wal"
NEXT: Final = ".next"
REBUILD_ADVICE: Final = (
    "to get this node's data from the others, move its data directory away and start it with --rebuild"
)

_SEGMENT_NAME = re.compile(r"(\d{12})\.wal")
_ENTRY_START: Final = b'{"kind":"'


def segment_name(number: int) -> str:
    return f"{FOLDER}/{number:012}.wal"


def segment_numbers(names: Sequence[str], suffix: str = "") -> list[int]:
    """The numbers of the segments among the WAL folder's names, ascending."""
    matches = (_SEGMENT_NAME.fullmatch(name.removesuffix(suffix)) for name in names if name.endswith(suffix))
    return sorted(int(match[1]) for match in matches if match)


def damaged(where: str, at: int, what: str) -> CorruptionError:
    """Return the error for durable data that differs from what was written."""
    return CorruptionError(f"{where}: offset {at}: {what}; nothing was changed; {REBUILD_ADVICE}", where, at, what)


@dataclass(eq=False, slots=True)
class Segment:
    """An open WAL file. size: bytes written; synced: bytes known to be durable."""

    number: int
    file: File
    size: int
    synced: int


class Claim(NamedTuple):
    """A statement in the file `where` that the WAL was durable up to byte `durable` of this segment. Claims are ordered
    by place.
    """

    segment: int = 0
    durable: int = 0
    where: str = ""


class Scan(NamedTuple):
    """The content of a segment: its intact entries, Opening included, and where they end.

    broken: why the bytes after them are not an entry; "" if there are no more bytes.
    """

    number: int
    where: str
    data: bytes
    entries: list[Entry]
    end: int
    broken: str = ""

    @property
    def opening(self) -> Opening | None:
        """The segment's Opening; None if the segment ends before it."""
        first = self.entries[0].header if self.entries else None
        assert first is None or isinstance(first, Opening), first
        return first


def scan(number: int, where: str, data: bytes) -> Scan:
    """Read a segment up to its first incomplete or broken entry. Rule: K2.

    Args:
        where: the file's name for messages.

    Raises:
        CorruptionError: an entry is intact but unknown, or the Opening is missing or belongs to another file.
    """
    entries: list[Entry] = []
    at, broken = 0, ""
    while at < len(data):
        try:
            entry = decode_entry(data, at)
        except NotUnderstood as error:
            # hit: K2 an intact entry that is not understood is refused
            raise damaged(where, at, f"{error}, but its CRC is right: another version wrote it") from None
        except Broken as error:
            entry, broken = None, str(error)  # hit: K1 a broken entry is found by its CRC or length
        if entry is None:
            broken = broken or f"the file ends inside the entry at {at}"
            break
        header = entry.header
        opening = header if isinstance(header, Opening) else None
        if (opening is not None) != (at == 0) or (opening is not None and opening.number != number):
            raise damaged(where, at, f"found {header}, allowed: the opening of segment {number}, once, at offset 0")
        if opening is not None and opening.version > WAL_VERSION:
            raise damaged(where, at, f"WAL version {opening.version}, allowed: up to {WAL_VERSION}")
        entries.append(entry)
        at = entry.end
    return Scan(number, where, data, entries, at, broken)


def first_bytes(found: Scan, size: int) -> Scan:
    """Return the scan of the first `size` bytes of the segment.

    Raises:
        CorruptionError: no intact entry ends there.
    """
    entries = [entry for entry in found.entries if entry.end <= size]
    if not entries or entries[-1].end != size:
        # hit: K2 a broken record before a later segment is refused
        what = found.broken or "the file ends here"
        raise damaged(found.where, min(found.end, size), f"{what}, but the first {size} bytes were durable")
    return Scan(found.number, found.where, found.data[:size], entries, size)


def behind(found: Scan) -> Iterator[Entry]:
    """Yield intact entries after the broken one, found by the bytes with which every header begins."""
    data = found.data
    at = data.find(_ENTRY_START, found.end + 1 + PREFIX.size)
    while at >= 0:
        entry = None
        with contextlib.suppress(Broken):
            entry = decode_entry(data, at - PREFIX.size)
        if entry is not None:
            yield entry
        at = data.find(_ENTRY_START, at + 1 if entry is None else entry.end)


def claims(found: Scan) -> Iterator[Claim]:
    """Yield the claims in a segment's notes, including notes after a broken entry."""
    for entry in chain(found.entries, behind(found)):
        if isinstance(entry.header, Committed):
            yield Claim(entry.header.segment, entry.header.durable, found.where)


@dataclass(slots=True)
class Promises:
    """The state that the local entries of the log add up to. Rule: E3, E4, E6, M4."""

    term: Term = 0
    voted_for: NodeId = NOBODY
    rebuilding: bool = False
    identities: dict[NodeId, Known] = field(default_factory=dict)

    def take(self, op: Promise | Met | Readmitted) -> None:
        """Apply one entry; an older promise changes nothing."""
        if isinstance(op, Met):
            self.identities[op.peer] = op.known
        elif isinstance(op, Readmitted):
            self.rebuilding = False
        elif op.term > self.term or (op.term == self.term and op.voted_for != NOBODY):
            self.term, self.voted_for = op.term, op.voted_for


class Place:
    """The place of a record in the WAL.

    first: first seq_no of the record; for a mark the next seq_no.
    at: offset of the record in the segment. body_at: offset of the body from `at`.
    lines_at: offset of the body in the message log once it is delivered.
    """

    __slots__ = ("at", "body_at", "first", "lines_at", "position", "segment", "size")

    def __init__(
        self, position: Position, first: SeqNo, segment: int, at: int, body_at: int, size: int, lines_at: int
    ) -> None:
        self.position, self.first = position, first
        self.segment, self.at, self.body_at, self.size = segment, at, body_at, size
        self.lines_at = lines_at


_position, _seq_no, _segment = attrgetter("position"), attrgetter("position.seq_no"), attrgetter("segment")


@dataclass(slots=True)
class Index:
    """Every record of the log that is in a WAL file and not truncated, in order.

    Invariant: places[0] follows `base`, and each place follows the previous one, in position and in lines_at.
    """

    base: Position = START
    """The last record that is in no WAL file any more."""
    base_lines: int = 0
    """Bytes of the message log up to `base`."""
    places: list[Place] = field(default_factory=list)

    @property
    def end(self) -> Position:
        return self.places[-1].position if self.places else self.base

    def append(self, header: Mark | Batch, segment: int, at: int, body_at: int, size: int) -> None:
        """Add the log's next record, with its place."""
        places = self.places
        if places:
            last = places[-1]
            lines_at = last.lines_at + last.size - last.body_at
        else:
            lines_at = self.base_lines
        first = header.first if isinstance(header, Batch) else header.after + 1
        places.append(Place(header.position, first, segment, at, body_at, size, lines_at))

    def truncate(self, keep: Position) -> None:
        """Drop every record whose position is above `keep`. Rule: R2."""
        del self.places[bisect_right(self.places, keep, key=_position) :]

    def move(self, segment: int, at: int, to: int, to_at: int) -> None:
        """Move the places from offset `at` of the last segment on to segment `to`, from offset `to_at` on."""
        for place in reversed(self.places):
            if place.segment != segment or place.at < at:
                break
            place.segment, place.at = to, place.at - at + to_at

    def number_behind(self, after: Position) -> int:
        """Return the number of the first place after a position."""
        return bisect_right(self.places, after, key=_position)

    def number_holding(self, seq_no: SeqNo) -> int | None:
        """Return the number of the batch with this message; None if the message is older or newer than the index."""
        number = bisect_left(self.places, seq_no, key=_seq_no)
        return None if number == len(self.places) or self.places[number].first > seq_no else number

    def before(self, number: int) -> Position:
        """Return the position of the record before that place."""
        return self.places[number - 1].position if number else self.base

    def some(self, start: int, max_bytes: int) -> list[Place]:
        """Return consecutive places from a number on: at most max_bytes, but at least one if there is any."""
        places, end, size = self.places, start, 0
        while end < len(places) and (end == start or size + places[end].size <= max_bytes):
            size += places[end].size
            end += 1
        return places[start:end]

    def before_segment(self, number: int) -> int:
        """Return the number of places in segments older than this one."""
        return bisect_left(self.places, number, key=_segment)

    def delivered(self, seq_no: SeqNo) -> int:
        """Return the number of delivered places if `seq_no`, the end of a batch or of `base`, is the last delivered
        one.
        """
        number = bisect_right(self.places, seq_no, key=_seq_no)
        while number and self.places[number - 1].size == self.places[number - 1].body_at:
            number -= 1  # Marks at the same seq_no come after the last delivered batch.
        return number

    def lines_end(self, count: int) -> int:
        """Return the number of bytes of the message log up to the first `count` places."""
        if count == 0:
            return self.base_lines
        last = self.places[count - 1]
        return last.lines_at + last.size - last.body_at

    def drop(self, count: int) -> None:
        """Remove the first `count` places, which are in no WAL file any more."""
        if count:
            self.base_lines = self.lines_end(count)
            self.base = self.places[count - 1].position
            del self.places[:count]


def read_run(segment: Segment, run: Sequence[Place]) -> list[tuple[Place, Buffer, Buffer]]:
    """Return header and body of consecutive records, up to the first with a wrong CRC.

    If they cannot be read at once, perhaps because of a later one, the first is read alone. Rule: K6.
    """
    at = run[0].at
    try:
        data = pread(segment.file, run[-1].at + run[-1].size - at, at)
    except ReadFailed:
        return read_run(segment, run[:1]) if len(run) > 1 else []
    found: list[tuple[Place, Buffer, Buffer]] = []
    view = memoryview(data)
    for place in run:
        start = place.at - at
        head, body = data[start : start + place.body_at], view[start + place.body_at : start + place.size]
        if not is_intact(head, body):
            break
        found.append((place, head, body))
    return found


def runs(places: Sequence[Place]) -> list[list[Place]]:
    """Group the places so that one read covers each group."""
    groups: list[list[Place]] = []
    for place in places:
        last = groups[-1][-1] if groups else None
        if last is not None and (last.segment, last.at + last.size) == (place.segment, place.at):
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups
