"""The WAL of a running node: its open segments, the index of their records, and what is durable. Rules: K1, K2, K5.

write() and the reads belong to one thread; sync() may run in others. No thread holds the lock while it waits for the
disk, except for a read.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from nodeproc.core.effects import PersistOp, Truncate
from nodeproc.core.messages import NodeId, Position, Record, SeqNo
from nodeproc.disk import wal
from nodeproc.disk.files import Buffer, Files
from nodeproc.disk.recovery import Found
from nodeproc.disk.wal import Place, Segment
from nodeproc.entries import WAL_VERSION, Committed, Opening
from nodeproc.errors import Unreadable, WriteFailed
from nodeproc.records import encode_entry

Durability: TypeAlias = Literal["fsync", "os"]


class Failure:
    """The first failure of a write or sync. After it the storage refuses all use: the disk's state is unknown."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.reason = ""

    def check(self) -> None:
        """Raise WriteFailed if the storage has failed or is closed. Rule: K5."""
        if self.reason:
            raise WriteFailed(self.reason)

    def of(self, name: str, error: OSError) -> WriteFailed:
        """Note a failure and return it as an error, to be raised by the caller. Rule: K5."""
        failed = write_failed(self._files.where(name), error)
        self.reason = self.reason or str(failed)
        return failed


def write_failed(where: str, error: OSError) -> WriteFailed:
    reason = error.strerror or str(error)
    advice = "start it again once the disk works: it then writes again whatever may not have reached the disk"
    return WriteFailed(f"{where}: {reason}: the node stops; {advice}")


class Wal:
    """The open WAL.

    Attributes:
        lock: guards everything here; held for moments, and for reads.
        index: all records in the segments.
        promises: the node's term, vote, identities of members, and whether it is being rebuilt.
        finished_segment: a segment was finished since the last checkpoint.
    """

    def __init__(
        self,
        files: Files,
        found: Found,
        durability: Durability,
        segment_bytes: int,
        members: tuple[NodeId, ...],
        failure: Failure,
    ) -> None:
        self._files, self._failure = files, failure
        self._durability, self._segment_bytes = durability, segment_bytes
        self._node_id, self._identity, self._members = found.checkpoint.node, found.checkpoint.identity, members
        self._noted = Committed(found.replay.noted)
        self.lock = threading.Lock()
        self.index, self.promises = found.replay.index, found.replay.promises
        self.segments = {segment.number: segment for segment in found.segments}
        self._active = found.segments[-1]
        self._unsettled: Segment | None = None
        """The active segment until it gets its own name."""
        self.finished_segment = len(found.segments) > 1
        self._sync_lock = threading.Lock()

    # ---- writing -----------------------------------------------------------------------------------

    def write(self, ops: Sequence[PersistOp], delivered_seq: SeqNo) -> None:
        """Append the operations; see Storage.write.

        Args:
            delivered_seq: the last delivered seq_no, which is noted beside them (K2).
        """
        self._failure.check()
        if not ops:
            return
        with self.lock:
            try:
                if self._active.size >= self._segment_bytes and self._unsettled is None:
                    self._begin_segment()
                self._append(ops, delivered_seq)
            except OSError as error:
                # hit: K5 a write to the WAL fails
                raise self._failure.of(wal.segment_name(self._active.number), error) from error

    def _append(self, ops: Sequence[PersistOp], delivered_seq: SeqNo) -> None:
        active, index = self._active, self.index
        number, at = active.number, active.size
        buffers: list[Buffer] = []
        note = Committed(delivered_seq, *self.durable_end())
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
                raw = encode_entry(op)
                if isinstance(op, Truncate):
                    index.truncate(op.keep)
                else:
                    self.promises.take(op)
            buffers.append(raw)
            at += len(raw)
        active.file.append(buffers)
        active.size = at

    def _begin_segment(self) -> None:
        """Continue in a new file. It gets its own name once sync() has made the file before it durable."""
        before = self._active
        number = before.number + 1
        rebuilding = self.promises.rebuilding
        header = Opening(number, before.size, self._node_id, self._identity, rebuilding, self._members, WAL_VERSION)
        opening = encode_entry(header)
        file = self._files.open(wal.segment_name(number) + wal.NEXT, create=True)
        file.append([opening])
        self._active = self.segments[number] = Segment(number, file, len(opening), 0)
        self.finished_segment = True
        if self._durability == "fsync":
            self._unsettled = self._active
        else:
            self._files.rename(wal.segment_name(number) + wal.NEXT, wal.segment_name(number))
            before.file.append([encode_entry(Committed(0, number, len(opening)))])

    def _settle(self, segment: Segment) -> None:
        """Give a segment its own name, then note that in the segment before it: a missing file is noticed then."""
        name = wal.segment_name(segment.number)
        self._files.rename(name + wal.NEXT, name)
        self._files.sync_folder(wal.FOLDER)
        before = self.segments[segment.number - 1].file
        before.append([encode_entry(Committed(0, segment.number, segment.synced))])
        before.sync()

    # ---- durability --------------------------------------------------------------------------------

    def durable_end(self) -> tuple[int, int]:
        """Return the segment and byte up to which the WAL is durable, as `durability` defines it. Needs the lock."""
        active = self._active
        if self._durability == "os":
            return active.number, active.size
        if self._unsettled is not None:
            active = self.segments[active.number - 1]
        return active.number, active.synced

    def written(self) -> dict[int, int]:
        """Return segment -> bytes written to it, for sync()."""
        with self.lock:
            return {each.number: each.size for each in self.segments.values()}

    def sync(self, upto: Mapping[int, int] | None = None) -> None:
        """See Storage.sync, but for both kinds of durability."""
        with self._sync_lock:
            # After a failed fdatasync a second one would succeed without having written anything.
            self._failure.check()
            ends = self.written() if upto is None else upto
            with self.lock:
                unsettled = self._unsettled
                behind = [
                    (each, size) for each in self.segments.values() if each.synced < (size := ends.get(each.number, 0))
                ]
            try:
                for segment, size in behind:
                    segment.file.sync()
                    segment.synced = size
                if unsettled is not None and unsettled.number in ends:
                    self._settle(unsettled)
                    with self.lock:
                        self._unsettled = None
            except OSError as error:
                raise self._failure.of(wal.FOLDER, error) from error  # hit: K5 a sync fails

    # ---- reading and dropping ----------------------------------------------------------------------

    def is_unsettled(self, number: int) -> bool:
        """Whether this segment does not have its own name yet. Needs the lock."""
        return self._unsettled is not None and self._unsettled.number == number

    @property
    def last_settled(self) -> int:
        """Number of the newest segment that has its own name. Needs the lock."""
        return self._active.number - (self._unsettled is not None)

    def read(
        self, before: Position, places: Sequence[Place], segments: Mapping[int, Segment]
    ) -> list[tuple[Place, Buffer, Buffer]]:
        """Return header and body of the records at these places, up to the first damaged one.

        Args:
            before: position of the record before the first place.
            segments: the open segments.

        Raises:
            Unreadable: the first record is damaged or can't be read.
        """
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

    def drop(self, count: int, first_segment: int) -> list[int]:
        """Forget the first records, and close the segments before this one; return their numbers. Needs the lock."""
        self.index.drop(count)
        dropped = [number for number in self.segments if number < first_segment]
        for number in dropped:
            self.segments.pop(number).file.close()
        return dropped
