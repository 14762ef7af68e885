"""`disk`: a disk goes bad, or is copied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from lab.steps.entry import Entry
from lab.steps.outlook import DOWN, Outlook
from lab.steps.reducing import shorter
from lab.steps.step import Fault, Needs
from lab.words import Duration, Target
from nodeproc.yamlfile import Place


class Disk(Fault, frozen=True):
    """The disks of these nodes go bad, or are copied, in exactly one of seven ways.

    slow: each fdatasync takes that much longer.
    full: nothing more can be written.
    failing: fdatasync (sync) or writes (append) fail.
    rot: one byte of synced data changes, in the log (wal), in the last delivered message of the log (last), in
        messages.jsonl (messages) or in the checkpoint; or in what is older than any restart looks at: lines of
        messages.jsonl, headers or index of the archive.
    lose: the checkpoint, messages.jsonl or the newest file of the log (wal) is gone, or all: an empty data directory is
        left.
    copy: nothing goes bad: the data directory is copied as it is now, for a later `restore`.
    restore: the latest copy takes the place of the data directory.
    lose, restore, and rot that is not old, happen while the node is down; a node that runs is killed first.
    """

    word = "disk"
    rows = ("disk", "kill")
    on: Target
    slow: Duration = Duration(0)
    full: bool = False
    failing: Literal["", "sync", "append"] = ""
    rot: Literal["", "wal", "last", "messages", "checkpoint", "old_lines", "old_headers", "old_index"] = ""
    lose: Literal["", "checkpoint", "messages", "wal", "all"] = ""
    copy: bool = False
    restore: bool = False

    def check(self, entry: Entry) -> None:
        ways = (self.slow, self.full, self.failing, self.rot, self.lose, self.copy, self.restore)
        if sum(map(bool, ways)) != 1:
            allowed = "slow, full, failing, rot, lose, copy and restore (heal undoes the first three)"
            entry.fail(f"give exactly one of {allowed}")

    @property
    def leaves(self) -> str:
        """What its evidence calls the change of the files."""
        if self.rot:
            return "rot"
        return "restored" if self.restore else "emptied" if self.lose == "all" else "lost"

    @property
    def changes_files(self) -> bool:
        """The lab does it to the files itself, or only reads them."""
        return bool(self.rot or self.lose) or self.copy or self.restore

    @property
    def needs_dead_node(self) -> bool:
        """It is found, and perhaps refused, by the next start only."""
        return bool(self.lose) or self.restore or self.rot in ("wal", "last", "messages", "checkpoint")

    @property
    def needs(self) -> Needs:
        return Needs(layer=not self.changes_files, own_node=True)

    @property
    def unhealable(self) -> str:
        return "rot, loss and copies are healed by nothing that a nemesis does" if self.changes_files else ""

    def foresee(self, outlook: Outlook, place: Place) -> None:
        outlook.downed = True
        if self.rot or self.lose:
            outlook.set(self.on, DOWN)
        if self.rot in ("wal", "checkpoint"):
            outlook.damaged = place
        elif not self.slow:
            outlook.anything = True  # When the node ends, and whether it starts again, is not known.

    def reduce(self) -> Iterator[Self]:
        yield from super().reduce()
        yield from shorter(self, "slow")

    def proofs(self) -> tuple[tuple[str, ...], ...]:
        return (("disk",),)
