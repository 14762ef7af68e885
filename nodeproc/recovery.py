"""What a data directory holds, found out without changing it, and then made whole. Rules: K2, K3, K4.

A Survey only reads, and raises CorruptionError for whatever is not as it was written; `repair` then drops torn tails,
mends the message log and syncs everything, so that all that is handed to the core is durable.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from nodeproc import archive, checkpoint, wal, wire
from nodeproc.archive import Archive
from nodeproc.checkpoint import Checkpoint
from nodeproc.core.effects import Met, Promise, Readmitted, Truncate
from nodeproc.core.events import Event, Loaded, MessageLogRepaired, TornTailDropped
from nodeproc.core.messages import Batch, Mark, NodeId, Position, Record, SeqNo
from nodeproc.core.recovered import Recovered
from nodeproc.core.sessions import Sessions
from nodeproc.errors import ConfigError
from nodeproc.files import File, Files
from nodeproc.wal import Index, Promises, Scan, Segment, damaged

LINES_FOLDER = "logs"


def lines_name(node_id: NodeId) -> str:
    return f"{LINES_FOLDER}/node_{node_id}_messages.jsonl"


@dataclass(slots=True)
class Replay:
    """The log that the WAL's entries amount to.

    trusted: all up to here is delivered and in the message log, as the checkpoint says.
    records: for each place of the index its record, None up to `trusted`.
    noted: highest seq_no that a note of the storage calls delivered.
    end: position of the log at the entry reached; None where only entries before the first one could tell.
    """

    trusted: Position
    index: Index
    promises: Promises
    records: list[Record | None] = field(default_factory=list)
    noted: SeqNo = 0
    end: Position | None = None

    def take(self, scan: Scan) -> None:
        """Apply a segment's entries, in order."""
        for entry in scan.entries:
            header = entry.header
            if isinstance(header, Mark | Batch):
                self._append(scan, entry, header)
            elif isinstance(header, Truncate):
                self._truncate(header.keep)
            elif isinstance(header, Promise | Met | Readmitted):
                self.promises.take(header)
            elif isinstance(header, wire.Committed):
                self.noted = max(self.noted, header.seq_no)

    def _append(self, scan: Scan, entry: wire.Entry, header: Mark | Batch) -> None:
        if self.end is not None and not follows(header, self.end):
            raise damaged(scan.where, entry.start, f"{header.position} does not follow {self.end}")
        at, body_at = entry.start, entry.body_at - entry.start
        self.index.append(header, scan.number, at, body_at, entry.end - at)
        self.end = header.position
        known = self.end <= self.trusted
        self.records.append(None if known else Record(header, scan.data[at : entry.end], body_at))

    def _truncate(self, keep: Position) -> None:
        self.index.truncate(keep)
        places = self.index.places
        del self.records[len(places) :]
        if places:
            self.end = places[-1].position
        elif self.end is not None and keep < self.end:
            self.end = None


def follows(header: Mark | Batch, end: Position) -> bool:
    """May this record stand behind a log that ends there?"""
    if isinstance(header, Mark):
        return header.term > end.term and header.after == end.seq_no
    return header.term == end.term and header.first == end.seq_no + 1 <= header.last


@dataclass(slots=True)
class Lines:
    """What is to be done with the message log: keep so many bytes, then append `missing`. Rule: K3."""

    kept_bytes: int
    kept_seq: SeqNo
    delivered_seq: SeqNo
    missing: list[memoryview] = field(default_factory=list)


def compare_lines(data: bytes, batches: list[Record], start: SeqNo, noted: SeqNo) -> Lines:
    """Keep the longest prefix of lines that the WAL's batches prove; complete it to a batch's end and to the note.

    Args:
        data: the message log behind what is trusted.
        batches: those of the WAL behind what is trusted, in order.
        start: the last trusted seq_no.
        noted: all up to this one was delivered.
    """
    lines = Lines(0, start, start)
    for record in batches:
        header, body = record.header, record.body
        assert isinstance(header, Batch), header
        found = data[lines.kept_bytes : lines.kept_bytes + len(body)] if lines.kept_seq == lines.delivered_seq else b""
        same = len(body) if found == body else _same_lines(found, bytes(body))
        if same == 0 and header.last > noted:
            break
        if same:
            lines.kept_bytes += same
            lines.kept_seq = header.last if same == len(body) else header.first + found[:same].count(b"\n") - 1
        if same < len(body):
            lines.missing.append(body[same:])
        lines.delivered_seq = header.last
    return lines


def _same_lines(found: bytes, body: bytes) -> int:
    """Bytes of the whole lines at the start that are the same."""
    same = 0
    for ours, theirs in zip(found.splitlines(True), body.splitlines(True), strict=False):
        if ours != theirs:
            break
        same += len(ours)
    return same


@dataclass(slots=True)
class Found:
    """What a survey found. Files are open.

    active: the last segment that counts; whatever it holds behind its scan's end is a torn tail.
    settle: the active segment has not got its own name yet.
    refused: name and size of a begun segment whose predecessor is incomplete.
    stale: names of files that a crash between two steps of a checkpoint has left.
    """

    checkpoint: Checkpoint
    scans: list[Scan]
    segments: list[Segment]
    replay: Replay
    archive: Archive
    lines_file: File
    lines: Lines
    settle: bool = False
    refused: tuple[str, int] | None = None
    stale: list[str] = field(default_factory=list)

    @property
    def lines_bytes(self) -> int:
        """Length of the message log once it is repaired."""
        return self.checkpoint.lines_bytes + self.lines.kept_bytes + sum(map(len, self.lines.missing))

    def recovered(self, max_sessions: int) -> Recovered:
        """What the core gets."""
        known, promises = self.checkpoint, self.replay.promises
        sessions = Sessions(max_sessions, dict(known.sessions), known.horizon)
        tail: list[Record] = []
        marks = list(known.marks)
        for record in filter(None, self.replay.records):
            header = record.header
            tail.append(record)
            if isinstance(header, Mark):
                marks.append(header)
            elif header.last <= self.lines.delivered_seq:
                sessions.delivered(header)
                tail.clear()
        return Recovered(
            identity=known.identity,
            rebuilding=promises.rebuilding,
            term=promises.term,
            voted_for=promises.voted_for,
            identities=dict(promises.identities),
            marks=marks,
            position=self.replay.index.end,
            delivered_seq=self.lines.delivered_seq,
            tail=tail,
            sessions=sessions.table,
            horizon=sessions.horizon,
        )


class Survey:
    """Reads a data directory. Made for one use."""

    def __init__(self, files: Files, node_id: NodeId) -> None:
        self.files, self.node_id = files, node_id
        self.names = files.names(wal.FOLDER)
        self.opened: list[File] = []

    def close(self) -> None:
        """Close what a failed survey has opened."""
        for file in self.opened:
            file.close()

    def open(self, name: str, create: bool = False) -> File:
        file = self.files.open(name, create=create)
        self.opened.append(file)
        return file

    def empty(self) -> bool:
        """Nothing was ever promised from here: no data, or a first start that did not come to its end.

        Raises:
            CorruptionError: the WAL is gone and the message log is not.
        """
        if wal.segment_numbers(self.names) or checkpoint.NAME.rpartition("/")[2] in self.names:
            return False
        name = lines_name(self.node_id)
        if name.rpartition("/")[2] in self.files.names(LINES_FOLDER) and self.open(name).size():
            raise damaged(self.files.where(wal.FOLDER), 0, f"no WAL beside {self.files.where(name)}")
        if wal.segment_numbers(self.names, wal.NEXT) not in ([], [1]):
            raise damaged(self.files.where(wal.FOLDER), 0, "a segment was begun whose predecessor is missing")
        return True

    def run(self) -> Found:
        """Read everything that a restart needs.

        Raises:
            CorruptionError: it is not what was written.
            ConfigError: it is another node's.
        """
        known = checkpoint.read(self.files)
        numbers = wal.segment_numbers(self.names)
        self._check_numbers(numbers, known)
        first_live = known.first_segment if known else 1
        live = list(self._live([number for number in numbers if number >= first_live]))
        scans, segments = [found for found, _ in live], [segment for _, segment in live]
        begun, refused = self._begun(scans[-1])
        if begun is not None:
            scans.append(begun[0])
            segments.append(begun[1])
        known = known or _unknown(scans[0])
        self._check_owner(scans, known)
        replay = self._replay(scans, known)
        lines_file, lines = self._lines(replay, known)
        stale = [wal.segment_name(number) for number in numbers if number < first_live]
        if checkpoint.ASIDE.rpartition("/")[2] in self.names:
            stale.append(checkpoint.ASIDE)
        kept = self._archive(known, lines_file)
        settle = begun is not None
        return Found(known, scans, segments, replay, kept, lines_file, lines, settle, refused, stale)

    def _check_numbers(self, numbers: list[int], known: Checkpoint | None) -> None:
        """The live segments are there, one number after the other."""
        where = self.files.where(wal.FOLDER)
        first = known.first_segment if known else 1
        live = [number for number in numbers if number >= first]
        if not live or live[0] != first:
            found = f"the oldest WAL file is number {live[0]}" if live else "no WAL file"
            raise damaged(
                where, 0, f"{found}, the {'checkpoint' if known else 'start without a checkpoint'} needs {first}"
            )
        for before, after in pairwise(live):
            if after != before + 1:
                raise damaged(where, 0, f"WAL file {after} stands behind {before}, those between are missing")

    def _live(self, numbers: list[int]) -> Iterator[tuple[Scan, Segment]]:
        """The live segments, each proven complete by the one behind it, save the last."""
        before: Scan | None = None
        for number in numbers:
            found, segment = self._scan(wal.segment_name(number), number)
            if found.opening is None:
                raise damaged(found.where, 0, "the file's first entry, durable since it got its name, is broken")
            if before is not None:
                self._check_complete(before, found.opening)
            yield found, segment
            before = found

    def _scan(self, name: str, number: int) -> tuple[Scan, Segment]:
        file = self.open(name)
        found = wal.scan(number, self.files.where(name), file.pread(file.size(), 0))
        return found, Segment(number, file, found.end, found.end)

    def _check_complete(self, before: Scan, opening: wire.Opening) -> None:
        if not before.end == len(before.data) == opening.previous_bytes:
            what = f"broken here, but WAL file {opening.number} goes on behind its {opening.previous_bytes} bytes"
            # hit: K2 a broken record before a later segment is refused
            raise damaged(before.where, min(before.end, opening.previous_bytes), what)

    def _begun(self, last: Scan) -> tuple[tuple[Scan, Segment] | None, tuple[str, int] | None]:
        """The segment without its own name, if it counts: all before it must be there; else its name and size."""
        numbers = wal.segment_numbers(self.names, wal.NEXT)
        if not numbers:
            return None, None
        name = wal.segment_name(numbers[0]) + wal.NEXT
        if numbers != [last.number + 1]:
            raise damaged(self.files.where(name), 0, f"begun WAL files {numbers}, allowed: [{last.number + 1}]")
        found, segment = self._scan(name, numbers[0])
        opening = found.opening
        if opening is None or not last.end == len(last.data) == opening.previous_bytes:
            segment.file.close()  # hit: K2 a begun segment behind an incomplete one does not count
            return None, (name, len(found.data))
        return (found, segment), None

    def _check_owner(self, scans: list[Scan], known: Checkpoint) -> None:
        if known.node != self.node_id:
            root = self.files.where(".")
            raise ConfigError(
                f"data directory {root}: node {known.node}'s, not node {self.node_id}'s; each needs its own"
            )
        for each in scans:
            opening = each.opening
            if opening is not None and (opening.node, opening.identity) != (known.node, known.identity):
                found = f"node {opening.node}, {opening.identity}"
                raise damaged(each.where, 0, f"WAL file of {found}, among those of node {known.node}, {known.identity}")

    def _replay(self, scans: list[Scan], known: Checkpoint) -> Replay:
        """Apply all entries; the result must go on where the archive ends and reach what was delivered."""
        end = known.archive
        promises = Promises(known.term, known.voted_for, known.rebuilding, dict(known.identities))
        replay = Replay(known.delivered, Index(end.position, end.lines_bytes), promises)
        replay.end = end.position if known.first_segment == 1 else None
        for each in scans:
            replay.take(each)
        index, last = replay.index, scans[-1]
        if index.places:
            place = index.places[0]
            place_scan = next(each for each in scans if each.number == place.segment)
            entry = wire.decode_entry(place_scan.data, place.at)
            assert entry is not None and isinstance(entry.header, Mark | Batch), place
            if not follows(entry.header, end.position):
                raise damaged(
                    place_scan.where, place.at, f"{place.position} does not follow {end.position}, the archive's"
                )
        if index.end < known.delivered or index.lines_end(index.up_to(known.delivered)) != known.lines_bytes:
            raise damaged(last.where, last.end, f"the WAL ends at {index.end}, the checkpoint knows {known.delivered}")
        if replay.noted > index.end.seq_no:
            # hit: K2 a WAL that lost what was delivered is refused
            raise damaged(last.where, last.end, f"the WAL ends at {index.end}, but seq_no {replay.noted} was delivered")
        return replay

    def _lines(self, replay: Replay, known: Checkpoint) -> tuple[File, Lines]:
        """Open the message log and compare what the checkpoint does not vouch for with the WAL. Rule: K3."""
        name = lines_name(self.node_id)
        where = self.files.where(name)
        if not known.lines_bytes:
            self.files.make_folder(LINES_FOLDER)
        try:
            file = self.open(name, create=not known.lines_bytes)
        except FileNotFoundError:
            raise damaged(where, 0, f"the message log is missing, {known.lines_bytes} bytes of it are needed") from None
        size = file.size()
        if size < known.lines_bytes:
            raise damaged(where, size, f"the message log ends here, {known.lines_bytes} bytes of it are needed")
        if checkpoint.lines_crc(file, known.lines_bytes) != known.lines_crc:
            raise damaged(where, known.lines_bytes, "the lines before this offset are not those that were delivered")
        batches = [record for record in replay.records if record is not None and isinstance(record.header, Batch)]
        data = file.pread(size - known.lines_bytes, known.lines_bytes)
        return file, compare_lines(data, batches, known.delivered.seq_no, replay.noted)

    def _archive(self, known: Checkpoint, lines_file: File) -> Archive:
        empty = known.archive.records == 0
        try:
            headers, index = self.open(archive.HEADERS, empty), self.open(archive.INDEX, empty)
        except FileNotFoundError as error:
            raise damaged(self.files.where(wal.FOLDER), 0, f"the archive is missing: {error.filename}") from None
        found = Archive(headers, index, lines_file, lines_name(self.node_id), self.files.where, known.archive)
        found.check_sizes()
        return found


def _unknown(first: Scan) -> Checkpoint:
    """What a checkpoint made at the very start would say."""
    opening = first.opening
    assert opening is not None, first.where
    return Checkpoint(opening.node, opening.identity, opening.rebuilding, members=opening.members)


def repair(files: Files, found: Found) -> list[Event]:
    """Drop torn tails, mend the message log, make everything durable; returns what was done."""
    events: list[Event] = []
    last, scanned = found.segments[-1], found.scans[-1]
    if found.refused is not None:
        name, size = found.refused
        files.unlink(name)
        files.sync_folder(wal.FOLDER)
        events += [TornTailDropped(files.where(name), size)] if size else []
    if scanned.end < len(scanned.data):
        last.file.truncate(scanned.end)  # hit: K2 a torn tail is dropped
        events.append(TornTailDropped(scanned.where, len(scanned.data) - scanned.end))
    for segment in found.segments:
        segment.file.sync()
    if found.settle:
        name = wal.segment_name(last.number)
        files.rename(name + wal.NEXT, name)
    found.archive.cut_back()
    for name in found.stale:
        files.unlink(name)  # hit: K4 what a checkpoint cut short has left is removed
    files.sync_folder(wal.FOLDER)
    events += _repair_lines(files, found)
    events.append(Loaded(found.lines.delivered_seq))
    return events


def _repair_lines(files: Files, found: Found) -> list[Event]:
    file, lines = found.lines_file, found.lines
    kept = found.checkpoint.lines_bytes + lines.kept_bytes
    damaged_tail = file.size() > kept
    if damaged_tail:
        file.truncate(kept)  # hit: K3 the message log is cut to what the WAL proves
    if lines.missing:
        file.append(lines.missing)  # hit: K3 delivered lines are written again
    file.sync()
    files.sync_folder(LINES_FOLDER)
    return [MessageLogRepaired(lines.kept_seq, lines.delivered_seq)] if damaged_tail or lines.missing else []


def check_members(where: str, known: tuple[NodeId, ...], members: tuple[NodeId, ...]) -> None:
    """The configuration must name the members that the data directory was made for. Rule: M5.

    Raises:
        ConfigError: it names others: two majorities that have nobody in common could both acknowledge.
    """
    if known and members and known != members:
        # hit: M5 a data directory of other members is refused
        found, allowed = (", ".join(map(str, each)) for each in (members, known))
        raise ConfigError(
            f"peers: found members {found}, allowed {allowed}, which data directory {where} was made for: "
            "the members of a cluster can't be changed yet"
        )


def make(files: Files, node_id: NodeId, identity: str, rebuilding: bool, members: tuple[NodeId, ...]) -> None:
    """Make an empty data directory one that a Survey can read, durably. Rule: M4."""
    files.make_folder(wal.FOLDER)
    files.make_folder(LINES_FOLDER)
    first = wal.segment_name(1)
    for name in (lines_name(node_id), archive.HEADERS, archive.INDEX):
        files.open(name, create=True).close()
    files.sync_folder(LINES_FOLDER)
    file = files.open(first + wal.NEXT, create=True)
    try:
        file.truncate(0)  # What a first start has left that did not come to its end.
        file.append([wire.encode_entry(wire.Opening(1, 0, node_id, identity, rebuilding, members))])
        file.sync()
    finally:
        file.close()
    files.rename(first + wal.NEXT, first)
    files.sync_folder(wal.FOLDER)
