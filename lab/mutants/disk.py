"""Mutants of the storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from lab.mutants.patch import Collection, Patch
from nodeproc import records
from nodeproc.core.effects import Fetch
from nodeproc.core.events import Event
from nodeproc.core.messages import Record, SeqNo
from nodeproc.core.recovered import Snapshot
from nodeproc.disk import recovery
from nodeproc.disk.checkpoint import Checkpoint
from nodeproc.disk.files import File, Files
from nodeproc.disk.reading import Reading
from nodeproc.disk.recovery import Anew, Found, Lines, Survey
from nodeproc.disk.segments import Wal
from nodeproc.disk.storage import Storage
from nodeproc.disk.wal import Claim, Promises, Scan
from nodeproc.errors import CorruptionError, WriteFailed

DISK: Final = Collection()


@DISK.add("K3", "Recovery keeps the whole message log, even lines that the WAL does not prove.")
def unsynced_message_log_trusted(patch: Patch) -> None:
    right = recovery.compare_lines

    def wrong(data: bytes, batches: list[Record], start: SeqNo, noted: SeqNo) -> Lines:
        lines = right(data, batches, start, noted)
        return Lines(lines.kept_bytes, lines.kept_seq, lines.delivered_seq, [memoryview(data)])

    patch.everywhere(right, wrong)


@DISK.add("K5", "Entries read after an unclean stop count as durable, although they may be in the cache only.")
def tail_trusted_after_an_unclean_end(patch: Patch) -> None:
    right = Survey._durable_end

    def wrong(self: Survey, last: Scan, claim: Claim) -> int:
        right(self, last, claim)
        return last.end

    patch.set(Survey, "_durable_end", wrong)


@DISK.add("K5", "A node continues after a failed fdatasync, as if it had succeeded.")
def failed_sync_ignored(patch: Patch) -> None:
    right = Wal.sync

    def wrong(self: Wal, upto: Mapping[int, int] | None = None) -> None:
        try:
            right(self, upto)
        except WriteFailed:
            self._failure.reason = ""

    patch.set(Wal, "sync", wrong)


@DISK.add("R5", "Records count as durable although fdatasync has written nothing.")
def sync_that_writes_nothing(patch: Patch) -> None:
    right = Wal.sync

    def wrong(self: Wal, upto: Mapping[int, int] | None = None) -> None:
        for segment in self.segments.values():
            if not isinstance(segment.file, _NeverSynced):
                segment.file = _NeverSynced(segment.file)
        right(self, upto)

    patch.set(Wal, "sync", wrong)


@DISK.add("K3", "The message log's tail stays as it was read, and the next checkpoint declares it durable.")
def message_log_trusted_as_read(patch: Patch) -> None:
    right = recovery._repair_lines

    def wrong(files: Files, found: Found) -> list[Event]:
        if found.lines_file.size() == found.lines_bytes and found.lines.kept_bytes == found.lines.size:
            return []
        return right(files, found)

    patch.everywhere(right, wrong)


@DISK.add("K3", "A WAL that ends before the delivered messages of the message log is accepted.")
def message_log_cut_below_proof(patch: Patch) -> None:
    patch.everywhere(recovery._seq_no, lambda line: 0)


@DISK.add("K2", "A missing WAL file that a claim names is not noticed if it is the newest.")
def missing_newest_wal_accepted(patch: Patch) -> None:
    right = Survey._highest_claim

    def wrong(self: Survey, scans: list[Scan], known: Checkpoint | None) -> Claim:
        claim = right(self, scans, known)
        return claim if claim.segment <= scans[-1].number else Claim()

    patch.set(Survey, "_highest_claim", wrong)


@DISK.add("K4", "A checkpoint drops WAL files whose messages are not synced in the message log.")
def checkpoint_without_syncing_the_message_log(patch: Patch) -> None:
    right = Storage.checkpoint

    def wrong(self: Storage, snapshot: Snapshot) -> Event:
        lines = self._lines
        self._lines = _NeverSynced(lines)
        try:
            return right(self, snapshot)
        finally:
            self._lines = lines

    patch.set(Storage, "checkpoint", wrong)


class _NeverSynced:
    """A file whose sync does nothing."""

    def __init__(self, file: File) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def sync(self) -> None:
        pass


def _checkpoint_without(patch: Patch, **left_out: Any) -> None:
    right = Storage._keep

    def wrong(self: Storage, plan: Any, snapshot: Snapshot) -> Any:
        return right(self, plan, replace(snapshot, **left_out))

    patch.set(Storage, "_keep", wrong)


@DISK.add("K4", "A checkpoint saves no sessions.")
def checkpoint_without_sessions(patch: Patch) -> None:
    _checkpoint_without(patch, sessions={})


@DISK.add("K4", "A checkpoint saves the sessions without their horizon.")
def checkpoint_without_the_horizon(patch: Patch) -> None:
    _checkpoint_without(patch, horizon=0)


@DISK.add("K4", "A checkpoint saves neither term nor vote.")
def checkpoint_forgets_the_vote(patch: Patch) -> None:
    right = Storage._keep

    def wrong(self: Storage, plan: Any, snapshot: Snapshot) -> Any:
        kept = plan.promises
        forgotten = Promises(rebuilding=kept.rebuilding, identities=kept.identities)
        return right(self, plan._replace(promises=forgotten), snapshot)

    patch.set(Storage, "_keep", wrong)


@DISK.add("K1", "Checksums of records are neither computed nor compared.")
def records_without_checksums(patch: Patch) -> None:
    patch.set(records, "crc32", lambda data, value=0: 0)


@DISK.add("K2", "Recovery keeps a torn tail and appends to it.")
def torn_tail_kept(patch: Patch) -> None:
    right = Survey._anew

    def wrong(self: Survey, last: Scan, durable: int, delivered_seq: SeqNo) -> Anew:
        return right(self, last._replace(end=len(last.data)), durable, delivered_seq)

    patch.set(Survey, "_anew", wrong)


@DISK.add("K6", "Records read for others are sent even if their CRC is wrong.")
def rot_served(patch: Patch) -> None:
    patch.everywhere(records.is_intact, lambda head, body: True)


@DISK.add("K6", "The leader exits when a record that a follower needs is damaged.")
def read_that_fails_ends_the_node(patch: Patch) -> None:
    right = Reading.records

    def wrong(self: Reading, fetch: Fetch) -> list[Record] | None:
        found = right(self, fetch)
        if found is None:
            raise CorruptionError(f"the records behind {tuple(fetch.after)} can't be read")
        return found

    patch.set(Reading, "records", wrong)
