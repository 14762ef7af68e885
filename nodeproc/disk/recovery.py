"""Recovery of a data directory: a survey that only reads, then the repair. Rules: K2, K3, K4.

A Survey raises CorruptionError for everything that differs from what was written. `repair` then makes durable all data
that the core gets. That the survey could read data does not prove that it is durable: after a failed fdatasync the
system serves pages from its cache that it never wrote, marks them clean, and the next fdatasync skips them. Therefore
everything that no claim (wal.py) covers is written again: entries of the WAL into a new segment, lines of the message
log after the log is cut.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Final, NamedTuple

from msgspec import structs

from nodeproc.core.effects import Met, Promise, Readmitted, Truncate
from nodeproc.core.events import Event, Loaded, MessageLogRepaired, TailWrittenAnew, TornTailDropped
from nodeproc.core.messages import Batch, Line, Mark, NodeId, Position, Record, SeqNo
from nodeproc.core.recovered import Recovered
from nodeproc.core.sessions import Sessions
from nodeproc.disk import archive, checkpoint, wal
from nodeproc.disk.archive import Archive
from nodeproc.disk.checkpoint import Checkpoint
from nodeproc.disk.files import File, Files, Source, read_named
from nodeproc.disk.wal import Claim, Index, Promises, Scan, Segment, damaged
from nodeproc.entries import WAL_VERSION, Committed, Entry, Opening
from nodeproc.errors import ConfigError, FrameError, ReadFailed
from nodeproc.lines import decode_node_line
from nodeproc.records import decode_entry, encode_entry

LINES_FOLDER: Final = "logs"


def lines_name(node_id: NodeId) -> str:
    return f"{LINES_FOLDER}/node_{node_id}_messages.jsonl"


def node_of(files: Source) -> NodeId:
    """Return the node that a data directory belongs to, from the name of its message log.

    Raises:
        ConfigError: the directory does not have exactly one message log.
    """
    matches = (re.fullmatch(r"node_(\d+)_messages\.jsonl", name) for name in files.names(LINES_FOLDER))
    nodes = [int(match[1]) for match in matches if match]
    if len(nodes) != 1:
        raise ConfigError(f"{files.where('.')}: not a node's data directory: {len(nodes)} message logs, allowed 1")
    return nodes[0]


@dataclass(slots=True)
class Replay:
    """The log that results from the WAL's entries.

    trusted: the position up to which the checkpoint says that everything is delivered and in the message log.
    records: the record of each place of the index; None for places up to `trusted`.
    noted: the highest seq_no that a note in the WAL calls delivered.
    end: the log's position after the latest entry; None if it depends on entries before the first segment.
    """

    trusted: Position
    index: Index
    promises: Promises
    records: list[Record | None] = field(default_factory=list)
    noted: SeqNo = 0
    end: Position | None = None

    def take(self, scan: Scan) -> None:
        """Apply the entries of a segment, in order."""
        for entry in scan.entries:
            header = entry.header
            if isinstance(header, (Batch, Mark)):
                self._append(scan, entry, header)
            elif isinstance(header, Truncate):
                self._truncate(header.keep)
            elif isinstance(header, Promise | Met | Readmitted):
                self.promises.take(header)
            elif isinstance(header, Committed):
                self.noted = max(self.noted, header.seq_no)

    def _append(self, scan: Scan, entry: Entry, header: Mark | Batch) -> None:
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
    """Return whether this record may follow a log that ends at this position."""
    if isinstance(header, Mark):
        return header.term > end.term and header.after == end.seq_no
    return header.term == end.term and header.first == end.seq_no + 1 <= header.last


@dataclass(slots=True)
class Lines:
    """The part of the message log that the checkpoint does not cover. Rule: K3.

    kept_bytes, kept_seq: how much of it was found in the file: bytes, and the last seq_no.
    bodies: what must be there, up to delivered_seq.
    """

    kept_bytes: int
    kept_seq: SeqNo
    delivered_seq: SeqNo
    bodies: list[memoryview] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(map(len, self.bodies))


def compare_lines(data: bytes, batches: list[Record], start: SeqNo, noted: SeqNo) -> Lines:
    """Find the longest prefix of lines that the WAL's batches prove, and extend it to a batch's end and to `noted`.

    Args:
        data: the message log after the part that the checkpoint covers.
        batches: the WAL's batches after that part, in order.
        start: the last seq_no that the checkpoint covers.
        noted: the last seq_no that is known to be delivered.
    """
    lines = Lines(0, start, start)
    for record in batches:
        header, body = record.header, bytes(record.body)  # Views are compared byte by byte, twenty times slower.
        assert isinstance(header, Batch), header
        found = data[lines.kept_bytes : lines.kept_bytes + len(body)] if lines.kept_seq == lines.delivered_seq else b""
        same = len(body) if found == body else _same_lines(found, body)
        if same == 0 and header.last > noted:
            break
        if same:
            lines.kept_bytes += same
            lines.kept_seq = header.last if same == len(body) else header.first + found[:same].count(b"\n") - 1
        lines.bodies.append(record.body)
        lines.delivered_seq = header.last
    return lines


def _same_lines(found: bytes, body: bytes) -> int:
    """Return how many bytes of whole lines at the start are equal."""
    same = 0
    for ours, theirs in zip(found.splitlines(True), body.splitlines(True), strict=False):
        if ours != theirs:
            break
        same += len(ours)
    return same


class Anew(NamedTuple):
    """A segment to write, with a copy of the entries at the end of the last segment.

    data_at: offset of the copy in the new segment.
    tail: bytes of the copy.
    """

    number: int
    data_at: int
    tail: int
    data: bytes


@dataclass(slots=True)
class Found:
    """The result of a survey. All its files are open.

    anew: the segment to write; None if everything that was read is durable. `replay` includes its entries already.
    claim: the highest claim found.
    dropped: torn tails and begun segments, which do not count.
    stale: names of files left by a crash between two steps of a checkpoint or of a new segment.
    """

    checkpoint: Checkpoint
    segments: list[Segment]
    replay: Replay
    archive: Archive
    lines_file: File
    lines: Lines
    anew: Anew | None
    claim: Claim
    dropped: list[TornTailDropped]
    stale: list[str]

    @property
    def lines_bytes(self) -> int:
        """Length of the message log after the repair."""
        return self.checkpoint.lines_bytes + self.lines.size

    def recovered(self, max_sessions: int) -> Recovered:
        """Return the state for the core."""
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
            promised=dict(known.promised),
        )


@contextlib.contextmanager
def reading(files: Source) -> Iterator[None]:
    """Turn the system's errors into ReadFailed, for code that only reads."""
    try:
        yield
    except OSError as error:
        raise ReadFailed(f"can't be read: {error.strerror or error}", error.filename or files.where(".")) from error


class Survey:
    """Reads a data directory. For one use."""

    def __init__(self, files: Source, node_id: NodeId) -> None:
        self.files, self.node_id = files, node_id
        self.opened: list[File] = []

    @property
    def names(self) -> list[str]:
        """Names of the files in the WAL's folder."""
        return self.files.names(wal.FOLDER)

    def close(self) -> None:
        """Close all files that the survey has opened."""
        for file in self.opened:
            file.close()

    def open(self, name: str, create: bool = False) -> File:
        file = self.files.open(name, create=create)
        self.opened.append(file)
        return file

    def _read(self, name: str, file: File, at: int) -> bytes:
        """Read a file from offset `at` to its end."""
        return read_named(self.files.where(name), file, file.size() - at, at)

    def empty(self) -> bool:
        """Return whether the node has never promised anything: no data, or a first start that was not completed.

        Raises:
            CorruptionError: the WAL is missing although the message log exists.
            ReadFailed: the disk reported an error.
        """
        with reading(self.files):
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
            CorruptionError: it differs from what was written.
            ConfigError: the directory belongs to another node.
            ReadFailed: the disk reported an error.
        """
        with reading(self.files):
            return self._run()

    def _run(self) -> Found:
        known = checkpoint.read(self.files)
        numbers = wal.segment_numbers(self.names)
        self._check_numbers(numbers, known)
        first_live = known.first_segment if known else 1
        live = [self._scan(wal.segment_name(number), number) for number in numbers if number >= first_live]
        scans, segments = [found for found, _ in live], [segment for _, segment in live]
        last, begun = scans[-1], self._begun(scans[-1])
        claim = self._highest_claim([*scans, *begun], known)
        scans = self._complete(scans, claim)
        durable = self._durable_end(last, claim)
        known = known or _unknown(scans[0])
        self._check_owner(scans, known)
        replay = self._replay(scans, known)
        lines_file, lines = self._lines(replay, known, last)
        anew = None
        if len(last.data) > durable or lines.delivered_seq > max(replay.noted, known.delivered.seq_no):
            anew = self._anew(last, durable, lines.delivered_seq)
            replay.index.move(last.number, durable, anew.number, anew.data_at)
        stale = [wal.segment_name(number) for number in numbers if number < first_live]
        stale += [checkpoint.ASIDE] if checkpoint.ASIDE.rpartition("/")[2] in self.names else []
        stale += [wal.segment_name(each.number) + wal.NEXT for each in begun if anew is None]
        dropped = [TornTailDropped(each.where, len(each.data)) for each in begun if each.data]
        if last.broken:
            dropped.append(TornTailDropped(last.where, len(last.data) - last.end))
        kept = self._archive(known, lines_file)
        return Found(known, segments, replay, kept, lines_file, lines, anew, claim, dropped, stale)

    def _check_numbers(self, numbers: list[int], known: Checkpoint | None) -> None:
        """Check that no segment is missing."""
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
                raise damaged(where, 0, f"WAL file {after} follows {before}, the files between are missing")

    def _scan(self, name: str, number: int) -> tuple[Scan, Segment]:
        file = self.open(name)
        found = wal.scan(number, self.files.where(name), self._read(name, file, 0))
        return found, Segment(number, file, found.end, found.end)

    def _begun(self, last: Scan) -> list[Scan]:
        """Return the segment without its own name, if there is one. Nothing in it was promised; it may hold claims."""
        numbers = wal.segment_numbers(self.names, wal.NEXT)
        if not numbers:
            return []
        name = wal.segment_name(numbers[0]) + wal.NEXT
        if numbers != [last.number + 1]:
            raise damaged(self.files.where(name), 0, f"begun WAL files {numbers}, allowed: [{last.number + 1}]")
        found, segment = self._scan(name, numbers[0])
        segment.file.close()
        return [found]

    def _highest_claim(self, scans: list[Scan], known: Checkpoint | None) -> Claim:
        """Return the highest claim of WAL and checkpoint: up to there the WAL was certainly durable."""
        of_checkpoint = Claim()
        if known is not None:
            of_checkpoint = Claim(known.newest_segment, known.durable, self.files.where(checkpoint.NAME))
        return max(chain([of_checkpoint], *map(wal.claims, scans)))

    def _complete(self, scans: list[Scan], claim: Claim) -> list[Scan]:
        """Cut each scan except the last to the length that the next segment's opening names."""
        for each in scans:
            if each.opening is None:
                raise damaged(each.where, 0, "the file's first entry, durable since it got its name, is broken")
        last = scans[-1]
        if claim.segment > last.number:
            # hit: K2 a missing WAL file is noticed by the file that names it
            where = self.files.where(wal.segment_name(claim.segment))
            raise damaged(where, 0, f"the WAL file is missing; {claim.where} says that it was durable")
        continued = [each.opening.previous_bytes for each in scans[1:] if each.opening is not None]
        return [wal.first_bytes(each, size) for each, size in zip(scans, continued, strict=False)] + [last]

    def _durable_end(self, last: Scan, claim: Claim) -> int:
        """Return up to which byte the last segment was certainly durable. Nothing after it was promised."""
        durable = last.entries[0].end
        if claim.segment == last.number:
            durable = max(durable, claim.durable)
        if all(entry.end != durable for entry in last.entries):
            # hit: K2 what is broken below a claim is refused
            what = last.broken or "no entry ends there"
            raise damaged(last.where, last.end, f"{what}, but {claim.where} says that {durable} bytes were durable")
        assert last.opening is not None, last.where
        if last.opening.version == 1 and (intact := next(wal.behind(last), None)) is not None:
            raise damaged(last.where, last.end, f"{last.broken}, but an intact entry follows at offset {intact.start}")
        return durable

    def _anew(self, last: Scan, durable: int, delivered_seq: SeqNo) -> Anew:
        """Return the new segment for everything that no claim covers. Rule: K2, K5."""
        number, before = last.number + 1, last.opening
        assert before is not None, last.where
        header = structs.replace(before, number=number, previous_bytes=durable, version=WAL_VERSION)
        opening = encode_entry(header)
        # Without the note a crash during the repair could lose the proof: the lines are cut and written again.
        note = encode_entry(Committed(delivered_seq, last.number, durable))
        return Anew(number, len(opening), last.end - durable, opening + last.data[durable : last.end] + note)

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
        """Apply all entries. The result must continue where the archive ends, and reach everything delivered."""
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
            entry = decode_entry(place_scan.data, place.at)
            assert entry is not None and isinstance(entry.header, Mark | Batch), place
            if not follows(entry.header, end.position):
                raise damaged(
                    place_scan.where, place.at, f"{place.position} does not follow {end.position}, the archive's"
                )
        if index.end < known.delivered or index.lines_end(index.number_behind(known.delivered)) != known.lines_bytes:
            raise damaged(last.where, last.end, f"the WAL ends at {index.end}, the checkpoint knows {known.delivered}")
        if replay.noted > index.end.seq_no:
            # hit: K2 a WAL that lost what was delivered is refused
            raise damaged(last.where, last.end, f"the WAL ends at {index.end}, but seq_no {replay.noted} was delivered")
        return replay

    def _lines(self, replay: Replay, known: Checkpoint, last: Scan) -> tuple[File, Lines]:
        """Open the message log, and compare the part that the checkpoint does not cover with the WAL. Rule: K3."""
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
        if checkpoint.lines_crc(where, file, known.lines_bytes) != known.lines_crc:
            raise damaged(where, known.lines_bytes, "the lines before this offset are not those that were delivered")
        batches = [record for record in replay.records if record is not None and isinstance(record.header, Batch)]
        data = self._read(name, file, known.lines_bytes)
        index = replay.index
        for line in data[index.lines_end(len(index.places)) - known.lines_bytes :].splitlines():
            if (seq_no := _seq_no(line)) > index.end.seq_no:
                # hit: K3 a WAL that is shorter than the message log proves is refused
                what = f"the WAL ends at {index.end}, but {where} holds the delivered line {seq_no}"
                raise damaged(last.where, last.end, what)
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
    """Return the checkpoint of a directory that has none yet."""
    opening = first.opening
    assert opening is not None, first.where
    return Checkpoint(opening.node, opening.identity, opening.rebuilding, members=opening.members)


def _seq_no(line: bytes) -> SeqNo:
    """Return the seq_no of a line of the message log, or 0 if the line is malformed."""
    try:
        found = decode_node_line(line)
    except FrameError:
        return 0
    return found.seq_no if isinstance(found, Line) else 0


def repair(files: Files, found: Found) -> list[Event]:
    """Make everything that counts durable and drop the rest; return events that describe the changes."""
    for segment in found.segments:
        segment.file.sync()
    events: list[Event] = [*found.dropped]
    if found.anew is not None:
        events += _write_anew(files, found, found.anew)
    _claim_newest(found)
    found.archive.cut_back()
    for name in found.stale:
        files.unlink(name)  # hit: K4 what a checkpoint cut short has left is removed
    files.sync_folder(wal.FOLDER)
    events += _repair_lines(files, found)
    events.append(Loaded(found.lines.delivered_seq))
    return events


def _write_anew(files: Files, found: Found, anew: Anew) -> list[Event]:
    """Write everything that no claim covers into a new segment. Until it has its name, the file before it counts."""
    name = wal.segment_name(anew.number)
    file = files.open(name + wal.NEXT, create=True)
    found.segments.append(Segment(anew.number, file, len(anew.data), len(anew.data)))
    file.truncate(0)
    file.append([anew.data])
    file.sync()
    files.rename(name + wal.NEXT, name)
    files.sync_folder(wal.FOLDER)  # hit: K5 what nobody can be sure of is written anew
    return [TailWrittenAnew(files.where(name), anew.tail)] if anew.tail else []


def _claim_newest(found: Found) -> None:
    """Note in the segment before the newest one that the newest exists."""
    if len(found.segments) > 1:
        before, newest = found.segments[-2:]
        if (newest.number, newest.synced) > found.claim[:2]:
            note = Committed(found.lines.delivered_seq, newest.number, newest.synced)
            before.file.append([encode_entry(note)])
            before.file.sync()


def _repair_lines(files: Files, found: Found) -> list[Event]:
    file, lines, trusted = found.lines_file, found.lines, found.checkpoint.lines_bytes
    size = file.size()
    if size > trusted or lines.bodies:
        file.truncate(trusted)
        file.append(lines.bodies)  # hit: K3 what no checkpoint vouches for is written anew
    file.sync()
    files.sync_folder(LINES_FOLDER)
    as_it_was = size == trusted + lines.kept_bytes == found.lines_bytes
    return [] if as_it_was else [MessageLogRepaired(lines.kept_seq, lines.delivered_seq)]


def check_members(where: str, known: tuple[NodeId, ...], members: tuple[NodeId, ...]) -> None:
    """Check that the configuration names the founders for which the data directory was made. Rule: M5.

    Raises:
        ConfigError: it names others, so two majorities without a common member could both acknowledge messages.
    """
    if known and members and known != members:
        found, allowed = (", ".join(map(str, each)) for each in (members, known))
        raise ConfigError(
            f"peers: found members {found}, allowed {allowed}, which data directory {where} was made for: "
            "this list says who founded the cluster, and changes of the members are asked of the leader"
        )


def make(files: Files, node_id: NodeId, identity: str, rebuilding: bool, members: tuple[NodeId, ...]) -> None:
    """Initialize an empty data directory, durably. Rule: M4."""
    files.make_folder(wal.FOLDER)
    files.make_folder(LINES_FOLDER)
    first = wal.segment_name(1)
    for name in (lines_name(node_id), archive.HEADERS, archive.INDEX):
        files.open(name, create=True).close()
    files.sync_folder(LINES_FOLDER)
    file = files.open(first + wal.NEXT, create=True)
    try:
        file.truncate(0)  # A first start may have crashed here before.
        opening = Opening(1, 0, node_id, identity, rebuilding, members, WAL_VERSION)
        file.append([encode_entry(opening)])
        file.sync()
    finally:
        file.close()
    files.rename(first + wal.NEXT, first)
    files.sync_folder(wal.FOLDER)
