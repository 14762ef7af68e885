"""What a data directory holds, found out without changing it, and then made whole. Rules: K2, K3, K4.

A Survey only reads, and raises CorruptionError for whatever is not as it was written; `repair` then makes durable all
that is handed to the core. What was read is no proof of that: after a failed fdatasync the system serves from its cache
pages that it never wrote, calls them clean, and the next fdatasync passes over them. So whatever no claim
(wal.py) covers is written anew: entries of the WAL into a new segment, lines of the message log behind a cut.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import NamedTuple

from msgspec import structs

from nodeproc.core.effects import Met, Promise, Readmitted, Truncate
from nodeproc.core.events import Event, Loaded, MessageLogRepaired, TailWrittenAnew, TornTailDropped
from nodeproc.core.messages import Batch, Line, Mark, NodeId, Position, Record, SeqNo
from nodeproc.core.recovered import Recovered
from nodeproc.core.sessions import Sessions
from nodeproc.disk import archive, checkpoint, wal
from nodeproc.disk.archive import Archive
from nodeproc.disk.checkpoint import Checkpoint
from nodeproc.disk.files import File, Files, read_named
from nodeproc.disk.wal import Claim, Index, Promises, Scan, Segment, damaged
from nodeproc.errors import ConfigError, FrameError
from nodeproc.lines import decode_node_line
from nodeproc.records import WAL_VERSION, Committed, Entry, Opening, decode_entry, encode_entry

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
    """May this record stand behind a log that ends there?"""
    if isinstance(header, Mark):
        return header.term > end.term and header.after == end.seq_no
    return header.term == end.term and header.first == end.seq_no + 1 <= header.last


@dataclass(slots=True)
class Lines:
    """What belongs into the message log behind what is trusted. Rule: K3.

    kept_bytes, kept_seq: so much of it was there.
    bodies: all of it, up to delivered_seq.
    """

    kept_bytes: int
    kept_seq: SeqNo
    delivered_seq: SeqNo
    bodies: list[memoryview] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(map(len, self.bodies))


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
        lines.bodies.append(body)
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


class Anew(NamedTuple):
    """A segment to be written, with a copy of the last one's entries from some offset on.

    data_at: where the copy begins, tail: its bytes.
    """

    number: int
    data_at: int
    tail: int
    data: bytes


@dataclass(slots=True)
class Found:
    """What a survey found. Files are open.

    anew: the segment to be written; None where all that was read is durable. `replay` has its entries in it already.
    claim: the highest there is.
    dropped: what of the WAL is torn or begun and does not count: file and bytes.
    stale: names of files that a crash between two steps of a checkpoint or of a new segment has left.
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
        """Length of the message log once it is repaired."""
        return self.checkpoint.lines_bytes + self.lines.size

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
            promised=dict(known.promised),
        )


class Survey:
    """Reads a data directory. Made for one use."""

    def __init__(self, files: Files, node_id: NodeId) -> None:
        self.files, self.node_id = files, node_id
        self.opened: list[File] = []

    @property
    def names(self) -> list[str]:
        """Names of the files in the WAL's folder."""
        return self.files.names(wal.FOLDER)

    def close(self) -> None:
        """Close what a failed survey has opened."""
        for file in self.opened:
            file.close()

    def open(self, name: str, create: bool = False) -> File:
        file = self.files.open(name, create=create)
        self.opened.append(file)
        return file

    def _read(self, name: str, file: File, at: int) -> bytes:
        """A file from offset `at` to its end.

        Raises:
            ReadFailed: the disk gave an error.
        """
        return read_named(self.files.where(name), file, file.size() - at, at)

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

    def _scan(self, name: str, number: int) -> tuple[Scan, Segment]:
        file = self.open(name)
        found = wal.scan(number, self.files.where(name), self._read(name, file, 0))
        return found, Segment(number, file, found.end, found.end)

    def _begun(self, last: Scan) -> list[Scan]:
        """The segment without its own name, if there is one. Nothing in it was promised; it may hold claims."""
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
        """What was durable for certain, as the WAL and the checkpoint say."""
        of_checkpoint = Claim()
        if known is not None:
            of_checkpoint = Claim(known.newest_segment, known.durable, self.files.where(checkpoint.NAME))
        return max(chain([of_checkpoint], *map(wal.claims, scans)))

    def _complete(self, scans: list[Scan], claim: Claim) -> list[Scan]:
        """The scans of what counts: of each segment but the last that is as much as the next one continues."""
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
        """So many bytes of the last segment were durable for certain; what is broken behind them was never promised."""
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
        """The segment for all that no claim covers. Rule: K2, K5."""
        number, before = last.number + 1, last.opening
        assert before is not None, last.where
        header = structs.replace(before, number=number, previous_bytes=durable, version=WAL_VERSION)
        opening = encode_entry(header)
        # The note outlives the lines that prove it, which are cut and written again.
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
            entry = decode_entry(place_scan.data, place.at)
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

    def _lines(self, replay: Replay, known: Checkpoint, last: Scan) -> tuple[File, Lines]:
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
    """What a checkpoint made at the very start would say."""
    opening = first.opening
    assert opening is not None, first.where
    return Checkpoint(opening.node, opening.identity, opening.rebuilding, members=opening.members)


def _seq_no(line: bytes) -> SeqNo:
    """Of an intact line of the message log; 0 for anything else."""
    try:
        found = decode_node_line(line)
    except FrameError:
        return 0
    return found.seq_no if isinstance(found, Line) else 0


def repair(files: Files, found: Found) -> list[Event]:
    """Make all that was found durable, and drop what does not count; returns what was done."""
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
    """Write what no claim covers into a segment of its own; until that has its name, the file before it counts."""
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
    """The file before the newest one names it."""
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
    """The configuration must name the members that the data directory was made for. Rule: M5.

    Raises:
        ConfigError: it names others: two majorities that have nobody in common could both acknowledge.
    """
    if known and members and known != members:
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
        opening = Opening(1, 0, node_id, identity, rebuilding, members, WAL_VERSION)
        file.append([encode_entry(opening)])
        file.sync()
    finally:
        file.close()
    files.rename(first + wal.NEXT, first)
    files.sync_folder(wal.FOLDER)
