"""`disk`: a disk fault, or a copy of a disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from lab.steps.damage import ANY_EXIT, OLDER_COPY, Cause
from lab.steps.entry import Entry
from lab.steps.kill import end
from lab.steps.lot import Lot
from lab.steps.machine import Machine, Run
from lab.steps.outlook import DOWN, Outlook
from lab.steps.reducing import shorter
from lab.steps.step import Effect, Fault, Needs
from lab.words import Duration, Target
from nodeproc.core.messages import NodeId
from nodeproc.errors import EXIT_CORRUPTION, EXIT_DISK_FAILED
from nodeproc.yamlfile import Place

MOST_ROOM_BYTES = 256
"""A disk that becomes full accepts up to this many more bytes, so that the last write is torn."""


class Disk(Fault, frozen=True):
    """Inject exactly one disk fault into these nodes, or copy their disks.

    slow: each fdatasync takes this much longer.
    full: nothing more can be written.
    failing: fdatasync (sync) or writes (append) fail.
    rot: one byte of synced data changes, in the log (wal), in the last delivered message of the log (last), in
        messages.jsonl (messages) or in the checkpoint; or in data that no restart reads: lines of messages.jsonl,
        headers or index of the archive. data: one bit of the data of another program.
    lose: the checkpoint, messages.jsonl or the newest file of the log (wal) is deleted, or all of the data directory.
    copy: copy the data directory as it is now, for a later `restore`.
    restore: the latest copy replaces the data directory.
    file: with `rot: data`, a pattern of names below the node's directory, such as `*.blk`; `*` matches slashes, too.
    lose, restore, and rot that is not old, need a dead node: a node that runs is killed first.
    """

    word = "disk"
    effect = Effect.SLOW
    also = ("kill",)
    on: Target
    slow: Duration = Duration(0)
    full: bool = False
    failing: Literal["", "sync", "append"] = ""
    rot: Literal["", "wal", "last", "messages", "checkpoint", "old_lines", "old_headers", "old_index", "data"] = ""
    lose: Literal["", "checkpoint", "messages", "wal", "all"] = ""
    copy: bool = False
    restore: bool = False
    file: str = ""

    def check(self, entry: Entry) -> None:
        ways = (self.slow, self.full, self.failing, self.rot, self.lose, self.copy, self.restore)
        if sum(map(bool, ways)) != 1:
            allowed = "slow, full, failing, rot, lose, copy and restore (heal undoes the first three)"
            entry.fail(f"give exactly one of {allowed}")
        if self.file and self.rot != "data":
            entry.at("file").fail("is for `rot: data`")
        if self.rot == "data" and not entry.setting.foreign:
            entry.at("rot").fail("data is of other programs; the lab knows the files of its own nodes")

    @property
    def changes_files(self) -> bool:
        """The lab changes or copies the files itself."""
        return bool(self.rot or self.lose) or self.copy or self.restore

    @property
    def needs_dead_node(self) -> bool:
        """Only the next start notices the fault, and may refuse the disk."""
        return bool(self.lose) or self.restore or self.rot in ("wal", "last", "messages", "checkpoint", "data")

    @property
    def needs(self) -> Needs:
        or_supervised = not (self.lose or self.rot) or self.lose == "all" or self.rot == "data"
        return Needs(layer=not self.changes_files, own_node=True, or_supervised=or_supervised)

    @property
    def unhealable(self) -> str:
        return "rot, loss and copies are healed by nothing that a nemesis does" if self.changes_files else ""

    def foresee(self, outlook: Outlook, place: Place) -> None:
        super().foresee(outlook, place)
        if self.rot or self.lose:
            outlook.set(self.on, DOWN)
        if self.rot in ("wal", "checkpoint"):
            outlook.damaged = place
        elif not self.slow:
            outlook.anything = True  # When the node ends, and whether it starts again, is not known.

    def reduce(self) -> Iterator[Self]:
        yield from super().reduce()
        yield from shorter(self, "slow")

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        """Draw a slow disk."""
        return cls(on=lot.one(), slow=lot.time(0.02, 0.2, 1.0))

    @property
    def hurts(self) -> frozenset[NodeId] | None:
        return frozenset() if self.slow or self.copy else None

    async def do(self, run: Run, index: int) -> None:
        for machine in run.choose(self.on):
            if self.copy:
                row, size = run.book.begin(self.word, index, machine), await machine.copy()
                row.write({"copied": size}, size > 0)
            elif self.changes_files:
                await self._damage(run, machine, index)
            else:
                self._order(run, machine, index)
        await run.world.breathe()

    async def _damage(self, run: Run, machine: Machine, index: int) -> None:
        """Change a byte, or delete or restore files; kill a node first that must be dead for that."""
        if self.needs_dead_node and machine.running:
            await end(run, [machine], "kill", index)
            if machine.running:
                return
        row, place = run.book.begin(self.word, index, machine), ""
        if self.restore:
            change, found = "restored", machine.restore()
        elif self.lose == "all":
            lost = machine.wipe()
            change, found = "emptied", f"{lost} bytes" if lost else ""
        elif self.lose:
            found, place = machine.lose(self.lose)
            change = "emptied" if found and not place else "lost"
        else:
            rot = machine.rot(self.rot, run.draws, self.file)
            change, found, place = ("rot", str(rot), rot.name) if rot is not None else ("rot", "", "")
        if found and change != "emptied" and (cause := self.cause(index, place)):
            run.book.causes.add(machine.node, cause._replace(exit_code=ANY_EXIT) if run.is_foreign else cause)
        row.write({change: found or "nothing"}, bool(found))

    def _order(self, run: Run, machine: Machine, index: int) -> None:
        """Make the disk slow, full or failing from now on."""
        row, before = run.book.begin(self.word, index, machine), machine.counts()
        if cause := self.cause(index):
            run.book.causes.add(machine.node, cause._replace(exit_code=ANY_EXIT) if run.is_foreign else cause)
        state: dict[str, object]
        if self.slow:
            run.book.healed(self.word, machine, "slowed")  # A disk is slow in one way at a time.
            state, proof = {"state": f"slow by {self.slow}", "slow_s": float(self.slow)}, "slowed"
            machine.order(slow_s=float(self.slow))
        elif self.full:
            state, proof = {"state": "full"}, "refused"
            machine.order(room=before.appended + run.draws.randint(0, MOST_ROOM_BYTES))
        else:
            state, proof = {"state": f"failing {self.failing}"}, "failed"
            machine.order(**{f"fail_{self.failing}": True})
        row.lasts(state, machine, proof, before)

    def cause(self, index: int, place: str = "") -> Cause | None:
        """Return why a node may exit after the fault; None if it may not: a slow or empty disk, or old damage."""
        if self.slow or self.lose == "all" or (self.rot and not self.needs_dead_node):
            return None
        if self.needs_dead_node:
            damage = f"rot of {self.rot}" if self.rot else f"loss of {self.lose}" if self.lose else OLDER_COPY
            return Cause(damage, EXIT_CORRUPTION, index, place)
        return Cause("full" if self.full else f"failing {self.failing}", EXIT_DISK_FAILED, index)
