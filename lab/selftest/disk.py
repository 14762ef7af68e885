"""Mutants of the storage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from lab.selftest.patch import Collection, Patch
from nodeproc import recovery
from nodeproc.core.events import Event
from nodeproc.core.messages import Record, SeqNo
from nodeproc.core.recovered import Snapshot
from nodeproc.files import Files
from nodeproc.recovery import Found, Lines
from nodeproc.storage import Storage
from nodeproc.wal import Promises

DISK: Final = Collection()


@DISK.add("K3", "Recovery keeps all that the message log holds, whether the WAL proves it or not.")
def unsynced_message_log_trusted(patch: Patch) -> None:
    right = recovery.compare_lines

    def wrong(data: bytes, batches: list[Record], start: SeqNo, noted: SeqNo) -> Lines:
        lines = right(data, batches, start, noted)
        lines.kept_bytes = len(data)
        return lines

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
    right = recovery.repair

    def wrong(files: Files, found: Found) -> list[Event]:
        last = found.scans[-1]
        whole = last._replace(data=last.data[: last.end])
        return right(files, replace(found, scans=[*found.scans[:-1], whole]))

    patch.everywhere(right, wrong)
