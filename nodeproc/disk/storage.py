"""What a node keeps on its disk: write-ahead log, message log, checkpoints. Rules: K1 to K5.

    logs/node_<id>_messages.jsonl   delivered messages, the same bytes on every node
    wal/NNNNNNNNNNNN.wal            the log's records and the node's promises, in order (wal.py)
    wal/checkpoint                  what is known of the log behind the oldest WAL file (checkpoint.py)
    wal/archive.headers, .index     the records of dropped WAL files without their bodies (archive.py)

Truncation is an entry of the WAL, and no WAL file is ever cut; the message log is, but only at recovery
(recovery.py). write, deliver and the reads belong to one thread. sync and checkpoint may run in others, also at
the same time; none of them holds a lock that the first thread needs while it waits for the disk.

Durability "os" leaves it to the system when entries reach the disk: a power loss may then take what was acknowledged or
voted, and a WAL file that lost its end while the next one kept its beginning is refused as corrupt.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias
from zlib import crc32

from nodeproc.core.effects import PersistOp, Truncate
from nodeproc.core.events import CheckpointWritten, Event
from nodeproc.core.messages import Batch, Mark, NodeId, Position, Record, SeqNo
from nodeproc.core.recovered import Recovered, Snapshot
from nodeproc.disk import archive, checkpoint, recovery, wal
from nodeproc.disk.checkpoint import Checkpoint
from nodeproc.disk.files import Buffer, File, Files, pread
from nodeproc.disk.recovery import Found, Survey
from nodeproc.disk.wal import Place, Promises, Segment
from nodeproc.errors import ConfigError, CorruptionError, ReadFailed, Unreadable, WriteFailed
from nodeproc.records import WAL_VERSION, Committed, Opening, decode_header, encode_entry, encode_op, joined

Durability: TypeAlias = Literal["fsync", "os"]

SEGMENT_BYTES = 16 << 20


def random_identity() -> str:
    """A fresh identity of a data directory: 128 random bits. Rule: M4."""
    return secrets.token_hex(16)


class _Plan(NamedTuple):
    """What a checkpoint will say and do, fixed at one moment.

    archived: the first places, which are dropped with their segments.
    delivered, lines_bytes: position and end in the message log of the last delivered batch.
    first_segment: the oldest that stays.
    """

    promises: Promises
    archived: list[Place]
    segments: dict[int, Segment]
    delivered: Position
    lines_bytes: int
    first_segment: int
    tail: list[Place]
    """The last delivered places: the lines that the checkpoint vouches for, or as many of them as are in the WAL."""


class Storage:
    """One node's disk. Made by Storage.open."""

    def __init__(
        self, files: Files, found: Found, durability: Durability, segment_bytes: int, members: tuple[NodeId, ...]
    ) -> None:
        known = found.checkpoint
        self.delivered_seq: SeqNo = found.lines.delivered_seq
        self._files = files
        self._durability, self._segment_bytes = durability, segment_bytes
        self._node_id, self._identity, self._members = known.node, known.identity, known.members or members
        self._lines = found.lines_file
        self._archive = found.archive
        self._noted = Committed(found.replay.noted)
        self._failed = ""
        self._lock = threading.Lock()
        """Guards all below; held for moments only."""
        self._index, self._promises = found.replay.index, found.replay.promises
        self._segments = {segment.number: segment for segment in found.segments}
        self._active = found.segments[-1]
        self._unsettled: Segment | None = None
        """The active segment while it has not got its own name."""
        self._finished_segment = len(found.segments) > 1
        self._sync_lock = threading.Lock()
        self._checkpoint_lock = threading.Lock()

    @classmethod
    def open(
        cls,
        files: Files,
        node_id: NodeId,
        *,
        durability: Durability = "fsync",
        segment_bytes: int = SEGMENT_BYTES,
        max_sessions: int = 100_000,
        rebuild: bool = False,
        new_identity: Callable[[], str] = random_identity,
        members: tuple[NodeId, ...] = (),
    ) -> tuple[Storage, Recovered, list[Event]]:
        """Recover what the directory holds; make it where it is empty. Rule: K2, K3, K4, M4.

        Args:
            segment_bytes: a WAL file is finished once it is that long.
            max_sessions: as in CoreConfig.
            rebuild: the directory must be empty, or hold a rebuild that is not over.
            members: all ids of the cluster, ascending; a directory made for others is refused. Empty: whatever it says.

        Raises:
            CorruptionError: what is there is not what was written; nothing was changed.
            ConfigError: `rebuild` of a directory that holds a member's data, another node's data, other members.
            WriteFailed: reading, repairing or making it failed.
        """
        survey = Survey(files, node_id)
        try:
            if survey.empty():
                survey.close()
                recovery.make(files, node_id, new_identity(), rebuild, members)
                survey = Survey(files, node_id)
            found = survey.run()
            recovery.check_members(files.where("."), found.checkpoint.members, members)
            if rebuild and not found.replay.promises.rebuilding:
                where = files.where(".")
                # hit: M4 a rebuild over a member's data is refused
                raise ConfigError(
                    f"--rebuild: data directory {where} holds a member's data; move it away, then start again"
                )
            recovered = found.recovered(max_sessions)
            events = recovery.repair(files, found)
        except BaseException as error:
            survey.close()
            if isinstance(error, ReadFailed):
                advice = "nothing was changed; start the node again once the disk can be read"
                raise WriteFailed(f"{error}: {advice}") from error
            if isinstance(error, OSError):
                raise _write_failed(error.filename or files.where("."), error) from error
            raise
        return cls(files, found, durability, segment_bytes, members), recovered, events

    # ---- writing -----------------------------------------------------------------------------------

    def write(self, ops: Sequence[PersistOp]) -> None:
        """Append the operations to the WAL, in order; durable only after sync().

        Raises:
            WriteFailed: the node must stop. Rule: K5.
        """
        self._check()
        if not ops:
            return
        with self._lock:
            try:
                if self._active.size >= self._segment_bytes and self._unsettled is None:
                    self._begin_segment()
                self._append(ops)
            except OSError as error:
                # hit: K5 a write to the WAL fails
                raise self._give_up(wal.segment_name(self._active.number), error) from error

    def _append(self, ops: Sequence[PersistOp]) -> None:
        active, index = self._active, self._index
        number, at = active.number, active.size
        buffers: list[Buffer] = []
        note = Committed(self.delivered_seq, *self._durable_end())
        if note != self._noted:
            self._noted = note
            buffers.append(encode_entry(note))
            at += len(buffers[0])
        for op in ops:
            if isinstance(op, Record):
                raw = op.raw
                assert op.header.position > index.end, (op.header, index.end)
                index.append(op.header, number, at, op.body_at, len(raw))
            else:
                raw = encode_op(op)
                if isinstance(op, Truncate):
                    index.truncate(op.keep)
                else:
                    self._promises.take(op)
            buffers.append(raw)
            at += len(raw)
        active.file.append(buffers)
        active.size = at

    def _durable_end(self) -> tuple[int, int]:
        """Segment and byte up to which the WAL is durable, as `durability` means it. Needs the lock."""
        active = self._active
        if self._durability == "os":
            return active.number, active.size
        if self._unsettled is not None:
            active = self._segments[active.number - 1]
        return active.number, active.synced

    def _begin_segment(self) -> None:
        """Go on in a new file. It gets its own name when sync() has made the one before it durable."""
        before = self._active
        number = before.number + 1
        rebuilding = self._promises.rebuilding
        header = Opening(number, before.size, self._node_id, self._identity, rebuilding, self._members, WAL_VERSION)
        opening = encode_entry(header)
        file = self._files.open(wal.segment_name(number) + wal.NEXT, create=True)
        file.append([opening])
        self._active = self._segments[number] = Segment(number, file, len(opening), 0)
        self._finished_segment = True
        if self._durability == "fsync":
            self._unsettled = self._active
        else:
            self._files.rename(wal.segment_name(number) + wal.NEXT, wal.segment_name(number))
            before.file.append([encode_entry(Committed(0, number, len(opening)))])

    def _settle(self, segment: Segment) -> None:
        """Give a segment its own name, then note in the one before it that it has it, so that it can't go missing."""
        name = wal.segment_name(segment.number)
        self._files.rename(name + wal.NEXT, name)
        self._files.sync_folder(wal.FOLDER)
        before = self._segments[segment.number - 1].file
        before.append([encode_entry(Committed(0, segment.number, segment.synced))])
        before.sync()

    def written(self) -> dict[int, int]:
        """Segment -> bytes written to it; for sync()."""
        with self._lock:
            return {each.number: each.size for each in self._segments.values()}

    def sync(self, upto: Mapping[int, int] | None = None) -> None:
        """Make all that was written before the call durable. May run in another thread. Nothing to do for "os".

        Args:
            upto: no more than this, which written() returned: of a simulated sync only the end is a call.

        Raises:
            WriteFailed: the node must stop. Rule: K5.
        """
        self._check()
        if self._durability == "fsync":
            self._sync(upto)

    def _sync(self, upto: Mapping[int, int] | None = None) -> None:
        with self._sync_lock:
            self._check()  # Another thread's may have failed meanwhile. A second try would succeed and prove nothing.
            ends = self.written() if upto is None else upto
            with self._lock:
                unsettled = self._unsettled
                behind = [
                    (each, size) for each in self._segments.values() if each.synced < (size := ends.get(each.number, 0))
                ]
            try:
                for segment, size in behind:
                    segment.file.sync()
                    segment.synced = size
                if unsettled is not None and unsettled.number in ends:
                    self._settle(unsettled)
                    with self._lock:
                        self._unsettled = None
            except OSError as error:
                raise self._give_up(wal.FOLDER, error) from error  # hit: K5 a sync fails

    def deliver(self, records: Sequence[Record]) -> None:
        """Append the bodies of the next delivered records to the message log. Rule: D1.

        Raises:
            WriteFailed: the node must stop. Rule: K5.
        """
        self._check()
        bodies: list[Buffer] = []
        size, last = 0, self.delivered_seq
        for record in records:
            header = record.header
            if isinstance(header, Mark):
                continue
            assert header.first == last + 1, (header, last)
            bodies.append(record.body)
            size += len(record.raw) - record.body_at
            last = header.last
        if not bodies:
            return
        try:
            self._lines.append(bodies)
        except OSError as error:
            # hit: K5 a write to the message log fails
            raise self._give_up(recovery.lines_name(self._node_id), error) from error
        self.delivered_seq = last

    # ---- reading -----------------------------------------------------------------------------------

    def read_records(self, after: Position, max_bytes: int) -> list[Record]:
        """Consecutive records behind a position, up to max_bytes but at least one if there is any. Rule: R1, P1, K6.

        Raises:
            Unreadable: the very first of them can't be read or is damaged.
        """
        with self._lock:
            if after >= self._index.base:
                number = self._index.number_behind(after)
                pieces = self._intact(self._index.before(number), self._index.some(number, max_bytes), self._segments)
                return [_record(place, head, body) for place, head, body in pieces]
        return self._archive.read(after, max_bytes)  # hit: K4 the archive serves older records

    def read_lines(self, start: SeqNo, max_bytes: int) -> tuple[bytes, SeqNo]:
        """Delivered lines from seq_no `start` on and the last seq_no in them; (b"", start - 1) where there is none.

        The rest of the batch that holds `start`, and as many whole batches more as fit into max_bytes, each checked by
        its CRC. Rule: S6, K6.

        Raises:
            Unreadable: that batch can't be read or is damaged.
        """
        if start > self.delivered_seq:
            return b"", start - 1
        with self._lock:
            number = self._index.number_holding(start)
            if number is not None:
                places = [place for place in self._index.some(number, max_bytes) if self._is_delivered(place)]
                pieces = self._intact(self._index.before(number), places, self._segments)
                first, last = pieces[0][0].first, pieces[-1][0].position.seq_no
                bodies = [body for _, _, body in pieces]
        if number is None:
            bodies, first, last = self._archive.read_lines(start, max_bytes)
        lines = b"".join(bodies)
        return lines.split(b"\n", start - first)[-1] if start > first else lines, last

    def check(self, after: Position, max_bytes: int) -> tuple[Position, int]:
        """Read delivered records behind a position, and their lines.

        Returns:
            Where they end, and their bytes; 0 for none.

        May run in the thread that makes checkpoints. Rule: K6.

        Raises:
            Unreadable: the very first of them can't be read or is damaged, or one of those lines is.
        """
        with self._lock:  # Not while it reads: write() needs the lock.
            number, cold = self._index.number_behind(after), after < self._index.base
            places = [] if cold else self._index.some(number, max_bytes)
            before, segments = self._index.before(number), dict(self._segments)
        intact = self._intact(before, [place for place in places if self._is_delivered(place)], segments)
        for at, (place, _, body) in enumerate(intact):
            if _differs(self._lines, place.lines_at, body):
                before = places[at - 1].position if at else before
                where = self._files.where(recovery.lines_name(self._node_id))
                # hit: K6 a damaged line that the WAL still holds is found
                raise Unreadable(before, where, place.lines_at, "the lines are not those that were delivered")
        if cold:
            records = self._archive.read(after, max_bytes)
            return records[-1].position, sum(len(record.raw) for record in records)
        if intact:
            return intact[-1][0].position, sum(each[0].size for each in intact)
        self._check_checkpoint()
        return after, 0

    def _check_checkpoint(self) -> None:
        """What a checkpoint says is known here: a damaged one is written anew before a restart needs it."""
        try:
            checkpoint.read(self._files)
        except (CorruptionError, ReadFailed, OSError):
            self._finished_segment = True  # hit: K6 a damaged checkpoint is written anew

    def behind(self, after: Position) -> Position:
        """Of the next record of which it is known where it stands, or the same where there is none."""
        with self._lock:
            if after >= self._index.base:
                places = self._index.places[self._index.number_behind(after) :][:1]
                return places[0].position if places else after
        return self._archive.behind(after)

    def _is_delivered(self, place: Place) -> bool:
        return place.position.seq_no <= self.delivered_seq

    def _intact(
        self, before: Position, places: Sequence[Place], segments: Mapping[int, Segment]
    ) -> list[tuple[Place, Buffer, Buffer]]:
        """Header and body of the records behind a position, which are in WAL files, up to one that is damaged."""
        found: list[tuple[Place, Buffer, Buffer]] = []
        for run in wal.runs(places):
            intact = wal.read_run(segments[run[0].segment], run)
            found += intact
            if len(intact) < len(run):
                break
        if places and not found:
            where = self._files.where(wal.segment_name(places[0].segment))
            # hit: K6 a damaged record in the WAL is found by a read
            raise Unreadable(before, where, places[0].at, "the record is damaged or can't be read")
        return found

    def own_copy(self, after: Position) -> Record | None:
        """The record behind a position, put together from what this node has twice; None where it can't be. Rule: K6.

        A row of the archive follows from headers and lines; lines and the bodies in the WAL are the same bytes.
        """
        with self._lock:
            if after < self._index.base:
                return self._archive.own_copy(after)
            number = self._index.number_behind(after)
            if number == len(self._index.places) or not self._is_delivered(place := self._index.places[number]):
                return None
            size, file = place.size - place.body_at, self._segments[place.segment].file
            try:
                head = pread(file, place.body_at, place.at)
                bodies = [pread(file, size, place.at + place.body_at), pread(self._lines, size, place.lines_at)]
            except ReadFailed:
                return None
            return next(filter(None, (joined(head, body) for body in bodies)), None)

    def restore(self, after: Position, records: Sequence[Record]) -> list[str]:
        """Put a copy of the delivered records behind a position in the place of those that are damaged. Rule: K6.

        Each byte that is overwritten is damaged, or has the same value before and after: whatever a power loss leaves
        of it is found by a CRC again.

        Returns:
            What was rewritten, as "file: offset".

        Raises:
            ReadFailed: the disk does not take them, or they do not fit to what is intact here.
            WriteFailed: the storage is given up already.
        """
        self._check()
        with self._lock:
            base = self._index.base
            cold = [record for record in records if record.position <= base]
            places = [*self._archive.places(after, cold)] if cold else []
            places += self._places(max(after, base), records[len(cold) :])
            files = {archive.HEADERS: self._archive.headers, archive.INDEX: self._archive.index}
            files[self._archive.lines_name] = self._lines
            files |= {wal.segment_name(each.number): each.file for each in self._segments.values()}
        rewritten = []
        for name, at, data in places:
            if _differs(files[name], at, data):
                try:
                    self._files.rewrite(name, at, data)  # hit: K6 what is damaged is overwritten
                except OSError as error:
                    raise ReadFailed(f"{self._files.where(name)}: offset {at}: {error.strerror or error}") from error
                rewritten.append(f"{self._files.where(name)}: offset {at}")
        return rewritten

    def _places(self, after: Position, records: Sequence[Record]) -> Iterator[tuple[str, int, Buffer]]:
        """Where delivered records that are still in the WAL belong: file, offset, bytes."""
        number, unsettled = self._index.number_behind(after), self._unsettled
        for place, record in zip(self._index.places[number:], records, strict=False):
            if not self._is_delivered(place) or (unsettled is not None and place.segment == unsettled.number):
                return
            if (place.position, place.size, place.body_at) != (record.position, len(record.raw), record.body_at):
                raise ReadFailed(f"a copy of {tuple(record.position)} has other lengths than the record here")
            yield wal.segment_name(place.segment), place.at, record.raw
            yield recovery.lines_name(self._node_id), place.lines_at, record.body

    # ---- checkpoints -------------------------------------------------------------------------------

    def checkpoint_due(self) -> bool:
        """A WAL segment was finished since the last checkpoint."""
        return self._finished_segment

    def checkpoint(self, snapshot: Snapshot) -> Event:
        """Keep the snapshot, extend the archive, drop WAL segments. May run in another thread. Rule: K4.

        Its term, vote, identities and rebuilding are not used: what was written to the WAL by now is newer.

        Args:
            snapshot: made after all that it knows was handed to write() and deliver().

        Raises:
            ReadFailed: what it needs can't be read; put off until the next WAL segment is finished. Rule: K6.
            WriteFailed: the node must stop. Rule: K5.
        """
        self._check()
        with self._checkpoint_lock:
            plan = self._plan(snapshot)
            self._sync()
            try:
                self._lines.sync()
                kept = self._keep(plan, snapshot)  # hit: K4 a checkpoint is written
                with self._lock:
                    self._archive.end = kept.archive
                    self._index.drop(len(plan.archived))
                    dropped = [each for each in self._segments.values() if each.number < plan.first_segment]
                    for segment in dropped:
                        del self._segments[segment.number]
                        segment.file.close()
                for segment in dropped:
                    self._files.unlink(wal.segment_name(segment.number))  # hit: K4 a WAL segment is dropped
            except OSError as error:
                raise self._give_up(checkpoint.NAME, error) from error
        return CheckpointWritten(snapshot.delivered_seq, len(dropped))

    def _plan(self, snapshot: Snapshot) -> _Plan:
        """Choose what is dropped: segments whose records are all delivered. What it says is synced before it counts."""
        with self._lock:
            self._finished_segment = False
            index, now = self._index, self._promises
            promises = Promises(now.term, now.voted_for, now.rebuilding, dict(now.identities))
            count = index.delivered(snapshot.delivered_seq)
            delivered = index.places[count - 1].position if count else index.base
            assert delivered.seq_no == snapshot.delivered_seq <= self.delivered_seq, (delivered, snapshot.delivered_seq)
            lines_bytes = index.lines_end(count)
            settled = self._active.number - (1 if self._unsettled is not None else 0)
            first = min(index.places[count].segment if count < len(index.places) else settled, settled)
            archived = index.places[: min(count, index.before_segment(first))]
            start = count
            while start and lines_bytes - index.places[start - 1].lines_at < checkpoint.TAIL_BYTES:
                start -= 1
            tail = index.places[max(0, start - 1) : count]
            return _Plan(promises, archived, dict(self._segments), delivered, lines_bytes, first, tail)

    def _keep(self, plan: _Plan, snapshot: Snapshot) -> Checkpoint:
        """Extend the archive and write the checkpoint, durably."""
        promises = plan.promises
        with self._lock:
            newest, durable = self._durable_end()
        kept = Checkpoint(
            node=self._node_id,
            identity=self._identity,
            rebuilding=promises.rebuilding,
            term=promises.term,
            voted_for=promises.voted_for,
            identities=promises.identities,
            marks=tuple(mark for mark in snapshot.marks if mark.position < plan.delivered),
            delivered=plan.delivered,
            sessions=snapshot.sessions,
            horizon=snapshot.horizon,
            lines_bytes=plan.lines_bytes,
            lines_crc=self._tail_crc(plan),
            archive=self._archive.extend(plan.archived, plan.segments),
            first_segment=plan.first_segment,
            members=self._members,
            promised=snapshot.promised,
            newest_segment=newest,
            durable=durable,
        )
        checkpoint.write(self._files, kept)
        return kept

    def _tail_crc(self, plan: _Plan) -> int:
        """What checkpoint.lines_crc must find, from records that their CRC proves: the file itself may have rotted."""
        bodies: list[Buffer] = []
        for run in wal.runs(plan.tail):
            intact = wal.read_run(plan.segments[run[0].segment], run)
            if len(intact) < len(run):
                raise ReadFailed(f"{self._files.where(wal.FOLDER)}: delivered records can't be read or are damaged")
            bodies += [body for _, _, body in intact]
        lacking = checkpoint.TAIL_BYTES - sum(map(len, bodies))
        if lacking > 0:
            bodies.insert(0, self._archive.tail(lacking))
        return crc32(b"".join(bodies)[-checkpoint.TAIL_BYTES :])

    # ---- the end -----------------------------------------------------------------------------------

    def synced_offsets(self) -> dict[str, int]:
        """File name -> bytes known to be durable, for every WAL segment."""
        with self._lock:
            return {wal.segment_name(each.number): each.synced for each in self._segments.values()}

    def close(self, snapshot: Snapshot | None = None) -> None:
        """Make everything durable, with a last checkpoint where a snapshot is given, and close all files.

        After a failure it only closes.

        Raises:
            WriteFailed: what was written may not be durable. Rule: K5.
        """
        try:
            if not self._failed:
                if snapshot is not None:
                    with contextlib.suppress(ReadFailed, Unreadable):  # The WAL still holds what it would have said.
                        self.checkpoint(snapshot)
                self._sync()
                self._lines.sync()
        except OSError as error:
            raise self._give_up(recovery.lines_name(self._node_id), error) from error
        finally:
            self._failed = self._failed or f"{self._files.where('.')}: storage is closed"
            kept = self._archive
            for file in (self._lines, kept.headers, kept.index, *(each.file for each in self._segments.values())):
                file.close()
            self._files.close()

    def _check(self) -> None:
        if self._failed:
            raise WriteFailed(self._failed)

    def _give_up(self, name: str, error: OSError) -> WriteFailed:
        """Refuse all further use: what a failed write or fdatasync left is unknown. Rule: K5."""
        failed = _write_failed(self._files.where(name), error)
        self._failed = self._failed or str(failed)
        return failed


def _record(place: Place, head: Buffer, body: Buffer) -> Record:
    header = decode_header(head)
    assert isinstance(header, Batch | Mark) and header.position == place.position, (header, place)
    return Record(header, b"".join((head, body)), place.body_at)


def _differs(file: File, at: int, data: Buffer) -> bool:
    try:
        return pread(file, len(data), at) != data
    except ReadFailed:
        return True


def _write_failed(where: str, error: OSError) -> WriteFailed:
    reason = error.strerror or str(error)
    advice = "start it again once the disk works: it then writes anew whatever may not have reached the disk"
    return WriteFailed(f"{where}: {reason}: the node stops; {advice}")
