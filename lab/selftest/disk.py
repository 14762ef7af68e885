"""Mutants of the storage."""

from __future__ import annotations

from typing import Any, Final

from lab.selftest.patch import Collection, Patch
from nodeproc import recovery, wire
from nodeproc.core.effects import Fetch
from nodeproc.core.messages import Record, SeqNo
from nodeproc.core.recovered import Snapshot
from nodeproc.errors import CorruptionError
from nodeproc.reading import Reading
from nodeproc.recovery import Anew, Lines, Survey
from nodeproc.storage import Storage
from nodeproc.wal import Promises, Scan

DISK: Final = Collection()


@DISK.add("K3", "Recovery keeps all that the message log holds, whether the WAL proves it or not.")
def unsynced_message_log_trusted(patch: Patch) -> None:
    right = recovery.compare_lines

    def wrong(data: bytes, batches: list[Record], start: SeqNo, noted: SeqNo) -> Lines:
        lines = right(data, batches, start, noted)
        return Lines(lines.kept_bytes, lines.kept_seq, lines.delivered_seq, [memoryview(data)])

    patch.everywhere(right, wrong)


@DISK.add("K4", "A checkpoint keeps neither term nor vote.")
def checkpoint_forgets_the_vote(patch: Patch) -> None:
    right = Storage._keep

    def wrong(self: Storage, plan: Any, snapshot: Snapshot) -> Any:
        kept = plan.promises
        forgotten = Promises(rebuilding=kept.rebuilding, identities=kept.identities)
        return right(self, plan._replace(promises=forgotten), snapshot)

    patch.set(Storage, "_keep", wrong)


@DISK.add("K2", "Recovery leaves a torn tail where it is and writes behind it.")
def torn_tail_kept(patch: Patch) -> None:
    right = Survey._anew

    def wrong(self: Survey, last: Scan, durable: int, delivered_seq: SeqNo) -> Anew:
        return right(self, last._replace(end=len(last.data)), durable, delivered_seq)

    patch.set(Survey, "_anew", wrong)


@DISK.add("K6", "What is read for others is handed out whether its CRC is right or not.")
def rot_served(patch: Patch) -> None:
    patch.everywhere(wire.is_intact, lambda head, body: True)


@DISK.add("K6", "A damaged record that a follower needs ends the leader.")
def read_that_fails_ends_the_node(patch: Patch) -> None:
    right = Reading.records

    def wrong(self: Reading, fetch: Fetch) -> list[Record] | None:
        found = right(self, fetch)
        if found is None:
            raise CorruptionError(f"the records behind {tuple(fetch.after)} can't be read")
        return found

    patch.set(Reading, "records", wrong)
