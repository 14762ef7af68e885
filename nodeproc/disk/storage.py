"""What a node keeps on its disk: write-ahead log, message log, checkpoints. Rules: K1 to K6.

    logs/node_<id>_messages.jsonl   delivered messages, the same bytes on every node
    wal/NNNNNNNNNNNN.wal            the log's records and the node's promises, in order (wal.py, segments.py)
    wal/checkpoint                  the state up to the oldest WAL file (checkpoint.py)
    wal/archive.headers, .index     the records of dropped WAL files without their bodies (archive.py)

A truncation of the log is an entry of the WAL; no WAL file is ever cut. The message log is cut at recovery only
(recovery.py). write, deliver and the reads belong to one thread. sync and checkpoint may run in other threads, also at
the same time.

With durability "os" the operating system decides when entries reach the disk. A power loss may then take
acknowledgements and votes, and a WAL file that lost its end while the next one kept its beginning is refused as
corrupt.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple
from zlib import crc32

from nodeproc.core.effects import PersistOp
from nodeproc.core.events import CheckpointWritten, Event
from nodeproc.core.messages import Batch, Mark, NodeId, Position, Record, SeqNo
from nodeproc.core.recovered import Recovered, Snapshot
from nodeproc.disk import archive, checkpoint, recovery, wal
from nodeproc.disk.checkpoint import Checkpoint
from nodeproc.disk.files import Buffer, File, Files, pread
from nodeproc.disk.recovery import Found, Survey
from nodeproc.disk.segments import Durability, Failure, Wal, write_failed
from nodeproc.disk.wal import Place, Promises, Segment
from nodeproc.errors import ConfigError, CorruptionError, ReadFailed, Unreadable
from nodeproc.records import decode_header, joined

SEGMENT_BYTES: Final = 16 << 20
MAX_SESSIONS: Final = 100_000


def random_identity() -> str:
    """Return a new identity for a data directory: 128 random bits. Rule: M4."""
    return secrets.token_hex(16)


class _Plan(NamedTuple):
    """The content and the effects of a checkpoint, chosen at one moment.

    archived: the first places of the index; they are dropped together with their segments.
    delivered, lines_bytes: position and end in the message log of the last delivered batch.
    first_segment: the oldest segment that stays.
    tail: the last delivered places that are in the WAL, up to TAIL_BYTES of lines: the checkpoint holds their CRC.
    """

    promises: Promises
    archived: list[Place]
    segments: dict[int, Segment]
    delivered: Position
    lines_bytes: int
    first_segment: int
    tail: list[Place]


class Storage:
    """One node's disk. Made by Storage.open."""

    def __init__(
        self, files: Files, found: Found, durability: Durability, segment_bytes: int, members: tuple[NodeId, ...]
    ) -> None:
        known = found.checkpoint
        self.delivered_seq: SeqNo = found.lines.delivered_seq
        self._files, self._durability = files, durability
        self._node_id, self._identity, self._members = known.node, known.identity, known.members or members
        self._lines, self._archive = found.lines_file, found.archive
        self._failure = Failure(files)
        self._wal = Wal(files, found, durability, segment_bytes, self._members, self._failure)
        self._checkpoint_lock = threading.Lock()

    @classmethod
    def open(
        cls,
        files: Files,
        node_id: NodeId,
        *,
        durability: Durability = "fsync",
        segment_bytes: int = SEGMENT_BYTES,
        max_sessions: int = MAX_SESSIONS,
        rebuild: bool = False,
        new_identity: Callable[[], str] = random_identity,
        members: tuple[NodeId, ...] = (),
    ) -> tuple[Storage, Recovered, list[Event]]:
        """Recover the data directory, or create it if it is empty. Rule: K2, K3, K4, M4.

        Args:
            segment_bytes: a WAL file is finished once it is that long.
            max_sessions: as in CoreConfig.
            rebuild: the directory must be empty, or hold an unfinished rebuild.
            members: the ids of the cluster's founders, ascending. A directory made for others is refused. Empty: not
                checked.

        Raises:
            CorruptionError: durable data differs from what was written; nothing was changed.
            ConfigError: a rebuild over a member's data, another node's directory, or other members.
            ReadFailed: the disk reported an error on a read; nothing was changed.
            WriteFailed: creating or repairing the directory failed.
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
            if isinstance(error, OSError):
                raise write_failed(error.filename or files.where("."), error) from error
            raise
        return cls(files, found, durability, segment_bytes, members), recovered, events

    # ---- writing -----------------------------------------------------------------------------------

    def write(self, ops: Sequence[PersistOp]) -> None:
        """Append the operations to the WAL, in order. They are durable only after sync().

        Raises:
            WriteFailed: the node must stop. Rule: K5.
        """
        self._wal.write(ops, self.delivered_seq)

    def written(self) -> dict[int, int]:
        """Return WAL segment -> bytes written to it, for sync()."""
        return self._wal.written()

    def sync(self, upto: Mapping[int, int] | None = None) -> None:
        """Make everything durable that was written before the call; nothing to do for durability "os".

        May run in another thread.

        Args:
            upto: sync no more than this earlier result of written(). The simulator uses it: it calls sync() when a
                simulated sync ends.

        Raises:
            WriteFailed: the node must stop. Rule: K5.
        """
        self._failure.check()
        if self._durability == "fsync":
            self._wal.sync(upto)

    def deliver(self, records: Sequence[Record]) -> None:
        """Append the bodies of the next delivered records to the message log. Rule: D1.

        Raises:
            WriteFailed: the node must stop. Rule: K5.
        """
        self._failure.check()
        bodies: list[Buffer] = []
        last = self.delivered_seq
        for record in records:
            header = record.header
            if isinstance(header, Mark):
                continue
            assert header.first == last + 1, (header, last)
            bodies.append(record.body)
            last = header.last
        if not bodies:
            return
        try:
            self._lines.append(bodies)
        except OSError as error:
            # hit: K5 a write to the message log fails
            raise self._failure.of(recovery.lines_name(self._node_id), error) from error
        self.delivered_seq = last

    # ---- reading -----------------------------------------------------------------------------------

    def read_records(self, after: Position, max_bytes: int) -> list[Record]:
        """Return consecutive records after a position, up to max_bytes but at least one if there is any.

        Rule: R1, P1, K6.

        Raises:
            Unreadable: the first of them is damaged or can't be read.
        """
        live = self._wal
        with live.lock:
            index = live.index
            if after >= index.base:
                number = index.number_behind(after)
                pieces = live.read(index.before(number), index.some(number, max_bytes), live.segments)
                return [_record(place, head, body) for place, head, body in pieces]
        return self._archive.read(after, max_bytes)  # hit: K4 the archive serves older records

    def read_lines(self, start: SeqNo, max_bytes: int) -> tuple[bytes, SeqNo]:
        """Return delivered lines from seq_no `start` on and their last seq_no; (b"", start - 1) if there are none.

        These are the rest of the batch that holds `start`, and as many whole batches more as fit into max_bytes. Each
        batch's CRC is checked. Rule: S6, K6.

        Raises:
            Unreadable: the first batch is damaged or can't be read.
        """
        if start > self.delivered_seq:
            return b"", start - 1
        live = self._wal
        with live.lock:
            index = live.index
            number = index.number_holding(start)
            if number is not None:
                places = [place for place in index.some(number, max_bytes) if self._is_delivered(place)]
                pieces = live.read(index.before(number), places, live.segments)
                first, last = pieces[0][0].first, pieces[-1][0].position.seq_no
                bodies = [body for _, _, body in pieces]
        if number is None:
            bodies, first, last = self._archive.read_lines(start, max_bytes)
        lines = b"".join(bodies)
        return lines.split(b"\n", start - first)[-1] if start > first else lines, last

    def check(self, after: Position, max_bytes: int) -> tuple[Position, int]:
        """Read delivered records after a position, and their lines, to find damage. Rule: K6.

        May run in the thread that makes checkpoints.

        Returns:
            The position of the last record read, and the number of bytes; 0 if there are no more.

        Raises:
            Unreadable: the first record is damaged or can't be read, or the lines of one differ from it.
        """
        live = self._wal
        with live.lock:  # Not during the read: write() needs the lock.
            index = live.index
            number, cold = index.number_behind(after), after < index.base
            places = [] if cold else index.some(number, max_bytes)
            before, segments = index.before(number), dict(live.segments)
        intact = live.read(before, [place for place in places if self._is_delivered(place)], segments)
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
        try:
            checkpoint.read(self._files)
        except (CorruptionError, ReadFailed, OSError):
            live.finished_segment = True  # hit: K6 a damaged checkpoint is written anew
        return after, 0

    def behind(self, after: Position) -> Position:
        """Return the position of the next record whose place is known, or `after` if there is none."""
        live = self._wal
        with live.lock:
            if after >= live.index.base:
                places = live.index.places[live.index.number_behind(after) :][:1]
                return places[0].position if places else after
        return self._archive.behind(after)

    def _is_delivered(self, place: Place) -> bool:
        return place.position.seq_no <= self.delivered_seq

    def own_copy(self, after: Position) -> Record | None:
        """Return the record after a position, assembled from redundant data of this node, or None. Rule: K6.

        A row of the archive follows from header and lines; lines and the bodies in the WAL are the same bytes.
        """
        index = self._wal.index
        with self._wal.lock:
            if after < index.base:
                return self._archive.own_copy(after)
            number = index.number_behind(after)
            if number == len(index.places) or not self._is_delivered(place := index.places[number]):
                return None
            size, file = place.size - place.body_at, self._wal.segments[place.segment].file
            try:
                head = pread(file, place.body_at, place.at)
                bodies = [pread(file, size, place.at + place.body_at), pread(self._lines, size, place.lines_at)]
            except ReadFailed:
                return None
            return next(filter(None, (joined(head, body) for body in bodies)), None)

    def restore(self, after: Position, records: Sequence[Record]) -> list[str]:
        """Overwrite damaged delivered records after a position with a copy. Rule: K6.

        A byte that is overwritten is damaged, or has the same value before and after. So the CRC still finds whatever a
        power loss leaves unrepaired.

        Returns:
            The places that were rewritten, as "file: offset".

        Raises:
            ReadFailed: the disk refuses the copy, or the copy does not fit the intact data around it.
            WriteFailed: the storage has failed before.
        """
        self._failure.check()
        with self._wal.lock:
            base = self._wal.index.base
            cold = [record for record in records if record.position <= base]
            places = [*self._archive.places(after, cold)] if cold else []
            places += self._places(max(after, base), records[len(cold) :])
            files = {archive.HEADERS: self._archive.headers, archive.INDEX: self._archive.index}
            files[self._archive.lines_name] = self._lines
            files |= {wal.segment_name(each.number): each.file for each in self._wal.segments.values()}
        rewritten = []
        for name, at, data in places:
            if _differs(files[name], at, data):
                place = f"{self._files.where(name)}: offset {at}"
                try:
                    self._files.rewrite(name, at, data)  # hit: K6 what is damaged is overwritten
                except OSError as error:
                    raise ReadFailed(f"{place}: {error.strerror or error}") from error
                rewritten.append(place)
        return rewritten

    def _places(self, after: Position, records: Sequence[Record]) -> Iterator[tuple[str, int, Buffer]]:
        """Yield file, offset and bytes for the delivered records that are still in the WAL."""
        index = self._wal.index
        for place, record in zip(index.places[index.number_behind(after) :], records, strict=False):
            if not self._is_delivered(place) or self._wal.is_unsettled(place.segment):
                return
            if (place.position, place.size, place.body_at) != (record.position, len(record.raw), record.body_at):
                raise ReadFailed(f"a copy of {tuple(record.position)} has other lengths than the record here")
            yield wal.segment_name(place.segment), place.at, record.raw
            yield recovery.lines_name(self._node_id), place.lines_at, record.body

    # ---- checkpoints -------------------------------------------------------------------------------

    def checkpoint_due(self) -> bool:
        """Return whether a WAL segment was finished since the last checkpoint."""
        return self._wal.finished_segment

    def checkpoint(self, snapshot: Snapshot) -> Event:
        """Save the snapshot, extend the archive, drop WAL segments. May run in another thread. Rule: K4.

        The snapshot's term, vote, identities and `rebuilding` are not used: the WAL has newer ones.

        Args:
            snapshot: made after everything in it was passed to write() and deliver().

        Raises:
            ReadFailed, Unreadable: data that it needs can't be read; the checkpoint is postponed. Rule: K6.
            WriteFailed: the node must stop. Rule: K5.
        """
        self._failure.check()
        with self._checkpoint_lock:
            plan = self._plan(snapshot)
            self._wal.sync()
            try:
                self._lines.sync()
                kept = self._keep(plan, snapshot)  # hit: K4 a checkpoint is written
                with self._wal.lock:
                    self._archive.end = kept.archive
                    dropped = self._wal.drop(len(plan.archived), plan.first_segment)
                for number in dropped:
                    self._files.unlink(wal.segment_name(number))  # hit: K4 a WAL segment is dropped
            except OSError as error:
                raise self._failure.of(checkpoint.NAME, error) from error
        return CheckpointWritten(snapshot.delivered_seq, len(dropped))

    def _plan(self, snapshot: Snapshot) -> _Plan:
        """Choose the segments to drop: all their records are delivered. What the plan relies on is synced later."""
        with self._wal.lock:
            self._wal.finished_segment = False
            index, now, settled = self._wal.index, self._wal.promises, self._wal.last_settled
            promises = Promises(now.term, now.voted_for, now.rebuilding, dict(now.identities))
            count = index.delivered(snapshot.delivered_seq)
            delivered = index.places[count - 1].position if count else index.base
            assert delivered.seq_no == snapshot.delivered_seq <= self.delivered_seq, (delivered, snapshot.delivered_seq)
            lines_bytes = index.lines_end(count)
            first = min(index.places[count].segment if count < len(index.places) else settled, settled)
            archived = index.places[: min(count, index.before_segment(first))]
            start = count
            while start and lines_bytes - index.places[start - 1].lines_at < checkpoint.TAIL_BYTES:
                start -= 1
            tail = index.places[max(0, start - 1) : count]
            return _Plan(promises, archived, dict(self._wal.segments), delivered, lines_bytes, first, tail)

    def _keep(self, plan: _Plan, snapshot: Snapshot) -> Checkpoint:
        """Extend the archive and write the checkpoint, durably."""
        promises = plan.promises
        with self._wal.lock:
            newest, durable = self._wal.durable_end()
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
        """Return the CRC that checkpoint.lines_crc must find.

        It comes from records whose own CRC is right, because the message log itself may be damaged.
        """
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

    def close(self, snapshot: Snapshot | None = None) -> None:
        """Make everything durable, with a last checkpoint if a snapshot is given, and close all files.

        After a failure it only closes the files.

        Raises:
            WriteFailed: written data may not be durable. Rule: K5.
        """
        try:
            if not self._failure.reason:
                if snapshot is not None:
                    with contextlib.suppress(ReadFailed, Unreadable):  # The WAL still holds the same state.
                        self.checkpoint(snapshot)
                self._wal.sync()
                self._lines.sync()
        except OSError as error:
            raise self._failure.of(recovery.lines_name(self._node_id), error) from error
        finally:
            self._failure.reason = self._failure.reason or f"{self._files.where('.')}: storage is closed"
            kept = self._archive
            for file in (self._lines, kept.headers, kept.index, *(each.file for each in self._wal.segments.values())):
                file.close()
            self._files.close()


def _record(place: Place, head: Buffer, body: Buffer) -> Record:
    header = decode_header(head)
    assert isinstance(header, Batch | Mark) and header.position == place.position, (header, place)
    return Record(header, b"".join((head, body)), place.body_at)


def _differs(file: File, at: int, data: Buffer) -> bool:
    try:
        return pread(file, len(data), at) != bytes(data)  # Views are compared byte by byte, twenty times slower.
    except ReadFailed:
        return True
