"""Faults of the machines, disks and clocks of real nodes, without root, and what came of each.

Power, full, failing and slow disks and clocks need nodes that run under lab.live.inside.faulty_node: `layered` says so.
Each such fault is an order in the node's ledger, and its evidence what the node counted there until the order was taken
back. A byte that rots, a file that is lost and a rebuild need a dead node and nothing else.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import structs

from lab.course.damage import (
    FATAL,
    MID_WRITE_OPERATIONS,
    MID_WRITE_PATIENCE_S,
    MOST_ROOM_BYTES,
    Causes,
    Rot,
    cause_of,
    draw_rot,
    file_name,
    lost_place,
)
from lab.course.orders import NEVER, Counts
from lab.live.children import last_line
from lab.live.inside.ledger import Ledger, NameChange
from lab.live.powerloss import lose_power, tearable
from lab.live.processes import NodeProcess
from lab.rows import FaultRow
from lab.rundir import RunDir
from lab.steps import Clock, Disk, PowerLoss
from nodeproc.core.messages import NodeId
from nodeproc.disk import archive, checkpoint, recovery, wal
from nodeproc.errors import EXIT_CORRUPTION

DISK_FOLDERS = (wal.FOLDER, recovery.LINES_FOLDER)
"""All that a node keeps; its events and its log are the lab's evidence, and stay when a disk is lost."""
TORN_PATIENCE_S, TORN_LOOK_S = 5.0, 0.01
"""A disk that is to leave a torn log waits so long for an entry that is not synced, and looks so often."""
END_PATIENCE_S = 10.0
"""From a write that fails to the end of the process: half a second, and more on a busy machine."""


class Disks:
    """The disks and clocks of a run's nodes.

    Args:
        nodes: the run's, as they come to be.
        role: what a node was when last looked at.
        row: makes a row for the present step: fault, node, role, t, evidence, effect, step.
        record: writes a row.
    """

    def __init__(
        self,
        run: RunDir,
        nodes: Mapping[NodeId, NodeProcess],
        role: Callable[[NodeId], str],
        row: Callable[..., FaultRow],
        record: Callable[[FaultRow], None],
    ) -> None:
        self._run, self._nodes, self._role, self._row, self._record = run, nodes, role, row, record
        self._rng = random.Random()
        self._ledgers: dict[NodeId, Ledger] = {}
        self._causes = Causes()
        self._copies: dict[NodeId, dict[str, bytes]] = {}
        """What nodes once kept: name -> bytes."""
        self._asked: dict[int, FaultRow] = {}
        """Step -> its latest row."""
        self._rotten: list[tuple[Path, Rot]] = []
        """What old rot has changed, by file."""
        self._up: dict[NodeId, int] = {}
        """Node -> which of its processes has answered, counted from 1."""
        self._open_rows: dict[NodeId, list[tuple[FaultRow, str, Counts]]] = {}
        """Node -> for each fault in force its row, the name of the count that proves it, and the counts before."""

    def open(self, seed: int, layered: bool) -> None:
        """Draws follow from the seed. layered: the nodes have ledgers."""
        self._rng = random.Random(f"{seed} disks")
        if layered:
            self._ledgers = {node: Ledger(self._run.ledger(node)) for node in self._nodes}

    def close(self) -> None:
        """What is still in force is over: its rows are written."""
        for node in sorted(self._open_rows):
            self._settle(node)
        for ledger in self._ledgers.values():
            ledger.close()
        self._ledgers = {}

    # ---- power -------------------------------------------------------------------------------------

    async def lose_power(self, step: PowerLoss, targets: Sequence[NodeId], index: int) -> None:
        """The machines of these nodes stop, all at once.

        Done when the processes are gone and their files are cut back.
        """
        roles, began = {node: self._role(node) for node in targets}, time.monotonic_ns()
        running = [node for node in targets if self._nodes[node].running]
        pids = {node: self._nodes[node].pid for node in running}
        if step.tail == "torn":
            await self._wait_for_tears(running)
        if step.mid_write:
            writing = [node for node in running if not self._nodes[node].paused]
            await asyncio.gather(*(self._die_in_a_write(node) for node in writing))
        gone = [node for node in running if self._nodes[node].running]
        await asyncio.gather(*(self._nodes[node].end(signal.SIGKILL) for node in gone))
        for node in targets:
            evidence: dict[str, Any] = {"found": "did not run" if node not in running else "survived SIGKILL"}
            hit = node in running and not self._nodes[node].running
            if hit:
                self._change(node, hang=False, die_at=NEVER)
                loss = lose_power(self._run.node_dir(node), self._run.ledger(node), self._rng, torn=step.tail == "torn")
                evidence = {"pid": pids[node], "exit": self._nodes[node].exits[-1].code} | loss.evidence()
                evidence |= {"in_a_write": node not in gone} if step.mid_write else {}
                if step.mid_write:
                    hit = node not in gone
                else:
                    hit = loss.tear is not None if step.tail == "torn" else loss.effect
            self._record(self._row("power_loss", node, roles[node], began, evidence, hit, index))

    async def _wait_for_tears(self, nodes: Sequence[NodeId]) -> None:
        """The disks stop answering; done when an entry of each log waits for its fdatasync, or it takes too long."""
        for node in nodes:
            self._change(node, hang=True)
        began, left = time.monotonic(), list(nodes)
        while left and time.monotonic() - began < TORN_PATIENCE_S:
            await asyncio.sleep(TORN_LOOK_S)
            left = [
                node
                for node in left
                if not tearable(self._run.node_dir(node), self._run.ledger(node), random.Random(0))
            ]

    async def _die_in_a_write(self, node: NodeId) -> None:
        """The node kills itself in the middle of one of its next disk operations; done when it is gone, or has none."""
        operations = self._ledgers[node].counts().operations
        self._change(node, die_at=operations + self._rng.randint(1, MID_WRITE_OPERATIONS))
        await self._nodes[node].doomed(MID_WRITE_PATIENCE_S)

    # ---- disks -------------------------------------------------------------------------------------

    async def hurt(self, step: Disk, targets: Sequence[NodeId], index: int) -> None:
        """From now on these disks are bad; rot and loss are done with when this returns."""
        for node in targets:
            if step.copy:
                await self._copy(node, index)
                continue
            if step.needs_dead_node:
                await self._damage(node, step, index)
                continue
            if step.rot:
                self._rot_old(node, step.rot, index)
                continue
            role, began, before = self._role(node), time.monotonic_ns(), self._ledgers[node].counts()
            if cause := cause_of(step, index):
                self._causes.add(node, cause)
            if step.slow:
                self._settle(node, proof="slowed")  # A disk is slow in one way at a time.
                state, proof = f"slow by {step.slow}", "slowed"
                self._change(node, slow_s=float(step.slow))
            elif step.full:
                state, proof = "full", "refused"
                self._change(node, room=before.appended + self._rng.randint(0, MOST_ROOM_BYTES))
            else:
                state, proof = f"failing {step.failing}", "failed"
                self._change(node, **{f"fail_{step.failing}": True})
            row = self._row("disk", node, role, began, {"state": state, proof: 0}, False, index)
            self._asked[index] = row
            self._open_rows.setdefault(node, []).append((row, proof, before))

    async def _damage(self, node: NodeId, step: Disk, index: int) -> None:
        """A byte rots or a file is lost; a node that runs is killed first."""
        process, role = self._nodes[node], self._role(node)
        if process.running:
            began, pid = time.monotonic_ns(), process.pid
            end = await process.end(signal.SIGKILL)
            evidence = {"pid": pid, "signal": "SIGKILL", "exit": None if end is None else end.code}
            self._record(self._row("kill", node, role, began, evidence, end is not None, index))
            if end is None:
                return
        began = time.monotonic_ns()
        if step.restore:
            found, place = self._put_back(node), ""
        elif step.lose:
            found, place = self._lose(node, step.lose)
        else:
            rot = self._rot(node, step.rot)
            found, place = (str(rot), rot.name) if rot is not None else ("", "")
        if found and (cause := cause_of(step, index, place)):
            self._causes.add(node, cause)
        evidence = {step.leaves: found or "nothing"}
        row = self._asked[index] = self._row("disk", node, "down", began, evidence, bool(found), index)
        self._record(row)

    def _rot_old(self, node: NodeId, what: str, index: int) -> None:
        """A byte rots that is older than any restart looks at; the node goes on."""
        began, role = time.monotonic_ns(), self._role(node)
        rot = self._rot(node, what)
        if rot is not None:
            self._rotten.append((self._run.node_dir(node) / rot.name, rot))
        self._record(self._row("disk", node, role, began, {"rot": str(rot or "nothing")}, rot is not None, index))

    @property
    def rotten(self) -> list[str]:
        """Bytes that old rot has changed and nobody has repaired yet."""
        return [str(rot) for path, rot in self._rotten if _is_rotten(path, rot)]

    async def _copy(self, node: NodeId, index: int) -> None:
        """Copy what the node keeps, while it stands still."""
        process, role, began = self._nodes[node], self._role(node), time.monotonic_ns()
        stopped = process.running and not process.paused and await process.pause()
        copy = self._copies[node] = self._contents(node)
        if stopped:
            process.wake()
        size = sum(map(len, copy.values()))
        row = self._asked[index] = self._row("disk", node, role, began, {"copied": size}, size > 0, index)
        self._record(row)

    def _contents(self, node: NodeId) -> dict[str, bytes]:
        """Name -> bytes of all that a node keeps."""
        root = self._run.node_dir(node)
        paths = [path for folder in DISK_FOLDERS for path in sorted((root / folder).glob("*"))]
        return {str(path.relative_to(root)): path.read_bytes() for path in paths}

    def _put_back(self, node: NodeId) -> str:
        """The latest copy takes the place of what the node keeps; returns what that changed, "" if nothing."""
        root, contents = self._run.node_dir(node), self._contents(node)
        copy = self._copies.get(node, contents)
        if copy == contents:
            return ""
        for folder in DISK_FOLDERS:
            _wiped(root / folder)
            (root / folder).mkdir()
        for name, data in copy.items():
            (root / name).write_bytes(data)
        if node in self._ledgers:
            self._ledgers[node].begin_anew()
        return f"{sum(map(len, copy.values()))} bytes instead of {sum(map(len, contents.values()))}"

    def _lose(self, node: NodeId, what: str) -> tuple[str, str]:
        """Delete a file; returns its name and where a node must see that it is gone, "" where there was none."""
        root = self._run.node_dir(node)
        if what == "all":
            lost = sum(_wiped(root / folder) for folder in DISK_FOLDERS)
            if node in self._ledgers:
                self._ledgers[node].begin_anew()
            return f"{lost} bytes" if lost else "", ""
        name = file_name(what, node, _files_in(root))
        if not name:
            return "", ""
        (root / name).unlink()
        if node in self._ledgers:
            self._ledgers[node].note(NameChange("lost", name))
        return name, lost_place(name)

    def _rot(self, node: NodeId, what: str) -> Rot | None:
        """Change a byte; None where there was none to change."""
        root = self._run.node_dir(node)
        # The checkpoint first: what a node that runs has in its other files by then is at least what it says.
        names = [checkpoint.NAME, archive.HEADERS, archive.INDEX, recovery.lines_name(node)]
        if what in ("wal", "last"):
            names += [f"{wal.FOLDER}/{path.name}" for path in sorted((root / wal.FOLDER).glob("*.wal*"))]
        contents = {name: (root / name).read_bytes() for name in names if (root / name).is_file()}
        rot = draw_rot(contents, what, node, self._rng)
        if rot is not None:
            with (root / rot.name).open("r+b") as file:
                file.seek(rot.at)
                file.write(bytes([rot.after]))
        return rot

    async def wipe(self, node: NodeId, index: int) -> bool:
        """The node dies and its disk is lost; an empty one takes its place. False: it did not die."""
        process, role, began = self._nodes[node], self._role(node), time.monotonic_ns()
        evidence: dict[str, Any] = {"disk": "lost"}
        if process.running:
            evidence["pid"] = process.pid
            end = await process.end(signal.SIGKILL)
            if end is None:
                self._record(self._row("rebuild", node, role, began, evidence, False, index))
                return False
            evidence["exit"] = end.code
        root = self._run.node_dir(node)
        evidence["lost_bytes"] = sum(_wiped(root / folder) for folder in DISK_FOLDERS)
        if node in self._ledgers:
            self._ledgers[node].begin_anew()
        self._causes.forget(node)
        self._record(self._row("rebuild", node, role, began, evidence, evidence["lost_bytes"] > 0, index))
        return True

    # ---- clocks ------------------------------------------------------------------------------------

    def misset(self, step: Clock, targets: Sequence[NodeId], index: int) -> None:
        """These clocks run at another speed from now on, and have been set forward."""
        for node in targets:
            ledger, role, began = self._ledgers[node], self._role(node), time.monotonic_ns()
            before, now = ledger.orders(), time.monotonic()
            self._change(
                node, drift=step.drift, since=now, base=before.monotonic(now), wall_s=before.wall_s + step.jump
            )
            evidence = {"drift": step.drift, "jump_s": float(step.jump), "misread": 0}
            row = self._row("clock", node, role, began, evidence, False, index)
            self._open_rows.setdefault(node, []).append((row, "misread", ledger.counts()))

    # ---- its end -----------------------------------------------------------------------------------

    async def mend(self, what: str) -> None:
        """disks, clocks or all of them work again; clocks that were set stay so.

        A node that has met a disk that failed it is on its way out: done when it is gone, for who starts it again.
        """
        for node, ledger in self._ledgers.items():
            if what in ("disks", "all"):
                self._causes.mended(node, self._nodes[node].starts)
                self._change(node, slow_s=0.0, room=NEVER, die_at=NEVER, fail_sync=False, fail_append=False)
                if self._was_failed(node):
                    await self._nodes[node].ended(END_PATIENCE_S)
                self._settle(node, "disk")
            if what in ("clocks", "all"):
                before, now = ledger.orders(), time.monotonic()
                if before.drift:
                    self._change(node, drift=0.0, since=now, base=before.monotonic(now))
                self._settle(node, "clock")

    def _was_failed(self, node: NodeId) -> bool:
        """A write or fdatasync of this node came to nothing."""
        now = self._ledgers[node].counts()
        rows = self._open_rows.get(node, ())
        return any(proof in FATAL and getattr(now, proof) > getattr(before, proof) for _, proof, before in rows)

    def _settle(self, node: NodeId, fault: str = "", proof: str = "") -> None:
        """Write the rows of faults that are over, with their evidence: of this kind, with this proof, or all."""
        left, rows = [], self._open_rows.pop(node, [])
        counts = self._ledgers[node].counts() if rows else Counts()
        for row, counted, before in rows:
            if (fault and row.fault != fault) or (proof and counted != proof):
                left.append((row, counted, before))
                continue
            hits = getattr(counts, counted) - getattr(before, counted)
            evidence = row.evidence | {counted: hits}
            if counted in FATAL:
                evidence["exits"] = [end.code for end in self._nodes[node].exits if end.t >= row.t]
            self._record(structs.replace(row, evidence=evidence, effect=hits > 0, t_healed=time.monotonic_ns()))
        if left:
            self._open_rows[node] = left

    # ---- nodes that end ----------------------------------------------------------------------------

    def came_up(self, node: NodeId) -> None:
        """It answers: whatever was damaged did not keep it down."""
        self._causes.survived(node)
        self._up[node] = self._nodes[node].starts

    def on_end(self, node: NodeId, code: int) -> str:
        """Why a process that nobody killed had to end; "" where no disk explains it. Leaves a row."""
        process = self._nodes[node]
        cause = self._causes.why(node, code, process.starts)
        if cause is None:
            return ""
        says = last_line(self._run.node_log(node)) if code == EXIT_CORRUPTION else ""
        evidence = {"pid": process.pid, "exit": code, "because": cause.what} | ({"says": says} if says else {})
        row = self._row("exit", node, self._role_before(node), time.monotonic_ns(), evidence, True, cause.step)
        because = self._asked[cause.step]
        self._record(structs.replace(row, asked=because.asked, round=because.round))
        return cause.what

    def _role_before(self, node: NodeId) -> str:
        """What a node was that has just ended: when its disk became bad, for it may not have answered since."""
        if self._up.get(node) != self._nodes[node].starts:
            return "down"
        rows = self._open_rows.get(node)
        return rows[-1][0].role if rows else self._role(node)

    def refusal(self, node: NodeId, began: int, index: int) -> str:
        """Judge how a node ended that had to refuse its disk; returns what was not so, "" if nothing."""
        process, says = self._nodes[node], last_line(self._run.node_log(node))
        end = process.exits[-1] if process.exits else None
        if process.running or end is None or end.t < began:
            return f"node {node} did not refuse its disk"
        cause = self._causes.why(node, end.code, process.starts)
        if end.code != EXIT_CORRUPTION or cause is None:
            return f"node {node} ended with exit code {end.code}, not {EXIT_CORRUPTION}: {says}"
        if cause.place not in says:
            return f"node {node} did not name {cause.place}: {says}"
        self._record(self._row("refusal", node, "down", began, {"exit": end.code, "says": says}, True, index))
        return ""

    # ---- orders ------------------------------------------------------------------------------------

    def _change(self, node: NodeId, **orders: Any) -> None:
        ledger = self._ledgers[node]
        ledger.order(ledger.orders()._replace(**orders))


def _is_rotten(path: Path, rot: Rot) -> bool:
    if not path.is_file():
        return False  # Its disk was lost since.
    with path.open("rb") as file:
        file.seek(rot.at)
        return file.read(1) == bytes([rot.after])


def _files_in(root: Path) -> dict[str, Path]:
    """What a node keeps, by the names that it has there."""
    paths = (path for folder in DISK_FOLDERS for path in sorted((root / folder).glob("*")))
    return {str(path.relative_to(root)): path for path in paths}


def _wiped(folder: Path) -> int:
    """Remove a folder; returns the bytes that were in it."""
    size = sum(path.stat().st_size for path in folder.glob("*"))
    shutil.rmtree(folder, ignore_errors=True)
    return size
